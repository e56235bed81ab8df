"""Bounds on connections: how many are open, and how long one may be silent or send a head.

The body of a request has its own limits, in `lcrec.serve.middleware`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\n\r\n"
)


class BoundedConnection(H11Protocol):
    """A connection that is closed unless the head of a request arrives in time.

    Args:
        seconds: how long it may have no request under way, from its start or from the first byte
            after an answer.
        most: how many may be open; the next gets a 503 and is closed.
        settings: what uvicorn passes on.
    """

    def __init__(self, *, seconds: float, most: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._seconds, self._most = seconds, most
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head, or refuse the connection."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(BUSY)
            transport.close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request is under way; what follows its answer begins a new wait."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._seconds, self.transport.close)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
