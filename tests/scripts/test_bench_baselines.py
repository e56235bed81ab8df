"""The bench of comparing: it runs on a small shop, and its last line has every figure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lcrec.core.errors import InputError

TOP = Path(__file__).parents[2]


def run(*words):
    command = [sys.executable, str(TOP / "scripts" / "bench_baselines.py"), *map(str, words)]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_every_figure_on_a_small_shop(shop):
    code, out, error = run("--data", shop, "--epochs", 1)
    assert code == 0, error
    figures = json.loads(out.splitlines()[-1])
    assert (figures["users"], figures["items"]) == (60, 48)
    for name in ("evaluate_seconds", "lightgcn_epoch_seconds", "sasrec_epoch_seconds"):
        assert 0 < figures[name] < 60
    assert figures["tiger_users_per_second"] > 0
    assert figures["tiger_vs_generate"] > 0
    assert figures["peak_mb"] >= max(figures["lightgcn_peak_mb"], figures["sasrec_peak_mb"]) > 0


def test_an_unknown_part(load_script):
    with pytest.raises(InputError, match=r"--parts .'evalute'.: there are evaluate, lightgcn, sas"):
        load_script("scripts/bench_baselines.py").main(["--parts", "evalute"])
