"""Tables II and III of the LC-Rec paper (arXiv 2311.09049) beside what was made here.

    python scripts/paper_table.py --table data --published Instruments --data data/Instruments
    python scripts/paper_table.py --table results --published Instruments \
        --predictions runs/paper/predictions/level.jsonl runs/paper/predictions/trie.jsonl
    python scripts/paper_table.py --table baselines --published Instruments \
        --comparison runs/compare/comparison.json

`data` counts a data folder. `baselines` sets the `comparison.json` of `python -m lcrec.baselines
compare` beside the published line of the same method. `results` reads predictions files, and shows
for each the mean, the lowest and the highest over its templates, and how far the mean lies from the
published LC-Rec.

With `--index FILE`, an index in which items may share a path (the published ones: `lcrec` refuses
to train on them), lists are scored in two ways. By item: the target's own id must be ranked. By
index, as the published evaluation does: an item with the target's index will do, and each index
takes one place, that of its first item. The index says nothing about how the lists came about:
they may be of any model on that catalogue.

The published evaluation also keeps a beam that is no item in its place; lists of `lcrec.generate
--constraint level` leave it out, and what stands below moves up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lcrec.core.artifacts import find_data, read_json, write_json
from lcrec.core.config import option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.provenance import fingerprint
from lcrec.data.folder import Interactions, load_interactions, load_items
from lcrec.index.item_index import read_codes
from lcrec.rankings.metrics import PAD, measure_lists
from lcrec.rankings.predictions import Predictions, read_predictions, require_comparable

SOURCE = "arXiv 2311.09049"
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
# Table II: users, items, interactions. The data folders that the authors publish have exactly one
# user and one item fewer.
COUNTS = {
    "Instruments": (24_773, 9_923, 206_153),
    "Arts": (45_142, 20_957, 390_832),
    "Games": (50_547, 16_860, 452_989),
}
# Table III, in the order of METRICS, in ten-thousandths.
RESULTS = {
    "Instruments": {
        "Caser": (149, 543, 710, 355, 409),
        "HGN": (523, 813, 1048, 668, 744),
        "GRU4Rec": (571, 821, 1031, 698, 765),
        "BERT4Rec": (435, 671, 822, 560, 608),
        "SASRec": (503, 751, 947, 627, 690),
        "FMLP-Rec": (480, 786, 988, 638, 704),
        "FDSA": (520, 834, 1046, 681, 750),
        "S3-Rec": (367, 863, 1136, 626, 714),
        "P5-CID": (587, 827, 1016, 708, 768),
        "TIGER": (608, 863, 1064, 738, 803),
        "LC-Rec": (706, 1002, 1220, 856, 926),
    },
    "Arts": {
        "Caser": (138, 379, 541, 262, 313),
        "HGN": (300, 622, 875, 462, 544),
        "GRU4Rec": (421, 749, 964, 590, 659),
        "BERT4Rec": (337, 559, 713, 451, 500),
        "SASRec": (225, 757, 1016, 508, 592),
        "FMLP-Rec": (310, 757, 1046, 541, 634),
        "FDSA": (451, 734, 933, 595, 660),
        "S3-Rec": (245, 767, 1051, 521, 612),
        "P5-CID": (485, 724, 902, 607, 664),
        "TIGER": (465, 788, 1012, 631, 703),
        "LC-Rec": (634, 1011, 1266, 828, 906),
    },
    "Games": {
        "Caser": (85, 367, 617, 227, 307),
        "HGN": (154, 517, 856, 333, 442),
        "GRU4Rec": (176, 586, 964, 381, 502),
        "BERT4Rec": (136, 482, 763, 311, 401),
        "SASRec": (145, 581, 940, 365, 481),
        "FMLP-Rec": (152, 571, 930, 361, 476),
        "FDSA": (161, 644, 1041, 404, 531),
        "S3-Rec": (119, 606, 1002, 364, 491),
        "P5-CID": (177, 506, 803, 342, 437),
        "TIGER": (188, 599, 939, 392, 501),
        "LC-Rec": (317, 800, 1174, 560, 681),
    },
}
# What the methods of `lcrec.baselines` are called there.
METHODS = {
    "caser": "Caser",
    "hgn": "HGN",
    "gru4rec": "GRU4Rec",
    "bert4rec": "BERT4Rec",
    "sasrec": "SASRec",
    "fmlp": "FMLP-Rec",
    "fdsa": "FDSA",
    "s3rec": "S3-Rec",
    "p5cid": "P5-CID",
    "tiger": "TIGER",
    "lc-rec": "LC-Rec",
}
LABEL, CELL = 32, 13  # widths of a table, in characters


@dataclass(frozen=True)
class PaperConfig:
    """Settings of `scripts/paper_table.py`."""

    table: Literal["data", "results", "baselines"] = option(
        "data: Table II (counts); results: Table III, LC-Rec's lists; baselines: Table III, the "
        "other methods"
    )
    published: Literal["Instruments", "Arts", "Games"] = option("the paper's data set to compare")
    data: Path | None = option("data: the data folder to count", None)
    predictions: list[str] | None = option(
        "results: predictions files, named by their file names", None
    )
    index: Path | None = option(
        "results: an index.json whose items may share a path, to score by index as well", None
    )
    comparison: Path | None = option("baselines: the comparison.json to show", None)
    output: Path | None = option("results: where to write the numbers, *.json", None)


def main(argv: list[str]) -> None:
    """Print the table that is asked for."""
    config = parse_config(
        PaperConfig, argv, description=__doc__ or "", prog="scripts/paper_table.py"
    )
    if config.table == "data":
        if config.data is None:
            raise InputError("--table data counts a data folder; name it with --data DIR")
        interactions = load_interactions(config.data, len(load_items(config.data)))
        name = find_data(config.data).name
        print(f"Table II ({SOURCE}): {config.published}, and {name} in {config.data}\n")
        print(format_counts(COUNTS[config.published], count(interactions)))
        return
    if config.table == "baselines":
        if config.comparison is None:
            raise InputError("--table baselines reads a comparison; name it with --comparison FILE")
        record = read_comparison(config.comparison)
        print(f"Table III ({SOURCE}): {config.published}, and ours on {record['users']:,} users\n")
        print(format_baselines(RESULTS[config.published], record["methods"]))
        return
    if config.predictions is None:
        raise InputError("--table results reads predictions; name files with --predictions")
    if config.output is not None and config.output.suffix != ".json":
        raise InputError(f"--output {config.output}: the numbers go to a file named *.json")
    files: dict[str, Path] = {}
    for path in map(Path, config.predictions):
        if path.stem in files:
            raise InputError(
                f"{files[path.stem]} and {path} would both be called {path.stem!r}; rename one"
            )
        files[path.stem] = path
    owners = None if config.index is None else index_owners(config.index)
    read = {label: read_predictions(path) for label, path in files.items()}
    require_comparable({str(files[label]): lists for label, lists in read.items()})
    published = RESULTS[config.published]
    runs = {}
    for label, lists in read.items():
        runs[f"{label}, by item"] = summarise(lists, published["LC-Rec"])
        if owners is not None:
            assert config.index is not None
            merged = by_index(lists, owners, files[label], config.index)
            runs[f"{label}, by index"] = summarise(merged, published["LC-Rec"])
    users = len(next(iter(read.values())))
    print(f"Table III ({SOURCE}): {config.published}, and ours on {users:,} users\n")
    print(format_results(published, runs))
    if owners is not None:
        shared = np.bincount(owners)[owners] > 1
        print(f"\n{config.index}: {int(shared.sum()):,} of {len(owners):,} items share an index.")
    if config.output is not None:
        inputs = [*files.values(), *([config.index] if config.index else [])]
        result = {
            "published": config.published,
            "users": users,
            "inputs": {str(path): fingerprint(path) for path in inputs},
            "runs": runs,
        }
        write_json(config.output, result, indent=2)
        print(f"\nWrote {config.output}.")


def count(interactions: Interactions) -> tuple[int, int, int]:
    """Return the numbers of users, of items that occur, and of interactions."""
    return len(interactions), len(np.unique(interactions.items)), len(interactions.items)


def format_counts(published: tuple[int, int, int], ours: tuple[int, int, int]) -> str:
    """Return Table II: the counts, the sparsity and the mean length that follow, differences."""
    titles = ("users", "items", "interactions", "sparsity", "length")
    lines = [_line("", titles)]
    for label, (users, items, interactions) in (("published", published), ("here", ours)):
        cells = [f"{users:,}", f"{items:,}", f"{interactions:,}"]
        cells.append(f"{1 - interactions / (users * items):.2%}")
        lines.append(_line(label, [*cells, f"{interactions / users:.2f}"]))
    differences = [f"{here - there:+,}" for there, here in zip(published, ours, strict=True)]
    return "\n".join([*lines, _line("difference", differences)])


def read_comparison(path: Path) -> dict[str, Any]:
    """Return a comparison by leave-one-out.

    Raises:
        InputError: it is none, or goes by another protocol.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not {"protocol", "methods", "users"} <= record.keys():
        raise InputError(f"{path}: not a comparison.json of python -m lcrec.baselines compare")
    if record["protocol"] != "leave-one-out":
        raise InputError(
            f"{path}: made with the split {record['protocol']!r}; the paper's is leave-one-out"
        )
    return record


def format_baselines(
    published: Mapping[str, tuple[int, ...]], methods: Mapping[str, dict[str, Any]]
) -> str:
    """Return Table III with ours below each published line, a method in all its forms.

    In brackets the epochs of each run; + where it was cut short. What was not published comes last.
    """
    lines = [_line("", METRICS), "-" * (LABEL + CELL * len(METRICS))]
    left = dict(methods)

    def show(label: str, run: dict[str, Any]) -> list[float]:
        means = [run["overall"][metric]["mean"] for metric in METRICS]
        lines.append(_line(label + _trained(run), [f"{mean:.4f}" for mean in means]))
        return means

    for method, values in published.items():
        lines.append(_line(f"{method} (published)", [f"{v / 10_000:.4f}" for v in values]))
        for name in [name for name in left if METHODS.get(name.split()[0], name) == method]:
            means = show(" ".join(["  here", *name.split()[1:]]), left.pop(name))
            differences = (10_000 * mean / v - 1 for mean, v in zip(means, values, strict=True))
            lines.append(_line("  difference", [f"{value:+.1%}" for value in differences]))
    for name, run in left.items():
        show(f"{name} (here)", run)
    return "\n".join(lines)


def _trained(run: dict[str, Any]) -> str:
    """Return how many epochs each of a method's runs had; nothing where nothing is known."""
    known = [training for training in run.get("training") or [] if training]
    epochs = (f"{one['epochs']}{'+' * one['out_of_time']}" for one in known)
    return f" [{', '.join(epochs)}]" if known else ""


def index_owners(path: Path) -> np.ndarray:
    """Return for every item the lowest id among the items with its index, int64 [items]."""
    _, first, inverse = np.unique(read_codes(path), axis=0, return_index=True, return_inverse=True)
    return first[inverse]


def by_index(predictions: Predictions, owners: np.ndarray, file: Path, index: Path) -> Predictions:
    """Return the lists with every item replaced by the one that stands for its index.

    Args:
        predictions: the lists, by item id.
        owners: int64 [items], of `index_owners`.
        file, index: where the two were read, for the error.

    Returns:
        the same users; of several items with one index the first keeps its place, the others are
        left out and what stands below moves up.

    Raises:
        InputError: the lists or targets hold an item that the index lacks.
    """
    largest = max(int(array.max()) for array in (predictions.targets, *predictions.ranked.values()))
    if largest >= len(owners):
        raise InputError(
            f"--index {index}: has {len(owners)} items, but {file} holds item {largest}; name the "
            "index of the same catalogue"
        )
    ranked = {}
    for template, lists in predictions.ranked.items():
        merged = np.where(lists == PAD, PAD, owners[lists])
        in_order = np.sort(merged, axis=1)
        repeats = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != PAD)
        for row in np.flatnonzero(repeats.any(axis=1)):
            kept = list(dict.fromkeys(merged[row][merged[row] != PAD].tolist()))
            merged[row] = PAD
            merged[row, : len(kept)] = kept
        ranked[template] = merged
    return Predictions(predictions.users, owners[predictions.targets], ranked)


def summarise(predictions: Predictions, published: tuple[int, ...]) -> dict[str, Any]:
    """Return the figures of one file: {"templates", "mean", "min", "max", "difference"}.

    Args:
        predictions: rankings by one template or more.
        published: what the mean is compared with, in ten-thousandths, in the order of `METRICS`.

    Returns:
        each of the four as {metric: value}; "difference" is relative, .1 for a tenth more.
    """
    measured = [
        measure_lists(lists, predictions.targets, 10) for lists in predictions.ranked.values()
    ]
    per_template = {
        metric: [float(values[metric].mean()) for values in measured] for metric in METRICS
    }
    means = {metric: float(np.mean(values)) for metric, values in per_template.items()}
    return {
        "templates": len(predictions.ranked),
        "mean": means,
        "min": {metric: min(values) for metric, values in per_template.items()},
        "max": {metric: max(values) for metric, values in per_template.items()},
        "difference": {
            metric: means[metric] / (value / 10_000) - 1
            for metric, value in zip(METRICS, published, strict=True)
        },
    }


def format_results(
    published: Mapping[str, tuple[int, ...]], runs: dict[str, dict[str, Any]]
) -> str:
    """Return Table III: a line per published method, then four lines per run."""
    lines = [_line("", METRICS), "-" * (LABEL + CELL * len(METRICS))]
    for method, values in published.items():
        lines.append(_line(f"{method} (published)", [f"{v / 10_000:.4f}" for v in values]))
    for label, run in runs.items():
        rows = {
            f"{label}, mean of {run['templates']}": "mean",
            "  lowest template": "min",
            "  highest template": "max",
        }
        lines.append(lines[1])
        for name, key in rows.items():
            lines.append(_line(name, [f"{run[key][metric]:.4f}" for metric in METRICS]))
        differences = [f"{run['difference'][metric]:+.1%}" for metric in METRICS]
        lines.append(_line("  mean against LC-Rec", differences))
    return "\n".join(lines)


def _line(label: str, cells: Iterable[str]) -> str:
    return f"{label:<{LABEL}}" + "".join(f"{cell:>{CELL}}" for cell in cells)


if __name__ == "__main__":
    run_stage(main)
