"""Quantises vectors level by level, with codebooks from residual k-means or balanced assignment.

A path of codes stands for the sum of its codes' vectors; each level quantises what the levels
before it left over. Residual k-means is where the RQ-VAE starts, and two kinds of index of their
own: plain, and balanced, where all codes of a level receive an equal share of the items.

`sinkhorn` assigns a batch to a codebook evenly, LC-Rec's uniform semantic mapping: it solves the
entropic transport problem of the paper (arXiv 2311.09049, equation 7 and algorithm 1; Cuturi 2013),
where every row spends 1/batch and every code receives 1/codes. It works on the dual potential of
the codes in the log domain, which no epsilon overflows, and comes down to the wanted epsilon from a
larger one, which is what makes a small one converge. `balanced_codes` reads one code per row off a
plan, and evens out what a plain argmax leaves crowded.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from lcrec.core.console import progress

SLICE = 65_536  # rows whose distances to all codes are in memory at once
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
    for level in progress(range(num_levels), "k-means", "levels"):
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


def even_clusters(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the cluster of each point, int64 [points], all of about the same size.

    Args:
        points: float32 [points, dim].
    """
    return _balance(points, _centres(points, count, seed), seed)[1]


FIRST_EPSILON = 1.0  # costs are scaled to [-1, 1]: here the plan is all but uniform
ANNEALING = 0.25
SETTLING_ROUNDS = 5  # at each epsilon on the way down
SCALINGS = 20  # multiplications with the kernel between two steps in the log domain
PUBLISHED_ITERATIONS = 50


@dataclass(frozen=True)
class TransportPlan:
    """A plan between a batch and a codebook.

    Attributes:
        log_mass: float64 [batch, codes], the logarithm of what goes from a row to a code.
        row_error: the largest relative difference of a row's mass from 1/batch. The columns'
            difference from 1/codes is rounding alone.
    """

    log_mass: Tensor
    row_error: float


@torch.no_grad()
def sinkhorn(
    cost: Tensor, epsilon: float, *, tolerance: float = 1e-3, max_rounds: int = 1000
) -> TransportPlan:
    """Return the balanced plan of least cost plus epsilon times negative entropy.

    Costs are scaled to [-1, 1] by their least and largest, as in the paper's code.

    Args:
        cost: float [batch, codes], any finite values.
        epsilon: entropic regularisation, > 0; smaller is closer to the exact assignment.
        tolerance: the row error at which iteration ends.
        max_rounds: rounds of one step in the log domain and `SCALINGS` multiplications after which
            it ends regardless; the plan's `row_error` tells how near it came.
    """
    scaled = _scaled(cost)
    potential = scaled.new_zeros(scaled.shape[1])
    coarse = FIRST_EPSILON
    while coarse > epsilon:
        _, potential = _solve(scaled, coarse, potential, tolerance, SETTLING_ROUNDS)
        coarse *= ANNEALING
    return _solve(scaled, epsilon, potential, tolerance, max_rounds)[0]


@torch.no_grad()
def sinkhorn_as_published(cost: Tensor, epsilon: float) -> TransportPlan:
    """Return the plan of the published code: 50 alternations at one epsilon, from nothing.

    Arguments and scaling are those of `sinkhorn`; logarithms keep it from overflowing.
    """
    scaled = _scaled(cost)
    potential = scaled.new_zeros(scaled.shape[1])
    for _ in range(PUBLISHED_ITERATIONS):
        log_mass, potential = _alternate(scaled, epsilon, potential)
    return TransportPlan(log_mass, _row_error(log_mass.exp()))


def balanced_codes(plan: TransportPlan, slack: float = 2.0) -> Tensor:
    """Return the code of each row, int64 [batch]: the one that receives most of its mass.

    Where that leaves a code with less than its share of batch/codes over `slack`, or more than its
    share times `slack` (rows that are all alike, for one, all have the same argmax), rows are
    moved, those first that lose least, until none is left so. Shares are rounded as they must be:
    a batch smaller than the codebook cannot give each code a row.
    """
    batch, num_codes = plan.log_mass.shape
    codes = plan.log_mass.argmax(dim=1)
    load = torch.bincount(codes, minlength=num_codes)
    fewest = min(math.ceil(batch / num_codes / slack), batch // num_codes)
    most = max(math.floor(batch / num_codes * slack), math.ceil(batch / num_codes))
    if int(load.max()) <= most and int(load.min()) >= fewest:
        return codes
    return torch.from_numpy(
        _even_out(plan.log_mass.cpu().numpy(), codes.cpu().numpy(), fewest, most)
    ).to(codes.device)


def _even_out(log_mass: np.ndarray, codes: np.ndarray, fewest: int, most: int) -> np.ndarray:
    """Return codes [batch], where each code has `fewest` to `most` rows."""
    load = np.bincount(codes, minlength=log_mass.shape[1])
    for crowded in np.flatnonzero(load > most):
        rows = np.flatnonzero(codes == crowded)
        for row in rows[np.argsort(log_mass[rows, crowded], kind="stable")][: len(rows) - most]:
            target = np.where(load < most, log_mass[row], -np.inf).argmax()
            codes[row] = target
            load[crowded] -= 1
            load[target] += 1
    for empty in np.flatnonzero(load < fewest):
        while load[empty] < fewest:
            loss = log_mass[np.arange(len(codes)), codes] - log_mass[:, empty]
            row = np.where(load[codes] > fewest, loss, np.inf).argmin()
            load[codes[row]] -= 1
            load[empty] += 1
            codes[row] = empty
    return codes


def _scaled(cost: Tensor) -> Tensor:
    """Return the cost in [-1, 1], float64: one of 1e-4 epsilons apart is lost in float32."""
    cost = cost.double()
    low, high = cost.min(), cost.max()
    # Halves first: the difference of two finite numbers need not be finite.
    return (cost / 2 - (low / 2 + high / 2) / 2) / ((high / 2 - low / 2) / 2 + 5e-6)


def _alternate(scaled: Tensor, epsilon: float, potential: Tensor) -> tuple[Tensor, Tensor]:
    """Balance rows, then columns; return the log plan and the codes' new potential."""
    batch, codes = scaled.shape
    log_mass = (potential - scaled) / epsilon
    log_mass -= log_mass.logsumexp(1, keepdim=True) + math.log(batch)
    excess = log_mass.logsumexp(0) + math.log(codes)
    return log_mass - excess, potential - epsilon * excess


def _row_error(mass: Tensor) -> float:
    return float((mass.sum(1) * len(mass) - 1).abs().max())


def _solve(
    scaled: Tensor, epsilon: float, potential: Tensor, tolerance: float, max_rounds: int
) -> tuple[TransportPlan, Tensor]:
    """Iterate at one epsilon from the given potential; return the plan and the potential."""
    batch, codes = scaled.shape
    for _ in range(max_rounds):
        log_mass, potential = _alternate(scaled, epsilon, potential)
        mass = log_mass.exp()
        error = _row_error(mass)
        if error < tolerance:
            break
        # The same iteration without logarithms, from a plan near enough not to overflow. A code
        # that does is left to the next step in the log domain.
        factor = scaled.new_ones(codes)
        for _ in range(SCALINGS):
            factor = 1 / codes / ((1 / batch / (mass @ factor)) @ mass)
        log_factor = factor.log()
        potential = potential + epsilon * torch.where(log_factor.isfinite(), log_factor, 0.0)
    return TransportPlan(log_mass, error), potential
