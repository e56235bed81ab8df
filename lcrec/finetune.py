"""Stage: base model + index + tasks + prompts -> a model that recommends.

    lcrec finetune --config recipes/lora_7b.yaml --data DATA --index INDEX --base BASE --output OUT

Reads the data folder, the item index, the prompt templates and a base model; adds the item tokens
to the vocabulary, draws the instruction rows of each epoch, trains (LoRA and the new rows, or
everything) and writes a self-contained checkpoint. Validation ranks the whole catalogue for
held-out users; the best checkpoint by NDCG@10 is kept. A killed run resumes from its last complete
checkpoint when the same command is given again.

Everything but the base model is checked at once. On several CUDA devices the command then launches
itself on all of them; `accelerate launch recipes/finetune.py` takes Accelerate's own settings, such
as those for FSDP.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcrec.core.artifacts import TRAINING_PAGE, atomic_path, read_json, write_json
from lcrec.core.config import Writes, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import SHARED_FOLDER, check_output, claim
from lcrec.core.provenance import fingerprint, is_current
from lcrec.modeling.recipe import (
    STAGE,
    TrainingInputs,
    TrainingSettings,
    check_settings,
    load_inputs,
    recipe_of,
)
from lcrec.modeling.run_folder import (
    BUFFER,
    WORK,
    check_run,
    claim_output,
    explain_disk_full,
    latest_checkpoint,
)

if TYPE_CHECKING:  # each takes seconds to import, and an option may be wrong
    from accelerate.state import PartialState

    from lcrec.data.splits import EvalCases
    from lcrec.modeling.cost import Activations
    from lcrec.modeling.finetuning import TrainingModel, TrainingRows
    from lcrec.modeling.trainer import RecommenderTrainer

# What launchers tell a process of its place among the others, and Accelerate any process.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LAUNCHED = (*RANKS, "ACCELERATE_DYNAMO_BACKEND")

COMMAND = "python -m lcrec.finetune"  # which launches itself; checkpoints record `STAGE`
EXAMPLE = (
    "--config recipes/quickstart.yaml --data data/shop --index runs/shop/index "
    "--base runs/shop/base --output runs/shop/model"
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingSettings, Writes):
    """Settings of `python -m lcrec.finetune` and `recipes/finetune.py`."""

    output: Path = option("the folder to write the checkpoint to", writes=SHARED_FOLDER)
    overwrite: bool = option(
        "throw away what lies in the output folder, another run or not of this stage", False
    )


@dataclass(frozen=True)
class FinetuneRun:
    """A run that is checked but for its base model.

    Attributes:
        config: its settings.
        inputs: what it reads.
        recipe: the settings that decide the result.
        current: whether the output folder holds this very result.
    """

    config: FinetuneConfig
    inputs: TrainingInputs
    recipe: dict[str, Any]
    current: bool

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The inputs' fingerprints by role."""
        return {role: fingerprint(path) for role, path in self.inputs.files.items()}

    def identity(self, processes: int) -> dict[str, Any]:
        """Return all that decides the result, to tell this run from another one."""
        return self.recipe | {"inputs": self.hashes, "processes": processes}


def main(argv: list[str]) -> None:
    """Run the stage, on every CUDA device where no launcher has started this process."""
    config = parse_config(FinetuneConfig, argv, prog=COMMAND, example=EXAMPLE)
    job = prepare(config)
    devices = 1 if job.current or is_launched(os.environ) else count_devices()
    if devices == 1:
        _finetune(job)
        return
    check_run(config.output, job.identity(devices), overwrite=config.overwrite)
    print(f"Launching on {devices} devices", flush=True)
    status = subprocess.run(launch_command(argv, devices), check=False).returncode
    if status:
        sys.exit(status)


def run(config: FinetuneConfig) -> Path:
    """Fine-tune a model in this process and return the checkpoint's folder.

    Where a launcher started several processes, each of them must call this.

    Args:
        config: the settings; only `data`, `index`, `base` and `output` have no default.

    Raises:
        InputError: a setting or a file cannot be used.
    """
    return _finetune(prepare(config))


def prepare(config: FinetuneConfig) -> FinetuneRun:
    """Check all that can be checked without the base model, importing no torch.

    Raises:
        InputError: a setting or a file cannot be used.
    """
    check_settings(config)
    inputs = load_inputs(config)
    read = inputs.files.values()  # the base among them
    check_output(config.output, STAGE, SHARED_FOLDER, overwrite=config.overwrite, inputs=read)
    recipe = recipe_of(config, inputs.prompts)
    current = is_current(config.output, STAGE, recipe, inputs.files)
    return FinetuneRun(config, inputs, recipe, current)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Tell whether Accelerate, torchrun or MPI started this process."""
    return any(name in environment for name in LAUNCHED)


def count_devices() -> int:
    """Return how many devices can share the work: the visible CUDA devices, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


def launch_command(argv: Sequence[str], devices: int, module: str = "lcrec.finetune") -> list[str]:
    """Return the command that starts a stage once per device, through Accelerate."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    shape = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(devices)]
    # Port 0: any free one. Precision is the trainer's business, see --precision.
    rest = ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *shape, *rest, "-m", module, *argv]


def _finetune(job: FinetuneRun) -> Path:
    from lcrec.core.processes import processes

    config = job.config
    with processes() as state:
        state.wait_for_everyone()  # all have looked at the output before one writes
        if job.current:
            state.print(f"{config.output} is up to date.")
            if state.is_main_process:
                # Left where a run was killed at its very end.
                shutil.rmtree(config.output / WORK, ignore_errors=True)
            return config.output
        main = state.is_main_process
        with claim(config.output, STAGE, SHARED_FOLDER, overwrite=config.overwrite, active=main):
            _train(job, state)
    return config.output


def _train(job: FinetuneRun, state: PartialState) -> None:
    """Train, and write the checkpoint; all processes call this."""
    import torch
    from transformers import set_seed

    from lcrec.generate.many_users import catalogue_ranker
    from lcrec.modeling.cost import measure_activations
    from lcrec.modeling.finetuning import (
        compare_memory,
        count_trainable,
        cpu_buffer_tokens,
        describe_run,
        draw_training_rows,
        explain_out_of_memory,
        load_model,
        load_model_shape,
        make_trainer,
        starts_from_texts,
        try_model,
    )

    config, inputs = job.config, job.inputs
    work = config.output / WORK
    identity = job.identity(state.num_processes) if state.is_main_process else {}
    if state.is_main_process:
        check_run(config.output, identity, overwrite=config.overwrite)

    set_seed(config.seed)
    trained = load_model(config, inputs)
    texts = inputs.user_texts
    if texts is not None and {"itemsearch", "preferenceobtain"} & inputs.mixture.keys():
        state.print(f"{inputs.files['user'].name}: {texts.describe()}")
    if config.rows == "codebook" and starts_from_texts(config, inputs):
        state.print("--rows codebook: this index has none, so rows start from the items' titles")
    rows = draw_training_rows(config, inputs, trained, state.num_processes)

    rank = catalogue_ranker(
        trained.tokenizer, inputs.index, inputs.prompts, config.max_history, inputs.nearby
    )
    try_model(config, trained, rows, rank)

    # The output folder is claimed only now that nothing is wrong with the rest.
    if state.is_main_process:
        claim_output(config.output, identity, overwrite=config.overwrite)
    state.wait_for_everyone()

    @functools.cache
    def activations() -> Activations:
        return measure_activations(load_model_shape(config, inputs).model, config.precision)

    capacity = None
    if trained.packs:
        with state.main_process_first():  # which alone decides, once for all of a run's starts
            capacity = _buffer_tokens(config, trained, rows, activations())
    elif rows.shared is not None:
        capacity = cpu_buffer_tokens(config, rows)
    state.print(describe_run(config, trained, rows, state.num_processes, capacity))
    simple = {}
    if state.is_main_process:
        simple = rank_simply(inputs, rows.held_out)
        figures = "; ".join(
            f"{name} HR@10 {h:.4f}, NDCG@10 {n:.4f}" for name, (h, n) in simple.items()
        )
        print(f"To beat on {len(rows.held_out):,} held-out users: {figures}")
    trainable = count_trainable(trained.model)
    trainer = make_trainer(
        config,
        trained,
        rows,
        rank,
        num_items=len(inputs.items),
        work=work,
        processes=state.num_processes,
        capacity=capacity,
    )
    with state.main_process_first():  # which clears away what a killed run left unfinished
        resume_from = latest_checkpoint(work)
    if resume_from is not None:
        state.print(f"Going on from {resume_from}.")
    try:
        trainer.train(resume_from_checkpoint=resume_from)
    except torch.OutOfMemoryError:
        raise InputError(
            explain_out_of_memory(config, trained, rows, activations(), trainer)
        ) from None
    if torch.cuda.is_available():
        state.print(compare_memory(config, trained, rows, activations(), capacity))
    state.wait_for_everyone()  # all have read the best weights before they are cleared away
    weights = trainer.whole_state()  # all take part
    if state.is_main_process:
        _save(job, trained, trainer, weights, trainable, simple)
        shutil.rmtree(work)
        print(describe_end(trainer, simple, rows))
        print(
            f"Wrote {config.output} (NDCG@10 {trainer.state.best_metric:.4f} on "
            f"{len(rows.held_out):,} held-out users). Next: python -m lcrec.generate "
            f"--model {config.output} --data {config.data} --output DIR/predictions.jsonl"
        )
        print(f"The curves: {config.output / TRAINING_PAGE}, to open in a browser.")


# By method the shares HR@10 and NDCG@10.
Figures = dict[str, tuple[float, float]]


def rank_simply(inputs: TrainingInputs, cases: EvalCases) -> Figures:
    """Return what guessing and counting reach on the held-out users."""
    from lcrec.baselines.base import TrainingData
    from lcrec.baselines.methods.closed_form import Cooccurrence, Popularity
    from lcrec.baselines.runs.ranking import ranked_matrix
    from lcrec.rankings.metrics import hit_at_k, ndcg_at_k

    data = TrainingData(inputs.split.train, len(inputs.items))
    top = min(10, data.num_items)
    gains = sum(1 / math.log2(rank + 2) for rank in range(top))
    found: Figures = {"chance": (top / data.num_items, gains / data.num_items)}
    for name, method in (("popularity", Popularity()), ("co-occurrence", Cooccurrence())):
        method.fit(data)
        ranked = ranked_matrix(method, cases, data, top=top)
        figures = (metric(ranked, cases.targets, 10).mean() for metric in (hit_at_k, ndcg_at_k))
        found[name] = tuple(map(float, figures))  # type: ignore[assignment]
    return found


def describe_end(trainer: RecommenderTrainer, simple: Figures, rows: TrainingRows) -> str:
    """Return when training ended and whether the model is better than counting."""
    state = trainer.state
    epochs = len(rows.train.sizes)
    per_epoch = state.max_steps / epochs
    best = state.best_global_step or state.global_step
    ended = f"best epoch {best / per_epoch:.2g} of {epochs}"
    if state.global_step < state.max_steps:
        ended = f"Stopped early at epoch {state.global_step / per_epoch:.2g}, {ended}"
    else:
        ended = f"Trained to the end, {ended}"
    name, (_, most) = max(simple.items(), key=lambda entry: entry[1][1])
    if state.best_metric is not None and state.best_metric <= most:
        longer = "longer (--epochs), " if best == state.global_step else ""
        ended += (
            f". The model ranks no better than {name} (NDCG@10 {most:.4f}): train {longer}"
            "at another --learning-rate or from a larger base, or join their rankings "
            "(lcrec baselines fuse)"
        )
    return ended + "."


def _buffer_tokens(
    config: FinetuneConfig, trained: TrainingModel, rows: TrainingRows, activations: Activations
) -> int:
    """Return the tokens of a buffer: as they were when the run began, so that it resumes alike."""
    from lcrec.modeling.finetuning import buffer_tokens, device_bytes

    note = config.output / WORK / BUFFER
    if not note.exists() or config.max_tokens_per_batch is not None:
        tokens = buffer_tokens(config, trained, rows, activations, device_bytes())
        write_json(note, {"tokens": tokens})
    return read_json(note)["tokens"]


def _save(
    job: FinetuneRun,
    trained: TrainingModel,
    trainer: RecommenderTrainer,
    weights: dict[str, Any] | None,
    trainable: int,
    simple: Figures,
) -> None:
    """Write the best weights, which training ended with, as a checkpoint, and the curves."""
    from lcrec.modeling.checkpoint import save_checkpoint
    from lcrec.modeling.training_page import training_page

    output = job.config.output
    page = training_page(output.resolve().name, trainer.state.log_history, simple)
    with explain_disk_full(output):
        with atomic_path(output / TRAINING_PAGE) as file:
            file.write_text(page, encoding="utf-8")
        save_checkpoint(
            output,
            trainer.accelerator.unwrap_model(trainer.model),
            trained.tokenizer,
            job.inputs.index,
            job.inputs.prompts,
            job.recipe,
            job.inputs.files,
            weights=weights,
            max_history=job.config.max_history,
            validation_ndcg_at_10=trainer.state.best_metric,
            trainable_parameters=trainable,
            nearby=job.inputs.nearby,
        )


if __name__ == "__main__":
    run_stage(main)
