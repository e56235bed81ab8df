"""The one currency of recommendation: `predictions.jsonl`, written and read here only.

Each line is one ranked list: {"user": text, "target": item id, "ranked": [item ids, best first],
"scores": [falling numbers, one per item], "template_id": text or null}. A user may have one line
per template. Whatever recommends writes this form, so one evaluator judges all of it; both sides
check every line, because a repeated item or a missing user would flatter a method silently.

Public names: `Prediction`, `Predictions`, `write_predictions`, `read_predictions`,
`require_comparable`, `require_predictions_path`, `top_items`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.artifacts import provenance_path, read_jsonl, write_jsonl
from lcrec.errors import InputError, closest

PAD = -1
MAX_ITEM = 2**31 - 1
KEYS = ("user", "target", "ranked", "scores", "template_id")


@dataclass(frozen=True)
class Prediction:
    """One ranked list for one user.

    `ranked` holds distinct item ids, best first, none where the method found no item; `scores` as
    many finite numbers that never rise; `template_id` names the wording that asked for it, None
    where there is no wording.
    """

    user: str
    target: int
    ranked: Sequence[int] | np.ndarray
    scores: Sequence[float] | np.ndarray
    template_id: str | None = None


@dataclass(frozen=True)
class Predictions:
    """A predictions file in memory; every template covers the same users with the same targets.

    Attributes:
        users: the distinct users, in the file's order.
        targets: int64 [users].
        ranked: {template_id: int64 [users, longest list]}, padded with -1; row i is `users[i]`.
    """

    users: list[str]
    targets: np.ndarray
    ranked: dict[str | None, np.ndarray]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def length(self) -> int:
        """The number of items in the longest list."""
        return next(iter(self.ranked.values())).shape[1]


def require_predictions_path(path: Path, flag: str = "--output") -> None:
    """Refuse a path whose name does not end in `.jsonl`, or that is a folder."""
    if path.suffix != ".jsonl" or path.is_dir():
        better = path / "predictions.jsonl" if path.is_dir() else path.with_suffix(".jsonl")
        raise InputError(f"{flag} {path}: predictions go to a file named *.jsonl, such as {better}")


def write_predictions(path: Path, rows: Iterable[Prediction]) -> None:
    """Write predictions atomically, one line each, as they come.

    Scores are written as float32 in their shortest exact form. A sidecar left by an earlier run
    is removed first, since it would speak for another file; write the new one afterwards with
    `lcrec.artifacts.write_provenance`.

    Raises:
        InputError: the path does not end in `.jsonl`, or a row breaks the form; nothing is
            written then.
    """
    require_predictions_path(path)
    provenance_path(path).unlink(missing_ok=True)
    write_jsonl(path, _checked_rows(path, rows))


def read_predictions(path: Path) -> Predictions:
    """Read and check a predictions file.

    Raises:
        InputError: the file is missing or empty; a line is no JSON object, lacks a key, repeats
            an item, has scores that rise, are not finite or differ in number from the items, or
            gives a user twice under one template; a user has two targets; or a template lacks
            users. The line is named.
    """
    rows = read_jsonl(path)
    seen: dict[str | None, dict[str, int]] = {}
    targets: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        _check_row(row, where)
        user, target, template = row["user"], row["target"], row.get("template_id")
        lines = seen.setdefault(template, {})
        if user in lines:
            raise InputError(
                f"{where}: user {user!r} is there a second time{_under(template)} (first on line "
                f"{lines[user]}); keep one list per user and template"
            )
        lines[user] = number
        if targets.setdefault(user, target) != target:
            raise InputError(
                f"{where}: user {user!r} has target {target} here but {targets[user]} above; "
                "keep validation and test in files of their own"
            )
    for template, lines in seen.items():
        if missing := [user for user in targets if user not in lines]:
            raise InputError(
                f"{path}: {len(missing)} of {len(targets)} users have no list{_under(template)} "
                f"(first: user {missing[0]!r}); every template must answer for every user: make "
                "the file anew"
            )
    width = max(1, *(len(row["ranked"]) for row in rows))
    ranked = {
        template: _pad([rows[lines[user] - 1]["ranked"] for user in targets], width)
        for template, lines in seen.items()
    }
    return Predictions(list(targets), np.array(list(targets.values()), dtype=np.int64), ranked)


def require_comparable(files: Mapping[str, Predictions]) -> None:
    """Refuse to compare predictions that answer for other users or other targets.

    Args:
        files: {name to show: predictions}.

    Raises:
        InputError: two of them differ in users or in a user's target.
    """
    (first_name, first), *others = files.items()
    expected = dict(zip(first.users, first.targets.tolist(), strict=True))
    for name, other in others:
        found = dict(zip(other.users, other.targets.tolist(), strict=True))
        remedy = "compare files made from the same --data and the same --split"
        for has, lacks, absent in (
            (first_name, name, expected.keys() - found.keys()),
            (name, first_name, found.keys() - expected.keys()),
        ):
            if absent:
                raise InputError(
                    f"{has} has {len(absent)} users that {lacks} lacks (such as user "
                    f"{min(absent)!r}); {remedy}"
                )
        differing = [user for user, target in expected.items() if found[user] != target]
        if differing:
            user = differing[0]
            raise InputError(
                f"{first_name} and {name} have different targets for {len(differing)} users (such "
                f"as user {user!r}: {expected[user]} and {found[user]}); {remedy}"
            )


def top_items(
    scores: np.ndarray, top: int, exclude: Sequence[np.ndarray] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rank the whole catalogue and keep the first items; of equal scores the lower id comes first.

    Args:
        scores: float32 [batch, items]; -inf rules an item out.
        top: how many items to keep, at least 1; fewer where fewer are left.
        exclude: per row, ids of items that must not be listed.

    Returns:
        per row the item ids, int64 [length], and their scores, float32 [length].

    Raises:
        ValueError: a score is NaN or +inf.
    """
    items = scores.shape[1]
    scores = scores.astype(np.float32)  # a copy: the caller's scores stay as they are
    if np.isnan(scores).any() or np.isposinf(scores).any():
        row = int(np.argmax((np.isnan(scores) | np.isposinf(scores)).any(axis=1)))
        raise ValueError(f"row {row} of the scores holds NaN or +inf")
    for row, ids in enumerate(exclude or ()):
        scores[row, ids] = -np.inf
    # One integer per item that falls with the score and then rises with the id: all distinct, so
    # that a partial sort is exact at its edge too. A float's bits order like the float itself
    # once those of negative numbers are turned around; adding zero makes -0.0 the same as 0.0.
    bits = (scores + np.float32(0)).view(np.int32)
    rising = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys = (-rising << 32) | np.arange(items, dtype=np.int64)
    top = min(top, items)
    keys = np.sort(np.partition(keys, top - 1, axis=1)[:, :top], axis=1)
    ranked = keys & 0xFFFFFFFF
    kept = np.take_along_axis(scores, ranked, axis=1)
    lengths = (kept > -np.inf).sum(axis=1)
    return [
        (ids[:length], values[:length])
        for ids, values, length in zip(ranked, kept, lengths, strict=True)
    ]


def _checked_rows(path: Path, rows: Iterable[Prediction]) -> Iterable[dict[str, Any]]:
    seen: set[tuple[str | None, str]] = set()
    for number, row in enumerate(rows, start=1):
        # Text of a float32 is its shortest exact form: half the digits of the same float64.
        scores = np.asarray(row.scores, dtype=np.float32).astype("U32").astype(np.float64)
        values = {
            "user": row.user,
            "target": int(row.target),
            "ranked": np.asarray(row.ranked).tolist(),
            "scores": scores.tolist(),
            "template_id": row.template_id,
        }
        where = f"{path}, line {number}"
        _check_row(values, where)
        key = (row.template_id, row.user)
        if key in seen:
            raise InputError(
                f"{where}: user {row.user!r} is predicted a second time{_under(row.template_id)}"
            )
        seen.add(key)
        yield values


def _check_row(row: Any, where: str) -> None:
    """Raise `InputError` where a line breaks the form of a prediction."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with {', '.join(KEYS)}, found {row!r:.60}")
    for key in KEYS[:4]:
        if key not in row:
            near = closest(key, row.keys() - set(KEYS))
            raise InputError(f"{where}: {key!r} is missing{near}; a line has {', '.join(KEYS)}")
    user, target, template = row["user"], row["target"], row.get("template_id")
    if not isinstance(user, str) or not user:
        raise InputError(f"{where}: user must be text, found {user!r}")
    if type(target) is not int or not 0 <= target <= MAX_ITEM:
        raise InputError(f"{where}: target must be an item id from 0 up, found {target!r}")
    if template is not None and not isinstance(template, str):
        raise InputError(f"{where}: template_id must be text or null, found {template!r}")
    ranked, scores = row["ranked"], row["scores"]
    if not isinstance(ranked, list):
        raise InputError(f"{where}: ranked must be a list of item ids, found {ranked!r:.40}")
    for item in ranked:
        if type(item) is not int or not 0 <= item <= MAX_ITEM:
            raise InputError(f"{where}: ranked holds {item!r}, which is no item id from 0 up")
    if len(set(ranked)) != len(ranked):
        item = next(item for place, item in enumerate(ranked) if item in ranked[:place])
        raise InputError(f"{where}: item {item} is ranked twice; a list must not repeat an item")
    if not isinstance(scores, list) or len(scores) != len(ranked):
        found = f"{len(scores)}" if isinstance(scores, list) else f"{scores!r:.40}"
        raise InputError(f"{where}: {len(ranked)} items need as many scores, found {found}")
    for score in scores:
        if type(score) not in (int, float) or not abs(score) < math.inf:  # nor NaN
            raise InputError(f"{where}: score {score!r} is no finite number")
    for place in range(1, len(scores)):
        if scores[place] > scores[place - 1]:
            raise InputError(
                f"{where}: scores must not rise, but place {place + 1} has {scores[place]} after "
                f"{scores[place - 1]}; list the best item first"
            )


def _under(template: str | None) -> str:
    return "" if template is None else f" under template {template!r}"


def _pad(lists: list[list[int]], width: int) -> np.ndarray:
    padded = np.full((len(lists), width), PAD, dtype=np.int64)
    for row, items in enumerate(lists):
        padded[row, : len(items)] = items
    return padded
