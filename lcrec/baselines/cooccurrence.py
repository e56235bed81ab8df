"""Decayed co-occurrence: what followed, or stood near, the user's last items in other sequences.

    C[i, j] = sum over train sequences, over pairs of places p and p + d with 1 <= d <= window:
                  distance_decay^(d - 1)             where i stands at p and j at p + d
                  distance_decay^(d - 1) * backward  where j stands at p and i at p + d
    score(j) = sum over k = 1 .. last:  history_decay^(k - 1) * C[k-th item from the end, j]

The counts are not normalised: dividing by the frequency of either item lowered validation HR@10.
The defaults are the grid's best HR@10 on the validation items of Amazon 2018 Office Products;
they give HR@10 .207 and NDCG@10 .161 there, .143 and .106 on the test items.

Reads and writes nothing. Public names: `Cooccurrence`.
"""

import numpy as np
from scipy import sparse

from lcrec.baselines.base import Baseline
from lcrec.data import Interactions


class Cooccurrence(Baseline):
    """What stood after or near the user's last five items in train sequences, decayed.

    Args:
        window: the largest distance between two items of a sequence that counts.
        distance_decay: the factor per further step between them, above 0, at most 1.
        backward: what it counts to stand before an item, against 1 for standing after it.
        last: how many of a history's last items speak.
        history_decay: the factor per step back in the history, above 0, at most 1.
        seed: ignored; nothing is drawn.
    """

    def __init__(
        self,
        *,
        window: int = 10,
        distance_decay: float = 0.7,
        backward: float = 0.5,
        last: int = 5,
        history_decay: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.window = window
        self.distance_decay = distance_decay
        self.backward = backward
        self.last = last
        self.history_decay = history_decay

    def fit(self, train: Interactions, num_items: int) -> None:
        """Count the pairs; `self.counts` is C, a sparse float32 [num_items, num_items]."""
        shape = (num_items, num_items)
        forward = sparse.csr_array(shape, dtype=np.float32)
        sequence_of = np.repeat(np.arange(len(train)), np.diff(train.offsets))
        for distance in range(1, self.window + 1):
            together = np.flatnonzero(sequence_of[:-distance] == sequence_of[distance:])
            pairs = (train.items[together], train.items[together + distance])
            weights = np.full(
                len(together), self.distance_decay ** (distance - 1), dtype=np.float32
            )
            forward = forward + sparse.csr_array((weights, pairs), shape=shape)
        self.counts = sparse.csr_array(forward + np.float32(self.backward) * forward.T)

    def score(self, histories: list[np.ndarray]) -> np.ndarray:
        """Return the decayed sum of the last items' rows of C, float32 [batch, num_items]."""
        recent = [history[: -self.last - 1 : -1] for history in histories]  # the last one first
        lengths = [len(items) for items in recent]
        weights = [self.history_decay ** np.arange(length) for length in lengths]
        speaking = sparse.csr_array(
            (
                np.concatenate(weights).astype(np.float32),
                np.concatenate(recent),
                np.concatenate(([0], np.cumsum(lengths))),
            ),
            shape=(len(histories), self.counts.shape[0]),
        )
        return (speaking @ self.counts).toarray()
