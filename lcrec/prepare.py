"""Stage: raw interactions and item texts -> the data folder everything else starts from.

Reads RecBole atomic files or plain CSV, TSV or Parquet (see `lcrec.formats`). Writes
`<Name>.inter.json`, `<Name>.item.json`, `<Name>.user2id`, `<Name>.item2id` (raw id, tab, number)
and the sidecar `lcrec.json` into the folder `--output`. The steps (`lcrec.cleaning`) are Ibis
expressions, computed by an embedded DuckDB:

    read -> ratings -> items with text -> repeats -> k-core -> numbers

A user's items are ordered by time, ties by their order in the file. Users are numbered by their
first interaction, ties by raw id; items by first appearance, reading the users' sequences in that
order. So numbers depend on the data alone, and not on the order of its rows unless times tie.

Public names: `prepare`, `Prepared`, `Counts`, `PrepareConfig`, `main`.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ibis
import numpy as np
from ibis import _
from ibis.expr.types import Table

from lcrec.artifacts import (
    DataPaths,
    atomic_path,
    data_paths,
    is_current,
    read_provenance,
    write_provenance,
)
from lcrec.cleaning import (
    first_of_repeats,
    first_row,
    k_core,
    load_raw,
    one_row_per_item,
    rated_at_least,
    with_text,
)
from lcrec.config import config_dict, option, parse_config
from lcrec.data import Interactions, Items
from lcrec.errors import InputError, run_stage
from lcrec.formats import (
    COLUMN_HELP,
    ITEM_ROLES,
    READERS,
    TEXT_ROLES,
    RawTables,
    find_recbole,
    materialise,
    parse_columns,
)

STAGE = "python -m lcrec.prepare"


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of this stage."""

    format: Literal["recbole", "table"] = option(
        "recbole: a folder of atomic files; table: CSV, TSV or Parquet files"
    )
    output: Path = option("the data folder to write")
    input: Path | None = option("recbole: the folder with X.inter and X.item", None)
    interactions: Path | None = option("table: the file with one row per interaction", None)
    items: Path | None = option("table: the file with one row per item", None)
    columns: str | None = option(COLUMN_HELP, None)
    name: str | None = option("the data set's name; none: the output folder's", None)
    min_rating: float | None = option("drop interactions rated lower", None)
    repeats: Literal["drop", "keep"] = option(
        "when a user takes an item again: keep the first time only, or every time", "drop"
    )
    items_without_text: Literal["drop", "error"] = option(
        "items with neither title nor description, or no row at all in the items file", "drop"
    )
    min_user_items: int = option(
        "fewest different items per user (k-core); the split needs 3", 5, minimum=3
    )
    min_item_users: int = option("fewest different users per item (k-core)", 5, minimum=1)


@dataclass(frozen=True)
class Counts:
    """How much data there is after a step."""

    users: int
    items: int
    interactions: int

    @classmethod
    def of(cls, interactions: Table) -> "Counts":
        """Count the distinct users and items, and the rows."""
        row = interactions.aggregate(
            users=_.user.nunique(), items=_.item.nunique(), interactions=_.count()
        )
        return cls(**row.to_pyarrow().to_pylist()[0])

    def line(self, step: str) -> str:
        """Return a line of the table that `HEADER` heads."""
        sparsity = 1 - self.interactions / (self.users * self.items)
        return (
            f"{step:<28}{self.users:>14,}{self.items:>14,}{self.interactions:>14,}"
            f"{sparsity:>14.3%}{self.interactions / self.users:>14.2f}"
        )


COLUMNS = ("users", "items", "interactions", "sparsity", "mean length")
HEADER = f"{'after':<28}" + "".join(f"{column:>14}" for column in COLUMNS)


@dataclass(frozen=True)
class Prepared:
    """A data set with numbers for ids; `interactions.users` and `item_ids` hold the raw ids."""

    interactions: Interactions
    item_ids: list[str]
    items: Items


def prepare(
    raw: RawTables,
    *,
    min_user_items: int,
    min_item_users: int,
    min_rating: float | None,
    repeats: Literal["drop", "keep"],
    items_without_text: Literal["drop", "error"],
    say: Callable[[str], None],
) -> Prepared:
    """Run all steps on what a reader opened.

    Args:
        raw: the two tables.
        min_user_items: fewest different items per user.
        min_item_users: fewest different users per item.
        min_rating: drop interactions rated lower; None keeps all.
        repeats: keep the first of a user's interactions with an item, or all.
        items_without_text: drop items that have no text or no row, with their interactions, or
            refuse them.
        say: takes the lines that tell how much each step leaves.

    Raises:
        InputError: the files hold something wrong, or nothing is left after a step.
    """
    raw = load_raw(raw)
    interactions = raw.interactions
    say(HEADER)
    say(Counts.of(interactions).line("reading"))
    if min_rating is not None:
        interactions = rated_at_least(interactions, min_rating, raw.interactions_path)
        say(Counts.of(interactions).line(f"ratings from {min_rating:g}"))
    items = materialise(
        with_text(one_row_per_item(raw.items.semi_join(interactions, "item"), raw.items_path))
    )
    if note := _items_dropped(interactions, items, raw, items_without_text):
        say(note)
    interactions = interactions.semi_join(items, "item")
    say(Counts.of(interactions).line("items with text"))
    if repeats == "drop":
        interactions = materialise(first_of_repeats(interactions))
        say(Counts.of(interactions).line("first of repeats"))
    interactions = materialise(k_core(interactions, min_user_items, min_item_users))
    say(Counts.of(interactions).line(f"core {min_user_items} items, {min_item_users} users"))
    return number(interactions, items)


def _items_dropped(
    interactions: Table, described: Table, raw: RawTables, policy: Literal["drop", "error"]
) -> str | None:
    """Tell which items in `interactions` are not among the described ones, or refuse them."""
    listed = interactions.semi_join(raw.items, "item")
    lost = interactions.anti_join(described, "item")
    total, known, dropped = (Counts.of(table) for table in (interactions, listed, lost))
    if not dropped.items:
        return None
    absent, bare = total.items - known.items, dropped.items - (total.items - known.items)
    lost_ids = lost.select("item").distinct().order_by("item").limit(3).item.to_pyarrow()
    what = (
        f"items with neither title nor description: {bare:,}, with no row: {absent:,} (first: "
        f"{', '.join(map(repr, lost_ids.to_pylist()))})"
    )
    if dropped.items == total.items:
        known_id = first_row(raw.items)["item"]
        raise InputError(
            f"{raw.items_path}: nothing is said there of any item in {raw.interactions_path}; "
            f"{what}; the first id in the items file is {known_id!r}: if ids are written "
            "differently in the two files, check --columns item=... and id=..."
        )
    if policy == "error":
        raise InputError(
            f"{raw.items_path}: {what}; add their texts, or leave these items out with "
            "--items-without-text drop"
        )
    return f"  dropping {what} and their {dropped.interactions:,} interactions"


def number(interactions: Table, items: Table) -> Prepared:
    """Number users and items from 0 (see the module's docstring) and bring all into memory."""
    users = interactions.group_by("user").agg(began=_.time.min())
    users = users.mutate(user_number=ibis.row_number().over(order_by=["began", "user"]))
    ordered = interactions.join(users, "user").select(
        "user_number",
        "item",
        place=ibis.row_number().over(order_by=["user_number", "time", "row"]),
    )
    ordered = materialise(ordered)
    found = ordered.group_by("item").agg(place=_.place.min())
    found = found.mutate(item_number=ibis.row_number().over(order_by="place")).drop("place")
    sequences = (
        ordered.join(found, "item").order_by("place").select("user_number", "item_number")
    ).to_pyarrow()
    catalogue = items.join(found, "item").order_by("item_number").to_pyarrow()
    user_ids = users.order_by("user_number").user.to_pyarrow().to_pylist()
    offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
    np.cumsum(np.bincount(sequences["user_number"].to_numpy()), out=offsets[1:])
    numbers = sequences["item_number"].to_numpy().astype(np.int32)
    return Prepared(
        Interactions(user_ids, offsets, numbers),
        catalogue["item"].to_pylist(),
        Items(catalogue.select(list(TEXT_ROLES)).to_pylist()),
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    description = (
        "Make a data folder of raw interactions and item texts: clean the texts, drop what is too "
        "rare to learn from, order every user's items by time and number all."
    )
    config = parse_config(PrepareConfig, argv, description=description, prog=STAGE)
    columns = parse_columns(config.columns or "")
    interactions_path, items_path = _find_inputs(config)
    inputs = {"interactions": interactions_path, "items": items_path}
    folder = config.output
    name = config.name or folder.resolve().name
    if not name or name.startswith(".") or Path(name).name != name:
        raise InputError(f"--name {name!r}: give a plain name, without slashes or a leading dot")
    paths = data_paths(folder, name)
    # The name is in it once resolved, so that a renamed data set is another one.
    settings = {**config_dict(config), "name": name}
    if _is_done(paths, folder, settings, inputs):
        print(f"{folder} is up to date: {STAGE} has nothing to do; {_next_command(folder, name)}")
        return

    print(f"preparing data set {name} from {interactions_path} and {items_path}")
    with tempfile.TemporaryDirectory(prefix="lcrec-") as spill:
        con = ibis.duckdb.connect(temp_directory=spill)
        if sys.stdout.isatty():
            con.raw_sql("SET enable_progress_bar = true")  # shown from two seconds on
        raw = READERS[config.format](con, interactions_path, items_path, columns)
        print("columns:", *(f"{role}={column}" for role, column in raw.interaction_columns.items()))
        texts = {role: raw.item_columns.get(role, "(none)") for role in ITEM_ROLES}
        print("of items:", *(f"{role}={column}" for role, column in texts.items()), flush=True)
        prepared = prepare(
            raw,
            min_user_items=config.min_user_items,
            min_item_users=config.min_item_users,
            min_rating=config.min_rating,
            repeats=config.repeats,
            items_without_text=config.items_without_text,
            say=lambda line: print(line, flush=True),
        )
        con.disconnect()
    _write(paths, folder, prepared, settings, inputs)
    print(f"wrote {paths.inter} and {paths.item}; {_next_command(folder, name)}")


def _next_command(folder: Path, name: str) -> str:
    return f"next: python -m lcrec.embed --data {folder} --output runs/{name}/embeddings"


def _find_inputs(config: PrepareConfig) -> tuple[Path, Path]:
    """Return the interactions and the items file that the flags name."""
    given = {"input": config.input, "interactions": config.interactions, "items": config.items}
    needed = ["input"] if config.format == "recbole" else ["interactions", "items"]
    for flag, path in given.items():
        if (path is None) == (flag in needed):
            flags = " and ".join(f"--{name}" for name in needed)
            verb = "is missing" if path is None else "does not belong to it"
            raise InputError(f"--format {config.format} takes {flags}; --{flag} {verb}")
    if config.input is not None:
        return find_recbole(config.input)
    for flag, path in given.items():
        if path is not None and not path.is_file():
            raise InputError(f"--{flag} {path}: no such file")
    return config.interactions, config.items  # type: ignore[return-value]


def _is_done(
    paths: DataPaths, folder: Path, settings: dict[str, object], inputs: dict[str, Path]
) -> bool:
    """Tell whether the data set lies there already.

    Raises:
        InputError: something lies there that this run would destroy or make wrong.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: there is a file of that name; name a folder")
    others = sorted(path for path in folder.glob("*.inter.json") if path != paths.inter)
    if others:
        raise InputError(
            f"--output {folder}: it holds another data set, {others[0].name}; choose another folder"
        )
    record = read_provenance(folder)
    ours = record is not None and record.get("stage") == STAGE
    if paths.inter.exists() and not ours:
        raise InputError(
            f"--output {folder}: {paths.inter.name} was not made by {STAGE}; choose another folder"
        )
    made = (paths.inter, paths.item, paths.user_ids, paths.item_ids)
    if all(path.exists() for path in made) and is_current(folder, STAGE, settings, inputs):
        return True
    for path in (paths.user, paths.review):
        if path.exists():
            raise InputError(
                f"{path} goes by the old numbers of users and items, which other settings or "
                "inputs change; delete it, or choose another --output"
            )
    return False


def _write(
    paths: DataPaths,
    folder: Path,
    prepared: Prepared,
    settings: dict[str, object],
    inputs: dict[str, Path],
) -> None:
    """Write all files under temporary names, then rename them, the interactions last."""
    sequences = {str(user): ids.tolist() for user, ids in enumerate(prepared.interactions)}
    catalogue = {str(item): fields for item, fields in enumerate(prepared.items.fields)}
    try:
        with contextlib.ExitStack() as stack:
            # Left in reverse: the interactions, without which no stage takes the folder for a
            # data set, are renamed when all else lies there.
            inter, item, user_ids, item_ids = (
                stack.enter_context(atomic_path(path))
                for path in (paths.inter, paths.item, paths.user_ids, paths.item_ids)
            )
            inter.write_text(json.dumps(sequences) + "\n", encoding="utf-8")
            item.write_text(json.dumps(catalogue, ensure_ascii=False) + "\n", encoding="utf-8")
            for path, ids in (
                (user_ids, prepared.interactions.users),
                (item_ids, prepared.item_ids),
            ):
                lines = (f"{raw_id}\t{number}\n" for number, raw_id in enumerate(ids))
                path.write_text("".join(lines), encoding="utf-8")
            # From here a kill leaves a folder without interactions, which the next run mends.
            paths.inter.unlink(missing_ok=True)
            write_provenance(
                folder,
                STAGE,
                settings,
                inputs,
                users=len(prepared.interactions),
                items=len(prepared.items),
                interactions=len(prepared.interactions.items),
            )
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written ({error})") from None


if __name__ == "__main__":
    run_stage(main)
