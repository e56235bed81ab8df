"""How much memory this process has taken.

Reads `/proc/self/status`; writes nothing. Public names: `peak_mb`, `most`.
"""

from collections.abc import Iterable
from pathlib import Path


def peak_mb() -> int | None:
    """Return the most memory this process has had resident, in MB; None where Linux does not tell.

    `getrusage` tells another number: it counts, across the start of a program, what the process
    that started it had.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


def most(peaks: Iterable[int | None]) -> int | None:
    """Return the largest peak, in MB; None where none is known."""
    return max((peak for peak in peaks if peak is not None), default=None)
