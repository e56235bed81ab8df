"""Training on toy clusters: how it ends, how it goes on, alone and on two processes."""

import itertools

import pytest
import torch
from accelerate import PartialState
from planted import toy_clusters

from lcrec.index.item_index import IndexSettings
from lcrec.index.rqvae import RQVAE
from lcrec.index.rqvae_training import explained_variance, train_rqvae


def train(embeddings, resume_from=None, **settings):
    defaults = {
        "levels": 2, "codes": 4, "latent_dim": 4, "hidden_dims": [8],
        "commitment_weight": 0.25, "sinkhorn_epsilon": [0.0, 0.003], "epochs": 10, "patience": 8,
        "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 1e-4, "seed": 0,
    }  # fmt: skip
    return train_rqvae(embeddings, IndexSettings(**defaults | settings), resume_from)


def equal(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_training_improves_on_its_start_and_keeps_the_best_state():
    points = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    start, trained, ruined = (
        explained_variance(train(points, hidden_dims=[32], **settings), points)[-1]
        # Steps far too long ruin the model; what it began as is returned.
        for settings in ({"epochs": 0}, {"epochs": 40}, {"epochs": 15, "learning_rate": 1e6})
    )
    assert trained > start + 0.01
    assert ruined == pytest.approx(start)


def test_patience_stops_training(capsys, monkeypatch):
    monkeypatch.setattr("lcrec.core.console.on_terminal", lambda: True)
    train(toy_clusters(), epochs=500, patience=2)
    shown = capsys.readouterr().err
    assert "/500" in shown
    assert "500/500" not in shown


def test_the_same_seed_gives_the_same_model():
    points = toy_clusters()
    one, two, other = (train(points, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


ODD_CATALOGUES = {
    "one item": torch.ones(1, 6),
    "fewer items than codes": toy_clusters()[::30],
    "all items alike": torch.full((10, 6), 0.1),
    "every item twice": toy_clusters()[::4].repeat(2, 1),
    "constant columns": toy_clusters() * torch.tensor([1, 0, 1, 0, 0, 1]),
    "nothing but zeros": torch.zeros(9, 6),
    "very large": toy_clusters() * 1e15,
    "very small": toy_clusters() * 1e-15,
    "last batch of one": toy_clusters()[:17],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ODD_CATALOGUES)
def test_odd_catalogues(name):
    points = ODD_CATALOGUES[name]
    model = train(points, epochs=6)
    assert not model.training
    assert all(value.isfinite().all() for value in model.state_dict().values())
    codes = model.nearest_codes(model.encode(points))
    assert codes.shape == (len(points), 2)
    assert explained_variance(model, points, codes)[-1] > 0.9


@pytest.mark.parametrize("hidden_dims", [[], [3], [16, 8]])
@pytest.mark.parametrize("latent_dim", [1, 6, 9])
def test_any_shape(hidden_dims, latent_dim):
    model = train(toy_clusters(), hidden_dims=hidden_dims, latent_dim=latent_dim, epochs=5)
    assert model.codebooks().shape == (2, 4, latent_dim)
    assert explained_variance(model, toy_clusters())[-1] > 0.5


def test_the_network_may_compute_in_bfloat16():
    points = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    full, half = (train(points, bf16=bf16, hidden_dims=[32]) for bf16 in (False, True))
    assert all(value.dtype != torch.bfloat16 for value in half.state_dict().values())
    assert not equal(full, half)
    one, two = (explained_variance(model, points)[-1] for model in (full, half))
    assert two == pytest.approx(one, abs=0.02)


def test_training_is_on_the_cpu_where_the_device_has_no_float64(monkeypatch):
    expected = train(toy_clusters())
    monkeypatch.setattr(PartialState(), "device", torch.device("mps"))
    assert equal(train(toy_clusters()), expected)


def test_parity_keeps_the_last_state_as_it_is(monkeypatch):
    points = toy_clusters() + 5
    revived = []
    monkeypatch.setattr(RQVAE, "revive_dead_codes", lambda *_: revived.append(1))
    model = train(points, parity=True, epochs=10)
    assert not revived
    assert model.mean.eq(0).all()
    assert model.scale == 1
    # Steps far too long ruin the model, and nothing better is kept.
    ruined = train(points, parity=True, epochs=10, learning_rate=10.0)
    assert explained_variance(ruined, points)[-1] < explained_variance(model, points)[-1] - 0.5


def test_parity_starts_from_one_batch(monkeypatch):
    sizes = []
    start = RQVAE.initialise_as_published

    def spy(self, batch, seed):
        sizes.append(len(batch))
        start(self, batch, seed)

    monkeypatch.setattr(RQVAE, "initialise_as_published", spy)
    train(toy_clusters(), parity=True, epochs=0, batch_size=20)
    assert sizes == [20]


@pytest.mark.parametrize(
    ("epoch", "settings"),
    [*itertools.product([1, 5, 13], [{}, {"parity": True}]), (5, {"epochs": 300, "patience": 2})],
)
def test_a_killed_training_goes_on_where_it_stood(killed_after, tmp_path, capsys, epoch, settings):
    points = toy_clusters()
    settings = {"epochs": 16, "resume_from": tmp_path / "state.safetensors", **settings}
    expected = train(points, **{**settings, "resume_from": None})
    killed_after(epoch)
    with pytest.raises(KeyboardInterrupt):
        train(points, **settings)
    killed_after(None)
    capsys.readouterr()
    assert equal(train(points, **settings), expected)
    assert f"Going on after epoch {epoch}" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["seed", "embeddings", "epochs", "file"])
def test_a_state_of_another_call_is_not_taken(killed_after, tmp_path, capsys, change):
    points, path = toy_clusters(), tmp_path / "state.safetensors"
    killed_after(5)
    with pytest.raises(KeyboardInterrupt):
        train(points, resume_from=path)
    killed_after(None)
    settings = {"seed": {"seed": 1}, "epochs": {"epochs": 6}}.get(change, {})
    if change == "embeddings":
        points = points + 1
    if change == "file":
        path.write_bytes(path.read_bytes()[:1000])
    expected = train(points, **settings)
    capsys.readouterr()
    assert equal(train(points, **settings, resume_from=path), expected)
    assert "was left by another call: starting anew" in capsys.readouterr().out


def test_a_kill_while_the_state_is_written_leaves_the_last_one(killed_after, tmp_path, monkeypatch):
    points, path = toy_clusters(), tmp_path / "state.safetensors"
    killed_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(points, resume_from=path)
    before = path.read_bytes()

    def half(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lcrec.index.rqvae_training.save_file", half)
        with pytest.raises(KeyboardInterrupt):
            train(points, resume_from=path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
