"""Samples laid out as trees, so that what several of them begin with is computed once.

The hidden state of a token depends on the tokens before it in its own sample. So two samples that
begin alike, as a user's histories of growing length do behind one prompt template, can share those
tokens: laid out depth first, a tree of samples is one sequence in which token k is seen by the
tokens of its own branch, and those are the tokens from k up to `ends[k]`. Positions are those in
the sample. What is shared is found by comparing ids, so that nothing depends on how a prompt
template is written; a sample that begins like no other is a tree of its own.

Losses and gradients are the sums of those of the samples (`lcrec.modeling.batches`); which models
bear the masks is for `lcrec.modeling.probe` to find out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lcrec.prompts.rows import IGNORED, TASK_NUMBERS

BLOCK = 128  # tokens; flex attention computes in blocks of as many
CHUNK = 64  # queries that a CPU computes at a time, from the keys that one of them sees
# Answers are scored outside of what is compiled; rounded up, their numbers are few all the same.
_ANSWERS = 128
Mask = TypeVar("Mask")


@dataclass
class PackingCollator:
    """Makes buffers of a batch of rows, in which rows that begin alike share their beginning.

    Rows are put in the order of their ids, so that those which share most stand side by side, and
    into one buffer after another.

    Attributes:
        pad_token_id: fills what is left of a buffer; each such token sees itself alone.
        capacity: tokens of a buffer; of a batch with a longer row, as many as that has.
        shares: whether beginnings are shared; otherwise each row stands whole.
    """

    pad_token_id: int
    capacity: int
    shares: bool = True

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch in buffers.

        Args:
            rows: of `tokenise_rows`: `input_ids`, `prompt_length` and `task`.

        Returns:
            `task`, the place in `TASKS` of each sample, int64 [samples]; `input_ids`,
            `position_ids` and `ends` (the place behind the last token that sees this one), int64
            [buffers, capacity]; and for every answer token its value, the place before it, from
            which it is predicted, and its sample: `labels` (`IGNORED` where a buffer has fewer
            than another), `places` and `samples`, int64 [buffers, answers].
        """
        buffers = self._fill(rows)
        shape = (len(buffers), buffers[0].capacity)
        input_ids, positions = np.full(shape, self.pad_token_id), np.zeros(shape, dtype=np.int64)
        ends = np.tile(np.arange(1, shape[1] + 1), (len(buffers), 1))
        # The Trainer counts labels from the second on, as none is predicted before it.
        widest = 1 + max(len(buffer.answers) for buffer in buffers)
        scored = np.zeros((3, len(buffers), -(-widest // _ANSWERS) * _ANSWERS), dtype=np.int64)
        scored[0] = IGNORED
        for number, buffer in enumerate(buffers):
            used = slice(len(buffer.ids))
            input_ids[number, used], positions[number, used] = buffer.ids, buffer.positions
            ends[number, used] = buffer.ends()
            scored[:, number, 1 : 1 + len(buffer.answers)] = np.transpose(buffer.answers)
        labels, places, samples = torch.from_numpy(scored)
        return {
            "task": torch.tensor([TASK_NUMBERS[row["task"]] for row in rows]),
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(positions),
            "ends": torch.from_numpy(ends),
            "labels": labels,
            "places": places,
            "samples": samples,
        }

    def count_tokens(self, rows: list[dict[str, Any]]) -> int:
        """Return how many tokens are computed for a batch of rows."""
        return sum(len(buffer.ids) for buffer in self._fill(rows))

    def repack(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch in buffers of today's `capacity`, whatever it was when it was made."""
        if batch["input_ids"].shape[1] == self.capacity:
            return batch
        rows: list[Any] = [None] * len(batch["task"])
        tasks, device = batch["task"].tolist(), batch["task"].device
        order = np.arange(batch["input_ids"].shape[1])
        names = ("input_ids", "ends", "labels", "places", "samples")
        for ids, ends, labels, places, samples in zip(
            *(batch[name].cpu().numpy() for name in names), strict=True
        ):
            scored = labels != IGNORED
            for sample in np.unique(samples[scored]).tolist():
                own = scored & (samples == sample)
                first = places[own][0]
                prompt = ids[(order <= first) & (ends > first)].tolist()
                rows[sample] = {
                    "input_ids": prompt + labels[own].tolist(),
                    "prompt_length": len(prompt),
                    "task": list(TASK_NUMBERS)[tasks[sample]],
                }
        return {name: value.to(device) for name, value in self(rows).items()}

    def _fill(self, rows: list[dict[str, Any]]) -> list["_Buffer"]:
        capacity = max(self.capacity, *(len(row["input_ids"]) for row in rows))
        buffers = [_Buffer(capacity, self.shares)]
        for sample in sorted(range(len(rows)), key=lambda number: rows[number]["input_ids"]):
            row = sample, rows[sample]["input_ids"], rows[sample]["prompt_length"]
            if not buffers[-1].add(*row):
                buffers.append(_Buffer(capacity, self.shares))
                buffers[-1].add(*row)
        return buffers


class _Buffer:
    """A buffer that is being filled.

    Attributes:
        capacity: tokens it holds at most.
        ids, positions: of every token so far.
        answers: per answer token its value, the place it is predicted from, and its sample.
    """

    def __init__(self, capacity: int, shares: bool) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.answers: list[tuple[int, int, int]] = []
        self.capacity, self._shares = capacity, shares
        self._ends: list[int] = []
        self._row: list[int] = []  # the last row, and the place of each of its tokens
        self._path: list[int] = []

    def add(self, sample: int, row: list[int], prompt_length: int) -> bool:
        """Add a row if there is room for what it does not share with the last one; tell whether."""
        kept = row[:-1]  # nothing is predicted from the last token
        shared = _common(self._row, kept) if self._shares else 0
        start, new = len(self.ids), len(kept) - shared
        if start + new > self.capacity:
            return False
        self._close(shared)
        self.ids += kept[shared:]
        self.positions += range(shared, len(kept))
        self._ends += [0] * new
        self._row, self._path = kept, [*self._path[:shared], *range(start, start + new)]
        self.answers += [
            (row[place], self._path[place - 1], sample) for place in range(prompt_length, len(row))
        ]
        return True

    def ends(self) -> list[int]:
        """Return for every token the place behind the last one that sees it."""
        self._close(0)
        return self._ends

    def _close(self, shared: int) -> None:
        for place in self._path[shared:]:
            self._ends[place] = len(self.ids)


def _common(one: list[int], two: list[int]) -> int:
    """Return with how many equal tokens two rows begin."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(two)))


def attention_masks(config: PreTrainedConfig, ends: Tensor, positions: Tensor) -> Any:
    """Return the masks of buffers, in the form that the model's attention takes.

    Args:
        config: the model's.
        ends, positions: of a `PackingCollator`, int64 [buffers, capacity].

    Returns:
        A `BlockMask` for flex attention; for SDPA bool, for eager attention additive float32
        [buffers, 1, capacity, capacity]; or one per kind of layer, see `layer_masks`.
    """
    kind = config._attn_implementation
    if kind == "flex_attention":
        return layer_masks(config, lambda window: _block_mask(ends, positions, window))
    if kind == "sdpa" and ends.device.type == "cpu":
        ALL_ATTENTION_FUNCTIONS.register("sdpa", _sdpa_in_chunks)
    places = torch.arange(ends.shape[1], device=ends.device)
    seen = (places[:, None] >= places) & (places[:, None] < ends[:, None])

    def dense(window: int | None) -> Tensor:
        mask = seen
        if window is not None:
            mask = mask & (positions[:, :, None] - positions[:, None] < window)
        if kind == "sdpa":
            return mask[:, None]
        hidden = torch.full(mask.shape, torch.finfo(torch.float32).min, device=mask.device)
        return hidden.masked_fill(mask, 0)[:, None]

    return layer_masks(config, dense)


def _sdpa_in_chunks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute SDPA; in training, for some queries at a time and without the keys none of them sees.

    A tree's tokens see few of each other, and SDPA on a CPU computes all pairs. Under autocast it
    does so in float32, as products of that size are no faster in bf16, and gradients are slower.
    """
    length = key.shape[2]
    seen: list[Tensor] = []
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        masks = attention_mask.split(CHUNK, 2)
        square = query.shape[2] == attention_mask.shape[2] == length
        if square and length > CHUNK and torch.is_grad_enabled():
            seen = [mask.flatten(0, 2).any(0).nonzero()[:, 0] for mask in masks]
    # To copy the keys pays where most are left out.
    if 2 * sum(map(len, seen)) >= len(seen) * length or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    dtype, found = value.dtype, []
    query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):
        for queries, mask, places in zip(query.split(CHUNK, 2), masks, seen, strict=True):
            keys, values = key.index_select(2, places), value.index_select(2, places)
            own_mask = mask.index_select(3, places)
            found.append(
                sdpa_attention_forward(module, queries, keys, values, own_mask, **kwargs)[0]
            )
    return torch.cat(found, 1).to(dtype), None


def layer_masks(
    config: PreTrainedConfig, make: Callable[[int | None], Mask]
) -> Mask | dict[str, Mask]:
    """Return the masks of all layers, in the form that the model's family takes.

    Families whose layers differ take one mask per kind of layer; the others take a single one.

    Args:
        config: the model's.
        make: makes a mask, for a sliding window in tokens or for none.
    """
    config = config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    if not window:
        return make(None)
    if getattr(config, "layer_types", None) is None:
        return make(window)
    return {"full_attention": make(None), "sliding_attention": make(window)}


def _block_mask(ends: Tensor, positions: Tensor, window: int | None) -> BlockMask:
    """Return the mask for flex attention, its blocks found without looking at every pair.

    A block of tokens is seen by a later one if one of its tokens is seen by the first of that one,
    and whole if each is seen by the last. Everything stays on the device.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & (query < ends[batch, key])
        if window is not None:
            seen = seen & (positions[batch, query] - positions[batch, key] < window)
        return seen

    buffers, capacity = ends.shape
    blocks = -(-capacity // BLOCK)
    # What lies behind the end of a buffer is seen by nothing.
    padded = torch.nn.functional.pad(ends, (0, blocks * BLOCK - capacity))
    by_block = padded.view(buffers, 1, 1, blocks, BLOCK)
    first = torch.arange(blocks, device=ends.device)[:, None] * BLOCK
    later = first > first.T
    whole = later & (by_block.amin(-1) >= first + BLOCK)
    if window is not None:  # which whole blocks need not be inside of
        whole = torch.zeros_like(whole)
    partial = (first == first.T) | (later & (by_block.amax(-1) > first) & ~whole)
    return BlockMask.from_kv_blocks(
        *_listed(partial),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(capacity, capacity),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return for bool [..., query, key] how many are true in a row, and which, those first."""
    which = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int(), which.int()
