"""One run of one method: from the words of its command to a predictions file.

Reads a data folder, and embeddings or an index for the methods that need them; writes
`predictions.jsonl` (the form of `lcrec.rankings.predictions`) with the users and targets of the
chosen split, and its provenance beside it. With --save the fitted method is kept in a folder,
`method.safetensors` and its provenance.
"""

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lcrec.baselines.base import Baseline, TrainingData, find_method, make_method
from lcrec.baselines.runs.flags import parse_method_config, settings_files
from lcrec.baselines.runs.inputs import (
    DEVICE_HELP,
    EMBEDDINGS_HELP,
    INDEX_HELP,
    input_files,
    load_inputs,
)
from lcrec.baselines.runs.ranking import rank_cases
from lcrec.baselines.settings import Need
from lcrec.core.artifacts import METHOD_WEIGHTS, atomic_path
from lcrec.core.config import Writes, config_dict, option, settings_of
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import FOLDER, publish
from lcrec.core.provenance import fingerprint, is_current, read_provenance, write_provenance
from lcrec.data.splits import EvalCases
from lcrec.rankings.predictions import write_predictions

PROG = "python -m lcrec.baselines"


@dataclass(frozen=True)
class BaselineConfig(Writes):
    """Settings of `python -m lcrec.baselines NAME` that all methods share."""

    data: Path = option("the data folder")
    output: Path = option("the predictions file to write, *.jsonl", writes=".jsonl")
    embeddings: Path | None = option(EMBEDDINGS_HELP, None)
    index: Path | None = option(INDEX_HELP, None)
    split: Literal["valid", "test"] = option("which held-out items to predict", "test")
    top: int = option("how many items to rank per user", 100, minimum=100)
    exclude_history: bool = option("mask history items, except targets", False)
    paper_family: bool = option(
        "the method's own settings start from those of its paper, or of the library its family of "
        "papers used; the default",
        False,
    )
    tuned: bool = option("they start from the best known settings instead", False)
    max_minutes: float | None = option(
        "stop training after so long and keep what was best by then, for a first look: how "
        "far that is depends on the machine; none: no bound",
        None,
        minimum=0,
    )
    save: Path | None = option(
        "a folder to keep the fitted method in; one of the same settings and data there is taken "
        "as it is",
        None,
        writes=FOLDER,
    )
    device: str | None = option(DEVICE_HELP, None)
    seed: int = option("of whatever the method draws at random", 0, minimum=0)


def example_of(name: str, needs: frozenset[Need], output: str = "{}/predictions.jsonl") -> str:
    """Return the flags of a worked example: the data, what the method needs, the output.

    Args:
        name: of the method.
        needs: what it must be given.
        output: the path below runs/shop/, `{}` for the name.
    """
    inputs = "".join(
        f" --{need} runs/shop/{need}" for need in ("embeddings", "index") if need in needs
    )
    return f"--data data/shop{inputs} --output runs/shop/{output.format(name)}"


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
        save_file(state, temporary / METHOD_WEIGHTS)
        training = method.training
        write_provenance(temporary, stage, config, inputs, cost=cost, training=training)


def is_saved(folder: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> bool:
    """Tell whether a method of these settings, fitted on these inputs, lies there."""
    whole = (folder / METHOD_WEIGHTS).is_file() and is_current(folder, stage, config, inputs)
    return whole and "fit_seconds" in (read_provenance(folder) or {})


def load_method(
    folder: Path, method: Baseline, data: TrainingData, inputs: dict[str, Path]
) -> None:
    """Fill a method of the same settings with what lies in the folder.

    Raises:
        InputError: nothing lies there, it is damaged, or was fitted on other inputs.
    """
    record = read_provenance(folder) if folder.is_dir() else None
    if record is None or not (folder / METHOD_WEIGHTS).is_file():
        raise InputError(f"{folder}: holds no fitted method ({METHOD_WEIGHTS} and its lcrec.json)")
    found = {role: entry["sha256"] for role, entry in record["inputs"].items()}
    for role, path in inputs.items():
        if role in found and found[role] != fingerprint(path):
            raise InputError(
                f"{folder} was fitted on another {role} file than {path}; fit it again"
            )
    try:
        method.load_state(load_file(folder / METHOD_WEIGHTS), data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder / METHOD_WEIGHTS}: not this method's ({error}); fit it again"
        ) from None


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


class MethodRun:
    """A run that may be done already.

    Attributes:
        config: what was given, `BaselineConfig` and the method's own settings in one.
        needs: what the method needs with these settings.

    Raises:
        InputError: as `parse_config`; no such method; no data folder.
    """

    def __init__(self, name: str, argv: list[str]) -> None:
        kind = find_method(name)
        self.name, self.prog = name, f"{PROG} {name}"
        self.config: Any = parse_method_config(
            BaselineConfig,
            kind,
            argv,
            description=kind.summary,
            prog=self.prog,
            example=example_of(name, kind.needs),
        )
        self.chosen = settings_of(kind, self.config)
        self.needs = self.chosen.required_inputs
        self.files = input_files(
            self.config.data, self.config.embeddings, self.needs, self.config.index
        ) | settings_files(self.chosen)
        self.settings = config_dict(self.config, without=["device"])
        # Which part is ranked does not shape what is fitted.
        shared = ("exclude_history", "max_minutes", "seed")
        self.fitted_by = config_dict(self.chosen) | {key: self.settings[key] for key in shared}

    def facts(self) -> dict[str, Any] | None:
        """Return the provenance of the file that an equal run left; None where there is none."""
        config = self.config
        if config.save and not is_saved(config.save, self.prog, self.fitted_by, self.files):
            return None
        whole = is_current(config.output, self.prog, self.settings, self.files)
        facts = read_provenance(config.output) if whole else None
        return facts if facts is not None and "fit_seconds" in facts else None

    def run(self) -> None:
        """Fit and rank, unless an equal run left its file; say so either way."""
        config, output = self.config, self.config.output
        after = f"Next: python -m lcrec.evaluate --predictions {output}"
        if self.facts() is not None:
            print(f"{output} is up to date.\n{after}")
            return
        inputs = load_inputs(
            config.data, config.embeddings, self.needs, self.name, index=config.index
        )
        cases: EvalCases = getattr(inputs.split, config.split)
        num_items = inputs.training.num_items
        leaves_out = config.exclude_history or cases.exclude is not None
        without = ", leaving out what the user already has" if leaves_out else ""
        print(
            f"{self.name} on {inputs.name}: fit on the train part of "
            f"{len(inputs.training.train):,} users, then rank all {num_items:,} items for the "
            f"{config.split} split{without}.",
            flush=True,
        )
        if config.exclude_history and cases.repeats:
            print(
                f"{cases.repeats:.1%} of the targets are items that their users have already; "
                "--exclude-history leaves these few in the ranking, where they are easily found.",
                flush=True,
            )
        method = make_method(self.chosen, config.seed, config.device)
        deadline = None
        if config.max_minutes is not None:
            deadline = time.perf_counter() + 60 * config.max_minutes
        training = dataclasses.replace(
            inputs.training, exclude_history=config.exclude_history, deadline=deadline
        )
        if config.save is not None:
            cost = fit_once(config.save, self.prog, method, self.fitted_by, self.files, training)
        else:
            cost = {**fit_and_measure(method, training), "training": method.training}
        fitted = time.perf_counter()
        rows = cases.predictions(rank_cases(method, cases, training, top=config.top))
        with publish(output, self.prog, ".jsonl", overwrite=config.overwrite) as file:
            write_predictions(file, progress(rows, self.name, "users", total=len(cases)))
            write_provenance(
                file,
                self.prog,
                self.settings,
                self.files,
                cost={
                    "fit_seconds": cost["fit_seconds"],
                    "rank_seconds": round(time.perf_counter() - fitted, 1),
                    "peak_mb": most([cost["peak_mb"], peak_mb()]),
                },
                training=cost["training"],
            )
        length = min(config.top, num_items, method.max_list_length or num_items)
        up_to = "up to " if leaves_out or method.max_list_length else ""
        if config.save is not None:
            print(f"{config.save} holds the fitted method.")
        wrote = f"Wrote {output}: {up_to}{length} items per user."
        print(f"Fitted in {cost['fit_seconds']:,.0f} s. {wrote}\n{after}")
