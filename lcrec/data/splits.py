"""Splits interactions into what is learnt from, validated on and tested on.

`load_split` returns the one split of a data folder, which every stage reads: leave-one-out, the
protocol of LC-Rec and of the sequential methods, unless `lcrec prepare --split` wrote another as
`<Name>.split.json`. `random_parts`, `time_parts` and `cold_parts` say which part of such a split
every interaction belongs to: int8 [interactions], `TRAIN`, `VALID` or `TEST`, for interactions that
lie user by user, each user's oldest first; `write_split` writes what they say.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lcrec.core.artifacts import atomic_path, find_data, is_parquet, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import fingerprint, read_provenance
from lcrec.data.folder import (
    Interactions,
    kind_of_value,
    load_interactions,
    read_lists,
    require_ids,
    write_lists,
)
from lcrec.data.new_items import earlier
from lcrec.rankings.metrics import PAD
from lcrec.rankings.predictions import Prediction

PARTS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def random_parts(offsets: np.ndarray, items: np.ndarray, seed: int) -> np.ndarray:
    """Split every user's distinct items 8:1:1 at random.

    A tenth, rounded down but at least one, goes to test and as many to valid, as RecBole's ratio
    split has it; the rest is to train on. Of fewer than three items all are. All interactions with
    one item belong to one part.

    Args:
        offsets: int64 [users + 1], where each user's interactions begin.
        items: int [interactions].
    """
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = owners * (np.int64(items.max(initial=0)) + 1) + items
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    appearance = np.argsort(first)  # the distinct pairs, user by user, as they came
    owner = owners[first[appearance]]
    lengths = np.bincount(owner, minlength=len(offsets) - 1)
    order = np.lexsort((np.random.default_rng(seed).random(len(owner)), owner))
    rank = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
    share = np.where(lengths >= 3, np.maximum(1, lengths // 10), 0)[owner]
    parts = np.empty(len(owner), dtype=np.int8)
    drawn = np.where(rank < share, TEST, np.where(rank < 2 * share, VALID, TRAIN))
    parts[appearance[order]] = drawn
    return parts[inverse]


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
        name = PARTS[empty[0]]
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
    """What is to be predicted: the history that a user has so far and the item that came next.

    Attributes:
        users: [cases]; a user with several cases stands there once for each.
        histories: int32 [length] each, oldest first and whole (nothing is truncated here).
        targets: int32 [cases], or [cases, most targets] padded with -1 where the split holds out
            several items of a user as one case.
        exclude: items that the split forbids to rank, per case; None: it forbids none.
        numbers: int64 [cases], the target's place in its user's sequence, which tells the cases of
            one user apart; None where no user can have several.
    """

    users: list[str]
    histories: list[np.ndarray]
    targets: np.ndarray
    exclude: list[np.ndarray] | None = None
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def first_targets(self) -> np.ndarray:
        """The target of each case, the first of several, int32 [cases]."""
        return self.targets if self.targets.ndim == 1 else self.targets[:, 0]

    def take(self, rows: Sequence[int] | np.ndarray) -> "EvalCases":
        """Return the cases at these positions."""
        rows = np.asarray(rows, dtype=np.int64)
        return EvalCases(
            [self.users[row] for row in rows],
            [self.histories[row] for row in rows],
            self.targets[rows],
            None if self.exclude is None else [self.exclude[row] for row in rows],
            None if self.numbers is None else self.numbers[rows],
        )

    def sample(self, count: int | None, seed: int) -> "EvalCases":
        """Return `count` cases drawn by seed, in their order; all where None or no more there."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    @property
    def owners(self) -> np.ndarray:
        """The number of each case's user, from 0 in order of appearance, int64 [cases]."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(user, len(numbers)) for user in self.users], np.int64)

    def sample_users(self, count: int | None, seed: int) -> "EvalCases":
        """Return all cases of `count` users drawn by seed, in their order; of all where None."""
        owners = self.owners
        is_drawn = np.zeros(owners.max(initial=-1) + 1, dtype=bool)
        is_drawn[np.random.default_rng(seed).permutation(len(is_drawn))[:count]] = True
        return self.take(np.flatnonzero(is_drawn[owners]))

    def since(self, before: Interactions) -> "EvalCases":
        """Return the cases whose item came after all that its user had in `before`.

        `before` is an earlier state of the same sequences, and the split is leave-one-out or one by
        time: a case predicts what comes next from all that came before.
        """
        had = dict(zip(before.users, np.diff(before.offsets).tolist(), strict=True))
        histories = zip(self.users, self.histories, strict=True)
        came = [len(history) >= had.get(user, 0) for user, history in histories]
        return self.take(np.flatnonzero(came))

    def one_target_each(self) -> "EvalCases":
        """Return a case for each target, where cases have several."""
        if self.targets.ndim == 1:
            return self
        rows, columns = np.nonzero(self.targets != PAD)
        return replace(self.take(rows), targets=self.targets[rows, columns])

    @property
    def repeats(self) -> float:
        """The share of cases with a target that the user has already."""
        pairs = zip(self.targets, self.histories, strict=True)
        return float(np.mean([np.isin(target, history).any() for target, history in pairs]))

    def describe(self) -> str:
        """Return how many there are: "3 users", or "7 cases of 3 users"."""
        users = len(set(self.users))
        return (
            f"{len(self):,} cases of {users:,} users" if users < len(self) else f"{users:,} users"
        )

    def one_per_user(self) -> "EvalCases":
        """Return the first case of every user, with its first target."""
        if self.targets.ndim == 1 and self.numbers is None:
            return self
        _, first = np.unique(self.owners, return_index=True)
        cases = self.take(np.sort(first))
        return replace(cases, targets=cases.first_targets, numbers=None)

    def predictions(
        self, lists: Iterable[tuple[np.ndarray, np.ndarray]], template_id: str | None = None
    ) -> Iterator[Prediction]:
        """Yield the prediction of each case from its ranked items and their scores."""
        numbers = [None] * len(self) if self.numbers is None else self.numbers.tolist()
        for user, target, number, (ranked, scores) in zip(
            self.users, self.targets, numbers, lists, strict=True
        ):
            yield Prediction(user, target, ranked, scores, template_id, number)


@dataclass(frozen=True)
class Split:
    """A split: sequences to train on, cases to validate and to test on.

    Attributes:
        kind: "leave-one-out"; "time": every interaction from some moment on is a case, its history
            all that came before; "sets": some of a user's items, whatever their time, are the
            targets of one case, and its history is what the user trained on.
        train: what every user has to train on, perhaps nothing.
        valid, test: who has no target in a part, or no history, is no case of it.
    """

    kind: Literal["leave-one-out", "time", "sets"]
    train: Interactions
    valid: EvalCases
    test: EvalCases


def leave_one_out(interactions: Interactions) -> Split:
    """Split by time: train up to [-2], validate on [-2], test on [-1] of every user.

    Of a user with fewer than 3 items, such as one who came with the latest orders, all is to train
    on, and there is no case.

    Raises:
        InputError: no user has 3 items, so there is nothing to validate and test on.
    """
    lengths = np.diff(interactions.offsets)
    cased = np.flatnonzero(lengths >= 3)
    if not len(cased):
        raise InputError(
            "no user has 3 items; leave-one-out needs one to train, one to validate and one to "
            "test on: take more data, or users with more items, for example with "
            "python -m lcrec.prepare --min-user-items 5"
        )
    keep = np.ones(len(interactions.items), dtype=bool)
    ends = interactions.offsets[1:][cased]
    keep[ends - 1] = keep[ends - 2] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - 2 * (lengths >= 3))])
    train = Interactions(interactions.users, offsets, interactions.items[keep])
    sequences = [interactions.sequence(user) for user in cased.tolist()]
    valid, test = (
        EvalCases(
            [interactions.users[user] for user in cased],
            [sequence[:-back] for sequence in sequences],
            interactions.items[ends - back],
        )
        for back in (2, 1)
    )
    return Split("leave-one-out", train, valid, test)


def load_split(folder: Path, interactions: Interactions) -> Split:
    """Return the split of a data folder: its `<Name>.split.json`, else leave-one-out.

    Where train, valid and test follow each other in every user's sequence, the split is one by time
    and every held-out interaction is a case. Otherwise a user's items in a part are the targets of
    one case. What they trained on, and at test what was validated on, is then never ranked.

    Raises:
        InputError: the file is malformed or belongs to other interactions, a part has no case, or a
            user is too short for leave-one-out.
    """
    path = find_data(folder).split
    if not path.exists():
        return leave_one_out(interactions)
    parts = _read_parts(path, interactions)
    train, valid, test = parts
    labels = _time_labels(parts, interactions)
    if labels is not None:
        held_out = (labels == part for part in (VALID, TEST))
        split = Split("time", train, *(_cases_in_time(interactions, own) for own in held_out))
    else:
        whole = interactions.owners, interactions.items
        owners = np.concatenate([part.owners for part in parts])
        items = np.concatenate([part.items for part in parts])
        _require_same_interactions(path, interactions.users, whole, (owners, items))
        cases = _case_per_user(train, valid), _case_per_user(train, test, valid)
        split = Split("sets", train, *cases)
    for name in ("valid", "test"):
        if not len(getattr(split, name)):
            raise InputError(
                f"{path}: {name} has no case, because nobody with an item in it has a history; "
                "choose another split"
            )
    return split


def load_time_parts(folder: Path, interactions: Interactions) -> np.ndarray | None:
    """Return the part of the split each interaction belongs to, where the split is one by time.

    Returns:
        int8 [interactions]; None where the data folder's split is of another kind.

    Raises:
        InputError: as `load_split`.
    """
    return _time_labels(_read_parts(find_data(folder).split, interactions), interactions)


def _time_labels(parts: list[Interactions], interactions: Interactions) -> np.ndarray | None:
    """Return each interaction's part where the parts follow each other in every sequence."""
    owners = np.concatenate([part.owners for part in parts])
    items = np.concatenate([part.items for part in parts])
    order = np.argsort(owners, kind="stable")
    whole = interactions.owners, interactions.items
    if not all(map(np.array_equal, whole, (owners[order], items[order]))):
        return None
    return np.repeat(np.arange(3, dtype=np.int8), [len(part.items) for part in parts])[order]


def _read_parts(path: Path, interactions: Interactions) -> list[Interactions]:
    """Return train, valid and test of a split file, with the users of `interactions`."""
    strange = f"{path}: its users are not those of the data set; make both anew: lcrec prepare"
    if is_parquet(path):
        users, pairs = read_lists(path, PARTS)
        if users != interactions.users:
            raise InputError(strange)
        return [Interactions(users, *pair) for pair in pairs]
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise InputError(
            f"{path}: expected {{user: {{train, valid, test}}}}, found {kind_of_value(raw)}"
        )
    if raw.keys() != set(interactions.users):
        raise InputError(strange)
    for user, entry in raw.items():
        if not isinstance(entry, dict) or entry.keys() != set(PARTS):
            raise InputError(f"{path}: user {user!r}: expected the lists train, valid and test")
        for part in PARTS:
            require_ids(entry[part], None, f"{path}: user {user!r}: {part}")
    return [
        Interactions.from_sequences({user: raw[user][part] for user in interactions.users})
        for part in PARTS
    ]


def _require_same_interactions(
    path: Path, users: list[str], *pairs: tuple[np.ndarray, np.ndarray]
) -> None:
    """Refuse a split, the second of (owners, items), of other interactions than the first."""
    base = 1 + max(int(items.max(initial=0)) for _, items in pairs)
    one, other = (np.sort(owners * np.int64(base) + items) for owners, items in pairs)
    if np.array_equal(one, other):
        return
    shared = min(len(one), len(other))
    at = np.append(np.flatnonzero(one[:shared] != other[:shared]), shared)[0]
    user = min(int(keys[at]) // base for keys in (one, other) if at < len(keys))
    raise InputError(
        f"{path}: user {users[user]!r}: train, valid and test together are not the user's "
        "interactions; make both anew: lcrec prepare"
    )


def _cases_in_time(interactions: Interactions, held_out: np.ndarray) -> EvalCases:
    """Return a case for each interaction held out, bool [interactions], that is no user's first."""
    owners = interactions.owners
    starts = interactions.offsets[owners]
    places = np.flatnonzero(held_out & (np.arange(len(owners)) > starts))
    starts = starts[places]
    return EvalCases(
        [interactions.users[user] for user in owners[places].tolist()],
        [interactions.items[start:end] for start, end in zip(starts, places, strict=True)],
        interactions.items[places],
        numbers=places - starts,
    )


def _case_per_user(train: Interactions, held_out: Interactions, *seen: Interactions) -> EvalCases:
    """Return a case for each user with items held out, of which all are targets."""
    users, histories, rows, exclude = [], [], [], []
    for user in np.flatnonzero(np.diff(held_out.offsets) * np.diff(train.offsets)).tolist():
        history = train.sequence(user)
        # However often it was bought, an item is one target.
        targets = list(dict.fromkeys(held_out.sequence(user).tolist()))
        had = np.concatenate([history, *(part.sequence(user) for part in seen)])
        users.append(train.users[user])
        histories.append(history)
        rows.append(targets)
        exclude.append(had[~np.isin(had, targets)])
    padded = np.full((len(rows), max(map(len, rows), default=1)), PAD, dtype=np.int32)
    for case, row in enumerate(rows):
        padded[case, : len(row)] = row
    return EvalCases(users, histories, padded, exclude)


def part_lists(
    offsets: np.ndarray, items: np.ndarray, parts: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {part: (int64 [users + 1], int32 [ids])}: where each user's items begin, and all.

    Args:
        offsets: int64 [users + 1], where each user's interactions begin.
        items: int32 [interactions].
        parts: int8 [interactions], the part each belongs to.
    """
    lists = {}
    for part, name in enumerate(PARTS):
        before = np.concatenate([[0], np.cumsum(parts == part)])
        lists[name] = before[offsets].astype(np.int64), items[parts == part]
    return lists


def write_split(folder: Path, interactions: Interactions, parts: np.ndarray) -> None:
    """Write `<Name>.split.json` into a data folder, or the same as Parquet where that is its form.

    Args:
        parts: int8 [interactions], the part each belongs to: `TRAIN`, `VALID` or `TEST`.
    """
    path = find_data(folder).split
    lists = part_lists(interactions.offsets, interactions.items, parts)
    with atomic_path(path) as temporary:
        if is_parquet(path):
            write_lists(temporary, interactions.users, lists)
            return
        by_part = {name: Interactions(interactions.users, *own) for name, own in lists.items()}
        entries = {
            user: {name: own.sequence(place).tolist() for name, own in by_part.items()}
            for place, user in enumerate(interactions.users)
        }
        temporary.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def require_same_split(artifact: Path, folder: Path, rebuild: str) -> None:
    """Refuse an artifact that may have seen what a data folder holds out.

    Accepted is what was made from the folder's interactions with its split, or from those of a
    folder that it continues: whatever was trained on there is trained on here too.

    Args:
        artifact: a file or folder; one without a record of the interactions it was made from is
            accepted as it is.
        rebuild: the command that makes the artifact anew.

    Raises:
        InputError: the splits differ, or the artifact knows other, perhaps later, interactions.
    """
    record = read_provenance(artifact)
    if record is None or "inter" not in record["inputs"]:
        return
    path = find_data(folder).split
    computed = {"path": "leave-one-out", "sha256": ""}
    used = record["inputs"].get("split", computed)
    now = {"path": path, "sha256": fingerprint(path)} if path.exists() else computed
    if used["sha256"] not in (now["sha256"], *earlier(folder, "split")):
        raise InputError(
            f"{artifact} was made with another split ({used['path']}) than --data {folder} has "
            f"({now['path']}), so it may have seen what is held out; make it anew with: {rebuild}"
        )
    seen, inter = record["inputs"]["inter"], find_data(folder).inter
    if seen["sha256"] not in (fingerprint(inter), *earlier(folder, "inter")):
        raise InputError(
            f"{artifact} was made from {seen['path']}, and no record says that --data {folder} "
            "continues it, so it may have seen what is held out; name the later data folder, or "
            f"make it anew with: {rebuild}"
        )


def describe_known(model: Path, folder: Path, valid: EvalCases) -> str:
    """Return what to tell of validation cases that a model of an earlier folder may know, or "".

    Of a user with two items leave-one-out trains on both. Where a third one came since, the second
    is validated on.
    """
    record, paths = read_provenance(model), find_data(folder)
    if record is None or "inter" not in record["inputs"] or paths.split.exists():
        return ""
    count = sum(len(history) == 1 for history in valid.histories)
    if not count or record["inputs"]["inter"]["sha256"] == fingerprint(paths.inter):
        return ""
    return (
        f"--model {model} was trained on an earlier state of {folder}, and may know the validation "
        f"items of {count:,} users with three items; --since leaves out what it knows"
    )


def cases_since(cases: EvalCases, folder: Path, since: Path, num_items: int) -> EvalCases:
    """Return the cases of a data folder whose items came after an earlier state of the folder.

    Args:
        cases: of the data folder's split.
        folder: the data folder.
        since: the one that it continues.
        num_items: the size of the catalogue.

    Raises:
        InputError: no record says that the folder continues `since`, the split's cases are no next
            items, or none of them came later.
    """
    path = find_data(since).inter
    if cases.exclude is not None:
        raise InputError(
            f"--since {since}: the split of --data {folder} does not predict what came next; it "
            "needs leave-one-out, or a split by time"
        )
    if fingerprint(path) not in earlier(folder, "inter"):
        raise InputError(
            f"--since {since}: no record says that --data {folder} continues it with later orders; "
            "name a folder that lcrec add_interactions began with"
        )
    later = cases.since(load_interactions(since, num_items))
    if not len(later):
        raise InputError(
            f"--since {since}: no case of --data {folder} came later; name an earlier folder"
        )
    return later
