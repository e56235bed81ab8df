"""Samples packed into buffers of one size, for devices that want large and even work.

A buffer is a row of `capacity` tokens, filled with whole samples one after another. Positions
restart at each sample, and transformers makes of that the mask that keeps samples apart, in every
attention implementation; so no token is padding that others wait for, every token sees something,
and each step has the same shape, which a compiled model needs. Losses and gradients are those of
the samples padded side by side.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lcrec.core.errors import InputError
from lcrec.prompts.rows import IGNORED, TASK_NUMBERS

# Answers are scored outside of what is compiled; rounded up, their numbers are few all the same.
_ANSWERS = 128


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
