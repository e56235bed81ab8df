"""A checkpoint that recommends: what `generate`, the validation in training and Python callers use.

    from lcrec import Recommender

    recommender = Recommender.from_pretrained("runs/shop/model")
    ranking = recommender.recommend([[12, 7, 33]], k=10)
    print(ranking.items[0], ranking.scores[0])

Requests of one call may differ in everything: each gets what it would get alone. `explain` says in
words what the model knows: an item's title, read from the item's tokens (the task `index2item`),
and what a customer likes (`preferenceobtain`), as far as it was trained on these tasks.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcrec.core.device import pick_device
from lcrec.core.errors import InputError
from lcrec.core.pretrained import position_limit
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.id_map import Ids
from lcrec.generate.beams import PromptHead, read_head
from lcrec.generate.compiled import StepGraphs
from lcrec.generate.fusion import CountedFusion
from lcrec.generate.hf_generate import write_answers
from lcrec.generate.item_filter import ItemIds, LeafFilter
from lcrec.generate.new_items import give_places, new_item_requests
from lcrec.generate.requests import (
    RankingRequest,
    RequestEncoder,
    plan_batches,
    require_task,
    require_words,
)
from lcrec.generate.search import search, supports_shared_prefix
from lcrec.generate.trie import ItemTrie, LooseTrie
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.checkpoint import load_checkpoint
from lcrec.prompts.encoder import added_ids, item_token_ids
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.templates import Template


@dataclass(frozen=True)
class Explanation:
    """What a model has to say, in words, about a request and the items it was given.

    Attributes:
        titles: what the model reads in each item's tokens; None if it never learnt to.
        preference: what the model takes the customer to like; None if it never learnt to say.
    """

    titles: list[str] | None
    preference: str | None


CONSTRAINTS = ("trie", "level", "none")
MIN_BEAMS = 20
WIDTH_STEP = 32  # tokens by which prompts' widths differ where steps are captured, shape by shape
LEAST_HEAD = 8  # a prompt's beginning is read apart where it is at least an eighth of it


@dataclass(frozen=True)
class Ranking:
    """Items for each request, best first and distinct.

    Attributes:
        items: int64 [requests, k], catalogue ids; -1 where fewer than k items were found.
        scores: float32 [requests, k], log-probabilities, or fused scores (`Recommender.fusion`);
            -inf where the item is -1.
        raw_ids: the items of each request by their raw ids, where it was asked in raw ids.
    """

    items: np.ndarray
    scores: np.ndarray
    raw_ids: list[list[str]] | None = None


class Recommender:
    """A language model, its item index and its prompts, ready to rank the whole catalogue.

    Args:
        model: in eval mode, on the device to use, with weights that stay as they are.
        tokenizer: with the index's tokens.
        index: the item index.
        prompts: the prompt templates.
        max_history: how many of the latest items a prompt shows.
        max_text_words: the length, in words, that a query is cut to.
        tasks: the tasks the model was trained on.
        max_batch_tokens: prompt tokens per batch, padding included; by default 4,096 on a CPU and
            32,768 elsewhere.
        constraint: `trie`, real items only; or, to compare, `level` (any code of its level, as in
            LC-Rec's own decoding) or `none`: beams may then end in no item, and lists be shorter.
        nearby: where templates that show neighbours look them up; None if none does.
        num_trained: how many items, the first of the index, the model was trained on; None: all.
        capture_steps: whether, on a GPU, the steps after a prompt are captured as CUDA graphs.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        index: ItemIndex,
        prompts: PromptSet,
        *,
        max_history: int,
        max_text_words: int = 60,
        tasks: Collection[str] = ("seqrec",),
        max_batch_tokens: int | None = None,
        constraint: str = "trie",
        nearby: NearbyItems | None = None,
        num_trained: int | None = None,
        capture_steps: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.index, self.prompts = index, prompts
        self.tasks = set(tasks)
        self.new_items = np.arange(len(index))[num_trained or len(index) :]
        by_device = 4096 if model.device.type == "cpu" else 32_768
        self.max_batch_tokens = max_batch_tokens or by_device
        self.request_encoder = RequestEncoder(
            tokenizer,
            index,
            prompts,
            max_history=max_history,
            max_text_words=max_text_words,
            context=position_limit(model),
            nearby=nearby,
        )
        self.trie = ItemTrie.build(item_token_ids(tokenizer, index)).to(model.device)
        self.constraint = _constrain(self.trie, constraint, model)
        self.share = 0.0  # that `lcrec.generate.calibration` subtracts
        self.fusion: CountedFusion | None = None  # joined with what is ranked after a history
        self.graphs = StepGraphs(model.device if capture_steps else torch.device("cpu"))
        self.width_step = WIDTH_STEP if self.graphs.captures else 1
        self._heads: dict[tuple[int, ...], PromptHead] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        base: str | None = None,
        index: str | Path | None = None,
        prompts: PromptSet | None = None,
        max_batch_tokens: int | None = None,
        constraint: str = "trie",
    ) -> "Recommender":
        """Load a checkpoint folder.

        Args:
            folder: what `lcrec.finetune` wrote.
            base: where an adapter's base model lies now, if it moved.
            index: an index that adds items to the checkpoint's own (`lcrec.quantize --index`).
            device: where to run; a GPU if there is one.
            dtype: the weights' type.
            prompts: other templates than the checkpoint's own.
            max_batch_tokens, constraint: as for the class.

        Raises:
            InputError: no checkpoint, parts of different ones, or an `index` changing old items.
        """
        index = None if index is None else Path(index)
        checkpoint = load_checkpoint(Path(folder), dtype, base=base, index=index)
        nn.Module.to(checkpoint.model, pick_device(device))
        return cls(
            checkpoint.model,
            checkpoint.tokenizer,
            checkpoint.catalogue,
            prompts or checkpoint.prompts,
            max_history=checkpoint.facts.max_history,
            max_text_words=checkpoint.facts.max_text_words,
            tasks=checkpoint.tasks,
            max_batch_tokens=max_batch_tokens,
            constraint=constraint,
            nearby=checkpoint.nearby,
            num_trained=len(checkpoint.index),
            capture_steps=True,
        )

    def recommend(
        self,
        histories: Sequence[ItemIds],
        k: int | Sequence[int] = 10,
        *,
        allow: Sequence[ItemIds | None] | None = None,
        deny: Sequence[ItemIds | None] | None = None,
        exclude_history: bool = False,
        template: Template | None = None,
        num_beams: int | None = None,
        reserve_new: int = 0,
        ids: Ids = "numbers",
    ) -> Ranking:
        """Return the k best items after each history.

        Args:
            histories: item ids, oldest first; the latest `max_history` are shown to the model.
            k: how many items, of all requests or of each.
            allow: per request the only items it may get (a category, what is in stock), or None.
                Pass the same object to requests that share a list.
            deny: per request items it must not get, or None.
            exclude_history: never return an item of the history, all of it counts.
            template: a `seqrec` template; by default the first that serves evaluation.
            num_beams: beams to search with, at least k; default `max(k, 20)`, at most all items.
            reserve_new: how many places, the last, go to items that an `index` added, at least.
            ids: what the items of `histories`, `allow` and `deny` are called: their numbers, or the
                raw ids that the checkpoint carries; the ranking then has `raw_ids` too.

        Returns:
            the items and their scores, [requests, largest k] (`Ranking`); fewer than k where
            allow, deny and exclude_history leave fewer.

        Raises:
            InputError: an empty history, an unknown item, more items wanted than there are, a
                template of another task, or a prompt longer than the model's context.
        """
        shared = {"exclude_history": exclude_history, "template": template, "num_beams": num_beams}
        shared["reserve_new"] = reserve_new
        queries = [None] * len(histories)
        return self._rank_lists(histories, queries, k, allow, deny, ids, shared)

    def search(
        self,
        queries: Sequence[str],
        *,
        histories: Sequence[ItemIds] | None = None,
        k: int | Sequence[int] = 10,
        allow: Sequence[ItemIds | None] | None = None,
        deny: Sequence[ItemIds | None] | None = None,
        exclude_history: bool = False,
        template: Template | None = None,
        num_beams: int | None = None,
        ids: Ids = "numbers",
    ) -> Ranking:
        """Return the k best items for what each customer says they look for.

        Args:
            queries: what is looked for, in words; the first `max_text_words` words count.
            histories: what each customer has, oldest first; empty where nothing is known.
            template: an `itemsearch` template; by default the first that serves evaluation and uses
                the history where there is one.
            k, allow, deny, exclude_history, num_beams, ids: as for `recommend`.

        Raises:
            InputError: an empty query, a model that never learnt `itemsearch`, or as `recommend`.
        """
        require_task("itemsearch", self.tasks)
        if isinstance(queries, str):
            raise InputError(f"queries: expected a list of texts, found {queries!r:.60}")
        histories = [()] * len(queries) if histories is None else histories
        if len(histories) != len(queries):
            raise InputError(f"{len(histories)} histories for {len(queries)} queries")
        for position, query in enumerate(queries):
            if not isinstance(query, str):
                raise InputError(f"query {position}: expected text, found {query!r:.60}")
        shared = {"exclude_history": exclude_history, "template": template, "num_beams": num_beams}
        return self._rank_lists(histories, queries, k, allow, deny, ids, shared)

    def explain(
        self, histories: Sequence[ItemIds], items: Sequence[ItemIds], *, max_new_tokens: int = 64
    ) -> list[Explanation]:
        """Say in words what the model knows of each request's history and items.

        Args:
            histories: item ids, oldest first; an empty one has no preference.
            items: per request the items to name, such as those recommended.
            max_new_tokens: tokens of a text at most.

        Returns:
            per request, titles of its items and the customer's preference.

        Raises:
            InputError: an unknown item, not one list of items per history, or a model that learnt
                neither `index2item` nor `preferenceobtain`.
        """
        names, likes = "index2item" in self.tasks, "preferenceobtain" in self.tasks
        require_words(self.tasks)
        if len(items) != len(histories):
            raise InputError(f"{len(items)} lists of items for {len(histories)} histories")
        self.request_encoder.check_items("history", histories)
        self.request_encoder.check_items("list of items", items)
        titles: dict[int, str] = {}
        if names:
            distinct = sorted({int(item) for row in items for item in row})
            prompt_ids = self.request_encoder.titles(distinct, max_new_tokens)
            texts = self.write_texts(prompt_ids, max_new_tokens, words_only=True)
            titles = dict(zip(distinct, texts, strict=True))
        preferences: dict[int, str] = {}
        if likes:
            known = [row for row, history in enumerate(histories) if len(history)]
            prompt_ids = self.request_encoder.preferences(
                [histories[row] for row in known], max_new_tokens
            )
            texts = self.write_texts(prompt_ids, max_new_tokens, words_only=True)
            preferences = dict(zip(known, texts, strict=True))
        return [
            Explanation(
                [titles[int(item)] for item in own] if names else None, preferences.get(row)
            )
            for row, own in enumerate(items)
        ]

    def encode(self, requests: Sequence[RankingRequest]) -> list[list[int]]:
        """Return the prompt of each request as token ids; raises as `RequestEncoder` does."""
        return self.request_encoder.encode_requests(requests)

    def plan_batches(self, prompt_ids: list[list[int]]) -> list[np.ndarray]:
        """Return the rows of each batch, alike in length and within the token budget."""
        return plan_batches(prompt_ids, self.max_batch_tokens, self.width_step)

    def run_in_batches(
        self,
        prompt_ids: list[list[int]],
        run: Callable[[np.ndarray, list[list[int]]], None],
        count_done: Callable[[int], None] = lambda prompts: None,
    ) -> None:
        """Run something on all prompts, batch by batch.

        Args:
            prompt_ids: the prompts.
            run: takes the rows of a batch, int64 `[batch]`, and their prompts; it puts what it
                finds into those rows of its result.
            count_done: told how many prompts each batch had, such as `ProgressBar.update`.
        """
        for rows in self.plan_batches(prompt_ids):
            run(rows, [prompt_ids[row] for row in rows])
            count_done(len(rows))

    def rank_batch(
        self,
        prompt_ids: list[list[int]],
        k: int,
        *,
        leaf_filter: LeafFilter | None = None,
        num_beams: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return items int64 [batch, k] and scores float32 [batch, k] for one batch of prompts.

        Args:
            prompt_ids: the prompts.
            k: how many items.
            leaf_filter: which items each prompt may get.
            num_beams: see `recommend`.

        Raises:
            InputError: more items wanted than there are, or fewer beams than items wanted.
        """
        input_ids, mask = self.request_encoder.pad(prompt_ids, self.width_step)
        output = search(
            self.model,
            input_ids.to(self.trie.device),
            mask.to(self.trie.device),
            self.constraint,
            self._beams(k, num_beams),
            leaf_filter=leaf_filter,
            head=self._head(prompt_ids),
            graphs=self.graphs,
        )
        return output.items[:, :k].cpu().numpy(), output.scores[:, :k].cpu().numpy()

    def _head(self, prompt_ids: list[list[int]]) -> PromptHead | None:
        """Return what these prompts begin with by their template, where it is worth its mask."""
        if self.model.config.is_encoder_decoder or not supports_shared_prefix(self.model):
            return None
        longest = max(map(len, prompt_ids))
        for ids in self.request_encoder.heads:
            if LEAST_HEAD * len(ids) < longest:
                break
            if all(len(own) > len(ids) and own[: len(ids)] == ids for own in prompt_ids):
                key = tuple(ids)
                if key not in self._heads:
                    self._heads[key] = read_head(self.model, ids)
                return self._heads[key]
        return None

    def write_texts(
        self,
        prompt_ids: list[list[int]],
        max_new_tokens: int,
        *,
        words_only: bool,
        count_done: Callable[[int], None] = lambda prompts: None,
    ) -> list[str]:
        """Let the model answer each prompt in words: the likeliest token, one after the other.

        Args:
            prompt_ids, count_done: see `run_in_batches`.
            max_new_tokens: tokens of an answer at most.
            words_only: rule item tokens out and leave special tokens out; else both are shown.
        """
        banned = added_ids(self.tokenizer, self.index).tolist() if words_only else []
        texts = [""] * len(prompt_ids)

        def run(rows: np.ndarray, batch: list[list[int]]) -> None:
            input_ids, mask = self.request_encoder.pad(batch)
            answers = write_answers(
                self.model,
                input_ids.to(self.trie.device),
                mask.to(self.trie.device),
                max_new_tokens,
                end=self.tokenizer.eos_token_id,
                banned=banned,
            )
            for row, answer in zip(rows, answers, strict=True):
                text = self.tokenizer.decode(answer, skip_special_tokens=words_only)
                texts[row] = str(text).strip()

        self.run_in_batches(prompt_ids, run, count_done)
        return texts

    def item_filter(self, requests: Sequence[RankingRequest]) -> LeafFilter | None:
        """Return which items each request may get, None if all of them may get everything.

        Raises:
            InputError: an allow or deny list holds something else than items.
        """
        return LeafFilter.build(
            self.trie,
            len(requests),
            [own.allow for own in requests],
            [own.deny for own in requests],
            [own.masked() for own in requests],
        )

    def rank(
        self,
        requests: Sequence[RankingRequest],
        prompt_ids: list[list[int]] | None = None,
        *,
        width: int = 0,
        count_done: Callable[[int], None] = lambda prompts: None,
    ) -> Ranking:
        """Return the best items for each request.

        Args:
            requests: of any kinds, in any order.
            prompt_ids: their prompts, where `encode` was called before.
            width: the columns of the ranking, where that is more than the largest k.
            count_done: see `run_in_batches`.

        Raises:
            InputError: as `recommend` and `search`.
        """
        if prompt_ids is None:
            prompt_ids = self.encode(requests)
        ask = partial(self._rank_by_model, prompt_ids=prompt_ids, count_done=count_done)
        if self.fusion is None:
            items, scores = ask(requests, width)
        else:
            leaf_filter = self.item_filter(requests)
            left = None if leaf_filter is None else leaf_filter.totals()
            items, scores = self.fusion.rank(requests, left, width, ask)
        rows, asked = new_item_requests(requests, self.new_items)
        if rows:
            new = self.rank(asked, [prompt_ids[row] for row in rows])
            for row, *best in zip(rows, new.items, new.scores, strict=True):
                at = row, slice(requests[row].k)
                items[at], scores[at] = give_places((items[at], scores[at]), best, self.new_items)
        return Ranking(items, scores)

    def _rank_by_model(
        self,
        requests: Sequence[RankingRequest],
        width: int,
        prompt_ids: list[list[int]],
        count_done: Callable[[int], None],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `rank` does, by the model alone and without reserved places."""
        leaf_filter = self.item_filter(requests)
        wanted = np.array([own.k for own in requests], dtype=np.int64)
        # The beam's width shapes an answer, so only requests that want the same one share a batch.
        beams = np.array([self._beams(own.k, own.num_beams) for own in requests], dtype=np.int64)
        width = int(np.max(wanted, initial=width))
        items = np.full((len(requests), width), -1, dtype=np.int64)
        scores = np.full((len(requests), width), -np.inf, dtype=np.float32)
        for own in np.unique(beams).tolist():
            group = np.flatnonzero(beams == own)
            most = int(wanted[group].max())
            for places in self.plan_batches([prompt_ids[row] for row in group]):
                rows = group[places]
                items[rows, :most], scores[rows, :most] = self.rank_batch(
                    [prompt_ids[row] for row in rows],
                    most,
                    leaf_filter=leaf_filter and leaf_filter.rows(rows),
                    num_beams=own,
                )
                count_done(len(rows))
        beyond = np.arange(width) >= wanted[:, None]
        items[beyond], scores[beyond] = -1, -np.inf
        return items, scores

    def _rank_lists(
        self,
        histories: Sequence[ItemIds],
        queries: Sequence[str | None],
        k: int | Sequence[int],
        allow: Sequence[ItemIds | None] | None,
        deny: Sequence[ItemIds | None] | None,
        ids: Ids,
        shared: dict[str, Any],
    ) -> Ranking:
        """Rank for a request per history and query; `shared` is what all of them have in common."""
        count = len(histories)
        counts: list[Any] = [k] * count if np.ndim(k) == 0 else list(np.asarray(k))
        if len(counts) != count:
            raise InputError(f"k: expected one number from 1 up, or {count} of them, found {k}")
        for name, lists in (("allow", allow), ("deny", deny)):
            if lists is not None and len(lists) != count:
                raise InputError(f"{name}: has {len(lists)} lists for {count} requests")
        allow = [None] * count if allow is None else allow
        deny = [None] * count if deny is None else deny
        if ids == "raw":
            histories, allow, deny = (
                self.index.ids.numbers_of_lists(name, lists)
                for name, lists in (("history", histories), ("allow", allow), ("deny", deny))
            )
        requests = [
            RankingRequest(history, query, k=own, allow=may, deny=must_not, **shared)
            for history, query, own, may, must_not in zip(
                histories, queries, counts, allow, deny, strict=True
            )
        ]
        ranking = self.rank(requests, width=int(np.max(k, initial=0)))  # of no requests too
        if ids == "numbers":
            return ranking
        names = self.index.ids.names_of
        return replace(ranking, raw_ids=[names(row[row >= 0].tolist()) for row in ranking.items])

    def _beams(self, k: int, num_beams: int | None) -> int:
        """Return how many beams to search with for k items."""
        num_items = len(self.index)
        if k > num_items:
            raise InputError(f"{k} items wanted, but the catalogue has {num_items}")
        beams = min(max(k, MIN_BEAMS), num_items) if num_beams is None else num_beams
        if beams < k:
            raise InputError(f"{beams} beams cannot give {k} items; take at least {k} beams")
        return beams


def _constrain(trie: ItemTrie, constraint: str, model: PreTrainedModel | PeftModel) -> ItemTrie:
    if constraint not in CONSTRAINTS:
        raise InputError(f"constraint: {constraint!r} is none of {', '.join(CONSTRAINTS)}")
    if constraint == "none":
        return LooseTrie.anything(trie, model.config.get_text_config(decoder=True).vocab_size)
    return LooseTrie.by_level(trie) if constraint == "level" else trie
