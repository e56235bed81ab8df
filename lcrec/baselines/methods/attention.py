"""Transformers over the items of a history: SASRec, and BERT4Rec on the same network."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.settings import BERT4RecSettings, SASRecSettings
from lcrec.baselines.shared.sequences import Batch
from lcrec.baselines.shared.sequential import SequenceNetwork, SequentialBaseline
from lcrec.baselines.shared.transformer import EPSILON, Encoder, Positions, initialise


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
        self.encoder = Encoder.of(chosen)
        initialise(self)

    def encode(
        self,
        items: torch.Tensor,
        real: torch.Tensor,
        *,
        causal: bool = True,
        asked: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return a state per place, [batch, length, dim], or per place asked for, [asked, dim].

        Args:
            items: int64 [batch, length].
            real, causal, asked: as `Encoder.forward` takes them.
        """
        vectors = self.positions(self.items(items))
        return self.encoder(vectors, real, causal=causal, asked=asked)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [predictions, dim] at the places that the batch asks for."""
        return self.encode(batch.items, batch.real, asked=batch.asked)


class SASRec(SequentialBaseline):
    """SASRec: a causal transformer over the items of a history (Kang and McAuley 2018, ICDM).

    The paper trains with `--loss bce` and one negative per target; RecBole, and with it most later
    tables, with the softmax over the catalogue. The loss moves the result more than the
    architecture does, so say which was used.
    """

    Settings = SASRecSettings
    Network = SASRecNetwork


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


class BERT4RecNetwork(SASRecNetwork):
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
            asked: bool [batch, length], which places, at least one of every row.
        """
        real = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        rows, columns = asked.nonzero(as_tuple=True)
        states = self.encode(items, real, causal=False, asked=(rows, columns))
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
    """BERT4Rec: a transformer that fills in masked items, looking both ways (Sun et al. 2019).

    In training, a share of the items of a history with its target is replaced by a mask, and the
    network names what stood there; a share of the histories has only the last one masked, which is
    what it is asked in the end. There, a mask stands behind the history.

    An item that is to be named is in no input: it is overwritten before the network sees it. A mask
    counts wherever it stands, in the first place too.
    """

    Settings = BERT4RecSettings
    Network = BERT4RecNetwork

    def asked(
        self, network: SequenceNetwork, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what is masked of the histories and their last targets."""
        assert isinstance(network, BERT4RecNetwork)
        chosen = self.settings
        whole = batch.with_target(network.num_items)
        lengths = batch.lengths + 1
        items, asked = mask_items(whole, lengths, chosen.masked, chosen.last_only, network.mask)
        users = batch.users[asked.nonzero()[:, 0]]
        return network.fill(items, lengths, asked), whole[asked], users
