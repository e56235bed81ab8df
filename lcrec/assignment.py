"""Every item its own path: nearest codes first, then an optimal assignment where items collide.

Within each prefix (all levels but the last) the items get distinct last codes at the least total
squared distance. Items that a full prefix cannot hold go to the next nearest prefix that has room.

Public names: `assign_unique`, `Assignment`, `require_capacity`.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lcrec.errors import InputError


@dataclass(frozen=True)
class Assignment:
    """Unique codes, and what uniqueness cost.

    Attributes:
        codes: int32 [items, levels], no two rows alike.
        nearest: int32 [items, levels], the nearest code at each level, rows may be alike.
    """

    codes: np.ndarray
    nearest: np.ndarray

    @property
    def conflict_rate(self) -> float:
        """The share of items whose nearest path is not theirs alone."""
        _, inverse, counts = np.unique(
            self.nearest, axis=0, return_inverse=True, return_counts=True
        )
        return float((counts[inverse] > 1).mean())

    @property
    def moved(self) -> np.ndarray:
        """The items whose path is not their nearest, int64 [moved]."""
        return np.flatnonzero((self.codes != self.nearest).any(axis=1))


def assign_unique(latents: np.ndarray, codebooks: np.ndarray) -> Assignment:
    """Give every item its own path of codes.

    Args:
        latents: float [items, dim].
        codebooks: float [levels, codes, dim]; a path stands for the sum of its codes.

    Raises:
        InputError: there are fewer paths than items.
    """
    num_levels, num_codes, _ = codebooks.shape
    items = len(latents)
    require_capacity(items, num_levels, num_codes)
    nearest, residual = _nearest(latents, codebooks)
    codes = nearest.copy()
    order = np.lexsort(nearest[:, :-1].T[::-1]) if num_levels > 1 else np.arange(items)
    prefixes = nearest[order, :-1]
    starts = np.flatnonzero(np.r_[True, (prefixes[1:] != prefixes[:-1]).any(axis=1)])
    left_over: list[int] = []
    for group in np.split(order, starts[1:]):
        if len(np.unique(nearest[group, -1])) == len(group):
            continue
        distance = cdist(residual[group], codebooks[-1], "sqeuclidean")
        rows, columns = linear_sum_assignment(distance)
        codes[group[rows], -1] = columns
        left_over.extend(np.setdiff1d(group, group[rows]).tolist())
    if left_over:
        _place(left_over, latents, codebooks, codes)
    return Assignment(codes, nearest)


def require_capacity(items: int, num_levels: int, num_codes: int) -> None:
    """Check that there are as many paths as items.

    Raises:
        InputError: there are fewer; the least number of levels, or of codes, is named.
    """
    if num_codes**num_levels >= items:
        return
    below = int(items ** (1 / num_levels)) - 1  # counting on is exact, where a root is not
    codes = next(codes for codes in count(below) if codes**num_levels >= items)
    levels = next(levels for levels in count(num_levels) if max(num_codes, 2) ** levels >= items)
    raise InputError(
        f"--levels {num_levels} of --codes {num_codes} spell {num_codes**num_levels} items, the "
        f"catalogue has {items}: use --levels {levels} or --codes {codes}"
    )


def _nearest(latents: np.ndarray, codebooks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nearest codes [items, levels] and the residual before the last level [items, dim]."""
    codes = np.empty((len(latents), len(codebooks)), dtype=np.int32)
    residual = latents
    for level, codebook in enumerate(codebooks):
        if level:
            residual = residual - codebooks[level - 1][codes[:, level - 1]]
        # In slices: all distances at once would be items x codes.
        for start in range(0, len(latents), 65_536):
            part = slice(start, start + 65_536)
            codes[part, level] = cdist(residual[part], codebook, "sqeuclidean").argmin(axis=1)
    return codes, residual


def _place(items: list[int], latents: np.ndarray, codebooks: np.ndarray, codes: np.ndarray) -> None:
    """Write into `codes` a free path for each of `items`, whose own prefix is full."""
    num_levels, num_codes, _ = codebooks.shape
    capacity = [num_codes ** (num_levels - depth) for depth in range(num_levels + 1)]
    used: Counter[tuple[int, ...]] = Counter()
    settled = np.setdiff1d(np.arange(len(codes)), items)
    for taken in codes[settled].tolist():
        used.update(tuple(taken[:depth]) for depth in range(1, num_levels + 1))
    for item in items:
        path: tuple[int, ...] = ()
        residual = latents[item]
        for codebook in codebooks:
            for code in np.argsort(((residual - codebook) ** 2).sum(axis=1), kind="stable"):
                branch = (*path, int(code))
                # A branch with room always has room further down.
                if used[branch] < capacity[len(branch)]:
                    break
            path, residual = branch, residual - codebook[branch[-1]]
        codes[item] = path
        used.update(path[:depth] for depth in range(1, num_levels + 1))
