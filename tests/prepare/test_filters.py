"""Which interactions are kept: by time, by rating, of repeats, in the k-core; cold items."""

import datetime
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.prepare.engines import store
from lcrec.prepare.filters import (
    first_of_repeats,
    hold_out,
    in_time_window,
    k_core,
    latest,
    rated_at_least,
    read_moment,
    time_unit,
    without_duplicates,
)


def plain_core(pairs, min_user_items, min_item_users):
    """The k-core as one would do it by hand, on distinct pairs."""
    pairs = set(pairs)
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = {
            (u, i) for u, i in pairs if users[u] >= min_user_items and items[i] >= min_item_users
        }
        if kept == pairs:
            return pairs
        pairs = kept


def as_table(con, rows, *more):
    """Rows of (user, item, time) and perhaps more as an interactions table."""
    names = ("user", "item", "time", *more)
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    return store(con, pa.table(columns))


def pairs_of(table):
    return [(row["user"], row["item"]) for row in table.to_pyarrow().to_pylist()]


@settings(max_examples=6)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_k_core_is_a_fixed_point_whatever_the_row_order(con, pairs, users, items, shuffler):
    rows = [(f"u{u}", f"i{i}", 0) for u, i in pairs]
    expected = plain_core([row[:2] for row in rows], users, items)
    shuffled = rows.copy()
    shuffler.shuffle(shuffled)
    if not expected:
        with pytest.raises(InputError, match="nothing is left in round"):
            k_core(as_table(con, rows), users, items)
        return
    once = k_core(as_table(con, rows), users, items)
    assert sorted(pairs_of(once)) == sorted(row[:2] for row in rows if row[:2] in expected)
    assert sorted(pairs_of(k_core(as_table(con, shuffled), users, items))) == sorted(pairs_of(once))
    unique = as_table(con, sorted(set(rows)))
    core = pairs_of(k_core(unique, users, items, repeats=False))
    assert sorted(core) == sorted(expected)
    assert unique.count().execute() == len(set(rows))  # it is not ours to release


def test_k_core_counts_different_items_in_several_rounds_also_without_cold_ones(con):
    # u3 has one item (twice); without u3, i3 has one user; without i3, u2 has one item.
    pairs = ["u0 i0", "u0 i1", "u1 i0", "u1 i1", "u2 i0", "u2 i3", "u3 i3", "u3 i3"]
    rows = [(*pair.split(), 0) for pair in pairs]
    assert {user for user, _ in pairs_of(k_core(as_table(con, rows), 2, 2))} == {"u0", "u1"}
    # Without the rug, eve has one other item and goes, and with her the only user of the cup.
    rows = [(user, item, 0) for user in ("ann", "bob") for item in ("desk", "lamp", "rug")]
    rows += [("eve", "rug", 0), ("eve", "cup", 0)]
    left = pairs_of(hold_out(as_table(con, rows), ["rug"], 2, 1))
    assert sorted(left) == sorted(row[:2] for row in rows if row[0] != "eve")


def rows_of(table, *columns):
    return sorted(tuple(row.values()) for row in table.select(*columns).to_pyarrow().to_pylist())


REPEATS = [("u", "a", 5), ("u", "b", 2), ("u", "a", 1), ("u", "b", 2), ("v", "a", 9)]


def test_repeats_and_duplicates_whatever_the_order_of_rows(con):
    once = without_duplicates(as_table(con, REPEATS))
    assert rows_of(once, "user", "item", "time") == sorted(set(REPEATS))
    kept = rows_of(first_of_repeats(once), "user", "item", "time")
    assert kept == [("u", "a", 1), ("u", "b", 2), ("v", "a", 9)]
    rows = [(*row, f"review {place}") for place, row in enumerate(REPEATS)]
    for order in (rows, rows[::-1]):
        once = without_duplicates(as_table(con, order, "review"))
        kept = rows_of(first_of_repeats(once), "user", "item", "review")
        assert kept == [("u", "a", "review 2"), ("u", "b", "review 1"), ("v", "a", "review 4")]


def test_the_latest_items_of_a_user_and_the_best_rated(con):
    # "b" and "c" happened at one time: of "u", the hash puts "b" after "c".
    rows = [("u", "a", 1), ("u", "c", 2), ("u", "b", 2), ("v", "a", 9)]
    assert rows_of(latest(as_table(con, rows), 1), "user", "item") == [("u", "b"), ("v", "a")]
    assert rows_of(latest(as_table(con, rows), 2), "item") == [("a",), ("b",), ("c",)]
    rows = [("u", "a", 1, "4.5"), ("u", "b", 2, "3"), ("v", "a", 3, "5")]
    kept = rated_at_least(as_table(con, rows, "rating"), 4.5, Path("log.csv"))
    assert pairs_of(kept) == [("u", "a"), ("v", "a")]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (["5", "good"], r"log.csv: 1 ratings are no number, .*user 'u', item 'i1': 'good'"),
        (["5", None], r"log.csv: 1 ratings are no number, .*item 'i1': empty"),
        (["nan", "5"], r"log.csv: 1 ratings are no number, .*item 'i0': 'nan'"),
    ],
)
def test_ratings_that_cannot_be_used(con, ratings, message):
    rows = [("u", f"i{place}", place, rating) for place, rating in enumerate(ratings)]
    with pytest.raises(InputError, match=message):
        rated_at_least(as_table(con, rows, "rating"), 4, Path("log.csv"))


DAY = 86_400
START = 1_538_352_000  # 2018-10-01


@pytest.mark.parametrize("per_second", [1, 1_000, 1_000_000, 1_000_000_000])
@pytest.mark.parametrize("number", [int, float])
def test_a_window_of_dates_on_numbers(con, per_second, number):
    rows = [("u", f"i{day}", number((START + day * DAY) * per_second)) for day in range(4)]
    kept = in_time_window(as_table(con, rows), "2018-10-02", "2018-10-04T00:00:00+00:00")
    assert rows_of(kept, "item") == [("i1",), ("i2",)]


def test_a_bound_is_exact_to_the_nanosecond(con):
    bound = (START + DAY) * 10**9
    rows = [("u", f"i{more}", bound + more) for more in (-1, 0)]
    kept = in_time_window(as_table(con, rows), "2018-10-02", None)
    assert rows_of(kept, "item") == [("i0",)]


def test_a_window_on_timestamps_and_on_numbers(con):
    start = datetime.datetime.fromtimestamp(START, datetime.UTC)
    rows = [("u", f"i{day}", start + datetime.timedelta(days=day)) for day in range(4)]
    for until in ("2018-10-02", "2010-01-01"):
        with pytest.raises(InputError, match=f"--since 2018-10-02 is not before --until {until}"):
            in_time_window(as_table(con, rows), "2018-10-02", until)
    kept = in_time_window(as_table(con, rows), "2018-10-02", None)
    assert rows_of(kept, "item") == [("i1",), ("i2",), ("i3",)]
    with pytest.raises(InputError, match="--until 5: the data's times are dates; give a date"):
        in_time_window(as_table(con, rows), None, "5")
    rows = [("u", f"i{time}", time) for time in range(4)]
    with pytest.raises(InputError, match="--since 3 is not before --until 1"):
        in_time_window(as_table(con, rows), "3", "1")
    assert rows_of(in_time_window(as_table(con, rows), "1", "3"), "item") == [("i1",), ("i2",)]
    with pytest.raises(InputError, match=r"--since 2018-10-01: .* from 0 to 3, .* give a number"):
        in_time_window(as_table(con, rows), "2018-10-01", None)


def test_units_and_moments():
    assert time_unit(START, START + DAY) == 1
    assert time_unit(START * 1e3, START * 1e3 + DAY) == 1_000
    assert time_unit(0, START) is None
    assert time_unit(START, START * 1e3) is None
    assert read_moment("2018-10-01T02:00:00+02:00", "--since").timestamp() == START
    assert read_moment("1e9", "--since") == 1e9
    with pytest.raises(InputError, match="--since 'October': expected a date such as"):
        read_moment("October", "--since")


@settings(max_examples=5)
@given(st.integers(0, 99))
def test_no_filter_looks_at_the_order_of_rows(con, seed):
    shuffler = random.Random(seed)
    rows = [(f"u{shuffler.randrange(4)}", f"i{shuffler.randrange(5)}", shuffler.randrange(3))
            for _ in range(30)]  # fmt: skip
    results = []
    for _ in range(2):
        table = first_of_repeats(without_duplicates(as_table(con, rows)))
        results.append(rows_of(latest(table, 3), "user", "item", "time"))
        shuffler.shuffle(rows)
    assert results[0] == results[1]
