"""How long each stage takes to answer `--help`, and to refuse a wrong option.

    python scripts/bench_start.py

Starts a new interpreter per stage and keeps the fastest of several starts, since the first one
reads the modules from disk. The last line is a JSON object: seconds per stage, what importing torch
takes here, and the slowest help as a share of that.
"""

import json
import subprocess
import sys
import time

from lcrec.__main__ import STAGES

STARTS = 3


def seconds(words: list[str], status: int) -> float:
    """Return the fastest of several runs of this interpreter, in seconds.

    Args:
        words: the interpreter's arguments.
        status: the exit status that every run must have.
    """
    taken = []
    for _ in range(STARTS):
        started = time.perf_counter()
        ended = subprocess.run([sys.executable, *words], capture_output=True, check=False)
        taken.append(time.perf_counter() - started)
        if ended.returncode != status:
            raise SystemExit(f"{' '.join(words)} ended with {ended.returncode}, not {status}")
    return round(min(taken), 3)


def main() -> None:
    """Measure and print."""
    names = [name for name, _, _ in STAGES]
    overview = seconds(["-m", "lcrec", "--help"], 0)
    print(f"{'overview':<14}{overview:>7.2f} s")
    helps, refusals = {}, {}
    for name in names:
        helps[name] = seconds(["-m", f"lcrec.{name}", "--help"], 0)
        refusals[name] = seconds(["-m", "lcrec", name, "--no-such-option"], 2)
        print(f"{name:<14}{helps[name]:>7.2f} s{refusals[name]:>7.2f} s", flush=True)
    torch = seconds(["-c", "import torch"], 0)
    result = {
        "overview_seconds": overview,
        "help_seconds": helps,
        "refusal_seconds": refusals,
        "import_torch_seconds": torch,
        "slowest_help_per_import_torch": round(max(helps.values()) / torch, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
