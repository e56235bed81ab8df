"""Stage: a checkpoint -> an HTTP service that recommends and searches.

Reads a checkpoint folder and, for titles, fields, filters and users, the data folder; writes the
access log, if one is named. It answers on the loopback address until Ctrl+C or SIGTERM, then
finishes what is queued and ends; SIGHUP or POST /reload loads all anew, and no request is lost. If
the environment variable LCREC_TOKEN is set, clients must send `Authorization: Bearer TOKEN`. The
requests are explained on the page /docs; needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shlex
import sys
import tempfile
from functools import partial

from lcrec.core.config import parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.processes import usable_cores
from lcrec.serve.process import (
    TOKEN,
    ServeConfig,
    Welcome,
    bind,
    open_access_log,
    read_token,
    serve,
    work,
)
from lcrec.serve.workers import METRICS, Supervisor

STAGE = "python -m lcrec.serve"
EXAMPLE = "--model runs/shop/model --data data/shop --port 8000"


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(ServeConfig, argv, description=__doc__ or "", prog=STAGE, example=EXAMPLE)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the service needs the package {error.name}: pip install 'lcrec[serve]'"
        ) from None

    check_engine(config)
    if config.workers > 1 and not sys.platform.startswith("linux"):
        raise InputError(
            f"--workers {config.workers}: only Linux shares a port's connections among processes; "
            "take 1"
        )
    token = read_token(os.environ.get(TOKEN))
    if config.access_log is not None:
        open_access_log(config.access_log)
    # Bound before the model is loaded, so that a port in use is known at once; nothing listens yet.
    with bind(config.host, config.port) as listener:
        port = listener.getsockname()[1]
        print(f"Loading {config.model}", flush=True)
        if config.workers == 1:
            host = listener.getsockname()[0]
            serve(config, token, listener, lambda own: print_welcome(host, port, own, token))
            return
    supervise(config, token, port)


def check_engine(config: ServeConfig) -> None:
    """Refuse what does not go with the engine.

    Raises:
        InputError: it names the flag.
    """
    if config.engine == "torch":
        if config.engine_python is not None:
            raise InputError(f"--engine-python {config.engine_python}: is for --engine vllm")
        return
    if config.workers > 1:
        raise InputError(f"--workers {config.workers}: an engine uses its device alone; take 1")
    if config.base is not None:
        raise InputError(f"--base {config.base}: vLLM is given whole models, which need no base")


def supervise(config: ServeConfig, token: str | None, port: int) -> None:
    """Serve with several workers until a signal ends them all."""
    from prometheus_client.multiprocess import mark_process_dead

    # Each takes its share of the cores: threads of several models on one core slow all down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // config.workers)))
    with (
        bind(config.host, port, shared=True) as holder,  # of the port; it never listens
        tempfile.TemporaryDirectory(prefix="lcrec-metrics-") as metrics,
    ):
        os.environ[METRICS] = metrics
        host = holder.getsockname()[0]
        supervisor = Supervisor(
            partial(work, config, token, port),
            config.workers,
            lambda welcome: print_welcome(host, port, welcome, token, config.workers),
            partial(mark_process_dead, path=metrics),
        )
        asyncio.run(supervisor.run())


def print_welcome(
    host: str, port: int, welcome: Welcome, token: str | None, workers: int = 1
) -> None:
    """Print where the service is, what it can do, and what to mind."""
    host = f"[{host}]" if ":" in host else host
    print(f"Serving {welcome.num_items:,} items on http://{host}:{port}, explained at /docs")
    if workers > 1:
        print(f"  by {workers} workers, each with a model of its own")
    if isinstance(welcome.example, str):
        print("  items go by their raw ids")
    if not welcome.searches:
        print("  /search is off: the model was not trained on itemsearch")
    for line in welcome.told:
        print(f"  {line}")
    authorization = ""
    if token is not None:
        authorization = f" -H 'Authorization: Bearer '\"${TOKEN}\""
    elif not ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback:
        print(
            f"warning: anyone who reaches {host} can use the service; set {TOKEN} to a secret, or "
            "listen on 127.0.0.1",
            file=sys.stderr,
        )
    body = shlex.quote(json.dumps({"history": [welcome.example], "k": 5}))
    print(
        f"Try: curl http://{host}:{port}/recommend{authorization} "
        f"-H 'Content-Type: application/json' -d {body}",
        flush=True,
    )


if __name__ == "__main__":
    run_stage(main)
