"""One request on the screen: what a customer had or looks for, and what the model recommends.

Public names: `Wish`, `answer_wish`, `show_ranking`, `show_examples`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.data.folder import Items
from lcrec.data.splits import Cases
from lcrec.prompts import Template
from lcrec.rankings.fusion import join_lists
from lcrec.rankings.predictions import read_predictions
from lcrec.recommender import Recommender


@dataclass(frozen=True)
class Wish:
    """One request.

    Attributes:
        history: what the customer has, oldest first; may be empty where there is a query.
        query: what they look for, in words.
        k: how many items to recommend.
        num_beams: beams to search with; None for the recommender's own choice.
        exclude_history: never recommend what they have.
        allowed: the only items they may get; None for all of them.
        explain: whether the model shall also say in words what it makes of them.
    """

    history: list[int]
    query: str | None
    k: int
    num_beams: int | None
    exclude_history: bool
    allowed: np.ndarray | None
    explain: bool


def answer_wish(
    recommender: Recommender, items: Items, wish: Wish, templates: Sequence[Template | None]
) -> None:
    """Print the items for one request, by title; asked in several wordings, their joint list.

    Args:
        recommender: what ranks.
        items: the catalogue, for the titles.
        wish: the request.
        templates: wordings of `itemsearch` where there is a query, else of `seqrec`; None for the
            recommender's own choice.

    Raises:
        InputError: what `Recommender.recommend`, `search` and `explain` raise.
    """
    rankings = []
    for template in templates:
        allow = None if wish.allowed is None else [wish.allowed]
        if wish.query is None:
            ranking = recommender.recommend(
                [wish.history],
                wish.k,
                allow=allow,
                exclude_history=wish.exclude_history,
                template=template,
                num_beams=wish.num_beams,
            )
        else:
            ranking = recommender.search(
                [wish.query],
                histories=[wish.history],
                k=wish.k,
                allow=allow,
                exclude_history=wish.exclude_history,
                template=template,
                num_beams=wish.num_beams,
            )
        rankings.append(ranking)
    ranked, scores = rankings[0].items, rankings[0].scores
    if len(rankings) > 1:
        ranked, scores = join_lists(
            np.stack([ranking.items for ranking in rankings]),
            np.stack([ranking.scores for ranking in rankings]),
            wish.k,
        )
    found = ranked[0][ranked[0] >= 0]
    if wish.query is not None:
        print(f"  looks for: {wish.query}")
    show_ranking(items, wish.history, found, scores[0])
    if wish.explain:
        (words,) = recommender.explain([wish.history], [found])
        if words.preference is not None:
            print(f"  the model takes them to like: {words.preference}")
        if words.titles is not None:
            print("  the model reads the items as:")
            for place, title in enumerate(words.titles, start=1):
                print(f"  {place:>3} {title}")


def show_examples(predictions: Path, cases: Cases, items: Items, count: int) -> None:
    """Print the recommendations of `count` users spread over the split."""
    if not count:
        return
    lists = next(iter(read_predictions(predictions).ranked.values()))
    for case in np.linspace(0, len(cases) - 1, min(count, len(cases)), dtype=int):
        print(f"\nUser {cases.users[case]}")
        ranked = lists[case][:5]
        target = int(cases.targets[case])
        show_ranking(items, cases.histories[case], ranked[ranked >= 0], target=target)
    print()


def show_ranking(
    items: Items,
    history: Sequence[int] | np.ndarray,
    ranked: np.ndarray,
    scores: np.ndarray | None = None,
    target: int | None = None,
) -> None:
    """Print what a user had and what is recommended, by title; `target` is marked if found."""
    if len(history):
        print("  had, latest last:")
    for item in list(history)[-5:]:
        print(f"      {int(item):>7}  {items.title(int(item)):.80}")
    print("  recommended:")
    for place, item in enumerate(ranked.tolist(), start=1):
        score = "" if scores is None else f"  {scores[place - 1]:8.3f}"
        mark = "  <- taken" if item == target else ""
        print(f"  {place:>3} {item:>7}{score}  {items.title(item):.80}{mark}")
    if not len(ranked):
        print("      nothing: no beam ended in an item")
    if target is not None and target not in ranked:
        print(f"  taken: {target:>4}  {items.title(target):.80}")
