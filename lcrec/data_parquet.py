"""The Parquet form of a data folder: what `<Name>.inter.json` and its like hold, for large data.

Each is a folder of files `part-00000.parquet` and so on, read in the order of their names:
`<Name>.inter.parquet` has the columns user (text) and items (list of 32-bit numbers),
`<Name>.split.parquet` user, train, valid and test, `<Name>.item.parquet` a column of text per
field, row i being item i.

Public names: `write_lists`, `read_lists`, `write_texts`, `read_texts`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.errors import InputError

PART_USERS, PART_ITEMS = 1_000_000, 250_000  # rows per file
GROUP = 100_000  # rows per group within a file


def write_lists(path: Path, users: Sequence[str], lists: dict[str, tuple[Any, Any]]) -> None:
    """Write lists of item ids per user as a new folder of Parquet files.

    Args:
        path: the folder to make.
        users: the users' names [users].
        lists: column -> (int64 [users + 1], int32 [ids]): user u has the ids from the u-th offset
            to the next.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.mkdir()
    for number, begin in enumerate(range(0, len(users), PART_USERS)):
        end = min(begin + PART_USERS, len(users))
        columns = {"user": pa.array(users[begin:end], pa.string())}
        for name, (offsets, ids) in lists.items():
            within = (offsets[begin : end + 1] - offsets[begin]).astype(np.int32)
            part = np.asarray(ids[offsets[begin] : offsets[end]], dtype=np.int32)
            columns[name] = pa.ListArray.from_arrays(pa.array(within), pa.array(part))
        file = path / f"part-{number:05}.parquet"
        pq.write_table(pa.table(columns), file, compression="zstd", row_group_size=GROUP)


def read_lists(path: Path, names: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Read what `write_lists` wrote, from a folder or a single file.

    Returns:
        The users' names, and for each of `names` a pair (int64 [users + 1], int32 [ids]).

    Raises:
        InputError: nothing lies there, it is no Parquet, a column is missing, empty or of another
            type, or a user stands there twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _read(path, ["user", *names])
    users = table["user"].to_pylist()
    if not all(isinstance(user, str) for user in users):
        raise InputError(f"{path}: column 'user' must hold text in every row")
    if len(set(users)) < len(users):
        raise InputError(f"{path}: a user stands there twice; keep one row of each")
    result = []
    for name in names:
        column = table[name].combine_chunks()
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not (
            pa.types.is_integer(kind.value_type)
        ):
            raise InputError(f"{path}: column {name!r} holds {kind}; lists of numbers are needed")
        flat = column.flatten()
        if column.null_count or flat.null_count:
            raise InputError(f"{path}: column {name!r} is empty in some row, or in some list")
        offsets = np.zeros(len(column) + 1, dtype=np.int64)
        np.cumsum(pc.list_value_length(column).to_numpy(), out=offsets[1:])
        ids = flat.to_numpy()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < 2**31:
            raise InputError(f"{path}: column {name!r} holds {ids.min()} to {ids.max()}; no ids")
        result.append((offsets, ids.astype(np.int32)))
    return users, result


def write_texts(path: Path, fields: Any) -> None:
    """Write the catalogue's texts as a new folder of Parquet files.

    Args:
        path: the folder to make.
        fields: Arrow table with a column of text per field, row i being item i.
    """
    import pyarrow.parquet as pq

    path.mkdir()
    for number, begin in enumerate(range(0, fields.num_rows, PART_ITEMS)):
        file = path / f"part-{number:05}.parquet"
        part = fields.slice(begin, PART_ITEMS)
        pq.write_table(part, file, compression="zstd", row_group_size=GROUP)


def read_texts(path: Path) -> list[dict[str, Any]]:
    """Read what `write_texts` wrote, from a folder or a single file: the fields of every item.

    Raises:
        InputError: nothing lies there, or it is no Parquet.
    """
    return _read(path, None).to_pylist()


def _read(path: Path, columns: Sequence[str] | None) -> Any:
    # Loading pyarrow takes longer than reading a small data set, which is JSON.
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise InputError(f"{path}: no such file, or a folder without *.parquet in it")
    tables = []
    for file in files:
        try:
            tables.append(pq.ParquetFile(file).read(columns and list(columns)))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{file}: cannot be read as Parquet ({reason})") from None
        if missing := set(columns or ()).difference(tables[-1].column_names):
            raise InputError(f"{file}: no column {min(missing)!r}; make the data set anew")
    return pa.concat_tables(tables)
