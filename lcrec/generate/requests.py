"""Requests -> prompts as token ids, the same for every caller and those of training.

Everything a person can put into a request is checked here, before a model sees it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcrec.core.artifacts import NEIGHBOURS
from lcrec.core.errors import InputError
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.splits import EvalCases
from lcrec.generate.item_filter import ItemIds
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import Record, history_record, search_record, sequence_record
from lcrec.prompts.templates import Template


@dataclass(frozen=True, eq=False, slots=True)
class RankingRequest:
    """What one customer asks a recommender to rank: the same for every caller.

    Attributes:
        history: what the customer has, oldest first; may be empty where there is a query.
        query: what they look for, in words; None to rank what comes after the history.
        preference: what they like, in words, for templates that say it; only beside a query.
        k: how many items to rank; fewer where the lists below leave fewer.
        num_beams: beams to search with; None for the recommender's own choice.
        allow: the only items they may get; None for all of them. Requests that share a list
            should share the object: it is then stored once.
        deny: items that they must not get.
        exclude_history: rank no item of the history.
        exclude: other items to rank none of.
        counted: what a fusion counted of this customer's own, which its weights of each user's own
            leave out; empty for somebody who was not counted.
        train_sequence: in training, the customer's own, whose pairs are not among the neighbours
            that a prompt shows: they would give the answer away.
        reserve_new: places for items that the model was not trained on, the last of the k: a model
            hardly ever ranks them among all others by itself.
        template: a template of `itemsearch` where there is a query, else of `seqrec`; None for the
            recommender's own choice.

    Raises:
        InputError: `k` or `num_beams` is no number from 1 up, `reserve_new` none from 0 to `k`,
            or `template` no template.
    """

    history: ItemIds = ()
    query: str | None = None
    preference: str = ""
    k: int = 10
    num_beams: int | None = None
    allow: ItemIds | None = None
    deny: ItemIds | None = None
    exclude_history: bool = False
    exclude: ItemIds = ()
    counted: ItemIds = ()
    train_sequence: np.ndarray | None = None
    reserve_new: int = 0
    template: Template | None = None

    def __post_init__(self) -> None:
        beams = 1 if self.num_beams is None else self.num_beams
        counts = ("k", self.k, 1), ("num_beams", beams, 1), ("reserve_new", self.reserve_new, 0)
        for name, count, least in counts:
            is_count = isinstance(count, int | np.integer) and not isinstance(count, bool)
            if not is_count or count < least:
                raise InputError(
                    f"{name}: expected one number from {least} up, found {count!r:.60}"
                )
        if self.reserve_new > self.k:
            raise InputError(
                f"reserve_new: {self.reserve_new} of {self.k} places; reserve 0 to {self.k}"
            )
        if not isinstance(self.template, Template | None):
            raise InputError(
                f"template: expected a template, such as recommender.prompts.get(ID), found "
                f"{self.template!r:.60}"
            )

    def masked(self) -> np.ndarray | None:
        """Return what of the history and `exclude` is not ranked, int64; None for nothing."""
        if not self.exclude_history and not len(self.exclude):
            return None
        history = self.history if self.exclude_history else ()
        return np.concatenate([np.asarray(own, np.int64) for own in (history, self.exclude)])

    def ruled_out(self) -> np.ndarray:
        """Return all items to rank none of, int64, some of them perhaps twice."""
        lists = (self.deny, self.masked())
        return np.concatenate([np.asarray(() if own is None else own, np.int64) for own in lists])


def case_requests(
    cases: EvalCases, like: RankingRequest, counted: Sequence[ItemIds] | None = None
) -> list[RankingRequest]:
    """Return a request for each case of a split, never for items that the split forbids to rank.

    `counted` has what a fusion counted of each case's user.
    """
    nothing: list[ItemIds] = [()] * len(cases)
    exclude = nothing if cases.exclude is None else cases.exclude
    return [
        replace(like, history=history, exclude=out, counted=own)
        for history, out, own in zip(cases.histories, exclude, counted or nothing, strict=True)
    ]


class RequestEncoder:
    """Turns requests, and questions about items, into prompts of a prompt set.

    Args:
        tokenizer: with the index's tokens.
        index: the item index.
        prompts: the prompt templates.
        max_history: how many of the latest items a prompt shows.
        max_text_words: the length, in words, that a query is cut to.
        context: the tokens that the model can take, answer included; None if it has no limit.
        nearby: where templates that show neighbours look them up; None if none does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        index: ItemIndex,
        prompts: PromptSet,
        *,
        max_history: int,
        max_text_words: int,
        context: int | None,
        nearby: NearbyItems | None = None,
    ) -> None:
        self.index, self.prompts, self.context, self.nearby = index, prompts, context, nearby
        self.max_history, self.max_text_words = max_history, max_text_words
        self.prompt_encoder = PromptEncoder(tokenizer, prompts)

    def encode_requests(self, requests: Sequence[RankingRequest]) -> list[list[int]]:
        """Return the prompt of each request as token ids.

        By default a history is asked about with the first template of `seqrec`, a query with the
        template of `itemsearch` that says most of the request.

        Raises:
            InputError: an empty query, no query and an empty history, an item that is not in the
                catalogue, a template of another task, or a prompt longer than the model's context.
        """
        self.check_items("history", [request.history for request in requests])
        questions = []
        for position, request in enumerate(requests):
            if request.query is None and len(request.history) == 0:
                raise InputError(f"history {position} is empty; give at least one item")
            record = self.record(request)
            if request.query is None:
                template = request.template or self.prompts.evaluation_templates("seqrec")[0]
                _require_template_of(template, "seqrec")
                require_neighbours(template, self.nearby)
            elif not record["intention"]:
                raise InputError(f"query {position} is empty; say what is looked for")
            else:
                template = self._choose("itemsearch", record, request.template)
            questions.append(template.ask(record))
        return self.encode_for_items(questions)

    def encode_for_items(self, questions: list[str]) -> list[list[int]]:
        """Return the prompts of questions that an item's tokens answer, up to these tokens.

        Raises:
            InputError: as `encode`.
        """
        begin = self.prompt_encoder.begin
        prompt_ids = self.encode(questions, len(begin) + self.index.num_levels)
        return [ids + begin for ids in prompt_ids]

    @cached_property
    def heads(self) -> list[list[int]]:
        """What prompts begin with whatever is asked, by template, as token ids; longest first."""
        templates = (t for t in self.prompts.templates if t.task in ("seqrec", "itemsearch"))
        starts = sorted({re.split(r"\{[{%#]", t.question)[0].lstrip() for t in templates})
        return sorted(self.prompt_encoder.head_ids(starts), key=len, reverse=True)

    def record(self, request: RankingRequest) -> Record:
        """Return what a prompt may say of a request."""
        if request.query is None:
            own = request.train_sequence
            return sequence_record(self.index, request.history, self.max_history, self.nearby, own)
        return search_record(
            self.index,
            request.history,
            self.max_history,
            preference=request.preference,
            intention=request.query,
            max_text_words=self.max_text_words,
        )

    def titles(self, items: Sequence[int], answer: int) -> list[list[int]]:
        """Ask for each item's title, of at most `answer` tokens."""
        records: list[Record] = [{"item": self.index.texts[item]} for item in items]
        return self.encode([self._choose("index2item", r).ask(r) for r in records], answer)

    def preferences(self, histories: Sequence[ItemIds], answer: int) -> list[list[int]]:
        """Ask what each customer likes, in at most `answer` tokens; no history may be empty."""
        records = [history_record(self.index, history, self.max_history) for history in histories]
        return self.encode([self._choose("preferenceobtain", r).ask(r) for r in records], answer)

    def check_items(self, name: str, lists: Sequence[ItemIds]) -> None:
        """Refuse what is no list of items of the catalogue.

        Raises:
            InputError: naming the first fault, and `name` with the position of its list.
        """
        for position, items in enumerate(lists):
            if isinstance(items, str) or not isinstance(items, Sequence | np.ndarray):
                raise InputError(f"{name} {position}: expected item ids, found {items!r:.60}")
            for item in items:
                is_id = isinstance(item, int | np.integer) and not isinstance(item, bool)
                if not is_id:
                    raise InputError(f"{name} {position}: {item!r:.60} is no item id")
                if not 0 <= item < len(self.index):
                    raise InputError(
                        f"{name} {position}: item {item} is not in the catalogue, whose ids are "
                        f"0 to {len(self.index) - 1}"
                    )

    def pad(self, prompt_ids: list[list[int]], step: int = 1) -> tuple[Tensor, Tensor]:
        """Return prompts padded on the left, and their mask, both int64 [batch, width].

        The width is that of the longest prompt, or the next multiple of `step`.
        """
        width = -(-max(map(len, prompt_ids)) // step) * step
        pad = self.prompt_encoder.tokenizer.pad_token_id
        input_ids = torch.full((len(prompt_ids), width), pad, dtype=torch.int64)
        mask = torch.zeros((len(prompt_ids), width), dtype=torch.int64)
        for row, ids in enumerate(prompt_ids):
            input_ids[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, width - len(ids) :] = 1
        return input_ids, mask

    def _choose(self, task: str, record: Record, wanted: Template | None = None) -> Template:
        """Return the wanted template, or the first for the task that says most of the record."""
        that = f"that asks with {', '.join(name for name in record if record[name])} alone"
        if wanted is None:
            asking = self.prompts.evaluation_templates(
                task, ["all"], accepts=lambda template: template.can_ask(record), that=that
            )
            return max(asking, key=lambda template: len(template.question_variables))
        _require_template_of(wanted, task)
        if not wanted.can_ask(record):
            raise InputError(f"template {wanted.id}: is no template of {task} {that}")
        return wanted

    def encode(self, questions: list[str], answer: int) -> list[list[int]]:
        """Return the prompts of questions in words, each with an answer of at most `answer` tokens.

        Raises:
            InputError: a prompt whose answer does not fit in the model's context.
        """
        prompt_ids = self.prompt_encoder.prompt_ids(questions) if questions else []
        for row, ids in enumerate(prompt_ids):
            if self.context is not None and len(ids) + answer > self.context:
                raise InputError(
                    f"request {row}: its prompt has {len(ids)} tokens and the answer up to "
                    f"{answer}, more than the {self.context} of the model's context; shorten it, "
                    "or train with a lower --max-history"
                )
        return prompt_ids


def require_neighbours(template: Template, nearby: NearbyItems | None) -> None:
    """Refuse a template that shows neighbours where there is nothing to look them up in.

    Raises:
        InputError: it names the template.
    """
    if nearby is None and "neighbours" in template.question_variables:
        raise InputError(
            f"template {template.id}: shows neighbours, and the checkpoint has no counts to "
            f"look them up in ({NEIGHBOURS}); take another template, or train with this one"
        )


def require_task(task: str, tasks: Collection[str]) -> None:
    """Refuse what a model that was trained on `tasks` never learnt.

    Raises:
        InputError: the task is none of them.
    """
    if task not in tasks:
        raise InputError(
            f"the model was not trained on {task} (but on {', '.join(sorted(tasks))}); "
            f"add it: lcrec.finetune --tasks {' '.join(sorted({*tasks, task}))}"
        )


def require_words(tasks: Collection[str]) -> None:
    """Refuse explanations by a model that was trained on neither task that answers in words.

    Raises:
        InputError: it names the first of them.
    """
    if "preferenceobtain" not in tasks:
        require_task("index2item", tasks)


def _require_template_of(template: Template, task: str) -> None:
    if template.task != task:
        raise InputError(f"template {template.id}: belongs to {template.task}, not {task}")


def plan_batches(prompt_ids: list[list[int]], max_tokens: int, step: int = 1) -> list[np.ndarray]:
    """Return the rows of each batch, alike in length and within a budget of padded tokens.

    A prompt longer than the budget has a batch of its own. The plan depends on the prompts alone,
    so that it is the same for any number of processes.

    Args:
        prompt_ids: the prompts.
        max_tokens: the budget.
        step: widths are multiples of it, so that there are few.
    """
    lengths = np.asarray([-(-len(ids) // step) * step for ids in prompt_ids])
    batches: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        # The first row of a batch is its longest.
        fits = batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]]
        if fits and fits <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [np.asarray(batch) for batch in batches]
