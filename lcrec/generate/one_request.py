"""What a person chose on the command line of `lcrec.generate`, checked against the data.

One request on the screen: what a customer had or looks for, and what the model recommends.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from lcrec.core.artifacts import read_text
from lcrec.core.console import printable
from lcrec.core.errors import InputError, closest
from lcrec.data.folder import Interactions, Items
from lcrec.data.id_map import IdMap, Names
from lcrec.data.item_filters import FilterError, ItemFilters
from lcrec.data.splits import EvalCases
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.prompts.templates import Template
from lcrec.rankings.fusion import join_lists
from lcrec.rankings.predictions import read_predictions

Unknown = Literal["refuse", "ignore"]


def check_counts(k: int, beams: int | None, num_items: int) -> None:
    """Refuse more items or beams than there are, and fewer beams than items to rank."""
    if k > num_items:
        raise InputError(f"--k {k}: the catalogue has only {num_items} items")
    if beams is not None and beams > num_items:
        raise InputError(f"--beams {beams}: the catalogue has only {num_items} items")
    if beams is not None and beams < k:
        raise InputError(f"--beams {beams} cannot rank --k {k} items; take at least {k} beams")


def load_allowed(
    allow: Path | None,
    deny: Path | None,
    filters: str | None,
    k: int,
    items: Items,
    ids: IdMap,
    unknown: Unknown = "refuse",
) -> np.ndarray | None:
    """Return the items that `--allow`, `--deny` and `--filters` leave, int64 ascending.

    Returns:
        None for all.

    Raises:
        InputError: a file is missing or holds something else than item ids that are known (or, by
            `unknown`, ignored), the filters cannot be used, or no item is left.
    """
    if allow is None and deny is None and filters is None:
        return None
    num_items = len(ids.names)
    may = np.full(num_items, allow is None)
    if allow is not None:
        may[read_item_ids(allow, "--allow", ids, unknown)] = True
    if deny is not None:
        may[read_item_ids(deny, "--deny", ids, unknown)] = False
    if filters is not None:
        passing = np.zeros(num_items, dtype=bool)
        passing[_filtered(filters, items)] = True
        may &= passing
    left = np.flatnonzero(may)
    told = f"--allow, --deny and --filters leave {len(left)} of {num_items} items"
    if not len(left):
        raise InputError(f"{told}, so there is nothing to recommend")
    if len(left) < k:
        print(f"{told}, fewer than --k {k}")
    return left


def _filtered(filters: str, items: Items) -> np.ndarray:
    try:
        wanted = json.loads(filters)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'--filters {filters:.80}: is no JSON ({error}); write \'{{"price": {{"max": 20}}}}\''
        ) from None
    if not isinstance(wanted, dict):
        raise InputError(f"--filters {filters:.80}: expected a JSON object, found another value")
    try:
        return ItemFilters(items).select(wanted)
    except FilterError as error:
        raise InputError(f"--filters: {error}") from None


def read_item_ids(path: Path, flag: str, ids: IdMap, unknown: Unknown) -> list[int]:
    """Read a text file of one item id per line; empty lines are skipped."""
    lines = read_text(path, flag=flag, encoding="utf-8-sig").split("\n")
    items, ignored = [], []
    for number, line in enumerate(lines, start=1):
        written, text = line.removesuffix("\r"), line.strip()
        if not text:
            continue
        if ids.is_raw and written in ids.numbers:
            text = written  # a raw id may begin or end in a space
        item = _find(text, ids)
        if item is not None:
            items.append(item)
        elif unknown == "ignore":
            ignored.append(text)
        else:
            skip = "to skip ids that are not in the catalogue: --unknown ignore"
            raise InputError(f"{flag} {path}, line {number}: {ids.unknown(text)}; {skip}")
    _tell_ignored(f"{flag} {path}", ignored)
    return items


def _find(text: str, ids: IdMap) -> int | None:
    """Return the number of an item, None where it is unknown; a number may begin with zeros."""
    return ids.numbers.get(text if ids.is_raw else text.lstrip("0") or "0")


def _numbers_hint(text: str, ids: IdMap) -> str:
    """Return how to name users and items by number, where a raw id is asked for and none given."""
    is_number = ids.is_raw and text.isascii() and text.isdigit() and int(text[:12]) < len(ids.names)
    return "; for numbers in place of raw ids: --ids numbers" if is_number else ""


def _tell_ignored(where: str, ids: list[str]) -> None:
    if ids:
        named = printable(", ".join(map(repr, ids[:3])) + (", ..." if ids[3:] else ""))
        print(f"{where}: ignoring {len(ids):,} items that are not in the catalogue ({named})")


def history_of(
    user: str, interactions: Interactions, ids: Names, cases: EvalCases | None
) -> list[int]:
    """Return the items of a user: all, or those before the first of their cases.

    Args:
        user: what the user is called.
        interactions: of all users.
        ids: what users and items are called.
        cases: the part of the split to hide; None to hide nothing.

    Raises:
        InputError: there is no such user, or the split holds nothing of theirs.
    """
    if user not in ids.users.numbers:
        near = closest(user, ids.users.names)
        hint = _numbers_hint(user, ids.users)
        raise InputError(f"--user {user}: not in the data set{near}{hint}")
    place = ids.users.numbers[user]
    if cases is None:
        return interactions.sequence(place).tolist()
    name = interactions.users[place]
    if name not in cases.users:
        raise InputError(
            f"--user {user}: the split holds nothing of theirs; leave --split out, or give "
            "--history"
        )
    return cases.histories[cases.users.index(name)].tolist()


def read_history(words: list[str], items: IdMap, unknown: Unknown = "refuse") -> list[int]:
    """Return the items of `--history`, without the unknown ones where these are ignored.

    Raises:
        InputError: one is not in the catalogue, or all are ignored.
    """
    history, ignored = [], []
    for word in words:
        if not items.is_raw and not word.removeprefix("-").isdecimal():
            raise InputError(f"--history: expected a whole number, found {word!r}")
        item = _find(word, items)
        if item is not None:
            history.append(item)
        elif unknown == "ignore":
            ignored.append(word)
        else:
            raise InputError(f"--history: {items.unknown(word)}{_numbers_hint(word, items)}")
    _tell_ignored("--history", ignored)
    if ignored and not history:
        raise InputError("--history: none of its items is in the catalogue; give others")
    return history


def answer_request(
    recommender: Recommender,
    items: Items,
    ids: IdMap,
    request: RankingRequest,
    templates: Sequence[Template | None],
    *,
    explain: bool,
) -> None:
    """Print the items for one request, by title; asked with several templates, the joint ranking.

    Args:
        recommender: what ranks.
        items: the catalogue, for the titles.
        ids: what the items are called.
        request: what to rank; its own template is not looked at.
        templates: of `itemsearch` where there is a query, else of `seqrec`; None for the
            recommender's own choice.
        explain: also print what the model says in words of the customer and of the items.

    Raises:
        InputError: what `Recommender.recommend`, `search` and `explain` raise.
    """
    rankings = [recommender.rank([replace(request, template=own)]) for own in templates]
    ranked, scores = rankings[0].items, rankings[0].scores
    if len(rankings) > 1:
        ranked, scores = join_lists(
            np.stack([ranking.items for ranking in rankings]),
            np.stack([ranking.scores for ranking in rankings]),
            request.k,
        )
    found = ranked[0][ranked[0] >= 0]
    if request.query is not None:
        print(f"  looks for: {printable(request.query)}")
    show_ranking(items, ids, request.history, found, scores[0])
    if explain:
        (words,) = recommender.explain([request.history], [found])
        if words.preference is not None:
            print(f"  the model takes them to like: {printable(words.preference)}")
        if words.titles is not None:
            print("  the model reads the items as:")
            for place, title in enumerate(words.titles, start=1):
                print(f"  {place:>3} {printable(title)}")


def show_examples(
    predictions: Path, cases: EvalCases, items: Items, ids: IdMap, count: int
) -> None:
    """Print the recommendations of `count` users spread over the split."""
    if not count:
        return
    lists = next(iter(read_predictions(predictions).ranked.values()))
    for case in np.linspace(0, len(cases) - 1, min(count, len(cases)), dtype=int):
        print(f"\nUser {printable(cases.users[case])}")
        ranked = lists[case][:5]
        target = int(cases.first_targets[case])
        show_ranking(items, ids, cases.histories[case], ranked[ranked >= 0], target=target)
    print()


def show_ranking(
    items: Items,
    ids: IdMap,
    history: Sequence[int] | np.ndarray,
    ranked: np.ndarray,
    scores: np.ndarray | None = None,
    target: int | None = None,
) -> None:
    """Print what a user had and what is recommended, by title; `target` is marked if found."""

    def name(item: int) -> str:
        return printable(ids.names[item])

    def title(item: int) -> str:
        return f"{printable(items.text(item, 'title')) or '(no title)':.80}"

    if len(history):
        print("  had, latest last:")
    for item in list(history)[-5:]:
        print(f"      {name(item):>7}  {title(int(item))}")
    print("  recommended:")
    for place, item in enumerate(ranked.tolist(), start=1):
        score = "" if scores is None else f"  {scores[place - 1]:8.3f}"
        mark = "  <- taken" if item == target else ""
        print(f"  {place:>3} {name(item):>7}{score}  {title(item)}{mark}")
    if not len(ranked):
        print("      nothing: every item is ruled out, or no beam ended in one (--constraint)")
    if target is not None and target not in ranked:
        print(f"  taken: {name(target):>4}  {title(target)}")
