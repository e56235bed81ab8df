"""The one way in which every method ranks the catalogue, to stop training and to be judged.

One rule for masking: with `exclude_history`, the items of a user's history are left out, but
never an item that is held out as the truth. (The released code of several methods masks other
items in validation than in test, which makes their figures incomparable.)

Reads and writes nothing. Public names: `rank_cases`, `validate`, `SCORES_AT_ONCE`.
"""

from collections.abc import Iterator

import numpy as np

from lcrec.baselines.base import Baseline, positions
from lcrec.data import Cases, Interactions
from lcrec.errors import InputError
from lcrec.metrics import PAD, ndcg_at_k
from lcrec.predictions import top_items

SCORES_AT_ONCE = 2**22  # 16 MB, and a few times that while they are ranked


def rank_cases(
    method: Baseline,
    cases: Cases,
    train: Interactions,
    num_items: int,
    *,
    top: int,
    exclude_history: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rank the catalogue for every case, batch by batch, with a fitted method.

    Args:
        method: fitted.
        cases: the users, their histories and targets.
        train: what it was fitted on, to know the users by.
        num_items: the size of the catalogue.
        top: how many items to list; all of them where the catalogue is smaller.
        exclude_history: leave out the items of each user's history that are no target.

    Yields:
        per case, in order, item ids int64 [length] and scores float32 [length], best first; of
        equal scores the lower id comes first.

    Raises:
        InputError: a user's history leaves nothing to list.
    """
    users = positions(train, cases.users)
    batch = max(1, SCORES_AT_ONCE // num_items)
    for start in range(0, len(cases), batch):
        rows = slice(start, start + batch)
        exclude = None
        if exclude_history:
            exclude = [
                history[~np.isin(history, targets)]
                for history, targets in zip(cases.histories[rows], cases.targets[rows], strict=True)
            ]
        scores = method.score(users[rows], cases.histories[rows])
        for case, (ranked, values) in enumerate(top_items(scores, top, exclude), start=start):
            if not len(ranked):
                raise InputError(
                    f"user {cases.users[case]!r} already has every item, so none is left to list; "
                    "run again without --exclude-history"
                )
            yield ranked, values


def validate(
    method: Baseline,
    cases: Cases,
    train: Interactions,
    num_items: int,
    *,
    exclude_history: bool = False,
) -> float:
    """Return NDCG@10 over the full ranking: what training stops on, for every method alike.

    Arguments are those of `rank_cases`.
    """
    ranked = np.full((len(cases), 10), PAD, dtype=np.int64)
    lists = rank_cases(method, cases, train, num_items, top=10, exclude_history=exclude_history)
    for row, (items, _) in zip(ranked, lists, strict=True):
        row[: len(items)] = items
    return float(ndcg_at_k(ranked, cases.targets, 10).mean())
