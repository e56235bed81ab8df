"""Raw data as people publish it: one short reader per format, two tables out.

Reads RecBole atomic files (`X.inter` and `X.item`, tab-separated, headers such as
`user_id:token`) and plain CSV, TSV or Parquet files. Writes nothing: a reader looks at the headers
only and returns `RawTables`, Ibis expressions on DuckDB with canonical column names,
interactions (user, item, time and, where found, rating) and items (item and, where found, title,
description, brand, categories), each with `row`, the position in its file from 0. Ids and texts
are text, time and rating still as written. `load_table` reads such a table, whole and once.

Public names: `RawTables`, `READERS`, `read_recbole`, `read_table`, `find_recbole`, `TEXT_ROLES`,
`EXTRA_ROLES`, `parse_columns`, `COLUMN_HELP`, `load_table`, `materialise`.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import duckdb
import ibis
from ibis.backends.duckdb import Backend
from ibis.expr.types import Column, Table
from ibis.util import gen_name

from lcrec.errors import InputError, closest

INTERACTION_ROLES = ("user", "item", "time", "rating")
REVIEW_ROLES = ("review_title", "review_text")
TEXT_ROLES = ("title", "description", "brand", "categories")
EXTRA_ROLES = ("features", "details")  # texts that few formats have
ITEM_ROLES = ("item", *TEXT_ROLES, *EXTRA_ROLES)
COLUMN_HELP = (
    "which columns to read, as role=column,role=column; roles: user item time rating title "
    "description brand categories features details review_title review_text, and id for the item column of the items file where it is "
    "called otherwise than in the interactions; a role left out is guessed from usual names, "
    "'brand=' reads none"
)
# Usual column names per role, the surest first; compared in lower case.
USUAL_NAMES = {
    "user": "user user_id userid reviewerid reviewer_id customer_id uid",
    "item": "item item_id itemid parent_asin asin product_id productid movie_id movieid book_id "
    "business_id sku iid id",
    "time": "time timestamp unixreviewtime datetime date created_at",
    "rating": "rating ratings overall stars score",
    "title": "title item_title movie_title book_title product_title name item_name movie_name "
    "product_name business_name",
    "description": "description item_description product_description overview desc",
    "brand": "brand brand_name manufacturer store",
    "categories": "categories category genres genre class main_category product_category tags",
    "features": "features feature",
    "details": "details",
    "review_title": "review_title summary",
    "review_text": "review_text reviewtext review",
}
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
# DuckDB allows 2 MB for a line; a page of HTML as a description may be longer.
LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True)
class RawTables:
    """Two tables with canonical columns, where they came from, and role -> column in each.

    What cannot be used is in neither table but counted: the rows of the input are those of
    `interactions` and `lost` together, and those of `items` and `items_lost` together.

    Attributes:
        interactions: user, item (text, never empty), time (a UTC timestamp, or a number whose unit
            is not known), row and, where the format has them, rating (as written) and, where they
            are asked for, review_title and review_text.
        items: item (text, never empty), row and, where found, the `TEXT_ROLES` and `EXTRA_ROLES`
            (text or null).
        interactions_path: what messages call the interactions: their file, the first of several.
        items_path: the same of the items.
        interaction_columns: role -> column as the file calls it.
        item_columns: the same of the items.
        row_is_position: `row` counts the rows of the files from 0, in the order of the files;
            otherwise it is a hash of the row's content. It depends on no number of threads.
        lost: reason -> rows of the interactions that cannot be used; no zeros.
        items_lost: the same of the items.
    """

    interactions: Table
    items: Table
    interactions_path: Path
    items_path: Path
    interaction_columns: dict[str, str]
    item_columns: dict[str, str]
    row_is_position: bool = True
    lost: dict[str, int] = field(default_factory=dict)
    items_lost: dict[str, int] = field(default_factory=dict)


def parse_columns(text: str) -> dict[str, str]:
    """Read `"user=reviewer,item=asin"` into {role: column}.

    Raises:
        InputError: a part is no role=column, or a role is unknown or given twice.
    """
    known = sorted({*INTERACTION_ROLES, *REVIEW_ROLES, *ITEM_ROLES, "id"})
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"--columns: expected role=column, found {part!r}")
        if role not in known:
            raise InputError(
                f"--columns: unknown role {role!r}{closest(role, known)} (roles: {' '.join(known)})"
            )
        if role in columns:
            raise InputError(f"--columns: role {role!r} is given twice; keep one")
        columns[role] = column
    return columns


def find_recbole(folder: Path) -> tuple[Path, Path]:
    """Return the one `X.inter` in a folder of atomic files and its `X.item`.

    Raises:
        InputError: no such folder, not exactly one `.inter`, or no `.item` beside it.
    """
    if not folder.is_dir():
        raise InputError(f"--input {folder}: no such folder; it should hold X.inter and X.item")
    found = sorted(folder.glob("*.inter"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"--input {folder}: expected exactly one *.inter file, found {names}")
    item = found[0].with_suffix(".item")
    if not item.exists():
        raise InputError(f"{item}: no such file; it holds the items' titles, which are needed")
    return found[0], item


def read_recbole(
    con: Backend, interactions: Path, items: Path, columns: dict[str, str]
) -> RawTables:
    """Open RecBole atomic files; quotes in them are text, not quoting.

    Args:
        con: the DuckDB connection the tables will live in.
        interactions: the `.inter` file.
        items: the `.item` file.
        columns: {role: field without its type}, for what cannot be guessed.

    Raises:
        InputError: a file cannot be read, a header names no or an unknown type, or a needed
            column is missing.
    """

    def open_atomic(path: Path) -> Table:
        names = []
        for field in _header(path, "\t", quoted=False):
            name, colon, kind = field.rpartition(":")
            if not colon:
                raise InputError(
                    f"{path}, line 1: field {field!r} has no type; atomic files say name:type, "
                    f"the type one of {', '.join(RECBOLE_TYPES)} (for plain files: --format table)"
                )
            if kind not in RECBOLE_TYPES:
                raise InputError(
                    f"{path}, line 1: field {field!r} has the unknown type {kind!r}"
                    f"{closest(kind, RECBOLE_TYPES)} (types: {', '.join(RECBOLE_TYPES)})"
                )
            names.append(name)
        return _delimited(con, path, names, "\t", quote="")

    return _raw_tables(open_atomic, interactions, items, columns)


def read_table(con: Backend, interactions: Path, items: Path, columns: dict[str, str]) -> RawTables:
    """Open plain CSV, TSV or Parquet files, told apart by their suffix.

    Args:
        con: the DuckDB connection the tables will live in.
        interactions: one row per interaction.
        items: one row per item.
        columns: {role: column}, for what cannot be guessed.

    Raises:
        InputError: a file cannot be read, or a needed column is missing.
    """

    def open_plain(path: Path) -> Table:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            try:
                return con.read_parquet(path)
            except duckdb.Error as error:
                raise InputError(f"{path}: cannot be read as Parquet ({_reason(error)})") from None
        if suffix not in (".csv", ".tsv"):
            raise InputError(f"{path}: expected a .csv, .tsv or .parquet file")
        delimiter = "," if suffix == ".csv" else "\t"
        return _delimited(con, path, _header(path, delimiter, quoted=True), delimiter, quote='"')

    return _raw_tables(open_plain, interactions, items, columns)


# Each takes (connection, interactions file, items file, {role: column}).
READERS: dict[str, Callable[[Backend, Path, Path, dict[str, str]], RawTables]] = {
    "recbole": read_recbole,
    "table": read_table,
}


def load_table(table: Table, path: Path) -> Table:
    """Read the file behind a table expression, whole and once.

    Raises:
        InputError: the file is malformed (line and reason are named) or has no rows.
    """
    try:
        loaded = materialise(table)
    except duckdb.Error as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None
    if not loaded.count().execute():
        raise InputError(f"{path}: there are no rows below the header")
    return loaded


def materialise(table: Table) -> Table:
    """Compute a table expression once and store the result in its own database.

    Not `Table.cache`: ibis 12 drops cached tables with a statement that sqlglot 30.18 and later
    write without the table's name, so that every run would end in a traceback.
    """
    return table.get_backend().create_table(gen_name("lcrec"), table)


def _header(path: Path, delimiter: str, *, quoted: bool) -> list[str]:
    """Return the names in a delimited file's first line, stripped and all different."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter, quoting=quoting), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    names = [name.strip() for name in names]
    if not any(names):
        raise InputError(
            f"{path}: the file is empty or begins with an empty line; line 1 must name the columns"
        )
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path}, line 1: column {min(twice)!r} stands there twice")
    return names


def _delimited(con: Backend, path: Path, names: list[str], delimiter: str, *, quote: str) -> Table:
    """Open a delimited file, every column as text and an empty field as null."""
    # Nothing is detected, so that a malformed line is an error that names it. Columns are
    # renamed afterwards because DuckDB takes names that differ in case only for the same.
    plain = [f"c{position}" for position in range(len(names))]
    table = con.read_csv(
        str(path),
        header=True,
        delim=delimiter,
        quote=quote,
        escape=quote,
        auto_detect=False,
        columns=dict.fromkeys(plain, "VARCHAR"),
        max_line_size=LONGEST_LINE,
    )
    return table.rename(dict(zip(names, plain, strict=True)))


def _raw_tables(
    open_file: Callable[[Path], Table], interactions: Path, items: Path, columns: dict[str, str]
) -> RawTables:
    """Open both files and give the columns their canonical names."""
    for path in (interactions, items):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    actions, catalogue = open_file(interactions), open_file(items)
    action_columns = _find_columns(actions, INTERACTION_ROLES, columns, interactions)
    for role in ("user", "item", "time"):
        if role not in action_columns:
            raise _no_column(role, actions, interactions, f"{role}=...")
    # The item column is called as `id` says, or as in the interactions, or as usual.
    given = {role: name for role, name in columns.items() if role != "item"}
    if "id" in columns:
        given["item"] = columns["id"]
    elif action_columns["item"] in catalogue.columns:
        given["item"] = action_columns["item"]
    item_columns = _find_columns(catalogue, ITEM_ROLES, given, items)
    if "item" not in item_columns:
        raise _no_column("item", catalogue, items, "id=...")
    if not {"title", "description"} & set(item_columns):
        raise _no_column("title or description", catalogue, items, "title=...")
    return RawTables(
        _canonical(actions, action_columns, interactions),
        _canonical(catalogue, item_columns, items),
        interactions,
        items,
        action_columns,
        item_columns,
    )


def _find_columns(
    table: Table, roles: tuple[str, ...], given: dict[str, str], path: Path
) -> dict[str, str]:
    """Return {role: column} for the roles that are given or can be guessed."""
    lowered = {name.lower(): name for name in reversed(table.columns)}
    found = {}
    for role in roles:
        if role in given:
            name = given[role]
            if name and name not in table.columns:
                raise InputError(
                    f"--columns: {path} has no column {name!r} to read the {role} from"
                    f"{closest(name, table.columns)} (columns: {', '.join(table.columns)})"
                )
        else:
            usual_names = USUAL_NAMES[role].split()
            name = next((lowered[usual] for usual in usual_names if usual in lowered), "")
        if name:
            found[role] = name
    return found


def _no_column(role: str, table: Table, path: Path, remedy: str) -> InputError:
    return InputError(
        f"{path}: no {role} column was found among {', '.join(table.columns)}; name it with "
        f"--columns {remedy}"
    )


def _canonical(table: Table, columns: dict[str, str], path: Path) -> Table:
    """Select the columns by role, ids and texts as text, and number the rows of the file."""
    selected = {}
    for role, name in columns.items():
        column, kind = table[name], table[name].type()
        where = f"{path}: column {name!r} ({role})"
        if role in ("user", "item"):
            if not (kind.is_string() or kind.is_integer() or kind.is_uuid()):
                raise InputError(f"{where} holds {kind}; ids must be text or whole numbers")
            column = column.cast("string")
        elif role == "time":
            sortable = kind.is_string() or kind.is_timestamp() or kind.is_date()
            if not sortable and (kind.is_boolean() or not kind.is_numeric()):
                raise InputError(f"{where} holds {kind}; times must be numbers or dates")
        elif role in TEXT_ROLES:
            # Where one category ends must stay visible; other lists are pieces of one text.
            column = _as_text(column, ", " if role == "categories" else " ", where)
        selected[role] = column
    return table.select(**selected).mutate(row=ibis.row_number())


def _as_text(column: Column, separator: str, where: str) -> Column:
    """Write a column as text; lists, nested ones too, are joined."""
    while column.type().is_array() and column.type().value_type.is_array():
        column = column.flatten()
    if column.type().is_array():
        return column.map(lambda part: part.cast("string")).join(separator)
    if column.type().is_nested():
        raise InputError(f"{where} holds {column.type()}; texts must be text or lists of text")
    return column.cast("string")


def _reason(error: duckdb.Error) -> str:
    """Return the part of DuckDB's message that speaks of the file, on one line."""
    lines = []
    for line in str(error).splitlines():
        if not line.strip() or line.startswith(("Possible", "LINE")):
            break
        lines.append(line.strip() if len(line) < 200 else line[:200] + "...")
    return "; ".join(lines)
