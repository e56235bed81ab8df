"""Runs the recipe under FSDP2 on processors, which Accelerate leaves to accelerators.

Everything else is as `accelerate launch` with recipes/accelerate/fsdp2.yaml has it. With STOP in
the environment all processes end when the first checkpoint stands; RECIPE is another recipe.
"""

import os
import runpy
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

original = PartialState.__init__


def __init__(self, *args, **kwargs):
    original(self, *args, **kwargs)
    assert self.num_processes == 2
    # A kind that Accelerate shards for; the device stays the processor.
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU


PartialState.__init__ = __init__
if "STOP" in os.environ:
    from lcrec.modeling.trainer import RecommenderTrainer

    save = RecommenderTrainer._save_checkpoint

    def save_and_end(self, *args, **kwargs):
        save(self, *args, **kwargs)
        self.accelerator.wait_for_everyone()
        sys.exit(3)

    RecommenderTrainer._save_checkpoint = save_and_end
recipe = os.environ.get("RECIPE", "recipes/finetune.py")
sys.argv = [recipe, *sys.argv[1:]]
runpy.run_path(recipe, run_name="__main__")
