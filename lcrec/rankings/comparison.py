"""The figures of a comparison: every method on the same users, judged by the same measures.

Reads predictions files; writes nothing. The figures are one JSON object, from which the table and
the page are made (`lcrec.rankings.comparison_page`).

Predictions files of the same users and targets, read to be set against each other.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    holm,
    measure_lists,
    paired_bootstrap,
    summarise_all,
)
from lcrec.rankings.overlap import GROUPS, compare_lists, popularity_groups
from lcrec.rankings.predictions import Predictions, read_predictions, require_comparable

# By protocol; of each the metric that methods are ordered by and its companion.
METRICS_COMPARED: dict[str, tuple[str, ...]] = {
    "leave-one-out": ("HR@1", "HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20"),
    "random": MULTI_TARGET_METRICS,
}
FIRST = {"leave-one-out": ("NDCG@10", "HR@10"), "random": ("NDCG@10", "Recall@10")}
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
        lists: per run and wording, int32 [users, up to `CUT`], padded with -1.
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
        truth: users and targets of the split in use.
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
        found = found.in_order_of(truth.users)
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


def compare_entries(
    entries: Mapping[str, Entry],
    truth: Predictions,
    protocol: str,
    *,
    popularity: np.ndarray,
    activity: np.ndarray,
    reference: str | None = None,
) -> dict[str, Any]:
    """Return all figures.

    Args:
        entries: {name: its lists}.
        truth: users and targets.
        protocol: "leave-one-out" or "random".
        popularity: int64 [items], how often each item stands in the train sequences.
        activity: int64 [users], how many items each user of `truth` has there.
        reference: the method that every other is tested against; None: the best of them.

    Returns:
        JSON values only: `users`, `metrics`, `first` (the metrics to look at first), `samples`
        (resamples behind the intervals of `overall`), `test_samples` (behind `against`), `level`,
        `reference`, `methods` {name: `seeds`, `length`, `overall` {metric: `mean`, `low`, `high`
        (over users, of the mean over seeds), `by_seed`}, `groups` {group: {metric: mean or None}},
        `against` {metric: `difference`, `low`, `high`, `p`, `p_holm`} (None for the reference),
        `seconds`, `peak_mb`, `training`}, best first; `groups` {group: `items`, `users`}; `pairs`
        [{`a`, `b` and the figures of `lcrec.rankings.overlap.compare_lists`}], of the first
        run and wording of each, lists cut at `PAIR_CUT`.
    """
    metrics, first = METRICS_COMPARED[protocol], FIRST[protocol]
    by_user = {name: _by_user(entry, truth.targets, metrics) for name, entry in entries.items()}
    groups = item_groups(popularity)
    targets_of = {group: _within(truth.targets, items) for group, items in groups.items()}
    methods: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        values = by_user[name]
        overall = summarise_all({metric: rows.mean(axis=0) for metric, rows in values.items()}, 0)
        methods[name] = {
            "seeds": entry.seeds,
            "length": entry.length,
            "overall": {
                metric: overall[metric] | {"by_seed": rows.mean(axis=1).tolist()}
                for metric, rows in values.items()
            },
            "groups": {
                group: _means_within(entry, targets, first) for group, targets in targets_of.items()
            },
            "against": None,
            "seconds": entry.seconds,
            "peak_mb": entry.peak_mb,
            "training": entry.training,
        }
    order = sorted(methods, key=lambda name: -methods[name]["overall"][first[0]]["mean"])
    best = reference or order[0]
    test_samples = max(SAMPLES, SAMPLES_PER_TEST * (len(methods) - 1))
    _test_against(best, by_user, methods, first, test_samples)
    return {
        "users": len(truth),
        "metrics": list(metrics),
        "first": list(first),
        "samples": SAMPLES,
        "test_samples": test_samples,
        "level": LEVEL,
        "reference": best,
        "methods": {name: methods[name] for name in order},
        "groups": {
            group: {
                "items": int(items.sum()),
                "users": int((targets_of[group] != PAD).any(axis=1).sum()),
            }
            for group, items in groups.items()
        },
        "pairs": [
            {"a": a, "b": b}
            | compare_lists(
                entries[a].lists[0][0],
                entries[b].lists[0][0],
                truth.targets,
                PAIR_CUT,
                popularity=popularity,
                activity=activity,
            )
            for a, b in itertools.combinations(order, 2)
        ],
    }


def item_groups(popularity: np.ndarray) -> dict[str, np.ndarray]:
    """Return which items are in each group, bool [items], by how often train has them.

    The groups of `lcrec.rankings.overlap`, which part the catalogue; and the items that train
    does not have, `new`, apart from those that it has, `known`.
    """
    places = popularity_groups(popularity)
    groups = {name: places == place for place, name in enumerate(GROUPS)}
    return groups | {"new": popularity == 0, "known": popularity > 0}


def _by_user(entry: Entry, targets: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Return metrics, float64 [runs, users] each, a user's value the mean over the wordings."""
    runs = []
    for wordings in entry.lists:
        measured = [measure_lists(ranked, targets, CUT, metrics) for ranked in wordings]
        runs.append({name: np.mean([one[name] for one in measured], axis=0) for name in metrics})
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
    lists = [[ranked[users] for ranked in wordings] for wordings in entry.lists]
    part = _by_user(Entry(entry.seeds, lists, entry.length), targets[users], metrics)
    return {metric: float(values.mean()) for metric, values in part.items()}


def _test_against(
    reference: str,
    by_user: Mapping[str, dict[str, np.ndarray]],
    methods: dict[str, dict[str, Any]],
    metrics: Sequence[str],
    samples: int,
) -> None:
    """Add `against` to every method but the reference, each test on so many resamples."""
    others = [name for name in methods if name != reference]
    for name in others:
        methods[name]["against"] = {}
    if not others:
        return
    for metric in metrics:
        base, *means = (by_user[name][metric].mean(axis=0) for name in (reference, *others))
        found = paired_bootstrap(means, base, 0, samples)
        adjusted = holm([test["p"] for test in found])
        for name, test, p in zip(others, found, adjusted, strict=True):
            methods[name]["against"][metric] = test | {"p_holm": p}


def read_comparable(files: Sequence[Path]) -> list[Predictions]:
    """Read predictions files that answer for the same users and targets of the same data.

    Returns:
        one per file, all with the users of the first in its order.

    Raises:
        InputError: a file is damaged, or two differ in users or targets, or, where they have
            sidecars, in the split or in the hash of the sequences that they were made from.
    """
    records = [_made_from(path) for path in files]
    for path, record in zip(files[1:], records[1:], strict=True):
        for what, value in record.items():
            if records[0].get(what, value) != value:
                raise InputError(
                    f"{files[0]} and {path} come from different {what} ({records[0][what][:12]} "
                    f"and {value[:12]}); give files made from the same --data and the same --split"
                )
    read = [read_predictions(path) for path in files]
    require_comparable({str(path): one for path, one in zip(files, read, strict=True)})
    return [one.in_order_of(read[0].users) for one in read]


def single_lists(
    read: Sequence[Predictions], files: Sequence[Path]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each file's lists, int64 [users, length], and their scores, float32 likewise.

    Raises:
        InputError: a file has several lists per user.
    """
    for path, one in zip(files, read, strict=True):
        if len(one.ranked) > 1:
            raise InputError(
                f"{path}: has a list for each of {len(one.ranked)} wordings; one list per user is "
                "needed, such as python -m lcrec.generate --ensemble writes beside them"
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
    if "split" in record["config"]:
        found["splits"] = str(record["config"]["split"])
    return found
