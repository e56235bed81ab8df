"""Places reserved for items that the model was not trained on."""

import numpy as np
import pytest

from lcrec.generate.new_items import give_places, new_item_requests
from lcrec.generate.requests import RankingRequest

NEW = np.array([7, 8, 9])


def places(ranked, best_new):
    """Give places in a ranking whose scores fall from -1, by new items whose scores rise again."""
    scores = np.where(np.array(ranked) < 0, -np.inf, -1.0 - np.arange(len(ranked)))
    new_scores = -2.5 * np.ones(len(best_new))
    items, values = give_places(
        (np.array(ranked), scores.astype(np.float32)),
        (np.array(best_new), new_scores.astype(np.float32)),
        NEW,
    )
    found = values[items >= 0]
    assert (np.diff(found) <= 0).all()
    assert np.isfinite(found).all()
    assert (values[items < 0] == -np.inf).all()
    return items.tolist()


@pytest.mark.parametrize(
    ("ranked", "best_new", "expected"),
    [
        ([1, 2, 3, 4], [7, 8], [1, 2, 7, 8]),
        ([1, 2, 3, 4], [7, -1], [1, 2, 3, 7]),  # one is left to give
        ([1, 7, 3, 4], [7, 8], [1, 7, 3, 8]),  # one stands there by itself
        ([1, 9, 3, 4], [7], [1, 9, 3, 4]),  # and that is all that was asked for
        ([9, 7, 3, 4], [7, 8], [9, 7, 3, 4]),
        ([1, 2, -1, -1], [7], [1, 2, 7, -1]),  # nothing goes where there is room
        ([1, 2, 3, -1], [7, 8], [1, 2, 7, 8]),
        ([1, 2], [7, 8], [7, 8]),
        ([-1, -1], [7, -1], [7, -1]),
    ],
)
def test_the_last_places_are_taken(ranked, best_new, expected):
    assert places(ranked, best_new) == expected


def test_requests_that_share_an_allow_list_share_the_new_items_in_it():
    allow = np.array([9, 1, 8, 9])
    requests = [RankingRequest([1], k=3, allow=allow, reserve_new=2) for _ in range(2)]
    requests.append(RankingRequest([1], k=3, allow=allow, deny=[8, 2], reserve_new=2))
    requests.append(RankingRequest([1], k=3, allow=[1, 2], reserve_new=2))
    rows, asked = new_item_requests(requests, NEW)
    assert rows == [0, 1, 2]
    assert [own.k for own in asked] == [2, 2, 1]
    assert asked[0].allow.tolist() == [8, 9]
    assert asked[0].allow is asked[1].allow is asked[2].allow
