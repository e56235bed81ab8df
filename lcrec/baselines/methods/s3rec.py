"""S3-Rec: SASRec, pre-trained to know items from attributes and context (Zhou et al. 2020, CIKM).

Pre-training looks both ways and has four tasks, each with a bilinear form of its own (equations 5
to 8); their losses are summed per sequence and weighted as in the authors' code:

- AAP: which attributes has an item, by its vector;
- MIP: which of two items stood behind a mask, by the state there;
- MAP: which attributes has the item behind a mask, likewise;
- SP: which of two stretches was cut out of a sequence, by the states at their ends.

A comparison of two is the logistic loss of the difference of their scores. (The authors' code and
RecBole put the scores through a sigmoid before that, which leaves the difference within -1 and 1
and the loss without a slope.) An attribute's score has a bias besides, which starts at the
logit of how many items have it: without it, all states first move alike to answer "no" to nearly
all attributes, and on small data stay there. Then the network goes on as SASRec: the forms and the
attributes are dropped, and nothing of them is used to recommend.

Reads and writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import Need, TrainingData
from lcrec.baselines.methods.bert4rec import mask_items
from lcrec.baselines.methods.sasrec import SASRecNetwork, SASRecSettings
from lcrec.baselines.shared.attributes import Attributes, item_attributes
from lcrec.baselines.shared.graph import purchases
from lcrec.baselines.shared.losses import bpr
from lcrec.baselines.shared.negatives import NegativeSampler
from lcrec.baselines.shared.sequences import Batch, SequenceBatches
from lcrec.baselines.shared.sequential import LENGTHS, SequentialBaseline
from lcrec.baselines.shared.training import Step, TrainingLog, train_epochs
from lcrec.baselines.shared.transformer import initialise
from lcrec.core.config import option


@dataclass(frozen=True)
class S3RecSettings(SASRecSettings):
    """Those of SASRec; epochs, batches, masks and weights of the authors' code."""

    batch_size: int = option("targets per update", 256, minimum=1)
    epochs: int = option("at most, after pre-training", 200, minimum=1)
    pretrain_epochs: int = option(
        "of pre-training; the authors used those of 100 to 150", 100, minimum=0
    )
    pretrain_batch_size: int = option(
        "targets per update of pre-training; the authors: 100 sequences", 1024, minimum=1
    )
    masked: float = option("share of items masked in pre-training", 0.2, minimum=0, maximum=1)
    aap: float = option("weight of item and attributes", 0.2, minimum=0)
    mip: float = option("weight of masked items", 1.0, minimum=0)
    map: float = option("weight of masked items' attributes", 1.0, minimum=0)
    sp: float = option("weight of stretches", 0.5, minimum=0)


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
    """A causal transformer, pre-trained on items, attributes and stretches.

    Attributes:
        pretraining: how it went, by epoch.
    """

    Settings: ClassVar[type] = S3RecSettings
    needs: ClassVar[frozenset[Need]] = frozenset({"texts"})
    tuned: ClassVar[dict[str, Any]] = {"examples": "windows", "batch_size": 2048}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "dropout": (0.2, 0.5),
        "learning_rate": (5e-4, 1e-3),
        "pretrain_epochs": (20, 100),
    }
    pretraining: TrainingLog

    def build(self, data: TrainingData) -> SASRecNetwork:
        """Return the network with weights as they start."""
        return SASRecNetwork(data.num_items, self.settings, extra=1)

    def start(self, data: TrainingData) -> SASRecNetwork:
        """Return the network as pre-trained.

        Raises:
            InputError: no item has an attribute, or a user has every item.
        """
        chosen = self.settings
        assert data.items is not None
        network = self.build(data).to(self.device)
        forms = Forms(item_attributes(data.items, "s3rec"), chosen.dim).to(self.device)
        both = nn.ModuleList((network, forms))
        optimizer = torch.optim.Adam(both.parameters(), lr=chosen.learning_rate)
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
