"""Stage: a small, readable shop whose users follow a known process, to try lcrec on.

Reads nothing. Writes a data folder in LC-Rec's form: `Shop.inter.json`, `Shop.item.json`,
`Shop.review.json`, `Shop.user.json` and the sidecar `lcrec.json`; the same seed gives the same
bytes.
How its users choose is told in `lcrec.data.shop`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.artifacts import atomic_path, data_paths, write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import run_stage
from lcrec.core.outputs import FOLDER, claim
from lcrec.core.provenance import is_current, write_provenance
from lcrec.data.shop import TASTES, Shop, make_shop, taste_probabilities
from lcrec.data.shop_texts import DEPARTMENT_OF, intention, preference, review
from lcrec.data.shop_words import KINDS

NAME = "Shop"
STAGE = "python -m lcrec.synthetic"
EXAMPLE = "--output data/shop --users 2000 --items 600"


@dataclass(frozen=True)
class SyntheticConfig(Writes):
    """What shop to make."""

    output: Path = option("folder to write the shop to, such as data/shop", writes=FOLDER)
    users: int = option("how many users", 2000, minimum=1)
    items: int = option("how many items", 600)
    seed: int = option("random seed; the same seed gives the same files", 0, minimum=0)


def write_shop(shop: Shop, folder: Path) -> None:
    """Write the four data files into `folder`; each is complete or absent."""
    # Words have a stream of their own: rewriting a review must not change what anyone buys.
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
    for user in progress(range(len(shop.sequences)), "texts", "users"):
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
        paths.user, {"user_explicit_preference": preferences, "user_vague_intention": intentions}
    )
    write_json(paths.inter, {str(user): items for user, items in enumerate(shop.sequences)})


def main(argv: list[str]) -> None:
    """Make the shop, unless it already lies there."""
    config = parse_config(
        SyntheticConfig,
        argv,
        description="Write a small, readable shop whose users follow a known process of taste and "
        "next needs.",
        prog=STAGE,
        example=EXAMPLE,
    )
    settings = config_dict(config)
    name = config.output.resolve().name
    next_command = (
        f"Next: python -m lcrec.embed --data {config.output} --output runs/{name}/embeddings"
    )
    if is_current(config.output, STAGE, settings, {}):
        print(f"{config.output} already holds this shop: nothing to do.\n{next_command}")
        return
    print(
        f"Making a shop with {config.items:,} items of {len(KINDS)} kinds and {config.users:,} "
        f"users, seed {config.seed}."
    )
    shop = make_shop(config.users, config.items, config.seed)
    purchases = sum(map(len, shop.sequences))
    with (
        claim(config.output, STAGE, overwrite=config.overwrite),
        atomic_path(config.output) as folder,
    ):
        write_shop(shop, folder)
        write_provenance(folder, STAGE, settings, {}, purchases=purchases)
    style, tier = TASTES[shop.tastes[0]]
    print(f"User 0, whose taste is {style.name} and {tier.name}, bought:")
    for item in shop.sequences[0]:
        print(f"  {shop.wares[item].title}")
    print(f"{config.output} holds {purchases:,} purchases.\n{next_command}")


if __name__ == "__main__":
    run_stage(main)
