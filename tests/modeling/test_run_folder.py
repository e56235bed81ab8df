"""A run's output folder: claimed once, resumed from complete checkpoints; runs that really die.

Here processes are killed by the system, at moments that the recipe does not choose.
"""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from lcrec.core.artifacts import read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import write_provenance
from lcrec.modeling.recipe import STAGE
from lcrec.modeling.run_folder import check_run, claim_output, explain_disk_full, latest_checkpoint


def test_an_incomplete_checkpoint_is_cleared_away(tmp_path):
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").touch()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "run.json").touch()
    (tmp_path / "partial" / "checkpoint-12").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10", "checkpoint-9", "run.json",
    ]  # fmt: skip


def test_a_checkpoint_whose_best_one_is_gone_is_refused(tmp_path):
    place = tmp_path / "checkpoint-10"
    place.mkdir()
    (place / "complete").touch()
    write_json(place / "trainer_state.json", {"best_model_checkpoint": "runs/x/checkpoint-9"})
    with pytest.raises(InputError, match=r"the best checkpoint, .*/checkpoint-9, is gone"):
        latest_checkpoint(tmp_path)
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "complete").touch()
    assert latest_checkpoint(tmp_path) == str(place)
    best = read_json(place / "trainer_state.json")["best_model_checkpoint"]
    assert best == str(tmp_path / "checkpoint-9")


def test_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-4").mkdir()
    assert latest_checkpoint(tmp_path) is None


RUN = {"epochs": 2, "inputs": {"item": "abc"}, "processes": 1}


def test_a_folder_is_claimed_once(tmp_path):
    output = tmp_path / "new" / "model"
    claim_output(output, RUN, overwrite=False)
    checkpoint = output / ".training" / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "complete").touch()
    claim_output(output, RUN, overwrite=False)
    claim_output(output, RUN, overwrite=True)  # the same run goes on
    assert checkpoint.exists()


def test_a_finished_run_that_lacks_a_file_is_not_thrown_away_unasked(tmp_path):
    for name in ("training.html", "model.safetensors"):
        (tmp_path / name).touch()
    write_provenance(tmp_path, STAGE, {"epochs": 2}, {})
    (tmp_path / "training.html").unlink()
    run = {"epochs": 2, "inputs": {}, "processes": 1}
    with pytest.raises(InputError, match=r"training.html of its finished run is gone; bring it"):
        check_run(tmp_path, run, overwrite=False)
    assert check_run(tmp_path, run, overwrite=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 3}, "epochs"),
        ({"inputs": {"item": "xyz"}}, "inputs"),
        ({"processes": 2, "epochs": 1}, "epochs, processes"),
    ],
)
def test_another_run_is_refused_or_thrown_away(tmp_path, change, named):
    claim_output(tmp_path / "model", RUN, overwrite=False)
    weights = tmp_path / "model" / ".training" / "weights"
    weights.touch()
    with pytest.raises(InputError, match=rf"differs in {named}; .*--overwrite"):
        claim_output(tmp_path / "model", RUN | change, overwrite=False)
    assert weights.exists()
    claim_output(tmp_path / "model", RUN | change, overwrite=True)
    assert not weights.exists()
    claim_output(tmp_path / "model", RUN | change, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_strangers_files_are_not_thrown_away(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds something else"):
        claim_output(tmp_path, RUN, overwrite=False)
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_killed_while_claiming_can_be_claimed(tmp_path):
    (tmp_path / ".training").mkdir()
    (tmp_path / ".training" / ".run.json.123.partial").touch()
    claim_output(tmp_path, RUN, overwrite=False)
    assert (tmp_path / ".training" / "run.json").exists()


# Each is put before the recipe: SIGKILL leaves no time for anything.
MOMENTS = {
    "in an update before the first checkpoint": """
        import lcrec.modeling.trainer
        step = lcrec.modeling.trainer.RecommenderTrainer.training_step
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args, **kwargs)
        lcrec.modeling.trainer.RecommenderTrainer.training_step = training_step
    """,
    "while a checkpoint is written": """
        import transformers
        def save(self, folder):
            if "checkpoint-8" in folder:
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, folder)
        original = transformers.Trainer._save_optimizer_and_scheduler
        transformers.Trainer._save_optimizer_and_scheduler = save
    """,
    "while the result is written": """
        import lcrec.modeling.checkpoint
        def write(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        lcrec.modeling.checkpoint.write_provenance = write
    """,
}


# The checkpoints that lie there then; what is not whole lies aside.
LEFT = {
    "in an update before the first checkpoint": set(),
    "while a checkpoint is written": {"checkpoint-4", "partial/checkpoint-8"},
    "while the result is written": {"checkpoint-4", "checkpoint-8"},
}


def run_with(before, words):
    """Run the recipe in a process of its own, after these lines of Python."""
    lines = "import os, resource, runpy, signal, sys\n" + textwrap.dedent(before)
    lines += "\nrunpy.run_path('recipes/finetune.py', run_name='__main__')\n"
    command = [sys.executable, "-c", lines, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def whole(finetune, tmp_path_factory):
    """The weights of a run that nothing interrupted, with dropout on."""
    folder = finetune(tmp_path_factory.mktemp("whole") / "model", "--dropout", 0.2)
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_minus_nine(finetune, finetune_words, tmp_path, whole, moment):
    output = tmp_path / "model"
    killed = run_with(MOMENTS[moment], finetune_words(output, "--dropout", 0.2))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (output / "lcrec.json").exists()
    work = output / ".training"
    left = {path.relative_to(work).as_posix() for path in work.rglob("checkpoint-*")}
    assert left == LEFT[moment]
    resumed = load_file(finetune(output, "--dropout", 0.2) / "adapter_model.safetensors")
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert not work.exists()


@pytest.mark.slow
def test_a_disk_that_fills_up(finetune, finetune_words, tmp_path, whole):
    """No file may grow beyond 30 kB: less than the optimiser's state."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"
    output = tmp_path / "model"
    full = run_with(limit, finetune_words(output, "--dropout", 0.2))
    assert full.returncode == 2, full.stderr
    told = full.stderr[full.stderr.index("error: ") :]  # behind the progress bar
    assert told.startswith(f"error: --output {output}: weights could not be written")
    assert "MB are free" in told
    assert "free some space and give the same command again" in told
    assert latest_checkpoint(output / ".training") is None
    resumed = load_file(finetune(output, "--dropout", 0.2) / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_what_a_full_disk_is_told_apart_from(tmp_path):
    def out_of_memory():
        raise RuntimeError("CUDA out of memory")

    def disk_full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RuntimeError, match="CUDA"), explain_disk_full(tmp_path):
        out_of_memory()
    with pytest.raises(InputError, match="No space left on device"), explain_disk_full(tmp_path):
        disk_full()
