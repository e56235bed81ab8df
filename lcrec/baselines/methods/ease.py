"""EASE: a linear model that predicts an item from all others, in closed form (Steck 2019).

    G = R^T R + regularisation * I,  P = G^-1,  B[i, j] = -P[i, j] / P[j, j], 0 where i = j
    score(u, j) = sum over items i of the history of weight(i) * B[i, j]

(WWW 2019, arXiv 1905.03375, equation 8.) R is 1 where the user has the item in the train sequences.
The weights are 1 in the paper; `history_decay` lets the last items weigh more.

B is dense, [items, items]: this is the one method here whose memory grows with the square of the
catalogue, so a limit is set on it.

With the defaults, test items, HR@10 and NDCG@10: .124 and .085 on Amazon 2018 Office Products, .121
and .087 on LC-Rec's Instruments; with the tuned ones .126 and .092 there.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import linalg

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.shared.graph import history_rows, purchases
from lcrec.core.config import option
from lcrec.core.errors import InputError

COPIES = 3  # of [items, items] float32 at the peak: G and its inverse, one of them mirrored


@dataclass(frozen=True)
class EASESettings:
    """The default is RecBole 1.2.1's; the paper finds 200 to 1,000 on data sets far denser."""

    regularisation: float = option("what is added to every item's count", 250.0, minimum=1e-3)
    history_decay: float = option(
        "the factor per step back in the history; 1: order plays no part", 1.0, minimum=0, maximum=1
    )
    memory_gb: float = option(
        "refuse a catalogue that needs more; 4 GB hold 18,000 items", 4.0, minimum=0.001
    )


class EASE(Baseline):
    """An item is predicted from the others of a history by linear weights, found at once."""

    Settings: ClassVar[type] = EASESettings
    is_stochastic: ClassVar[bool] = False
    # Best NDCG@10 of 12 cells on 4,000 validation users of Instruments; second on Office.
    tuned: ClassVar[dict[str, Any]] = {"regularisation": 250.0, "history_decay": 0.7}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "regularisation": (3.0, 10.0, 30.0, 100.0, 250.0, 500.0),
        "history_decay": (0.5, 0.7, 0.9, 1.0),
    }

    def fit(self, data: TrainingData) -> None:
        """Solve for B; `self.weights` is it, float32 [items, items]."""
        need = COPIES * 4 * data.num_items**2 / 1e9
        if need > self.settings.memory_gb:
            raise InputError(
                f"ease: {data.num_items:,} items need {need:.1f} GB for their dense weights, more "
                f"than --memory-gb {self.settings.memory_gb:g}; raise it, or use itemknn"
            )
        bought = purchases(data.train, data.num_items)
        gram = (bought.T @ bought).toarray(order="F")
        gram[np.diag_indices(len(gram))] += np.float32(self.settings.regularisation)
        # Positive definite, so half of the work of a general inverse, and in place.
        factor, singular = linalg.lapack.spotrf(gram, lower=True, overwrite_a=True)
        inverse, failed = linalg.lapack.spotri(factor, lower=True, overwrite_c=True)
        if singular or failed or not np.isfinite(np.diag(inverse)).all():
            raise InputError(
                f"--regularisation {self.settings.regularisation:g} is too small to invert the "
                "counts of these items; raise it"
            )
        weights = np.tril(inverse, -1)
        weights += weights.T
        weights /= -np.diag(inverse)
        self.weights = np.ascontiguousarray(weights)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the weighted sums of the histories' rows of B, float32 [batch, num_items]."""
        rows = history_rows(histories, len(self.weights), self.settings.history_decay)
        return rows @ self.weights

    def state(self) -> dict[str, np.ndarray]:
        """Return B."""
        return {"weights": self.weights}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take B."""
        self.weights = state["weights"]
