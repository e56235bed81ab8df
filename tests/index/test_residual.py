"""Residual k-means: plain, weighted and balanced, on points whose centres are known."""

import numpy as np
import pytest
import torch

from lcrec.index.clustering import nearest_codes, residual_kmeans


def grid(seed=0, per_leaf=8):
    """Return float32 [128, 3]: 4 clusters far apart, each of 4 nearer ones, of 8 points each."""
    rng = np.random.default_rng(seed)
    coarse = np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]])
    fine = np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 0, 5]])
    centres = (coarse[:, None] + fine[None]).reshape(-1, 3)
    points = centres.repeat(per_leaf, axis=0)
    return (points + 0.01 * rng.normal(size=points.shape)).astype(np.float32)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_two_levels_find_the_clusters(balanced, weighted):
    points = grid()
    books, codes = residual_kmeans(points, 4, 0, balanced=[balanced] * 2, weighted=weighted)
    assert (books.shape, books.dtype) == ((2, 4, 3), np.float32)
    assert (codes.shape, codes.dtype) == ((128, 2), np.int64)
    left = points - books[0][codes[:, 0]] - books[1][codes[:, 1]]
    assert np.abs(left).max() < 0.1
    assert len(np.unique(codes, axis=0)) == 16
    assert [np.bincount(level).tolist() for level in codes.T] == [[32] * 4] * 2


def test_codes_are_the_nearest_where_nothing_balances():
    points = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    books, codes = residual_kmeans(points, 6, 0, balanced=[False] * 3)
    found = nearest_codes(torch.from_numpy(points), torch.from_numpy(books))
    np.testing.assert_array_equal(codes, found.numpy())


@pytest.mark.parametrize(("items", "codes"), [(60, 6), (61, 6), (5, 6)])
def test_balanced_codes_share_the_items(items, codes):
    # Most points lie in one spot, which k-means would give one code.
    rng = np.random.default_rng(0)
    points = (
        rng.normal(size=(items, 4)) * np.where(np.arange(items) < items // 10, 10, 0.01)[:, None]
    )
    _, chosen = residual_kmeans(points.astype(np.float32), codes, 0, balanced=[True, False])
    load = np.bincount(chosen[:, 0], minlength=codes)
    assert load.max() - load.min() <= 1


def test_weights_keep_codes_from_single_outliers():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1000, 6)) * rng.gamma(0.3, size=(1000, 1))  # few are far out
    points = points.astype(np.float32)
    perplexity = {}
    for weighted in (False, True):
        _, codes = residual_kmeans(points, 16, 0, balanced=[False] * 2, weighted=weighted)
        share = np.bincount(codes[:, 1]) / len(points)
        share = share[share > 0]
        perplexity[weighted] = np.exp(-(share * np.log(share)).sum())
    assert perplexity[True] > 1.5 * perplexity[False]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "points",
    [np.zeros((1, 3)), np.ones((9, 3)), np.eye(3), np.eye(3).repeat(5, axis=0), grid()[:7]],
    ids=["one item", "all alike", "few items", "few, repeated", "fewer than codes"],
)
@pytest.mark.filterwarnings("error")
def test_fewer_distinct_points_than_codes(points, balanced, weighted):
    points = points.astype(np.float32)
    books, codes = residual_kmeans(points, 8, 0, balanced=[balanced] * 2, weighted=weighted)
    assert np.isfinite(books).all()
    if not balanced:
        assert np.abs(points - books[0][codes[:, 0]]).max() < 1e-6
        assert len(np.unique(books[0], axis=0)) == 8
