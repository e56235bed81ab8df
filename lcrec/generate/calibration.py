"""Rankings with a share of each item's unconditional log-probability subtracted.

    score(item | history) = log p(item | history) - share * log p(item)

A language model gives some items a part of its probability whatever the history says; the second
term takes that back. p(item) is the mean of p(item | history) over the histories of validation
users, whose answers it does not look at. A search with `BEAMS` beams finds the likeliest items of
each; what is left of a history's probability is spread over the other items evenly. (On Amazon
Office Products this serves as well as scoring every item exactly, and much better than how often
items were bought: see scripts/exact_ranking.py.) The probability of a branch is the sum over the
items below it, so that a search ranks by the formula at every level. `choose_share` takes the share
from validation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lcrec.core.errors import InputError
from lcrec.data.splits import EvalCases
from lcrec.generate.recommender import Ranking, Recommender
from lcrec.generate.requests import RankingRequest, case_requests
from lcrec.rankings.metrics import PAD, ndcg_at_k

SHARES = tuple(step / 10 for step in range(11))
USERS = 500  # of validation, at most
BEAMS = 100
DEPTH = 10
LEAST = 1e-6  # what is left of a history's probability, at least


@dataclass(frozen=True, eq=False)
class Unconditional:
    """What a recommender ranks for validation users, and what it gives items on the whole.

    Attributes:
        cases: the users.
        ranking: the first `BEAMS` items for each.
        log_probs: float64 [items], log p(item).
    """

    cases: EvalCases
    ranking: Ranking
    log_probs: np.ndarray


def unconditional(
    recommender: Recommender,
    cases: EvalCases,
    count_done: Callable[[int], None] = lambda prompts: None,
) -> Unconditional:
    """Return log p(item) by the histories of validation cases, of which some are drawn.

    Args:
        recommender: neither calibrated nor fused.
        cases: of validation.
        count_done: told how many histories were read.

    Raises:
        InputError: the recommender's beams may leave the tree of items, or it is fused.
    """
    if recommender.constraint is not recommender.trie:
        raise InputError("--calibrate needs --constraint trie: other beams leave the tree of items")
    if recommender.fusion is not None:
        raise InputError("a fused recommender has no log-probabilities; calibrate it before")
    num_items = len(recommender.index)
    beams = min(BEAMS, num_items)
    cases = cases.sample(USERS, 0)
    asked = case_requests(cases, RankingRequest(k=beams, num_beams=beams))
    ranking = recommender.rank(asked, count_done=count_done)
    total = np.zeros(num_items)
    for items, scores in zip(ranking.items, ranking.scores, strict=True):
        found = items != PAD
        probs = np.exp(scores[found].astype(np.float64))
        total += max(LEAST, 1 - probs.sum()) / num_items
        total[items[found]] += probs
    return Unconditional(cases, ranking, np.log(total / total.sum()))


def choose_share(known: Unconditional) -> dict[float, float]:
    """Return the validation NDCG@10 of each of `SHARES`, by the lists that are known."""
    items, values = known.ranking.items, {}
    for share in SHARES:
        scores = known.ranking.scores - share * known.log_probs[items]
        order = np.argsort(-np.where(items != PAD, scores, -np.inf), axis=1, kind="stable")
        ranked = np.take_along_axis(items, order, axis=1)
        values[share] = float(ndcg_at_k(ranked, known.cases.targets, DEPTH).mean())
    return values


def calibrate_on(
    recommender: Recommender,
    cases: EvalCases,
    share: float | None = None,
    count_done: Callable[[int], None] = lambda prompts: None,
) -> str:
    """Let a recommender rank less a share of log p(item) from now on, before it is fused.

    Args:
        recommender, cases, count_done: see `unconditional`.
        share: from 0 to 1; None for the one that ranks the cases best.

    Returns:
        what is said of it on the screen.

    Raises:
        InputError: as `unconditional`.
    """
    known = unconditional(recommender, cases, count_done)
    told = ""
    if share is None:
        values = choose_share(known)
        share = max(values, key=values.__getitem__)
        tried = ", ".join(f"{value:.4f} less {own:g}" for own, value in values.items())
        told = f", by NDCG@10 of {len(known.cases):,} validation users\n  {tried}"
    calibrate(recommender, known.log_probs, share)
    return f"--calibrate {share:g}{told}"


def calibrate(recommender: Recommender, log_probs: np.ndarray, share: float) -> None:
    """Let a recommender rank less a share of log p(item), float [items], from now on."""
    recommender.trie = recommender.constraint = recommender.trie.less(log_probs, share)
    recommender.share = share
