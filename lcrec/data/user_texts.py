"""What users like and look for, in words: the optional `<Name>.user.json` of a data folder.

Reads LC-Rec's form: {"user_explicit_preference": {user: [text, ...]}, "user_vague_intention":
{"train": {user: {"item", "querys": [text, ...]}}, "test": {...}}}. Writes nothing.

What users wrote about the items they took: the optional `<Name>.review.json` of a data folder.

Reads LC-Rec's form: {"(user, item)": {"review": text, "summary": text}}, the key being a Python
tuple as text: `(0, 12)` or `('0', 12)`. Writes nothing.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import find_data, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import require_same_input
from lcrec.data.folder import Interactions

REBUILD = "python -m lcrec.intents"


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


def load_user_texts(folder: Path, interactions: Interactions) -> UserTexts | None:
    """Read `<Name>.user.json`, or return None where the data folder has none.

    Args:
        folder: the data folder.
        interactions: the whole sequences, to check that an intention is about the right item:
            the last training item ([-3]) or the test item ([-1]).

    Raises:
        InputError: the file is malformed, was made from other sequences, speaks of a user the data
            set does not have, or of another item than the one to be predicted.
    """
    paths = find_data(folder)
    path = paths.user
    if not path.exists():
        return None
    # Preferences name no item, so only this tells that they are of older sequences.
    require_same_input(path, "inter", paths.inter, f"{REBUILD} --data {folder} --method METHOD")
    raw = read_json(path)
    names = ("user_explicit_preference", "user_vague_intention")
    if not isinstance(raw, dict) or not any(name in raw for name in names):
        raise InputError(f"{path}: expected an object with {' and '.join(map(repr, names))}")
    intentions = _require_object(raw.get(names[1], {}), f"{path}: {names[1]}")
    last_items = dict(zip(interactions.users, interactions, strict=True))
    sections: list[dict[str, list[str]]] = []
    for section, where, back in (
        (raw.get(names[0], {}), f"{path}: {names[0]}", None),
        (intentions.get("train", {}), f"{path}: {names[1]}: train", 3),
        (intentions.get("test", {}), f"{path}: {names[1]}: test", 1),
    ):
        texts = {}
        for user, entry in _require_object(section, where).items():
            here = f"{where}: user {user!r}"
            if user not in last_items:
                raise InputError(f"{here} has no sequence; the file belongs to another data set")
            if back is not None:
                entry = _intention_texts(entry, last_items[user][-back:], back, here)
            if not isinstance(entry, list) or not all(isinstance(text, str) for text in entry):
                raise InputError(f"{here}: expected a list of texts, found {entry!r:.80}")
            texts[user] = [text for text in entry if text.strip()]
        sections.append({user: own for user, own in texts.items() if own})
    preferences, train_intentions, test_intentions = sections
    return UserTexts(preferences, train_intentions, test_intentions, len(interactions))


def _intention_texts(entry: object, last_items: np.ndarray, back: int, where: str) -> object:
    """Return the texts of an intention, which must be about the first of the user's last items."""
    if not isinstance(entry, dict) or "item" not in entry or "querys" not in entry:
        raise InputError(f"{where}: expected {{item, querys: [text, ...]}}, found {entry!r:.80}")
    item = int(last_items[0]) if len(last_items) else None
    if entry["item"] != item:
        raise InputError(
            f"{where}: the intention is about item {entry['item']!r}, but the user's item at "
            f"[-{back}] is {item}; the file belongs to other sequences: make it anew with "
            f"{REBUILD}"
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

    Args:
        folder: the data folder.
        users: all users of the data set.
        num_items: the size of the catalogue.

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
