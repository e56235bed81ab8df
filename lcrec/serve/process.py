"""One process of the service: it loads a model, and answers on a socket until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from logging.handlers import WatchedFileHandler
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcrec.core.config import option
from lcrec.core.console import quiet_libraries
from lcrec.core.device import pick_device
from lcrec.core.errors import InputError
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.loading import ServiceSources, load_handler
from lcrec.serve.workers import Link

if TYPE_CHECKING:
    from lcrec.serve.requests import RequestHandler

TOKEN = "LCREC_TOKEN"  # the environment variable
BEARER_TOKEN = re.compile(r"[\w\-.~+/]+=*", re.ASCII)  # RFC 6750, section 2.1


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceLimits, ServiceSources):
    """Settings of `python -m lcrec.serve`."""

    host: str = option("the address to listen on; 0.0.0.0 is every network", "127.0.0.1")
    port: int = option("the port to listen on; 0 takes a free one", 8000, minimum=0)
    max_connections: int = option("open connections; the next is refused (503)", 512, minimum=1)
    workers: int = option(
        "processes that share the port, each with a model of its own, for CPUs", 1, minimum=1
    )
    access_log: Path | None = option(
        "a file for a JSON line per request, without what people wrote; /dev/stdout is the screen",
        None,
    )


@dataclass(frozen=True)
class Welcome:
    """What is said of a service at its start: its items, one of them, whether it searches, and how
    it ranks."""

    num_items: int
    example: int | str
    searches: bool
    told: Sequence[str] = ()

    @classmethod
    def of(cls, handler: RequestHandler) -> Welcome:
        """Return what is to be said of a handler."""
        recommender = handler.recommender
        example = handler.name(0)
        searches = "itemsearch" in recommender.tasks
        return cls(len(recommender.index), example, searches, handler.told)


def _refuse_reload() -> RequestHandler:
    raise InputError(
        "an engine keeps its device to itself, so there is no room for a second model; start the "
        "service again, one replica after the other"
    )


def serve(
    config: ServeConfig,
    token: str | None,
    listener: socket.socket,
    welcome: Callable[[Welcome], None],
    link: Link | None = None,
) -> None:
    """Load the model and answer on a socket until a signal ends it.

    Args:
        config: the settings.
        token: what clients must send.
        listener: bound.
        welcome: told what is served, once it is.
        link: the line to the supervisor, in one of several workers.
    """
    import uvicorn

    from lcrec.serve.app import create_app
    from lcrec.serve.connections import BoundedConnection
    from lcrec.serve.live import Live

    if config.engine != "torch":  # it is ended at exit, which SIGTERM would go without
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    load = partial(load_handler, config, config)
    live = Live(load(), load if config.engine == "torch" else _refuse_reload)
    app = create_app(
        live,
        token=token,
        reload=None if link is None else link.reload_all,
        log_access=None if config.access_log is None else open_access_log(config.access_log),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=partial(  # type: ignore[arg-type]  # called as the class would be
                BoundedConnection, seconds=config.timeout, most=config.max_connections
            ),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            # Every request ends by itself within its timeout.
            timeout_graceful_shutdown=int(config.timeout) + 5,
        )
    )

    def stop() -> None:
        server.should_exit = True

    async def run() -> None:
        if link is None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, live.reload_soon)
        else:
            link.attach(live, stop)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        if server.started:
            welcome(Welcome.of(live.handler))
        await serving

    with (
        contextlib.suppress(KeyboardInterrupt),  # raised again once all is answered
        asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
    ):
        runner.run(run())


def work(config: ServeConfig, token: str | None, port: int, connection: Connection) -> None:
    """Be one of several workers."""
    os.setpgid(0, 0)  # Ctrl+C is for the supervisor, which tells the workers
    quiet_libraries()
    link = Link(connection)
    try:
        if pick_device().type != "cpu":
            raise InputError(
                f"--workers {config.workers}: several are for CPUs; a GPU is used best by one "
                "worker with a larger --max-batch"
            )
        with bind(config.host, port, shared=True) as listener:
            serve(config, token, listener, lambda own: link.send(("ready", own)), link)
    except InputError as error:
        link.send(("failed", str(error)))


def open_access_log(path: Path) -> Callable[[dict[str, Any]], None]:
    """Return what appends a record to the log, in one write, so that several processes share it.

    The log has a JSON line per request, without anything that people wrote: routes and no paths,
    counts and no ids, and no addresses. A file that is moved away, as `logrotate` does, is opened
    anew.

    Raises:
        InputError: the file cannot be written to.
    """
    try:
        handler = WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--access-log {path}: cannot be written to ({error.strerror}); name a file in a "
            "folder that exists"
        ) from None
    logger = logging.Logger("lcrec.access")
    logger.addHandler(handler)
    return lambda record: logger.info(json.dumps(record))


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to an address, not yet listening.

    Args:
        host, port: the address; port 0 takes a free one.
        shared: let other sockets that are shared too be bound to the same address.

    Raises:
        InputError: there is no such address here, or the port is taken.
    """
    if port > 65535:
        raise InputError(f"--port {port}: the highest port is 65535")
    listener = None
    try:
        family, _, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named, asyncio knows it for TCP and sends answers at once: without, a
        # request on a kept connection waits 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise InputError(
            f"--host {host} --port {port}: cannot be listened on ({error}); name another, or "
            "--port 0 for a free one"
        ) from None
    return listener


def read_token(token: str | None) -> str | None:
    """Return the token that clients must send, None if there is none.

    Raises:
        InputError: it is empty, or no client could send it.
    """
    if token is not None and not BEARER_TOKEN.fullmatch(token):
        raise InputError(
            f"{TOKEN}: a token is letters, digits and any of - . _ ~ + /, found "
            f"{len(token)} characters with others among them or none; unset it for a service "
            "without a token"
        )
    return token
