"""The state of an RQ-VAE's training between two epochs, in one safetensors file.

Public names: `Progress`, `save_state`, `load_state`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcrec.core.artifacts import atomic_path

HEADER = "lcrec"


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        best: the weights with the best score so far, none before the first check.
        best_score: theirs.
        epoch: how many passes over the items are done.
        stale: how many checks have passed since the last worthwhile gain.
    """

    best: dict[str, Tensor]
    best_score: float = float("-inf")
    epoch: int = 0
    stale: int = 0


def save_state(
    path: Path,
    call: Mapping[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that `load_state` needs to go on from here.

    Args:
        path: the file; what stands there stays whole until the new one is complete.
        call: what decides the result of training, as JSON values.
    """
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.best.items()}
    tensors |= {
        f"optimizer.{weight}.{name}": value
        for weight, values in moments.items()
        for name, value in values.items()
    }
    header = {
        "call": call,
        "best_score": progress.best_score,
        "epoch": progress.epoch,
        "stale": progress.stale,
    }
    # Copies, since a file holds no two tensors that share their memory.
    tensors = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})


def load_state(
    path: Path, call: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Bring model and optimizer to the state in a file, and return how far that is.

    Returns None, with both as they were, for a file that is missing, was left by another call or
    by another version, or is no such state: training can only start anew then.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
        if header["call"] != json.loads(json.dumps(call)):
            return None
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        weight, kind = name.split(".")
        moments.setdefault(int(weight), {})[kind] = value
    model.load_state_dict(part("model."))
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return Progress(part("best."), header["best_score"], header["epoch"], header["stale"])
