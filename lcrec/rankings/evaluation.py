"""Metrics of predictions files, side by side: what `metrics.json` holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.rankings.metrics import (
    LEVEL,
    METRICS,
    MULTI_TARGET_METRICS,
    SAMPLES,
    exact_mean,
    mean_over_templates,
    measure_lists,
    paired_bootstrap,
    summarise_all,
)
from lcrec.rankings.predictions import Predictions, read_predictions, require_comparable

NO_TEMPLATE = "(no template)"
OURS = "lc-rec"  # what predictions of a fine-tuned checkpoint are called


def evaluate_predictions(
    paths: Sequence[str | Path], *, labels: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return every metric of predictions files that answer for the same users and targets.

    Args:
        paths: the files.
        labels: a name per file; by default the method that made it, or the file's own.
        seed: of the bootstrap over users.

    Returns:
        what `lcrec evaluate` writes to `metrics.json`: {"users", "cases" where users have several,
        "seed", "samples", "level", "mrr_depth", "runs": {label: {"overall": {metric: {"mean",
        "low", "high"}}, "by_user" where users have several, "difference" to the first file in all
        others, ...}}}.

    Raises:
        InputError: a file is missing or malformed, files cannot be compared, or two would have the
            same name.
    """
    return evaluate_files(label_files([Path(path) for path in paths], labels), seed)


def evaluate_files(files: dict[str, Path], seed: int) -> dict[str, Any]:
    """Do the work of `evaluate_predictions` on {label: file}."""
    predictions = {
        label: read_predictions(path)
        for label, path in progress(files.items(), "read", "files", leave=False)
    }
    require_comparable({str(files[label]): content for label, content in predictions.items()})
    first = next(iter(predictions.values()))
    # In one order, whatever that of the lines: the bootstrap draws places. Numbers rise.
    order = sorted(first.keys, key=lambda key: (len(key[0]), key[0], key[1] or 0))
    predictions = {label: content.in_order_of(order) for label, content in predictions.items()}
    # A longer list finds more targets: MRR looks as far down as the file with the shortest lists.
    depth = max(1, min(content.length for content in predictions.values()))
    runs: dict[str, dict[str, Any]] = {}
    reference: dict[str, np.ndarray] = {}
    for label, content in progress(predictions.items(), "measure", "files", leave=False):
        runs[label], values = _measure(content, depth, seed)
        if reference:
            # Against nothing: what is drawn is each user's own difference.
            own = [values[metric] - reference[metric] for metric in values]
            found = paired_bootstrap(own, np.zeros(len(content)), seed, owners=content.owners)
            runs[label]["difference"] = dict(zip(values, found, strict=True))
        reference = reference or values
    return {
        "users": first.num_users,
        **({} if first.numbers is None else {"cases": len(first)}),
        "seed": seed,
        "samples": SAMPLES,
        "level": LEVEL,
        "mrr_depth": depth,
        "runs": runs,
    }


def _measure(
    predictions: Predictions, depth: int, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return every metric of one predictions file, and {metric: float [cases]}.

    Args:
        predictions: as read by `read_predictions`.
        depth: how far down the lists MRR looks, in items.
        seed: of the bootstrap over users.

    Returns:
        one entry of "runs" in `metrics.json`, JSON values only; and each case's own values, means
        over the templates.
    """
    metrics = METRICS if predictions.targets.ndim == 1 else MULTI_TARGET_METRICS
    by_template = {
        template: measure_lists(ranked, predictions.targets, depth, metrics)
        for template, ranked in predictions.ranked.items()
    }
    of_users, across = {}, {}
    for metric in metrics:
        rows = [values[metric] for values in by_template.values()]
        of_users[metric] = mean_over_templates(rows)
        means = list(map(exact_mean, rows))
        across[metric] = {"mean": exact_mean(np.stack(rows)), "min": min(means), "max": max(means)}
    owners, by_user = predictions.owners, {}
    if owners is not None:
        counts = np.bincount(owners)
        means_of_users = {
            metric: np.bincount(owners, values) / counts for metric, values in of_users.items()
        }
        by_user = {"by_user": summarise_all(means_of_users, seed)}
    run = {
        "list_length": predictions.length,
        "overall": summarise_all(of_users, seed, owners),
        **by_user,
        "templates": {
            NO_TEMPLATE if template is None else template: {
                metric: exact_mean(values[metric]) for metric in metrics
            }
            for template, values in by_template.items()
        },
        "across_templates": across if len(by_template) > 1 else None,
    }
    return run, of_users


def label_files(paths: Sequence[Path], labels: Sequence[str] | None = None) -> dict[str, Path]:
    """Return {label: file}, distinct: the method that made the file, or the file's own name.

    Raises:
        InputError: not one label per file, or two files would have the same.
    """
    chosen = [] if labels is None else list(labels)
    if labels is None:
        names = [
            path.resolve().parent.name if path.stem == "predictions" else path.stem
            for path in paths
        ]
        methods = [_method(path) for path in paths]
        for method, name in zip(methods, names, strict=True):
            if method is None:
                chosen.append(name)
            elif methods.count(method) == 1 or method == name:
                chosen.append(method)
            else:
                chosen.append(f"{method} ({name})")
    elif len(chosen) != len(paths):
        raise InputError(
            f"--labels has {len(chosen)} names for {len(paths)} files; give one for each file"
        )
    for place, label in enumerate(chosen):
        if label in chosen[:place]:
            raise InputError(
                f"{paths[chosen.index(label)]} and {paths[place]} would both be called {label!r}; "
                "name the files with --labels A B ..."
            )
    return dict(zip(chosen, paths, strict=True))


def _method(path: Path) -> str | None:
    """Return the method that made a predictions file by its sidecar, None where there is none."""
    record = read_provenance(path) if path.is_file() else None
    if record is None:
        return None
    stage, _, name = str(record["stage"]).removeprefix("python -m lcrec.").partition(" ")
    return {"generate": OURS, "baselines": name}.get(stage)
