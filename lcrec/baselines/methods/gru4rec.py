"""GRU4Rec: a recurrent network over the items of a history (Hidasi et al. 2016, Tan et al. 2016).

As RecBole has it: embedding, dropout, GRU without biases, a linear layer back to the width of the
item vectors. Trained on prefixes as Tan et al. propose; the session-parallel batches and the
ranking losses of the first paper are not here.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lcrec.baselines.base import TrainingData
from lcrec.baselines.shared.sequences import Batch
from lcrec.baselines.shared.sequential import (
    ExampleForm,
    SequenceNetwork,
    SequenceSettings,
    SequentialBaseline,
)
from lcrec.core.config import option


@dataclass(frozen=True)
class GRU4RecSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""

    examples: ExampleForm = option(
        "prefixes: a history per target, as RecBole; windows: a target after every item", "prefixes"
    )
    layers: int = option("of the GRU", 1, minimum=1)
    hidden: int = option("numbers in its state", 128, minimum=1)
    dropout: float = option("share of its input", 0.3, minimum=0, maximum=0.99)


class Network(SequenceNetwork):
    """Item vectors, a GRU, and the way back."""

    def __init__(self, num_items: int, chosen: Any) -> None:
        super().__init__(num_items, chosen.dim)
        self.dropout = nn.Dropout(chosen.dropout)
        self.gru = nn.GRU(chosen.dim, chosen.hidden, chosen.layers, bias=False, batch_first=True)
        self.back = nn.Linear(chosen.hidden, chosen.dim)
        nn.init.xavier_normal_(self.items.weight)  # these two as RecBole starts them
        with torch.no_grad():
            self.items.weight[num_items] = 0
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [predictions, dim]; padding comes after them, so they never see it."""
        states, _ = self.gru(self.dropout(self.items(batch.items)))
        return self.back(states[batch.rows, batch.columns])


class GRU4Rec(SequentialBaseline):
    """A recurrent network over the history's items."""

    Settings: ClassVar[type] = GRU4RecSettings
    # On Amazon 2018 Instruments as good for validation (NDCG@10 .0824; 53 epochs, 52 without) in
    # two thirds of the time.
    tuned: ClassVar[dict[str, Any]] = {"examples": "windows"}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dim": (64, 128),
        "dropout": (0.1, 0.3, 0.5),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> Network:
        """Return the network with weights as they start."""
        return Network(data.num_items, self.settings)
