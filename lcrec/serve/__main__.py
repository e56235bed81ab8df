"""Stage: a checkpoint -> an HTTP service that recommends and searches.

Reads a checkpoint folder and, for titles, fields, filters and users, the data folder; writes the
access log, if one is named. It answers on the loopback address until Ctrl+C or SIGTERM, then
finishes what is queued and ends; SIGHUP or POST /reload loads all anew, and no request is lost. If
the environment variable LCREC_TOKEN is set, clients must send `Authorization: Bearer TOKEN`. The
requests are explained on the page /docs; needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lcrec.core.config import option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.serve.access_log import open_access_log
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.loading import ServiceSources, load_handler

if TYPE_CHECKING:
    from lcrec.serve.requests import RequestHandler

STAGE = "python -m lcrec.serve"
EXAMPLE = "--model runs/shop/model --data data/shop --port 8000"
TOKEN = "LCREC_TOKEN"
BEARER_TOKEN = re.compile(r"[\w\-.~+/]+=*", re.ASCII)  # RFC 6750, section 2.1


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceLimits, ServiceSources):
    """Settings of `python -m lcrec.serve`."""

    host: str = option("the address to listen on; 0.0.0.0 is every network", "127.0.0.1")
    port: int = option("the port to listen on; 0 takes a free one", 8000, minimum=0)
    max_connections: int = option("open connections; the next is refused (503)", 512, minimum=1)
    access_log: Path | None = option(
        "a file for a JSON line per request, without what people wrote; /dev/stdout is the screen",
        None,
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(ServeConfig, argv, description=__doc__ or "", prog=STAGE, example=EXAMPLE)
    try:
        import uvicorn

        from lcrec.serve.app import create_app
        from lcrec.serve.connections import BoundedConnection
        from lcrec.serve.live import Live
    except ImportError as error:
        raise InputError(
            f"the service needs the package {error.name}: pip install 'lcrec[serve]'"
        ) from None

    token = read_token(os.environ.get(TOKEN))
    log_access = None if config.access_log is None else open_access_log(config.access_log)
    # Bound before the model is loaded, so that a port in use is known at once; nothing listens yet.
    with bind(config.host, config.port) as listener:
        print(f"Loading {config.model}")
        load = partial(load_handler, config, config)
        live = Live(load(), load)
        app = create_app(live, token=token, log_access=log_access)
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
        print_welcome(listener, Welcome.of(live.handler), token)

        async def run() -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, live.reload_soon)
            await server.serve(sockets=[listener])

        with (
            contextlib.suppress(KeyboardInterrupt),  # raised again once all is answered
            asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
        ):
            runner.run(run())


@dataclass(frozen=True)
class Welcome:
    """What is said of a service at its start: its items, one of them, whether it searches."""

    num_items: int
    example: int | str
    searches: bool

    @classmethod
    def of(cls, handler: RequestHandler) -> Welcome:
        """Return what is to be said of a handler."""
        recommender = handler.recommender
        example = handler.name(0)
        return cls(len(recommender.index), example, "itemsearch" in recommender.tasks)


def print_welcome(listener: socket.socket, welcome: Welcome, token: str | None) -> None:
    """Print where the service is, what it can do, and what to mind."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"Serving {welcome.num_items:,} items on http://{host}:{port}, explained at /docs")
    if isinstance(welcome.example, str):
        print("  items go by their raw ids")
    if not welcome.searches:
        print("  /search is off: the model was not trained on itemsearch")
    authorization = ""
    if token is not None:
        authorization = f" -H 'Authorization: Bearer '\"${TOKEN}\""
    elif not ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback:
        print(
            f"warning: anyone who reaches {host} can use the service; set {TOKEN} to a secret, or "
            "listen on 127.0.0.1",
            file=sys.stderr,
        )
    print(
        f"Try: curl http://{host}:{port}/recommend{authorization} -H 'Content-Type: "
        f'application/json\' -d \'{{"history": [{json.dumps(welcome.example)}], "k": 5}}\'',
        flush=True,
    )


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


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not yet listening.

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
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise InputError(
            f"--host {host} --port {port}: cannot be listened on ({error}); name another, or "
            "--port 0 for a free one"
        ) from None
    return listener


if __name__ == "__main__":
    run_stage(main)
