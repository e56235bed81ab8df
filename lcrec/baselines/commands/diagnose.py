"""Command: what two predictions files find together, and what only one of them finds.

Reads two predictions files that answer for the same users and targets, and the data folder, whose
train sequences tell how popular an item is; prints a table; writes {"a", "b", "k": {K: figures}}
with --output (the figures of `lcrec.rankings.overlap.compare_lists`). Files of methods that
were trained apart tell whether the methods complement each other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.baselines.base import positions
from lcrec.baselines.runs.inputs import load_inputs
from lcrec.core.artifacts import find_data, write_json
from lcrec.core.config import Writes, option, parse_config
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import require_same_input, write_provenance
from lcrec.data.splits import require_same_split
from lcrec.rankings.comparison import read_comparable, single_lists
from lcrec.rankings.metrics import PAD
from lcrec.rankings.overlap import GROUPS, compare_lists

COMMAND = "python -m lcrec.baselines diagnose"
EXAMPLE = "runs/shop/predictions.jsonl runs/shop/sasrec/predictions.jsonl --data data/shop"


@dataclass(frozen=True)
class DiagnoseConfig(Writes):
    """Settings of `python -m lcrec.baselines diagnose`."""

    predictions: list[Path] = option("the two predictions files, A and B", words=True)
    data: Path = option("the data folder that they were made from")
    k: list[int] = option("depths to compare the rankings at, side by side", [5, 10, 20], minimum=1)
    output: Path | None = option("where to write the numbers, *.json", None, writes=".json")


def main(argv: list[str]) -> None:
    """Compare the files."""
    config = parse_config(DiagnoseConfig, argv, prog=COMMAND, example=EXAMPLE)
    if len(config.predictions) != 2:
        raise InputError(f"{len(config.predictions)} predictions files given; two are compared")
    first, second = config.predictions
    print(f"A is {first}, B is {second}.")
    inter = find_data(config.data).inter
    for path in config.predictions:
        require_same_input(path, "inter", inter, "the command that wrote it, with this --data")
        require_same_split(path, config.data, "the command that wrote it, with this --data")
    read = read_comparable(config.predictions)
    inputs = load_inputs(config.data, None, (), "diagnose")
    train, num_items = inputs.training.train, inputs.training.num_items
    (a, _), (b, _) = single_lists(read, config.predictions)
    targets, users = read[0].targets, read[0].users
    places = positions(train, users)
    strange = next((user for user, place in zip(users, places, strict=True) if place < 0), None)
    largest = int(max(a.max(), b.max(), targets.max(initial=PAD)))
    if strange is not None or largest >= num_items:
        what = f"user {strange!r}" if strange is not None else f"item {largest}"
        raise InputError(f"{first}: has {what}, which --data {config.data} has not")
    shortest = min(a.shape[1], b.shape[1])
    if max(config.k) > shortest:
        raise InputError(f"--k {max(config.k)}: the shorter lists have {shortest} items alone")
    popularity = np.bincount(train.items, minlength=num_items)
    activity = np.diff(train.offsets)[places]
    figures = {
        k: compare_lists(a, b, targets, k, popularity=popularity, activity=activity)
        for k in config.k
    }
    cases = "" if read[0].numbers is None else f"{len(users):,} cases of "
    print(f"\n{cases}{read[0].num_users:,} users. {_EXPLANATION}\n\n{format_comparison(figures)}")
    if config.output is None:
        print("\nNothing was written; --output FILE.json keeps these numbers.")
        return
    result = {"a": str(first), "b": str(second), "k": {str(k): one for k, one in figures.items()}}
    with publish(config.output, COMMAND, ".json", overwrite=config.overwrite) as file:
        write_json(file, result, indent=2)
        read_files = {"a": first, "b": second, **inputs.files}
        write_provenance(file, COMMAND, {"k": config.k}, read_files)
    print(
        f"\nWrote {config.output}.\nNext: python -m lcrec.baselines fuse {first} {second} "
        "--output FUSED.jsonl"
    )


_EXPLANATION = (
    "Oracle: a perfect choice between the two. Popularity groups end at the\n.60 and .80 quantiles "
    "of how often items stand in the train sequences."
)


def format_comparison(figures: dict[int, dict[str, Any]]) -> str:
    """Return a table: a line per figure, a column per K."""
    lines = [("", [f"@{k}" for k in figures])]

    def add(name: str, *keys: str) -> None:
        cells = []
        for one in figures.values():
            value: Any = one
            for key in keys:
                value = value[key] if value is not None else None
            if value is None:
                cells.append("-")
            else:
                cells.append(f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
        lines.append((name, cells))

    add("overlap of the lists", "overlap")
    add("hits of both", "hits", "both")
    add("hits of A alone", "hits", "a_only")
    add("hits of B alone", "hits", "b_only")
    add("share of hits that one alone has", "hits", "complementary")
    for side, name in (("both", "both"), ("a_only", "A alone"), ("b_only", "B alone")):
        add(f"log popularity of hits of {name}", "hits", "log_popularity", side)
    for side, name in (
        ("both", "both"),
        ("a_only", "A alone"),
        ("b_only", "B alone"),
        ("none", "none"),
    ):
        add(f"users with hits of {name}", "users", side)
    for name, keys in (("all", ("all",)), *((group, ("groups", group)) for group in GROUPS)):
        add(f"recall of A, {name} items", *keys, "recall_a")
        add(f"recall of B, {name} items", *keys, "recall_b")
        add(f"oracle, {name} items", *keys, "oracle")
    add("oracle of at most K hits", "all", "oracle_at_k")
    add("gain of the oracle over the better", "all", "gain")
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(
        f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in lines
    )
