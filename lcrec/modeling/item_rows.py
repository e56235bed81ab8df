"""Item tokens in a language model's vocabulary.

All levels x codes of an index are added to the tokenizer, used or not, so that an item that joins
later needs no new token; the model's embeddings grow to match, and the new rows start from the
text of the items they stand for.

Training a few rows of a large embedding without copying it.

PEFT's `TrainableTokensLayer` writes the trained rows into a copy of the whole matrix at every
forward, in the embedding and again in the head: with 150,000 entries that is most of a small
model's step. Here old and new rows are looked up, and scored, apart. Parameters, saving, loading
and merging stay PEFT's own.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcrec.core.errors import InputError
from lcrec.core.pretrained import rows_needed
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import added_ids


@torch.no_grad()
def resize_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: ItemIndex,
    *,
    texts: list[str] | None = None,
    codebooks: Tensor | None = None,
) -> None:
    """Grow the embeddings (and an untied head) to hold the item tokens, and fill the new rows.

    A row starts at the table's mean plus what sets its items apart: the mean, over the items that
    use the code at its level, of their text's token embeddings, scaled to the spread of the table.
    Or, given the codebooks, the mean plus the code's own vector, turned at random into the
    table's width and scaled to its spread. A code that no item uses, every code where neither is
    given, a last level without a codebook, and the tokens around an item start at the mean plus
    noise of that spread.

    Args:
        model: the base model.
        tokenizer: the extended tokenizer.
        index: the item index it was extended by.
        texts: each item's text, [items], to start rows from.
        codebooks: the vectors of the first levels' codes, float [levels, codes, dim], to start rows
            from instead.

    Raises:
        InputError: the embedding has rows that are no tokens.
    """
    new_ids = torch.from_numpy(added_ids(tokenizer, index))
    needed = rows_needed(tokenizer)
    if len(weight_of(model.get_input_embeddings())) != model.config.get_text_config().vocab_size:
        raise InputError(
            f"--base: models of the family {model.config.model_type} have rows in their embedding "
            "that are no tokens, so no item tokens can be added; take another family"
        )
    if len(weight_of(model.get_input_embeddings())) < needed:
        model.resize_token_embeddings(needed, mean_resizing=False)
    text_ids = None
    if texts is not None:
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=64)
        text_ids = ids["input_ids"]
    old = torch.ones(needed, dtype=torch.bool)
    old[new_ids] = False
    tables = [weight_of(model.get_input_embeddings())]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(weight_of(head))
    for table in tables:
        known = table[:needed][old.to(table.device)].float()
        rows = _new_rows(known, len(new_ids))
        of_items = rows[: len(index.vocabulary)]
        if codebooks is not None:
            of_codes = _rows_from_codebooks(codebooks.to(known), known.mean(0), known.std())
            of_items[: len(of_codes)] = of_codes
        elif text_ids is not None:
            of_items[:] = _rows_from_text(table.float(), text_ids, index, of_items)
        table[new_ids.to(table.device)] = rows.to(table)


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of an embedding or a head, [entries, dim]."""
    assert isinstance(module.weight, Tensor)
    return module.weight


def _new_rows(old: Tensor, count: int) -> Tensor:
    """Return mean plus noise of the table's spread, float32 [count, dim]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, old.shape[1], generator=generator)
    return old.mean(0) + noise.to(old.device) * old.std()


def _rows_from_text(
    table: Tensor, text_ids: list[list[int]], index: ItemIndex, rows: Tensor
) -> Tensor:
    """Return `rows` with those of codes in use replaced by what their items' texts say."""
    spread = (rows - rows.mean(0)).std()
    items = torch.stack([table[ids].mean(0) if ids else table.mean(0) for ids in text_ids])
    items = items - items.mean(0)
    columns = torch.from_numpy(index.code_columns).to(table.device)
    sums = torch.zeros_like(rows)
    counts = torch.zeros(len(rows), device=table.device)
    for level in range(index.num_levels):
        sums.index_add_(0, columns[:, level], items)
        counts.index_add_(0, columns[:, level], torch.ones_like(columns[:, level]).float())
    used = counts > 0
    means = sums[used] / counts[used, None]
    scale = spread / means.std().clamp_min(1e-8)
    # A little noise keeps codes apart whose items say the same.
    noise = rows[used] - rows.mean(0)
    result = rows.clone()
    result[used] = rows.mean(0) + 0.9 * means * scale + 0.1 * noise
    return result


def _rows_from_codebooks(codebooks: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Return the table's mean plus the codes' vectors in the table's width and spread.

    The levels are scaled alike, though a later level's codes are shorter: what tells two items of
    a prefix apart matters as much as what tells two prefixes apart.
    """
    width = len(mean)
    codes = codebooks - codebooks.mean(1, keepdim=True)
    codes = codes / codes.pow(2).mean((1, 2), keepdim=True).sqrt().clamp_min(1e-8)
    codes = codes.flatten(0, 1)
    _, vectors = torch.linalg.eigh((codes.T @ codes).double().cpu())
    kept = vectors.flip(1)[:, :width].to(codes)  # the principal directions, where not all fit
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(width, kept.shape[1], generator=generator))
    turned = codes @ kept @ turn.T.to(codes)
    return mean + turned * (spread / turned.std().clamp_min(1e-8))


def trained_rows(
    model: PreTrainedModel | PeftModel, new_ids: list[int]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the parameters that the item tokens' rows are trained in, and where they stand there.

    Args:
        model: with the item tokens in its vocabulary, and adapters where those are trained.
        new_ids: the item tokens' ids.

    Returns:
        Embedding and head, or once what is tied; and int64 [item tokens], the rows in each.
    """
    if isinstance(model, PeftModel):  # which keeps them apart
        found = [p for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
        return [(own, torch.arange(len(own), device=own.device)) for own in found]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(weight): weight for weight in map(weight_of, ends)}.values()
    return [(own, torch.tensor(new_ids, device=own.device)) for own in tables]  # type: ignore[misc]


def lengthen_steps(
    model: PreTrainedModel | PeftModel,
    new_ids: list[int],
    factor: float,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Let an optimizer's steps of the item tokens' rows be `factor` times as long.

    A step of AdamW is its rate times what does not depend on it, so this is AdamW at `factor` times
    the rate for these rows, though they share a parameter with others. Nothing is kept between
    steps, so that nothing is to be saved.

    Args:
        model, new_ids: as for `trained_rows`; the model where it is trained.
        factor: how many times as long.
        optimizer: whose steps, from now on.
    """
    rows = trained_rows(model, new_ids)
    before: list[Tensor] = []

    def remember(*_: Any) -> None:
        before[:] = [own.detach()[places].clone() for own, places in rows]

    @torch.no_grad()
    def lengthen(*_: Any) -> None:
        for (own, places), old in zip(rows, before, strict=True):
            own[places] = old + factor * (own[places] - old)

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(lengthen)


def compute_rows_apart(model: PeftModel) -> None:
    """Let every layer with trained rows compute them apart from the frozen ones.

    What the model computes is unchanged, gradients included.
    """
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = _RowsApart
            (indices,) = module.token_indices.values()
            ids, order = torch.tensor(indices, device=module.weight.device).sort()
            module.register_buffer("row_ids", ids, persistent=False)
            module.register_buffer("row_order", order, persistent=False)
            if module.tied_adapter:
                # The rows are the embedding's; under a second name they would be saved and
                # sharded twice.
                rows = module._modules.pop("trainable_tokens_delta")
                module.__dict__["trainable_tokens_delta"] = rows


def show_frozen_weights(model: PeftModel) -> None:
    """Let embedding and head answer with the frozen matrix when asked for their weight.

    PEFT's answer is a copy with the trained rows in it, made anew each time, by which Accelerate's
    FSDP2 cannot see that embedding and head are tied: it would shard what they share twice.
    """
    for module in model.modules():
        if type(module) is TrainableTokensWrapper:
            module.__class__ = _FrozenWeight


class _FrozenWeight(TrainableTokensWrapper):
    def _getattr_wrapped(self, name: str, modules: dict[str, nn.Module]) -> Any:
        return self.token_adapter.base_layer.weight


class _RowsApart(TrainableTokensLayer):
    row_ids: Tensor  # the trained rows' token ids, ascending
    row_order: Tensor  # which trained row each is

    def forward_adapters(
        self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return embeddings [..., width] of token ids, or logits [..., vocabulary] of states."""
        if self.disable_adapters or self.merged:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        (name,) = active_adapters
        rows = self.trainable_tokens_delta[name].to(result.dtype)[self.row_order]
        if isinstance(self.base_layer, nn.Embedding):
            place = torch.searchsorted(self.row_ids, x.contiguous()).clamp_max(
                len(self.row_ids) - 1
            )
            trained = F.embedding(place, rows)
            scale = self._get_embed_scale()  # Gemma multiplies what it looks up
            if scale is not None:
                trained = trained * scale.to(result.dtype)
            return torch.where((self.row_ids[place] == x)[..., None], trained, result)
        bias = getattr(self.base_layer, "bias", None)
        trained = F.linear(x, rows, None if bias is None else bias[self.row_ids])
        return result.index_copy_(-1, self.row_ids, trained)
