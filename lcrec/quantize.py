"""Stage: embeddings -> the item index.

Reads `embeddings.npy`; trains an `RQVAE` on it, gives every item its own path of codes, and writes
`index.json` {item: ["<a_12>", ...]}, `rqvae.safetensors` and `report.json` (how well the codes
explain the embeddings, how they are used, how many items collided before each got its own path).

Public names: `QuantizeConfig`, `train_rqvae`, `describe_index`.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

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
from lcrec.assignment import Assignment, assign_unique, require_capacity
from lcrec.config import config_dict, option, parse_config
from lcrec.data import load_items
from lcrec.errors import InputError, run_stage
from lcrec.index import LEVEL_LETTERS, ItemIndex
from lcrec.rqvae import RQVAE

STAGE = "python -m lcrec.quantize"


@dataclass(frozen=True)
class QuantizeConfig:
    """Settings of `python -m lcrec.quantize`."""

    data: Path = option("the data folder, to check that the embeddings belong to its catalogue")
    embeddings: Path = option("the folder that holds embeddings.npy")
    output: Path = option("the folder to write the index to")
    levels: int = option("how many tokens spell an item", 4, minimum=1)
    codes: int = option("how many codes each level has", 256, minimum=2)
    latent_dim: int = option("width of the latent that is quantised (paper: 32)", 128, minimum=1)
    hidden_dims: list[int] = option(
        "widths of the encoder between input and latent", [512, 256], minimum=1
    )
    commitment_weight: float = option("weight of the commitment loss (beta)", 0.25, minimum=0)
    sinkhorn_epsilon: float = option(
        "uniform semantic mapping at the last level: smaller is stricter, 0 turns it off",
        0.003,
        minimum=0,
    )
    epochs: int = option("passes over the catalogue at most", 60, minimum=0)
    patience: int = option(
        "stop after this many checks (every 5 epochs) without a gain", 8, minimum=1
    )
    batch_size: int = option("items per step", 1024, minimum=2)
    learning_rate: float = option("AdamW's step size", 1e-3, minimum=0)
    weight_decay: float = option("AdamW's weight decay", 1e-4, minimum=0)
    seed: int = option("decides initialisation and order", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(QuantizeConfig, argv, description=__doc__ or "", prog=STAGE)
    item_path = find_data(config.data).item
    items = load_items(config.data)
    rebuild = f"python -m lcrec.embed --data {config.data} --output {config.embeddings}"
    require_same_input(config.embeddings, "item", item_path, rebuild)
    path = config.embeddings / EMBEDDINGS
    if not path.exists():
        raise InputError(f"--embeddings: there is no {path}; make it with: {rebuild}")
    if config.output.resolve() == config.embeddings.resolve():
        raise InputError(
            f"--output {config.output} is the embeddings' folder; the index needs one of its own"
        )
    require_capacity(len(items), config.levels, config.codes)
    if config.levels > len(LEVEL_LETTERS):
        raise InputError(f"--levels {config.levels}: at most {len(LEVEL_LETTERS)} can be named")
    inputs = {"item": item_path, "embeddings": path}
    embeddings = check_embeddings(read_array(path), len(items), path)
    made = all((config.output / name).exists() for name in (INDEX, RQVAE_WEIGHTS, REPORT))
    if made and is_current(config.output, STAGE, config_dict(config), inputs):
        print(f"{config.output} is up to date.")
        return

    print(
        f"Indexing {len(items):,} items: {config.levels} levels of {config.codes} codes from "
        f"{embeddings.shape[1]}-wide embeddings"
    )
    model = train_rqvae(
        torch.from_numpy(embeddings),
        num_levels=config.levels,
        num_codes=config.codes,
        latent_dim=min(config.latent_dim, embeddings.shape[1]),
        hidden_dims=config.hidden_dims,
        commitment_weight=config.commitment_weight,
        sinkhorn_epsilon=config.sinkhorn_epsilon,
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(embeddings))
        assignment = assign_unique(latents.numpy(), model.codebooks().numpy())
    level_sizes = (config.codes,) * config.levels
    index = ItemIndex(assignment.codes, level_sizes)
    report = describe_index(model, torch.from_numpy(embeddings), assignment)

    (config.output / INDEX).unlink(missing_ok=True)
    with atomic_path(config.output / RQVAE_WEIGHTS) as temporary:
        save_file(model.state_dict(), temporary)
    write_json(config.output / REPORT, report, indent=2)
    write_provenance(config.output, STAGE, config_dict(config), inputs, level_sizes=level_sizes)
    index.save(config.output)
    print_report(report)
    print(
        f"Wrote {config.output}. Next: accelerate launch recipes/finetune.py --data {config.data} "
        f"--index {config.output} --base MODEL --output DIR"
    )


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


def train_rqvae(
    embeddings: Tensor,
    *,
    num_levels: int,
    num_codes: int,
    latent_dim: int,
    hidden_dims: list[int],
    commitment_weight: float,
    sinkhorn_epsilon: float,
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> RQVAE:
    """Train on all items and return the model that explained most variance.

    Args:
        embeddings: float32 [items, dim].
        num_levels, num_codes, latent_dim, hidden_dims: the model's shape.
        commitment_weight, sinkhorn_epsilon: the model's losses and last level.
        epochs: passes over the items at most; explained variance is checked every five.
        patience: checks without a gain of 0.001 before training stops.
        batch_size, learning_rate, weight_decay: AdamW's.
        seed: decides the result on a given machine.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RQVAE(
        embeddings.shape[1],
        hidden_dims=hidden_dims,
        latent_dim=latent_dim,
        num_levels=num_levels,
        num_codes=num_codes,
        commitment_weight=commitment_weight,
        sinkhorn_epsilon=sinkhorn_epsilon,
    )
    model.initialise(embeddings, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best, best_variance = copy.deepcopy(model.state_dict()), explained_variance(model, embeddings)
    stale = 0
    bar = tqdm(range(1, epochs + 1), desc="RQ-VAE", unit="epoch", disable=epochs == 0)
    for epoch in bar:
        model.train()
        for batch in torch.randperm(len(embeddings), generator=generator).split(batch_size):
            losses = model.losses(embeddings[batch])
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
        if epoch % 5 and epoch != epochs:
            continue
        model.eval()
        variance = explained_variance(model, embeddings)
        bar.set_postfix(loss=f"{losses.total.item():.3f}", explained=f"{variance[-1]:.3f}")
        stale = 0 if variance[-1] > best_variance[-1] + 1e-3 else stale + 1
        if variance[-1] > best_variance[-1]:
            best, best_variance = copy.deepcopy(model.state_dict()), variance
        if stale == patience:
            bar.close()
            break
        with torch.no_grad():
            model.revive_dead_codes(model.encode(embeddings), generator)
    model.load_state_dict(best)
    return model.eval()


@torch.no_grad()
def explained_variance(
    model: RQVAE, embeddings: Tensor, codes: Tensor | None = None
) -> list[float]:
    """Return the share of the embeddings' variance explained after each level.

    Args:
        model: the autoencoder.
        embeddings: float32 [items, dim].
        codes: int64 [items, levels]; the nearest ones by default.
    """
    latents = model.encode(embeddings)
    codes = model.nearest_codes(latents) if codes is None else codes
    total = (embeddings - embeddings.mean(0)).pow(2).sum().clamp_min(1e-12)
    quantized, shares = torch.zeros_like(latents), []
    for level, codebook in enumerate(model.codebooks()):
        quantized = quantized + codebook[codes[:, level]]
        error = (model.decode(quantized) - embeddings).pow(2).sum()
        shares.append(1 - (error / total).item())
    return shares


def describe_index(model: RQVAE, embeddings: Tensor, assignment: Assignment) -> dict[str, Any]:
    """Return the facts by which an index is judged, as JSON values."""
    codes = assignment.codes
    items, levels = codes.shape
    usage = [np.bincount(codes[:, level], minlength=model.num_codes) for level in range(levels)]
    shares = [counts[counts > 0] / items for counts in usage]
    prefixes = [len(np.unique(codes[:, : level + 1], axis=0)) for level in range(levels)]
    return {
        "items": items,
        "explained_variance": explained_variance(model, embeddings),
        "explained_variance_assigned": explained_variance(
            model, embeddings, torch.from_numpy(codes).long()
        )[-1],
        "conflict_rate_before_assignment": assignment.conflict_rate,
        "items_moved": len(assignment.moved),
        "codes_used": [len(share) for share in shares],
        "perplexity": [math.exp(-(share * np.log(share)).sum()) for share in shares],
        "distinct_prefixes": prefixes,
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the facts of `describe_index` as a small table."""
    print("level  explained variance  codes used  perplexity  distinct prefixes")
    columns = ("explained_variance", "codes_used", "perplexity", "distinct_prefixes")
    for level, (variance, used, perplexity, prefixes) in enumerate(
        zip(*(report[column] for column in columns), strict=True)
    ):
        print(f"{level + 1:5}  {variance:18.3f}  {used:10}  {perplexity:10.1f}  {prefixes:17,}")
    print(
        f"{report['conflict_rate_before_assignment']:.1%} of items shared their nearest path; "
        f"{report['items_moved']:,} were moved so that each has its own (explained variance then "
        f"{report['explained_variance_assigned']:.3f})"
    )


if __name__ == "__main__":
    run_stage(main)
