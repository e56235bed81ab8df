"""What every request passes before and after it is served: token, limits, errors, metrics, log.

`ServiceMiddleware` is around the whole service. It refuses a request without the token, and a
body that is too large or too slow, before any of it is parsed; it turns whatever goes wrong into
problem details (RFC 9457, `application/problem+json`), counts every answer and logs it. Errors say
what was seen, but never repeat more than a few characters of it.
"""

import asyncio
import hmac
import http
import logging
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lcrec.serve.workers import METRICS

PROBLEM_TYPE = "application/problem+json"
OPEN_ROUTES = ("/healthz", "/readyz")
FACTS = "lcrec.facts"  # in the scope of a request: what its route adds to the access log
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CLIENT_GONE = 499  # nobody reads it; the number is nginx's, and stands in the metrics only
MOST_ERRORS = 10  # a list of a thousand wrong ids is explained by the first few
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_log = logging.getLogger(__name__)


class ProblemDetails(BaseModel):
    """The body of every error answer (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="the status in words", examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(
        description="what was wrong and what to do",
        examples=["item 99999 is not in the catalogue, whose ids are 0 to 3458"],
    )
    errors: list[dict[str, str]] | None = Field(
        None,
        description="each fault with its place in the body, as a JSON pointer, or its parameter",
        examples=[[{"pointer": "#/history/0", "detail": "item 99999 is not in the catalogue"}]],
    )


class Problem(HTTPException):
    """An error answer.

    Args:
        status: the HTTP status.
        detail: what was wrong and what to do.
        errors: `{"pointer", "detail"}` of each fault in the body.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = errors


class Meters:
    """The Prometheus metrics of one service, of all its workers where it has several."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        if METRICS in os.environ:  # one of several workers tells of all
            self.registry = CollectorRegistry()
            MultiProcessCollector(self.registry)
        self.requests = Counter(
            "lcrec_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "lcrec_request_seconds",
            "Seconds from a request's head to its answer's end.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "lcrec_batch_size", "Requests in a batch.", buckets=BATCHES, registry=registry
        )
        self.queue_depth = Gauge(
            "lcrec_queue_depth",
            "Requests that wait.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "lcrec_batch_seconds", "Seconds a batch took.", buckets=SECONDS, registry=registry
        )

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self.registry)


class ServiceMiddleware:
    """ASGI middleware that checks the token, limits bodies, explains errors and counts answers.

    Args:
        app: what it stands before.
        routes: the paths that are counted by name, such as `/items/{item}`; all else is "other",
            so that clients cannot invent labels.
        meters: where answers are counted.
        log_access: takes the record of every answer; None for no log.
        token: what a client must send as `Authorization: Bearer TOKEN`; None for no check.
        max_body: the largest request body, in bytes.
        body_seconds: how long a client may take to send its body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: tuple[str, ...],
        meters: Meters,
        log_access: Callable[[dict[str, Any]], None] | None,
        token: str | None,
        max_body: int,
        body_seconds: float,
    ) -> None:
        self.app, self.meters, self.log_access = app, meters, log_access
        self.routes = {route.split("{")[0]: route for route in routes}
        self.token = None if token is None else token.encode()
        self.max_body, self.body_seconds = max_body, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        route, status = self._route(scope["path"]), 0
        facts = scope[FACTS] = {}

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(Headers(scope=scope), scope["path"])
            if refusal is not None:
                await problem_response(refusal)(scope, receive, counted_send)
            else:
                await self.app(scope, self._limited(receive), counted_send)
        except Exception:  # whatever fails in one request is logged and told; others are served
            _log.exception("%s failed", route)
            if status == 0:
                broken = Problem(500, "something in the service failed; its log says what")
                await problem_response(broken)(scope, receive, counted_send)
        finally:
            seconds, status = time.perf_counter() - started, status or CLIENT_GONE
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.seconds.labels(route).observe(seconds)
            if self.log_access is not None:
                self.log_access(
                    {
                        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                        # Clients invent methods and paths.
                        "method": scope["method"] if scope["method"] in METHODS else "other",
                        "route": route,
                        "status": status,
                        "ms": round(seconds * 1000, 1),
                        **facts,
                    }
                )

    def _route(self, path: str) -> str:
        start, slash, rest = path[1:].partition("/")
        return self.routes.get(f"/{start}{slash}" if rest else path, "other")

    def _refusal(self, headers: Headers, path: str) -> Problem | None:
        """Return why the request is refused by its head alone."""
        if self.token is not None and path not in OPEN_ROUTES:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            known = hmac.compare_digest(given.strip().encode(), self.token)
            if scheme.lower() != "bearer" or not known:
                return Problem(
                    401,
                    "send the service's token as the header 'Authorization: Bearer TOKEN'",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return Problem(400, f"Content-Length: expected a number, found {length!r:.40}")
        # Python reads no number of thousands of digits.
        is_large = len(length) > 18 or int(length) > self.max_body
        return self._too_large() if is_large else None

    def _too_large(self) -> Problem:
        return Problem(413, f"the body may have {self.max_body} bytes at most (--max-body)")

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` with limits on the size of the body and the time it takes."""
        read = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self.body_seconds

        async def limited() -> Message:
            nonlocal read, complete
            if complete:  # what follows is the news that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408,
                    f"the body did not arrive within {self.body_seconds:g} seconds",
                    headers={"Connection": "close"},
                ) from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self.max_body:  # sent in chunks, its length was not known before
                raise self._too_large()
            return message

        return limited


def problem_response(problem: Problem) -> JSONResponse:
    """Return the answer that explains a problem."""
    known = problem.status_code in list(http.HTTPStatus)
    title = http.HTTPStatus(problem.status_code).phrase if known else "Client Gone"
    body = ProblemDetails(
        title=title, status=problem.status_code, detail=problem.detail, errors=problem.errors
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        problem.status_code,
        headers=problem.headers,
        media_type=PROBLEM_TYPE,
    )


async def http_problem(request: Request, error: Exception) -> JSONResponse:
    """Explain an `HTTPException`, the framework's own (404, 405, 400) or a `Problem`."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Problem):
        return problem_response(error)
    details = {
        404: f"there is no {request.scope['path'][:80]!a} here; GET /docs shows what there is",
        405: f"{request.method[:20]} is not served here; see the header Allow",
        400: "the body cannot be read as JSON",
    }
    detail = details.get(error.status_code, error.detail)
    return problem_response(Problem(error.status_code, detail, headers=error.headers))


async def validation_problem(request: Request, error: Exception) -> JSONResponse:
    """Explain what does not fit the schema: 400 for a body that is no JSON, 422 for the rest."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()[:MOST_ERRORS]
    if faults[0]["type"] == "json_invalid":
        reason, position = faults[0]["ctx"]["error"], faults[0]["loc"][-1]
        return problem_response(
            Problem(400, f"the body is not valid JSON ({reason} at character {position})")
        )
    errors = []
    for fault in faults:
        place, *inner = fault["loc"]
        key, where = ("pointer", _pointer(inner)) if place == "body" else ("parameter", inner[0])
        detail = fault["msg"]
        if fault["type"] == "extra_forbidden":
            detail = "there is no such field; see GET /docs"
        elif fault["type"] in ("missing", "model_attributes_type") and not inner:
            detail = "expected a JSON object, with the header 'Content-Type: application/json'"
        elif isinstance(fault["input"], str | int | float | None):
            detail += f", found {fault['input']!a:.60}"
        errors.append({key: str(where), "detail": detail})
    return problem_response(Problem(422, ": ".join(errors[0].values()), errors=errors))


def _pointer(keys: list[str | int]) -> str:
    """Return a JSON pointer (RFC 6901) as a URI fragment; keys, which clients choose, are cut."""
    parts = (str(key)[:40].replace("~", "~0").replace("/", "~1") for key in keys)
    return "#" + "".join(f"/{quote(part, safe='~', errors='replace')}" for part in parts)
