"""Sequential methods without attention: recurrent, filtering, convolutional and gated."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.settings import CaserSettings, FMLPSettings, GRU4RecSettings, HGNSettings
from lcrec.baselines.shared.sequences import Batch, pad_in_front
from lcrec.baselines.shared.sequential import SequenceNetwork, SequentialBaseline, Users
from lcrec.baselines.shared.transformer import DEVIATION, EPSILON, Positions, initialise


class GRU4RecNetwork(SequenceNetwork):
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
        return self.back(states[batch.asked])


class GRU4Rec(SequentialBaseline):
    """GRU4Rec: a recurrent network over the items of a history (Hidasi et al. 2016).

    As RecBole has it: embedding, dropout, GRU without biases, a linear layer back to the width of
    the item vectors. Trained on prefixes as Tan et al. propose; the session-parallel batches and
    the ranking losses of the first paper are not here.
    """

    Settings = GRU4RecSettings
    Network = GRU4RecNetwork


class FrequencyFilter(nn.Module):
    """A filter per dimension, applied by the discrete Fourier transform."""

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

    def forward(self, x: torch.Tensor, *, last_only: bool = False) -> torch.Tensor:
        """Return [batch, length, dim] from the same; of the last place alone [batch, dim]."""
        filtered = self.filter(x)
        if last_only:
            x, filtered = x[:, -1], filtered[:, -1]
        x = self.filter_norm(x + self.dropout(filtered))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class FMLPNetwork(SequenceNetwork):
    """Item vectors, positions and the blocks."""

    def __init__(self, num_items: int, chosen: Any) -> None:
        super().__init__(num_items, chosen.dim)
        self.length = chosen.max_history
        self.positions = Positions(self.length, chosen.dim, chosen.dropout)
        self.blocks = nn.ModuleList(
            FilterBlock(self.length, chosen.dim, chosen.hidden, chosen.dropout)
            for _ in range(chosen.layers)
        )
        initialise(self)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [batch, dim] after the last item of each history."""
        items = pad_in_front(batch, self.length, self.num_items)
        vectors = self.positions(self.items(items))
        *blocks, last = self.blocks
        for block in blocks:
            vectors = block(vectors)
        return last(vectors, last_only=True)


class FMLP(SequentialBaseline):
    """FMLP-Rec: learned filters in the frequency domain over a history (Zhou et al. 2022, WWW).

        x = LN(x + drop(irfft(K * rfft(x))));  x = LN(x + drop(FFN(x)))

    The transforms run over places and are orthonormal; K is complex, [places // 2 + 1, dim], one
    per block. Every place hears of every other, later ones too, so only the state at the end may be
    asked for the next item: each target is an example of its own. Histories are padded at their
    start to the one length that K is for, and padded places hold their position alone, as in the
    authors' code.
    """

    Settings = FMLPSettings
    Network = FMLPNetwork


class CaserNetwork(SequenceNetwork):
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
    """Caser: convolutions over the last few items as over an image (Tang and Wang 2018, WSDM).

    The vectors of the last L items are an L x dim image. Horizontal filters of every height 1 .. L
    read patterns of that many items in a row, and the strongest answer is kept; vertical filters
    are weighted sums over the items. Both, through a fully connected layer and beside the user's
    vector, give the state. A weight there belongs to a place counted from the newest item, so
    histories are padded at their start (RecBole pads at the end, where the newest item stands
    anywhere).
    """

    Settings = CaserSettings
    Network = CaserNetwork
    knows_users = True

    def loss(self, network: SequenceNetwork, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch, and the regularisation."""
        assert isinstance(network, CaserNetwork)
        loss = super().loss(network, batch)
        return loss + self.settings.regularisation * network.norms()


class HGNNetwork(SequenceNetwork):
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
    """HGN: gates that pick which features of which items in a history count (Ma et al. 2019, KDD).

        e'_l = e_l * sigmoid(W1 e_l + W2 u + b)                features, per place l
        g_l  = sigmoid(w3 . e'_l + w4_l . u)                   items
        state = u + sum_l g_l e'_l / sum_l g_l + sum_l e_l,    score(j) = state . q_j

    u is the user's vector, q a second table of item vectors. Padded places count in none of the
    sums, and drawn items are scored by q like every other (RecBole's code does neither). A gate's
    weight w4 belongs to a place counted from the newest item.
    """

    Settings = HGNSettings
    Network = HGNNetwork
    knows_users = True
