"""Try all settings in a method's grid, and say which are best on validation.

    python -m lcrec.baselines tune NAME --data DIR --output DIR [settings outside the grid]

Every cell of the grid is fitted on the train part and measured by NDCG@10 on the validation items,
full ranking; the test items are never looked at. A finished cell is a folder of its own with its
figures, so a run that was stopped goes on where it was. Writes `tune.json`, the table that it
prints, and the command that runs the best.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcrec.baselines.base import METHODS, Baseline, find_method, make_method
from lcrec.baselines.runs.flags import parse_method_config, settings_files
from lcrec.baselines.runs.inputs import (
    DEVICE_HELP,
    EMBEDDINGS_HELP,
    INDEX_HELP,
    Inputs,
    input_files,
    load_inputs,
)
from lcrec.baselines.runs.ranking import ranked_matrix
from lcrec.baselines.runs.run import example_of, fit_and_measure
from lcrec.baselines.settings import MethodSettings
from lcrec.core.artifacts import write_json
from lcrec.core.config import Writes, config_dict, console_command, option, settings_of
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import SHARED_FOLDER
from lcrec.core.provenance import is_current, read_provenance, write_provenance
from lcrec.rankings.metrics import hit_at_k, ndcg_at_k
from lcrec.rankings.predictions import DivergedError

COMMAND = "python -m lcrec.baselines tune"
TUNE = "tune.json"


@dataclass(frozen=True)
class TuneConfig(Writes):
    """Settings of `python -m lcrec.baselines tune NAME` that all methods share."""

    data: Path = option("the data folder")
    output: Path = option("the folder for tune.json and a folder per cell", writes=SHARED_FOLDER)
    embeddings: Path | None = option(EMBEDDINGS_HELP, None)
    index: Path | None = option(INDEX_HELP, None)
    exclude_history: bool = option("mask history items, except targets", False)
    paper_family: bool = option(
        "settings outside the grid start from those of the paper's family; the default", False
    )
    tuned: bool = option("they start from the best known settings instead", False)
    device: str | None = option(DEVICE_HELP, None)
    seed: int = option("of whatever the method draws at random", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the command."""
    name, *rest = argv or [""]
    if name in ("", "-h", "--help"):
        print(_overview())
        return
    if name.startswith("-"):
        raise InputError(f"the method comes first: {COMMAND} NAME {name} ...\n\n{_overview()}")
    kind = find_method(name)
    if not kind.grid:
        tunable = [known for known, other in METHODS.items() if other.grid]
        raise InputError(f"{name} has nothing to tune; those that do: {', '.join(tunable)}")
    config = parse_method_config(
        TuneConfig,
        kind,
        rest,
        description=f"Try {_shown(kind.grid)}, on validation only. Other settings:",
        prog=f"{COMMAND} {name}",
        example=example_of(name, kind.needs, "{}/tuning"),
        without=kind.grid,
    )
    combinations = itertools.product(*kind.grid.values())
    cells = [dict(zip(kind.grid, values, strict=True)) for values in combinations]
    first = settings_of(kind, config, **cells[0])
    needs = first.required_inputs
    files = input_files(config.data, config.embeddings, needs, config.index)
    files |= settings_files(first)
    inputs = load_inputs(config.data, config.embeddings, needs, name, index=config.index)
    print(
        f"Tuning {name} on {inputs.name}: {len(cells)} cells ({_shown(kind.grid)}), judged on the "
        f"validation items of {len(inputs.split.valid):,} users.",
        flush=True,
    )
    shared = config_dict(config, without=["device"])
    stage = f"{COMMAND} {name}"
    # First: what is in the folder when this run is killed is known as this command's own.
    write_provenance(config.output, stage, shared, files)
    for cell in progress(cells, f"tune {name}", "cells"):
        folder = config.output / _cell_name(cell)
        if is_current(folder, stage, shared | cell, files):
            continue
        made = make_method(settings_of(kind, config, **cell), config.seed, config.device)
        figures, cost = _judge(made, inputs, config.exclude_history)
        write_provenance(folder, stage, shared | cell, files, cost=cost, figures=figures)
    found = [_read_cell(config.output / _cell_name(cell)) for cell in cells]
    rows = [{"settings": cell, **figures} for cell, figures in zip(cells, found, strict=True)]
    rows.sort(key=lambda row: (row["NDCG@10"] is None, -(row["NDCG@10"] or 0)))
    if rows[0]["NDCG@10"] is None:
        raise InputError(f"{name}: every cell failed; {rows[0]['failed']}")
    command = _command(name, kind, config, rows[0]["settings"])
    record = {
        "method": name,
        "data": inputs.name,
        "split": "valid",
        "seed": config.seed,
        "best": rows[0],
        "command": command,
        "cells": rows,
    }
    write_json(config.output / TUNE, record, indent=2)
    _print_table(list(kind.grid), rows)
    print(f"\nWrote {config.output / TUNE}.\nNext, with the best: {command}")


def _judge(
    method: Baseline, inputs: Inputs, exclude_history: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """Fit and judge on validation; a loss that is no longer finite fails the cell alone.

    Returns:
        the figures, and what fitting took.
    """
    training = dataclasses.replace(inputs.training, exclude_history=exclude_history)
    try:
        seconds = fit_and_measure(method, training)["fit_seconds"]
    except DivergedError as error:
        return {"NDCG@10": None, "HR@10": None, "failed": str(error)}, {}
    cases = inputs.split.valid
    ranked = ranked_matrix(method, cases, training, top=10)
    figures = {
        "NDCG@10": float(ndcg_at_k(ranked, cases.targets, 10).mean()),
        "HR@10": float(hit_at_k(ranked, cases.targets, 10).mean()),
    }
    return figures, {"fit_seconds": seconds}


def _read_cell(folder: Path) -> dict[str, Any]:
    record = read_provenance(folder)
    assert record is not None
    cost = {name: record[name] for name in ("fit_seconds",) if name in record}
    return {**record["figures"], **cost}


def _cell_name(cell: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in cell.items())


def _shown(grid: Mapping[str, tuple[Any, ...]]) -> str:
    return "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in grid.items())


def _command(name: str, kind: type[MethodSettings], config: Any, best: dict[str, Any]) -> str:
    """Return the command that runs a method with these settings on the test items."""
    words = ["python", "-m", "lcrec.baselines", name, "--data", str(config.data)]
    for flag in ("embeddings", "index"):
        if getattr(config, flag) is not None:
            words += [f"--{flag}", str(getattr(config, flag))]
    words += ["--output", str(config.output / f"{name}.jsonl")]
    if config.exclude_history:
        words.append("--exclude-history")
    if config.seed:
        words += ["--seed", str(config.seed)]
    settings = settings_of(kind, config, **best)
    for field in dataclasses.fields(kind):
        value = getattr(settings, field.name)
        if not field.init or (value == field.default and field.name not in best):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _print_table(names: list[str], rows: list[dict[str, Any]]) -> None:
    head = [*names, "NDCG@10", "HR@10", "seconds"]
    lines = [head]
    for row in rows:
        cell = [str(row["settings"][name]) for name in names]
        if row["NDCG@10"] is None:
            lines.append([*cell, "failed", "", ""])
            continue
        figures = f"{row['NDCG@10']:.4f}", f"{row['HR@10']:.4f}", f"{row['fit_seconds']:.0f}"
        lines.append([*cell, *figures])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)))


def _overview() -> str:
    command = console_command(COMMAND)
    return (
        f"usage: {command} NAME --data DIR --output DIR [more options]\n\n"
        "Try all settings in a method's grid, and say which are best on validation.\n\n"
        "A method without a grid is refused, and those that have one are named.\n"
        f"its grid, and what else can be set: {command} NAME --help\n\n"
        f"example:\n  {command} itemknn {example_of('itemknn', frozenset(), '{}/tuning')}"
    )
