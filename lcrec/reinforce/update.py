"""From rewards to a loss: the answers' log-probabilities from one pass, advantages, objectives.

GRPO (arXiv 2402.03300) needs the log-probabilities of all G answers of a prompt, as does S-DPO
(arXiv 2406.09215). Prompt and answers are laid out as one sequence, a tree: every answer sees the
prompt and itself, so the prompt passes through the model once, forward and backward, not G times.
Answers of one catalogue all have as many tokens, which makes every way of averaging the same.

Log-probabilities are under the softmax over the whole vocabulary, which is what ranking sums up.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcrec.modeling.trees import attention_masks

SPREAD = 1e-6  # rewards of a group that differ by less say nothing


def answer_log_probabilities(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every token of every answer, in one pass over the prompts.

    Args:
        model: a causal language model, perhaps wrapped to share gradients between processes.
        input_ids, attention_mask: prompts padded on the left, int64 [prompts, length].
        answers: int64 [prompts, group, tokens].

    Returns:
        float32 [prompts, group, tokens], and the mean entropy of the tokens' distributions, float32
        [prompts], without a gradient.
    """
    prompts, group, depth = answers.shape
    length, kept = input_ids.shape[1], depth - 1  # an answer's last token predicts nothing
    # A tree of `lcrec.modeling.trees`: the prompt, then one branch after another; what answers
    # begin with alike is not merged, so that shapes do not depend on them. `ends` is behind the
    # last token that sees a token: all of them for the prompt, the end of its branch for an
    # answer's, and itself for padding, so that no row of attention weights is empty.
    whole = length + group * kept
    places = torch.arange(whole, device=input_ids.device)
    branch = (places - length).div(max(kept, 1), rounding_mode="floor")
    ends = torch.where(places < length, whole, length + (branch + 1) * kept).repeat(prompts, 1)
    real = attention_mask.bool()
    ends[:, :length] = torch.where(real, ends[:, :length], places[:length] + 1)
    steps = (places[length:] - length) % max(kept, 1)
    before = (attention_mask.cumsum(1) - 1).clamp_min(0)
    positions = torch.cat([before, attention_mask.sum(1, keepdim=True) + steps], dim=1)
    config: Any = getattr(model, "module", model).config  # inside what shares the work
    logits = model(
        input_ids=torch.cat([input_ids, answers[:, :, :kept].flatten(1)], dim=1),
        attention_mask=attention_masks(config, ends, positions),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=1 + group * kept,
    ).logits.float()
    total = logits.logsumexp(dim=-1)
    with torch.no_grad():
        entropy = (total - (logits - total[..., None]).exp().mul_(logits).sum(-1)).mean(1)
    first = logits[:, 0].gather(1, answers[:, :, 0]) - total[:, :1]
    rest = logits[:, 1:].unflatten(1, (group, kept)).gather(3, answers[:, :, 1:, None])[..., 0]
    rest = rest - total[:, 1:].unflatten(1, (group, kept))
    return torch.cat([first[..., None], rest], dim=2), entropy


def group_advantages(rewards: Tensor, weights: Tensor, *, scale: bool) -> Tensor:
    """Return by how much each reward is above its group's mean; 0 where all of a group are alike.

    Args:
        rewards: float32 [prompts, group].
        weights: how much each answer counts in its group, float32 [prompts, group]; rows sum to 1.
        scale: divide by the group's standard deviation (of the group, not of a sample of it).
    """
    centred = rewards - (weights * rewards).sum(1, keepdim=True)
    spread = (weights * centred.square()).sum(1, keepdim=True).sqrt()
    centred = torch.where(spread > SPREAD, centred, 0)
    return centred / spread.clamp_min(SPREAD) if scale else centred


def kl_estimate(log_probs: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """Return how far the model is from the reference, per token, never below 0; float32 [prompts].

    The estimator of Schulman (http://joschu.net/blog/kl-approx.html) that GRPO uses, unbiased for
    tokens that the model draws; over the best of a beam it is a distance, not the divergence.

    Args:
        log_probs, reference: float32 [prompts, group, tokens].
        weights: as for `group_advantages`.
    """
    gap = reference - log_probs
    return ((gap.exp() - gap - 1).mean(2) * weights).sum(1)


def grpo_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return GRPO's clipped objective, negated, and the share of tokens whose gradient is cut off.

    Args:
        log_probs: with gradient, float32 [prompts, group, tokens].
        old: those of the model that answered, of the same shape.
        advantages: float32 [prompts, group].
        weights: as for `group_advantages`.
        clip: how far the ratio of the two may be from 1.
    """
    ratio = (log_probs - old).exp()
    gains = ratio * advantages[..., None]
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages[..., None]
    objective = (torch.minimum(gains, clipped).mean(2) * weights).sum(1).mean()
    return -objective, (clipped < gains).float().mean()


def dpo_loss(log_probs: Tensor, reference: Tensor, is_target: Tensor, beta: float) -> Tensor:
    """Return S-DPO's loss: the target preferred to all other answers of its group at once.

    log(1 + sum of exp(r_other - r_target)), where r is beta times what an answer's log-probability
    has gained on the reference's (arXiv 2406.09215, equation 11).

    Args:
        log_probs: with gradient, float32 [prompts, group, tokens].
        reference: of the same shape.
        is_target: bool [prompts, group], one of each row.
        beta: scale of the implicit reward.
    """
    gained = beta * (log_probs - reference).sum(2)
    target = gained.masked_fill(~is_target, 0).sum(1)
    others = gained.masked_fill(is_target, -torch.inf).logsumexp(1)
    return F.softplus(others - target).mean()
