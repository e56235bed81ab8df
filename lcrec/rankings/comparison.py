"""Compares methods on the same users by the same metrics.

`read_entry` reads the predictions files of a method, `compare_entries` makes the figures: a
`Comparison`, from which `lcrec.rankings.comparison_page` makes the table and the page.
`read_comparable` reads files of the same users and targets for other uses, such as fusion. Reads
predictions files and their sidecars; writes nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.rankings.metrics import (
    LEVEL,
    MULTI_TARGET_METRICS,
    PAD,
    SAMPLES,
    exact_mean,
    holm,
    mean_over_templates,
    measure_lists,
    paired_bootstrap,
    summarise_all,
)
from lcrec.rankings.overlap import GROUPS, compare_lists, popularity_groups
from lcrec.rankings.predictions import Predictions, read_predictions, require_comparable

# What is measured where cases have one target and where some have several; of each the metric that
# methods are ordered by and its companion.
SINGLE = ("HR@1", "HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20"), ("NDCG@10", "HR@10")
SEVERAL = MULTI_TARGET_METRICS, ("NDCG@10", "Recall@10")
CUT = 20  # places of a list that are judged
PAIR_CUT = 10  # places of two lists that are laid side by side
# Resamples per test: Holm's correction multiplies the least p that n resamples can give, 2 / n,
# by the number of tests, and 25 tests of 1,000 resamples could never fall below .05.
SAMPLES_PER_TEST = 400


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        seeds: a name per run: seeds, or the names of files made elsewhere.
        lists: per run and prompt template, int32 [users, up to `CUT`], padded with -1.
        length: of the shortest run's longest list, in items.
        seconds: mean time of a run, None where it is not known.
        peak_mb: the most memory of any run, likewise.
        training: how far each run was trained, see `Baseline.training`; None likewise.
    """

    seeds: list[str]
    lists: list[list[np.ndarray]]
    length: int
    seconds: float | None = None
    peak_mb: int | None = None
    training: list[dict[str, Any] | None] | None = None


def read_entry(
    files: Mapping[str, Path],
    truth: Predictions,
    where: str,
    hidden: Sequence[np.ndarray] | None = None,
) -> Entry:
    """Read the files of one method.

    Args:
        files: {name of the run: predictions file}.
        truth: cases and targets of the split in use.
        where: names the split, for errors.
        hidden: per user of `truth`, items that are taken out of the lists, so that lists made
            elsewhere are judged under the rule that the others were made under.

    Raises:
        InputError: a file is malformed, or answers for other users or targets.
    """
    lists, lengths = [], []
    for path in files.values():
        found = read_predictions(path)
        require_comparable({where: truth, str(path): found})
        found = found.in_order_of(truth.keys)
        shown = (_without(ranked, hidden) for ranked in found.ranked.values())
        lists.append([ranked[:, :CUT].astype(np.int32) for ranked in shown])
        lengths.append(found.length)
    return Entry(list(files), lists, min(lengths))


def _without(ranked: np.ndarray, hidden: Sequence[np.ndarray] | None) -> np.ndarray:
    """Return the lists with what is hidden left out and the rest moved up, padded with -1."""
    if hidden is None:
        return ranked
    shown = np.full_like(ranked, PAD)
    for row, (items, out) in enumerate(zip(ranked, hidden, strict=True)):
        left = items[~np.isin(items, out)]
        shown[row, : len(left)] = left
    return shown


@dataclass(frozen=True)
class Conditions:
    """What all methods were judged under.

    Attributes:
        data: the name of the data set.
        protocol: the kind of the split, see `lcrec.data.splits.Split`.
        exclude_history: whether what a user has was never ranked, but for a target.
        repeats: the share of users with a target that they have already.
        tuned: whether methods started from their best known settings.
        items: the size of the catalogue.
    """

    data: str
    protocol: str
    exclude_history: bool
    repeats: float
    tuned: bool
    items: int


@dataclass(frozen=True)
class Estimate:
    """The mean of a metric over seeds and users, its interval over users, and each run's mean."""

    mean: float
    low: float
    high: float
    by_seed: list[float]


@dataclass(frozen=True)
class Test:
    """A paired bootstrap test against the reference; `p_holm` is adjusted for all the tests."""

    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class MethodFigures:
    """The figures of one method.

    Attributes:
        seeds, length, seconds, peak_mb, training: as `Entry` has them.
        overall: {metric: its estimate}.
        groups: {group of items: {metric: mean, None where no user has a target in it}}.
        against: {metric: test against the reference}; None for the reference.
    """

    seeds: list[str]
    length: int
    overall: dict[str, Estimate]
    groups: dict[str, dict[str, float | None]]
    against: dict[str, Test] | None
    seconds: float | None
    peak_mb: int | None
    training: list[dict[str, Any] | None] | None


@dataclass(frozen=True)
class GroupSize:
    """How many items a group has, and how many users have a target in it."""

    items: int
    users: int


@dataclass(frozen=True)
class PairFigures:
    """Methods `a` and `b`, and what `lcrec.rankings.overlap.compare_lists` says of their lists."""

    a: str
    b: str
    overlap: float
    hits: dict[str, Any]
    users: dict[str, Any]
    all: dict[str, float]
    groups: dict[str, dict[str, float] | None]


@dataclass(frozen=True)
class Comparison:
    """All figures of a comparison.

    Attributes:
        conditions: what all methods were judged under.
        users: how many were judged.
        cases: how many cases they have together.
        metrics: those that were measured.
        first: the two to look at first; methods are ordered by the one before.
        samples: resamples behind the intervals of `MethodFigures.overall`.
        test_samples: resamples behind each test.
        level: of the intervals.
        reference: the method that every other is tested against.
        methods: {name: its figures}, best first.
        groups: {group of items: its size}.
        pairs: of each two methods the first run and prompt template, lists cut at `PAIR_CUT`.
        left_out: {method: why it could not be compared}.
    """

    conditions: Conditions
    users: int
    cases: int
    metrics: list[str]
    first: tuple[str, str]
    samples: int
    test_samples: int
    level: float
    reference: str
    methods: dict[str, MethodFigures]
    groups: dict[str, GroupSize]
    pairs: list[PairFigures]
    left_out: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values by name, those of the conditions first among the others."""
        values = asdict(self)
        return values.pop("conditions") | values


ByUser = dict[str, np.ndarray]  # {metric: float64 [runs, users]}


def compare_entries(
    entries: Mapping[str, Entry],
    truth: Predictions,
    conditions: Conditions,
    *,
    popularity: np.ndarray,
    activity: np.ndarray,
    reference: str | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Comparison:
    """Measure methods on the same users and test each against a reference; return all figures.

    Args:
        entries: {name: its lists}.
        truth: users and targets.
        conditions: what all entries were made under.
        popularity: int64 [items], how often each item stands in the train sequences.
        activity: int64 [users], how many items each user of `truth` has there.
        reference: the method that every other is tested against; None: the best of them.
        left_out: {method: why it could not be compared}.
    """
    metrics, first = SINGLE if truth.targets.ndim == 1 else SEVERAL
    by_user = {name: _by_user(entry, truth.targets, metrics) for name, entry in entries.items()}
    owners = truth.owners
    overall = {name: _estimates(values, owners) for name, values in by_user.items()}
    order = sorted(entries, key=lambda name: -overall[name][first[0]].mean)
    reference = reference or order[0]
    test_samples = max(SAMPLES, SAMPLES_PER_TEST * (len(entries) - 1))
    tests = _tests_against(reference, by_user, first, test_samples, owners)
    groups = item_groups(popularity)
    targets_of = {group: _within(truth.targets, items) for group, items in groups.items()}
    return Comparison(
        conditions=conditions,
        users=truth.num_users,
        cases=len(truth),
        metrics=list(metrics),
        first=first,
        samples=SAMPLES,
        test_samples=test_samples,
        level=LEVEL,
        reference=reference,
        methods={
            name: MethodFigures(
                seeds=entry.seeds,
                length=entry.length,
                overall=overall[name],
                groups={
                    group: _means_within(entry, targets, first)
                    for group, targets in targets_of.items()
                },
                against=tests.get(name),
                seconds=entry.seconds,
                peak_mb=entry.peak_mb,
                training=entry.training,
            )
            for name, entry in ((name, entries[name]) for name in order)
        },
        groups={
            group: GroupSize(int(items.sum()), int((targets_of[group] != PAD).any(axis=1).sum()))
            for group, items in groups.items()
        },
        pairs=_pairs({name: entries[name] for name in order}, truth, popularity, activity),
        left_out=dict(left_out or {}),
    )


def _estimates(by_user: ByUser, owners: np.ndarray | None) -> dict[str, Estimate]:
    """Return each metric's mean over seeds and users, with its interval over users."""
    means = {metric: rows.mean(axis=0) for metric, rows in by_user.items()}
    overall = summarise_all(means, 0, owners)
    return {
        metric: Estimate(**overall[metric], by_seed=rows.mean(axis=1).tolist())
        for metric, rows in by_user.items()
    }


def _pairs(
    entries: Mapping[str, Entry], truth: Predictions, popularity: np.ndarray, activity: np.ndarray
) -> list[PairFigures]:
    """Return what each two of the entries have in common, in their order."""
    pairs = []
    for a, b in itertools.combinations(entries, 2):
        found = compare_lists(
            entries[a].lists[0][0],
            entries[b].lists[0][0],
            truth.targets,
            PAIR_CUT,
            popularity=popularity,
            activity=activity,
        )
        pairs.append(PairFigures(a, b, **found))
    return pairs


def item_groups(popularity: np.ndarray) -> dict[str, np.ndarray]:
    """Return which items are in each group, bool [items], by how often train has them.

    The groups of `lcrec.rankings.overlap`, which part the catalogue; and the items that train
    does not have, `new`, apart from those that it has, `known`.
    """
    places = popularity_groups(popularity)
    groups = {name: places == place for place, name in enumerate(GROUPS)}
    return groups | {"new": popularity == 0, "known": popularity > 0}


def _by_user(entry: Entry, targets: np.ndarray, metrics: Sequence[str]) -> ByUser:
    """Return metrics, float64 [runs, users] each, a user's value the mean over the templates."""
    runs = []
    for lists in entry.lists:
        measured = [measure_lists(ranked, targets, CUT, metrics) for ranked in lists]
        runs.append(
            {name: mean_over_templates([one[name] for one in measured]) for name in metrics}
        )
    return {name: np.stack([run[name] for run in runs]) for name in metrics}


def _within(targets: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the targets that are among these items, [users, most targets], -1 for the others."""
    rows = targets if targets.ndim == 2 else targets[:, None]
    return np.where((rows != PAD) & items[rows], rows, PAD)


def _means_within(
    entry: Entry, targets: np.ndarray, metrics: Sequence[str]
) -> dict[str, float | None]:
    """Return means over the users who have a target here; None where no user has."""
    users = np.flatnonzero((targets != PAD).any(axis=1))
    if not len(users):
        return dict.fromkeys(metrics)
    own = [[ranked[users] for ranked in lists] for lists in entry.lists]
    part = _by_user(Entry(entry.seeds, own, entry.length), targets[users], metrics)
    return {metric: exact_mean(values) for metric, values in part.items()}


def _tests_against(
    reference: str,
    by_user: Mapping[str, ByUser],
    metrics: Sequence[str],
    samples: int,
    owners: np.ndarray | None,
) -> dict[str, dict[str, Test]]:
    """Return {method: {metric: test}} of every method but the reference."""
    others = [name for name in by_user if name != reference]
    tests: dict[str, dict[str, Test]] = {name: {} for name in others}
    if not others:
        return tests
    for metric in metrics:
        base, *means = (by_user[name][metric].mean(axis=0) for name in (reference, *others))
        found = paired_bootstrap(means, base, 0, samples, owners)
        adjusted = holm([test["p"] for test in found])
        for name, test, p in zip(others, found, adjusted, strict=True):
            tests[name][metric] = Test(**test, p_holm=p)
    return tests


def read_comparable(files: Sequence[Path]) -> list[Predictions]:
    """Read predictions files that answer for the same users and targets of the same data.

    Returns:
        one per file, all with the users of the first in its order.

    Raises:
        InputError: a file is damaged, or two differ in users or targets, or, where they have
            sidecars, in the split or in the hash of the sequences that they were made from.
    """
    told: dict[str, tuple[Path, str]] = {}
    for path in files:
        for what, value in _made_from(path).items():
            first, expected = told.setdefault(what, (path, value))
            if value != expected:
                raise InputError(
                    f"{first} and {path} come from different {what} ({expected[:13]} and "
                    f"{value[:13]}); give files made from the same --data and the same --split"
                )
    read = [read_predictions(path) for path in files]
    require_comparable({str(path): one for path, one in zip(files, read, strict=True)})
    return [one.in_order_of(read[0].keys) for one in read]


def single_lists(
    read: Sequence[Predictions], files: Sequence[Path]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each file's rankings, int64 [users, length], and their scores, float32 likewise.

    Raises:
        InputError: a file has several rankings per user.
    """
    for path, one in zip(files, read, strict=True):
        if len(one.ranked) > 1:
            raise InputError(
                f"{path}: has a ranking for each of {len(one.ranked)} prompt templates; one per "
                "user is needed, such as python -m lcrec.generate --ensemble writes beside them"
            )
    return [(next(iter(one.ranked.values())), next(iter(one.scores.values()))) for one in read]


def _made_from(path: Path) -> dict[str, str]:
    """Return what a file's sidecar says of its data and split, as far as it has one."""
    record = read_provenance(path)
    if record is None:
        return {}
    found = {}
    if "inter" in record["inputs"]:
        found["sequences"] = str(record["inputs"]["inter"]["sha256"])
        found["split files"] = record["inputs"].get("split", {}).get("sha256", "leave-one-out")
    if "split" in record["config"]:
        found["splits"] = str(record["config"]["split"])
    return found
