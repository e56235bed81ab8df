"""Negatives on a catalogue of five items, whose neighbours are plain to see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.data.folder import Interactions
from lcrec.evaluate.pairs import at_random, bought_alike, similar_in_text

# Items 0 and 1 point one way, 2 and 3 another; 4 is opposite to 0.
VECTORS = np.array([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [0.1, 2.0], [-3.0, 0.0]])


def ids(*lists):
    return [np.array(items) for items in lists]


def test_the_nearest_text_that_the_user_had_not():
    targets = np.array([0, 2, 4])
    found = similar_in_text(VECTORS, targets, ids([0], [2], [4]))
    assert found.tolist() == [1, 3, 2]
    # Of equal texts the lower id.
    assert similar_in_text(np.ones((4, 2)), np.array([2]), ids([2])).tolist() == [0]
    targets = np.array([0, 0, 0])
    found = similar_in_text(VECTORS, targets, ids([0, 1], [0, 1, 3], [0, 1, 2, 3, 4]))
    assert found.tolist() == [3, 2, -1]


TRAIN = Interactions.from_sequences({"ann": [0, 1, 2], "bob": [0, 1], "cid": [2, 3, 3], "eve": [4]})


def test_shared_customers_decide_and_then_rarity():
    # Two bought 0 and 1, one 0 and 2; cid had 2 and 3, twice, which counts once; eve had 4 alone.
    targets = np.array([0, 1, 3, 4, 5])  # nobody bought the last
    found = bought_alike(TRAIN, 6, targets, ids([0], [1], [3], [4], [5]))
    assert found.tolist() == [1, 0, 2, -1, -1]
    assert bought_alike(TRAIN, 6, np.array([0, 0]), ids([0, 1], [0, 1, 2])).tolist() == [2, -1]
    # 2 shares ann with 0 and 1, and cid with 3, who has no other customer.
    assert bought_alike(TRAIN, 6, np.array([2]), ids([2])).tolist() == [3]


def test_random_negatives_are_fair_and_fixed_by_the_seed():
    seen = ids(*[[0, 2]] * 3000)
    found = at_random(5, seen, seed=1)
    assert set(found.tolist()) == {1, 3, 4}
    assert np.bincount(found)[[1, 3, 4]] == pytest.approx([1000] * 3, abs=120)
    assert (found == at_random(5, seen, seed=1)).all()
    assert (found != at_random(5, seen, seed=2)).any()
    assert at_random(2, ids([0, 1]), seed=0).tolist() == [-1]


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(0, 5),
)
def test_no_negative_was_ever_seen(sequences, seed):
    train = Interactions.from_sequences({str(u): items for u, items in enumerate(sequences)})
    seen = ids(*sequences)
    targets = np.array([items[-1] for items in sequences])
    vectors = np.random.default_rng(seed).normal(size=(8, 3))
    kinds = (
        similar_in_text(vectors, targets, seen),
        bought_alike(train, 8, targets, seen),
        at_random(8, seen, seed),
    )
    for found in kinds:
        for item, own in zip(found.tolist(), seen, strict=True):
            assert item not in own
