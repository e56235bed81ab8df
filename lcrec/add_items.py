"""Stage: new items -> the data folder, extended.

Reads a data folder and new items: in the form of `<Name>.item.json` {id: {title, description,
...}}, or a file of any format that `lcrec prepare` reads, by default the one that the folder was
prepared from. Their texts are cleaned as the folder's were. Items that it has already keep their
texts, and take the values of kept fields, such as a price, from the file: a model of the old folder
serves the new one. Writes a new folder with the same users and the longer catalogue. The new items'
numbers continue the old ones, so every index, history and prediction that speaks of an old item
still means the same. Where the folder has `<Name>.item2id`, the ids of the new items are raw ids;
where it has none, they are the numbers themselves. The old folder stays as it is.
"""

from dataclasses import dataclass
from pathlib import Path

from lcrec.core.artifacts import find_data
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import printable
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER
from lcrec.data.continuation import continue_folder, is_done
from lcrec.data.folder import load_items
from lcrec.data.id_map import load_item_ids
from lcrec.data.new_items import ADD_STAGE, require_new_ids
from lcrec.prepare.flags import ReadingFlags

EXAMPLE = "--data data/shop --add new_products.csv --output data/shop2"
NEXT = "Next: python -m lcrec.embed --data {} --embeddings OLD --output NEW"


@dataclass(frozen=True)
class AddItemsConfig(ReadingFlags, Writes):
    """Settings of `python -m lcrec.add_items`."""

    data: Path = option("the data folder to extend; it stays as it is")
    add: list[Path] = option(
        "new items, and kept fields (prices) of known ones: {id: {title, description, ...}}, or "
        "files as `lcrec prepare --items` reads; a list of ids and prices will do for known ones"
    )
    output: Path = option("the folder to write the extended data set to", writes=FOLDER)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(AddItemsConfig, argv, prog=ADD_STAGE, example=EXAMPLE)
    # Here, so that options are read without any engine.
    from lcrec.prepare.additions import Reading, read_items
    from lcrec.prepare.inputs import find_files, hashed

    data, output, old = config.data, config.output, find_data(config.data)
    num_items = len(load_items(data))
    raw_ids = load_item_ids(data, num_items)
    reading = Reading.of(data, **config.given())
    files = find_files("add", config.add)
    inputs = {"item": old.item, **hashed("added", files), **old.sequences}
    inputs |= {"user": old.user} if old.user.exists() else {}
    settings = config_dict(config)
    again = is_done(data, output, ADD_STAGE, settings, inputs, overwrite=config.overwrite)
    if again:
        print(f"{output} is up to date.\n{NEXT.format(output)}")
        return
    known = raw_ids or [str(number) for number in range(num_items)]
    given = config.format is not None
    found = read_items(files, reading, data, known, format_given=given)
    for line in found.lines():
        print(printable(line))
    require_new_ids(list(found.entries), num_items, files[0], old.item, raw=raw_ids is not None)
    if not found.entries and not found.changed and not reading.keep:
        raise InputError(f"--add {files[0]}: no item of it is new to {data}")
    print(
        f"Adding {len(found.entries):,} items to the {num_items:,} of {old.name}: numbers "
        f"{num_items:,} on"
    )
    continue_folder(
        data,
        output,
        ADD_STAGE,
        settings,
        inputs,
        found.entries,
        changed=found.changed,
        overwrite=config.overwrite,
    )
    after = f" {NEXT.format(output)}" if found.entries else ""
    print(f"Wrote {output}: {num_items + len(found.entries):,} items.{after}")


if __name__ == "__main__":
    run_stage(main)
