"""What a user sees when an input is wrong.

`InputError` is raised wherever a value a person gave (a file, a flag, a row) cannot be used; its
message names the file or flag, the value seen and the remedy. `run_stage` turns it, and whatever
the system says of a path, a disk or a device, into one line on standard error, so that no user
reads a traceback for a typing mistake or a full disk.
"""

import atexit
import difflib
import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Iterable

from lcrec.core.console import printable, quiet_libraries

# What the system says of a path or a disk, and what a person can do about it.
REMEDIES = {
    errno.EEXIST: "name another path",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name another path",
    errno.EACCES: "ask for the right to it, or name another path",
    errno.EPERM: "ask for the right to it, or name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EROFS: "name a path on a disk that can be written to",
    errno.ENOSPC: "make room and give the same command again",
    errno.EDQUOT: "make room within the quota and give the same command again",
    errno.EFBIG: "raise the limit on the size of files, and give the same command again",
    errno.ENOMEM: "take smaller batches or settings, or a machine with more memory free",
}
# Likewise of what libraries raise, by the name of the exception.
LIBRARY_REMEDIES = {
    "OutOfMemoryError": "take smaller batches, or a device with more memory free",
    "MemoryError": REMEDIES[errno.ENOMEM],
    "_ArrayMemoryError": REMEDIES[errno.ENOMEM],  # NumPy's
    "SafetensorError": "bring back the file, or make it anew",
}
INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class InputError(ValueError):
    """A value a person gave cannot be used; the message says which, and what to do."""


def run_stage(main: Callable[[list[str]], None]) -> None:
    """Run a stage's `main(argv)` on the command line.

    It exits with 2 on an `InputError` or what the system says of a path or disk, with 130 on
    Ctrl-C, each with one line on standard error.
    """
    quiet_libraries()
    atexit.register(_skip_collections)
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from what is complete, or starts anew")
        sys.exit(INTERRUPTED)
    except InputError as error:
        _end(f"error: {error}")
        sys.exit(2)
    except Exception as error:
        found = _from_system(error)
        if found is None:
            raise
        _end(f"error: {found}")
        sys.exit(2)


def _skip_collections() -> None:
    """Let Python end without looking through all objects for garbage: seconds, after torch.

    Beside DuckDB it looks, which prints a page about each object that is left.
    """
    if "torch" in sys.modules and "duckdb" not in sys.modules:
        gc.freeze()


def _end(line: str) -> None:
    """Print a last line, on a line of its own even where a progress bar stands."""
    sys.stdout.flush()
    start = "\n" if sys.stderr.isatty() else ""
    print(start + printable(line, lines=True), file=sys.stderr, flush=True)


def _from_system(error: BaseException | None) -> str | None:
    """Return in one line what the system says of a path or disk, if that is behind an error.

    Libraries wrap it: the number in their text, or the cause behind them, is looked at as well.
    """
    while error is not None:
        if isinstance(error, OSError):
            number = error.errno or 0
        else:
            named = re.search(r"(?:\(os error |allocate memory.*Error code )(\d+)", str(error))
            number = int(named[1]) if named else 0
        kind = type(error).__name__  # of libraries that are not imported for it
        if remedy := REMEDIES.get(number) or LIBRARY_REMEDIES.get(kind):
            text = str(error).strip() or (os.strerror(number) if number else kind)
            return f"{text.splitlines()[0]}; {remedy}"
        error = error.__cause__ or error.__context__
    return None


def closest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known word nearest to `word`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
