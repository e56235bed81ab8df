"""From prompts to items: what turns a language model into a ranking of the whole catalogue.

`search` returns, for every prompt, the items whose tokens the model finds most likely, best first,
by beam search over the prefix tree of real items. A model that can share an encoded prompt between
its beams (`supports_shared_prefix` tries it once) is decoded by `lcrec.generate.beams`, any other
by transformers' `generate` under the same constraint: the same answers, with more of the work done
once per beam.

A score is the sum of the item tokens' log-probabilities under the softmax over the whole
vocabulary, as in LC-Rec (arXiv 2311.09049); the closing EOS is not decoded.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from lcrec.core.errors import InputError
from lcrec.generate.beams import (
    BeamOutput,
    Model,
    PromptHead,
    beam_search,
    read_head,
    seq2seq_search,
)
from lcrec.generate.compiled import StepGraphs
from lcrec.generate.hf_generate import generate_search
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.trie import ItemTrie, LooseTrie
from lcrec.modeling.probe import passes_trial

_log = logging.getLogger(__name__)
# What is known to fit into memory, in slots of the cache, of models that once ran out of it.
_fitting: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


def search(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    *,
    leaf_filter: LeafFilter | None = None,
    head: PromptHead | None = None,
    graphs: StepGraphs | None = None,
) -> BeamOutput:
    """Find the `num_beams` most likely items for every prompt.

    A batch that does not fit into memory is halved and tried again, and the model's next batches
    begin with what fitted; the number of beams is never lowered. Equal scores are ordered by the
    items' token ids. The size of a batch changes the order of sums, and with it the last digits of
    scores (about 1e-5 in float32, 1e-2 in bfloat16): a ranking is the same in any batch, but for
    items that lie closer together, such as those whose codes have equal rows.

    Args:
        model: a causal language model (or encoder-decoder) in eval mode, with or without adapters.
        input_ids: int64 `[batch, length]`, prompts padded on the left.
        attention_mask: int64 or bool `[batch, length]`, 1 on the prompt.
        trie: the catalogue, or a looser constraint, on the device of `input_ids`.
        num_beams: items wanted per prompt, at most the catalogue's size.
        leaf_filter: which items each prompt may get; needs the catalogue as constraint.
        head: what every prompt begins with (and does not end with), read before; for models that
            `beam_search` decodes.
        graphs: the model's captured steps, where `beam_search` is to replay them.

    Raises:
        InputError: inputs that do not fit each other, or a model whose logits are not finite.
        RuntimeError: not even one prompt fits into memory.
    """
    _check_inputs(model, input_ids, attention_mask, trie, num_beams, leaf_filter)
    strategy = _sharing(model) if supports_shared_prefix(model) else generate_search
    options: dict[str, Any] = {} if head is None else {"head": head}
    if strategy is beam_search:
        options["graphs"] = graphs
    parts: list[BeamOutput] = []
    slots = input_ids.shape[1] + num_beams * (trie.depth - 1)  # of the cache, per prompt
    start, size = 0, min(len(input_ids), max(1, _fitting.get(model, 2**62) // slots))
    while start < len(input_ids):
        rows = slice(start, start + size)
        try:
            with contextlib.nullcontext() if graphs is None else graphs.lock:
                part = strategy(
                    model,
                    input_ids[rows],
                    attention_mask[rows],
                    trie,
                    num_beams,
                    leaf_filter=leaf_filter and leaf_filter.rows(rows),
                    **options,
                )
        except RuntimeError as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
            if graphs is not None:
                graphs.stop()
            size = (size + 1) // 2
            _fitting[model] = size * slots
            _log.warning("out of memory: going on with batches of %d prompts", size)
        else:
            parts.append(part)
            start += size
    return BeamOutput(
        torch.cat([part.items for part in parts]), torch.cat([part.scores for part in parts])
    )


def supports_shared_prefix(model: Model) -> bool:
    """Tell whether the search of its kind scores this model as plain forward passes do.

    Tried once per model (see `lcrec.modeling.probe`); if it does not, one logged warning says why.
    """

    def search_items(
        model: Model, input_ids: Tensor, attention_mask: Tensor, items: Tensor, num_beams: int
    ) -> BeamOutput:
        trie, options = ItemTrie.build(items.numpy()).to(input_ids.device), {}
        if len(input_ids) > 2 and not model.config.is_encoder_decoder:
            pairs = zip(input_ids, attention_mask.bool(), strict=True)
            shared = os.path.commonprefix([row[real].tolist() for row, real in pairs])  # noqa: RUF071
            options = {"head": read_head(model, shared)}
        return _sharing(model)(model, input_ids, attention_mask, trie, num_beams, **options)

    return passes_trial(model, search_items)


def _sharing(model: Model) -> Callable[..., BeamOutput]:
    return seq2seq_search if model.config.is_encoder_decoder else beam_search


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _check_inputs(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    leaf_filter: LeafFilter | None,
) -> None:
    """Raise `InputError` for arguments of `search` that do not fit each other."""
    if model.training:
        raise InputError("the model is in training mode, with dropout: call model.eval() first")
    if input_ids.dim() != 2 or 0 in input_ids.shape or input_ids.shape != attention_mask.shape:
        raise InputError(
            "input_ids and attention_mask: expected the same shape [batch, length], "
            f"got {list(input_ids.shape)} and {list(attention_mask.shape)}"
        )
    mask = attention_mask.bool()
    misplaced = ~mask[:, -1] | (mask[:, :-1] & ~mask[:, 1:]).any(dim=1)
    if misplaced.any() and not model.config.is_encoder_decoder:
        raise InputError(
            f"attention_mask: row {int(misplaced.nonzero()[0])} is empty or not padded on the "
            "left; set tokenizer.padding_side = 'left'"
        )
    if not 1 <= num_beams <= trie.num_items:
        raise InputError(
            f"num_beams is {num_beams}; ask for 1 to {trie.num_items}, the items in the catalogue"
        )
    if trie.device != input_ids.device:
        raise InputError(
            f"the trie is on {trie.device} and input_ids on {input_ids.device}: use trie.to(...)"
        )
    vocab = model.config.get_text_config(decoder=True).vocab_size
    if trie.max_token >= vocab:
        raise InputError(
            f"the trie holds token id {trie.max_token}, but the model's vocabulary has {vocab} "
            "entries; extend it with the index this model was trained with"
        )
    if leaf_filter is not None and isinstance(trie, LooseTrie):
        raise InputError("allow and deny lists need the constraint 'trie': others leave the tree")
    if leaf_filter is not None and len(leaf_filter.has_allow) != len(input_ids):
        raise InputError(
            f"leaf_filter: is for {len(leaf_filter.has_allow)} prompts, not {len(input_ids)}"
        )
