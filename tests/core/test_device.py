"""Which device a stage computes on, and which kernels it leaves out."""

from types import SimpleNamespace

import pytest
import torch

from lcrec.core import device
from lcrec.core.device import compute_plainly, pick_device, pick_precision, precision_note
from lcrec.core.errors import InputError


@pytest.fixture(autouse=True)
def kernels():
    yield
    flags = torch.backends.cuda
    for enable in (flags.enable_cudnn_sdp, flags.enable_flash_sdp, flags.enable_mem_efficient_sdp):
        enable(True)
    torch.compiler.set_stance("default")


def test_the_device_named_is_taken_and_a_free_choice_is_what_is_there():
    assert pick_device("cpu") == torch.device("cpu")
    found = torch.accelerator.current_accelerator(check_available=True)
    assert pick_device() == (found or torch.device("cpu"))


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=rf"device {name}: cannot compute here .*name cpu, cuda"):
        pick_device(name)


def test_kernels_that_are_wrong_are_off_wherever_a_device_is_picked():
    torch.backends.cuda.enable_cudnn_sdp(True)
    pick_device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.get_float32_matmul_precision() == "high"  # torch may refuse to say
    compute_plainly()
    assert not torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()


def test_ranking_is_in_bf16_where_a_gpu_has_it(monkeypatch):
    card = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    # By emulation any card has it.
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda *_: True)
    assert pick_precision("fp16") == "fp16"
    for has_gpu, major, expected in [(False, 8, "fp32"), (True, 7, "fp32"), (True, 9, "bf16")]:
        card.major = major
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=has_gpu: found)
        assert pick_precision() == expected


@pytest.mark.parametrize(
    ("precision", "low", "said"),
    [
        ("fp32", 1.0, "4.0 times as fast in bf16 as in float32: --precision bf16 saves time"),
        ("fp32", 3.0, None),
        ("bf16", 1.0, None),
        ("bf16", 8.0, "2.0 times as fast in float32 as in bf16: --precision fp32 saves time"),
        ("fp16", 8.0, "2.0 times as fast in float32 as in fp16: --precision fp32 saves time"),
    ],
)
def test_arithmetic_that_is_faster_here_is_told(monkeypatch, precision, low, said):
    monkeypatch.setattr(
        device, "_product_seconds", lambda _, dtype: 4.0 if dtype == torch.float32 else low
    )
    for kind, named in (("cpu", "This CPU"), ("cuda", "This GPU"), ("mps", None)):
        monkeypatch.setattr(device, "pick_device", lambda kind=kind: torch.device(kind))
        note = precision_note(precision, 135_000_000)
        if said is None or named is None:
            assert note is None
        else:
            assert note.startswith(f"{named} multiplies")
            assert note.endswith(said)
        assert precision_note(precision, 1_000_000) is None


def test_how_fast_a_device_multiplies_is_measured():
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < device._product_seconds(pick_device(), dtype) < 10
