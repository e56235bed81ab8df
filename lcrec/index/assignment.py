"""Every item its own path: nearest codes first, then an optimal assignment where items collide.

An item whose nearest path nobody shares keeps it. Within each prefix (all levels but the last) the
others get distinct free last codes at the least total squared distance. Items that a full prefix
cannot take go to the next nearest prefix with a free path.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lcrec.core.errors import InputError
from lcrec.index.clustering import nearest_codes


@dataclass(frozen=True)
class Assignment:
    """Unique codes, and what uniqueness cost.

    Attributes:
        codes: int32 [items, levels], no two rows alike.
        nearest: int32 [items, levels], the codes before uniqueness, rows may be alike.
    """

    codes: np.ndarray
    nearest: np.ndarray

    @property
    def conflict_rate(self) -> float:
        """The share of items whose nearest path is not theirs alone."""
        return float(shared_rows(self.nearest).mean())

    @property
    def moved(self) -> np.ndarray:
        """The items whose path is not their nearest, int64 [moved]."""
        return np.flatnonzero((self.codes != self.nearest).any(axis=1))


def assign_unique(
    latents: np.ndarray,
    codebooks: np.ndarray,
    *,
    nearest: np.ndarray | None = None,
    taken: np.ndarray | None = None,
) -> Assignment:
    """Give every item its own path of codes.

    Args:
        latents: float [items, dim].
        codebooks: float [levels, codes, dim]; a path stands for the sum of its codes.
        nearest: int [items, levels], the path each item asks for; the nearest codes by default.
        taken: int [others, levels], distinct paths that no item may get.

    Raises:
        InputError: there are fewer free paths than items.
    """
    num_levels, num_codes, _ = codebooks.shape
    taken = np.empty((0, num_levels), dtype=np.int32) if taken is None else taken
    require_capacity(len(latents) + len(taken), num_levels, num_codes)
    if nearest is None:
        books = torch.from_numpy(codebooks)
        nearest = nearest_codes(torch.from_numpy(latents).to(books), books).numpy()
    nearest = nearest.astype(np.int32)
    codes = nearest.copy()
    # Those that were there before come first, and stay.
    everyone = np.concatenate([taken.astype(np.int32), nearest])
    colliding = shared_rows(everyone)
    colliding[: len(taken)] = False
    left_over: list[np.ndarray] = []
    for group in _groups_by_prefix(everyone, colliding):
        items = group[colliding[group]] - len(taken)
        free = np.ones(num_codes, dtype=bool)
        free[everyone[group[~colliding[group]], -1]] = False
        prefix = everyone[group[0], :-1]
        residual = latents[items] - sum(
            (codebooks[level][code] for level, code in enumerate(prefix)), start=np.float32(0)
        )
        rows, columns = _match(residual, codebooks[-1][free])
        codes[items[rows], -1] = np.flatnonzero(free)[columns]
        left_over.append(np.delete(items, rows))
    unplaced = np.concatenate([*left_over, np.empty(0, dtype=np.int64)])
    if len(unplaced):
        occupied = np.concatenate([taken, np.delete(codes, unplaced, axis=0)])
        codes[unplaced] = _place(latents[unplaced], codebooks, occupied)
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


def shared_rows(paths: np.ndarray) -> np.ndarray:
    """Tell which rows of int [rows, levels] are not the only ones of their kind, bool [rows]."""
    order = np.lexsort(paths.T[::-1])
    same = (paths[order[1:]] == paths[order[:-1]]).all(axis=1)
    shared = np.zeros(len(paths), dtype=bool)
    shared[order] = np.r_[False, same] | np.r_[same, False]
    return shared


def _groups_by_prefix(paths: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each prefix that has a wanted row, in the order of the prefixes."""
    if paths.shape[1] == 1:
        return [np.arange(len(paths))] if wanted.any() else []
    order = np.lexsort(paths[:, :-1].T[::-1])
    prefixes = paths[order, :-1]
    starts = np.flatnonzero(np.r_[True, (prefixes[1:] != prefixes[:-1]).any(axis=1)])
    ends = np.r_[starts[1:], len(order)]
    some = np.logical_or.reduceat(wanted[order], starts)
    return [order[start:end] for start, end in zip(starts[some], ends[some], strict=True)]


def _match(points: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match as many points [points, dim] and codes [codes, dim] as there are of the fewer.

    Returns the rows and the columns of the pairs, at the least total squared distance.
    """
    rows = np.arange(len(points))
    if len(points) > 4 * len(codes) ** 2:
        # However many points there are: each code gets one of those nearest to it.
        rows = _nearest_points(points, codes)
    chosen, columns = linear_sum_assignment(cdist(points[rows], codes, "sqeuclidean"))
    return rows[chosen], columns


def _nearest_points(points: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return rows of `points` among which each code finds as many of its nearest as codes."""
    best = np.empty((0, len(codes)), dtype=np.int64)
    best_distance = np.empty((0, len(codes)))
    keep = len(codes)
    for start in range(0, len(points), 16_384):
        distance = cdist(points[start : start + 16_384], codes, "sqeuclidean")
        rows = np.broadcast_to(np.arange(len(distance))[:, None] + start, distance.shape)
        distance, rows = np.concatenate([best_distance, distance]), np.concatenate([best, rows])
        if len(distance) > keep:
            order = np.argpartition(distance, keep - 1, axis=0)[:keep]
            distance = np.take_along_axis(distance, order, axis=0)
            rows = np.take_along_axis(rows, order, axis=0)
        best, best_distance = rows, distance
    return np.unique(best)


def _place(latents: np.ndarray, codebooks: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Return a free path for each latent, int32 [items, levels], one after the other.

    Each goes down the tree by the nearest code that still has capacity below it.

    Args:
        latents: float [items, dim].
        codebooks: float [levels, codes, dim].
        occupied: int [others, levels], the paths that are not free.
    """
    num_levels = len(codebooks)
    norms = (codebooks**2).sum(axis=2) / 2
    tree = _Branch(occupied[np.lexsort(occupied.T[::-1])], codebooks.shape[1])
    paths = np.empty((len(latents), num_levels), dtype=np.int32)
    for path, residual in zip(paths, latents, strict=True):
        branch = tree
        for level, codebook in enumerate(codebooks):
            # Half the squared distance, up to what all codes share.
            distance = np.where(branch.capacity > 0, norms[level] - codebook @ residual, np.inf)
            path[level] = code = int(distance.argmin())
            branch.capacity[code] -= 1
            if level < num_levels - 1:
                residual = residual - codebook[code]
                branch = branch.below(code)
    return paths


class _Branch:
    """A branch of the tree of paths: the capacity left below each of its codes.

    Args:
        occupied: the occupied paths of this branch, int [paths, levels left], in order.
    """

    def __init__(self, occupied: np.ndarray, num_codes: int) -> None:
        whole = num_codes ** (occupied.shape[1] - 1)
        self.occupied, self.num_codes = occupied, num_codes
        counts = np.bincount(occupied[:, 0], minlength=num_codes)
        # The capacity of the whole tree may exceed 64 bits; no catalogue does.
        self.capacity = min(whole, np.iinfo(np.int64).max) - counts
        self.ends = np.cumsum(counts)
        self.branches: dict[int, _Branch] = {}

    def below(self, code: int) -> "_Branch":
        """Return the branch below a code, counted when it is first visited."""
        if code not in self.branches:
            start = self.ends[code - 1] if code else 0
            occupied = self.occupied[start : self.ends[code], 1:]
            self.branches[code] = _Branch(occupied, self.num_codes)
        return self.branches[code]
