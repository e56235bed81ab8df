"""Trials that tell whether a model bears the masks by which samples and beams share tokens.

`takes_trees` and `try_packed_step` are of samples in training; `passes_trial` of beams in decoding:

Whether a model takes a 4-D mask or lets its cache be copied to the beams, and means by it what
`lcrec.generate.beams` does, depends on its family, on the attention implementation and on the
version of transformers. So it is tried: every item of a small tree is scored by the search and by
plain forward passes, for a prompt with padding and one without, both longer than the model's
sliding window, which is narrowed meanwhile, and for a batch whose prompts begin alike.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from lcrec.core.device import whole_float32
from lcrec.modeling.batches import padded_losses, sample_losses
from lcrec.modeling.trees import BLOCK, PackingCollator
from lcrec.prompts.rows import collate_left

_log = logging.getLogger(__name__)
_verdicts: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
_lock = threading.Lock()

_WINDOW = 8  # tokens; small, so that the trial costs little whatever the model's own window
_PROMPT = 16  # tokens
_PADDING = 3  # tokens, so that the padded prompt too is longer than the window
# Config fields that hold the sliding window, which is handled, or say which layers have it.
_HANDLED = {
    "sliding_window",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "max_window_layers",
}


def passes_trial(model: Any, beam_search: Callable[..., Any]) -> bool:
    """Tell whether `beam_search` gives the scores of plain forward passes; warn if it does not.

    The verdict is kept as long as the model lives.

    Args:
        model: a causal language model or encoder-decoder in eval mode, with or without adapters.
        beam_search: the search on trial, called with model, input_ids `[batch, length]`,
            attention_mask of that shape, the items' tokens `[items, depth]` (int64, on the CPU)
            and the number of beams; it returns `items` and `scores`, both `[batch, beams]`.

    Raises:
        torch.OutOfMemoryError: the trial (8 sequences of 19 tokens at a time) does not fit.
    """
    with _lock:  # the trial narrows the window, which no other search may see
        if model not in _verdicts:
            fault = _find_fault(model, beam_search)
            _verdicts[model] = fault is None
            if fault is not None:
                _log.warning(
                    "%s is decoded by generate, which does work on a prompt once per beam: %s",
                    type(model).__name__,
                    fault,
                )
        return _verdicts[model]


@whole_float32()
def _find_fault(model: Any, beam_search: Callable[..., Any]) -> str | None:
    """Say why `beam_search` cannot decode the model, or return None if it can."""
    config = model.config.get_text_config(decoder=True)
    limit = _find_limit(config)
    if limit is not None:
        return limit
    try:
        with _narrow_window(config), torch.no_grad():
            error, tolerance = _compare(model, beam_search, config.vocab_size)
    except torch.OutOfMemoryError:
        raise
    except Exception as refusal:  # of the mask, the positions or the cache: models differ in what
        return f"it cannot share a prompt between beams ({type(refusal).__name__}: {refusal})"
    if not error <= tolerance:
        return f"with a shared prompt its scores are off by {error:.2g}"
    return None


def _find_limit(config: PreTrainedConfig) -> str | None:
    """Say what limits the model's attention in a way that no trial would show, or return None."""
    # A limit that cannot be narrowed would only show on prompts longer than the trial's.
    limits = [
        name
        for name, value in config.to_dict().items()
        if re.search("window|chunk", name) and name not in _HANDLED and type(value) is int and value
    ]
    if limits:
        return f"its attention is limited in ways not handled here ({', '.join(limits)})"
    kinds = set(getattr(config, "layer_types", None) or ())
    kinds -= {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers other than full and sliding attention ({', '.join(sorted(kinds))})"
    return None


@whole_float32()
@torch.no_grad()
def takes_trees(model: PreTrainedModel) -> bool:
    """Try whether the model computes samples laid out as trees as it does each alone.

    Models whose layers carry a state from token to token, or make masks their own way, may not.

    Args:
        model: a causal language model without adapters, by the attention that it has now.

    Raises:
        torch.OutOfMemoryError: some 50 tokens at once do not fit.
    """
    config = model.config.get_text_config(decoder=True)
    if config.is_encoder_decoder or _find_limit(config) is not None:
        return False
    samples = _samples(config)
    batch = _packed(samples, model.device)
    was_training = model.training
    model.eval()
    try:
        with _narrow_window(config):
            together = sample_losses(model, batch)[0]
            alone = [padded_losses(model, _alone(s, model.device), len(s) - 1)[0] for s in samples]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of the mask or the positions: families differ in what
        return False
    finally:
        model.train(was_training)
    error = (together[:, 0] - torch.cat(alone)[:, 0]).abs() / together[:, 1]
    return float(error.max()) <= 1e-4 + 32 * rounding_of(model)


def try_packed_step(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Compute packed samples' losses and their gradient on the model's device, and keep neither.

    Args:
        model: a causal language model, by the attention that it has now.
        dtype: of the arithmetic.

    Raises:
        ValueError: a loss or a gradient is NaN or infinite.
        Exception: whatever attention, its compiler or the device raise.
    """
    device, seen = model.device, list[Tensor]()
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    arithmetic = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    try:
        with arithmetic:
            batch = _packed(_samples(model.config.get_text_config(decoder=True)), device)
            losses = sample_losses(model, batch)[0][:, 0]
        gradients = torch.autograd.grad(losses.sum(), seen)
    finally:
        hook.remove()
    if not all(values.isfinite().all() for values in (losses, *gradients)):
        raise ValueError("a loss or a gradient is NaN or infinite")


def _samples(config: PreTrainedConfig) -> list[list[int]]:
    """Return token ids: two share a beginning, a third a shorter one, and one nothing."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (_PROMPT + 9,), generator=generator).tolist()
    return [ids, ids[:_PROMPT] + ids[3:8], ids[:5] + ids[6:12], ids[:0:-1]]


def _packed(samples: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    rows = [{"input_ids": ids, "prompt_length": 1, "task": "seqrec"} for ids in samples]
    return {name: value.to(device) for name, value in PackingCollator(0, BLOCK)(rows).items()}


def _alone(ids: list[int], device: torch.device) -> dict[str, Tensor]:
    batch = collate_left([{"input_ids": ids, "prompt_length": 1, "task": "seqrec"}], 0)
    return {name: value.to(device) for name, value in batch.items()}


def rounding_of(model: torch.nn.Module) -> float:
    """Return the step of the coarsest type that weights are stored in, near 1."""
    return max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())


@contextmanager
def _narrow_window(config: PreTrainedConfig) -> Iterator[None]:
    window = getattr(config, "sliding_window", None)
    if not window:
        yield
        return
    config.sliding_window = min(window, _WINDOW)
    try:
        yield
    finally:
        config.sliding_window = window


def _compare(model: Any, beam_search: Callable[..., Any], vocab: int) -> tuple[float, float]:
    """Return the largest difference between the search's scores and plain ones, and what may be."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(vocab, generator=generator)[:6].view(3, 2)
    items = torch.cartesian_prod(*pairs)  # [8, 3]
    prompts = torch.randint(vocab, (2, _PROMPT), generator=generator)
    prompts[1, _PADDING:-2] = prompts[0, : -_PADDING - 2]  # they begin alike and end differently
    mask = torch.ones_like(prompts)
    mask[1, :_PADDING] = 0
    if model.config.is_encoder_decoder:  # an encoder may look at all ids, as P5-CID's, to count
        prompts[1, :_PADDING] = model.config.pad_token_id

    found = []
    for repeats in (1, 2):  # of more than two prompts the search reads the beginning once
        batch = (tensor.repeat(repeats, 1).to(model.device) for tensor in (prompts, mask))
        output = beam_search(model, *batch, items, len(items))
        found.append(torch.empty_like(output.scores).scatter_(1, output.items, output.scores))
    shared = torch.stack([found[0], *found[1].view(2, *found[0].shape)])
    whole, largest = _plain_scores(model, prompts[0], items)
    plain = torch.stack([whole, _plain_scores(model, prompts[1, _PADDING:], items)[0]])
    # Rounding alone makes right scores differ: in low precision by the steps of the logits, which
    # are coarse where logits are large (a pretrained model of 30 layers is off by 2 steps of its
    # largest in bf16), everywhere by the order of sums, which the size of the batch changes too.
    singly = torch.cat([_plain_scores(model, prompts[0], item[None])[0] for item in items])
    steps = rounding_of(model) * largest
    tolerance = 1e-3 + 8 * steps + 4 * float((whole - singly).abs().max())
    return float((shared - plain).abs().max()), tolerance


def _plain_scores(model: Any, prompt: Tensor, items: Tensor) -> tuple[Tensor, float]:
    """Score items `[n, depth]` after a prompt `[length]` by one forward pass without a cache.

    Returns:
        the scores `[n]`, and the largest logit that they are made from, by its absolute value.
    """
    prompts, items = prompt.expand(len(items), -1).to(model.device), items.to(model.device)
    if model.config.is_encoder_decoder:
        start = model.generation_config.decoder_start_token_id
        read = torch.cat([torch.full_like(items[:, :1], start), items[:, :-1]], dim=1)
        logits = model(input_ids=prompts, decoder_input_ids=read, use_cache=False).logits
    else:
        sequences = torch.cat([prompts, items], dim=1)
        logits = model(input_ids=sequences, use_cache=False).logits[:, len(prompt) - 1 : -1]
    scores = logits.float().log_softmax(dim=-1).gather(2, items[:, :, None]).sum(dim=(1, 2))
    return scores, float(logits.abs().max())
