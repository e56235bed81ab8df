"""Data sets that are published as sequences: LC-Rec's own files and MiniOneRec's CSV files.

Reads whole sequences, whose order stands for the time: an interaction's time is its place in its
user's sequence, from 0. Such data is small enough to pass through memory; the tables are stored in
DuckDB. Writes nothing else.
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from ibis.backends import BaseBackend
from ibis.util import gen_name

from lcrec.core.artifacts import read_json
from lcrec.core.errors import InputError
from lcrec.data.folder import text_of
from lcrec.data.id_map import read_raw_ids
from lcrec.data.splits import PARTS, TEST, TRAIN, VALID
from lcrec.prepare.files import UNREADABLE, Delimited, Opened, header, open_delimited
from lcrec.prepare.layouts import (
    Layout,
    Paths,
    as_paths,
    find_columns,
    find_kept,
    first_of,
    unused_of,
)
from lcrec.prepare.rows import Roles, Sifted, sift
from lcrec.prepare.tables import ITEM_ROLES, REVIEW_ROLES, Options, RawTables, no_rows

LCREC_ITEM = Layout({role: role for role in ITEM_ROLES})
ROLES = {"user": "user", "item": "item", "time": "place"}


def read_lcrec(con: BaseBackend, interactions: Paths, items: Paths, options: Options) -> RawTables:
    """Read `X.inter.json` and `X.item.json`; raw ids by `X.user2id` and `X.item2id` beside them.

    With `options.reviews`, `X.review.json` is read too where it lies beside them: its keys are the
    numbers of user and item as "(1, 2)" or "('1', 2)", its values have a `review` and a `summary`.

    Raises:
        InputError: a file is missing, damaged or holds something else.
    """
    path, catalogue = _one(interactions), _one(items)
    actions, described = Sifted(no_rows(con), {}), Sifted(no_rows(con), {})
    action_roles: dict[str, str] = {}
    item_roles: dict[str, str] = {}
    unused: tuple[str, ...] = ()
    if path is not None:
        actions, action_roles = _lcrec_actions(con, path, options)
    if catalogue is not None:
        described, item_roles, unused = _lcrec_items(con, catalogue, path or catalogue, options)
    return RawTables(
        actions.table,
        described.table,
        path or Path(),
        catalogue or Path(),
        action_roles,
        item_roles,
        lost=actions.lost,
        items_lost=described.lost,
        unused=((), unused),
    )


def _beside(path: Path, kind: str) -> Path:
    """Return `X.user2id` and the like beside `X.inter.json` or `X.item.json`."""
    stem = path.name.removesuffix(".inter.json").removesuffix(".item.json")
    return path.with_name(f"{stem}.{kind}")


def _lcrec_actions(con: BaseBackend, path: Path, options: Options) -> tuple[Sifted, dict[str, str]]:
    """Read `X.inter.json`, and role -> column."""
    users_path, items_path = (_beside(path, f"{kind}2id") for kind in ("user", "item"))
    users, item_ids = read_raw_ids(users_path), read_raw_ids(items_path)
    sequences = _mapping(path)
    reviews = _beside(path, "review.json")
    said = _mapping(reviews) if options.reviews and reviews.exists() else None
    rows: list[list[Any]] = []
    for user, sequence in sequences.items():
        if not isinstance(sequence, list) or not all(
            isinstance(item, int | str) and not isinstance(item, bool) for item in sequence
        ):
            raise InputError(f"{path}: user {user!r} has no list of item ids: {sequence!r:.80}")
        for place, item in enumerate(sequence):
            row = [_raw(users, user, users_path), _raw(item_ids, str(item), items_path), place]
            if said is not None:
                keys = (f"({user}, {item})", f"({user!r}, {item})", f"({user!r}, {str(item)!r})")
                key = next(filter(said.__contains__, keys), "")
                row += _review(said.get(key), f"{reviews}: {key}")
            rows.append(row)
    names = ["user", "item", "place", *(REVIEW_ROLES if said is not None else ())]
    roles = ROLES | {name: name for name in names[3:]}
    return _sifted(con, names, rows, roles, path, options), roles


def _review(entry: Any, where: str) -> list[Any]:
    """Return title and text of a review; None where there is none."""
    if not entry:
        return [None, None]
    texts = [entry.get(name) for name in ("summary", "review")] if isinstance(entry, dict) else [0]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise InputError(f"{where}: expected the texts review and summary, found {entry!r:.80}")
    return texts


def _lcrec_items(
    con: BaseBackend, catalogue: Path, named: Path, options: Options
) -> tuple[Sifted, dict[str, str], tuple[str, ...]]:
    """Read `X.item.json`, whose raw ids lie beside the file `named`.

    Returns:
        the items, role -> column, and the columns that nothing was read from.
    """
    items_path = _beside(named, "item2id")
    item_ids = read_raw_ids(items_path)
    entries = _mapping(catalogue)
    wrong = next((key for key, value in entries.items() if not isinstance(value, dict)), None)
    if wrong is not None:
        raise InputError(f"{catalogue}: item {wrong!r} has no fields: {entries[wrong]!r:.80}")
    fields = list(dict.fromkeys(name for entry in entries.values() for name in entry))
    given = {role: name for role, name in options.columns.items() if role in ITEM_ROLES[1:]}
    texts = find_columns(fields, ITEM_ROLES[1:], given, LCREC_ITEM.roles, catalogue, ())
    texts |= find_kept(fields, options.keep, catalogue)
    roles = {"item": "item", **{role: str(name) for role, name in texts.items()}}
    rows = [
        [
            _raw(item_ids, key, items_path),
            *(_field(entry.get(str(name))) for name in texts.values()),
        ]
        for key, entry in entries.items()
    ]
    return (
        _sifted(con, list(roles), rows, {name: name for name in roles}, catalogue, options),
        roles,
        unused_of(fields, roles),
    )


def read_minionerec(
    con: BaseBackend, interactions: Paths, items: Paths, options: Options
) -> RawTables:
    """Read MiniOneRec's `train`, `valid` and `test` CSV files, in this order, and its info file.

    A row holds a user, the up to ten items before, and the next item (columns `user_id`,
    `history_item_id`, a Python list, and `item_id`); a user's rows merge into one sequence. The
    info file has lines of item index, title and item number, separated by tabs.

    What stands before a user's first row belongs to that row's part of the split: no published row
    asks for it. Of `valid` and `test` alone it is all that is known to train on.

    Raises:
        InputError: a file is damaged, or a user's rows do not follow from one another.
    """
    paths, catalogue = as_paths(interactions), _one(items)
    actions, described = Sifted(no_rows(con), {}), Sifted(no_rows(con), {})
    parts = None
    if paths:
        actions, parts = _merged_windows(con, paths, options)
    if catalogue is not None:
        info = Delimited("\t", "", "", names=("index", "title", "item"))
        opened = open_delimited(con, [catalogue], info.names or (), info)
        roles = {"item": "item", "title": "title"}
        roles |= find_kept(info.names or (), options.keep, catalogue)
        described = sift(con, opened, roles, [catalogue], options)
    return RawTables(
        actions.table,
        described.table,
        first_of(paths),
        catalogue or Path(),
        {"user": "user_id", "item": "item_id", "time": "history_item_id"} if paths else {},
        {"item": "item", "title": "title"} if catalogue else {},
        lost=actions.lost,
        items_lost=described.lost,
        parts=parts,
    )


def _merged_windows(
    con: BaseBackend, paths: Sequence[Path], options: Options
) -> tuple[Sifted, dict[str, list[int]] | None]:
    """Merge the rows of every user into one sequence; return the parts of two or three files."""
    how = Delimited()
    names = header(paths, how)
    missing = {"user_id", "history_item_id", "item_id"} - set(names)
    if missing:
        raise InputError(
            f"{paths[0]}: no column {min(missing)!r} (columns: {', '.join(names)}); MiniOneRec's "
            "files have user_id, history_item_id and item_id"
        )
    published = {3: (TRAIN, VALID, TEST), 2: (VALID, TEST)}.get(len(paths))
    sequences: dict[str, list[str]] = {}
    parts: dict[str, list[int]] = {}
    lost: Counter[str] = Counter()
    for path, part in zip(paths, published or [TRAIN] * len(paths), strict=True):
        opened = open_delimited(con, [path], names, how)
        windows = sift(
            con,
            replace(opened, table=opened.table.mutate(place=opened.table.row)),
            {**ROLES, "user": "user_id", "item": "item_id", "rating": "history_item_id"},
            [path],
            options,
        )
        lost.update(windows.lost)
        for row in windows.table.order_by("row").to_pyarrow().to_pylist():
            user, history = row["user"], _history(row, path)
            if user not in sequences:
                sequences[user] = list(history)
                parts[user] = [part if len(paths) == len(PARTS) else TRAIN] * len(history)
            sequence = sequences[user]
            if sequence[len(sequence) - len(history) :] != history:
                raise InputError(
                    f"{path}, data row {row['row'] + 1}: the history of user {user!r} is not what "
                    f"came before, {sequence[-len(history) :]}; give the files in the order of "
                    "time: train, valid, test"
                )
            sequence.append(row["item"])
            parts[user].append(part)
    rows = [
        [user, item, place]
        for user, sequence in sequences.items()
        for place, item in enumerate(sequence)
    ]
    actions = _sifted(con, ["user", "item", "place"], rows, ROLES, paths[0], options)
    return Sifted(actions.table, dict(lost)), parts if published else None


def _history(row: Mapping[str, Any], path: Path) -> list[str]:
    try:
        history = ast.literal_eval(row["rating"] or "[]")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        history = None
    if not isinstance(history, list):
        raise InputError(
            f"{path}, data row {row['row'] + 1}: history_item_id is no list: {row['rating']!r:.80}"
        )
    return [str(item) for item in history]


def _one(paths: Paths) -> Path | None:
    paths = as_paths(paths)
    if len(paths) > 1:
        raise InputError(f"{paths[0]}: this format reads one such file, found {len(paths)}")
    return paths[0] if paths else None


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: expected one JSON object with an entry per id, found none")
    return value


def _raw(raw_ids: dict[str, str] | None, key: str, path: Path) -> str:
    if raw_ids is None:
        return key
    if key not in raw_ids:
        raise InputError(f"{path}: there is no line for number {key!r}, which the data has")
    return raw_ids[key]


def _field(value: Any) -> str | None:
    return None if value is None or value != value else text_of(value)  # NaN is what is missing


def _sifted(
    con: BaseBackend,
    names: list[str],
    rows: list[list[Any]],
    roles: Roles,
    path: Path,
    options: Options,
) -> Sifted:
    """Store rows in the database and check them as any reader does."""
    if con.name != "duckdb":
        raise InputError(f"{path}: sequences are read with --engine duckdb only")
    types = [pa.int64() if name == "place" else pa.string() for name in names]
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    table = pa.Table.from_arrays(arrays, names=names)
    table = table.append_column("row", pa.array(range(len(rows)), pa.int64()))
    table = table.append_column(UNREADABLE, pa.array([False] * len(rows)))
    name = gen_name("lcrec_raw")
    # Not `create_table`: ibis 12 ends with the faulty statement that `materialise` tells of.
    con.con.register(f"{name}_rows", table)
    con.raw_sql(f"CREATE TABLE {name} AS FROM {name}_rows")
    con.con.unregister(f"{name}_rows")
    return sift(con, Opened(con.table(name), stored=name), roles, [path], options)
