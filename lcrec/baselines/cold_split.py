"""A data set of which some items are taken away, to be found by what is known of them besides.

The protocol of CARec (CIKM 2024): a share of the items is drawn at random and all their purchases
are removed to a cold test set; of the rest, users and items with too few purchases are dropped
until none is left; users who are still there are asked for the cold items they bought.

Reads and writes nothing. Public names: `ColdSplit`, `draw_cold`, `renumber`.
"""

from dataclasses import dataclass, replace

import numpy as np

from lcrec.baselines.base import TrainingData
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import Cases, Split, leave_one_out
from lcrec.rankings.metrics import PAD


@dataclass(frozen=True)
class ColdSplit:
    """What is left to learn from, and who bought what was taken away.

    Attributes:
        warm: leave-one-out of what is left.
        cold: per user who bought cold items, the train sequence as history, since no method knows
            more, and the cold items as targets, int64 [users, most], padded with -1.
        warm_items: int64, ids of the items that are left, rising.
        cold_items: int64, ids of the items that were drawn, rising.
    """

    warm: Split
    cold: Cases
    warm_items: np.ndarray
    cold_items: np.ndarray


def draw_cold(interactions: Interactions, *, share: float, core: int, seed: int) -> ColdSplit:
    """Take a share of the items away.

    Args:
        interactions: the whole sequences.
        share: of the items that somebody bought, more than 0 and less than 1.
        core: the fewest purchases of a user, and of an item, in what is left; at least 3, of
            which leave-one-out trains on one.
        seed: of the draw.

    Raises:
        InputError: the share is none, nothing is left, or nobody who is left bought a cold item.
    """
    if not 0 < share < 1:
        raise InputError(f"--share {share}: it must lie between 0 and 1")
    bought = np.unique(interactions.items)
    count = round(share * len(bought))
    if not count:
        raise InputError(f"--share {share} of {len(bought)} items is none; take a larger share")
    drawn = np.random.default_rng(seed).choice(bought, size=count, replace=False)
    is_cold = np.zeros(int(bought[-1]) + 1, dtype=bool)
    is_cold[drawn] = True

    users = np.repeat(np.arange(len(interactions)), np.diff(interactions.offsets))
    kept = _core(users, interactions.items, ~is_cold[interactions.items], core)
    if not kept.any():
        raise InputError(
            f"--core {core}: without the {count} cold items no users and items with {core} "
            "purchases each are left; take a smaller core"
        )
    counts = np.bincount(users[kept], minlength=len(interactions))
    left = np.flatnonzero(counts)
    rest = Interactions(
        [interactions.users[user] for user in left],
        np.concatenate(([0], np.cumsum(counts[left]))),
        interactions.items[kept],
    )
    warm = leave_one_out(rest)
    bought_by = (interactions.sequence(int(user)) for user in left)
    wanted = [np.unique(row[is_cold[row]]) for row in bought_by]
    who = [place for place, items in enumerate(wanted) if len(items)]
    if not who:
        raise InputError(
            f"--share {share}: no user who is left bought any of the {count} cold items, so there "
            "is nothing to test on; take a larger share or a smaller --core"
        )
    targets = np.full((len(who), max(len(wanted[place]) for place in who)), PAD, dtype=np.int64)
    for row, place in zip(targets, who, strict=True):
        row[: len(wanted[place])] = wanted[place]
    cold = Cases(
        [rest.users[place] for place in who],
        [warm.train.sequence(place) for place in who],
        targets,
    )
    return ColdSplit(warm, cold, np.unique(rest.items).astype(np.int64), np.sort(drawn))


def renumber(
    data: TrainingData, interactions: Interactions, seed: int
) -> tuple[TrainingData, Interactions]:
    """Give the items new ids at random.

    Of equal scores the lower id is ranked first, and catalogues are often numbered by first
    purchase: a method that scores all cold items alike would rank them by popularity after all.

    Args:
        data: of which embeddings and texts are put in the new order; its sequences, which the cold
            split replaces, are not.
        interactions: the whole sequences.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(data.num_items)  # [new id] -> old id
    new_ids = np.argsort(order).astype(np.int32)
    reordered = replace(
        data,
        embeddings=None if data.embeddings is None else data.embeddings[order],
        items=None if data.items is None else Items([data.items.fields[item] for item in order]),
    )
    return reordered, replace(interactions, items=new_ids[interactions.items])


def _core(users: np.ndarray, items: np.ndarray, kept: np.ndarray, core: int) -> np.ndarray:
    """Return which purchases are left once all users and items have `core` of them, bool."""
    while True:
        enough = kept & (np.bincount(users[kept], minlength=users.max() + 1) >= core)[users]
        enough &= (np.bincount(items[kept], minlength=items.max() + 1) >= core)[items]
        if (enough == kept).all():
            return kept
        kept = enough
