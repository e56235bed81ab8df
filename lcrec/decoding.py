"""Beam search over the prefix tree of real items: what turns a language model into a ranking.

`search` returns, for every prompt, the items whose tokens the model finds most likely, best
first. It encodes a prompt once, whatever the number of beams: the K beams of a user are K query
positions of one sequence, every level appends K tokens to one key-value cache, and a 4-D mask
lets a beam see the prompt and its own ancestors only, so the cache is never reordered. A model
for which this does not give the scores of plain forward passes (`supports_shared_prefix` tries
it once) is decoded by transformers' `generate` with an `ItemConstraint` instead: the same
answers, with every prompt encoded once per beam.

A score is the sum of the item tokens' log-probabilities under the softmax over the whole
vocabulary, as in LC-Rec (arXiv 2311.09049); the closing EOS is not decoded.

Public names: `search`, `BeamOutput`, `beam_search`, `generate_search`, `ItemConstraint`,
`supports_shared_prefix`.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from lcrec.errors import InputError
from lcrec.probe import passes_trial
from lcrec.trie import ItemTrie, LeafFilter

Model = PreTrainedModel | PeftModel

_log = logging.getLogger(__name__)

_BLOCK = 2**24  # logits turned into float32 at a time: 64 MB
_SPARE_BEAM = -1e8  # `generate` starts its spare beams at -1e9; real scores lie far above


@dataclass(frozen=True)
class BeamOutput:
    """The items found for each prompt, best first and distinct.

    Attributes:
        items: int64 `[batch, beam]`, catalogue ids; -1 beyond the number of items allowed.
        scores: float32 `[batch, beam]`, log-probabilities; -inf where the item is -1.
    """

    items: Tensor
    scores: Tensor


def search(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    *,
    allowed: Tensor | None = None,
    denied: Tensor | None = None,
) -> BeamOutput:
    """Find the `num_beams` most likely items for every prompt.

    A batch that does not fit into memory is halved and tried again; the number of beams is never
    lowered. Equal scores are ordered by the items' token ids, so that an answer does not depend
    on the batch it was part of.

    Args:
        model: a causal language model (or encoder-decoder) in eval mode, with or without adapters.
        input_ids: int64 `[batch, length]`, prompts padded on the left.
        attention_mask: int64 or bool `[batch, length]`, 1 on the prompt.
        trie: the catalogue, on the device of `input_ids`.
        num_beams: items wanted per prompt, at most the catalogue's size.
        allowed: bool `[n_items]` or `[batch, n_items]`, the only items to return.
        denied: int64 `[batch, width]`, items not to return, -1 as padding; cheap where few.

    Raises:
        InputError: inputs that do not fit each other, or a model whose logits are not finite.
        torch.OutOfMemoryError: not even one prompt fits.
    """
    _check_inputs(model, input_ids, attention_mask, trie, num_beams, allowed, denied)
    strategy = beam_search if supports_shared_prefix(model) else generate_search
    parts: list[BeamOutput] = []
    start, size = 0, len(input_ids)
    while start < len(input_ids):
        rows = slice(start, start + size)
        try:
            part = strategy(
                model,
                input_ids[rows],
                attention_mask[rows],
                trie,
                num_beams,
                allowed=allowed if allowed is None or allowed.dim() == 1 else allowed[rows],
                denied=None if denied is None else denied[rows],
                first_row=start,
            )
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            _log.warning("out of memory: going on with batches of %d prompts", size)
        else:
            parts.append(part)
            start += size
    return BeamOutput(
        torch.cat([part.items for part in parts]), torch.cat([part.scores for part in parts])
    )


@torch.no_grad()
def beam_search(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    *,
    allowed: Tensor | None = None,
    denied: Tensor | None = None,
    first_row: int = 0,
) -> BeamOutput:
    """Search with one encoded prompt for all its beams; for models that `supports_shared_prefix`.

    The arguments are `search`'s, which checks them; `first_row` is the number that an error gives
    to the first row.
    """
    config = model.config.get_text_config(decoder=True)
    leaf_filter = trie.leaf_filter(allowed, denied)
    device, batch = input_ids.device, len(input_ids)
    rows = torch.arange(batch, device=device)[:, None]
    lengths = attention_mask.long().sum(dim=1, keepdim=True)
    # Made without the config, the cache keeps every slot; made with it, a sliding-window layer
    # drops its oldest slots and takes the beams for tokens that follow one another.
    cache = DynamicCache()
    position = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)  # [batch, slot]
    visible = attention_mask.bool()[:, None, :]  # [batch, beam, slot]
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    # One beam so far, at the root.
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    scores = torch.zeros(batch, 1, device=device)
    for level in range(trie.depth):
        children, tokens, valid = trie.children(nodes, level)
        if leaf_filter is not None:
            valid &= leaf_filter.reachable(children)
        log_probs = _log_probs(logits, tokens, first_row)
        candidates = (scores[..., None] + log_probs).masked_fill(~valid, -torch.inf).flatten(1)
        # A level with fewer nodes than beams keeps them all. A beam with no allowed item below it
        # is at -inf and stays there, whatever is added.
        beams = min(num_beams, trie.num_nodes(level + 1))
        chosen = _best(candidates, beams)
        scores = candidates.gather(1, chosen)
        nodes = children.flatten(1).gather(1, chosen)
        if level + 1 < trie.depth:
            parent = chosen // trie.max_children(level)
            itself = torch.eye(beams, dtype=torch.bool, device=device).expand(batch, -1, -1)
            visible = torch.cat([visible[rows, parent], itself], dim=2)
            query = (lengths + level).expand(-1, beams)
            position = torch.cat([position, query], dim=1)
            logits = model(
                input_ids=tokens.flatten(1).gather(1, chosen),
                attention_mask=_masks(config, visible, query, position, cache),
                position_ids=query,
                past_key_values=cache,
                use_cache=True,
            ).logits
    scores, best_first = scores.sort(dim=1, descending=True, stable=True)
    items = trie.items(nodes.gather(1, best_first))
    return BeamOutput(items.masked_fill(scores == -torch.inf, -1), scores)


def _log_probs(logits: Tensor, tokens: Tensor, first_row: int) -> Tensor:
    """Log-probabilities of `tokens` `[batch, beam, width]` from logits `[batch, beam, vocab]`.

    Only the wanted entries become float32; the normaliser is computed some rows at a time.
    """
    block = max(1, _BLOCK // logits[0].numel())
    total = torch.cat([part.float().logsumexp(dim=-1) for part in logits.split(block)])
    _check_finite(total, first_row)
    return logits.gather(2, tokens).float() - total[..., None]


def _best(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the `k` largest of `scores` `[batch, n]`, in ascending order.

    Among equals the lower index wins, which `torch.topk` does not promise. Candidates come in the
    order of their nodes, and leave in it.
    """
    least = scores.topk(k, dim=1).values[:, -1:]
    better, equal = scores > least, scores == least
    room = k - better.sum(dim=1, keepdim=True)
    chosen = better | (equal & (equal.cumsum(dim=1) <= room))
    return chosen.nonzero()[:, 1].view(len(scores), k)


def _masks(
    config: PreTrainedConfig, visible: Tensor, query: Tensor, position: Tensor, cache: DynamicCache
) -> Tensor | dict[str, Tensor]:
    """Additive attention masks `[batch, 1, beam, slot]`, in the form the model family takes.

    A sliding window counts positions, not cache slots: the beams of a level share one position.
    Families whose layers differ take one mask per kind of layer; the others take a single one.
    """
    first_layer: Any = cache.layers[0]
    dtype = first_layer.keys.dtype  # what attention computes in, under adapters and autocast too

    def additive(mask: Tensor) -> Tensor:
        hidden = torch.full_like(mask, torch.finfo(dtype).min, dtype=dtype)
        return hidden.masked_fill(mask, 0)[:, None]

    full = additive(visible)
    window = getattr(config, "sliding_window", None)
    if not window:
        return full
    near = query[:, :, None] - position[:, None, :] < window
    windowed = additive(visible & near)
    if getattr(config, "layer_types", None) is None:
        return windowed
    return {"full_attention": full, "sliding_attention": windowed}


class ItemConstraint(LogitsProcessor):
    """Lets `generate` produce real items only: a beam may go on to the children of its node.

    The nodes are found by walking the tree along the tokens generated so far, all beams at once.
    Every other token gets -inf, and a beam that is off the tree (one of `generate`'s spares) gets
    it everywhere.
    """

    def __init__(
        self,
        trie: ItemTrie,
        prompt_length: int,
        num_beams: int,
        leaf_filter: LeafFilter | None = None,
        first_row: int = 0,
    ) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.num_beams = num_beams
        self.leaf_filter = leaf_filter
        self.first_row = first_row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores, `[batch * beam, vocab]`, of what may follow `input_ids`."""
        _check_finite(scores.amax(dim=1).view(-1, self.num_beams), self.first_row)
        generated = input_ids[:, self.prompt_length :]
        nodes, on_path = self.trie.walk(generated)
        children, tokens, valid = self.trie.children(nodes, generated.shape[1])
        valid &= on_path[:, None]
        if self.leaf_filter is not None:
            per_prompt = children.view(-1, self.num_beams * children.shape[1])
            valid &= self.leaf_filter.reachable(per_prompt).view_as(valid)
        # The extra column takes what is not a child, and is cut off again.
        vocab = scores.shape[1]
        is_open = scores.new_zeros(len(scores), vocab + 1, dtype=torch.bool)
        is_open.scatter_(1, tokens.masked_fill(~valid, vocab), True)
        return scores.masked_fill(~is_open[:, :vocab], -torch.inf)


class _ExactGeneration(GenerationConfig):
    """A generation config that takes nothing over from the model's own.

    `generate` fills what is unset from `model.generation_config`, where published models keep
    sampling, repetition penalties and EOS tokens: each of them changes scores or ends items early.
    """

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        if allow_custom_entries:  # only the model's own config is merged in this way
            return {}
        return super().update(defaults_only=defaults_only, **kwargs)


@torch.no_grad()
def generate_search(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    *,
    allowed: Tensor | None = None,
    denied: Tensor | None = None,
    first_row: int = 0,
) -> BeamOutput:
    """Search by transformers' `generate`: any model, but every prompt is encoded once per beam.

    Arguments as for `beam_search`.
    """
    decoder_start, prompt_length = None, input_ids.shape[1]
    if model.config.is_encoder_decoder:
        decoder_start, prompt_length = model.generation_config.decoder_start_token_id, 1
    leaf_filter = trie.leaf_filter(allowed, denied)
    generate: Any = model.generate
    found = generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_processor=[ItemConstraint(trie, prompt_length, num_beams, leaf_filter, first_row)],
        generation_config=_ExactGeneration(
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=trie.depth,
            length_penalty=None if num_beams == 1 else 0.0,  # it warns of one without a use
            do_sample=False,
            decoder_start_token_id=decoder_start,
            pad_token_id=0,  # no sequence ends early; set so that `generate` does not warn
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=num_beams == 1,
        ),
    )
    # Shorter than an item only if nothing was allowed to any prompt; -1 is no token of the tree.
    paths = found.sequences[:, prompt_length:]
    paths = torch.nn.functional.pad(paths, (0, trie.depth - paths.shape[1]), value=-1)
    if num_beams == 1:  # `generate` gives the score of a sequence only where it compares some
        log_probs = torch.stack(found.logits, dim=1).float().log_softmax(dim=-1)
        totals = log_probs.gather(2, paths[..., None]).sum(dim=(1, 2))
    else:
        totals = found.sequences_scores
    leaves, on_path = trie.walk(paths)
    totals = totals.masked_fill(~on_path | (totals < _SPARE_BEAM), -torch.inf)
    leaves, by_node = leaves.view(-1, num_beams).sort(dim=1)
    scores = totals.view(-1, num_beams).gather(1, by_node)
    scores, best_first = scores.sort(dim=1, descending=True, stable=True)
    items = trie.items(leaves.gather(1, best_first))
    return BeamOutput(items.masked_fill(scores == -torch.inf, -1), scores)


def supports_shared_prefix(model: Model) -> bool:
    """Tell whether `beam_search` scores this model as plain forward passes do.

    Tried once per model (see `lcrec.probe`); if it does not, one logged warning says why.
    """
    return not model.config.is_encoder_decoder and passes_trial(model, beam_search)


def _check_inputs(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    allowed: Tensor | None,
    denied: Tensor | None,
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
    for name, rows in (("allowed", allowed), ("denied", denied)):
        if rows is not None and rows.dim() == 2 and len(rows) != len(input_ids):
            raise InputError(f"{name}: has {len(rows)} rows for {len(input_ids)} prompts")


def _check_finite(values: Tensor, first_row: int) -> None:
    """Raise `InputError` naming the first row of `values` `[batch, beam]` that is not finite."""
    broken = ~values.isfinite().all(dim=1)
    if broken.any():
        raise InputError(
            f"the model's logits for prompt {first_row + int(broken.nonzero()[0])} are NaN or "
            "infinite; the weights are broken, or overflow in this precision (try bfloat16)"
        )
