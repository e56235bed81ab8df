"""The catalogue's text made plain, and the items that cannot stay for want of it.

`make_catalogue` cleans the text of the items that are left, in plain Python over batches of rows,
so that it is the same whatever engine holds the tables, and says which items have to go and why.

Public names: `clean_text`, `Catalogue`, `make_catalogue`, `NO_ROW`, `NO_TEXT`, `MARKUP_ONLY`,
`LONG_TITLE`, `SHORT_TEXT`.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table
from tqdm import tqdm

from lcrec.engines import write_sorted
from lcrec.errors import InputError
from lcrec.formats_tables import EXTRA_ROLES, TEXT_ROLES

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


# Why items are left out, and with them their interactions.
NO_ROW = "item has no row in the items file"
NO_TEXT = "item has neither title nor description"
MARKUP_ONLY = "item's text is nothing but markup"
LONG_TITLE = "item's title is longer than --max-title-words"
SHORT_TEXT = "item's text is shorter than --min-text"
SAMPLES = 3  # texts shown before and after cleaning


@dataclass(frozen=True)
class Catalogue:
    """The items that have text, and what became of the others.

    Attributes:
        items: Arrow table with item, in ascending order, and a column of text per field.
        left_out: reason -> ids of the items that have to go, in ascending order.
        emptied: field -> ids of the items whose text there was markup alone.
        samples: field, text before and text after cleaning, of the first that changed.
    """

    items: pa.Table
    left_out: dict[str, list[str]] = field(default_factory=dict)
    emptied: dict[str, list[str]] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)


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


def make_catalogue(
    items: Table,
    wanted: Table,
    folder: Path,
    path: Path,
    *,
    differing_items: Literal["error", "longest"],
    min_text: int,
    max_title_words: int | None,
) -> Catalogue:
    """Clean the text of the wanted items.

    Args:
        items: the raw items, text or null.
        wanted: a table whose column item holds every item once.
        folder: made here, for rows on their way.
        path: what messages call the items file.
        differing_items: what to do where rows say different things of one item: refuse them, or
            take the one with the most text (of equally long ones the first in the alphabet).
        min_text: fewest characters of title and description together.
        max_title_words: most words of a title; None allows any.

    Raises:
        InputError: two rows say different things of one item, which is named.
    """
    roles = [role for role in (*TEXT_ROLES, *EXTRA_ROLES) if role in items.columns]
    texts = {role: items[role].fill_null("") for role in roles}
    distinct = items.semi_join(wanted, "item").select("item", **texts).distinct()
    write_sorted(distinct, ["item", *roles], folder / "items")
    write_sorted(wanted.select("item"), ["item"], folder / "wanted")
    fields = [*TEXT_ROLES, *(role for role in roles if role in EXTRA_ROLES)]
    columns: dict[str, list[str]] = {name: [] for name in ("item", *fields)}
    made = Catalogue(pa.table({}))
    seen = []
    bar = tqdm(desc="texts", unit="item", total=wanted.count().execute(), leave=False)
    for row in _one_per_item(folder / "items", roles, path, differing_items):
        bar.update()
        item = row["item"]
        seen.append(item)
        plain = {name: clean_text(row.get(name)) for name in fields}
        for name in roles:
            if row[name].strip() and not plain[name]:
                made.emptied.setdefault(name, []).append(item)
            if row[name].strip() != plain[name] and len(made.samples) < SAMPLES:
                made.samples.append((name, row[name], plain[name]))
        if reason := _unfit(row, plain, min_text, max_title_words):
            made.left_out.setdefault(reason, []).append(item)
            continue
        for name, value in (("item", item), *plain.items()):
            columns[name].append(value)
    bar.close()
    ids = pq.read_table(folder / "wanted")["item"].to_pylist()
    if missing := sorted(set(ids).difference(seen)):
        made.left_out[NO_ROW] = missing
    kept = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    return replace(made, items=pa.table(kept))


def _one_per_item(
    folder: Path, roles: list[str], path: Path, differing: Literal["error", "longest"]
) -> Any:
    """Yield one row per item of Parquet files that are sorted by item."""
    held: dict[str, str] | None = None
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=8192):
            for row in batch.to_pylist():
                if held is not None and row["item"] != held["item"]:
                    yield held
                    held = None
                if held is None:
                    held = row
                elif differing == "longest":
                    held = max(held, row, key=lambda one: sum(len(one[role]) for role in roles))
                else:
                    role = next(role for role in roles if held[role] != row[role])
                    raise InputError(
                        f"{path}: item {row['item']!r} has several rows, with a different {role} "
                        f"({held[role][:60]!r} and {row[role][:60]!r}); keep one of them, or take "
                        "the one with the most text: --differing-items longest"
                    )
    if held is not None:
        yield held


def _unfit(
    row: dict[str, str], plain: dict[str, str], min_text: int, max_title_words: int | None
) -> str | None:
    """Return why an item cannot stay, if so."""
    if not plain["title"] and not plain["description"]:
        written = any(row.get(name, "").strip() for name in ("title", "description"))
        return MARKUP_ONLY if written else NO_TEXT
    if max_title_words is not None and len(plain["title"].split()) > max_title_words:
        return LONG_TITLE
    if len(plain["title"]) + len(plain["description"]) < min_text:
        return SHORT_TEXT
    return None
