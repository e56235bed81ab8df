"""Methods that are counted or solved at once, without torch: no epochs, no draws."""

import numpy as np
from scipy import linalg, sparse

from lcrec.baselines.base import Baseline, TrainingData, require_embeddings
from lcrec.baselines.settings import (
    CooccurrenceSettings,
    EASESettings,
    ItemKNNSettings,
    PopularitySettings,
    TextCosineSettings,
)
from lcrec.baselines.shared.purchases import history_rows, purchases
from lcrec.core.errors import InputError
from lcrec.data.cooccurrence import count_pairs, score_histories
from lcrec.data.folder import unit_rows


class Popularity(Baseline):
    """Popularity: the same list for everyone, items most bought in the train sequences first.

    On the test items of Amazon 2018 Office Products: HR@10 .014, NDCG@10 .005.
    """

    Settings = PopularitySettings
    learnt = ("counts",)

    def fit(self, data: TrainingData) -> None:
        """Count every item."""
        self.counts = np.bincount(data.train.items, minlength=data.num_items).astype(np.float32)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the counts once per history, float32 [batch, num_items]."""
        return np.tile(self.counts, (len(histories), 1))


class MatrixBaseline(Baseline):
    """A method whose `fit` leaves `matrix`, sparse float32 [num_items, num_items]."""

    matrix: sparse.csr_array

    def state(self) -> dict[str, np.ndarray]:
        """Return the three arrays of the matrix."""
        matrix = self.matrix
        return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take the matrix."""
        parts = (state["data"], state["indices"], state["indptr"])
        self.matrix = sparse.csr_array(parts, shape=(data.num_items, data.num_items))


class Cooccurrence(MatrixBaseline):
    """Decayed co-occurrence: what followed, or stood near, the user's last items elsewhere.

    `lcrec.data.cooccurrence` counts, and states both formulas.

    The counts are not normalised: dividing by the frequency of either item lowered validation
    HR@10. The defaults are the grid's best HR@10 on the validation items of Amazon 2018 Office
    Products; they give HR@10 .207 and NDCG@10 .161 there, .143 and .106 on the test items.
    """

    Settings = CooccurrenceSettings

    def fit(self, data: TrainingData) -> None:
        """Count the pairs: the matrix is C."""
        self.matrix = count_pairs(
            data.train,
            data.num_items,
            window=self.settings.window,
            distance_decay=self.settings.distance_decay,
            backward=self.settings.backward,
        )

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the decayed sum of the last items' rows of C, float32 [batch, num_items]."""
        return score_histories(
            self.matrix,
            histories,
            last=self.settings.last,
            history_decay=self.settings.history_decay,
        )


ITEMS_AT_ONCE = 2048  # whose similarities to all others are in memory before they are cut


class ItemKNN(MatrixBaseline):
    """Item-kNN: what the customers of the user's items bought as well (Sarwar et al. 2001).

        S[i, j] = both(i, j) / (sqrt(n(i) * n(j)) + shrink), 0 where i = j
        score(u, j) = sum of weight(i) * S[i, j], items i of the history that are neighbours of j

    both(i, j) counts the users whose train sequence has both items, n(i) those who have i: without
    `shrink` the cosine of the items' columns. The neighbours of j are the `neighbours` items most
    like it; of equals the lower id. The weights are 1 in the paper; `history_decay` lets the last
    items weigh more.

    With the defaults, test items, HR@10 and NDCG@10: .109 and .073 on Amazon 2018 Office Products,
    .091 and .073 on LC-Rec's Instruments; with the tuned ones .109 and .086 there.
    """

    Settings = ItemKNNSettings

    def fit(self, data: TrainingData) -> None:
        """Find the neighbours: the matrix is S, cut."""
        bought = purchases(data.train, data.num_items)
        customers = bought.T.tocsr()
        roots = np.sqrt(bought.sum(axis=0))
        parts = [
            self._neighbours(customers[start : start + ITEMS_AT_ONCE] @ bought, roots, start)
            for start in range(0, data.num_items, ITEMS_AT_ONCE)
        ]
        # Row j has the neighbours of j; a history asks for columns of them.
        self.matrix = sparse.vstack(parts, format="csr").T.tocsr()

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
        rows = history_rows(histories, self.matrix.shape[0], self.settings.history_decay)
        return (rows @ self.matrix).toarray()


COPIES = 3  # of [items, items] float32 at the peak: G and its inverse, one of them mirrored


class EASE(Baseline):
    """EASE: a linear model that predicts an item from all others, in closed form (Steck 2019).

        G = R^T R + regularisation * I,  P = G^-1,  B[i, j] = -P[i, j] / P[j, j], 0 where i = j
        score(u, j) = sum over items i of the history of weight(i) * B[i, j]

    (WWW 2019, arXiv 1905.03375, equation 8.) R is 1 where the user has the item in the train
    sequences. The weights are 1 in the paper; `history_decay` lets the last items weigh more.

    B is dense, [items, items]: this is the one method here whose memory grows with the square of
    the catalogue, so a limit is set on it.

    With the defaults, test items, HR@10 and NDCG@10: .124 and .085 on Amazon 2018 Office Products,
    .121 and .087 on LC-Rec's Instruments; with the tuned ones .126 and .092 there.
    """

    Settings = EASESettings
    learnt = ("weights",)

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


class TextCosine(Baseline):
    """Text cosine: the items whose text is most like the mean of the user's items.

        score(u, i) = cos(mean of z_j over the history, z_i)

    It is what a method has to beat that learns to map the vectors of texts.
    """

    Settings = TextCosineSettings
    learnt = ("embeddings",)

    def fit(self, data: TrainingData) -> None:
        """Take the embeddings."""
        self.embeddings = require_embeddings(data, "text-cosine")

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the cosines, float32 [batch, num_items]; of a history each item counts once."""
        last = self.settings.last
        counted = [history[-last:] if last else history for history in histories]
        # The sum points where the mean does.
        summed = history_rows(counted, len(self.embeddings)) @ self.embeddings
        return unit_rows(summed) @ unit_rows(self.embeddings).T
