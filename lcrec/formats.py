"""Raw data as people publish it: one reader for each format, two tables out.

Reads the published files of Amazon (2014, 2018, 2023), MovieLens, Steam, Yelp, Book-Crossing, H&M,
RecBole, LC-Rec and MiniOneRec, and any CSV, TSV, JSON lines or Parquet. Returns `RawTables`
(`lcrec.formats_tables`), Ibis tables on DuckDB or Spark. `lcrec.formats_inputs` finds the files,
`lcrec.formats_published` says how they are written, and `lcrec.formats_sift` takes away what cannot
be used, and counts it.

Public names: `READERS`, `read_recbole`, `read_table`, `read_published`.
"""

from collections.abc import Callable
from functools import partial

from ibis.backends import BaseBackend

from lcrec.formats_layouts import Layout, Paths, as_paths, read_layouts
from lcrec.formats_open import Delimited
from lcrec.formats_published import PUBLISHED, layout_of
from lcrec.formats_sequences import read_lcrec, read_minionerec
from lcrec.formats_tables import COLUMN_HELP as COLUMN_HELP
from lcrec.formats_tables import EXTRA_ROLES as EXTRA_ROLES
from lcrec.formats_tables import ITEM_ROLES as ITEM_ROLES
from lcrec.formats_tables import REVIEW_ROLES as REVIEW_ROLES
from lcrec.formats_tables import TEXT_ROLES as TEXT_ROLES
from lcrec.formats_tables import Options, RawTables
from lcrec.formats_tables import load_table as load_table
from lcrec.formats_tables import parse_columns as parse_columns

# Atomic files know no quoting, and their texts are full of quotes.
ATOMIC = Layout(how=Delimited("\t", "", ""), delimited=True, atomic=True)
PLAIN = Layout()


def read_recbole(
    con: BaseBackend, interactions: Paths, items: Paths, options: Options
) -> RawTables:
    """Read RecBole atomic files (`X.inter`, `X.item`); quotes in them are text, not quoting.

    Args:
        con: the connection the tables will live in.
        interactions: the `.inter` file.
        items: the `.item` file.
        options: what the person asked for.

    Raises:
        InputError: a file cannot be read, a header names no or an unknown type, or a needed
            column is missing.
    """
    return read_layouts(con, interactions, items, options, ATOMIC, ATOMIC)


def read_table(con: BaseBackend, interactions: Paths, items: Paths, options: Options) -> RawTables:
    """Read plain CSV, TSV, JSON lines or Parquet files, told apart by their suffix.

    Args:
        con: the connection the tables will live in.
        interactions: one row per interaction, in one file or several.
        items: one row per item.
        options: what the person asked for.

    Raises:
        InputError: a file cannot be read, or a needed column is missing.
    """
    return read_layouts(con, interactions, items, options, PLAIN, PLAIN)


def read_published(
    format: str, con: BaseBackend, interactions: Paths, items: Paths, options: Options
) -> RawTables:
    """Read the files of a published data set; see `lcrec.formats_published`.

    Raises:
        InputError: a file's name is none of the format's, it cannot be read, or its columns are
            not those it is published with.
    """
    files = PUBLISHED[format]
    return read_layouts(
        con,
        interactions,
        items,
        options,
        layout_of(as_paths(interactions)[0], files.interactions, format),
        layout_of(as_paths(items)[0], files.items, format),
    )


# Each takes (connection, interactions files, items files, options).
READERS: dict[str, Callable[[BaseBackend, Paths, Paths, Options], RawTables]] = {
    "recbole": read_recbole,
    "table": read_table,
    "lcrec": read_lcrec,
    "minionerec": read_minionerec,
    **{name: partial(read_published, name) for name in PUBLISHED},
}
