"""Fusion of text and purchases: the two views side by side, each of length one.

    c = norm(smooth(A_hat, [U; I])),  s = norm(W z + b),  e = norm([c; s])

z is a text vector of length one; a user's is the mean over their train items, brought to length
one. As both halves of e have length one, the dot product of two fused vectors is the mean of the
two cosines: neither view can outshout the other, and nothing forces one onto the other. Both are
trained together with the sampled softmax against the hardest of the items drawn per purchase
(arXiv 2604.22195; its released code leaves out the purchase itself alone, so that other items the
user has may be drawn).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import TrainingData
from lcrec.baselines.settings import FusionSettings
from lcrec.baselines.shared.graph import VectorBaseline, normalised_adjacency, smooth
from lcrec.baselines.shared.losses import info_nce, sampled_dots
from lcrec.baselines.shared.purchases import purchases, shuffled_pairs, user_means
from lcrec.baselines.shared.training import Step, train_baseline
from lcrec.core.errors import InputError
from lcrec.data.folder import unit_rows


class FusedNetwork(nn.Module):
    """The two views.

    Args:
        adjacency: A_hat, sparse [users + items, users + items].
        texts: float32 [users + items, width], users first, rows of length one; no width where
            purchases are all there is.
        dim: numbers per view.
        layers: of smoothing.
        views: both, or one alone.
    """

    adjacency: torch.Tensor
    texts: torch.Tensor

    def __init__(
        self, adjacency: torch.Tensor, texts: torch.Tensor, dim: int, layers: int, views: str
    ) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.register_buffer("texts", texts, persistent=False)
        self.layers = layers
        self.vectors = self.map = None
        if views != "semantic":
            self.vectors = nn.Parameter(torch.empty(len(texts), dim))
            nn.init.xavier_uniform_(self.vectors)
        if views != "collaborative":
            self.map = nn.Linear(texts.shape[1], dim)
            nn.init.xavier_uniform_(self.map.weight)
            nn.init.zeros_(self.map.bias)

    def branches(self) -> list[torch.Tensor]:
        """Return the views, collaborative first, [users + items, dim] each, rows of length one."""
        found = []
        if self.vectors is not None:
            found.append(smooth(self.adjacency, self.vectors, self.layers))
        if self.map is not None:
            found.append(self.map(self.texts))
        return [functional.normalize(branch, dim=-1) for branch in found]

    def forward(self) -> torch.Tensor:
        """Return the fused vectors, [users + items, dim per view * views], rows of length one."""
        return functional.normalize(torch.cat(self.branches(), dim=1), dim=-1)


def hardest_negatives(
    users: torch.Tensor, items: torch.Tensor, candidates: torch.Tensor, count: int
) -> torch.Tensor:
    """Return the `count` highest scores of the candidates of each row, [batch, count], unordered.

    Args:
        users: [batch, dim].
        items: [items, dim], the whole catalogue.
        candidates: int64 [batch, candidates], item ids.
        count: at most the number of candidates.
    """
    return sampled_dots(users, items, candidates).topk(count, dim=1, sorted=False).values


class Fusion(VectorBaseline):
    """Text and purchases side by side, matched by the mean of their cosines."""

    Settings = FusionSettings

    def fit(self, data: TrainingData) -> None:
        """Train to the best validation NDCG@10."""
        chosen = self.settings
        torch.manual_seed(self.seed)
        bought = purchases(data.train, data.num_items)
        if data.num_items < 2:
            raise InputError("the catalogue has one item alone, so no other can be drawn")
        items = np.zeros((data.num_items, 0), dtype=np.float32)
        if chosen.views != "collaborative":
            assert data.embeddings is not None
            items = unit_rows(data.embeddings)
        texts = np.concatenate((unit_rows(user_means(bought, items)), items))
        network = FusedNetwork(
            normalised_adjacency(bought),
            torch.from_numpy(texts),
            chosen.dim,
            chosen.layers,
            chosen.views,
        ).to(self.device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )
        rng = np.random.default_rng(self.seed)
        num_users = len(data.train)

        def losses() -> Iterator[Step]:
            for batch in shuffled_pairs(bought, chosen.batch_size, rng):
                drawn = draw_others(batch[:, 1], chosen.candidates, data.num_items, rng)
                yield self._loss(network, batch, drawn, num_users), len(batch)

        def refresh() -> None:
            with torch.no_grad():
                self.keep(network(), num_users)

        self.log = train_baseline(self, data, network, optimizer, losses, refresh=refresh)

    def _loss(
        self, network: FusedNetwork, batch: np.ndarray, drawn: np.ndarray, num_users: int
    ) -> torch.Tensor:
        users, items = torch.from_numpy(batch).to(self.device).T
        candidates = torch.from_numpy(drawn).to(self.device)
        vectors = network()
        user, catalogue = vectors[users], vectors[num_users:]
        hard = hardest_negatives(user, catalogue, candidates, self.settings.negatives)
        matched = (user * catalogue[items]).sum(-1)
        return info_nce(matched, hard, self.settings.temperature)


def draw_others(
    items: np.ndarray, count: int, num_items: int, rng: np.random.Generator
) -> np.ndarray:
    """Return int64 [batch, count], uniform over all items but the row's own.

    Args:
        items: int64 [batch], each row's own.
        count: how many per row, with replacement.
        num_items: the size of the catalogue, at least 2.
        rng: to draw with.
    """
    drawn = rng.integers(0, num_items - 1, (len(items), count))
    return drawn + (drawn >= items[:, None])
