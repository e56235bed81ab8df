"""What is known of a history before anything is ranked: how long it is, how familiar its end is.

Everything is counted in the train sequences, without the user's own: a validation history stands in
them with all its steps, and a test history with all but the last, so that counting them would tell
the two apart and nothing else.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lcrec.data.folder import Interactions
from lcrec.data.splits import EvalCases

NAMES = ("length of the history", "last steps seen in training", "last item seen in training")
LAST = 3  # steps from one item to the next, at the end of a history


@dataclass(frozen=True, eq=False)
class SeenSteps:
    """How often sequences take each step from an item to the next, and have each item.

    Attributes:
        steps: float64 [num_items, num_items], sparse.
        items: int64 [num_items].
    """

    steps: sparse.csr_array
    items: np.ndarray

    @classmethod
    def count(cls, train: Interactions, num_items: int) -> "SeenSteps":
        """Count the train sequences."""
        items = train.items.astype(np.int64)
        owners = train.owners
        inside = owners[:-1] == owners[1:]
        pairs = (items[:-1][inside], items[1:][inside])
        shape = (num_items, num_items)
        steps = sparse.csr_array((np.ones(int(inside.sum())), pairs), shape=shape)
        return cls(steps, np.bincount(items, minlength=num_items))

    def facts(self, history: np.ndarray, own: np.ndarray) -> tuple[float, float, float]:
        """Return `NAMES` of one history.

        Args:
            history: int [length], at least one item, oldest first.
            own: int [length], what was counted of the same user, which does not count here; empty
                for somebody who was not counted.
        """
        seen = [
            self.steps[first, second] - np.sum((own[:-1] == first) & (own[1:] == second))
            for first, second in itertools.pairwise(history[-LAST - 1 :])
        ]
        others = self.items[history[-1]] - np.sum(own == history[-1])
        familiar = float(np.log1p(seen).mean()) if seen else 0.0
        return float(np.log1p(len(history))), familiar, float(np.log1p(others))


def history_facts(train: Interactions, cases: EvalCases, num_items: int) -> np.ndarray:
    """Return `NAMES` of every case, float64 [cases, 3], all as log(1 + count).

    The second is the mean over the last `LAST` steps from an item to the next of how often other
    users' train sequences take the step; the third how often these have the last item.

    Args:
        cases: whose histories are looked at.
    """
    known, own = SeenSteps.count(train, num_items), train.sequences_of(cases.users)
    facts = [
        known.facts(history, items) for history, items in zip(cases.histories, own, strict=True)
    ]
    return np.array(facts).reshape(-1, len(NAMES))
