"""What the methods share that read a history and name the next item.

A network turns histories into a state at every place that is asked for, and an item's score is the
state times the item's output vector. One loop trains them all, with one switch for the loss.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.settings import SequenceSettings
from lcrec.baselines.shared.losses import next_item_loss
from lcrec.baselines.shared.purchases import NegativeSampler, purchases
from lcrec.baselines.shared.sequences import LENGTHS, Batch, SequenceBatches, read_by_length
from lcrec.baselines.shared.training import Step, load_weights, train_baseline, weights_of


class SequenceNetwork(nn.Module):
    """From histories to states, and from states to scores.

    Args:
        num_items: the size of the catalogue; the id after the last pads.
        dim: numbers per item vector.
        extra: ids after the padding, such as one that masks.
    """

    def __init__(self, num_items: int, dim: int, *, extra: int = 0) -> None:
        super().__init__()
        self.num_items = num_items
        self.items = nn.Embedding(num_items + 1 + extra, dim, padding_idx=num_items)

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [predictions, dim] at the places that the batch asks for."""

    def output(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what states are matched with: vectors [items, dim] and a bias [items] or None."""
        return self.items.weight[: self.num_items], None


class Users(nn.Module):
    """A vector per user; an unseen user's is the mean of all."""

    def __init__(self, num_users: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_users, dim)

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        """Return [batch, dim] for int64 [batch], -1 for an unseen user."""
        vectors = self.table(users.clamp(min=0))
        if (users >= 0).all():
            return vectors
        return torch.where(users[:, None] >= 0, vectors, self.table.weight.mean(dim=0))


class SequentialBaseline(Baseline):
    """A method that is a `SequenceNetwork`; one that is made of more than settings has a `build`.

    Attributes:
        Network: the class of the network, made of the catalogue's size and the settings.
        knows_users: whether it is made of the number of users too, between these.
        network: trained by `fit`.
        sampler: of items to tell targets from, while training with a loss that needs them.
    """

    Settings = SequenceSettings
    Network: ClassVar[type[Any]] = SequenceNetwork
    knows_users: ClassVar[bool] = False
    network: SequenceNetwork
    sampler: NegativeSampler | None

    def build(self, data: TrainingData) -> SequenceNetwork:
        """Return the network with weights as they start."""
        users = [len(data.train)] if self.knows_users else []
        return self.Network(data.num_items, *users, self.settings)

    def start(self, data: TrainingData) -> SequenceNetwork:
        """Return the network that `fit` goes on from; methods with a stage before it add it."""
        return self.build(data).to(self.device)

    def asked(
        self, network: SequenceNetwork, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what a batch is trained on: states, targets and users, as `loss_of` takes them."""
        return network(batch), batch.targets, batch.users[batch.rows]

    def loss(self, network: SequenceNetwork, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch, which is on its device, of the network in training."""
        parts = (self.asked(network, part) for part in batch.by_length(LENGTHS))
        return self.loss_of(network, *map(torch.cat, zip(*parts, strict=True)))

    def loss_of(
        self,
        network: SequenceNetwork,
        states: torch.Tensor,
        targets: torch.Tensor,
        users: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean loss of states, by the loss that was chosen.

        Args:
            network: whose output vectors score.
            states: [predictions, dim].
            targets: int64 [predictions], the items that belong there.
            users: int64 [predictions], whose items are not drawn against the targets.
        """
        chosen, drawn = self.settings, None
        if self.sampler is not None:
            count = chosen.negatives if chosen.loss == "sampled" else 1
            drawn = torch.from_numpy(self.sampler.draw(users.cpu().numpy(), count)).to(self.device)
        vectors, bias = network.output()
        return next_item_loss(chosen.loss, states, vectors, targets, drawn, bias)

    def fit(self, data: TrainingData) -> None:
        """Train to the best validation NDCG@10."""
        chosen = self.settings
        torch.manual_seed(self.seed)
        self.sampler = None
        if chosen.loss != "ce":
            self.sampler = NegativeSampler(purchases(data.train, data.num_items), self.seed + 1)
        self.network = network = self.start(data)
        optimizer = torch.optim.Adam(network.parameters(), lr=chosen.learning_rate, fused=True)
        batches = SequenceBatches(
            data.train,
            data.num_items,
            max_history=chosen.max_history,
            form=chosen.examples,
            batch_size=chosen.batch_size,
            seed=self.seed,
        )

        def losses() -> Iterator[Step]:
            for batch in batches:
                yield self.loss(network, batch.to(self.device)), len(batch.targets)

        self.log = train_baseline(self, data, network, optimizer, losses)

    @torch.no_grad()
    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return state times output vector, float32 [batch, num_items]."""
        network = self.network
        states = read_by_length(
            network,
            users,
            histories,
            num_items=network.num_items,
            max_history=self.settings.max_history,
            device=self.device,
        )
        vectors, bias = network.output()
        scores = states @ vectors.T
        return (scores if bias is None else scores + bias).cpu().numpy()

    def state(self) -> dict[str, np.ndarray]:
        """Return the network's weights."""
        return weights_of(self.network)

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the weights."""
        network = self.build(data)
        load_weights(network, state)
        self.network = network.to(self.device).eval()
