"""Converts lines that DuckDB cannot read, Python literals and odd JSON, to Parquet.

Files of one Python literal per line, as Amazon 2014 and Steam publish them, are converted some
thousand rows at a time, so that memory does not grow with the file. Literals are evaluated by
`ast.literal_eval`, which runs no code. Values become text as they are in JSON; a line that holds no
dict becomes a row of nulls, which is counted later.
"""

import ast
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcrec.core.console import ProgressBar
from lcrec.prepare.files import open_bytes, read_chunks, read_lines, readable

ROWS = 20_000
NOT_A_LITERAL = (ValueError, SyntaxError, MemoryError, RecursionError)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_PAIR = re.compile(rb"%b(?!%b)|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})%b" % (_HIGH, _LOW, _LOW))
_CONSTANT = re.compile(rb"[:\[,]\s*-?(NaN|Infinity)\s*[,}\]]")
# A cheap mark, and what it is found in that makes it matter.
NOT_FOR_DUCKDB = (
    (b"\\ud", _HALF_PAIR),
    (b"\\uD", _HALF_PAIR),
    (b"NaN", _CONSTANT),
    (b"Infinity", _CONSTANT),
)


def is_literal(line: bytes) -> bool:
    """Tell whether a line is a Python dict and no JSON object."""
    return evaluate_json(line) is None and evaluate(line) is not None


def needs_python(paths: Sequence[Path]) -> bool:
    """Tell whether JSON lines hold what DuckDB reads otherwise than Python, or not at all.

    That is a byte order mark, half of a surrogate pair, or a NaN or infinity, which are no JSON
    but are what pandas and Python write for a missing value.

    Raises:
        InputError: a file cannot be read to its end.
    """
    for path in paths:
        tail = b""
        for chunk in read_chunks(path):
            text = tail + chunk
            if (not tail and text.startswith(BYTE_ORDER_MARK)) or any(
                mark in text and pattern.search(text) for mark, pattern in NOT_FOR_DUCKDB
            ):
                return True
            tail = chunk[-16:]
    return False


def convert_lines(
    paths: Sequence[Path],
    names: Sequence[str],
    target: Path,
    limit: int | None = None,
    *,
    evaluate: Callable[[bytes], dict[str, Any] | None],
) -> None:
    """Write the given keys of every line as text columns of one Parquet file.

    Args:
        paths: the files, in order; empty lines in them are no rows.
        names: the keys; what a line does not have is null.
        target: the Parquet file to write.
        limit: convert so many rows, the first; None converts all.
        evaluate: `evaluate` for Python literals, `evaluate_json` for JSON objects.

    Raises:
        InputError: a file cannot be read to its end, such as a truncated gz.
    """
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(target, schema) as writer:
        every = itertools.chain.from_iterable(_rows(path, names, evaluate) for path in paths)
        rows = itertools.islice(every, limit)
        while batch := list(itertools.islice(rows, ROWS)):
            columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _rows(
    path: Path, names: Sequence[str], evaluate: Callable[[bytes], dict[str, Any] | None]
) -> Iterator[list[str | None]]:
    bar = ProgressBar(None, f"convert {path.name}", "rows")
    with readable(path), open_bytes(path) as file, bar:
        for line in read_lines(path, file):
            if line.strip():
                record = evaluate(line) or {}
                yield [_text(record.get(name)) for name in names]
                bar.update()


def evaluate(line: bytes) -> dict[str, Any] | None:
    """Return the dict that a line writes as a Python literal, or None where it writes none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a review is no fault of ours
            value = ast.literal_eval(line.decode("utf-8").strip())
    except NOT_A_LITERAL:  # UnicodeDecodeError is a ValueError
        return None
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


def evaluate_json(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a line holds, or None where it holds none.

    NaN and infinities are missing values; a decimal number is the text that it is written as.
    """
    try:
        value = json.loads(
            line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"),
            parse_constant=lambda _: None,
            parse_float=str,
        )
    except NOT_A_LITERAL:
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except TypeError:  # sets and bytes, which JSON does not know
            value = repr(value)
    # Old Pythons wrote an emoji as two halves, which make one again; a half alone has no bytes.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
