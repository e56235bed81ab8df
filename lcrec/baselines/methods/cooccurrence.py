"""Decayed co-occurrence: what followed, or stood near, the user's last items in other sequences.

    C[i, j] = sum over train sequences, over pairs of places p and p + d with 1 <= d <= window:
                  distance_decay^(d - 1)             where i stands at p and j at p + d
                  distance_decay^(d - 1) * backward  where j stands at p and i at p + d
    score(j) = sum over k = 1 .. last:  history_decay^(k - 1) * C[k-th item from the end, j]

The counts are not normalised: dividing by the frequency of either item lowered validation HR@10.
The defaults are the grid's best HR@10 on the validation items of Amazon 2018 Office Products;
they give HR@10 .207 and NDCG@10 .161 there, .143 and .106 on the test items.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.core.config import option


@dataclass(frozen=True)
class CooccurrenceSettings:
    """What can be set."""

    window: int = option("the largest distance between two items that counts", 10, minimum=1)
    distance_decay: float = option("the factor per further step between them", 0.7, minimum=0)
    backward: float = option(
        "what it counts to stand before an item, against 1 for standing after it", 0.5, minimum=0
    )
    last: int = option("how many of a history's last items speak", 5, minimum=1)
    history_decay: float = option("the factor per step back in the history", 0.5, minimum=0)


class Cooccurrence(Baseline):
    """What stood after or near the user's last items in train sequences, decayed."""

    Settings: ClassVar[type] = CooccurrenceSettings
    is_stochastic: ClassVar[bool] = False

    def fit(self, data: TrainingData) -> None:
        """Count the pairs; `self.counts` is C, a sparse float32 [num_items, num_items]."""
        train, shape = data.train, (data.num_items, data.num_items)
        forward = sparse.csr_array(shape, dtype=np.float32)
        sequence_of = np.repeat(np.arange(len(train)), np.diff(train.offsets))
        for distance in range(1, self.settings.window + 1):
            together = np.flatnonzero(sequence_of[:-distance] == sequence_of[distance:])
            pairs = (train.items[together], train.items[together + distance])
            weight = self.settings.distance_decay ** (distance - 1)
            weights = np.full(len(together), weight, dtype=np.float32)
            forward = forward + sparse.csr_array((weights, pairs), shape=shape)
        backward = np.float32(self.settings.backward) * forward.T
        self.counts = sparse.csr_array(forward + backward)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the decayed sum of the last items' rows of C, float32 [batch, num_items]."""
        last = self.settings.last
        recent = [history[: -last - 1 : -1] for history in histories]  # the last one first
        lengths = [len(items) for items in recent]
        weights = [self.settings.history_decay ** np.arange(length) for length in lengths]
        speaking = sparse.csr_array(
            (
                np.concatenate(weights).astype(np.float32),
                np.concatenate(recent),
                np.concatenate(([0], np.cumsum(lengths))),
            ),
            shape=(len(histories), self.counts.shape[0]),
        )
        return (speaking @ self.counts).toarray()

    def state(self) -> dict[str, np.ndarray]:
        """Return the counts, in the three arrays of a CSR matrix."""
        counts = self.counts
        return {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the counts."""
        parts = (state["data"], state["indices"], state["indptr"])
        self.counts = sparse.csr_array(parts, shape=(data.num_items, data.num_items))
