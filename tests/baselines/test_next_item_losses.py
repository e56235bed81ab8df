"""The losses of naming the next item, by hand and against torch's own."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lcrec.baselines.shared import losses
from lcrec.baselines.shared.losses import bce, full_softmax, next_item_loss


def parts(predictions=7, items=11, dim=3):
    torch.manual_seed(0)
    states = torch.randn(predictions, dim, requires_grad=True)
    vectors = torch.randn(items, dim, requires_grad=True)
    bias = torch.randn(items, requires_grad=True)
    return states, vectors, bias, torch.randint(items, (predictions,))


@pytest.mark.parametrize("size", [1, 30, 10_000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_full_softmax_is_cross_entropy_in_any_chunks(monkeypatch, size, with_bias):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", size)
    states, vectors, bias, targets = parts()
    inputs = [states, vectors, bias] if with_bias else [states, vectors]
    logits = states @ vectors.T + (bias if with_bias else 0)
    expected = functional.cross_entropy(logits, targets)
    wanted = torch.autograd.grad(3 * expected, inputs)
    found = full_softmax(states, vectors, targets, bias if with_bias else None)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(3 * found, inputs), wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor that comes up has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_the_full_softmax_of_scores_far_apart_and_in_little_memory(monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 1000)
    states, vectors, _, targets = parts(predictions=300, items=200)
    with Largest() as ours:
        full_softmax(states, vectors, targets).backward()
    assert ours.numbers <= 1000
    with Largest() as theirs:
        functional.cross_entropy(states @ vectors.T, targets)
    assert theirs.numbers == 300 * 200
    states = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    vectors = torch.tensor([[1.0], [-1.0]])
    loss = full_softmax(states, vectors, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(1e4)  # 0 and 2e4
    loss.backward()
    assert states.grad.tolist() == [[0], [-1]]


def test_pairs_by_hand_and_a_sampled_softmax_over_all_is_the_full_one():
    positive, negative = torch.tensor([0.0, 2.0]), torch.tensor([[0.0], [-1.0]])
    expected = (2 * math.log(2) + math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert float(bce(positive, negative)) == pytest.approx(expected)
    states, vectors = torch.tensor([[1.0]]), torch.tensor([[2.0], [0.5], [0.0]])
    target, drawn = torch.tensor([0]), torch.tensor([[1]])
    found = next_item_loss("bpr", states, vectors, target, drawn)
    assert found.item() == pytest.approx(math.log1p(math.exp(-1.5)))
    bias = torch.tensor([0.0, 1.5, 9.0])
    found = next_item_loss("bpr", states, vectors, target, drawn, bias)
    assert found.item() == pytest.approx(math.log(2))
    states, vectors, bias, _ = parts(predictions=1, items=5)
    for given in (None, bias):
        target, others = torch.tensor([2]), torch.tensor([[0, 1, 3, 4]])
        sampled = next_item_loss("sampled", states, vectors, target, others, given)
        full = next_item_loss("ce", states, vectors, target, bias=given)
        assert sampled.item() == pytest.approx(full.item(), rel=1e-6)
