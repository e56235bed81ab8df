"""What methods share that keep a vector per user and per item and score by their dot product.

Reads and writes nothing.
"""

import numpy as np

from lcrec.baselines.base import UNKNOWN, Baseline, TrainingData


class VectorBaseline(Baseline):
    """A method whose `fit` leaves `user_vectors` [users, dim] and `item_vectors` [items, dim]."""

    user_vectors: np.ndarray
    item_vectors: np.ndarray

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the dot products, float32 [batch, num_items]."""
        return dot_scores(users, histories, self.user_vectors, self.item_vectors)

    def state(self) -> dict[str, np.ndarray]:
        """Return both matrices."""
        return {"user_vectors": self.user_vectors, "item_vectors": self.item_vectors}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take both matrices."""
        self.user_vectors, self.item_vectors = state["user_vectors"], state["item_vectors"]


def dot_scores(
    users: np.ndarray,
    histories: list[np.ndarray],
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
) -> np.ndarray:
    """Return the dot products of users and all items, float32 [batch, items].

    A user of whom there is no vector is the mean of the vectors of the items in their history.

    Args:
        users, histories: as for `Baseline.score`.
        user_vectors: float32 [users, dim].
        item_vectors: float32 [items, dim].
    """
    vectors = user_vectors[users]  # a copy; rows of -1 are replaced
    for row in np.flatnonzero(users == UNKNOWN):
        vectors[row] = item_vectors[histories[row]].mean(axis=0)
    return vectors @ item_vectors.T
