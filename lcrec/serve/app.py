"""The HTTP service: a `Recommender` behind `/recommend`, `/search` and `/items/{item}`.

A request is checked and turned into a prompt (`lcrec.serve.requests`) and queued; one thread
answers whatever has gathered (`lcrec.serve.batching`). Requests of both kinds, with any `k`, lists,
filters and templates, share a batch, and each gets what `Recommender` would give it alone, to the
digits that `lcrec.generate.search` promises.
"""

import asyncio
import contextlib
import http
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive

from lcrec.core.artifacts import unique_keys
from lcrec.core.errors import InputError
from lcrec.core.version import __version__
from lcrec.generate.requests import require_task
from lcrec.serve.batching import Batcher, QueueFull, ShuttingDown
from lcrec.serve.live import Live, rank_together
from lcrec.serve.middleware import (
    CLIENT_GONE,
    FACTS,
    PROBLEM_TYPE,
    Meters,
    Problem,
    ProblemDetails,
    ServiceMiddleware,
    http_problem,
    validation_problem,
)
from lcrec.serve.requests import (
    EncodedRequest,
    ItemAnswer,
    Ranked,
    RankingAnswer,
    RecommendRequest,
    SearchRequest,
    bodies,
)

ROUTES = (
    *("/recommend", "/search", "/items/{item}", "/healthz", "/readyz", "/metrics", "/reload"),
    *("/docs", "/openapi.json"),
)

_log = logging.getLogger(__name__)


class StatusAnswer(BaseModel):
    """How the service is."""

    status: str


class HealthAnswer(StatusAnswer):
    """How the service is, and fingerprints of what it serves; the same content has the same."""

    model: str | None
    index: str | None
    data: str | None = Field(description="of the interactions; null without --data")
    items: str | None = Field(description="of the catalogue, prices too; null without --data")
    fusion: str | None = Field(description="of the weights that --fuse names; null without a file")


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            value = json.loads(await self.body(), object_pairs_hook=unique_keys)
            json.dumps(value, ensure_ascii=False).encode()
        except InputError as error:
            raise Problem(400, f"the body cannot be read as JSON: {error}") from None
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise Problem(
                400,
                f"the body holds {half!a}, half of a character (a text cut in the middle of an "
                "emoji?), which no answer can repeat",
            ) from None
        return value


class _StrictRoute(APIRoute):
    """A route whose JSON bodies name no key twice and hold whole characters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def plain_number(text: str) -> str:
    """Return a whole number as it is usually written; "1.0", "+1", "1_0" and " 1" are none.

    Raises:
        ValueError: it is written otherwise.
    """
    if not re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        raise ValueError("a whole number is expected, in digits alone")
    return text


def create_app(
    live: Live,
    *,
    token: str | None = None,
    reload: Callable[[], Awaitable[None]] | None = None,
    log_access: Callable[[dict[str, Any]], None] | None = None,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        live: what answers, within its limits.
        token: what clients must send as `Authorization: Bearer TOKEN`; None for no check.
        reload: replaces what answers, raising `InputError`; None for `live.reload`.
        log_access: takes the record of every request.
    """
    limits, ids = live.handler.limits, live.handler.ids
    meters = Meters()
    recommend_body, search_body = bodies(ids)
    name = str if ids.is_raw else Annotated[int, BeforeValidator(plain_number)]
    batcher = Batcher(
        rank_together,
        max_batch=limits.max_batch,
        max_wait=limits.batch_wait / 1000,
        max_queue=limits.max_queue,
        observe=meters.batch,
        observe_depth=meters.queue_depth.set,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title="lcrec",
        version=__version__,
        description="Recommendations and search over the whole catalogue, by a language model.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        # The middleware checks the token; here it is only declared, for the page and for clients.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
        responses=_problems(401, 500) if token else _problems(500),
        exception_handlers={
            HTTPException: http_problem,
            RequestValidationError: validation_problem,
        },
    )
    app.router.route_class = _StrictRoute
    app.add_middleware(
        ServiceMiddleware,
        routes=ROUTES,
        meters=meters,
        log_access=log_access,
        token=token,
        max_body=limits.max_body,
        body_seconds=limits.timeout,
    )
    refusals = _problems(400, 408, 413, 422, 503, 504)

    async def rank(request: Request, body: RecommendRequest | SearchRequest) -> RankingAnswer:
        facts, handler = request.scope[FACTS], live.handler
        facts["model"] = handler.versions.model
        encoded = handler.encode(body)
        facts["ignored"] = sum(map(len, encoded.ignored.values()))
        facts["fallback"] = encoded.prompt_ids is None
        if encoded.prompt_ids is None:
            ranked = handler.rank_by_popularity(encoded.request)
        else:
            ranked = await _wait(batcher, encoded, request.receive, limits.timeout)
        return handler.answer(encoded, ranked)

    @app.post("/recommend", responses=refusals, summary="The items to come after a history")
    async def recommend(
        request: Request,
        body: recommend_body,  # type: ignore[valid-type]
    ) -> RankingAnswer:
        return await rank(request, body)

    @app.post(
        "/search",
        responses=refusals | _problems(501),
        summary="The items that fit a request in words",
    )
    async def search(
        request: Request,
        body: search_body,  # type: ignore[valid-type]
    ) -> RankingAnswer:
        try:
            require_task("itemsearch", live.handler.recommender.tasks)
        except InputError as error:
            raise Problem(501, str(error)) from None
        return await rank(request, body)

    @app.get(
        "/items/{item:path}", responses=_problems(404, 422), summary="What is known of an item"
    )
    async def item(item: name) -> ItemAnswer:  # type: ignore[valid-type]
        return live.handler.item(item)

    @app.get("/healthz", responses=_problems(503), summary="Whether the process works")
    async def healthz() -> HealthAnswer:
        if not batcher.alive:
            raise Problem(503, "the model's thread has stopped: start the service again")
        return HealthAnswer(status="ok", **asdict(live.handler.versions))

    @app.get("/readyz", responses=_problems(503), summary="Whether a request would be accepted now")
    async def readyz() -> StatusAnswer:
        if not (batcher.alive and batcher.accepts):
            raise Problem(503, f"{batcher.depth} requests are waiting", headers=_retry(1))
        if batcher.busy > limits.timeout:
            raise Problem(503, f"the model has been busy for {batcher.busy:.0f} seconds")
        return StatusAnswer(status="ready")

    @app.post(
        "/reload",
        responses=_problems(403, 409),
        summary="Load model, index and data anew; requests go on meanwhile",
    )
    async def reload_now() -> HealthAnswer:
        if token is None:
            raise Problem(403, "the service has no token (LCREC_TOKEN); send it SIGHUP instead")
        try:
            await (reload or live.reload)()
        except InputError as error:
            raise Problem(409, f"not reloaded, what was loaded before goes on: {error}") from None
        return HealthAnswer(status="reloaded", **asdict(live.handler.versions))

    @app.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(meters.text(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _wait(
    batcher: Batcher[EncodedRequest, Any], encoded: EncodedRequest, receive: Receive, timeout: float
) -> Ranked:
    """Return the request's ranking, or give it up when its time is over or its client has gone.

    Raises:
        Problem: there is no ranking.
    """
    answer = asyncio.ensure_future(batcher.submit(encoded))
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({answer, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
    except QueueFull as full:
        raise Problem(503, f"{full}; come back later", headers=_retry(full.retry_after)) from None
    except ShuttingDown as closing:
        raise Problem(503, str(closing), headers=_retry(5)) from None
    except InputError as error:  # of the model: whatever a client can do wrong was found before
        _log.error("a request failed: %s", error)
        raise Problem(500, str(error)) from None
    finally:
        answer.cancel()
        leaving.cancel()
    if leaving.done():
        raise Problem(CLIENT_GONE, "the client has gone")
    raise Problem(504, f"no answer within {timeout:g} seconds (--timeout); try again later")


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI page says of error answers."""
    content = {PROBLEM_TYPE: {"schema": ProblemDetails.model_json_schema()}}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }
