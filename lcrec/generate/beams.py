"""Beam search that encodes a prompt once for all its beams.

In `beam_search`, for causal models, the K beams of a user are K query positions of one sequence:
every level appends K tokens to one key-value cache, and a 4-D mask lets a beam see the prompt and
its own ancestors only, so the cache is never reordered. What prompts begin with (a system message,
the words of a template before the history) is encoded once for all batches (`read_head`). Whether a
model can be decoded so is for `lcrec.modeling.probe` to find out.

Nothing here waits for the device before the items are found, so the steps after the prompt can be
captured as a CUDA graph (`lcrec.generate.compiled`).

In `seq2seq_search`, for encoder-decoders, every beam is a row. What the decoder's attention needs
of a prompt, keys and values in every layer, is computed once and then copied to the beams.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from lcrec.core.errors import InputError
from lcrec.generate.compiled import StepGraphs
from lcrec.generate.forward import grouped_attention, keep_slots, last_token_only, slot_cache
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.trie import ItemTrie
from lcrec.modeling.trees import layer_masks

Model = PreTrainedModel | PeftModel

# Logits turned into probabilities at a time: on a CPU what its cache holds, elsewhere 64 MB.
_BLOCK = {"cpu": 2**18}
_BLOCK_ELSEWHERE = 2**24


@dataclass(frozen=True)
class BeamOutput:
    """The items found for each prompt, best first and distinct.

    Attributes:
        items: int64 `[batch, beam]`, catalogue ids; -1 beyond the number of items found.
        scores: float32 `[batch, beam]`, log-probabilities; -inf where the item is -1.
    """

    items: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class PromptHead:
    """What prompts begin with, as a model has read it; make one with `read_head`.

    Attributes:
        layers: keys and values of every layer, each `[1, heads, length, dim]`.
        length: tokens.
    """

    layers: list[tuple[Tensor, Tensor]]
    length: int


@torch.no_grad()
def read_head(model: Model, tokens: Sequence[int]) -> PromptHead:
    """Let a causal model read what prompts begin with; of use as long as its weights stay."""
    cache = slot_cache(len(tokens))
    input_ids = torch.tensor([list(tokens)], device=model.device)
    with last_token_only(model):
        model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = cache.layers
    return PromptHead([(layer.keys, layer.values) for layer in layers], len(tokens))


@torch.no_grad()
def beam_search(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    *,
    leaf_filter: LeafFilter | None = None,
    head: PromptHead | None = None,
    graphs: StepGraphs | None = None,
    advance: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] | None = None,
) -> BeamOutput:
    """Find the best items of every prompt by beam search, each prompt encoded once.

    The arguments are those of `lcrec.generate.search.search`, which checks them; `advance` chooses
    beams in another way than `_advance`, with its arguments and result.
    """
    graphs = graphs or StepGraphs(torch.device("cpu"))
    config = model.config.get_text_config(decoder=True)
    lengths = attention_mask.long().sum(dim=1, keepdim=True)
    widths = [min(num_beams, trie.num_nodes(level)) for level in range(1, trie.depth)]
    slots = input_ids.shape[1]
    cache = slot_cache(slots + sum(widths), graphs.buffer if graphs.captures else None)
    with grouped_attention(model), last_token_only(model):
        start = _encode(model, config, input_ids, attention_mask, head, cache)

    def steps(
        logits: Tensor, real: Tensor, position: Tensor, lengths: Tensor, *filtered: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        keep_slots(cache, slots)  # where this has been called before
        own = leaf_filter and leaf_filter.with_tensors(filtered)
        device, batch = logits.device, len(logits)
        rows = torch.arange(batch, device=device)[:, None]
        visible = real[:, None, :]  # [batch, beam, slot]
        # One beam so far, at the root.
        nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        scores = torch.zeros(batch, 1, device=device)
        totals: list[Tensor] = []
        for level in range(trie.depth):
            nodes, scores, tokens, parent = (advance or _advance)(
                trie, level, nodes, scores, logits, num_beams, own, totals
            )
            if level + 1 < trie.depth:
                beams = nodes.shape[1]
                itself = torch.eye(beams, dtype=torch.bool, device=device).expand(batch, -1, -1)
                visible = torch.cat([visible[rows, parent], itself], dim=2)
                query = (lengths + level).expand(-1, beams)
                position = torch.cat([position, query], dim=1)
                logits = model(
                    input_ids=tokens,
                    attention_mask=_masks(config, visible, query, position, cache),
                    position_ids=query,
                    past_key_values=cache,
                    use_cache=True,
                ).logits
        return nodes, scores, torch.cat(totals, dim=1)

    # What the steps depend on beside their inputs: numbers, and what stays where it is.
    key: tuple[Any, ...] = (num_beams, slots)
    owners: tuple[Any, ...] = (model, trie)
    inputs: tuple[Tensor, ...] = (*start, lengths)
    if leaf_filter is not None:
        key += (leaf_filter.allow is None, len(leaf_filter.deny))
        owners += (leaf_filter.leaf_start, leaf_filter.leaf_end)
        inputs += leaf_filter.tensors(pad=graphs.captures)
    with grouped_attention(model):
        nodes, scores, totals = graphs.run(key, owners, steps, inputs)
    check_finite(totals)
    return order_items(trie.items(nodes), scores)


@torch.no_grad()
def seq2seq_search(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    num_beams: int,
    *,
    leaf_filter: LeafFilter | None = None,
) -> BeamOutput:
    """Search with an encoder-decoder whose cache is an `EncoderDecoderCache`, as of T5 and BART.

    Arguments as for `beam_search`.
    """
    device, batch = input_ids.device, len(input_ids)
    start: Any = model.generation_config.decoder_start_token_id
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=torch.full((batch, 1), start, device=device),
        use_cache=True,
    )
    cache: EncoderDecoderCache = output.past_key_values
    encoded, logits = output.encoder_last_hidden_state, output.logits
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    scores = torch.zeros(batch, 1, device=device)
    totals: list[Tensor] = []
    for level in range(trie.depth):
        before = nodes.shape[1]
        nodes, scores, tokens, parent = _advance(
            trie, level, nodes, scores, logits, num_beams, leaf_filter, totals
        )
        if level + 1 < trie.depth:
            first = torch.arange(batch, device=device)[:, None] * before
            rows: Any = (first + parent).flatten()
            cache.self_attention_cache.reorder_cache(rows)
            if nodes.shape[1] != before:  # else a row's beams are of the prompt they were of
                cache.cross_attention_cache.reorder_cache(rows)
                encoded, attention_mask = encoded[rows], attention_mask[rows]
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=attention_mask,
                decoder_input_ids=tokens.view(-1, 1),
                past_key_values=cache,
                use_cache=True,
            ).logits.view(*tokens.shape, -1)
    check_finite(torch.cat(totals, dim=1))
    return order_items(trie.items(nodes), scores)


def order_items(items: Tensor, scores: Tensor) -> BeamOutput:
    """Order beams by score; of equals the first stays first. What is no item goes to the end.

    Args:
        items: int64 `[batch, beam]`, -1 for no item.
        scores: float32 `[batch, beam]`, -inf where nothing was allowed.
    """
    scores = scores.masked_fill(items < 0, -torch.inf)
    scores, best_first = scores.sort(dim=1, descending=True, stable=True)
    return BeamOutput(items.gather(1, best_first).masked_fill(scores == -torch.inf, -1), scores)


def _advance(
    trie: ItemTrie,
    level: int,
    nodes: Tensor,
    scores: Tensor,
    logits: Tensor,
    num_beams: int,
    leaf_filter: LeafFilter | None,
    totals: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Go one level down: keep the best of all beams' children, in the order of their nodes.

    Args:
        nodes: int64 `[batch, beam]`, where the beams are.
        scores: float32 `[batch, beam]`, their log-probabilities so far.
        logits: `[batch, beam, vocab]`, of the token that comes next.
        totals: takes their normalisers `[batch, beam]`, to be checked when all is done.

    Returns:
        Of the new beams the nodes, the scores, the tokens that led there, and the number of the
        beam each comes from, all `[batch, new beam]`.
    """
    opened = open_children(trie, level, nodes, leaf_filter)
    log_probs = _log_probs(logits, opened[1], totals)
    return choose_beams(trie, level, nodes, scores, opened, log_probs, num_beams)


def open_children(
    trie: ItemTrie, level: int, nodes: Tensor, leaf_filter: LeafFilter | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `trie.children`, of which those are valid that lead to an allowed item."""
    children, tokens, valid = trie.children(nodes, level)
    if leaf_filter is not None:
        valid &= leaf_filter.reachable(children)
    return children, tokens, valid


def choose_beams(
    trie: ItemTrie,
    level: int,
    nodes: Tensor,
    scores: Tensor,
    opened: tuple[Tensor, Tensor, Tensor],
    log_probs: Tensor,
    num_beams: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the best of all beams' children, in the order of their nodes.

    Args:
        trie, level, nodes, scores, num_beams: as of `_advance`.
        opened: of `open_children`.
        log_probs: of the children's tokens, `[batch, beam, width]`.

    Returns:
        What `_advance` returns.
    """
    children, tokens, valid = opened
    if trie.bias is not None:
        log_probs = log_probs - (trie.bias[children] - trie.bias[nodes][..., None])
    candidates = (scores[..., None] + log_probs).masked_fill(~valid, -torch.inf).flatten(1)
    # A level with fewer nodes than beams keeps them all. A beam with no allowed item below it
    # is at -inf and stays there, whatever is added.
    chosen = _best(candidates, min(num_beams, trie.num_nodes(level + 1)))
    nodes, tokens = children.flatten(1).gather(1, chosen), tokens.flatten(1).gather(1, chosen)
    return nodes, candidates.gather(1, chosen), tokens, chosen // trie.max_children(level)


def _encode(
    model: Model,
    config: PreTrainedConfig,
    input_ids: Tensor,
    attention_mask: Tensor,
    head: PromptHead | None,
    cache: DynamicCache,
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the prompts into a cache, but for what they begin with, where that was read before.

    Returns:
        The logits after each prompt, `[batch, 1, vocab]`; and for every slot of the cache whether
        it holds a token of the row, bool, and its position, both `[batch, slot]`.
    """
    batch, length = input_ids.shape
    real = attention_mask.bool()
    position = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    mask: Tensor | dict[str, Tensor] = attention_mask
    if head is None:
        slots = position
    else:
        # Every row now holds the shared tokens in the first slots, then its padding, then the rest.
        shared = head.length
        for number, (keys, values) in enumerate(head.layers):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), number)
        first = torch.arange(shared, device=input_ids.device)
        input_ids, position = input_ids[:, shared:], position[:, shared:]
        is_rest = real[:, shared:] & (position >= shared)
        real = torch.cat([torch.ones_like(real[:, :shared]), is_rest], dim=1)
        slots = torch.cat([first.expand(batch, -1), position], dim=1)
        past = torch.ones_like(real[0]).expand(length - shared, -1).tril(shared)
        mask = _masks(config, real[:, None] & past, position, slots, cache)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits, real, slots


def _log_probs(logits: Tensor, tokens: Tensor, totals: list[Tensor]) -> Tensor:
    """Log-probabilities of `tokens` `[batch, beam, width]` from logits `[batch, beam, vocab]`.

    Only the wanted entries become float32; the normaliser is computed some rows at a time.
    """
    vocab = logits.shape[-1]
    block = max(1, _BLOCK.get(logits.device.type, _BLOCK_ELSEWHERE) // vocab)
    parts = logits.reshape(-1, vocab).split(block)
    total = torch.cat([part.float().logsumexp(dim=-1) for part in parts]).view(logits.shape[:2])
    totals.append(total)
    return logits.gather(2, tokens).float() - total[..., None]


def _best(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the `k` largest of `scores` `[batch, n]`, in ascending order.

    Among equals the lower index wins, which `torch.topk` does not promise. Candidates come in the
    order of their nodes, and leave in it.
    """
    least = scores.topk(k, dim=1).values[:, -1:]
    better, equal = scores > least, scores == least
    free = k - better.sum(dim=1, keepdim=True)
    chosen = better | (equal & (equal.cumsum(dim=1) <= free))
    # How many there are is known, so nothing waits for the device to count them.
    return chosen.nonzero_static(size=len(scores) * k, fill_value=0)[:, 1].view(len(scores), k)


def _masks(
    config: PreTrainedConfig, visible: Tensor, query: Tensor, position: Tensor, cache: DynamicCache
) -> Tensor | dict[str, Tensor]:
    """Additive attention masks `[batch, 1, beam, slot]`, in the form the model family takes.

    A sliding window counts positions, not cache slots: the beams of a level share one position.
    """
    first_layer: Any = cache.layers[0]
    dtype = first_layer.keys.dtype  # what attention computes in, under adapters and autocast too

    def additive(window: int | None) -> Tensor:
        mask = visible
        if window is not None:
            mask = mask & (query[:, :, None] - position[:, None, :] < window)
        hidden = torch.full_like(mask, torch.finfo(dtype).min, dtype=dtype)
        return hidden.masked_fill(mask, 0)[:, None]

    return layer_masks(config, additive)


def check_finite(values: Tensor) -> None:
    """Raise `InputError` where values that follow from a model's logits are NaN or infinite."""
    if not values.isfinite().all():
        raise InputError(
            "the model's logits are NaN or infinite; the weights are broken, or overflow in this "
            "precision (try bfloat16)"
        )
