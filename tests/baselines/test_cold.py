"""The cold-start protocol: what is taken away, what is asked, and the command and its errors."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import write_data

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.commands.cold import ColdSplit, draw_cold, measure_cold, renumber
from lcrec.core.artifacts import EMBEDDINGS, write_array
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import EvalCases, leave_one_out

SEQUENCES = {f"u{user}": [item % 20 for item in range(user, user + 10)] for user in range(20)}


@given(st.integers(0, 50), st.integers(3, 6))
def test_what_is_taken_away_is_nowhere_but_in_the_targets(seed, core):
    whole = Interactions.from_sequences(SEQUENCES)
    drawn = draw_cold(whole, share=0.1, core=core, seed=seed)
    cold = set(drawn.cold_items.tolist())
    assert len(cold) == 2
    assert not cold & set(drawn.warm_items.tolist())
    rest = {}
    for user, train, valid, test in zip(
        drawn.warm.train.users,
        drawn.warm.train,
        drawn.warm.valid.targets,
        drawn.warm.test.targets,
        strict=True,
    ):
        rest[user] = [*train.tolist(), int(valid), int(test)]
        assert rest[user] == [item for item in SEQUENCES[user] if item not in cold]
    counts = np.bincount([item for items in rest.values() for item in items], minlength=20)
    assert set(counts[counts > 0] >= core) == {True}
    assert np.flatnonzero(counts).tolist() == drawn.warm_items.tolist()
    for user, history, targets in zip(
        drawn.cold.users, drawn.cold.histories, drawn.cold.targets, strict=True
    ):
        assert history.tolist() == rest[user][:-2]
        assert set(targets[targets >= 0].tolist()) == cold & set(SEQUENCES[user])
    assert set(drawn.cold.users) == {
        user for user, items in SEQUENCES.items() if cold & set(items) and user in rest
    }


def test_users_and_items_are_dropped_until_all_have_enough():
    """Without the cold item, f has two items; then item 9 has two buyers; then e two items."""
    sequences = {user: [0, 1, 2, 3] for user in "abc"}
    sequences |= {"d": [0, 9, 1, 2], "e": [9, 0, 1], "f": [9, 4, 5]}
    bought = [0, 1, 2, 3, 4, 5, 9]
    (seed, *_) = (
        seed
        for seed in range(50)
        if np.random.default_rng(seed).choice(bought, size=1, replace=False) == [3]
    )
    drawn = draw_cold(Interactions.from_sequences(sequences), share=0.15, core=3, seed=seed)
    assert drawn.cold_items.tolist() == [3]
    assert drawn.warm.train.users == ["a", "b", "c", "d"]
    assert drawn.warm_items.tolist() == [0, 1, 2]
    assert drawn.cold.users == ["a", "b", "c"]
    assert drawn.cold.targets.tolist() == [[3]] * 3
    assert [history.tolist() for history in drawn.cold.histories] == [[0]] * 3


@pytest.mark.parametrize(
    ("sequences", "settings", "message"),
    [
        (SEQUENCES, {"share": 0.0}, "--share 0.0: it must lie between 0 and 1"),
        (SEQUENCES, {"share": 1.5}, "--share 1.5: it must lie between 0 and 1"),
        (SEQUENCES, {"share": 0.01}, "of 20 items is none; take a larger share"),
        (SEQUENCES, {"core": 30}, "--core 30: .* are left; take a smaller core"),
        (
            # Whichever item goes, only its one buyer had it, who then has too few to stay.
            {"a": [0, 1, 2], "b": [3, 4, 5], **{f"c{n}": [6, 7, 8] for n in range(3)}},
            {"share": 0.12, "seed": 1},
            "no user who is left bought any",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(sequences, settings, message):
    given = {"share": 0.05, "core": 3, "seed": 0, **settings}
    with pytest.raises(InputError, match=message):
        draw_cold(Interactions.from_sequences(sequences), **given)


def test_renumbered_items_keep_their_texts_and_buyers():
    whole = Interactions.from_sequences({"a": [0, 1, 2], "b": [2, 3, 3]})
    data = TrainingData(
        whole,
        4,
        embeddings=np.arange(4, dtype=np.float32)[:, None],
        items=Items([{"title": str(item)} for item in range(4)]),
    )
    new, interactions = renumber(data, whole, seed=0)
    assert interactions.items.tolist() != whole.items.tolist()
    assert new.embeddings[interactions.items, 0].tolist() == whole.items.tolist()
    assert [new.items.title(item) for item in interactions.items] == list("012233")


class Fixed(Baseline):
    """The same scores for everyone, cold items' found by the other way alone."""

    def fit(self, data):
        pass

    def score(self, users, histories):
        return np.tile(np.arange(40, dtype=np.float32), (len(users), 1))

    def score_cold(self, users, histories):
        return -self.score(users, histories)


def masked(drawn):
    return TrainingData(drawn.warm.train, 40, exclude_history=True)


def test_who_is_ranked_among_whom():
    train = Interactions.from_sequences({"a": [20, 21, 22, 23, 24]})
    split = leave_one_out(train)
    cold = EvalCases(["a"], [split.train.sequence(0)], np.array([[5, 39, -1]]))
    drawn = ColdSplit(split, cold, np.arange(10, 38), np.array([5, *range(38, 40)]))
    views = measure_cold(Fixed(), drawn, masked(drawn))
    # By score_cold low ids come first: among the cold 5, 38, 39; among all 5, then 10 to 18.
    best = 1 / np.log2(2) + 1 / np.log2(3)
    assert views["cold"]["Recall@10"]["mean"] == 1
    assert views["cold"]["NDCG@10"]["mean"] == pytest.approx((1 + 1 / 2) / best)
    assert views["all"]["Recall@10"]["mean"] == 0.5
    assert views["all"]["NDCG@10"]["mean"] == pytest.approx(1 / best)
    # By score high ids come first: 24 stands behind 37 to 25, too far down.
    assert views["warm"]["Recall@10"]["mean"] == 0
    narrow = ColdSplit(split, cold, np.arange(10, 30), drawn.cold_items)
    # 29 to 25 stand before 24.
    found = measure_cold(Fixed(), narrow, masked(narrow))["warm"]["NDCG@10"]["mean"]
    assert found == pytest.approx(1 / np.log2(7))


class Searching(Fixed):
    """Finds the ten best items of those that are not excluded, as beams do."""

    max_list_length = 10

    def score(self, users, histories):
        return self.score_without(users, histories, [[]] * len(users))

    def score_without(self, users, histories, exclude):
        scores = np.tile(np.arange(40, dtype=np.float32), (len(users), 1))
        for row, own in zip(scores, exclude, strict=True):
            row[own] = -np.inf
            row[np.argsort(-row)[10:]] = -np.inf
        return scores


def test_a_method_that_searches_finds_candidates_alone():
    """Its ten items are those of the view, and none is wasted on what will not be ranked."""
    train = Interactions.from_sequences({"a": [*range(33, 38), 21, 20]})
    split = leave_one_out(train)
    cold = EvalCases(["a"], [split.train.sequence(0)], np.array([[5, 9]]))
    drawn = ColdSplit(split, cold, np.arange(10, 38), np.arange(10))
    views = measure_cold(Searching(), drawn, masked(drawn))
    assert views["cold"]["Recall@10"]["mean"] == 1
    assert views["all"]["Recall@10"]["mean"] == 0
    narrow = ColdSplit(split, cold, np.array([*range(33, 38), *range(14, 22)]), np.array([5, 9]))
    views = measure_cold(Searching(), narrow, masked(narrow))
    assert views["all"]["Recall@10"]["mean"] == 1
    assert views["warm"]["Recall@10"]["mean"] == 1


@pytest.fixture
def shop(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    write_array(tmp_path / "emb" / EMBEDDINGS, vectors)
    return write_data(tmp_path / "Shop", SEQUENCES, 20)


def test_the_command(shop, tmp_path, capsys):
    output = tmp_path / "runs" / "cold.json"
    command = [
        *("cold", "--data", str(shop), "--embeddings", str(tmp_path / "emb")),
        *("--output", str(output), "--share", "0.2", "--methods", "popularity"),
        *("lightgcn --epochs 2 --dim 4", "collabcontext --epochs 1 --batch-size 16"),
    ]
    main(command)
    screen = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert list(result["methods"]) == command[-3:]
    assert result["counts"]["cold_items"] == 4
    assert result["chance"] == 1
    for label, figures in result["methods"].items():
        assert figures["cold"]["Recall@10"]["mean"] == 1  # 4 items, 10 places
        (line,) = [line for line in screen.splitlines() if line.startswith(f"{label}  ")]
        assert f"{figures['warm']['NDCG@10']['mean']:.4f}" in line
    stamp = output.stat().st_mtime_ns
    main(command)
    assert "up to date" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == stamp


def test_what_the_command_refuses(shop, tmp_path):
    data = ["--data", str(shop), "--output", str(tmp_path / "cold.json")]
    cases = [
        (["--methods", "populrity"], "no method 'populrity'; did you mean 'popularity'"),
        (["--methods", "mf --layers 2"], "unknown argument '--layers'"),
        (["--methods", "mf --epochs 0"], "--epochs: 0 is too small"),
        (["--methods", "mf 'x"], "is no method with its flags"),
        (["--methods", ""], "is no method with its flags"),
        (["--methods", "mf", "mf"], "'mf' is named twice"),
        (["--methods", "collabcontext"], "--embeddings DIR is needed"),
        (["--methods", "popularity", "--share", "0.01"], "--share 0.01 of 20 items is none"),
        (["--methods", "popularity", "--core", "2"], "--core: 2 is too small"),
    ]
    for flags, message in cases:
        with pytest.raises(InputError, match=message):
            main(["cold", *data, *flags])
    assert not (tmp_path / "cold.json").exists()
