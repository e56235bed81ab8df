"""What two rankings of the same users have in common, and what only one of them finds.

Rankings are items A and B of a user, whose first K count, against the held-out items T
(arXiv 2604.22195):

    overlap      mean over users of |A and B| / |A or B|
    hits         (user, target) pairs that both find, A alone, B alone; their shares of all found
    users        who gets a hit from both, from A alone, from B alone, from none
    oracle       mean over users of |(A or B) and T| / |T|: what a perfect choice between the two
                 would find, in up to 2 K places; oracle_at_k counts at most K of them

Popularity is how often an item stands in the train sequences, and activity how many items a user
has there. The groups of items end at the .60 and .80 quantiles of popularity over the catalogue.
Figures of a group are of users with a target in it, and of those targets alone.
"""

from typing import Any

import numpy as np

from lcrec.rankings.metrics import PAD

GROUPS = ("cold", "mid", "hot")
QUANTILES = (0.60, 0.80)
SIDES = ("both", "a_only", "b_only")


def popularity_groups(counts: np.ndarray) -> np.ndarray:
    """Return each item's place in `GROUPS`, int64 [items].

    Args:
        counts: how often each item stands in the train sequences, int64 [items].
    """
    return np.searchsorted(np.quantile(counts, QUANTILES), counts)


def overlap(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Return |A and B| / |A or B| of the first k items, float64 [users]; 1 where both are empty.

    Args:
        a, b: int64 [users, length], distinct ids, padded with -1.
        k: how many items count.
    """
    both = np.sort(np.concatenate((a[:, :k], b[:, :k]), axis=1), axis=1)  # one list has none twice
    common = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != PAD)).sum(axis=1)
    union = (both != PAD).sum(axis=1) - common
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def found_targets(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return which targets are among the first k items, bool [users, targets].

    Args:
        ranked: int64 [users, length], padded with -1.
        targets: int64 [users, targets], padded with -1, which is never found.
        k: how many items count.
    """
    return (ranked[:, None, :k] == targets[:, :, None]).any(axis=2) & (targets != PAD)


def target_places(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return where the first target found stands, int64 [users]: 1 is the top, 0 is not found.

    Args:
        ranked: int64 [users, length], padded with -1.
        targets: int64 [users], or [users, targets] padded with -1.
        k: how many items count.
    """
    targets = targets.reshape(len(targets), -1)
    hits = (ranked[:, :k, None] == targets[:, None, :]) & (targets != PAD)[:, None, :]
    hit = hits.any(axis=2)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)


def compare_lists(
    a: np.ndarray,
    b: np.ndarray,
    targets: np.ndarray,
    k: int,
    *,
    popularity: np.ndarray,
    activity: np.ndarray,
) -> dict[str, Any]:
    """Return everything that the module's docstring names, JSON values only.

    Args:
        a, b: int64 [users, length], distinct ids, best first, padded with -1.
        targets: int64 [users], or [users, targets] padded with -1.
        k: how many items of each list count.
        popularity: int64 [items], how often each item stands in the train sequences.
        activity: int64 [users], how many items each user has there.

    Returns:
        {"overlap", "hits": {"both", "a_only", "b_only", "total", "complementary",
        "log_popularity": {side: mean or None}}, "users": {side or "none": count, "log_activity":
        {side or "none": mean or None}}, "all": figures, "groups": {group: figures}} where figures
        are {"users", "recall_a", "recall_b", "oracle", "oracle_at_k", "gain"}: `gain` is the
        oracle less the better of the two. A group without targets has None in place of figures.
    """
    targets = targets.reshape(len(targets), -1)
    in_a, in_b = (found_targets(ranked, targets, k) for ranked in (a, b))
    sides = dict(zip(SIDES, (in_a & in_b, in_a & ~in_b, in_b & ~in_a), strict=True))
    counts = {side: int(found.sum()) for side, found in sides.items()}
    total = sum(counts.values())
    log_popularity = np.log1p(popularity[targets])  # a pad takes the last item's, and no part
    by_a, by_b = in_a.any(axis=1), in_b.any(axis=1)
    classes = dict(zip(SIDES, (by_a & by_b, by_a & ~by_b, by_b & ~by_a), strict=True))
    classes["none"] = ~(by_a | by_b)
    log_activity = np.log1p(activity)
    groups = popularity_groups(popularity)[targets]
    real = targets != PAD
    return {
        "overlap": float(overlap(a, b, k).mean()),
        "hits": {
            **counts,
            "total": total,
            "complementary": (counts["a_only"] + counts["b_only"]) / total if total else None,
            "log_popularity": {side: _mean(log_popularity[found]) for side, found in sides.items()},
        },
        "users": {
            **{name: int(members.sum()) for name, members in classes.items()},
            "log_activity": {
                name: _mean(log_activity[members]) for name, members in classes.items()
            },
        },
        "all": _figures(in_a, in_b, real, k),
        "groups": {
            name: _figures(in_a, in_b, real & (groups == place), k)
            for place, name in enumerate(GROUPS)
        },
    }


def _figures(
    in_a: np.ndarray, in_b: np.ndarray, counted: np.ndarray, k: int
) -> dict[str, float] | None:
    """Return recall and oracle over the counted targets, bool [users, targets] all three."""
    truths = counted.sum(axis=1)
    having = truths > 0
    if not having.any():
        return None

    def mean_share(found: np.ndarray, most: int) -> float:
        hits = np.minimum((found & counted).sum(axis=1), most)
        return float((hits[having] / truths[having]).mean())

    everything = in_a.shape[1]
    recall_a, recall_b = mean_share(in_a, everything), mean_share(in_b, everything)
    oracle = mean_share(in_a | in_b, everything)
    return {
        "users": int(having.sum()),
        "recall_a": recall_a,
        "recall_b": recall_b,
        "oracle": oracle,
        "oracle_at_k": mean_share(in_a | in_b, k),
        "gain": oracle - max(recall_a, recall_b),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
