"""Baselines: counts done by hand, the contract for all of them, the command and its errors."""

import dataclasses
import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import write_data

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import (
    METHODS,
    Baseline,
    TrainingData,
    make_method,
    method_class,
    positions,
    trained_positions,
)
from lcrec.baselines.methods.closed_form import Cooccurrence
from lcrec.baselines.runs.inputs import load_inputs
from lcrec.baselines.runs.ranking import rank_cases, validate
from lcrec.baselines.runs.run import is_saved, load_method, save_method
from lcrec.baselines.settings import CooccurrenceSettings
from lcrec.core.artifacts import read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import cost_path, fingerprint, provenance_path
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import EvalCases, leave_one_out
from lcrec.index.item_index import ItemIndex
from lcrec.rankings.evaluation import evaluate_predictions

SHOP = {"ann": [0, 1, 2, 3], "bob": [0, 1, 3, 2], "cat": [4, 0, 1, 5, 1]}
ITEMS = 7  # item 6 is never bought
UNTRAINED = {"popularity", "cooccurrence", "itemknn", "ease", "text-cosine"}


@pytest.fixture
def shop(tmp_path):
    return write_data(tmp_path / "Shop", SHOP, ITEMS)


def training(sequences, num_items):
    return TrainingData(Interactions.from_sequences(sequences), num_items)


def names_of(kind):
    return {field.name for field in dataclasses.fields(kind.Settings) if field.init}


def quick(kind):
    """Settings under which a method trains in a moment."""
    names = names_of(kind)
    small = {"epochs": 2, "dim": 8, "batch_size": 16, "hidden": 8, "pretrain_epochs": 1}
    return kind.Settings(**{name: value for name, value in small.items() if name in names})


def lists(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def slow_cooccurrence(sequences, history, num_items, settings):
    scores = np.zeros(num_items)
    for k, item in enumerate(history[::-1][: settings.last]):
        for sequence in sequences:
            for p, here in enumerate(sequence):
                for q, there in enumerate(sequence):
                    if here == item and 1 <= abs(p - q) <= settings.window:
                        weight = settings.distance_decay ** (abs(p - q) - 1)
                        weight *= 1 if q > p else settings.backward
                        scores[there] += settings.history_decay**k * weight
    return scores


SEQUENCES = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=14), min_size=1, max_size=4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"window": 2, "distance_decay": 0.5, "backward": 0.25, "last": 2, "history_decay": 0.1}],
)
@given(SEQUENCES, st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_cooccurrence_agrees_with_plain_loops(settings, sequences, history):
    method = Cooccurrence(CooccurrenceSettings(**settings))
    named = {str(user): sequence for user, sequence in enumerate(sequences)}
    method.fit(training(named, 5))
    expected = slow_cooccurrence(sequences, history, 5, method.settings)
    assert method.score(np.array([0]), [np.array(history)])[0] == pytest.approx(expected, rel=1e-5)


def enough():
    """Return a split of twelve users, and data on which every method can train.

    Item 11 stands only in held-out places.
    """
    rng = np.random.default_rng(0)
    sequences = {f"u{user}": [*rng.permutation(11)[:6].tolist(), 11] for user in range(12)}
    split = leave_one_out(Interactions.from_sequences(sequences))
    # A split by time has users with nothing to train on.
    offsets = np.append(split.train.offsets, split.train.offsets[-1])
    train = Interactions([*split.train.users, "new"], offsets, split.train.items)
    split = dataclasses.replace(split, train=train)
    data = TrainingData(
        split.train,
        12,
        split.valid,
        embeddings=rng.normal(size=(12, 8)).astype(np.float32),
        items=Items([{"title": f"thing {item}", "brand": "ab"[item % 2]} for item in range(12)]),
        index=ItemIndex(np.column_stack(np.unravel_index(np.arange(12), (3, 4))), (3, 4)),
    )
    return split, data


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_off_when_time_is_up(name):
    split, data = enough()
    kind = method_class(METHODS[name])
    method = kind(quick(kind), seed=0)
    method.fit(dataclasses.replace(data, deadline=time.perf_counter()))
    if method.training is not None:
        stages = {"collabcontext": 2}.get(name, 1)  # each takes a step at least
        assert method.training["out_of_time"]
        assert method.training["epochs"] == method.training["updates"] == stages
    elif name not in UNTRAINED:
        pytest.fail(f"{name} does not say how far it was trained")
    scores = method.score(np.array([0]), [split.test.histories[0]])
    assert scores.shape == (1, 12)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_validated_under_the_mask_it_will_be_judged_by(
    name, mask, masks_of_validation
):
    _, data = enough()
    kind = method_class(METHODS[name])
    kind(quick(kind)).fit(dataclasses.replace(data, exclude_history=mask))
    assert set(masks_of_validation) == ({mask} if "epochs" in names_of(kind) else set())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name, tmp_path):
    """Shapes, determinism, users apart and unknown, what is held out, and a copy on disk."""
    split, data = enough()
    kind = method_class(METHODS[name])
    assert kind.Settings is METHODS[name]
    method = kind(quick(kind), seed=1)
    method.fit(data)
    users = positions(split.train, split.test.users)
    scores = method.score(users, split.test.histories)
    assert scores.shape == (12, 12)
    assert scores.dtype == np.float32
    assert not np.isnan(scores).any()
    rows = [
        method.score(users[[row]], [history]) for row, history in enumerate(split.test.histories)
    ]
    assert np.concatenate(rows) == pytest.approx(scores, abs=1e-5)  # whatever the batch
    assert trained_positions(split.train, ["u1", "new", "nobody"]).tolist() == [1, -1, -1]
    unseen = method.score(np.array([-1, 12]), [np.array([3, 4])] * 2)
    assert unseen.shape == (2, 12)
    assert not np.isnan(unseen).any()

    again = kind(quick(kind), seed=1)
    again.fit(data)
    assert (again.score(users, split.test.histories) == scores).all()
    other = kind(quick(kind), seed=2)
    other.fit(data)
    assert kind.Settings.is_stochastic == (other.score(users, split.test.histories) != scores).any()

    inputs = {"inter": tmp_path / "some.txt"}
    inputs["inter"].write_text("x")
    save_method(tmp_path / "m", "stage", method, {"a": 1}, inputs, {"fit_seconds": 0.1})
    assert is_saved(tmp_path / "m", "stage", {"a": 1}, inputs)
    assert not is_saved(tmp_path / "m", "stage", {"a": 2}, inputs)
    copy = kind(quick(kind), seed=1)
    load_method(tmp_path / "m", copy, data, inputs)
    assert (copy.score(users, split.test.histories) == scores).all()
    inputs["inter"].write_text("y")
    with pytest.raises(InputError, match="fitted on another inter file"):
        load_method(tmp_path / "m", copy, data, inputs)
    with pytest.raises(InputError, match="holds no fitted method"):
        load_method(tmp_path, copy, data, inputs)


def test_a_count_never_sees_what_is_held_out():
    """Item 5 stands only in held-out places, so no count may know it."""
    split = leave_one_out(Interactions.from_sequences({"a": [0, 1, 2, 5], "b": [1, 0, 5, 2]}))
    for name in ("popularity", "cooccurrence"):
        method = method_class(METHODS[name])()
        method.fit(TrainingData(split.train, 6))
        assert method.score(np.arange(2), split.valid.histories)[:, 5].tolist() == [0, 0]


def test_the_command(shop, tmp_path, capsys):
    output = tmp_path / "runs" / "popularity.jsonl"
    main(["popularity", "--data", str(shop), "--output", str(output)])
    screen = capsys.readouterr().out
    assert f"python -m lcrec.evaluate --predictions {output}" in screen
    rows = lists(output)
    assert [(row["user"], row["target"]) for row in rows] == [("ann", 3), ("bob", 2), ("cat", 1)]
    # Train is ann 0 1, bob 0 1, cat 4 0 1: of equal counts the lower id first, and all 7 listed.
    assert [row["ranked"] for row in rows] == [[0, 1, 4, 2, 3, 5, 6]] * 3
    assert rows[0]["scores"] == [3, 3, 1, 0, 0, 0, 0]
    assert rows[0]["template_id"] is None
    assert json.loads(provenance_path(output).read_text())["config"]["split"] == "test"

    stamp = output.stat().st_mtime_ns
    main(["popularity", "--data", str(shop), "--output", str(output)])
    assert "up to date" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == stamp
    main(["popularity", "--data", str(shop), "--output", str(output), "--split", "valid"])
    assert [row["target"] for row in lists(output)] == [2, 3, 5]


def test_equal_runs_have_equal_sidecars_whatever_they_took(shop, tmp_path, monkeypatch):
    seen = []
    for pace in (1, 7):
        output, folder = tmp_path / str(pace) / "p.jsonl", tmp_path / str(pace) / "method"
        monkeypatch.setattr("time.perf_counter", itertools.count(0, pace).__next__)
        main(["popularity", "--data", str(shop), "--output", str(output), "--save", str(folder)])
        assert read_json(cost_path(output))["fit_seconds"] == pace
        sidecars = [provenance_path(path).read_bytes() for path in (output, folder)]
        seen.append((sidecars, fingerprint(folder)))
    assert seen[0] == seen[1]


def test_save_keeps_the_fitted_method(shop, tmp_path, capsys, monkeypatch):
    output, folder = tmp_path / "p.jsonl", tmp_path / "method"
    command = ["cooccurrence", "--data", str(shop), "--output", str(output), "--save", str(folder)]
    main(command)
    assert f"{folder} holds the fitted method" in capsys.readouterr().out
    expected = output.read_text()
    stamp = (folder / "method.safetensors").stat().st_mtime_ns
    main(command)
    assert "up to date" in capsys.readouterr().out

    def refit(self, data):
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr(Cooccurrence, "fit", refit)
        output.unlink()
        main(command)  # from what was kept
        assert output.read_text() == expected
        main([*command, "--split", "valid"])  # which says nothing of what was fitted
        with pytest.raises(AssertionError, match="fitted again"):
            main([*command, "--window", "3"])
    assert (folder / "method.safetensors").stat().st_mtime_ns == stamp
    main([*command, "--window", "1"])
    assert (folder / "method.safetensors").stat().st_mtime_ns != stamp

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"also holds notes\.txt"):
        main([*command, "--window", "2"])
    assert (folder / "notes.txt").read_text() == "mine"


def test_exclude_history(shop, tmp_path, capsys):
    output = tmp_path / "c.jsonl"
    main(["cooccurrence", "--data", str(shop), "--output", str(output), "--exclude-history"])
    known = sum(target in history for *history, target in SHOP.values())
    assert f"{known / len(SHOP):.1%} of the targets are items that" in capsys.readouterr().out
    for row in lists(output):
        *history, target = SHOP[row["user"]]  # cat's target is one that cat has: it stays
        assert sorted(row["ranked"]) == sorted(set(range(ITEMS)) - set(history) | {target})


def test_a_folder_without_a_catalogue(shop, tmp_path):
    """The items are then those of the sequences; who needs texts is told."""
    (shop / "Shop.item.json").unlink()
    inputs = load_inputs(shop, None, [], "popularity")
    assert inputs.training.num_items == 6  # item 6 is never bought, and nothing else knows it
    assert inputs.training.items is None
    assert inputs.files.keys() == {"inter"}
    output = tmp_path / "p.jsonl"
    main(["popularity", "--data", str(shop), "--output", str(output)])
    assert sorted(lists(output)[0]["ranked"]) == list(range(6))
    with pytest.raises(InputError, match=r"Shop\.item\.json: no such file"):
        load_inputs(shop, None, ["texts"], "fdsa")
    for wrong, message in (
        ({"a": [0, 1, 3]}, "item 2 is in no sequence, and there is no .*number the items"),
        ({"a": [0, 1, -2]}, "item -2 is not an item id"),
        ({"a": [0, 1, 2**40]}, "is not an item id"),
    ):
        (shop / "Shop.inter.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=message):
            load_inputs(shop, None, [], "popularity")


def test_an_index_is_read_and_its_conflicts_are_numbered(shop, tmp_path, capsys):
    path = tmp_path / "some.json"
    paths = [[0, 0], [0, 1], [0, 0], [1, 0], [0, 0], [2, 1], [1, 0]]
    tokens = {item: [f"<a_{a}>", f"<b_{b}>"] for item, (a, b) in enumerate(paths)}
    path.write_text(json.dumps(tokens))
    inputs = load_inputs(shop, None, ["index"], "tiger", index=path)
    assert "3 items have the path of another" in capsys.readouterr().out
    assert inputs.training.index.codes[:, 2].tolist() == [0, 0, 1, 0, 2, 0, 1]
    assert inputs.training.index.codes[:, :2].tolist() == paths
    assert inputs.training.index.level_sizes == (3, 2, 3)
    assert inputs.files["index"] == path

    path.write_text(json.dumps({item: [f"<a_{item}>"] for item in range(7)}))
    assert load_inputs(shop, None, ["index"], "x", index=path).training.index.num_levels == 1
    path.write_text(json.dumps({item: [f"<a_{item}>"] for item in range(8)}))
    with pytest.raises(InputError, match="has 8 items but the catalogue has 7"):
        load_inputs(shop, None, ["index"], "tiger", index=path)
    with pytest.raises(InputError, match="tiger: --index DIR is needed"):
        load_inputs(shop, None, ["index"], "tiger")


def test_a_macs_gpu_is_taken_only_where_it_is_named(monkeypatch):
    import torch

    monkeypatch.setattr("lcrec.baselines.base.pick_device", lambda name: torch.device("mps"))
    assert make_method(CooccurrenceSettings()).device == "cpu"
    assert make_method(CooccurrenceSettings(), device="mps").device == "mps"


class Narrow(Baseline):
    """Reaches items 3 and 1 only."""

    max_list_length = 2

    def fit(self, data):
        self.num_items = data.num_items

    def score(self, users, histories):
        scores = np.full((len(histories), self.num_items), -np.inf, dtype=np.float32)
        scores[:, [3, 1]] = [2, 1]
        return scores


def test_lists_of_a_method_that_reaches_few_items():
    train = Interactions.from_sequences({"a": [3], "b": [3, 1]})
    method = Narrow()
    method.fit(TrainingData(train, 5))
    cases = EvalCases(["a", "b"], [np.array([3]), np.array([3, 1])], np.array([1, 2]))
    ranked = [
        items.tolist() for items, _ in rank_cases(method, cases, TrainingData(train, 5), top=100)
    ]
    assert ranked == [[3, 1], [3, 1]]
    without = rank_cases(method, cases, TrainingData(train, 5, exclude_history=True), top=100)
    assert [items.tolist() for items, _ in without] == [[1], []]  # an empty list is one too
    # a: place 2 of 2; b: not found.
    assert validate(method, cases, TrainingData(train, 5)) == pytest.approx(1 / np.log2(3) / 2)


def test_where_settings_start_from(shop, tmp_path, monkeypatch):
    output = tmp_path / "p.jsonl"
    monkeypatch.setattr(Cooccurrence.Settings, "tuned", {"last": 3})
    base = ["cooccurrence", "--data", str(shop), "--output", str(output)]
    recipe = tmp_path / "c.yaml"
    recipe.write_text("tuned: true\n")
    for argv, last in (
        ([], 5),
        (["--paper-family"], 5),
        (["--tuned"], 3),
        (["--config", str(recipe)], 3),
        (["--tuned", "--last", "2"], 2),
    ):
        main([*base, *argv])
        assert json.loads(provenance_path(output).read_text())["config"]["last"] == last
    with pytest.raises(InputError, match=r"--tuned and --paper-family .* give one"):
        main([*base, "--tuned", "--paper-family"])


def test_batches_do_not_change_the_lists(monkeypatch):
    split = leave_one_out(Interactions.from_sequences(SHOP))
    method = Cooccurrence()
    method.fit(TrainingData(split.train, ITEMS))
    found = []
    for size in (1, 2 * ITEMS, 100):
        monkeypatch.setattr("lcrec.baselines.runs.ranking.SCORES_AT_ONCE", size)
        lists = rank_cases(method, split.test, TrainingData(split.train, ITEMS), top=3)
        found.append([ranked.tolist() for ranked, _ in lists])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3
    assert all(len(ranked) == 3 for ranked in found[0])


def test_help_lists_every_method(capsys):
    for argv in ([], ["--help"]):
        main(argv)
        screen = capsys.readouterr().out
        for name in METHODS:
            (line,) = [line for line in screen.splitlines() if line.startswith(f"  {name} ")]
            assert len(line) <= 100


def test_what_the_command_refuses(shop, tmp_path):
    output = ["--output", str(tmp_path / "p.jsonl")]
    data = ["--data", str(shop)]
    cases = [
        (["popularty", *data, *output], "did you mean 'popularity'"),
        ([*data, *output, "popularity"], "the method comes first"),
        (["popularity", "--data", str(tmp_path / "no"), *output], "no such folder"),
        (["popularity", *data, *output, "--top", "20"], "--top: 20 is too small.*100"),
    ]
    for argv, message in cases:
        with pytest.raises(InputError, match=message):
            main(argv)
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "split", "hit", "ndcg"),
    [
        ("popularity", "test", 0.0136, 0.0053),
        ("cooccurrence", "valid", 0.2074, 0.1613),
        ("cooccurrence", "test", 0.1427, 0.1062),
        ("itemknn", "test", 0.1086, 0.0725),
        ("ease", "test", 0.1244, 0.0846),
    ],
)
def test_the_documented_figures_on_office(real_data, name, split, hit, ndcg, tmp_path):
    output = tmp_path / "p.jsonl"
    main([name, "--data", str(real_data / "Office"), "--output", str(output), "--split", split])
    found = evaluate_predictions([output])
    assert found["users"] == 3231
    assert found["runs"][name]["list_length"] == 100
    overall = found["runs"][name]["overall"]
    assert overall["HR@10"]["mean"] == pytest.approx(hit, abs=0.003)
    assert overall["NDCG@10"]["mean"] == pytest.approx(ndcg, abs=0.003)
