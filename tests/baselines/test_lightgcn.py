"""LightGCN: it can learn by heart, it learns what is planted, its regularisation, its seeds."""

import numpy as np
import pytest
import torch

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.lightgcn import LightGCN, Network
from lcrec.baselines.runs.ranking import validate
from lcrec.baselines.settings import LightGCNSettings
from lcrec.baselines.shared.graph import normalised_adjacency
from lcrec.baselines.shared.purchases import purchases
from lcrec.baselines.shared.training import Epoch, TrainingLog
from lcrec.data.folder import Interactions
from lcrec.data.splits import EvalCases

TWO_TASTES = {
    f"u{user}": [user % 2 * 4 + (user // 2 + k) % 4 for k in range(3)] for user in range(16)
}


def fitted(settings, data, seed=0):
    method = LightGCN(settings, seed=seed)
    method.fit(data)
    return method


@pytest.mark.parametrize("loss", ["bpr", "info_nce"])
def test_it_learns_its_train_purchases_by_heart(loss):
    train = Interactions.from_sequences(TWO_TASTES)
    settings = LightGCNSettings(
        loss=loss, epochs=100, batch_size=16, learning_rate=0.02, negatives=4
    )
    method = fitted(settings, TrainingData(train, 8))
    scores = method.score(np.arange(16), [np.array([0])] * 16)
    for user, items in enumerate(train):
        assert set(np.argsort(-scores[user])[:3].tolist()) == set(items.tolist())
    assert method.log.epochs[-1].loss < method.log.epochs[0].loss / 2


def test_regularisation_is_on_the_unsmoothed_vectors_of_the_batch():
    bought = purchases(Interactions.from_sequences({"a": [0, 1], "b": [1, 2]}), 4)
    users, items, drawn = torch.tensor([0, 1]), torch.tensor([2, 4]), torch.tensor([[5], [2]])
    losses = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        network = Network(normalised_adjacency(bought), dim=5, layers=2)
        method = LightGCN(LightGCNSettings(regularisation=weight))
        losses.append(method._loss(network, users, items, drawn))
    own = network.vectors.detach()[[0, 1, 2, 4, 5, 2]]  # item 2 stands in the batch twice
    assert (losses[1] - losses[0]).item() == pytest.approx(
        3 * float(own.square().sum()) / 4, rel=1e-5
    )


def test_strangers_and_users_it_knows():
    train = Interactions.from_sequences(TWO_TASTES)
    method = fitted(LightGCNSettings(epochs=2), TrainingData(train, 8))
    (scores,) = method.score(np.array([-1]), [np.array([1, 5])])
    assert scores == pytest.approx(method.item_vectors @ method.item_vectors[[1, 5]].mean(axis=0))
    # A user it knows is their vector, whatever history is shown.
    train = Interactions.from_sequences(TWO_TASTES)
    data = TrainingData(train, 8)
    method = fitted(LightGCNSettings(epochs=1), data)
    one, other = (
        validate(method, EvalCases(["u3"], [np.array(history)], np.array([4])), data)
        for history in ([0], [1, 2, 7])
    )
    assert one == other


def test_epochs_until_nearly_the_best():
    scores = [None, 0.5, 0.97, 0.99, 1.0, 0.9]
    epochs = [Epoch(number, 1.0, score, 1.0) for number, score in enumerate(scores, start=1)]
    log = TrainingLog(epochs, best_epoch=5, best_score=1.0)
    assert log.epochs_until(0.01) == 4
    assert log.epochs_until(0.0) == 5
    assert log.epochs_until(0.5) == 2
    assert TrainingLog(epochs[:1]).epochs_until(0.01) is None
