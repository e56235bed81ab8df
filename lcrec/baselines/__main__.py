"""Stage: fit a baseline on the train part and rank the whole catalogue for every user.

Reads a data folder, and embeddings for the methods that need them; writes `predictions.jsonl`
(the form of `lcrec.predictions`) with the users and targets of the chosen split, and its
provenance beside it. `COMMANDS` do more than run one method.

Public names: `BaselineConfig`, `COMMANDS`, `method_config`, `method_settings`, `main`.
"""

import dataclasses
import importlib
import sys
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lcrec.artifacts import EMBEDDINGS, find_data, is_current, write_provenance
from lcrec.baselines import METHODS, find_method
from lcrec.baselines.base import Baseline
from lcrec.baselines.inputs import load_inputs
from lcrec.baselines.ranking import rank_cases
from lcrec.config import config_dict, option, parse_config
from lcrec.data import Cases
from lcrec.errors import InputError, closest, run_stage
from lcrec.predictions import Prediction, require_predictions_path, write_predictions

PROG = "python -m lcrec.baselines"
# Loaded when asked for: {first word: (module with `main(argv)`, what it does)}.
COMMANDS: dict[str, tuple[str, str]] = {}


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of `python -m lcrec.baselines NAME` that all methods share."""

    data: Path = option("the data folder")
    output: Path = option("the predictions file to write, *.jsonl")
    embeddings: Path | None = option(
        "the folder that holds embeddings.npy, for the methods that need it", None
    )
    split: Literal["valid", "test"] = option("which held-out item to predict", "test")
    top: int = option("how many items to list per user", 100, minimum=100)
    exclude_history: bool = option("never list what the user already has, but for a target", False)
    tuned: bool = option(
        "start from the best known settings, instead of those of the paper's family", False
    )
    device: str | None = option("cpu, cuda or cuda:N; none: a GPU where there is one", None)
    seed: int = option("of whatever the method draws at random", 0, minimum=0)


def method_config(method: type[Baseline], *, tuned: bool = False) -> type:
    """Return the dataclass of all that a method's command takes: the shared, then its own.

    Args:
        method: the class.
        tuned: whether its own settings start from the best known ones.
    """
    fields = []
    for config_type in (BaselineConfig, method.Settings):
        hints = typing.get_type_hints(config_type)
        for field in dataclasses.fields(config_type):
            if not field.init:
                continue
            own = config_type is method.Settings
            default = (
                method.tuned.get(field.name, field.default) if tuned and own else field.default
            )
            made = dataclasses.field(
                default=default, default_factory=field.default_factory, metadata=field.metadata
            )
            fields.append((field.name, hints[field.name], made))
    return dataclasses.make_dataclass(f"{method.__name__}Config", fields, frozen=True)


def method_settings(method: type[Baseline], config: Any) -> Any:
    """Return the method's own settings out of what its command was given."""
    names = [field.name for field in dataclasses.fields(method.Settings) if field.init]
    return method.Settings(**{name: getattr(config, name) for name in names})


def main(argv: list[str]) -> None:
    """Run a method, or the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = argv
    if name in COMMANDS:
        importlib.import_module(COMMANDS[name][0]).main(rest)
        return
    if name.startswith("-"):
        raise InputError(f"the method comes first: {PROG} NAME {name} ...\n\n{_overview()}")
    known = [*METHODS, *COMMANDS]
    if name not in METHODS:
        raise InputError(f"no method {name!r}{closest(name, known)} ({', '.join(known)})")
    _run_method(name, rest)


def _run_method(name: str, argv: list[str]) -> None:
    entry = find_method(name)
    kind = entry.load()
    prog = f"{PROG} {name}"
    config: Any = parse_config(
        method_config(kind, tuned="--tuned" in argv), argv, description=entry.summary, prog=prog
    )
    require_predictions_path(config.output)
    paths = find_data(config.data)
    files = {"inter": paths.inter, "item": paths.item}
    if "embeddings" in kind.needs and config.embeddings is not None:
        files["embeddings"] = config.embeddings / EMBEDDINGS
    after = f"Next: python -m lcrec.evaluate --predictions {config.output}"
    settings = {key: value for key, value in config_dict(config).items() if key != "device"}
    if config.output.exists() and is_current(config.output, prog, settings, files):
        print(f"{config.output} is up to date.\n{after}")
        return

    inputs = load_inputs(config.data, config.embeddings, kind.needs, name)
    cases: Cases = getattr(inputs.split, config.split)
    num_items = inputs.training.num_items
    without = ", leaving out what the user already has" if config.exclude_history else ""
    print(
        f"{name} on {inputs.name}: fit on the train part of {len(cases):,} users, then rank all "
        f"{num_items:,} items for the {config.split} split{without}.",
        flush=True,
    )
    device = config.device or _default_device()
    method = kind(method_settings(kind, config), seed=config.seed, device=device)
    started = time.perf_counter()
    method.fit(inputs.training)
    seconds = time.perf_counter() - started
    lists = rank_cases(
        method,
        cases,
        inputs.training.train,
        num_items,
        top=config.top,
        exclude_history=config.exclude_history,
    )
    rows = (
        Prediction(user, int(target), ranked, scores)
        for user, target, (ranked, scores) in zip(cases.users, cases.targets, lists, strict=True)
    )
    write_predictions(config.output, tqdm(rows, total=len(cases), desc=name, unit=" users"))
    write_provenance(config.output, prog, settings, inputs.files, fit_seconds=round(seconds, 1))
    up_to = "up to " if config.exclude_history else ""
    print(
        f"Fitted in {seconds:,.0f} s. Wrote {config.output}: {up_to}{min(config.top, num_items)} "
        f"items per user.\n{after}"
    )


def _default_device() -> str:
    """Return "cuda" where there is a GPU and something has loaded torch, else "cpu"."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _overview() -> str:
    width = max(map(len, [*METHODS, *COMMANDS]))
    return "\n".join(
        [
            f"usage: {PROG} NAME --data DIR --output FILE.jsonl [more options]",
            "",
            "Fit a baseline on the train part and rank the whole catalogue for every user.",
            "",
            "methods:",
            *(f"  {name:<{width}}  {method.summary}" for name, method in METHODS.items()),
            *(["", "commands:"] if COMMANDS else []),
            *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
            "",
            f"options of a method: {PROG} NAME --help",
        ]
    )


if __name__ == "__main__":
    run_stage(main)
