"""FMLP-Rec: learned filters in the frequency domain over a history (Zhou et al. 2022, WWW).

    x = LN(x + drop(irfft(K * rfft(x))));  x = LN(x + drop(FFN(x)))

The transforms run over places and are orthonormal; K is complex, [places // 2 + 1, dim], one per
block. Every place hears of every other, later ones too, so only the state at the end may be asked
for the next item: each target is an example of its own. Histories are padded at their start to the
one length that K is for, and padded places hold their position alone, as in the authors' code.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lcrec.baselines.base import TrainingData
from lcrec.baselines.shared.losses import NextItemLoss
from lcrec.baselines.shared.sequences import Batch, pad_in_front
from lcrec.baselines.shared.sequential import SequenceNetwork, SequenceSettings, SequentialBaseline
from lcrec.baselines.shared.transformer import DEVIATION, EPSILON, Positions, initialise
from lcrec.core.config import option


@dataclass(frozen=True)
class FMLPSettings(SequenceSettings):
    """Defaults of the authors' code, with LC-Rec's histories of 20 items for its 50."""

    loss: NextItemLoss = option(
        "ce: softmax over the catalogue; sampled: over --negatives items; bce, bpr: one", "bce"
    )
    batch_size: int = option("targets per update", 256, minimum=1)
    layers: int = option("blocks, each a filter and a feed-forward network", 2, minimum=1)
    hidden: int = option("width of the feed-forward networks", 256, minimum=1)
    dropout: float = option(
        "share of inputs and of what sublayers add", 0.5, minimum=0, maximum=0.99
    )


class FrequencyFilter(nn.Module):
    """A filter per dimension, applied by the discrete Fourier transform.

    Args:
        length: places.
        dim: numbers per place.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        # Real and imaginary parts apart, so that it is saved like any other weight.
        self.weight = nn.Parameter(torch.randn(length // 2 + 1, dim, 2) * DEVIATION)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [batch, length, dim] from the same."""
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
        filtered = spectrum * torch.view_as_complex(self.weight)
        return torch.fft.irfft(filtered, n=x.shape[1], dim=1, norm="ortho")


class FilterBlock(nn.Module):
    """A filter, then a feed-forward network, each with its residual and layer norm behind."""

    def __init__(self, length: int, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.filter = FrequencyFilter(length, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.filter_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [batch, length, dim] from the same."""
        x = self.filter_norm(x + self.dropout(self.filter(x)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Network(SequenceNetwork):
    """Item vectors, positions and the blocks."""

    def __init__(self, num_items: int, chosen: Any) -> None:
        super().__init__(num_items, chosen.dim)
        self.length = chosen.max_history
        self.positions = Positions(self.length, chosen.dim, chosen.dropout)
        self.blocks = nn.Sequential(
            *(
                FilterBlock(self.length, chosen.dim, chosen.hidden, chosen.dropout)
                for _ in range(chosen.layers)
            )
        )
        initialise(self)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [batch, dim] after the last item of each history."""
        items = pad_in_front(batch, self.length, self.num_items)
        return self.blocks(self.positions(self.items(items)))[:, -1]


class FMLP(SequentialBaseline):
    """Learned filters over the history's items."""

    Settings: ClassVar[type] = FMLPSettings
    tuned: ClassVar[dict[str, Any]] = {"loss": "ce", "batch_size": 2048}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dim": (64, 128),
        "dropout": (0.2, 0.5),
        "learning_rate": (5e-4, 1e-3),
    }

    def build(self, data: TrainingData) -> Network:
        """Return the network with weights as they start."""
        return Network(data.num_items, self.settings)
