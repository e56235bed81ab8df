"""The runs that a comparison rests on: each in a process and a folder of its own, done once.

A run's folder holds `predictions.jsonl` and its provenance, the fitted `method` and `log.txt`,
what the run said. A run that is done, by the same settings on the same files, is not run again, so
a killed comparison goes on where it stopped.

Public names: `Run`, `plan_runs`, `carry_out`, `taken`.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.baselines.method_run import MethodRun
from lcrec.baselines.settings import MethodEntry
from lcrec.errors import InputError

LOG = "log.txt"


@dataclass(frozen=True)
class Run:
    """One method trained with one seed.

    Attributes:
        label: what it is called in the comparison: its name, and flags if it has any.
        method: its name.
        seed: of whatever it draws.
        folder: where it lies.
        argv: what stands after the method's name in the command that makes it.
    """

    label: str
    method: str
    seed: int
    folder: Path
    argv: list[str]

    @property
    def predictions(self) -> Path:
        """The predictions file."""
        return self.folder / "predictions.jsonl"

    def facts(self) -> dict[str, Any] | None:
        """Return the provenance of the predictions, None where the run is still to do."""
        return MethodRun(self.method, self.argv).facts()


def plan_runs(
    methods: Sequence[MethodEntry], seeds: int, folder: Path, shared: Sequence[str], *, tuned: bool
) -> list[Run]:
    """Return the runs, a method's together; of a method that draws nothing, one.

    Args:
        methods: with the flags of their own, which must be none of a run's.
        seeds: how many, from 0.
        folder: of the comparison.
        shared: flags that every run has.
        tuned: whether methods that do not say so themselves start from their best known settings.

    Raises:
        InputError: two methods would share a folder.
    """
    runs: list[Run] = []
    for entry in methods:
        called = _folder_name(entry)
        if any(run.folder == folder / f"{called}-0" for run in runs):
            raise InputError(f"--methods: {entry.label!r} is there twice, in other words")
        start = ["--tuned"] if tuned and not {"--tuned", "--paper-family"} & {*entry.flags} else []
        for seed in range(seeds):
            place = folder / f"{called}-{seed}"
            own = ["--seed", str(seed), "--save", str(place / "method")]
            own += ["--output", str(place / "predictions.jsonl")]
            argv = [*shared, *start, *entry.flags, *own]
            runs.append(Run(entry.label, entry.name, seed, place, argv))
            if not entry.kind.draws:
                break
    return runs


def _folder_name(entry: MethodEntry) -> str:
    """Return its words, without what a file system or a shell may stumble over."""
    words = [entry.name, *(word.lstrip("-") for word in entry.flags)]
    return re.sub(r"[^\w.=,-]", "_", "_".join(words))


def carry_out(runs: Sequence[Run]) -> tuple[list[Run], dict[str, str]]:
    """Make what is missing, one after the other, and say what is being done and what is left.

    Returns:
        the runs that are done, and {label: reason} of those that could not be; all runs of a
        method are there, or none.
    """
    seconds: dict[str, list[float]] = {}
    missing = []
    for run in runs:
        facts = run.facts()
        if facts is None:
            missing.append(run)
        else:
            seconds.setdefault(run.label, []).append(taken(facts))
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are done already.", flush=True)
    failed: dict[str, str] = {}
    for number, run in enumerate(missing):
        if run.label in failed:
            continue
        left = [later for later in missing[number:] if later.label not in failed]
        print(
            f"{run.label}, seed {run.seed}: {len(left)} left{_estimate(left, seconds)}; it says "
            f"how it goes in {run.folder / LOG}",
            flush=True,
        )
        started = time.perf_counter()
        reason = _train(run)
        facts = None if reason else run.facts()
        if facts is None:
            failed[run.label] = reason or f"it left no whole result; see {run.folder / LOG}"
            print(f"  left out: {failed[run.label]}", flush=True)
            continue
        seconds.setdefault(run.label, []).append(taken(facts))
        memory = "" if facts["peak_mb"] is None else f", {facts['peak_mb']:,} MB at most"
        print(f"  done in {time.perf_counter() - started:,.0f} s{memory}", flush=True)
    return [run for run in runs if run.label not in failed], failed


def taken(facts: dict[str, Any]) -> float:
    """Return the seconds that fitting and ranking took, by a run's provenance."""
    return float(facts["fit_seconds"] + facts["rank_seconds"])


def _train(run: Run) -> str | None:
    """Run a method's own command; return why it failed, None where it did not."""
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / LOG
    command = [sys.executable, "-m", "lcrec.baselines", run.method, *run.argv]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if process.returncode == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # What a person gave and cannot be used (see `lcrec.errors.run_stage`) explains itself.
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if process.returncode == 2 and said:
        return said[-1]
    return f"its process ended with {process.returncode}; see {log}"


def _estimate(left: Sequence[Run], seconds: dict[str, list[float]]) -> str:
    """Return what the runs that are left will take, by those that are done; nothing if none is."""
    if not seconds:
        return ""
    means = {method: float(np.mean(values)) for method, values in seconds.items()}
    usual = float(np.mean(list(means.values())))
    total = sum(means.get(run.label, usual) for run in left)
    return f", about {total / 60:,.0f} min by those done" if total >= 60 else ", about a minute"
