"""The processes that share the work of a stage, and the cores that they may use.

torchrun and `accelerate launch` start them; a stage that was started by itself is one process.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from lcrec.core.device import prepare_cuda

if TYPE_CHECKING:
    from accelerate.state import PartialState


def usable_cores() -> int:
    """Return how many cores this process may use: of the machine's, those it is allowed."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def processes(patience: timedelta | None = None) -> Iterator[PartialState]:
    """Join the process group, and shut it down when all ranks have done the work.

    The group's threads have ended by then. A thread of Gloo that frees a tensor while the
    interpreter exits aborts its process, and with it the whole launch, after the work was done
    (https://github.com/pytorch/pytorch/issues/190489).

    After an error it waits for no rank: the others may be in the middle of the work, and the
    launcher ends them.

    Args:
        patience: how long a rank waits for the others at any one point; None for torch's own.

    Yields:
        Which of the processes this is, of how many, and its device.
    """
    # Here, so that a stage can read its options without torch.
    import torch

    # Its functions have, as their default, the group of the moment when they are imported: none,
    # now. Imported later, they would keep the group, and with it its threads, until the
    # interpreter ends.
    import torch.distributed.nn
    from accelerate.state import PartialState

    prepare_cuda()
    # Without `cpu`, Accelerate starts every process as if it were alone where there is no GPU.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=patience)
    yield state
    if torch.distributed.is_initialized():
        state.wait_for_everyone()
        gc.collect()  # reference cycles often keep models and trainers, and so the group, alive
        state.destroy_process_group()
