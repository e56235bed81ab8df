"""ROUGE-L by hand, in several scripts."""

import sys

import pytest

from lcrec.core.errors import InputError
from lcrec.evaluate.language import RougeL, words_of


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
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("red desk lamp", ["red desk lamp"], 1.0),
        ("Red desk LAMP.", ["red desk lamp"], 1.0),
        ("lamp", ["red desk lamp"], 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("red lamp desk", ["red desk lamp"], 2 / 3),  # two words in order, of three and three
        ("吉他", ["吉他弦"], 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("хлеб", ["хлеб и соль", "хлеб"], 1.0),  # the best reference counts
        ("", ["red"], 0.0),
        ("red", ["..."], 0.0),
        ("rug", ["red desk lamp"], 0.0),
    ],
)
def test_scores_by_hand(text, references, expected):
    assert RougeL().score(text, references) == pytest.approx(expected)


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match="pip install rouge-score"):
        RougeL()
