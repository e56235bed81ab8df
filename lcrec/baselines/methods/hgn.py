"""HGN: gates that pick which features of which items in a history count (Ma et al. 2019, KDD).

    e'_l = e_l * sigmoid(W1 e_l + W2 u + b)                features, per place l
    g_l  = sigmoid(w3 . e'_l + w4_l . u)                   items
    state = u + sum_l g_l e'_l / sum_l g_l + sum_l e_l,    score(j) = state . q_j

u is the user's vector, q a second table of item vectors. Padded places count in none of the sums,
and drawn items are scored by q like every other (RecBole's code does neither). A gate's weight w4
belongs to a place counted from the newest item.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lcrec.baselines.base import TrainingData
from lcrec.baselines.shared.sequences import Batch, pad_in_front
from lcrec.baselines.shared.sequential import (
    SequenceNetwork,
    SequenceSettings,
    SequentialBaseline,
    Users,
)


@dataclass(frozen=True)
class HGNSettings(SequenceSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""


class Network(SequenceNetwork):
    """Two tables of item vectors, the users' vectors and the gates."""

    def __init__(self, num_items: int, num_users: int, chosen: Any) -> None:
        dim = chosen.dim
        super().__init__(num_items, dim)
        self.length = chosen.max_history
        self.users = Users(num_users, dim)
        self.answers = nn.Embedding(num_items, dim)
        self.item_features = nn.Linear(dim, dim)
        self.user_features = nn.Linear(dim, dim, bias=False)
        self.item_gate = nn.Linear(dim, 1, bias=False)
        self.user_gate = nn.Linear(dim, self.length, bias=False)
        for table in (self.items, self.users.table, self.answers):
            nn.init.normal_(table.weight, std=1 / dim)
        with torch.no_grad():
            self.items.weight[num_items] = 0
        for gate in (self.item_features, self.user_features, self.item_gate, self.user_gate):
            nn.init.xavier_uniform_(gate.weight)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [batch, dim] after the last item of each history."""
        items = pad_in_front(batch, self.length, self.num_items)
        vectors, user = self.items(items), self.users(batch.users)
        features = self.item_features(vectors) + self.user_features(user)[:, None]
        gated = vectors * features.sigmoid()
        gates = (self.item_gate(gated).squeeze(-1) + self.user_gate(user)).sigmoid()
        gates = gates.masked_fill(items == self.num_items, 0)
        pooled = torch.einsum("bl,bld->bd", gates, gated) / gates.sum(dim=1, keepdim=True)
        return user + pooled + vectors.sum(dim=1)  # the vector of padding is 0

    def output(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the second table."""
        return self.answers.weight, None


class HGN(SequentialBaseline):
    """Gated sums over the history's items, and a vector per user."""

    Settings: ClassVar[type] = HGNSettings
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "max_history": (5, 20),
        "dim": (64, 128),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> Network:
        """Return the network with weights as they start."""
        return Network(data.num_items, len(data.train), self.settings)
