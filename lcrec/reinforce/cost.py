"""What reinforcement will cost: prompts, memory per device, hours by part (`lcrec plan reinforce`).

A prompt is computed once for all its answers, in rollouts, reference and update alike; behind it
come the tokens of the answers but for the last ones. Memory and operations are counted from that as
for a fine-tune (`lcrec.modeling.cost`), the reference's copy of the trained weights besides. Where
FSDP2 shards them, validation holds all weights on every device, and so does the start. Time is that
of a few steps, or follows from the operations.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from lcrec.core.console import progress
from lcrec.data.splits import EvalCases
from lcrec.generate.recommender import Recommender
from lcrec.generate.search import search
from lcrec.modeling.base import DTYPES
from lcrec.modeling.cost import (
    GIB,
    STORED_BYTES,
    TRAINED_BYTES,
    Shape,
    Work,
    describe_seconds,
    describe_shape,
    estimate_seconds,
    measure_activations,
    measure_shape,
    memory,
)
from lcrec.modeling.recipe import HardwareSettings
from lcrec.prompts.encoder import item_token_ids
from lcrec.reinforce.rollouts import draw_items
from lcrec.reinforce.settings import ReinforceInputs, ReinforceSettings
from lcrec.reinforce.start import encode_histories, load_start, load_start_shape, make_recommender
from lcrec.reinforce.trainer import (
    CaseCollator,
    count_updates,
    disable_dropout,
    draw_cases,
    make_ranker,
)
from lcrec.reinforce.update import answer_log_probabilities

SAMPLED = 500  # cases whose prompts are measured
STEPS, USERS = 4, 32  # timed of each part, behind one that makes ready


@dataclass(frozen=True)
class ReinforceWork:
    """A run in numbers.

    Attributes:
        rollouts: prompts answered in all epochs.
        updates, validations: of them all; a validation before the first update among them.
        users: ranked in a validation.
        length, longest: tokens of a prompt, on average and at most.
        answer: tokens of an answer that are computed, its last one being only predicted.
        group, beams: answers of a prompt, in rollouts and in validation.
    """

    rollouts: int
    updates: int
    validations: int
    users: int
    length: float
    longest: int
    answer: int
    group: int
    beams: int


def plan(settings: ReinforceSettings, hardware: HardwareSettings, inputs: ReinforceInputs) -> str:
    """Return what `lcrec plan reinforce` prints.

    Args:
        settings, inputs: the run's.
        hardware: what it will run on.

    Raises:
        InputError: the model, or without `tflops` its weights, cannot be loaded; or a prompt is
            longer than its context.
    """
    without_weights = load_start_shape(settings)
    shape = measure_shape(without_weights)
    held_out = inputs.split.valid.sample(settings.validation_users, settings.seed)
    work = measure_work(settings, inputs, without_weights, held_out, hardware.devices)
    reference = 4.0 * shape.trainable * settings.needs_reference
    quantize = inputs.recipe.get("quantize", "none")
    scored = 1 + work.group * work.answer
    tokens = work.longest + work.group * work.answer
    update = partial(
        memory,
        shape,
        Work(0, 0, 0, 0, settings.batch_size * tokens, settings.batch_size * scored),
        measure_activations(without_weights, settings.precision),
        precision=settings.precision,
        quantize=quantize,
        checkpointing=settings.gradient_checkpointing,
    )
    needed = update(processes=1, sharding="none") + reference
    sharded = "not for a quantised base"
    if quantize == "none":
        count = max(2, hardware.devices)
        held = sharded_memory(shape, reference, settings.precision, count)
        held["an update"] = update(processes=count, sharding="full") + reference / count
        most = max(held, key=held.__getitem__)
        sharded = (
            f"{held[most] / GIB:.2f} GiB per device on {count}, most in {most}; "
            f"{reference / count / GIB:.2f} GiB of it the reference"
        )
    if hardware.tflops is None:
        source = "from timed steps"
        parts = time_parts(settings, inputs, held_out, work)
    else:
        counted = operations(shape, work, settings.reuse, settings.gradient_checkpointing)
        _, source = estimate_seconds(sum(counted.values()), hardware)
        parts = {name: estimate_seconds(amount, hardware)[0] for name, amount in counted.items()}
    if not reference:
        del parts["reference"]
    parts = {name: seconds / hardware.devices for name, seconds in parts.items()}
    shares = ", ".join(f"{name} {describe_seconds(seconds)}" for name, seconds in parts.items())
    with_reference = ", with a copy of the trained weights as the reference" * bool(reference)
    return "\n".join(
        [
            describe_shape(shape),
            f"Prompts           {work.rollouts:,} (all epochs), of {work.length:.0f} tokens, at "
            f"most {work.longest:,}; {work.group} answers of {work.answer + 1} tokens to each",
            f"Updates           {work.updates:,}, and {work.validations} validations of "
            f"{work.users:,} users",
            f"Memory            {needed / GIB:.2f} GiB per device, estimated "
            f"({settings.precision}{with_reference})",
            f"  under FSDP2     {sharded}",
            f"Time              {describe_seconds(sum(parts.values()))} on {hardware.devices} "
            f"device(s), {source}: {shares}",
        ]
    )


def sharded_memory(
    shape: Shape, reference: float, precision: str, processes: int
) -> dict[str, float]:
    """Return the bytes that a device holds under FSDP2 while all weights are there, by occasion.

    Args:
        shape: the model.
        reference: bytes of a whole one.
        precision: the arithmetic's, in which weights are gathered.
        processes: the devices that weights are sharded over.
    """
    stored = STORED_BYTES[precision]
    frozen = stored * (shape.total - shape.trainable)
    shards = (TRAINED_BYTES * shape.trainable + frozen + reference) / processes
    return {
        "validation": shards + stored * shape.total,
        "the loading": 4.0 * shape.trainable + frozen,
    }


def measure_work(
    settings: ReinforceSettings,
    inputs: ReinforceInputs,
    model: PreTrainedModel | PeftModel,
    held_out: EvalCases,
    processes: int,
) -> ReinforceWork:
    """Count a run's prompts, and the tokens of some of them; `model` has no weights."""
    rows = draw_cases(settings, inputs.cases, processes)
    updates, every = count_updates(settings, len(rows), processes)
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(int)
    histories = [inputs.cases.history(case) for case in rows.select(chosen)["case"]]
    lengths = [len(ids) for ids in encode_histories(settings, inputs, histories, model)]
    return ReinforceWork(
        rollouts=len(rows) // settings.reuse,
        updates=updates,
        validations=1 + -(-updates // every),  # also before the first update and after the last
        users=len(held_out),
        length=float(np.mean(lengths[:-1])),
        longest=max(lengths),
        answer=inputs.index.codes.shape[1] - 1,
        group=settings.group,
        beams=min(settings.num_beams, len(inputs.index)),
    )


def operations(
    shape: Shape, work: ReinforceWork, reuse: int, checkpointing: bool
) -> dict[str, float]:
    """Return the floating-point operations of the whole run by part."""

    def forward(answers: int) -> tuple[float, float]:  # through the layers, and through the head
        behind = answers * work.answer
        return 2 * shape.linear * (work.length + behind), 2 * shape.head * (1 + behind)

    layers, head = forward(work.group)
    backward = 1 + min(1.0, shape.trainable / shape.total) + checkpointing
    return {
        "rollouts": work.rollouts * (layers + head),
        "reference": work.rollouts * (layers + head),
        "update": work.rollouts * reuse * (layers * (1 + backward) + head * 3),
        "validation": work.validations * work.users * sum(forward(work.beams)),
    }


def time_parts(
    settings: ReinforceSettings, inputs: ReinforceInputs, held_out: EvalCases, work: ReinforceWork
) -> dict[str, float]:
    """Return the seconds that each part of the whole run would take in one process, from some here.

    Raises:
        InputError: the model cannot be loaded.
    """
    set_seed(settings.seed)
    recommender = make_recommender(inputs, load_start(settings))
    model: Any = recommender.model
    disable_dropout(model)
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=settings.learning_rate
    )
    steps = _Steps(settings, recommender, optimizer)
    rank = make_ranker(settings, recommender)
    few = held_out.take(range(min(USERS, len(held_out))))
    spent = dict.fromkeys(("rollouts", "reference", "update"), 0.0)
    collate = CaseCollator(inputs.cases, recommender)
    size = min(settings.batch_size, len(inputs.cases))
    starts = np.linspace(0, len(inputs.cases) - size, STEPS + 1).astype(int).tolist()
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(inputs.cases)).tolist()
    for number, start in enumerate(progress(starts, "time", "steps", leave=False)):
        rows = [{"case": case, "row": 0} for case in order[start : start + size]]
        batch = {name: value.to(model.device) for name, value in collate(rows).items()}
        items, rolled = steps.timed(steps.answer, batch)
        answers = steps.paths[items]
        with torch.no_grad():
            _, referred = steps.timed(steps.log_probs, batch, answers)
        _, updated = steps.timed(steps.update, batch, answers)
        if number:  # the first makes ready what the others find there
            for name, seconds in zip(spent, (rolled, referred, updated), strict=True):
                spent[name] += seconds
    per_prompt = {name: seconds / (STEPS * size) for name, seconds in spent.items()}
    model.eval()
    rank(model, few.take([0]), work.beams)
    _, ranked = steps.timed(partial(rank, model), few, work.beams)
    return {
        "rollouts": work.rollouts * per_prompt["rollouts"],
        "reference": work.rollouts * per_prompt["reference"],
        "update": work.rollouts * settings.reuse * per_prompt["update"],
        "validation": work.validations * work.users * ranked / len(few),
    }


class _Steps:
    """The parts of a step, as training computes them but for sums of no weight."""

    def __init__(
        self,
        settings: ReinforceSettings,
        recommender: Recommender,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.settings, self.recommender, self.optimizer = settings, recommender, optimizer
        self.model: Any = recommender.model
        paths = item_token_ids(recommender.tokenizer, recommender.index)
        self.paths = torch.from_numpy(paths).to(self.model.device)

    def timed(self, part: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        """Return what a part returns, and the seconds it took."""
        kind, precision = self.model.device.type, self.settings.precision
        began = time.monotonic()
        with torch.autocast(kind, DTYPES[precision], enabled=precision != "fp32"):
            found = part(*arguments)
        if kind == "cuda":
            torch.cuda.synchronize()
        return found, time.monotonic() - began

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the items that a batch of prompts is answered with."""
        self.model.eval()
        prompts = batch["input_ids"], batch["attention_mask"]
        trie, group = self.recommender.trie, self.settings.group
        if self.settings.rollouts == "beam":
            return search(self.model, *prompts, trie, group).items
        with torch.no_grad():
            return draw_items(self.model, *prompts, trie, group, torch.Generator()).items

    def log_probs(self, batch: dict[str, Tensor], answers: Tensor) -> Tensor:
        """Return the answers' log-probabilities, as for the reference."""
        return answer_log_probabilities(
            self.model, batch["input_ids"], batch["attention_mask"], answers
        )[0]

    def update(self, batch: dict[str, Tensor], answers: Tensor) -> None:
        """Update the weights, by a loss of no meaning."""
        self.model.train()
        self.log_probs(batch, answers).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
