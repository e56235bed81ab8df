"""Log-probabilities from one pass, advantages and losses, against plain computations."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from lcrec.reinforce.update import (
    answer_log_probabilities,
    dpo_loss,
    group_advantages,
    grpo_loss,
    kl_estimate,
)


def plainly(model, input_ids, mask, answers):
    """Log-probabilities [prompts, group, tokens], each answer behind its own copy of the prompt."""
    found = []
    for ids, real, group in zip(input_ids, mask.bool(), answers, strict=True):
        for answer in group:
            whole = torch.cat([ids[real], answer])[None]
            logits = model(input_ids=whole, use_cache=False).logits[0, -len(answer) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, answer[:, None])[:, 0])
    return torch.stack(found).view_as(answers)


def sliding(vocabulary=40):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4}
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(vocab_size=vocabulary, layer_types=kinds, **sizes, **heads)
    return Gemma3ForCausalLM(config).double().eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    input_ids, mask = torch.randint(40, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    mask[1, :3] = 0
    answers = torch.randint(40, (2, 5, 3))
    answers[0, 1, :2] = answers[0, 0, :2]  # they begin alike
    return input_ids, mask, answers


@pytest.mark.parametrize("depth", [3, 1])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_one_pass_gives_what_a_pass_per_answer_gives(base, batch, family, depth):
    model = sliding() if family == "gemma3" else AutoModelForCausalLM.from_pretrained(base).double()
    input_ids, mask, answers = batch
    answers = answers[:, :, :depth]
    found, entropy = answer_log_probabilities(model.eval(), input_ids, mask, answers)
    expected = plainly(model, input_ids, mask, answers)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert (entropy > 0).all()
    assert (entropy < math.log(model.config.vocab_size)).all()


def test_the_gradient_of_a_group(base, batch):
    """Of the whole objective, clipping, KL and all, against autograd of its plain definition."""
    input_ids, mask, answers = (each[:1] for each in batch)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        start = answer_log_probabilities(model, input_ids, mask, answers)[0]
    torch.manual_seed(2)
    old, reference = (start + 0.3 * torch.randn_like(start) for _ in range(2))
    rewards = torch.tensor([[1.0, 0.2, -0.5, 0.4, -0.3]])
    weights = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]])

    found, _ = answer_log_probabilities(model, input_ids, mask, answers)
    advantages = group_advantages(rewards, weights, scale=True)
    loss, clipped = grpo_loss(found, old, advantages, weights, 0.2)
    (loss + 0.1 * kl_estimate(found, reference, weights).mean()).backward()
    assert 0 < clipped < 1  # both sides of the clip are looked at
    gradients = {name: p.grad.double() for name, p in model.named_parameters()}

    plain = AutoModelForCausalLM.from_pretrained(base).double().eval()
    terms = []
    pairs = list(zip(weights[0].tolist(), rewards[0].tolist(), strict=True))
    mean = sum(weight * reward for weight, reward in pairs)
    deviation = math.sqrt(sum(weight * (reward - mean) ** 2 for weight, reward in pairs))
    for number, row in enumerate(plainly(plain, input_ids, mask, answers)[0]):
        weight, reward = pairs[number]
        advantage = (reward - mean) / deviation
        for token, value in enumerate(row):
            ratio = torch.exp(value - old[0, number, token].double())
            gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            gap = reference[0, number, token].double() - value
            terms.append(weight / 3 * (-gain + 0.1 * (gap.exp() - gap - 1)))
    torch.stack(terms).sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_advantages():
    rewards = torch.tensor([[1.0, 0, 0, 0], [0.3, 0.3, 0.3, 0.3]])
    alike = torch.full((2, 4), 0.25)
    found = group_advantages(rewards, alike, scale=True)
    torch.testing.assert_close(found[0], torch.tensor([3.0, -1, -1, -1]) / math.sqrt(3))
    assert (found[1] == 0).all()
    found = group_advantages(rewards, alike, scale=False)
    torch.testing.assert_close(found[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))


def test_s_dpo():
    """One target against two others is -log sigmoid(-log(sum of exp)), worked out by hand."""
    log_probs = torch.tensor([[[-1.0, -1.0], [-2.0, -1.0], [-0.5, -0.5]]])
    reference = torch.full((1, 3, 2), -1.0)
    is_target = torch.tensor([[False, True, False]])
    gained = [0.5 * 0.0, 0.5 * -1.0, 0.5 * 1.0]
    odds = math.exp(gained[0] - gained[1]) + math.exp(gained[2] - gained[1])
    expected = -math.log(1 / (1 + math.exp(math.log(odds))))
    assert dpo_loss(log_probs, reference, is_target, 0.5).item() == pytest.approx(expected)
    # With a single other it is the loss of DPO.
    pair = dpo_loss(log_probs[:, :2], reference[:, :2], is_target[:, :2], 0.5)
    assert pair.item() == pytest.approx(-F.logsigmoid(torch.tensor(gained[1])).item())
