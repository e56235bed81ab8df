"""The steps of a fine-tune: a model with item tokens, the rows it learns from, its trainer."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcrec.core.device import precision_note
from lcrec.core.errors import InputError
from lcrec.core.pretrained import position_limit, rows_needed
from lcrec.data.splits import EvalCases
from lcrec.index.rqvae import read_codebooks
from lcrec.modeling.base import (
    DTYPES,
    add_adapter,
    base_model,
    choose_attention,
    compile_layers,
    is_sharded,
    load_base,
    set_attention_dropout,
    use_liger,
)
from lcrec.modeling.callbacks import EarlyStopping
from lcrec.modeling.checkpoint import copy_rows
from lcrec.modeling.cost import (
    GIB,
    Activations,
    Shape,
    Work,
    count_parameters,
    load_shape,
    measure_shape,
    measure_work,
    memory,
)
from lcrec.modeling.families import check_family
from lcrec.modeling.item_rows import lengthen_steps, resize_embeddings
from lcrec.modeling.probe import takes_trees
from lcrec.modeling.recipe import TrainingInputs, TrainingSettings
from lcrec.modeling.trainer import Ranker, RankingValidation, RecommenderTrainer, training_arguments
from lcrec.modeling.trees import BLOCK, PackingCollator
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.joining import RowJoiner
from lcrec.prompts.rows import (
    DrawnRows,
    EpochRows,
    Row,
    RowSource,
    collate_left,
    require_samples,
    row_lengths,
    tokenise_rows,
)
from lcrec.prompts.tasks import TaskData, sequence_record

# Epochs where none are given: a model learns by updates, and a small shop makes few in an epoch.
FEWEST_EPOCHS, MOST_EPOCHS, ENOUGH_UPDATES = 4, 40, 2000
CPU_BUFFER = 2048  # tokens; every buffer begins anew, and reads all weights
# Tokens that sharing must leave at most, of those to be computed without, to be worth its masks.
SHARED_AT_MOST = 0.9
FILLED = 0.8  # of a device's free memory; the allocator and the search in validation take the rest
FULL_CARD = 16_384  # tokens at once that keep a large card busy, whatever the model
COMPILED_FROM = 200  # updates; with fewer, compiling takes longer than it spares


@dataclass(frozen=True)
class TrainingModel:
    """The model as it will be trained.

    Attributes:
        model: with the item tokens in its vocabulary, and adapters where those are trained.
        tokenizer: knows the item tokens.
        new_ids: the item tokens' ids.
        packs: whether samples are packed into buffers (`lcrec.modeling.trees`) in any case.
        may_share: whether samples may share what they begin with.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    new_ids: list[int]
    packs: bool = False
    may_share: bool = False


@dataclass(frozen=True)
class TrainingRows:
    """What the model learns from and is validated on.

    Attributes:
        train: the rows of all epochs as token ids, in the order they are trained.
        valid: the rows that the validation loss is taken on.
        held_out: the users that validation ranks the catalogue for.
        shared: share of the tokens that is left where samples share what they begin with; None
            where they do not.
        unused: a line for each template that no record fits.
    """

    train: EpochRows
    valid: Dataset
    held_out: EvalCases
    shared: float | None = None
    unused: Sequence[str] = ()


def load_model(settings: TrainingSettings, inputs: TrainingInputs) -> TrainingModel:
    """Load the base model, add the item tokens to its vocabulary and the adapter to its layers.

    Raises:
        InputError: the base cannot be loaded, or does not bear what the settings ask for.
    """
    codebooks = None
    if "codebooks" in inputs.files:
        codebooks = read_codebooks(inputs.files["codebooks"], inputs.index.level_sizes)
    model, tokenizer = load_base(settings.base, _stored_dtype(settings), quantize=settings.quantize)
    new_ids = extend_tokenizer(tokenizer, inputs.index, boundary=settings.boundary_tokens)
    titles = [inputs.items.title(item) for item in range(len(inputs.items))]
    resize_embeddings(
        model,
        tokenizer,
        inputs.index,
        texts=titles if starts_from_texts(settings, inputs) else None,
        codebooks=codebooks,
    )
    if "rows" in inputs.files:
        copy_rows(inputs.files["rows"], model, tokenizer, inputs.index)
    packs = choose_attention(
        model, settings.attention, dropout=settings.dropout, precision=settings.precision
    )
    may_share = settings.share_prefix == "auto" and (
        packs or (not torch.cuda.is_available() and takes_trees(model))
    )
    adapted = _adapt(model, new_ids, settings)
    return TrainingModel(adapted, tokenizer, new_ids, packs, may_share)


def starts_from_texts(settings: TrainingSettings, inputs: TrainingInputs) -> bool:
    """Tell whether the item tokens' rows start from titles, as told or for want of a codebook."""
    lacks_codebook = settings.rows == "codebook" and "codebooks" not in inputs.files
    return settings.rows == "text" or lacks_codebook


def _stored_dtype(settings: TrainingSettings) -> torch.dtype:
    # Frozen weights need no more than the precision of the arithmetic; trained ones do.
    return torch.float32 if settings.mode == "full" else DTYPES[settings.precision]


def load_model_shape(settings: TrainingSettings, inputs: TrainingInputs) -> TrainingModel:
    """Return the model of `load_model` without weights, on the meta device.

    Raises:
        InputError: the base has no config.json or tokenizer, or is no causal language model.
    """
    model, tokenizer = load_shape(settings.base)
    torch.nn.Module.to(model, _stored_dtype(settings))
    new_ids = extend_tokenizer(tokenizer, inputs.index, boundary=settings.boundary_tokens)
    size = max(rows_needed(tokenizer), model.config.get_text_config().vocab_size)
    model.resize_token_embeddings(size, mean_resizing=False)
    # Whether the model bears it is known only with weights: of what is shipped, most do.
    may_share = settings.share_prefix == "auto"
    adapted = _adapt(model, new_ids, settings)
    return TrainingModel(adapted, tokenizer, new_ids, may_share=may_share)


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
    settings: TrainingSettings, inputs: TrainingInputs, trained: TrainingModel, processes: int
) -> TrainingRows:
    """Draw the first epoch's rows, and tell how those of the others are drawn.

    How many rows there are is known beforehand, so that the order of all of them is the same for
    any number of processes, and resumable. Where samples share what they begin with, those of a
    user stand side by side. Where they are packed, a batch is any rows, so that all batches are
    about as large.

    Raises:
        InputError: a row is longer than `max_length` or the model's context, or no task has a
            sample.
    """
    encoder = PromptEncoder(trained.tokenizer, inputs.prompts)
    context = position_limit(trained.model)
    data = TaskData(
        inputs.items,
        inputs.split.train,
        inputs.index,
        max_history=settings.max_history,
        max_text_words=settings.max_text_words,
        user_texts=inputs.user_texts,
        history_dropout=settings.history_dropout,
        seed=settings.seed,
        shows_neighbours=inputs.prompts.shows_neighbours,
        alike=trained.may_share,
    )
    source = RowSource(data, inputs.prompts, inputs.mixture, settings.seed)
    tokenise = functools.partial(
        tokenise_rows, encoder=encoder, max_length=settings.max_length, context=context
    )
    drawn = source.draw(0)
    epochs = range(count_epochs(settings, len(drawn), processes))
    counts = [source.count(epoch) for epoch in epochs]
    require_samples(inputs.mixture, {name for own in counts for name, rows in own.items() if rows})
    joiner, first, shared = RowJoiner(encoder, data), None, None
    if trained.may_share:
        first = tokenise([drawn], batch_size=None, joiner=joiner)
        shared = share_of_tokens(first, settings)
        if shared > SHARED_AT_MOST:
            source = replace(source, data=replace(data, alike=False))
            joiner, first, shared = RowJoiner(encoder, source.data), None, None
    grouped = None if trained.packs or shared is not None else settings.batch_size
    make = functools.partial(
        _make_epoch, source, functools.partial(tokenise, batch_size=grouped, joiner=joiner)
    )
    long = source.longest()
    prompts, answers = joiner.encode(long.templates, long.epoch, long.chosen, long.places)
    longest = int((prompts.lengths + answers.lengths).max())
    if longest > min(settings.max_length, context or longest):
        # Some epoch may draw a row that is too long: better known before any work.
        longest = max((int(row_lengths(make(epoch)).max()) for epoch in epochs[1:]), default=0)
    train = EpochRows(first or make(0), [sum(own.values()) for own in counts], make, longest)
    held_out = inputs.split.valid.sample(settings.validation_users, settings.seed)
    asked = validation_rows(held_out, inputs, settings.max_history)
    valid = tokenise([asked], batch_size=grouped)
    return TrainingRows(train, valid, held_out, shared, drawn.unused)


def _make_epoch(
    source: RowSource, tokenise: Callable[[list[DrawnRows]], Dataset], epoch: int
) -> Dataset:
    return tokenise([source.draw(epoch)])


def share_of_tokens(rows: Dataset, settings: TrainingSettings) -> float:
    """Return the share of tokens that is computed where samples share what they begin with.

    Args:
        rows: of `tokenise_rows`, an epoch in its order; up to 20 batches of it are counted.
        settings: the run's.
    """
    starts = range(0, len(rows), settings.batch_size)
    kept = whole = 0
    for start in starts[:: -(-len(starts) // 20)]:
        batch = rows.select(range(start, min(start + settings.batch_size, len(rows)))).to_list()
        lengths = [len(row["input_ids"]) for row in batch]
        kept += PackingCollator(0, max(CPU_BUFFER, *lengths)).count_tokens(batch)
        whole += sum(lengths) - len(lengths)
    return kept / whole


def count_epochs(settings: TrainingSettings, samples: int, processes: int) -> int:
    """Return how many epochs are trained: as many as were asked for, or make enough updates."""
    if settings.epochs is not None:
        return settings.epochs
    updates = max(1, samples // (settings.batch_size * settings.accumulate * processes))
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(ENOUGH_UPDATES / updates)))


def validation_rows(cases: EvalCases, inputs: TrainingInputs, max_history: int) -> list[Row]:
    """Return the rows that the validation loss is taken on: asked as ranking asks."""
    template, index = inputs.prompts.evaluation_templates("seqrec")[0], inputs.index
    return [
        Row(
            template.ask(sequence_record(index, history, max_history, inputs.nearby)),
            index.texts[target],
            "seqrec",
            template.id,
        )
        for history, target in zip(cases.histories, cases.first_targets.tolist(), strict=True)
    ]


def try_model(
    settings: TrainingSettings, trained: TrainingModel, rows: TrainingRows, rank: Ranker
) -> None:
    """Try a step and a ranking before any work, but where weights are sharded over processes.

    Raises:
        InputError: the model's family cannot be trained in this mode, or not be decoded.
    """
    if is_sharded() or trained.packs:  # no packed sample is padded, and the model was tried
        return
    model = trained.model
    if settings.quantize == "none":  # a quantised base lies there already
        nn.Module.to(model, PartialState().device)
    check_family(model, settings.mode, lambda: rank(model, rows.held_out.take([0]), 1))


def describe_run(
    settings: TrainingSettings,
    trained: TrainingModel,
    rows: TrainingRows,
    processes: int,
    capacity: int | None,
) -> str:
    """Return the lines that say what is trained on what, and how."""
    parameters = count_parameters(trained.model)
    global_batch = settings.batch_size * settings.accumulate * processes
    how = f"Attention: {base_model(trained.model).config._attn_implementation}"
    if rows.shared is None and settings.share_prefix == "auto":
        reason = "samples begin too differently"
        if not trained.may_share:
            reason = "this family, or this attention, does not take the masks"
        how += f", no beginnings shared ({reason})"
    if capacity is not None:
        tokens = row_lengths(rows.train.first).mean() * settings.batch_size
        tokens *= rows.shared or 1
        how += f", samples packed into buffers of {capacity:,} tokens"
        if rows.shared is not None:
            how += f", {rows.shared:.0%} of their tokens left as samples share what they begin with"
        if _pays_to_compile(settings, trained, rows, global_batch):
            how += ", layers compiled (once, at the first updates)"
        if trained.packs and tokens < FULL_CARD / 2:
            fuller = round(settings.batch_size * FULL_CARD / tokens)
            how += (
                f". A batch has {tokens:,.0f}, which leaves a card idle part of the time: "
                f"--batch-size {fuller} would fill it (learn at another rate then)"
            )
    lines = [
        f"Training {count_trainable(trained.model):,} of {parameters:,} "
        f"parameters on {len(rows.train):,} samples ({rows.train.sizes[0]:,} per epoch, "
        f"{global_batch} per update, {'about ' * (len(rows.train.sizes) > 1)}"
        f"{rows.train.tokens:,} tokens) in {processes} process(es)",
        how,
        *rows.unused,
    ]
    if note := precision_note(settings.precision, parameters):
        lines.append(note)
    return "\n".join(lines)


def count_trainable(model: torch.nn.Module) -> int:
    """Return how many of the model's parameters are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def device_bytes() -> int:
    """Return what a GPU has for a model, which may lie there already, and all it needs beside."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def buffer_tokens(
    settings: TrainingSettings,
    trained: TrainingModel,
    rows: TrainingRows,
    activations: Activations,
    free_bytes: float,
) -> int:
    """Return how many tokens a buffer of packed samples is to hold on CUDA.

    All of the largest batch if that fits into memory, else a half, a third and so on; or what
    `--max-tokens-per-batch` says.

    Args:
        settings, trained, rows, activations: the run's.
        free_bytes: what a device has for the model and all that training needs beside it.

    Raises:
        InputError: `--max-tokens-per-batch` is below the longest sample.
    """
    lengths = row_lengths(rows.train.first)
    longest = max(rows.train.longest, int(row_lengths(rows.valid).max()))
    if settings.max_tokens_per_batch is not None:
        if settings.max_tokens_per_batch < longest:
            raise InputError(
                f"--max-tokens-per-batch {settings.max_tokens_per_batch}: the longest sample has "
                f"{longest} tokens; take at least as many"
            )
        return settings.max_tokens_per_batch
    starts = np.arange(0, len(lengths), settings.batch_size)
    batch = math.ceil(np.add.reduceat(lengths, starts).max() * (rows.shared or 1))
    shape = measure_shape(trained.model)
    for count in itertools.count(1):
        # Buffers are filled but for less than a sample each.
        capacity = max(longest, batch if count == 1 else -(-batch // count) + longest)
        capacity = -(-capacity // BLOCK) * BLOCK
        needed = _needed_bytes(settings, shape, _work_of(rows, capacity), activations)
        if needed <= FILLED * free_bytes or batch // count <= longest:
            return capacity
    raise AssertionError


def cpu_buffer_tokens(settings: TrainingSettings, rows: TrainingRows) -> int:
    """Return how many tokens a buffer of samples that share beginnings is to hold on a CPU."""
    longest = max(rows.train.longest, int(row_lengths(rows.valid).max()))
    return max(longest, settings.max_tokens_per_batch or CPU_BUFFER)


def _work_of(rows: TrainingRows, tokens: int) -> Work:
    """Return the work of a device that holds so many tokens at once, answers among them."""
    lengths = row_lengths(rows.train.first)
    answers = 1 - float(np.sum(rows.train.first["prompt_length"]) / lengths.sum())
    return Work(0, 0, 0, 0, tokens, math.ceil(tokens * answers * 1.5))


def _needed_bytes(
    settings: TrainingSettings, shape: Shape, work: Work, activations: Activations
) -> float:
    """Return the bytes that a device is estimated to need, where weights are not sharded."""
    return memory(
        shape,
        work,
        activations,
        precision=settings.precision,
        quantize=settings.quantize,
        checkpointing=settings.gradient_checkpointing,
        processes=1,
        sharding="none",
        ema=settings.ema is not None,
    )


def explain_out_of_memory(
    settings: TrainingSettings,
    trained: TrainingModel,
    rows: TrainingRows,
    activations: Activations,
    trainer: Any,
) -> str:
    """Return in one line what did not fit into memory, what was estimated, and what would fit.

    Args:
        settings, trained, rows, activations: the run's.
        trainer: the `RecommenderTrainer` that ran out of memory.
    """
    longest = rows.train.longest
    batch = trainer.batch_at_once()
    if batch is None:
        what, tokens = f"validation after update {trainer.state.global_step:,}", longest
    else:
        tokens = batch[1]
        what = f"update {trainer.state.global_step + 1:,} ({tokens:,} tokens at once"
        what += f", in a batch of {batch[0]:,} rows)"
    shape = measure_shape(trained.model)
    needed = _needed_bytes(settings, shape, _work_of(rows, tokens), activations)
    remedy = f"give --max-tokens-per-batch {max(longest, tokens // 2)}, to the same result"
    if tokens <= longest:
        remedy = "no smaller batch is possible: give --gradient-checkpointing, --mode rows or "
        remedy += "--quantize 4bit, or take a device with more memory"
    return (
        f"the device's memory was full in {what}, which was estimated (lcrec plan) to need "
        f"{needed / GIB:,.2f} GiB; {remedy}: the same command then goes on from the last "
        "complete checkpoint"
    )


def compare_memory(
    settings: TrainingSettings,
    trained: TrainingModel,
    rows: TrainingRows,
    activations: Activations,
    capacity: int | None,
) -> str:
    """Return the line that sets the memory that a run took on a GPU beside the estimate."""
    work = measure_work(
        rows.train.first,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        processes=1,
        max_tokens=capacity or settings.max_tokens_per_batch,
    )
    estimate = _needed_bytes(settings, measure_shape(trained.model), work, activations)
    held = torch.cuda.max_memory_reserved()
    return f"Memory: {held / GIB:.1f} GiB at most, estimated {estimate / GIB:.1f} GiB"


def make_collator(
    trained: TrainingModel, rows: TrainingRows, capacity: int | None
) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Return what makes a batch of rows: in buffers of `capacity` tokens, or padded."""
    pad_token_id: Any = trained.tokenizer.pad_token_id
    if capacity is None:
        return functools.partial(collate_left, pad_token_id=pad_token_id)
    return PackingCollator(pad_token_id, capacity, shares=rows.shared is not None)


def make_trainer(
    settings: TrainingSettings,
    trained: TrainingModel,
    rows: TrainingRows,
    rank: Ranker,
    *,
    num_items: int,
    work: Path,
    processes: int,
    capacity: int | None = None,
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
        capacity: tokens of a buffer, where samples are packed.
    """
    global_batch = settings.batch_size * settings.accumulate * processes
    # Rounded up: rounded down, the last epoch is validated once before its end and once at it.
    validate_steps = math.ceil(settings.validate_every * rows.train.sizes[0] / global_batch)
    if torch.cuda.is_available() and _pays_to_compile(settings, trained, rows, global_batch):
        compile_layers(trained.model)
    prepare_optimizer = None
    if settings.rows_learning_rate is not None:
        factor = settings.rows_learning_rate / settings.learning_rate
        prepare_optimizer = functools.partial(
            lengthen_steps, trained.model, trained.new_ids, factor
        )
    return RecommenderTrainer(
        model=trained.model,
        processing_class=trained.tokenizer,
        train_dataset=rows.train,
        eval_dataset=rows.valid,
        data_collator=make_collator(trained, rows, capacity),
        ranking=RankingValidation(rows.held_out, rank, min(settings.num_beams, num_items)),
        max_tokens_per_batch=settings.max_tokens_per_batch,
        epochs=len(rows.train.sizes),
        prepare_optimizer=prepare_optimizer,
        ema=settings.ema,
        callbacks=[EarlyStopping(settings.patience)],
        args=training_arguments(
            settings,
            work,
            validate_steps,
            max_length=settings.max_length,
            per_device_eval_batch_size=settings.batch_size,
            # A resumed run must stop early where an uninterrupted one would have.
            restore_callback_states_from_checkpoint=True,
            # Batches are packed and copied while the device works on others.
            dataloader_num_workers=2 if trained.packs else 0,
            dataloader_persistent_workers=trained.packs,
            accelerator_config={"non_blocking": trained.packs},
        ),
    )


def _pays_to_compile(
    settings: TrainingSettings, trained: TrainingModel, rows: TrainingRows, global_batch: int
) -> bool:
    # LoRA's dropout, checkpointing and torch.compile do not go together (huggingface/peft#3020).
    adapters_drop = settings.mode == "lora" and settings.lora_dropout > 0
    is_fixed = trained.packs and not (adapters_drop and settings.gradient_checkpointing)
    return is_fixed and len(rows.train) // global_batch >= COMPILED_FROM
