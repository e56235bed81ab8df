"""Checks, text cleaning, and what becomes of items without text."""

import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lcrec.prepare.text
from lcrec.core.errors import InputError
from lcrec.prepare.engines import store
from lcrec.prepare.text import (
    LONG_TITLE,
    MARKUP_ONLY,
    NO_ROW,
    NO_TEXT,
    SHORT_TEXT,
    SUSPECT,
    clean_text,
    make_catalogue,
)


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


def test_long_and_hostile_text():
    text = "word " * 5000
    assert clean_text(text) == text.strip()
    assert clean_text("<p>" + text + "</p>") == text.strip()
    hostile = '<a ="x" ="x"' * 2000 + "<!--" * 2000 + "<style>" * 2000 + "&amp;" * 2000
    assert len(clean_text(hostile)) > 10_000


@given(st.text(alphabet=st.characters(blacklist_characters="<&", blacklist_categories=["Cs"])))
def test_text_without_markup_loses_white_space_only(text):
    def dense(value):
        return [letter for letter in value if not letter.isspace() and letter >= " " != "\x7f"]

    assert dense(clean_text(text).replace("\x7f", "")) == dense(text.replace("\x7f", ""))


def is_suspect(texts):
    return pc.match_substring_regex(pa.array(texts, pa.string()), SUSPECT).to_pylist()


@given(st.text(st.sampled_from("a b.\"'&<>;\n\x00\x1f\x7f\x85\xa0\u2003\u2028\u3000\u200bé好")))
def test_what_is_not_suspect_is_plain_already(text):
    if not is_suspect([text])[0]:
        assert clean_text(text) == text


def test_every_character_that_cleaning_changes_is_suspect():
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    within = [f"a{character}b" for character in characters]
    changed = [clean_text(text) != text for text in within]
    assert sum(changed) > 40  # of Unicode's white space and the control characters
    wrong = [
        text for text, new, found in zip(within, changed, is_suspect(within), strict=True)
        if new and not found
    ]  # fmt: skip
    assert wrong == []
    # Most texts are left alone: that is what the pattern is for.
    assert not any(is_suspect(["A sofa, for three", "沙发", "...", '5" x 7"', ""]))


ROWS = [
    ("desk", "Desk &amp; drawer", "<p>Oak</p>"), ("lamp", "<br>", "<style>.x{}</style>"),
    ("rug", None, " "), ("sofa", "A sofa for three", None), ("cup", "Cup", ""),
    ("desk", "Desk &amp; drawer", "<p>Oak</p>"),
]  # fmt: skip


def catalogue(con, tmp_path, rows=ROWS, wanted=None, **settings):
    names = ("item", "title", "description")
    tmp_path.mkdir(exist_ok=True)
    table = pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)})
    ids = sorted(wanted or {row[0] for row in rows})
    settings = {"differing_items": "error", "min_text": 1, "max_title_words": None, **settings}
    found = store(con, pa.table({"item": ids}))
    return make_catalogue(store(con, table), found, tmp_path, tmp_path / "items.csv", **settings)


def test_texts_by_item(con, tmp_path):
    made = catalogue(con, tmp_path, wanted=["desk", "sofa", "tub"])
    assert made.items.to_pylist() == [
        {"item": "desk", "title": "Desk & drawer", "description": "Oak", "brand": "",
         "categories": ""},
        {"item": "sofa", "title": "A sofa for three", "description": "", "brand": "",
         "categories": ""},
    ]  # fmt: skip
    assert made.left_out == {NO_ROW: ["tub"]}
    assert made.emptied == {}
    assert made.samples == [
        ("title", "Desk &amp; drawer", "Desk & drawer"),
        ("description", "<p>Oak</p>", "Oak"),
    ]


def test_why_items_are_left_out(con, tmp_path):
    made = catalogue(con, tmp_path, max_title_words=3, min_text=4)
    assert made.items["item"].to_pylist() == ["desk"]
    assert made.left_out == {
        MARKUP_ONLY: ["lamp"], NO_TEXT: ["rug"], LONG_TITLE: ["sofa"], SHORT_TEXT: ["cup"],
    }  # fmt: skip
    assert made.emptied == {"title": ["lamp"], "description": ["lamp"]}


def test_rows_that_differ(con, tmp_path):
    rows = [*ROWS, ("cup", "Cup", "of tea"), ("cup", "Mug", "of milk")]
    with pytest.raises(InputError, match=r"items.csv: item 'cup' has several rows, .*differing"):
        catalogue(con, tmp_path / "error", rows)
    # Of equally long ones the first in the alphabet; here one is longer than the others.
    made = catalogue(con, tmp_path / "longest", rows, differing_items="longest")
    assert made.items.to_pylist()[0]["description"] == "of milk"


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_rows_of_an_item_may_lie_in_several_batches(con, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(lcrec.prepare.text, "BATCH", batch)
    rows = [("a", "A", "x"), ("b", "B", ""), ("b", "B", "yy"), ("b", "B", "y"), ("c", "", " ")]
    made = catalogue(con, tmp_path / "longest", rows=rows, differing_items="longest")
    kept = [(row["item"], row["description"]) for row in made.items.to_pylist()]
    assert kept == [("a", "x"), ("b", "yy")]
    assert made.left_out == {NO_TEXT: ["c"]}
    with pytest.raises(InputError, match="item 'b' has several rows, with a different description"):
        catalogue(con, tmp_path / "error", rows=rows)
