"""Make a result in parts, by any number of processes; a killed run goes on where it stopped.

A part is a file of its own, the same whichever process makes it. The processes take turns, and a
part that is there already is left as it is. On several machines, all must see the same folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcrec.core.artifacts import clear_leftovers, read_json, write_json
from lcrec.core.console import ProgressBar

if TYPE_CHECKING:
    from accelerate.state import PartialState

NOTE = ".parts.json"  # what the parts of a folder were made from


def make_parts(
    paths: Sequence[Path],
    sizes: Sequence[int],
    make: Callable[[int, Callable[[int], None]], None],
    *,
    inputs: dict[str, Any],
    state: PartialState,
    desc: str,
    unit: str,
    last_first: bool = False,
) -> None:
    """Make every part that is not there yet; return when all processes have made theirs.

    Args:
        paths: the file of each part, all in one folder that holds nothing else.
        sizes: the units of work in each part, such as rankings.
        make: writes the part of a number, atomically, and counts units of work as they are done
            with the function that it is given.
        inputs: all that shapes the result, JSON values only; a folder of parts made from anything
            else is removed first.
        desc, unit: of the progress bar.
        last_first: make the last part first.
    """
    folder = paths[0].parent
    note = folder / NOTE
    if state.is_main_process:
        if folder.exists() and (not note.exists() or read_json(note) != inputs):
            print(f"Starting anew: the parts in {folder} were made of something else.")
            shutil.rmtree(folder)
        if not folder.exists():
            write_json(note, inputs)
        clear_leftovers(folder, locked=True)
        there = sum(path.exists() for path in paths)
        if there:
            print(f"Going on: {there} of {len(paths)} parts are there.")
    state.wait_for_everyone()
    mine = range(state.process_index, len(paths), state.num_processes)
    missing = [number for number in mine if not paths[number].exists()]
    work = sum(sizes[number] for number in missing)
    with ProgressBar(work, desc, unit, disable=not state.is_main_process) as bar:
        for number in reversed(missing) if last_first else missing:
            make(number, bar.update)
    state.wait_for_everyone()
