"""What users wrote about the items they took: the optional `<Name>.review.json` of a data folder.

Reads LC-Rec's form: {"(user, item)": {"review": text, "summary": text}}, the key being a Python
tuple as text: `(0, 12)` or `('0', 12)`. Writes nothing.

Public names: `Review`, `load_reviews`.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from lcrec.core.artifacts import find_data, read_json
from lcrec.core.errors import InputError


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
