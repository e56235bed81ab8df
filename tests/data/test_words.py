"""The words of texts by hand, in several scripts."""

import pytest

from lcrec.data.words import words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('A red-ish  LAMP, 19"!', ["a", "red", "ish", "lamp", "19"]),
        ("Größe ＡＢＣ", ["grösse", "abc"]),
        ("吉他弦 6根", ["吉", "他", "弦", "6", "根"]),
        ("ギター guitar", ["ギ", "タ", "ー", "guitar"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("기타 줄", ["기타", "줄"]),
        ("قيثارة، גיטרה", ["قيثارة", "גיטרה"]),
        ("🎸 top🎸", ["🎸", "top", "🎸"]),
        ("... -- !", []),
        ("<a_1><b_2>", ["<", "a", "1", ">", "<", "b", "2", ">"]),
    ],
)
def test_words_by_hand(text, words):
    assert words_of(text, symbols=True) == words


def test_symbols_are_no_words_unless_asked_for():
    assert words_of("🎸 top🎸 5 + 6") == ["top", "5", "6"]
