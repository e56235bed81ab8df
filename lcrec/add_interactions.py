"""Stage: new interactions -> the data folder, extended.

Reads a data folder and files of interactions in any format that `lcrec prepare` reads, by default
the one that the folder was prepared from, and treats them by its settings: which ratings count,
what becomes of repeats, which columns are read. Writes a new folder in which users, items and their
numbers are what they were and new users follow; a user enters with the first known item. Rows of
items that the catalogue does not have are counted and named, or `--items` takes the items along,
and new prices of known ones, as `lcrec add_items` does. A leave-one-out split is computed anew, and
one by time keeps its dates. A checkpoint of the old folder serves the new one. A night without an
order leaves a folder like the old one. The old folder stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lcrec.core.artifacts import find_data
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import printable
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER
from lcrec.data.continuation import (
    Growth,
    append_interactions,
    continue_folder,
    is_done,
    last_time,
    preparation,
)
from lcrec.data.folder import Interactions, load_interactions, load_items
from lcrec.data.id_map import Names, load_names
from lcrec.data.new_items import require_new_ids
from lcrec.data.splits import TEST, load_time_parts
from lcrec.prepare.flags import ReadingFlags

if TYPE_CHECKING:
    from lcrec.prepare.additions import NewItems, NewRows, Reading

STAGE = "python -m lcrec.add_interactions"
EXAMPLE = "--data data/shop --interactions new_orders.csv --output data/shop2"


@dataclass(frozen=True)
class AddInteractionsConfig(ReadingFlags, Writes):
    """Settings of `python -m lcrec.add_interactions`."""

    data: Path = option("the data folder to extend; it stays as it is")
    interactions: list[Path] = option("files with one row per new interaction")
    output: Path = option("the folder to write the extended data set to", writes=FOLDER)
    items: list[Path] | None = option(
        "files of items: those that the catalogue does not have join it, and the others take kept "
        "fields (prices) from them (default: rows of unknown items are left out)",
        None,
    )
    late: Literal["error", "drop"] = option(
        "rows older than the data folder's last interaction: refuse, naming the first; or drop and "
        "count them, as files that overlap with those of before need it",
        "error",
    )
    only_new_users: bool = option(
        "accept files in which no user is known; else they are refused, since ids may be written "
        "differently in them",
        False,
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(AddInteractionsConfig, argv, prog=STAGE, example=EXAMPLE)
    # Here, so that options are read without any engine.
    from lcrec.prepare.additions import NewItems, Reading, read_interactions, read_items
    from lcrec.prepare.inputs import find_files, hashed

    data, output, old = config.data, config.output, find_data(config.data)
    num_items = len(load_items(data))
    interactions = load_interactions(data, num_items)
    names = load_names(data, interactions.users, num_items, None)
    parts = split_to_extend(data, interactions)
    reading = Reading.of(data, **config.given())
    if not preparation(data) and interactions.has_repeats():
        reading = replace(reading, repeats="keep")  # as there evidently were kept
    orders = find_files("interactions", config.interactions)
    added = find_files("items", config.items or [])
    maps = {"user_ids": old.user_ids, "item_ids": old.item_ids, "review": old.review}
    inputs = {"item": old.item, **old.sequences}
    inputs |= {role: path for role, path in maps.items() if path.exists()}
    inputs |= hashed("interactions", orders) | (hashed("items", added) if added else {})
    settings = config_dict(config)
    if is_done(data, output, STAGE, settings, inputs, overwrite=config.overwrite):
        print(f"{output} is up to date.")
        return

    new_items = NewItems({})
    if added:
        given = config.format is not None
        new_items = read_items(added, reading, data, names.items.names, format_given=given)
        ids = list(new_items.entries)
        require_new_ids(ids, num_items, added[0], old.item, raw=names.items.is_raw)
    items = [*names.items.names, *new_items.entries]
    rows = read_interactions(orders, reading, data, items, last_time(data), config.late)
    strange = rows.named and not any(user in names.users.numbers for user in rows.named)
    if strange and not config.only_new_users:
        raise InputError(
            f"{orders[0]}: none of its {len(rows.named):,} users is in {data}, such as "
            f"{min(rows.named)!r}, while {names.users.names[0]!r} is; name the users' column with "
            "--columns user=..., or if all are new, give --only-new-users"
        )
    growth = grow(interactions, names, items, parts, rows, reading)
    count = len(growth.interactions.items) - len(interactions.items)
    if had := rows.rows.num_rows - count:
        rows.dropped["had by the user before"] = had
    tell(data, names, rows, count, growth, new_items, takes_items=bool(added))
    continue_folder(
        data,
        output,
        STAGE,
        settings,
        inputs,
        new_items.entries,
        growth,
        changed=new_items.changed,
        overwrite=config.overwrite,
        users=len(growth.interactions),
        interactions=len(growth.interactions.items),
        dropped=rows.dropped,
        last_time=rows.last_time,
    )
    after = f"generate --model MODEL --data {output} --all-users --output DIR"
    if new_items.entries:
        after = f"embed --data {output} --embeddings OLD --output NEW"
    print(f"Wrote {output}. Next: python -m lcrec.{after}")
    if old.user.exists():
        print(
            f"  {old.user.name} told of the sequences as they were; for the new ones: "
            f"python -m lcrec.intents --data {output}"
        )


def split_to_extend(data: Path, interactions: Interactions) -> np.ndarray | None:
    """Return the part each interaction belongs to, int8 [interactions], None for leave-one-out.

    Raises:
        InputError: the split is one that later interactions have no part in.
    """
    path = find_data(data).split
    if not path.exists():
        return None
    parts = load_time_parts(data, interactions)
    kind = preparation(data).get("split", "time")
    if parts is None or kind != "time":
        raise InputError(
            f"--data {data}: its split ({path.name}) was drawn, and later interactions have no "
            "part in it; prepare all files anew, or extend a copy without that file, whose split "
            "is leave-one-out"
        )
    return parts


def grow(
    old: Interactions,
    names: Names,
    items: list[str],
    parts: np.ndarray | None,
    rows: NewRows,
    reading: Reading,
) -> Growth:
    """Put new interactions behind the old ones.

    Args:
        names: what its users and items are called.
        items: the raw ids of all items, the new ones last.
        parts: the part of a split by time each old interaction belongs to; None for leave-one-out.
        reading: what becomes of repeats.
    """
    from lcrec.prepare.folder import UNIT_SEPARATOR
    from lcrec.prepare.text import clean_text

    new_users = [user for user in rows.users if user not in names.users.numbers]
    keys = new_users
    if names.users.is_raw:
        keys = [str(number) for number in range(len(old), len(old) + len(new_users))]
        if taken := set(keys) & set(old.users):
            raise InputError(
                f"user {min(taken)!r} of the data folder has the number of a new user; number its "
                f"users 0 to {len(old) - 1}"
            )
    users = names.users.numbers | {
        user: number for number, user in enumerate(new_users, start=len(old))
    }
    item_numbers = {item: number for number, item in enumerate(items)}
    owners = np.array([users[user] for user in rows.rows["user"].to_pylist()], dtype=np.int64)
    bought = [item_numbers[item] for item in rows.rows["item"].to_pylist()]
    taken_items = np.array(bought, dtype=np.int64)
    order = np.argsort(owners, kind="stable")  # a user's own rows stay in the order of time
    if reading.repeats == "drop":
        pairs = owners[order] * len(items) + taken_items[order]
        before = old.owners * len(items) + old.items
        order = order[~np.isin(pairs, before)]
    else:
        tied = rows.rows["tied"].to_numpy()[order]
        order = order[~_had(old, owners[order], taken_items[order], tied)]
    all_users = [*old.users, *keys]
    grown, is_new = append_interactions(old, all_users, owners[order], taken_items[order])
    reviews: dict[str, dict[str, str]] = {}
    if "review" in rows.rows.column_names:
        written = rows.rows["review"].to_pylist()
        for row in order.tolist():
            title, _, text = (written[row] or "").partition(UNIT_SEPARATOR)
            entry = {"review": clean_text(text), "summary": clean_text(title)}
            if any(entry.values()):
                reviews[f"({all_users[owners[row]]}, {taken_items[row]})"] = entry
    if parts is not None:  # of a split by time: what is new came after its last moment
        own, parts = parts, np.full(len(is_new), TEST, dtype=np.int8)
        parts[~is_new] = own
    return Growth(grown, new_users, parts, reviews)


def _had(old: Interactions, owners: np.ndarray, items: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Tell which new interactions a folder has already, where files overlap in its last second.

    What a user did in that second ends the user's old sequence. So many of its last items as are
    also among the user's rows of that second are the same orders.

    Args:
        owners: int [rows], each row's user.
        items: int [rows].
        tied: bool [rows], whether the row happened in the last second.

    Returns:
        bool [rows].
    """
    rows_of = defaultdict[int, defaultdict[int, list[int]]](lambda: defaultdict(list))
    for row in np.flatnonzero(tied & (owners < len(old))).tolist():
        rows_of[owners[row]][items[row]].append(row)
    had = np.zeros(len(owners), dtype=bool)
    for owner, by_item in rows_of.items():
        for item in old.sequence(owner)[::-1].tolist():
            if not by_item.get(item):
                break
            had[by_item[item].pop()] = True
    return had


def tell(
    data: Path,
    names: Names,
    rows: NewRows,
    count: int,
    growth: Growth,
    new_items: NewItems,
    *,
    takes_items: bool,
) -> None:
    """Print what joins, and what does not and why."""
    from lcrec.prepare.pipeline import some_of

    if new_items.entries or takes_items:
        print(f"Adding {len(new_items.entries):,} items to {data}")
        print("\n".join(map(printable, new_items.lines())))
    print(
        f"Adding {count:,} of {rows.total:,} interactions to {data}; {len(growth.new_users):,} of "
        f"their {len(rows.users):,} users are new"
    )
    for note in rows.notes:
        print(f"  {printable(note)}")
    for reason, number in rows.dropped.items():
        print(f"  {reason}: {number:,} left out")
    known = {user.strip().casefold(): user for user in names.users.names}
    alike = [user for user in growth.new_users if user.strip().casefold() in known]
    if alike:
        own = known[alike[0].strip().casefold()]
        print(
            f"  {len(alike):,} new users differ from known ones in case or spaces alone, such as "
            f"{printable(repr(alike[0]))} and {printable(repr(own))}: mend the file if they are one"
        )
    if rows.unknown:
        remedy = "" if takes_items else "; --items FILE takes them along"
        if not rows.rows.num_rows:
            own = printable(repr(names.items.names[0]))
            remedy += f"; if they are not written as those of it are ({own}): --columns item=..."
        named = printable(some_of(rows.unknown))
        print(f"  items not in the catalogue: {len(rows.unknown):,} ({named}){remedy}")


if __name__ == "__main__":
    run_stage(main)
