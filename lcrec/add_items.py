"""Stage: new items -> the data folder, extended.

Reads a data folder and `NEW.item.json` {id: {title, description, ...}}; writes a new folder with
the same users and the longer catalogue. The new items' numbers continue the old ones, so every
index, history and prediction that speaks of an old item still means the same. Where the folder
has `<Name>.item2id`, the ids of the new items are raw ids; where it has none, they are the numbers
themselves. The old folder stays as it is: what was made from it still belongs to it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcrec.core.artifacts import (
    DataPaths,
    atomic_path,
    data_paths,
    find_data,
    is_parquet,
    read_json,
    write_json,
)
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, claim
from lcrec.core.provenance import fingerprint, is_current, read_provenance, write_provenance
from lcrec.data.folder import item_texts, load_items, read_texts, write_texts
from lcrec.data.new_items import ADD_STAGE, read_new_items

EXAMPLE = "--data data/shop --add new.item.json --output data/shop2"


@dataclass(frozen=True)
class AddItemsConfig(Writes):
    """Settings of `python -m lcrec.add_items`."""

    data: Path = option("the data folder to extend; it stays as it is")
    add: Path = option("the new items, {id: {title, description, ...}}")
    output: Path = option("the folder to write the extended data set to", writes=FOLDER)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(
        AddItemsConfig, argv, description=__doc__ or "", prog=ADD_STAGE, example=EXAMPLE
    )
    data, add, output = config.data, config.add, config.output
    old = find_data(data)
    num_items = len(load_items(data))
    new = read_new_items(add)
    last = num_items + len(new) - 1
    if old.item_ids.exists():
        raw_ids = _extended_ids(old.item_ids, list(new), num_items, add)
    else:
        raw_ids = None
        if list(new) != [str(number) for number in range(num_items, last + 1)]:
            raise InputError(
                f"{add}: {len(new)} new items must be numbered {num_items} to {last}, after the "
                f"{num_items} of {old.item}; found {', '.join(list(new)[:3])}"
            )
    inputs = {"item": old.item, "added": add, **old.sequences}
    inputs |= {"user": old.user} if old.user.exists() else {}
    after = f"Next: python -m lcrec.embed --data {output} --add {add} --embeddings OLD --output NEW"
    parquet = is_parquet(old.inter)
    made = output.is_dir() and data_paths(output, old.name, parquet=parquet).inter.exists()
    if made and is_current(output, ADD_STAGE, config_dict(config), inputs):
        print(f"{output} is up to date.\n{after}")
        return
    if not config.overwrite:
        _require_unchanged(output)
    print(f"Adding {len(new):,} items to the {num_items:,} of {old.name}: numbers {num_items:,} on")
    with claim(output, ADD_STAGE, overwrite=config.overwrite), atomic_path(output) as folder:
        folder.mkdir()
        paths = data_paths(folder, old.name, parquet=parquet)
        _copy(old, paths)
        if parquet:
            _write_texts(paths.item, [*read_texts(old.item), *new.values()])
        else:
            numbered = {str(num_items + place): entry for place, entry in enumerate(new.values())}
            write_json(paths.item, read_json(old.item) | numbered)
        if raw_ids is not None:
            paths.item_ids.write_text(raw_ids, encoding="utf-8")
        facts: dict[str, Any] = {"items": last + 1, "inter_sha256": fingerprint(paths.inter)}
        write_provenance(folder, ADD_STAGE, config_dict(config), inputs, **facts)
    print(f"Wrote {output}: {last + 1:,} items. {after}")


def _extended_ids(path: Path, new: list[str], num_items: int, add: Path) -> str:
    """Return the lines of `<Name>.item2id` with the new raw ids.

    Raises:
        InputError: a raw id is in the catalogue already, or holds what separates the file's parts.
    """
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    known = dict(line.rsplit("\t", 1) for line in text.split("\n") if "\t" in line)
    for raw_id in new:
        if raw_id in known:
            raise InputError(
                f"{add}: {raw_id!r} is in the catalogue already, as item {known[raw_id]} "
                f"({path.name}); leave it out"
            )
        if not raw_id or set(raw_id) & set("\t\n\r"):
            raise InputError(f"{add}: id {raw_id!r} is empty, or holds a tab or a line break")
    lines = (f"{raw_id}\t{number}" for number, raw_id in enumerate(new, start=num_items))
    return "\n".join([text, *lines]) + "\n"


def _require_unchanged(output: Path) -> None:
    """Refuse an earlier result whose interactions were edited since."""
    for inter in [*output.glob("*.inter.json"), *output.glob("*.inter.parquet")]:
        record = read_provenance(output)
        if record is not None and fingerprint(inter) != record.get("inter_sha256"):
            raise InputError(
                f"--output {output}: {inter.name} was changed since, and would be lost; name "
                "another folder, or give --overwrite to replace it"
            )


def _copy(old: DataPaths, new: DataPaths) -> None:
    """Copy what does not speak of the catalogue's size."""
    for name in ("inter", "split", "user", "review", "user_ids"):
        source: Path = getattr(old, name)
        if source.is_dir():
            shutil.copytree(source, getattr(new, name))
        elif source.exists():
            shutil.copyfile(source, getattr(new, name))


def _write_texts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write texts as Parquet; a field that some item has, every item has."""
    # Slow to load, and needed for large data alone.
    import pyarrow as pa

    texts = [item_texts(row, f"item {item}") for item, row in enumerate(rows)]
    names = list(dict.fromkeys(name for row in texts for name in row))
    columns = {name: pa.array([row.get(name, "") for row in texts], pa.string()) for name in names}
    write_texts(path, pa.table(columns))


if __name__ == "__main__":
    run_stage(main)
