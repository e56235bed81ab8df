"""Rewards by item id, on groups whose worth is obvious by hand."""

import sys

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.reinforce.rewards import Catalogue, Rewards, load_function, parse_rewards

CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
VECTORS = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]], dtype=np.float32)
CATALOGUE = Catalogue(CODES, np.array([0, 2, 6, 14]), VECTORS)
ITEMS, TARGETS = np.array([[3, 1, 0], [2, 3, 1]]), np.array([1, 0])
SHARE = 1 / (1 + 1 / np.log2(3) + 1 / 2)  # of rank 1 among three


def double(items, targets, histories):
    assert [list(history) for history in histories] == [[0], [1, 2]]
    return 2.0 * (items == targets[:, None])


def broken(items, targets, histories):
    return np.where(items == 2, np.nan, 0.0)


def short(items, targets, histories):
    return [0.0, 1.0]


def words(items, targets, histories):
    return "no number"


def ends(items, targets, histories):
    sys.exit(0)


def lost(items, targets, histories):
    return {}[items.size]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hit"], [[0, 1, 0], [0, 0, 0]]),
        (["rank"], [[-SHARE, 0, 0], [0, 0, 0]]),  # the miss below the hit is not penalised
        (["codes"], [[0, 1, 0.5], [0, 0, 0.5]]),  # 1.1 shares its last code with 0.1 alone
        (["similarity"], [[0.8, 1, 0], [-1, 0.6, 0]]),
        (["novelty"], [[0, 0.5, 0], [0, 0, 0]]),  # bought twice: log2(2 + 2)
        (["hit=2", "codes=-1"], [[0, 1, -0.5], [0, 0, -0.5]]),
        ([f"{__name__}:double"], [[0, 2, 0], [0, 0, 0]]),
    ],
)
def test_rewards(words, expected):
    rewards = Rewards(parse_rewards(words), CATALOGUE)
    found, means = rewards(ITEMS, TARGETS, [np.array([0]), np.array([1, 2])])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert list(means) == list(parse_rewards(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hits"], "--rewards hits: 'hits' is none of hit, .*did you mean 'hit'"),
        (["hit=none"], "--rewards hit=none: the weight must be a number other than 0"),
        (["hit=0"], "--rewards hit=0: the weight"),
        (["hit", "hit=2"], "hit is given twice"),
        (["no_such_module:f"], "no_such_module cannot be imported"),
        ([f"{__name__}:nothing"], "has no function nothing"),
        ([f"{__name__}:broken"], "broken: the reward of item 2 where 0 was right is nan"),
        ([f"{__name__}:short"], r"short: expected rewards of shape \[2, 3\] .*, got \[2\]"),
        ([f"{__name__}:words"], "words: it fails"),
        ([f"{__name__}:lost"], r"lost: it fails \(KeyError: 6\)"),
        ([f"{__name__}:ends"], r"ends: it fails \(SystemExit: 0\)"),
        (["hit=1e300"], "--rewards hit: a reward of 1e.300; beyond 1e.12"),
        ([], "--rewards: is empty; name at least one of hit, rank"),
    ],
)
def test_rewards_that_cannot_be_used(words, message):
    with pytest.raises(InputError, match=message):
        Rewards(parse_rewards(words), CATALOGUE)(ITEMS, TARGETS, [])


def test_a_module_that_ends_the_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends_at_once.py").write_text("import sys\nsys.path.clear()\nsys.exit(0)\n")
    path = list(sys.path)
    with pytest.raises(InputError, match=r"ends_at_once cannot be imported .SystemExit: 0"):
        load_function("ends_at_once:reward")
    assert sys.path == path
