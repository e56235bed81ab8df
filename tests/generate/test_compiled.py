"""Captured steps, by a recorder for the CPU that computes anew from the memory that was recorded.

`tests/test_cuda.py` asks the same of CUDA's graphs.
"""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lcrec.generate.beams import beam_search, read_head
from lcrec.generate.compiled import MOST_GRAPHS, StepGraphs
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.requests import plan_batches
from lcrec.generate.search import search
from lcrec.generate.trie import ItemTrie

CPU = torch.device("cpu")


class Recorder:
    """Records steps as CUDA does: they see the tensors that they were recorded with, no others."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, steps, inputs):
        self.recorded += 1
        outputs = tuple(found.clone() for found in steps(*inputs))

        def replay():
            self.replayed += 1
            for place, found in zip(outputs, steps(*inputs), strict=True):
                place.copy_(found)

        return replay, outputs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=200, **sizes, **heads)).eval()


@pytest.fixture(scope="module")
def trie():
    paths = np.random.default_rng(0).choice(5**3, 40, replace=False)
    levels = np.stack(np.unravel_index(paths, (5,) * 3), axis=1)
    return ItemTrie.build(levels + 100 + 5 * np.arange(3))


def make_prompts(seed, rows=3, length=12):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, : seed % 4] = 0
    ids[:, :4] = torch.arange(10, 14)
    return ids, mask


def same(found, expected):
    assert found.items.equal(expected.items)
    torch.testing.assert_close(found.scores, expected.scores)


def test_a_replay_finds_what_the_steps_find_in_any_order(model, trie):
    record = Recorder()
    graphs = StepGraphs(CPU, record)
    head = read_head(model, range(10, 14))
    rng = np.random.default_rng(0)
    for turn in range(12):
        ids, mask = make_prompts(turn, length=12 if turn % 2 else 9)
        options = {"head": head} if turn % 4 < 2 else {}
        if turn % 4 < 2:
            mask[:] = 1
        if turn % 2:  # lists of 3 or 4 keys in all share a graph
            deny = [rng.choice(40, 2 + turn // 2 % 2, replace=False), None, [turn]]
            options["leaf_filter"] = LeafFilter.build(trie, 3, deny=deny)
        found = search(model, ids, mask, trie, 6, graphs=graphs, **options)
        same(found, search(model, ids, mask, trie, 6, **options))
    assert (record.recorded, record.replayed) == (2, 8)


def test_a_larger_batch_makes_the_memory_anew(model, trie):
    record = Recorder()
    graphs = StepGraphs(CPU, record)
    for turn, rows in enumerate((2, 2, 2, 5, 2, 2, 5, 5)):
        ids, mask = make_prompts(turn, rows=rows)
        found = beam_search(model, ids, mask, trie, 6, graphs=graphs)
        same(found, beam_search(model, ids, mask, trie, 6))
    assert record.recorded == 3  # of 2 rows twice: the first graph went with its memory
    assert record.replayed == 3


def test_another_tree_or_another_number_of_beams_is_another_graph(model, trie):
    record = Recorder()
    graphs = StepGraphs(CPU, record)
    reverse = ItemTrie.build(np.ascontiguousarray(make_items()[::-1]))
    for tree in (trie, reverse) * 3:
        for beams in (5, 6):
            ids, mask = make_prompts(beams)
            found = beam_search(model, ids, mask, tree, beams, graphs=graphs)
            same(found, beam_search(model, ids, mask, tree, beams))
    assert (record.recorded, record.replayed) == (4, 4)


def make_items():
    levels = np.stack(np.unravel_index(np.arange(30), (5,) * 3), axis=1)
    return levels + 100 + 5 * np.arange(3)


def test_only_so_many_graphs_are_kept():
    record = Recorder()
    graphs = StepGraphs(CPU, record)
    for key in (*range(MOST_GRAPHS + 1), *range(MOST_GRAPHS + 1), MOST_GRAPHS, 0, 1):
        (found,) = graphs.run(key, (), lambda x: (x + 1,), (torch.tensor([key]),))
        assert found.item() == key + 1
    # The last was kept; the first went, and so did the second when the first came again.
    assert (record.recorded, record.replayed) == (MOST_GRAPHS + 3, 1)


def test_a_capture_that_fails_is_said_once_and_steps_go_on(model, trie, caplog):
    tries = []

    def record(steps, inputs):
        tries.append(steps(*inputs))
        raise RuntimeError("operation not permitted\nand more")

    graphs = StepGraphs(CPU, record)
    for turn in range(4):
        ids, mask = make_prompts(turn)
        found = search(model, ids, mask, trie, 6, graphs=graphs)
        same(found, search(model, ids, mask, trie, 6))
    assert len(tries) == 1
    assert not graphs.captures
    (line,) = caplog.messages
    assert line == (
        "going on without CUDA graphs, which cannot be captured (RuntimeError: operation not "
        "permitted)"
    )


def test_memory_that_is_full_ends_capturing(model, trie, monkeypatch):
    record = Recorder()
    graphs = StepGraphs(CPU, record)
    expected = search(model, *make_prompts(0, rows=4), trie, 6)
    for _ in range(2):
        search(model, *make_prompts(0, rows=4), trie, 6, graphs=graphs)
    forward = model.model.forward

    def full(input_ids, **options):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model.model, "forward", full)
    same(search(model, *make_prompts(0, rows=4), trie, 6, graphs=graphs), expected)
    assert not graphs.captures


def test_on_a_cpu_steps_are_called_as_they_are():
    graphs, calls = StepGraphs(CPU), []

    def steps(*inputs):
        calls.append(inputs)
        return inputs

    tensor = torch.ones(1)
    for _ in range(3):
        assert graphs.run("key", (), steps, (tensor,))[0] is tensor
    assert len(calls) == 3
    assert not graphs.captures


def test_batches_have_few_shapes():
    prompts = [[1] * length for length in range(1, 101)]
    batches = plan_batches(prompts, 256, 32)
    assert sorted(row for rows in batches for row in rows) == list(range(100))
    # Of 128, 96, 64 and 32 tokens, as many rows as the budget holds; the last batch has the rest.
    found = {(len(rows), -(-len(prompts[max(rows)]) // 32) * 32) for rows in batches[:-1]}
    assert found == {(2, 128), (2, 96), (4, 64), (8, 32)}
