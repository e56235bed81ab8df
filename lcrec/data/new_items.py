"""Items that join a catalogue later: `NEW.item.json`, and what an extended data folder continues.

`lcrec.add_items` and `lcrec.add_interactions` write a data folder that continues another: users and
items keep their numbers, and those of new ones go on without a gap, so nothing that speaks of an
old item changes. The folder's record names the fingerprints of all that it continues (`earlier`),
by which what was made from an older folder is known to belong to it still.

Reads the new items and records; writes nothing.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

from lcrec.core.artifacts import find_data, index_path, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import alike, fingerprint, kind_of, read_provenance, require_same_input
from lcrec.data.folder import Items, item_texts

ADD_STAGE = "python -m lcrec.add_items"  # which writes the sidecar of an extended folder


def read_new_items(path: Path, known: Container[str] = ()) -> dict[str, Any]:
    """Read new items as {key: entry}, in the order in which they join the catalogue.

    That is the order of the keys where all are whole numbers, and of the file otherwise.

    Raises:
        InputError: the file is missing or malformed, or an item that is not `known` has no text.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path}: expected the new items as {{id: {{title, ...}}}}")
    for key, entry in raw.items():
        item_texts(entry, f"{path}: item {key}", needs_text=key not in known)
    if all(key.isdecimal() for key in raw):
        return dict(sorted(raw.items(), key=lambda pair: int(pair[0])))
    return raw


def require_new_ids(new: list[str], num_items: int, add: Path, item: Path, *, raw: bool) -> None:
    """Refuse ids that cannot continue a catalogue's.

    Args:
        new: the ids of the new items, in the order of their numbers.
        num_items: how many items there are before them.
        add: the file that names them.
        item: the catalogue's file.
        raw: whether they are raw ids; else they are the numbers themselves.

    Raises:
        InputError: a raw id holds what separates the file's parts, or a number does not go on.
    """
    if not raw:
        last = num_items + len(new) - 1
        if new != [str(number) for number in range(num_items, last + 1)]:
            raise InputError(
                f"{add}: {len(new)} new items must be numbered {num_items} to {last}, after the "
                f"{num_items} of {item}; found {', '.join(new[:3])}"
            )
    for raw_id in new:
        if not raw_id or set(raw_id) & set("\t\n\r"):
            raise InputError(f"{add}: id {raw_id!r} is empty, or holds a tab or a line break")


def earlier(data: Path, role: str) -> list[str]:
    """Return the fingerprints of the files that a data folder's own file continues, oldest first.

    Args:
        role: the file, "item", "inter" or "split".
    """
    record = read_provenance(data)
    if record is None or record["kind"] != kind_of(ADD_STAGE):
        return []
    before = record.get("earlier", {})
    if role in before or role == "split":
        return before.get(role, [])
    # A record of before this was written down tells of the folder that it continues alone.
    return [record["inputs"][role]["sha256"]] if role in record["inputs"] else []


def count_old_items(items: Items, data: Path, add: Path) -> int:
    """Return how many items a catalogue had before those of `add` were added to it.

    Their texts are compared, unless the folder's record says that it was made with this very file:
    what joins a catalogue is freed of tags and line breaks.

    Raises:
        InputError: the catalogue does not end in the items of `add`.
    """
    new = [item_texts(entry, str(add)) for entry in read_new_items(add).values()]
    old = len(items) - len(new)
    inputs = (read_provenance(data) or {"inputs": {}})["inputs"]
    is_told = inputs.get("added", {}).get("sha256") == fingerprint(add)
    if old < 1 or not (is_told or items.fields[old:] == new):
        raise InputError(
            f"--data {data}: its last items are not those of --add {add}; make the extended data "
            f"folder with: {ADD_STAGE} --data OLD --add {add} --output {data}"
        )
    return old


def require_same_past(data: Path, artifact: Path, add: Path | None) -> None:
    """Refuse to extend an artifact of another catalogue than one that `data` continues.

    Where `add` names the new items, their texts tell what the catalogue was (`count_old_items`),
    and a data folder without a record is accepted as it is; so is an artifact without one.

    Raises:
        InputError: the records disagree.
    """
    grown, made = read_provenance(data), read_provenance(artifact)
    extended = grown is not None and grown["kind"] == kind_of(ADD_STAGE)
    if made is None or "item" not in made["inputs"] or not (extended or add is None):
        return
    seen = made["inputs"]["item"]
    if seen["sha256"] in (*earlier(data, "item"), *alike(find_data(data).item, "item")):
        return
    if grown is None or not extended:
        raise InputError(
            f"{artifact} was made from {seen['path']} (sha256 {seen['sha256'][:12]}), and no "
            f"record says that {data} continues it; make the extended data folder with: {ADD_STAGE}"
        )
    before = grown["inputs"]["item"]
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
    if index is not None:
        extend = f"python -m lcrec.quantize --data {data} --index {index} --embeddings DIR"
        require_same_input(index_path(index).parent, "item", item, extend)
        return
    made = read_provenance(model)
    if made is not None and made["inputs"].get("item", {}).get("sha256") in earlier(data, "item"):
        raise InputError(
            f"--data {data}: items joined after --model {model} was trained; name an index that "
            f"has them with --index, made with: python -m lcrec.quantize --data {data} --index OLD "
            "--embeddings DIR"
        )
    retrain = f"python -m lcrec.finetune --data {data} --output DIR"
    require_same_input(model, "item", item, retrain)
