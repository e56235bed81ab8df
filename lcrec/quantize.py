"""Stage: embeddings -> the item index.

Reads `embeddings.npy`; gives every item its own path of codes, by an RQ-VAE trained on the
embeddings or by another `--kind`, and writes `index.json` {item: ["<a_12>", ...]}, `report.json`
(how well the codes explain the embeddings, how they are used, how many items collided before each
got its own path), `report.html` (the same for a person, with a verdict) and, where codes stand for
something, `rqvae.safetensors`.

With `--collaborative` the codes say what customers buy together too, by the vectors of a baseline
that `lcrec baselines METHOD --save DIR` kept.

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

from lcrec.core.artifacts import EMBEDDINGS, METHOD_WEIGHTS, find_data, index_path, read_array
from lcrec.core.config import Writes, config_dict, option, parse_config, refuse_settings
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, beside, claim
from lcrec.core.processes import processes
from lcrec.core.provenance import is_current, require_same_input
from lcrec.data.collaborative import load_collaborative
from lcrec.data.folder import Items, check_embeddings, load_items
from lcrec.data.id_map import load_item_ids
from lcrec.data.new_items import count_old_items, require_same_past
from lcrec.index.item_index import LEVEL_LETTERS, STAGE, IndexSettings, ItemIndex

if TYPE_CHECKING:
    from accelerate.state import PartialState
    from torch import Tensor

    from lcrec.index.rqvae import RQVAE

EXAMPLE = "--data data/shop --embeddings runs/shop/embeddings --output runs/shop/index"
COLLABORATIVE_SETTINGS = ("collaborative_by", "collaborative_weight", "diversity_weight")
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
    collaborative: Path | None = option(
        "a fitted baseline whose item vectors the index learns from too, lightgcn, sasrec or "
        "cooccurrence for example: what lcrec baselines METHOD --save DIR kept",
        None,
    )
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
    config = parse_config(QuantizeConfig, argv, prog=STAGE, example=EXAMPLE)
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
    data = config.data
    assert data is not None
    item_path = find_data(data).item
    items = load_items(data)
    num_items = len(items)
    inputs, embeddings, collaborative = {"item": item_path}, None, None
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
    check_collaborative(config, is_given=config.collaborative is not None)
    if config.collaborative is not None:
        collaborative = load_collaborative(config.collaborative, data, num_items)
        inputs["collaborative"] = config.collaborative / METHOD_WEIGHTS
    current = is_current(config.output, STAGE, _recorded(config), inputs)
    state.wait_for_everyone()  # all have looked before one writes
    if current:
        state.print(f"{config.output} is up to date.")
        return
    main = state.is_main_process
    with claim(config.output, STAGE, overwrite=config.overwrite, active=main):
        _index(config, state, items, embeddings, collaborative, inputs)


def check_collaborative(settings: IndexSettings, *, is_given: bool) -> None:
    """Check that the settings on `--collaborative` fit together, and whether there is any.

    Raises:
        InputError: they are given without it, or the kind of index cannot learn from it.
    """
    if not is_given:
        defaults = IndexSettings()
        for name in COLLABORATIVE_SETTINGS:
            if getattr(settings, name) != getattr(defaults, name):
                raise InputError(f"--{name.replace('_', '-')}: needs --collaborative DIR")
        return
    if not settings.has_model:
        raise InputError(
            f"--collaborative: --kind {settings.kind} knows nothing of the items; take another kind"
        )
    if settings.collaborative_by != "letter" and (
        settings.diversity_weight != IndexSettings.diversity_weight
    ):
        raise InputError(
            f"--diversity-weight {settings.diversity_weight}: is of LETTER's losses; give "
            "--collaborative-by letter, or leave it out"
        )
    if settings.collaborative_by == "letter" and not settings.is_trained:
        raise InputError(
            f"--collaborative-by letter: --kind {settings.kind} trains nothing that could be "
            "aligned; take --kind rq-vae, or --collaborative-by concat"
        )


def _recorded(config: QuantizeConfig) -> dict[str, Any]:
    """Return the settings as the index records them: those without effect are left out."""
    record = config_dict(config)
    if config.collaborative is None:
        for name in COLLABORATIVE_SETTINGS:
            record.pop(name)
    return record


def _index(
    config: QuantizeConfig,
    state: PartialState,
    items: Items,
    embeddings: np.ndarray | None,
    collaborative: np.ndarray | None,
    inputs: dict[str, Path],
) -> None:
    """Make the codes of all items, measure them and write the index."""
    assert config.data is not None
    shape = f"{config.levels} levels of {config.codes} codes"
    if config.kind == "vanilla":
        shape = "one token each"
    source = "" if embeddings is None else f" from {embeddings.shape[1]}-wide embeddings"
    if collaborative is not None:
        how = {"concat": "beside", "letter": "aligned with"}[config.collaborative_by]
        known = int(collaborative.any(axis=1).sum())
        source += f" {how} {collaborative.shape[1]}-wide vectors of purchases ({known:,} items)"
    state.print(
        f"Indexing {len(items):,} items by {config.kind}: {shape}{source} on "
        f"{state.num_processes} process(es)"
    )

    from lcrec.index.methods import index_items
    from lcrec.index.page import print_verdict, write_index
    from lcrec.index.quality import measure_fit, measure_index

    vectors, aligned, appended = None, None, None
    if embeddings is not None:
        vectors, aligned, appended = combine(embeddings, collaborative, config)
    unfinished = beside(config.output, "training.safetensors")
    model = None if vectors is None else train_model(vectors, config, unfinished, aligned)
    if state.is_main_process:
        indexing = index_items(config, len(items), vectors, model)
        fit = None
        if indexing.model and vectors is not None:
            fit = measure_fit(indexing.model, vectors, indexing.codes, indexing.nearest)
        report = measure_index(
            indexing.codes,
            indexing.level_sizes,
            embeddings=embeddings,
            collaborative=collaborative,
            items=items,
            fit=fit,
            seed=config.seed,
        )
        verdict = write_index(
            config.output,
            ItemIndex(indexing.codes, indexing.level_sizes),
            report,
            f"{find_data(config.data).name} by {config.kind}",
            _recorded(config),
            inputs,
            save_weights=indexing.model.save if indexing.model else None,
            appended=appended,
        )
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


def combine(
    embeddings: np.ndarray, collaborative: np.ndarray | None, settings: IndexSettings
) -> tuple[Tensor, Tensor | None, np.ndarray | None]:
    """Return what an index is made from, what it is aligned with, and what was appended.

    Args:
        embeddings: float32 [items, dim].
        collaborative: float32 [items, width], None for none.
        settings: `collaborative_by` and `collaborative_weight` are read.

    Returns:
        float32 [items, dim or dim + width]; the collaborative vectors for `letter`, None otherwise;
        the scaled ones for `concat`, None otherwise.
    """
    import torch

    from lcrec.index.rqvae import scale_beside

    if collaborative is None:
        return torch.from_numpy(embeddings), None, None
    if settings.collaborative_by == "letter":
        return torch.from_numpy(embeddings), torch.from_numpy(collaborative), None
    weight = settings.collaborative_weight
    appended = scale_beside(embeddings, collaborative, 1.0 if weight is None else weight)
    return torch.from_numpy(np.concatenate([embeddings, appended], axis=1)), None, appended


def build_index(
    embeddings: np.ndarray,
    settings: IndexSettings | None = None,
    *,
    collaborative: np.ndarray | None = None,
) -> ItemIndex:
    """Give every item its own path of codes, as `lcrec quantize` does, and write nothing.

    Args:
        embeddings: float32 [items, dim]; row i is item i.
        settings: how; by default LC-Rec's RQ-VAE, with levels and codes that suit the catalogue.
        collaborative: float32 [items, width], what purchases say of the items, such as
            `lcrec.data.collaborative.load_collaborative` reads; a row of zeros for an item without.

    Returns:
        the index, codes int32 [items, levels]; no two items share a path.

    Raises:
        InputError: an embedding is NaN or infinite, the settings allow fewer paths than items, or
            what purchases say is of other items or cannot be learned from.
    """
    from lcrec.index.methods import index_items

    rows = check_embeddings(np.asarray(embeddings), len(embeddings), Path(EMBEDDINGS))
    settings = (settings or IndexSettings()).for_items(len(rows))
    check_settings(settings, len(rows))
    check_collaborative(settings, is_given=collaborative is not None)
    if collaborative is not None and (
        collaborative.shape[0] != len(rows) or not np.isfinite(collaborative).all()
    ):
        raise InputError(
            f"collaborative: expected {len(rows)} rows of finite numbers, one for each item, found "
            f"{list(collaborative.shape)}; give an item without any a row of zeros"
        )
    with one_thread():
        vectors, aligned, _ = combine(rows, collaborative, settings)
        model = train_model(vectors, settings, aligned=aligned)
        indexing = index_items(settings, len(rows), vectors, model)
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
    embeddings: Tensor,
    settings: IndexSettings,
    resume_from: Path | None = None,
    aligned: Tensor | None = None,
) -> RQVAE | None:
    """Train the RQ-VAE of a kind that has one, on all processes together, else return None."""
    if not settings.is_trained:
        return None
    from lcrec.index.rqvae_training import train_rqvae

    return train_rqvae(embeddings, settings, resume_from, aligned)


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
        config.index, old_items, name, items, raw_ids, embeddings, config.output, inputs
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
    done = repair_index(source, config.output, inputs, items=items, embeddings=embeddings)
    print(
        f"Wrote {config.output}. Next: python -m lcrec.finetune --data "
        f"{config.data or 'DATA'} --index {config.output} --base MODEL --output DIR"
        if done
        else f"{config.output} is up to date."
    )


if __name__ == "__main__":
    run_stage(main)
