"""May a stage write here? One rule for every stage, and a lock while it works.

A stage replaces its own earlier result. What else lies there, a person's own files or another
stage's result, it replaces only where `--overwrite` is given, and never a file by a folder, a
folder by a file, or what it reads. `parse_config` asks for every output before any work; `claim`
asks again and holds a lock, which the system frees with the process, until the run has ended.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from lcrec.core.artifacts import PROVENANCE, atomic_files, clear_leftovers
from lcrec.core.errors import REMEDIES, InputError
from lcrec.core.provenance import FILES, kind_of, provenance_path, read_provenance

# The forms of an output; a file's is what its name must end in, such as ".jsonl".
FOLDER = "folder"  # replaced whole
SHARED_FOLDER = "shared folder"  # the stage adds to it, and leaves what else is in it
MODEL_CONFIGS = ("config.json", "adapter_config.json")


def check_output(
    output: Path,
    stage: str,
    form: str = FOLDER,
    *,
    overwrite: bool = False,
    flag: str = "--output",
    inputs: Iterable[Path] = (),
) -> None:
    """Refuse an output that a stage may not, or cannot, write to; change nothing.

    Args:
        output: the folder or file that the stage writes.
        stage: the command, as in its provenance.
        form: `FOLDER`, `SHARED_FOLDER`, or what the file's name must end in.
        overwrite: whether what somebody else made may be replaced.
        flag: the flag that named the output, for messages.
        inputs: what the stage reads, existing or not.

    Raises:
        InputError: the name, the place, the rights or the disk forbid it; something else lies
            there; or the stage would replace what it reads.
    """
    with _one_line(output, flag):
        _require_form(output, form, flag)
        place = _resolved(output)
        for path in inputs:
            # A link's own name, and where it leads: a folder is replaced through a link to it.
            if _lies_in(_resolved(path), place) or _lies_in(path.resolve(), output.resolve()):
                raise InputError(f"{flag} {output}: {path} is read from there; name another place")
            # A model is known by all that lies in its folder: a file more, and it is another one.
            if is_model(path) and _lies_in(output.resolve(), path.resolve()):
                raise InputError(
                    f"{flag} {output}: lies within the model {path}, which would be another one "
                    "with it; name another place"
                )
        note = beside(output, "claim")
        claimed = note.read_text(encoding="utf-8").strip() if note.exists() else ""
        _require_replaceable(output, stage, form, claimed, overwrite, flag)
        _try_to_write(place)


@contextlib.contextmanager
def claim(
    output: Path,
    stage: str,
    form: str = FOLDER,
    *,
    overwrite: bool = False,
    flag: str = "--output",
    active: bool = True,
) -> Iterator[None]:
    """Hold an output for one run of a stage, and clear away what killed runs left there.

    The note `.NAME.claim` beside the output carries the lock. A killed run leaves it, and with it
    the knowledge that what lies there unfinished is the stage's own.

    Args:
        output, stage, form, overwrite, flag: as for `check_output`.
        active: whether this process is the one, of those that share the work, that claims.

    Raises:
        InputError: as for `check_output`, or another run writes there.
    """
    if not active:
        yield
        return
    with _one_line(output, flag):
        _require_form(output, form, flag)
        place = _resolved(output)
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        note = beside(output, "claim")
        file = _locked(note)
    if file is None:
        owner = note.read_text(encoding="utf-8") if note.exists() else ""
        running = f" (process {owner.split()[-1]})" if owner else ""
        raise InputError(
            f"{flag} {output}: another run{running} is writing there; wait for it, or name another "
            "place"
        )
    with file:
        before = file.read().strip()
        held = False
        try:
            _require_replaceable(output, stage, form, before, overwrite, flag)
            file.seek(0)
            file.truncate()
            print(kind_of(stage), os.getpid(), file=file, flush=True)
            held = True
            clear_leftovers(place, locked=True)
            yield
        except BaseException as error:
            if isinstance(error, OSError) and error.errno and error.filename is None:
                error.filename = str(output)  # a full disk has no name of its own
            _remove_empty(made[:1])
            unfinished = output.exists() and not _is_whole(output, stage) if held else before
            if not unfinished:
                note.unlink()
            _remove_empty(made[1:])
            raise
        note.unlink()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()  # which refuses one that holds anything


@contextlib.contextmanager
def publish(output: Path, stage: str, form: str, *, overwrite: bool) -> Iterator[Path]:
    """Claim a file, and yield a temporary path to write it and its sidecar at (`atomic_files`)."""
    with claim(output, stage, form, overwrite=overwrite), atomic_files(output) as temporary:
        yield temporary


def beside(output: Path, kind: str) -> Path:
    """Return `.NAME.KIND` beside an output: a name for what is needed until it is whole."""
    place = _resolved(output)
    return place.with_name(f".{place.name}.{kind}")


def is_model(folder: Path) -> bool:
    """Tell whether a folder holds a model or an adapter."""
    return any((folder / name).is_file() for name in MODEL_CONFIGS)


def _lies_in(path: Path, place: Path) -> bool:
    """Tell whether a path is a place or below it; many a system takes `Data` and `data` for one."""
    if path.is_relative_to(place):
        return True
    for above in (path, *path.parents):
        with contextlib.suppress(OSError):  # one of them is not there
            if above.samefile(place):
                return True
    return False


def _resolved(output: Path) -> Path:
    # "." and ".." have no name of their own, and a link has to keep its own.
    return output.resolve() if output.name in ("", "..") else Path.cwd() / output


@contextlib.contextmanager
def _one_line(output: Path, flag: str) -> Iterator[None]:
    """Say in one line, with the flag, what the system says of an output."""
    try:
        yield
    except OSError as error:
        reason = error.strerror
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            reason = "a file stands where a folder has to be"
        remedy = REMEDIES.get(error.errno or 0, "name another path")
        place = error.filename or output
        raise InputError(f"{flag} {output}: {reason} ({place}); {remedy}") from None


def _try_to_write(place: Path) -> None:
    """Write and remove a small file where the output's folder is, or will be."""
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    for folder in {parent, place} if place.is_dir() else {parent}:
        probe = folder / f".{place.name}.{os.getpid()}.partial"
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)


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


def _require_form(output: Path, form: str, flag: str) -> None:
    """Refuse a name that cannot be of this form, and a file for a folder or a folder for a file."""
    folder = form in (FOLDER, SHARED_FOLDER)
    if not folder and output.suffix != form:
        better = output / f"NAME{form}" if output.is_dir() else output.with_suffix(form)
        raise InputError(f"{flag} {output}: it goes to a file named *{form}, such as {better}")
    if folder and (output.is_file() or provenance_path(output).parent != output):
        raise InputError(f"{flag} {output}: name a folder, not a file")
    if form == FOLDER and output.resolve().is_mount():
        better = output / "NAME"
        raise InputError(f"{flag} {output}: a mount point is not replaced; name {better}")
    if not folder and output.is_dir():
        raise InputError(f"{flag} {output}: name a file, not a folder")
    for other in () if folder else map(output.with_suffix, FILES):
        if other != output and other.exists():
            raise InputError(
                f"{flag} {output}: its record {provenance_path(output).name} would be taken for "
                f"that of {other.name} too; name another file"
            )


def _require_replaceable(
    output: Path, stage: str, form: str, claimed: str, overwrite: bool, flag: str
) -> None:
    """Refuse what lies at `output`, if anything, unless `stage` may replace it.

    Args:
        claimed: the note of a run that was killed, or is writing there; "" where there is none.
    """
    folder = form in (FOLDER, SHARED_FOLDER)
    if not output.exists():
        return
    record = read_provenance(output)
    found = output.name
    visible = (
        sorted(path.name for path in output.iterdir() if path.name[0] != ".") if folder else []
    )
    if record is not None and record["kind"] == kind_of(stage):
        made = {*record.get("files", visible), PROVENANCE}
        others = [name for name in visible if name not in made]
        if form != FOLDER or not others:
            return
        reason = f"{output} also holds {others[0]}, which {stage} did not write"
    elif record is not None:
        reason = f"{output} holds the result of {record['stage']} ({record['kind']})"
    elif claimed.rpartition(" ")[0] == kind_of(stage):
        return
    else:
        if folder:
            if not visible:
                return
            found = visible[0]
        sidecar = PROVENANCE if folder else provenance_path(output).name
        reason = f"{output}: {found} has no {sidecar} beside it, so {stage} did not make it"
    if not overwrite:
        raise InputError(f"{flag} {reason}; name another place, or give --overwrite to replace it")
    if folder and _lies_in(Path.cwd(), output.resolve()):
        raise InputError(f"{flag} {reason}, and you are in that folder; name another place")
