"""What every stage stands on: settings, artifacts on disk, provenance, errors, report pages.

A stage fills its settings from YAML and flags (`config`), reads its inputs by the file names of
`artifacts`, and refuses in one line what a person gave wrongly (`errors`). What it writes carries a
sidecar `lcrec.json` that says what it was made from (`provenance`). Nothing here knows of items,
tokens or models.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "InputError": "errors",
    "find_data": "artifacts",
    "option": "config",
    "parse_config": "config",
    "read_provenance": "provenance",
    "render_page": "report",
    "run_stage": "errors",
    "write_provenance": "provenance",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
