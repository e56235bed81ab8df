"""Ways to part interactions into train, valid and test, besides leave-one-out.

Reads and writes nothing. Each returns which part every interaction belongs to: int8 [interactions],
`TRAIN`, `VALID` or `TEST`, for interactions that lie user by user, each user's oldest first.

Public names: `TRAIN`, `VALID`, `TEST`, `random_parts`, `time_parts`, `cold_parts`.
"""

import numpy as np

from lcrec.core.errors import InputError

TRAIN = 0
VALID = 1
TEST = 2


def random_parts(offsets: np.ndarray, seed: int) -> np.ndarray:
    """Part every user's interactions 8:1:1 at random.

    A tenth, rounded down but at least one, goes to valid and as many to test, as RecBole's ratio
    split has it; the rest is to train on. Users have at least 3 interactions.

    Args:
        offsets: int64 [users + 1], where each user's interactions begin.
        seed: draws the order.
    """
    lengths = np.diff(offsets)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((np.random.default_rng(seed).random(len(owners)), owners))
    rank = np.arange(len(owners)) - offsets[owners]
    share = np.maximum(1, lengths // 10)[owners]
    parts = np.empty(len(owners), dtype=np.int8)
    parts[order] = np.where(rank < share, TEST, np.where(rank < 2 * share, VALID, TRAIN))
    return parts


def time_parts(times: np.ndarray) -> np.ndarray:
    """Part all interactions 8:1:1 at two moments, the same for all users.

    Interactions at the very moment of a cut come after it.

    Args:
        times: [interactions].

    Raises:
        InputError: a part would be empty, because too many interactions happened at one time.
    """
    ordered = np.sort(times)
    cuts = ordered[[int(0.8 * len(ordered)), int(0.9 * len(ordered))]]
    parts = np.searchsorted(cuts, times, side="right").astype(np.int8)
    empty = np.flatnonzero(np.bincount(parts, minlength=3) == 0)
    if len(empty):
        name = ("train", "valid", "test")[empty[0]]
        raise InputError(
            f"--split time: {name} would be empty, because too many interactions happened at one "
            "time; choose another split"
        )
    return parts


def cold_parts(offsets: np.ndarray, is_cold: np.ndarray) -> np.ndarray:
    """Test on the cold items, validate on the last other item of every user, train on the rest.

    Args:
        offsets: int64 [users + 1], where each user's interactions begin.
        is_cold: bool [interactions], whether the item is a cold one; every user has others.
    """
    parts = np.where(is_cold, TEST, TRAIN).astype(np.int8)
    place = np.where(is_cold, -1, np.arange(len(is_cold)))
    parts[np.maximum.reduceat(place, offsets[:-1])] = VALID
    return parts
