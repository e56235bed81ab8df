"""From an HTTP body to a request for the model, and from its ranking back to an answer.

`RequestHandler` checks everything that a client can get wrong before the request is queued, so that
what fails later is the model's fault, and no client's. Requests of both kinds, with any `k`, lists
and filters, are ranked together. Users and items that nobody knows are left out, and the answer
says so; whoever has no history gets the most popular items, marked as such.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model

from lcrec.core.errors import InputError, closest
from lcrec.data.folder import Interactions, Items
from lcrec.data.id_map import IdMap
from lcrec.data.item_filters import FilterError, ItemFilters
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.prompts.templates import Template
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.middleware import Problem

ItemIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
RawIds = Annotated[list[str], Field(fail_fast=True)]


class _Options(BaseModel):
    """What both kinds of request may ask for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    k: int = Field(10, ge=1, description="how many items", examples=[5])
    allow: ItemIds | None = Field(None, description="recommend these items only")
    deny: ItemIds = Field([], description="never recommend these items")
    filters: dict[str, Any] = Field(
        {},
        description="recommend items only whose field is one of the values, such as "
        '`["Acme"]`, or a number in the range, such as `{"min": 5, "max": 20}`, for every field '
        "named",
        examples=[{"brand": ["Acme"], "price": {"max": 20}}],
    )
    exclude_history: bool = Field(False, description="never recommend an item of the history")
    reserve_new: int | None = Field(
        None,
        ge=0,
        description="how many of the k places, the last, go to items that joined after the model "
        "was trained, where there are any; by default what --reserve-new says",
    )
    template: str | None = Field(None, description="the id of the prompt template to ask with")
    user: str | None = Field(
        None, description="whose history to go by, in place of `history`; needs --data"
    )
    unknown: Literal["ignore", "refuse"] = Field(
        "ignore",
        description="what to do about a user or items that the service does not know; with "
        "`refuse`, nor is an empty history answered with what is popular",
    )


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

    history: ItemIds | None = Field(
        None,
        description="item ids, oldest first; required unless there is a user. Nobody's history, an "
        "empty one, is answered with the most popular items",
        examples=[[12, 7]],
    )


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
    history: ItemIds | None = Field(None, description="item ids, oldest first, if there are any")


Body = RecommendRequest | SearchRequest
Ignored = dict[str, list[int | str]]  # by field of a body
Ranked = tuple[np.ndarray, np.ndarray]  # items int64 and scores float32, best first
Form = TypeVar("Form", bound=_Options)


def bodies(ids: IdMap) -> tuple[type[RecommendRequest], type[SearchRequest]]:
    """Return the forms of both kinds of request, for items that are called by these ids."""
    if not ids.is_raw:
        return RecommendRequest, SearchRequest
    return _in_raw_ids(RecommendRequest, ids), _in_raw_ids(SearchRequest, ids)


def _in_raw_ids(form: type[Form], ids: IdMap) -> type[Form]:
    """Return the same form with text for items."""
    fields: dict[str, Any] = {}
    for name, kind in {"history": RawIds | None, "allow": RawIds | None, "deny": RawIds}.items():
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
    score: float = Field(
        description="the log-probability of the item's tokens, less a share of what the model "
        "gives the item whatever the history if the service runs with --calibrate; with --fuse, of "
        "/recommend, the item's weighted shares of two rankings; in a fallback, the "
        "log-probability of the item among all interactions, each item counted once more. Scores "
        "never rise from one item to the next"
    )
    title: str | None = Field(
        description="null where the item has none, or the service runs without --data"
    )


class RankingAnswer(BaseModel):
    """Items, best first and distinct."""

    items: list[RankedItem] = Field(
        description="k of them, or as many as allow, deny, filters and exclude_history leave; "
        "perhaps none"
    )
    ignored: dict[str, list[int | str]] = Field(
        description="what the service does not know and left out, by the field it stood in",
        examples=[{"history": ["SKU-9"]}],
    )
    fallback: Literal["popularity"] | None = Field(
        description="`popularity` where nothing is known of the customer, and these are the items "
        "with most interactions"
    )


class ItemAnswer(BaseModel):
    """What the service knows of an item."""

    item: int | str
    tokens: list[str] = Field(examples=[["<a_12>", "<b_3>", "<c_200>", "<d_7>"]])
    title: str | None
    fields: dict[str, str] = Field(description="the item's texts; empty without --data")


@dataclass(frozen=True, eq=False)
class UserData:
    """What every user has: the interactions of a data folder and what its users are called."""

    users: IdMap
    interactions: Interactions


@dataclass(frozen=True)
class Versions:
    """Fingerprints of what is served, as `lcrec.core.provenance` records them; None if unknown.

    Attributes:
        model: of the checkpoint.
        index: of the item index, the checkpoint's own or the one that adds items.
        data: of the interactions.
        items: of the catalogue, prices and other kept fields among them.
        fusion: of the weights that `--fuse` names.
    """

    model: str | None = None
    index: str | None = None
    data: str | None = None
    items: str | None = None
    fusion: str | None = None


@dataclass(frozen=True, eq=False)
class EncodedRequest:
    """A checked request.

    Attributes:
        handler: what checked it, and will answer it.
        request: what is asked for.
        prompt_ids: its prompt; None where it is answered by popularity.
        ignored: what was left out, by field.
    """

    handler: "RequestHandler"
    request: RankingRequest
    prompt_ids: list[int] | None
    ignored: Ignored


def require_same_size(items: Items | None, num_items: int) -> None:
    """Refuse a catalogue that is not that of an index of so many items.

    Raises:
        InputError: it has more or fewer.
    """
    if items is not None and len(items) != num_items:
        raise InputError(
            f"the catalogue has {len(items)} items and the model's index {num_items}: name the "
            "data folder, and the --index, that belong together"
        )


class RequestHandler:
    """Turns bodies into requests, batches of requests into rankings, and items into words.

    Everything that can be wrong with a body is found here, before it is queued; what fails later
    is the model's fault.

    Args:
        recommender: what ranks; nothing else may use it while the service runs.
        items: the catalogue, for titles, fields and filters.
        limits: what the service allows; None for the defaults.
        ids: what clients call the items; None for the raw ids of the checkpoint, or numbers where
            it has none.
        user_data: the histories that clients may ask by, which also say what is popular.
        versions: of what it was loaded from.
        reserve_new: places for new items, of requests that do not say how many.
        told: what is said of its rankings when it begins to serve, in lines.

    Raises:
        InputError: the catalogue is not the index's.
    """

    def __init__(
        self,
        recommender: Recommender,
        items: Items | None = None,
        limits: ServiceLimits | None = None,
        ids: IdMap | None = None,
        user_data: UserData | None = None,
        versions: Versions = Versions(),
        reserve_new: int = 0,
        told: Sequence[str] = (),
    ) -> None:
        self.versions, self.reserve_new, self.told = versions, reserve_new, told
        self.recommender, self.items, self.user_data = recommender, items, user_data
        self.ids = ids or recommender.index.ids
        self.num_items = len(recommender.index)
        require_same_size(items, self.num_items)
        self.limits = limits or ServiceLimits()
        self.filters = None if items is None else ItemFilters(items)
        if user_data is not None:
            bought = np.bincount(user_data.interactions.items, minlength=self.num_items) + 1
            self.popularity = np.log(bought / bought.sum()).astype(np.float32)
            self.most_popular = np.argsort(-self.popularity, kind="stable")

    def encode(self, body: Body) -> EncodedRequest:
        """Check what a client asks for and put it into a prompt.

        Raises:
            Problem: it cannot be served.
        """
        limits, ignored = self.limits, Ignored()
        history = self._history(body, ignored)
        if body.k > limits.max_k:
            raise _fault("k", f"{body.k} items wanted; the most here is {limits.max_k} (--max-k)")
        allow = self._allowed(body, ignored)
        deny = np.unique(self._ids("deny", body.deny, body, ignored))
        k = min(body.k, self.num_items)
        is_search = isinstance(body, SearchRequest)
        request = RankingRequest(
            history,
            body.query if isinstance(body, SearchRequest) else None,
            k=k,
            allow=allow,
            deny=deny,
            exclude_history=body.exclude_history,
            counted=history if body.user is not None else (),
            reserve_new=self._places(body, k),
            template=self._template(body.template, "itemsearch" if is_search else "seqrec"),
        )
        if request.query is not None and len(request.query) > limits.max_query:
            raise _fault(
                "query",
                f"{len(request.query)} characters; at most {limits.max_query} are allowed "
                "(--max-query)",
            )
        if not is_search and len(history) == 0:
            self._require_fallback(body)
            return EncodedRequest(self, request, None, ignored)
        try:
            (prompt_ids,) = self.recommender.encode([request])
        except InputError as error:
            raise _fault("query" if is_search else "history", str(error)) from None
        return EncodedRequest(self, request, prompt_ids, ignored)

    def rank(self, encoded: list[EncodedRequest]) -> list[Ranked]:
        """Return items and scores of each request, best first: int64 and float32 `[found]`."""
        prompt_ids = [own.prompt_ids for own in encoded if own.prompt_ids is not None]
        ranking = self.recommender.rank([own.request for own in encoded], prompt_ids)
        found = ranking.items >= 0
        rows = range(len(encoded))
        return [(ranking.items[row][found[row]], ranking.scores[row][found[row]]) for row in rows]

    def rank_by_popularity(self, request: RankingRequest) -> Ranked:
        """Return the items with most interactions that a request may get, and their scores."""
        may = np.full(self.num_items, request.allow is None)
        may[() if request.allow is None else request.allow] = True
        may[request.deny] = False
        items = self.most_popular[may[self.most_popular]][: request.k]
        return items, self.popularity[items]

    def answer(self, encoded: EncodedRequest, ranked: Ranked) -> RankingAnswer:
        """Put a ranking into words."""
        items, scores = (column.tolist() for column in ranked)
        return RankingAnswer(
            items=[
                RankedItem(item=self.name(item), score=score, title=self.title(item))
                for item, score in zip(items, scores, strict=True)
            ],
            ignored=encoded.ignored,
            fallback="popularity" if encoded.prompt_ids is None else None,
        )

    def name(self, item: int) -> int | str:
        """Return what an item is called: its raw id, or its number where it has none."""
        return self.ids.names[item] if self.ids.is_raw else item

    def title(self, item: int) -> str | None:
        """Return an item's title, None where it has none or there is no catalogue."""
        return None if self.items is None else self.items.text(item, "title") or None

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

    def _history(self, body: Body, ignored: Ignored) -> np.ndarray:
        """Return what the customer has, as far as it is known."""
        if body.user is not None and body.history is not None:
            raise _fault("user", "give a user or a history, not both")
        if body.user is not None:
            if self.user_data is None:
                raise _fault("user", "the service runs without --data; give a history")
            users = self.user_data.users
            if body.user in users.numbers:
                return self.user_data.interactions.sequence(users.numbers[body.user])
            if body.unknown == "refuse":
                raise _fault("user", f"user {body.user[:80]!a} is unknown")
            ignored["user"] = [body.user]
        elif body.history is None and isinstance(body, RecommendRequest):
            raise _fault("history", "required, unless there is a user")
        history = body.history or []
        if len(history) > self.limits.max_history:
            raise _fault(
                "history",
                f"{len(history)} items; at most {self.limits.max_history} are allowed "
                "(--max-history), and the model reads the latest "
                f"{self.recommender.request_encoder.max_history}",
            )
        return self._ids("history", history, body, ignored)

    def _require_fallback(self, body: Body) -> None:
        """Refuse nobody's history where it is not to be answered, or cannot be."""
        if body.unknown == "refuse":
            raise _fault("history", "nothing is known of the customer, and `unknown` is `refuse`")
        if self.user_data is None:
            raise _fault(
                "history",
                "nothing is known of the customer, nor, without --data, what is popular; give at "
                "least one item that is known",
            )

    def _ids(self, field: str, names: Sequence[Any], body: Body, ignored: Ignored) -> np.ndarray:
        """Return the numbers of the items that a list of a body names; note who is unknown."""
        numbers = []
        for place, name in enumerate(names):
            if self.ids.is_raw:
                number = self.ids.numbers.get(name)
            else:
                number = name if name < self.num_items else None
            if number is not None:
                numbers.append(number)
            elif body.unknown == "ignore":
                ignored.setdefault(field, []).append(name)
            elif self.ids.is_raw:
                raise _fault(f"{field}/{place}", f"item {name[:80]!a} is unknown")
            else:
                raise _fault(
                    f"{field}/{place}",
                    f"item {name!s:.20} is not in the catalogue, whose ids are 0 to "
                    f"{self.num_items - 1}",
                )
        return np.asarray(numbers, dtype=np.int64)

    def _allowed(self, body: Body, ignored: Ignored) -> np.ndarray | None:
        """Return the items that the allow list and every filter let through."""
        allow = None
        if body.allow is not None:
            allow = np.unique(self._ids("allow", body.allow, body, ignored))
        if not body.filters:
            return allow
        if self.filters is None:
            raise _fault("filters", "the service runs without --data, which says what items are")
        try:
            chosen = self.filters.select(body.filters)
        except FilterError as error:
            pointer = "filters" if error.field is None else f"filters/{error.field}"
            raise _fault(pointer, str(error)) from None
        return chosen if allow is None else np.intersect1d(allow, chosen, assume_unique=True)

    def _places(self, body: Body, k: int) -> int:
        """Return how many of k places are reserved for new items."""
        if body.reserve_new is not None and body.reserve_new > body.k:
            raise _fault("reserve_new", f"{body.reserve_new} of {body.k} places; reserve fewer")
        if not len(self.recommender.new_items):
            return 0
        wanted = self.reserve_new if body.reserve_new is None else body.reserve_new
        return min(wanted, k)

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
