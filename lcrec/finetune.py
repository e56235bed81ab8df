"""Stage: base model + index + tasks + prompts -> a model that recommends.

    accelerate launch recipes/finetune.py --config recipes/quickstart.yaml

Reads the data folder, the item index, the prompts and a base model; adds the item tokens to the
vocabulary, draws the instruction rows of all epochs, trains (LoRA and the new rows, or everything)
and writes a self-contained checkpoint. Validation ranks the whole catalogue for held-out users;
the best checkpoint by NDCG@10 is the one that is kept. A killed run resumes from its last complete
checkpoint when the same command is given again.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate.state import PartialState
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig

from lcrec.core.artifacts import INDEX, RQVAE_WEIGHTS, find_data
from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.processes import processes
from lcrec.core.provenance import fingerprint, is_current, require_same_input
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import Cases, leave_one_out
from lcrec.data.user_texts import load_user_texts
from lcrec.generate.recommender import Recommender
from lcrec.index.item_index import ItemIndex
from lcrec.index.rqvae import read_codebooks
from lcrec.modeling.base import add_adapter, load_base, set_attention_dropout, use_liger
from lcrec.modeling.checkpoint import STAGE, copy_rows, save_checkpoint
from lcrec.modeling.cost import load_shape, plan
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.modeling.run_folder import WORK, claim_output, latest_checkpoint, told_when_full
from lcrec.modeling.trainer import Ranker, RankingValidation, RecommenderTrainer
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.rows import Row, collate_left, draw_rows, parse_mixture, tokenise_rows
from lcrec.prompts.tasks import TaskData, history_record


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `recipes/finetune.py`."""

    data: Path = option("the data folder")
    index: Path = option("the folder that holds index.json")
    base: str = option("the base model, on the hub or in a folder")
    output: Path = option("the folder to write the checkpoint to")
    prompts: Path = option(
        "prompt templates; what the folder lacks comes from the shipped ones", SHIPPED_PROMPTS
    )
    tasks: list[str] = option(
        "tasks to train, each with a share or a cap if wanted: seqrec=0.5 fusionseqrec=20000",
        ["seqrec", "item2index", "index2item"],
    )
    mode: Literal["lora", "rows", "full"] = option(
        "train adapters and the new rows, the new rows alone, or everything", "lora"
    )
    lora_rank: int = option("rank of the adapters", 8, minimum=1)
    lora_alpha: int = option("scale of the adapters", 32, minimum=1)
    lora_dropout: float = option("dropout in the adapters", 0.05, minimum=0)
    dora: bool = option("DoRA: split an adapter's update into length and direction", False)
    rslora: bool = option("rank-stabilised LoRA: scale by the root of the rank", False)
    quantize: Literal["none", "8bit", "4bit"] = option(
        "store the frozen base in fewer bits (QLoRA), by bitsandbytes", "none"
    )
    dropout: float = option("dropout on the attention weights of the model", 0.0, minimum=0)
    rows: str = option(
        "what the item tokens' rows start from: text (item titles), codebook (the RQ-VAE's codes), "
        "random (noise), or the folder of a model trained with --mode rows",
        "text",
    )
    epochs: int = option("passes over the samples, each with fresh wording", 4, minimum=1)
    learning_rate: float = option("peak step size of AdamW", 5e-5, minimum=1e-12)
    weight_decay: float = option("AdamW's weight decay", 0.01, minimum=0)
    warmup: float = option("share of the steps to warm up in", 0.01, minimum=0)
    batch_size: int = option("samples per step and process", 8, minimum=1)
    accumulate: int = option("steps to add up before an update", 1, minimum=1)
    max_length: int = option("tokens of a sample at most", 2048, minimum=8)
    max_tokens_per_batch: int | None = option(
        "tokens on a device at once, padding included; a larger batch is computed in parts, to the "
        "same result (default: the batch as it is)",
        None,
        minimum=1,
    )
    max_history: int = option("items of a history shown at most", 20, minimum=1)
    history_dropout: float = option(
        "chance that an item of a seqrec history is left out, anew each epoch", 0.0, minimum=0
    )
    max_text_words: int = option("words of a title or description shown at most", 60, minimum=1)
    precision: Literal["fp32", "bf16", "fp16"] = option("arithmetic of training", "fp32")
    gradient_checkpointing: bool = option("save memory, spend a third more time", False)
    liger: bool = option("Liger's kernels where installed, on CUDA: faster, less memory", False)
    validation_users: int = option("held-out users to rank the catalogue for", 1000, minimum=1)
    validate_every: float = option("epochs between validations", 1.0, minimum=0.01)
    patience: int = option("stop after this many validations without a gain", 3, minimum=1)
    num_beams: int = option("beams in validation", 20, minimum=10)
    report_to: str = option("where metrics go: none, tensorboard, wandb, trackio", "none")
    seed: int = option("decides everything drawn", 42, minimum=0)
    dry_run: bool = option(
        "print what the run would cost (see lcrec/plan.py), and train nothing", False
    )
    tflops: float | None = option(
        "for --dry-run: the device's peak in TFLOPS; the model's weights are then not needed "
        "(default: time a few steps here)",
        None,
        minimum=0.001,
    )
    mfu: float = option(
        "for --dry-run with --tflops: the share of the peak reached", 0.4, minimum=0.001
    )
    devices: int | None = option(
        "for --dry-run: how many devices will share the work (default: the processes started)",
        None,
        minimum=1,
    )
    overwrite: bool = option("throw away another run that lies in the output folder", False)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(FinetuneConfig, argv, description=__doc__ or "", prog=STAGE)
    for flag in ("lora_dropout", "dropout", "warmup"):
        if getattr(config, flag) >= 1:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} {getattr(config, flag)}: give a share below 1")
    if config.mode == "full" and config.quantize != "none":
        raise InputError(
            f"--quantize {config.quantize}: a base in few bits stays frozen, so --mode full cannot "
            "train it; take --mode lora"
        )
    if config.mode != "lora" and (config.dora or config.rslora):
        raise InputError(f"--dora and --rslora are forms of --mode lora, not of {config.mode}")
    with processes() as state:
        _run(config, state)


def _run(config: FinetuneConfig, state: PartialState) -> None:
    if config.quantize != "none" and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise InputError(
            f"--quantize {config.quantize}: a base in few bits is not shared out; launch with "
            "recipes/accelerate/multi_gpu.yaml, or leave the base whole"
        )
    set_seed(config.seed)

    # What to train on.
    paths = find_data(config.data)
    items = load_items(config.data)
    interactions = load_interactions(config.data, len(items))
    split = leave_one_out(interactions)
    rebuild = f"python -m lcrec.quantize --data {config.data} --output {config.index}"
    index_path = config.index if config.index.is_file() else config.index / INDEX
    require_same_input(index_path.parent, "item", paths.item, rebuild)
    index = ItemIndex.load(index_path, len(items))
    prompts = PromptSet.load(config.prompts, base=SHIPPED_PROMPTS)
    mixture = parse_mixture(config.tasks)
    inputs = {"item": paths.item, "inter": paths.inter, "index": index_path}
    codebooks = None
    if config.rows == "codebook":
        inputs["codebooks"] = index_path.parent / RQVAE_WEIGHTS
        codebooks = read_codebooks(inputs["codebooks"], index.level_sizes)
    elif config.rows not in ("text", "random"):
        inputs["rows"] = Path(config.rows)
        if not inputs["rows"].is_dir():
            raise InputError(
                f"--rows {config.rows}: expected text, codebook, random, or the folder of a model "
                "trained with --mode rows"
            )
    if paths.user.exists():
        inputs["user"] = paths.user
    if Path(config.base).is_dir():
        inputs["base"] = Path(config.base)
    recipe = config_dict(config) | {"prompts": prompts.content_hash}
    for name in ("overwrite", "dry_run", "tflops", "mfu", "devices"):  # which change no result
        recipe.pop(name)
    work = config.output / WORK
    current = is_current(config.output, STAGE, recipe, inputs)
    state.wait_for_everyone()  # all have looked before one writes
    if current and not config.dry_run:
        state.print(f"{config.output} is up to date.")
        if state.is_main_process:
            shutil.rmtree(work, ignore_errors=True)  # left where a run was killed at its very end
        return

    # The model, with the item tokens in its vocabulary.
    model: PreTrainedModel | PeftModel
    if config.dry_run and config.tflops:
        model, tokenizer = load_shape(config.base)
        new_ids = extend_tokenizer(tokenizer, index)
        size = max(len(tokenizer), model.config.get_text_config().vocab_size)
        model.resize_token_embeddings(size, mean_resizing=False)
    else:
        # Frozen weights need no more than the precision of the arithmetic; trained ones do.
        frozen = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        model, tokenizer = load_base(
            config.base,
            torch.float32 if config.mode == "full" else frozen[config.precision],
            quantize=config.quantize,
        )
        new_ids = extend_tokenizer(tokenizer, index)
        titles = [items.title(item) for item in range(len(items))]
        resize_embeddings(
            model,
            tokenizer,
            index,
            texts=titles if config.rows == "text" else None,
            codebooks=codebooks,
        )
        if "rows" in inputs:
            copy_rows(inputs["rows"], model, tokenizer, index)
    if config.dropout:
        set_attention_dropout(model, config.dropout)
    if config.liger:
        use_liger(model)
    if config.mode != "full":
        model = add_adapter(
            model,
            new_ids,
            rank=config.lora_rank if config.mode == "lora" else 0,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            dora=config.dora,
            rslora=config.rslora,
        )

    # Every epoch's rows, drawn up front: the same for any number of processes, and resumable.
    encoder = PromptEncoder(tokenizer, prompts)
    data = TaskData(
        items,
        split.train,
        index,
        max_history=config.max_history,
        max_text_words=config.max_text_words,
        user_texts=load_user_texts(config.data, interactions),
        history_dropout=config.history_dropout,
        seed=config.seed,
    )
    if data.user_texts is not None and {"itemsearch", "preferenceobtain"} & mixture.keys():
        state.print(f"{paths.user.name}: {data.user_texts.describe()}")
    epochs = [
        draw_rows(data, prompts, mixture, config.seed, epoch) for epoch in range(config.epochs)
    ]
    train = tokenise_rows(epochs, encoder, config.max_length, config.batch_size)
    held_out = split.valid.sample(config.validation_users, config.seed)
    valid = tokenise_rows(
        [validation_rows(held_out, index, prompts, config.max_history)],
        encoder,
        config.max_length,
        config.batch_size,
    )

    if config.dry_run:
        state.print(
            plan(
                model,
                train,
                mode=config.mode,
                precision=config.precision,
                quantize=config.quantize,
                checkpointing=config.gradient_checkpointing,
                batch_size=config.batch_size,
                accumulate=config.accumulate,
                max_tokens=config.max_tokens_per_batch,
                pad_token_id=tokenizer.pad_token_id,
                processes=config.devices or state.num_processes,
                device=state.device,
                tflops=config.tflops,
                mfu=config.mfu,
            )
        )
        return

    # The output folder, taken only now that nothing is wrong with the rest.
    if state.is_main_process:
        hashes = {role: fingerprint(path) for role, path in inputs.items()}
        run = recipe | {"inputs": hashes, "processes": state.num_processes}
        claim_output(config.output, run, overwrite=config.overwrite)
    state.wait_for_everyone()

    global_batch = config.batch_size * config.accumulate * state.num_processes
    steps_per_epoch = max(1, len(epochs[0]) // global_batch)
    validate_steps = max(1, round(config.validate_every * steps_per_epoch))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state.print(
        f"Training {trainable:,} of {sum(p.numel() for p in model.parameters()):,} parameters on "
        f"{len(train):,} samples ({len(epochs[0]):,} per epoch, {global_batch} per update, "
        f"{sum(map(len, train['input_ids'])):,} tokens) in {state.num_processes} process(es)"
    )
    trainer = RecommenderTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=valid,
        data_collator=functools.partial(collate_left, pad_token_id=tokenizer.pad_token_id),
        ranking=RankingValidation(
            held_out,
            catalogue_ranker(tokenizer, index, prompts, config.max_history),
            min(config.num_beams, len(items)),
        ),
        max_tokens_per_batch=config.max_tokens_per_batch,
        epochs=config.epochs,
        callbacks=[EarlyStoppingCallback(config.patience)],
        args=SFTConfig(
            output_dir=str(work),
            # One pass over the rows of all epochs, in their order.
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=config.max_length,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulate,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=config.warmup,
            bf16=config.precision == "bf16",
            fp16=config.precision == "fp16",
            activation_checkpointing=config.gradient_checkpointing,
            eval_strategy="steps",
            eval_steps=validate_steps,
            save_strategy="steps",
            save_steps=validate_steps,
            save_total_limit=2,
            load_best_model_at_end=True,
            # A resumed run must stop early where an uninterrupted one would have.
            restore_callback_states_from_checkpoint=True,
            metric_for_best_model="eval_ndcg@10",
            greater_is_better=True,
            logging_steps=max(1, validate_steps // 5),
            report_to=config.report_to,
            seed=config.seed,
            use_cpu=not torch.accelerator.is_available(),
        ),
    )
    with state.main_process_first():  # which clears away what a killed run left unfinished
        resume_from = latest_checkpoint(work)
    trainer.train(resume_from_checkpoint=resume_from)
    state.wait_for_everyone()  # all have read the best weights before they are cleared away

    weights = trainer.whole_state()
    if state.is_main_process:
        best = trainer.state.best_metric
        with told_when_full(config.output):
            save_checkpoint(
                config.output,
                trainer.accelerator.unwrap_model(trainer.model),
                tokenizer,
                index,
                prompts,
                recipe,
                inputs,
                weights=weights,
                max_history=config.max_history,
                validation_ndcg_at_10=best,
                trainable_parameters=trainable,
            )
        shutil.rmtree(work)
        print(
            f"Wrote {config.output} (NDCG@10 {best:.4f} on {len(held_out):,} held-out users). "
            f"Next: python -m lcrec.generate --model {config.output} --data {config.data} "
            "--output DIR/predictions.jsonl"
        )


def catalogue_ranker(
    tokenizer: PreTrainedTokenizerBase, index: ItemIndex, prompts: PromptSet, max_history: int
) -> Ranker:
    """Return what validation ranks the catalogue with: the search that `generate` uses."""

    def rank(
        model: PreTrainedModel | PeftModel, histories: Sequence[np.ndarray], beams: int
    ) -> np.ndarray:
        recommender = Recommender(model, tokenizer, index, prompts, max_history=max_history)
        return recommender.recommend(histories, beams, num_beams=beams).items

    return rank


def validation_rows(
    cases: Cases, index: ItemIndex, prompts: PromptSet, max_history: int
) -> list[Row]:
    """Return the rows that the validation loss is taken on: the wording that ranking uses."""
    template = prompts.evaluation_templates("seqrec")[0]
    return [
        Row(
            template.ask(history_record(index, history, max_history)),
            index.texts[target],
            "seqrec",
            template.id,
        )
        for history, target in zip(cases.histories, cases.targets.tolist(), strict=True)
    ]


if __name__ == "__main__":
    run_stage(main)
