"""Splits interactions into what is learnt from, validated on and tested on.

`leave_one_out` is LC-Rec's protocol and that of the sequential methods. The methods that match
users and items were published on random parts of every user's items, 8:1:1 (as RecBole 1.2.1 has
them, grouped by user), ranking what the user does not have: `random_split`. `load_split` reads the
split that a data folder brings along.

`random_parts`, `time_parts` and `cold_parts` say which part every interaction belongs to: int8
[interactions], `TRAIN`, `VALID` or `TEST`, for interactions that lie user by user, each user's
oldest first. Only `load_split` reads files; nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import find_data, is_parquet, read_json
from lcrec.core.errors import InputError
from lcrec.data.folder import (
    Interactions,
    kind_of_value,
    load_interactions,
    read_lists,
    require_ids,
    require_known,
)
from lcrec.rankings.metrics import PAD

TRAIN = 0
VALID = 1
TEST = 2


def random_parts(offsets: np.ndarray, seed: int) -> np.ndarray:
    """Split every user's interactions 8:1:1 at random, as `parts_in_order` does.

    Args:
        offsets: int64 [users + 1], where each user's interactions begin.
        seed: of the order.
    """
    lengths = np.diff(offsets)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((np.random.default_rng(seed).random(len(owners)), owners))
    return parts_in_order(order, offsets)


def parts_in_order(order: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Split every user's interactions 8:1:1: in a drawn order, first test, then valid, then train.

    A tenth, rounded down but at least one, goes to test and as many to valid, as RecBole's ratio
    split has it; the rest is to train on. Of fewer than three interactions all are.

    Args:
        order: int64 [interactions], the interactions of each user in the order drawn, user by user.
        offsets: int64 [users + 1], where each user's interactions begin.
    """
    lengths = np.diff(offsets)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    rank = np.arange(len(owners)) - offsets[owners]
    share = np.where(lengths >= 3, np.maximum(1, lengths // 10), 0)[owners]
    parts = np.empty(len(owners), dtype=np.int8)
    parts[order] = np.where(rank < share, TEST, np.where(rank < 2 * share, VALID, TRAIN))
    return parts


def time_parts(times: np.ndarray) -> np.ndarray:
    """Split all interactions 8:1:1 at two moments, the same for all users.

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


@dataclass(frozen=True)
class EvalCases:
    """Users to recommend for: the history each has so far and the item that came next.

    `histories[i]` is int32 [length], oldest first and whole (nothing is truncated here);
    `targets` is int32 [cases], or [cases, most targets] padded with -1 where the split holds out
    several items of a user. `exclude[i]` are items that the split forbids to list for case i;
    None: it forbids none.
    """

    users: list[str]
    histories: list[np.ndarray]
    targets: np.ndarray
    exclude: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def sample(self, count: int | None, seed: int) -> "EvalCases":
        """Return `count` cases drawn by seed, in their order; all where None or no more there."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return EvalCases(
            [self.users[case] for case in chosen],
            [self.histories[case] for case in chosen],
            self.targets[chosen],
            None if self.exclude is None else [self.exclude[case] for case in chosen],
        )


@dataclass(frozen=True)
class Split:
    """A split: sequences to train on, cases to validate and to test on."""

    train: Interactions
    valid: EvalCases
    test: EvalCases


def leave_one_out(interactions: Interactions) -> Split:
    """Split by time: train up to [-2], validate on [-2], test on [-1] of every user.

    Raises:
        InputError: a user has fewer than 3 items, so there is nothing to train, validate and test.
    """
    lengths = np.diff(interactions.offsets)
    short = np.flatnonzero(lengths < 3)
    if len(short):
        user = int(short[0])
        raise InputError(
            f"{len(short)} users have fewer than 3 items (first: user {interactions.users[user]!r} "
            f"with {lengths[user]}); leave-one-out needs one to train, one to validate and one to "
            "test on: drop them, for example with python -m lcrec.prepare --min-user-items 5"
        )
    keep = np.ones(len(interactions.items), dtype=bool)
    ends = interactions.offsets[1:]
    keep[ends - 1] = keep[ends - 2] = False
    offsets = interactions.offsets - 2 * np.arange(len(interactions) + 1)
    train = Interactions(interactions.users, offsets, interactions.items[keep])
    valid, test = (
        EvalCases(
            interactions.users,
            [sequence[:-back] for sequence in interactions],
            interactions.items[ends - back],
        )
        for back in (2, 1)
    )
    return Split(train, valid, test)


PARTS = ("train", "valid", "test")


def load_split(folder: Path, num_items: int) -> Split:
    """Read the split of a data folder: its `<Name>.split.json`, else leave-one-out.

    Where there is a split file, `train` has every user, in the order of the file, with what there
    is of theirs to train on, perhaps nothing. A case of `valid` has what the user trained on as its
    history, one of `test` that and then what was to validate on; `targets` is [cases, n], distinct
    ids padded with -1, as `lcrec.rankings.metrics` takes it. Who has no target in a part, or no
    history, is no case of it.

    Args:
        folder: the data folder.
        num_items: the size of the catalogue, to check every id against.

    Raises:
        InputError: a file is missing or malformed, or an id is not in the catalogue.
    """
    path = find_data(folder).split
    if not path.exists():
        return leave_one_out(load_interactions(folder, num_items))
    if is_parquet(path):
        users, pairs = read_lists(path, PARTS)
        for _, items in pairs:
            require_known(items, num_items, path)
        train, valid, test = (Interactions(users, *pair) for pair in pairs)
    else:
        raw = read_json(path)
        if not isinstance(raw, dict) or not raw:
            raise InputError(
                f"{path}: expected {{user: {{train, valid, test}}}}, found {kind_of_value(raw)}"
            )
        for user, entry in raw.items():
            if not isinstance(entry, dict) or entry.keys() != set(PARTS):
                raise InputError(f"{path}: user {user!r}: expected the lists train, valid and test")
            for part in PARTS:
                require_ids(entry[part], num_items, f"{path}: user {user!r}: {part}")
        train, valid, test = (
            Interactions.from_sequences({user: entry[part] for user, entry in raw.items()})
            for part in PARTS
        )
    return Split(train, _cases(valid, [train]), _cases(test, [train, valid]))


def _cases(targets: Interactions, before: list[Interactions]) -> EvalCases:
    """Return the cases of users with a target and a history, which is `before`, one by one."""
    users, histories, rows = [], [], []
    for user in np.flatnonzero(np.diff(targets.offsets)).tolist():
        history = np.concatenate([part.sequence(user) for part in before])
        if len(history):
            users.append(targets.users[user])
            histories.append(history)
            # However often it was bought, an item is one target.
            rows.append(list(dict.fromkeys(targets.sequence(user).tolist())))
    padded = np.full((len(rows), max(map(len, rows), default=1)), -1, dtype=np.int32)
    for case, row in enumerate(rows):
        padded[case, : len(row)] = row
    return EvalCases(users, histories, padded)


SEED = 0  # of the one random split, so that whatever is run on it can be compared


def random_split(interactions: Interactions, seed: int) -> Split:
    """Split every user's distinct items 8:1:1 at random, as `parts_in_order` does.

    An item that a user had several times counts where it came first. Histories are what the user
    has in train, in the order of time, for test too: a method that reads histories knows no more
    than one that keeps a vector per user. What is in train, and at test what was validated on, is
    never ranked.

    Args:
        interactions: every user's items, oldest first.
        seed: of the draw.

    Returns:
        train with every user; cases with `targets` int32 [cases, most targets], padded with -1, of
        the users with at least three items.

    Raises:
        InputError: no user has three items.
    """
    rng = np.random.default_rng(seed)
    distinct = []
    for sequence in interactions:
        _, first = np.unique(sequence, return_index=True)
        distinct.append(sequence[np.sort(first)])
    drawn = [rng.permutation(len(items)) for items in distinct]
    offsets = np.concatenate(([0], np.cumsum([len(items) for items in distinct], dtype=np.int64)))
    order = np.empty(offsets[-1], dtype=np.int64)
    for start, own in zip(offsets[:-1], drawn, strict=True):
        order[start : start + len(own)] = start + own
    parts = parts_in_order(order, offsets)
    train: dict[str, list[int]] = {}
    users, histories, valid, test = [], [], [], []
    for place, (user, items, own) in enumerate(
        zip(interactions.users, distinct, drawn, strict=True)
    ):
        part = parts[offsets[place] : offsets[place + 1]]
        kept = items[part == TRAIN]
        train[user] = kept.tolist()
        if len(kept) < len(items):
            users.append(user)
            histories.append(kept)
            valid.append(items[own[part[own] == VALID]])
            test.append(items[own[part[own] == TEST]])
    if not users:
        raise InputError(
            "no user has 3 different items, so none can be split into train, valid and test; "
            "use more data, or --protocol leave-one-out"
        )
    seen = [np.concatenate(both) for both in zip(histories, valid, strict=True)]
    return Split(
        Interactions.from_sequences(train),
        EvalCases(users, histories, _pad(valid), histories),
        EvalCases(users, histories, _pad(test), seen),
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
