"""The device that a stage computes on, and the kernels that it may use there."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from lcrec.core.errors import InputError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
# Below so many parameters products of matrices are not what takes the time.
LARGE_MODEL = 10_000_000


def pick_device(name: str | None = None) -> torch.device:
    """Return the device to compute on, once CUDA is prepared (`prepare_cuda`).

    Args:
        name: `cpu`, `cuda`, `cuda:N` or `mps`; None for a GPU where there is one.

    Raises:
        InputError: there is no such device.
    """
    import torch

    prepare_cuda()
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {name}: cannot compute here ({reason}); name cpu, cuda, cuda:N or mps, or none"
        ) from None
    return torch.device(name)


def pick_precision(name: Precision | None = None) -> Precision:
    """Return the arithmetic to rank with: what is named, else bf16 where a GPU has it."""
    import torch

    if name is not None:
        return name
    # A card from before Ampere computes in bf16 by way of float32, more slowly than in float32.
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def precision_note(precision: Precision, parameters: int) -> str | None:
    """Return that other arithmetic would take less time here, by a trial of milliseconds.

    Args:
        precision: the arithmetic chosen.
        parameters: of the model; of a small one nothing is said.

    Returns:
        A line for the screen; None where the choice is right, or on another device than a CPU or
        CUDA GPU.
    """
    import torch

    device = pick_device()
    if parameters < LARGE_MODEL or device.type not in ("cpu", "cuda"):
        return None
    low = torch.float16 if precision == "fp16" else torch.bfloat16
    gain = _product_seconds(device, torch.float32) / _product_seconds(device, low)
    name = "CPU" if device.type == "cpu" else "GPU"
    if precision == "fp32" and gain >= 1.5:
        return (
            f"This {name} multiplies matrices {gain:.1f} times as fast in bf16 as in float32: "
            "--precision bf16 saves time"
        )
    if precision != "fp32" and gain < 1:
        return (
            f"This {name} multiplies matrices {1 / gain:.1f} times as fast in float32 as in "
            f"{precision}: --precision fp32 saves time"
        )
    return None


@functools.cache
def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return what a product of two square matrices takes, the fastest of five."""
    import torch

    on_cpu = device.type == "cpu"
    size = 512 if on_cpu else 4096
    square = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(5):
        began = perf_counter()
        torch.mm(square, square)
        if not on_cpu:
            torch.accelerator.synchronize()
        seconds.append(perf_counter() - began)
    return min(seconds)


def prepare_cuda() -> None:
    """Leave out the attention kernel that is wrong under a mask; multiply float32 in TF32.

    Memory is taken in segments that can grow, so that batches of many sizes leave fewer gaps.

    cuDNN's attention, which torch prefers on Hopper cards, has gradients that are NaN where a mask
    is passed, the length is 64 modulo 128 and a row's attention weights sum to less than e^-88.7
    before they are normalised: torch 2.11 at least to 2.13 (pytorch/pytorch#196678). With a single
    query cuDNN 9.26 fails too (NVIDIA/cudnn-frontend#1072). Every attention of this kit passes a
    mask, and the flash and memory-efficient kernels are right.
    """
    import torch

    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Not by `fp32_precision`: torch's older settings, which libraries read, then raise errors.
    torch.backends.cuda.matmul.allow_tf32 = True


@contextmanager
def whole_float32() -> Iterator[None]:
    """Multiply float32 as such for a while: for trials of whether two ways compute the same.

    Which products TF32 rounds depends on their shapes, so with it a difference tells nothing of the
    ways.
    """
    import torch

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def compute_plainly() -> None:
    """Compute attention as its definition says, without fused or compiled kernels, from now on."""
    import torch

    prepare_cuda()
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.compiler.set_stance("force_eager")
