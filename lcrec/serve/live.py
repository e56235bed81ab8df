"""The handler that answers now, and its replacement while requests are in flight.

A request is read, ranked and answered by one handler from start to end. `Live.reload` loads the
next one beside it, in a thread, and then new requests get that one; the old is freed with the last
of its requests. Whatever cannot be loaded changes nothing.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable

from lcrec.core.errors import InputError
from lcrec.serve.loading import UNDER_WAY
from lcrec.serve.requests import EncodedRequest, Ranked, RequestHandler

_log = logging.getLogger(__name__)


class Live:
    """Holds the handler of new requests.

    Args:
        handler: what answers now.
        load: makes the next handler of what lies on the disk then.
    """

    def __init__(self, handler: RequestHandler, load: Callable[[], RequestHandler]) -> None:
        self.handler = handler
        self._load = load
        self._is_loading = False
        self._reload: asyncio.Task[None] | None = None

    def reload_soon(self) -> None:
        """Begin to reload, where nobody waits for the outcome; the log has it."""

        async def reload() -> None:
            with contextlib.suppress(InputError):
                await self.reload()

        self._reload = asyncio.create_task(reload())

    async def reload(self) -> None:
        """Replace the handler.

        Raises:
            InputError: what lies on the disk cannot be served, or a reload is under way; the old
                handler goes on.
        """
        if self._is_loading:
            raise InputError(UNDER_WAY)
        self._is_loading = True
        try:
            handler = await asyncio.to_thread(self._load)
            if handler.ids.is_raw != self.handler.ids.is_raw:
                kind = "raw ids" if handler.ids.is_raw else "numbers"
                raise InputError(f"items would go by {kind} from now on; start the service again")
        except InputError as error:
            _log.error("not reloaded, what was loaded before goes on: %s", error)
            raise
        except Exception:
            _log.exception("not reloaded, what was loaded before goes on")
            raise InputError(
                "something in the reload failed; the service's log says what"
            ) from None
        finally:
            self._is_loading = False
        self.handler = handler
        print("\n  ".join([f"Reloaded: model {handler.versions.model}", *handler.told]), flush=True)
        # A model is full of cycles; two of them for longer than needed are too many.
        gc.collect()


def rank_together(batch: list[EncodedRequest]) -> list[Ranked]:
    """Rank the requests of a batch, which around a reload belong to two handlers."""
    ranked: dict[int, Ranked] = {}
    for handler in {own.handler for own in batch}:
        rows = [row for row, own in enumerate(batch) if own.handler is handler]
        ranked.update(zip(rows, handler.rank([batch[row] for row in rows]), strict=True))
    return [ranked[row] for row in range(len(batch))]
