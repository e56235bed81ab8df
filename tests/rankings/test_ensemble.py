"""Joint lists by hand."""

import numpy as np

from lcrec.rankings.fusion import join_lists

NOTHING = -np.inf


def join(*lists, k):
    """Join one user's lists, each {item: score} in order; return {item: mean}."""
    length = max(map(len, lists))
    items = np.full((len(lists), 1, length), -1, dtype=np.int64)
    scores = np.full((len(lists), 1, length), NOTHING, dtype=np.float32)
    for row, own in enumerate(lists):
        items[row, 0, : len(own)] = list(own)
        scores[row, 0, : len(own)] = list(own.values())
    (joint,), (means,) = join_lists(items, scores, k)
    assert ((joint >= 0) == (means > NOTHING)).all()
    return {int(item): float(score) for item, score in zip(joint, means, strict=True) if item >= 0}


def test_joint_lists_by_hand():
    assert join({1: -1, 2: -3}, {2: -1, 1: -4}, k=2) == {2: -2.0, 1: -2.5}
    # 7 is worth at most -3 to the first wording, 5 at most -4 to the second.
    joint = join({5: -1, 6: -3}, {7: -2, 6: -4}, k=3)
    assert joint == {5: -2.5, 7: -2.5, 6: -3.5}
    assert list(joint) == [5, 7, 6]  # of equals the lower id first
    assert join({5: -1}, {5: -3, 6: -5}, {}, k=4) == {5: -2.0, 6: -3.0}
    items = np.full((2, 3, 4), -1, dtype=np.int64)
    joint, means = join_lists(items, np.full((2, 3, 4), NOTHING, dtype=np.float32), 2)
    assert (joint == -1).all()
    assert (means == NOTHING).all()
    assert list(join({1: -1, 2: -2, 3: -3}, {1: -1, 2: -2, 3: -3}, k=2)) == [1, 2]
