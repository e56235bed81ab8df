"""Trains by epochs until the validation stops improving, and keeps the best weights.

`train_epochs` is the loop; `train_baseline` runs it for a method, by the method's own settings and
on the validation cases of its data.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.runs.ranking import validator
from lcrec.core.console import ProgressBar
from lcrec.rankings.predictions import DivergedError

Step = tuple[torch.Tensor, int]  # the mean loss of a batch, and its size
SHOWN_EVERY = 5.0  # seconds within an epoch that takes longer


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 1, mean loss, NDCG@10 on validation where taken, seconds."""

    number: int
    loss: float
    score: float | None
    seconds: float


@dataclass
class TrainingLog:
    """What happened, epoch by epoch, and which epoch's weights were kept (0: the start's).

    `updates` counts the steps; where `out_of_time`, the last epoch may not be a whole one.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    updates: int = 0
    out_of_time: bool = False

    def summary(self) -> dict[str, Any]:
        """Return how far training went, JSON values only."""
        return {
            "epochs": len(self.epochs),
            "best_epoch": self.best_epoch,
            "updates": self.updates,
            "out_of_time": self.out_of_time,
        }

    def epochs_until(self, within: float) -> int | None:
        """Return the first epoch whose score was within this share of the best; None: no score.

        Args:
            within: of the best score, such as 0.01; scores are taken for not negative.
        """
        if self.best_score is None:
            return None
        enough = (1 - within) * self.best_score
        scored = ((epoch.number, epoch.score) for epoch in self.epochs if epoch.score is not None)
        return next(number for number, score in scored if score >= enough)


def train_epochs(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[], Iterable[Step]],
    validate: Callable[[], float] | None,
    *,
    epochs: int,
    patience: int,
    every: int = 1,
    label: str = "train",
    deadline: float | None = None,
    step: Callable[[], object] | None = None,
) -> TrainingLog:
    """Train until `patience` validations in a row brought nothing better; keep the best weights.

    Args:
        module: whose weights are kept and put back; buffers too.
        optimizer: of those weights.
        losses: gives the batches of another epoch. A loss must be computed when it is asked for
            (by a generator), with the weights that the step before it left.
        validate: returns a score, higher is better; None: all epochs, the last weights stay.
        epochs: at most.
        patience: validations without a better score, a tie being none, after which to stop.
        every: epochs from one validation to the next.
        label: before the progress bar.
        deadline: when on `time.perf_counter` to stop, also within an epoch, after one step at
            least; what has been learnt by then is validated too. None: never.
        step: updates the weights once the gradients are there; None: `optimizer.step`.

    Raises:
        DivergedError: a loss is not finite; the epoch is named.
    """
    log = TrainingLog()
    best: dict[str, torch.Tensor] | None = None
    without = 0
    bar = ProgressBar(epochs, label, "epochs", leave=False)
    for number in range(1, epochs + 1):
        started = shown_at = time.perf_counter()
        module.train()
        total, count = 0.0, 0
        for loss, size in losses():
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            (step or optimizer.step)()
            total, count = total + float(loss.detach()) * size, count + size
            log.updates += 1
            now = time.perf_counter()
            log.out_of_time = deadline is not None and now >= deadline
            if log.out_of_time:
                break
            if now - shown_at >= SHOWN_EVERY:
                bar.note(loss=f"{total / count:.4f}", updates=f"{log.updates:,}")
                shown_at = now
        mean = total / count
        if not math.isfinite(mean):
            raise DivergedError(
                f"{label}: the loss of epoch {number} is {mean}; try a smaller --learning-rate"
            )
        score = None
        if validate is not None and (number % every == 0 or number == epochs or log.out_of_time):
            module.eval()
            with torch.no_grad():
                score = validate()
        log.epochs.append(Epoch(number, mean, score, time.perf_counter() - started))
        shown = {"loss": f"{mean:.4f}"}
        if score is not None:
            if log.best_score is None or score > log.best_score:
                log.best_score, log.best_epoch, without = score, number, 0
                best = {name: value.detach().clone() for name, value in module.state_dict().items()}
            else:
                without += 1
            shown |= {"ndcg": f"{score:.4f}", "best": f"{log.best_score:.4f}"}
        bar.update(**shown)
        if log.out_of_time:
            bar.print(f"{label}: time is up in epoch {number}, after {log.updates:,} updates.")
        if log.out_of_time or without >= patience:
            break
    bar.close()
    if best is None:
        log.best_epoch = len(log.epochs)
    else:
        module.load_state_dict(best)
    module.eval()
    return log


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a module's weights as arrays by name, for `Baseline.state`."""
    return {name: value.cpu().numpy() for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Take weights that `weights_of` returned.

    Raises:
        ValueError: they are not of such a module.
    """
    try:
        module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    except RuntimeError as error:  # names or shapes are others; the second line tells of the first
        raise ValueError(str(error).splitlines()[:2][-1].strip()) from None


def train_baseline(
    method: Baseline,
    data: TrainingData,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[], Iterable[Step]],
    *,
    refresh: Callable[[], None] | None = None,
    step: Callable[[], object] | None = None,
    label: str | None = None,
) -> TrainingLog:
    """Train a method's weights to its best validation NDCG@10.

    Without validation cases it trains for all epochs, and the last weights stay.

    Args:
        method: in training; its settings have `epochs`, `patience` and `every`.
        data: what it is fitted on, with the validation cases and the deadline.
        module: the weights.
        optimizer, losses, step: as `train_epochs` takes them.
        refresh: brings what `method.score` works with up to the current weights, where that is
            not the module itself; before every validation, and in the end.
        label: before the progress bar; None: the name of the method's class.

    Raises:
        DivergedError: a loss is not finite; the epoch is named.
    """
    log = train_epochs(
        module,
        optimizer,
        losses,
        validator(method, data, refresh),
        epochs=method.settings.epochs,
        patience=method.settings.patience,
        every=method.settings.every,
        label=type(method).__name__ if label is None else label,
        deadline=data.deadline,
        step=step,
    )
    if refresh is not None:
        refresh()
    return log
