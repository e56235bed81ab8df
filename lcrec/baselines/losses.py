"""Losses that several methods share.

Reads and writes nothing. Public names: `bpr`, `info_nce`, `alignment`, `uniformity`.
"""

import torch
from torch.nn import functional


def bpr(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log sigmoid(positive - negative) (Rendle et al. 2009).

    Args:
        positive: scores [batch].
        negative: scores [batch], or [batch, negatives].
    """
    if negative.ndim > positive.ndim:
        positive = positive[:, None]
    return functional.softplus(negative - positive).mean()


def info_nce(positive: torch.Tensor, negative: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean of -log(exp(s+ / t) / (exp(s+ / t) + sum of exp(s- / t))), log-domain.

    Args:
        positive: cosines [batch].
        negative: cosines [batch, negatives].
        temperature: t, above 0.
    """
    logits = torch.cat((positive[:, None], negative), dim=1) / temperature
    return functional.cross_entropy(
        logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    )


def alignment(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of L2-normalised pairs (Wang and Isola 2020): 0 to 4.

    Args:
        x, y: [pairs, dim].
    """
    x, y = functional.normalize(x, dim=-1), functional.normalize(y, dim=-1)
    return (x - y).square().sum(dim=-1).mean()


def uniformity(x: torch.Tensor) -> torch.Tensor:
    """Return log mean exp(-2 |x_i - x_j|^2) over distinct pairs of L2-normalised rows.

    0 where all coincide, at least -8 (Wang and Isola 2020). Fewer than two rows have no pair: 0.

    Args:
        x: [rows, dim].
    """
    if len(x) < 2:
        return x.sum() * 0
    x = functional.normalize(x, dim=-1)
    return torch.pdist(x).square().mul(-2).exp().mean().log()
