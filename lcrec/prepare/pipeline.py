"""Filters raw tables down to what stays, and accounts for every row that it removes.

The order is fixed: read, time window, ratings, duplicates and repeats, k-core, text, length, cold
items. Whatever removes rows after the k-core is followed by the k-core again, so that the result is
always a core. Text comes after the k-core because it is expensive: the largest core of the items
that have text is the same either way. The `Ledger` counts the rows that each filter removed, by
reason; they add up to the input.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _
from ibis.expr.types import Table

from lcrec.core.errors import InputError
from lcrec.prepare.engines import materialise, store
from lcrec.prepare.filters import (
    first_of_repeats,
    hold_out,
    in_time_window,
    k_core,
    latest,
    rated_at_least,
    without_duplicates,
)
from lcrec.prepare.tables import REVIEW_ROLES, RawTables, load_table
from lcrec.prepare.text import NO_ROW, Catalogue, make_catalogue


@dataclass(frozen=True)
class Counts:
    """How much data there is after a step."""

    users: int
    items: int
    interactions: int

    @classmethod
    def of(cls, interactions: Table) -> "Counts":
        """Count the distinct users and items, and the rows."""
        row = interactions.aggregate(
            users=_.user.nunique(), items=_.item.nunique(), interactions=_.count()
        )
        return cls(**row.to_pyarrow().to_pylist()[0])

    def line(self, step: str) -> str:
        """Return a line of the table that `HEADER` heads."""
        return (
            f"{step:<28}{self.users:>14,}{self.items:>14,}{self.interactions:>14,}"
            f"{1 - self.interactions / (self.users * self.items):>14.3%}"
            f"{self.interactions / self.users:>14.2f}"
        )


COLUMNS = ("users", "items", "interactions", "sparsity", "mean length")
HEADER = f"{'after':<28}" + "".join(f"{column:>14}" for column in COLUMNS)


class Ledger:
    """Counts after every step, and why rows went.

    Attributes:
        steps: the name of each step and the counts after it, from "reading" on.
        dropped: reason -> interactions, no zeros.
    """

    def __init__(self, read: Table, lost: dict[str, int], say: Callable[[str], None]) -> None:
        """Begin with the rows that were read; `lost` could not be, by reason."""
        self.dropped = dict(lost)
        self.say = say
        counts = Counts.of(read)
        self.total = counts.interactions + sum(lost.values())
        self.steps = [("reading", counts)]
        say(HEADER)
        say(counts.line("reading"))

    @property
    def counts(self) -> Counts:
        """What is left."""
        return self.steps[-1][1]

    def step(
        self,
        name: str,
        left: Table,
        flag: str,
        reasons: dict[str, int] | None = None,
        *,
        same_ids: bool = False,
    ) -> None:
        """Write down what a filter left.

        Args:
            name: of the filter; also the reason for what it took, unless `reasons` says more.
            left: the interactions after it.
            flag: what a person may change where nothing is left.
            reasons: reason -> interactions removed for it.
            same_ids: by its nature it leaves every user and every item something.

        Raises:
            InputError: nothing is left.
        """
        before = self.counts
        rows = left.count().execute()
        if not rows:
            raise InputError(
                f"{flag}: nothing is left; before, there were {before.interactions:,} "
                f"interactions of {before.users:,} users with {before.items:,} items"
            )
        # Counting distinct ids is expensive, and needless where none can have gone.
        if same_ids or rows == before.interactions:
            after = replace(before, interactions=rows)
        else:
            after = Counts.of(left)
        gone = before.interactions - after.interactions
        for reason, count in (reasons or {name: gone}).items():
            if count:
                self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.steps.append((name, after))
        self.say(after.line(name))
        self.check()

    def check(self) -> None:
        """Assert that what was dropped and what is left add up to the input."""
        accounted = sum(self.dropped.values()) + self.counts.interactions
        assert accounted == self.total, f"{accounted} of {self.total} interactions accounted for"


# Between the title and the text of a review, which travel as one column.
UNIT_SEPARATOR = "\x1f"
EXAMPLES = 3  # ids in a message


@dataclass(frozen=True)
class Refined:
    """What stays: interactions (user, item, time and perhaps review), the texts of their items.

    `cold` holds the ids of the items held out by the cold-item split, ascending.
    """

    interactions: Table
    catalogue: Catalogue
    cold: list[str]
    ledger: Ledger


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What stays of the raw tables: options of `lcrec prepare`, and what follows from them.

    Attributes:
        keep: fields of the items to keep besides their texts.
        keep_reviews: carry the reviews' texts along, where there are any.
        cold_share: the share of items to hold out; None holds out none.
        keep_unbought: list the items that nobody has as well.
    """

    min_user_items: int
    min_item_users: int
    min_rating: float | None
    since: str | None
    until: str | None
    repeats: Literal["drop", "keep", "all"]
    items_without_text: Literal["drop", "error"]
    differing_items: Literal["error", "longest"]
    min_text: int
    max_title_words: int | None
    keep: tuple[str, ...] = ()
    max_user_items: int | None
    keep_reviews: bool
    cold_share: float | None
    seed: int
    keep_unbought: bool = False


def refine(
    raw: RawTables, folder: Path, settings: FilterSettings, say: Callable[[str], None]
) -> Refined:
    """Filter raw interactions and items, and return what stays, with counts of every step.

    Args:
        folder: for rows on their way between the engine and Python.
        say: takes the lines that tell how much each step leaves.

    Raises:
        InputError: the files hold something wrong, or nothing is left after a step.
    """
    raw = replace(
        raw,
        interactions=load_table(raw.interactions, raw.interactions_path),
        items=load_table(raw.items, raw.items_path),
    )
    ledger = Ledger(raw.interactions, raw.lost, say)
    interactions = with_review(raw.interactions) if settings.keep_reviews else raw.interactions
    if settings.since is not None or settings.until is not None:
        interactions = in_time_window(interactions, settings.since, settings.until)
        ledger.step("time window", interactions, "--since and --until")
    if settings.min_rating is not None:
        interactions = rated_at_least(interactions, settings.min_rating, raw.interactions_path)
        least = f"{settings.min_rating:g}"
        ledger.step(f"ratings from {least}", interactions, f"--min-rating {least}")
    columns = ["user", "item", "time", *({"review"} & set(interactions.columns))]
    interactions = interactions.select(columns)
    if settings.repeats != "all":
        interactions = materialise(without_duplicates(interactions))
        ledger.step("duplicates", interactions, "--repeats", same_ids=True)
    if settings.repeats == "drop":
        interactions = materialise(first_of_repeats(interactions))
        ledger.step("first of repeats", interactions, "--repeats", same_ids=True)

    def core(table: Table, step: str) -> Table:
        """Take the k-core, and write down what it took."""
        kept = k_core(
            table,
            settings.min_user_items,
            settings.min_item_users,
            repeats=settings.repeats != "drop",
        )
        table = materialise(kept)
        ledger.step(step, table, "--min-user-items and --min-item-users")
        return table

    name = f"core {settings.min_user_items} items, {settings.min_item_users} users"
    interactions = core(interactions, name)
    found = interactions.select("item")
    if settings.keep_unbought:
        found = found.union(raw.items.select("item"))
    found = materialise(found.distinct())
    catalogue = make_catalogue(
        raw.items,
        found,
        folder,
        raw.items_path,
        differing_items=settings.differing_items,
        min_text=settings.min_text,
        max_title_words=settings.max_title_words,
        keep=settings.keep,
    )
    if catalogue.left_out:
        interactions = _leave_out(interactions, catalogue, raw, settings.items_without_text, ledger)
    if settings.max_user_items is not None:
        interactions = materialise(latest(interactions, settings.max_user_items))
        ledger.step(f"latest {settings.max_user_items} of a user", interactions, "--max-user-items")
    if ledger.steps[-1][0] != name:
        interactions = core(interactions, f"{name} again")
    cold: list[str] = []
    if settings.cold_share is not None:
        cold = _draw_cold_items(interactions, settings.cold_share, settings.seed)
        interactions = materialise(
            hold_out(interactions, cold, settings.min_user_items, settings.min_item_users)
        )
        ledger.step("core without cold items", interactions, "--cold-share")
    items = catalogue.items
    if not settings.keep_unbought:
        stay = interactions.select("item").distinct().to_pyarrow()["item"].combine_chunks()
        items = items.filter(pc.is_in(items["item"], value_set=stay))
    return Refined(interactions, replace(catalogue, items=items), cold, ledger)


def _draw_cold_items(interactions: Table, share: float, seed: int) -> list[str]:
    """Return the ids of a random share of the items, ascending.

    Raises:
        InputError: the share is less than one item, or all of them.
    """
    ids = interactions.select("item").distinct().order_by("item").to_pyarrow()["item"]
    drawn = np.random.default_rng(seed).permutation(len(ids))[: round(share * len(ids))]
    if not 0 < len(drawn) < len(ids):
        much, remedy = ("all", "less") if len(drawn) else ("none", "more")
        raise InputError(
            f"--cold-share {share:g}: of {len(ids):,} items that is {much}; give {remedy}"
        )
    return ids.take(pa.array(np.sort(drawn))).to_pylist()


def with_review(interactions: Table) -> Table:
    """Join a review's title and text into one column, if there are any."""
    there = [role for role in REVIEW_ROLES if role in interactions.columns]
    if not there:
        return interactions
    title, text = (
        interactions[role].fill_null("") if role in there else ibis.literal("")
        for role in REVIEW_ROLES
    )
    return interactions.mutate(review=title.replace(UNIT_SEPARATOR, " ") + UNIT_SEPARATOR + text)


def some_of(ids: Iterable[str]) -> str:
    """Return the first few ids, for a message."""
    first = list(itertools.islice(ids, EXAMPLES + 1))
    return ", ".join(map(repr, first[:EXAMPLES])) + (", ..." if first[EXAMPLES:] else "")


def _leave_out(
    interactions: Table,
    catalogue: Catalogue,
    raw: RawTables,
    policy: Literal["drop", "error"],
    ledger: Ledger,
) -> Table:
    """Drop the items that have no usable text, or refuse them."""
    left_out = {item: reason for reason, ids in catalogue.left_out.items() for item in ids}
    what = "; ".join(
        f"{reason}: {len(ids):,} ({some_of(ids)})" for reason, ids in catalogue.left_out.items()
    )
    if catalogue.left_out.keys() == {NO_ROW} and not len(catalogue.items):
        known = raw.items.order_by("item").limit(1).item.to_pyarrow().to_pylist()[0]
        raise InputError(
            f"{raw.items_path}: nothing is said there of any item in {raw.interactions_path}; "
            f"{what}; an id in the items file is {known!r}: if ids are written "
            "differently in the two files, check --columns item=... and id=..."
        )
    if policy == "error":
        raise InputError(
            f"{raw.items_path}: {what}; mend their texts, or leave these items out with "
            "--items-without-text drop"
        )
    ledger.say(f"  dropping items: {what}")
    table = pa.table({"item": list(left_out), "reason": list(left_out.values())})
    going = store(interactions.get_backend(), table)
    counts = interactions.join(going, "item").group_by("reason").agg(n=_.count()).to_pyarrow()
    reasons = {row["reason"]: row["n"] for row in counts.to_pylist()}
    left = materialise(interactions.anti_join(going, "item"))
    # Of an item that nobody has, as --split published keeps them, no interaction goes.
    order = {reason: reasons.get(reason, 0) for reason in catalogue.left_out}
    ledger.step("items with text", left, f"{raw.items_path}: {what}", order)
    return left
