"""Prefixes, their words and an item's neighbours, on four items whose answers are plain."""

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.data.folder import Items
from lcrec.index.item_index import ItemIndex
from lcrec.index.page import draw_sunburst
from lcrec.index.tree import ItemTree, Neighbour

CODES = np.array([[0, 0], [0, 1], [1, 0], [0, 2]], dtype=np.int32)
INDEX = ItemIndex(CODES, (2, 3))
ITEMS = Items(
    [
        {"title": "Red mug", "categories": "Kitchen"},
        {"title": "Blue mug", "categories": "Kitchen"},
        {"title": "Blue tent", "categories": "Camping"},
        {"title": "Mug rack", "categories": "Camping"},
    ]
)
VECTORS = np.array([[1, 0], [1, 1], [0, 1], [3, 0]], dtype=np.float32)
TREE = ItemTree(INDEX, ITEMS, VECTORS)


def test_a_prefix_holds_its_items_their_words_and_their_category():
    first, second = TREE.children()  # the larger first
    assert (first.text, first.items.tolist()) == ("<a_0>", [0, 1, 3])
    # All three have "mug", which nobody else has; "blue" is as common outside.
    assert first.words == ["mug", "rack", "red"]
    assert first.purity == pytest.approx(2 / 3)
    assert (second.text, second.items.tolist(), second.purity) == ("<a_1>", [2], None)
    assert [branch.text for branch in TREE.path(1)] == ["<a_0>", "<a_0><b_1>"]
    assert [branch.text for branch in TREE.children([0])] == [
        "<a_0><b_0>",
        "<a_0><b_1>",
        "<a_0><b_2>",
    ]
    assert TREE.children([0])[0].items.tolist() == [0]


def test_neighbours_by_code_and_by_embedding():
    half = pytest.approx(0.5**0.5)
    assert TREE.near(0, 2, "codes") == [Neighbour(1, 1, half), Neighbour(3, 1, 1.0)]
    assert TREE.near(0, 2, "embeddings") == [Neighbour(3, 1, 1.0), Neighbour(1, 1, half)]
    assert [one.item for one in TREE.near(0, 5, "embeddings", among=[2, 0, 1, 1])] == [1, 2]
    without = ItemTree(INDEX, ITEMS)
    assert without.near(2, 1, "codes") == [Neighbour(0, 0, None)]
    with pytest.raises(InputError, match="--embeddings"):
        without.near(0, 1, "embeddings")


@pytest.mark.parametrize(
    "text",
    [
        *("", "a_0", "<b_0>", "<a_0> <b_0>", "<a_0><b_0><c_0>", "<a_00>"),
        *("<a_0>" * 30, "<a_" + "9" * 5000 + ">"),
    ],
)
def test_what_is_no_prefix_is_refused(text):
    with pytest.raises(InputError, match="no prefix; write one such as <a_0><b_0>"):
        TREE.read_prefix(text)


def test_a_prefix_that_no_item_has_is_refused_and_others_are_read():
    assert TREE.read_prefix(" <a_0><b_2>") == (0, 2)
    with pytest.raises(InputError, match="no item has the prefix <a_1><b_1>"):
        TREE.read_prefix("<a_1><b_1>")
    with pytest.raises(InputError, match="the index has 4 items, the catalogue 3"):
        ItemTree(INDEX, Items(ITEMS.fields[:3]))


def test_the_sunburst_has_a_wedge_for_every_prefix():
    picture = draw_sunburst(CODES)
    assert picture.caption.endswith("the prefixes of 1 to 2 codes: 2, 4.")
    assert picture.svg.count("stroke-width: 0.3") == 6
