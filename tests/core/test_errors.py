"""What a person sees where an input, a path, a disk or their own patience ends a stage."""

import errno
import os
import subprocess
import sys

import pytest

from lcrec.core.errors import LIBRARY_REMEDIES, REMEDIES, InputError, run_stage


def end(error, monkeypatch, capsys):
    """Run a stage that ends in `error`; return its exit status and what stands on stderr."""

    def main(argv):
        raise error

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit) as left:
        run_stage(main)
    return left.value.code, capsys.readouterr().err


def test_an_input_error_is_one_line(monkeypatch, capsys):
    found = end(InputError("--k 0: too small"), monkeypatch, capsys)
    assert found == (2, "error: --k 0: too small\n")


def test_an_input_error_cannot_command_the_terminal(monkeypatch, capsys):
    _, text = end(InputError("--data \x1b]0;pwned\x07: no such folder"), monkeypatch, capsys)
    assert text == "error: --data \\x1b]0;pwned\\x07: no such folder\n"


@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
def test_what_the_system_says_is_one_line_with_a_remedy(number, monkeypatch, capsys):
    code, text = end(OSError(number, os.strerror(number), "/some/path"), monkeypatch, capsys)
    assert code == 2
    assert text.count("\n") == 1
    assert "/some/path" in text
    assert text.endswith(REMEDIES[number] + "\n")


def test_a_full_disk_behind_a_librarys_own_error(monkeypatch, capsys):
    # As safetensors and tokenizers, which are written in Rust, put it.
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    code, seen = end(RuntimeError(text), monkeypatch, capsys)
    assert (code, seen) == (2, f"error: {text}; {REMEDIES[errno.ENOSPC]}\n")
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(errno.EROFS, os.strerror(errno.EROFS), "/ro")
    assert "Read-only file system: '/ro'" in end(wrapped, monkeypatch, capsys)[1]


def test_more_memory_than_there_is(monkeypatch, capsys):
    text = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 "
    text += "bytes. Error code 12 (Cannot allocate memory)"
    for error, told in ((RuntimeError(text), text), (MemoryError(), "MemoryError")):
        seen = f"error: {told}; {REMEDIES[errno.ENOMEM]}\n"
        assert end(error, monkeypatch, capsys) == (2, seen)


@pytest.mark.parametrize("kind", LIBRARY_REMEDIES)
def test_what_a_library_raises_is_one_line(kind, monkeypatch, capsys):
    error = type(kind, (Exception,), {})("what was wrong\nand all its frames")
    seen = f"error: what was wrong; {LIBRARY_REMEDIES[kind]}\n"
    assert end(error, monkeypatch, capsys) == (2, seen)


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    code, text = end(KeyboardInterrupt(), monkeypatch, capsys)
    assert code == 130
    assert text.startswith("interrupted;")
    assert text.count("\n") == 1


def test_any_other_error_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise ZeroDivisionError("a fault of the kit's own")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        run_stage(main)


def test_a_stage_ends_without_looking_for_garbage():
    lines = """
import gc, sys
from lcrec.core.errors import run_stage
class Cycle:
    def __init__(self): self.own = self
    def __del__(self): print("collected")
def main(argv):
    global kept
    kept = [Cycle()]
    if sys.argv[1:] == ["ask"]:
        kept.clear()
        gc.collect()
sys.modules["torch"] = sys  # whose objects are what takes long
run_stage(main)
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", lines, *asked], check=True, capture_output=True, text=True
        ).stdout
        for asked in ([], ["ask"])
    ]
    assert printed == ["", "collected\n"]
