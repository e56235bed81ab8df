"""Stage: a checkpoint -> an HTTP service that recommends and searches.

Reads a checkpoint folder and, for titles, fields and filters, the data folder; writes nothing. It
answers on the loopback address until Ctrl+C or SIGTERM, then finishes what is queued and ends. If
the environment variable LCREC_TOKEN is set, clients must send `Authorization: Bearer TOKEN`. The
requests are explained on the page /docs; needs the extra `serve`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lcrec.core.artifacts import find_data
from lcrec.core.config import option, parse_config
from lcrec.core.device import Precision, pick_precision
from lcrec.core.errors import InputError, run_stage
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.id_map import IdMap, Ids, load_names
from lcrec.data.new_items import require_same_catalogue
from lcrec.serve.batching import ServiceLimits

if TYPE_CHECKING:
    from lcrec.generate.recommender import Recommender

STAGE = "python -m lcrec.serve"
EXAMPLE = "--model runs/shop/model --data data/shop --port 8000"
TOKEN = "LCREC_TOKEN"
BEARER_TOKEN = re.compile(r"[\w\-.~+/]+=*", re.ASCII)  # RFC 6750, section 2.1


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceLimits):
    """Settings of `python -m lcrec.serve`."""

    model: Path = option("the checkpoint folder")
    data: Path | None = option(
        "the data folder, for titles, fields and filters, and for the histories of its users", None
    )
    base: str | None = option("where an adapter's base model lies now, if it moved", None)
    index: Path | None = option("an index that adds items to the checkpoint's own", None)
    ids: Ids | None = option(
        "what clients call the items (default: by the raw ids that the checkpoint carries, if any)",
        None,
    )
    host: str = option("the address to listen on; 0.0.0.0 is every network", "127.0.0.1")
    port: int = option("the port to listen on; 0 takes a free one", 8000, minimum=0)
    max_connections: int = option("open connections; the next is refused (503)", 512, minimum=1)
    precision: Precision | None = option(
        "arithmetic of the model (default: bf16 on a GPU that has it, else fp32)", None
    )
    batch_tokens: int = option("prompt tokens per batch, padding included", 4096, minimum=1)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(ServeConfig, argv, description=__doc__ or "", prog=STAGE, example=EXAMPLE)
    try:
        import uvicorn

        from lcrec.serve.app import create_app
        from lcrec.serve.connections import BoundedConnection
        from lcrec.serve.requests import RequestHandler, UserData
    except ImportError as error:
        raise InputError(
            f"the service needs the package {error.name}: pip install 'lcrec[serve]'"
        ) from None

    token = read_token(os.environ.get(TOKEN))
    # Bound before the model is loaded, so that a port in use is known at once; nothing listens yet.
    with bind(config.host, config.port) as listener:
        items = user_data = None
        if config.data is not None:
            items = load_items(config.data)
            require_same_catalogue(config.data, config.model, config.index)
            interactions = load_interactions(config.data, len(items))
            names = load_names(config.data, interactions.users, len(items), config.ids)
            user_data = UserData(names.users, interactions)
        from lcrec.generate.recommender import Recommender
        from lcrec.modeling.base import DTYPES

        print(f"Loading {config.model}")
        recommender = Recommender.from_pretrained(
            config.model,
            dtype=DTYPES[pick_precision(config.precision)],
            base=config.base,
            index=config.index,
            max_batch_tokens=config.batch_tokens,
        )
        ids = recommender.index.ids
        if config.ids == "raw" and not ids.is_raw:
            raise InputError(
                f"--ids raw: {config.index or config.model} carries no raw ids; it was made before "
                "there were any, or from a data folder without <Name>.item2id"
            )
        has_map = config.data is not None and find_data(config.data).item_ids.exists()
        if config.ids is None and has_map and not ids.is_raw:
            print("note: items go by numbers, since the checkpoint carries no raw ids; train anew")
        if ids.is_raw and has_map and list(names.items.names) != list(ids.names):
            raise InputError(
                f"--data {config.data}: its items have other raw ids than those of "
                f"{config.index or config.model}; name the data folder that it was trained on, or "
                "go by --ids numbers"
            )
        if config.ids == "numbers":
            ids = replace(recommender.index, raw_ids=None).ids
        # A model that cannot recommend is refused here, and the first client does not wait longer.
        recommender.recommend([[0]], 1)
        handler = RequestHandler(recommender, items, config, ids, user_data)
        app = create_app(handler, token=token)
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
        print_welcome(listener, recommender, ids, token)
        with contextlib.suppress(KeyboardInterrupt):  # raised again once all is answered
            server.run(sockets=[listener])


def print_welcome(
    listener: socket.socket, recommender: Recommender, ids: IdMap, token: str | None
) -> None:
    """Print where the service is, what it can do, and what to mind."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"Serving {len(recommender.index):,} items on http://{host}:{port}, explained at /docs")
    if ids.is_raw:
        print("  items go by their raw ids")
    if "itemsearch" not in recommender.tasks:
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
    example = json.dumps(ids.names[0]) if ids.is_raw else 0
    print(
        f"Try: curl http://{host}:{port}/recommend{authorization} -H 'Content-Type: "
        f'application/json\' -d \'{{"history": [{example}], "k": 5}}\'',
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
