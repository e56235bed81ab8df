"""Ids -> numbers: users and items of interactions that lie sorted on disk, batch by batch.

Users are numbered by their first interaction, ties by raw id; a user's items are ordered by time,
ties by raw id; items are numbered by first appearance, reading the users' sequences in that order.
So numbers depend on the data alone, and not on the order of its rows. The engine sorts, and what is
held here is a few bytes per interaction: no engine numbers rows in order across machines fast.

Public names: `sort_interactions`, `number`, `read_batches`, `Numbered`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis import _
from ibis.expr.types import Table
from tqdm import tqdm

from lcrec.engines import write_sorted

BATCH = 2**20  # rows


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


def sort_interactions(interactions: Table, folder: Path) -> None:
    """Write the interactions in their order (see the module's docstring) into a new folder."""
    users = interactions.group_by("user").agg(began=_.time.min())
    keys = ["began", "user", "time", "item"]
    # Repeats of everything may come in any order, but their reviews have to be in one.
    keys += ["review"] if "review" in interactions.columns else []
    write_sorted(interactions.join(users, "user"), keys, folder)


def number(folder: Path, item_ids: pa.ChunkedArray) -> Numbered:
    """Number users and items of the interactions that `sort_interactions` wrote.

    Args:
        folder: what it wrote.
        item_ids: the raw id of every item, text, each once.
    """
    value_set = item_ids.combine_chunks()
    numbers = np.full(len(value_set), -1, dtype=np.int32)
    found: list[np.ndarray] = []
    users, starts, items, times = [], [], [], []
    rows, last, is_date = 0, None, False
    for batch in read_batches(folder, ["user", "item", "time"]):
        codes = pc.index_in(batch["item"], value_set=value_set).to_numpy(zero_copy_only=False)
        unknown = codes[numbers[codes] < 0]
        if len(unknown):
            new, first = np.unique(unknown, return_index=True)
            new = new[np.argsort(first)]
            so_far = sum(map(len, found))
            numbers[new] = np.arange(so_far, so_far + len(new))
            found.append(new)
        items.append(numbers[codes])
        user = batch["user"]
        begins = np.ones(len(user), dtype=bool)
        begins[0] = user[0].as_py() != last
        begins[1:] = pc.not_equal(user[1:], user[:-1]).to_numpy(zero_copy_only=False)
        users.append(user.filter(pa.array(begins)))
        starts.append(rows + np.flatnonzero(begins))
        last, rows = user[-1].as_py(), rows + len(user)
        time, is_date = batch["time"], pa.types.is_timestamp(batch["time"].type)
        if is_date:
            time = time.cast(pa.timestamp("us", time.type.tz)).cast(pa.int64())
        times.append(time.to_numpy(zero_copy_only=False))
    order = pa.array(np.concatenate(found))
    return Numbered(
        pa.chunked_array(users, pa.string()),
        pa.chunked_array([value_set.take(order)], pa.string()),
        np.append(np.concatenate(starts), rows).astype(np.int64),
        np.concatenate(items),
        np.concatenate(times),
        is_date,
    )


def read_batches(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of Parquet files in the order of the files' names, with a progress bar."""
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    total = sum(file.metadata.num_rows for file in files)
    with tqdm(desc="numbers", unit="row", total=total, leave=False) as bar:
        for file in files:
            for batch in file.iter_batches(BATCH, columns=columns):
                bar.update(len(batch))
                yield batch
