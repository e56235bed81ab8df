"""TSSR: item ids and item texts as two streams that attend to each other.

    F_id = encoder(E + P),  F_con = encoder'(C + P)        P: positions, shared by both
    x_m = cross(x_m-1, F_con),  y_m = cross'(y_m-1, F_id)  x_0 = F_id, y_0 = F_con
    g = sigmoid(W [x_M; y_M] + b),  state = g x_M + (1 - g) y_M,  scores = W_o state + b_o

E are the vectors of item ids, C those of item texts, projected: either made beforehand
(`FixedVectors`) or by a text encoder that is trained with the rest (`TrainedTexts`). All blocks are
causal, and their residuals are scaled by a number that is learned from about 0. The loss is the
cross-entropy of the next item at every place, and two contrasts in both directions: a user's mean
in one stream finds the same user's in the other (cosine / .2, `user_contrast`), and each state of
one stream finds the next item as the other stream takes it in (dot product, `item_contrast`). Both
contrasts draw their negatives from the batch.

Two-stream sequential recommendation with hierarchical contrasting (arXiv 2403.07623) and its
released code, which has these defaults. As there, a user is the window of the last items in the
train sequence. Unlike there, padding enters no mean and no negatives, and no item is its own
negative. Pictures have not been tried.

Reads a transformers model folder with `--text-encoder`; that is trained end to end on titles.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lcrec.baselines.base import Baseline, TrainingData, require_embeddings
from lcrec.baselines.settings import TSSRSettings
from lcrec.baselines.shared.sequences import (
    LENGTHS,
    Batch,
    cut_by_length,
    read_by_length,
    require_order,
)
from lcrec.baselines.shared.training import Step, load_weights, train_baseline, weights_of
from lcrec.baselines.shared.transformer import Block, Encoder, allowed_keys
from lcrec.core.errors import InputError
from lcrec.core.pretrained import ENCODER, load_pair
from lcrec.data.folder import Interactions


def masked_mean(states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the mean over the real places, [batch, dim].

    Args:
        states: [batch, length, dim].
        real: bool, or 0 and 1, [batch, length], one real place or more in every row.
    """
    weights = real[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def user_contrast(query: torch.Tensor, key: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean cross-entropy of finding each user's key by cosine / temperature.

    Args:
        query: [batch, dim], users in one stream.
        key: [batch, dim], the same users in the other.
        temperature: above 0.
    """
    logits = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).T
    return functional.cross_entropy(
        logits / temperature, torch.arange(len(query), device=query.device)
    )


def item_contrast(
    query: torch.Tensor, key: torch.Tensor, targets: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy of finding the next item at each place, by dot product.

    Candidates are what came next for the other users of the batch at the same place; one that is
    the same item is no negative.

    Args:
        query: [batch, length, dim], states of one stream.
        key: [batch, length, dim], what the other stream makes of the next items before it knows
            of places or neighbours.
        targets: int64 [batch, length], the next items.
        real: bool [batch, length], where there is a next item.
    """
    logits = torch.einsum("btd,ctd->tbc", query, key)
    batch = len(query)
    by_place = targets.T  # [length, batch]
    itself = torch.eye(batch, dtype=torch.bool, device=query.device)
    barred = ~real.T[:, None, :] | (by_place[:, :, None] == by_place[:, None, :])
    logits = logits.masked_fill(barred & ~itself, -torch.inf)
    wanted = torch.arange(batch, device=query.device).expand(len(logits), -1)
    asked = real.T
    return functional.cross_entropy(logits[asked], wanted[asked])


ITEMS_AT_ONCE = 256


class FixedVectors(nn.Module):
    """Vectors that do not change.

    Args:
        vectors: float32 [items, dim].
    """

    vectors: torch.Tensor

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)
        self.dim = vectors.shape[1]

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [count, dim] of int64 [count] items."""
        return self.vectors[items]


class TrainedTexts(nn.Module):
    """A text encoder over the items' titles, whose weights train.

    Its pooled output where it has one, else the mean over a text's tokens.

    Args:
        encoder: a transformers model that gives hidden states.
        tokens: int64 [items, length], padded.
        mask: int64 [items, length], 0 at padding.
    """

    tokens: torch.Tensor
    mask: torch.Tensor

    def __init__(self, encoder: nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        config: Any = encoder.config
        self.dim = int(config.hidden_size)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [count, dim] of int64 [count] items."""
        mask = self.mask[items]
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        output = self.encoder(input_ids=self.tokens[items][:, :longest], attention_mask=mask)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled
        return masked_mean(output.last_hidden_state, mask)


class Content(nn.Module):
    """Content vectors of items at the width of the rest.

    Args:
        source: `FixedVectors` or `TrainedTexts`.
        num_items: the size of the catalogue, and the id that pads.
        dim: numbers per item.
    """

    def __init__(self, source: FixedVectors | TrainedTexts, num_items: int, dim: int) -> None:
        super().__init__()
        self.source = source
        self.num_items = num_items
        self.project = nn.Linear(source.dim, dim)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return [..., dim] of int64 [...] items, zeros at padding; each item is encoded once."""
        real = items != self.num_items
        distinct, places = items[real].unique(return_inverse=True)
        vectors = self.project(self.source(distinct))
        result = vectors.new_zeros((*items.shape, vectors.shape[-1]))
        result[real] = vectors[places]
        return result

    @torch.no_grad()
    def table(self) -> torch.Tensor:
        """Return the vectors of all items, [items, dim]."""
        items = torch.arange(self.num_items, device=self.project.weight.device)
        return torch.cat([self(part) for part in items.split(ITEMS_AT_ONCE)])


def load_texts(path: Path, texts: list[str], max_tokens: int) -> TrainedTexts:
    """Load a text encoder and tokenise the texts once.

    Args:
        path: a folder with a transformers encoder and its tokenizer, weights as safetensors.
        texts: one per item.
        max_tokens: longer texts are cut.

    Raises:
        InputError: nothing there can be loaded, or it is no plain encoder.
    """
    if not path.is_dir():
        raise InputError(f"--text-encoder {path}: no such folder")
    encoder, tokenizer = load_pair("--text-encoder", path, ENCODER, dtype=torch.float32)
    if encoder.config.is_encoder_decoder or not hasattr(encoder.config, "hidden_size"):
        raise InputError(f"--text-encoder {path}: an encoder such as BERT is wanted")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"--text-encoder {path}: its tokenizer has no token to pad with")
    tokenizer.padding_side = "right"
    encoded = tokenizer(
        texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    empty = (encoded["attention_mask"].sum(1) == 0).nonzero()
    if len(empty):
        raise InputError(
            f"--text-encoder {path}: the title of item {int(empty[0])} has no token of it"
        )
    return TrainedTexts(encoder, encoded["input_ids"], encoded["attention_mask"])


USER_TEMPERATURE = 0.2
SCALE_AT_START = 1e-8
BIAS_AT_START = 0.1


class Streams(NamedTuple):
    """What a sequence becomes, [batch, length, dim] each.

    Attributes:
        states: what the next item is told by.
        identity: F_id; None with the stream of contents alone.
        content: F_con; None with the stream of ids alone.
    """

    states: torch.Tensor
    identity: torch.Tensor | None
    content: torch.Tensor | None


class Network(nn.Module):
    """Both streams, from item ids and content vectors to scores."""

    def __init__(self, num_items: int, settings: TSSRSettings) -> None:
        super().__init__()
        self.settings = settings
        dim, dropout = settings.dim, settings.dropout
        shape = (dim, settings.heads, settings.hidden, dropout, dropout)
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
        self.positions = nn.Parameter(torch.empty(settings.max_history, dim))
        both = not (settings.id_only or settings.content_only)
        self.identity, self.content = (
            None if left_out else Encoder(settings.layers, *shape, residual_scale=SCALE_AT_START)
            for left_out in (settings.content_only, settings.id_only)
        )
        crossing = settings.cross_layers if both and settings.cross else 0
        self.cross_identity, self.cross_content = (
            nn.ModuleList(Block(*shape, residual_scale=SCALE_AT_START) for _ in range(crossing))
            for _ in range(2)
        )
        self.gate = nn.Linear(2 * dim, dim) if both and settings.gate else None
        self.output = nn.Linear(dim, num_items)
        initialise(self, num_items)

    def forward(
        self,
        items: torch.Tensor,
        content: torch.Tensor | None,
        real: torch.Tensor,
        asked: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Streams:
        """Read sequences.

        Args:
            items: int64 [batch, length], padded at the end with the size of the catalogue.
            content: [batch, length, dim], the items' content vectors; None with ids alone.
            real: bool [batch, length], False at padding.
            asked: rows and columns of one place per row, in order; the blocks that cross compute
                these alone, and `states` is of them, [batch, dim].
        """
        places = self.positions[: items.shape[1]]
        one = two = None
        if self.identity is not None:
            one = self.identity(self.items(items) + places, real, causal=True)
        if self.content is not None:
            assert content is not None
            two = self.content(content + places, real, causal=True)
        if one is None or two is None:
            alone = one if two is None else two
            assert alone is not None
            return Streams(alone if asked is None else alone[asked], one, two)
        x, y = one, two
        allowed = allowed_keys(real, causal=True)
        if asked is not None:
            rows, columns = asked
            x, y = one[asked][:, None], two[asked][:, None]
            allowed = allowed[rows, :, columns][:, :, None]
        for reads_content, reads_ids in zip(self.cross_identity, self.cross_content, strict=True):
            x, y = reads_content(x, allowed, two), reads_ids(y, allowed, one)
        share: float | torch.Tensor = 0.5
        if self.gate is not None:
            share = torch.sigmoid(self.gate(torch.cat((x, y), dim=-1)))
        states = share * x + (1 - share) * y
        return Streams(states if asked is None else states[:, 0], one, two)


def read_in_parts(
    network: Network, items: torch.Tensor, content: torch.Tensor | None, real: torch.Tensor
) -> Streams:
    """Return what the network makes of sequences, short and long ones read apart.

    Args:
        network, items, content, real: as `Network.forward` takes them; what stands at padding is
            zeros here.
    """
    lengths = real.sum(1)
    order, bounds = cut_by_length(lengths, LENGTHS)
    parts = []
    for rows in order.tensor_split(bounds[1:-1]):
        width = int(lengths[rows].max())
        vectors = None if content is None else content[rows, :width]
        parts.append(network(items[rows, :width], vectors, real[rows, :width]))
    back = order.argsort()

    def join(streams: tuple[Any, ...]) -> Any:
        if streams[0] is None:  # left out of all parts
            return None
        width = items.shape[1]
        whole = [functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in streams]
        return torch.cat(whole)[back]

    return Streams(*map(join, zip(*parts, strict=True)))


class TSSR(Baseline):
    """Two streams of a history, what its items are called and what they are about."""

    Settings = TSSRSettings

    network: Network
    contents: torch.Tensor | None  # [items + 1, dim], projected; None with ids alone

    def fit(self, data: TrainingData) -> None:
        """Train to the best validation NDCG@10.

        Raises:
            InputError: no user has two items to train on, contents are missing, or
                the text encoder cannot be loaded.
        """
        chosen = self.settings
        torch.manual_seed(self.seed)
        windows = cut_windows(data.train, chosen.max_history)
        network = Network(data.num_items, chosen)
        content = self._content(data)
        parts = nn.ModuleList([network] if content is None else [network, content]).to(self.device)
        optimizer = torch.optim.Adam(parts.parameters(), lr=chosen.learning_rate, fused=True)
        rng = np.random.default_rng(self.seed)

        def losses() -> Iterator[Step]:
            for sequences in _batches(windows, chosen.batch_size, data.num_items, rng):
                yield self._loss(network, content, sequences.to(self.device)), len(sequences)

        self.log = train_baseline(
            self, data, parts, optimizer, losses, refresh=lambda: self._keep(network, content)
        )

    @torch.no_grad()
    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the logits of the next item after each history, float32 [batch, num_items]."""
        num_items = self.network.output.out_features

        def read(batch: Batch) -> torch.Tensor:
            content = None if self.contents is None else self.contents[batch.items]
            return self.network(batch.items, content, batch.real, batch.asked).states

        states = read_by_length(
            read,
            users,
            histories,
            num_items=num_items,
            max_history=self.settings.max_history,
            device=self.device,
        )
        return self.network.output(states).cpu().numpy()

    def state(self) -> dict[str, np.ndarray]:
        """Return the weights, and the items' content vectors in place of what made them."""
        arrays = weights_of(self.network)
        if self.contents is not None:
            arrays["contents"] = self.contents.cpu().numpy()
        return arrays

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the weights and content vectors."""
        weights, contents = dict(state), None
        if not self.settings.id_only:
            contents = torch.from_numpy(weights.pop("contents")).to(self.device)
        network = Network(data.num_items, self.settings).to(self.device)
        load_weights(network, weights)
        self.network, self.contents = network.eval(), contents

    def _content(self, data: TrainingData) -> Content | None:
        """Return what makes content vectors, None with the stream of ids alone."""
        chosen = self.settings
        if chosen.id_only:
            return None
        source: Any
        if chosen.text_encoder is not None:
            if data.items is None:
                raise InputError("--text-encoder reads titles, and this data set comes without")
            titles = [data.items.title(item) for item in range(data.num_items)]
            source = load_texts(chosen.text_encoder, titles, chosen.max_tokens)
        else:
            source = FixedVectors(torch.from_numpy(require_embeddings(data, "tssr")))
        content = Content(source, data.num_items, chosen.dim)
        _initialise_linear(content.project)
        return content

    def _loss(
        self, network: Network, content: Content | None, sequences: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of padded sequences, int64 [batch, length + 1]."""
        chosen = self.settings
        pad = network.output.out_features
        targets = sequences[:, 1:]
        real = targets != pad
        items = sequences[:, :-1].masked_fill(~real, pad)  # the last item is a target alone
        vectors = None if content is None else content(sequences)
        streams = read_in_parts(network, items, None if vectors is None else vectors[:, :-1], real)
        loss = functional.cross_entropy(network.output(streams.states[real]), targets[real])
        one, two = streams.identity, streams.content
        if one is None or two is None:
            return loss
        assert vectors is not None
        if chosen.user_contrast:
            users = masked_mean(one, real), masked_mean(two, real)
            loss = loss + user_contrast(users[1], users[0], USER_TEMPERATURE)
            loss = loss + user_contrast(users[0], users[1], USER_TEMPERATURE)
        if chosen.item_contrast:
            loss = loss + item_contrast(two, network.items(targets), targets, real)
            loss = loss + item_contrast(one, vectors[:, 1:], targets, real)
        return loss

    def _keep(self, network: Network, content: Content | None) -> None:
        self.network = network.eval()
        self.contents = None
        if content is not None:
            table = content.eval().table()
            # One more row, of zeros, for the id that pads.
            self.contents = functional.pad(table, (0, 0, 0, 1))


def cut_windows(train: Interactions, max_history: int) -> list[np.ndarray]:
    """Return the last `max_history` + 1 train items of every user who has two or more.

    Raises:
        InputError: nobody has two.
    """
    require_order(np.diff(train.offsets))
    return [items[-max_history - 1 :] for items in train if len(items) > 1]


def initialise(network: Network, num_items: int) -> None:
    """Draw the weights as the released code does: ids and positions within +-sqrt(1 / items)."""
    bound = num_items**-0.5
    nn.init.uniform_(network.items.weight, -bound, bound)
    nn.init.uniform_(network.positions, -bound, bound)
    with torch.no_grad():
        network.items.weight[num_items] = 0
    for part in network.modules():
        if isinstance(part, nn.Linear):
            _initialise_linear(part)


def _initialise_linear(layer: nn.Linear) -> None:
    nn.init.xavier_normal_(layer.weight)
    nn.init.constant_(layer.bias, BIAS_AT_START)


def _batches(
    windows: list[np.ndarray], batch_size: int, pad: int, rng: np.random.Generator
) -> Iterator[torch.Tensor]:
    """Yield shuffled windows, int64 [batch, longest], padded at the end; a user once an epoch."""
    order = rng.permutation(len(windows))
    for start in range(0, len(order), batch_size):
        rows = [torch.from_numpy(windows[row]) for row in order[start : start + batch_size]]
        yield nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).long()
