"""A checkpoint that recommends: what `generate`, the validation in training and Python callers use.

    from lcrec.recommender import Recommender

    recommender = Recommender.from_pretrained("runs/shop/model")
    ranking = recommender.recommend([[12, 7, 33]], k=10)
    print(ranking.items[0], ranking.scores[0])

Public names: `Recommender`, `Ranking`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcrec.dataset import PromptEncoder
from lcrec.decoding import search
from lcrec.errors import InputError
from lcrec.index import ItemIndex
from lcrec.modeling import load_checkpoint
from lcrec.prompts import PromptSet, Template
from lcrec.tasks import history_record
from lcrec.trie import ItemTrie
from lcrec.vocab import item_token_ids

MIN_BEAMS = 20
History = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Ranking:
    """Items for each request, best first and distinct.

    Attributes:
        items: int64 [requests, k], catalogue ids; -1 where fewer than k items were allowed.
        scores: float32 [requests, k], log-probabilities; -inf where the item is -1.
    """

    items: np.ndarray
    scores: np.ndarray


class Recommender:
    """A language model, its item index and its prompts, ready to rank the whole catalogue.

    Args:
        model: in eval mode, on the device to use.
        tokenizer: with the index's tokens.
        index: the item index.
        prompts: the wording.
        max_history: how many of the latest items a prompt shows.
        max_batch_tokens: prompt tokens per batch, padding included.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        index: ItemIndex,
        prompts: PromptSet,
        *,
        max_history: int,
        max_batch_tokens: int = 4096,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.index, self.prompts = index, prompts
        self.max_history, self.max_batch_tokens = max_history, max_batch_tokens
        self.encoder = PromptEncoder(tokenizer, prompts)
        self.trie = ItemTrie.build(item_token_ids(tokenizer, index)).to(model.device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        prompts: PromptSet | None = None,
        max_batch_tokens: int = 4096,
    ) -> "Recommender":
        """Load a checkpoint folder.

        Args:
            folder: what `recipes/finetune.py` wrote.
            device: where to run; a GPU if there is one.
            dtype: the weights' type.
            prompts: other wording than the checkpoint's own.
            max_batch_tokens: prompt tokens per batch, padding included.

        Raises:
            InputError: the folder is no checkpoint, or its parts do not belong together.
        """
        checkpoint = load_checkpoint(Path(folder), dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        nn.Module.to(checkpoint.model, device)
        return cls(
            checkpoint.model,
            checkpoint.tokenizer,
            checkpoint.index,
            prompts or checkpoint.prompts,
            max_history=checkpoint.facts["max_history"],
            max_batch_tokens=max_batch_tokens,
        )

    def recommend(
        self,
        histories: Sequence[History],
        k: int = 10,
        *,
        template: Template | None = None,
        exclude_history: bool = False,
        num_beams: int | None = None,
    ) -> Ranking:
        """Return the k best items after each history.

        Args:
            histories: item ids, oldest first; the latest `max_history` are shown to the model.
            k: how many items.
            template: a `seqrec` wording; by default the first that serves evaluation.
            exclude_history: never return an item of the history, all of it counts.
            num_beams: beams to search with, at least k; default `max(k, 20)`, at most all items.

        Raises:
            InputError: an empty history, an unknown item, or more items wanted than there are.
        """
        if len(histories) == 0:
            return Ranking(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
        prompt_ids = self.prompt_ids(histories, template)
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for rows in self.plan_batches(prompt_ids):
            items[rows], scores[rows] = self.rank_batch(
                [prompt_ids[row] for row in rows],
                k,
                denied=[histories[row] for row in rows] if exclude_history else None,
                num_beams=num_beams,
            )
        return Ranking(items, scores)

    def prompt_ids(
        self, histories: Sequence[History], template: Template | None = None
    ) -> list[list[int]]:
        """Return the prompt of each history as token ids.

        Raises:
            InputError: an empty history, or an item that is not in the catalogue.
        """
        template = template or self.prompts.for_task("seqrec", "eval")[0]
        for position, history in enumerate(histories):
            if len(history) == 0:
                raise InputError(f"history {position} is empty; give at least one item")
            unknown = [item for item in history if not 0 <= item < len(self.index)]
            if unknown:
                raise InputError(
                    f"history {position}: item {unknown[0]} is not in the catalogue, whose ids are "
                    f"0 to {len(self.index) - 1}"
                )
        questions = [
            template.ask(history_record(self.index, history, self.max_history))
            for history in histories
        ]
        return self.encoder.prompt_ids(questions)

    def plan_batches(self, prompt_ids: list[list[int]]) -> list[np.ndarray]:
        """Return the rows of each batch, alike in length and within the token budget.

        The plan depends on the prompts alone, so that it is the same for any number of processes.
        """
        lengths = np.asarray([len(ids) for ids in prompt_ids])
        batches: list[list[int]] = []
        for row in np.argsort(-lengths, kind="stable").tolist():
            # The first row of a batch is its longest.
            fits = batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]]
            if fits and fits <= self.max_batch_tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
        return [np.asarray(batch) for batch in batches]

    @torch.no_grad()
    def rank_batch(
        self,
        prompt_ids: list[list[int]],
        k: int,
        *,
        denied: Sequence[History] | None = None,
        num_beams: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return items int64 [batch, k] and scores float32 [batch, k] for one batch of prompts.

        Args:
            prompt_ids: the prompts.
            k: how many items.
            denied: items not to return, per prompt.
            num_beams: see `recommend`.

        Raises:
            InputError: more items wanted than there are, or fewer beams than items wanted.
        """
        num_items = len(self.index)
        if k > num_items:
            raise InputError(f"{k} items wanted, but the catalogue has {num_items}")
        beams = num_beams or min(max(k, MIN_BEAMS), num_items)
        if beams < k:
            raise InputError(f"{beams} beams cannot give {k} items; take at least {k} beams")
        width = max(map(len, prompt_ids))
        input_ids = torch.full((len(prompt_ids), width), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(prompt_ids), width), dtype=torch.int64)
        for row, ids in enumerate(prompt_ids):
            input_ids[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, width - len(ids) :] = 1
        device = self.trie.device
        output = search(
            self.model,
            input_ids.to(device),
            mask.to(device),
            self.trie,
            beams,
            denied=None if denied is None else _pad_items(denied).to(device),
        )
        return output.items[:, :k].cpu().numpy(), output.scores[:, :k].cpu().numpy()


def _pad_items(lists: Sequence[History]) -> torch.Tensor:
    """Return int64 [rows, longest], -1 as padding."""
    width = max(map(len, lists))
    padded = torch.full((len(lists), width), -1)
    for row, items in enumerate(lists):
        padded[row, : len(items)] = torch.as_tensor(np.asarray(items, dtype=np.int64))
    return padded
