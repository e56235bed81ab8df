"""The runs that a comparison rests on: each in a process and a folder of its own, done once.

A run's folder holds `predictions.jsonl` and its provenance, the fitted `method` and `log.txt`,
what the run said. A run that is done, by the same settings on the same files, is not run again, so
a killed comparison goes on where it stopped.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.baselines.runs.flags import MethodEntry
from lcrec.baselines.runs.run import MethodRun
from lcrec.core.errors import InputError
from lcrec.core.processes import usable_cores

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
            if not entry.settings.is_stochastic:
                break
    return runs


def _folder_name(entry: MethodEntry) -> str:
    """Return its words, without what a file system or a shell may stumble over."""
    words = [entry.name, *(word.lstrip("-") for word in entry.flags)]
    return re.sub(r"[^\w.=,-]", "_", "_".join(words))


def carry_out(runs: Sequence[Run], jobs: int = 1) -> tuple[list[Run], dict[str, str]]:
    """Make what is missing, and say what is being done and what is left.

    With several jobs at a time each gets its share of the cores that this process may use.

    Returns:
        the runs that are done, and {label: reason} of those that could not be; all runs of a
        method are there, or none.
    """
    work = _Work(runs, jobs)
    pool = ThreadPoolExecutor(jobs)
    try:
        for future in [pool.submit(work.make, run) for run in work.missing]:
            future.result()
    finally:  # a run that has begun ends, or is interrupted with this process; no other begins
        pool.shutdown(cancel_futures=True)
    return [run for run in runs if run.label not in work.failed], work.failed


class _Work:
    """What is done and what is left, as the runs' threads see it."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.jobs = jobs
        self.failed: dict[str, str] = {}
        self.missing: list[Run] = []
        self.lock = threading.Lock()
        self.seconds: dict[str, list[float]] = {}
        for run in runs:
            facts = run.facts()
            if facts is None:
                self.missing.append(run)
            else:
                self.seconds.setdefault(run.label, []).append(taken(facts))
        self.left = list(self.missing)
        if len(self.missing) < len(runs):
            done = len(runs) - len(self.missing)
            print(f"{done} of {len(runs)} runs are done already.", flush=True)

    def make(self, run: Run) -> None:
        """Make one, unless another of its method has failed."""
        with self.lock:
            self.left = [later for later in self.left if later.label not in self.failed]
            if run.label in self.failed:
                return
            print(
                f"{run.label}, seed {run.seed}: {len(self.left)} left{self._estimate()}; it says "
                f"how it goes in {run.folder / LOG}",
                flush=True,
            )
        started = time.perf_counter()
        reason = _train(run, self.jobs)
        facts = None if reason else run.facts()
        with self.lock:
            self.left = [later for later in self.left if later is not run]
            if facts is None:
                self.failed[run.label] = (
                    reason or f"it left no whole result; see {run.folder / LOG}"
                )
                print(f"  left out: {run.label}: {self.failed[run.label]}", flush=True)
                return
            self.seconds.setdefault(run.label, []).append(taken(facts))
            memory = "" if facts["peak_mb"] is None else f", {facts['peak_mb']:,} MB at most"
            took = time.perf_counter() - started
            print(f"  {run.label}, seed {run.seed}, done in {took:,.0f} s{memory}", flush=True)

    def _estimate(self) -> str:
        """Return what is left will take, by the runs that are done; nothing if none is."""
        if not self.seconds:
            return ""
        means = {method: float(np.mean(values)) for method, values in self.seconds.items()}
        usual = float(np.mean(list(means.values())))
        total = sum(means.get(run.label, usual) for run in self.left) / self.jobs
        return f", about {total / 60:,.0f} min by those done" if total >= 60 else ", about a minute"


def taken(facts: dict[str, Any]) -> float:
    """Return the seconds that fitting and ranking took, by a run's provenance."""
    return float(facts["fit_seconds"] + facts["rank_seconds"])


def _train(run: Run, jobs: int) -> str | None:
    """Run a method's own command; return why it failed, None where it did not."""
    environment = dict(os.environ)
    if jobs > 1:
        # Threads of several processes on one core wait for each other far longer than they work.
        share = max(1, usable_cores() // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(share))
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / LOG
    command = [sys.executable, "-m", "lcrec.baselines", run.method, *run.argv]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False, env=environment
        )
    if process.returncode == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # What a person gave and cannot be used (see `lcrec.core.errors.run_stage`) explains itself.
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if process.returncode == 2 and said:
        return said[-1]
    return f"its process ended with {process.returncode}; see {log}"
