"""Every way to index keeps the contract: unique paths, in range, the model that made them."""

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from lcrec.core.errors import InputError
from lcrec.index.item_index import IndexSettings
from lcrec.index.methods import index_items, require_paths
from lcrec.index.rqvae import RQVAE


def toy_catalogue():
    """Return float32 [40, 6]: four clusters of eight items, eight of which are there twice."""
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(4, 6)) * 5, 8, axis=0) + rng.normal(size=(32, 6))
    return torch.from_numpy(np.concatenate([points, points[:8]]).astype(np.float32))


def trained(points, levels, codes):
    torch.manual_seed(0)
    width = points.shape[1]
    model = RQVAE(width, hidden_dims=[8], latent_dim=4, num_levels=levels, num_codes=codes)
    model.initialise(points, seed=0)
    return model.eval()


def index(kind, points, levels=3, codes=5, seed=0):
    settings = IndexSettings(kind=kind, levels=levels, codes=codes, seed=seed)
    model = trained(points, levels, codes) if settings.is_trained else None
    return index_items(settings, len(points), points, model)


KINDS = get_args(get_type_hints(IndexSettings)["kind"])
CATALOGUES = {
    "clusters": toy_catalogue(),
    "one item": torch.ones(1, 3),
    "all alike": torch.ones(30, 3),
    "constant columns": toy_catalogue() * torch.tensor([1, 0, 1, 0, 0, 1]),
    "one column": torch.arange(50.0)[:, None],
    "full": torch.randn(125, 4, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_item_gets_its_own_path(kind, name):
    points = CATALOGUES[name]
    found = index(kind, points)
    codes, sizes = found.codes, found.level_sizes
    assert codes.dtype == np.int32
    assert codes.shape == (len(points), len(sizes))
    assert len(np.unique(codes, axis=0)) == len(points)
    assert codes.min() >= 0
    assert (codes < np.array(sizes)).all()
    assert (found.model is None) == (kind in ("random", "vanilla"))
    assert (found.nearest is None) == (kind in ("random", "vanilla"))
    if found.model:
        assert found.nearest.shape == (len(points), found.model.num_levels)
        assert not found.model.training


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    points = toy_catalogue()
    np.testing.assert_array_equal(index(kind, points).codes, index(kind, points).codes)
    if kind == "random":
        assert (index(kind, points).codes != index(kind, points, seed=1).codes).any()


@pytest.mark.parametrize("kind", ["rq-vae", "rq-kmeans", "tiger"])
def test_the_model_gives_the_nearest_codes(kind):
    points = toy_catalogue()
    found = index(kind, points)
    nearest = found.model.nearest_codes(found.model.encode_all(points)).numpy()
    np.testing.assert_array_equal(found.nearest, nearest)
    alone = [row for row, path in enumerate(nearest.tolist()) if nearest.tolist().count(path) == 1]
    assert alone
    np.testing.assert_array_equal(found.codes[alone, : nearest.shape[1]], nearest[alone])


def test_kmeans_codes_add_up_to_the_embeddings():
    points = toy_catalogue()
    found = index("rq-kmeans", points, levels=4, codes=8)
    quantized = sum(
        book[found.nearest[:, level]] for level, book in enumerate(found.model.codebooks())
    )
    left = (found.model.decode(quantized) - points).pow(2).sum()
    assert left < 0.05 * (points - points.mean(0)).pow(2).sum()
    # The latent is the embedding, turned: distances stay what they are, in one common unit.
    latents = found.model.encode_all(points)
    ratio = torch.pdist(latents[:32]) / torch.pdist(points[:32])
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


def test_balanced_kmeans_uses_all_codes_evenly():
    points = torch.cat([torch.randn(90, 4) * 0.01, torch.randn(10, 4) * 10])
    codes = index("balanced-kmeans", points, levels=3, codes=5).nearest
    assert [np.bincount(level, minlength=5).tolist() for level in codes.T] == [[20] * 5] * 3
    plain = np.bincount(index("rq-kmeans", points).nearest[:, 0], minlength=5)
    assert plain.max() > 40


def test_tokens_that_number_items():
    points = torch.cat([torch.zeros(3, 2), torch.full((2, 2), 9.0), torch.tensor([[9.0, -9.0]])])
    found = index("tiger", points, levels=2, codes=4)
    assert found.level_sizes == (4, 4, 4)
    assert found.codes[:, -1].tolist() == [0, 1, 2, 0, 1, 0]
    np.testing.assert_array_equal(found.codes[:, :-1], found.nearest)
    assert len(np.unique(found.nearest, axis=0)) == 3
    found = index("tiger", torch.ones(30, 3), levels=2, codes=4)
    assert found.level_sizes == (4, 4, 30)
    assert found.codes[:, -1].tolist() == list(range(30))
    found = index("vanilla", torch.zeros(7, 2))
    assert found.codes.tolist() == [[item] for item in range(7)]
    assert found.level_sizes == (7,)


def test_too_few_paths_and_random_ones_that_spread():
    for kind in ("rq-vae", "rq-kmeans", "balanced-kmeans", "random"):
        with pytest.raises(InputError, match="spell 8 items, the catalogue has 9: use --levels 4"):
            require_paths(IndexSettings(kind=kind, levels=3, codes=2), 9)
    require_paths(IndexSettings(kind="tiger", levels=3, codes=2), 9)
    require_paths(IndexSettings(kind="vanilla", levels=3, codes=2), 9)
    with pytest.raises(InputError, match=r"--kind vanilla: .* use another kind"):
        require_paths(IndexSettings(kind="vanilla", levels=3, codes=2), 10**9)
    found = index("random", torch.zeros(2000, 2), levels=3, codes=20)
    loads = [np.bincount(level, minlength=20) for level in found.codes.T]
    assert all(load.min() > 60 and load.max() < 140 for load in loads)
