"""Raw tables -> tables fit to learn from: checks, text cleaning, filters, k-core.

Reads what a reader of `lcrec.formats` opened; writes nothing. Each step is a function from Ibis
table to Ibis table: interactions have the columns user, item, time, row (and rating, where there
is one), items have item, row and the texts.

Public names: `load_raw`, `clean_text`, `rated_at_least`, `one_row_per_item`, `with_text`,
`first_of_repeats`, `k_core`, `first_row`.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
from ibis import _
from ibis.expr.types import Table

from lcrec.errors import InputError
from lcrec.formats import TEXT_ROLES, RawTables, load_table, materialise

# What a page does not show, and its tags; a quoted attribute may hold a ">".
HIDDEN = re.compile(r"<!--.*?-->|<(style|script)\b[^>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
ATTRIBUTES = r"""\s(?:=\s*"[^"<]*"|=\s*'[^'<]*'|[^<>])*+"""
TAG = re.compile(rf"</?([a-z][\w:-]*)(|/|{ATTRIBUTES})>|<!doctype[^<>]*>", re.IGNORECASE)
CLOSING = re.compile(r"</([a-z][\w:-]*)\s*>", re.IGNORECASE)
# Elements that may stand within a word; any other one separates what is around it.
INLINE_NAMES = (
    "a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd mark q s samp small span "
    "strike strong sub sup tt u var wbr"
)
BLOCK_NAMES = (
    "address article aside audio base blockquote body br button canvas caption center col colgroup "
    "dd details dialog div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 "
    "h3 h4 h5 h6 head header hr html iframe img input label legend li link main map menu meta nav "
    "noscript object ol optgroup option p param picture pre section select source style script "
    "summary svg table tbody td textarea tfoot th thead title tr ul video"
)
INLINE, BLOCK = frozenset(INLINE_NAMES.split()), frozenset(BLOCK_NAMES.split())
SPACE = re.compile(r"[\s\x00-\x1f\x7f]+")


def load_raw(raw: RawTables) -> RawTables:
    """Read both files once and check every row.

    Returns:
        The same, with `time` as a number or a UTC timestamp.

    Raises:
        InputError: a file is malformed or empty, an id is missing, a time is none.
    """
    interactions = load_table(raw.interactions, raw.interactions_path)
    items = load_table(raw.items, raw.items_path)
    for role in ("user", "item"):
        _require_ids(interactions, role, raw.interaction_columns[role], raw.interactions_path)
    _require_ids(items, "item", raw.item_columns["item"], raw.items_path)
    return replace(raw, interactions=_with_sortable_time(interactions, raw), items=items)


def clean_text(value: str | Sequence[str] | None) -> str:
    """Turn a piece of web page into plain text, losing none of it.

    HTML entities become characters. Tags go, with all that a page hides: comments, styles and
    scripts. White space collapses. Angle brackets that belong to no tag stay ("a < b", "<3"), and
    so do dots, quotes, every script and every length. Lists are joined by spaces; None is empty.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return " ".join(filter(None, map(clean_text, value)))
    text = value
    # Shops escape twice and thrice; each pass that changes the text makes it shorter.
    while "&" in text and (plain := html.unescape(text)) != text:
        text = plain
    if "<" in text:
        text = HIDDEN.sub(" ", text)
        # What is closed somewhere is markup, whatever its name.
        names = INLINE | BLOCK | {name.lower() for name in CLOSING.findall(text)}

        def replace_tag(match: re.Match[str]) -> str:
            name, rest = (match[1] or "").lower(), match[2] or ""
            if name and name not in names:
                return match[0]
            if len(name) == 1 and rest.strip(" /") and "=" not in rest:
                return match[0]  # "x <b and c> d" is no bold face
            return "" if name in INLINE else " "

        text = TAG.sub(replace_tag, text)
    return SPACE.sub(" ", text).strip()


@ibis.udf.scalar.python
def _cleaned(text: str) -> str:
    return clean_text(text)


def rated_at_least(interactions: Table, minimum: float, path: Path) -> Table:
    """Keep what was rated `minimum` or better.

    Raises:
        InputError: there are no ratings, one is no number, or none is as high; `path` is named.
    """
    if "rating" not in interactions.columns:
        raise InputError(
            f"--min-rating {minimum:g}: no rating column was found in {path}; name it with "
            "--columns rating=..."
        )
    rated = interactions.mutate(rating=_.rating.try_cast("float64"))
    bad = first_row(rated.filter(_.rating.isnull() | _.rating.isnan()))
    if bad:
        raise InputError(
            f"{path}, data row {bad['row'] + 1}: the rating is no number, which --min-rating needs"
        )
    highest = rated.rating.max().execute()
    if highest < minimum:
        raise InputError(f"--min-rating {minimum:g}: the highest rating in {path} is {highest:g}")
    return rated.filter(_.rating >= minimum)


def one_row_per_item(items: Table, path: Path) -> Table:
    """Keep one of identical rows.

    Raises:
        InputError: two rows say different things of one item, which is named.
    """
    roles = [role for role in TEXT_ROLES if role in items.columns]
    texts = {role: items[role].fill_null("") for role in roles}
    distinct = items.mutate(**texts).group_by("item", *roles).agg(row=_.row.min())
    again = first_row(distinct.group_by("item").agg(row=_.row.max(), n=_.count()).filter(_.n > 1))
    if again:
        versions = distinct.filter(_.item == again["item"]).order_by("row").limit(2)
        one, other = versions.to_pyarrow().to_pylist()
        role = next(role for role in roles if one[role] != other[role])
        raise InputError(
            f"{path}: item {again['item']!r} stands in data rows {one['row'] + 1} and "
            f"{other['row'] + 1} with a different {role} ({one[role][:60]!r} and "
            f"{other[role][:60]!r}); keep one of them"
        )
    return distinct


def with_text(items: Table) -> Table:
    """Clean every text, fill absent ones with empty text, keep items with title or description."""
    texts = {
        role: _cleaned(items[role].fill_null("")) if role in items.columns else ibis.literal("")
        for role in TEXT_ROLES
    }
    return items.mutate(**texts).filter((_.title != "") | (_.description != ""))


def first_of_repeats(interactions: Table) -> Table:
    """Keep a user's first interaction with each item."""
    nth = ibis.row_number().over(group_by=["user", "item"], order_by=["time", "row"])
    return interactions.mutate(nth=nth).filter(_.nth == 0).drop("nth")


def k_core(interactions: Table, min_user_items: int, min_item_users: int) -> Table:
    """Keep the largest part in which every user and every item has enough of the other.

    Users with fewer than `min_user_items` different items and items with fewer than
    `min_item_users` different users are taken away, again and again until none is left to take.

    Raises:
        InputError: nothing is left; the message says which of the two thresholds took the last.
    """
    pairs = materialise(interactions.select("user", "item").distinct())
    thresholds = {"user": ("item", min_user_items), "item": ("user", min_item_users)}
    # Only the sets of ids that still stand are stored per round, not the shrinking interactions.
    kept: dict[str, Table] = {}
    sizes: tuple[int, ...] = ()
    rounds = 0
    while True:
        rounds += 1
        for key, (other, minimum) in thresholds.items():
            remaining = pairs.semi_join(kept[other], other) if other in kept else pairs
            counts = materialise(remaining.group_by(key).agg(n=_.count()))
            most = counts.n.max().execute()
            if most < minimum:
                raise InputError(
                    f"--min-{key}-{other}s {minimum}: nothing is left in round {rounds}, where "
                    f"the {key} with the most {other}s has {most}; lower it or the other "
                    "threshold, or take more data"
                )
            kept[key] = counts.filter(_.n >= minimum)
        before, sizes = sizes, tuple(ids.count().execute() for ids in kept.values())
        if sizes == before:
            return interactions.semi_join(kept["user"], "user").semi_join(kept["item"], "item")


def first_row(table: Table) -> dict[str, Any]:
    """Return the row that comes first in its file, or {} where the table is empty."""
    rows = table.order_by("row").limit(1).to_pyarrow().to_pylist()
    return rows[0] if rows else {}


def _require_ids(table: Table, role: str, column: str, path: Path) -> None:
    # A tab or a line break would break the files that map raw ids to numbers.
    first = first_row(table.filter(_[role].isnull() | _[role].re_search(r"^$|[\t\r\n]")))
    if first:
        seen = f"holds a tab or a line break: {first[role]!r}" if first[role] else "is empty"
        raise InputError(
            f"{path}, data row {first['row'] + 1}: the {role} id (column {column!r}) {seen}; "
            "mend or delete the row"
        )


def _with_sortable_time(interactions: Table, raw: RawTables) -> Table:
    """Turn times written as text into numbers or, where every one is a date, timestamps."""
    written, kind = _.time, interactions.time.type()
    if not kind.is_string():
        bad = written.isnull()
        if kind.is_floating():
            bad = bad | written.isnan() | written.isinf()
        time = interactions.time
    else:
        number = written.try_cast("float64")
        moment = written.try_cast(dt.Timestamp(timezone="UTC"))
        # "nan" and "infinity" can be read as numbers and timestamps, but are no times.
        wordy = ~written.re_search("[0-9]")
        no_number = (number.isnull() | wordy | number.isinf()).fill_null(True)
        no_moment = (moment.isnull() | wordy).fill_null(True)
        odd = interactions.aggregate(number=no_number.sum(), moment=no_moment.sum())
        counts = odd.to_pyarrow().to_pylist()[0]
        numeric = counts["number"] <= counts["moment"]
        bad, time = (no_number, number) if numeric else (no_moment, moment)
    first = first_row(interactions.filter(bad))
    if first:
        seen = "empty" if first["time"] is None else repr(first["time"])
        raise InputError(
            f"{raw.interactions_path}, data row {first['row'] + 1}: the time (column "
            f"{raw.interaction_columns['time']!r}) is {seen}; every row needs a number, "
            "such as seconds since 1970, or every row a date such as 2024-05-31T18:30:00Z"
        )
    return materialise(interactions.mutate(time=time))
