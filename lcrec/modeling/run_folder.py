"""The output folder of a fine-tune: claimed by one run, resumed from, finished.

A checkpoint on the way counts only once it is complete, so that a killed run never resumes from
half of one, nor from one of another run.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lcrec.core.artifacts import read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import kind_of, missing_files, read_provenance
from lcrec.modeling.recipe import STAGE

WORK = ".training"  # inside the output folder, until the run is finished
NOTE = "run.json"  # inside it: all that decides the result
BUFFER = "buffer.json"  # inside it: tokens of a buffer of packed samples
TRAINER_STATE = "trainer_state.json"  # transformers' name of it
COMPLETE = "complete"  # the mark in a checkpoint folder
STAGED = "partial"  # beside the checkpoints: the one that is being written is staged there
# A run that does not fit into memory goes on with another: the result is the same.
MEANS = ("max_tokens_per_batch",)


def check_run(output: Path, run: dict[str, Any], *, overwrite: bool) -> bool:
    """Refuse an output folder that this run may not take; change nothing.

    `run` is all that decides the result: settings, hashes of the inputs, number of processes.

    Returns:
        Whether another run lies there, which must be thrown away first.

    Raises:
        InputError: it holds a run of other settings or inputs.
    """
    note = output / WORK / NOTE
    if not any(path.is_file() and path.suffix != ".partial" for path in output.rglob("*")):
        return False
    found: dict[str, Any] = {}  # somebody else's files, which --overwrite replaces
    finished = read_provenance(output)
    if note.exists():
        found = read_json(note)
    elif finished is not None and finished["kind"] == kind_of(STAGE):
        hashes = {role: entry["sha256"] for role, entry in finished["inputs"].items()}
        found = finished["config"] | {"inputs": hashes, "processes": run["processes"]}
    decides = {key for key in (*run, *found) if key not in MEANS}
    differing = [key for key in run if found.get(key) != run[key] and key in decides]
    if note.exists() and all(found.get(key) == run.get(key) for key in decides):
        return False
    gone = [] if differing or finished is None else missing_files(output, finished)
    if gone and not overwrite:
        raise InputError(
            f"--output {output}: {gone[0]} of its finished run is gone; bring it back, name "
            "another folder, or make the run anew with --overwrite"
        )
    if not overwrite:
        raise InputError(
            f"--output {output} holds something else: a run that differs in "
            f"{', '.join(differing) or 'settings that this version does not know'}; name another "
            "folder, or throw that run away with --overwrite"
        )
    return True


def claim_output(output: Path, run: dict[str, Any], *, overwrite: bool) -> None:
    """Take the output folder for this run, or refuse it.

    Args:
        output, run: as for `check_run`, which also says what is raised.
        overwrite: throw another run away.
    """
    if check_run(output, run, overwrite=overwrite):
        # Renamed first: half of a run, if this is killed, would look like somebody else's files.
        doomed = output.with_name(f".{output.name}.replaced")
        shutil.rmtree(doomed, ignore_errors=True)
        output.rename(doomed)
        shutil.rmtree(doomed)
    write_json(output / WORK / NOTE, run)


def latest_checkpoint(folder: Path) -> str | None:
    """Return the latest complete checkpoint in `folder`, removing incomplete ones.

    Raises:
        InputError: its state of training cannot be read, or the best checkpoint is gone.
    """
    shutil.rmtree(folder / STAGED, ignore_errors=True)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).exists():
            shutil.rmtree(checkpoint)
    # Imported late: before training nothing here needs transformers.
    from transformers.trainer_utils import get_last_checkpoint

    latest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if latest is not None:
        with explain_damage(latest):
            state = read_json(Path(latest) / TRAINER_STATE)
            if state.get("best_model_checkpoint"):
                # By its name: the output folder may have been moved, or named otherwise, since.
                best = folder / Path(state["best_model_checkpoint"]).name
                if not best.is_dir():
                    raise FileNotFoundError(f"the best checkpoint, {best}, is gone")
                state["best_model_checkpoint"] = str(best)
                write_json(Path(latest) / TRAINER_STATE, state, indent=2)
    return latest


@contextlib.contextmanager
def explain_damage(checkpoint: str | Path) -> Iterator[None]:
    """Explain what to do when a checkpoint to resume from cannot be loaded.

    Raises:
        InputError: a file in it is missing or damaged.
    """
    try:
        yield
    except Exception as error:  # each format has its own, and zip archives and pickles several
        if type(error).__name__ == "OutOfMemoryError":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{checkpoint} cannot be resumed from ({reason}); remove that folder and give the same "
            "command again: it goes on from the checkpoint before it, or starts anew"
        ) from None


def publish_checkpoint(written: Path, place: Path) -> None:
    """Mark a checkpoint that is all written as complete and move it to its place."""
    (written / COMPLETE).touch()
    shutil.rmtree(place, ignore_errors=True)  # of the same step: the same weights
    written.rename(place)


@contextlib.contextmanager
def explain_disk_full(output: Path) -> Iterator[None]:
    """Explain what to do when weights cannot be written into the output folder.

    Raises:
        InputError: writing failed; what was complete before still is.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # PyTorch's writer of archives has no error of its own.
        archive = any(word in str(error) for word in ("inline_container", "iostream"))
        if isinstance(error, RuntimeError) and not archive:
            raise
        free = shutil.disk_usage(output).free / 2**20
        raise InputError(
            f"--output {output}: weights could not be written ({reason}; {free:,.0f} MB are free "
            "there); free some space and give the same command again: it goes on from the last "
            "complete checkpoint"
        ) from None
