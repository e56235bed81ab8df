"""How familiar the end of a history is, counted by hand."""

import numpy as np
import pytest

from lcrec.data.folder import Interactions
from lcrec.data.history_facts import history_facts
from lcrec.data.splits import EvalCases


def test_a_user_s_own_steps_do_not_count():
    train = Interactions.from_sequences({"a": [0, 1, 2], "b": [1, 2], "c": [1, 2, 1, 2, 0]})
    histories = [np.array([0, 1, 2]), np.array([1, 2]), np.array([2]), np.array([3, 3])]
    cases = EvalCases(["a", "new", "b", "c"], histories, np.zeros(4, dtype=np.int64))
    log = np.log1p
    assert history_facts(train, cases, 4) == pytest.approx(
        np.array(
            [
                [log(3), (log(0) + log(3)) / 2, log(3)],  # others: 0, 1 never
                [log(2), log(4), log(4)],
                [log(1), 0, log(3)],
                [log(2), 0, 0],
            ]
        )
    )
