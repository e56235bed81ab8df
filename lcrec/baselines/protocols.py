"""How interactions are parted into what is learnt from, validated on and tested on.

`leave_one_out` of `lcrec.data` is LC-Rec's protocol and that of the sequential methods. The
methods that match users and items were published on random parts of every user's items, 8:1:1 (as
RecBole 1.2.1 parts them, grouped by user), ranking what the user does not have: `random_split`.

Reads and writes nothing. Public names: `PROTOCOLS`, `random_split`.
"""

from collections.abc import Callable

import numpy as np

from lcrec.core.errors import InputError
from lcrec.data import Cases, Interactions, Split, leave_one_out
from lcrec.rankings.metrics import PAD

SEED = 0  # of the one random split, so that whatever is run on it can be compared


def random_split(interactions: Interactions, seed: int) -> Split:
    """Part every user's distinct items 8:1:1 at random.

    A tenth, rounded down but at least one, is to test on, as many to validate on; users with fewer
    than three items are only learnt from. An item that a user had several times counts where it
    came first. Histories are what the user has in train, in the order of time, for test too: a
    method that reads histories knows no more than one that keeps a vector per user. What is in
    train, and at test what was validated on, is never listed.

    Args:
        interactions: every user's items, oldest first.
        seed: of the draw.

    Returns:
        train with every user; cases with `targets` int32 [cases, most targets], padded with -1.

    Raises:
        InputError: no user has three items.
    """
    rng = np.random.default_rng(seed)
    train: dict[str, list[int]] = {}
    users, histories, valid, test = [], [], [], []
    for user, sequence in zip(interactions.users, interactions, strict=True):
        _, first = np.unique(sequence, return_index=True)
        items = sequence[np.sort(first)]
        share = max(1, len(items) // 10) if len(items) >= 3 else 0
        drawn = rng.permutation(len(items))
        kept = np.delete(items, drawn[: 2 * share])
        train[user] = kept.tolist()
        if share:
            users.append(user)
            histories.append(kept)
            valid.append(items[drawn[share : 2 * share]])
            test.append(items[drawn[:share]])
    if not users:
        raise InputError(
            "no user has 3 different items, so none can be parted into train, valid and test; "
            "use more data, or --protocol leave-one-out"
        )
    seen = [np.concatenate(both) for both in zip(histories, valid, strict=True)]
    return Split(
        Interactions.from_sequences(train),
        Cases(users, histories, _pad(valid), histories),
        Cases(users, histories, _pad(test), seen),
    )


def _pad(lists: list[np.ndarray]) -> np.ndarray:
    padded = np.full((len(lists), max(map(len, lists))), PAD, dtype=np.int32)
    for row, items in zip(padded, lists, strict=True):
        row[: len(items)] = items
    return padded


PROTOCOLS: dict[str, Callable[[Interactions], Split]] = {
    "leave-one-out": leave_one_out,
    "random": lambda interactions: random_split(interactions, SEED),
}
