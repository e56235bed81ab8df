"""Methods that write the next item token by token: a T5 from the tokens of the history.

    in:   the tokens of the last items, oldest first
    out:  the tokens of the next item, likelihood = product over its tokens

Every prefix of a train sequence is an example. The kit's prefix tree and scoring decode it: beams
end in real items only, the encoder's output is computed once per history and expanded over the
beams, and a score is the sum of log-probabilities under the softmax over the whole vocabulary. The
end of a sequence is neither trained nor decoded: every item has the same number of tokens.

Reads and writes nothing.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, get_scheduler

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.shared.training import Step, train_baseline
from lcrec.core.config import option
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.generate.search import search
from lcrec.generate.trie import ItemTrie
from lcrec.index.item_index import ItemIndex

PAD = 0  # also what the decoder starts from, as in T5
HEAD_DIM = 64  # of T5 in all its sizes, and of TIGER
CLIP = 1.0  # the largest norm of a gradient, that of both families' code
BATCHES_TO_SORT = 64  # among which histories of a length come together
PROMPTS_AT_ONCE = {"cpu": 16}  # what its beams keep in memory is 25 to 50 MB per history
PROMPTS_ELSEWHERE = 256


@dataclass(frozen=True)
class GenerativeSettings:
    """What can be set of every method here; the methods give the defaults of their own."""

    max_history: int = option("the last items of a history that are read", 20, minimum=1)
    dim: int = option("width of the model", 128, minimum=1)
    layers: int = option("of the encoder, and of the decoder", 4, minimum=1)
    heads: int = option("attention heads, of 64 numbers each", 6, minimum=1)
    hidden: int = option("width of the feed-forward layers", 1024, minimum=1)
    dropout: float = option("share of values dropped in training", 0.1, minimum=0, maximum=0.99)
    learning_rate: float = option("the highest, of AdamW", 5e-4, minimum=0)
    weight_decay: float = option("of AdamW", 0.01, minimum=0)
    warmup: float = option("share of updates while it rises", 0.01, minimum=0, maximum=1)
    batch_size: int = option("examples per update", 256, minimum=1)
    epochs: int = option("at most", 200, minimum=1)
    patience: int = option("validations without improvement before training stops", 20, minimum=1)
    every: int = option("epochs from one validation to the next", 1, minimum=1)
    valid_users: int = option(
        "users drawn to validate on while training, for decoding is slow; 0: all", 1000, minimum=0
    )
    beams: int = option("beams, and so the most items that are ranked", 20, minimum=10)


class Prefixes:
    """The examples in train sequences: every item but the first, with what came before it.

    Args:
        train: the sequences.
        max_history: how many of the items before count.
    """

    def __init__(self, train: Interactions, max_history: int) -> None:
        self.items = train.items
        lengths = np.diff(train.offsets)
        place = np.arange(len(train.items)) - np.repeat(train.offsets[:-1], lengths)
        self.ends = np.flatnonzero(place > 0)  # where the target stands
        self.lengths = np.minimum(place[self.ends], max_history)

    def __len__(self) -> int:
        return len(self.ends)

    def batches(
        self, batch_size: int, rng: np.random.Generator
    ) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Yield every example once: histories, oldest first, and targets int32 [batch].

        Their order is drawn, but some batches at a time are sorted by length to save padding.
        """
        order = rng.permutation(len(self))
        for window in range(0, len(order), batch_size * BATCHES_TO_SORT):
            chosen = order[window : window + batch_size * BATCHES_TO_SORT]
            chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
            starts = np.arange(0, len(chosen), batch_size)
            for start in rng.permutation(starts):
                rows = chosen[start : start + batch_size]
                ends, lengths = self.ends[rows], self.lengths[rows]
                histories = [
                    self.items[end - length : end]
                    for end, length in zip(ends, lengths, strict=True)
                ]
                yield histories, self.items[ends]


class GenerativeBaseline(Baseline):
    """A T5 over the tokens of an index; a subclass says which index, and may build another T5."""

    settings: GenerativeSettings
    schedule: ClassVar[str]
    suffix: tuple[int, ...] = ()  # token ids that every history is followed by

    @property
    def max_list_length(self) -> int | None:
        """As many items as there are beams."""
        return self.settings.beams

    @abstractmethod
    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the tokens that items are spelt with."""

    def build(self, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        """Return a T5 with random weights, and the id of the first of `num_tokens` item tokens."""
        chosen = self.settings
        shape: dict[str, Any] = {
            "vocab_size": 1 + num_tokens,
            "d_model": chosen.dim,
            "d_kv": HEAD_DIM,
            "d_ff": chosen.hidden,
            "num_layers": chosen.layers,
            "num_heads": chosen.heads,
            "dropout_rate": chosen.dropout,
            "pad_token_id": PAD,
            "decoder_start_token_id": PAD,
            "eos_token_id": None,
        }
        return T5ForConditionalGeneration(T5Config(**shape)), 1

    def fit(self, data: TrainingData) -> None:
        """Train to the best validation NDCG@10."""
        chosen = self.settings
        examples = Prefixes(data.train, chosen.max_history)
        if not len(examples):
            raise InputError("no train sequence has two items, so no next item can be learnt")
        torch.manual_seed(self.seed)
        self._set_up(self.spell(data))
        updates = -(-len(examples) // chosen.batch_size) * chosen.epochs
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )
        schedule = get_scheduler(self.schedule, optimizer, int(chosen.warmup * updates), updates)
        rng = np.random.default_rng(self.seed)
        asked = data.valid
        if asked is not None:
            asked = asked.sample(chosen.valid_users or None, self.seed)

        def losses() -> Iterator[Step]:
            for histories, targets in examples.batches(chosen.batch_size, rng):
                input_ids, mask = self._encode(histories)
                labels = torch.from_numpy(self.token_ids[targets]).to(self.device)
                loss = self.network(input_ids=input_ids, attention_mask=mask, labels=labels).loss
                yield loss, len(targets)

        def step() -> None:
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
            optimizer.step()
            schedule.step()

        data = replace(data, valid=asked)
        self.log = train_baseline(self, data, self.network, optimizer, losses, step=step)

    def _set_up(self, index: ItemIndex) -> None:
        """Make the network for an index, with fresh weights."""
        self.index = index
        self.network, first = self.build(len(index.vocabulary))
        module: nn.Module = self.network
        module.to(self.device)
        self.token_ids = first + index.code_columns
        self.trie = ItemTrie.build(self.token_ids).to(self.device)

    def _encode(self, histories: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask, int64 [batch, length], padded on the left."""
        recent = [history[-self.settings.max_history :] for history in histories]
        depth = self.token_ids.shape[1]
        width = depth * max(map(len, recent))
        ids = np.full((len(recent), width + len(self.suffix)), PAD, dtype=np.int64)
        ids[:, width:] = self.suffix
        mask = np.ones_like(ids)
        for row, history in enumerate(recent):
            start = width - depth * len(history)
            ids[row, start:width] = self.token_ids[history].ravel()
            mask[row, :start] = 0
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the beams' log-probabilities, float32 [batch, num_items]; -inf elsewhere."""
        self.network.eval()
        scores = np.full((len(histories), len(self.index)), -np.inf, dtype=np.float32)
        by_length = np.argsort([len(history) for history in histories], kind="stable")
        at_once = PROMPTS_AT_ONCE.get(torch.device(self.device).type, PROMPTS_ELSEWHERE)
        for start in range(0, len(by_length), at_once):
            rows = by_length[start : start + at_once]
            input_ids, mask = self._encode([histories[row] for row in rows])
            beams = min(self.settings.beams, len(self.index))
            found = search(self.network, input_ids, mask, self.trie, beams)
            items, values = found.items.cpu().numpy(), found.scores.cpu().numpy()
            place, beam = np.nonzero(items >= 0)
            scores[rows[place], items[place, beam]] = values[place, beam]
        return scores

    def state(self) -> dict[str, np.ndarray]:
        """Return the weights, those that are shared once, and the index."""
        weights = {
            name: value.detach().cpu().numpy() for name, value in self.network.named_parameters()
        }
        sizes = np.array(self.index.level_sizes, dtype=np.int32)
        return {"index.codes": self.index.codes, "index.level_sizes": sizes, **weights}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take weights and index.

        Raises:
            ValueError: they are of another catalogue, or of other settings.
        """
        codes = state["index.codes"]
        if len(codes) != data.num_items:
            raise ValueError(f"it has {len(codes)} items, the catalogue {data.num_items}")
        self._set_up(ItemIndex(codes, tuple(state["index.level_sizes"].tolist())))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if state[name].shape != parameter.shape:
                    raise ValueError(f"{name} is {state[name].shape}, not {tuple(parameter.shape)}")
                parameter.copy_(torch.from_numpy(state[name]))
        self.network.eval()
