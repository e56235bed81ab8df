"""Gumbel top-k over the tree: exact probabilities, the law of its draws, filters."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.trie import ItemTrie
from lcrec.reinforce.rollouts import draw_items

PATHS = np.array([[5, 6, 7], [5, 6, 8], [5, 9, 7], [10, 6, 7], [10, 6, 9], [11, 12, 13]])
PROMPT = torch.tensor([[0, 20, 21, 22]])
MASK = torch.tensor([[0, 1, 1, 1]])


@pytest.fixture(scope="module")
def model(base):
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    for weight in model.parameters():
        weight.data.mul_(0.6)  # no item is nearly sure
    return model


@torch.no_grad()
def enumerate_items(model, allowed):
    """Each allowed item's probability, a softmax over the allowed children at every node."""
    found = {}
    for item in allowed:
        total = 0.0
        for level in range(3):
            prefix = PATHS[item, :level]
            ids = torch.cat([PROMPT[0, 1:], torch.from_numpy(prefix)])[None]
            logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
            below = {PATHS[o, level] for o in allowed if (PATHS[o, :level] == prefix).all()}
            total += float(logits[PATHS[item, level]] - logits[sorted(below)].logsumexp(0))
        found[item] = np.exp(total)
    return found


@pytest.mark.parametrize("deny", [(), (1, 5)])
def test_probabilities_are_those_of_enumeration(model, deny):
    trie = ItemTrie.build(PATHS)
    allowed = [item for item in range(6) if item not in deny]
    leaf_filter = LeafFilter.build(trie, 1, deny=[list(deny)]) if deny else None
    drawn = draw_items(
        model, PROMPT, MASK, trie, len(allowed), torch.Generator(), leaf_filter=leaf_filter
    )
    expected = enumerate_items(model, allowed)
    assert sum(expected.values()) == pytest.approx(1)
    assert sorted(drawn.items[0].tolist()) == allowed
    for item, score in zip(drawn.items[0].tolist(), drawn.log_probs[0].tolist(), strict=True):
        assert np.exp(score) == pytest.approx(expected[item], rel=1e-4)


def test_draws_follow_the_law_of_sampling_without_replacement(model):
    """How often each pair is drawn, against the probability of both orders, within 4 deviations."""
    trie = ItemTrie.build(PATHS)
    times = 4000
    generator = torch.Generator().manual_seed(3)
    prompts, mask = PROMPT.expand(times, -1), MASK.expand(times, -1)
    drawn = draw_items(model, prompts, mask, trie, 2, generator)
    pairs = drawn.items.sort(dim=1).values
    p = enumerate_items(model, range(6))
    for one, two in itertools.combinations(range(6), 2):
        share = float((pairs == torch.tensor([one, two])).all(1).float().mean())
        law = p[one] * p[two] / (1 - p[one]) + p[two] * p[one] / (1 - p[two])
        assert abs(share - law) < 4 * np.sqrt(law * (1 - law) / times), (one, two)
    # The weights make means over the draws those over the distribution.
    for item in range(6):
        found = torch.where(drawn.items == item, drawn.weights, 0).sum(1)
        assert abs(float(found.mean()) - p[item]) < 4 * float(found.std()) / np.sqrt(times), item


def test_the_generator_decides(model):
    trie = ItemTrie.build(PATHS)
    first, same, other = (
        draw_items(model, PROMPT, MASK, trie, 2, torch.Generator().manual_seed(seed)).items.tolist()
        for seed in (7, 7, 8)
    )
    assert first == same
    assert first != other
