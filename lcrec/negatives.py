"""Items to tell the true next item from: alike in words, alike in who buys them, or any.

Reads and writes nothing. Each function gives every case one item that its user has never had.

Public names: `similar_in_text`, `bought_alike`, `at_random`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from lcrec.data.folder import Interactions

BLOCK = 256  # cases whose similarities to the whole catalogue are held at once
Seen = Sequence[np.ndarray]


def similar_in_text(vectors: np.ndarray, targets: np.ndarray, seen: Seen) -> np.ndarray:
    """Return the item whose text is nearest to the target's by cosine, int64 [cases].

    Args:
        vectors: text embeddings, float [items, dim].
        targets: item ids [cases].
        seen: per case the items that are no negatives, the target among them.

    Returns:
        the nearest, of equals the one with the lower id; -1 where every item was seen.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-12)
    found = np.full(len(targets), -1)
    for start in range(0, len(targets), BLOCK):
        rows = slice(start, start + BLOCK)
        found[rows] = _nearest(unit[targets[rows]] @ unit.T, seen[rows], least=-np.inf)
    return found


def bought_alike(
    train: Interactions, num_items: int, targets: np.ndarray, seen: Seen
) -> np.ndarray:
    """Return the item that most of the target's customers bought in training, int64 [cases].

    Of items with equally many shared customers, the one with the fewest others is taken. Shared
    customers come first because the few decide otherwise: by cosine, most of Amazon Office's
    negatives are items bought twice, which a model tells apart by rarity alone. Arguments as for
    `similar_in_text`.

    Returns:
        -1 where no other item shares a customer with the target; of equals the lower id.
    """
    owners = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    pairs = np.unique(np.stack([owners, train.items]), axis=1)  # a repeated purchase counts once
    ones = np.ones(pairs.shape[1])
    users_by_items = sparse.csr_array((ones, tuple(pairs)), shape=(len(train), num_items))
    items_by_users = sparse.csr_array(users_by_items.T)
    customers = np.bincount(pairs[1], minlength=num_items)
    found = np.full(len(targets), -1)
    for start in range(0, len(targets), BLOCK):
        rows = slice(start, start + BLOCK)
        shared = (items_by_users[targets[rows]] @ users_by_items).toarray()
        # At most one half, so that it decides between equals only.
        shared += np.where(shared > 0, 0.5 / np.maximum(customers, 1), 0)
        found[rows] = _nearest(shared, seen[rows], least=0.0)
    return found


def at_random(num_items: int, seen: Seen, seed: int) -> np.ndarray:
    """Return any item that was not seen, int64 [cases], each as likely; -1 where there is none."""
    rng = np.random.default_rng(seed)
    found = np.full(len(seen), -1)
    for case, own in enumerate(seen):
        left = np.setdiff1d(np.arange(num_items), own)
        if len(left):
            found[case] = rng.choice(left)
    return found


def _nearest(scores: np.ndarray, seen: Seen, least: float) -> np.ndarray:
    """Return the column of the largest score above `least` in each row, -1 where there is none."""
    for row, own in enumerate(seen):
        scores[row, own] = -np.inf
    return np.where(scores.max(axis=1) > least, scores.argmax(axis=1), -1)
