"""Collaborative paths: groups of buyers planted, so that it is plain who belongs together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lcrec.baselines.methods import generative as cid
from lcrec.baselines.methods.generative import collaborative_index, spectral_parts
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions

SEQUENCES = st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=8), min_size=1, max_size=12)


def planted(groups, size, users, seed=0):
    """Sequences of users who each buy within one group of consecutive items."""
    rng = np.random.default_rng(seed)
    return [
        (user % groups * size + rng.permutation(size)[: size // 2 + 1]).tolist()
        for user in range(users)
    ]


def index_of(sequences, num_items, clusters, leaf, seed=0):
    named = {str(user): list(sequence) for user, sequence in enumerate(sequences)}
    return collaborative_index(Interactions.from_sequences(named), num_items, clusters, leaf, seed)


def parts_of(labels):
    return {tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


@settings(max_examples=15)
@given(SEQUENCES, st.integers(2, 4), st.integers(1, 12))
def test_every_item_has_a_path_of_its_own_and_no_leaf_is_too_large(sequences, clusters, leaf):
    index = index_of(sequences, 30, clusters, leaf)  # two items share a path: ItemIndex refuses
    assert len(index) == 30
    _, sizes = np.unique(index.codes[:, :-1], axis=0, return_counts=True)
    assert sizes.max() <= leaf
    assert index.codes[:, -1].max() < leaf
    assert (index.codes[:, :-1] <= clusters + 1).all()
    assert index_of(sequences, 30, clusters, leaf).codes.tolist() == index.codes.tolist()
    # An item that is not divided further never is below that.
    undivided = index.codes[:, :-1] == clusters + 1
    assert (np.diff(undivided.astype(int), axis=1) >= 0).all()


def test_items_bought_together_share_their_first_codes_in_any_order():
    sequences = planted(groups=4, size=8, users=80)
    index = index_of(sequences, 32, clusters=4, leaf=8)
    assert index.num_levels == 2
    groups = index.codes[:, 0].reshape(4, 8)
    assert (groups == groups[:, :1]).all()
    assert len(np.unique(groups[:, 0])) == 4
    assert [sorted(index.codes[group * 8 : group * 8 + 8, 1]) for group in range(4)] == [
        list(range(8))
    ] * 4
    sequences = planted(3, 6, 30)
    index = index_of(sequences, 18, 3, 6)
    backwards = index_of([sequence[::-1] for sequence in sequences], 18, 3, 6)
    repeated = index_of([sequence * 2 for sequence in sequences], 18, 3, 6)
    assert index.codes.tolist() == backwards.codes.tolist() == repeated.codes.tolist()


def test_clusters_within_clusters():
    """Two halves, each of two quarters that seldom meet: the codes say half, then quarter."""
    quarters = planted(groups=4, size=6, users=200)
    bridges = [[0, 6], [1, 7], [2, 8], [12, 18], [13, 19], [14, 20]]
    index = index_of(quarters + bridges, 24, clusters=2, leaf=6)
    assert index.num_levels == 3
    first, second = index.codes[:, 0].reshape(4, 6), index.codes[:, 1].reshape(4, 6)
    assert first.tolist() == [[first[0, 0]] * 6] * 2 + [[1 - first[0, 0]] * 6] * 2
    assert all(len(set(row)) == 1 for row in second.tolist())
    assert second[0, 0] != second[1, 0]
    assert second[2, 0] != second[3, 0]


def test_items_never_bought_have_a_branch_of_their_own():
    index = index_of(planted(2, 5, 40), 14, clusters=2, leaf=5)  # 10 to 13 are never bought
    assert index.codes[10:].tolist() == [[2, number] for number in range(4)]
    assert set(index.codes[:10, 0]) == {0, 1}
    # Too many for a leaf: cut evenly, in the order of ids; what is no deeper is filled up.
    index = index_of(planted(2, 5, 40), 18, clusters=2, leaf=5)
    assert index.codes[10:].tolist() == [
        [2, part, number] for part in (0, 1) for number in range(4)
    ]
    assert set(index.codes[:10, 1]) == {3}
    assert index.level_sizes == (4, 4, 5)
    assert index_of([[0, 1]], 4, clusters=10, leaf=500).codes.tolist() == [[0], [1], [2], [3]]


def blocks(sizes, bridge=0.01):
    """A graph of full blocks, each linked weakly to the next."""
    graph = sparse.block_diag([np.ones((size, size)) - np.eye(size) for size in sizes]).tolil()
    ends = np.cumsum(sizes)[:-1]
    graph[ends - 1, ends] = graph[ends, ends - 1] = bridge
    return sparse.csr_array(graph)


@pytest.mark.parametrize("dense", [0, 500])
def test_both_ways_to_eigenvectors_find_the_blocks(dense, monkeypatch):
    monkeypatch.setattr(cid, "DENSE", dense)
    graph = blocks([12, 20, 9])
    expected = {tuple(range(12)), tuple(range(12, 32)), tuple(range(32, 41))}
    assert parts_of(spectral_parts(graph, 3, seed=0)) == expected
    halves = parts_of(spectral_parts(blocks([15, 15]), 2, seed=0, even=True))
    assert halves == {tuple(range(15)), tuple(range(15, 30))}
    thirds = spectral_parts(graph, 3, seed=0, even=True)
    assert sorted(map(len, parts_of(thirds))) == [13, 14, 14]


def test_division_goes_on_where_clustering_brings_nothing(monkeypatch):
    """A cluster that k-means leaves whole is cut evenly, and depth is bounded."""
    whole = spectral_parts

    def lazy(graph, clusters, seed, *, even=False):
        if even:
            return whole(graph, clusters, seed, even=True)
        return np.zeros(graph.shape[0], dtype=np.int64)

    monkeypatch.setattr(cid, "spectral_parts", lazy)
    index = index_of(planted(2, 16, 60), 32, clusters=2, leaf=4)
    assert index.num_levels == 4  # 32, 16, 8, 4 items, and the number
    monkeypatch.setattr(cid, "SPECTRAL_LEVELS", 1)

    def peel(graph, clusters, seed, *, even=False):
        if even:
            return whole(graph, clusters, seed, even=True)
        return np.r_[1, np.zeros(graph.shape[0] - 1, dtype=np.int64)]

    monkeypatch.setattr(cid, "spectral_parts", peel)
    assert index_of(planted(2, 16, 60), 32, clusters=2, leaf=4).num_levels == 5  # 32, 31, 16, 8, 4


def test_sequences_too_long_to_pair_are_refused(monkeypatch):
    monkeypatch.setattr(cid, "MOST_PAIRS", 9)
    with pytest.raises(InputError, match=r"hold 13 pairs of items, more than 9; use fewer"):
        index_of([[0, 1, 2], [3, 4]], 5, 2, 2)
