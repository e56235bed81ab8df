"""Items that a user does not have, drawn uniformly, to tell them from those they do.

Reads and writes nothing.
"""

import numpy as np
from scipy import sparse

from lcrec.core.errors import InputError


class NegativeSampler:
    """Draws items outside a user's train items.

    Args:
        bought: R, sparse [users, items].
        seed: of the draws.
        ranges: int64 [users, 2], the first item to draw for each user and one past the last, where
            several data sets stand side by side in R; None: all items for everyone.

    Raises:
        InputError: a user has every item, so nothing is left to draw.
    """

    def __init__(
        self, bought: sparse.csr_array, seed: int, ranges: np.ndarray | None = None
    ) -> None:
        self.num_items = bought.shape[1]
        if ranges is None:
            ranges = np.tile([0, self.num_items], (bought.shape[0], 1))
        self.first, self.sizes = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
        if (np.diff(bought.indptr) >= self.sizes).any():
            raise InputError("a user's train sequence has every item, so no other can be drawn")
        self.rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(bought.shape[0]), np.diff(bought.indptr))
        keys = np.sort(users * self.num_items + bought.indices)
        self.keys = np.append(keys, np.iinfo(np.int64).max)  # above all that is looked up

    def draw(self, users: np.ndarray, count: int) -> np.ndarray:
        """Return int64 [users, count], each item uniform over those that the user does not have.

        Args:
            users: int64 [batch], positions.
            count: how many per user, with replacement.
        """
        users = np.asarray(users, dtype=np.int64)
        drawn = self._draw(np.broadcast_to(users[:, None], (len(users), count)))
        again = self._is_bought(users[:, None], drawn)
        while again.any():
            rows, _ = np.nonzero(again)
            drawn[again] = self._draw(users[rows])
            again[again] = self._is_bought(users[rows], drawn[again])
        return drawn

    def _draw(self, users: np.ndarray) -> np.ndarray:
        places = self.rng.random(users.shape) * self.sizes[users]  # rounded down below
        return self.first[users] + places.astype(np.int64)

    def _is_bought(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = users * self.num_items + items
        return self.keys[np.searchsorted(self.keys, keys)] == keys
