"""AlphaRec: vectors of item texts, mapped by one small network, are all that users and items are.

    Z_U = row means of Z_I over each user's train items
    E = smooth(A_hat, [f(Z_U); f(Z_I)]),  f(z) = W2 leaky(W1 z + b1) + b2
    score(u, i) = cos(E_u, E_i)

Sheng et al., ICLR 2025 (arXiv 2407.05441). Z_I, a language model's vectors, is never trained: the
parameters are those of f alone, as many for ten users as for a million. So f can be trained on some
data sets and score another (`transfer`), and a query in words can stand in for a user (`ask`).

As in the authors' code, an epoch draws users in turn and one purchase of each, not purchases; but
an incomplete last batch is used, for a small data set has no other. Their code stops training by
the test items; here the validation items decide, so figures are not helped by what they measure.

`linear-mapping` is their experiment on what the vectors hold: f(z) = W z, no bias and no graph.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import TrainingData, require_embeddings
from lcrec.baselines.runs.ranking import validator
from lcrec.baselines.settings import AlphaRecSettings, LinearMappingSettings
from lcrec.baselines.shared.graph import VectorBaseline, normalised_adjacency, own_share, smooth
from lcrec.baselines.shared.losses import bpr, candidate_scores, info_nce
from lcrec.baselines.shared.purchases import NegativeSampler, purchases, user_means
from lcrec.baselines.shared.training import Step, load_weights, train_epochs, weights_of
from lcrec.core.errors import InputError


class UserBatches:
    """An epoch: as many draws as there are purchases; users in turn, one purchase of each.

    Args:
        bought: R, sparse [users, items]. Users without an item are passed over.
        batch_size: draws per batch.
        negatives: items drawn against each, outside what its user has.
        seed: of the draws.
        ranges: int64 [users, 2], where a user's negatives come from (see `NegativeSampler`).
    """

    def __init__(
        self,
        bought: sparse.csr_array,
        batch_size: int,
        negatives: int,
        seed: int,
        ranges: np.ndarray | None = None,
    ) -> None:
        self.starts, self.items = bought.indptr.astype(np.int64), bought.indices.astype(np.int64)
        self.users = np.flatnonzero(np.diff(self.starts))
        self.batch_size = batch_size
        self.negatives = negatives
        self.rng = np.random.default_rng(seed)
        self.sampler = NegativeSampler(bought, seed + 1, ranges)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield users [batch], items [batch] and drawn items [batch, negatives], int64."""
        rounds = -(-len(self.items) // len(self.users))
        turns = [self.rng.permutation(self.users) for _ in range(rounds)]
        order = np.concatenate(turns)[: len(self.items)]
        for start in range(0, len(order), self.batch_size):
            users = order[start : start + self.batch_size]
            sizes = self.starts[users + 1] - self.starts[users]
            places = (self.rng.random(len(users)) * sizes).astype(np.int64)
            items = self.items[self.starts[users] + places]
            drawn = self.sampler.draw(users, self.negatives)
            yield torch.from_numpy(users), torch.from_numpy(items), torch.from_numpy(drawn)


class Domain(nn.Module):
    """What f is applied to in one or several data sets; nothing of it is trained.

    Args:
        bought: R, sparse [users, items]; of several data sets block-diagonal.
        embeddings: Z_I, float32 [items, dim].

    Attributes:
        inputs: [Z_U; Z_I], float32 [users + items, dim].
        adjacency: A_hat.
        num_users: how many rows of `inputs` are users.
    """

    inputs: torch.Tensor
    adjacency: torch.Tensor

    def __init__(self, bought: sparse.csr_array, embeddings: np.ndarray) -> None:
        super().__init__()
        inputs = np.concatenate((user_means(bought, embeddings), embeddings))
        self.register_buffer("inputs", torch.from_numpy(inputs), persistent=False)
        self.register_buffer("adjacency", normalised_adjacency(bought), persistent=False)
        self.num_users = bought.shape[0]


class AlphaRec(VectorBaseline):
    """Language model's vectors of items, mapped by f and smoothed over the graph of purchases."""

    Settings: ClassVar[type[AlphaRecSettings]] = AlphaRecSettings

    def fit(self, data: TrainingData) -> None:
        """Train f to the best validation NDCG@10, and represent users and items by it."""
        self.fit_domains([data])
        self.transfer(data)

    def fit_domains(self, domains: Sequence[TrainingData]) -> None:
        """Train one f on several data sets side by side, which share no user and no item.

        The graph is block-diagonal and negatives come from the purchase's own data set. Training
        stops on the mean of the validation NDCG@10 of those with validation cases, each ranked
        within its own catalogue. Call `transfer` next, to say what is to be scored.

        Raises:
            InputError: a data set has no embeddings, or their widths differ.
        """
        chosen, tables = self.settings, self.require_one_width(domains)
        torch.manual_seed(self.seed)
        blocks = [purchases(data.train, data.num_items) for data in domains]
        bought = sparse.csr_array(sparse.block_diag(blocks, format="csr"))
        domain = Domain(bought, np.concatenate(tables)).to(self.device)
        self.mapping = self._new_mapping(tables[0].shape[1])
        users = _spans([len(data.train) for data in domains])
        items = _spans([data.num_items for data in domains])
        batches = UserBatches(
            bought,
            chosen.batch_size,
            chosen.negatives if chosen.loss == "info_nce" else 1,
            self.seed,
            np.concatenate(
                [
                    np.tile([span.start, span.stop], (len(data.train), 1))
                    for span, data in zip(items, domains, strict=True)
                ]
            ),
        )
        deadlines = [data.deadline for data in domains if data.deadline is not None]
        optimizer = torch.optim.Adam(self.mapping.parameters(), lr=chosen.learning_rate)

        def losses() -> Iterator[Step]:
            for drawn in batches:
                yield self._loss(domain, *drawn), len(drawn[0])

        def score_now() -> float:
            user_vectors, item_vectors = self._represent(domain)
            found = []
            for data, own_users, own_items in zip(domains, users, items, strict=True):
                if (score := validator(self, data)) is not None:
                    self.user_vectors = user_vectors[own_users]
                    self.item_vectors = item_vectors[own_items]
                    found.append(score())
            return float(np.mean(found))

        self.log = train_epochs(
            self.mapping,
            optimizer,
            losses,
            score_now if any(data.valid is not None for data in domains) else None,
            epochs=chosen.epochs,
            patience=chosen.patience,
            every=chosen.every,
            label=type(self).__name__,
            deadline=min(deadlines, default=None),
        )

    def require_one_width(self, domains: Sequence[TrainingData]) -> list[np.ndarray]:
        """Return the embeddings of several data sets, float32 [items, dim] each, all of one `dim`.

        Raises:
            InputError: a data set has none, or their widths differ.
        """
        tables = [require_embeddings(data, type(self).__name__) for data in domains]
        widths = sorted({table.shape[1] for table in tables})
        if len(widths) > 1:
            raise InputError(
                f"the data sets' embeddings are {' and '.join(map(str, widths))} numbers wide; "
                "one mapping serves one encoder: embed all items with the same"
            )
        return tables

    def transfer(self, data: TrainingData) -> None:
        """Take f to a data set, with no step of training: its train sequences give Z_U and A_hat.

        Raises:
            InputError: the data set has no embeddings, or of another width than f was trained on.
        """
        embeddings = require_embeddings(data, type(self).__name__)
        width = next(self.mapping.parameters()).shape[1]
        if embeddings.shape[1] != width:
            raise InputError(
                f"the mapping was trained on embeddings {width} wide, and this data set's are "
                f"{embeddings.shape[1]} wide; embed all items with the same encoder"
            )
        bought = purchases(data.train, data.num_items)
        self.domain = Domain(bought, embeddings).to(self.device)
        self.user_vectors, self.item_vectors = self._represent(self.domain)

    @torch.no_grad()
    def ask(
        self,
        users: np.ndarray,
        queries: np.ndarray,
        alpha: float,
        at: Literal["input", "output"] = "input",
    ) -> "AlphaRec":
        """Return a copy in which these users are partly what they ask for.

            input:   z_u' = (1 - alpha) z_u + alpha q_u, then f and smoothing
            output:  e_u' = (1 - alpha) e_u + alpha f(q_u), of unit lengths with info_nce

        Each user asks alone: of a changed z_u only u's own vector takes note. Smoothing all of them
        anew would let one user's words move what another is shown.

        Args:
            users: int64 [asking], distinct positions in the train sequences.
            queries: float32 [asking, dim], encoded as the items were.
            alpha: the share of the query, 0 to 1.
            at: where the two are mixed; the graph dampens what enters before it.

        Raises:
            InputError: alpha is outside 0 to 1, or the queries are not as wide as the items.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha {alpha}: the share of a query lies between 0 and 1")
        known = self.domain.inputs[torch.from_numpy(users).to(self.device)]
        if queries.shape != tuple(known.shape):
            raise InputError(
                f"queries of shape {list(queries.shape)} for {len(users)} users and embeddings "
                f"{known.shape[1]} wide; encode them with the encoder of the items"
            )
        queried = torch.from_numpy(queries).to(self.device)
        if at == "input":
            mixed = (1 - alpha) * known + alpha * queried
            share = own_share(self.domain.adjacency, self.settings.layers)[users, None]
            change = share * (self.mapping(mixed) - self.mapping(known))
            asking = self.finish(self._smoothed(self.domain)[users] + change)
        else:
            mapped = self.finish(self.mapping(queried))
            before = torch.from_numpy(self.user_vectors[users]).to(self.device)
            asking = (1 - alpha) * before + alpha * mapped
        other = copy.copy(self)
        other.user_vectors = self.user_vectors.copy()
        other.user_vectors[users] = asking.cpu().numpy()
        return other

    def state(self) -> dict[str, np.ndarray]:
        """Return the parameters of f: vectors follow from them."""
        return weights_of(self.mapping)

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the parameters of f, and represent users and items by it."""
        self.mapping = self._new_mapping(require_embeddings(data, type(self).__name__).shape[1])
        load_weights(self.mapping, state)
        self.transfer(data)

    def _new_mapping(self, width: int) -> nn.Module:
        chosen = self.settings
        if chosen.mapping == "linear":
            return nn.Linear(width, chosen.dim, bias=False).to(self.device)
        hidden = chosen.hidden or max(1, width // 2)
        return nn.Sequential(
            nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, chosen.dim)
        ).to(self.device)

    def _smoothed(self, domain: Domain) -> torch.Tensor:
        return smooth(domain.adjacency, self.mapping(domain.inputs), self.settings.layers)

    def _loss(
        self, domain: Domain, users: torch.Tensor, items: torch.Tensor, drawn: torch.Tensor
    ) -> torch.Tensor:
        vectors = self.finish(self._smoothed(domain))
        rows = (ids.to(self.device) for ids in (users, items + domain.num_users))
        user, item = (functional.embedding(ids, vectors) for ids in rows)
        matched = (user * item).sum(-1)
        unmatched = candidate_scores(user, vectors, (drawn + domain.num_users).to(self.device))
        if self.settings.loss == "info_nce":
            return info_nce(matched, unmatched, self.settings.temperature)
        return bpr(matched, unmatched)

    @torch.no_grad()
    def _represent(self, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
        vectors = self.finish(self._smoothed(domain)).cpu().numpy()
        return vectors[: domain.num_users], vectors[domain.num_users :]


class LinearMapping(AlphaRec):
    """A matrix on the language model's vectors, and nothing else."""

    Settings = LinearMappingSettings


def _spans(sizes: list[int]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
