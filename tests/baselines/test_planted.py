"""Planted data: its laws, and what it is drawn from shows in what was drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import MIN_LENGTH, make_planted


@settings(max_examples=25)
@given(
    st.integers(1, 20),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 9),
)
def test_the_laws(users, shared, private_text, private_behaviour, cold, seed):
    if not shared + private_text or not shared + private_behaviour:
        return
    sizes = {"users": users, "items": 60, "shared": shared, "private_text": private_text}
    planted = make_planted(
        **sizes, private_behaviour=private_behaviour, cold=cold, mean_length=6, seed=seed
    )
    assert planted.embeddings.shape == (60, shared + private_text)
    assert planted.behaviour.shape == (60, shared + private_behaviour)
    assert planted.users.shape == (users, shared + private_behaviour)
    assert planted.embeddings.dtype == planted.behaviour.dtype == np.float32
    assert len(planted.interactions) == users
    assert len(set(planted.cold.tolist())) == cold
    for number, sequence in enumerate(planted.interactions):
        assert len(sequence) >= MIN_LENGTH
        assert len(set(sequence.tolist())) == len(sequence)
        assert ((sequence >= 0) & (sequence < 60)).all()
        *before, last = np.isin(sequence, planted.cold).tolist()
        assert not any(before)
        assert last == (cold > 0 and number % 2 == 0)


def likings(planted):
    """Each purchase's place among all items by what its user likes: 0 the best, 1 the worst."""
    scores = planted.users @ planted.behaviour.T
    ranks = (-scores).argsort(axis=1).argsort(axis=1) / (planted.num_items - 1)
    return np.concatenate(
        [ranks[user, sequence] for user, sequence in enumerate(planted.interactions)]
    )


def steps(planted):
    """The mean product of behaviours of items that follow each other, per factor."""
    pairs = [
        (planted.behaviour[sequence[:-1]] * planted.behaviour[sequence[1:]]).mean()
        for sequence in planted.interactions
    ]
    return float(np.mean(pairs))


def test_users_follow_their_taste_and_the_last_item_as_told():
    anything, some, much = (make_planted(users=200, taste=taste) for taste in (0, 1, 4))
    assert likings(anything).mean() == pytest.approx(0.5, abs=0.03)
    assert 0.1 < likings(some).mean() < 0.4
    assert likings(much).mean() < 0.07
    plain, chained = (make_planted(users=200, taste=0, follow=follow) for follow in (0, 2))
    assert abs(steps(plain)) < 0.05
    assert steps(chained) > 0.2
