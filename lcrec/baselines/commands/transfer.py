"""Train AlphaRec's mapping on some data sets and rank another, without training on it.

Reads data folders and their embeddings, all of one encoder; writes `predictions.jsonl` of the
target. Of the target, only the train sequences are used, for the users' mean vectors and the graph
(Sheng et al. 2025, zero-shot recommendation).
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lcrec.baselines.base import make_method
from lcrec.baselines.runs.inputs import DEVICE_HELP, input_files, load_inputs
from lcrec.baselines.runs.ranking import rank_cases
from lcrec.baselines.settings import AlphaRecSettings
from lcrec.core.config import Writes, config_dict, option, parse_config, settings_of
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import is_current, read_provenance, write_provenance
from lcrec.data.splits import EvalCases
from lcrec.rankings.predictions import write_predictions

COMMAND = "python -m lcrec.baselines transfer"
EXAMPLE = (
    "--sources data/shop --source-embeddings runs/shop/embeddings --target data/other "
    "--target-embeddings runs/other/embeddings --output runs/other/transferred.jsonl"
)


@dataclass(frozen=True, kw_only=True)
class TransferConfig(AlphaRecSettings, Writes):
    """Settings of `python -m lcrec.baselines transfer`, with those of AlphaRec."""

    sources: list[Path] = option("the data folders to train on")
    source_embeddings: list[Path] = option(
        "the folders that hold their embeddings.npy, in the same order"
    )
    target: Path = option("the data folder to rank, which is not trained on")
    target_embeddings: Path = option("the folder that holds its embeddings.npy")
    output: Path = option("the predictions file to write, *.jsonl", writes=".jsonl")
    split: Literal["valid", "test"] = option("which held-out item to predict", "test")
    top: int = option("how many items to rank per user", 100, minimum=100)
    exclude_history: bool = option("mask history items, except targets", False)
    device: str | None = option(DEVICE_HELP, None)
    seed: int = option("of weights and draws", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(TransferConfig, argv, prog=COMMAND, example=EXAMPLE)
    if len(config.sources) != len(config.source_embeddings):
        raise InputError(
            f"--source-embeddings: {len(config.source_embeddings)} folders for "
            f"{len(config.sources)} --sources; give one for each, in the same order"
        )
    if config.target.resolve() in [folder.resolve() for folder in config.sources]:
        raise InputError(
            f"--target {config.target} is one of --sources; ranking what was trained on is no "
            "transfer: leave it out of one of them"
        )
    folders = [config.target, *config.sources]
    tables = [config.target_embeddings, *config.source_embeddings]
    require_one_encoder(tables)
    files = input_files(config.target, config.target_embeddings, AlphaRecSettings.needs)
    for number, (folder, table) in enumerate(zip(folders, tables, strict=True)):
        if number:
            found = input_files(folder, table, AlphaRecSettings.needs)
            files |= {f"source {number} {role}": path for role, path in found.items()}
    settings = config_dict(config, without=["device"])
    after = f"Next: python -m lcrec.evaluate --predictions {config.output}"
    if is_current(config.output, COMMAND, settings, files):
        print(f"{config.output} is up to date.\n{after}")
        return

    target, *sources = (
        load_inputs(folder, table, AlphaRecSettings.needs, "transfer")
        for folder, table in zip(folders, tables, strict=True)
    )
    cases: EvalCases = getattr(target.split, config.split)
    num_items = target.training.num_items
    print(
        f"AlphaRec trained on {', '.join(source.name for source in sources)}, then, with no step "
        f"more, all {num_items:,} items of {target.name} ranked for the {config.split} split's "
        f"{len(cases):,} users.",
        flush=True,
    )
    data, *trained = (
        replace(found.training, exclude_history=config.exclude_history)
        for found in (target, *sources)
    )
    chosen = settings_of(AlphaRecSettings, config)
    method: Any = make_method(chosen, config.seed, config.device)
    method.require_one_width([*trained, data])
    started = time.perf_counter()
    method.fit_domains(trained)
    seconds = time.perf_counter() - started
    method.transfer(data)
    rows = cases.predictions(rank_cases(method, cases, data, top=config.top))
    with publish(config.output, COMMAND, ".jsonl", overwrite=config.overwrite) as file:
        write_predictions(file, progress(rows, "rank", "users", total=len(cases)))
        cost = {"fit_seconds": round(seconds, 1)}
        write_provenance(file, COMMAND, settings, files, cost=cost)
    print(f"Trained in {seconds:,.0f} s. Wrote {config.output}.\n{after}")


def require_one_encoder(folders: list[Path]) -> None:
    """Refuse embeddings that lie in different spaces, as far as their folders say.

    Args:
        folders: what `lcrec.embed` wrote; one without provenance is taken as it is.

    Raises:
        InputError: two were made by different encoders, or one by LSA, whose space is the
            catalogue's own.
    """
    first: tuple[Path, str] | None = None
    for folder in folders:
        record = read_provenance(folder) if folder.is_dir() else None
        name = record["config"].get("encoder") if record else None
        if record is None or name is None:
            continue
        if name == "lsa":
            raise InputError(
                f"{folder}: made by lsa, which learns a space of its own from every catalogue; "
                "nothing learnt in one is true in another: embed all items with one --encoder"
            )
        weights = record["inputs"].get("encoder", {}).get("sha256", name)
        if first is None:
            first = folder, weights
        elif weights != first[1]:
            raise InputError(
                f"{folder} was made by another encoder than {first[0]}; one mapping serves one "
                "encoder: embed all items with the same"
            )
