"""What transformers' `generate` is used for: models that share no prefix, and answers in words.

`generate_search` gives the items that `lcrec.generate.beams` gives, for any model, with work on a
prompt done once per beam. `write_answers` lets the model answer a prompt in its own words.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from lcrec.generate.beams import BeamOutput, Model, check_finite, order_items
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.trie import ItemTrie

_SPARE_BEAM = -1e8  # `generate` starts its spare beams at -1e9; real scores lie far above


class ItemConstraint(LogitsProcessor):
    """Lets `generate` produce what a constraint allows: a beam may go on to its node's children.

    The nodes are found by walking the tree along the tokens generated so far, all beams at once.
    Every other token gets -inf, and a beam that is off it (one of `generate`'s spares) gets
    it everywhere.
    """

    def __init__(
        self,
        trie: ItemTrie,
        prompt_length: int,
        num_beams: int,
        leaf_filter: LeafFilter | None = None,
    ) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.num_beams = num_beams
        self.leaf_filter = leaf_filter

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores, `[batch * beam, vocab]`, of what may follow `input_ids`."""
        check_finite(scores.amax(dim=1))
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
        if self.trie.bias is not None:
            less = self.trie.bias[children] - self.trie.bias[nodes][:, None]
            places = tokens.masked_fill(~valid, vocab)
            less = scores.new_zeros(is_open.shape).scatter_(1, places, less.to(scores.dtype))
            scores = scores - less[:, :vocab]
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
    leaf_filter: LeafFilter | None = None,
) -> BeamOutput:
    """Search by transformers' `generate`: any model, but work on a prompt is done once per beam.

    Arguments as for `lcrec.generate.beams.beam_search`.
    """
    decoder_start, prompt_length = None, input_ids.shape[1]
    if model.config.is_encoder_decoder:
        decoder_start, prompt_length = model.generation_config.decoder_start_token_id, 1
    generate: Any = model.generate
    found = generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_processor=[ItemConstraint(trie, prompt_length, num_beams, leaf_filter)],
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
    if num_beams == 1 and trie.bias is not None:
        totals = totals - trie.bias[leaves]
    totals = totals.masked_fill(~on_path | (totals < _SPARE_BEAM), -torch.inf)
    leaves, by_node = leaves.view(-1, num_beams).sort(dim=1)
    scores = totals.view(-1, num_beams).gather(1, by_node)
    return order_items(trie.items(leaves), scores)


@torch.no_grad()
def write_answers(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    *,
    end: int,
    banned: list[int],
) -> list[list[int]]:
    """Let the model answer every prompt in words: the likeliest token, one after the other.

    Args:
        model: a causal language model in eval mode.
        input_ids: int64 `[batch, length]`, prompts padded on the left.
        attention_mask: int64 `[batch, length]`, 1 on the prompt.
        max_new_tokens: tokens of an answer at most.
        end: the token that ends an answer.
        banned: tokens that are no words, such as those of items.

    Returns:
        The answers' token ids, without the end.
    """
    generate: Any = model.generate
    found = generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=_ExactGeneration(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            suppress_tokens=banned,
        ),
    )
    answers = found[:, input_ids.shape[1] :].tolist()
    return [answer[: answer.index(end)] if end in answer else answer for answer in answers]
