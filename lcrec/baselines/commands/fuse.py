"""Command: join the predictions files of several methods into one, by rank or by score.

Reads predictions files that answer for the same users and targets, whoever made them, and their
sidecars where they have one; writes a predictions file of the joint lists. With --valid, the
weights are those that rank the validation items best (NDCG@10): give each method's predictions
for the validation split, in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import is_current, read_provenance, write_provenance
from lcrec.rankings.comparison import read_comparable, single_lists
from lcrec.rankings.fusion import MOST_WEIGHTS, best_weights, fuse, pool, weight_grid
from lcrec.rankings.metrics import ndcg_at_k
from lcrec.rankings.predictions import Prediction, Predictions, write_predictions

COMMAND = "python -m lcrec.baselines fuse"
EXAMPLE = (
    "runs/shop/predictions.jsonl runs/shop/sasrec/predictions.jsonl --output runs/shop/fused.jsonl"
)


@dataclass(frozen=True)
class FuseConfig(Writes):
    """Settings of `python -m lcrec.baselines fuse`."""

    predictions: list[Path] = option("the predictions files to join, two or more", words=True)
    output: Path = option("the predictions file to write, *.jsonl", writes=".jsonl")
    how: Literal["rrf", "score"] = option(
        "rrf: by rank, 1 / (60 + rank); score: by score, brought to 0 .. 1 in every list", "rrf"
    )
    valid: list[Path] | None = option(
        "each method's predictions for the validation split, in the same order, to choose the "
        "weights on",
        None,
    )
    weights: list[float] | None = option(
        "a weight per file instead; neither: all count the same", None, minimum=0
    )
    top: int = option("how many items to list per user", 100, minimum=1)


def main(argv: list[str]) -> None:
    """Join the files."""
    config = parse_config(
        FuseConfig, argv, description=__doc__ or "", prog=COMMAND, example=EXAMPLE
    )
    _require_sensible(config)
    files = config.predictions
    inputs = {f"predictions {number}": path for number, path in enumerate(files, start=1)}
    inputs |= {f"valid {number}": path for number, path in enumerate(config.valid or (), start=1)}
    settings = config_dict(config)
    after = f"Next: python -m lcrec.evaluate --predictions {config.output} {files[0]}"
    if config.output.exists() and is_current(config.output, COMMAND, settings, inputs):
        print(f"{config.output} is up to date.\n{after}")
        return
    by = {"rrf": "rank", "score": "score"}[config.how]
    print(f"Joining by {by}: {', '.join(map(str, files))}.", flush=True)
    read = read_comparable(files)
    pooled = pool(single_lists(read, files), config.how)
    weights, facts = _weights(config, read[0])
    joint = fuse(pooled, weights, config.top)
    rows = (
        Prediction(user, target, ranked, scores, case=case)
        for (user, case), target, (ranked, scores) in zip(
            read[0].keys, read[0].targets, joint, strict=True
        )
    )
    with publish(config.output, COMMAND, ".jsonl", overwrite=config.overwrite) as file:
        write_predictions(file, progress(rows, "write", "users", total=len(joint)))
        write_provenance(file, COMMAND, settings, inputs, weights=list(weights), **facts)
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
    pooled = pool(single_lists(valid, config.valid), config.how)
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


def _shown(values: Sequence[float], digits: int = 2) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)
