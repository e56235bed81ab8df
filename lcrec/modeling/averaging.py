"""A running average of the weights that are trained, which ranks better than the last step does."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STEPPED = "stepped.safetensors"  # in a checkpoint: the weights that training goes on from


class RunningAverage(TrainerCallback):
    """Keeps the exponential moving average of a model's trained weights.

    Polyak and Juditsky (1992) average the iterates of stochastic descent; a decay of d weighs about
    the last 1 / (1 - d) updates. Until there are that many, all of them weigh about alike.

    Args:
        model: its parameters that take gradients are averaged, whole on every process.
        decay: what the average keeps of itself at an update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._model = model
        self._average: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the weights that the model begins with; a resumed run has its average."""
        for name, weight in self._trained().items():
            held = self._average.get(name, weight.detach().clone())
            self._average[name] = held.to(weight.device)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take an update into the average."""
        kept = min(self._decay, (1 + state.global_step) / (10 + state.global_step))
        trained = self._trained()
        torch._foreach_lerp_(
            [self._average[name] for name in trained], list(trained.values()), 1 - kept
        )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save_stepped(self, folder: Path) -> None:
        """Write the weights that training goes on from, while the averaged ones are in place."""
        stepped = {name: weight.contiguous() for name, weight in self._average.items()}
        save_file(stepped, folder / STEPPED)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint whose weights, the averaged ones, the model has."""
        self._average = load_file(folder / STEPPED)
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._trained().items():
            held = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name] = held

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: w for name, w in self._model.named_parameters() if w.requires_grad}
