"""LETTER's losses by hand, the clusters of codes, and what alignment does to an index."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import toy_clusters

from lcrec.index.item_index import IndexSettings
from lcrec.index.letter import alignment_loss, cluster_codes, diversity_loss, draw_partners
from lcrec.index.quality import purity
from lcrec.index.rqvae_training import build_rqvae, train_rqvae

SETTINGS = IndexSettings(
    levels=2, codes=4, latent_dim=6, hidden_dims=[8], epochs=6, batch_size=40,
    collaborative_weight=1.0, learning_rate=1e-2,
)  # fmt: skip


def test_alignment_is_a_choice_among_the_batch():
    h = torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    mapped = torch.tensor([[3.0, 0, 0, 0], [3, 0, 0, 0], [9, 9, 9, 9]], requires_grad=True)
    # Products over the root of 4: 3 and 0 for both. The first chooses right, the second wrong.
    likely = math.exp(3) / (math.exp(3) + 1)
    loss = alignment_loss(mapped, h)
    assert loss.item() == pytest.approx(-(math.log(likely) + math.log(1 - likely)) / 2)
    loss.backward()
    assert not mapped.grad[2].any()  # an item without a collaborative vector
    assert alignment_loss(mapped, h * 0).item() == 0


def test_diversity_draws_a_code_to_its_cluster():
    codebooks = torch.tensor([[[1.0, 0], [1, 1], [0, 2]], [[5.0, 5], [1, 1], [3, 0]]])
    partners = torch.tensor([[1, 0, 0], [1, 2, 1]])
    loss = diversity_loss(codebooks, torch.tensor([[0, 1], [2, 1]]), partners)
    # Level 1, by halves of products: code 0 has 1/2 with code 1 and 0 with 2; code 2 has 0 and 1
    # with codes 0 and 1. Level 2: code 1 has 5 with code 0 and 3/2 with 2, for both items.
    terms = [0.5 - math.log(math.exp(0.5) + 1), 0 - math.log(1 + math.e)]
    second = 1.5 - math.log(math.exp(5) + math.exp(1.5))
    assert loss.item() == pytest.approx(-(sum(terms) / 2 + second) / 2)


def test_partners_are_others_of_the_same_cluster_and_each_is_drawn():
    clusters = np.array([[0, 0, 0, 1, 1], [1, 0, 0, 1, 1]])
    rng = np.random.default_rng(0)
    drawn = [draw_partners(clusters, rng).numpy() for _ in range(50)]
    for partners in drawn:
        assert (np.take_along_axis(clusters, partners, axis=1) == clusters).all()
        assert (partners != np.arange(5)).all()
    assert {int(partners[0, 0]) for partners in drawn} == {1, 2}
    model = build_rqvae(IndexSettings(levels=2, codes=32, latent_dim=3), 6)
    for own in cluster_codes(model, 0):
        assert set(np.bincount(own).tolist()) <= {3, 4}
        assert own.max() == 9


@pytest.fixture(scope="module")
def shop():
    """200 items: texts of two kinds, bought together across the kinds; and who is bought alike."""
    generator = torch.Generator().manual_seed(0)
    kinds, alike = torch.arange(200) % 2, torch.arange(200) // 2 % 4
    texts = torch.randn(200, 6, generator=generator) * 0.3
    texts[:, 0] += 3 * (2 * kinds - 1)
    texts[:, 1:5] += torch.eye(4)[alike] * 0.5  # a trace, which the texts' variance hides
    bought = torch.eye(4)[alike] * 2 - 0.5
    bought[::10] = 0
    return texts, bought, alike.numpy()


def test_aligned_codes_tell_what_is_bought_alike(shop):
    texts, bought, alike = shop
    settings = replace(SETTINGS, epochs=15, collaborative_weight=5.0)
    models = [train_rqvae(texts, settings), train_rqvae(texts, settings, None, bought)]
    codes = [model.nearest_codes(model.encode_all(texts)).numpy() for model in models]
    plain, aligned = (purity(path[:, 0] * 4 + path[:, 1], alike) for path in codes)
    assert aligned > plain + 0.03
    assert models[0].state_dict().keys() == models[1].state_dict().keys()


def test_a_killed_aligned_training_goes_on_where_it_stood(shop, tmp_path, killed_after, capsys):
    texts, bought, _ = shop
    path = tmp_path / "state.safetensors"
    whole = train_rqvae(texts, SETTINGS, None, bought).state_dict()
    killed_after(3)
    with pytest.raises(KeyboardInterrupt):
        train_rqvae(texts, SETTINGS, path, bought)
    killed_after(None)
    resumed = train_rqvae(texts, SETTINGS, path, bought).state_dict()
    assert "Going on after epoch 3" in capsys.readouterr().out
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    train_rqvae(texts, SETTINGS, path, bought * 2)  # other vectors: another call
    assert "starting anew" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("known", [0, 1, 30])
def test_few_or_no_items_with_vectors(known):
    points = toy_clusters()[:30]
    bought = torch.zeros(30, 2)
    bought[:known] = 1.0
    model = train_rqvae(points, SETTINGS, None, bought)
    assert all(value.isfinite().all() for value in model.state_dict().values())
