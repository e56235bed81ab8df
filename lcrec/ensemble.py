"""One list from several: what a user gets when they were asked about in several wordings.

The joint list holds the items of all lists (their union), ordered by the mean of their scores. An
item that a wording left out counts there with that wording's last score: by beam search's own
account it is worth at most that.

Public names: `join_lists`.
"""

import numpy as np


def join_lists(items: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best items of several rankings of the same users.

    Args:
        items: int64 `[wordings, users, length]`, distinct ids, best first; -1 where there is none.
        scores: float32 `[wordings, users, length]`, log-probabilities; -inf where the item is -1.
        k: how many items to keep.

    Returns:
        items int64 `[users, k]`, -1 where the union is smaller, and their mean scores float32
        `[users, k]`, -inf there. Of equal scores the lower id comes first.
    """
    wordings, users, _ = items.shape
    joint = np.full((users, k), -1, dtype=np.int64)
    means = np.full((users, k), -np.inf, dtype=np.float32)
    for user in range(users):
        own, own_scores = items[:, user], scores[:, user]
        union = np.unique(own[own >= 0])
        table = np.full((wordings, len(union)), np.nan)
        for wording in range(wordings):
            found = own[wording] >= 0
            if not found.any():
                continue  # a wording that found nothing says nothing
            table[wording] = own_scores[wording][found].min()
            table[wording, np.searchsorted(union, own[wording][found])] = own_scores[wording][found]
        if len(union):
            total = np.nanmean(table, axis=0).astype(np.float32)
            best = np.argsort(-total, kind="stable")[:k]
            joint[user, : len(best)], means[user, : len(best)] = union[best], total[best]
    return joint, means
