"""Scores tokens with vLLM for a search in another process: a JSON line in, a JSON line out.

`lcrec.generate.engines` runs `main` with the Python of an environment that has vLLM and needs no
lcrec; the arguments are the path of `standalone.py`, which talks to vLLM, the model's folder and
what it computes in. It says "ready" when the model is loaded; then every line [token ids of each
beam, what may follow it] is answered with log-probabilities, likewise, until there are no more
lines. Whatever vLLM prints goes to stderr.
"""

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

WITHOUT_VLLM = 3  # the exit status


def main() -> None:
    """Answer lines until the other end closes."""
    standalone, model, dtype = sys.argv[2:]
    if importlib.util.find_spec("vllm") is None:
        sys.exit(WITHOUT_VLLM)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # its processes print, too
    step, _ = runpy.run_path(standalone)["load_vllm"](Path(model), dtype)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(step(*json.loads(line))), file=answers, flush=True)
