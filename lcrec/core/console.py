"""The screen: progress, and foreign text that a terminal shows and does not obey.

Progress is a bar on a terminal and a plain line every 30 seconds in a log: tqdm redraws one line
many times a second, which a file keeps as that many lines. Where standard error is no terminal,
this module writes what a person reading the log later wants to know instead.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sized
from time import monotonic
from typing import Any, Self, TypeVar

SECONDS_BETWEEN_LINES = 30.0

# What a terminal obeys instead of showing it: control characters (ESC, BEL, CSI, OSC and their
# like), other line ends, marks that reverse the direction of what follows; and half a surrogate
# pair, which no UTF-8 terminal takes.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Item = TypeVar("Item")


def printable(text: object, *, lines: bool = False) -> str:
    """Return foreign text (a title, an id, an answer) so that a terminal shows all of it.

    What a terminal would obey is written as Python writes it in a string, such as `\\x1b`.

    Args:
        lines: line feeds are the text's own and stay.
    """

    def escape(found: re.Match[str]) -> str:
        return "\n" if lines and found[0] == "\n" else repr(found[0])[1:-1]

    return OBEYED.sub(escape, str(text))


def on_terminal() -> bool:
    """Return whether standard error is a terminal, where a line can be redrawn."""
    return sys.stderr.isatty()


def progress(
    iterable: Iterable[Item], desc: str, unit: str, *, total: int | None = None, leave: bool = True
) -> Iterator[Item]:
    """Yield the items of `iterable` and show how many were consumed.

    Args:
        desc, unit, leave: see `ProgressBar`.
        total: how many items there are; by default `len(iterable)` where it has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with ProgressBar(total, desc, unit, leave=leave) as bar:
        for item in iterable:
            yield item
            bar.update()


class ProgressBar:
    """Progress that is reported by hand: `update` as work is done, `close` at the end.

    On a terminal it is a tqdm bar. Elsewhere `update` prints a line when the last one is 30 seconds
    old, with the rate so far and an estimate of the time left, and `close` prints one if the work
    took longer than that.

    Args:
        total: units of work, None where unknown.
        desc: what is done; begins every line.
        unit: what is counted, in the plural.
        initial: units done by an earlier run; they count for the total, not for the rate.
        delay: seconds after which a bar on a terminal appears.
        leave: whether the bar, or the last line, stays when the work is done.
        disable: show nothing, as on all ranks but the first.
    """

    def __init__(
        self,
        total: int | None,
        desc: str,
        unit: str,
        *,
        initial: int = 0,
        delay: float = 0,
        leave: bool = True,
        disable: bool = False,
    ) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.done = self.initial = initial
        self.leave = leave
        self._is_silent = disable
        self._notes: dict[str, str] = {}
        self._start = self._last_line = monotonic()
        self._bar: Any = None
        if on_terminal() and not disable:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=desc, unit=f" {unit}", initial=initial, delay=delay, leave=leave
            )

    def update(self, count: int = 1, /, **values: str) -> None:
        """Count `count` more units as done, with values as for `note`."""
        self.done += count
        self._notes = values or self._notes
        if self._bar is not None:
            self._bar.update(count)
            if values:
                self._bar.set_postfix(values)
        else:
            self._print_if_due()

    def note(self, **values: str) -> None:
        """Show these values, such as a loss, behind the counts from now on."""
        self._notes = values
        if self._bar is not None:
            self._bar.set_postfix(values)
        else:
            self._print_if_due()

    def print(self, text: str) -> None:
        """Print a line on standard output, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text)
        elif not self._is_silent:
            print(text, flush=True)

    def close(self) -> None:
        """End the bar; in a log, print how long the work took if that was over 30 seconds."""
        if self._bar is not None:
            self._bar.close()
        elapsed = monotonic() - self._start
        if self._bar is None and self.leave and elapsed >= SECONDS_BETWEEN_LINES:
            self._print(f"{self._counts()} in {duration(elapsed)}")
        self._is_silent = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _print_if_due(self) -> None:
        now = monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        fresh = self.done - self.initial
        parts = [self._counts()]
        if fresh:
            each = (now - self._start) / fresh
            parts.append(f"{1 / each:,.{each > 0.1:d}f}/s" if each < 1 else f"{each:,.1f} s each")
            if self.total is not None and self.total > self.done:
                parts.append(f"about {duration(each * (self.total - self.done))} left")
        self._print(", ".join(parts))

    def _counts(self) -> str:
        done = f"{self.desc}: {self.done:,}"
        if self.total is not None and self.total != self.done:
            done += f" of {self.total:,}"
        return f"{done} {self.unit}"

    def _print(self, text: str) -> None:
        if not self._is_silent:
            notes = "".join(f", {name} {value}" for name, value in self._notes.items())
            print(text + notes, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time as people say it: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"


def quiet_libraries() -> None:
    """Keep other libraries' bars off the screen of a command; call it before they are imported.

    transformers draws bars for steps of a second, which fill a log; what is slow, a download, is
    announced by the hub's own messages.
    """
    if not on_terminal():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
