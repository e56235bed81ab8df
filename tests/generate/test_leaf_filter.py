"""Allow and deny lists against sets, on random trees and on one small enough to read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.trie import ItemTrie

#            root
#           /    \
#          3      5          nodes 1, 2
#        / | \    |
#       6  8  9   7          nodes 3, 4, 5, 6
#  item 3  0  2   1
TOY = ItemTrie.build(np.array([[3, 8], [5, 7], [3, 9], [3, 6]]))


def reachable(leaf_filter, batch):
    """Return, per request, which of the nodes 0 to 6 lead to an item it may get."""
    nodes = torch.arange(7).expand(batch, -1)
    return [np.flatnonzero(row).tolist() for row in leaf_filter.reachable(nodes).numpy()]


def test_requests_of_one_batch_have_their_own_lists():
    leaf_filter = LeafFilter.build(
        TOY, 4, allow=[[3, 1], None, None, []], deny=[[3], [1], None, None]
    )
    assert reachable(leaf_filter, 4) == [
        [0, 2, 6],  # item 1 is left
        [0, 1, 3, 4, 5],  # all but item 1
        [0, 1, 2, 3, 4, 5, 6],
        [],
    ]
    assert leaf_filter.totals().tolist() == [1, 3, 4, 0]
    assert reachable(leaf_filter.rows(np.array([3, 0])), 2) == [[], [0, 2, 6]]
    assert reachable(leaf_filter.rows(slice(1, 2)), 1) == [[0, 1, 3, 4, 5]]
    for lists in (None, [None, None]):
        assert LeafFilter.build(TOY, 2, allow=lists, deny=lists) is None
    assert LeafFilter.build(TOY, 2, deny=[[], None]) is None
    assert LeafFilter.build(TOY, 2, allow=[[], None]) is not None
    stock = np.arange(3)
    leaf_filter = LeafFilter.build(
        TOY, 100, allow=[stock] * 100, deny=[[row % 4] for row in range(100)]
    )
    assert len(leaf_filter.allow.keys) == 3
    assert leaf_filter.totals().tolist() == [2, 2, 2, 3] * 25


@st.composite
def catalogues(draw):
    """Distinct rows over an alphabet small enough for shared prefixes."""
    depth = draw(st.integers(1, 6))
    rows = st.lists(st.integers(0, 2), min_size=depth, max_size=depth).map(tuple)
    return np.array(draw(st.lists(rows, min_size=1, max_size=30, unique=True)))


@given(st.data())
@settings(deadline=None)
def test_a_node_is_reachable_if_an_allowed_item_lies_below(data):
    rows = data.draw(catalogues())
    trie, n, batch = ItemTrie.build(rows), len(rows), 3
    ids = st.none() | st.lists(st.integers(0, n - 1), max_size=5)
    lists = st.none() | st.lists(ids, min_size=batch, max_size=batch)
    allow, deny = data.draw(lists), data.draw(lists)
    may = []
    for row in range(batch):
        allowed = set(range(n)) if allow is None or allow[row] is None else set(allow[row])
        may.append(allowed - set((deny and deny[row]) or ()))

    leaf_filter = LeafFilter.build(trie, batch, allow, deny)
    if leaf_filter is None:
        assert may == [set(range(n))] * batch
        return
    assert leaf_filter.totals().tolist() == [len(items) for items in may]
    order = data.draw(st.permutations(range(batch)))
    leaf_filter = leaf_filter.rows(np.array(order))
    for level in range(trie.depth + 1):
        prefixes = [tuple(row[:level]) for row in rows.tolist()]
        distinct = sorted(set(prefixes))
        above = [{prefixes[item] for item in may[row]} for row in order]
        nodes = torch.arange(trie.level_start[level], trie.level_start[level + 1])
        found = leaf_filter.reachable(nodes.expand(batch, -1))
        assert found.tolist() == [[prefix in user for prefix in distinct] for user in above]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"allow": [[0]]}, "allow: has 1 lists for 2 requests"),
        ({"deny": []}, "deny: has 0 lists for 2 requests"),
        ({"deny": [None, [0, 4]]}, "deny list of request 1: item 4 is not in .* ids are 0 to 3"),
        ({"allow": [[-1], None]}, "allow list of request 0: item -1"),
        ({"allow": [["a"], None]}, r"allow list of request 0: expected item ids, found \['a'\]"),
        ({"allow": [[1.0], None]}, "expected item ids"),
        ({"deny": [3, None]}, "deny list of request 0: expected item ids, found 3"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        LeafFilter.build(TOY, 2, **arguments)
