"""What a fine-tune will cost: parameters, tokens, memory per device, hours (`lcrec plan`).

A model is planned from its shape alone (weights on PyTorch's `meta` device), so one that no
laptop could hold is planned on a laptop.

Memory is an estimate. Trained parameters take 16 bytes (float32 weight and gradient, AdamW's two
moments: ZeRO, arXiv 1910.02054, section 3), frozen ones what they are stored in. What the forward
pass keeps for the backward pass is counted on the model itself, run on tensors without memory; with
checkpointing it is one vector per token and layer, and one layer whole. Hours follow from timed
steps, or from operations: 2 per parameter and token forward, 2 backward through frozen weights, 4
through trained ones (Kaplan et al., arXiv 2001.08361, section 2.1), 2 again with checkpointing.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lcrec.core.console import progress
from lcrec.core.device import pick_device, precision_note
from lcrec.core.errors import InputError
from lcrec.core.pretrained import load_config, load_tokenizer, reason_of
from lcrec.modeling.base import DTYPES, base_model
from lcrec.modeling.batches import (
    is_packed,
    padded_losses,
    sample_losses,
    split_batch,
    split_buffers,
)
from lcrec.modeling.item_rows import weight_of
from lcrec.modeling.recipe import HardwareSettings, TrainingSettings
from lcrec.prompts.rows import IGNORED, EpochRows, row_lengths

# Makes a batch of rows of `tokenise_rows`.
Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
# NF4 with double quantisation: 4 bits and 0.127 for the scales (arXiv 2305.14314, section 3).
STORED_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "8bit": 1.0, "4bit": 4.127 / 8}
TRAINED_BYTES = 16.0
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A model in numbers of parameters.

    `linear` counts the blocks' weights (those that are quantised), `ends` the embedding and
    an untied head, `block` the largest block.
    """

    total: int
    trainable: int
    linear: int
    ends: int
    block: int
    head: int
    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Activations:
    """Bytes that are held between forward and backward pass: per token, per scored one, once."""

    per_token: float
    per_answer: float
    fixed: float


@dataclass(frozen=True)
class Work:
    """A run in numbers: samples and tokens of all epochs, and the largest batch of one device."""

    samples: int
    tokens: int
    answer_tokens: int
    steps: int
    batch_tokens: int
    batch_answers: int


def load_shape(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a base model without weights, on the meta device, and its tokenizer.

    Raises:
        InputError: it is not there, or is no causal language model.
    """
    remedy = "name a model on the hub, or a folder that holds config.json and a tokenizer"
    tokenizer = load_tokenizer("--base", name, remedy=remedy)
    config = load_config("--base", name, remedy=remedy)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise InputError(
            f"--base {name}: cannot be planned as a causal language model ({reason_of(error)}); "
            f"{remedy}"
        ) from None
    return model, tokenizer


def measure_shape(model: PreTrainedModel | PeftModel) -> Shape:
    """Count the parameters of a model as it will be trained, the quantised ones one by one."""
    base = base_model(model)
    config = base.config.get_text_config()
    table = weight_of(base.get_input_embeddings())
    head = weight_of(base.get_output_embeddings())
    tied = bool(base.config.tie_word_embeddings)
    ends = table.numel() + (0 if tied else head.numel())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = count_parameters(model)
    added = trainable if trainable < total else 0
    linear = total - ends - added
    return Shape(
        total=total,
        trainable=trainable,
        linear=linear,
        ends=ends,
        block=-(-linear // config.num_hidden_layers),
        head=head.numel(),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=head.shape[0],
    )


def count_parameters(model: torch.nn.Module) -> int:
    """Count a model's parameters, those of 4 bits, which bitsandbytes packs by twos, one by one."""
    return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())


def measure_activations(model: PreTrainedModel | PeftModel, precision: str) -> Activations:
    """Count what a forward pass keeps for the backward pass, on tensors without memory.

    Args:
        model: on the meta device, as it will be trained.
        precision: `fp32`, `bf16` or `fp16`.
    """
    model = copy.deepcopy(model).train()
    vocabulary = measure_shape(model).vocabulary
    arithmetic = torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def held(rows: int, width: int, answers: int) -> int:
            kept: dict[int, Tensor] = {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in weights:
                    kept[storage._cdata] = tensor
                return tensor

            ids = torch.ones(rows, width, dtype=torch.int64)
            labels = torch.full_like(ids, IGNORED)
            labels[:, width - answers :] = 1
            batch = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "position_ids": torch.arange(width).expand(rows, -1),
                "labels": labels,
            }
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), arithmetic:
                padded_losses(model, batch, answers)
            return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

        small, wide, scored = held(4, 64, 1), held(8, 64, 1), held(4, 64, 9)
    per_answer = (scored - small) / 32
    per_token = (wide - small - 4 * per_answer) / 256
    # Beside what is kept: the logits, their float32 copy where they are less, and its gradient.
    logits = vocabulary * (8 if precision == "fp32" else 10)
    fixed = small - 256 * per_token - 4 * per_answer
    return Activations(per_token, per_answer + logits, fixed)


def measure_work(
    train: Dataset,
    *,
    batch_size: int,
    accumulate: int,
    processes: int,
    max_tokens: int | None,
    samples: int | None = None,
) -> Work:
    """Count a run's tokens, from the rows of an epoch (`tokenise_rows`) in batch order.

    Args:
        samples: of all epochs, which are taken to be like this one; None: there is one epoch.
    """
    lengths = row_lengths(train)
    answers = lengths - np.asarray(train["prompt_length"])
    widest = batch_answers = 0
    for start in range(0, len(lengths), batch_size):
        batch = slice(start, start + batch_size)
        rows = len(lengths[batch])
        widest = max(widest, rows * int(lengths[batch].max()))
        batch_answers = max(batch_answers, rows * int(answers[batch].max()))
    if max_tokens is not None and widest > max_tokens:
        widest = max(max_tokens, int(lengths.max()))
        batch_answers = min(batch_answers, widest)
    samples = samples or len(lengths)
    return Work(
        samples=samples,
        tokens=int(lengths.sum()) * samples // len(lengths),
        answer_tokens=int(answers.sum()) * samples // len(lengths),
        steps=-(-samples // (batch_size * accumulate * processes)),
        batch_tokens=widest,
        batch_answers=batch_answers,
    )


def memory(
    shape: Shape,
    work: Work,
    activations: Activations,
    *,
    precision: str,
    quantize: str,
    checkpointing: bool,
    processes: int,
    sharding: str,
    ema: bool = False,
) -> float:
    """Return the estimated bytes one device needs.

    Args:
        shape, work, activations: the model and the run.
        precision: `fp32`, `bf16` or `fp16`.
        quantize: `none`, `8bit` or `4bit`: what the blocks' frozen weights are stored in.
        checkpointing: whether activations are computed again on the way back.
        processes: the devices that weights are sharded over.
        sharding: `none` (every device holds all: DDP), `zero2` (gradients and moments shared
            out), or `full` (FSDP, ZeRO-3: weights too).
        ema: whether an average of the trained weights is held too.
    """
    frozen = shape.total - shape.trainable
    frozen_linear = min(frozen, shape.linear)
    stored = STORED_BYTES[precision if quantize == "none" else quantize]
    weights = frozen_linear * stored + (frozen - frozen_linear) * STORED_BYTES[precision]
    trained = shape.trainable * 4.0
    states = shape.trainable * (TRAINED_BYTES - 4.0 + 4.0 * ema)
    gathered = 0.0
    if sharding != "none":
        states /= processes
    if sharding == "full":
        # Two blocks, or the ends, are whole at a time.
        gathered = max(2 * shape.block, shape.ends) * STORED_BYTES[precision]
        weights, trained = weights / processes, trained / processes
    per_token = activations.per_token
    if checkpointing:  # a layer's input each, in what the layers pass on, and one layer whole
        passed_on = 4.0 if shape.trainable == shape.total else STORED_BYTES[precision]
        per_token = shape.layers * shape.width * passed_on + per_token / shape.layers
    # What autocast makes of weights; FSDP gathers them in the type of the arithmetic.
    fixed = 0.0 if sharding == "full" else activations.fixed
    held = fixed + work.batch_tokens * per_token
    held += work.batch_answers * activations.per_answer
    return weights + trained + states + gathered + held


def time_steps(
    model: torch.nn.Module,
    train: Dataset,
    *,
    batch_size: int,
    collate: Collator,
    precision: str,
    max_tokens: int | None,
    steps: int = 4,
) -> float:
    """Return the seconds a token would take in one process, from some batches trained.

    The model is of no use afterwards.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    arithmetic = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    starts = np.linspace(0, max(0, len(train) - batch_size), steps + 1).astype(int).tolist()
    model.train()
    seconds = tokens = 0.0
    for number, start in enumerate(progress(starts, "time", "steps", leave=False)):
        rows = [train[row] for row in range(start, min(start + batch_size, len(train)))]
        batch = {k: v.to(device) for k, v in collate(rows).items()}
        began = time.monotonic()
        if is_packed(batch):
            parts = split_buffers(batch, len(batch["input_ids"]))
        else:
            parts = split_batch(batch, max_tokens, lambda count: count)
        for part in parts:
            with arithmetic:
                losses, _ = sample_losses(model, part)
            losses[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:  # the first makes ready what the others find there
            seconds += time.monotonic() - began
            tokens += sum(len(row["input_ids"]) for row in rows)
    return seconds / tokens


def operations(shape: Shape, work: Work, *, checkpointing: bool) -> float:
    """Return the floating-point operations of the whole run."""
    share = min(1.0, shape.trainable / shape.total)
    through = 4 + 2 * share + (2 if checkpointing else 0)
    scored = work.answer_tokens * shape.head * 6
    return work.tokens * shape.linear * through + scored


def plan(
    model: PreTrainedModel | PeftModel,
    train: EpochRows,
    settings: TrainingSettings,
    hardware: HardwareSettings,
    collate: Collator,
    activations: Activations,
    shared: float | None = None,
) -> str:
    """Return what `lcrec plan` prints.

    Args:
        model: as it will be trained; on the meta device where `hardware.tflops` is given.
        train: the rows of all epochs; the first is counted.
        settings: the run's.
        hardware: what it will run on.
        collate: makes a batch of rows, as training does.
        activations: of the model.
        shared: share of the tokens that is computed where samples share what they begin with.
    """
    precision, quantize = settings.precision, settings.quantize
    checkpointing, processes = settings.gradient_checkpointing, hardware.devices
    shape = measure_shape(model)
    work = measure_work(
        train.first,
        samples=len(train),
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        processes=processes,
        max_tokens=settings.max_tokens_per_batch,
    )
    tokens, computed = work.tokens, ""
    if shared is not None:
        computed = f", computed {work.tokens * shared:,.0f}, as beginnings are shared"
        work = replace(
            work,
            tokens=round(work.tokens * shared),
            batch_tokens=max(round(work.batch_tokens * shared), train.longest),
        )
    base_bits = "" if quantize == "none" else f", base in {quantize.removesuffix('bit')} bits"
    lines = [
        describe_shape(shape),
        f"Samples, tokens   {work.samples:,} and {tokens:,}, in answers "
        f"{work.answer_tokens:,}{computed} (all epochs)",
        f"Updates           {work.steps:,}",
        f"Largest batch     {work.batch_tokens:,} tokens on a device",
        "",
        f"Memory per device, estimated ({settings.mode}, {precision}{base_bits}"
        f"{', gradient checkpointing' if checkpointing else ''}):",
    ]
    ways = {
        "one device, or DDP": ("none", 1),
        f"ZeRO-2 on {max(processes, 2)}": ("zero2", max(processes, 2)),
        f"FSDP or ZeRO-3 on {max(processes, 2)}": ("full", max(processes, 2)),
    }
    for name, (sharding, devices) in ways.items():
        needed = memory(
            shape,
            work,
            activations,
            precision=precision,
            quantize=quantize,
            checkpointing=checkpointing,
            processes=devices,
            sharding=sharding,
            ema=settings.ema is not None,
        )
        lines.append(f"  {name:<23} {needed / GIB:8.2f} GiB")
    if hardware.tflops is None and pick_device().type == "cpu":
        lines.append("  On a CPU add 1 to 2 GiB: libraries, validation, what the allocator keeps.")
    lines.append("")
    if hardware.tflops is None:
        if checkpointing:
            base_model(model).gradient_checkpointing_enable()
        seconds = tokens * time_steps(
            model.to(pick_device()),  # type: ignore[arg-type]
            train.first,
            batch_size=settings.batch_size,
            collate=collate,
            precision=precision,
            max_tokens=settings.max_tokens_per_batch,
        )
        source = "from timed steps"
    else:
        amount = operations(shape, work, checkpointing=checkpointing)
        seconds, source = estimate_seconds(amount, hardware)
    lines.append(
        f"Time              {describe_seconds(seconds / processes)} on {processes} device(s), "
        f"{source}, without validation"
    )
    if hardware.tflops is None and (note := precision_note(precision, shape.total)):
        lines.append(note)
    return "\n".join(lines)


def describe_shape(shape: Shape) -> str:
    """Return the line that says how large a model is."""
    share = 100 * shape.trainable / shape.total
    return f"Parameters        {shape.total:,}, trained {shape.trainable:,} ({share:.2f} %)"


def estimate_seconds(amount: float, hardware: HardwareSettings) -> tuple[float, str]:
    """Return the seconds that so many operations take on one device, and how that was found."""
    assert hardware.tflops is not None
    seconds = amount / (hardware.tflops * 1e12 * hardware.mfu)
    return seconds, (
        f"estimated from {amount:.2e} operations at {hardware.mfu:.0%} of "
        f"{hardware.tflops:g} TFLOPS"
    )


def describe_seconds(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
