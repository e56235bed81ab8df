"""SASRec with what items share besides their buyers: FDSA reads it, S3-Rec is pre-trained on it.

Attributes are categories, split at commas, and the brand. An item may have none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.attention import SASRecNetwork, mask_items
from lcrec.baselines.settings import FDSASettings, S3RecSettings
from lcrec.baselines.shared.losses import bpr
from lcrec.baselines.shared.purchases import NegativeSampler, purchases
from lcrec.baselines.shared.sequences import LENGTHS, Batch, SequenceBatches
from lcrec.baselines.shared.sequential import SequentialBaseline
from lcrec.baselines.shared.training import Step, TrainingLog, train_epochs
from lcrec.baselines.shared.transformer import EPSILON, Encoder, Positions, initialise
from lcrec.core.errors import InputError
from lcrec.data.folder import Items

FIELDS = ("categories", "brand")


@dataclass(frozen=True)
class Attributes:
    """The values of the catalogue's fields.

    Attributes:
        names: (field, value) of every attribute, in the order of their ids.
        fields: per field that any item fills, in the order of `FIELDS`, int64 [items + 1, most
            values of an item]: the ids of each item's values, padded with `len(names)`. The last
            row, for the id that pads sequences, has none.
    """

    names: list[tuple[str, str]]
    fields: list[np.ndarray]


def item_attributes(items: Items, asker: str) -> Attributes:
    """Return the attributes of the catalogue.

    Raises:
        InputError: no item has any.
    """
    found = {
        field: [_values(items.text(item, field), field) for item in range(len(items))]
        for field in FIELDS
    }
    found = {field: values for field, values in found.items() if any(values)}
    if not found:
        raise InputError(
            f"{asker} learns from what items have in common, but none of the {len(items)} items of "
            f"the catalogue has {' or '.join(FIELDS)}; take a method that needs neither, such as "
            "sasrec, or prepare the data again with them (python -m lcrec.prepare --help)"
        )
    names: list[tuple[str, str]] = []
    fields = []
    for field, values in found.items():
        distinct = sorted({value for row in values for value in row})
        ids = {value: len(names) + place for place, value in enumerate(distinct)}
        names += [(field, value) for value in distinct]
        fields.append([[ids[value] for value in row] for row in values])
    return Attributes(names, [_padded([*rows, []], len(names)) for rows in fields])


def _values(text: str, field: str) -> list[str]:
    parts = text.split(",") if field == "categories" else [text]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _padded(rows: list[list[int]], pad: int) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


class ItemFeatures(nn.Module):
    """A vector per item out of what it is."""

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


class FDSANetwork(SASRecNetwork):
    """The stream of items, as SASRec has it; that of features; and the layer that joins them."""

    def __init__(self, num_items: int, attributes: Attributes, chosen: Any) -> None:
        super().__init__(num_items, chosen)
        self.features = ItemFeatures(attributes, chosen.dim)
        self.feature_positions = Positions(chosen.max_history, chosen.dim, chosen.dropout)
        self.feature_encoder = Encoder.of(chosen)
        self.join = nn.Linear(2 * chosen.dim, chosen.dim)
        self.norm = nn.LayerNorm(chosen.dim, eps=EPSILON)
        self.dropout = nn.Dropout(chosen.dropout)
        initialise(self)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the states [predictions, dim] at the places that the batch asks for."""
        vectors = self.feature_positions(self.features(batch.items))
        features = self.feature_encoder(vectors, batch.real, causal=True, asked=batch.asked)
        items = self.encode(batch.items, batch.real, asked=batch.asked)
        return self.dropout(self.norm(self.join(torch.cat((items, features), dim=-1))))


class FDSA(SequentialBaseline):
    """FDSA: SASRec beside a second one that reads what the items are (Zhang et al. 2019, IJCAI).

        a_t = sum over fields f of w_f v_f,  w = softmax over the item's fields of attention(v_f)
        state = drop(LN(W [encoder(items); encoder(a)]))

    v_f is the mean vector of the item's values of a field (categories, brand). A field that an item
    lacks takes no part; an item without any has a_t = 0. The items of a list need no attributes:
    they are scored by their item vectors.

    Both streams have their own positions and layer norms, and the joining layer another (RecBole's
    code shares one norm among the three).
    """

    Settings = FDSASettings

    def build(self, data: TrainingData) -> FDSANetwork:
        """Return the network with weights as they start.

        Raises:
            InputError: no item has an attribute.
        """
        assert data.items is not None
        return FDSANetwork(data.num_items, item_attributes(data.items, "fdsa"), self.settings)


class Forms(nn.Module):
    """What pre-training has besides the network: vectors of attributes, and four bilinear forms."""

    attributes: torch.Tensor

    def __init__(self, attributes: Attributes, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(attributes.names), dim)
        self.aap, self.mip, self.map, self.sp = (nn.Linear(dim, dim) for _ in range(4))
        ids = torch.from_numpy(np.concatenate(attributes.fields, axis=1))
        self.register_buffer("attributes", ids, persistent=False)
        initialise(self)
        count = len(attributes.names)
        owners = torch.bincount(ids.flatten(), minlength=count + 1)[:count] / (len(ids) - 1)
        self.bias = nn.Parameter(owners.logit(eps=1e-3))

    def attribute_loss(
        self, form: nn.Linear, states: torch.Tensor, items: torch.Tensor
    ) -> torch.Tensor:
        """Return the logistic loss [items], summed over all attributes; 0 for items without any.

        Args:
            form: `aap` or `map`.
            states: [items, dim].
            items: int64 [items], ids.
        """
        ids, count = self.attributes[items], self.vectors.num_embeddings
        has = states.new_zeros(len(items), count + 1).scatter_(1, ids, 1)[:, :count]
        logits = form(states) @ self.vectors.weight.T + self.bias
        losses = functional.binary_cross_entropy_with_logits(logits, has, reduction="none")
        return losses.sum(dim=1) * has.any(dim=1)


def pretraining_loss(
    network: SASRecNetwork,
    forms: Forms,
    batch: Batch,
    sampler: NegativeSampler,
    stream: torch.Tensor,
    share: float,
) -> dict[str, torch.Tensor]:
    """Return the loss of each task, by its name, summed over a batch and per sequence.

    Args:
        network: in training; the id after the padding masks.
        forms: of the tasks.
        batch: with targets, on the network's device.
        sampler: of items that a user does not have.
        stream: int64 [interactions], all train items in order; other stretches are cut from it.
        share: of items that are masked.
    """
    pad, mask = network.num_items, network.num_items + 1
    whole, lengths = batch.with_target(pad), batch.lengths + 1
    count = len(whole)
    places = torch.arange(whole.shape[1], device=whole.device)
    real = places < lengths[:, None]
    masked, asked = mask_items(whole, lengths, share, 0.0, mask)

    size = 1 + (torch.rand(count, device=whole.device) * (lengths // 2)).long()
    first = (torch.rand(count, device=whole.device) * (lengths - size + 1)).long()
    inside = (places >= first[:, None]) & (places < (first + size)[:, None])
    elsewhere = torch.randint(len(stream), (count, 1), device=whole.device)
    other = stream[(elsewhere + places) % len(stream)]
    hidden = torch.full_like(whole, mask).masked_fill(~real, pad)
    parts = [whole.masked_fill(inside, mask)]
    parts += [torch.where(inside, stretch, hidden) for stretch in (whole, other)]

    states = network.encode(torch.cat((masked, *parts)), real.repeat(4, 1), causal=False)
    state, rest = states[:count][asked], states[count:].unflatten(0, (3, count))
    rest, cut, foreign = rest[:, torch.arange(count), lengths - 1]

    items, users = whole[asked], batch.users[asked.nonzero()[:, 0]]
    drawn = torch.from_numpy(sampler.draw(users.cpu().numpy(), 1)[:, 0]).to(whole.device)
    guess, segment = forms.mip(state), forms.sp(rest)
    distinct, times = whole[real].unique(return_counts=True)
    known = forms.attribute_loss(forms.aap, network.items(distinct), distinct)
    right, wrong = ((guess * network.items(ids)).sum(-1) for ids in (items, drawn))
    return {
        "aap": (known * times).sum() / count,
        "mip": bpr(right, wrong) * len(items) / count,
        "map": forms.attribute_loss(forms.map, state, items).sum() / count,
        "sp": bpr((segment * cut).sum(-1), (segment * foreign).sum(-1)),
    }


def weighted_loss(
    network: SASRecNetwork,
    forms: Forms,
    batch: Batch,
    sampler: NegativeSampler,
    stream: torch.Tensor,
    chosen: S3RecSettings,
) -> torch.Tensor:
    """Return the sum of the tasks' losses by their weights, the sequences read by length.

    Arguments as for `pretraining_loss`; `chosen` has the weights and the share that is masked.
    """
    loss = torch.zeros((), device=stream.device)
    for part in batch.by_length(LENGTHS):
        losses = pretraining_loss(network, forms, part, sampler, stream, chosen.masked)
        share = len(part.users) / len(batch.users)  # the losses are per sequence
        for task, value in losses.items():
            loss = loss + share * getattr(chosen, task) * value
    return loss


class S3Rec(SequentialBaseline):
    """S3-Rec: SASRec, pre-trained to know items from attributes and context (Zhou et al. 2020).

    Pre-training looks both ways and has four tasks, each with a bilinear form of its own (equations
    5 to 8); their losses are summed per sequence and weighted as in the authors' code:

    - AAP: which attributes has an item, by its vector;
    - MIP: which of two items stood behind a mask, by the state there;
    - MAP: which attributes has the item behind a mask, likewise;
    - SP: which of two stretches was cut out of a sequence, by the states at their ends.

    A comparison of two is the logistic loss of the difference of their scores. (The authors' code
    and RecBole put the scores through a sigmoid before that, which leaves the difference within -1
    and 1 and the loss without a slope.) An attribute's score has a bias besides, which starts at
    the logit of how many items have it: without it, all states first move alike to answer "no" to
    nearly all attributes, and on small data stay there. Then the network goes on as SASRec: the
    forms and the attributes are dropped, and nothing of them is used to recommend.

    Attributes:
        pretraining: how it went, by epoch.
    """

    Settings = S3RecSettings
    pretraining: TrainingLog

    def build(self, data: TrainingData) -> SASRecNetwork:
        """Return the network with weights as they start."""
        return SASRecNetwork(data.num_items, self.settings, extra=1)

    def start(self, data: TrainingData) -> SASRecNetwork:
        """Return the network as pre-trained.

        Raises:
            InputError: no item has an attribute.
        """
        chosen = self.settings
        assert data.items is not None
        network = self.build(data).to(self.device)
        forms = Forms(item_attributes(data.items, "s3rec"), chosen.dim).to(self.device)
        both = nn.ModuleList((network, forms))
        optimizer = torch.optim.Adam(both.parameters(), lr=chosen.learning_rate, fused=True)
        sampler = NegativeSampler(purchases(data.train, data.num_items), self.seed + 2)
        stream = torch.from_numpy(data.train.items.astype(np.int64)).to(self.device)
        batches = SequenceBatches(
            data.train,
            data.num_items,
            max_history=chosen.max_history,
            form="windows",
            batch_size=chosen.pretrain_batch_size,
            seed=self.seed + 2,
        )

        def steps() -> Iterator[Step]:
            for batch in batches:
                there = batch.to(self.device)
                loss = weighted_loss(network, forms, there, sampler, stream, chosen)
                yield loss, len(batch.users)

        self.pretraining = train_epochs(
            both,
            optimizer,
            steps,
            None,
            epochs=chosen.pretrain_epochs,
            patience=1,
            label="S3Rec, pre-training",
            deadline=data.deadline,
        )
        return network
