"""What users like and look for, and what they wrote of items: two optional files of a data folder.

Reads LC-Rec's forms, and writes nothing. `<Name>.user.json` has preferences and intentions:
{"user_explicit_preference": {user: [text, ...]}, "user_vague_intention": {"train": {user: {"item",
"querys": [text, ...]}}, "test": {...}}}. `<Name>.review.json` has reviews: {"(user, item)":
{"review": text, "summary": text}}, the key a Python tuple as text: `(0, 12)` or `('0', 12)`.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lcrec.core.artifacts import find_data, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import require_same_input
from lcrec.data.splits import Split, require_same_split

REBUILD = "python -m lcrec.intents"


Section = Literal["train", "test"]


@dataclass(frozen=True)
class IntentSubject:
    """A user to write texts about.

    Attributes:
        user: the name.
        liked: what a preference may be told from: all that the user trains on but the last item,
            int32 [length].
        taken: the item that an intention is about and what the user had before it, int32 [length]:
            "train" the last item to train on, "test" the first to test on. Absent where there is
            none.
    """

    user: str
    liked: np.ndarray
    taken: dict[Section, tuple[int, np.ndarray]]


def intent_subjects(split: Split, count: int | None = None) -> list[IntentSubject]:
    """Return the first `count` users, or all, with what texts about them may be written from."""
    test = split.test.one_per_user()
    tested = dict(
        zip(test.users, zip(test.targets.tolist(), test.histories, strict=True), strict=True)
    )
    subjects = []
    for user, sequence in zip(split.train.users[:count], split.train, strict=False):
        taken: dict[Section, tuple[int, np.ndarray]] = {}
        if len(sequence):
            taken["train"] = int(sequence[-1]), sequence[:-1]
        if user in tested:
            taken["test"] = tested[user]
        subjects.append(IntentSubject(user, sequence[:-1], taken))
    return subjects


@dataclass(frozen=True)
class UserTexts:
    """What users like, and looked for when they took the last training item and the test item.

    Each is {user: [text, ...]}; users may be missing. `num_users` counts all of the data set.
    """

    preferences: dict[str, list[str]]
    train_intentions: dict[str, list[str]]
    test_intentions: dict[str, list[str]]
    num_users: int

    def describe(self) -> str:
        """Return one line that says how many users have which text."""
        return (
            f"of {self.num_users:,} users {len(self.preferences):,} have preferences, "
            f"{len(self.train_intentions):,} an intention to train on, "
            f"{len(self.test_intentions):,} one to test on"
        )


def load_user_texts(folder: Path, split: Split) -> UserTexts | None:
    """Read `<Name>.user.json`, or return None where the data folder has none.

    The split tells whether an intention is about the right item.

    Raises:
        InputError: the file is malformed, was made from other sequences or for another split,
            speaks of a user the data set does not have, or of another item than the one to be
            predicted.
    """
    paths = find_data(folder)
    path = paths.user
    if not path.exists():
        return None
    # Preferences name no item, so only this tells that they are of older sequences.
    rebuild = f"{REBUILD} --data {folder} --method METHOD"
    require_same_input(path, "inter", paths.inter, rebuild)
    require_same_split(path, folder, rebuild)
    raw = read_json(path)
    names = ("user_explicit_preference", "user_vague_intention")
    if not isinstance(raw, dict) or not any(name in raw for name in names):
        raise InputError(f"{path}: expected an object with {' and '.join(map(repr, names))}")
    intentions = _require_object(raw.get(names[1], {}), f"{path}: {names[1]}")
    taken = {subject.user: subject.taken for subject in intent_subjects(split)}
    sections: list[dict[str, list[str]]] = []
    parts: tuple[tuple[dict, str, Section | None], ...] = (
        (raw.get(names[0], {}), f"{path}: {names[0]}", None),
        (intentions.get("train", {}), f"{path}: {names[1]}: train", "train"),
        (intentions.get("test", {}), f"{path}: {names[1]}: test", "test"),
    )
    for section, where, part in parts:
        texts = {}
        for user, entry in _require_object(section, where).items():
            here = f"{where}: user {user!r}"
            if user not in taken:
                raise InputError(f"{here} has no sequence; the file belongs to another data set")
            if part is not None:
                entry = _intention_texts(entry, taken[user].get(part, (None,))[0], part, here)
            if not isinstance(entry, list) or not all(isinstance(text, str) for text in entry):
                raise InputError(f"{here}: expected a list of texts, found {entry!r:.80}")
            texts[user] = [text for text in entry if text.strip()]
        sections.append({user: own for user, own in texts.items() if own})
    preferences, train_intentions, test_intentions = sections
    return UserTexts(preferences, train_intentions, test_intentions, len(split.train))


def _intention_texts(entry: object, item: int | None, part: Section, where: str) -> object:
    """Return the texts of an intention, which must be about this item."""
    if not isinstance(entry, dict) or "item" not in entry or "querys" not in entry:
        raise InputError(f"{where}: expected {{item, querys: [text, ...]}}, found {entry!r:.80}")
    if entry["item"] != item:
        raise InputError(
            f"{where}: the intention is about item {entry['item']!r}, but the user's "
            f"{'last item to train on' if part == 'train' else 'first item to test on'} is {item}; "
            f"the file belongs to other sequences or to another split: make it anew with {REBUILD}"
        )
    return entry["querys"]


def _require_object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object by user, found {value!r:.80}")
    return value


@dataclass(frozen=True)
class Review:
    """What one user wrote about one item; either text may be empty."""

    text: str
    summary: str


def load_reviews(folder: Path, users: list[str], num_items: int) -> dict[tuple[str, int], Review]:
    """Read `<Name>.review.json`: {(user, item): review}; empty where the folder has none.

    Raises:
        InputError: the file is malformed, or speaks of a user or an item that the data set does
            not have.
    """
    path = find_data(folder).review
    if not path.exists():
        return {}
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f'{path}: expected {{"(user, item)": {{review, summary}}}}')
    known = set(users)
    reviews = {}
    for key, entry in raw.items():
        user, item = _read_key(key, path)
        if user not in known or not 0 <= item < num_items:
            raise InputError(
                f"{path}: {key}: the data set has no such user or item; the file belongs to "
                "another data set"
            )
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {key}: expected {{review, summary}}, found {entry!r:.80}")
        texts = [entry.get(name) or "" for name in ("review", "summary")]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}: {key}: review and summary must be text, found {entry!r:.80}")
        reviews[user, item] = Review(*texts)
    return reviews


def _read_key(key: str, path: Path) -> tuple[str, int]:
    """Return user and item of `(user, item)`; a user that is quoted is unquoted."""
    try:
        if not (key.startswith("(") and key.endswith(")")):
            raise ValueError
        user, item = key[1:-1].rsplit(",", 1)
        user, item = user.strip(), item.strip()
        if user[:1] in ("'", '"'):
            user = str(ast.literal_eval(user))
        return user, int(item.strip("'\""))
    except (ValueError, SyntaxError):
        raise InputError(f"{path}: the key {key!r:.80} is not of the form (user, item)") from None
