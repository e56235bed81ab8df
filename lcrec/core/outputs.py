"""May a stage write here? One rule for every stage, held by a lock while it works.

A stage replaces its own earlier result and nothing else: neither another stage's result nor a
person's own files. Whether it may is decided before any work, and a lock that the system frees
with the process keeps a second run out until the first has ended.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lcrec.core.artifacts import PROVENANCE
from lcrec.core.errors import InputError
from lcrec.core.provenance import kind_of, provenance_path, read_provenance

# What tells of a path that it cannot be used, whatever lies there.
UNUSABLE = {
    errno.ENAMETOOLONG: "the name is too long",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "it may not be written to",
    errno.EPERM: "it may not be written to",
    errno.ENOTDIR: "a file stands where a folder has to be",
    errno.EEXIST: "a file stands where a folder has to be",
    errno.ENOSPC: "the disk is full",
}


@contextmanager
def claim(
    output: Path, stage: str, *, folder: bool = True, flag: str = "--output"
) -> Iterator[None]:
    """Hold an output for one run of a stage, which may replace only what the stage itself made.

    The note `.NAME.claim` beside the output carries the lock. A killed run leaves it, and with it
    the knowledge that what lies there unfinished is the stage's own.

    Args:
        output: the folder or file that the stage writes.
        stage: the command, as in its provenance.
        folder: whether `output` is a folder.
        flag: the flag that named it, for messages.

    Raises:
        InputError: the path cannot be used, something else lies there, or another run writes there.
    """
    # "." has no name of its own, and a link has to keep its own.
    place = Path.cwd() / output if output.name else output.resolve()
    note = place.with_name(f".{place.name}.claim")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(note)
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        raise InputError(
            f"{flag} {output}: {UNUSABLE[error.errno]} ({error.filename}); name another place"
        ) from None
    if file is None:
        owner = note.read_text(encoding="utf-8").strip() if note.exists() else ""
        running = f" (process {json.loads(owner)['process']})" if owner else ""
        raise InputError(
            f"{flag} {output}: another run{running} is writing there; wait for it, or name another "
            "place"
        )
    with file:
        before = file.read().strip()
        unfinished = bool(before) and json.loads(before)["kind"] == kind_of(stage)
        try:
            _require_replaceable(output, stage, folder=folder, unfinished=unfinished, flag=flag)
        except InputError:
            if not before:
                note.unlink()
            raise
        file.seek(0)
        file.truncate()
        json.dump({"kind": kind_of(stage), "process": os.getpid()}, file)
        file.flush()
        try:
            yield
        except BaseException:
            if not output.exists() or _is_whole(output, stage):
                note.unlink()  # nothing unfinished lies there
            raise
        note.unlink()


def _is_whole(output: Path, stage: str) -> bool:
    record = read_provenance(output)
    return record is not None and record["kind"] == kind_of(stage)


def _locked(note: Path) -> TextIO | None:
    """Open and lock the note; None where another process holds it."""
    while True:
        file = note.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        file.seek(0)
        # The run that held it may have ended, and removed it, after it was opened here.
        if note.exists() and os.fstat(file.fileno()).st_ino == note.stat().st_ino:
            return file
        file.close()


def _require_replaceable(
    output: Path, stage: str, *, folder: bool, unfinished: bool, flag: str
) -> None:
    if not output.exists() and not output.is_symlink():
        return
    if folder != output.is_dir():
        is_a, due = ("a file", "a folder") if folder else ("a folder", "a file")
        raise InputError(f"{flag} {output} is {is_a}, and {due} is to be written; name another")
    record = read_provenance(output)
    if record is not None:
        if record["kind"] == kind_of(stage):
            return
        raise InputError(
            f"{flag} {output} holds the result of {record['stage']} ({record['kind']}), which "
            f"{stage} would replace; name another place"
        )
    if unfinished:
        return
    found = output.name
    if folder:
        # Hidden names are what killed runs leave, and what file managers put everywhere.
        others = sorted(path.name for path in output.iterdir() if path.name[0] != ".")
        if not others:
            return
        found = others[0]
    raise InputError(
        f"{flag} {output}: {found} has no {PROVENANCE if folder else provenance_path(output).name} "
        f"beside it, so {stage} did not make it; name another place, or move it away"
    )
