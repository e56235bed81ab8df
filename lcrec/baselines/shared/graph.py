"""Builds the graph of who bought what, and smooths over it (LightGCN, He et al. 2020, equation 7).

    A = [[0, R], [R^T, 0]],  A_hat = D^-1/2 A D^-1/2,  smooth(E) = mean over k = 0 .. K of A_hat^k E

R (`purchases`) is 1 where the user has the item in a train sequence, however often. A node without
an edge has a row of zeros in A_hat, so that only its own layer 0 is left of it, divided by K + 1.
`VectorBaseline` is what methods share that keep a vector per user and item.
"""

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from lcrec.baselines.base import UNKNOWN, Baseline
from lcrec.baselines.shared.losses import sparse_rows_product


def normalised_adjacency(bought: sparse.csr_array) -> torch.Tensor:
    """Return A_hat, sparse CSR float32 [users + items, users + items].

    Args:
        bought: R, as `purchases` gives it.
    """
    adjacency = sparse.block_array([[None, bought], [bought.T, None]], format="csr")
    degrees = adjacency.sum(axis=1)
    with np.errstate(divide="ignore"):
        roots = np.where(degrees > 0, degrees**-0.5, 0).astype(np.float32)
    scaled = (sparse.diags_array(roots) @ adjacency @ sparse.diags_array(roots)).tocsr()
    with warnings.catch_warnings():  # torch calls its sparse matrices a beta, once per process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(scaled.indptr.astype(np.int32)),
            torch.from_numpy(scaled.indices.astype(np.int32)),
            torch.from_numpy(scaled.data.astype(np.float32)),
            size=scaled.shape,
        )


class _Multiply(torch.autograd.Function):
    """A @ x for a symmetric sparse A, whose gradient is A @ g: no transpose is ever built."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a)
        return _multiply(a, x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        (a,) = ctx.saved_tensors
        return None, _multiply(a, grad)


def _multiply(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if a.device.type != "cpu":
        return a @ x
    return sparse_rows_product(a.crow_indices(), a.col_indices(), a.values(), x)


def _as_scipy(a: torch.Tensor) -> sparse.csr_array:
    """Return the same matrix, on a CPU, sharing its memory."""
    parts = (a.values().numpy(), a.col_indices().numpy(), a.crow_indices().numpy())
    return sparse.csr_array(parts, shape=tuple(a.shape))


def smooth(adjacency: torch.Tensor, embeddings: torch.Tensor, layers: int) -> torch.Tensor:
    """Return the mean of the embeddings and their `layers` propagations.

    Args:
        adjacency: A_hat, symmetric.
        embeddings: float32 [users + items, dim], users first.
        layers: K; 0 returns the embeddings.
    """
    total = current = embeddings
    for _ in range(layers):
        current = _Multiply.apply(adjacency, current)
        total = total + current
    return total / (layers + 1)


def own_share(adjacency: torch.Tensor, layers: int) -> torch.Tensor:
    """Return how much of each node's own embedding is in its output of `smooth`.

    It is the mean over k = 0 .. K of the diagonal of A_hat^k. The graph has two sides, so that
    odd powers have none; of an even one it is the squared length of the rows of the half power.

    Returns:
        float32 [users + items], 1 where K is 0.
    """
    matrix = _as_scipy(adjacency.cpu())
    total = np.ones(matrix.shape[0])
    half = matrix
    for power in range(2, layers + 1, 2):
        if power > 2:
            half = half @ matrix
        total += half.multiply(half).sum(axis=1)
    return torch.from_numpy((total / (layers + 1)).astype(np.float32)).to(adjacency.device)


class VectorBaseline(Baseline):
    """A method whose `fit` leaves `user_vectors` [users, dim] and `item_vectors` [items, dim]."""

    learnt: ClassVar[tuple[str, ...]] = ("user_vectors", "item_vectors")
    user_vectors: np.ndarray
    item_vectors: np.ndarray

    def keep(self, vectors: torch.Tensor, num_users: int) -> None:
        """Take all vectors, [users + items, dim], users first."""
        rows = vectors.detach().cpu().numpy()
        self.user_vectors, self.item_vectors = rows[:num_users], rows[num_users:]

    def finish(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors as they are matched: of length one where the loss goes by cosines."""
        by_cosine = self.settings.loss == "info_nce"
        return functional.normalize(vectors, dim=-1) if by_cosine else vectors

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the dot products, float32 [batch, num_items]."""
        return dot_scores(users, histories, self.user_vectors, self.item_vectors)


def dot_scores(
    users: np.ndarray,
    histories: list[np.ndarray],
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
) -> np.ndarray:
    """Return the dot products of users and all items, float32 [batch, items].

    A user of whom there is no vector is the mean of the vectors of the items in their history.

    Args:
        users, histories: as for `Baseline.score`.
        user_vectors: float32 [users, dim].
        item_vectors: float32 [items, dim].
    """
    vectors = user_vectors[users]  # a copy; rows of -1 are replaced
    for row in np.flatnonzero(users == UNKNOWN):
        vectors[row] = item_vectors[histories[row]].mean(axis=0)
    return vectors @ item_vectors.T
