"""Writing a data folder: all files under temporary names, then renamed, the interactions last.

Writes the files of `lcrec.core.artifacts.DataPaths`, as JSON or, where a data set is large, as Parquet.
What is written is never held as Python objects all at once.

Public names: `write_data_folder`, `JSON_MOST`.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from lcrec.cleaning import clean_text
from lcrec.core.artifacts import DataPaths, atomic_path, is_parquet
from lcrec.core.errors import InputError
from lcrec.data.folder import write_lists, write_texts
from lcrec.data.splits import PARTS
from lcrec.numbering import Numbered, read_batches
from lcrec.refine import UNIT_SEPARATOR

JSON_MOST = 2_000_000  # interactions; what has more is written as Parquet
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
        numbered: the sequences.
        items: item (raw id) and a column of text per field, ascending by raw id.
        parts: int8 [interactions], the part of the split each belongs to; None for leave-one-out.
        reviews: the folder of sorted interactions, if it has reviews.
        card: what goes into the data card.
        page: the same as a page.
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
                lists = {name: _part(numbered, parts == part) for part, name in enumerate(PARTS)}
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
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free / 2**20
        raise InputError(
            f"--output {folder}: cannot be written ({error}; {free:,.0f} MB are free there)"
        ) from None


def _remove(path: Path) -> None:
    if path.is_dir():
        # Set aside whole: removing takes time, and half of a folder looks like a data set.
        doomed = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(path.replace(doomed))
    else:
        path.unlink(missing_ok=True)


def _part(numbered: Numbered, belongs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets and items of the interactions that belong to a part."""
    before = np.concatenate([[0], np.cumsum(belongs)])
    return before[numbered.offsets].astype(np.int64), numbered.items[belongs]


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
        for owner, item, (summary, review) in tqdm(
            rows, desc="reviews", unit="row", total=len(owners), leave=False
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
