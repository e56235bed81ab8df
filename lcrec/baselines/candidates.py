"""Dot products of users with the items drawn against each of them.

With hundreds of draws per user, a table of the drawn vectors, [batch, draws, dim], is the bulk of
a training step's time and memory. On a CPU it is never made: the scores are the entries of a
sparse matrix [batch, nodes], and their gradients two sparse products.

Reads and writes nothing. Public names: `candidate_scores`.
"""

from typing import Any

import torch
from scipy import sparse
from torch.nn import functional


def candidate_scores(
    users: torch.Tensor, vectors: torch.Tensor, candidates: torch.Tensor
) -> torch.Tensor:
    """Return the dot products of each user with the candidates of this user.

    Args:
        users: float32 [batch, dim].
        vectors: float32 [nodes, dim], all that can be a candidate.
        candidates: int64 [batch, draws], rows of `vectors`; one may be drawn twice.

    Returns:
        float32 [batch, draws].
    """
    if len(vectors) < candidates.shape[1]:  # the whole table is the smaller one
        return (users @ vectors.T).gather(1, candidates)
    if users.device.type == "cpu":
        return _Sampled.apply(users, vectors, candidates)
    return torch.einsum("bd,bnd->bn", users, functional.embedding(candidates, vectors))


class _Sampled(torch.autograd.Function):
    """The same on a CPU, from one pass over the candidates and none over their vectors' copies."""

    @staticmethod
    def forward(
        ctx: Any, users: torch.Tensor, vectors: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(users, vectors, candidates)
        batch, draws = candidates.shape
        wanted = torch.sparse_csr_tensor(
            torch.arange(0, batch * draws + 1, draws),
            candidates.flatten(),
            torch.zeros(batch * draws),
            size=(batch, len(vectors)),
            check_invariants=False,  # columns are neither sorted nor distinct, and need not be
        )
        scores = torch.sparse.sampled_addmm(wanted, users, vectors.T, beta=0.0)
        return scores.values().view(batch, draws)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        users, vectors, candidates = ctx.saved_tensors
        batch, draws = candidates.shape
        entries = sparse.csr_array(
            (
                grad.flatten().numpy(),
                candidates.flatten().int().numpy(),
                torch.arange(0, batch * draws + 1, draws, dtype=torch.int32).numpy(),
            ),
            shape=(batch, len(vectors)),
        )
        by_user = torch.from_numpy(entries @ vectors.numpy())
        by_candidate = torch.from_numpy(entries.T.tocsr() @ users.numpy())
        return by_user, by_candidate, None
