"""Checks, text cleaning, filters and the k-core."""

from collections import Counter

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.cleaning import clean_text, first_of_repeats, k_core, load_raw
from lcrec.errors import InputError
from lcrec.formats import read_table


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        (None, ""),
        ("...", "..."),
        ("  a\n\t b\xa0c \x00", "a b c"),
        ("Tom &amp; Jerry&#39;s &quot;best&quot;", 'Tom & Jerry\'s "best"'),
        ("AT&amp;amp;T", "AT&T"),
        ("a < b and c > d", "a < b and c > d"),
        ("x <b and c> d", "x <b and c> d"),
        ("1<2, i <3 you, a<-b, <>", "1<2, i <3 you, a<-b, <>"),
        ("a &lt; b", "a < b"),
        ("<BTS> Map of the Soul", "<BTS> Map of the Soul"),
        ("mail <me@home.org> or <http://home.org/x>", "mail <me@home.org> or <http://home.org/x>"),
        ("water<b>proof</b>", "waterproof"),
        ("one<br/>two<p class='x'>three</p>", "one two three"),
        ('<a href="x">link</a><img alt="a > b" src=y>!', "link !"),
        ("<td nowrap>cell</td>", "cell"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        ("<x-card kind=1>inside</x-card>", "inside"),
        ("<o:p>office</o:p>", "office"),
        ("a<!-- hidden <b> -->b", "a b"),
        ("a<style type='text/css'>.x { color: red }</style >b", "a b"),
        ("a<SCRIPT>if (1 < 2) { f() }</script>b", "a b"),
        ("half a tag <a href=", "half a tag <a href="),
        ("open <!-- comment", "open <!-- comment"),
        ("<!DOCTYPE html><html><body>page</body></html>", "page"),
        ("日本語 – Русский 👩‍👩‍👧 \u200fשלום\u200f", "日本語 – Русский 👩‍👩‍👧 \u200fשלום\u200f"),
        (["One", "", "<i>two</i>", "three "], "One two three"),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


def test_a_long_description_stays():
    text = "word " * 5000
    assert clean_text(text) == text.strip()
    assert clean_text("<p>" + text + "</p>") == text.strip()


def test_clean_text_is_quick_on_hostile_input():
    hostile = '<a ="x" ="x"' * 2000 + "<!--" * 2000 + "<style>" * 2000 + "&amp;" * 2000
    assert len(clean_text(hostile)) > 10_000


@given(st.text(alphabet=st.characters(blacklist_characters="<&", blacklist_categories=["Cs"])))
def test_text_without_markup_loses_white_space_only(text):
    def dense(value):
        return [letter for letter in value if not letter.isspace() and letter >= " " != "\x7f"]

    assert dense(clean_text(text).replace("\x7f", "")) == dense(text.replace("\x7f", ""))


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


@pytest.fixture(scope="module")
def con():
    return ibis.duckdb.connect()


def as_table(con, rows):
    """Rows of (user, item, time) as an interactions table, kept apart by a name of its own."""
    names = ("user", "item", "time")
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    columns["row"] = list(range(len(rows)))
    return con.create_table(ibis.util.gen_name("toy"), ibis.memtable(pa.table(columns)))


def pairs_of(table):
    return [(row["user"], row["item"]) for row in table.to_pyarrow().to_pylist()]


@settings(max_examples=15, deadline=None)
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
    assert sorted(pairs_of(k_core(once, users, items))) == sorted(pairs_of(once))
    assert sorted(pairs_of(k_core(as_table(con, shuffled), users, items))) == sorted(pairs_of(once))


def test_k_core_counts_different_items_and_needs_several_rounds(con):
    # u3 has one item (twice); without u3, i3 has one user; without i3, u2 has one item.
    pairs = ["u0 i0", "u0 i1", "u1 i0", "u1 i1", "u2 i0", "u2 i3", "u3 i3", "u3 i3"]
    rows = [(*pair.split(), 0) for pair in pairs]
    assert {user for user, _ in pairs_of(k_core(as_table(con, rows), 2, 2))} == {"u0", "u1"}


def test_first_of_repeats_keeps_the_earliest(con):
    rows = [("u", "a", 5), ("u", "b", 2), ("u", "a", 1), ("u", "b", 2), ("v", "a", 9)]
    kept = first_of_repeats(as_table(con, rows)).order_by("row").row.to_pyarrow().to_pylist()
    assert kept == [1, 2, 4]


@pytest.mark.parametrize(
    ("times", "order"),
    [
        (["9", "1e1", "11.5"], "abc"),
        (["2024-05-31", "2024-05-30 23:59", "2024-06-01T00:00:00.5Z"], "bac"),
        (["2024-05-31T10:00:00+02:00", "2024-05-31T09:00:00Z", "2024-05-31T08:59:00Z"], "acb"),
    ],
)
def test_times_are_numbers_or_dates(con, tmp_path, times, order):
    rows = [("u", item, time) for item, time in zip("abc", times, strict=True)]
    lines = "".join(",".join(row) + "\n" for row in [("user", "item", "time"), *rows])
    (tmp_path / "log.csv").write_text(lines)
    (tmp_path / "items.csv").write_text("item,title\na,A\n")
    raw = read_table(con, tmp_path / "log.csv", tmp_path / "items.csv", {})
    table = load_raw(raw).interactions
    assert "".join(table.order_by("time").item.to_pyarrow().to_pylist()) == order
