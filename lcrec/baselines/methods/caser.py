"""Caser: convolutions over the last few items as over an image (Tang and Wang 2018, WSDM).

The vectors of the last L items are an L x dim image. Horizontal filters of every height 1 .. L read
patterns of that many items in a row, and the strongest answer is kept; vertical filters are
weighted sums over the items. Both, through a fully connected layer and beside the user's vector,
give the state. A weight there belongs to a place counted from the newest item, so histories are
padded at their start (RecBole pads at the end, where the newest item stands anywhere).

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import TrainingData
from lcrec.baselines.shared.sequences import Batch, pad_in_front
from lcrec.baselines.shared.sequential import (
    SequenceNetwork,
    SequenceSettings,
    SequentialBaseline,
    Users,
)
from lcrec.baselines.shared.transformer import initialise
from lcrec.core.config import option


@dataclass(frozen=True)
class CaserSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, but for L, for which the paper's 5 stands (its section 4.2)."""

    max_history: int = option("L, the last items of a history that are read", 5, minimum=1)
    horizontal: int = option("horizontal filters per height", 8, minimum=1)
    vertical: int = option("vertical filters", 4, minimum=1)
    dropout: float = option("share of what the filters answer", 0.4, minimum=0, maximum=0.99)
    regularisation: float = option("weight of the sum of the matrices' norms", 1e-4, minimum=0)


class Network(SequenceNetwork):
    """Item vectors, filters, and the users' vectors."""

    def __init__(self, num_items: int, num_users: int, chosen: Any) -> None:
        dim = chosen.dim
        super().__init__(num_items, dim)
        self.length = chosen.max_history
        self.users = Users(num_users, dim)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dim, chosen.horizontal, height) for height in range(1, self.length + 1)
        )
        self.vertical = nn.Linear(self.length, chosen.vertical, bias=False)
        answers = chosen.horizontal * self.length + chosen.vertical * dim
        self.dropout = nn.Dropout(chosen.dropout)
        self.connected = nn.Linear(answers, dim)
        self.joined = nn.Linear(2 * dim, dim)
        initialise(self)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [batch, dim] after the last item of each history."""
        items = pad_in_front(batch, self.length, self.num_items)
        image = self.items(items).transpose(1, 2)  # [batch, dim, L]
        answers = [functional.relu(filters(image)).amax(dim=2) for filters in self.horizontal]
        answers.append(self.vertical(image).flatten(1))
        read = functional.relu(self.connected(self.dropout(torch.cat(answers, dim=1))))
        return self.joined(torch.cat((read, self.users(batch.users)), dim=1))

    def norms(self) -> torch.Tensor:
        """Return the sum of the norms of all weight matrices and filters, biases apart."""
        return torch.stack([part.norm() for part in self.parameters() if part.ndim > 1]).sum()


class Caser(SequentialBaseline):
    """Convolutions over the last items, and a vector per user."""

    Settings: ClassVar[type] = CaserSettings
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "max_history": (5, 10),
        "dropout": (0.2, 0.4),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> Network:
        """Return the network with weights as they start."""
        return Network(data.num_items, len(data.train), self.settings)

    def loss(self, network: SequenceNetwork, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch, and the regularisation."""
        assert isinstance(network, Network)
        loss = super().loss(network, batch)
        return loss + self.settings.regularisation * network.norms()
