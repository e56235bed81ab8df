"""A small shop whose users follow a known process, whole in memory.

How the users choose:

1. Whoever has bought one kind of product next needs one of the three kinds that follow it (tent ->
   sleeping bag, camp stove or headlamp, with chances .5, .3 and .2) and that they still lack.
2. Each user has a taste, one style and one price tier, and takes an item of the needed kind by its
   popularity, times 8 where the style is theirs and times 4 where the tier is.
3. One step in five is a whim instead, any item by its popularity; nothing is bought twice.

Kind, style and tier can be read off an item's text, so what is learnt from one item carries over
to others, while any two items are rarely bought together.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.data.shop_texts import Ware, describe, word_lists
from lcrec.data.shop_words import BRANDS, KINDS, STYLES, TIERS

NEED_CHANCES = (0.5, 0.3, 0.2)
STYLE_FACTOR = 8.0
TIER_FACTOR = 4.0
WHIM_CHANCE = 0.2
POPULARITY_EXPONENT = 0.6
MIN_LENGTH, MAX_LENGTH, MEAN_EXTRA = 5, 20, 5

TASTES = list(itertools.product(STYLES, TIERS))


@dataclass(frozen=True)
class Shop:
    """A catalogue, its users, and the process that made their purchases.

    Attributes:
        wares: the items.
        kinds: int64 [items], position in `KINDS`.
        choice: float64 [tastes, items], the chance of an item among those of its kind; tastes are
            in the order of `TASTES`.
        popularity: float64 [items], the chance of an item on a whim.
        sequences: what each user bought, item ids, oldest first.
        tastes: int64 [users], position in `TASTES`.
        seed: what all of it was drawn from.
    """

    wares: list[Ware]
    kinds: np.ndarray
    choice: np.ndarray
    popularity: np.ndarray
    sequences: list[list[int]]
    tastes: np.ndarray
    seed: int


def make_shop(num_users: int = 2000, num_items: int = 600, seed: int = 0) -> Shop:
    """Draw a catalogue and its users' purchases.

    Raises:
        InputError: no users, a negative seed, fewer items than kinds of product, or more items
            than there are distinct titles.
    """
    titles = min(math.prod(map(len, word_lists(kind, *TASTES[0]))) for kind in KINDS)
    most = len(KINDS) * len(TASTES) * titles
    if not len(KINDS) <= num_items <= most:
        raise InputError(
            f"--items {num_items}: the shop sells {len(KINDS)} kinds of product and has words for "
            f"{most} different titles; give a number from {len(KINDS)} to {most}"
        )
    if num_users < 1 or seed < 0:
        raise InputError(
            f"--users {num_users} --seed {seed}: give at least 1 user and a seed of 0 or more"
        )
    rng = np.random.default_rng(seed)
    wares = _draw_wares(num_items, rng)
    kinds = np.array([KINDS.index(ware.kind) for ware in wares])
    choice = _draw_choice(wares, kinds, rng)
    popularity = choice.mean(axis=0) / len(KINDS)
    tastes = rng.integers(len(TASTES), size=num_users)
    lengths = np.minimum(MIN_LENGTH - 1 + rng.geometric(1 / MEAN_EXTRA, num_users), MAX_LENGTH)
    sequences = []
    for user in progress(range(num_users), "purchases", "users"):
        bought: list[int] = []
        for _ in range(lengths[user]):
            chances = _step_probabilities(kinds, choice[tastes[user], None], popularity, bought)
            bought.append(int(rng.choice(num_items, p=chances[0])))
        sequences.append(bought)
    return Shop(wares, kinds, choice, popularity, sequences, tastes, seed)


def taste_probabilities(shop: Shop, history: Sequence[int]) -> np.ndarray:
    """Return how probable each taste is after a user's whole history, float64 [tastes] (Bayes)."""
    log_chance = np.zeros(len(TASTES))
    for position, item in enumerate(history):
        step = _step_probabilities(shop.kinds, shop.choice, shop.popularity, history[:position])
        log_chance += np.log(step[:, item])
    chance = np.exp(log_chance - log_chance.max())
    return chance / chance.sum()


def next_item_probabilities(shop: Shop, history: Sequence[int]) -> np.ndarray:
    """Return the true chance of each item to be bought next, float64 [items], summing to 1.

    No recommender can know more from a history: this is the planted process, with the user's
    taste inferred from what was bought.

    Args:
        history: the user's item ids from the first one on; may be empty, not the whole catalogue.
    """
    step = _step_probabilities(shop.kinds, shop.choice, shop.popularity, history)
    return taste_probabilities(shop, history) @ step


def _draw_wares(num_items: int, rng: np.random.Generator) -> list[Ware]:
    """Fill every kind, and within it every taste, with equally many items, in random order."""
    wares = []
    for position, kind in enumerate(KINDS):
        count = len(range(position, num_items, len(KINDS)))
        half = 2 * position // len(KINDS)
        for cell, taste in enumerate(rng.permutation(len(TASTES))):
            style, tier = TASTES[taste]
            brand = BRANDS[STYLES.index(style)][TIERS.index(tier)][half]
            lists = word_lists(kind, style, tier)
            sizes = tuple(map(len, lists))
            wanted = len(range(cell, count, len(TASTES)))
            # Drawn without replacement, so no two items have the same words.
            for number in rng.choice(math.prod(sizes), size=wanted, replace=False):
                places = np.unravel_index(number, sizes)
                words = [words[place] for words, place in zip(lists, places, strict=True)]
                wares.append(describe(kind, style, tier, brand, words, rng))
    return [wares[place] for place in rng.permutation(num_items)]


def _draw_choice(wares: list[Ware], kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the chance of each item among those of its kind, float64 [tastes, items]."""
    popularity = np.empty(len(wares))
    for kind in range(len(KINDS)):
        members = np.flatnonzero(kinds == kind)
        popularity[members] = (1.0 + rng.permutation(len(members))) ** -POPULARITY_EXPONENT
    likes_style = np.array([[ware.style == style for ware in wares] for style, _ in TASTES])
    likes_tier = np.array([[ware.tier == tier for ware in wares] for _, tier in TASTES])
    weight = popularity * STYLE_FACTOR**likes_style * TIER_FACTOR**likes_tier
    in_kind = np.arange(len(KINDS))[:, None] == kinds
    return weight / (weight @ in_kind.T)[:, kinds]


def _need_matrix() -> np.ndarray:
    """Return the chance that one kind is needed after another, float64 [kinds, kinds]."""
    names = [kind.name for kind in KINDS]
    needs = np.zeros((len(KINDS), len(KINDS)))
    for row, kind in enumerate(KINDS):
        needs[row, [names.index(name) for name in kind.followers]] = NEED_CHANCES
    return needs


NEEDS = _need_matrix()


def _step_probabilities(
    kinds: np.ndarray, choice: np.ndarray, popularity: np.ndarray, history: Sequence[int]
) -> np.ndarray:
    """Return the chance of each item to be the next one, float64 [tastes, items] like `choice`."""
    bought = list(history)
    lacking = np.ones(len(KINDS))
    lacking[kinds[bought]] = 0
    need = NEEDS[kinds[bought[-1]]] * lacking if bought else lacking
    if not need.any():  # everything that follows is owned already: anything new will do
        need = lacking if lacking.any() else np.ones(len(KINDS))
    chances = (1 - WHIM_CHANCE) * (need / need.sum())[kinds] * choice + WHIM_CHANCE * popularity
    chances[:, bought] = 0
    return chances / chances.sum(axis=1, keepdims=True)
