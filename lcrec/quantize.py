"""Stage: embeddings -> the item index.

Reads `embeddings.npy`; gives every item its own path of codes, by an RQ-VAE trained on the
embeddings or by another `--kind`, and writes `index.json` {item: ["<a_12>", ...]}, `report.json`
(how well the codes explain the embeddings, how they are used, how many items collided before each
got its own path) and, where codes stand for something, `rqvae.safetensors`.

Public names: `QuantizeConfig`, `describe_index`.
"""

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.state import PartialState
from torch import Tensor

from lcrec.artifacts import (
    EMBEDDINGS,
    INDEX,
    REPORT,
    RQVAE_WEIGHTS,
    atomic_path,
    find_data,
    is_current,
    read_array,
    require_same_input,
    write_json,
    write_provenance,
)
from lcrec.assignment import shared_rows
from lcrec.config import config_dict, option, parse_config
from lcrec.data import load_items
from lcrec.errors import InputError, run_stage
from lcrec.index import LEVEL_LETTERS, ItemIndex
from lcrec.indexers import INDEXERS, TRAINED, WITHOUT_MODEL, Indexing, require_paths
from lcrec.rqvae_training import explained_variance, train_rqvae

STAGE = "python -m lcrec.quantize"
UNFINISHED = ".training.safetensors"
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class QuantizeConfig:
    """Settings of `python -m lcrec.quantize`."""

    data: Path = option("the data folder, to check that the embeddings belong to its catalogue")
    embeddings: Path = option("the folder that holds embeddings.npy")
    output: Path = option("the folder to write the index to")
    kind: Literal["rq-vae", "rq-kmeans", "balanced-kmeans", "tiger", "random", "vanilla"] = option(
        "how to index: rq-vae (LC-Rec's), rq-kmeans and balanced-kmeans (no training), tiger (no "
        "uniform mapping, one more token tells apart), random paths, vanilla (a token per item)",
        "rq-vae",
    )
    levels: int = option("how many tokens spell an item", 4, minimum=1)
    codes: int = option("how many codes each level has", 256, minimum=2)
    parity: bool = option(
        "train as the published code does, to compare: its widths, k-means of the first batch, "
        "nothing standardised, dead codes left, last state kept",
        False,
    )
    latent_dim: int | None = option(
        "width of the latent that is quantised (default: the embeddings'; with --parity 32)",
        None,
        minimum=1,
    )
    hidden_dims: list[int] | None = option(
        "widths of the encoder between input and latent (default: 512 256; with --parity 2048 "
        "1024 512 256 128 64)",
        None,
        minimum=1,
    )
    commitment_weight: float = option("weight of the commitment loss (beta)", 0.25, minimum=0)
    sinkhorn_epsilon: list[float] = option(
        "uniform semantic mapping, smaller is stricter and 0 turns it off: one number for the last "
        "level, or one per level",
        [0.003],
        minimum=0,
    )
    epochs: int | None = option(
        "passes over the catalogue at most (default: 60; with --parity 5000)", None, minimum=0
    )
    patience: int = option(
        "stop after this many checks (every 5 epochs) without a gain", 8, minimum=1
    )
    batch_size: int = option("items per step, all processes together", 1024, minimum=2)
    learning_rate: float = option("AdamW's step size", 1e-3, minimum=0)
    weight_decay: float = option("AdamW's weight decay", 1e-4, minimum=0)
    bf16: bool = option("encode and decode in bfloat16 while training", False)
    seed: int = option("decides initialisation and order", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage; under torchrun or accelerate the processes share the training."""
    config = parse_config(QuantizeConfig, argv, description=__doc__ or "", prog=STAGE)
    # Without `cpu`, Accelerate starts every process as if it were alone where there is no GPU. The
    # others wait while one does k-means on the whole catalogue, or the assignment.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    item_path = find_data(config.data).item
    num_items = len(load_items(config.data))
    rebuild = f"python -m lcrec.embed --data {config.data} --output {config.embeddings}"
    require_same_input(config.embeddings, "item", item_path, rebuild)
    path = config.embeddings / EMBEDDINGS
    if not path.exists():
        raise InputError(f"--embeddings: there is no {path}; make it with: {rebuild}")
    if config.output.resolve() == config.embeddings.resolve():
        raise InputError(
            f"--output {config.output} is the embeddings' folder; the index needs one of its own"
        )
    require_paths(config.kind, num_items, config.levels, config.codes)
    if config.levels > len(LEVEL_LETTERS):
        raise InputError(f"--levels {config.levels}: at most {len(LEVEL_LETTERS)} can be named")
    epsilons = level_epsilons(config.kind, config.sinkhorn_epsilon, config.levels)
    inputs = {"item": item_path, "embeddings": path}
    embeddings = check_embeddings(read_array(path), num_items, path)
    names = [INDEX, REPORT] + [RQVAE_WEIGHTS] * (config.kind not in WITHOUT_MODEL)
    made = all((config.output / name).exists() for name in names)
    current = made and is_current(config.output, STAGE, config_dict(config), inputs)
    state.wait_for_everyone()  # all have looked before one writes
    if current:
        state.print(f"{config.output} is up to date.")
        return

    state.print(
        f"Indexing {num_items:,} items by {config.kind}: {config.levels} levels of {config.codes} "
        f"codes from {embeddings.shape[1]}-wide embeddings on {state.num_processes} process(es)"
    )
    model = None
    if config.kind in TRAINED:
        model = train_rqvae(
            torch.from_numpy(embeddings),
            num_levels=config.levels,
            num_codes=config.codes,
            latent_dim=config.latent_dim,
            hidden_dims=config.hidden_dims,
            commitment_weight=config.commitment_weight,
            sinkhorn_epsilons=epsilons,
            epochs=config.epochs,
            patience=config.patience,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
            parity=config.parity,
            bf16=config.bf16,
            resume_from=config.output / UNFINISHED,
        )
    if state.is_main_process:
        indexing = INDEXERS[config.kind](
            torch.from_numpy(embeddings), config.levels, config.codes, config.seed, model
        )
        report = describe_index(indexing, torch.from_numpy(embeddings))
        write_index(config.output, indexing, report, config_dict(config), inputs)
        print_report(report)
        print(
            f"Wrote {config.output}. Next: accelerate launch recipes/finetune.py --data "
            f"{config.data} --index {config.output} --base MODEL --output DIR"
        )
    state.wait_for_everyone()


def level_epsilons(kind: str, given: list[float], levels: int) -> list[float]:
    """Return Sinkhorn's epsilon per level; without uniform mapping (`tiger`) it is zero.

    Raises:
        InputError: neither one number nor one per level.
    """
    if kind == "tiger":
        return [0.0] * levels
    if len(given) == levels:
        return given
    if len(given) == 1:
        return [0.0] * (levels - 1) + given
    raise InputError(
        f"--sinkhorn-epsilon: {len(given)} numbers for --levels {levels}; give one for the last "
        "level, or one per level"
    )


def write_index(
    folder: Path,
    indexing: Indexing,
    report: dict[str, Any],
    config: dict[str, Any],
    inputs: dict[str, Path],
) -> None:
    """Write a whole index folder; `index.json`, which the next stage reads, goes first and last."""
    index = ItemIndex(indexing.codes, indexing.level_sizes)
    (folder / INDEX).unlink(missing_ok=True)
    (folder / RQVAE_WEIGHTS).unlink(missing_ok=True)  # another kind's
    if indexing.model:
        with atomic_path(folder / RQVAE_WEIGHTS) as temporary:
            indexing.model.save(temporary)
    write_json(folder / REPORT, report, indent=2)
    write_provenance(folder, STAGE, config, inputs, level_sizes=indexing.level_sizes)
    index.save(folder)
    (folder / UNFINISHED).unlink(missing_ok=True)


def check_embeddings(embeddings: np.ndarray, num_items: int, path: Path) -> np.ndarray:
    """Return the embeddings as float32 [items, dim], refusing what cannot be indexed.

    Raises:
        InputError: wrong shape, a row count that is not the catalogue's, or a value not finite.
    """
    is_table = embeddings.ndim == 2 and embeddings.shape[1] > 0
    if not is_table or not np.issubdtype(embeddings.dtype, np.floating):
        raise InputError(
            f"{path}: expected floats of shape [items, dim], found {embeddings.dtype} "
            f"{list(embeddings.shape)}"
        )
    if len(embeddings) != num_items:
        raise InputError(
            f"{path} has {len(embeddings)} rows but the catalogue has {num_items} items; rebuild "
            "it with python -m lcrec.embed"
        )
    with np.errstate(over="ignore"):
        embeddings = embeddings.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} rows hold values that are not finite (first: item {bad[0]}); "
            "rebuild it with python -m lcrec.embed"
        )
    return embeddings


def describe_index(indexing: Indexing, embeddings: Tensor) -> dict[str, Any]:
    """Return the facts by which an index is judged, as JSON values.

    Those on what the codes stand for are there only where there is a model.
    """
    codes, sizes = indexing.codes, indexing.level_sizes
    items = len(codes)
    usage = [np.bincount(codes[:, level], minlength=size) for level, size in enumerate(sizes)]
    shares = [counts[counts > 0] / items for counts in usage]
    report: dict[str, Any] = {
        "items": items,
        "codes_used": [len(share) for share in shares],
        "perplexity": [math.exp(-(share * np.log(share)).sum()) for share in shares],
        "distinct_prefixes": [
            len(np.unique(codes[:, : level + 1], axis=0)) for level in range(len(sizes))
        ],
    }
    if indexing.model and indexing.nearest is not None:
        model, nearest = indexing.model, indexing.nearest
        assigned = codes[:, : model.num_levels]
        report |= {
            "explained_variance": explained_variance(
                model, embeddings, torch.from_numpy(nearest).long()
            ),
            "explained_variance_assigned": explained_variance(
                model, embeddings, torch.from_numpy(assigned).long()
            )[-1],
            "conflict_rate_before_assignment": float(shared_rows(nearest).mean()),
            "items_moved": int((assigned != nearest).any(axis=1).sum()),
        }
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print the facts of `describe_index` as a small table."""
    print("level  codes used  perplexity  distinct prefixes  explained variance")
    variances = [f"{share:.3f}" for share in report.get("explained_variance", [])]
    columns = ("codes_used", "perplexity", "distinct_prefixes")
    for level, (used, perplexity, prefixes) in enumerate(
        zip(*map(report.get, columns), strict=True)
    ):
        variance = variances[level] if level < len(variances) else "-"
        print(f"{level + 1:5}  {used:10}  {perplexity:10.1f}  {prefixes:17,}  {variance:>18}")
    if variances:
        print(
            f"{report['conflict_rate_before_assignment']:.1%} of items shared their nearest path; "
            f"{report['items_moved']:,} were moved so that each has its own (explained variance "
            f"then {report['explained_variance_assigned']:.3f})"
        )


if __name__ == "__main__":
    run_stage(main)
