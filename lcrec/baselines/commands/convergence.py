"""Count the epochs that methods take to their best validation score.

Reads a data folder, and embeddings or an index for the methods that need them; writes a JSON file
with, per method, the best epoch, the first within 1 % of the best validation NDCG@10, seconds per
epoch and the score of every epoch. Every method is validated after each epoch and stopped by one
patience. An epoch of AlphaRec is as many draws of a purchase as there are purchases; of any other
method it is a pass over its examples.
"""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lcrec.baselines.base import Baseline, TrainingData, find_method, make_method
from lcrec.baselines.runs.inputs import DEVICE_HELP, EMBEDDINGS_HELP, INDEX_HELP, load_inputs
from lcrec.baselines.settings import MethodSettings
from lcrec.core.artifacts import write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import write_provenance

COMMAND = "python -m lcrec.baselines convergence"
EXAMPLE = "--data data/shop --embeddings runs/shop/embeddings --output runs/shop/convergence.json"
WITHIN = 0.01


@dataclass(frozen=True)
class ConvergenceConfig(Writes):
    """Settings of `python -m lcrec.baselines convergence`."""

    data: Path = option("the data folder")
    output: Path = option("the file to write, *.json", writes=".json")
    embeddings: Path | None = option(EMBEDDINGS_HELP, None)
    index: Path | None = option(INDEX_HELP, None)
    methods: list[str] = option("which to train", ["alpharec", "lightgcn"])
    loss: Literal["info_nce", "bpr"] | None = option(
        "train all of them with this one; none: each with its own", None
    )
    epochs: int = option("at most", 300, minimum=1)
    patience: int = option("epochs without improvement before training stops", 20, minimum=1)
    device: str | None = option(DEVICE_HELP, None)
    seed: int = option("of weights and draws", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(ConvergenceConfig, argv, prog=COMMAND, example=EXAMPLE)
    kinds = {name: find_method(name) for name in config.methods}
    if len(kinds) < len(config.methods):
        raise InputError(f"--methods {' '.join(config.methods)}: one is named twice")
    chosen = {name: _settings(name, kind, config) for name, kind in kinds.items()}
    needs = {need for kind in kinds.values() for need in kind.needs}
    asker = " and ".join(kinds)
    inputs = load_inputs(config.data, config.embeddings, needs, asker, index=config.index)
    print(
        f"Training {', '.join(kinds)} on {inputs.name}, validating after every epoch, until "
        f"{config.patience} brought nothing better.",
        flush=True,
    )
    found = {}
    print(f"{'':16}{'best':>8}{'within':>8}{'best':>9}{'seconds':>9}{'seconds':>9}")
    print(f"{'':16}{'epoch':>8}{'1 %':>8}{'NDCG@10':>9}{'an epoch':>9}{'to 1 %':>9}")
    for name, settings in chosen.items():
        method = make_method(settings, config.seed, config.device)
        one = found[name] = measure(method, inputs.training)
        print(
            f"{name:16}{one['best_epoch']:8}{one['within_1_percent']:8}{one['best_score']:9.4f}"
            f"{one['seconds_per_epoch']:9.2f}{one['seconds_to_1_percent']:9.1f}",
            flush=True,
        )
    with publish(config.output, COMMAND, ".json", overwrite=config.overwrite) as file:
        write_json(file, found, indent=2)
        write_provenance(file, COMMAND, config_dict(config), inputs.files)
    print(f"Wrote {config.output}.")


def measure(method: Baseline, data: TrainingData) -> dict[str, Any]:
    """Fit a method that keeps a training log, and return how it went, JSON values only.

    Seconds are those of training and validating.
    """
    method.fit(data)
    log = method.log  # type: ignore[attr-defined]
    first = log.epochs_until(WITHIN)
    seconds = [epoch.seconds for epoch in log.epochs]
    return {
        "epochs": len(log.epochs),
        "best_epoch": log.best_epoch,
        "within_1_percent": first,
        "best_score": log.best_score,
        "seconds_per_epoch": round(float(np.mean(seconds)), 3),
        "seconds_to_1_percent": round(sum(seconds[:first]), 2),
        "scores": [epoch.score for epoch in log.epochs],
    }


def _settings(name: str, kind: type[MethodSettings], config: ConvergenceConfig) -> Any:
    """Return the method's settings, validated each epoch; refuse one that has no epochs."""
    wanted: dict[str, Any] = {"epochs": config.epochs, "patience": config.patience, "every": 1}
    if config.loss is not None:
        wanted["loss"] = config.loss
    known = {field.name for field in dataclasses.fields(kind)}
    if missing := wanted.keys() - known:
        raise InputError(f"--methods {name}: it has no {' and no '.join(sorted(missing))} to set")
    losses = typing.get_args(typing.get_type_hints(kind).get("loss"))
    if config.loss is not None and config.loss not in losses:
        raise InputError(
            f"--loss {config.loss}: {name} can be trained with {', '.join(losses)}; name one that "
            "all of --methods have"
        )
    return kind(**wanted)
