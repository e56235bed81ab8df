"""What stands near what: by hand, against a count without the user, on disk, damaged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.cooccurrence import NearbyItems, count_pairs
from lcrec.data.folder import Interactions

ITEMS = 6
SEQUENCES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=30), min_size=1, max_size=5)


def count(sequences):
    packed = {str(user): sequence for user, sequence in enumerate(sequences)}
    return NearbyItems.count(Interactions.from_sequences(packed), ITEMS)


def test_what_follows_counts_double_and_the_last_item_most():
    counts = count_pairs(Interactions.from_sequences({"u": [0, 1, 2]}), 3, dtype=np.float64)
    assert counts.toarray() == pytest.approx(
        np.array([[0, 1, 0.7], [0.5, 0, 1], [0.35, 0.5, 0]]), abs=1e-12
    )
    nearby = count([[0, 1, 2], [3, 4]])
    items, scores = nearby.near(np.array([3, 0]))
    assert items.tolist() == [1, 2, 4]
    assert scores == pytest.approx([1, 0.7, 0.5])
    assert nearby.near(np.array([3, 0]), limit=1)[0].tolist() == [1]
    assert nearby.near(np.array([4, 0, 0, 0, 0, 0]))[0].tolist() == [1, 2]  # 4 is too long ago
    assert nearby.known.tolist() == [0, 1, 2, 3, 4]
    for nothing in ([], [5], [99]):  # no history, never bought, joined after the counting
        assert len(nearby.near(np.array(nothing, dtype=np.int64))[0]) == 0
    assert len(count([[5, 5]]).known) == 0  # not near another item


@given(SEQUENCES, st.data())
def test_without_a_sequence_is_as_if_it_had_never_been_counted(sequences, draw):
    user = draw.draw(st.integers(0, len(sequences) - 1))
    own = np.array(sequences[user], dtype=np.int32)
    history = own[: draw.draw(st.integers(0, len(own)))]
    expected = count([*sequences[:user], *sequences[user + 1 :], []]).near(history, limit=None)
    items, scores = count(sequences).near(history, without=own, limit=None)
    assert sorted(items.tolist()) == sorted(expected[0].tolist())
    assert scores == pytest.approx(expected[1], abs=1e-9)


def test_a_copy_on_disk_finds_the_same_and_a_damaged_one_is_refused(tmp_path):
    nearby, path = count([[0, 1, 2], [3, 1]]), tmp_path / "neighbours.safetensors"
    nearby.save(path)
    copy = NearbyItems.load(path)
    for one, other in zip(nearby.near(np.array([1])), copy.near(np.array([1])), strict=True):
        assert (one == other).all()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"neighbours.safetensors: no counts .* train"):
        NearbyItems.load(path)
    with pytest.raises(InputError, match="no counts"):
        NearbyItems.load(tmp_path / "nowhere")
