"""Opened files -> canonical tables: rows that cannot be used are named and counted, or refused.

Reads an `Opened` table of `lcrec.prepare.files`; writes nothing but tables in its database. A row
that cannot be used has one reason, the first that applies: nothing of it can be read, it has no
user or item, its id would break a line of the files that map ids to numbers, or its time is none.
"""

import ast
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.datatypes as dt
from ibis import _
from ibis.backends import BaseBackend
from ibis.expr.types import Column, Table

from lcrec.core.errors import InputError
from lcrec.prepare.engines import materialise
from lcrec.prepare.files import FILE, UNREADABLE, Opened, encoding_hint
from lcrec.prepare.filters import UNITS
from lcrec.prepare.tables import Options

# Seconds or milliseconds since 1970; "any": numbers of whatever unit, or dates.
TimeUnit = Literal["s", "ms", "any"]
# Role -> the column, or the columns whose texts are joined by commas.
Roles = Mapping[str, str | tuple[str, ...]]
UTC = dt.Timestamp(timezone="UTC")
EXAMPLES = 3
WORKING = ("written", "untimely", UNREADABLE, FILE)  # columns for judging rows alone
UNREADABLE_LINE = "unreadable line"
NO_CATEGORY = "(no genres listed)"  # of MovieLens
NO_TIME, NEGATIVE, FUTURE, HUGE = (
    "time that is no time",
    "time before 1970 or below zero",
    "time in the future",
    "time beyond 64 bits",
)
TIME_HINT = (
    "every row needs a number, such as seconds since 1970, or every row a date such as "
    "2024-05-31T18:30:00Z"
)


@dataclass(frozen=True)
class Sifted:
    """A canonical table, and reason -> rows of the input that are not in it."""

    table: Table
    lost: dict[str, int]


def sift(
    con: BaseBackend,
    opened: Opened,
    roles: Roles,
    paths: Sequence[Path],
    options: Options,
    *,
    unit: TimeUnit = "any",
    list_mark: str | None = None,
) -> Sifted:
    """Give the columns their canonical names and types and take away what cannot be used.

    Args:
        opened: the files' rows.
        roles: role -> column; with "user" among them the rows are interactions, else items.
        paths: the files, for messages.
        options: what to do with bad rows, and where the order comes from.
        unit: the unit of numeric times.
        list_mark: what separates categories in the file where the options do not say it; they
            will be separated by ", ".

    Raises:
        InputError: rows cannot be used and `options.bad_rows` is "error"; none is left; a column
            holds what its role cannot be.
    """
    table = _select(opened.table, roles, paths[0], options.category_separator or list_mark)
    if "user" in roles:
        table = _with_time(table, options, unit, paths[0])
        table = table.drop(*({"nanos"} & set(table.columns)))
    if "row" not in table.columns:
        table = table.mutate(row=_content_hash(table))
    table = table.mutate(why=_why(table))
    judged = table.drop([name for name in WORKING if name in table.columns])
    if con.name == "duckdb":
        judged = materialise(judged)  # one pass over the rows both judges and stores them
    found = judged.filter(_.why.notnull()).group_by("why").agg(n=_.count())
    lost = {row["why"]: row["n"] for row in found.order_by("why").to_pyarrow().to_pylist()}
    if opened.rejected:
        lost[UNREADABLE_LINE] = lost.get(UNREADABLE_LINE, 0) + opened.rejected
    if lost and options.bad_rows == "error":
        raise _refusal(table, opened, lost, roles, paths)
    if con.name == "duckdb":
        name = judged.get_name()
        con.raw_sql(f"DELETE FROM {name} WHERE why IS NOT NULL")
        con.raw_sql(f"ALTER TABLE {name} DROP COLUMN why")
        kept = con.table(name.rpartition(".")[2])
        if opened.stored:
            con.raw_sql(f"DROP TABLE {opened.stored}")
    else:
        kept = judged.filter(_.why.isnull()).drop("why")
    if not kept.count().execute():
        if lost:
            hint = f"; {TIME_HINT}" if NO_TIME in lost else ""
            raise InputError(f"{paths[0]}: no row can be used ({_listed(lost)}){hint}")
        if not options.joins:
            raise InputError(f"{paths[0]}: there are no rows below the header")
    return Sifted(kept, lost)


def _select(table: Table, roles: Roles, path: Path, list_mark: str | None) -> Table:
    """Select the columns by role, ids and texts as text."""
    selected: dict[str, Any] = {}
    for role, names in roles.items():
        joined = []
        for name in (names,) if isinstance(names, str) else names:
            column, kind = table[name], table[name].type()
            where = f"{path}: column {name!r} ({role})"
            if role in ("user", "item"):
                if not (kind.is_string() or kind.is_integer() or kind.is_uuid()):
                    raise InputError(f"{where} holds {kind}; ids must be text or whole numbers")
                column = column.cast("string")
            elif role == "time":
                # Ibis has no name for the type that has a zone.
                if "TIMESTAMPTZ_NS" in str(kind) or (kind.is_timestamp() and kind.scale == 9):
                    selected["nanos"] = epoch_ns(column)
                    column = column.cast(UTC)
                    kind = column.type()
                sortable = kind.is_string() or kind.is_timestamp() or kind.is_date()
                if not sortable and (kind.is_boolean() or not kind.is_numeric()):
                    raise InputError(f"{where} holds {kind}; times must be numbers or dates")
            elif role != "rating":
                # Where one category ends must stay visible; other lists are pieces of one text.
                column = _as_text(column, ", " if role == "categories" else " ", where)
            joined.append(column)
        column = joined[0]
        for other in joined[1:]:
            column = ibis.coalesce(column + ", " + other, column, other)
        if role == "categories":
            column = column.nullif(NO_CATEGORY)
            if list_mark:
                column = column.re_replace(rf"\s*[{list_mark}]\s*", ", ")
        selected[role] = column
    extra = [name for name in ("row", UNREADABLE, FILE) if name in table.columns]
    return table.select(*extra, **selected)


def _as_text(column: Column, separator: str, where: str) -> Column:
    """Write a column as text; lists, nested ones and those in JSON too, are joined."""
    while column.type().is_array() and column.type().value_type.is_array():
        column = column.flatten()
    if column.type().is_array():
        return column.map(lambda part: part.cast("string")).join(separator)
    if column.type().is_nested():
        raise InputError(f"{where} holds {column.type()}; texts must be text or lists of text")
    column = column.cast("string")
    is_json = column.startswith("[") | column.startswith("{")
    # Spark asks Python about every row, whatever the condition says.
    return ibis.cases((is_json, _plain(column.fill_null(""), separator)), else_=column)


@ibis.udf.scalar.python
def _plain(text: str, separator: str) -> str:
    return _plain_text(text, separator)


def _plain_text(text: str, separator: str) -> str:
    """Write a list of texts, or an object, as a text; leave any other text alone.

    They are written in JSON, or as Python prints them, as pandas does into a CSV cell. What is
    missing in them (null, None, NaN) is left out.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(re.sub(r"(?<=[\[, ])nan(?=\s*[,\]])", "None", text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
    joined = join_leaves(value, separator)
    return text if joined is None else joined


def join_leaves(value: Any, separator: str) -> str | None:
    """Join the parts of a nested list, or of an object's entries; None where no part is a text.

    "[1984]" is a title.
    """
    if isinstance(value, dict):
        parts = [f"{key}: {_leaf(part)}" for key, part in value.items() if part not in (None, "")]
        return "; ".join(parts)
    leaves: list[str] = []
    others = 0
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, list | tuple):
            pending.extend(reversed(part))
        elif isinstance(part, dict):
            leaves.append(join_leaves(part, separator) or "")
        elif isinstance(part, str):
            leaves.append(part)
        elif part is not None and part == part:  # NaN is what is missing, too
            leaves.append(json.dumps(part))
            others += 1
    return None if leaves and others == len(leaves) else separator.join(filter(None, leaves))


def _leaf(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_leaf, (part for part in value if part is not None)))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _with_time(table: Table, options: Options, unit: TimeUnit, path: Path) -> Table:
    """Add the sortable time, as written too, and where it is none the reason `untimely`."""
    if options.order == "file":
        if "row" not in table.columns:
            raise InputError("--order file: rows have an order with --engine duckdb only")
        return table.mutate(time=_.row, untimely=ibis.null("string"))
    written = table.time
    kind = written.type()
    if "nanos" in table.columns:
        fine = (table.nanos % 1000 != 0).any().execute()
        return _with_moment(table, written, table.nanos if fine else None)
    if kind.is_timestamp() or kind.is_date():
        return _with_moment(table, written.cast(UTC))
    if kind.is_string():
        number = _finite(written.try_cast("float64"))
        whole = written.re_search(r"^\s*[+-]?[0-9]+(\.0*)?\s*$")
        if unit == "any":
            digits = written.re_search("[0-9]")  # "infinity" is a timestamp, but no time
            moment = ibis.ifelse(digits, written.try_cast(UTC), ibis.null(UTC))
            n = table.aggregate(
                numbers=number.notnull().sum(),
                whole=(number.notnull() & whole).sum(),
                moments=moment.notnull().sum(),
                fine=(moment.notnull() & written.re_search(r"\.[0-9]{6}0*[1-9]")).sum(),
            )
            counts = n.to_pyarrow().to_pylist()[0]
            if (counts["moments"] or 0) > (counts["numbers"] or 0):
                return _with_moment(
                    table, moment, _nanos(written, moment) if counts["fine"] else None
                )
            all_whole = counts["whole"] == counts["numbers"]
        else:
            all_whole = False
    else:
        number = _finite(written.cast("float64"))
        all_whole = kind.is_integer()
    untimely = ibis.cases((number.isnull(), NO_TIME), (number < 0, NEGATIVE))
    if unit == "any":
        untimely = ibis.coalesce(untimely, ibis.cases((number >= 2.0**63, HUGE)))
        time: Column = number
        if all_whole and kind.is_integer():
            time = written.cast("int64") if kind != dt.uint64 else written.try_cast("int64")
        elif all_whole:
            time = written.re_replace(r"\.0*\s*$", "").strip().try_cast("int64")
        table = table.mutate(written=written, time=time, untimely=untimely)
        return _in_one_unit(table, path)
    per_second = {"s": 1, "ms": 1000}[unit]
    untimely = ibis.coalesce(
        untimely, ibis.cases((number > _latest().timestamp() * per_second, FUTURE))
    )
    sound = ibis.ifelse(untimely.isnull(), number, ibis.null("float64"))
    micros = (sound * (1_000_000 // per_second)).round().cast("int64")
    # Of Ibis's own units Spark knows seconds alone.
    from_micros = make_timestamp if table.get_backend().name == "duckdb" else timestamp_micros
    moment = from_micros(micros).cast(UTC)
    return table.mutate(written=written, time=moment, untimely=untimely)


def _in_one_unit(table: Table, path: Path) -> Table:
    """Refuse numbers some of which count seconds since 1970 and others, say, milliseconds.

    Sorted, whatever was written in the finer unit would come last. Where all of them count one
    unit, what lies in the future is marked.
    """
    time = table.untimely.isnull().ifelse(table.time, ibis.null(table.time.type()))
    smallest = {
        name: ((low <= time) & (time < high)).ifelse(time, ibis.null(time.type())).min()
        for name, (low, high, _per_second) in UNITS.items()
    }
    (found,) = table.aggregate(least=time.min(), **smallest).to_pyarrow().to_pylist()
    least = found.pop("least")
    seen = [f"{value} ({name})" for name, value in found.items() if value is not None]
    if seen[1:]:
        raise InputError(
            f"{path}: its times have several units, such as {' and '.join(seen)} since 1970; write "
            "all in one, or take the order of the rows with --order file"
        )
    for (_low, _high, per_second), value in zip(UNITS.values(), found.values(), strict=True):
        if value is not None and value == least:
            is_late = table.untimely.isnull() & (time > int(_latest().timestamp()) * per_second)
            late = ibis.cases((is_late, FUTURE))
            return table.mutate(untimely=ibis.coalesce(table.untimely, late))
    return table


def _finite(number: Column) -> Column:
    """Return null for what is read as a number ("nan", "infinity") but is no time."""
    return ibis.ifelse(number.isnan() | number.isinf(), ibis.null("float64"), number)


def _nanos(written: Column, moment: Column) -> Column:
    """Return nanoseconds since 1970, of a moment of whole microseconds and its text."""
    micros = (epoch_us if moment.get_backend().name == "duckdb" else unix_micros)(moment)
    rest = written.re_extract(r"\.[0-9]{6}([0-9]{1,3})", 1).rpad(3, "0")
    return micros * 1000 + rest.try_cast("int64")


@ibis.udf.scalar.builtin
def make_timestamp(micros: int) -> dt.timestamp:
    """Return the moment so many microseconds after 1970 began: a function of DuckDB."""


@ibis.udf.scalar.builtin
def timestamp_micros(micros: int) -> dt.timestamp:
    """Return the moment so many microseconds after 1970 began: a function of Spark."""


@ibis.udf.scalar.builtin
def epoch_us(moment: dt.timestamp) -> dt.int64:
    """Return the microseconds from 1970 to a moment: a function of DuckDB."""


@ibis.udf.scalar.builtin
def unix_micros(moment: dt.timestamp) -> dt.int64:
    """Return the microseconds from 1970 to a moment: a function of Spark."""


@ibis.udf.scalar.builtin
def epoch_ns(moment) -> dt.int64:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Return the nanoseconds from 1970 to a moment: a function of DuckDB."""


def _with_moment(table: Table, moment: Column, nanos: Column | None = None) -> Table:
    """Add the time: the moment, or what tells its nanoseconds as a number."""
    untimely = ibis.cases(
        (moment.isnull(), NO_TIME),
        (moment < ibis.literal(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), UTC), NEGATIVE),
        (moment > ibis.literal(_latest(), UTC), FUTURE),
    )
    time = moment if nanos is None else nanos
    return table.mutate(written=table.time, time=time, untimely=untimely)


def _latest() -> datetime.datetime:
    # A day more than now, as dates without a time zone may be ahead of ours.
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)


def _content_hash(table: Table) -> Column:
    """Return a hash of each row's content, which tells rows apart where none has a position."""
    names = [name for name in table.columns if name not in (UNREADABLE, "untimely", "written")]
    fields = [table[name].cast("string").fill_null("\x01") for name in names]
    content = fields[0]
    for field in fields[1:]:
        content = content + "\x02" + field
    return content.hash()


def _why(table: Table) -> Column:
    branches = [(table[UNREADABLE], ibis.literal(UNREADABLE_LINE))]
    for role in ("user", "item"):
        if role in table.columns:
            # A tab or a line break would break the files that map raw ids to numbers.
            branches += [
                (table[role].isnull() | (table[role] == ""), ibis.literal(f"no {role} id")),
                (
                    ibis.or_(*(table[role].contains(mark) for mark in "\t\r\n")),
                    ibis.literal(f"{role} id of two lines"),
                ),
            ]
    if "untimely" in table.columns:
        branches.append((table.untimely.notnull(), table.untimely))
    return ibis.cases(*branches, else_=ibis.null("string"))


def _listed(lost: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in lost.items())


def _refusal(
    table: Table, opened: Opened, lost: dict[str, int], roles: Roles, paths: Sequence[Path]
) -> InputError:
    """Name the count of the rows that cannot be used and the first of them."""
    total = table.count().execute() + opened.rejected
    bad = table.filter(_.why.notnull()).order_by("row").limit(EXAMPLES).to_pyarrow().to_pylist()
    starts: dict[str, int] = {}
    if bad and FILE in table.columns:
        files = table.group_by(FILE).agg(start=_.row.min()).to_pyarrow().to_pylist()
        starts = {entry[FILE]: entry["start"] for entry in files}
    examples = list(opened.examples)
    files_named = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    for row in bad:
        if starts:
            where = f"{row[FILE]}, data row {row['row'] - starts[row[FILE]] + 1}"
        else:  # a hash of the content is no place in a file
            where = files_named + (f", data row {row['row'] + 1}" if opened.stored else "")
        examples.append(f"{where}: {_fault(row, roles)}")
    hint = f"; {TIME_HINT}" if NO_TIME in lost else ""
    hint += encoding_hint(paths) if UNREADABLE_LINE in lost else ""
    return InputError(
        f"{'; '.join(examples[:EXAMPLES])}{hint}; {sum(lost.values()):,} of {total:,} rows cannot "
        f"be used ({_listed(lost)}); mend them, or leave them out with --bad-rows drop"
    )


def _fault(row: dict[str, Any], roles: Roles) -> str:
    why = row["why"]
    if why == UNREADABLE_LINE:
        return "the line cannot be read (half written, wrongly quoted, or not in UTF-8?)"
    for role in ("user", "item"):
        if why == f"no {role} id":
            return f"the {role} id (column {roles[role]!r}) is empty"
        if why == f"{role} id of two lines":
            return f"the {role} id (column {roles[role]!r}) holds a tab or a line break: " + repr(
                row[role]
            )
    seen = "empty" if row["written"] is None else repr(row["written"])
    return f"the time (column {roles['time']!r}) is {seen}" + ("" if why == NO_TIME else f": {why}")
