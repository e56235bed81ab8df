"""Fuses several rankings into one: those of prompt templates, or of methods.

`join_lists` joins the lists of several prompt templates: the union of their items, ordered by the
mean of their scores. An item that a template did not rank counts there with that template's last
score: by beam search's own account it is worth at most that.

`fuse` joins the lists of several methods, with weights that are given or found on validation:

    rrf    sum over files of  weight / (60 + rank)        (Cormack, Clarke and Büttcher 2009)
    score  sum over files of  weight * (score - lowest) / (highest - lowest)   of the user's list
                                                         (CombSUM: Fox and Shaw 1994; Lee 1997)

An item that a file does not rank gets nothing from it; a file of weight 0 takes no part, so that
items of its lists alone are not ranked either. Weights are searched on a grid over those that add
up to 1, for the best NDCG@10; `lcrec.rankings.adaptive` finds weights of each user's own.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lcrec.core.console import progress
from lcrec.rankings.metrics import PAD


def join_lists(items: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best items of several rankings of the same users.

    Args:
        items: int64 `[templates, users, length]`, distinct ids, best first; -1 where there is none.
        scores: float32 `[templates, users, length]`, log-probabilities; -inf where the item is -1.
        k: how many items to keep.

    Returns:
        items int64 `[users, k]`, -1 where the union is smaller, and their mean scores float32
        `[users, k]`, -inf there. Of equal scores the lower id comes first.
    """
    templates, users, _ = items.shape
    joint = np.full((users, k), -1, dtype=np.int64)
    means = np.full((users, k), -np.inf, dtype=np.float32)
    for user in range(users):
        own, own_scores = items[:, user], scores[:, user]
        union = np.unique(own[own >= 0])
        table = np.full((templates, len(union)), np.nan)
        for template in range(templates):
            found = own[template] >= 0
            if not found.any():
                continue  # a template that found nothing says nothing
            table[template] = own_scores[template][found].min()
            table[template, np.searchsorted(union, own[template][found])] = own_scores[template][
                found
            ]
        if len(union):
            total = np.nanmean(table, axis=0).astype(np.float32)
            best = np.argsort(-total, kind="stable")[:k]
            joint[user, : len(best)], means[user, : len(best)] = union[best], total[best]
    return joint, means


RANK_CONSTANT = 60
FINEST = 20  # steps from weight 0 to weight 1
MOST_WEIGHTS = 1000
Lists = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pool:
    """All that several files list, one entry per user and item, users and then items rising.

    Attributes:
        num_users: how many users, with or without an entry.
        users: int64 [entries], positions.
        items: int64 [entries], ids.
        shares: float64 [entries, files], what each file gives the item.
        is_ranked: bool [entries, files], whether the file ranks the entry.
    """

    num_users: int
    users: np.ndarray
    items: np.ndarray
    shares: np.ndarray
    is_ranked: np.ndarray


def pool(files: Sequence[Lists], how: Literal["rrf", "score"]) -> Pool:
    """Bring the lists of several files together.

    Args:
        files: per file the ranked items, int64 [users, length], padded with -1, and their scores,
            float [users, length]; the same users in the same order.
        how: what an item gets for where it stands in a list.
    """
    users, items, values, sources = [], [], [], []
    for number, (ranked, scores) in enumerate(files):
        found = ranked != PAD
        gained = 1 / (RANK_CONSTANT + 1 + np.arange(ranked.shape[1]))
        shares = np.broadcast_to(gained, ranked.shape) if how == "rrf" else _scaled(scores, found)
        rows, _ = np.nonzero(found)
        users.append(rows)
        items.append(ranked[found])
        values.append(shares[found])
        sources.append(np.full(len(rows), number))
    user, item, source = map(np.concatenate, (users, items, sources))
    width = int(item.max(initial=0)) + 1
    keys, entry = np.unique(user * width + item, return_inverse=True)
    shares = np.zeros((len(keys), len(files)))
    is_ranked = np.zeros(shares.shape, dtype=bool)
    shares[entry, source] = np.concatenate(values)
    is_ranked[entry, source] = True
    return Pool(len(files[0][0]), keys // width, keys % width, shares, is_ranked)


def fuse(pooled: Pool, weights: Sequence[float] | np.ndarray, top: int) -> list[Lists]:
    """Return every user's joint list: item ids, best first, and their fused scores.

    `weights` has one per file, not negative, or a row of these per user, [users, files]; a list has
    `top` items, or as many as there are.

    Returns:
        per user int64 [length] and float32 [length]; of equal scores the lower id comes first.
    """
    scores, takes_part = _fused(pooled, weights)
    users, items, scores = pooled.users[takes_part], pooled.items[takes_part], scores[takes_part]
    order = np.lexsort((items, -scores, users))
    ends = np.cumsum(np.bincount(users, minlength=pooled.num_users))
    parts = [part[:top] for part in np.split(order, ends[:-1])]
    return [(items[part], scores[part]) for part in parts]


def weight_grid(files: int) -> list[tuple[float, ...]]:
    """Return the weights to try, which add up to 1, the most even first.

    The steps are of 1/20, and larger where those would make more than `MOST_WEIGHTS`.
    """
    steps = FINEST
    while steps > 1 and math.comb(steps + files - 1, files - 1) > MOST_WEIGHTS:
        steps -= 1
    bars = itertools.combinations(range(steps + files - 1), files - 1)
    counts = (np.diff((-1, *bar, steps + files - 1)) - 1 for bar in bars)
    grid = [tuple((count / steps).tolist()) for count in counts]
    return sorted(grid, key=lambda weights: max(weights) - min(weights))


def best_weights(pooled: Pool, targets: np.ndarray) -> tuple[tuple[float, ...], float]:
    """Return the weights of the best NDCG@10 over all users, and that value.

    Of equal ones the most even win.

    Args:
        pooled: what the files list for validation.
        targets: int64 [users], or [users, targets] padded with -1.
    """
    grid = weight_grid(pooled.shares.shape[1])
    rivals = _rivals(pooled, targets)
    values = [
        ndcg_of_weights(rivals, weights, targets)
        for weights in progress(grid, "try weights", "weights", leave=False)
    ]
    best = int(np.argmax(values))
    return grid[best], values[best]


def _rivals(pooled: Pool, targets: np.ndarray) -> Pool:
    """Return the targets that a file ranks and what some weights put above one: all that counts."""
    matters = np.zeros(len(pooled.users), dtype=bool)
    for column in targets.reshape(len(targets), -1).T:
        found = np.flatnonzero(pooled.items == column[pooled.users])
        entry = np.full(pooled.num_users, -1)
        entry[pooled.users[found]] = found
        own = entry[pooled.users]
        never = (pooled.shares <= pooled.shares[own]).all(axis=1)
        never &= pooled.items > column[pooled.users]  # of equal scores the lower id comes first
        matters |= (own >= 0) & ~never
    kept = (pooled.users, pooled.items, pooled.shares, pooled.is_ranked)
    return Pool(pooled.num_users, *(values[matters] for values in kept))


def _scaled(scores: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return each list's scores moved to 0 .. 1; where all are equal, all are 1."""
    scores = np.where(found, scores, 0).astype(np.float64)
    low = np.where(found, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(found, scores, -np.inf).max(axis=1, keepdims=True)
    differ = high > low
    scaled = np.ones(scores.shape)
    return np.divide(scores - low, high - low, out=scaled, where=differ & found)


def _fused(pooled: Pool, weights: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every entry's fused score as it is written, and whether any file ranks it."""
    given = np.asarray(weights, dtype=np.float64)
    if given.ndim == 2:
        given = given[pooled.users]
        scores = (pooled.shares * given).sum(axis=1)
    else:
        scores = pooled.shares @ given
    takes_part = np.asarray((pooled.is_ranked & (given > 0)).any(axis=1))
    return scores.astype(np.float32), takes_part


def ndcg_of_weights(
    pooled: Pool, weights: Sequence[float] | np.ndarray, targets: np.ndarray
) -> float:
    """Return the mean NDCG@10, by counting what stands above each target instead of sorting.

    Arguments are those of `fuse` and `best_weights`.
    """
    scores, takes_part = _fused(pooled, weights)
    targets = targets.reshape(len(targets), -1)
    gains = np.zeros(pooled.num_users)
    for column in targets.T:
        found = np.flatnonzero(takes_part & (pooled.items == column[pooled.users]))
        own = np.full(pooled.num_users, np.nan, dtype=np.float32)
        own[pooled.users[found]] = scores[found]
        theirs = own[pooled.users]  # NaN, so below nothing, where the target is not ranked
        above = (scores > theirs) | ((scores == theirs) & (pooled.items < column[pooled.users]))
        ranks = np.bincount(pooled.users[above & takes_part], minlength=pooled.num_users)
        gains += np.where(~np.isnan(own) & (ranks < 10), 1 / np.log2(ranks + 2), 0)
    truths = (targets != PAD).sum(axis=1)
    ideal = np.cumsum(1 / np.log2(np.arange(10) + 2))[np.minimum(truths, 10) - 1]
    return float((gains / ideal).mean())
