"""Trains as `fsdp_worker` does, and marks each process's share of what is trained.

With STOP, when the first checkpoint is due, every process fills its share of the trained weights
and of AdamW's moments with its own number; without, the shares that were loaded must hold it.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

from lcrec.modeling.trainer import RecommenderTrainer

save, load = RecommenderTrainer._save_checkpoint, RecommenderTrainer._load_optimizer_and_scheduler


def shares(trainer):
    """Return this process's share of every trained weight and its moments, by name."""
    moments = trainer.optimizer.state
    return {
        f"{name} {kind}": tensor.to_local()
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad
        for kind, tensor in {"weight": weight.detach(), **moments.get(weight, {})}.items()
        if hasattr(tensor, "to_local")
    }


def fill_and_save(self, *args, **kwargs):
    with torch.no_grad():
        for share in shares(self).values():
            share.fill_(self.accelerator.process_index + 1)
    save(self, *args, **kwargs)


def load_and_compare(self, checkpoint):
    load(self, checkpoint)
    if checkpoint is None:
        return
    number = self.accelerator.process_index + 1
    found = shares(self)
    wrong = [name for name, share in found.items() if not bool((share == number).all())]
    kinds = {name.rpartition(" ")[2] for name in found}
    line = (
        f"process {number}: {len(found)} shares of {sorted(kinds)}, {len(wrong)} wrong {wrong[:3]}"
    )
    Path(os.environ["REPORT"], str(number)).write_text(line)
    self.accelerator.wait_for_everyone()
    sys.exit(4)


if "STOP" in os.environ:
    RecommenderTrainer._save_checkpoint = fill_and_save
RecommenderTrainer._load_optimizer_and_scheduler = load_and_compare
runpy.run_path(str(Path(__file__).with_name("fsdp_worker.py")), run_name="__main__")
