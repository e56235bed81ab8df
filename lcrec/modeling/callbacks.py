"""What a trainer does besides training: it stops early, and says how it goes where no bar is."""

import math
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lcrec.core.console import ProgressBar

# How a validation's figures are shown, in their order.
_SHOWN = {
    "eval_loss": ("loss", ".3f"),
    "eval_hr@10": ("HR@10", ".4f"),
    "eval_ndcg@10": ("NDCG@10", ".4f"),
    "eval_items@10": ("distinct items", ",.0f"),
}
# What is shown of a log.
_NOTED = ("reward", "hit", "kl", "loss")


class EarlyStopping(EarlyStoppingCallback):
    """Stops after some validations with a gain neither in NDCG@10 nor in the loss.

    A model that starts from noise learns to spell items, which the loss shows, before it ranks one
    item above the others.

    Args:
        early_stopping_patience: how many.
        early_stopping_threshold: what a metric must gain to count.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0
    ) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.least_loss = math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop at once where the run that is resumed had stopped."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_evaluate(  # type: ignore[override]  # its two bases disagree on `metrics`
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the validation, unless the loss has never been as low."""
        loss = kwargs["metrics"]["eval_loss"]
        if loss < self.least_loss:
            self.least_loss, self.early_stopping_patience_counter = loss, -1
        super().on_evaluate(args, state, control, **kwargs)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        state = super().state()
        state["attributes"]["least_loss"] = self.least_loss
        return state


class TrainingLines(TrainerCallback):
    """Logs training where no terminal shows a bar: a line every 30 s and one per validation.

    Args:
        epochs: passes over the samples that the rows hold.
        work: what progress calls the training.
    """

    def __init__(self, epochs: int, work: str) -> None:
        self.epochs, self.work = epochs, work
        self._noted: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting, where the run is continued at the updates done before."""
        self._bar = ProgressBar(
            state.max_steps,
            self.work,
            "updates",
            initial=state.global_step,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print a line if the last one is 30 seconds old."""
        self._bar.update(epoch=self._epoch(state), **self._noted)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the means since the last log."""
        if logs is not None and "loss" in logs:
            self._noted = {name: f"{logs[name]:.3f}" for name in _NOTED if name in logs}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print what a validation found."""
        if metrics is not None and state.is_world_process_zero:
            print(
                f"Validation after {state.global_step:,} updates: {describe_metrics(metrics)}",
                flush=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print how long training took, if that was over 30 seconds."""
        self._bar.close()

    def _epoch(self, state: TrainerState) -> str:
        return f"{(state.epoch or 0) * self.epochs:.2f} of {self.epochs}"


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return what a validation found, as words of one line."""
    shown = [
        f"{name} {metrics[key]:{form}}" for key, (name, form) in _SHOWN.items() if key in metrics
    ]
    return ", ".join(shown)
