"""Several whole services on one port, for CPUs: a supervisor process and its workers.

Each worker has a model, a queue and a listening socket of its own; the kernel shares connections
among the sockets (SO_REUSEPORT), so that one worker that dies takes no connection with it but its
own. The supervisor only holds the port: it starts the workers, starts anew one that has died, lets
them reload one after the other, so that only one at a time holds two models, and ends them all.

They speak over a pipe per worker. A worker sends `ready` with what is said of the service, `failed`
with why it cannot start, `ask` for a reload of all, `reloaded` with what went wrong in its own or
None. The supervisor sends `reload`, and `outcome` to whoever asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from lcrec.core.errors import InputError
from lcrec.serve.loading import UNDER_WAY

if TYPE_CHECKING:
    from lcrec.serve.live import Live

METRICS = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client lets processes add up
PAUSE = 1.0  # seconds before a worker that died is started anew

_log = logging.getLogger(__name__)


class Link:
    """A worker's line to its supervisor.

    Args:
        connection: the worker's end of the pipe.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: asyncio.Future[str | None] | None = None

    def send(self, message: tuple[str, Any]) -> None:
        """Send a message, to nobody if the supervisor has died."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def attach(self, live: Live, stop: Callable[[], None]) -> None:
        """Follow the supervisor from now on, and `stop` if it dies."""
        self._live, self._stop = live, stop
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._connection.fileno(), self._read)

    async def reload_all(self) -> None:
        """Let all workers reload.

        Raises:
            InputError: one of them cannot, or a reload is under way.
        """
        if self._asked is not None:
            raise InputError(UNDER_WAY)
        self._asked = self._loop.create_future()
        self.send(("ask", None))
        try:
            error = await self._asked
        finally:
            self._asked = None
        if error is not None:
            raise InputError(error)

    def _read(self) -> None:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._connection.fileno())
            kind, value = "outcome", "the supervisor has gone"
            self._stop()
        if kind == "reload":
            self._task = self._loop.create_task(self._reload())
        elif self._asked is not None and not self._asked.done():
            self._asked.set_result(value)

    async def _reload(self) -> None:
        error = None
        try:
            await self._live.reload()
        except InputError as refusal:
            error = str(refusal)
        self.send(("reloaded", error))


class _Worker:
    """A worker as its supervisor sees it, through all its lives."""

    def __init__(self, work: Callable[[Connection], None]) -> None:
        self._work = work
        self.is_ready = False
        self._outcome: asyncio.Future[str | None] | None = None

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")  # threads of a model outlive no fork
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=self._work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self._messages: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._read)

    async def receive(self) -> tuple[str, Any] | None:
        """Return the next message that is not for `reload`; None when the process has ended."""
        while (message := await self._messages.get()) is not None:
            if message[0] != "reloaded":
                return message
            self._settle(message[1])
        self.is_ready = False
        self._settle("a worker ended while it reloaded")
        await asyncio.to_thread(self.process.join)
        self._connection.close()
        return None

    async def reload(self) -> str | None:
        """Let the worker reload; return what went wrong."""
        if not self.is_ready:
            return "a worker is starting; try again when it is ready"
        self._outcome = asyncio.get_running_loop().create_future()
        self.send(("reload", None))
        return await self._outcome

    def send(self, message: tuple[str, Any]) -> None:
        """Send a message, to nobody if the process has ended."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def _settle(self, error: str | None) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(error)

    def _read(self) -> None:
        try:
            self._messages.put_nowait(self._connection.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._messages.put_nowait(None)


class Supervisor:
    """Runs workers until SIGINT or SIGTERM; SIGHUP lets them reload.

    Args:
        work: what a worker's process does with its end of the pipe; it can be pickled.
        count: how many workers there are.
        welcome: told what the first worker says of the service, when all are ready.
        forget: told the process id of a worker that has ended.
    """

    def __init__(
        self,
        work: Callable[[Connection], None],
        count: int,
        welcome: Callable[[Any], None],
        forget: Callable[[int], None],
    ) -> None:
        self._workers = [_Worker(work) for _ in range(count)]
        self._welcome, self._forget = welcome, forget
        self._welcomed = self._stopping = self._reloading = False
        self._tasks: set[asyncio.Task[None]] = set()  # the loop alone does not keep them

    async def run(self) -> None:
        """Run the workers.

        Raises:
            InputError: one cannot start.
        """
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._begin_reload)
        lives = [loop.create_task(self._keep_alive(worker)) for worker in self._workers]
        try:
            await asyncio.gather(*lives)
        finally:
            self.stop()
            await asyncio.gather(*lives, return_exceptions=True)

    def stop(self) -> None:
        """End the workers when what they have queued is answered."""
        self._stopping = True
        for worker in self._workers:
            worker.process.terminate()

    async def _keep_alive(self, worker: _Worker) -> None:
        was_ready = False
        while not self._stopping:
            worker.start()
            error = None
            while (message := await worker.receive()) is not None:
                kind, value = message
                if kind == "ready":
                    was_ready = worker.is_ready = True
                    self._welcome_all(value)
                elif kind == "failed":
                    error = value
                else:
                    self._begin_reload(worker)
            assert worker.process.pid is not None
            self._forget(worker.process.pid)
            if not self._stopping:
                if not was_ready:
                    raise InputError(
                        error or "a worker ended before it could answer; its messages stand above"
                    )
                reason = f" ({error})" if error else ""
                _log.error("worker %d ended%s; starting it anew", worker.process.pid, reason)
                await asyncio.sleep(PAUSE)

    def _welcome_all(self, value: Any) -> None:
        if not self._welcomed and all(worker.is_ready for worker in self._workers):
            self._welcomed = True
            self._welcome(value)

    def _begin_reload(self, asker: _Worker | None = None) -> None:
        task = asyncio.get_running_loop().create_task(self._reload(asker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self, asker: _Worker | None) -> None:
        """Let the workers reload one after the other, until one cannot; tell who asked."""
        error: str | None = UNDER_WAY
        if not self._reloading:
            self._reloading, done = True, 0
            for worker in self._workers:
                error = await worker.reload()
                if error is not None:
                    break
                done += 1
            self._reloading = False
            if error is not None and done:
                error += f"; {done} of {len(self._workers)} workers have reloaded"
        if error is not None:
            _log.error("not reloaded: %s", error)
        if asker is not None:
            asker.send(("outcome", error))
