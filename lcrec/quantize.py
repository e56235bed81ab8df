"""Stage: embeddings -> the item index.

Reads `embeddings.npy`; gives every item its own path of codes, by an RQ-VAE trained on the
embeddings or by another `--kind`, and writes `index.json` {item: ["<a_12>", ...]}, `report.json`
(how well the codes explain the embeddings, how they are used, how many items collided before each
got its own path), `report.html` (the same for a person, with a verdict) and, where codes stand for
something, `rqvae.safetensors`.

Two other uses write such a folder, and train nothing:
  --add NEW.item.json --index OLD   add the new items that --data ends in to the index in OLD
  --repair OLD/index.json           make an index unique in which items share a path
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lcrec.core.artifacts import (
    EMBEDDINGS,
    INDEX,
    REPORT,
    REPORT_PAGE,
    RQVAE_WEIGHTS,
    atomic_path,
    find_data,
    index_path,
    read_array,
)
from lcrec.core.config import Writes, config_dict, option, parse_config, refuse_settings
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, beside, claim
from lcrec.core.processes import processes
from lcrec.core.provenance import is_current, require_same_input, write_provenance
from lcrec.data.folder import Items, check_embeddings, load_items
from lcrec.data.new_items import count_old_items, require_same_past
from lcrec.index.item_index import LEVEL_LETTERS, ItemIndex

if TYPE_CHECKING:
    from accelerate.state import PartialState
    from torch import Tensor

    from lcrec.core.report import Verdict
    from lcrec.index.methods import Indexing
    from lcrec.index.rqvae import RQVAE

STAGE = "python -m lcrec.quantize"
EXAMPLE = "--data data/shop --embeddings runs/shop/embeddings --output runs/shop/index"
# The others wait while one does k-means on the whole catalogue, or the assignment.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How items get their codes."""

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


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(IndexSettings, Writes):
    """Settings of `python -m lcrec.quantize`."""

    data: Path | None = option(
        "the data folder, to check that the embeddings belong to its catalogue (with --repair only "
        "for titles, and not needed)",
        None,
    )
    embeddings: Path | None = option(
        "the folder that holds embeddings.npy (with --repair not needed, but better)", None
    )
    output: Path = option("the folder to write the index to", writes=FOLDER)
    add: Path | None = option("new items to add to the index in --index", None)
    index: Path | None = option("with --add: the folder of the index to extend", None)
    repair: Path | None = option("an index.json to make unique, LC-Rec's for example", None)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let a CPU process compute on one thread, so that a seed gives the same index every time.

    On several, matrix products add up in the order in which threads come, which changes the last
    digits and in the end the codes. More processes (torchrun) or a GPU are the way to more speed.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(argv: list[str]) -> None:
    """Run the stage; under torchrun or accelerate the processes share the training."""
    config = parse_config(
        QuantizeConfig, argv, description=__doc__ or "", prog=STAGE, example=EXAMPLE
    )
    if config.repair is None:  # refused before torch is loaded
        for flag, folder in (("data", config.data), ("embeddings", config.embeddings)):
            if folder is None:
                raise InputError(f"--{flag} is required")
    with one_thread(), processes(PATIENCE) as state:
        _run(config, state)


def _run(config: QuantizeConfig, state: PartialState) -> None:
    if config.repair is not None:
        if state.is_main_process:
            with claim(config.output, STAGE, overwrite=config.overwrite):
                repair(config, config.repair)
        return
    assert config.data is not None
    assert config.embeddings is not None
    item_path = find_data(config.data).item
    items = load_items(config.data)
    num_items = len(items)
    rebuild = f"python -m lcrec.embed --data {config.data} --output {config.embeddings}"
    require_same_input(config.embeddings, "item", item_path, rebuild)
    path = config.embeddings / EMBEDDINGS
    if not path.exists():
        raise InputError(f"--embeddings: there is no {path}; make it with: {rebuild}")
    inputs = {"item": item_path, "embeddings": path}
    embeddings = check_embeddings(read_array(path), num_items, path)
    if config.add is not None or config.index is not None:
        if state.is_main_process:
            with claim(config.output, STAGE, overwrite=config.overwrite):
                extend(config, embeddings, inputs)
        return
    from lcrec.index.methods import WITHOUT_MODEL

    check_settings(config, num_items)
    names = [INDEX, REPORT, REPORT_PAGE] + [RQVAE_WEIGHTS] * (config.kind not in WITHOUT_MODEL)
    made = all((config.output / name).exists() for name in names)
    current = made and is_current(config.output, STAGE, config_dict(config), inputs)
    state.wait_for_everyone()  # all have looked before one writes
    if current:
        state.print(f"{config.output} is up to date.")
        return
    main = state.is_main_process
    with claim(config.output, STAGE, overwrite=config.overwrite, active=main):
        _index(config, state, items, embeddings, inputs)


def _index(
    config: QuantizeConfig,
    state: PartialState,
    items: Items,
    embeddings: np.ndarray,
    inputs: dict[str, Path],
) -> None:
    """Make the codes of all items, measure them and write the index."""
    assert config.data is not None
    state.print(
        f"Indexing {len(items):,} items by {config.kind}: {config.levels} levels of {config.codes} "
        f"codes from {embeddings.shape[1]}-wide embeddings on {state.num_processes} process(es)"
    )
    import torch

    from lcrec.index.page import print_verdict

    vectors = torch.from_numpy(embeddings)
    unfinished = beside(config.output, "training.safetensors")
    model = train_model(vectors, config, unfinished)
    if state.is_main_process:
        indexing = index_items(vectors, config, model)
        report = describe_index(indexing, vectors, items, config.seed)
        name = f"{find_data(config.data).name} by {config.kind}"
        verdict = write_index(config.output, indexing, report, name, config_dict(config), inputs)
        unfinished.unlink(missing_ok=True)
        print_verdict(verdict)
        print(
            f"Wrote {config.output}. Next: python -m lcrec.finetune --data "
            f"{config.data} --index {config.output} --base MODEL --output DIR"
        )


def build_index(embeddings: np.ndarray, settings: IndexSettings | None = None) -> ItemIndex:
    """Give every item its own path of codes, as `lcrec quantize` does, and write nothing.

    Args:
        embeddings: float32 [items, dim]; row i is item i.
        settings: how; by default LC-Rec's RQ-VAE with 4 levels of 256 codes.

    Raises:
        InputError: an embedding is NaN or infinite, or the settings allow fewer paths than items.
    """
    import torch

    settings = settings or IndexSettings()
    rows = check_embeddings(np.asarray(embeddings), len(embeddings), Path(EMBEDDINGS))
    check_settings(settings, len(rows))
    with one_thread():
        vectors = torch.from_numpy(rows)
        indexing = index_items(vectors, settings, train_model(vectors, settings))
    return ItemIndex(indexing.codes, indexing.level_sizes)


def check_settings(settings: IndexSettings, num_items: int) -> None:
    """Check that these settings give every item a path of its own.

    Raises:
        InputError: they do not; the remedy is named.
    """
    from lcrec.index.methods import require_paths

    require_paths(settings.kind, num_items, settings.levels, settings.codes)
    if settings.levels > len(LEVEL_LETTERS):
        raise InputError(f"--levels {settings.levels}: at most {len(LEVEL_LETTERS)} can be named")
    level_epsilons(settings.kind, settings.sinkhorn_epsilon, settings.levels)


def train_model(
    embeddings: Tensor, settings: IndexSettings, resume_from: Path | None = None
) -> RQVAE | None:
    """Train the RQ-VAE of a kind that has one, on all processes together, else return None.

    Args:
        embeddings: float32 [items, dim].
        settings: of the index.
        resume_from: a file to keep the state of training in.
    """
    from lcrec.index.methods import TRAINED
    from lcrec.index.rqvae_training import TrainingSettings, train_rqvae

    if settings.kind not in TRAINED:
        return None
    training = TrainingSettings(
        num_levels=settings.levels,
        num_codes=settings.codes,
        latent_dim=settings.latent_dim,
        hidden_dims=settings.hidden_dims,
        commitment_weight=settings.commitment_weight,
        sinkhorn_epsilons=level_epsilons(settings.kind, settings.sinkhorn_epsilon, settings.levels),
        epochs=settings.epochs,
        patience=settings.patience,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        parity=settings.parity,
        bf16=settings.bf16,
    )
    return train_rqvae(embeddings, training, resume_from)


def index_items(embeddings: Tensor, settings: IndexSettings, model: RQVAE | None) -> Indexing:
    """Give every item its path, from embeddings [items, dim] and what `train_model` returned."""
    from lcrec.index.methods import INDEXERS

    index = INDEXERS[settings.kind]
    return index(embeddings, settings.levels, settings.codes, settings.seed, model)


def extend(config: QuantizeConfig, embeddings: np.ndarray, inputs: dict[str, Path]) -> None:
    """Add new items to an index (`--add`)."""
    data, folder = config.data, config.embeddings
    if config.add is None or config.index is None or data is None or folder is None:
        raise InputError("--add NEW.item.json and --index OLD go together")
    from lcrec.index.revise import extend_index, require_same_space

    heeded = {"data", "embeddings", "output", "overwrite", "add", "index"}
    refuse_settings(config, heeded, "--add trains nothing: leave it out")
    items = load_items(data)
    old_items = count_old_items(items, data, config.add)
    require_same_past(data, index_path(config.index).parent)
    require_same_space(folder, config.index)
    inputs = {**inputs, "added": config.add}
    name = find_data(data).name
    done = extend_index(
        config.index, old_items, name, items, embeddings, config.output, inputs, STAGE
    )
    print(
        f"Wrote {config.output}. Next: python -m lcrec.generate --model MODEL --index "
        f"{config.output} --data {data} --output DIR/predictions.jsonl"
        if done
        else f"{config.output} is up to date."
    )


def repair(config: QuantizeConfig, source: Path) -> None:
    """Make an index unique (`--repair`)."""
    from lcrec.index.revise import repair_index

    heeded = {"data", "embeddings", "output", "overwrite", "repair"}
    refuse_settings(config, heeded, "--repair trains nothing: leave it out")
    inputs, items, embeddings = {}, None, None
    if config.data is not None:
        items, inputs["item"] = load_items(config.data), find_data(config.data).item
    if config.embeddings is not None:
        path = inputs["embeddings"] = config.embeddings / EMBEDDINGS
        if items is not None:
            rebuild = f"python -m lcrec.embed --data {config.data} --output {config.embeddings}"
            require_same_input(config.embeddings, "item", inputs["item"], rebuild)
        rows = read_array(path)
        embeddings = check_embeddings(rows, len(rows) if items is None else len(items), path)
    done = repair_index(source, config.output, STAGE, inputs, items=items, embeddings=embeddings)
    print(
        f"Wrote {config.output}. Next: python -m lcrec.finetune --data "
        f"{config.data or 'DATA'} --index {config.output} --base MODEL --output DIR"
        if done
        else f"{config.output} is up to date."
    )


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
    name: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
) -> Verdict:
    """Write a whole index folder, the report titled by `name`, and return its verdict."""
    from lcrec.index.page import write_index_report

    index = ItemIndex(indexing.codes, indexing.level_sizes)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if indexing.model:
            indexing.model.save(temporary / RQVAE_WEIGHTS)
        verdict = write_index_report(temporary, report, name)
        index.save(temporary)
        write_provenance(temporary, STAGE, config, inputs, level_sizes=indexing.level_sizes)
    return verdict


def describe_index(
    indexing: Indexing, embeddings: Tensor, items: Items | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the facts by which an index is judged, as JSON values (`lcrec.index.quality`).

    Those on what the codes stand for are there only where there is a model.
    """
    from lcrec.index.quality import measure_fit, measure_index

    fit = None
    if indexing.model:
        fit = measure_fit(indexing.model, embeddings, indexing.codes, indexing.nearest)
    return measure_index(
        indexing.codes,
        indexing.level_sizes,
        embeddings=embeddings.numpy(),
        items=items,
        fit=fit,
        seed=seed,
    )


if __name__ == "__main__":
    run_stage(main)
