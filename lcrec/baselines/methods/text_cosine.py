"""Text cosine: the items whose text is most like the mean of the user's items; nothing is trained.

    score(u, i) = cos(mean of z_j over the history, z_i)

It is what a method has to beat that learns to map the vectors of texts.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lcrec.baselines.base import Baseline, Need, TrainingData, require_embeddings
from lcrec.baselines.shared.graph import history_rows
from lcrec.core.config import option


@dataclass(frozen=True)
class TextCosineSettings:
    """What can be set."""

    last: int | None = option(
        "how many of a history's last items count; none: all", None, minimum=1
    )


class TextCosine(Baseline):
    """The cosine between the mean embedding of a history's items and each item's."""

    Settings: ClassVar[type] = TextCosineSettings
    is_stochastic: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})

    def fit(self, data: TrainingData) -> None:
        """Take the embeddings."""
        self.embeddings = require_embeddings(data, "text-cosine")

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the cosines, float32 [batch, num_items]; of a history each item counts once."""
        last = self.settings.last
        counted = [history[-last:] if last else history for history in histories]
        # The sum points where the mean does.
        summed = history_rows(counted, len(self.embeddings)) @ self.embeddings
        return _unit(summed) @ _unit(self.embeddings).T

    def state(self) -> dict[str, np.ndarray]:
        """Return the embeddings."""
        return {"embeddings": self.embeddings}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the embeddings."""
        self.embeddings = state["embeddings"]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1; one of zeros, which is like nothing, stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
