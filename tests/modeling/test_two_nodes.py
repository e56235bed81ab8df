"""Two nodes of torchrun, of a process each, that share a folder train what one process trains."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trainings import weights

from lcrec.generate.recommender import Recommender

TOP = Path(__file__).parents[2]
PATIENCE = 900  # seconds


def start_node(words, port, log):
    """Start a node as the first machine and the second would, but for their addresses."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc_per_node", "1", "--max_restarts", "3", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "shop"]
    command += ["--local_addr", "127.0.0.1", *map(str, words)]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=TOP, stdout=file, stderr=subprocess.STDOUT, env=environment
        )


@pytest.mark.slow
def test_two_nodes_train_as_one_process(finetune, finetune_words, split, tmp_path):
    options = ("--epochs", 3, "--lora-dropout", 0, "--batch-size", 4)
    output = tmp_path / "model"
    words = ["recipes/finetune.py", *finetune_words(output, *options)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    nodes = [start_node(words, port, log) for log in logs]
    try:
        end = time.monotonic() + PATIENCE
        statuses = [node.wait(timeout=max(1, end - time.monotonic())) for node in nodes]
    finally:
        for node in nodes:  # its worker ends with it
            node.terminate()
    said = "".join(log.read_text() for log in logs)
    assert statuses == [0, 0], said
    assert "in 2 process(es)" in said
    alone = finetune(tmp_path / "alone", *options, "--accumulate", 2)
    found, expected = weights(output), weights(alone)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4), name
    one, other = (
        Recommender.from_pretrained(own).recommend(split.test.histories, 10).items.tolist()
        for own in (output, alone)
    )
    assert one == other
