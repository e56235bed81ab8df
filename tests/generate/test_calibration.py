"""What a model gives items whatever the history: how it is estimated, chosen by, subtracted."""

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.data.splits import EvalCases
from lcrec.generate.calibration import Unconditional, calibrate, choose_share, unconditional
from lcrec.generate.recommender import Ranking, Recommender


def test_the_mean_over_histories_is_subtracted(checkpoint, split):
    recommender = Recommender.from_pretrained(checkpoint)
    num_items = len(recommender.index)
    before = recommender.recommend(split.test.histories[:5], num_items)
    known = unconditional(recommender, split.valid)
    # All items were found, so only what falls beside the tree was spread over them.
    ranking = recommender.recommend(known.cases.histories, num_items)
    probs = np.zeros((len(known.cases), num_items))
    np.put_along_axis(probs, ranking.items, np.exp(ranking.scores.astype(np.float64)), axis=1)
    probs += (1 - probs.sum(axis=1, keepdims=True)) / num_items
    assert known.log_probs == pytest.approx(np.log(probs.mean(axis=0)), abs=1e-4)

    calibrate(recommender, known.log_probs, 0.5)
    after = recommender.recommend(split.test.histories[:5], num_items)
    raw, less = np.empty((2, 5, num_items))
    for scores, found in ((raw, before), (less, after)):
        np.put_along_axis(scores, found.items, found.scores, axis=1)
    assert less == pytest.approx(raw - 0.5 * known.log_probs, abs=1e-3)
    assert (np.diff(after.scores) <= 0).all()


def test_the_share_that_serves_validation_best():
    """Item 0 stands first in every list, and is nobody's; others are each one user's."""
    users = 4
    items = np.array([[0, user + 1, -1] for user in range(users)])
    scores = np.tile(np.array([-0.1, -1.0, -np.inf], dtype=np.float32), (users, 1))
    targets = items[:, 1]
    cases = EvalCases([str(user) for user in range(users)], [targets[:1]] * users, targets)
    log_probs = np.array([-0.1, -3.0, -3.0, -3.0, -3.0])
    values = choose_share(Unconditional(cases, Ranking(items, scores), log_probs))
    assert values[0.0] == pytest.approx(1 / np.log2(3))
    assert values[0.3] == pytest.approx(1 / np.log2(3))  # -.1 + .03 above -1 + .9
    assert values[0.4] == values[1.0] == 1


def test_beams_that_leave_the_tree(checkpoint, split):
    loose = Recommender.from_pretrained(checkpoint, constraint="level")
    with pytest.raises(InputError, match="--calibrate needs --constraint trie"):
        unconditional(loose, split.valid)
