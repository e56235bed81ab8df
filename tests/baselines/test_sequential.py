"""What every method must do that reads a history: one test for all of them."""

import dataclasses

import numpy as np
import pytest
import torch

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import METHODS, TrainingData, method_class
from lcrec.baselines.methods.lightgcn import LightGCN
from lcrec.baselines.runs.run import load_method, save_method
from lcrec.baselines.settings import LightGCNSettings
from lcrec.baselines.shared.sequences import Batch, pad_histories
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items

FAMILY = ["sasrec", "bert4rec", "gru4rec", "fmlp", "caser", "hgn", "fdsa", "s3rec"]
CAUSAL = ["sasrec", "gru4rec", "fdsa", "s3rec"]
LOSSES = ["ce", "bce", "bpr", "sampled"]


def catalogue(num_items):
    return Items([{"title": f"thing {item}", "brand": "ab"[item % 2]} for item in range(num_items)])


def training(sequences, num_items):
    named = {f"u{user}": sequence for user, sequence in enumerate(sequences)}
    return TrainingData(Interactions.from_sequences(named), num_items, items=catalogue(num_items))


def settings(kind, **wanted):
    """Small and without dropout, but for what is wanted; a method lacks some of the names."""
    small = {
        "dim": 16,
        "hidden": 32,
        "max_history": 6,
        "loss": "ce",
        "learning_rate": 0.01,
        "batch_size": 128,
        "epochs": 40,
        "pretrain_epochs": 1,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "last_only": 1.0,
        "regularisation": 0.0,
        # BERT4Rec, with the last item masked, is asked once per example.
        "examples": "prefixes" if kind.__name__ == "BERT4Rec" else "windows",
        **wanted,
    }
    names = {field.name for field in dataclasses.fields(kind.Settings) if field.init}
    return kind.Settings(**{name: value for name, value in small.items() if name in names})


def fitted(name, data, **wanted):
    kind = method_class(METHODS[name])
    method = kind(settings(kind, **wanted), seed=0)
    method.fit(data)
    return method


def untrained(name, data, **wanted):
    kind = method_class(METHODS[name])
    method = kind(settings(kind, **wanted), seed=0)
    torch.manual_seed(0)
    method.network = method.build(data).eval()
    return method


@pytest.fixture(scope="module")
def twenty():
    """Twenty users, of whom no two begin alike."""
    rng = np.random.default_rng(0)
    return [[*rng.permutation(40)[:5].tolist(), user] for user in range(20)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "hgn"])
def test_every_loss_lifts_the_target(name, loss, twenty):
    """The tied vectors, those with a bias, and the second table."""
    data = training(twenty, 40)
    histories = [np.array(sequence[:-1]) for sequence in twenty]
    ranks = []
    for epochs in (1, 60):
        learning = {"epochs": epochs, "learning_rate": 0.02}
        method = fitted(name, data, **learning, loss=loss, negatives=8)
        scores = method.score(np.arange(20), histories)
        targets = scores[np.arange(20), [sequence[-1] for sequence in twenty]]
        ranks.append((scores > targets[:, None]).sum(axis=1).mean())
    assert ranks[1] < 5 < ranks[0]


@pytest.mark.parametrize("name", FAMILY)
def test_padding_and_neighbours_in_a_batch_change_nothing(name, twenty):
    method = untrained(name, training(twenty, 40))
    alone = pad_histories(np.array([3]), [np.array([5, 6, 7])], 40, 6)
    beside = pad_histories(np.array([3, 4]), [np.array([5, 6, 7]), np.arange(6)], 40, 6)
    with torch.no_grad():
        states = method.network(alone), method.network(beside)[:1]
    assert torch.allclose(*states, atol=1e-6)
    assert states[0].abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILY)
def test_only_the_last_items_are_read(name, twenty):
    method = untrained(name, training(twenty, 40))
    long, short = (method.score(np.array([0]), [np.arange(9)[-n:]]) for n in (9, 6))
    assert (long == short).all()
    assert (long != method.score(np.array([0]), [np.arange(9)[-5:]])).any()


@pytest.mark.parametrize("name", CAUSAL)
def test_states_know_nothing_of_later_items(name, twenty):
    network = untrained(name, training(twenty, 40)).network
    items = torch.tensor([[1, 2, 3, 4, 5]])
    places = torch.arange(5)
    states = []
    for sequence in (items, torch.tensor([[1, 2, 3, 38, 39]])):
        batch = Batch(*(torch.tensor([0]), sequence, torch.tensor([5])), 0 * places, places, places)
        with torch.no_grad():
            states.append(network(batch))
    assert torch.allclose(states[0][:3], states[1][:3], atol=1e-6)
    assert not torch.allclose(states[0][3:], states[1][3:], atol=1e-3)


@pytest.mark.parametrize("name", CAUSAL)
def test_windows_and_prefixes_have_one_loss_where_no_sequence_is_cut(name, twenty):
    """So one update of either gives the same weights, but for rounding."""
    data = training([sequence[:4] for sequence in twenty], 40)
    once = {"epochs": 1, "batch_size": 60, "pretrain_epochs": 0}
    weights = [
        fitted(name, data, examples=form, **once).state() for form in ("prefixes", "windows")
    ]
    logs = [fitted(name, data, examples=form, **once).log for form in ("prefixes", "windows")]
    assert logs[0].epochs[0].loss == pytest.approx(logs[1].epochs[0].loss, rel=1e-5)
    # Adam's first step is the gradient's sign times the rate, and noise where that is about 0.
    close = [np.isclose(weights[0][key], weights[1][key], atol=1e-4).mean() for key in weights[0]]
    assert min(close) > 0.9


@pytest.mark.parametrize("name", FAMILY)
def test_a_chain_is_learnt_by_its_order(name):
    """Item i is followed by i + 1 of 12: whoever reads order knows the next, shuffled nobody."""
    rng = np.random.default_rng(0)
    walks = [[(start + step) % 12 for step in range(6)] for start in np.tile(np.arange(12), 4)]
    shuffled = [rng.permutation(walk).tolist() for walk in walks]
    shares = []
    for sequences in (walks, shuffled):
        method = fitted(name, training(sequences, 12), epochs=60, pretrain_epochs=2)
        histories = [np.arange(item - 3, item + 1) % 12 for item in range(12)]
        scores = method.score(np.full(12, -1), histories)
        shares.append((scores.argmax(axis=1) == (np.arange(12) + 1) % 12).mean())
    assert shares[0] >= 0.9
    assert shares[1] <= 0.6


def test_lightgcn_knows_no_order():
    rng = np.random.default_rng(0)
    walks = [[(start + step) % 12 for step in range(6)] for start in range(12)]
    shuffled = [rng.permutation(walk).tolist() for walk in walks]
    scores = []
    for sequences in (walks, shuffled):
        method = LightGCN(LightGCNSettings(dim=8, epochs=3), seed=0)
        method.fit(training(sequences, 12))
        scores.append(method.score(np.arange(12), [np.array([0])] * 12))
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize("name", ["hgn", "caser"])
def test_users_differ_and_a_stranger_is_the_mean_of_them(name, twenty):
    method = fitted(name, training(twenty, 40), epochs=5)
    history = [np.array([1, 2, 3])]
    one, other = (method.score(np.array([user]), history) for user in (0, 1))
    assert np.abs(one - other).max() > 1e-3
    users = method.network.users
    with torch.no_grad():
        weights = users.table.weight
        weights[7] = (weights.sum(dim=0) - weights[7]) / 19  # so that it is the mean of all 20
    mean, stranger = (method.score(np.array([user]), history) for user in (7, -1))
    assert stranger == pytest.approx(mean, abs=1e-5)


def test_a_file_from_another_catalogue(tmp_path, twenty):
    method = untrained("sasrec", training(twenty, 40))
    source = tmp_path / "x"
    source.write_text("x")
    save_method(tmp_path / "m", "stage", method, {}, {"inter": source}, {})
    with pytest.raises(InputError, match=r"not this method's \(size mismatch for items.weight"):
        load_method(tmp_path / "m", method, training(twenty, 41), {"inter": source})
    load_method(tmp_path / "m", method, training(twenty, 40), {"inter": source})


def test_what_the_commands_refuse(shop, tmp_path):
    base = ["--data", str(shop), "--output", str(tmp_path / "p.jsonl"), "--epochs", "1"]
    cases = [
        (["sasrec", *base, "--heads", "3"], "--dim 64 cannot be split among --heads 3"),
        (["gru4rec", *base, "--dropout", "1"], r"--dropout: 1.0 is too large; .* 0.99"),
        (["caser", *base, "--examples", "windows"], "unknown argument '--examples'"),
    ]
    for argv, message in cases:
        with pytest.raises(InputError, match=message):
            main(argv)
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize("name", FAMILY)
def test_settings_of_tuning_can_be_given(name):
    kind = METHODS[name]
    for values in [kind.tuned, *({key: v} for key, vs in kind.grid.items() for v in vs)]:
        kind(**values)
