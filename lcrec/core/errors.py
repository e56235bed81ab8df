"""What a user sees when an input is wrong.

`InputError` is raised wherever a value a person gave (a file, a flag, a row) cannot be used; its
message names the file or flag, the value seen and the remedy. `run_stage` turns it, and a path that
cannot be written to, into one line on standard error and exit status 2, so that no user reads a
traceback for a typing mistake.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable

from lcrec.core.console import quiet_libraries

# What the system says of a path that a person gave; each names the path.
UNUSABLE_PATH = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class InputError(ValueError):
    """A value a person gave cannot be used; the message says which, and what to do."""


def run_stage(main: Callable[[list[str]], None]) -> None:
    """Run a stage's `main(argv)` on the command line; exit with 2 on an `InputError`."""
    quiet_libraries()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, *UNUSABLE_PATH) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def closest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known word nearest to `word`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
