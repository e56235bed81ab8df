"""Epochs until the validation stops improving; the best weights are the ones that stay.

Reads and writes nothing. Public names: `Epoch`, `TrainingLog`, `descend`, `train_epochs`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 1, mean loss, NDCG@10 on validation where taken, seconds."""

    number: int
    loss: float
    score: float | None
    seconds: float


@dataclass
class TrainingLog:
    """What happened, epoch by epoch, and which epoch's weights were kept (0: the start's)."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None

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


def descend(optimizer: torch.optim.Optimizer, losses: Iterable[tuple[torch.Tensor, int]]) -> float:
    """Take a step down each loss; return their mean.

    Args:
        optimizer: of what the losses depend on.
        losses: mean loss and size of each batch. A loss must be computed when it is asked for (by
            a generator), with the weights that the step before it left.
    """
    total, count = 0.0, 0
    for loss, size in losses:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total, count = total + float(loss.detach()) * size, count + size
    return total / count


def train_epochs(
    module: nn.Module,
    run_epoch: Callable[[int], float],
    validate: Callable[[], float] | None,
    *,
    epochs: int,
    patience: int,
    every: int = 1,
    label: str = "train",
) -> TrainingLog:
    """Train until `patience` validations in a row brought nothing better; keep the best weights.

    Args:
        module: whose weights are kept and put back; buffers too.
        run_epoch: trains the epoch of this number, from 1, and returns its mean loss.
        validate: returns a score, higher is better; None: all epochs, the last weights stay.
        epochs: at most.
        patience: validations without a better score, a tie being none, after which to stop.
        every: epochs from one validation to the next.
        label: before the progress bar.

    Raises:
        FloatingPointError: a loss is not finite; the epoch is named.
    """
    log = TrainingLog()
    best: dict[str, torch.Tensor] | None = None
    without = 0
    progress = tqdm(range(1, epochs + 1), desc=label, unit=" epochs", leave=False)
    for number in progress:
        started = time.perf_counter()
        module.train()
        loss = run_epoch(number)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise FloatingPointError(
                f"{label}: the loss of epoch {number} is {loss}; try a smaller --learning-rate"
            )
        score = None
        if validate is not None and (number % every == 0 or number == epochs):
            module.eval()
            with torch.no_grad():
                score = validate()
        log.epochs.append(Epoch(number, loss, score, time.perf_counter() - started))
        if score is None:
            progress.set_postfix(loss=f"{loss:.4f}")
            continue
        if log.best_score is None or score > log.best_score:
            log.best_score, log.best_epoch, without = score, number, 0
            best = {name: value.detach().clone() for name, value in module.state_dict().items()}
        else:
            without += 1
        progress.set_postfix(loss=f"{loss:.4f}", ndcg=f"{score:.4f}", best=f"{log.best_score:.4f}")
        if without >= patience:
            break
    if best is None:
        log.best_epoch = len(log.epochs)
    else:
        module.load_state_dict(best)
    module.eval()
    return log
