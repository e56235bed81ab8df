"""Places in a ranking for items that the model was not trained on.

A model gives an item that it never saw next to nothing of its probability, however well the item's
codes fit: among all items new ones come out last. So a request may reserve places: the best new
items, found by a search among them alone, take the last places of the ranking, unless enough of
them stand there by themselves. What it costs is what stood in these places.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lcrec.core.errors import InputError
from lcrec.generate.requests import RankingRequest


def new_item_requests(
    requests: Sequence[RankingRequest], new_items: np.ndarray
) -> tuple[list[int], list[RankingRequest]]:
    """Return which requests reserve places, and what is asked of the new items for each of them.

    A request whose allow and deny lists leave no new item is none of them.

    Raises:
        InputError: places are reserved, but no item is new.
    """
    rows, asked = [], []
    among: dict[int, np.ndarray] = {}  # by allow list: requests that share one still do
    for row, own in enumerate(requests):
        if not own.reserve_new:
            continue
        if not len(new_items):
            raise InputError(
                "reserve_new: the model was trained on every item, so none is new; give the index "
                "that adds items to the checkpoint's own (--index)"
            )
        allow = new_items
        if own.allow is not None:
            if id(own.allow) not in among:
                among[id(own.allow)] = new_items[np.isin(new_items, own.allow)]
            allow = among[id(own.allow)]
        left = len(allow) - (0 if own.deny is None else int(np.isin(allow, own.deny).sum()))
        if left:
            k = min(own.reserve_new, left)
            asked.append(replace(own, k=k, allow=allow, num_beams=None, reserve_new=0))
            rows.append(row)
    return rows, asked


def give_places(
    ranking: Sequence[np.ndarray], new: Sequence[np.ndarray], new_items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a ranking whose last places new items have taken, as many as are not in it already.

    Args:
        ranking: item ids, int64 [k], best first, -1 at the end where there are fewer; and their
            scores, float32 [k], falling, -inf where there is no item.
        new: likewise the best new items, [places].
        new_items: int64, the ids of all new items.

    Returns:
        ids and scores as in `ranking`; a score is never above the one before it, so that of an item
        in a reserved place may be less than its own.
    """
    (ranked, scores), (best_new, new_scores) = ranking, new
    is_old = (ranked >= 0) & ~np.isin(ranked, new_items)
    coming = np.flatnonzero((best_new >= 0) & ~np.isin(best_new, ranked))
    there = int((ranked >= 0).sum() - is_old.sum())
    coming = coming[: max(0, int((best_new >= 0).sum()) - there)]
    going = max(0, len(coming) - int((ranked < 0).sum()))
    kept = np.flatnonzero(ranked >= 0)
    if going:
        kept = np.setdiff1d(kept, np.flatnonzero(is_old)[-going:])
    joint, values = np.full_like(ranked, -1), np.full_like(scores, -np.inf)
    count = len(kept) + len(coming)
    joint[:count] = np.concatenate((ranked[kept], best_new[coming]))
    values[:count] = np.minimum.accumulate(np.concatenate((scores[kept], new_scores[coming])))
    return joint, values
