"""The common format of recommendations: `predictions.jsonl`, written and read here only.

Each line is one ranked list: {"user": text, "target": item id, "ranked": [item ids, best first],
"scores": [falling numbers, one per item], "template_id": text or null}. A user may have one line
per template. Where a split holds out several items of a user as one case, "target" is their list;
where each is a case of its own, "case" tells them apart: the place of the item in the user's
sequence. Whatever recommends writes this form, so one evaluator judges all of it; both sides check
every line, because a repeated item or a missing user would flatter a method silently.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lcrec.core.artifacts import atomic_path, read_jsonl, write_jsonl
from lcrec.core.errors import InputError, closest
from lcrec.core.provenance import provenance_path
from lcrec.rankings.metrics import PAD

MAX_ITEM = 2**31 - 1
LARGEST_SCORE = float(str(np.finfo(np.float32).max))  # as it is written
KEYS = ("user", "target", "ranked", "scores", "template_id", "case")
Key = tuple[str, int | None]  # of a case: the user, and which of their cases it is


class DivergedError(InputError, FloatingPointError):
    """The scores of a method, or the loss that it is trained by, are NaN or infinite."""


@dataclass(frozen=True)
class Prediction:
    """One ranked list for one user.

    `target` is the item that was held out, or all of them, padded with -1 or not. `ranked` holds
    distinct item ids, best first, none where the method found no item; `scores` as many finite
    numbers that never rise; `template_id` names the template that asked for it, None where there is
    no template; `case` tells the cases of one user apart, None where users have one each.
    """

    user: str
    target: int | Sequence[int] | np.ndarray
    ranked: Sequence[int] | np.ndarray
    scores: Sequence[float] | np.ndarray
    template_id: str | None = None
    case: int | None = None


@dataclass(frozen=True)
class Predictions:
    """A predictions file in memory; every template covers the same cases with the same targets.

    Attributes:
        users: [cases], in the file's order; a user with several cases stands there once for each.
        targets: int64 [cases]; [cases, most targets] padded with -1 where a case has several.
        ranked: {template_id: int64 [cases, longest list]}, padded with -1; row i is `users[i]`.
        scores: {template_id: float32 [cases, longest list]}, likewise, padded with -inf;
            empty where the lists were not read from a file.
        numbers: what tells the cases of one user apart, [cases]; None where users have one each.
    """

    users: list[str]
    targets: np.ndarray
    ranked: dict[str | None, np.ndarray]
    scores: dict[str | None, np.ndarray] = field(default_factory=dict)
    numbers: Sequence[int | None] | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def length(self) -> int:
        """The number of items in the longest list."""
        return max(int((ranked != PAD).sum(axis=1).max()) for ranked in self.ranked.values())

    @property
    def keys(self) -> list[Key]:
        """What tells the cases apart, [cases]."""
        numbers = [None] * len(self) if self.numbers is None else self.numbers
        return list(zip(self.users, numbers, strict=True))

    @property
    def owners(self) -> np.ndarray | None:
        """The number of each case's user, int64 [cases]; None where users have one case each."""
        return None if self.numbers is None else np.unique(self.users, return_inverse=True)[1]

    @property
    def num_users(self) -> int:
        """The number of distinct users."""
        return len(set(self.users))

    def in_order_of(self, keys: Sequence[Key]) -> "Predictions":
        """Return the same predictions in the order of these keys, which are its own."""
        places = {key: place for place, key in enumerate(self.keys)}
        rows = np.array([places[key] for key in keys])
        return Predictions(
            [user for user, _ in keys],
            self.targets[rows],
            {template: ranked[rows] for template, ranked in self.ranked.items()},
            {template: scores[rows] for template, scores in self.scores.items()},
            None if self.numbers is None else [number for _, number in keys],
        )


def require_predictions_path(path: Path) -> None:
    """Refuse a path whose name does not end in `.jsonl`, or that is a folder."""
    if path.suffix != ".jsonl" or path.is_dir():
        better = path / "predictions.jsonl" if path.is_dir() else path.with_suffix(".jsonl")
        raise InputError(
            f"--output {path}: predictions go to a file named *.jsonl, such as {better}"
        )


def write_predictions(path: Path, rows: Iterable[Prediction]) -> None:
    """Write predictions atomically, one line each, as they come.

    Scores are written as float32 in their shortest exact form. A sidecar left by an earlier run
    is removed, since it would speak for another file; write the new one afterwards with
    `lcrec.core.provenance.write_provenance`.

    Raises:
        InputError: the path does not end in `.jsonl`, or a row breaks the form; nothing is
            written then.
    """
    require_predictions_path(path)
    with atomic_path(path) as temporary:
        write_jsonl(temporary, _checked_rows(path, rows))
        provenance_path(path).unlink(missing_ok=True)


def read_predictions(path: Path) -> Predictions:
    """Read and check a predictions file.

    Raises:
        InputError: the file is missing or empty; a line is no JSON object, lacks a key, repeats
            an item, has scores that rise, are not finite or differ in number from the items, or
            gives a case twice under one template; a case has two targets; or a template lacks
            cases. The line is named.
    """
    rows = read_jsonl(path)
    seen: dict[str | None, dict[Key, int]] = {}
    targets: dict[Key, int | list[int]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        _check_row(row, where)
        key, template = (row["user"], row.get("case")), row.get("template_id")
        target = _plain_target(row["target"])
        lines = seen.setdefault(template, {})
        if key in lines:
            raise InputError(
                f"{where}: {_named(key)} is there a second time{_under(template)} (first on line "
                f"{lines[key]}); keep one list per user and template"
            )
        lines[key] = number
        if targets.setdefault(key, target) != target:
            raise InputError(
                f"{where}: {_named(key)} has target {target} here but {targets[key]} above; "
                "keep validation and test in files of their own"
            )
    for template, lines in seen.items():
        if missing := [key for key in targets if key not in lines]:
            raise InputError(
                f"{path}: {len(missing)} of {len(targets)} users have no list{_under(template)} "
                f"(first: {_named(missing[0])}); every template must answer for every user: make "
                "the file anew"
            )
    width = max(1, *(len(row["ranked"]) for row in rows))
    chosen = {
        template: [rows[lines[key] - 1] for key in targets] for template, lines in seen.items()
    }
    ranked = {
        template: _pad([row["ranked"] for row in own], width, np.int64, PAD)
        for template, own in chosen.items()
    }
    scores = {
        template: _pad([row["scores"] for row in own], width, np.float32, -np.inf)
        for template, own in chosen.items()
    }
    truths = list(targets.values())
    users, numbers = map(list, zip(*targets, strict=True))
    if any(isinstance(truth, list) for truth in truths):
        lists = [truth if isinstance(truth, list) else [truth] for truth in truths]
        padded = _pad(lists, max(map(len, lists)), np.int64, PAD)
    else:
        padded = np.array(truths, dtype=np.int64)
    one_each = all(number is None for number in numbers)
    return Predictions(users, padded, ranked, scores, None if one_each else numbers)


def require_comparable(files: Mapping[str, Predictions]) -> None:
    """Refuse to compare predictions that answer for other users or other targets.

    The keys are the names to show.

    Raises:
        InputError: two of them differ in users or in a user's target.
    """
    (first_name, first), *others = files.items()
    expected = _truths(first)
    for name, other in others:
        found = _truths(other)
        remedy = "compare files made from the same --data, --split and --since"
        for has, lacks, absent in (
            (first_name, name, expected.keys() - found.keys()),
            (name, first_name, found.keys() - expected.keys()),
        ):
            if absent:
                example = min(absent, key=lambda key: (key[0], key[1] or 0))
                raise InputError(
                    f"{has} has {len(absent)} users that {lacks} lacks (such as "
                    f"{_named(example)}); {remedy}"
                )
        differing = [key for key, target in expected.items() if found[key] != target]
        if differing:
            key = differing[0]
            raise InputError(
                f"{first_name} and {name} have different targets for {len(differing)} users (such "
                f"as {_named(key)}: {expected[key]} and {found[key]}); {remedy}"
            )


def top_items(
    scores: np.ndarray, top: int, exclude: Sequence[np.ndarray] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rank the whole catalogue and keep the first items; of equal scores the lower id comes first.

    Args:
        scores: float32 [batch, items]; -inf rules an item out.
        top: how many items to keep, at least 1; fewer where fewer are left.
        exclude: per row, ids of items that must not be ranked.

    Returns:
        per row the item ids, int64 [length], and their scores, float32 [length].

    Raises:
        DivergedError: a score is NaN or +inf.
    """
    scores = np.array(scores, dtype=np.float32, copy=True if exclude is not None else None)
    for row, ids in enumerate(exclude or ()):
        scores[row, ids] = -np.inf
    items = scores.shape[1]
    top = min(top, items)
    # A lower bound of each row's last ranked score, much cheaper than a partial sort:
    # of several times `top` groups of items the best of each, and the `top`-th best of these.
    groups = min(items, 4 * top)
    blocks = items // groups
    best = scores[:, : blocks * groups].reshape(-1, blocks, groups).max(axis=1)
    rest = scores[:, blocks * groups :]
    worst = np.concatenate((best, rest), axis=1).max(axis=1)
    if not (worst < np.inf).all():  # nor NaN, which is the maximum of all that it is among
        row = int(np.argmin(worst < np.inf))
        raise DivergedError(
            f"row {row} of the scores holds NaN or +inf: the method has diverged; if it was "
            "trained, try a smaller --learning-rate"
        )
    bounds = np.partition(best, groups - top, axis=1)[:, groups - top]
    # Rows whose bound is -inf, or is what many items score, are ranked one by one.
    bounds_here = np.where(bounds > -np.inf, bounds, np.inf)
    places = np.flatnonzero(scores >= bounds_here[:, None])
    rows = places // items
    counts = np.bincount(rows, minlength=len(scores))
    few = (counts > 0) & (counts <= groups)
    if (counts > groups).any():
        places, rows = places[few[rows]], rows[few[rows]]
        counts[~few] = 0
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = np.zeros((len(scores), counts.max(initial=0)), dtype=np.int64)
    values = np.full(ids.shape, -np.inf, dtype=np.float32)
    ids[rows, columns], values[rows, columns] = places % items, scores.ravel()[places]
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    ids, values = (np.take_along_axis(each, order, axis=1) for each in (ids, values))
    return [
        (ids[row], values[row]) if is_few else _top_of_row(scores[row], top, bounds[row])
        for row, is_few in enumerate(few)
    ]


def _top_of_row(scores: np.ndarray, top: int, bound: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `top` items and their scores, where at least `top` reach the bound."""
    above = np.flatnonzero(scores > bound)
    ranked = above[np.argsort(-scores[above], kind="stable")][:top]
    if len(ranked) < top and bound > -np.inf:
        # Items that are equal to the bound may be most of the catalogue; the first few will do.
        ties = np.flatnonzero(scores == bound)[: top - len(ranked)]
        ranked = np.concatenate((ranked, ties))
    return ranked, scores[ranked]


def _checked_rows(path: Path, rows: Iterable[Prediction]) -> Iterator[dict[str, Any]]:
    seen: set[tuple[str | None, Key]] = set()
    for number, row in enumerate(rows, start=1):
        values = {
            "user": row.user,
            "target": _plain_target(row.target),
            "ranked": np.asarray(row.ranked).tolist(),
            "scores": shortest(row.scores),
            "template_id": row.template_id,
        }
        if row.case is not None:
            values["case"] = row.case
        where = f"{path}, line {number}"
        _check_row(values, where)
        key = row.user, row.case
        if (row.template_id, key) in seen:
            raise InputError(
                f"{where}: {_named(key)} is predicted a second time{_under(row.template_id)}"
            )
        seen.add((row.template_id, key))
        yield values


def shortest(scores: Sequence[float] | np.ndarray) -> list[float]:
    """Return the float64 numbers whose shortest text is the shortest that reads as each float32.

    The text of a float32 taken as a float64 has up to seventeen digits, this one nine; orjson finds
    it for a whole array at a time.
    """
    exact = np.ascontiguousarray(scores, dtype=np.float32)
    if not np.isfinite(exact).all():
        return exact.tolist()  # orjson has no such numbers; `_check_row` names the first
    found: list[float] = orjson.loads(orjson.dumps(exact, option=orjson.OPT_SERIALIZE_NUMPY))
    return found


def _plain_target(target: int | Sequence[int] | np.ndarray) -> int | list[int]:
    """Return what stands in the file: an item id, or a list of several."""
    if np.ndim(target) == 0:
        return int(target)  # type: ignore[arg-type]
    several = [int(item) for item in target if item != PAD]  # type: ignore[union-attr]
    return several[0] if len(several) == 1 else several


def _truths(predictions: Predictions) -> dict[Key, int | list[int]]:
    """Return each case's target, or the sorted list of several."""
    if predictions.targets.ndim == 1:
        return dict(zip(predictions.keys, predictions.targets.tolist(), strict=True))
    rows = [sorted(set(row) - {PAD}) for row in predictions.targets.tolist()]
    truths = [row[0] if len(row) == 1 else row for row in rows]
    return dict(zip(predictions.keys, truths, strict=True))


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
    several = target if isinstance(target, list) else [target]
    if not several or not _are_items(several) or len(set(several)) != len(several):
        raise InputError(
            f"{where}: target must be an item id from 0 up, or a list of distinct ones, found "
            f"{target!r:.60}"
        )
    case = row.get("case")
    if case is not None and not _are_items([case]):
        raise InputError(f"{where}: case must be a number from 0 up or null, found {case!r}")
    if template is not None and not isinstance(template, str):
        raise InputError(f"{where}: template_id must be text or null, found {template!r}")
    ranked, scores = row["ranked"], row["scores"]
    if not isinstance(ranked, list):
        raise InputError(f"{where}: ranked must be a list of item ids, found {ranked!r:.40}")
    if not _are_items(ranked):
        item = next(item for item in ranked if not _are_items([item]))
        raise InputError(f"{where}: ranked holds {item!r}, which is no item id from 0 up")
    if len(set(ranked)) != len(ranked):
        item = next(item for place, item in enumerate(ranked) if item in ranked[:place])
        raise InputError(f"{where}: item {item} is ranked twice; a list must not repeat an item")
    if not isinstance(scores, list) or len(scores) != len(ranked):
        found = f"{len(scores)}" if isinstance(scores, list) else f"{scores!r:.40}"
        raise InputError(f"{where}: {len(ranked)} items need as many scores, found {found}")
    if not _are_finite(scores):
        score = next(score for score in scores if not _are_finite([score]))
        raise InputError(f"{where}: score {score!r} is NaN, infinite or beyond a float32")
    if not all(map(operator.ge, scores, scores[1:])):
        place = next(place for place in range(1, len(scores)) if scores[place] > scores[place - 1])
        raise InputError(
            f"{where}: scores must not rise, but place {place + 1} has {scores[place]} after "
            f"{scores[place - 1]}; list the best item first"
        )


def _are_items(values: list[Any]) -> bool:
    """Tell whether all are item ids; millions are asked about, so without a loop in Python."""
    return not values or (
        set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= MAX_ITEM
    )


def _are_finite(values: list[Any]) -> bool:
    """Tell whether all are numbers that a float32 holds, neither NaN nor infinite, likewise."""
    return not values or (
        set(map(type, values)) <= {int, float}
        and all(map(operator.eq, values, values))  # NaN is not equal to itself
        and min(values) >= -LARGEST_SCORE
        and max(values) <= LARGEST_SCORE
    )


def _named(key: Key) -> str:
    user, case = key
    return f"user {user!r}" + ("" if case is None else f", case {case}")


def _under(template: str | None) -> str:
    return "" if template is None else f" under template {template!r}"


def _pad(lists: list[list[Any]], width: int, dtype: Any, filler: float) -> np.ndarray:
    padded = np.full((len(lists), width), filler, dtype=dtype)
    for row, values in enumerate(lists):
        padded[row, : len(values)] = values
    return padded
