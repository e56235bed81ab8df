"""Command: find out which methods find items that nobody has bought yet.

Reads a data folder, and embeddings for the methods that need them; takes a share of the items away
(`lcrec.baselines.cold_split`) and fits every method on the rest. Prints a table and writes a JSON
file {"data", "counts", "chance": Recall@10 of a random order of the cold items, "methods": {as
given: {"cold", "all", "warm": {metric: {"mean", "low", "high"}}, "fit_seconds"}}}: the purchases of
cold items ranked among the cold items alone and among all, and the warm test items among the warm.

Methods that know an item by its purchases alone score a cold one by what it started from, or not
at all; their figures show what that is worth.

Public names: `ColdConfig`, `measure_cold`, `main`.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lcrec.baselines.base import Baseline
from lcrec.baselines.cold_split import ColdSplit, draw_cold, renumber
from lcrec.baselines.inputs import input_files, load_inputs
from lcrec.baselines.ranking import ranked_matrix
from lcrec.baselines.settings import default_device, parse_entries
from lcrec.core.artifacts import write_json
from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.errors import InputError
from lcrec.core.provenance import is_current, provenance_path, write_provenance
from lcrec.rankings.metrics import PAD, ndcg_at_k, recall_at_k, summarise

PROG = "python -m lcrec.baselines cold"
TOP = 10
METRICS = {f"Recall@{TOP}": recall_at_k, f"NDCG@{TOP}": ndcg_at_k}
VIEWS = {"cold": "cold among cold", "all": "cold among all", "warm": "warm"}


@dataclass(frozen=True)
class ColdConfig:
    """Settings of `python -m lcrec.baselines cold`."""

    data: Path = option("the data folder")
    methods: list[str] = option(
        'methods to compare, each with its own flags in quotes if any: "collabcontext --symmetric"'
    )
    output: Path = option("the file for the figures, *.json")
    embeddings: Path | None = option(
        "the folder that holds embeddings.npy, for the methods that need it", None
    )
    share: float = option("of the items that are taken away, between 0 and 1", 0.05)
    core: int = option("the fewest purchases of a user, and of an item, in the rest", 3, minimum=3)
    exclude_history: bool = option("never list what the user already has, but for a target", True)
    device: str | None = option("cpu, cuda or cuda:N; none: a GPU where there is one", None)
    seed: int = option("of the items drawn, and of whatever the methods draw", 0, minimum=0)


@dataclass(frozen=True)
class _Among:
    """A method's scores, with all items ruled out that are no candidates."""

    method: Baseline
    candidates: np.ndarray
    as_cold: bool

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        score = self.method.score_cold if self.as_cold else self.method.score
        scores = score(users, histories)
        among = np.full_like(scores, -np.inf)
        among[:, self.candidates] = scores[:, self.candidates]
        return among


def measure_cold(
    method: Baseline, drawn: ColdSplit, num_items: int, *, exclude_history: bool, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Return {"cold", "all" and "warm": {metric: mean and interval over users}}.

    Args:
        method: fitted on `drawn.warm.train`.
        drawn: the split.
        num_items: the size of the catalogue.
        exclude_history: leave out the items of each user's history that are no target.
        seed: of the bootstrap over users.
    """
    everything = np.union1d(drawn.warm_items, drawn.cold_items)
    views = {
        "cold": (drawn.cold, _Among(method, drawn.cold_items, as_cold=True)),
        "all": (drawn.cold, _Among(method, everything, as_cold=True)),
        "warm": (drawn.warm.test, _Among(method, drawn.warm_items, as_cold=False)),
    }
    figures = {}
    for view, (cases, scorer) in views.items():
        ranked = ranked_matrix(
            scorer,
            cases,
            drawn.warm.train,
            num_items,
            top=TOP,
            exclude_history=exclude_history,
        )
        figures[view] = {
            name: summarise(metric(ranked, cases.targets, TOP), seed)
            for name, metric in METRICS.items()
        }
    return figures


def main(argv: list[str]) -> None:
    """Run the command."""
    description = (__doc__ or "").split("\n\nPublic names")[0]
    config = parse_config(ColdConfig, argv, description=description, prog=PROG)
    if config.output.suffix != ".json" or config.output.is_dir():
        raise InputError(f"--output {config.output}: the figures go to a file named *.json")
    chosen = _parse_methods(config.methods)
    needs = {need for kind, own in chosen.values() for need in kind.needs_with(own)}
    files = input_files(config.data, config.embeddings, needs)
    settings = {name: value for name, value in config_dict(config).items() if name != "device"}
    if config.output.exists() and is_current(config.output, PROG, settings, files):
        print(f"{config.output} is up to date.")
        return

    inputs = load_inputs(config.data, config.embeddings, needs, "--methods")
    training, interactions = renumber(inputs.training, inputs.interactions, config.seed)
    drawn = draw_cold(interactions, share=config.share, core=config.core, seed=config.seed)
    counts = {
        "users": len(drawn.warm.train),
        "warm_items": len(drawn.warm_items),
        "cold_items": len(drawn.cold_items),
        "cold_users": len(drawn.cold),
        "cold_purchases": int((drawn.cold.targets != PAD).sum()),
    }
    print(
        f"{inputs.name}: {counts['cold_items']:,} items are cold; {counts['users']:,} users and "
        f"{counts['warm_items']:,} items are left. Fit {len(chosen)} methods and ask for the "
        f"{counts['cold_purchases']:,} cold purchases of {counts['cold_users']:,} users.",
        flush=True,
    )
    training = dataclasses.replace(
        training,
        train=drawn.warm.train,
        valid=drawn.warm.valid,
        exclude_history=config.exclude_history,
    )
    figures: dict[str, dict[str, Any]] = {}
    for label, (kind, own) in tqdm(chosen.items(), desc="cold", unit=" methods", leave=False):
        device = config.device or default_device()
        method = kind(own, seed=config.seed, device=device)
        started = time.perf_counter()
        method.fit(training)
        seconds = round(time.perf_counter() - started, 1)
        measured = measure_cold(
            method,
            drawn,
            training.num_items,
            exclude_history=config.exclude_history,
            seed=config.seed,
        )
        figures[label] = {**measured, "fit_seconds": seconds}
    chance = min(1.0, TOP / counts["cold_items"])
    print(_table(figures))
    print(f"\nA random order of the cold items has Recall@{TOP} {chance:.4f} among them.")
    provenance_path(config.output).unlink(missing_ok=True)
    result = {"data": inputs.name, "counts": counts, "chance": chance, "methods": figures}
    write_json(config.output, result, indent=2)
    write_provenance(config.output, PROG, settings, files)
    print(
        f"Wrote {config.output}.\nNext: with other items drawn: {PROG} --data {config.data} "
        f"--seed {config.seed + 1} ..."
    )


def _parse_methods(entries: list[str]) -> dict[str, tuple[type[Baseline], Any]]:
    """Return {entry: its class with the settings that its flags make}."""
    parsed = parse_entries(entries)
    for entry in parsed:
        if "index" in entry.kind.needs:
            raise InputError(
                f"--methods: {entry.name} needs an index, which cold items have no part in"
            )
    return {entry.label: (entry.kind, entry.settings) for entry in parsed}


def _table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a line per method: its metrics in each view, and the seconds to fit it."""
    width = max(8, *map(len, figures))
    head = " " * width + "".join(f"  {title:>19}" for title in VIEWS.values())
    names = "".join(f"{name:>{11 if at else 10}}" for _ in VIEWS for at, name in enumerate(METRICS))
    lines = [head, f"{'':<{width}}{names}{'seconds':>9}"]
    for label, views in figures.items():
        cells = [views[view][name]["mean"] for view in VIEWS for name in METRICS]
        lines.append(
            f"{label:<{width}}"
            + "".join(f"{cell:>{11 if at % 2 else 10}.4f}" for at, cell in enumerate(cells))
            + f"{views['fit_seconds']:>9,.0f}"
        )
    return "\n".join(lines)
