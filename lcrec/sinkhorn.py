"""Balanced assignment of a batch to a codebook: LC-Rec's uniform semantic mapping.

`sinkhorn` solves the entropic transport problem of the paper (arXiv 2311.09049, equation 7 and
algorithm 1; Cuturi 2013): every row spends 1/batch, every code receives 1/codes. It works on the
dual potential of the codes in the log domain, which no epsilon overflows, and comes down to the
wanted epsilon from a larger one, which is what makes a small one converge. `balanced_codes` reads
one code per row off a plan, and evens out what a plain argmax leaves crowded.

Public names: `sinkhorn`, `sinkhorn_as_published`, `TransportPlan`, `balanced_codes`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    """Return codes [batch] of which each has `fewest` to `most` rows."""
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
