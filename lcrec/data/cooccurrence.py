"""Counts which items stand near each other in train sequences, and finds what is near a history.

    C[i, j] = sum over train sequences, over pairs of places p and p + d with 1 <= d <= window:
                  distance_decay^(d - 1)             where i stands at p and j at p + d
                  distance_decay^(d - 1) * backward  where j stands at p and i at p + d
    score(j) = sum over k = 1 .. last:  history_decay^(k - 1) * C[k-th item from the end, j]

The baseline `cooccurrence` ranks by these scores, and `--fuse` joins a model's rankings with them;
the task `neighbours` and the template variable `neighbours` show a language model what they find.
The defaults are the grid's best HR@10 on the validation items of Amazon 2018 Office Products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions

WINDOW = 10
DISTANCE_DECAY = 0.7
BACKWARD = 0.5
LAST = 5
HISTORY_DECAY = 0.5
SHOWN = 10  # neighbours at most; a template shows fewer with {{ neighbours[:5] }}
# Far below the least score of a pair, and far above what rounding leaves of one taken out.
NOTHING = 1e-7


def count_pairs(
    train: Interactions,
    num_items: int,
    *,
    window: int = WINDOW,
    distance_decay: float = DISTANCE_DECAY,
    backward: float = BACKWARD,
    dtype: type[np.floating] = np.float32,
) -> sparse.csr_array:
    """Return C, sparse `dtype` [num_items, num_items].

    Args:
        train: the sequences to count, oldest item first.
        window: the largest distance between two items that counts.
        distance_decay: the factor per further step between them.
        backward: what it counts to stand before an item, against 1 for standing after it.
    """
    shape = (num_items, num_items)
    forward = sparse.csr_array(shape, dtype=dtype)
    sequence_of = train.owners
    for distance in range(1, window + 1):
        together = np.flatnonzero(sequence_of[:-distance] == sequence_of[distance:])
        pairs = (train.items[together], train.items[together + distance])
        weights = np.full(len(together), distance_decay ** (distance - 1), dtype=dtype)
        forward = forward + sparse.csr_array((weights, pairs), shape=shape)
    return sparse.csr_array(forward + dtype(backward) * forward.T)


def score_histories(
    counts: sparse.csr_array,
    histories: Sequence[np.ndarray],
    *,
    last: int = LAST,
    history_decay: float = HISTORY_DECAY,
) -> np.ndarray:
    """Return what all items count near the end of each history, float32 [batch, num_items].

    Args:
        counts: C, as `count_pairs` returns it.
        histories: int [length] each, oldest item first.
        last: how many of a history's last items speak.
        history_decay: the factor per step back in the history.
    """
    recent = [history[: -last - 1 : -1] for history in histories]  # the last one first
    lengths = [len(items) for items in recent]
    weights = [history_decay ** np.arange(length) for length in lengths]
    kind = counts.indices.dtype  # of another, all of C's would be copied for every batch
    speaking = sparse.csr_array(
        (
            np.concatenate(weights).astype(np.float32),
            np.concatenate(recent).astype(kind),
            np.concatenate(([0], np.cumsum(lengths))).astype(kind),
        ),
        shape=(len(histories), counts.shape[0]),
    )
    return (speaking @ counts).toarray()


@dataclass(frozen=True, eq=False)
class NearbyItems:
    """Finds the items that are counted near others.

    Attributes:
        counts: C with the defaults, float64: in float32, taking a user's pairs out would leave
            traces of them.
    """

    counts: sparse.csr_array

    @classmethod
    def count(cls, train: Interactions, num_items: int) -> "NearbyItems":
        """Count the pairs of the train sequences."""
        return cls(count_pairs(train, num_items, dtype=np.float64))

    def near(
        self, history: np.ndarray, *, without: np.ndarray | None = None, limit: int | None = SHOWN
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the items near the last of a history and their scores, best first.

        Items of the history are none of them, and of equals the lower id comes first. An item that
        joined after the counting has nothing near it.

        Args:
            history: int [length], oldest first; may be empty.
            without: int [length], a train sequence that was counted, whose pairs are taken out:
                that of the user whose next item is asked for, which they would give away.
            limit: how many at most; None for all.

        Returns:
            int64 [found] and float64 [found].
        """
        items, values = [], []
        counted = self.counts.shape[0]
        for step, item in enumerate(np.asarray(history)[: -LAST - 1 : -1].tolist()):
            if item >= counted:
                continue
            weight = HISTORY_DECAY**step
            row = slice(self.counts.indptr[item], self.counts.indptr[item + 1])
            items.append(self.counts.indices[row])
            values.append(weight * self.counts.data[row])
            if without is not None:
                for place in np.flatnonzero(without == item).tolist():
                    around = slice(max(0, place - WINDOW), place + WINDOW + 1)
                    items.append(without[around])
                    values.append(
                        -weight * _KERNEL[around.start - place + WINDOW :][: len(items[-1])]
                    )
        if not items:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        found, where = np.unique(np.concatenate(items), return_inverse=True)
        scores = np.bincount(where, np.concatenate(values), minlength=len(found))
        kept = (scores > NOTHING) & ~np.isin(found, history)
        found, scores = found[kept].astype(np.int64), scores[kept]
        order = np.argsort(-scores, kind="stable")[:limit]
        return found[order], scores[order]

    @cached_property
    def known(self) -> np.ndarray:
        """The items that have another near them, int64 ascending."""
        loops = self.counts.diagonal() > 0
        return np.flatnonzero(np.diff(self.counts.indptr) - loops)

    def save(self, path: Path) -> None:
        """Write the counts to a safetensors file."""
        parts = {name: getattr(self.counts, name) for name in ("data", "indices", "indptr")}
        save_file({name: np.ascontiguousarray(part) for name, part in parts.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "NearbyItems":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            parts = load_file(path)
            size = len(parts["indptr"]) - 1
            counts = sparse.csr_array(
                (parts["data"], parts["indices"], parts["indptr"]), shape=(size, size)
            )
            counts.check_format()
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: no counts of items bought together ({error}); train the checkpoint again"
            ) from None
        return cls(counts)


def _kernel() -> np.ndarray:
    """Return what an item counts by its distance from another, float64 [2 * WINDOW + 1]."""
    distances = np.arange(-WINDOW, WINDOW + 1)
    decayed = DISTANCE_DECAY ** (np.abs(distances) - 1.0)
    return np.where(distances == 0, 0.0, np.where(distances > 0, decayed, BACKWARD * decayed))


_KERNEL = _kernel()
