"""Ids -> numbers: users and items of interactions that lie sorted on disk, batch by batch.

Users are numbered by their first interaction, ties by raw id; a user's items are ordered by time,
ties by raw id; items are numbered by first appearance, reading the users' sequences in that order.
So numbers depend on the data alone, and not on the order of its rows. The engine numbers users and
items and sorts the rows; what is held here is a few bytes per interaction: no engine numbers all
rows in order across machines fast.

Public names: `sort_interactions`, `number`, `read_batches`, `Numbered`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis import _
from ibis.expr.types import Table
from tqdm import tqdm

from lcrec.engines import materialise, write_sorted

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
    """Write the interactions in their order (see the module's docstring) into a new folder.

    In it, `users` has the raw ids by number and `items` those of the items by rank; `rows` has
    user (number), item (rank), time and perhaps review. The order of the interactions is that of
    these small numbers, which sort much faster than text.
    """
    began = interactions.group_by("user").agg(began=_.time.min())
    users = _ranked(began, "user", ["began", "user"])
    items = _ranked(interactions.select("item").distinct(), "item", ["item"])
    rows = interactions.join(users, "user").join(items, "item")
    rest = [name for name in interactions.columns if name not in ("user", "item")]
    rows = rows.select(*rest, user=_.user_rank, item=_.item_rank)
    keys = ["user", "time", "item"]
    # Repeats of everything may come in any order, but their reviews have to be in one.
    keys += ["review"] if "review" in interactions.columns else []
    folder.mkdir()
    write_sorted(users, ["user_rank"], folder / "users")
    write_sorted(items, ["item_rank"], folder / "items")
    write_sorted(rows, keys, folder / "rows")


def _ranked(ids: Table, name: str, keys: list[str]) -> Table:
    """Store ids with their places from 0, in the order of `keys`, as the column `<name>_rank`."""
    place = ibis.row_number().over(order_by=keys).cast("int32")
    return materialise(ids.select(name, place.name(f"{name}_rank")))


def number(folder: Path) -> Numbered:
    """Number the items of the interactions that `sort_interactions` wrote into `folder`."""
    user_ids, item_ids = (
        pq.read_table(folder / f"{name}s", columns=[name])[name] for name in ("user", "item")
    )
    numbers = np.full(len(item_ids), -1, dtype=np.int32)
    found: list[np.ndarray] = []
    so_far, is_date = 0, False
    lengths = np.zeros(len(user_ids), dtype=np.int64)
    items, times = [], []
    for batch in read_batches(folder / "rows", ["user", "item", "time"]):
        ranks = batch["item"].to_numpy()
        unknown = ranks[numbers[ranks] < 0]
        if len(unknown):
            new = pc.unique(pa.array(unknown)).to_numpy()  # in the order of their appearance
            numbers[new] = np.arange(so_far, so_far + len(new))
            so_far += len(new)
            found.append(new)
        items.append(numbers[ranks])
        lengths += np.bincount(batch["user"].to_numpy(), minlength=len(lengths))
        time, is_date = batch["time"], pa.types.is_timestamp(batch["time"].type)
        if is_date:
            time = time.cast(pa.timestamp("us", time.type.tz)).cast(pa.int64())
        times.append(time.to_numpy(zero_copy_only=False))
    order = pa.array(np.concatenate(found))
    return Numbered(
        user_ids,
        item_ids.take(order),
        np.concatenate([[0], np.cumsum(lengths)]),
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
