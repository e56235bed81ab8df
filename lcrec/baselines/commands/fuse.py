"""Command: join the predictions files of several methods into one, by rank or by score.

Reads predictions files that answer for the same users and targets, whoever made them, and their
sidecars where they have one; writes a predictions file of the joined rankings. With --valid, the
weights are those that rank the validation items best (NDCG@10): give each method's predictions
for the validation split, in the same order. `--how adaptive` goes on from there to weights of each
user's own, by what is known of the user's history, which it reads from the data folder (--data),
and of the lists; see `lcrec.rankings.adaptive`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lcrec.core.artifacts import find_data
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import is_current, read_provenance, write_provenance
from lcrec.data.data_set import load_data
from lcrec.data.history_facts import NAMES, history_facts
from lcrec.data.splits import EvalCases
from lcrec.rankings.adaptive import fit_adaptive, list_facts
from lcrec.rankings.comparison import read_comparable, single_lists
from lcrec.rankings.fusion import MOST_WEIGHTS, Lists, best_weights, fuse, pool, weight_grid
from lcrec.rankings.metrics import PAD, ndcg_at_k
from lcrec.rankings.predictions import Prediction, Predictions, write_predictions

COMMAND = "python -m lcrec.baselines fuse"
# Options that predictions of validation and test may differ in.
OF_NO_RANKING = {"split", "batch_tokens", "precision", "max_minutes"}
EXAMPLE = (
    "runs/shop/predictions.jsonl runs/shop/sasrec/predictions.jsonl --output runs/shop/fused.jsonl"
)


@dataclass(frozen=True)
class FuseConfig(Writes):
    """Settings of `python -m lcrec.baselines fuse`."""

    predictions: list[Path] = option("the predictions files to join, two or more", words=True)
    output: Path = option("the predictions file to write, *.jsonl", writes=".jsonl")
    how: Literal["rrf", "score", "adaptive"] = option(
        "rrf: by rank, 1 / (60 + rank); score: by score, brought to 0 .. 1 in every list; "
        "adaptive: by score, with weights of each user's own, which needs --valid and --data",
        "rrf",
    )
    valid: list[Path] | None = option(
        "each method's predictions for the validation split, in the same order, to choose the "
        "weights on",
        None,
    )
    weights: list[float] | None = option(
        "a weight per file instead; neither: all count the same", None, minimum=0, maximum=1e6
    )
    data: Path | None = option(
        "adaptive: the data folder that all predictions were made from", None
    )
    top: int = option("how many items to rank per user", 100, minimum=1)


def main(argv: list[str]) -> None:
    """Join the files."""
    config = parse_config(FuseConfig, argv, prog=COMMAND, example=EXAMPLE)
    _require_sensible(config)
    files = config.predictions
    inputs = {f"predictions {number}": path for number, path in enumerate(files, start=1)}
    inputs |= {f"valid {number}": path for number, path in enumerate(config.valid or (), start=1)}
    if config.data is not None:
        inputs |= find_data(config.data).sequences
    settings = config_dict(config)
    after = f"Next: python -m lcrec.evaluate --predictions {config.output} {files[0]}"
    if is_current(config.output, COMMAND, settings, inputs):
        print(f"{config.output} is up to date.\n{after}")
        return
    by = {"rrf": "rank", "score": "score", "adaptive": "score, for each user"}[config.how]
    print(f"Joining by {by}: {', '.join(map(str, files))}.", flush=True)
    read = read_comparable(files)
    lists = single_lists(read, files)
    pooled = pool(lists, _shares(config))
    weights: Sequence[float] | np.ndarray
    if config.how == "adaptive":
        weights, facts = _adaptive(config, read[0], lists)
    else:
        weights, facts = _weights(config, read[0])
        facts["weights"] = list(weights)
    joint = fuse(pooled, weights, config.top)
    rows = (
        Prediction(user, target, ranked, scores, case=case)
        for (user, case), target, (ranked, scores) in zip(
            read[0].keys, read[0].targets, joint, strict=True
        )
    )
    with publish(config.output, COMMAND, ".jsonl", overwrite=config.overwrite) as file:
        write_predictions(file, progress(rows, "write", "users", total=len(joint)))
        write_provenance(file, COMMAND, settings, inputs, methods=_methods(files, read), **facts)
    users = read[0].num_users
    print(f"Wrote {config.output}: up to {config.top} items for {users:,} users.\n{after}")


def _require_sensible(config: FuseConfig) -> None:
    files = config.predictions
    if len(files) < 2:
        raise InputError(f"{files[0]}: one predictions file alone; give two or more to join")
    if config.valid is not None and config.weights is not None:
        raise InputError("--valid and --weights are two ways to weights; give one")
    if config.valid is not None and len(files) > MOST_WEIGHTS:
        raise InputError(f"--valid: {len(files)} files are more than the grid of weights serves")
    for flag, given in (("--valid", config.valid), ("--weights", config.weights)):
        if given is not None and len(given) != len(files):
            raise InputError(
                f"{flag} has {len(given)} values for {len(files)} predictions files; give one for "
                "each, in the same order"
            )
    if config.how == "adaptive":
        for flag, missing in (("--valid", config.valid is None), ("--data", config.data is None)):
            if missing:
                raise InputError(
                    f"--how adaptive needs {flag}: the weights of each user are learnt from the "
                    "validation lists and the histories; take --how score without them"
                )
    elif config.data is not None:
        raise InputError(f"--data {config.data} serves --how adaptive alone; leave it out")
    if config.weights is not None and not any(config.weights):
        raise InputError("--weights: all are 0; one must be above")
    resolved = [path.resolve() for path in (*files, *(config.valid or ()))]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise InputError(f"{path} is given twice")


def _weights(config: FuseConfig, read: Predictions) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Return the weights, and what the sidecar tells of how they were found."""
    count = len(config.predictions)
    if config.valid is None:
        given = config.weights or [1 / count] * count
        print(f"Weights: {_shown(given)}{', as given' if config.weights else ', all the same'}.")
        return tuple(given), {}
    valid = read_comparable(config.valid)
    _require_other_split(config, read, valid[0])
    pooled = pool(single_lists(valid, config.valid), _shares(config))
    weights, value = best_weights(pooled, valid[0].targets)
    alone = [
        float(ndcg_at_k(ranked, one.targets, 10).mean())
        for one in valid
        for ranked in one.ranked.values()
    ]
    print(
        f"Weights: {_shown(weights)}, the best of {len(weight_grid(count))} by NDCG@10 on "
        f"validation: {value:.4f}, and {_shown(alone, 4)} of each alone."
    )
    return weights, {"valid_ndcg_at_10": value, "valid_ndcg_at_10_alone": alone}


def _methods(files: Sequence[Path], read: Sequence[Predictions]) -> list[dict[str, Any] | None]:
    """Return how each file was made, so that a service can do it again; None where nothing says."""
    methods: list[dict[str, Any] | None] = []
    for path, one in zip(files, read, strict=True):
        record = read_provenance(path)
        if record is None:
            methods.append(None)
            continue
        inputs = {role: entry["sha256"] for role, entry in record["inputs"].items()}
        made = {"kind": record["kind"], "config": record["config"], "inputs": inputs}
        methods.append(made | {"length": one.length})
    return methods


def _shares(config: FuseConfig) -> Literal["rrf", "score"]:
    return "rrf" if config.how == "rrf" else "score"


def _adaptive(
    config: FuseConfig, read: Predictions, lists: list[Lists]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the weights [users, files], and what the sidecar tells of the model."""
    assert config.valid is not None
    assert config.data is not None
    valid = read_comparable(config.valid)
    _require_other_split(config, read, valid[0])
    found = load_data(config.data)
    known = [
        history_facts(
            found.split.train,
            _cases_of(config, file, own, cases, len(found.items)),
            len(found.items),
        )
        for file, own, cases in (
            (config.valid[0], valid[0], found.split.valid),
            (config.predictions[0], read, found.split.test),
        )
    ]
    valid_lists = single_lists(valid, config.valid)
    names, valid_facts = list_facts(valid_lists)
    model, facts = fit_adaptive(
        pool(valid_lists, "score"),
        valid_lists,
        valid[0].targets,
        [*NAMES, *names],
        np.hstack((known[0], valid_facts)),
    )
    weights = model.of_users(np.hstack((known[1], list_facts(lists)[1])))
    low, middle, high = np.quantile(weights, (0.1, 0.5, 0.9), axis=0)
    print(
        f"Weights for everybody: {_shown(model.weights)}; strength {model.strength:g}, by NDCG@10 "
        f"of users that the model had not seen: {facts['valid_ndcg_at_10']:.4f}, and "
        f"{facts['valid_ndcg_at_10_global']:.4f} of the weights for everybody."
    )
    print(
        f"Weights of a tenth, half and nine tenths of the users: at most {_shown(low)}, "
        f"{_shown(middle)}, {_shown(high)}."
    )
    return weights, {**facts, "adaptive": model.to_json()}


def _cases_of(
    config: FuseConfig, path: Path, read: Predictions, cases: EvalCases, num_items: int
) -> EvalCases:
    """Return the cases of the data folder that a file answers for, in its order.

    Raises:
        InputError: there is none of the user, or one with another target, or the file ranks items
            that the folder does not have.
    """
    numbers = [None] * len(cases) if cases.numbers is None else cases.numbers.tolist()
    places = {key: place for place, key in enumerate(zip(cases.users, numbers, strict=True))}
    targets = cases.targets.reshape(len(cases), -1)
    largest = max(int(ranked.max(initial=PAD)) for ranked in read.ranked.values())
    if largest >= num_items:
        raise InputError(
            f"{path}: ranks item {largest}, but --data {config.data} has {num_items} items; name "
            "the data folder that the predictions were made from"
        )
    rows = []
    for key, target in zip(read.keys, read.targets.reshape(len(read), -1), strict=True):
        place = places.get(key)
        if place is None or set(targets[place]) - {PAD} != set(target) - {PAD}:
            raise InputError(
                f"--data {config.data}: its split has no case of user {key[0]!r} with the target "
                f"of {path}; name the data folder that the predictions were made from"
            )
        rows.append(place)
    return cases.take(rows)


def _require_other_split(config: FuseConfig, read: Predictions, valid: Predictions) -> None:
    """Refuse weights chosen on what is to be judged, and validation of another method or data."""
    assert config.valid is not None
    truths, seen = (dict(zip(one.keys, one.targets.tolist(), strict=True)) for one in (read, valid))
    if truths == seen:
        raise InputError(
            f"--valid {config.valid[0]}: has the users and targets of {config.predictions[0]}, so "
            "that the weights would have seen the answers; give files of the validation split"
        )
    for path, other in zip(config.predictions, config.valid, strict=True):
        record, sidecar = read_provenance(path), read_provenance(other)
        if record is None or sidecar is None:
            continue
        if record["kind"] != sidecar["kind"]:
            raise InputError(
                f"--valid {other}: was made by {sidecar['stage']!r}, but {path} by "
                f"{record['stage']!r}; give each method's own, in the same order"
            )
        for role, entry in record["inputs"].items():
            if sidecar["inputs"].get(role, entry)["sha256"] != entry["sha256"]:
                raise InputError(
                    f"--valid {other}: was made from another {role} than {path}; give each "
                    "method's own, in the same order"
                )
        own, others = record["config"], sidecar["config"]
        for name in sorted(own.keys() & others.keys() - OF_NO_RANKING):
            if own[name] != others[name]:
                raise InputError(
                    f"--valid {other}: was made with {name} {others[name]!r}, but {path} with "
                    f"{own[name]!r}, so its weights would be of other rankings; make both with "
                    "the same options"
                )


def _shown(values: Sequence[float], digits: int = 2) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)
