"""Works in a group of processes as the stages do, and says what threads the group has left."""

import sys
from pathlib import Path

import torch
from accelerate.utils import broadcast

from lcrec.core.processes import processes


def gloo_threads():
    """Count this process's threads that carry messages, by name."""
    names = (task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))
    return sum("gloo" in name for name in names)


with processes() as state:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    model.circle = [model]  # as a trainer holds what holds the trainer
    model(torch.ones(2, 3)).sum().backward()
    broadcast(torch.ones(3))
    during = gloo_threads()
    del model
sys.stdout.write(f"process {state.process_index}: {during} then {gloo_threads()}\n")
