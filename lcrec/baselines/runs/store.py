"""Keeps a fitted method on disk: `method.safetensors` and its provenance, in a folder.

Also measures what fitting took: the seconds, and the memory of this process, read from
`/proc/self/status`.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.core.artifacts import atomic_path
from lcrec.core.errors import InputError
from lcrec.core.provenance import fingerprint, is_current, read_provenance, write_provenance


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


WEIGHTS = "method.safetensors"


def save_method(
    folder: Path,
    stage: str,
    method: Baseline,
    config: dict[str, Any],
    inputs: dict[str, Path],
    cost: dict[str, Any],
) -> None:
    """Write a fitted method.

    Args:
        folder: where to; an earlier method there is replaced.
        stage: the command, as typed.
        method: fitted.
        config: the settings that shape it, JSON values only.
        inputs: what it was fitted on, by role.
        cost: what `fit_and_measure` returned.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        # Contiguous: safetensors would write the bytes of a transposed array as they lie.
        state = {name: np.ascontiguousarray(value) for name, value in method.state().items()}
        save_file(state, temporary / WEIGHTS)
        training = method.training
        write_provenance(temporary, stage, config, inputs, cost=cost, training=training)


def is_saved(folder: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> bool:
    """Tell whether a method of these settings, fitted on these inputs, lies there."""
    whole = (folder / WEIGHTS).is_file() and is_current(folder, stage, config, inputs)
    return whole and "fit_seconds" in (read_provenance(folder) or {})


def load_method(
    folder: Path, method: Baseline, data: TrainingData, inputs: dict[str, Path]
) -> None:
    """Fill a method of the same settings with what lies in the folder.

    Raises:
        InputError: nothing lies there, it is damaged, or was fitted on other inputs.
    """
    record = read_provenance(folder) if folder.is_dir() else None
    if record is None or not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: holds no fitted method ({WEIGHTS} and its lcrec.json)")
    found = {role: entry["sha256"] for role, entry in record["inputs"].items()}
    for role, path in inputs.items():
        if role in found and found[role] != fingerprint(path):
            raise InputError(
                f"{folder} was fitted on another {role} file than {path}; fit it again"
            )
    try:
        method.load_state(load_file(folder / WEIGHTS), data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{folder / WEIGHTS}: not this method's ({error}); fit it again") from None


def fit_once(
    folder: Path,
    stage: str,
    method: Baseline,
    config: dict[str, Any],
    inputs: dict[str, Path],
    data: TrainingData,
) -> dict[str, Any]:
    """Fit a method and write it, or fill it with what an equal run left there.

    Args:
        folder: where the fitted method lies, or will.
        stage, config, inputs: as for `save_method`.
        method: not fitted.
        data: what to fit it on.

    Returns:
        what `fit_and_measure` returns, of now or then, and `training`, see `Baseline.training`.
    """
    if not is_saved(folder, stage, config, inputs):
        save_method(folder, stage, method, config, inputs, fit_and_measure(method, data))
    else:
        load_method(folder, method, data, inputs)
    record = read_provenance(folder)
    assert record is not None
    return {name: record.get(name) for name in ("fit_seconds", "peak_mb", "training")}


def fit_and_measure(method: Baseline, data: TrainingData) -> dict[str, Any]:
    """Fit a method.

    Returns:
        `fit_seconds`, and `peak_mb` of the process, None where it is not known.
    """
    started = time.perf_counter()
    method.fit(data)
    seconds = round(time.perf_counter() - started, 1)
    return {"fit_seconds": seconds, "peak_mb": peak_mb()}
