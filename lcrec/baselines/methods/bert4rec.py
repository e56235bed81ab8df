"""BERT4Rec: a transformer that looks both ways and fills in masked items (Sun et al. 2019, CIKM).

In training, a share of the items of a history with its target is replaced by a mask, and the
network names what stood there; a share of the histories has only the last one masked, which is
what it is asked in the end. There, a mask stands behind the history.

An item that is to be named is in no input: it is overwritten before the network sees it. A mask
counts wherever it stands, in the first place too.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.sasrec import SASRecNetwork
from lcrec.baselines.shared.sequences import Batch
from lcrec.baselines.shared.sequential import (
    ExampleForm,
    SequenceNetwork,
    SequenceSettings,
    SequentialBaseline,
)
from lcrec.baselines.shared.transformer import EPSILON
from lcrec.core.config import option


@dataclass(frozen=True)
class BERT4RecSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    examples: ExampleForm = option(
        "prefixes: a history per target, as RecBole; windows: all of a user's items at once",
        "prefixes",
    )
    layers: int = option("blocks of the transformer", 2, minimum=1)
    heads: int = option("of its attention; divides --dim", 2, minimum=1)
    hidden: int = option("width of its feed-forward networks", 256, minimum=1)
    dropout: float = option(
        "share of inputs and of what sublayers add", 0.2, minimum=0, maximum=0.99
    )
    attention_dropout: float = option("share of attention weights", 0.2, minimum=0, maximum=0.99)
    masked: float = option("share of items that are masked", 0.2, minimum=0, maximum=1)
    last_only: float = option(
        "share of examples with only the last item masked", 0.5, minimum=0, maximum=1
    )


def mask_items(
    items: torch.Tensor, lengths: torch.Tensor, share: float, last_only: float, mask: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw which items are masked, by torch's generator.

    Args:
        items: int64 [batch, length], padded at the end.
        lengths: int64 [batch], how many items are real; at least 1.
        share: of items that are masked.
        last_only: share of rows in which the last item is masked and no other. So it is where
            the draw masks none.
        mask: the id that masks.

    Returns:
        the items with masks, and where they are, bool; both [batch, length].
    """
    places = torch.arange(items.shape[1], device=items.device)
    drawn = torch.rand(items.shape, device=items.device) < share
    drawn &= places < lengths[:, None]
    only = (torch.rand(len(items), device=items.device) < last_only) | ~drawn.any(dim=1)
    drawn = torch.where(only[:, None], places == lengths[:, None] - 1, drawn)
    return items.masked_fill(drawn, mask), drawn


class Network(SASRecNetwork):
    """The encoder looking both ways, and BERT's head before the item vectors."""

    def __init__(self, num_items: int, chosen: Any) -> None:
        super().__init__(num_items, chosen, extra=1)
        self.mask = num_items + 1
        self.head = nn.Linear(chosen.dim, chosen.dim)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.norm = nn.LayerNorm(chosen.dim, eps=EPSILON)
        self.bias = nn.Parameter(torch.zeros(num_items))

    def fill(self, items: torch.Tensor, lengths: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return the states [places asked for, dim].

        Args:
            items: int64 [batch, length], with masks, padded at the end.
            lengths: int64 [batch].
            asked: bool [batch, length], which places.
        """
        real = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        states = self.encode(items, real, causal=False)[asked]
        return self.norm(functional.gelu(self.head(states)))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [batch, dim] of a mask behind each history."""
        items = functional.pad(batch.items, (0, 1), value=self.num_items)
        last = torch.arange(items.shape[1], device=items.device) == batch.lengths[:, None]
        return self.fill(items.masked_fill(last, self.mask), batch.lengths + 1, last)

    def output(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the item vectors and the bias."""
        return super().output()[0], self.bias


class BERT4Rec(SequentialBaseline):
    """A transformer that looks both ways and fills in masks."""

    Settings: ClassVar[type] = BERT4RecSettings
    tuned: ClassVar[dict[str, Any]] = {"examples": "windows"}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "masked": (0.2, 0.4),
        "dropout": (0.1, 0.2),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> Network:
        """Return the network with weights as they start."""
        return Network(data.num_items, self.settings)

    def asked(
        self, network: SequenceNetwork, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what is masked of the histories and their last targets."""
        assert isinstance(network, Network)
        chosen = self.settings
        whole = batch.with_target(network.num_items)
        lengths = batch.lengths + 1
        items, asked = mask_items(whole, lengths, chosen.masked, chosen.last_only, network.mask)
        users = batch.users[asked.nonzero()[:, 0]]
        return network.fill(items, lengths, asked), whole[asked], users
