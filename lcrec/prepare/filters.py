"""Which interactions are kept: time window, ratings, repeats, k-core, length, cold items.

Each filter is a function from Ibis table to Ibis table and runs on any engine; interactions have
the columns user, item, time and perhaps rating and review. Nothing here depends on the order of
rows: where times of a user are equal, `TIE_BREAK` decides, and of interactions that are alike in
user, item and time the review that comes first in the alphabet stays.
"""

import datetime
import itertools
from pathlib import Path

import ibis
import pyarrow as pa
from ibis import _
from ibis.expr.types import BooleanColumn, Table

from lcrec.core.errors import InputError
from lcrec.prepare.engines import materialise, release, store

START = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Numbers since 1970, from 1979 to 2286, and how many make a second. Dates in digits alone
# (20240531183000) lie between.
UNITS = {
    "seconds": (3e8, 1e10, 1),
    "milliseconds": (3e11, 1e13, 1_000),
    "microseconds": (3e14, 1e16, 1_000_000),
    "nanoseconds": (3e17, 1e19, 1_000_000_000),
}
# Pairs are stored anew when a round of the k-core leaves fewer of them than this.
SHRUNK = 0.7
# What orders a user's interactions of one time: the first 12 hexadecimal digits of the MD5 of
# user id, tab and item id, in UTF-8. It is the same everywhere, and a model learns nothing from it;
# the items' own order, one for all users, would stand in the histories like a habit of theirs.
TIE_BREAK = (_.user + "\t" + _.item).hexdigest("md5").left(12)


def time_unit(earliest: float, latest: float) -> int | None:
    """Return how many of the unit these times are in make a second; None: they are no dates.

    Times from 1979-07 on are told apart by their size: seconds, milli-, micro- and nanoseconds
    since 1970 lie a factor of a thousand apart.
    """
    for low, high, per_second in UNITS.values():
        if low <= earliest and latest < high:
            return per_second
    return None


def read_moment(text: str, flag: str) -> float | datetime.datetime:
    """Read a bound in time: a number, or a date with or without a time of day (UTC if not said).

    Raises:
        InputError: it is neither; `flag` is named.
    """
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{flag} {text!r}: expected a date such as 2018-10-01 or 2018-10-01T12:00:00, or a "
            "number in the unit of the data's times"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def in_time_window(interactions: Table, since: str | None, until: str | None) -> Table:
    """Keep what happened at `since` or later, and before `until`.

    Raises:
        InputError: a bound cannot be read, the data's times have no unit that it fits, or nothing
            can lie between the two.
    """
    is_date = interactions.time.type().is_timestamp()
    everything = interactions
    given = (("--since", since), ("--until", until))
    moments = {flag: read_moment(text, flag) for flag, text in given if text is not None}
    if len(moments) == 2 and len(set(map(type, moments.values()))) == 1:
        first, last = moments.values()
        if first >= last:  # type: ignore[operator]
            raise InputError(
                f"--since {since} is not before --until {until}: nothing would be left"
            )
    for flag, text in given:
        if text is None:
            continue
        moment = moments[flag]
        if is_date and isinstance(moment, float):
            raise InputError(f"{flag} {text}: the data's times are dates; give a date")
        if not is_date and isinstance(moment, datetime.datetime):
            ends = everything.aggregate(first=_.time.min(), last=_.time.max())
            row = ends.to_pyarrow().to_pylist()[0]
            per_second = time_unit(float(row["first"]), float(row["last"]))
            if per_second is None:
                raise InputError(
                    f"{flag} {text}: the data's times are numbers from {row['first']:g} to "
                    f"{row['last']:g}, which are no seconds or parts of one since 1970; "
                    "give a number"
                )
            micros = (moment - START) // datetime.timedelta(microseconds=1)
            whole, rest = divmod(micros * per_second, 1_000_000)  # exact: nanoseconds are no float
            moment = whole + rest / 1_000_000 if rest else whole
        bound = ibis.literal(moment)
        inside = interactions.time >= bound if flag == "--since" else interactions.time < bound
        interactions = interactions.filter(inside)
    return interactions


def rated_at_least(interactions: Table, minimum: float, path: Path) -> Table:
    """Keep what was rated `minimum` or better.

    Raises:
        InputError: there are no ratings, or one is no number; `path` is named.
    """
    if "rating" not in interactions.columns:
        raise InputError(
            f"--min-rating {minimum:g}: no rating column was found in {path}; name it with "
            "--columns rating=..."
        )
    rated = interactions.mutate(stars=_.rating.try_cast("float64"))
    bad = no_number(rated)
    if count := rated.filter(bad).count().execute():
        first = rated.filter(bad).order_by(["user", "item", "time"]).limit(1)
        row = first.to_pyarrow().to_pylist()[0]
        written = "empty" if row["rating"] is None else repr(row["rating"])
        raise InputError(
            f"{path}: {count:,} ratings are no number, which --min-rating needs (such as "
            f"user {row['user']!r}, item {row['item']!r}: {written}); mend or delete these rows, "
            "or leave --min-rating out"
        )
    return rated.filter(_.stars >= minimum).drop("stars")


def no_number(rated: Table) -> BooleanColumn:
    """Return which rows have no readable rating in `stars`."""
    return rated.stars.isnull() | rated.stars.isnan()


def without_duplicates(interactions: Table) -> Table:
    """Keep one of the interactions that are alike in user, item and time."""
    keys = ["user", "item", "time"]
    if "review" in interactions.columns:
        return interactions.group_by(keys).agg(review=_.review.min())
    return interactions.select(keys).distinct()


def first_of_repeats(interactions: Table) -> Table:
    """Keep a user's first interaction with each item; there are no duplicates any more."""
    keys = interactions.group_by("user", "item")
    if "review" in interactions.columns:
        return keys.agg(time=_.time.min(), review=_.review.argmin(_.time))
    return keys.agg(time=_.time.min())


def k_core(
    interactions: Table, min_user_items: int, min_item_users: int, *, repeats: bool = True
) -> Table:
    """Keep the largest part in which every user and every item has enough of the other.

    Users with fewer than `min_user_items` different items and items with fewer than
    `min_item_users` different users are removed, again and again until none is left to remove.
    What is left does not depend on the order of taking.

    Args:
        interactions: a stored table.
        repeats: whether a user may be there with an item more than once.

    Raises:
        InputError: nothing is left; the message says which of the two thresholds took the last.
    """
    pairs, made = interactions.select("user", "item"), None
    if repeats:
        pairs = made = materialise(pairs.distinct())
    stored = pairs.count().execute()
    thresholds = {"user": ("item", min_user_items), "item": ("user", min_item_users)}
    # Only the sets of ids that still stand are stored per round, not the shrinking interactions.
    kept: dict[str, Table] = {}
    sizes: dict[str, int] = {}
    for turn in itertools.count():
        key = ("user", "item")[turn % 2]
        other, minimum = thresholds[key]
        remaining = pairs.semi_join(kept[other], other) if other in kept else pairs
        counts = remaining.group_by(key).agg(n=_.count())
        standing = materialise(counts.filter(_.n >= minimum))
        seen = standing.aggregate(ids=_.count(), pairs=_.n.sum()).to_pyarrow().to_pylist()[0]
        if not seen["ids"]:
            most = counts.n.max().execute()
            raise InputError(
                f"--min-{key}-{other}s {minimum}: nothing is left in round {turn // 2 + 1}, where "
                f"the {key} with the most {other}s has {most}; lower it or the other threshold, or "
                "take more data"
            )
        if key in kept:
            release(kept[key])
        kept[key] = standing
        # The ids that stand only ever grow fewer: as many as before are the same, and so is what
        # the others were found from.
        if sizes.get(key) == seen["ids"]:
            break
        sizes[key] = seen["ids"]
        if key == "item" and seen["pairs"] < SHRUNK * stored:
            fewer = pairs.semi_join(kept["user"], "user").semi_join(kept["item"], "item")
            before, stored = made, seen["pairs"]
            pairs = made = materialise(fewer)
            if before is not None:
                release(before)
    if made is not None:
        release(made)
    return interactions.semi_join(kept["user"], "user").semi_join(kept["item"], "item")


def latest(interactions: Table, most: int) -> Table:
    """Keep the latest `most` interactions of every user."""
    from_the_end = ibis.row_number().over(
        group_by="user", order_by=[_.time.desc(), TIE_BREAK.desc(), _.item.desc()]
    )
    return interactions.mutate(back=from_the_end).filter(_.back < most).drop("back")


def hold_out(
    interactions: Table, cold: list[str], min_user_items: int, min_item_users: int
) -> Table:
    """Keep the k-core of all but the cold items, and its users' interactions with these.

    Args:
        interactions: a k-core.
        cold: the ids of the items to hold out.
        min_user_items: fewest different other items per user.
        min_item_users: fewest different users per other item.

    Raises:
        InputError: without the cold items nothing is left.
    """
    cold_items = store(interactions.get_backend(), pa.table({"item": cold}))
    rest = materialise(
        k_core(
            materialise(interactions.anti_join(cold_items, "item")), min_user_items, min_item_users
        )
    )
    of_cold = interactions.semi_join(cold_items, "item")
    return rest.union(of_cold.semi_join(rest, "user"))
