"""Who bought what: as a sparse matrix, histories as its rows, and items that a user has not."""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from lcrec.data.folder import Interactions

SEEN = 2**20  # remainders of what a sampler looks up: fits a cache, few purchases share one


def purchases(train: Interactions, num_items: int) -> sparse.csr_array:
    """Return R, float32 [users, items], 1 where a train sequence of the user has the item."""
    users = train.owners
    counts = sparse.csr_array(
        (np.ones(len(users), dtype=np.float32), (users, train.items)), shape=(len(train), num_items)
    )
    counts.sum_duplicates()
    counts.data[:] = 1
    return counts


def history_rows(
    histories: list[np.ndarray], num_items: int, decay: float = 1.0
) -> sparse.csr_array:
    """Return float32 [batch, items]: `decay` to the steps from the end where an item last stood.

    An item that stands several times counts once. With `decay` 1 order plays no part.

    Args:
        histories: int32 [length] each, oldest first.
        num_items: the size of the catalogue.
        decay: the factor per step back, 0 to 1; with 0 the last item alone counts.
    """
    rows, items, weights = [], [], []
    for row, history in enumerate(histories):
        distinct, steps = np.unique(history[::-1], return_index=True)
        rows.append(np.full(len(distinct), row))
        items.append(distinct)
        weights.append(np.float64(decay) ** steps)
    return sparse.csr_array(
        (np.concatenate(weights).astype(np.float32), (np.concatenate(rows), np.concatenate(items))),
        shape=(len(histories), num_items),
    )


def shuffled_pairs(
    bought: sparse.csr_array, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield every purchase of R once, shuffled: users and items, int64 [batch, 2]."""
    pairs = np.stack(bought.nonzero(), axis=1).astype(np.int64)
    order = rng.permutation(len(pairs))
    for start in range(0, len(order), batch_size):
        yield pairs[order[start : start + batch_size]]


def user_means(bought: sparse.csr_array, vectors: np.ndarray) -> np.ndarray:
    """Return the mean over each user's items, float32 [users, dim]; zeros for one without.

    Args:
        bought: R, sparse [users, items].
        vectors: of the items, float32 [items, dim].
    """
    counts = np.maximum(np.diff(bought.indptr), 1)[:, None]
    return ((bought @ vectors) / counts).astype(np.float32)


class NegativeSampler:
    """Draws items outside a user's train items; of all items for a user who has every one.

    Against these the user's own items are drawn, so that on the average nothing is learnt of them.

    Args:
        bought: R, sparse [users, items].
        seed: of the draws.
        ranges: int64 [users, 2], the first item to draw for each user and one past the last, where
            several data sets stand side by side in R; None: all items for everyone.
    """

    def __init__(
        self, bought: sparse.csr_array, seed: int, ranges: np.ndarray | None = None
    ) -> None:
        self.num_items = bought.shape[1]
        if ranges is None:
            ranges = np.tile([0, self.num_items], (bought.shape[0], 1))
        self.first, self.sizes = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
        self.rng = np.random.default_rng(seed)
        counts = np.diff(bought.indptr)
        users = np.repeat(np.arange(bought.shape[0]), counts)
        lacks_items = np.repeat(counts < self.sizes, counts)
        keys = np.sort((users * self.num_items + bought.indices)[lacks_items])
        self.keys = np.append(keys, np.iinfo(np.int64).max)  # above all that is looked up
        self.seen = np.zeros(SEEN, dtype=bool)  # a key whose remainder is not here is not there
        self.seen[keys % SEEN] = True

    def draw(self, users: np.ndarray, count: int) -> np.ndarray:
        """Return int64 [users, count], each item uniform over those that may be drawn.

        Args:
            users: int64 [batch], positions.
            count: how many per user, with replacement.
        """
        users = np.asarray(users, dtype=np.int64)[:, None]
        drawn = self._draw(users, (len(users), count))
        again = self._is_bought(users, drawn)
        while again.any():
            rows, _ = np.nonzero(again)
            owners = users[rows, 0]
            drawn[again] = self._draw(owners, owners.shape)
            again[again] = self._is_bought(owners, drawn[again])
        return drawn

    def _draw(self, users: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        places = self.rng.random(shape) * self.sizes[users]  # rounded down below
        return self.first[users] + places.astype(np.int64)

    def _is_bought(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = users * self.num_items + items
        found = self.seen[keys % SEEN]
        some = keys[found]
        found[found] = self.keys[np.searchsorted(self.keys, some)] == some
        return found
