"""What every baseline is: a method that learns from train sequences and scores the catalogue.

Reads and writes nothing. To add a method, write one file with a class that fills in `fit` and
`score` (its docstring's first line is its line in `--help`), and name it in `BASELINES` in
`lcrec/baselines/__init__.py`.

Public names: `Baseline`.
"""

from abc import ABC, abstractmethod

import numpy as np

from lcrec.data import Interactions


class Baseline(ABC):
    """A method to compare with, judged on the same split as everything else.

    Args:
        seed: of whatever the method draws at random; methods that draw nothing ignore it.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def fit(self, train: Interactions, num_items: int) -> None:
        """Learn from the train sequences, oldest item first, ids 0 to `num_items` - 1."""

    @abstractmethod
    def score(self, histories: list[np.ndarray]) -> np.ndarray:
        """Score the whole catalogue for each history.

        Args:
            histories: int32 [length] each, oldest first, whole, at least one item. They may hold
                items that no train sequence has.

        Returns:
            float32 [batch, num_items], higher is better; -inf rules an item out.
        """
