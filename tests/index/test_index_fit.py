"""What the RQ-VAE knows of an index, with codebooks whose distances are counted by hand."""

import json

import numpy as np
import pytest
import torch

from lcrec.index.quality import measure_fit
from lcrec.index.rqvae import RQVAE

POINTS = torch.tensor([[-1.0], [-1.0], [9.0]])
SPREAD = (100 + 100 + 400) / 9  # squared distances to the mean 7/3


@pytest.fixture
def model():
    """A model whose latents are the embeddings, with codes 0 and 10, then -1 and 1."""
    model = RQVAE(1, hidden_dims=[], latent_dim=1, num_levels=2, num_codes=2).eval()
    with torch.no_grad():
        for side in (model.encoder, model.decoder):
            side.begin_linear(torch.eye(1))
            torch.nn.init.zeros_(side.last.bias)
    for layer, codes in zip(model.quantizer.layers, ([0.0, 10.0], [-1.0, 1.0]), strict=True):
        layer._codebook.embed.data = torch.tensor(codes)[None, :, None]
    return model


def test_the_cost_of_uniqueness_by_hand(model):
    fit = measure_fit(model, POINTS, np.array([[0, 0], [0, 1], [1, 0]]))
    assert json.loads(json.dumps(fit)) == fit
    # The first two points share their nearest path, 0 - 1; the second moves to 0 + 1.
    assert fit["conflict_rate_before_assignment"] == pytest.approx(2 / 3)
    assert fit["items_moved"] == 1
    assert fit["explained_variance"] == pytest.approx([1 - 3 / SPREAD, 1])
    assert fit["explained_variance_assigned"] == pytest.approx(1 - 4 / SPREAD)
    assert fit["distortion_nearest"] == 0
    assert fit["distortion_assigned"] == pytest.approx(4 / SPREAD)


def test_a_level_that_tells_apart_stands_for_nothing(model):
    fit = measure_fit(model, POINTS, np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]]))
    assert fit["conflict_rate_before_assignment"] == pytest.approx(2 / 3)
    assert fit["items_moved"] == 0
    assert len(fit["explained_variance"]) == 2
    assert fit["explained_variance_assigned"] == pytest.approx(1)
    assert fit["distortion_assigned"] == 0


def test_codes_before_the_assignment_may_be_given(model):
    codes = np.array([[0, 0], [0, 1], [1, 0]])
    fit = measure_fit(model, POINTS, codes, nearest=codes)
    assert fit["items_moved"] == fit["conflict_rate_before_assignment"] == 0
    assert fit["distortion_nearest"] == fit["distortion_assigned"] == pytest.approx(4 / SPREAD)


def test_embeddings_that_do_not_vary(model):
    fit = measure_fit(model, torch.full((2, 1), -1.0), np.array([[0, 0], [0, 1]]))
    assert all(np.isfinite(value).all() for value in fit.values())
