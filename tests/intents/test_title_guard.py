"""What gives a title away, and what does not."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lcrec.intents.requests import TitleGuard

TITLES = [
    "Brother TN330 Mono Laser Toner Cartridge", "Ukulele", "Gel Pens", "Copy Paper, 500 Sheets",
    "Card Stock, 500 Sheets", "", "不锈钢保温杯",
]  # fmt: skip
GUARD = TitleGuard(TITLES)


@pytest.mark.parametrize(
    ("item", "text", "leak"),
    [
        (0, "something that prints for years", ""),
        (0, "a laser printer's toner, mono will do", ""),
        (0, "I hope a TN330 fits", "tn330"),
        (0, "MONO   laser, toner: cartridge!", "mono laser toner cartridge"),
        (0, "mono laser and toner cartridge", ""),
        (0, "cartridge toner laser mono", ""),
        (1, "I want to play four strings", ""),
        (1, "I want a ukulele.", "ukulele"),
        (2, "a pen with gel", ""),  # another form of the word is another word
        (2, "pens that are filled with gel", "gel pens"),
        (3, "500 of anything", ""),  # another title has this number too
        (3, "sheets of paper to copy on", ""),
        (3, "sheets of paper to copy on, 500 of them", "copy paper 500 sheets"),
        (5, "whatever", ""),
        (6, "一个杯子", ""),
        (6, "一个不锈钢保的", "不 锈 钢 保"),
    ],
)
def test_a_leak_is_named_by_its_words(item, text, leak):
    assert GUARD.leak(item, text) == leak


WORDS = st.lists(
    st.sampled_from(["red", "blue", "pen", "mug", "7a", "8b", "cup"]), min_size=1, max_size=8
)


@settings(deadline=None)
@given(WORDS, WORDS, WORDS)
def test_a_title_within_any_text_is_a_leak_and_other_words_are_none(title, before, after):
    guard = TitleGuard([" ".join(title)])
    assert guard.leak(0, " ".join([*before, *title, *after]))
    assume(not set(before) & set(title))
    assert guard.leak(0, " ".join(before)) == ""
