"""What tests of trainings that end early compare."""

import torch
from safetensors.torch import load_file


class Killed(Exception):
    """Stands for whatever ends a process in the middle of its work."""


def weights(folder):
    """Return all weights of a checkpoint by name."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def kill_in_step(monkeypatch, trainer, step):
    """Make a class of trainers die in the given step, counted from 1 over all its runs."""
    original, count = trainer.training_step, 0

    def training_step(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", training_step)


def let_every_validation_win(ranking_metrics):
    """Return a trainer's method of that name, by which NDCG@10 rises with every update."""

    def rising(self, ranked):
        return ranking_metrics(self, ranked) | {"eval_ndcg@10": 1.0 + self.state.global_step}

    return rising
