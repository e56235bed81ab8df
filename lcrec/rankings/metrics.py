"""How good ranked lists are: accuracy per user, and how sure the mean over users is.

Works on integer item ids, never on text. A ranked list is a row of distinct item ids, best first,
padded with -1 at its end; the truth of a user is one id, or a row of distinct ids padded with -1.
Every metric returns one value per user, so that means, intervals and paired comparisons use the
same numbers.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

# What a table of ranked lists shows, where every user has one target and where some have several.
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")
MULTI_TARGET_METRICS = ("Recall@10", "Recall@20", "NDCG@10", "NDCG@20")
# Of the bootstrap.
SAMPLES = 1000
LEVEL = 0.95
PAD = -1
BLOCK = 2**22  # resampled values in memory at once


def hit_at_k(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return 1 where at least one target is among the first `k` items, else 0.

    Args:
        ranked: integer [users, list length], distinct ids best first, padded with -1.
        targets: integer [users], or [users, targets] padded with -1.
        k: how many items count, at least 1; a shorter list counts as it is.

    Returns:
        float64 [users].

    Raises:
        ValueError: shapes that do not fit, ids that are no integers, a user without a target.
    """
    hits, _ = _hits(ranked, targets, k)
    return np.where(hits.any(axis=1), 1.0, 0.0)


def recall_at_k(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return the share of each user's targets that are among the first `k` items.

    With one target per user this is `hit_at_k`. Arguments, shape of the result and errors are
    those of `hit_at_k`.
    """
    hits, truths = _hits(ranked, targets, k)
    return hits.sum(axis=1) / truths


def ndcg_at_k(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return the normalised discounted cumulative gain of the first `k` items.

    A target at rank r (from 1) gains 1 / log2(r + 1). The sum is divided by that of the best
    possible list, which has min(k, number of targets) targets in front (Järvelin and Kekäläinen
    2002, binary gains). Arguments, shape of the result and errors are those of `hit_at_k`.
    """
    hits, truths = _hits(ranked, targets, k)
    discounts = 1 / np.log2(np.arange(k) + 2)
    ideal = np.cumsum(discounts)[np.minimum(truths, k) - 1]
    # Not `hits @ discounts`: BLAS may add up the same row otherwise at another place.
    return np.where(hits, discounts[: hits.shape[1]], 0.0).sum(axis=1) / ideal


def mrr(ranked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return 1 / rank of the first target in the list.

    A target that is not in the list contributes 0, whatever its rank would have been: the value
    depends on how long the lists are, so compare lists cut to one length. Arguments, shape of the
    result and errors are those of `hit_at_k`.
    """
    hits, _ = _hits(ranked, targets, max(1, np.shape(ranked)[-1]))
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def measure_lists(
    ranked: np.ndarray, targets: np.ndarray, depth: int, metrics: Sequence[str] = METRICS
) -> dict[str, np.ndarray]:
    """Return metrics by name, float64 [users] each.

    Args:
        ranked, targets: as for `hit_at_k`.
        depth: how far down the lists MRR looks, in items.
        metrics: "MRR", or "HR", "Recall" or "NDCG" with "@" and how many items count.
    """
    functions = {"HR": hit_at_k, "Recall": recall_at_k, "NDCG": ndcg_at_k}
    values = {}
    for metric in metrics:
        name, _, k = metric.partition("@")
        if name == "MRR":
            values[metric] = mrr(ranked[:, :depth], targets)
        else:
            values[metric] = functions[name](ranked, targets, int(k))
    return values


def exact_mean(values: np.ndarray) -> float:
    """Return the mean of all values, correctly rounded: the same in whatever order they stand."""
    return math.fsum(values.ravel().tolist()) / values.size


def mean_over_templates(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return each user's mean over templates, [users], the same for any order of the templates."""
    return np.sort(np.stack(values), axis=0).mean(axis=0)


def summarise(values: np.ndarray, seed: int, owners: np.ndarray | None = None) -> dict[str, float]:
    """Return the mean over users, [users], and the ends of its 95 % bootstrap interval, by name.

    Arguments as for `summarise_all`, but for one metric.
    """
    return summarise_all({"": values}, seed, owners)[""]


def summarise_all(
    values: Mapping[str, np.ndarray], seed: int, owners: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Return `summarise` of each of several metrics of the same users, drawn once for all.

    Args:
        values: float [users] each; float [cases] where users have several.
        seed: of the resampling.
        owners: int [cases], a number of each case's user: users are drawn, each with all their
            cases, over which the mean is taken. None where users have one case each.
    """
    names = list(values)
    means = _resampled_means([values[name] for name in names], seed, SAMPLES, owners)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return {
        name: {
            "mean": exact_mean(values[name]),
            "low": float(low[place]),
            "high": float(high[place]),
        }
        for place, name in enumerate(names)
    }


def bootstrap_interval(
    values: np.ndarray,
    seed: int,
    samples: int = SAMPLES,
    level: float = LEVEL,
    owners: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return a percentile bootstrap interval for the mean over users.

    The same seed and number of users draw the same users, so intervals of several metrics or
    methods rest on the same resamples.

    Args:
        values: float [users], one value of a metric per user, at least one.
        seed: of the resampling.
        samples: how many times as many users are drawn, with replacement.
        level: the share of resampled means inside the interval, between 0 and 1.
        owners: as for `summarise_all`; values are then float [cases].

    Returns:
        the lower and the upper end (Efron 1979).

    Raises:
        ValueError: no values, more than one axis, or a level outside (0, 1).
    """
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, samples {samples} above 0")
    means = _resampled_means([values], seed, samples, owners)[0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    values: Sequence[np.ndarray],
    reference: np.ndarray,
    seed: int,
    samples: int = SAMPLES,
    owners: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """Compare methods with one of them on the same users, each user with itself.

    Args:
        values: float [users] each, one value of a metric per user, of every other method.
        reference: float [users], that of the one.
        seed: of the resampling.
        samples: how many times as many users are drawn, with replacement.
        owners: as for `summarise_all`.

    Returns:
        of each, `difference`, its mean less the reference's; `low` and `high`, the ends of the
        difference's 95 % bootstrap interval; `p`, two-sided: twice the share of resamples in which
        the difference has not its sign, the observed one counted among them (Davison and Hinkley
        1997, section 4.2), so never below 2 / (samples + 1) and 1 where there is no difference.
    """
    differences = [rows - reference for rows in values]
    found = []
    resampled = _resampled_means(differences, seed, samples, owners)
    for rows, means in zip(differences, resampled, strict=True):
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        against = min(int((means <= 0).sum()), int((means >= 0).sum()))
        p = min(1.0, 2 * (1 + against) / (1 + samples))
        found.append(
            {"difference": float(rows.mean()), "low": float(low), "high": float(high), "p": p}
        )
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values adjusted for there being several of them (Holm 1979), in their order.

    The smallest is multiplied by their number, the next by one less, and so on; none falls below
    the one before it, nor rises above 1.
    """
    adjusted = [0.0] * len(ps)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def _resampled_means(
    values: Sequence[np.ndarray], seed: int, samples: int, owners: np.ndarray | None = None
) -> np.ndarray:
    """Return the means of the same resamples of users for each of several values [users], or of
    the values [cases] of their cases, float64 [values, samples]."""
    for rows in values:
        if rows.ndim != 1 or not len(rows) or len(rows) != len(values[0]):
            raise ValueError(f"expected values of shape [users], found {list(rows.shape)}")
    counts: np.ndarray | None = None
    if owners is not None:
        _, owners = np.unique(owners, return_inverse=True)
        counts = np.bincount(owners)
        values = [np.bincount(owners, rows) for rows in values]
    rng = np.random.default_rng(seed)
    users = len(values[0])
    means = np.empty((len(values), samples))
    block = max(1, BLOCK // users)
    for start in range(0, samples, block):
        count = min(block, samples - start)
        drawn = rng.integers(0, users, size=(count, users), dtype=np.int32)
        cases = users if counts is None else counts[drawn].sum(axis=1)
        for place, rows in enumerate(values):
            means[place, start : start + count] = rows[drawn].sum(axis=1) / cases
    return means


def _hits(ranked: np.ndarray, targets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the first k places hold a target, bool [users, places], and the number of
    targets per user, int64 [users]."""
    ranked, targets = np.asarray(ranked), np.asarray(targets)
    if k < 1:
        raise ValueError(f"k is {k}; at least one item must count")
    if ranked.dtype.kind not in "iu" or targets.dtype.kind not in "iu":
        raise ValueError(f"item ids must be integers, found {ranked.dtype} and {targets.dtype}")
    if targets.ndim == 1:
        targets = targets[:, None]
    if ranked.ndim != 2 or targets.ndim != 2 or len(ranked) != len(targets):
        raise ValueError(
            f"expected ranked [users, length] and targets [users] or [users, targets], found "
            f"{list(ranked.shape)} and {list(targets.shape)}"
        )
    truths = (targets != PAD).sum(axis=1)
    if not truths.all():
        raise ValueError(f"user {int(np.argmin(truths))} has no target")
    places = ranked[:, :k]
    hits = np.zeros(places.shape, dtype=bool)
    for column in targets.T:
        # A padded target must not match a padded place.
        hits |= (places == column[:, None]) & (column != PAD)[:, None]
    return hits, truths
