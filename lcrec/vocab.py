"""Item tokens in a language model's vocabulary.

All levels x codes of an index are added to the tokenizer, used or not, so that an item that joins
later needs no new token; the model's embeddings grow to match, and the new rows start from the
text of the items they stand for.

Public names: `extend_tokenizer`, `vocabulary_ids`, `item_token_ids`, `resize_embeddings`,
`weight_of`.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcrec.core.errors import InputError
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import vocabulary_ids


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
    table's width and scaled to its spread. A code that no item uses, and every code where neither
    is given, starts at the mean plus noise of that spread.

    Args:
        model: the base model.
        tokenizer: the extended tokenizer.
        index: the item index it was extended by.
        texts: each item's text, [items], to start rows from.
        codebooks: the codes' vectors, float [levels, codes, dim], to start rows from instead.

    Raises:
        InputError: the tokenizer had more tokens than the model even without the item tokens.
    """
    new_ids = torch.from_numpy(vocabulary_ids(tokenizer, index))
    entries = len(weight_of(model.get_input_embeddings()))
    words = len(tokenizer) - len(new_ids)
    if entries < words:
        raise InputError(
            f"--base {model.name_or_path}: its tokenizer has {words:,} tokens and its embedding "
            f"only {entries:,} rows, so the two do not belong together; give the model the "
            "tokenizer it was trained with"
        )
    if entries < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text_ids = None
    if texts is not None:
        ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=64)
        text_ids = ids["input_ids"]
    old = torch.ones(len(tokenizer), dtype=torch.bool)
    old[new_ids] = False
    tables = [weight_of(model.get_input_embeddings())]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(weight_of(head))
    for table in tables:
        known = table[: len(tokenizer)][old.to(table.device)].float()
        rows = _new_rows(known, index)
        if codebooks is not None:
            rows = _rows_from_codebooks(codebooks.to(known), known.mean(0), known.std())
        elif text_ids is not None:
            rows = _rows_from_text(table.float(), text_ids, index, rows)
        table[new_ids.to(table.device)] = rows.to(table)


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of an embedding or a head, [entries, dim]."""
    assert isinstance(module.weight, Tensor)
    return module.weight


def _new_rows(old: Tensor, index: ItemIndex) -> Tensor:
    """Return mean plus noise of the table's spread, float32 [vocabulary, dim]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(index.vocabulary), old.shape[1], generator=generator)
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
