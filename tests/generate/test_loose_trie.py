"""Looser constraints on a catalogue of three items, and on random models."""

import numpy as np
import pytest
import torch
from test_decoding import VOCAB, make_items, make_model, make_prompts, score_all

from lcrec.core.errors import InputError
from lcrec.generate.beams import beam_search
from lcrec.generate.hf_generate import generate_search
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.search import search
from lcrec.generate.trie import ItemTrie, LooseTrie

# Items 0, 1 and 2; a level rule also lets [10, 21] and [11, 20] through.
TRIE = ItemTrie.build(np.array([[10, 20], [11, 21], [12, 20]]))


def test_looser_trees_by_hand():
    loose = LooseTrie.by_level(TRIE)
    assert [tokens.tolist() for tokens in loose.allowed] == [[10, 11, 12], [20, 21]]
    assert [loose.num_nodes(level) for level in range(3)] == [1, 3, 6]
    nodes, tokens, valid = loose.children(torch.zeros(1, 1, dtype=torch.int64), 0)
    assert valid.all()
    assert tokens.tolist() == [[[10, 11, 12]]]
    leaves, tokens, valid = loose.children(nodes[0], 1)
    assert valid.all()
    assert tokens.tolist() == [[[20, 21]] * 3]
    assert loose.items(leaves).tolist() == [[[0, -1], [-1, 1], [2, -1]]]
    # What has left the tree stays off it.
    assert (loose.children(torch.tensor([[-1]]), 1)[0] == -1).all()
    loose = LooseTrie.anything(TRIE, 30)
    nodes, tokens, _ = loose.children(torch.zeros(1, dtype=torch.int64), 0)
    assert tokens.tolist() == [list(range(30))]
    assert (nodes[0] >= 0).nonzero()[:, 0].tolist() == [10, 11, 12]
    assert loose.num_nodes(2) == 900
    paths = torch.tensor([[10, 20], [10, 21], [10, 22], [12, 20]])
    leaves, allowed = LooseTrie.by_level(TRIE).walk(paths)
    assert allowed.tolist() == [True, True, False, True]
    assert LooseTrie.by_level(TRIE).items(leaves[allowed]).tolist() == [0, -1, 2]
    assert LooseTrie.anything(TRIE, 30).walk(paths)[1].all()


@pytest.mark.parametrize("strategy", [beam_search, generate_search])
@pytest.mark.parametrize("num_beams", [1, 12, 40])
def test_the_level_rule_is_the_tree_of_all_its_sequences(strategy, num_beams):
    """A catalogue with every sequence of codes shows where the beams of the rule go."""
    model, items, (ids, mask) = make_model("qwen3"), make_items(), make_prompts()
    loose = LooseTrie.by_level(ItemTrie.build(items.numpy()))
    product = torch.cartesian_prod(*loose.allowed)
    everything = ItemTrie.build(product.numpy())
    ranked = beam_search(model, ids, mask, everything, num_beams)
    numbers = {tuple(row): item for item, row in enumerate(items.tolist())}
    output = strategy(model, ids, mask, loose, num_beams)
    for row in range(len(ids)):
        paths = product[ranked.items[row]].tolist()
        expected = [numbers[tuple(path)] for path in paths if tuple(path) in numbers]
        found = output.items[row] >= 0
        assert output.items[row][found].tolist() == expected
        assert (output.scores[row][~found] == -torch.inf).all()
        real = [tuple(path) in numbers for path in paths]
        torch.testing.assert_close(
            output.scores[row][found], ranked.scores[row][real], atol=1e-4, rtol=0
        )


def test_without_a_constraint_few_beams_are_items():
    model, items, (ids, mask) = make_model(), make_items(), make_prompts()
    trie = ItemTrie.build(items.numpy())
    free = search(model, ids, mask, LooseTrie.anything(trie, VOCAB), 20)
    slow = generate_search(model, ids, mask, LooseTrie.anything(trie, VOCAB), 20)
    assert free.items.tolist() == slow.items.tolist()
    assert (free.items < 0).any()
    scores = score_all(model, ids, mask, items)
    for row, found in enumerate(free.items >= 0):
        own = scores[row][free.items[row][found]]
        torch.testing.assert_close(free.scores[row][found], own, atol=1e-4, rtol=0)


def test_lists_need_the_tree():
    model, (ids, mask) = make_model(), make_prompts()
    trie = ItemTrie.build(make_items().numpy())
    lists = LeafFilter.build(trie, 3, deny=[[1], None, None])
    with pytest.raises(InputError, match="need the constraint 'trie'"):
        search(model, ids, mask, LooseTrie.by_level(trie), 5, leaf_filter=lists)
