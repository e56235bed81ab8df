"""How a batch lies on a device, and the losses of its samples.

On a CPU rows are padded on the left, side by side; a batch that is too large is computed in parts
of like length. On CUDA samples are packed into buffers: rows of `capacity` tokens, filled with
whole samples one after another. Positions restart at each sample, and transformers makes of that
the mask that keeps samples apart, in every attention implementation; so no token is padding that
others wait for, every token sees something, and each step has the same shape, which a compiled
model needs. Losses and gradients are the same either way.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lcrec.core.errors import InputError
from lcrec.prompts.rows import IGNORED, TASK_NUMBERS

# Answers are scored outside of what is compiled; rounded up, their numbers are few all the same.
_ANSWERS = 128
FEATURES = ("input_ids", "attention_mask", "position_ids")


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put samples into buffers, the longest first, each into the first buffer with room for it.

    First fit by falling length needs at most 11/9 of the buffers that the best way needs
    (Johnson 1973). Equal lengths keep their order, so the result depends on nothing else.

    Args:
        lengths: tokens of each sample, none above `capacity`.
        capacity: tokens of a buffer.

    Returns:
        For each buffer the numbers of its samples.
    """
    buffers: list[list[int]] = []
    room: list[int] = []
    for sample in np.argsort([-length for length in lengths], kind="stable").tolist():
        length = lengths[sample]
        place = next((b for b, left in enumerate(room) if left >= length), len(buffers))
        if place == len(buffers):
            buffers.append([])
            room.append(capacity)
        buffers[place].append(sample)
        room[place] -= length
    return buffers


@dataclasses.dataclass
class PackingCollator:
    """Makes buffers of a batch of rows.

    Attributes:
        pad_token_id: fills what is left of a buffer, as a sample of its own without an answer.
        capacity: tokens of a buffer.
    """

    pad_token_id: int
    capacity: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch in buffers.

        Args:
            rows: of `tokenise_rows`: `input_ids`, `prompt_length` and `task`.

        Returns:
            `task`, the place in `TASKS` of each sample, int64 [samples]; `input_ids` and
            `position_ids`, int64 [buffers, capacity]; and for every answer token its value, the
            place before it, from which it is predicted, and its sample: `labels` (`IGNORED` where
            a buffer has fewer than another), `places` and `samples`, int64 [buffers, answers].

        Raises:
            InputError: a row is longer than a buffer.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        if max(lengths) > self.capacity:
            raise InputError(
                f"--max-tokens-per-batch {self.capacity}: a sample has {max(lengths)} tokens; "
                "take at least as many"
            )
        buffers = first_fit(lengths, self.capacity)
        shape = (len(buffers), self.capacity)
        input_ids, positions = np.full(shape, self.pad_token_id), np.empty(shape, dtype=np.int64)
        answers: list[list[np.ndarray]] = []
        for buffer, members in enumerate(buffers):
            start, found = 0, [np.empty((3, 0), dtype=np.int64)]
            for sample in members:
                ids, prompt = np.asarray(rows[sample]["input_ids"]), rows[sample]["prompt_length"]
                end = start + len(ids)
                input_ids[buffer, start:end] = ids
                positions[buffer, start:end] = np.arange(len(ids))
                places = np.arange(start + prompt - 1, end - 1)
                found.append(np.stack([ids[prompt:], places, np.full(len(places), sample)]))
                start = end
            positions[buffer, start:] = np.arange(self.capacity - start)
            answers.append(found)
        # The Trainer counts labels from the second on, as none is predicted before it.
        widest = 1 + max(sum(part.shape[1] for part in found) for found in answers)
        scored = np.zeros((3, len(buffers), -(-widest // _ANSWERS) * _ANSWERS), dtype=np.int64)
        scored[0] = IGNORED
        for buffer, found in enumerate(answers):
            joined = np.concatenate(found, axis=1)
            scored[:, buffer, 1 : 1 + joined.shape[1]] = joined
        labels, places, samples = torch.from_numpy(scored)
        return {
            "task": torch.tensor([TASK_NUMBERS[row["task"]] for row in rows]),
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(positions),
            "labels": labels,
            "places": places,
            "samples": samples,
        }

    def repack(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch in buffers of today's `capacity`, whatever it was when it was made."""
        if batch["input_ids"].shape[1] == self.capacity:
            return batch
        rows: list[Any] = [None] * len(batch["task"])
        tasks, device = batch["task"].tolist(), batch["task"].device
        parts = {name: value.cpu().numpy() for name, value in batch.items()}
        for ids, positions, labels, places, samples in zip(
            *(parts[n] for n in ("input_ids", "position_ids", "labels", "places", "samples")),
            strict=True,
        ):
            starts = np.flatnonzero(positions == 0)
            scored = labels != IGNORED
            for sample in np.unique(samples[scored]).tolist():
                first = places[scored & (samples == sample)].min()
                start = starts[starts <= first].max()
                end = places[scored & (samples == sample)].max() + 2  # behind the answer
                rows[sample] = {
                    "input_ids": ids[start:end].tolist(),
                    "prompt_length": int(first) + 1 - int(start),
                    "task": list(TASK_NUMBERS)[tasks[sample]],
                }
        return {name: value.to(device) for name, value in self(rows).items()}


def is_packed(batch: dict[str, Tensor]) -> bool:
    """Tell whether a batch is in buffers, and not padded rows."""
    return "places" in batch


def split_buffers(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return a batch as `count` parts of a buffer each; those too many are scored nowhere.

    Args:
        batch: from a `PackingCollator`.
        count: at least the number of buffers.
    """
    parts = []
    for number in range(count):
        buffer = min(number, len(batch["input_ids"]) - 1)
        part = {
            name: value if name == "task" else value[buffer : buffer + 1]
            for name, value in batch.items()
        }
        if number > buffer:
            part["labels"] = torch.full_like(part["labels"], IGNORED)
        parts.append(part)
    return parts


def split_batch(
    batch: dict[str, Tensor], max_tokens: int | None, gather: Callable[[Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    """Split a left-padded batch into parts of rows of like length, without needless padding.

    Args:
        batch: from `collate_left`.
        max_tokens: how many tokens a part may hold, padding included; at least one row goes in.
        gather: collects a tensor from all processes, which split alike: where weights are
            sharded, processes meet in every forward.
    """
    rows, width = batch["input_ids"].shape
    if max_tokens is None:
        return [batch]
    count = -(-rows // max(1, max_tokens // width))
    count = int(gather(torch.tensor([count], device=batch["input_ids"].device)).max())
    if count == 1:
        return [batch]
    lengths = batch["attention_mask"].sum(1)
    parts = []
    for chosen in lengths.argsort(stable=True).tensor_split(min(count, rows)):
        used = int(lengths[chosen].max())
        parts.append(
            {
                name: value[chosen, -used:] if value.dim() == 2 else value[chosen]
                for name, value in batch.items()
            }
        )
    return parts


def sample_losses(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, CausalLMOutput]:
    """Return the summed cross-entropy of each sample's answer.

    Only what answers are predicted from passes through the head.

    Args:
        model: a causal language model.
        inputs: from `collate_left`, or one part of `split_buffers`.

    Returns:
        Per sample the sum and the number of answer tokens, float32 [samples, 2], and what the
        model put out.
    """
    if not is_packed(inputs):
        labels = inputs["labels"]
        width = int(labels.shape[1] - (labels != IGNORED).any(0).int().argmax())
        return padded_losses(model, inputs, width)
    (labels,), (places,), (samples,) = (inputs[name] for name in ("labels", "places", "samples"))
    outputs = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        use_cache=False,
        logits_to_keep=places,
    )
    losses = F.cross_entropy(
        outputs.logits[0].float(), labels, ignore_index=IGNORED, reduction="none"
    )
    sums = torch.zeros(len(inputs["task"]), 2, device=losses.device)
    return sums.index_add(0, samples, torch.stack((losses, labels != IGNORED), 1)), outputs


def padded_losses(
    model: nn.Module, inputs: dict[str, Tensor], width: int
) -> tuple[Tensor, CausalLMOutput]:
    """Return `sample_losses` of rows that are padded on the left.

    The answers are the last columns: only those pass through the head, and logits are
    [batch, width, vocabulary].

    Args:
        model, inputs: as for `sample_losses`.
        width: tokens of the longest answer.
    """
    labels = inputs["labels"]
    features = {name: inputs[name] for name in FEATURES}
    # The positions before the answers, by number: to cut off the last would copy all logits.
    end = labels.shape[1] - 1
    before = torch.arange(end - width, end, device=labels.device)
    outputs = model(**features, use_cache=False, logits_to_keep=before)
    logits = outputs.logits.float()
    targets = labels[:, -width:]
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)
    return torch.stack((losses.sum(1), (targets != IGNORED).sum(1)), 1), outputs


@torch.no_grad()
def takes_buffers(model: PreTrainedModel) -> bool:
    """Try whether the model keeps the samples of a buffer apart.

    Models whose layers carry a state from token to token, or make masks their own way, may not.

    Args:
        model: a causal language model, by the attention that it has now.
    """
    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(vocabulary, (size,), generator=generator) for size in (9, 5, 7)]
    was_training = model.training
    model.eval()
    try:
        alone = [model(input_ids=ids[None].to(device), use_cache=False).logits for ids in samples]
        positions = torch.cat([torch.arange(len(ids)) for ids in samples])
        together = model(
            input_ids=torch.cat(samples)[None].to(device),
            position_ids=positions[None].to(device),
            use_cache=False,
        ).logits
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError):
        return False
    finally:
        model.train(was_training)
    expected = torch.cat(alone, dim=1).float()
    # What another order of sums may change, in the coarsest type that weights are stored in.
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    scale = float(expected.abs().max())
    tolerance = (1e-4 + 32 * max(torch.finfo(kind).eps for kind in types)) * max(1.0, scale)
    return float((together.float() - expected).abs().max()) <= tolerance
