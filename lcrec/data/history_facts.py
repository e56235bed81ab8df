"""What is known of a history before anything is ranked: how long it is, how familiar its end is.

Everything is counted in the train sequences, without the user's own: a validation history stands in
them with all its steps, and a test history with all but the last, so that counting them would tell
the two apart and nothing else. Reads and writes nothing.
"""

import itertools

import numpy as np
from scipy import sparse

from lcrec.data.folder import Interactions
from lcrec.data.splits import EvalCases

NAMES = ("length of the history", "last steps seen in training", "last item seen in training")
LAST = 3  # steps from one item to the next, at the end of a history


def history_facts(train: Interactions, cases: EvalCases, num_items: int) -> np.ndarray:
    """Return `NAMES` of every case, float64 [cases, 3], all as log(1 + count).

    The second is the mean over the last `LAST` steps from an item to the next of how often other
    users' train sequences take the step; the third how often these have the last item.

    Args:
        train: the train sequences.
        cases: whose histories are looked at.
        num_items: the size of the catalogue.
    """
    items = train.items.astype(np.int64)
    owners = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    inside = owners[:-1] == owners[1:]
    pairs = (items[:-1][inside], items[1:][inside])
    shape = (num_items, num_items)
    steps = sparse.csr_array((np.ones(int(inside.sum())), pairs), shape=shape)
    counts = np.bincount(items, minlength=num_items)
    position = {user: place for place, user in enumerate(train.users)}
    facts = np.empty((len(cases), len(NAMES)))
    for row, (user, history) in enumerate(zip(cases.users, cases.histories, strict=True)):
        own = train.sequence(position[user]) if user in position else items[:0]
        recent = history[-LAST - 1 :]
        seen = [
            steps[first, second] - np.sum((own[:-1] == first) & (own[1:] == second))
            for first, second in itertools.pairwise(recent)
        ]
        others = counts[history[-1]] - np.sum(own == history[-1])
        facts[row] = (
            np.log1p(len(history)),
            np.log1p(seen).mean() if seen else 0.0,
            np.log1p(others),
        )
    return facts
