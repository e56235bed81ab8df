"""The data card: figures that can be counted by hand, and the page that shows them."""

import ibis
import numpy as np
import pyarrow as pa
import pytest

from lcrec.core.errors import InputError
from lcrec.prepare.card import _log_ticks, card_page, make_card
from lcrec.prepare.engines import store
from lcrec.prepare.folder import Numbered
from lcrec.prepare.pipeline import Counts, Ledger
from lcrec.prepare.text import NO_ROW, Catalogue

START = 1_538_352_000  # 2018-10-01


@pytest.fixture
def ledger():
    con = ibis.duckdb.connect()
    rows = pa.table({"user": ["a", "a", "b", "b", "c"], "item": ["x", "y", "x", "y", "z"]})
    read = store(con, rows)
    made = Ledger(read, {"no user id": 2}, lambda line: None)
    made.step("core", read.filter(read.user != "c"), "--min-user-items")
    return made


def card_of(ledger, times):
    items = pa.table({"item": ["x", "y"], "title": ["Xylophone", "Yo"], "description": ["", "A"]})
    numbered = Numbered(
        pa.chunked_array([["a", "b"]]), pa.chunked_array([["x", "y"]]), np.array([0, 2, 4]),
        np.array([0, 1, 0, 1], dtype=np.int32), np.asarray(times), is_date=False,
    )  # fmt: skip
    catalogue = Catalogue(items, {NO_ROW: ["w"]}, {"title": ["v<b>"]}, [("title", "<b>Yo", "Yo")])
    return make_card("Toy", ledger, catalogue, numbered, np.array([0, 1, 0, 2]))


def test_figures(ledger):
    card = card_of(ledger, [START, START + 5, START + 1, START + 9])
    assert (card["users"], card["items"], card["interactions"], card["sparsity"]) == (2, 2, 4, 0)
    assert card["dropped"] == {"no user id": 2, "core": 1}
    assert card["input_interactions"] == 7
    assert card["steps"][0] == {"after": "reading", "users": 3, "items": 3, "interactions": 5}
    assert card["split"] == {"train": 2, "valid": 1, "test": 1}
    assert card["time"]["first"] == "2018-10-01T00:00:00+00:00"
    assert card["share_of_ties"] == 0
    assert card["share_of_items_left_out"] == 1 / 3
    assert card["share_of_items_without"] == {"title": 0, "description": 0.5}
    assert card["text_length"] == {"min": 3, "median": 6, "mean": 6, "p90": 8.4, "max": 9}
    for name, total in (("sequence_length", 2), ("item_popularity", 2), ("time", 4)):
        assert sum(card["histograms"][name]["counts"]) == total, name


@pytest.mark.parametrize(("times", "share"), [([5, 5, 5, 6], 0.5), ([5, 5, 6, 6], 1)])
def test_ties_are_neighbours_in_one_history(ledger, times, share):
    assert card_of(ledger, times)["share_of_ties"] == share


def test_the_page(ledger):
    page = card_page(card_of(ledger, [START, START + 5, START + 1, START + 9]))
    assert page.count("<svg") == 4
    assert "Data card: Toy" in page
    assert "all together: the input" in page
    assert "v&lt;b&gt;" in page
    assert "<b>Yo" not in page
    card = card_of(ledger, [0, 1, 2, 3])
    assert card["time"] == {"unit": "not known", "first": 0, "last": 3}
    ledger.dropped["core"] = 0
    with pytest.raises(AssertionError, match="6 of 7 interactions accounted for"):
        ledger.check()


def test_nothing_left_names_the_flag():
    con = ibis.duckdb.connect()
    read = store(con, pa.table({"user": ["a"], "item": ["x"]}))
    made = Ledger(read, {}, lambda line: None)
    with pytest.raises(InputError, match="--since: nothing is left; before, there were 1 inter"):
        made.step("time window", read.filter(read.user == "b"), "--since")
    assert made.counts == Counts(1, 1, 1)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 1500, [1, 10, 100, 1000]),
        (5, 130, [10, 30, 100]),
        (1, 9, [1, 2, 5]),
        (20, 95, [20, 30, 50, 70]),
        (206, 256, [206, 221, 238, 256]),
        (3, 4, [3, 4]),
    ],
)
def test_a_logarithmic_axis_has_ticks(low, high, ticks):
    assert _log_ticks(low, high).tolist() == ticks
