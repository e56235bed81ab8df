"""The benches at toy size: every figure is there, and what they compute has known answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.index.assignment import assign_unique

SCRIPTS = Path(__file__).parents[2] / "scripts"


def figures_of(out):
    return json.loads([line for line in out.splitlines() if line.startswith("{")][-1])


@pytest.mark.slow
def test_comparing_on_a_small_shop(shop, run_command):
    out = run_command("scripts/bench_baselines.py", "--data", shop, "--epochs", 1)
    figures = figures_of(out)
    assert (figures["users"], figures["items"]) == (60, 48)
    for name in ("evaluate_seconds", "lightgcn_epoch_seconds", "sasrec_epoch_seconds"):
        assert 0 < figures[name] < 60
    assert figures["tiger_users_per_second"] > 0
    assert figures["tiger_vs_generate"] > 0
    assert figures["peak_mb"] >= max(figures["lightgcn_peak_mb"], figures["sasrec_peak_mb"]) > 0


@pytest.mark.slow
def test_a_soak_of_the_service(shop, checkpoint, run_command):
    words = ["--model", checkpoint, "--data", shop, "--soak", 0.1]
    figures = figures_of(run_command("scripts/bench_serve.py", *words))
    assert figures["lost"] == 0
    assert figures["sent"] == sum(figures["answers"].values()) >= 200
    assert {"200", "400", "404", "413", "422", "501", "none wanted"} == set(figures["answers"])
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["warm_mb"] > 50


@pytest.mark.slow
def test_the_ways_of_fine_tuning_learn_alike(run_command):
    size = ["--vocabulary", 8192, "--steps", 6, "--rounds", 1, "--threads", 1]
    size += ["--layers", 1, "--samples", 24]
    out = run_command("scripts/bench_finetune.py", *size, CUDA_VISIBLE_DEVICES="")
    result = figures_of(out)
    assert result.keys() == {
        "tokens_ratio", "cpu_tokens_ratio", "memory_ratio", "adapter_ratio", "loss_difference",
        "same_rows_difference", "prefix_ratio", "packing_ratio", "plain_ratio",
        "prefix_loss_difference", "bf16_ratio",
    }  # fmt: skip
    # An eighth of the rows, and in one matrix of two; beside them the same adapters.
    assert 1 / 16 < result["adapter_ratio"] < 1 / 10
    assert result["tokens_ratio"] > 0
    assert 0 < result["memory_ratio"] < 1
    assert 0 < result["loss_difference"] < 0.01
    assert result["same_rows_difference"] < 1e-4
    assert result["prefix_loss_difference"] < 1e-4
    assert min(result[f"{way}_ratio"] for way in ("prefix", "packing", "plain", "bf16")) > 0


@pytest.mark.slow
def test_reinforcing_with_a_shared_prompt_costs_less(run_command):
    """The script itself makes sure that both ways answer alike and give the same probabilities."""
    out = run_command("scripts/bench_reinforce.py", "--rounds", 1, "--prompts", 1)
    figures = figures_of(out)
    assert figures["rollout_ratio_processor"] > 3
    assert figures["update_ratio_processor"] > 3
    assert 0 < figures["memory_ratio"] < 0.5
    assert figures["step_ratio"] > 1


@pytest.mark.slow
def test_a_rehearsal_without_a_gpu_walks_the_whole_path(tmp_path):
    command = ["bash", "scripts/gpu.sh", tmp_path / "out", "--rehearse"]
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(command, cwd=SCRIPTS.parent, env=environment, check=True, capture_output=True)
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert len(files) <= 9
    ended = [line for line in files["summary.txt"].splitlines() if ": status " in line]
    stages = [
        f"{name}: {stage}"
        for name in ("office-seqrec", "office-all", "beauty")
        for stage in ("fine-tune", "rank", "evaluate")
    ]
    names = {line.removeprefix("== ").split(": status")[0] for line in ended}
    stages += ["index of Beauty: embed", "index of Beauty: quantize"]
    assert names == {"tests", "shape tiny", "rows", "decoding", "tiger", "p5cid", *stages}
    assert all(": status 0, " in line for line in ended), ended
    shapes = figures_of(files["shapes.txt"])
    assert shapes.keys() == {"tiny full", "tiny full, padded", "tiny LoRA", "tiny QLoRA"}
    assert all(row["tokens_per_second"] > 0 and row["mfu"] > 0 for row in shapes.values())
    assert "HR@10" in files["office.txt"]
    assert figures_of(files["decoding.txt"])["gpu_tiny_20_users_per_second"] > 0


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_a_bare_machine_is_told_what_it_lacks(tmp_path, missing):
    """Nothing but the part that needs it is left out."""
    script = (SCRIPTS / "gpu.sh").read_text()
    start, end = script.index("has() {"), script.index("\n# part NAME")
    checks = script[
        script.index("for module in transformers") : script.index("train office-seqrec")
    ]
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *{missing}|*bitsandbytes) exit 1;; esac\n')
    python.chmod(0o755)
    names = f"python={python} work={tmp_path} out={tmp_path} tests=(here)"
    part = 'part() { say "ran $1"; }'
    lines = f"{names}\n{script[start:end]}\n{part}\n{checks}"
    done = subprocess.run(["bash", "-euc", lines], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "== tests: left out, pytest or hypothesis is not installed",
        "== QLoRA: left out, bitsandbytes is not installed",
    ]


@pytest.mark.slow
def test_joined_samples_are_those_that_are_tokenised_one_by_one(run_command):
    figures = figures_of(run_command("scripts/bench_rows.py", "--samples", 2000))
    assert figures["samples"] >= 2000
    assert figures["ratio"] > 1


@pytest.mark.slow
def test_uniform_codes_of_an_index(run_command):
    figures = figures_of(run_command("scripts/bench_quantize.py", "--parts", "sinkhorn"))
    assert figures["sinkhorn_no_nan"] is True
    assert figures["sinkhorn_column_error"] < 1e-3
    assert figures["sinkhorn_row_error"] < 1e-3
    assert figures["sinkhorn_load"][0] >= 0.5
    assert figures["sinkhorn_load"][1] <= 2


def test_the_measures_of_an_index_by_hand(load_script):
    bench = load_script("scripts/bench_quantize.py")
    points = bench.clusters(500, 32, seed=0)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(points, bench.clusters(500, 32, seed=0))
    assert (points != bench.clusters(500, 32, seed=1)).any()
    books = np.array([[[0.0], [100.0]], [[0.0], [1.0]]])
    latents = np.array([[0.0], [0.1], [100.9], [99.0]])
    # Two at 0 + 0, of which one takes the second nearest; the others keep their nearest.
    rank, size = bench.distance_ranks(latents, books, assign_unique(latents, books))
    assert rank.tolist() == [1, 2, 1, 1]
    assert size.tolist() == [2, 2, 1, 1]
    latents = np.zeros((3, 1))
    rank, _ = bench.distance_ranks(latents, books, assign_unique(latents, books))
    assert sorted(rank.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("baselines", ["--parts", "evalute"], r"--parts .'evalute'.: there are evaluate, lightgcn"),
        ("finetune", ["--shapes", "70b"], r"--shapes 70b: expected smollm2 or"),
        ("quantize", ["--parts", "all"], r"--parts \['all'\]: there are kmeans, parity"),
        ("quantize", ["--embeddings", "."], r"there is no embeddings.npy in it"),
    ],
)
def test_what_a_bench_does_not_know(load_script, monkeypatch, script, words, message):
    monkeypatch.syspath_prepend(SCRIPTS)  # for what it shares with another script
    with pytest.raises(InputError, match=message):
        load_script(f"scripts/bench_{script}.py").main(words)
