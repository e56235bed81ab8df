"""The steps of a fine-tune: a model with item tokens, the rows it learns from, its trainer."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from lcrec.core.pretrained import rows_needed
from lcrec.data.splits import EvalCases
from lcrec.index.item_index import ItemIndex
from lcrec.index.rqvae import read_codebooks
from lcrec.modeling.base import DTYPES, add_adapter, load_base, set_attention_dropout, use_liger
from lcrec.modeling.checkpoint import copy_rows
from lcrec.modeling.cost import load_shape
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.modeling.recipe import TrainingInputs, TrainingSettings
from lcrec.modeling.trainer import Ranker, RankingValidation, RecommenderTrainer
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.rows import Row, collate_left, draw_rows, require_samples, tokenise_rows
from lcrec.prompts.tasks import TaskData, history_record


@dataclass(frozen=True)
class TrainingModel:
    """The model as it will be trained, and the tokenizer that knows the item tokens."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingRows:
    """What the model learns from and is validated on.

    Attributes:
        train: the rows of all epochs as token ids, in the order they are trained.
        per_epoch: how many rows the first epoch has.
        valid: the rows that the validation loss is taken on.
        held_out: the users that validation ranks the catalogue for.
    """

    train: Dataset
    per_epoch: int
    valid: Dataset
    held_out: EvalCases


def load_model(settings: TrainingSettings, inputs: TrainingInputs) -> TrainingModel:
    """Load the base model, add the item tokens to its vocabulary and the adapter to its layers.

    Raises:
        InputError: the base cannot be loaded, or does not bear what the settings ask for.
    """
    codebooks = None
    if "codebooks" in inputs.files:
        codebooks = read_codebooks(inputs.files["codebooks"], inputs.index.level_sizes)
    # Frozen weights need no more than the precision of the arithmetic; trained ones do.
    dtype = torch.float32 if settings.mode == "full" else DTYPES[settings.precision]
    model, tokenizer = load_base(settings.base, dtype, quantize=settings.quantize)
    new_ids = extend_tokenizer(tokenizer, inputs.index)
    titles = [inputs.items.title(item) for item in range(len(inputs.items))]
    resize_embeddings(
        model,
        tokenizer,
        inputs.index,
        texts=titles if settings.rows == "text" else None,
        codebooks=codebooks,
    )
    if "rows" in inputs.files:
        copy_rows(inputs.files["rows"], model, tokenizer, inputs.index)
    return TrainingModel(_adapt(model, new_ids, settings), tokenizer)


def load_model_shape(settings: TrainingSettings, inputs: TrainingInputs) -> TrainingModel:
    """Return the model of `load_model` without weights, on the meta device.

    Raises:
        InputError: the base has no config.json or tokenizer, or is no causal language model.
    """
    model, tokenizer = load_shape(settings.base)
    new_ids = extend_tokenizer(tokenizer, inputs.index)
    size = max(rows_needed(tokenizer), model.config.get_text_config().vocab_size)
    model.resize_token_embeddings(size, mean_resizing=False)
    return TrainingModel(_adapt(model, new_ids, settings), tokenizer)


def _adapt(
    model: PreTrainedModel, new_ids: list[int], settings: TrainingSettings
) -> PreTrainedModel | PeftModel:
    if settings.dropout:
        set_attention_dropout(model, settings.dropout)
    if settings.liger:
        use_liger(model)
    if settings.mode == "full":
        return model
    return add_adapter(
        model,
        new_ids,
        rank=settings.lora_rank if settings.mode == "lora" else 0,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        dora=settings.dora,
        rslora=settings.rslora,
    )


def draw_training_rows(
    settings: TrainingSettings, inputs: TrainingInputs, tokenizer: PreTrainedTokenizerBase
) -> TrainingRows:
    """Draw every epoch's rows up front: the same for any number of processes, and resumable.

    Raises:
        InputError: a row is longer than `max_length`, or no task has a sample.
    """
    encoder = PromptEncoder(tokenizer, inputs.prompts)
    data = TaskData(
        inputs.items,
        inputs.split.train,
        inputs.index,
        max_history=settings.max_history,
        max_text_words=settings.max_text_words,
        user_texts=inputs.user_texts,
        history_dropout=settings.history_dropout,
        seed=settings.seed,
    )
    epochs = [
        draw_rows(data, inputs.prompts, inputs.mixture, settings.seed, epoch)
        for epoch in range(settings.epochs)
    ]
    require_samples(inputs.mixture, {task for rows in epochs for task in rows.tasks})
    train = tokenise_rows(epochs, encoder, settings.max_length, settings.batch_size)
    held_out = inputs.split.valid.sample(settings.validation_users, settings.seed)
    valid = tokenise_rows(
        [validation_rows(held_out, inputs.index, inputs.prompts, settings.max_history)],
        encoder,
        settings.max_length,
        settings.batch_size,
    )
    return TrainingRows(train, len(epochs[0]), valid, held_out)


def validation_rows(
    cases: EvalCases, index: ItemIndex, prompts: PromptSet, max_history: int
) -> list[Row]:
    """Return the rows that the validation loss is taken on: asked as ranking asks."""
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


def describe_run(
    settings: TrainingSettings, trained: TrainingModel, rows: TrainingRows, processes: int
) -> str:
    """Return the line that says what is trained on what."""
    parameters = list(trained.model.parameters())
    global_batch = settings.batch_size * settings.accumulate * processes
    return (
        f"Training {count_trainable(trained.model):,} of {sum(p.numel() for p in parameters):,} "
        f"parameters on {len(rows.train):,} samples ({rows.per_epoch:,} per epoch, {global_batch} "
        f"per update, {sum(map(len, rows.train['input_ids'])):,} tokens) in {processes} process(es)"
    )


def count_trainable(model: torch.nn.Module) -> int:
    """Return how many of the model's parameters are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def make_trainer(
    settings: TrainingSettings,
    trained: TrainingModel,
    rows: TrainingRows,
    rank: Ranker,
    *,
    num_items: int,
    work: Path,
    processes: int,
) -> RecommenderTrainer:
    """Return the trainer of a run.

    Args:
        settings: the run's.
        trained: the model and its tokenizer.
        rows: what to train and validate on.
        rank: ranks the catalogue in validation.
        num_items: the size of the catalogue.
        work: the folder for checkpoints on the way.
        processes: how many share the work.
    """
    global_batch = settings.batch_size * settings.accumulate * processes
    steps_per_epoch = max(1, rows.per_epoch // global_batch)
    validate_steps = max(1, round(settings.validate_every * steps_per_epoch))
    return RecommenderTrainer(
        model=trained.model,
        processing_class=trained.tokenizer,
        train_dataset=rows.train,
        eval_dataset=rows.valid,
        data_collator=functools.partial(collate_left, pad_token_id=trained.tokenizer.pad_token_id),
        ranking=RankingValidation(rows.held_out, rank, min(settings.num_beams, num_items)),
        max_tokens_per_batch=settings.max_tokens_per_batch,
        epochs=settings.epochs,
        callbacks=[EarlyStoppingCallback(settings.patience)],
        args=SFTConfig(
            output_dir=str(work),
            # One pass over the rows of all epochs, in their order.
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=settings.max_length,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup,
            bf16=settings.precision == "bf16",
            fp16=settings.precision == "fp16",
            activation_checkpointing=settings.gradient_checkpointing,
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
            logging_nan_inf_filter=False,  # it would wait for the device at every batch
            report_to=settings.report_to,
            seed=settings.seed,
            use_cpu=not torch.accelerator.is_available(),
        ),
    )
