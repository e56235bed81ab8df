"""P5-CID: a T5 over paths of items made from who bought what (Hua et al. 2023).

SIGIR-AP 2023, arXiv 2305.06569; the paths are those of `lcrec.baselines.cid`. As in P5, the tokens
of the k-th item of a history share one more embedding, number k ("whole word"). The published runs
start from the weights of T5-small: `--base DIR` takes such a folder, whose history is then followed
by a question in words. Without it the weights are random, of the shape that the settings give,
which is T5-small's.

Reads and writes nothing but `--base`. Public names: `P5CID`, `P5CIDSettings`, `WholeWords`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

from lcrec.baselines.base import TrainingData
from lcrec.baselines.cid import collaborative_index
from lcrec.baselines.generative import GenerativeBaseline, GenerativeSettings
from lcrec.core.config import option
from lcrec.core.errors import InputError
from lcrec.index.item_index import ItemIndex

QUESTION = "What will the user buy next?"


@dataclass(frozen=True)
class P5CIDSettings(GenerativeSettings):
    """Shape of T5-small; training, clusters and leaf of the authors' code, whose batch is 2 x 64.

    It trains 20 epochs whatever happens, hence the patience.
    """

    dim: int = option("width of the model", 512, minimum=1)
    layers: int = option("of the encoder, and of the decoder", 6, minimum=1)
    heads: int = option("attention heads, of 64 numbers each", 8, minimum=1)
    hidden: int = option("width of the feed-forward layers", 2048, minimum=1)
    learning_rate: float = option("the highest, of AdamW", 1e-3, minimum=0)
    warmup: float = option("share of updates while it rises", 0.05, minimum=0, maximum=1)
    batch_size: int = option("examples per update", 128, minimum=1)
    epochs: int = option("at most", 20, minimum=1)
    clusters: int = option("parts that a cluster of items is divided into", 10, minimum=2)
    leaf: int = option("the most items of a cluster that is not divided", 500, minimum=1)
    whole_words: bool = option("add an embedding of an item's place to its tokens", True)
    base: Path | None = option(
        "a folder with a pretrained T5; its shape then counts; none: random weights", None
    )


class WholeWords(nn.Module):
    """Token embeddings plus one for the item that a token belongs to, counted from 1.

    Args:
        tokens: the token embeddings, shared with the model.
        first: the id of the first item token; item tokens are all from there on.
        starts: how many of them, from the first on, begin an item.
        most: the most items in an input; were there more, they would share the last number.
    """

    def __init__(self, tokens: nn.Embedding, first: int, starts: int, most: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.words = nn.Embedding(most + 1, tokens.embedding_dim)  # row 0: no item
        self.first, self.starts = first, starts

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return [batch, length, dim] for int64 [batch, length]."""
        is_item = ids >= self.first
        places = (is_item & (ids < self.first + self.starts)).cumsum(dim=1)
        # The trial that a search starts with asks about tokens in any number and order.
        last = self.words.num_embeddings - 1
        return self.tokens(ids) + self.words((places * is_item).clamp(max=last))


class P5CID(GenerativeBaseline):
    """A T5 over collaborative paths."""

    Settings: ClassVar[type] = P5CIDSettings
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {"clusters": (10, 20), "leaf": (200, 500)}
    schedule: ClassVar[str] = "linear"
    settings: P5CIDSettings

    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the collaborative index of the train sequences."""
        chosen = self.settings
        return collaborative_index(
            data.train, data.num_items, chosen.clusters, chosen.leaf, self.seed
        )

    def build(self, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        """Return the T5, random or pretrained, and the id of the first item token."""
        if self.settings.base is None:
            network, first = super().build(num_tokens)
        else:
            network, first = self._pretrained(self.settings.base, num_tokens)
        if self.settings.whole_words:
            starts = self.index.level_sizes[0]
            network.encoder.set_input_embeddings(
                WholeWords(network.shared, first, starts, self.settings.max_history)
            )
        return network, first

    def _pretrained(self, base: Path, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        try:
            kind = AutoConfig.from_pretrained(base, local_files_only=True).model_type
            if kind != "t5":
                raise InputError(f"--base {base}: a T5 is needed, found {kind}")
            tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
            network = T5ForConditionalGeneration.from_pretrained(
                base, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"--base {base}: no pretrained T5 can be read there ({error})"
            ) from None
        first = network.config.vocab_size
        network.resize_token_embeddings(first + num_tokens)
        self.suffix = tuple(tokenizer(QUESTION).input_ids)
        return network, first
