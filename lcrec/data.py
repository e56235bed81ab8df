"""A data set in memory: what users did (`Interactions`) and what items are (`Items`).

Reads `<Name>.inter.json` {user: [item, ...] oldest first} and `<Name>.item.json`
{item: {title, description, ...}}, or the same as Parquet (`lcrec.data_parquet`); item ids are
0 .. n-1 without gaps. Also the split that everything is judged on: leave-one-out (train up to [-2],
validate on [-2], test on [-1]), or what `<Name>.split.json` {user: {train, valid, test}} says.

Public names: `Items`, `Interactions`, `Cases`, `Split`, `load_items`, `item_texts`,
`load_interactions`, `check_embeddings`, `leave_one_out`, `load_split`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import find_data, is_parquet, read_json
from lcrec.core.errors import InputError
from lcrec.data_parquet import read_lists, read_texts

MOST_ITEMS = 2**31 - 1  # ids are int32


@dataclass(frozen=True)
class Items:
    """The catalogue; `fields[i]` holds the text fields of item i, empty text where absent."""

    fields: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.fields)

    def text(self, item: int, field: str) -> str:
        """Return a text field of an item, empty where the catalogue has none."""
        return self.fields[item].get(field, "")

    def title(self, item: int) -> str:
        """Return the item's title, or a readable stand-in where it has none."""
        return self.text(item, "title") or f"(item {item}, no title)"


@dataclass(frozen=True)
class Interactions:
    """Every user's items, oldest first: user u has `items[offsets[u]:offsets[u + 1]]`.

    `offsets` is int64 [users + 1], `items` int32 [interactions].
    """

    users: list[str]
    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def from_sequences(cls, sequences: dict[str, list[int]]) -> "Interactions":
        """Pack {user: [item, ...]} into arrays, keeping the order of users."""
        lengths = [len(sequence) for sequence in sequences.values()]
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = [item for sequence in sequences.values() for item in sequence]
        return cls(list(sequences), offsets, np.asarray(flat, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.users)

    def sequence(self, user: int) -> np.ndarray:
        """Return the items of the user at this position, int32 [length]."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.sequence(user) for user in range(len(self)))


@dataclass(frozen=True)
class Cases:
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

    def sample(self, count: int | None, seed: int) -> "Cases":
        """Return `count` cases drawn by seed, in their order; all where None or no more there."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return Cases(
            [self.users[case] for case in chosen],
            [self.histories[case] for case in chosen],
            self.targets[chosen],
            None if self.exclude is None else [self.exclude[case] for case in chosen],
        )


@dataclass(frozen=True)
class Split:
    """A split: sequences to train on, cases to validate and to test on."""

    train: Interactions
    valid: Cases
    test: Cases


def load_items(folder: Path) -> Items:
    """Read the catalogue of a data folder.

    Raises:
        InputError: the file is missing or malformed, ids have a gap, or an item has no text at all.
    """
    path = find_data(folder).item
    if not path.exists():
        raise InputError(f"{path}: no such file; it holds the items' titles and descriptions")
    if is_parquet(path):
        rows = read_texts(path)
        return Items([item_texts(row, f"{path}: item {item}") for item, row in enumerate(rows)])
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path}: expected {{item id: {{title, ...}}}}, found {_kind(raw)}")
    fields = []
    for item in range(len(raw)):
        entry = raw.get(str(item))
        if entry is None:
            raise InputError(
                f"{path}: item {item} is missing; {len(raw)} items must be numbered 0 to "
                f"{len(raw) - 1} without gaps"
            )
        fields.append(item_texts(entry, f"{path}: item {item}"))
    return Items(fields)


def item_texts(entry: object, where: str) -> dict[str, str]:
    """Return an item's fields as text.

    Args:
        entry: the item as it stands in `<Name>.item.json`.
        where: the file and the item, for the error.

    Raises:
        InputError: it is no object, or has neither a title nor a description.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, found {_kind(entry)}")
    texts = {name: _as_text(value) for name, value in entry.items()}
    if not texts.get("title") and not texts.get("description"):
        raise InputError(
            f"{where} has no text; give it a title or a description, or leave it out with: "
            "python -m lcrec.prepare"
        )
    return texts


def load_interactions(folder: Path, num_items: int | None) -> Interactions:
    """Read the users' sequences of a data folder.

    Args:
        folder: the data folder.
        num_items: the size of the catalogue, to check every id against; None where there is no
            catalogue: the items are then those of the sequences.

    Raises:
        InputError: the file is missing or malformed, an id is not in the catalogue, or there is no
            catalogue and the ids have a gap.
    """
    paths = find_data(folder)
    path = paths.inter
    if is_parquet(path):
        users, [(offsets, items)] = read_lists(path, ["items"])
        if num_items is not None:
            _require_known(items, num_items, path)
        interactions = Interactions(users, offsets, items)
    else:
        raw = read_json(path)
        if not isinstance(raw, dict) or not raw:
            raise InputError(f"{path}: expected {{user: [item, ...]}}, found {_kind(raw)}")
        for user, sequence in raw.items():
            _require_ids(sequence, num_items, f"{path}: user {user!r}")
        interactions = Interactions.from_sequences(raw)
    if num_items is None:
        _require_no_gap(interactions.items, path, paths.item)
    return interactions


def _require_ids(sequence: object, num_items: int | None, where: str) -> None:
    """Refuse what is no list of items of the catalogue, or of ids at all where there is none."""
    if not isinstance(sequence, list):
        raise InputError(f"{where}: expected a list, found {_kind(sequence)}")
    limit = MOST_ITEMS if num_items is None else num_items
    for item in sequence:
        if type(item) is not int or not 0 <= item < limit:
            wanted = "an item id from 0 up"
            if num_items is not None:
                wanted = f"in the catalogue, whose ids are 0 to {num_items - 1}"
            raise InputError(f"{where}: item {item!r} is not {wanted}")


def _require_known(items: np.ndarray, num_items: int, path: Path) -> None:
    """Refuse ids of Parquet files, which are no less than 0, that are not in the catalogue."""
    if len(items) and int(items.max()) >= num_items:
        raise InputError(
            f"{path}: item {items.max()} is not in the catalogue, whose ids are 0 to "
            f"{num_items - 1}"
        )


def _require_no_gap(items: np.ndarray, path: Path, catalogue: Path) -> None:
    """Refuse ids that leave one out, where nothing else says how many items there are."""
    seen = np.unique(items)
    missing = np.flatnonzero(seen != np.arange(len(seen)))
    if len(missing):
        raise InputError(
            f"{path}: item {missing[0]} is in no sequence, and there is no {catalogue} to say how "
            "many items there are; number the items from 0 without gaps, or add that file"
        )


def check_embeddings(embeddings: np.ndarray, num_items: int, path: Path) -> np.ndarray:
    """Return the embeddings as float32 [items, dim], refusing what cannot be indexed.

    Raises:
        InputError: wrong shape, a row count that is not the catalogue's, or a value not finite.
    """
    is_table = embeddings.ndim == 2 and embeddings.shape[1] > 0
    if not is_table or not np.issubdtype(embeddings.dtype, np.floating):
        raise InputError(
            f"{path}: expected floats of shape [items, dim], found {embeddings.dtype} "
            f"{list(embeddings.shape)}"
        )
    if len(embeddings) != num_items:
        raise InputError(
            f"{path} has {len(embeddings)} rows but the catalogue has {num_items} items; rebuild "
            "it with python -m lcrec.embed"
        )
    with np.errstate(over="ignore"):
        embeddings = embeddings.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} rows hold values that are not finite (first: item {bad[0]}); "
            "rebuild it with python -m lcrec.embed"
        )
    return embeddings


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
        Cases(
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
    ids padded with -1, as `lcrec.rankings.metrics` takes it. Who has no target in a part, or no history, is
    no case of it.

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
            _require_known(items, num_items, path)
        train, valid, test = (Interactions(users, *pair) for pair in pairs)
    else:
        raw = read_json(path)
        if not isinstance(raw, dict) or not raw:
            raise InputError(
                f"{path}: expected {{user: {{train, valid, test}}}}, found {_kind(raw)}"
            )
        for user, entry in raw.items():
            if not isinstance(entry, dict) or entry.keys() != set(PARTS):
                raise InputError(f"{path}: user {user!r}: expected the lists train, valid and test")
            for part in PARTS:
                _require_ids(entry[part], num_items, f"{path}: user {user!r}: {part}")
        train, valid, test = (
            Interactions.from_sequences({user: entry[part] for user, entry in raw.items()})
            for part in PARTS
        )
    return Split(train, _cases(valid, [train]), _cases(test, [train, valid]))


def _cases(targets: Interactions, before: list[Interactions]) -> Cases:
    """Return the cases of users with a target and a history, which is `before`, one by one."""
    users, histories, rows = [], [], []
    for user in np.flatnonzero(np.diff(targets.offsets)).tolist():
        history = np.concatenate([part.sequence(user) for part in before])
        if len(history):
            users.append(targets.users[user])
            histories.append(history)
            # As often as it was taken, an item is one target.
            rows.append(list(dict.fromkeys(targets.sequence(user).tolist())))
    padded = np.full((len(rows), max(map(len, rows), default=1)), -1, dtype=np.int32)
    for case, row in enumerate(rows):
        padded[case, : len(row)] = row
    return Cases(users, histories, padded)


def _as_text(value: object) -> str:
    """Join a list of texts by spaces; None and NaN are empty; all else is written as text."""
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return " ".join(filter(None, map(_as_text, value)))
    # JSON may hold half of a surrogate pair, which no tokenizer and no UTF-8 file can.
    return str(value).encode(errors="replace").decode().strip()


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing"}
    text = names.get(type(value), "a number")
    return f"an empty {text.split()[-1]}" if value in ({}, []) else text
