"""Stage: a small, readable shop whose users follow a known process, to try lcrec on.

Reads nothing. Writes a data folder in LC-Rec's form: `Shop.inter.json`, `Shop.item.json`,
`Shop.review.json`, `Shop.user.json` and the sidecar `lcrec.json`; the same seed gives the same
bytes. Its words are in `lcrec.synthetic_words`, its sentences in `lcrec.synthetic_texts`. How the
users choose, whole:

1. Whoever has bought one kind of product next needs one of the three kinds that follow it (tent ->
   sleeping bag, camp stove or headlamp, with chances .5, .3 and .2) and that they still lack.
2. Each user has a taste, one style and one price tier, and takes an item of the needed kind by its
   popularity, times 8 where the style is theirs and times 4 where the tier is.
3. One step in five is a whim instead, any item by its popularity; nothing is bought twice.

Kind, style and tier can be read off an item's text, so what is learnt from one item carries over
to others, while any two items are rarely bought together.

Public names: `Shop`, `make_shop`, `taste_probabilities`, `next_item_probabilities`,
`write_shop`, `SyntheticConfig`, `main`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lcrec.core.artifacts import PROVENANCE, atomic_path, data_paths, write_json
from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.provenance import is_current, provenance_path, read_provenance, write_provenance
from lcrec.synthetic_texts import (
    DEPARTMENT_OF,
    Ware,
    describe,
    intention,
    preference,
    review,
    word_lists,
)
from lcrec.synthetic_words import BRANDS, KINDS, STYLES, TIERS

NAME = "Shop"
STAGE = "python -m lcrec.synthetic"

NEED_CHANCES = (0.5, 0.3, 0.2)
STYLE_FACTOR = 8.0
TIER_FACTOR = 4.0
WHIM_CHANCE = 0.2
POPULARITY_EXPONENT = 0.6
MIN_LENGTH, MAX_LENGTH, MEAN_EXTRA = 5, 20, 5

TASTES = list(itertools.product(STYLES, TIERS))


@dataclass(frozen=True)
class SyntheticConfig:
    """What shop to make."""

    output: Path = option("folder to write the shop to, such as data/shop")
    users: int = option("how many users", 2000, minimum=1)
    items: int = option("how many items", 600)
    seed: int = option("random seed; the same seed gives the same files", 0, minimum=0)


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
    for user in tqdm(range(num_users), desc="purchases", unit=" users", disable=None):
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
        shop: the shop.
        history: the user's item ids from the first one on; may be empty, not the whole catalogue.
    """
    step = _step_probabilities(shop.kinds, shop.choice, shop.popularity, history)
    return taste_probabilities(shop, history) @ step


def write_shop(shop: Shop, folder: Path) -> None:
    """Write the four data files into `folder`; each is complete or absent."""
    # Words have a stream of their own: rewording a review must not change what anyone buys.
    rng = np.random.default_rng([shop.seed, 1])
    paths = data_paths(folder, NAME)
    items = {
        str(item): {
            "title": ware.title,
            "description": ware.description,
            "brand": ware.brand,
            "categories": f"{DEPARTMENT_OF[ware.kind.name]}, {ware.kind.name.title()}",
        }
        for item, ware in enumerate(shop.wares)
    }
    reviews: dict[str, dict[str, str]] = {}
    preferences: dict[str, list[str]] = {}
    intentions: dict[str, dict[str, dict[str, Any]]] = {"train": {}, "test": {}}
    for user in tqdm(range(len(shop.sequences)), desc="texts", unit=" users", disable=None):
        sequence, taste = shop.sequences[user], TASTES[shop.tastes[user]]
        wares = [shop.wares[item] for item in sequence]
        for length, item in enumerate(sequence, start=1):
            # LC-Rec's key: how Python writes a tuple.
            reviews[str((user, item))] = review(wares[:length], taste, rng)
        # A preference tells no more than the history shows; reviews and intentions come from the
        # user, who knows.
        shown = TASTES[taste_probabilities(shop, sequence[:-3]).argmax()]
        preferences[str(user)] = preference(wares[:-3], shown, rng)
        for split, end in (("train", len(sequence) - 3), ("test", len(sequence) - 1)):
            intentions[split][str(user)] = {
                "item": sequence[end],
                "inters": sequence[:end],
                "querys": intention(wares[: end + 1], taste, rng),
            }
    write_json(paths.item, items, indent=2)
    write_json(paths.review, reviews, indent=2)
    write_json(
        paths.user,
        {"user_explicit_preference": preferences, "user_vague_intention": intentions},
    )
    write_json(paths.inter, {str(user): items for user, items in enumerate(shop.sequences)})


# The catalogue and the process.


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


# The stage.


def _require_replaceable(folder: Path) -> None:
    """Refuse an output that is no folder or holds anything this stage did not make."""
    if folder.is_file() or provenance_path(folder).parent != folder:
        raise InputError(f"--output {folder}: name a folder, not a file, such as data/shop")
    if not folder.exists():
        return
    record = read_provenance(folder)
    ours = _files(folder) if record is not None and record.get("stage") == STAGE else []
    strangers = sorted(path.name for path in folder.iterdir() if path not in ours)
    if strangers:
        raise InputError(
            f"--output {folder}: holds {strangers[0]}, which {STAGE} did not make; name another "
            "folder, or move it away"
        )


def _files(folder: Path) -> list[Path]:
    """Return the files of a written shop, the sidecar last."""
    paths = data_paths(folder, NAME)
    return [paths.inter, paths.item, paths.review, paths.user, folder / PROVENANCE]


def main(argv: list[str]) -> None:
    """Make the shop, unless it already lies there."""
    config = parse_config(
        SyntheticConfig,
        argv,
        description="Write a small, readable shop whose users follow a known process of taste and "
        "next needs.",
        prog=STAGE,
    )
    settings = config_dict(config)
    # Resolved, since a folder is replaced whole, and neither "." nor a link can be.
    folder = config.output.resolve()
    next_command = (
        f"Next: python -m lcrec.embed --data {config.output} --output runs/{folder.name}/embeddings"
    )
    _require_replaceable(folder)
    if is_current(folder, STAGE, settings, {}) and all(path.exists() for path in _files(folder)):
        print(f"{config.output} already holds this shop: nothing to do.\n{next_command}")
        return
    print(
        f"Making a shop with {config.items:,} items of {len(KINDS)} kinds and {config.users:,} "
        f"users, seed {config.seed}."
    )
    shop = make_shop(config.users, config.items, config.seed)
    purchases = sum(map(len, shop.sequences))
    with atomic_path(folder) as temporary:
        write_shop(shop, temporary)
        write_provenance(temporary, STAGE, settings, {}, purchases=purchases)
        # An older shop goes file by file and its sidecar last: killed here, what is left is still
        # known as this stage's own, and the next run replaces it.
        for path in _files(folder)[:-1]:
            path.unlink(missing_ok=True)
    style, tier = TASTES[shop.tastes[0]]
    print(f"User 0, whose taste is {style.name} and {tier.name}, bought:")
    for item in shop.sequences[0]:
        print(f"  {shop.wares[item].title}")
    print(f"{config.output} holds {purchases:,} purchases.\n{next_command}")


if __name__ == "__main__":
    run_stage(main)
