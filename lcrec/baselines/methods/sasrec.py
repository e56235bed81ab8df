"""SASRec: a causal transformer over the items of a history (Kang and McAuley 2018, ICDM).

The paper trains with `--loss bce` and one negative per target; RecBole, and with it most later
tables, with the softmax over the catalogue. The loss moves the result more than the architecture
does, so say which was used.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lcrec.baselines.base import TrainingData
from lcrec.baselines.shared.sequences import Batch
from lcrec.baselines.shared.sequential import (
    ExampleForm,
    SequenceNetwork,
    SequenceSettings,
    SequentialBaseline,
)
from lcrec.baselines.shared.transformer import Encoder, Positions, initialise
from lcrec.core.config import option


@dataclass(frozen=True)
class SASRecSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    examples: ExampleForm = option(
        "prefixes: a history per target, as RecBole; windows: a target after every item", "prefixes"
    )
    layers: int = option("blocks of the transformer", 2, minimum=1)
    heads: int = option("of its attention; divides --dim", 2, minimum=1)
    hidden: int = option("width of its feed-forward networks", 256, minimum=1)
    dropout: float = option(
        "share of inputs and of what sublayers add", 0.5, minimum=0, maximum=0.99
    )
    attention_dropout: float = option("share of attention weights", 0.5, minimum=0, maximum=0.99)


class SASRecNetwork(SequenceNetwork):
    """Item vectors, positions and the encoder.

    Args:
        num_items: the size of the catalogue.
        chosen: dim, max_history, layers, heads, hidden and both dropouts are read.
        extra: ids after the padding.
    """

    def __init__(self, num_items: int, chosen: Any, *, extra: int = 0) -> None:
        super().__init__(num_items, chosen.dim, extra=extra)
        # One more than histories have: for what stands in the place of the next item.
        self.positions = Positions(chosen.max_history + 1, chosen.dim, chosen.dropout)
        self.encoder = Encoder(
            chosen.layers,
            chosen.dim,
            chosen.heads,
            chosen.hidden,
            chosen.dropout,
            chosen.attention_dropout,
        )
        initialise(self)

    def encode(
        self, items: torch.Tensor, real: torch.Tensor, *, causal: bool = True
    ) -> torch.Tensor:
        """Return a state per place, [batch, length, dim].

        Args:
            items: int64 [batch, length].
            real: bool [batch, length], False at padding.
            causal: whether a place sees none later than itself.
        """
        return self.encoder(self.positions(self.items(items)), real, causal=causal)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [predictions, dim] at the places that the batch asks for."""
        return self.encode(batch.items, batch.real)[batch.rows, batch.columns]


class SASRec(SequentialBaseline):
    """A causal transformer over the history's items."""

    Settings: ClassVar[type] = SASRecSettings
    # On Amazon 2018 Instruments these rank what is held out for validation better (NDCG@10 .0764,
    # best after 40 epochs) than RecBole's (.0733, after 12).
    tuned: ClassVar[dict[str, Any]] = {
        "examples": "windows",
        "batch_size": 512,
        "dropout": 0.3,
        "attention_dropout": 0.3,
    }
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dim": (64, 128),
        "dropout": (0.2, 0.5),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> SASRecNetwork:
        """Return the network with weights as they start."""
        return SASRecNetwork(data.num_items, self.settings)
