"""FDSA: SASRec beside a second one that reads what the items are (Zhang et al. 2019, IJCAI).

    a_t = sum over fields f of w_f v_f,  w = softmax over the item's fields of attention(v_f)
    state = drop(LN(W [encoder(items); encoder(a)]))

v_f is the mean vector of the item's values of a field (categories, brand). A field that an item
lacks takes no part; an item without any has a_t = 0. The items of a list need no attributes: they
are scored by their item vectors.

Both streams have their own positions and layer norms, and the joining layer another (RecBole's code
shares one norm among the three).

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lcrec.baselines.base import Need, TrainingData
from lcrec.baselines.methods.sasrec import SASRecNetwork, SASRecSettings
from lcrec.baselines.shared.attributes import Attributes, item_attributes
from lcrec.baselines.shared.sequences import Batch
from lcrec.baselines.shared.sequential import SequentialBaseline
from lcrec.baselines.shared.transformer import EPSILON, Encoder, Positions, initialise


@dataclass(frozen=True)
class FDSASettings(SASRecSettings):
    """Defaults of RecBole 1.2.1, with LC-Rec's histories of 20 items for its 50."""


class ItemFeatures(nn.Module):
    """A vector per item out of what it is.

    Args:
        attributes: of the catalogue.
        dim: numbers per vector.
    """

    def __init__(self, attributes: Attributes, dim: int) -> None:
        super().__init__()
        self.none = len(attributes.names)
        self.values = nn.EmbeddingBag(self.none + 1, dim, mode="mean", padding_idx=self.none)
        self.attention = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.num_fields = len(attributes.fields)
        for place, ids in enumerate(attributes.fields):  # of the data, not learnt
            self.register_buffer(f"field_{place}", torch.from_numpy(ids), persistent=False)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [..., dim] for int64 [...]; 0 for an item without attributes and for padding."""
        distinct, places = items.unique(return_inverse=True)
        ids = [self.get_buffer(f"field_{place}")[distinct] for place in range(self.num_fields)]
        vectors = torch.stack([self.values(field) for field in ids], dim=1)  # [items, fields, dim]
        absent = torch.stack([field[:, 0] == self.none for field in ids], dim=1)
        scores = self.attention(vectors).squeeze(-1)
        # The least number, not -inf: where all are absent their vectors are 0 and weigh nothing.
        scores = scores.masked_fill(absent, torch.finfo(scores.dtype).min)
        return torch.einsum("if,ifd->id", scores.softmax(dim=1), vectors)[places]


class Network(SASRecNetwork):
    """The stream of items, as SASRec has it; that of features; and the layer that joins them."""

    def __init__(self, num_items: int, attributes: Attributes, chosen: Any) -> None:
        super().__init__(num_items, chosen)
        self.features = ItemFeatures(attributes, chosen.dim)
        self.feature_positions = Positions(chosen.max_history, chosen.dim, chosen.dropout)
        self.feature_encoder = Encoder(
            chosen.layers,
            chosen.dim,
            chosen.heads,
            chosen.hidden,
            chosen.dropout,
            chosen.attention_dropout,
        )
        self.join = nn.Linear(2 * chosen.dim, chosen.dim)
        self.norm = nn.LayerNorm(chosen.dim, eps=EPSILON)
        self.dropout = nn.Dropout(chosen.dropout)
        initialise(self)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [predictions, dim] at the places that the batch asks for."""
        vectors = self.feature_positions(self.features(batch.items))
        features = self.feature_encoder(vectors, batch.real, causal=True)
        both = torch.cat((self.encode(batch.items, batch.real), features), dim=-1)
        return self.dropout(self.norm(self.join(both[batch.rows, batch.columns])))


class FDSA(SequentialBaseline):
    """Two causal transformers, over the history's items and over what they are."""

    Settings: ClassVar[type] = FDSASettings
    needs: ClassVar[frozenset[Need]] = frozenset({"texts"})
    tuned: ClassVar[dict[str, Any]] = {"examples": "windows"}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dim": (64, 128),
        "dropout": (0.2, 0.5),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> Network:
        """Return the network with weights as they start.

        Raises:
            InputError: no item has an attribute.
        """
        assert data.items is not None
        return Network(data.num_items, item_attributes(data.items, "fdsa"), self.settings)
