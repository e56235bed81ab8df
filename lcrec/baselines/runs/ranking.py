"""The one way in which every method ranks the catalogue, to stop training and to be judged.

One rule for masking: what the split forbids (`EvalCases.exclude`) is left out, and with
`exclude_history` the items of a user's history too, but never an item that is held out as the
truth. (The released code of several methods masks other items in validation than in test, which
makes their figures incomparable.)
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from lcrec.baselines.base import TrainingData, trained_positions
from lcrec.data.splits import EvalCases
from lcrec.rankings.metrics import PAD, ndcg_at_k
from lcrec.rankings.predictions import top_items

SCORES_AT_ONCE = 2**22  # 16 MB, and a few times that while they are ranked


class Scorer(Protocol):
    """What can be ranked by: a fitted `Baseline`, or a view of one."""

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Score the whole catalogue for each user; see `Baseline.score`."""
        ...

    def score_without(
        self, users: np.ndarray, histories: list[np.ndarray], exclude: list[np.ndarray]
    ) -> np.ndarray:
        """Score it where some items will not be ranked; see `Baseline.score_without`."""
        ...


def rank_cases(
    method: Scorer, cases: EvalCases, data: TrainingData, *, top: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rank the catalogue for every case, batch by batch, with a fitted method.

    Args:
        method: fitted.
        cases: the users, their histories and targets.
        data: what it was fitted on, to know the users by, and whether their items are masked.
        top: how many items to rank; all of them where the catalogue is smaller, and fewer where
            the method reaches fewer (`Baseline.max_list_length`).

    Yields:
        per case, in order, item ids int64 [length] and scores float32 [length], best first; of
        equal scores the lower id comes first.
    """
    users = trained_positions(data.train, cases.users)
    batch = max(1, SCORES_AT_ONCE // data.num_items)
    for start in range(0, len(cases), batch):
        rows = slice(start, start + batch)
        exclude = excluded(cases, rows, data.exclude_history)
        asked = users[rows], cases.histories[rows]
        if exclude is None:
            scores = method.score(*asked)
        else:
            scores = method.score_without(*asked, exclude)
        yield from top_items(scores, top, exclude)


def ranked_matrix(method: Scorer, cases: EvalCases, data: TrainingData, *, top: int) -> np.ndarray:
    """Return what `rank_cases`, whose arguments these are, lists: int64 [cases, top], -1 pads."""
    ranked = np.full((len(cases), top), PAD, dtype=np.int64)
    for row, (items, _) in zip(ranked, rank_cases(method, cases, data, top=top), strict=True):
        row[: len(items)] = items
    return ranked


def validate(method: Scorer, cases: EvalCases, data: TrainingData) -> float:
    """Return NDCG@10 over the full ranking: what training stops on, for every method alike.

    Arguments are those of `rank_cases`.
    """
    ranked = ranked_matrix(method, cases, data, top=10)
    return float(ndcg_at_k(ranked, cases.targets, 10).mean())


def validator(
    method: Scorer, data: TrainingData, refresh: Callable[[], None] | None = None
) -> Callable[[], float] | None:
    """Return the score that `train_epochs` asks for; None without cases.

    Args:
        method: in training.
        data: what it is trained on; its lists will be masked as the validation's are.
        refresh: brings what `score` works with up to the weights of now, where that is needed.
    """
    cases = data.valid
    if cases is None:
        return None

    def score_now() -> float:
        if refresh is not None:
            refresh()
        return validate(method, cases, data)

    return score_now


def excluded(cases: EvalCases, rows: slice, exclude_history: bool) -> list[np.ndarray] | None:
    """Return what must not be ranked, per case, never a target; None where nothing is excluded.

    The split may forbid items of its own; with `exclude_history` a history's are left out too.
    """
    sources = [cases.exclude] if cases.exclude is not None else []
    sources += [cases.histories] if exclude_history else []
    if not sources:
        return None
    lists = [np.concatenate(ids) for ids in zip(*(source[rows] for source in sources), strict=True)]
    ids, targets = np.concatenate(lists), cases.targets[rows].reshape(len(lists), -1)
    owners = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
    span = int(max(ids.max(initial=0), targets.max())) + 2  # keys of a case, from -1 on
    own = np.arange(len(lists))[:, None] * span + targets
    kept = ~np.isin(owners * span + ids, own)
    counts = np.bincount(owners[kept], minlength=len(lists))
    ids, ends = ids[kept], np.cumsum(counts)
    return [ids[start:end] for start, end in zip(ends - counts, ends, strict=True)]
