"""Stage: embeddings -> the item index.

Reads `embeddings.npy`; gives every item its own path of codes, by an RQ-VAE trained on the
embeddings or by another `--kind`, and writes `index.json` {item: ["<a_12>", ...]}, `report.json`
(how well the codes explain the embeddings, how they are used, how many items collided before each
got its own path), `report.html` (the same for a person, with a verdict) and, where codes stand for
something, `rqvae.safetensors`.

Two other uses write such a folder, and train nothing:
  --index OLD               add the new items of --data, which continues OLD's catalogue, to OLD
  --repair OLD/index.json   make an index unique in which items share a path
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from lcrec.data.id_map import load_item_ids
from lcrec.data.new_items import count_old_items, require_same_past
from lcrec.index.item_index import LEVEL_LETTERS, IndexSettings, ItemIndex

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
    add: Path | None = option(
        "with --index: the new items that --data ends in, where no record tells them", None
    )
    index: Path | None = option(
        "the folder of the index of a catalogue that --data continues: add its new items", None
    )
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
        if config.data is None:
            raise InputError("--data is required")
        needs = config.has_model or config.add is not None or config.index is not None
        if config.embeddings is None and needs:
            raise InputError("--embeddings is required: only --kind vanilla and random do without")
    with one_thread(), processes(PATIENCE) as state:
        _run(config, state)


def _run(config: QuantizeConfig, state: PartialState) -> None:
    if config.repair is not None:
        if state.is_main_process:
            with claim(config.output, STAGE, overwrite=config.overwrite):
                repair(config, config.repair)
        return
    assert config.data is not None
    item_path = find_data(config.data).item
    items = load_items(config.data)
    num_items = len(items)
    inputs, embeddings = {"item": item_path}, None
    if config.embeddings is not None:
        rebuild = f"python -m lcrec.embed --data {config.data} --output {config.embeddings}"
        require_same_input(config.embeddings, "item", item_path, rebuild)
        path = inputs["embeddings"] = config.embeddings / EMBEDDINGS
        if not path.exists():
            raise InputError(f"--embeddings: there is no {path}; make it with: {rebuild}")
        embeddings = check_embeddings(read_array(path), num_items, path)
    if config.add is not None or config.index is not None:
        assert embeddings is not None
        if state.is_main_process:
            with claim(config.output, STAGE, overwrite=config.overwrite):
                extend(config, embeddings, inputs)
        return
    config = config.for_items(num_items)
    check_settings(config, num_items)
    names = [INDEX, REPORT, REPORT_PAGE] + [RQVAE_WEIGHTS] * config.has_model
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
    embeddings: np.ndarray | None,
    inputs: dict[str, Path],
) -> None:
    """Make the codes of all items, measure them and write the index."""
    assert config.data is not None
    shape = f"{config.levels} levels of {config.codes} codes"
    if config.kind == "vanilla":
        shape = "one token each"
    source = "" if embeddings is None else f" from {embeddings.shape[1]}-wide embeddings"
    state.print(
        f"Indexing {len(items):,} items by {config.kind}: {shape}{source} on "
        f"{state.num_processes} process(es)"
    )
    import torch

    from lcrec.index.methods import index_items
    from lcrec.index.page import print_verdict

    vectors = None if embeddings is None else torch.from_numpy(embeddings)
    unfinished = beside(config.output, "training.safetensors")
    model = None if vectors is None else train_model(vectors, config, unfinished)
    if state.is_main_process:
        indexing = index_items(config, len(items), vectors, model)
        report = describe_index(indexing, vectors, items, config.seed)
        name = f"{find_data(config.data).name} by {config.kind}"
        verdict = write_index(config.output, indexing, report, name, config_dict(config), inputs)
        unfinished.unlink(missing_ok=True)
        print_verdict(verdict)
        suited = replace(config, levels=None, codes=None).for_items(len(items)).shape
        if verdict.grade == "warning" and suited != config.shape:
            print(
                f"{suited[0]} levels of {suited[1]} codes suit {len(items):,} items: run it again "
                "without --levels and --codes"
            )
        print(
            f"Wrote {config.output}. Next: python -m lcrec.finetune --data "
            f"{config.data} --index {config.output} --base MODEL --output DIR"
        )


def build_index(embeddings: np.ndarray, settings: IndexSettings | None = None) -> ItemIndex:
    """Give every item its own path of codes, as `lcrec quantize` does, and write nothing.

    Args:
        embeddings: float32 [items, dim]; row i is item i.
        settings: how; by default LC-Rec's RQ-VAE, with levels and codes that suit the catalogue.

    Raises:
        InputError: an embedding is NaN or infinite, or the settings allow fewer paths than items.
    """
    import torch

    from lcrec.index.methods import index_items

    rows = check_embeddings(np.asarray(embeddings), len(embeddings), Path(EMBEDDINGS))
    settings = (settings or IndexSettings()).for_items(len(rows))
    check_settings(settings, len(rows))
    with one_thread():
        vectors = torch.from_numpy(rows)
        indexing = index_items(settings, len(rows), vectors, train_model(vectors, settings))
    return ItemIndex(indexing.codes, indexing.level_sizes)


def check_settings(settings: IndexSettings, num_items: int) -> None:
    """Check that these settings give every item a path of its own.

    Raises:
        InputError: they do not; the remedy is named.
    """
    from lcrec.index.methods import require_paths

    require_paths(settings, num_items)
    levels, _ = settings.shape
    if levels > len(LEVEL_LETTERS):
        raise InputError(f"--levels {levels}: at most {len(LEVEL_LETTERS)} can be named")
    settings.level_epsilons()


def train_model(
    embeddings: Tensor, settings: IndexSettings, resume_from: Path | None = None
) -> RQVAE | None:
    """Train the RQ-VAE of a kind that has one, on all processes together, else return None."""
    from lcrec.index.rqvae_training import train_rqvae

    return train_rqvae(embeddings, settings, resume_from) if settings.is_trained else None


def extend(config: QuantizeConfig, embeddings: np.ndarray, inputs: dict[str, Path]) -> None:
    """Add new items to an index (`--index`)."""
    data, folder = config.data, config.embeddings
    if config.index is None or data is None or folder is None:
        raise InputError("--add NEW.item.json goes with --index OLD, which it extends")
    from lcrec.index.revise import extend_index, require_same_space

    heeded = {"data", "embeddings", "output", "overwrite", "add", "index"}
    refuse_settings(config, heeded, "adding items trains nothing: leave it out")
    items = load_items(data)
    old_items = None if config.add is None else count_old_items(items, data, config.add)
    require_same_past(data, index_path(config.index).parent, config.add)
    require_same_space(folder, config.index)
    if config.add is not None:
        inputs = {**inputs, "added": config.add}
    name = find_data(data).name
    raw_ids = load_item_ids(data, len(items))
    done = extend_index(
        config.index, old_items, name, items, raw_ids, embeddings, config.output, inputs, STAGE
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
    indexing: Indexing, embeddings: Tensor | None, items: Items | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the facts by which an index is judged, as JSON values (`lcrec.index.quality`).

    Those on what the codes stand for are there only where there is a model.
    """
    from lcrec.index.quality import measure_fit, measure_index

    fit = None
    if indexing.model and embeddings is not None:
        fit = measure_fit(indexing.model, embeddings, indexing.codes, indexing.nearest)
    return measure_index(
        indexing.codes,
        indexing.level_sizes,
        embeddings=None if embeddings is None else embeddings.numpy(),
        items=items,
        fit=fit,
        seed=seed,
    )


if __name__ == "__main__":
    run_stage(main)
