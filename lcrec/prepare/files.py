"""Opens text and Parquet files on either engine, every field as it is written.

Reads delimited text, JSON lines (plain, gz or zst) and Parquet. Nothing is detected and nothing
converted: `007`, `nan` and a number of thirty digits stay text. A malformed row does not end the
reading but is counted: DuckDB keeps account of those of delimited files, and JSON lines that are no
JSON object become rows of nulls; Spark hands over their text.

What DuckDB cannot read, `lcrec.prepare.literals` converts beforehand. Writes tables in the DuckDB
database it is given.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal, cast

import duckdb
import ibis
import pyarrow as pa
from ibis.backends import BaseBackend
from ibis.expr.types import Table
from ibis.util import gen_name

from lcrec.core.errors import InputError
from lcrec.prepare.tables import reason

# A boolean column of an opened table: nothing of the row could be read.
UNREADABLE = "lcrec_unreadable"
FILE = "lcrec_file"
# DuckDB allows 2 MB for a line; a page of HTML as a description may be longer.
LONGEST_LINE = 64 * 2**20
# What DuckDB says where lines end in more than one way, or a field holds a carriage return.
MIXED_LINE_ENDS = "state machine reached an invalid state"
COMPRESSIONS = (".gz", ".zst")
SEPARATORS = (",", ";", "\t", "|")
TORN = (OSError, EOFError, zlib.error, pa.ArrowException)  # what reading a damaged file throws
GUESSED_FROM = 4 * 2**20  # bytes from which an encoding is guessed
KINDS = {
    ".csv": "delimited",
    ".tsv": "delimited",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Opened:
    """A table of a file's fields, and what was refused before it became a row.

    Attributes:
        table: the fields by name, `UNREADABLE` and, under DuckDB, `row`, the position among the
            readable rows from 0 (and the column `FILE` where there are several files).
        rejected: rows of the input that are not in `table`.
        examples: the first of them: file, line and why.
        stored: the name of the table in the database that holds all this, where there is one.
    """

    table: Table
    rejected: int = 0
    examples: tuple[str, ...] = ()
    stored: str | None = None


@dataclass(frozen=True)
class Delimited:
    """How a delimited file is written; `names` are those of its columns where no line says so."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    names: tuple[str, ...] | None = None


def bare_name(path: Path) -> str:
    """Return a file's name without a compression's suffix."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


def kind_of(path: Path) -> str:
    """Return "delimited", "json" or "parquet" by the suffix, below a compression's.

    Raises:
        InputError: the suffix is none of them.
    """
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    kind = KINDS.get(suffix.lower())
    if kind is None or (kind == "parquet" and path.suffix.lower() in COMPRESSIONS):
        raise InputError(
            f"{path}: expected a .csv, .tsv, .jsonl, .json or .parquet file (text may end in .gz, "
            ".zst or .zip)"
        )
    return kind


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading its uncompressed bytes."""
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(path, compression="zstd"))
    return path.open("rb")


@contextlib.contextmanager
def readable(path: Path, how_far: str = " to its end") -> Iterator[None]:
    """Say of a file in one line that it cannot be read, whatever its reader throws.

    Raises:
        InputError: instead of what was thrown.
    """
    try:
        yield
    except TORN as error:
        raise InputError(f"{path}: cannot be read{how_far} ({error}); is it whole?") from None


def read_lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file that `open_bytes` opened, with their ends.

    Raises:
        InputError: a line is longer than `LONGEST_LINE`, as a few megabytes of gz may hide it.
    """
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise _too_long(path, number)
        if not line:
            return
        yield line


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's uncompressed bytes, 4 MB at a time.

    Raises:
        InputError: the file cannot be read to its end, or a line is longer than `LONGEST_LINE`.
    """
    line, length = 1, 0
    with readable(path), open_bytes(path) as file:
        while chunk := file.read(2**22):
            end = chunk.rfind(b"\n")
            line += chunk.count(b"\n")
            length = length + len(chunk) if end < 0 else len(chunk) - end - 1
            if length > LONGEST_LINE:
                raise _too_long(path, line)
            yield chunk


def _too_long(path: Path, line: int) -> InputError:
    return InputError(
        f"{path}, line {line}: is longer than {LONGEST_LINE >> 20} MB; a row must end where its "
        "line does"
    )


def has_mixed_line_ends(path: Path) -> bool:
    """Tell whether a text file's lines end in more than one way, or hold carriage returns."""
    feeds = returns = both = 0
    before = b""
    for chunk in read_chunks(path):
        both += (before + chunk).count(b"\r\n")
        feeds, returns = feeds + chunk.count(b"\n"), returns + chunk.count(b"\r")
        before = chunk[-1:] if chunk.endswith(b"\r") else b""
    return returns > 0 and feeds > 0 and not feeds == returns == both


def with_plain_line_ends(path: Path, copy: Path) -> None:
    """Copy a delimited file, uncompressed, so that every line ends in a line feed.

    A carriage return that ends no line belongs to a field and becomes a space there, unless the
    file has no line feed at all: then it is what ends the lines.

    Raises:
        InputError: the file cannot be read to its end.
    """
    with readable(path), open_bytes(path) as source, copy.open("wb") as target:
        lines = read_lines(path, source)
        first = next(lines, b"")
        if not first.endswith(b"\n"):  # no line feed in the whole file
            target.write(first.replace(b"\r", b"\n"))
        for line in itertools.chain([first] if first.endswith(b"\n") else [], lines):
            end = b"\n" if line.endswith(b"\n") else b""
            target.write(line.rstrip(b"\r\n").replace(b"\r", b" ") + end)


def first_lines(path: Path, count: int) -> list[bytes]:
    """Return a file's first lines, without their ends, or all of them where there are fewer.

    Raises:
        InputError: the file cannot be read.
    """
    with readable(path, how_far=""), open_bytes(path) as file:
        return [line.rstrip(b"\r\n") for line in islice(read_lines(path, file), count)]


def find_separator(path: Path, usual: str) -> str:
    """Return the one of `SEPARATORS` that gives a file's first line the most names.

    Args:
        usual: the separator to prefer where several give as many.
    """
    line = b"".join(first_lines(path, 1)).decode("utf-8-sig", "replace").partition("\r")[0]

    def names(separator: str) -> int:
        return len(next(csv.reader([line], delimiter=separator), []))

    return max((usual, *SEPARATORS), key=names)  # the first of equals


def decode_file(path: Path, encoding: str, copy: Path) -> None:
    """Copy a text file, uncompressed, from another encoding to UTF-8.

    Raises:
        InputError: the file cannot be read to its end, or holds what the encoding has not.
    """
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    try:
        with (
            readable(path),
            open_bytes(path) as source,
            copy.open("w", encoding="utf-8", newline="") as target,
        ):
            while chunk := source.read(2**22):
                text = decoder.decode(chunk)
                line += text.count("\n")
                target.write(text.removeprefix("\ufeff") if not target.tell() else text)
            target.write(decoder.decode(b"", final=True))
    except UnicodeError as error:
        raise InputError(
            f"--encoding {encoding}: {path}, at or after line {line}, is not written so ({error})"
            f"{encoding_hint([path])}"
        ) from None


def encoding_hint(paths: Sequence[Path]) -> str:
    """Name the first file that is not UTF-8 and the likely encoding; "" where all seem to be."""
    for path in paths:
        try:
            with open_bytes(path) as file:
                sample = file.read(GUESSED_FROM)
        except TORN:
            return ""  # damaged, which its reader says
        try:
            codecs.getincrementaldecoder("utf-8")().decode(sample)
            likely = "utf-16" if b"\0" in sample else None
        except UnicodeDecodeError:
            likely = "utf-16" if b"\0" in sample else "cp1252, or latin-1"
        if likely:
            return f"; {path.name} is not UTF-8: try --encoding {likely}"
    return ""


def header(paths: Sequence[Path], how: Delimited) -> list[str]:
    """Return the names in the first line, stripped and all different, the same in every file.

    A column without a name, such as the index that pandas writes, is "" and nobody's.
    """
    names = _header(paths[0], how)
    for path in paths[1:]:
        if _header(path, how) != names:
            raise InputError(
                f"{path}, line 1: the columns are not those of {paths[0]} ({', '.join(names)}); "
                "files that are read together must have the same columns"
            )
    return names


def _header(path: Path, how: Delimited) -> list[str]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if how.quote else csv.QUOTE_NONE
    encoding = "utf-8-sig" if how.encoding == "utf-8" else how.encoding
    lines = first_lines(path, 1)
    try:
        # Of a file whose lines end in carriage returns alone, `first_lines` makes one line.
        text = lines[0].decode(encoding).partition("\r")[0] if lines else ""
        names = next(csv.reader([text], delimiter=how.delimiter, quoting=quoting), [])
        if "\0" in text:
            raise csv.Error("line 1 holds zero bytes")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read as {how.encoding} text ({error}){encoding_hint([path])}"
        ) from None
    names = [name.strip() for name in names]
    if not any(names):
        raise InputError(
            f"{path}: the file is empty or begins with an empty line; line 1 must name the columns"
        )
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise InputError(f"{path}, line 1: column {min(twice)!r} stands there twice")
    return names


def open_delimited(
    con: BaseBackend,
    paths: Sequence[Path],
    names: Sequence[str],
    how: Delimited,
    limit: int | None = None,
) -> Opened:
    """Open delimited files, every column as text and an empty field as null.

    Args:
        paths: the files, in order.
        names: all their columns; one without a name ("") is not read.
        limit: read so many rows, the first; None reads all.

    Raises:
        InputError: a file cannot be read at all, such as a truncated gz.
    """
    # Columns are renamed afterwards because DuckDB takes names that differ in case only for the
    # same.
    plain = [f"c{position}" for position in range(len(names))]
    renamed = {name: place for name, place in zip(names, plain, strict=True) if name}
    nameless = [place for name, place in zip(names, plain, strict=True) if not name]
    if con.name != "duckdb":
        if len(how.delimiter) > 1 and not how.quote:
            how = Delimited(how.delimiter, "\0", "\0", how.encoding, how.names)
        table = con.read_csv(
            [str(path) for path in paths],
            header=how.names is None,
            schema=", ".join(f"{name} STRING" for name in [*plain, UNREADABLE]),
            inferSchema=False,
            sep=how.delimiter,
            quote=how.quote or "\0",
            escape=how.escape or "\0",
            encoding={"utf-8": "UTF-8", "latin-1": "ISO-8859-1"}[how.encoding],
            multiLine=bool(how.quote),
            mode="PERMISSIVE",
            columnNameOfCorruptRecord=UNREADABLE,
        )
        table = table.mutate(**{UNREADABLE: table[UNREADABLE].notnull()})
        return Opened(table.drop(nameless).rename(renamed).limit(limit))
    scan, errors = gen_name("lcrec_scan"), gen_name("lcrec_rejects")

    def load(files: Sequence[Path]) -> Table:
        table = con.read_csv(
            [str(path) for path in files],
            header=how.names is None,
            delim=how.delimiter,
            quote=how.quote,
            escape=how.escape,
            encoding=how.encoding,
            auto_detect=False,
            columns=dict.fromkeys(plain, "VARCHAR"),
            max_line_size=LONGEST_LINE,
            filename=FILE if len(files) > 1 else False,
            store_rejects=True,
            rejects_limit=0,
            rejects_scan=scan,
            rejects_table=errors,
        )
        return _load(con, table.drop(nameless).rename(renamed).limit(limit), files)

    try:
        loaded = load(paths)
    except InputError as error:
        if MIXED_LINE_ENDS not in str(error):
            raise
        # The names of the copies are those of the files, for what is said of their rows.
        with tempfile.TemporaryDirectory() as folder:
            copies = [Path(folder) / str(n) / bare_name(path) for n, path in enumerate(paths)]
            for path, copy in zip(paths, copies, strict=True):
                copy.parent.mkdir()
                with_plain_line_ends(path, copy)
            scan, errors = gen_name("lcrec_scan"), gen_name("lcrec_rejects")
            loaded = load(copies)
    # A line may be at fault in several ways; it is one line all the same.
    found = con.raw_sql(
        f"SELECT s.file_path, e.line, min(e.error_message) FROM {errors} e JOIN {scan} s "
        "USING (scan_id, file_id) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    if found:  # an overlong line is no row of the wrong shape, whatever DuckDB takes it for
        for path in paths:
            for _ in read_chunks(path):
                pass
    examples = tuple(f"{path}, line {line}: {why}" for path, line, why in found[:3])
    table = _numbered(loaded).mutate(**{UNREADABLE: ibis.literal(False)})
    return Opened(table, len(found), examples, loaded.get_name())


def open_json(
    con: BaseBackend, paths: Sequence[Path], names: Sequence[str], limit: int | None = None
) -> Opened:
    """Open files of one JSON object per line, lists and objects in them as JSON text.

    Args:
        paths: the files, in order.
        names: the keys to read; what an object does not have is null.
        limit: read so many rows, the first; None reads all.

    Raises:
        InputError: a file cannot be read at all, or two keys differ in case only.
    """
    if len({name.lower() for name in names}) < len(names):
        raise InputError(
            f"{paths[0]}: of the keys {', '.join(names)} two differ in case only; leave one out "
            "with --columns role="
        )
    if con.name != "duckdb":
        table = con.read_json(
            [str(path) for path in paths],
            schema=", ".join(f"`{name}` STRING" for name in [*names, UNREADABLE]),
            mode="PERMISSIVE",
            columnNameOfCorruptRecord=UNREADABLE,
        )
        return Opened(table.mutate(**{UNREADABLE: table[UNREADABLE].notnull()}).limit(limit))
    table = con.read_json(
        [str(path) for path in paths],
        columns=dict.fromkeys(names, "VARCHAR"),
        format="newline_delimited",
        ignore_errors=True,
        **({"filename": FILE} if len(paths) > 1 else {}),
    )
    loaded = _load(con, table.limit(limit), paths)
    unreadable = ibis.and_(*(loaded[name].isnull() for name in names))
    table = _numbered(loaded).mutate(**{UNREADABLE: unreadable})
    return Opened(table, stored=loaded.get_name())


def open_parquet(
    con: BaseBackend, paths: Sequence[Path], names: Sequence[str] | None, limit: int | None = None
) -> Opened:
    """Open Parquet files; columns keep their types.

    Args:
        paths: the files, in order.
        names: the columns to load; None opens the files without reading their rows.
        limit: read so many rows, the first; None reads all.

    Raises:
        InputError: a file is no Parquet file, or is damaged.
    """
    try:
        if con.name == "duckdb":
            table = con.read_parquet([str(path) for path in paths])
        else:
            table = _open_on_spark(con, paths)
    except (duckdb.Error, pa.ArrowException) as error:
        why = reason(error) if isinstance(error, duckdb.Error) else error
        raise InputError(f"{paths[0]}: cannot be read as Parquet ({why})") from None
    stored = None
    if names is not None:
        table = table.select(*names).limit(limit)
        if con.name == "duckdb":
            loaded = _load(con, table, paths)
            table, stored = _numbered(loaded), loaded.get_name()
    return Opened(table.mutate(**{UNREADABLE: ibis.literal(False)}), stored=stored)


def _open_on_spark(con: BaseBackend, paths: Sequence[Path]) -> Table:
    from pyspark.errors import AnalysisException  # here, so that DuckDB does without Spark

    try:  # ibis hands Spark one path at a time
        return ibis.union(*(con.read_parquet(str(path)) for path in paths))
    except AnalysisException as error:  # such as for times in nanoseconds
        why = str(error).splitlines()[0]
        raise InputError(
            f"{paths[0]}: Spark cannot read it ({why}); use --engine duckdb, or write the file "
            "otherwise, such as with times in microseconds"
        ) from None


def _load(con: BaseBackend, table: Table, paths: Sequence[Path]) -> Table:
    """Read the files once, into the database.

    DuckDB decodes a gz on one core however often it is asked. What it stores it stores in the
    order of the files, for any number of threads.
    """
    try:
        return con.create_table(gen_name("lcrec_raw"), table)
    except duckdb.Error as error:
        named = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        raise InputError(f"{named}: cannot be read ({reason(error)})") from None


def _numbered(stored: Table) -> Table:
    return stored.mutate(row=stored.rowid())
