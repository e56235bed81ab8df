"""ROUGE-L by hand, in several scripts."""

import sys

import pytest

from lcrec.core.errors import InputError
from lcrec.evaluate.language import RougeL


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
    with pytest.raises(InputError, match=r"pip install 'lcrec\[rouge\]'"):
        RougeL()
