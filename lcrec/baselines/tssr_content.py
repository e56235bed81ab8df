"""What items are about, for TSSR: vectors made beforehand, or a text encoder trained with the rest.

Reads a transformers model folder where one is named. Public names: `Content`, `FixedVectors`,
`TrainedTexts`, `load_texts`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lcrec.core.errors import InputError

ITEMS_AT_ONCE = 256


class FixedVectors(nn.Module):
    """Vectors that do not change.

    Args:
        vectors: float32 [items, dim].
    """

    vectors: torch.Tensor

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)
        self.dim = vectors.shape[1]

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [count, dim] of int64 [count] items."""
        return self.vectors[items]


class TrainedTexts(nn.Module):
    """A text encoder over the items' titles, whose weights train.

    Its pooled output where it has one, else the mean over a text's tokens.

    Args:
        encoder: a transformers model that gives hidden states.
        tokens: int64 [items, length], padded.
        mask: int64 [items, length], 0 at padding.
    """

    tokens: torch.Tensor
    mask: torch.Tensor

    def __init__(self, encoder: nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        config: Any = encoder.config
        self.dim = int(config.hidden_size)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [count, dim] of int64 [count] items."""
        mask = self.mask[items]
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        output = self.encoder(input_ids=self.tokens[items][:, :longest], attention_mask=mask)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled
        weights = mask[..., None].to(output.last_hidden_state.dtype)
        return (output.last_hidden_state * weights).sum(1) / weights.sum(1)


class Content(nn.Module):
    """Content vectors of items at the width of the rest.

    Args:
        source: `FixedVectors` or `TrainedTexts`.
        num_items: the size of the catalogue, and the id that pads.
        dim: numbers per item.
    """

    def __init__(self, source: FixedVectors | TrainedTexts, num_items: int, dim: int) -> None:
        super().__init__()
        self.source = source
        self.num_items = num_items
        self.project = nn.Linear(source.dim, dim)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [..., dim] of int64 [...] items, zeros at padding; each item is encoded once."""
        real = items != self.num_items
        distinct, places = items[real].unique(return_inverse=True)
        vectors = self.project(self.source(distinct))
        result = vectors.new_zeros((*items.shape, vectors.shape[-1]))
        result[real] = vectors[places]
        return result

    @torch.no_grad()
    def table(self) -> torch.Tensor:
        """Return the vectors of all items, [items, dim]."""
        items = torch.arange(self.num_items, device=self.project.weight.device)
        return torch.cat([self(part) for part in items.split(ITEMS_AT_ONCE)])


def load_texts(path: Path, texts: list[str], max_tokens: int) -> TrainedTexts:
    """Load a text encoder and tokenise the texts once.

    Args:
        path: a folder with a transformers encoder and its tokenizer, weights as safetensors.
        texts: one per item.
        max_tokens: longer texts are cut.

    Raises:
        InputError: nothing there can be loaded, or it is no plain encoder.
    """
    from transformers import AutoModel, AutoTokenizer

    if not path.is_dir():
        raise InputError(f"--text-encoder {path}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        encoder = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--text-encoder {path}: cannot be loaded ({error})") from None
    if encoder.config.is_encoder_decoder or not hasattr(encoder.config, "hidden_size"):
        raise InputError(f"--text-encoder {path}: an encoder such as BERT is wanted")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"--text-encoder {path}: its tokenizer has no token to pad with")
    tokenizer.padding_side = "right"
    encoded = tokenizer(
        texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    empty = (encoded["attention_mask"].sum(1) == 0).nonzero()
    if len(empty):
        raise InputError(
            f"--text-encoder {path}: the title of item {int(empty[0])} has no token of it"
        )
    return TrainedTexts(encoder, encoded["input_ids"], encoded["attention_mask"])
