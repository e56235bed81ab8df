"""CollabContext, also called CARec: text and purchases teach each other, one at a time.

    (U*, H*) = smooth(A_hat, [U; H]),  score(u, i) = U*_u . H*_i

Phase 1, items tutor: H is X, the frozen item embeddings, and only the user vectors U are trained.
Phase 2, users tutor: U is frozen, H is MLP(X), and only the MLP is trained. The loss of both is
alignment of the pairs in a batch, and uniformity of the side that is trained (its distinct rows
in the batch). A phase ends when validation NDCG@10 has stopped improving; its best weights are put
back before the next begins with a new optimiser. Items that nobody has bought are scored without
the MLP: users smoothed over X, such items X itself.

Collaborative Alignment for Recommendation (CIKM 2024; arXiv 2310.09400 under earlier titles). Where
the paper and its released code disagree: smoothing is LightGCN's mean, uniformity is Wang and
Isola's over distinct pairs of the batch, and gradients reach U through the items' side too (the
code; the paper says that items are frozen: `--detach-tutor`). Only purchases are aligned: by its
configuration, the released code pairs every purchase with a random item and aligns that too.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import nn

from lcrec.baselines.base import TrainingData, require_embeddings
from lcrec.baselines.settings import CollabContextSettings
from lcrec.baselines.shared.graph import VectorBaseline, dot_scores, normalised_adjacency, smooth
from lcrec.baselines.shared.losses import alignment, uniformity
from lcrec.baselines.shared.purchases import purchases, shuffled_pairs
from lcrec.baselines.shared.training import Step, TrainingLog, train_baseline
from lcrec.data.folder import unit_rows

Phase = Literal["items tutor", "users tutor", "both at once"]


class Network(nn.Module):
    """User vectors, the frozen embeddings, the MLP over them, and the graph."""

    adjacency: torch.Tensor
    raw_items: torch.Tensor

    def __init__(
        self, adjacency: torch.Tensor, features: torch.Tensor, settings: CollabContextSettings
    ) -> None:
        super().__init__()
        num_items, dim = features.shape
        self.num_users = adjacency.shape[0] - num_items
        self.layers = settings.layers
        self.users = nn.Parameter(torch.empty(self.num_users, dim))
        nn.init.xavier_normal_(self.users)
        # Not in state_dict: they never change, so there is no best state of them to keep.
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.register_buffer("raw_items", features, persistent=False)
        self.items = nn.Parameter(features.clone()) if settings.trainable_items else None
        widths = [dim, *[settings.hidden or dim] * settings.hidden_layers]
        steps: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            steps += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(settings.dropout)]
        self.mlp = nn.Sequential(*steps, nn.Linear(widths[-1], dim))

    def train_only(self, phase: Phase) -> list[nn.Parameter]:
        """Freeze what the phase does not train; return what it does."""
        users = phase != "users tutor"
        self.users.requires_grad_(users)
        trained = [self.users] if users else []
        rest = [*self.mlp.parameters(), *([] if self.items is None else [self.items])]
        for parameter in rest:
            parameter.requires_grad_(phase != "items tutor")
        return trained if phase == "items tutor" else trained + rest

    def forward(self, *, mapped: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return smoothed user vectors [users, dim] and item vectors [items, dim].

        Args:
            mapped: items enter the graph through the MLP; else as their raw embeddings.
        """
        items = self.raw_items
        if mapped:
            items = self.mlp(items if self.items is None else self.items)
        vectors = smooth(self.adjacency, torch.cat((self.users, items)), self.layers)
        return vectors[: self.num_users], vectors[self.num_users :]


class CollabContext(VectorBaseline):
    """Two phases in which items teach users, then users teach items.

    Attributes:
        logs: [(phase, its log)], a phase each.
    """

    Settings = CollabContextSettings
    # Without the MLP is as phase 1 left them.
    learnt = (*VectorBaseline.learnt, "cold_user_vectors", "cold_item_vectors")

    cold_user_vectors: np.ndarray
    cold_item_vectors: np.ndarray

    def fit(self, data: TrainingData) -> None:
        """Train phase after phase, each to its best validation NDCG@10.

        Raises:
            InputError: there are no embeddings.
        """
        chosen = self.settings
        embeddings = require_embeddings(data, "collabcontext")
        torch.manual_seed(self.seed)
        bought = purchases(data.train, data.num_items)
        features = torch.from_numpy(normalise_features(embeddings, chosen.feature_norm))
        network = Network(normalised_adjacency(bought), features, chosen).to(self.device)
        rng = np.random.default_rng(self.seed)
        self.logs: list[tuple[Phase, TrainingLog]] = []
        for phase in _phases(chosen):
            self._train(network, phase, bought, rng, data)
        self._keep_cold(network, np.diff(bought.tocsc().indptr) == 0)

    @property
    def log(self) -> TrainingLog:
        """The phases' epochs, numbered on; the best one is that of the last phase."""
        logs = [log for _, log in self.logs]
        epochs = [epoch for log in logs for epoch in log.epochs]
        return TrainingLog(
            [replace(epoch, number=number) for number, epoch in enumerate(epochs, start=1)],
            best_epoch=len(epochs) - len(logs[-1].epochs) + logs[-1].best_epoch,
            best_score=logs[-1].best_score,
            updates=sum(log.updates for log in logs),
            out_of_time=any(log.out_of_time for log in logs),
        )

    def score_cold(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the dot products without the MLP, float32 [batch, num_items].

        Users and bought items are smoothed over the raw embeddings; an item that nobody has bought
        is its raw embedding.
        """
        return dot_scores(users, histories, self.cold_user_vectors, self.cold_item_vectors)

    def _train(
        self,
        network: Network,
        phase: Phase,
        bought: sparse.csr_array,
        rng: np.random.Generator,
        data: TrainingData,
    ) -> None:
        chosen = self.settings
        # A new optimiser: an old one's momentum would go on moving what is frozen now.
        optimizer = torch.optim.Adam(
            network.train_only(phase), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )

        def losses() -> Iterator[Step]:
            for batch in shuffled_pairs(bought, chosen.batch_size, rng):
                users, items = torch.from_numpy(batch).to(self.device).T
                user_vectors, item_vectors = network(mapped=phase != "items tutor")
                loss = phase_loss(
                    user_vectors,
                    item_vectors,
                    users,
                    items,
                    phase,
                    detach_tutor=chosen.detach_tutor,
                    alignment_only=chosen.alignment_only,
                )
                yield loss, len(users)

        log = train_baseline(
            self,
            data,
            network,
            optimizer,
            losses,
            refresh=lambda: self._keep(network, phase),
            label=f"CollabContext, {phase}",
        )
        self.logs.append((phase, log))

    @torch.no_grad()
    def _keep(self, network: Network, phase: Phase) -> None:
        vectors = network(mapped=phase != "items tutor")
        self.user_vectors, self.item_vectors = (side.cpu().numpy() for side in vectors)

    @torch.no_grad()
    def _keep_cold(self, network: Network, never_bought: np.ndarray) -> None:
        vectors = network(mapped=False)
        self.cold_user_vectors, self.cold_item_vectors = (side.cpu().numpy() for side in vectors)
        # Smoothing left them divided by layers + 1, which would put them below all others.
        self.cold_item_vectors[never_bought] = network.raw_items.cpu().numpy()[never_bought]


def phase_loss(
    user_vectors: torch.Tensor,
    item_vectors: torch.Tensor,
    users: torch.Tensor,
    items: torch.Tensor,
    phase: Phase,
    *,
    detach_tutor: bool = False,
    alignment_only: bool = False,
) -> torch.Tensor:
    """Return alignment of a batch of purchases and uniformity of the side that learns.

    Args:
        user_vectors: smoothed, [users, dim].
        item_vectors: smoothed, [items, dim].
        users, items: int64 [batch], who bought what.
        phase: which side learns; with both, uniformity is the mean over the sides.
        detach_tutor: no gradient through the side that teaches.
        alignment_only: leave uniformity out.
    """
    if detach_tutor and phase == "items tutor":
        item_vectors = item_vectors.detach()
    if detach_tutor and phase == "users tutor":
        user_vectors = user_vectors.detach()
    loss = alignment(user_vectors[users], item_vectors[items])
    if alignment_only:
        return loss
    of_users, of_items = (
        phase in (side, "both at once") for side in ("items tutor", "users tutor")
    )
    spread = [uniformity(user_vectors[users.unique()])] if of_users else []
    spread += [uniformity(item_vectors[items.unique()])] if of_items else []
    return loss + sum(spread) / len(spread)


def normalise_features(embeddings: np.ndarray, norm: str) -> np.ndarray:
    """Return item embeddings, float32 [items, dim], as the graph takes them.

    Args:
        embeddings: float32 [items, dim].
        norm: "none"; "l2": rows of length 1, rows of zeros left; "minmax": the least value of all
            becomes 0, the largest 1.
    """
    if norm == "l2":
        return unit_rows(embeddings)
    if norm == "minmax":
        low, high = embeddings.min(), embeddings.max()
        return (embeddings - low) / (high - low if high > low else 1)
    return embeddings


def _phases(chosen: CollabContextSettings) -> list[Phase]:
    """Return the phases to train, in order."""
    if chosen.symmetric:
        return ["both at once"]
    if chosen.phases == "first":
        return ["items tutor"]
    if chosen.phases == "second":
        return ["users tutor"]
    return ["items tutor", "users tutor"] * chosen.cycles
