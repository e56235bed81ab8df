"""A stage writes over its own result and over nothing else; one run at a time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lcrec.core.errors import InputError
from lcrec.core.outputs import claim
from lcrec.core.provenance import write_provenance

EMBED, QUANTIZE = "python -m lcrec.embed", "python -m lcrec.quantize"


def test_a_new_place_is_claimed_and_no_note_stays(tmp_path):
    with claim(tmp_path / "a" / "b", EMBED):
        assert (tmp_path / "a" / ".b.claim").exists()
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("folder", [True, False])
def test_a_stages_own_result_is_replaced_and_no_other_stages(tmp_path, folder):
    output = tmp_path / ("out" if folder else "out.json")
    (output.mkdir if folder else output.touch)()
    write_provenance(output, EMBED, {}, {})
    with claim(output, EMBED, folder=folder):
        pass
    with (
        pytest.raises(InputError, match=rf"--output {output} holds the result of {EMBED}"),
        claim(output, QUANTIZE, folder=folder),
    ):
        raise AssertionError


@pytest.mark.parametrize("folder", [True, False])
def test_a_persons_own_files_are_never_replaced(tmp_path, folder):
    output = tmp_path / ("out" if folder else "out.jsonl")
    mine = output / "notes.txt" if folder else output
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with (
        pytest.raises(InputError, match=f"{mine.name} has no "),
        claim(output, EMBED, folder=folder),
    ):
        raise AssertionError
    assert mine.read_text() == "mine"
    assert not list(tmp_path.glob(".*.claim"))


def test_hidden_files_are_nobodys_result(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    with claim(tmp_path / "out", EMBED):
        pass


@pytest.mark.parametrize("folder", [True, False])
def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path, folder):
    output = tmp_path / "out"
    (output.touch if folder else output.mkdir)()
    with pytest.raises(InputError, match="is to be written"), claim(output, EMBED, folder=folder):
        raise AssertionError


def test_a_path_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="a file stands where a folder has to be"),
        claim(tmp_path / "file" / "out", EMBED),
    ):
        raise AssertionError


def test_a_name_may_be_too_long(tmp_path):
    with (
        pytest.raises(InputError, match="the name is too long"),
        claim(tmp_path / ("x" * 300), EMBED),
    ):
        raise AssertionError


def test_what_a_failed_run_left_is_its_stages_own(tmp_path):
    output = tmp_path / "out"

    def fail():
        with claim(output, EMBED):
            output.mkdir()
            (output / "half").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    with pytest.raises(InputError, match="half has no"), claim(output, QUANTIZE):
        raise AssertionError
    with claim(output, EMBED):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from lcrec.core.outputs import claim
with claim(Path(sys.argv[1]), "python -m lcrec.embed"):
    Path(sys.argv[1]).mkdir(exist_ok=True)
    (Path(sys.argv[1]) / "half").touch()
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_until_it_is_killed(tmp_path):
    output = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        refused = rf"another run \(process {holder.pid}\) is writing there"
        with pytest.raises(InputError, match=refused), claim(output, EMBED):
            raise AssertionError
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    note = json.loads((tmp_path / ".out.claim").read_text())
    assert note == {"kind": "embeddings", "process": holder.pid}
    with claim(output, EMBED):  # the kill freed it, and what it left is the stage's own
        time.sleep(0)
    assert not (tmp_path / ".out.claim").exists()
