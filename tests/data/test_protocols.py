"""The random split: parts by hand, what each may know, and the command that ranks on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import write_data

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.closed_form import Popularity
from lcrec.baselines.runs.ranking import rank_cases, validate
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.data.splits import random_split
from lcrec.rankings.predictions import read_predictions

SEQUENCES = st.lists(
    st.lists(st.integers(0, 40), min_size=1, max_size=60), min_size=1, max_size=5
).filter(lambda lists: any(len(set(items)) >= 3 for items in lists))


def shop():
    rng = np.random.default_rng(0)
    return {f"u{user}": rng.permutation(30)[: 5 + user % 20].tolist() for user in range(40)}


@given(SEQUENCES, st.integers(0, 3))
def test_the_parts(sequences, seed):
    named = {f"u{user}": items for user, items in enumerate(sequences)}
    split = random_split(Interactions.from_sequences(named), seed)
    train = dict(zip(split.train.users, (items.tolist() for items in split.train), strict=True))
    assert list(train) == list(named)
    assert split.valid.users == split.test.users
    for user, items in named.items():
        distinct = list(dict.fromkeys(items))
        if user not in split.test.users:
            assert len(distinct) < 3
            assert train[user] == distinct
            continue
        case = split.test.users.index(user)
        valid, test = (
            [item for item in cases.targets[case].tolist() if item >= 0]
            for cases in (split.valid, split.test)
        )
        assert len(valid) == len(test) == max(1, len(distinct) // 10)
        assert sorted([*train[user], *valid, *test]) == sorted(distinct)
        assert train[user] == [item for item in distinct if item in train[user]]  # in their order
        for cases in (split.valid, split.test):
            assert cases.histories[case].tolist() == train[user]
        assert split.valid.exclude[case].tolist() == train[user]
        assert split.test.exclude[case].tolist() == [*train[user], *valid]


def test_the_draw_is_the_seeds():
    interactions = Interactions.from_sequences(shop())
    one, again, other = (random_split(interactions, seed) for seed in (0, 0, 1))
    assert (one.test.targets == again.test.targets).all()
    assert (one.train.items == again.train.items).all()
    assert one.test.targets.tolist() != other.test.targets.tolist()
    with pytest.raises(InputError, match="no user has 3 different items"):
        random_split(Interactions.from_sequences({"a": [1, 1, 2], "b": [0]}), 0)


def test_what_the_split_forbids_is_never_listed():
    split = random_split(Interactions.from_sequences(shop()), 0)
    method = Popularity()
    method.fit(TrainingData(split.train, 30, split.valid))
    for cases, seen in ((split.valid, split.valid.exclude), (split.test, split.test.exclude)):
        lists = list(rank_cases(method, cases, split.train, 30, top=30))
        for (ranked, _), forbidden in zip(lists, seen, strict=True):
            assert sorted(ranked) == sorted(set(range(30)) - set(forbidden.tolist()))
        assert validate(method, cases, split.train, 30) > 0
    sample = split.test.sample(5, seed=0)
    places = [split.test.users.index(user) for user in sample.users]
    assert [ids.tolist() for ids in sample.exclude] == [
        split.test.exclude[place].tolist() for place in places
    ]


def test_the_command_on_a_random_split(tmp_path, capsys):
    folder = write_data(tmp_path / "Shop", shop())
    output = tmp_path / "p.jsonl"
    words = ["popularity", "--data", str(folder), "--output", str(output)]
    main([*words, "--protocol", "random"])
    assert "leaving out what the user already has" in capsys.readouterr().out
    split = random_split(Interactions.from_sequences(shop()), 0)
    found = read_predictions(output)
    assert found.users == split.test.users
    assert found.targets.tolist() == split.test.targets.tolist()
    main([*words, "--protocol", "random"])
    assert "up to date" in capsys.readouterr().out
    main(words)  # the other protocol is another run
    assert read_predictions(output).targets.tolist() == [items[-1] for items in shop().values()]
    with pytest.raises(InputError, match=r"'ramdom' is none of .*did you mean 'random'"):
        main([*words, "--protocol", "ramdom"])
