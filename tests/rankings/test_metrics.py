"""Metrics: values worked out by hand, agreement with plain loops, laws of the bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.rankings import metrics

RANKED = np.array([[4, 7, 1], [7, 4, 1], [1, 7, 4], [1, 7, -1]])
TARGET = np.array([4, 4, 4, 4])  # ranks 1, 2, 3 and absent


def test_single_target_by_hand():
    assert metrics.hit_at_k(RANKED, TARGET, 1).tolist() == [1, 0, 0, 0]
    assert metrics.hit_at_k(RANKED, TARGET, 2).tolist() == [1, 1, 0, 0]
    assert metrics.hit_at_k(RANKED, TARGET, 99).tolist() == [1, 1, 1, 0]
    assert metrics.mrr(RANKED, TARGET).tolist() == [1, 1 / 2, 1 / 3, 0]
    expected = [1, 1 / math.log2(3), 1 / 2, 0]
    assert metrics.ndcg_at_k(RANKED, TARGET, 10) == pytest.approx(expected)
    assert metrics.ndcg_at_k(RANKED, TARGET, 2) == pytest.approx([1, 1 / math.log2(3), 0, 0])


@pytest.mark.parametrize(
    ("ranked", "targets", "k", "message"),
    [
        (RANKED, TARGET, 0, "k is 0"),
        (RANKED.astype(float), TARGET, 1, "must be integers"),
        (np.array([["4"]]), np.array([4]), 1, "must be integers"),
        (RANKED, TARGET[:2], 1, r"found \[4, 3\] and \[2, 1\]"),
        (RANKED, np.array([4, 4, -1, 4]), 1, "user 2 has no target"),
    ],
)
def test_what_does_not_fit_is_refused(ranked, targets, k, message):
    with pytest.raises(ValueError, match=message):
        metrics.ndcg_at_k(ranked, targets, k)


@st.composite
def judged_lists(draw):
    """One row per user: a list of distinct items padded with -1, and distinct targets likewise."""
    users, width, truths = (draw(st.integers(1, 4)) for _ in range(3))
    ranked = np.full((users, width), -1)
    targets = np.full((users, truths), -1)
    for user in range(users):
        for array, least in ((ranked, 0), (targets, 1)):
            size = array.shape[1]
            ids = st.lists(st.integers(0, 6), unique=True, min_size=least, max_size=size)
            row = draw(ids)
            array[user, : len(row)] = row
    return ranked, targets


def brute_force(ranked, targets, k):
    """Return hit, recall, NDCG and reciprocal rank of one user, written as one would say them."""
    items = [item for item in ranked if item >= 0]
    truth = [item for item in targets if item >= 0]
    ranks = [items.index(item) + 1 for item in truth if item in items]
    found = [rank for rank in ranks if rank <= k]
    gain = sum(1 / math.log2(rank + 1) for rank in found)
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(truth)) + 1))
    first = 1 / min(ranks) if ranks else 0
    return bool(found), len(found) / len(truth), gain / best, first


@given(judged_lists(), st.integers(1, 6))
def test_agrees_with_plain_loops(lists, k):
    ranked, targets = lists
    found = np.stack(
        [
            metrics.hit_at_k(ranked, targets, k), metrics.recall_at_k(ranked, targets, k),
            metrics.ndcg_at_k(ranked, targets, k), metrics.mrr(ranked, targets),
        ],
        axis=1,
    )  # fmt: skip
    expected = [brute_force(*row, k) for row in zip(ranked.tolist(), targets.tolist(), strict=True)]
    assert found == pytest.approx(np.array(expected, dtype=float))
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 5))
def test_interval_contains_the_mean(numbers, seed):
    values = np.array(numbers)
    low, high = metrics.bootstrap_interval(values, seed, level=0.999)
    assert low - 1e-9 <= values.mean() <= high + 1e-9
    narrow = metrics.bootstrap_interval(values, seed, level=0.5)
    assert low <= narrow[0] <= narrow[1] <= high


def test_interval_shrinks_with_users_and_matches_theory():
    rng = np.random.default_rng(0)
    widths = []
    for users in (100, 400, 6400):
        values = (rng.random(users) < 0.5).astype(float)
        low, high = metrics.bootstrap_interval(values, seed=1)
        widths.append(high - low)
        theory = 2 * 1.96 * math.sqrt(0.25 / users)
        assert high - low == pytest.approx(theory, rel=0.15)
    assert widths == sorted(widths, reverse=True)


def test_interval_is_the_same_for_the_same_seed_however_it_is_split(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = metrics.bootstrap_interval(values, seed=3)
    assert metrics.bootstrap_interval(values, seed=3) == whole
    assert metrics.bootstrap_interval(values, seed=4) != whole
    monkeypatch.setattr("lcrec.rankings.metrics.BLOCK", 500)
    assert metrics.bootstrap_interval(values, seed=3) == whole
    assert metrics.bootstrap_interval(np.ones(5), seed=0) == (1, 1)


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        (np.array([]), 0.95, r"found \[0\]"),
        (np.ones((2, 2)), 0.95, r"found \[2, 2\]"),
        (np.ones(2), 1.0, "level 1.0"),
    ],
)
def test_interval_refuses_what_has_no_mean(values, level, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(values, 0, level=level)


def test_metrics_by_name():
    ranked = np.array([[4, 1, 7, 2], [5, 6, 0, 3]])
    targets = np.array([[1, 2, 9], [3, -1, -1]])
    values = metrics.measure_lists(ranked, targets, 4, metrics.MULTI_TARGET_METRICS)
    assert list(values) == ["Recall@10", "Recall@20", "NDCG@10", "NDCG@20"]
    assert values["Recall@10"].tolist() == [2 / 3, 1]
    best = 1 + 1 / np.log2(3) + 1 / 2
    gains = [(1 / np.log2(3) + 1 / np.log2(5)) / best, 1 / np.log2(5)]
    assert values["NDCG@20"] == pytest.approx(gains)
    rng = np.random.default_rng(0)
    values = {"a": rng.random(50), "b": rng.integers(0, 2, 50).astype(float)}
    together = metrics.summarise_all(values, seed=5)
    assert together == {name: metrics.summarise(rows, seed=5) for name, rows in values.items()}
    assert (together["a"]["low"], together["a"]["high"]) == metrics.bootstrap_interval(
        values["a"], seed=5
    )


def test_paired_bootstrap_sees_what_intervals_apart_do_not():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    better = base + 0.01 + 0.001 * rng.random(200)  # far less than users differ, yet always so
    (found,) = metrics.paired_bootstrap([better], base, seed=0)
    assert 0.01 < found["low"] < found["difference"] < found["high"] < 0.011
    assert found["p"] == 2 / (metrics.SAMPLES + 1)
    (turned,) = metrics.paired_bootstrap([base], better, seed=0)
    assert turned["difference"] == -found["difference"]
    assert (turned["low"], turned["p"]) == (-found["high"], found["p"])
    noise = rng.random(200)
    same, other = metrics.paired_bootstrap([base, noise], base, seed=0)
    assert same == {"difference": 0, "low": 0, "high": 0, "p": 1}
    assert [other] == metrics.paired_bootstrap(
        [noise], base, seed=0
    )  # no test depends on the others
    assert other["low"] < 0 < other["high"]
    assert other["p"] > 0.05
    (finer,) = metrics.paired_bootstrap([better], base, seed=0, samples=4999)
    assert finer["p"] == 2 / 5000
    with pytest.raises(ValueError, match="shape"):
        metrics.paired_bootstrap([np.ones((2, 2))], np.ones((2, 2)), seed=0)


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert metrics.holm([0.6, 0.6]) == [1, 1]
    assert metrics.holm([]) == []
