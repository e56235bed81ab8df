"""Histories as rows of a sparse matrix, for methods that weigh a user's items.

Reads and writes nothing. Public names: `history_rows`.
"""

import numpy as np
from scipy import sparse


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
