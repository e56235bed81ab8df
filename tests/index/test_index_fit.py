"""What the RQ-VAE knows of an index, with codebooks whose distances are counted by hand."""

import json

import numpy as np
import pytest
import torch
from planted import identity_rqvae

from lcrec.index.quality import measure_fit

POINTS = torch.tensor([[-1.0], [-1.0], [9.0]])
SPREAD = (100 + 100 + 400) / 9  # squared distances to the mean 7/3


@pytest.fixture
def model():
    return identity_rqvae([[0], [10]], [[-1], [1]])


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
    fit = measure_fit(model, POINTS, np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]]))
    assert fit["conflict_rate_before_assignment"] == pytest.approx(2 / 3)
    assert fit["items_moved"] == 0
    assert len(fit["explained_variance"]) == 2
    assert fit["explained_variance_assigned"] == pytest.approx(1)
    assert fit["distortion_assigned"] == 0
    codes = np.array([[0, 0], [0, 1], [1, 0]])
    fit = measure_fit(model, POINTS, codes, nearest=codes)
    assert fit["items_moved"] == fit["conflict_rate_before_assignment"] == 0
    assert fit["distortion_nearest"] == fit["distortion_assigned"] == pytest.approx(4 / SPREAD)
    fit = measure_fit(model, torch.full((2, 1), -1.0), np.array([[0, 0], [0, 1]]))
    assert all(np.isfinite(value).all() for value in fit.values())
