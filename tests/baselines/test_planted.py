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


def test_the_seed_decides():
    first, again, other = (make_planted(users=30, seed=seed) for seed in (1, 1, 2))
    assert (first.interactions.items == again.interactions.items).all()
    assert (first.embeddings == again.embeddings).all()
    assert not np.array_equal(first.embeddings, other.embeddings)


def test_blocks_only_save_memory(monkeypatch):
    monkeypatch.setattr("planted.LOGITS_AT_ONCE", 7 * 400)
    planted = make_planted(users=20, cold=10)
    assert len(planted.interactions) == 20
    ends = [sequence[-1] in planted.cold for sequence in planted.interactions]
    assert ends == [True, False] * 10


def explained(source, target):
    """The share of the target's variance that the best linear map explains."""
    centred = target - target.mean(axis=0)
    design = np.hstack((source, np.ones((len(source), 1))))
    mapped, *_ = np.linalg.lstsq(design, centred, rcond=None)
    return 1 - np.square(centred - design @ mapped).sum() / np.square(centred).sum()


@pytest.mark.parametrize("private", [0, 8, 24])
def test_the_text_tells_the_shared_share_of_the_behaviour(private):
    planted = make_planted(users=1, items=4000, private_behaviour=private, noise=0.01)
    share = 8 / (8 + private)
    assert explained(planted.embeddings, planted.behaviour) == pytest.approx(share, abs=0.02)
    # All of the shared factors, none of the private ones.
    assert explained(planted.embeddings, planted.behaviour[:, :8]) > 0.99
    if private:
        assert explained(planted.embeddings, planted.behaviour[:, 8:]) < 0.02


def test_the_text_vectors_are_rotated():
    """No axis of a text vector is a factor; lengths and angles are those of the factors."""
    planted = make_planted(users=1, items=2000, noise=0)
    correlation = np.corrcoef(planted.embeddings.T, planted.behaviour.T)[:32, 32:40]
    assert np.abs(correlation).max() < 0.9
    assert planted.embeddings.std(axis=0) == pytest.approx(np.ones(32), abs=0.1)


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


def test_users_follow_their_taste_as_told():
    anything, some, much = (make_planted(users=200, taste=taste) for taste in (0, 1, 4))
    assert likings(anything).mean() == pytest.approx(0.5, abs=0.03)
    assert 0.1 < likings(some).mean() < 0.4
    assert likings(much).mean() < 0.07


def test_the_next_item_follows_the_last_as_told():
    plain, chained = (make_planted(users=200, taste=0, follow=follow) for follow in (0, 2))
    assert abs(steps(plain)) < 0.05
    assert steps(chained) > 0.2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"users": 0}, "users must be 1 or more"),
        ({"cold": -1}, "not negative"),
        ({"shared": 0, "private_text": 0}, "a factor each"),
        ({"mean_length": 4}, "5 items or more"),
        ({"items": 30, "cold": 25}, "too few"),
        ({"items": 3}, "too few"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_planted(**{"users": 5, **sizes})
