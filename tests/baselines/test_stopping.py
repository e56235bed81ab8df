"""The loop that trains the baselines: on a weight whose course is known."""

import time

import pytest
import torch
from torch import nn

from lcrec.baselines.shared import training as stopping
from lcrec.baselines.shared.training import train_epochs
from lcrec.rankings.predictions import DivergedError


class Weight(nn.Module):
    """One number, which every step of `down` takes one down."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(10.0))

    def down(self, steps=1):
        for _ in range(steps):
            yield self.value * 1.0, 2


def train(weight, validate, *, steps=1, **wanted):
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    settings = {"epochs": 8, "patience": 2} | wanted
    return train_epochs(weight, optimizer, lambda: weight.down(steps), validate, **settings)


def test_the_best_weights_stay_and_patience_ends_it():
    weight = Weight()
    log = train(weight, lambda: -abs(float(weight.value.detach()) - 7))  # best after 3 epochs
    assert (log.best_epoch, log.best_score, len(log.epochs)) == (3, 0.0, 5)
    assert weight.value.item() == 7
    assert not weight.training
    assert log.summary() == {"epochs": 5, "best_epoch": 3, "updates": 5, "out_of_time": False}
    weight = Weight()
    log = train(weight, None, steps=2, epochs=3)
    assert weight.value.item() == 4
    assert (log.best_epoch, log.updates) == (3, 6)
    assert log.epochs[0].loss == 9.5  # of 10 and 9
    weight = Weight()
    log = train(weight, lambda: 0.0, epochs=5, every=2, patience=9)
    assert [epoch.score is not None for epoch in log.epochs] == [False, True, False, True, True]


def test_a_deadline_ends_it_within_an_epoch_and_what_was_learnt_is_judged():
    weight = Weight()
    log = train(weight, lambda: 1.0, steps=5, every=4, deadline=time.perf_counter())
    assert weight.value.item() == 9
    assert log.summary() == {"epochs": 1, "best_epoch": 1, "updates": 1, "out_of_time": True}
    assert log.epochs[0].score == 1.0


def test_a_long_epoch_says_how_it_goes(monkeypatch, capfd):
    monkeypatch.setattr(stopping, "SHOWN_EVERY", 0.0)
    monkeypatch.setattr("lcrec.core.console.on_terminal", lambda: True)
    train(Weight(), lambda: 0.0, steps=3, epochs=1)
    shown = capfd.readouterr().err
    assert "loss=9.5000, updates=2" in shown  # the second of three steps: of 10 and 9
    assert "ndcg=0.0000, best=0.0000" in shown


def test_a_step_of_ones_own_and_a_loss_that_is_no_number():
    weight = Weight()

    def halve():
        with torch.no_grad():
            weight.value.mul_(0.5)

    train(weight, None, epochs=2, step=halve)
    assert weight.value.item() == 2.5
    weight = Weight()
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    with pytest.raises(DivergedError, match=r"loss of epoch 1 is nan; .*--learning-rate"):
        train_epochs(
            weight, optimizer, lambda: [(weight.value * float("nan"), 1)], None, epochs=2,
            patience=1,
        )  # fmt: skip
