"""The bench of fine-tuning, at toy size: every figure is there, and the ways learn alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lcrec.core.errors import InputError

TOP = Path(__file__).parents[2]
SCRIPT = TOP / "scripts" / "bench_finetune.py"


def bench(*words):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(
        command, cwd=TOP, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_last_line_holds_the_ratios():
    size = ["--vocabulary", "8192", "--steps", "6", "--rounds", "1", "--threads", "1"]
    run = bench(*size, "--shapes", "7b")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result.keys() == {
        "tokens_ratio", "cpu_tokens_ratio", "memory_ratio", "adapter_ratio", "loss_difference",
        "same_rows_difference",
    }  # fmt: skip
    # An eighth of the rows, and in one matrix of two; beside them the same adapters.
    assert 1 / 16 < result["adapter_ratio"] < 1 / 10
    assert result["tokens_ratio"] > 0
    assert 0 < result["memory_ratio"] < 1
    assert 0 < result["loss_difference"] < 0.01
    assert result["same_rows_difference"] < 1e-4
    assert any(line.startswith("--shapes 7b: skipped") for line in lines)


def test_an_unknown_shape_is_refused(load_script, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # for what it shares with another script
    with pytest.raises(InputError, match=r"--shapes 70b: expected 0\.6b or 7b"):
        load_script("scripts/bench_finetune.py").main(["--shapes", "70b"])
