"""The running average of the trained weights."""

from types import SimpleNamespace

import torch
from torch import nn

from lcrec.modeling.averaging import RunningAverage


def step(average, number, layer, value):
    layer.weight.data.fill_(value)
    average.on_step_end(None, SimpleNamespace(global_step=number), None)


def test_an_average_by_hand(tmp_path):
    layer = nn.Linear(1, 1)
    layer.bias.requires_grad = False
    layer.weight.data.fill_(0.0)
    average = RunningAverage(layer, 0.5)
    average.on_train_begin(None, None, None)
    step(average, 1, layer, 11.0)  # it keeps 2/11 of itself
    with average.in_place():
        assert layer.weight.item() == 9.0
        average.save_stepped(tmp_path)
    assert layer.weight.item() == 11.0
    step(average, 100, layer, 1.0)  # and of so many updates the half
    with average.in_place():
        assert layer.weight.item() == 5.0

    layer.weight.data.fill_(9.0)  # as in the checkpoint
    resumed = RunningAverage(layer, 0.5)
    resumed.resume(tmp_path)
    resumed.on_train_begin(None, None, None)
    assert layer.weight.item() == 11.0
    step(resumed, 100, layer, 1.0)
    with resumed.in_place():
        assert layer.weight.item() == 5.0


def test_a_model_learns_as_it_would_without(tmp_path):
    torch.manual_seed(0)
    layer, plain = nn.Linear(2, 1), nn.Linear(2, 1)
    plain.load_state_dict(layer.state_dict())
    average = RunningAverage(layer, 0.9)
    average.on_train_begin(None, None, None)
    for number in range(1, 4):
        for model in (layer, plain):
            model.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            for weight in model.parameters():
                weight.data -= weight.grad
        average.on_step_end(None, SimpleNamespace(global_step=number), None)
        with average.in_place():
            pass
    assert torch.equal(layer.weight, plain.weight)
