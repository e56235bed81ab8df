"""Stage: fine-tuned checkpoint -> one whose rankings were rewarded (GRPO, or S-DPO).

    lcrec reinforce --model runs/shop/model --data data/shop --output runs/shop/reinforced

The model answers each prompt with a group of real items, is rewarded for them by item id, and
learns from the differences within the group. Validation ranks the whole catalogue before, between
and after: training stops where that falls below the start, and the best weights are kept, those of
the start where none were better. A killed run resumes from its last complete checkpoint when the
same command is given again. On several CUDA devices the command launches itself on all of them;
`accelerate launch recipes/reinforce.py` takes Accelerate's own settings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcrec.core.artifacts import read_json, write_json
from lcrec.core.config import Writes, option, parse_config
from lcrec.core.device import precision_note
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import SHARED_FOLDER, check_output, claim
from lcrec.core.provenance import fingerprint, is_current
from lcrec.finetune import count_devices, is_launched, launch_command
from lcrec.modeling.run_folder import (
    WORK,
    check_run,
    claim_output,
    explain_disk_full,
    latest_checkpoint,
)
from lcrec.reinforce.settings import (
    STAGE,
    ReinforceInputs,
    ReinforceSettings,
    check_settings,
    load_inputs,
    recipe_of,
)

if TYPE_CHECKING:
    from accelerate.state import PartialState

    from lcrec.modeling.checkpoint import Checkpoint
    from lcrec.reinforce.trainer import ReinforceTrainer

EXAMPLE = "--model runs/shop/model --data data/shop --output runs/shop/reinforced"
START = "start.json"  # in the work folder: what validation found before the first update


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(ReinforceSettings, Writes):
    """Settings of `python -m lcrec.reinforce` and `recipes/reinforce.py`."""

    output: Path = option("the folder to write the checkpoint to", writes=SHARED_FOLDER)


@dataclass(frozen=True)
class ReinforceRun:
    """A run that is checked but for its weights.

    Attributes:
        config: its settings.
        inputs: what it reads.
        recipe: the settings that decide the result, those of the fine-tune among them.
    """

    config: ReinforceConfig
    inputs: ReinforceInputs
    recipe: dict[str, Any]

    def identity(self, processes: int) -> dict[str, Any]:
        """Return all that decides the result, to tell this run from another one."""
        hashes = {role: fingerprint(path) for role, path in self.inputs.files.items()}
        return self.recipe | {"inputs": hashes, "processes": processes}


def main(argv: list[str]) -> None:
    """Run the stage, on every CUDA device where no launcher has started this process."""
    config = parse_config(ReinforceConfig, argv, prog=STAGE, example=EXAMPLE)
    job = prepare(config)
    devices = 1 if is_launched(os.environ) else count_devices()
    if devices == 1:
        _reinforce(job)
        return
    print(f"Launching on {devices} devices", flush=True)
    command = launch_command(argv, devices, "lcrec.reinforce")
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def prepare(config: ReinforceConfig) -> ReinforceRun:
    """Check all that can be checked without the weights, importing no torch.

    Raises:
        InputError: a setting or a file cannot be used.
    """
    check_settings(config)
    inputs = load_inputs(config)
    _check_launch(inputs)
    read = inputs.files.values()
    check_output(config.output, STAGE, SHARED_FOLDER, overwrite=config.overwrite, inputs=read)
    return ReinforceRun(config, inputs, recipe_of(config, inputs))


def _check_launch(inputs: ReinforceInputs) -> None:
    """Refuse ways to shard weights that the reference cannot take the place of.

    Raises:
        InputError: DeepSpeed, the first FSDP, or a quantised base under FSDP2.
    """
    remedy = "launch it with recipes/accelerate/multi_gpu.yaml"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise InputError(
            "lcrec.reinforce does not train under DeepSpeed, which keeps the trained weights to "
            f"itself, so that none can be put in their place as the reference: {remedy} or "
            "fsdp2.yaml"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise InputError(f"lcrec.reinforce shards weights by FSDP2 alone: {remedy} or fsdp2.yaml")
    if inputs.recipe.get("quantize", "none") != "none":
        raise InputError(
            f"--model: its base is quantised ({inputs.recipe['quantize']}), which FSDP2 cannot "
            f"shard: {remedy}"
        )


def _reinforce(job: ReinforceRun) -> None:
    from lcrec.core.processes import processes

    config = job.config
    with processes() as state:
        state.wait_for_everyone()  # all have looked at the output before one writes
        if is_current(config.output, STAGE, job.recipe, job.inputs.files):
            state.print(f"{config.output} is up to date.")
            if state.is_main_process:  # left where a run was killed at its very end
                shutil.rmtree(config.output / WORK, ignore_errors=True)
            return
        main = state.is_main_process
        with claim(config.output, STAGE, SHARED_FOLDER, overwrite=config.overwrite, active=main):
            _train(job, state)


def _train(job: ReinforceRun, state: PartialState) -> None:
    """Train, and write the checkpoint; all processes call this."""
    import torch
    from transformers import set_seed

    from lcrec.modeling.callbacks import describe_metrics
    from lcrec.reinforce.start import (
        encode_histories,
        load_start,
        load_start_shape,
        make_recommender,
    )
    from lcrec.reinforce.trainer import StopBelowStart, make_trainer

    config, inputs = job.config, job.inputs
    work = config.output / WORK
    identity = job.identity(state.num_processes) if state.is_main_process else {}
    if state.is_main_process:
        check_run(config.output, identity, overwrite=config.overwrite)
    set_seed(config.seed)
    encode_histories(config, inputs, [], load_start_shape(config))  # the longest must fit
    checkpoint = load_start(config)
    held_out = inputs.split.valid.sample(config.validation_users, config.seed)
    recommender = make_recommender(inputs, checkpoint)
    trainer = make_trainer(config, inputs, recommender, held_out, work, state.num_processes)
    if state.is_main_process:
        claim_output(config.output, identity, overwrite=config.overwrite)
    state.wait_for_everyone()
    trained = sum(p.numel() for p in recommender.model.parameters() if p.requires_grad)
    prompts = len(trainer.train_dataset) // config.reuse  # type: ignore[arg-type]
    state.print(
        f"Reinforcing {trained:,} parameters on {prompts:,} prompts, "
        f"{config.group} items each, in {state.num_processes} process(es)"
    )
    if note := precision_note(config.precision, recommender.model.num_parameters()):
        state.print(note)
    if not (work / START).exists():
        found = trainer.ranking_metrics(trainer.rank())  # all take part
        if state.is_main_process:
            write_json(work / START, found)
        state.wait_for_everyone()
    start = read_json(work / START)
    state.print(f"At the start, on {len(held_out):,} held-out users: {describe_metrics(start)}")
    stop = StopBelowStart(start, config.tolerance)
    trainer.add_callback(stop)
    with state.main_process_first():  # which clears away what a killed run left unfinished
        resume_from = latest_checkpoint(work)
    if resume_from is not None:
        state.print(f"Going on from {resume_from}.")
    try:
        trainer.train(resume_from_checkpoint=resume_from)
    except torch.OutOfMemoryError:
        raise InputError(
            f"the device's memory was full in update {trainer.state.global_step + 1:,}: give "
            f"--batch-size {max(1, config.batch_size // 2)} --accumulate {2 * config.accumulate} "
            f"or --gradient-checkpointing; --overwrite throws this run away"
        ) from None
    state.wait_for_everyone()  # all have read the best weights before they are cleared away
    if stop.reason is not None:
        state.print(stop.reason)
    weights = trainer.whole_state()  # all take part
    if state.is_main_process:
        _save(job, trainer, checkpoint, start, trained, weights)
        shutil.rmtree(work)


def _save(
    job: ReinforceRun,
    trainer: ReinforceTrainer,
    checkpoint: Checkpoint,
    start: dict[str, float],
    trained: int,
    weights: dict[str, Any] | None,
) -> None:
    """Write the best weights, which training ended with, or the start's if none are better."""
    from lcrec.modeling.checkpoint import load_checkpoint, save_checkpoint

    config = job.config
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    best = trainer.state.best_metric or 0.0
    before = start["eval_ndcg@10"]
    if best > before:
        end = (
            f"NDCG@10 {before:.4f} -> {best:.4f}, after {trainer.state.best_global_step:,} updates"
        )
    else:
        model, weights = load_checkpoint(config.model, base=config.base).model, None
        end = f"the start's weights, for no validation beat its NDCG@10 of {before:.4f}"
    if config.base is not None:  # for those who load the result
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = config.base
    with explain_disk_full(config.output):
        save_checkpoint(
            config.output,
            model,
            checkpoint.tokenizer,
            job.inputs.index,
            job.inputs.prompts,
            job.recipe,
            job.inputs.files,
            weights=weights,
            max_history=job.inputs.max_history,
            validation_ndcg_at_10=max(best, before),
            trainable_parameters=trained,
            nearby=job.inputs.nearby,
            stage=STAGE,
        )
    print(
        f"Wrote {config.output} ({end}). Next: python -m lcrec.generate --model {config.output} "
        f"--data {config.data} --output DIR/predictions.jsonl"
    )


if __name__ == "__main__":
    run_stage(main)
