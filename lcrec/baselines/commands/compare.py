"""Train methods, measure all rankings alike, and compare them in a table and a page.

Reads a data folder, and embeddings and an index for the methods that need them; beside the methods
that it trains, predictions files made elsewhere join the table, with the same items masked. Writes
into --output a folder per method and seed (see `lcrec.baselines.runs.many`), `comparison.json` with
all figures, `comparison.md` and the self-contained page `comparison.html`. A killed comparison goes
on where it stopped.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.baselines.base import METHODS, positions
from lcrec.baselines.runs.flags import MethodEntry, parse_entries
from lcrec.baselines.runs.inputs import (
    DEVICE_HELP,
    EMBEDDINGS_HELP,
    INDEX_HELP,
    Inputs,
    load_inputs,
)
from lcrec.baselines.runs.many import carry_out, plan_runs, taken
from lcrec.baselines.runs.ranking import excluded
from lcrec.baselines.runs.run import PROG, most
from lcrec.core.artifacts import atomic_files, find_data, write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import SHARED_FOLDER
from lcrec.core.provenance import require_same_input, write_provenance
from lcrec.data.splits import require_same_split
from lcrec.rankings.comparison import (
    PAIR_CUT,
    Comparison,
    Conditions,
    Entry,
    compare_entries,
    read_entry,
)
from lcrec.rankings.metrics import PAD
from lcrec.rankings.predictions import Predictions

STAGE = f"{PROG} compare"
EXAMPLE = "--data data/shop --methods popularity itemknn --output runs/shop/compared"
ALL = "all"


@dataclass(frozen=True)
class CompareConfig(Writes):
    """Settings of `python -m lcrec.baselines compare`."""

    data: Path = option("the data folder")
    output: Path = option("the folder for the runs and the comparison", writes=SHARED_FOLDER)
    methods: list[str] = option(
        'methods, each with its own flags in quotes if any: "sasrec --tuned"; or all, of which '
        "those are left out that lack something",
        [ALL],
    )
    seeds: int = option("train each method with seeds 0 to N - 1", 3, minimum=1)
    embeddings: Path | None = option(EMBEDDINGS_HELP, None)
    index: Path | None = option(INDEX_HELP, None)
    predictions: list[str] | None = option(
        "NAME=FILE.jsonl: rankings made elsewhere that join the table; the same name again for the "
        "file of another seed",
        None,
    )
    exclude_history: bool = option("mask history items, except targets", False)
    tuned: bool = option("start from the methods' best known settings", False)
    max_minutes: float | None = option(
        "stop each training after so long and keep what was best by then; none: no bound",
        None,
        minimum=0,
    )
    jobs: int = option(
        "how many trainings to run at a time, each on its share of the cores", 1, minimum=1
    )
    reference: str | None = option("the method to test all others against; none: the best", None)
    device: str | None = option(DEVICE_HELP, None)


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(CompareConfig, argv, prog=STAGE, example=EXAMPLE)
    methods, left_out = _choose(config)
    files = _files_from_elsewhere(config.predictions or [])
    names = [*(entry.label for entry in methods), *files]
    if config.reference is not None and config.reference not in names:
        raise InputError(
            f"--reference {config.reference}: not compared; the names are {', '.join(names)}"
        )
    inputs = load_inputs(config.data, None, set(), "compare")
    test = inputs.split.test
    numbers = None if test.numbers is None else test.numbers.tolist()
    truth = Predictions(test.users, test.targets.astype(np.int64), {}, {}, numbers)
    where = f"--data {config.data}"
    hidden = excluded(test, slice(None), config.exclude_history)
    entries = _read_from_elsewhere(files, truth, config.data, inputs.files["inter"], hidden)
    shared = _shared_flags(config)
    runs = plan_runs(methods, config.seeds, config.output, shared, tuned=config.tuned)
    print(
        f"Comparing {', '.join(names)} on {inputs.name}: {len(runs)} runs, judged on the test "
        f"items of {truth.num_users:,} users among all {inputs.training.num_items:,} items.",
        flush=True,
    )
    for method, reason in left_out.items():
        print(f"Left out: {method}: {reason}", flush=True)
    repeats = test.repeats
    if not config.exclude_history and inputs.split.kind != "sets":
        print(
            f"{repeats:.1%} of the targets are items that their users have already. Methods that "
            "keep a vector per user put those first: --exclude-history leaves them out of all "
            "lists, but for a target.",
            flush=True,
        )

    # First: what is in the folder when this run is killed is known as this command's own.
    write_provenance(config.output, STAGE, config_dict(config), inputs.files)
    done, failed = carry_out(runs, config.jobs)
    left_out |= failed
    if config.reference in failed:
        raise InputError(f"--reference {config.reference}: {failed[config.reference]}")
    for label in progress(dict.fromkeys(run.label for run in done), "judge", "methods"):
        own = [run for run in done if run.label == label]
        facts = [found for run in own if (found := run.facts())]
        entries[label] = dataclasses.replace(
            read_entry({str(run.seed): run.predictions for run in own}, truth, where),
            seconds=float(np.mean([taken(found) for found in facts])),
            peak_mb=most(found["peak_mb"] for found in facts),
            training=[found.get("training") for found in facts],
        )
    if not entries:
        reasons = "; ".join(f"{method}: {reason}" for method, reason in left_out.items())
        raise InputError(f"--methods {' '.join(config.methods)}: none could be run ({reasons})")
    train = inputs.training.train
    lengths = np.diff(train.offsets)
    figures = compare_entries(
        entries,
        truth,
        Conditions(
            data=inputs.name,
            protocol=inputs.split.kind,
            exclude_history=config.exclude_history,
            repeats=repeats,
            tuned=config.tuned,
            items=inputs.training.num_items,
        ),
        popularity=np.bincount(train.items, minlength=inputs.training.num_items),
        activity=lengths[positions(train, truth.users)],
        reference=config.reference,
        left_out=left_out,
    )
    _write(config, figures, inputs, {f"{run.label} {run.seed}": run.predictions for run in done})


def _choose(config: CompareConfig) -> tuple[list[MethodEntry], dict[str, str]]:
    """Return the methods to train, and {label: reason} of those that cannot be."""
    every = config.methods == [ALL]
    if ALL in config.methods and not every:
        raise InputError(f"--methods {' '.join(config.methods)}: all, or names")
    named = parse_entries(list(METHODS) if every else config.methods)
    paths = find_data(config.data)
    lacking = {
        "embeddings": config.embeddings is None
        and f"needs --embeddings DIR (python -m lcrec.embed --data {config.data} --output DIR)",
        "index": config.index is None
        and f"needs --index DIR (python -m lcrec.quantize --data {config.data} ... --output DIR)",
        "texts": not paths.item.exists() and f"needs item texts, and there is no {paths.item}",
    }
    chosen, left_out = [], {}
    for entry in named:
        needs = entry.settings.required_inputs
        reason = next((why for need, why in lacking.items() if need in needs and why), None)
        if reason is None:
            chosen.append(entry)
        elif every:
            left_out[entry.label] = str(reason)
        else:
            raise InputError(f"--methods {entry.label}: {reason}")
    return chosen, left_out


def _files_from_elsewhere(given: list[str]) -> dict[str, dict[str, Path]]:
    """Return {name: {file: path}} of what joins the table."""
    files: dict[str, dict[str, Path]] = {}
    for word in given:
        name, sign, path = word.partition("=")
        if not (name.strip() and sign and path):
            raise InputError(f"--predictions {word}: expected NAME=FILE.jsonl")
        if name.split()[0] in METHODS:
            raise InputError(f"--predictions {word}: {name} is a method here; choose another name")
        runs = files.setdefault(name, {})
        if path in runs:
            raise InputError(f"--predictions {word}: given twice")
        runs[path] = Path(path)
    return files


def _read_from_elsewhere(
    files: Mapping[str, dict[str, Path]],
    truth: Predictions,
    data: Path,
    inter: Path,
    hidden: Sequence[np.ndarray] | None,
) -> dict[str, Entry]:
    """Return what was made elsewhere, before anything is trained: it may be of another split."""
    entries = {}
    for name, paths in files.items():
        for path in paths.values():
            again = "the command that its lcrec.json names"
            require_same_input(path, "inter", inter, again)
            require_same_split(path, data, again)
        entries[name] = entry = read_entry(paths, truth, f"--data {data}", hidden=hidden)
        wanted = min(PAIR_CUT, entry.length)
        tables = itertools.chain.from_iterable(entry.lists)
        short = max(int(((ranked != PAD).sum(axis=1) < wanted).sum()) for ranked in tables)
        if hidden is not None and short:
            print(
                f"{name}: without the masked items {short:,} of {len(truth):,} rankings have fewer "
                f"than {wanted} items, which lowers its figures; give longer ones",
                flush=True,
            )
    return entries


def _shared_flags(config: CompareConfig) -> list[str]:
    """Return the flags of every run."""
    flags = ["--data", str(config.data)]
    for name in ("embeddings", "index", "device"):
        value = getattr(config, name)
        flags += [f"--{name}", str(value)] if value is not None else []
    if config.max_minutes is not None:
        flags += ["--max-minutes", str(config.max_minutes)]
    return [*flags, "--exclude-history"] if config.exclude_history else flags


def _write(
    config: CompareConfig, figures: Comparison, inputs: Inputs, files: Mapping[str, Path]
) -> None:
    # Late: drawing costs a second that an error should not wait for.
    from lcrec.rankings.comparison_page import comparison_markdown, comparison_page

    table = comparison_markdown(figures)
    result = config.output / "comparison.json"
    given = {
        f"{word.partition('=')[0]} {place}": Path(word.partition("=")[2])
        for place, word in enumerate(config.predictions or [])
    }
    with atomic_files(result) as file:
        for suffix, text in ((".md", table), (".html", comparison_page(figures))):
            file.with_suffix(suffix).write_text(text, encoding="utf-8")
        write_json(file, figures.to_json(), indent=2)
        write_provenance(file, STAGE, config_dict(config), inputs.files | dict(files) | given)
    print(f"\n{table}\nWrote {result}, comparison.md and the page {config.output}/comparison.html.")
