"""The catalogue's text made plain, and the items that cannot stay for want of it.

`make_catalogue` cleans the text of the items that are left, batch by batch outside the engine, so
that it is the same whatever engine holds the tables, and says which items have to go and why.
"""

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ibis.expr.types import Table

from lcrec.core.console import ProgressBar
from lcrec.core.errors import InputError
from lcrec.prepare.engines import write_sorted
from lcrec.prepare.numbers import plain_numbers
from lcrec.prepare.tables import EXTRA_ROLES, TEXT_ROLES

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
INLINE = frozenset(INLINE_NAMES.split())
KNOWN = INLINE | frozenset(BLOCK_NAMES.split())
SPACE = re.compile(r"[\s\x00-\x1f\x7f]+")
# For Arrow: where this is not found, `clean_text` changes nothing. Beside the plain space, \pZ has
# every other white space of Unicode that is no control character.
SUSPECT = r"[&<\x00-\x1f\x7f\x{85}]|[^\PZ ]|  |^ | $"
BATCH = 8192  # rows of items

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
        words: kept field -> a value that is no number, of those that are not numbers throughout.
    """

    items: pa.Table
    left_out: dict[str, list[str]] = field(default_factory=dict)
    emptied: dict[str, list[str]] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)


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
        closed = {name.lower() for name in CLOSING.findall(text)}

        def replace_tag(match: re.Match[str]) -> str:
            name, rest = (match[1] or "").lower(), match[2] or ""
            if name and name not in KNOWN and name not in closed:
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
    keep: Sequence[str] = (),
) -> Catalogue:
    """Clean the text of the wanted items, and write kept numbers alike.

    Args:
        items: the raw items, text or null.
        wanted: a table whose column item holds every item once.
        folder: made here, for rows on their way.
        differing_items: what to do where rows say different things of one item: refuse them, or
            take the one with the most text (of equally long ones the first in the alphabet).
        keep: other columns to keep; see `lcrec.prepare.numbers`.

    Raises:
        InputError: two rows say different things of one item, which is named.
    """
    roles = [role for role in (*TEXT_ROLES, *EXTRA_ROLES, *keep) if role in items.columns]
    texts = {role: items[role].fill_null("") for role in roles}
    distinct = items.semi_join(wanted, "item").select("item", **texts).distinct()
    write_sorted(distinct, ["item", *roles], folder / "items")
    write_sorted(wanted.select("item"), ["item"], folder / "wanted")
    ids = pq.read_table(folder / "wanted")["item"]
    made = Catalogue(pa.table({}))
    kept, described = [], []
    with ProgressBar(len(ids), "texts", "items", leave=False) as bar:
        for written in _one_per_item(folder / "items", roles, path, differing_items):
            bar.update(len(written))
            described.append(written["item"])
            plain = _clean(written, made)
            kept.append(_without_unfit(written, plain, min_text, max_title_words, made.left_out))
    seen = pa.chunked_array(described, pa.string())
    missing = ids.filter(pc.invert(pc.is_in(ids, value_set=seen.combine_chunks())))
    if len(missing):
        made.left_out[NO_ROW] = missing.to_pylist()
    fields = [*TEXT_ROLES, *(role for role in roles if role not in TEXT_ROLES)]
    schema = pa.schema([(name, pa.string()) for name in ("item", *fields)])
    emptied = {name: made.emptied[name] for name in roles if name in made.emptied}
    table = pa.Table.from_batches(kept, schema)
    for name in keep:
        numbers, made.words[name] = plain_numbers(table[name].to_pylist())
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(numbers, pa.string()))
    words = {name: value for name, value in made.words.items() if value}
    return replace(made, items=table, emptied=emptied, words=words)


def _clean(written: pa.RecordBatch, made: Catalogue) -> pa.RecordBatch:
    """Return item and every field made plain; note in `made` what changed and what is lost."""
    items, columns = written["item"], {"item": written["item"]}
    changed = []
    for place, name in enumerate(written.schema.names[1:]):
        texts = written[name]
        # Most texts are plain, and Arrow tells so much faster than Python.
        suspect = pc.match_substring_regex(texts, SUSPECT)
        rows = np.flatnonzero(suspect)
        before = texts.take(pa.array(rows)).to_pylist()
        after = list(map(clean_text, before))
        columns[name] = pc.replace_with_mask(texts, suspect, pa.array(after, pa.string()))
        for row, old, new in zip(rows.tolist(), before, after, strict=True):
            stripped = old.strip()
            if stripped and not new:
                made.emptied.setdefault(name, []).append(items[row].as_py())
            if stripped != new and len(made.samples) < SAMPLES:
                changed.append((row, place, name, old, new))
    changed.sort()
    made.samples.extend(tuple(sample) for _, _, *sample in changed[: SAMPLES - len(made.samples)])
    nothing = pa.repeat("", len(written))
    order = dict.fromkeys(["item", *TEXT_ROLES, *columns])
    return pa.record_batch({name: columns.get(name, nothing) for name in order})


def _without_unfit(
    written: pa.RecordBatch,
    plain: pa.RecordBatch,
    min_text: int,
    max_title_words: int | None,
    left_out: dict[str, list[str]],
) -> pa.RecordBatch:
    """Return the items that can stay; append the ids of the others to `left_out`."""
    sizes = pc.add(pc.utf8_length(plain["title"]), pc.utf8_length(plain["description"]))
    doubtful = pc.less(sizes, max(min_text, 1))
    if max_title_words is not None:
        # A title of so many words and one more has a letter in each and spaces between them.
        long = pc.greater(pc.utf8_length(plain["title"]), 2 * max_title_words)
        doubtful = pc.or_(doubtful, long)
    stays = np.ones(len(plain), dtype=bool)
    for row in np.flatnonzero(doubtful).tolist():
        old, new = written.slice(row, 1).to_pylist()[0], plain.slice(row, 1).to_pylist()[0]
        if reason := _unfit(old, new, min_text, max_title_words):
            left_out.setdefault(reason, []).append(new["item"])
            stays[row] = False
    return plain.filter(pa.array(stays))


def _one_per_item(
    folder: Path, roles: list[str], path: Path, differing: Literal["error", "longest"]
) -> Iterator[pa.RecordBatch]:
    """Yield batches of Parquet files that are sorted by item, one row of each."""
    last: pa.RecordBatch | None = None  # the last row, whose item may go on in the next batch
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH):
            whole = batch if last is None else pa.concat_batches([last, batch])
            items = whole["item"]
            if pc.any(pc.equal(items[1:], items[:-1])).as_py():
                groups = itertools.groupby(whole.to_pylist(), key=itemgetter("item"))
                rows = [_one_of(list(group), roles, path, differing) for _, group in groups]
                whole = pa.RecordBatch.from_pylist(rows, whole.schema)
            yield whole[:-1]
            last = whole[-1:]
    if last is not None:
        yield last


def _one_of(
    rows: list[dict[str, str]], roles: list[str], path: Path, differing: Literal["error", "longest"]
) -> dict[str, str]:
    """Return the row that speaks for an item."""
    if len(rows) == 1 or differing == "longest":
        return max(rows, key=lambda row: sum(len(row[role]) for role in roles))
    first, other = rows[:2]
    role = next(role for role in roles if first[role] != other[role])
    longest = ", or take the one with the most text: --differing-items longest"
    raise InputError(
        f"{path}: item {first['item']!r} has several rows, with a different {role} "
        f"({first[role][:60]!r} and {other[role][:60]!r}); keep one of them"
        + (longest if role in (*TEXT_ROLES, *EXTRA_ROLES) else "")  # of prices none is longer
    )


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
