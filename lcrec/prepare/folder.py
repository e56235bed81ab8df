"""Writing a data folder: all files under temporary names, then renamed, the interactions last.

Writes the files of `lcrec.core.artifacts.DataPaths`, as JSON or, where a data set is large, as
Parquet. The data is never in memory as Python objects all at once.

Ids -> numbers: users and items of interactions that lie sorted on disk, batch by batch.

Users are numbered by their first interaction, ties by raw id; a user's items are ordered by time,
ties by a hash (`lcrec.prepare.filters.TIE_BREAK`); items are numbered by first appearance, reading
the users in order and of one user's items of one time the lowest raw id first. So numbers depend on
the data alone, and not on the order of its rows. The engine numbers users and items and sorts the
rows; memory here is some 20 bytes per interaction: no engine numbers all rows in order across
machines fast.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis import _
from ibis.expr.types import Table

from lcrec.core.artifacts import DataPaths, atomic_path, is_parquet
from lcrec.core.console import ProgressBar, progress
from lcrec.core.errors import InputError
from lcrec.data.folder import write_lists, write_texts
from lcrec.data.splits import part_lists
from lcrec.prepare.engines import materialise, write_sorted
from lcrec.prepare.filters import TIE_BREAK
from lcrec.prepare.pipeline import UNIT_SEPARATOR
from lcrec.prepare.text import clean_text


@dataclass(frozen=True)
class Numbered:
    """Sequences by number.

    Attributes:
        user_ids: raw ids of the users, text [users].
        item_ids: raw ids of the items, text [items].
        offsets: int64 [users + 1]; user u has `items[offsets[u]:offsets[u + 1]]`.
        items: int32 [interactions].
        times: [interactions]; numbers as they came, timestamps as microseconds since 1970.
        is_date: whether they were timestamps.
    """

    user_ids: pa.ChunkedArray
    item_ids: pa.ChunkedArray
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    is_date: bool

    def popularity(self) -> np.ndarray:
        """Return how often each item was taken, int64 [items]."""
        return np.bincount(self.items, minlength=len(self.item_ids))


BLOCK = 10_000  # users or rows turned into Python objects at a time
# One for all: `json.dumps` would make a new one at every call.
ENCODER = json.JSONEncoder(ensure_ascii=False)


def write_data_folder(
    paths: DataPaths,
    numbered: Numbered,
    items: pa.Table,
    parts: np.ndarray | None,
    reviews: Path | None,
    card: dict[str, Any],
    page: str,
    *,
    replaces: Iterable[Path],
    finish: Callable[[], None],
) -> None:
    """Write all files of a data set.

    Args:
        paths: where they go; their suffixes say in which form.
        items: item (raw id) and a column of text per field, ascending by raw id.
        parts: int8 [interactions], the part of the split each belongs to; None for leave-one-out.
        reviews: the folder of sorted interactions, if it has reviews.
        replaces: files and folders of an earlier run, removed where this one writes no such.
        finish: writes the sidecar; called when all but the interactions lie there.

    Raises:
        InputError: the folder cannot be written to, or the disk is full; what lay there before is
            as it was, unless every new file was complete.
    """
    folder = paths.inter.parent
    users = [str(user) for user in range(len(numbered.user_ids))]
    try:
        with contextlib.ExitStack() as stack:

            def opened(path: Path) -> Path:
                return stack.enter_context(atomic_path(path))

            # Left in reverse: the interactions, without which no stage takes the folder for a
            # data set, are renamed when all else lies there.
            inter, item = opened(paths.inter), opened(paths.item)
            _write_lists(inter, users, {"items": (numbered.offsets, numbered.items)}, paths.inter)
            _write_items(item, items, numbered, paths.item)
            made = {paths.inter, paths.item, paths.user_ids, paths.item_ids, paths.card}
            made.add(paths.card_page)
            if parts is not None:
                made.add(paths.split)
                lists = part_lists(numbered.offsets, numbered.items, parts)
                _write_lists(opened(paths.split), users, lists, paths.split)
            if reviews is not None:
                made.add(paths.review)
                _write_reviews(opened(paths.review), reviews, numbered)
            _write_ids(opened(paths.user_ids), numbered.user_ids)
            _write_ids(opened(paths.item_ids), numbered.item_ids)
            text = json.dumps(card, ensure_ascii=False, indent=2) + "\n"
            opened(paths.card).write_text(text, encoding="utf-8")
            opened(paths.card_page).write_text(page, encoding="utf-8")
            # From here a kill leaves a folder without interactions, which the next run mends.
            for path in [*replaces, paths.inter]:
                if path not in made or path == paths.inter:
                    _remove(path)
            finish()
    except (OSError, pa.ArrowException) as error:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(there).free / 2**20
        raise InputError(
            f"--output {folder}: cannot be written ({error}; {free:,.0f} MB are free there); make "
            "room, or name another folder"
        ) from None


def _remove(path: Path) -> None:
    if path.is_dir():
        # Renamed first: removing takes time, and half of a folder looks like a data set.
        doomed = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(path.replace(doomed))
    else:
        path.unlink(missing_ok=True)


def _write_lists(
    path: Path, users: list[str], lists: dict[str, tuple[np.ndarray, np.ndarray]], final: Path
) -> None:
    """Write {user: [item, ...]}, or {user: {column: [item, ...]}} where there are several."""
    if is_parquet(final):
        write_lists(path, users, lists)
        return
    with path.open("w", encoding="utf-8") as file:
        opening = "{"
        for begin in range(0, len(users), BLOCK):
            names = users[begin : begin + BLOCK]
            columns = {
                column: _block(offsets[begin : begin + BLOCK + 1], ids)
                for column, (offsets, ids) in lists.items()
            }
            rows = zip(*columns.values(), strict=True)
            entries = (dict(zip(columns, row, strict=True)) for row in rows)
            # Python writes a list of whole numbers as JSON does, and faster than json.dumps.
            values = map(json.dumps, entries) if len(lists) > 1 else map(str, *columns.values())
            pairs = zip(names, values, strict=True)
            file.write(opening + ", ".join(f'"{name}": {value}' for name, value in pairs))
            opening = ", "
        file.write("}\n")


def _block(offsets: np.ndarray, ids: np.ndarray) -> list[list[int]]:
    """Return the ids of some users as lists, cut at `offsets` [users + 1]."""
    flat = ids[offsets[0] : offsets[-1]].tolist()
    cuts = (offsets - offsets[0]).tolist()
    return [flat[begin:end] for begin, end in itertools.pairwise(cuts)]


def _write_items(path: Path, items: pa.Table, numbered: Numbered, final: Path) -> None:
    """Write the catalogue in the order of the items' numbers."""
    order = pc.index_in(numbered.item_ids, value_set=items["item"].combine_chunks())
    fields = items.take(order).drop_columns("item").combine_chunks()
    if is_parquet(final):
        write_texts(path, fields)
        return
    with path.open("w", encoding="utf-8") as file:
        opening = "{"
        for begin in range(0, len(fields), BLOCK):
            for item, row in enumerate(fields.slice(begin, BLOCK).to_pylist(), start=begin):
                file.write(f'{opening}"{item}": {ENCODER.encode(row)}')
                opening = ", "
        file.write("}\n")


def _write_ids(path: Path, ids: pa.ChunkedArray) -> None:
    """Write lines of raw id, tab, number."""
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, len(ids), BLOCK):
            for raw_id in ids.slice(begin, BLOCK).to_pylist():
                file.write(f"{raw_id}\t{number}\n")
                number += 1


def _write_reviews(path: Path, folder: Path, numbered: Numbered) -> None:
    """Write {"(user, item)": {review, summary}}, of repeats the latest that has any text."""
    lengths = np.diff(numbered.offsets)
    owners = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        opening, user, latest = "", 0, {}  # type: str, int, dict[int, dict[str, str]]
        texts = _reviews(folder)
        rows = zip(owners, numbered.items, texts, strict=True)
        for owner, item, (summary, review) in progress(
            rows, "reviews", "rows", total=len(owners), leave=False
        ):
            if owner != user:
                opening = _write_user(file, user, latest, opening)
                user, latest = int(owner), {}
            if summary or review:
                latest[int(item)] = {"review": review, "summary": summary}
        _write_user(file, user, latest, opening)
        file.write("}\n")


def _write_user(file: Any, user: int, latest: dict[int, dict[str, str]], opening: str) -> str:
    for item, entry in latest.items():
        file.write(f'{opening}"({user}, {item})": {ENCODER.encode(entry)}')
        opening = ", "
    return opening


def _reviews(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield title and text of every interaction's review, made plain."""
    for batch in read_batches(folder, ["review"]):
        for written in batch["review"].to_pylist():
            title, _, text = (written or "").partition(UNIT_SEPARATOR)
            yield clean_text(title), clean_text(text)


BATCH = 2**20  # rows


def sort_interactions(interactions: Table, folder: Path) -> None:
    """Write the interactions in their order (see the module's docstring) into a new folder.

    In it, `users` has the raw ids by number and `items` those of the items by rank; `rows` has
    user (number), item (rank), time and perhaps review.
    """
    began = interactions.group_by("user").agg(began=_.time.min())
    users = _ranked(began, "user", ["began", "user"])
    items = _ranked(interactions.select("item").distinct(), "item", ["item"])
    rows = interactions.join(users, "user").join(items, "item")
    rest = [name for name in interactions.columns if name not in ("user", "item")]
    rows = rows.select(*rest, user=_.user_rank, item=_.item_rank, tie_break=TIE_BREAK)
    keys = ["user", "time", "tie_break", "item"]
    # Repeats of everything may come in any order, but their reviews have to be in one.
    keys += ["review"] if "review" in interactions.columns else []
    folder.mkdir()
    write_sorted(users, ["user_rank"], folder / "users")
    write_sorted(items, ["item_rank"], folder / "items")
    write_sorted(rows, keys, folder / "rows", drop=("tie_break",))


def _ranked(ids: Table, name: str, keys: list[str]) -> Table:
    """Store ids with their places from 0, in the order of `keys`, as the column `<name>_rank`."""
    place = ibis.row_number().over(order_by=keys).cast("int32")
    return materialise(ids.select(name, place.name(f"{name}_rank")))


def number(folder: Path) -> Numbered:
    """Number the items of the interactions that `sort_interactions` wrote into `folder`."""
    user_ids, item_ids = (
        pq.read_table(folder / f"{name}s", columns=[name])[name] for name in ("user", "item")
    )
    columns, is_date = [], False
    for batch in read_batches(folder / "rows", ["user", "item", "time"]):
        time, is_date = batch["time"], pa.types.is_timestamp(batch["time"].type)
        if is_date:
            time = time.cast(pa.timestamp("us", time.type.tz)).cast(pa.int64())
        arrays = (batch["user"], batch["item"], time)
        columns.append([array.to_numpy(zero_copy_only=False) for array in arrays])
    users, ranks, times = map(np.concatenate, zip(*columns, strict=True))
    moment = np.cumsum(np.append(True, (np.diff(users) != 0) | (np.diff(times) != 0)))
    first = np.full(len(item_ids), len(moment) + 1)
    np.minimum.at(first, ranks, moment)
    order = np.argsort(first, kind="stable")  # items of one moment by rank
    numbers = np.empty(len(order), dtype=np.int32)
    numbers[order] = np.arange(len(order))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_ids)))])
    return Numbered(
        user_ids, item_ids.take(pa.array(order)), offsets, numbers[ranks], times, is_date
    )


def with_unbought(numbered: Numbered, items: pa.ChunkedArray) -> Numbered:
    """Return the same with the items that nobody has numbered after the others, by raw id."""
    known = numbered.item_ids.combine_chunks()
    others = items.filter(pc.invert(pc.is_in(items, value_set=known)))
    return replace(numbered, item_ids=pa.chunked_array([*numbered.item_ids.chunks, *others.chunks]))


def read_batches(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of Parquet files in the order of the files' names, with a progress bar."""
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    total = sum(file.metadata.num_rows for file in files)
    with ProgressBar(total, "numbers", "rows", leave=False) as bar:
        for file in files:
            for batch in file.iter_batches(BATCH, columns=columns):
                bar.update(len(batch))
                yield batch
