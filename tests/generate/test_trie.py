"""The tree of items, and allow and deny lists on it, against sets."""

from collections import defaultdict

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
TOY = np.array([[3, 8], [5, 7], [3, 9], [3, 6]])


def all_nodes(trie, level):
    return torch.arange(trie.level_start[level], trie.level_start[level + 1])


@st.composite
def catalogues(draw):
    """Distinct rows over an alphabet small enough for shared prefixes, or as wide as int32."""
    depth = draw(st.integers(1, 8))
    token = draw(st.sampled_from([st.integers(0, 2), st.integers(150_000, 150_300)]))
    token = draw(st.sampled_from([token, st.integers(0, 2**31 - 1)]))
    rows = st.lists(token, min_size=depth, max_size=depth).map(tuple)
    return np.array(draw(st.lists(rows, min_size=1, max_size=30, unique=True)))


def test_toy_tree():
    trie = ItemTrie.build(TOY)
    assert (trie.num_items, trie.depth, trie.max_token) == (4, 2, 9)
    assert [trie.num_nodes(level) for level in range(3)] == [1, 2, 4]
    assert [trie.max_children(level) for level in range(2)] == [2, 3]
    assert trie.child_start.tolist() == [1, 3, 6, 7]
    assert trie.token.tolist() == [0, 3, 5, 6, 8, 9, 7]

    nodes, tokens, valid = trie.children(torch.tensor([[1, 2]]), 1)
    assert nodes.shape == tokens.shape == valid.shape == (1, 2, 3)
    assert valid.tolist() == [[[True, True, True], [True, False, False]]]
    assert nodes[valid].tolist() == [3, 4, 5, 6]
    assert tokens[valid].tolist() == [6, 8, 9, 7]
    assert trie.items(torch.tensor([[3, 4], [5, 6]])).tolist() == [[3, 0], [2, 1]]


def test_toy_walks():
    nodes, on_path = ItemTrie.build(TOY).walk(torch.tensor([[3, 9], [5, 7], [5, 9], [4, 6]]))
    assert on_path.tolist() == [True, True, False, False]
    assert nodes[:2].tolist() == [5, 6]
    trie = ItemTrie.build(np.array([[7]], dtype=np.int32))
    nodes, tokens, valid = trie.children(torch.zeros(1, dtype=torch.int64), 0)
    assert (nodes.tolist(), tokens.tolist(), valid.tolist()) == ([[1]], [[7]], [[True]])
    assert trie.items(nodes).tolist() == [[0]]


@given(catalogues())
@settings(deadline=None)
def test_holds_exactly_the_catalogue(rows):
    trie = ItemTrie.build(rows)
    expected = defaultdict(set)
    for row in rows.tolist():
        for level, token in enumerate(row):
            expected[tuple(row[:level])].add(token)

    # Walk down from the root, carrying every node's path.
    paths = {0: ()}
    for level in range(trie.depth):
        nodes = all_nodes(trie, level)
        children, tokens, valid = trie.children(nodes, level)
        assert children[valid].tolist() == all_nodes(trie, level + 1).tolist()
        assert set(children.flatten().tolist()) == set(all_nodes(trie, level + 1).tolist())
        assert children.shape[1] == valid.sum(dim=1).max() == trie.max_children(level)
        below = {}
        for row, node in enumerate(nodes.tolist()):
            real = valid[row]
            assert tokens[row, real].tolist() == sorted(expected[paths[node]])
            for child, token in zip(children[row, real].tolist(), tokens[row, real], strict=True):
                below[child] = (*paths[node], int(token))
        paths = below
    leaves = all_nodes(trie, trie.depth)
    assert [paths[leaf] for leaf in leaves.tolist()] == sorted(map(tuple, rows.tolist()))
    assert rows[trie.items(leaves).numpy()].tolist() == [
        list(paths[leaf]) for leaf in leaves.tolist()
    ]
    assert trie.walk(torch.from_numpy(rows))[1].all()


def test_many_wide_levels_sort_right_and_same_tokens_twice_are_named():
    # 8 levels of 18 bits do not fit one 63-bit key.
    rows = np.random.default_rng(0).integers(0, 2**18, (2000, 8))
    rows[1000:, :6] = rows[:1000, :6]
    trie = ItemTrie.build(rows)
    leaves = all_nodes(trie, 8)
    assert rows[trie.items(leaves).numpy()].tolist() == sorted(rows.tolist())
    with pytest.raises(InputError, match=r"items 1 and 3 have the same tokens \[4, 5\]"):
        ItemTrie.build(np.array([[4, 6], [4, 5], [3, 5], [4, 5]]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 3), dtype=np.int64), "at least one item"),
        (np.zeros((3, 0), dtype=np.int64), "at least one item and one level"),
        (np.arange(3), r"int64 \[3\]"),
        (np.array([[1.0]]), "float64"),
        (np.array([[-1]]), "got -1 to -1"),
        (np.array([[2**31]]), "got 2147483648"),
    ],
)
def test_refuses_what_is_no_catalogue(rows, message):
    with pytest.raises(InputError, match=message):
        ItemTrie.build(rows)


def test_moves_between_devices():
    trie = ItemTrie.build(TOY)
    moved = trie.to("meta")
    assert trie.device.type == "cpu"
    assert moved.device.type == moved.child_start.device.type == "meta"
    assert (moved.depth, moved.widths) == (trie.depth, trie.widths)


def reachable(leaf_filter, batch):
    """Return, per request, which of the nodes 0 to 6 lead to an item it may get."""
    nodes = torch.arange(7).expand(batch, -1)
    return [np.flatnonzero(row).tolist() for row in leaf_filter.reachable(nodes).numpy()]


def test_requests_of_one_batch_have_their_own_lists():
    leaf_filter = LeafFilter.build(
        ItemTrie.build(TOY), 4, allow=[[3, 1], None, None, []], deny=[[3], [1], None, None]
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
        assert LeafFilter.build(ItemTrie.build(TOY), 2, allow=lists, deny=lists) is None
    assert LeafFilter.build(ItemTrie.build(TOY), 2, deny=[[], None]) is None
    assert LeafFilter.build(ItemTrie.build(TOY), 2, allow=[[], None]) is not None
    stock = np.arange(3)
    leaf_filter = LeafFilter.build(
        ItemTrie.build(TOY), 100, allow=[stock] * 100, deny=[[row % 4] for row in range(100)]
    )
    assert len(leaf_filter.allow.keys) == 3
    assert leaf_filter.totals().tolist() == [2, 2, 2, 3] * 25
    leaf_filter = LeafFilter.build(
        ItemTrie.build(TOY), 100, deny=[stock] * 100, exclude=[[row % 4] for row in range(100)]
    )
    assert [len(lists.keys) for lists in leaf_filter.deny] == [3, 25]
    assert leaf_filter.totals().tolist() == [1, 1, 1, 0] * 25


@given(st.data())
@settings(deadline=None)
def test_a_node_is_reachable_if_an_allowed_item_lies_below(data):
    rows = data.draw(catalogues())
    trie, n, batch = ItemTrie.build(rows), len(rows), 3
    ids = st.none() | st.lists(st.integers(0, n - 1), max_size=5)
    lists = st.none() | st.lists(ids, min_size=batch, max_size=batch)
    allow, deny, exclude = data.draw(lists), data.draw(lists), data.draw(lists)
    shared = data.draw(ids)
    if data.draw(st.booleans()):
        deny = [shared, None, shared]
    may = []
    for row in range(batch):
        allowed = set(range(n)) if allow is None or allow[row] is None else set(allow[row])
        may.append(allowed - {item for own in (deny, exclude) for item in (own and own[row]) or ()})

    leaf_filter = LeafFilter.build(trie, batch, allow, deny, exclude)
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
def test_refuses_lists(arguments, message):
    with pytest.raises(InputError, match=message):
        LeafFilter.build(ItemTrie.build(TOY), 2, **arguments)
