"""What every stage stands on: settings, artifacts on disk, provenance, errors, report pages.

A stage fills its settings from YAML and flags (`config`), reads its inputs by the file names of
`artifacts`, and refuses in one line what a person gave wrongly (`errors`). What it writes carries a
sidecar `lcrec.json` that says what it was made from (`provenance`). Nothing here knows of items,
tokens or models.
"""
