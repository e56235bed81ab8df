"""Files of one Python literal per line, as Amazon 2014 and Steam publish them -> Parquet.

Reads text (plain, gz or zst), line by line; writes one Parquet file, some thousand rows at a time,
so that memory does not grow with the file. Literals are evaluated by `ast.literal_eval`, which
runs no code. Values become text as they are in JSON; a line that holds no dict becomes a row of
nulls, which is counted later.

Public names: `is_literal`, `evaluate`, `convert_literals`.
"""

import ast
import itertools
import json
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from lcrec.core.errors import InputError
from lcrec.formats_open import open_bytes

ROWS = 20_000
NOT_A_LITERAL = (ValueError, SyntaxError, MemoryError, RecursionError)


def is_literal(line: bytes) -> bool:
    """Tell whether a line is a Python dict and no JSON object."""
    try:
        json.loads(line)
    except ValueError:
        return evaluate(line) is not None
    return False


def convert_literals(
    paths: Sequence[Path], names: Sequence[str], target: Path, limit: int | None = None
) -> None:
    """Write the given keys of every line as text columns of one Parquet file.

    Args:
        paths: the files, in order; empty lines in them are no rows.
        names: the keys; what a line does not have is null.
        target: the Parquet file to write.
        limit: convert so many rows, the first; None converts all.

    Raises:
        InputError: a file cannot be read to its end, such as a truncated gz.
    """
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(target, schema) as writer:
        every = itertools.chain.from_iterable(_rows(path, names) for path in paths)
        rows = itertools.islice(every, limit)
        while batch := list(itertools.islice(rows, ROWS)):
            columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _rows(path: Path, names: Sequence[str]) -> Iterator[list[str | None]]:
    try:
        with (
            open_bytes(path) as file,
            tqdm(desc=f"converting {path.name}", unit=" rows", mininterval=1) as bar,
        ):
            for line in file:
                if line.strip():
                    record = evaluate(line) or {}
                    yield [_text(record.get(name)) for name in names]
                    bar.update()
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); is it whole?") from None


def evaluate(line: bytes) -> dict[str, Any] | None:
    """Return the dict that a line writes as a Python literal, or None where it writes none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a review is no fault of ours
            value = ast.literal_eval(line.decode("utf-8").strip())
    except NOT_A_LITERAL:  # UnicodeDecodeError is a ValueError
        return None
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except TypeError:  # sets and bytes, which JSON does not know
            value = repr(value)
    # Old Pythons wrote an emoji as two halves, which make one again; a half alone has no bytes.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
