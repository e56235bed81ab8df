"""Stage: a checkpoint and its data folder -> a page in the browser to look at them.

Five tabs: Try (a user or a history, the ranking and why), Ask (a request in words), Index (the tree
and an item's neighbours), Compare (two rankings user by user) and Prompts (edit a template, see
what the model reads). It listens on the loopback address until Ctrl+C and loads nothing from
elsewhere. If the environment variable LCREC_TOKEN is set, the browser asks for it as a password.
Writes nothing but the templates that are saved into --prompts. Needs the extra `studio`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lcrec.core.config import option, parse_config
from lcrec.core.device import Precision, pick_precision, precision_note
from lcrec.core.errors import InputError, run_stage
from lcrec.serve.process import TOKEN, bind, read_token

STAGE = "python -m lcrec.studio"
EXAMPLE = "--model runs/shop/model --data data/shop --embeddings runs/shop/embeddings"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """Settings of `python -m lcrec.studio`."""

    model: Path = option("the checkpoint folder")
    data: Path = option("its data folder")
    index: Path | None = option("an index that adds items to the checkpoint's own", None)
    embeddings: Path | None = option(
        "the folder of the items' embeddings, for neighbours by embedding", None
    )
    compare: list[Path] = option(
        "predictions files of the test split, or checkpoints, to compare with each other and with "
        "--model (default: none)",
        [],
    )
    prompts: Path | None = option("the folder that edited templates are saved into", None)
    base: str | None = option("where an adapter's base model lies now, if it moved", None)
    host: str = option("the address to listen on; 0.0.0.0 is every network", "127.0.0.1")
    port: int = option("the port to listen on; 0 takes a free one", 7860, minimum=0)
    precision: Precision | None = option(
        "arithmetic of the model (default: bf16 on a GPU that has it, else fp32)", None
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(StudioConfig, argv, prog=STAGE, example=EXAMPLE)
    try:
        import uvicorn

        from lcrec.studio.page import create_app
    except ImportError as error:
        raise InputError(
            f"the studio needs the package {error.name}: pip install 'lcrec[studio]'"
        ) from None
    from lcrec.modeling.base import DTYPES
    from lcrec.studio.workbench import Workbench

    token = read_token(os.environ.get(TOKEN))
    # Bound before the model is loaded, so that a port in use is known at once.
    with bind(config.host, config.port) as listener:
        print(f"Loading {config.model}")
        precision = pick_precision(config.precision)
        bench = Workbench.load(
            config.model,
            config.data,
            index=config.index,
            embeddings=config.embeddings,
            compared=config.compare,
            prompts_folder=config.prompts,
            base=config.base,
            dtype=DTYPES[precision],
        )
        if note := precision_note(precision, bench.recommender.model.num_parameters()):
            print(note)
        host, port = listener.getsockname()[:2]
        is_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        hosts = {*LOOPBACK, config.host} if is_local and token is None else None
        app = create_app(bench, token=token, hosts=hosts)
        shown = f"[{host}]" if ":" in host else host
        if not is_local and token is None:
            print(
                f"warning: anyone who reaches {shown} can use the page; set {TOKEN} to a secret, "
                "or listen on 127.0.0.1",
                file=sys.stderr,
            )
        asked = "" if token is None else f" (any user name, {TOKEN} as the password)"
        print(f"Open http://{shown}:{port} in a browser{asked}; Ctrl+C ends it.", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False,
                proxy_headers=False, lifespan="on", timeout_graceful_shutdown=5,
            )
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


if __name__ == "__main__":
    run_stage(main)
