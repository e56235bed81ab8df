"""Stage: compute the metrics of predictions files, side by side.

Three more commands test what the tasks taught a checkpoint, each in a module of its own:

    python -m lcrec.evaluate pairs --help      the next item, or one like it?
    python -m lcrec.evaluate search --help     items for what a customer looks for
    python -m lcrec.evaluate language --help   titles, descriptions and preferences in words

Reads one or more `predictions.jsonl` (see `lcrec.rankings.predictions`) that answer for the same
users and targets; prints a table; writes `metrics.json`: {"users", "cases" where users have
several, "seed", "samples", "level", "mrr_depth", "runs": {label: {"list_length", "overall":
{metric: {"mean", "low", "high"}}, "by_user" likewise, "templates": {template_id: {metric: mean over
users}}, "across_templates": {metric: {"mean", "min", "max"}} or null, "difference" of every file
but the first: {metric: {"difference", "low", "high", "p"}}}}}. The metrics are `METRICS`
of `lcrec.rankings.metrics`, or `MULTI_TARGET_METRICS` where a case has several targets. Where users
have several cases, means are over cases, and intervals over users all the same; "by_user" has the
means over users of the mean of each user's cases, so that everybody counts the same.

Where users were asked with several templates, a user's value is the mean over the templates.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcrec.core.artifacts import write_json
from lcrec.core.config import Writes, console_command, option, parse_config
from lcrec.core.console import printable
from lcrec.core.errors import InputError, closest, run_stage
from lcrec.core.outputs import check_output, publish
from lcrec.core.provenance import write_provenance
from lcrec.rankings.evaluation import evaluate_files, label_files

PROG = "python -m lcrec.evaluate"
EXAMPLE = "--predictions runs/shop/predictions.jsonl runs/shop/sasrec/predictions.jsonl"
# Loaded when asked for: they need a language model, and judging files needs none.
COMMANDS = {
    "pairs": "lcrec.evaluate.pairs",
    "search": "lcrec.evaluate.search",
    "language": "lcrec.evaluate.language",
}
LINE = 99  # the least width of a table, in characters; longer labels widen it


@dataclass(frozen=True)
class EvaluateConfig(Writes):
    """Settings of `python -m lcrec.evaluate`."""

    predictions: list[str] = option("predictions files to measure, compared if several")
    output: Path | None = option(
        "where to write the numbers, *.json (default: of a single X.jsonl to X.metrics.json beside "
        "it, of predictions.jsonl to metrics.json, of several files nowhere)",
        None,
        writes=".json",
    )
    labels: list[str] | None = option(
        "a name per file, for the table; by default the method that wrote it", None
    )
    seed: int = option("of the bootstrap", 0, minimum=0)


def format_table(runs: dict[str, dict[str, Any]], depth: int, figures: str = "overall") -> str:
    """Return the side-by-side table: two lines per file, the value and below it the interval.

    Args:
        runs: the "runs" of `evaluate_files`; of several, the best value of a column gets a star.
        depth: the depth that MRR was taken at.
        figures: which of the results to show, "overall" or "by_user".
    """
    metrics = list(next(iter(runs.values()))[figures])
    best = {
        metric: max(run[figures][metric]["mean"] for run in runs.values()) for metric in metrics
    }
    rows = []
    for label, run in runs.items():
        cells, intervals = [], []
        for metric in metrics:
            value = run[figures][metric]
            star = "*" if len(runs) > 1 and value["mean"] == best[metric] else " "
            cells.append(f"{value['mean']:.4f}{star}")
            intervals.append(f"{value['low']:.3f}-{value['high']:.3f} ")
        rows += [(label, cells), ("", intervals)]
    return "\n".join(_align(rows, metrics, depth, cell_width=13))


def format_differences(runs: dict[str, dict[str, Any]], depth: int) -> str:
    """Return the table of differences to the first file: two lines per other file."""
    first, *others = runs
    rows = []
    for label in others:
        found = runs[label]["difference"].values()
        rows.append((label, [f"{value['difference']:+.4f}" for value in found]))
        rows.append(("", [f"{value['low']:+.3f} {value['high']:+.3f}" for value in found]))
    return "\n".join(_align(rows, list(runs[first]["overall"]), depth, cell_width=14))


def format_templates(run: dict[str, Any], depth: int) -> str:
    """Return a table of one file's templates, a line each, and their mean, lowest and highest."""
    metrics = list(run["overall"])
    rows = [
        (printable(name), [f"{values[metric]:.4f} " for metric in metrics])
        for name, values in run["templates"].items()
    ]
    for name, key in (("mean", "mean"), ("lowest", "min"), ("highest", "max")):
        values = run["across_templates"]
        rows.append((name, [f"{values[metric][key]:.4f} " for metric in metrics]))
    lines = _align(rows, metrics, depth, cell_width=10)
    lines.insert(-3, lines[1])
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Run the stage, or the command that the first word names."""
    command = argv[0] if argv else ""
    if command in COMMANDS:
        importlib.import_module(COMMANDS[command]).main(argv[1:])
        return
    if command and not command.startswith("-"):
        raise InputError(
            f"no command {command!r}{closest(command, COMMANDS)} (all: {', '.join(COMMANDS)}; "
            f"without one, {PROG} judges --predictions files)"
        )
    description = "Measure predictions files: HR (Recall where users have several targets), NDCG\n"
    description += "and MRR with 95 % bootstrap intervals.\n\n"
    description += "What the tasks taught a checkpoint: " + ", ".join(
        f"{console_command(PROG)} {name} --help" for name in COMMANDS
    )
    config = parse_config(EvaluateConfig, argv, description=description, prog=PROG, example=EXAMPLE)
    files = label_files([Path(file) for file in config.predictions], config.labels)
    output = _output(config)
    print(f"Judging {', '.join(str(path) for path in files.values())}.")
    result = evaluate_files(files, config.seed)
    runs, users, depth = result["runs"], result["users"], result["mrr_depth"]
    of = f"{result['cases']:,} cases of " if "cases" in result else ""
    print(
        f"\n{of}{users:,} users. Below each value: its 95 % bootstrap interval over users.", end=""
    )
    print(" * marks the best of a column.\n" if len(runs) > 1 else "\n")
    print(format_table(runs, depth))
    if len(runs) > 1:
        print(
            f"\nDifferences to {printable(next(iter(runs)))}, paired by user. Below each: its 95 % "
            "interval; where it holds\nno 0, the two differ.\n"
        )
        print(format_differences(runs, depth))
    if "cases" in result:
        print("\nby user: the mean of each user's cases, and the mean of these over users\n")
        print(format_table(runs, depth, "by_user"))
    for label, run in runs.items():
        if run["across_templates"] is not None:
            print(f"\n{label}, by template\n\n{format_templates(run, depth)}")
        deepest = max(int(metric.partition("@")[2] or 0) for metric in run["overall"])
        if run["list_length"] < deepest:
            print(
                f"\nNote: the lists of {label} end at {run['list_length']} items; a target "
                "further down counts as missed."
            )
    if output is None:
        print("\nNothing was written; --output FILE.json keeps these numbers.")
        return
    with publish(output, PROG, ".json", overwrite=config.overwrite) as file:
        write_json(file, result, indent=2)
        write_provenance(file, PROG, {"seed": config.seed}, files)
    print(f"\nWrote {output}.")
    if len(files) == 1:
        print(f"Next: compare: {PROG} --predictions {config.predictions[0]} OTHER.jsonl")


def _output(config: EvaluateConfig) -> Path | None:
    """Return where the numbers go, None for nowhere."""
    if config.output is not None or len(config.predictions) > 1:
        return config.output
    path = Path(config.predictions[0])
    name = "metrics.json" if path.stem == "predictions" else f"{path.stem}.metrics.json"
    output = path.parent / name
    check_output(output, PROG, ".json", overwrite=config.overwrite)
    return output


def _align(
    rows: list[tuple[str, list[str]]], metrics: list[str], depth: int, cell_width: int
) -> list[str]:
    """Return lines of a table: a header, a rule, and a line per (label, cells)."""
    titles = [f"MRR@{depth} " if name == "MRR" else f"{name} " for name in metrics]
    longest = max(len(label) for label, _ in rows)
    label_width = max(LINE - len(metrics) * cell_width, longest + 1)
    lines = [
        (f"{label:<{label_width}}" + "".join(f"{cell:>{cell_width}}" for cell in cells)).rstrip()
        for label, cells in [("", titles), *rows]
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


if __name__ == "__main__":
    run_stage(main)
