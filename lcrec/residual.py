"""Residual quantisation with given codebooks, and residual k-means, which finds some.

A path of codes stands for the sum of its codes' vectors; each level quantises what the levels
before it left over. Residual k-means is where the RQ-VAE starts, and two kinds of index of their
own: plain, and balanced, where all codes of a level receive an equal share of the items.

Public names: `nearest_codes`, `residual_kmeans`.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from lcrec.sinkhorn import balanced_codes, sinkhorn

SLICE = 65_536  # rows whose distances to all codes are held at once
BALANCED_ITEMS = 8192  # items that share a codebook evenly at once
BALANCED_EPSILON = 0.001
BALANCED_ROUNDS = 10


@torch.no_grad()
def nearest_codes(latents: Tensor, codebooks: Tensor) -> Tensor:
    """Return the nearest code at each level, int64 [batch, levels].

    Args:
        latents: float [batch, dim].
        codebooks: [levels, codes, dim], of the same type and on the same device.
    """
    codes = torch.empty((len(latents), len(codebooks)), dtype=torch.int64, device=latents.device)
    for start in range(0, len(latents), SLICE):
        residual = latents[start : start + SLICE]
        for level, codebook in enumerate(codebooks):
            chosen = torch.cdist(residual, codebook).argmin(dim=1)
            residual = residual - codebook[chosen]
            codes[start : start + SLICE, level] = chosen
    return codes


def residual_kmeans(
    points: np.ndarray,
    num_codes: int,
    seed: int,
    *,
    balanced: Sequence[bool],
    weighted: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return codebooks, float32 [levels, codes, dim], and codes, int64 [items, levels].

    Args:
        points: float32 [items, dim].
        num_codes: how many codes each level has.
        seed: decides the k-means starts.
        balanced: for each level, whether its codes share the items evenly (constrained k-means,
            Bradley et al. 2000; here by transport, among some thousand items at a time).
        weighted: from the second level on, count an item's error relative to what is left of it.
            Plain k-means spends most codes there on single items far from all others (on Office
            Products the perplexity of 256 codes was 36, 8 and 5), and the many that are nearly
            explained stay together.
    """
    num_levels = len(balanced)
    codebooks = np.empty((num_levels, num_codes, points.shape[1]), dtype=np.float32)
    codes = np.empty((len(points), num_levels), dtype=np.int64)
    residual = points
    for level in tqdm(range(num_levels), desc="k-means", unit="level"):
        weights = _weights(residual) if weighted and level else None
        centres = _centres(residual, num_codes, seed + level, weights)
        if balanced[level]:
            centres, chosen = _balance(residual, centres, seed + level)
        else:
            chosen = _nearest(residual, centres)
        residual = residual - centres[chosen]
        codebooks[level], codes[:, level] = centres, chosen
    return codebooks, codes


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    codebook = torch.from_numpy(centres)[None]
    return nearest_codes(torch.from_numpy(points), codebook)[:, 0].numpy()


def _weights(residual: np.ndarray) -> np.ndarray:
    """Return what turns squared errors into relative ones, float32 [items], within bounds."""
    distance = np.linalg.norm(residual, axis=1)
    mean = distance.mean()
    return (distance / mean + 1e-2) ** -2 if mean > 0 else np.ones_like(distance)


def _centres(
    points: np.ndarray, count: int, seed: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return k-means centres, float32 [count, dim]; too few points are repeated with noise."""
    # Telling a million rows apart takes long, and the first few thousand nearly always suffice.
    distinct = np.unique(points[: 4 * count], axis=0)
    if len(distinct) <= count:
        distinct = np.unique(points, axis=0)
    if len(distinct) > count:
        fitted = KMeans(count, n_init=1, max_iter=50, random_state=seed)
        # On several threads k-means adds up in the order in which they come, which decides the
        # last digits, and in the end the codes: the same seed would give another index.
        with threadpool_limits(1), warnings.catch_warnings():
            # Rows that differ by rounding alone end in one cluster, which leaves others empty.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.fit(points, sample_weight=weights)
        return fitted.cluster_centers_.astype(np.float32)
    rng = np.random.default_rng(seed)
    spare = distinct[rng.integers(len(distinct), size=count - len(distinct))]
    noise = rng.normal(scale=max(points.std(), 1e-3) * 0.1, size=spare.shape)
    return np.concatenate([distinct, spare + noise]).astype(np.float32)


def _balance(points: np.ndarray, centres: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centres, float32 [codes, dim], and codes, int64 [items], evenly used."""
    order = np.random.default_rng(seed).permutation(len(points))
    parts = np.array_split(order, max(1, len(order) // BALANCED_ITEMS))
    chosen = np.empty(len(points), dtype=np.int64)
    for _ in range(BALANCED_ROUNDS):
        for part in parts:
            cost = torch.cdist(torch.from_numpy(points[part]), torch.from_numpy(centres)).square()
            plan = sinkhorn(cost, BALANCED_EPSILON, tolerance=0.05, max_rounds=20)
            chosen[part] = balanced_codes(plan, slack=1.0).numpy()
        sums = np.zeros_like(centres)
        np.add.at(sums, chosen, points)
        load = np.bincount(chosen, minlength=len(centres))[:, None]
        centres = np.where(load > 0, sums / np.maximum(load, 1), centres).astype(np.float32)
    return centres, chosen
