"""Reads what joins a data folder later, as the folder's own files were read and cleaned.

New items come from a file in any format of `lcrec.prepare.published`, or in the form of
`<Name>.item.json`; new interactions from any of the formats. How rows are read, which ratings and
repeats count and what a text must hold are the settings that `lcrec prepare` made the folder with,
so that an order of today counts as one of last year did. Nothing is filtered by how much there is
of a user or an item. Writes nothing but tables in DuckDB and temporary files.
"""

import dataclasses
import datetime
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ibis
import pyarrow as pa
from ibis import _
from ibis.backends import BaseBackend
from ibis.expr.types import Scalar, Table

from lcrec.core.config import settings_of
from lcrec.core.errors import InputError, closest
from lcrec.data.continuation import preparation
from lcrec.data.folder import STANDARD_FIELDS, Items, item_texts, load_items, text_of
from lcrec.data.item_filters import ItemFilters
from lcrec.data.new_items import read_new_items
from lcrec.prepare.engines import materialise, open_engine, store
from lcrec.prepare.filters import (
    START,
    TIE_BREAK,
    first_of_repeats,
    rated_at_least,
    time_unit,
    without_duplicates,
)
from lcrec.prepare.inputs import Inputs
from lcrec.prepare.numbers import plain_numbers
from lcrec.prepare.pipeline import some_of, with_review
from lcrec.prepare.published import READERS
from lcrec.prepare.tables import (
    EXTRA_ROLES,
    TEXT_ROLES,
    Options,
    RawTables,
    load_table,
    parse_columns,
    parse_keep,
)
from lcrec.prepare.text import clean_text, make_catalogue

SEQUENCES = ("lcrec", "minionerec")  # formats that tell the order of a user's items and no time
MEMORY_GB = 4  # from which DuckDB puts data on disk
# A night may bring orders of so many items that are all new; beyond, another column was read.
QUIET = 10


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files that join a data folder are read and cleaned: options of `lcrec prepare`."""

    format: str | None = None
    encoding: str | None = None
    columns: str | None = None
    keep: Sequence[str] = ()
    category_separator: str | None = None
    order: Literal["time", "file"] = "time"
    bad_rows: Literal["error", "drop"] = "error"
    reviews: Literal["keep", "drop"] = "keep"
    min_rating: float | None = None
    repeats: Literal["drop", "keep", "all"] = "drop"
    items_without_text: Literal["drop", "error"] = "drop"
    differing_items: Literal["error", "longest"] = "error"
    min_text: int = 1
    max_title_words: int | None = None

    @classmethod
    def of(cls, data: Path, **given: Any) -> "Reading":
        """Return how a data folder's own files were read; what is given overrules."""
        own = preparation(data)
        if own and own.get("format") is None:
            own = {**own, "format": "amazon2023"}  # the one format that --source reads
        names = {field.name for field in dataclasses.fields(cls)}
        settings = {name: value for name, value in own.items() if name in names}
        return cls(**settings | given)

    @property
    def has_times(self) -> bool:
        """Whether interactions read so have times, by which they come after those of before."""
        return self.order == "time" and self.format not in SEQUENCES

    def require_format(self, data: Path) -> str:
        """Return the format.

        Raises:
            InputError: none was given, and the data folder was not prepared from any.
        """
        if self.format is None:
            raise InputError(
                f"--format is required: nothing says how files for {data} are written (see --help)"
            )
        if self.format not in READERS:
            raise InputError(
                f"--format {self.format}: none of {', '.join(sorted(READERS))}"
                f"{closest(self.format, READERS)}"
            )
        return self.format

    def open(
        self,
        con: BaseBackend,
        work: Path,
        data: Path,
        interactions: Sequence[Path] = (),
        items: Sequence[Path] = (),
    ) -> RawTables:
        """Read files that join the data folder `data`; `work` is for what has to be unpacked."""
        found = Inputs(self.require_format(data), tuple(interactions), tuple(items))
        found = found.plain(self.encoding, work)
        options = settings_of(
            Options,
            self,
            columns=parse_columns(self.columns or ""),
            keep=parse_keep(self.keep) if items else {},
            is_decoded=self.encoding is not None,
            reviews=self.reviews == "keep",
            spill=work,
            joins=True,
        )
        return READERS[found.format](con, found.interactions, found.items, options)


@dataclass(frozen=True)
class NewItems:
    """Items that join a catalogue.

    Attributes:
        entries: raw id -> fields, in the order of their numbers.
        known: how many items of the files the catalogue has already.
        left_out: reason -> raw ids of the items that have no usable text.
        changed: number of a known item -> its kept fields that have another value now.
        lacking: the kept fields that the files have no column of.
    """

    entries: dict[str, dict[str, Any]]
    known: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[int, dict[str, Any]] = field(default_factory=dict)
    lacking: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return what to tell of the items that do not join."""
        told = [f"  {self.known:,} items are known and stay as they are"] if self.known else []
        if self.changed:
            counts = Counter(name for fields in self.changed.values() for name in fields)
            values = ", ".join(f"{name} of {count:,}" for name, count in counts.items())
            told = [f"  {self.known:,} items are known: their texts stay, and new values: {values}"]
        if self.lacking:
            told.append(
                f"  no column of {', '.join(self.lacking)}: known items keep what they have there, "
                "and new ones have nothing"
            )
        for reason, ids in self.left_out.items():
            told.append(f"  {reason}: {len(ids):,} left out ({some_of(ids)})")
        return told


def read_items(
    paths: Sequence[Path], reading: Reading, data: Path, known: Sequence[str], *, format_given: bool
) -> NewItems:
    """Read the items of files that a catalogue does not have yet, and kept fields of the others.

    Args:
        data: the data folder they join, for messages.
        known: the raw ids of its items.
        format_given: whether a person named the format; else a file in the form of
            `<Name>.item.json` is known by its content.

    Raises:
        InputError: a file cannot be read, or its items cannot be used.
    """
    numbers = {name: number for number, name in enumerate(known)}
    if reading.format == "lcrec" or (
        not format_given and len(paths) == 1 and (reading.format is None or _is_item_json(paths[0]))
    ):
        return _read_item_json(paths[0], data, numbers)
    with open_engine("duckdb", memory_gb=MEMORY_GB) as (con, work):
        raw = reading.open(con, work, data, items=paths)
        items = load_table(raw.items, raw.items_path, may_be_empty=True)
        ids = items.select("item").distinct()
        names = store(con, pa.table({"item": pa.array(known, pa.string())}))
        joined = materialise(ids.anti_join(names, "item"))
        count = joined.count().execute()
        old = ids.count().execute() - count
        wanted = parse_keep(reading.keep)
        keep = tuple(name for name in wanted if name in items.columns)
        lacking = [name for name in wanted if name not in keep]
        if keep:
            items, joined = _without_known_texts(items, names, reading.min_text), ids
        elif not count:
            return NewItems({}, old, lacking=lacking)
        catalogue = make_catalogue(
            items,
            joined,
            work,
            raw.items_path,
            differing_items=reading.differing_items,
            min_text=reading.min_text,
            max_title_words=reading.max_title_words,
            keep=keep,
        )
    _require_numbers(catalogue.words, load_items(data), data, paths[0])
    if catalogue.left_out and reading.items_without_text == "error":
        reason, unfit = next(iter(catalogue.left_out.items()))
        raise InputError(f"{paths[0]}: {reason}: {some_of(unfit)}; mend their texts")
    rows = {row.pop("item"): row for row in catalogue.items.to_pylist()}
    values = {
        numbers[item]: {name: row[name] for name in keep}
        for item, row in rows.items()
        if item in numbers
    }
    new = {item: row for item, row in rows.items() if item not in numbers}
    lost = sorted({item for ids in catalogue.left_out.values() for item in ids} - {*known})
    if len(lost) > QUIET and not rows:
        raise InputError(
            f"{paths[0]}: none of its {len(lost):,} items is in the catalogue of {data}, such as "
            f"{lost[0]!r}, while {known[0]!r} is, and none can join it ("
            f"{'; '.join(catalogue.left_out)}); name the items' column with --columns item=..."
        )
    if all(item.isdecimal() for item in new):
        new = dict(sorted(new.items(), key=lambda entry: int(entry[0])))
    return NewItems(new, old, catalogue.left_out, _changes(values, load_items(data)), lacking)


def _without_known_texts(items: Table, known: Table, min_text: int) -> Table:
    """Put words that nothing is wrong with in place of known items' texts, which are not taken."""
    is_known = items.item.isin(known.item)
    words = {"description": "-" * max(min_text, 1)}
    texts = {role: items[role] for role in (*TEXT_ROLES, *EXTRA_ROLES) if role in items.columns}
    texts = {"description": ibis.null("string"), **texts}
    return items.mutate(
        {role: is_known.ifelse(words.get(role, ""), text) for role, text in texts.items()}
    )


def _changes(values: dict[int, dict[str, Any]], items: Items) -> dict[int, dict[str, Any]]:
    """Return, of known items' kept fields, the values that the catalogue does not have."""
    changed = {}
    for item, own in values.items():
        texts = item_texts(own, f"item {item}", needs_text=False)
        other = {name: own[name] for name in own if texts[name] != items.text(item, name)}
        if other:
            changed[item] = other
    return changed


def _require_numbers(words: dict[str, str], items: Items, data: Path, path: Path) -> None:
    """Refuse words in a field that holds numbers, since it could be filtered by no range any more.

    Args:
        words: field -> the first value of the new items that is no number.
        items: the catalogue they join.
        data: its data folder, for messages.
        path: their file.

    Raises:
        InputError: a field of the catalogue has numbers alone.
    """
    numbers = ItemFilters(items).numbers if words else {}
    for field_name, value in words.items():
        if field_name in numbers:
            raise InputError(
                f"{path}: {field_name} {value!r:.60} is no number, as those of all items in {data} "
                "are; mend it, or leave it empty"
            )


def _read_item_json(path: Path, data: Path, numbers: Mapping[str, int]) -> NewItems:
    found = {
        key: {name: _clean(value) for name, value in entry.items()}
        for key, entry in read_new_items(path, numbers).items()
    }
    items = load_items(data)
    _write_numbers_alike(found, items, data, path)
    entries = {key: entry for key, entry in found.items() if key not in numbers}
    for key, entry in entries.items():
        item_texts(entry, f"{path}: item {key}")
    values = {
        numbers[key]: {name: own for name, own in entry.items() if name not in STANDARD_FIELDS}
        for key, entry in found.items()
        if key in numbers
    }
    changed = _changes(values, items)
    return NewItems(entries, len(found) - len(entries), changed=changed)


def _write_numbers_alike(
    found: Mapping[str, dict[str, Any]], items: Items, data: Path, path: Path
) -> None:
    """Write, in place, what is text as the catalogue's fields of numbers have it.

    Raises:
        InputError: a value of such a field is no number.
    """
    for name in ItemFilters(items).numbers:
        texts = {
            key: item_texts(entry, "", needs_text=False)[name]
            for key, entry in found.items()
            if name in entry and not _is_number(entry[name])
        }
        plain, word = plain_numbers(list(texts.values()))
        if word:
            _require_numbers({name: word}, items, data, path)
        for key, text in zip(texts, plain, strict=True):
            found[key][name] = text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_item_json(path: Path) -> bool:
    """Tell whether a file is one JSON object of objects, as `<Name>.item.json` is."""
    if path.suffix != ".json":
        return False
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(part) for part in value]
    if isinstance(value, dict):
        value = text_of(value)
    return clean_text(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class NewRows:
    """Interactions that join a data folder.

    Attributes:
        rows: Arrow table of user, item (raw ids), perhaps review, and `tied`, whether late rows
            are dropped and this one happened in the second of the data folder's last interaction;
            user by user, each user's in the order of time.
        users: all users in it, by their first interaction, ties by raw id.
        named: all users that the files name, in no order.
        total: how many rows the files have.
        dropped: reason -> rows of the files that are not in it; no zeros.
        unknown: item -> rows, of the items that the catalogue does not have, most rows first.
        last_time: when the last happened, as `last_time` says it.
        notes: what a person should know of how the files were read.
    """

    rows: pa.Table
    users: list[str]
    named: list[str]
    total: int
    dropped: dict[str, int]
    unknown: dict[str, int]
    last_time: str | float | None
    notes: tuple[str, ...] = ()


def read_interactions(
    paths: Sequence[Path],
    reading: Reading,
    data: Path,
    items: Sequence[str],
    last: str | float | None,
    late: Literal["error", "drop"],
) -> NewRows:
    """Read new interactions with known items.

    Args:
        data: the data folder they join, for messages.
        items: the raw ids of its items, and of those that join with them.
        last: when its last interaction happened.
        late: refuse interactions older than `last`, or drop and count them.

    Raises:
        InputError: a file cannot be read, an interaction is too old, or ids are evidently not
            those of the data folder.
    """
    with open_engine("duckdb", memory_gb=MEMORY_GB) as (con, work):
        raw = reading.open(con, work, data, interactions=paths)
        return _refine(con, raw, reading, data, items, last, late)


def _refine(
    con: BaseBackend,
    raw: RawTables,
    reading: Reading,
    data: Path,
    items: Sequence[str],
    last: str | float | None,
    late: Literal["error", "drop"],
) -> NewRows:
    path = raw.interactions_path
    rows = load_table(raw.interactions, path, may_be_empty=True)
    counts = {"read": rows.count().execute()}
    total, dropped = counts["read"] + sum(raw.lost.values()), dict(raw.lost)
    named = rows.select("user").distinct().to_pyarrow()["user"].to_pylist()

    def left(table: Table, reason: str) -> Table:
        """Store a table, and write down how many rows it has fewer than before."""
        table = materialise(table)
        before, counts["read"] = counts["read"], table.count().execute()
        if gone := before - counts["read"]:
            dropped[reason] = gone
        return table

    newest, tied = last, ibis.literal(False)
    if reading.has_times and counts["read"]:
        newest, bound, end = _newest_and_bound(rows, data, path, last)
        if bound is not None:
            if late == "error":
                _require_later(rows, data, path, last, bound)
            else:
                tied = _.time == bound if end is None else _.time < end
            rows = left(rows.filter(_.time >= bound), f"older than {last}")
    if reading.reviews == "keep":
        rows = with_review(rows)
    if reading.min_rating is not None:
        rows = left(rated_at_least(rows, reading.min_rating, path), "rated lower")
    rows = rows.select("user", "item", "time", *({"review"} & set(rows.columns)))
    catalogue = store(con, pa.table({"item": list(items)}))
    strange = rows.anti_join(catalogue, "item").group_by("item").agg(n=_.count())
    strange = strange.order_by([_.n.desc(), "item"])
    unknown = {row["item"]: row["n"] for row in strange.to_pyarrow().to_pylist()}
    if len(unknown) > QUIET and sum(unknown.values()) == counts["read"]:
        raise InputError(
            f"{path}: none of its {len(unknown):,} items is in the catalogue of {data}, such as "
            f"{next(iter(unknown))!r}, while {items[0]!r} is; name the items' column with "
            "--columns item=..., or take new items along with --items FILE"
        )
    rows = left(rows.semi_join(catalogue, "item"), "of items not in the catalogue")
    if reading.repeats != "all":
        rows = left(without_duplicates(rows), "written twice")
    if reading.repeats == "drop":
        rows = left(first_of_repeats(rows), "again by the same user")
    began = rows.group_by("user").agg(began=_.time.min()).order_by(["began", "user"])
    keys = ["user", "time", "tie_break", "item", *({"review"} & set(rows.columns))]
    ordered = rows.mutate(tie_break=TIE_BREAK, tied=tied).order_by(keys).drop("time", "tie_break")
    users = began.to_pyarrow()["user"].to_pylist()
    table = ordered.to_pyarrow()
    return NewRows(table, users, named, total, dropped, unknown, newest, raw.notes)


def _newest_and_bound(
    rows: Table, data: Path, path: Path, last: str | float | None
) -> tuple[str | float, Scalar | None, Scalar | None]:
    """Return when the newest interaction happened, and `last` as the times of `rows` are written.

    Returns:
        when; `last`; and the end of its second, None where times have no unit.

    Raises:
        InputError: times are of another kind than `last`.
    """
    ends = rows.aggregate(first=_.time.min(), last=_.time.max()).to_pyarrow().to_pylist()[0]
    is_date = rows.time.type().is_timestamp()
    per_second = None if is_date else time_unit(float(ends["first"]), float(ends["last"]))
    if last is not None and (is_date or per_second is not None) != isinstance(last, str):
        raise InputError(
            f"{path}: its times ({ends['first']} to {ends['last']}) are not of the kind that those "
            f"of {data} are, the last of which is {last}; name the column with --columns time=..."
        )
    newest: str | float = ends["last"]
    if is_date:
        newest = ends["last"].astimezone(datetime.UTC).isoformat(timespec="seconds")
    elif per_second is not None:
        moment = START + datetime.timedelta(seconds=ends["last"] // per_second)
        newest = moment.isoformat(timespec="seconds")
    if last is None:
        return newest, None, None
    if not isinstance(last, str):
        return max(last, newest), ibis.literal(last), None
    bound: Any = datetime.datetime.fromisoformat(last)
    second: Any = datetime.timedelta(seconds=1)
    if per_second is not None:
        bound, second = int((bound - START).total_seconds()) * per_second, per_second
    return max(last, newest), ibis.literal(bound), ibis.literal(bound + second)


def _require_later(
    rows: Table, data: Path, path: Path, last: str | float | None, bound: Scalar
) -> None:
    """Refuse interactions older than the data folder's last."""
    late = rows.filter(_.time < bound)
    if count := late.count().execute():
        first = late.order_by(["time", "user", "item"]).limit(1).to_pyarrow().to_pylist()[0]
        raise InputError(
            f"{path}: {count:,} rows are older than the last interaction of {data} ({last}), such "
            f"as user {first['user']!r}, item {first['item']!r}, {first['time']}; leave them out "
            "with --late drop, or prepare all files anew"
        )
