"""Item-kNN: what the customers of the user's items bought as well (Sarwar et al. 2001).

    S[i, j] = both(i, j) / (sqrt(n(i) * n(j)) + shrink), 0 where i = j
    score(u, j) = sum over items i of the history that are neighbours of j, of weight(i) * S[i, j]

both(i, j) counts the users whose train sequence has both items, n(i) those who have i: without
`shrink` the cosine of the items' columns. The neighbours of j are the `neighbours` items most like
it; of equals the lower id. The weights are 1 in the paper; `history_decay` lets the last items
weigh more.

With the defaults, test items, HR@10 and NDCG@10: .109 and .073 on Amazon 2018 Office Products, .091
and .073 on LC-Rec's Instruments; with the tuned ones .109 and .086 there.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.shared.graph import history_rows, purchases
from lcrec.core.config import option

ITEMS_AT_ONCE = 2048  # whose similarities to all others are in memory before they are cut


@dataclass(frozen=True)
class ItemKNNSettings:
    """The defaults are RecBole 1.2.1's."""

    neighbours: int = option("the items most like an item that speak for it", 100, minimum=1)
    shrink: float = option("added below the fraction: few customers count less", 0.0, minimum=0)
    history_decay: float = option(
        "the factor per step back in the history; 1: order plays no part", 1.0, minimum=0, maximum=1
    )


class ItemKNN(Baseline):
    """Items are alike that the same users bought."""

    Settings: ClassVar[type] = ItemKNNSettings
    is_stochastic: ClassVar[bool] = False
    # Best NDCG@10 of 16 cells on 4,000 validation users of Instruments.
    tuned: ClassVar[dict[str, Any]] = {"neighbours": 500, "shrink": 10.0, "history_decay": 0.7}
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "neighbours": (100, 500),
        "shrink": (0.0, 10.0, 30.0),
        "history_decay": (0.5, 0.7, 0.9, 1.0),
    }

    def fit(self, data: TrainingData) -> None:
        """Find the neighbours; `self.likeness` is S, cut, sparse float32 [items, items]."""
        bought = purchases(data.train, data.num_items)
        customers = bought.T.tocsr()
        roots = np.sqrt(bought.sum(axis=0))
        parts = [
            self._neighbours(customers[start : start + ITEMS_AT_ONCE] @ bought, roots, start)
            for start in range(0, data.num_items, ITEMS_AT_ONCE)
        ]
        # Row j has the neighbours of j; a history asks for columns of them.
        self.likeness = sparse.vstack(parts, format="csr").T.tocsr()

    def _neighbours(
        self, both: sparse.csr_array, roots: np.ndarray, start: int
    ) -> sparse.csr_array:
        """Cut counts [items of the chunk, items] to the most alike of each row."""
        both = both.tocsr()
        both.sort_indices()
        rows = np.repeat(np.arange(both.shape[0]), np.diff(both.indptr))
        values = both.data / (roots[rows + start] * roots[both.indices] + self.settings.shrink)
        others = both.indices != rows + start
        rows, items, values = rows[others], both.indices[others], values[others]
        best_first = np.lexsort((items, -values, rows))
        rows, items, values = rows[best_first], items[best_first], values[best_first]
        counts = np.bincount(rows, minlength=both.shape[0])
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = rank < self.settings.neighbours
        return sparse.csr_array(
            (values[kept].astype(np.float32), (rows[kept], items[kept])), shape=both.shape
        )

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the weighted sums of likeness, float32 [batch, num_items]."""
        rows = history_rows(histories, self.likeness.shape[0], self.settings.history_decay)
        return (rows @ self.likeness).toarray()

    def state(self) -> dict[str, np.ndarray]:
        """Return the cut likeness, in the three arrays of a CSR matrix."""
        likeness = self.likeness
        return {"data": likeness.data, "indices": likeness.indices, "indptr": likeness.indptr}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the cut likeness."""
        parts = (state["data"], state["indices"], state["indptr"])
        self.likeness = sparse.csr_array(parts, shape=(data.num_items, data.num_items))
