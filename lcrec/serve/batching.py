"""Dynamic batching: requests that arrive together are answered together, by one thread.

An event loop submits requests one by one; `Batcher` collects up to `max_batch` of them, or what
came within `max_wait` seconds of the first, and hands them to a single thread. While that thread
works the next batch gathers, so under load no time is spent waiting. The queue is bounded, a
request whose caller has gone is dropped from it, and one that makes the computation fail fails
alone: the others of its batch are answered without it. `ServiceLimits` has all limits of the
service.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from lcrec.core.config import option

Request = TypeVar("Request")
Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class QueueFull(Exception):
    """The queue is at its limit; `retry_after` is when to come back, in whole seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.retry_after = retry_after


class ShuttingDown(Exception):
    """No new requests are accepted; those in the queue are still answered."""


@dataclass(eq=False)
class _Entry(Generic[Request, Answer]):
    request: Request
    future: "asyncio.Future[Answer]"
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[Request, Answer]):
    """Collects requests into batches; use it as an async context manager, which drains on exit.

    Args:
        answer: what answers a batch, in order; called in a thread of its own, one call at a time.
        max_batch: the most requests in a batch.
        max_wait: how long the first request of a batch waits for others, in seconds.
        max_queue: the most requests that wait; those being answered do not count.
        observe: told the size of every batch and the seconds it took, on the event loop.
        observe_depth: told how many requests wait, whenever that changes.
    """

    def __init__(
        self,
        answer: Callable[[list[Request]], Sequence[Answer]],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
        observe_depth: Callable[[int], None] = lambda depth: None,
    ) -> None:
        self._answer = answer
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self._observe, self._observe_depth = observe, observe_depth
        self._queue: deque[_Entry[Request, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._last_seconds = 0.0
        self._started: float | None = None

    async def __aenter__(self) -> "Batcher[Request, Answer]":
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._collector = asyncio.create_task(self._collect())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        await self._collector
        self._thread.shutdown()

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def accepts(self) -> bool:
        """Whether a request submitted now would be accepted."""
        return not self._closing and self.depth < self.max_queue

    @property
    def alive(self) -> bool:
        """Whether batches are being formed, as they are from start to exit."""
        return not self._collector.done()

    @property
    def busy(self) -> float:
        """For how many seconds the batch that is being answered has been."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def close(self) -> None:
        """Take no more requests; what is queued is still answered."""
        self._closing = True
        self._changed.set()

    async def submit(self, request: Request) -> Answer:
        """Return the answer to one request; cancelling this takes it out of the queue.

        Raises:
            QueueFull: too many requests wait.
            ShuttingDown: `close` was called.
            Exception: what answering this request alone raised.
        """
        if self._closing:
            raise ShuttingDown("the service is shutting down")
        if self.depth >= self.max_queue:
            batches_ahead = math.ceil(self.depth / self.max_batch)
            raise QueueFull(self.depth, max(1, math.ceil(batches_ahead * self._last_seconds)))
        entry = _Entry[Request, Answer](request, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._observe_depth(self.depth)
        if self.depth in (1, self.max_batch):  # the others change nothing
            self._changed.set()
        try:
            return await entry.future
        finally:
            # Still there only if the caller gave up.
            with contextlib.suppress(ValueError):
                self._queue.remove(entry)
                self._observe_depth(self.depth)

    async def _collect(self) -> None:
        """Form batches until closed and empty."""
        loop = asyncio.get_running_loop()
        while await self._gather():
            batch = [self._queue.popleft() for _ in range(min(self.depth, self.max_batch))]
            self._observe_depth(self.depth)
            requests = [entry.request for entry in batch]
            self._started = time.monotonic()
            answers = await loop.run_in_executor(self._thread, answer_apart, self._answer, requests)
            self._last_seconds, self._started = self.busy, None
            self._observe(len(batch), self._last_seconds)
            for entry, answer in zip(batch, answers, strict=True):
                if entry.future.done():  # its caller gave up meanwhile
                    continue
                if isinstance(answer, Exception):
                    entry.future.set_exception(answer)
                else:
                    entry.future.set_result(answer)
            # Requests are not kept until the next come: they hold the model that is to rank them.
            del batch, requests, answers, entry, answer

    async def _gather(self) -> bool:
        """Wait until a batch is due; False if none will ever be."""
        while True:
            if self._queue:
                patience = self._queue[0].arrived + self.max_wait - time.monotonic()
                if self.depth >= self.max_batch or self._closing or patience <= 0:
                    return True
            elif self._closing:
                return False
            else:
                patience = None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), patience)


def answer_apart(
    answer: Callable[[list[Request]], Sequence[Answer]], requests: list[Request]
) -> list[Answer | Exception]:
    """Answer all requests, each by its answer or by the exception that it raises alone.

    A batch that fails is halved and tried again, so r requests that fail among n cost about
    `2 r log2(n)` calls more, and no other request notices.
    """
    try:
        answers = list(answer(requests))
        if len(answers) != len(requests):
            raise RuntimeError(f"{len(answers)} answers to {len(requests)} requests")
        return list(answers)
    except Exception as error:
        if len(requests) == 1:
            return [error]
        _log.warning("a batch of %d failed (%s): answering its halves", len(requests), error)
        half = len(requests) // 2
        return answer_apart(answer, requests[:half]) + answer_apart(answer, requests[half:])


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """How many requests wait and are answered together, how long they take, how large they are."""

    max_batch: int = option("requests ranked together at most", 32, minimum=1)
    batch_wait: float = option("milliseconds a request waits for others to join", 2.0, minimum=0)
    max_queue: int = option("requests that may wait; the next is refused (503)", 256, minimum=1)
    timeout: float = option(
        "seconds until a request is given up (504); also the time to send its head and body",
        10.0,
        minimum=0.001,
    )
    max_body: int = option("bytes of a request's body at most (413)", 2**20, minimum=1)
    max_k: int = option("items of an answer at most", 100, minimum=1)
    max_history: int = option("items of a request's history at most", 1000, minimum=1)
    max_query: int = option("characters of a query at most", 2000, minimum=1)
