"""Ways to part interactions, by hand, and the one split of a data folder that all stages read."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.closed_form import Popularity
from lcrec.baselines.runs.ranking import rank_cases, validate
from lcrec.core.artifacts import data_paths
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, load_interactions, write_lists
from lcrec.data.splits import (
    PARTS,
    TEST,
    TRAIN,
    VALID,
    cold_parts,
    leave_one_out,
    load_split,
    random_parts,
    time_parts,
    write_split,
)
from lcrec.rankings.predictions import read_predictions


@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=45), min_size=1, max_size=9),
    st.integers(0, 99),
)
def test_random_parts(sequences, seed):
    interactions = Interactions.from_sequences(dict(enumerate(sequences)))
    parts = random_parts(interactions.offsets, interactions.items, seed)
    again = random_parts(interactions.offsets, interactions.items, seed)
    np.testing.assert_array_equal(parts, again)
    for items, own in zip(sequences, np.split(parts, interactions.offsets[1:-1]), strict=True):
        part_of = dict(zip(items, own.tolist(), strict=True))
        assert [part_of[item] for item in items] == own.tolist()  # repeats stay together
        count = len(part_of)
        share = max(1, count // 10) if count >= 3 else 0
        sizes = np.bincount(list(part_of.values()), minlength=3).tolist()
        assert sizes == [count - 2 * share, share, share]


def test_random_parts_differ_by_seed():
    offsets, items = np.array([0, 40, 80]), np.tile(np.arange(40), 2)
    assert (random_parts(offsets, items, 0) != random_parts(offsets, items, 1)).any()
    assert (random_parts(offsets, items, 0)[:40] != random_parts(offsets, items, 0)[40:]).any()


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


IN_TIME = {
    "ann": {"train": [0, 1], "valid": [2], "test": [3, 0]},
    "bob": {"train": [], "valid": [1], "test": [2]},
    "eve": {"train": [3], "valid": [], "test": []},
}
SETS = {
    "ann": {"train": [0, 2], "valid": [3], "test": [1, 0, 1]},
    "bob": {"train": [], "valid": [1], "test": [2]},
    "eve": {"train": [3, 1], "valid": [2], "test": [1]},
}
SEQUENCES = {"ann": [0, 1, 2, 0, 3, 1], "bob": [1, 2], "eve": [1, 3, 1, 2]}  # of SETS


def whole(split):
    return {user: [*own["train"], *own["valid"], *own["test"]] for user, own in split.items()}


@pytest.fixture
def folder(tmp_path):
    """A function that writes a data folder with a split, in either form."""

    def write(split, sequences, *, parquet=False):
        paths = data_paths(tmp_path, "Shop", parquet=parquet)
        if not parquet:
            paths.inter.write_text(json.dumps(sequences))
            paths.split.write_text(json.dumps(split))
            return tmp_path
        interactions = Interactions.from_sequences(sequences)
        lists = {}
        for part in PARTS:
            parts = [entry[part] for entry in split.values()]
            offsets = np.cumsum([0, *map(len, parts)])
            lists[part] = (offsets, np.array([item for ids in parts for item in ids]))
        items = interactions.offsets, interactions.items
        write_lists(paths.inter, list(sequences), {"items": items})
        write_lists(paths.split, list(split), lists)
        return tmp_path

    return write


def read(folder):
    return load_split(folder, load_interactions(folder, 4))


def lists(arrays):
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize("parquet", [False, True])
def test_a_split_by_time_by_hand(folder, parquet):
    split = read(folder(IN_TIME, whole(IN_TIME), parquet=parquet))
    assert (split.kind, split.train.users) == ("time", ["ann", "bob", "eve"])
    assert lists(split.train) == [[0, 1], [], [3]]
    # Each interaction is a case, but for a user's first, which nothing comes before.
    assert (split.valid.users, split.test.users) == (["ann"], ["ann", "ann", "bob"])
    assert lists(split.test.histories) == [[0, 1, 2], [0, 1, 2, 3], [1]]
    assert split.test.targets.tolist() == [3, 0, 2]
    assert split.test.targets.dtype == np.int32
    assert split.test.numbers.tolist() == [3, 4, 1]
    assert split.test.exclude is None
    assert (split.test.owners.tolist(), split.test.describe()) == ([0, 0, 1], "3 cases of 2 users")
    drawn = {tuple(split.test.sample_users(1, seed).users) for seed in range(9)}
    assert drawn == {("ann", "ann"), ("bob",)}
    assert split.test.one_target_each() is split.test
    first = split.test.one_per_user()
    assert (first.users, first.targets.tolist(), first.numbers) == (["ann", "bob"], [3, 2], None)


@pytest.mark.parametrize("parquet", [False, True])
def test_a_split_of_sets_by_hand(folder, parquet):
    split = read(folder(SETS, SEQUENCES, parquet=parquet))
    assert split.kind == "sets"
    assert lists(split.train) == [[0, 2], [], [3, 1]]
    # Bob trained on nothing, so that there is nothing to tell his items from.
    assert split.valid.users == split.test.users == ["ann", "eve"]
    assert lists(split.test.histories) == lists(split.valid.histories) == [[0, 2], [3, 1]]
    assert split.valid.targets.tolist() == [[3], [2]]
    assert split.test.targets.tolist() == [[1, 0], [1, -1]]
    # Never a target, though the user has it already.
    assert lists(split.valid.exclude) == [[0, 2], [3, 1]]
    assert lists(split.test.exclude) == [[2, 3], [3, 2]]
    assert split.test.one_per_user().targets.tolist() == [1, 1]
    each = split.test.one_target_each()
    assert (each.users, each.targets.tolist()) == (["ann", "ann", "eve"], [1, 0, 1])
    assert lists(each.histories) == [[0, 2], [0, 2], [3, 1]]
    assert lists(each.exclude) == [[2, 3], [2, 3], [3, 2]]


def test_without_a_split_file_it_is_leave_one_out(folder):
    where = folder(SETS, {"ann": [0, 1, 2]})
    (where / "Shop.split.json").unlink()
    expected = leave_one_out(load_interactions(where, 4))
    assert read(where).test.targets.tolist() == expected.test.targets.tolist() == [2]


ANN = {"train": [0], "valid": [1], "test": [2]}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({}, "Shop.split.json: expected .* found an empty object"),
        ({"bob": ANN}, "Shop.split.json: its users are not those of the data set"),
        ({"ann": [0]}, "user 'ann': expected the lists train, valid and test"),
        ({"ann": {"train": [0], "test": [1]}}, "user 'ann': expected the lists train, valid and"),
        ({"ann": ANN | {"valid": [-4]}}, "'ann': valid: item -4 is not an item id"),
        ({"ann": ANN | {"train": 0}}, "'ann': train: expected a list, found a"),
        ({"ann": ANN | {"test": []}}, "user 'ann': train, valid and test together are not the"),
        ({"ann": ANN | {"test": [3]}}, "user 'ann': train, valid and test together are not the"),
        ({"ann": ANN | {"test": [2, 2]}}, "user 'ann': train, valid and test together are not"),
        ({"ann": {"train": [0, 1], "valid": [], "test": [2]}}, "valid has no case, because"),
        ({"ann": {"train": [], "valid": [0, 1], "test": [2]}}, None),
    ],
)
def test_bad_splits(folder, split, message):
    where = folder(split, {"ann": [0, 1, 2]})
    if message is None:  # users that come up after the first cut can be cases all the same
        assert lists(read(where).valid.histories) == [[0]]
        return
    with pytest.raises(InputError, match=message):
        read(where)


@pytest.mark.parametrize("parquet", [False, True])
def test_what_is_written_is_read(folder, parquet):
    where = folder(SETS, SEQUENCES, parquet=parquet)
    expected = read(where)
    parts = np.array([0, 2, 0, 2, 1, 2, 1, 2, 2, 0, 0, 1])
    write_split(where, load_interactions(where, 4), parts)
    found = read(where)
    assert lists(found.train) == lists(expected.train)
    assert found.valid.targets.tolist() == expected.valid.targets.tolist()
    assert found.test.targets.tolist() == expected.test.targets.tolist()
    path = where / "Shop.split.json"
    assert parquet or json.loads(path.read_text()) == SETS


def test_what_the_split_forbids_is_never_ranked(folder):
    split = read(folder(SETS, SEQUENCES))
    method = Popularity()
    method.fit(TrainingData(split.train, 4, split.valid))
    for cases in (split.valid, split.test):
        found = rank_cases(method, cases, TrainingData(split.train, 4), top=4)
        for (ranked, _), forbidden in zip(found, cases.exclude, strict=True):
            assert sorted(ranked) == sorted({0, 1, 2, 3} - set(forbidden.tolist()))
        assert validate(method, cases, TrainingData(split.train, 4)) > 0
    (sample,) = split.test.sample(1, seed=1).exclude
    assert sample.tolist() in lists(split.test.exclude)


@pytest.mark.parametrize(("split", "sequences"), [(IN_TIME, whole(IN_TIME)), (SETS, SEQUENCES)])
def test_a_baseline_ranks_for_the_cases_of_the_split(folder, tmp_path, capsys, split, sequences):
    where = folder(split, sequences)
    output = tmp_path / "p.jsonl"
    words = ["popularity", "--data", str(where), "--output", str(output)]
    main(words)
    masks = "leaving out what the user already has" in capsys.readouterr().out
    expected = read(where).test
    assert masks == (expected.exclude is not None)
    found = read_predictions(output)
    assert found.users == expected.users
    assert found.targets.tolist() == expected.targets.tolist()
    if expected.numbers is None:
        assert found.numbers is None
    else:
        assert found.numbers == expected.numbers.tolist()
    main(words)
    assert "up to date" in capsys.readouterr().out
    (where / "Shop.split.json").write_text(json.dumps({**split, "eve": split["eve"]}) + " ")
    main(words)
    assert "up to date" not in capsys.readouterr().out
