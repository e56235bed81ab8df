"""How a batch lies on a device, and the losses of its samples.

Rows are padded on the left, side by side; a batch that is too large is computed in parts of like
length. On CUDA, and wherever samples begin alike, they are put into buffers instead
(`lcrec.modeling.trees`): what several begin with is computed once, and no token is padding that
others wait for. On CUDA every step then has the same shape, which a compiled model needs. Losses
and gradients are the same either way.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

from lcrec.modeling.trees import attention_masks
from lcrec.prompts.rows import IGNORED

FEATURES = ("input_ids", "attention_mask", "position_ids")


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
        if part["labels"].device.type == "cpu":
            part = _used(part)
        if number > buffer:
            part["labels"] = torch.full_like(part["labels"], IGNORED)
        parts.append(part)
    return parts


def _used(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a buffer without what fills it up, where no step needs to look like another."""
    scored = (part["labels"][0] != IGNORED).nonzero()
    answers = int(scored[-1]) + 1
    tokens = int(part["places"].max()) + 1
    widths = dict.fromkeys(("labels", "places", "samples"), answers)
    return {
        name: value if name == "task" else value[:, : widths.get(name, tokens)]
        for name, value in part.items()
    }


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
    inner: Any = getattr(model, "module", model)  # inside what shares the work out
    positions = inputs["position_ids"]
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=attention_masks(inner.config, inputs["ends"], positions),
        position_ids=positions,
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
