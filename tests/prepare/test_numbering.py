"""Numbers of users and items, against the same done by hand; ties in time."""

import hashlib
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lcrec.baselines.__main__
import lcrec.prepare.__main__
import lcrec.prepare.folder
from lcrec.core.artifacts import read_json
from lcrec.data.folder import load_interactions
from lcrec.prepare.engines import store
from lcrec.prepare.folder import number, sort_interactions
from lcrec.rankings.metrics import hit_at_k
from lcrec.rankings.predictions import read_predictions

ACTIONS = st.tuples(st.sampled_from("abcdé"), st.sampled_from("xyzÿ01"), st.integers(0, 3))


def tie_break(user, item):
    return hashlib.md5(f"{user}\t{item}".encode(), usedforsecurity=False).hexdigest()


def by_hand(actions):
    """Return raw ids of users and items by number, and each user's items and times."""
    began = {}
    for user, _, time in actions:
        began[user] = min(time, began.get(user, time))
    users = sorted(began, key=lambda user: (began[user], user.encode()))
    items, sequences, times = {}, [], []
    for user in users:
        own = [(time, item.encode(), item) for who, item, time in actions if who == user]
        for *_, item in sorted(own):
            items.setdefault(item, len(items))
        own = sorted((time, tie_break(user, item), item) for time, _, item in own)
        sequences.append([items[item] for *_, item in own])
        times += [time for time, *_ in own]
    return users, list(items), sequences, times


@settings(max_examples=8)
@given(st.lists(ACTIONS, min_size=1, max_size=30))
@pytest.mark.parametrize("batch", [2, 1000])
def test_ties_are_numbered_by_raw_id_and_ordered_by_hash(con, tmp_path_factory, batch, actions):
    columns = dict(zip(("user", "item", "time"), zip(*actions, strict=True), strict=True))
    table = store(con, pa.table({name: list(column) for name, column in columns.items()}))
    folder = tmp_path_factory.mktemp("sorted") / "new"
    sort_interactions(table, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcrec.prepare.folder, "BATCH", batch)
        found = number(folder)
    users, items, sequences, times = by_hand(actions)
    assert found.user_ids.to_pylist() == users
    assert found.item_ids.to_pylist() == items
    cuts = found.offsets.tolist()
    assert [found.items[a:b].tolist() for a, b in itertools.pairwise(cuts)] == sequences
    assert found.times.tolist() == times
    assert not found.is_date


@pytest.fixture
def chance(tmp_path):
    """A data folder made of items that users drew at random, all times of a user equal or none."""

    def make(*, ties):
        rng = np.random.default_rng(0)
        rows = ["user\titem\ttime"]
        for user in range(800):
            drawn = rng.permutation(200)[:10]
            rows += [f"u{user}\ti{item:03}\t{0 if ties else at}" for at, item in enumerate(drawn)]
        (tmp_path / "log.tsv").write_text("\n".join(rows))
        titles = ["item\ttitle", *(f"i{item:03}\tItem {item}" for item in range(200))]
        (tmp_path / "items.tsv").write_text("\n".join(titles))
        argv = ["--format", "table", "--interactions", tmp_path / "log.tsv"]
        argv += ["--items", tmp_path / "items.tsv", "--output", tmp_path / "Toy"]
        lcrec.prepare.__main__.main(list(map(str, argv)))
        return tmp_path / "Toy"

    return make


@pytest.mark.parametrize("ties", [True, False])
def test_interactions_of_one_time_have_no_order_to_learn(chance, ties):
    data = chance(ties=ties)
    lines = (data / "Toy.item2id").read_text().splitlines()
    raw_ids = np.array([line.split("\t")[0] for line in lines])
    rises = [raw_ids[items[1:]] > raw_ids[items[:-1]] for items in load_interactions(data, 200)]
    # About a third of a permutation's neighbours disagree, so that this is four deviations or more.
    assert abs(np.concatenate(rises).mean() - 0.5) < 0.02
    assert read_json(data / "data_card.json")["share_of_ties"] == ties


@pytest.mark.slow
@pytest.mark.parametrize("ties", [True, False])
def test_a_sequential_model_learns_nothing_from_chance(chance, tmp_path, ties):
    """Ten of 200 items are right one time in twenty, 800 users within .03 of that."""
    argv = ["sasrec", "--data", str(chance(ties=ties)), "--output", str(tmp_path / "sasrec.jsonl")]
    lcrec.baselines.__main__.main([*argv, "--epochs", "12", "--learning-rate", "3e-3"])
    found = read_predictions(tmp_path / "sasrec.jsonl")
    assert abs(hit_at_k(found.ranked[None], found.targets, 10).mean() - 0.05) < 0.03
