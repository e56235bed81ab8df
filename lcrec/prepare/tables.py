"""What every reader of raw data hands over: two tables, and a count of what is in neither.

Reads and writes nothing itself, but that `load_table` stores a table in its own database.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import duckdb
import ibis.expr.operations as ops
import pyarrow as pa
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from lcrec.core.errors import InputError, closest
from lcrec.data.folder import STANDARD_FIELDS
from lcrec.prepare.engines import materialise, store

INTERACTION_ROLES = ("user", "item", "time", "rating")
REVIEW_ROLES = ("review_title", "review_text")
TEXT_ROLES, EXTRA_ROLES = STANDARD_FIELDS[:4], STANDARD_FIELDS[4:]  # few formats have the latter
ITEM_ROLES = ("item", *STANDARD_FIELDS)
ROLES = (*INTERACTION_ROLES, *REVIEW_ROLES, *ITEM_ROLES[1:], "id")  # that --columns knows
WORKING = ("row", "why", "flags")  # columns that stand beside the roles


@dataclass(frozen=True)
class RawTables:
    """Two tables with canonical columns, where they came from, and role -> column in each.

    What cannot be used is in neither table but counted: the rows of the input are those of
    `interactions` and `lost` together, and those of `items` and `items_lost` together. Of what was
    not asked for, interactions or items, the table is empty and the path `Path()`.

    Attributes:
        interactions: user, item (text, never empty), time (a UTC timestamp; a number, whose unit is
            not known; nanoseconds since 1970 where a time has parts of a microsecond), row (under
            DuckDB its position among the readable rows from 0, in the order of the files; under
            Spark a hash of its content) and, where the format has them, rating (as written) and,
            where they are asked for, review_title and review_text.
        items: item (text, never empty), row and, where found, the `TEXT_ROLES` and `EXTRA_ROLES`
            (text or null), and what `Options.keep` names.
        interactions_path: what messages call the interactions: their file, the first of several.
        items_path: the same of the items.
        interaction_columns: role -> column as the file calls it.
        item_columns: the same of the items.
        lost: reason -> rows of the interactions that cannot be used; no zeros.
        items_lost: the same of the items.
        parts: user -> the part of the split that each of the user's interactions was published in,
            by their times, which count from 0; None where the format publishes none.
        unused: the columns of the interactions and of the items that nothing was read from.
        notes: what a person should know of how the files were read.
    """

    interactions: Table
    items: Table
    interactions_path: Path
    items_path: Path
    interaction_columns: dict[str, str]
    item_columns: dict[str, str]
    lost: dict[str, int] = field(default_factory=dict)
    items_lost: dict[str, int] = field(default_factory=dict)
    parts: dict[str, list[int]] | None = None
    unused: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How a person wants raw data to be read.

    Attributes:
        columns: {role: column} as `parse_columns` reads them; they overrule the format's own.
        keep: {field: column} as `parse_keep` reads them: columns of the items to keep as fields.
        is_decoded: text files were copied to UTF-8 first, whatever the format says.
        category_separator: what separates categories within their column; None: the format's own.
        order: "file" takes the order of the rows for their time, for data that has no times.
        bad_rows: rows that cannot be used are an error, or dropped and counted.
        reviews: read the texts of the reviews too, where the format has them.
        limit: read so many rows of interactions, the first; None reads all. Sequences are read
            whole.
        spill: an existing folder for what has to be unpacked or converted first.
        joins: the files join a data folder: no row is a quiet night, and a file of items that has
            columns to keep and none of text tells new values of known items.
    """

    columns: dict[str, str] = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    is_decoded: bool = False
    category_separator: str | None = None
    order: Literal["time", "file"] = "time"
    bad_rows: Literal["error", "drop"] = "error"
    reviews: bool = False
    limit: int | None = None
    spill: Path | None = None
    joins: bool = False

    def spill_folder(self, why: str) -> Path:
        """Return the folder for temporary files; ValueError where the caller gave none."""
        if self.spill is None:
            raise ValueError(f"Options.spill is needed: {why}")
        return self.spill


def parse_columns(text: str) -> dict[str, str]:
    """Read `"user=reviewer,item=asin"` into {role: column}.

    Raises:
        InputError: a part is no role=column, or a role is unknown or given twice.
    """
    known = sorted(ROLES)
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


def no_rows(con: BaseBackend) -> Table:
    """Return an empty table, for the interactions or items that nobody asked for."""
    return store(con, pa.table({"item": pa.array([], pa.string())}))


def parse_keep(texts: Sequence[str]) -> dict[str, str]:
    """Read `["price", "weight=gewicht"]` into {field: column}.

    Raises:
        InputError: a field has no name, the name of a role, or one that is given twice.
    """
    kept: dict[str, str] = {}
    taken = {name.casefold() for name in (*ROLES, *WORKING)}
    for text in texts:
        name, equals, column = (piece.strip() for piece in text.partition("="))
        if not name or (equals and not column):
            raise InputError(f"--keep: expected COLUMN or FIELD=COLUMN, found {text!r}")
        # The engines take names that differ in case only for the same.
        if name.casefold() in map(str.casefold, kept):
            raise InputError(f"--keep: field {name!r} is given twice; keep one")
        if name.casefold() in taken or name.startswith("lcrec_"):
            raise InputError(
                f"--keep: field {name!r} means something of its own here; read it with --columns, "
                f"or give it another name: OTHER={column or name}"
            )
        kept[name] = column or name
    return kept


def load_table(table: Table, path: Path, *, may_be_empty: bool = False) -> Table:
    """Read the file behind a table expression, whole and once; a stored table stays as it is.

    Raises:
        InputError: the file is malformed (line and reason are named) or has no rows, unless it
            may be empty.
    """
    try:
        loaded = table if isinstance(table.op(), ops.DatabaseTable) else materialise(table)
    except duckdb.Error as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    if not may_be_empty and not loaded.count().execute():
        raise InputError(f"{path}: there are no rows below the header")
    return loaded


def reason(error: duckdb.Error) -> str:
    """Return the part of DuckDB's message that speaks of the file, on one line."""
    lines = []
    for line in str(error).splitlines():
        if not line.strip() or line.startswith(("Possible", "LINE")):
            break
        lines.append(line.strip() if len(line) < 200 else line[:200] + "...")
    return "; ".join(lines)
