"""Items that join a catalogue later: `NEW.item.json`, and what it has to fit.

The file has the form of `<Name>.item.json` and holds the new items alone. Their numbers continue
the catalogue's without a gap, so nothing that speaks of an old item changes. `lcrec.add_items`
writes the extended data folder; `lcrec.embed --add` and `lcrec.quantize --add` extend what was
a copy of the old one.

Reads the new items; writes nothing.
"""

from pathlib import Path
from typing import Any

from lcrec.core.artifacts import find_data, index_path, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import kind_of, read_provenance, require_same_input
from lcrec.data.folder import Items, item_texts

ADD_STAGE = "python -m lcrec.add_items"  # which writes the sidecar of an extended folder


def read_new_items(path: Path) -> dict[str, Any]:
    """Read new items as {key: entry}, in the order in which they join the catalogue.

    That is the order of the keys where all are whole numbers, and of the file otherwise.

    Raises:
        InputError: the file is missing or malformed, or an item has no text.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path}: expected the new items as {{id: {{title, ...}}}}")
    for key, entry in raw.items():
        item_texts(entry, f"{path}: item {key}")
    if all(key.isdecimal() for key in raw):
        return dict(sorted(raw.items(), key=lambda pair: int(pair[0])))
    return raw


def count_old_items(items: Items, data: Path, add: Path) -> int:
    """Return how many items a catalogue had before those of `add` were added to it.

    Raises:
        InputError: the catalogue does not end in the items of `add`.
    """
    new = [item_texts(entry, str(add)) for entry in read_new_items(add).values()]
    old = len(items) - len(new)
    if old < 1 or items.fields[old:] != new:
        raise InputError(
            f"--data {data}: its last items are not those of --add {add}; make the extended data "
            f"folder with: {ADD_STAGE} --data OLD --add {add} --output {data}"
        )
    return old


def require_same_past(data: Path, artifact: Path) -> None:
    """Refuse to extend an artifact of another catalogue than the one that `data` extends.

    A data folder or an artifact without a sidecar is accepted as it is.

    Raises:
        InputError: the records disagree.
    """
    grown, made = read_provenance(data), read_provenance(artifact)
    if grown is None or grown["kind"] != kind_of(ADD_STAGE):
        return
    if made is None or "item" not in made["inputs"]:
        return
    before, seen = grown["inputs"]["item"], made["inputs"]["item"]
    if before["sha256"] != seen["sha256"]:
        raise InputError(
            f"{artifact} was made from {seen['path']} (sha256 {seen['sha256'][:12]}), but {data} "
            f"extends {before['path']} (sha256 {before['sha256'][:12]}); name what was made from "
            "the latter"
        )


def require_same_catalogue(data: Path, model: Path, index: Path | None) -> None:
    """Refuse a data folder of another catalogue than a checkpoint's, or than its longer index's.

    `index`, where there is one, adds items to the checkpoint's own, which knows the catalogue as it
    was before.

    Raises:
        InputError: the records disagree.
    """
    item = find_data(data).item
    if index is None:
        retrain = f"python -m lcrec.finetune --data {data} --output DIR"
        require_same_input(model, "item", item, retrain)
    else:
        extend = f"python -m lcrec.quantize --data {data} --add NEW.item.json"
        require_same_input(index_path(index).parent, "item", item, extend)
