"""Ways to part interactions, by hand, and what is written comes back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.artifacts import data_paths
from lcrec.core.errors import InputError
from lcrec.data.folder import load_interactions, write_lists
from lcrec.data.splits import (
    TEST,
    TRAIN,
    VALID,
    cold_parts,
    leave_one_out,
    load_split,
    random_parts,
    time_parts,
)


@given(st.lists(st.integers(3, 45), min_size=1, max_size=9), st.integers(0, 99))
def test_random_parts(lengths, seed):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    parts = random_parts(offsets, seed)
    np.testing.assert_array_equal(parts, random_parts(offsets, seed))
    for length, own in zip(lengths, np.split(parts, offsets[1:-1]), strict=True):
        share = max(1, length // 10)
        assert np.bincount(own, minlength=3).tolist() == [length - 2 * share, share, share]


def test_random_parts_differ_by_seed():
    offsets = np.array([0, 40, 80])
    assert (random_parts(offsets, 0) != random_parts(offsets, 1)).any()
    assert (random_parts(offsets, 0)[:40] != random_parts(offsets, 0)[40:]).any()


def test_time_and_cold_parts():
    times = np.array([9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert time_parts(times).tolist() == [TEST, *[TRAIN] * 8, VALID]
    # What happened at the moment of a cut comes after it.
    assert time_parts(np.array([0, 1, 2, 3, 4, 5, 8, 8, 8, 9])).tolist() == (
        [TRAIN] * 6 + [VALID] * 3 + [TEST]
    )
    with pytest.raises(InputError, match="--split time: train would be empty"):
        time_parts(np.zeros(10))
    is_cold = np.array([0, 0, 1, 0, 1, 1, 0, 0], dtype=bool)
    parts = cold_parts(np.array([0, 5, 8]), is_cold)
    assert parts.tolist() == [TRAIN, TRAIN, TEST, VALID, TEST, TEST, TRAIN, VALID]


SPLIT = {
    "ann": {"train": [0, 1], "valid": [2], "test": [3, 0, 3]},
    "bob": {"train": [], "valid": [1], "test": [2]},
    "eve": {"train": [3], "valid": [], "test": []},
}


@pytest.fixture
def folder(tmp_path):
    """A function that writes a data folder with a split, in either form."""

    def write(split=SPLIT, *, parquet=False):
        paths = data_paths(tmp_path, "Shop", parquet=parquet)
        if not parquet:
            paths.inter.write_text('{"ann": [0, 1, 2]}')
            paths.split.write_text(json.dumps(split))
            return tmp_path
        lists = {}
        for part in ("train", "valid", "test"):
            parts = [entry[part] for entry in split.values()]
            offsets = np.cumsum([0, *map(len, parts)])
            lists[part] = (offsets, np.array([item for ids in parts for item in ids]))
        write_lists(paths.inter, ["ann"], {"items": (np.array([0, 3]), np.arange(3))})
        write_lists(paths.split, list(split), lists)
        return tmp_path

    return write


@pytest.mark.parametrize("parquet", [False, True])
def test_a_split_is_read_by_hand(folder, parquet):
    split = load_split(folder(parquet=parquet), 4)
    assert split.train.users == ["ann", "bob", "eve"]
    assert [sequence.tolist() for sequence in split.train] == [[0, 1], [], [3]]
    # Bob trained on nothing, so that there is nothing to tell his item to validate on from.
    assert (split.valid.users, split.test.users) == (["ann"], ["ann", "bob"])
    assert [history.tolist() for history in split.test.histories] == [[0, 1, 2], [1]]
    assert split.valid.targets.tolist() == [[2]]
    assert split.test.targets.tolist() == [[3, 0], [2, -1]]
    assert split.test.targets.dtype == np.int32


def test_without_a_split_file_it_is_leave_one_out(folder):
    where = folder()
    (where / "Shop.split.json").unlink()
    expected = leave_one_out(load_interactions(where, 4))
    assert load_split(where, 4).test.targets.tolist() == expected.test.targets.tolist() == [2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({}, "Shop.split.json: expected .* found an empty object"),
        ({"ann": [0]}, "user 'ann': expected the lists train, valid and test"),
        ({"ann": {"train": [0], "test": [1]}}, "user 'ann': expected the lists train, valid and"),
        ({"ann": {"train": [0], "valid": [4], "test": []}}, "'ann': valid: item 4 is not in the"),
        ({"ann": {"train": 0, "valid": [], "test": []}}, "'ann': train: expected a list, found a"),
    ],
)
def test_bad_splits(folder, split, message):
    with pytest.raises(InputError, match=message):
        load_split(folder(split), 4)


def test_a_split_of_another_catalogue(folder):
    with pytest.raises(InputError, match=r"Shop.split.parquet: item 3 is not in the catalogue"):
        load_split(folder(parquet=True), 3)
