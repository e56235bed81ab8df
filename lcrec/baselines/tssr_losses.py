"""The contrasts of TSSR between what an item is called and what it is about.

Both draw their negatives from the batch. Where the released code lets padding into the means and
the negatives, or takes the same item for its own negative, these do not.

Reads and writes nothing. Public names: `user_contrast`, `item_contrast`, `masked_mean`.
"""

import torch
from torch.nn import functional


def masked_mean(states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean over the real places, [batch, dim].

    Args:
        states: [batch, length, dim].
        real: bool [batch, length], one True or more in every row.
    """
    weights = real[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def user_contrast(query: torch.Tensor, key: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean cross-entropy of finding each user's key by cosine / temperature.

    Args:
        query: [batch, dim], users in one stream.
        key: [batch, dim], the same users in the other.
        temperature: above 0.
    """
    logits = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).T
    return functional.cross_entropy(
        logits / temperature, torch.arange(len(query), device=query.device)
    )


def item_contrast(
    query: torch.Tensor, key: torch.Tensor, targets: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy of finding the next item at each place, by dot product.

    Candidates are what came next for the other users of the batch at the same place; one that is
    the same item is no negative.

    Args:
        query: [batch, length, dim], states of one stream.
        key: [batch, length, dim], what the other stream makes of the next items before it knows
            of places or neighbours.
        targets: int64 [batch, length], the next items.
        real: bool [batch, length], where there is a next item.
    """
    logits = torch.einsum("btd,ctd->tbc", query, key)
    batch = len(query)
    by_place = targets.T  # [length, batch]
    itself = torch.eye(batch, dtype=torch.bool, device=query.device)
    barred = ~real.T[:, None, :] | (by_place[:, :, None] == by_place[:, None, :])
    logits = logits.masked_fill(barred & ~itself, -torch.inf)
    wanted = torch.arange(batch, device=query.device).expand(len(logits), -1)
    asked = real.T
    return functional.cross_entropy(logits[asked], wanted[asked])
