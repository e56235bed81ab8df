"""From an HTTP body to a request for the model, and from its ranking back to an answer.

`RequestHandler` checks everything that a client can get wrong before the request is queued, so that
what fails later is the model's fault, and no client's. Requests of both kinds, with any `k`, lists
and filters, are ranked together.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model

from lcrec.core.errors import InputError, closest
from lcrec.data.folder import Items
from lcrec.data.id_map import IdMap
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.prompts.templates import Template
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.middleware import Problem

FILTER_FIELDS = ("brand", "categories")  # what `lcrec.prepare` knows besides texts
ItemIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
RawIds = Annotated[list[str], Field(fail_fast=True)]


class _Options(BaseModel):
    """What both kinds of request may ask for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    k: int = Field(10, ge=1, description="how many items", examples=[5])
    allow: ItemIds | None = Field(None, description="recommend these items only")
    deny: ItemIds = Field([], description="never recommend these items")
    filters: dict[str, Annotated[list[str], Field(min_length=1, fail_fast=True)]] = Field(
        {},
        description="recommend items only whose field is one of the values, for every field named",
    )
    exclude_history: bool = Field(False, description="never recommend an item of the history")
    template: str | None = Field(None, description="the id of the prompt template to ask with")


class RecommendRequest(_Options):
    """What to recommend after a history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": [12, 7, 33], "k": 5},
                {"history": [12], "k": 3, "allow": [3, 4, 5, 6], "deny": [4]},
                {"history": [12, 7], "k": 5, "exclude_history": True},
            ]
        }
    )

    history: ItemIds = Field(min_length=1, description="item ids, oldest first", examples=[[12, 7]])


class SearchRequest(_Options):
    """What to find for a customer's words."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "something for a desk full of cables", "k": 5},
                {"query": "a gift for a child that likes to paint", "history": [12, 7], "k": 3},
            ]
        }
    )

    query: str = Field(
        min_length=1, description="what the customer looks for", examples=["a desk full of cables"]
    )
    history: ItemIds = Field([], description="item ids, oldest first, if there are any")


Body = RecommendRequest | SearchRequest
Form = TypeVar("Form", bound=_Options)


def bodies(ids: IdMap) -> tuple[type[RecommendRequest], type[SearchRequest]]:
    """Return the forms of both kinds of request, for items that are called by these ids."""
    if not ids.is_raw:
        return RecommendRequest, SearchRequest
    return _in_raw_ids(RecommendRequest, ids), _in_raw_ids(SearchRequest, ids)


def _in_raw_ids(form: type[Form], ids: IdMap) -> type[Form]:
    """Return the same form with text for items."""
    fields: dict[str, Any] = {}
    for name, kind in {"history": RawIds, "allow": RawIds | None, "deny": RawIds}.items():
        field = copy(form.model_fields[name])
        field.examples = None
        fields[name] = (kind, field)
    made = create_model(form.__name__, __base__=form, __doc__=form.__doc__, **fields)
    example: dict[str, Any] = {"history": list(ids.names[:2]), "k": 5}
    if issubclass(form, SearchRequest):
        example["query"] = "a desk full of cables"
    made.model_config["json_schema_extra"] = {"examples": [example]}
    made.model_rebuild(force=True)
    return made


class RankedItem(BaseModel):
    """An item of an answer."""

    item: int | str
    score: float = Field(description="the log-probability of the item's tokens")
    title: str | None = Field(description="null where the service runs without --data")


class RankingAnswer(BaseModel):
    """Items, best first and distinct."""

    items: list[RankedItem] = Field(
        description="k of them; fewer only where exclude_history leaves fewer"
    )


class ItemAnswer(BaseModel):
    """What the service knows of an item."""

    item: int | str
    tokens: list[str] = Field(examples=[["<a_12>", "<b_3>", "<c_200>", "<d_7>"]])
    title: str | None
    fields: dict[str, str] = Field(description="the item's texts; empty without --data")


@dataclass(frozen=True, eq=False)
class EncodedRequest:
    """A checked request and its prompt."""

    request: RankingRequest
    prompt_ids: list[int]


class RequestHandler:
    """Turns bodies into requests, batches of requests into rankings, and items into words.

    Everything that can be wrong with a body is found here, before it is queued; what fails later
    is the model's fault.
    """

    def __init__(
        self,
        recommender: Recommender,
        items: Items | None,
        limits: ServiceLimits,
        ids: IdMap | None = None,
    ) -> None:
        self.recommender, self.items = recommender, items
        self.ids = ids or recommender.index.ids
        self.num_items = len(recommender.index)
        self.limits = limits
        self.by_value = {} if items is None else _items_by_value(items)

    def encode(self, body: Body) -> EncodedRequest:
        """Check what a client asks for and put it into a prompt.

        Raises:
            Problem: it cannot be served.
        """
        limits, history = self.limits, self._ids("history", body.history)
        if len(history) > limits.max_history:
            raise _fault(
                "history",
                f"{len(history)} items; at most {limits.max_history} are allowed (--max-history), "
                f"and the model reads the latest {self.recommender.request_encoder.max_history}",
            )
        if body.k > limits.max_k:
            raise _fault("k", f"{body.k} items wanted; the most here is {limits.max_k} (--max-k)")
        allow, deny = self._allowed(body), np.unique(self._ids("deny", body.deny))
        if allow is None:
            left = self.num_items - len(deny)
        else:
            left = len(allow) - int(np.isin(deny, allow).sum())
        if left < body.k:
            raise _fault(
                "k",
                f"{body.k} items wanted, but allow, deny and filters leave {left} of the "
                f"{self.num_items} in the catalogue",
            )
        is_search = isinstance(body, SearchRequest)
        request = RankingRequest(
            history,
            body.query if isinstance(body, SearchRequest) else None,
            k=body.k,
            allow=allow,
            deny=deny,
            exclude_history=body.exclude_history,
            template=self._template(body.template, "itemsearch" if is_search else "seqrec"),
        )
        if request.query is not None and len(request.query) > limits.max_query:
            raise _fault(
                "query",
                f"{len(request.query)} characters; at most {limits.max_query} are allowed "
                "(--max-query)",
            )
        try:
            (prompt_ids,) = self.recommender.encode([request])
        except InputError as error:
            raise _fault("query" if is_search else "history", str(error)) from None
        return EncodedRequest(request, prompt_ids)

    def rank(self, encoded: list[EncodedRequest]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return items and scores of each request, best first: int64 and float32 `[found]`."""
        ranking = self.recommender.rank(
            [own.request for own in encoded], [own.prompt_ids for own in encoded]
        )
        found = ranking.items >= 0
        rows = range(len(encoded))
        return [(ranking.items[row][found[row]], ranking.scores[row][found[row]]) for row in rows]

    def answer(self, items: np.ndarray, scores: np.ndarray) -> RankingAnswer:
        """Put a ranking into words."""
        pairs = zip(items.tolist(), scores.tolist(), strict=True)
        return RankingAnswer(
            items=[
                RankedItem(item=self.name(i), score=score, title=self.title(i))
                for i, score in pairs
            ]
        )

    def name(self, item: int) -> int | str:
        """Return what an item is called: its raw id, or its number where it has none."""
        return self.ids.names[item] if self.ids.is_raw else item

    def title(self, item: int) -> str | None:
        """Return an item's title, None without a catalogue."""
        return None if self.items is None else self.items.title(item)

    def item(self, name: int | str) -> ItemAnswer:
        """Return what is known of an item.

        Raises:
            Problem: there is no such item.
        """
        if isinstance(name, str):
            if name not in self.ids.numbers:
                raise Problem(404, f"there is no item {name[:80]!a}")
            item = self.ids.numbers[name]
        elif not 0 <= name < self.num_items:
            raise Problem(404, f"there is no item {name!s:.20}; ids are 0 to {self.num_items - 1}")
        else:
            item = name
        fields = {} if self.items is None else self.items.fields[item]
        tokens = self.recommender.index.tokens(item)
        return ItemAnswer(item=name, tokens=tokens, title=self.title(item), fields=fields)

    def _ids(self, field: str, ids: Sequence[Any]) -> np.ndarray:
        """Return the numbers of the items that a list of a body names."""
        if self.ids.is_raw:
            numbers = [self.ids.numbers.get(name, -1) for name in ids]
            if -1 in numbers:
                place = numbers.index(-1)
                raise _fault(f"{field}/{place}", f"item {ids[place][:80]!a} is unknown")
            return np.asarray(numbers, dtype=np.int64)
        for place, item in enumerate(ids):
            if item >= self.num_items:
                raise _fault(
                    f"{field}/{place}",
                    f"item {item!s:.20} is not in the catalogue, whose ids are 0 to "
                    f"{self.num_items - 1}",
                )
        return np.asarray(ids, dtype=np.int64)

    def _allowed(self, body: Body) -> np.ndarray | None:
        """Return the items that the allow list and every filter let through."""
        allow = None if body.allow is None else np.unique(self._ids("allow", body.allow))
        for field, values in body.filters.items():
            if field not in self.by_value:
                known = ", ".join(self.by_value) or "none, for it runs without --data"
                raise _fault("filters", f"{field[:40]!a} is no field to filter by here: {known}")
            # Keyed by value: a body may name one so often that its items do not fit in memory.
            named = {}
            for value in values:
                folded = value.strip().casefold()
                if folded not in self.by_value[field]:
                    raise _fault(f"filters/{field}", f"no item has the {field} {value[:80]!a}")
                named[folded] = self.by_value[field][folded]
            lists = list(named.values())
            # One list alone stays the object it is: requests that share it share its cost.
            chosen = lists[0] if len(lists) == 1 else np.unique(np.concatenate(lists))
            allow = chosen if allow is None else np.intersect1d(allow, chosen, assume_unique=True)
        return allow

    def _template(self, wanted: str | None, task: str) -> Template | None:
        """Return the template that a body names, if it names one."""
        if wanted is None:
            return None
        known = {t.id: t for t in self.recommender.prompts.templates if t.task == task}
        if wanted not in known:
            near = closest(wanted[:80], known)
            raise _fault("template", f"{task} has no template {wanted[:80]!a}{near}")
        return known[wanted]


def _fault(pointer: str, detail: str) -> Problem:
    """Return the problem with one field of a body."""
    place = f"#/{pointer}"
    return Problem(422, f"{place}: {detail}", errors=[{"pointer": place, "detail": detail}])


def _items_by_value(items: Items) -> dict[str, dict[str, np.ndarray]]:
    """Return the ids of the items with each value of each field, ascending, by folded value.

    A field may hold several values, separated by commas; the whole of it counts as one too.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for item in range(len(items)):
        for field in FILTER_FIELDS:
            text = items.text(item, field)
            for value in {part.strip().casefold() for part in (text, *text.split(","))} - {""}:
                found.setdefault(field, {}).setdefault(value, []).append(item)
    return {
        field: {value: np.asarray(ids) for value, ids in values.items()}
        for field, values in found.items()
    }
