"""Items that a user does not have, drawn uniformly, to tell them from those they do.

Reads and writes nothing. Public names: `NegativeSampler`.
"""

import numpy as np
from scipy import sparse

from lcrec.errors import InputError


class NegativeSampler:
    """Draws items outside a user's train items.

    Args:
        bought: R, sparse [users, items].
        seed: of the draws.

    Raises:
        InputError: a user has every item, so nothing is left to draw.
    """

    def __init__(self, bought: sparse.csr_array, seed: int) -> None:
        self.num_items = bought.shape[1]
        most = int(np.diff(bought.indptr).max(initial=0))
        if most >= self.num_items:
            raise InputError("a user's train sequence has every item, so no other can be drawn")
        self.rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(bought.shape[0]), np.diff(bought.indptr))
        self.keys = np.sort(users * self.num_items + bought.indices)

    def draw(self, users: np.ndarray, count: int) -> np.ndarray:
        """Return int64 [users, count], each item uniform over those that the user does not have.

        Args:
            users: int64 [batch], positions.
            count: how many per user, with replacement.
        """
        drawn = self.rng.integers(0, self.num_items, (len(users), count))
        offsets = np.asarray(users, dtype=np.int64)[:, None] * self.num_items
        again = self._is_bought(offsets + drawn)
        while again.any():
            rows, _ = np.nonzero(again)
            drawn[again] = self.rng.integers(0, self.num_items, len(rows))
            again[again] = self._is_bought(offsets[rows, 0] + drawn[again])
        return drawn

    def _is_bought(self, keys: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return self.keys[places] == keys
