"""Two nodes of torchrun with a folder in common give what one gives, also when one is killed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from trainings import weights

from lcrec.generate import __main__ as generate
from lcrec.generate.recommender import Recommender

TOP = Path(__file__).parents[2]
PATIENCE = 900  # seconds


class Node:
    """A node of torchrun; `kill` ends it as a power cut would."""

    def __init__(self, words, port, log):
        # As the first machine and the second would be told, but for its address.
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc_per_node", "1", "--max_restarts", "3", "--rdzv_backend", "c10d"]
        command += ["--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "shop"]
        command += ["--local_addr", "127.0.0.1", *map(str, words)]
        self.log = log
        # Else a node that comes back waits in vain for the address of the one that stayed.
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=TOP, stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def kill(self):
        agent = psutil.Process(self.process.pid)
        for process in [agent, *agent.children(recursive=True)]:
            process.kill()
        self.process.wait()


@pytest.fixture
def on_two_nodes(tmp_path):
    """Run words on two nodes; the second is killed once a path is there, and comes back."""
    nodes = []

    def run(words, killed_at):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start = time.monotonic()

        def wait(condition):
            while not condition():
                assert time.monotonic() < start + PATIENCE, [node.log.read_text() for node in nodes]
                assert all(node.process.poll() in (None, 0) for node in nodes)
                time.sleep(0.05)

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        nodes.append(Node(words, port, tmp_path / "first.log"))
        wait(listens)  # the first one is where they meet
        nodes.append(Node(words, port, tmp_path / "second.log"))
        if killed_at is not None:
            folder, pattern = killed_at
            wait(lambda: any(folder.glob(pattern)))
            nodes[1].kill()
            nodes[1] = Node(words, port, tmp_path / "again.log")
        wait(lambda: all(node.process.poll() == 0 for node in nodes))
        return "".join(node.log.read_text() for node in nodes)

    yield run
    for node in nodes:
        if node.process.poll() is None:
            node.kill()


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["whole", "one killed"])
def test_training(on_two_nodes, finetune, finetune_words, split, tmp_path, is_killed):
    options = ("--epochs", 3, "--lora-dropout", 0, "--batch-size", 4)
    output = tmp_path / "model"
    killed_at = (output / ".training", "checkpoint-*/trainer_state.json") if is_killed else None
    words = ["recipes/finetune.py", *finetune_words(output, *options)]
    assert "in 2 process(es)" in on_two_nodes(words, killed_at)
    alone = finetune(tmp_path / "alone", *options, "--accumulate", 2)
    found, expected = weights(output), weights(alone)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4), name
    histories = split.test.histories
    rankings = (
        Recommender.from_pretrained(own).recommend(histories, 10) for own in (output, alone)
    )
    one, other = (ranking.items.tolist() for ranking in rankings)
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["whole", "one killed"])
def test_rankings_for_all_users(on_two_nodes, checkpoint, shop, tmp_path, is_killed):
    words = ["--model", checkpoint, "--data", shop, "--all-users", "--shard-users", "5"]
    output = tmp_path / "two"
    killed_at = (tmp_path, "*/part-*.jsonl") if is_killed else None  # beside the output
    on_two_nodes(["-m", "lcrec.generate", *words, "--output", output], killed_at)
    generate.main([*map(str, words), "--output", str(tmp_path / "one")])
    names = sorted(path.name for path in (tmp_path / "one").glob("part-*"))
    assert names == sorted(path.name for path in output.glob("part-*"))
    assert len(names) == 12
    for name in names:
        assert (output / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
