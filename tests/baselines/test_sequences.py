"""Sequences cut into examples, padded and batched, by hand and against plain loops."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcrec.baselines.methods.attention import SASRecNetwork
from lcrec.baselines.settings import SASRecSettings
from lcrec.baselines.shared.sequences import (
    Batch,
    SequenceBatches,
    cut_by_length,
    cut_examples,
    pad_histories,
    pad_in_front,
    read_by_length,
)
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions

# User "a" has 0 to 8, so that an item says where it stands.
TRAIN = Interactions.from_sequences({"a": list(range(9)), "b": [0], "c": [4, 5]})


def spelled(form, max_history):
    examples = cut_examples(TRAIN, max_history, form)
    return [
        (user, TRAIN.items[start:stop].tolist(), count)
        for user, start, stop, count in zip(
            *(examples.users, examples.starts, examples.stops, examples.counts), strict=True
        )
    ]


def test_examples_by_hand():
    assert spelled("prefixes", 3) == [
        (0, [0], 1), (0, [0, 1], 1), (0, [0, 1, 2], 1), (0, [1, 2, 3], 1), (0, [2, 3, 4], 1),
        (0, [3, 4, 5], 1), (0, [4, 5, 6], 1), (0, [5, 6, 7], 1), (2, [4], 1),
    ]  # fmt: skip
    assert spelled("windows", 20) == [(0, [0, 1, 2, 3, 4, 5, 6, 7], 8), (2, [4], 1)]
    assert spelled("windows", 4) == [
        (0, [0, 1, 2, 3], 4),
        (0, [2, 3, 4, 5], 2),  # 3 and 4 were targets above
        (0, [4, 5, 6, 7], 2),
        (2, [4], 1),
    ]
    assert spelled("windows", 3)[-2:] == [(0, [5, 6, 7], 1), (2, [4], 1)]
    train = Interactions.from_sequences({"a": [1], "b": [0]})
    for form in ("prefixes", "windows"):
        with pytest.raises(InputError, match="every user has one item to train on"):
            cut_examples(train, 4, form)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5).filter(lambda lengths: max(lengths) > 1),
    st.integers(1, 12),
    st.sampled_from(["prefixes", "windows"]),
)
def test_every_target_counts_once(lengths, max_history, form):
    train = Interactions.from_sequences({str(u): [0] * n for u, n in enumerate(lengths)})
    examples = cut_examples(train, max_history, form)
    asked = []
    for user, start, stop, count in zip(
        *(examples.users, examples.starts, examples.stops, examples.counts), strict=True
    ):
        first = train.offsets[user]
        assert first <= start < stop < train.offsets[user + 1]
        assert stop - start <= max_history
        for target in range(stop - count + 1, stop + 1):
            asked.append(target)
            enough = max_history if form == "prefixes" else max_history / 2
            assert target - start >= min(target - first, enough)
    firsts = set(train.offsets[:-1].tolist())
    assert sorted(asked) == [place for place in range(len(train.items)) if place not in firsts]


def batches(form, batch_size, seed=0):
    return SequenceBatches(TRAIN, 9, max_history=4, form=form, batch_size=batch_size, seed=seed)


@pytest.mark.parametrize("form", ["prefixes", "windows"])
def test_batches_ask_for_the_item_after(form):
    found = []
    for batch in batches(form, 3):
        assert batch.items.shape == (len(batch.users), int(batch.lengths.max()))
        assert (batch.items[~batch.real] == 9).all()
        assert (batch.items[batch.real] < 9).all()
        assert (batch.items[batch.rows, batch.columns] + 1 == batch.targets).all()
        whole = batch.with_target(9)
        for row, length in enumerate(batch.lengths):
            assert (whole[row, :length] == batch.items[row, :length]).all()
            assert whole[row, length] == batch.items[row, length - 1] + 1
            assert (whole[row, length + 1 :] == 9).all()
        assert (
            (batch.users[batch.rows] == (batch.targets == 5).int() * 2)
            .logical_or(batch.users[batch.rows] == 0)
            .all()
        )
        found += batch.targets.tolist()
    assert sorted(found) == [1, 2, 3, 4, 5, 5, 6, 7, 8]


def test_batches_are_of_the_size_asked_for_and_shuffled_by_seed():
    sizes = [len(batch.targets) for batch in batches("prefixes", 4)]
    assert sizes == [4, 4, 1]
    assert [len(batch.targets) for batch in batches("prefixes", 100)] == [9]
    one, other = batches("prefixes", 9), batches("prefixes", 9)
    epochs = [[next(iter(loader)).targets.tolist() for _ in range(2)] for loader in (one, other)]
    assert epochs[0] == epochs[1]
    assert epochs[0][0] != epochs[0][1]
    assert next(iter(batches("prefixes", 9, seed=1))).targets.tolist() != epochs[0][0]


def test_padding_by_hand():
    batch = pad_histories(np.array([1, -1]), [np.array([3, 4, 5, 6]), np.array([2])], 7, 3)
    assert batch.items.tolist() == [[4, 5, 6], [2, 7, 7]]
    assert batch.lengths.tolist() == [3, 1]
    assert (batch.rows.tolist(), batch.columns.tolist()) == ([0, 1], [2, 0])
    assert batch.real.tolist() == [[True] * 3, [True, False, False]]
    assert batch.items.dtype == torch.int64
    assert pad_in_front(batch, 5, 7).tolist() == [[7, 7, 4, 5, 6], [7, 7, 7, 7, 2]]
    assert pad_in_front(batch, 3, 7).tolist() == [[4, 5, 6], [7, 7, 2]]


def test_rows_go_by_length_and_none_is_lost():
    items = torch.tensor([[3, 4, 5, 8], [6, 9, 9, 9], [7, 8, 9, 9], [1, 2, 0, 6]])
    lengths = torch.tensor([4, 1, 2, 4])
    rows, columns = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([1, 2, 0, 1, 0])
    batch = Batch(torch.arange(4), items, lengths, rows, columns, torch.arange(10, 15))
    short, long = batch.by_length(2)
    assert short.items.tolist() == [[6, 9], [7, 8]]
    assert short.users.tolist() == [1, 2]
    assert short.rows.tolist() == [0, 1]
    assert short.columns.tolist() == [0, 1]
    assert short.targets.tolist() == [12, 13]
    assert long.items.tolist() == [[3, 4, 5, 8], [1, 2, 0, 6]]
    assert long.users.tolist() == [0, 3]
    # The first row is asked twice, and stays before the second.
    assert long.rows.tolist() == [0, 0, 1]
    assert long.columns.tolist() == [1, 2, 0]
    assert long.targets.tolist() == [10, 11, 14]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=9), st.integers(1, 4))
def test_rows_are_cut_where_the_least_is_padded(lengths, parts):
    order, bounds = cut_by_length(torch.tensor(lengths), parts)
    ordered = [lengths[row] for row in order]
    assert ordered == sorted(lengths)
    assert len(bounds) <= parts + 1

    def places(bounds):
        groups = itertools.pairwise(bounds)
        return sum((stop - start) * ordered[stop - 1] for start, stop in groups)

    ways = (
        (0, *cuts, len(lengths))
        for count in range(parts)
        for cuts in itertools.combinations(range(1, len(lengths)), count)
    )
    assert places(bounds) == min(map(places, ways))
    assert (bounds[0], bounds[-1]) == (0, len(lengths))


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_a_network_sees_the_same_in_parts(parts):
    train = Interactions.from_sequences(
        {f"u{user}": list(range(user, user + 2 + user % 5)) for user in range(12)}
    )
    batches = SequenceBatches(train, 20, max_history=4, form="windows", batch_size=1000, seed=0)
    (batch,) = batches
    network = SASRecNetwork(20, SASRecSettings(dim=8, max_history=4)).eval()

    def by_target(batch):
        users = batch.users[batch.rows].tolist()
        return [*zip(users, batch.targets.tolist(), network(batch), strict=True)]

    with torch.no_grad():
        whole = sorted(by_target(batch), key=lambda found: found[:2])
        inparts = sorted(
            (found for part in batch.by_length(parts) for found in by_target(part)),
            key=lambda found: found[:2],
        )
    assert [found[:2] for found in whole] == [found[:2] for found in inparts]
    for one, other in zip(whole, inparts, strict=True):
        assert torch.allclose(one[2], other[2], atol=1e-5)


def test_states_come_back_in_the_order_asked_for():
    histories = [np.arange(3), np.array([7]), np.arange(9), np.array([4, 5]), np.array([8])]
    read: list[int] = []

    def last_item_and_user(batch):
        read.append(batch.items.shape[1])
        last = batch.items[batch.rows, batch.columns]
        return torch.stack((last, batch.users), dim=1)

    states = read_by_length(
        last_item_and_user, np.arange(5), histories, num_items=9, max_history=6, device="cpu"
    )
    assert states.tolist() == [[2, 0], [7, 1], [8, 2], [5, 3], [8, 4]]
    assert read == [1, 2, 3, 6]  # in four groups, each as wide as its longest
