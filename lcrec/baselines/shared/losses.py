"""Losses that several methods share, and the scores of users against items drawn for each of them.

With hundreds of draws per user, a table of the drawn vectors, [batch, draws, dim], is the bulk of
a training step's time and memory. On a CPU `candidate_scores` never makes it: the scores are the
entries of a sparse matrix [batch, nodes], and their gradients two sparse products.
"""

import math
from typing import Any

import torch
from scipy import sparse
from torch.nn import functional

from lcrec.baselines.settings import NextItemLoss

LOGITS_AT_ONCE = 2**19  # 2 MB in float32


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
    # |x_i - x_j|^2 is 2 - 2 x_i . x_j.
    dots = (2 * x @ (2 * x).T).fill_diagonal_(-torch.inf)
    return dots.logsumexp(dim=(0, 1)) - 4 - math.log(len(x) * (len(x) - 1))


def bce(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log sigmoid(positive) - log(1 - sigmoid(negative)) (SASRec, section 3.5).

    Args:
        positive: scores [batch].
        negative: scores [batch, negatives]; those of a row are summed.
    """
    return (functional.softplus(-positive) + functional.softplus(negative).sum(dim=-1)).mean()


def next_item_loss(
    kind: NextItemLoss,
    states: torch.Tensor,
    vectors: torch.Tensor,
    targets: torch.Tensor,
    drawn: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean loss of scoring items by state . vector + bias, given what came next.

    Args:
        kind: ce: softmax over the catalogue; sampled: softmax over the target and the items drawn;
            bce and bpr: the target against the items drawn, in pairs.
        states: [predictions, dim].
        vectors: of the whole catalogue, [items, dim].
        targets: int64 [predictions].
        drawn: int64 [predictions, negatives], items that are no targets; not used by ce.
        bias: [items]; None: 0.
    """
    if kind == "ce":
        return full_softmax(states, vectors, targets, bias)
    assert drawn is not None
    positive = (states * vectors[targets]).sum(dim=-1)
    negative = torch.einsum("pd,pnd->pn", states, vectors[drawn])
    if bias is not None:
        positive, negative = positive + bias[targets], negative + bias[drawn]
    if kind == "sampled":
        return info_nce(positive, negative, 1.0)
    return bce(positive, negative) if kind == "bce" else bpr(positive, negative)


def full_softmax(
    states: torch.Tensor,
    vectors: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy of softmax(states @ vectors^T + bias) at the targets.

    Equal to `cross_entropy` of the whole matrix of logits, but only `LOGITS_AT_ONCE` numbers
    are ever in memory, whatever the batch and the catalogue. The gradient of a chunk, p - 1 at the
    target, is taken while the chunk is there, which saves the second forward pass that
    checkpointing needs.

    Args:
        states: [predictions, dim].
        vectors: [items, dim].
        targets: int64 [predictions].
        bias: [items]; None: 0.
    """
    return _FullSoftmax.apply(states, vectors, targets, bias)


class _FullSoftmax(torch.autograd.Function):
    """See `full_softmax`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        vectors: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        grad_states, grad_vectors = torch.empty_like(states), torch.zeros_like(vectors)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        total = states.new_zeros(())
        size = max(1, LOGITS_AT_ONCE // len(vectors))
        for start in range(0, len(states), size):
            rows = slice(start, start + size)
            part, places = states[rows], targets[rows, None]
            logits = part @ vectors.T
            if bias is not None:
                logits += bias
            largest = logits.amax(dim=1, keepdim=True)
            matched = logits.gather(1, places) - largest
            sums = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
            total += (sums.log() - matched).sum()
            logits.div_(sums)
            logits.scatter_add_(1, places, torch.full_like(sums, -1))
            grad_states[rows] = logits @ vectors
            grad_vectors.addmm_(logits.T, part)
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
        ctx.save_for_backward(grad_states, grad_vectors, grad_bias)
        ctx.count = len(states)
        return total / ctx.count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_states, grad_vectors, grad_bias = ctx.saved_tensors
        scale = grad / ctx.count
        return (
            grad_states * scale,
            grad_vectors * scale,
            None,
            None if grad_bias is None else grad_bias * scale,
        )


def sampled_dots(rows: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the dot product of each row with entries of a table, [batch, count].

    By all products [batch, entries] where these are fewer numbers than the entries themselves,
    [batch, count, dim]; else by `candidate_scores`.

    Args:
        rows: [batch, dim].
        table: [entries, dim].
        ids: int64 [batch, count], positions in the table.
    """
    if len(table) <= ids.shape[1] * table.shape[1]:
        return (rows @ table.T).gather(1, ids)
    return candidate_scores(rows, table, ids)


def sparse_rows_product(
    starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Return a sparse CSR matrix, given by its parts, times [columns, dim], on a CPU.

    A sum of embeddings is the same thing, and takes a third of the time of SciPy's product, which
    takes a third of that of torch's.
    """
    return functional.embedding_bag(
        *(columns, table, starts), mode="sum", per_sample_weights=values, include_last_offset=True
    )


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
        starts = torch.arange(0, batch * draws + 1, draws, dtype=torch.int32)
        entries = sparse.csr_array(
            (grad.flatten().numpy(), candidates.flatten().int().numpy(), starts.numpy()),
            shape=(batch, len(vectors)),
        )
        by_user = sparse_rows_product(starts, candidates.flatten().int(), grad.flatten(), vectors)
        by_candidate = torch.from_numpy(entries.T @ users.numpy())
        return by_user, by_candidate, None
