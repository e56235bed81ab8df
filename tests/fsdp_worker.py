"""Runs the recipe under FSDP2 on processors, which Accelerate leaves to accelerators.

Everything else is as `accelerate launch` with recipes/accelerate/fsdp2.yaml has it.
"""

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
sys.argv = ["recipes/finetune.py", *sys.argv[1:]]
runpy.run_path("recipes/finetune.py", run_name="__main__")
