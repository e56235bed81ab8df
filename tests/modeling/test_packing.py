"""Packed samples: buffers that hold every token once, and the gradients of padded rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lcrec.core.errors import InputError
from lcrec.modeling.packing import PackingCollator, first_fit, split_buffers, takes_buffers
from lcrec.modeling.trainer import sample_losses
from lcrec.prompts.rows import collate_left

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make_rows(*shapes):
    """Return rows of (prompt, answer) tokens, made of numbers that tell them apart."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(1, 64, (prompt + answer,), generator=generator).tolist(),
            "prompt_length": prompt,
            "task": ("seqrec", "item2index")[number % 2],
        }
        for number, (prompt, answer) in enumerate(shapes)
    ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 80))
@settings(max_examples=60, deadline=None)
def test_first_fit_takes_every_sample_once_and_no_buffer_in_vain(lengths, capacity):
    buffers = first_fit(lengths, capacity)
    assert sorted(sample for buffer in buffers for sample in buffer) == list(range(len(lengths)))
    used = [sum(lengths[sample] for sample in buffer) for buffer in buffers]
    assert max(used) <= capacity
    # Two buffers never fit into one: the second was opened as the first had no room for its first.
    for number, buffer in enumerate(buffers):
        assert all(used[before] + lengths[buffer[0]] > capacity for before in range(number))


def test_a_buffer_by_hand():
    rows = [
        {"input_ids": [5, 6, 7], "prompt_length": 2, "task": "seqrec"},
        {"input_ids": [8, 9, 10, 11], "prompt_length": 1, "task": "item2index"},
    ]
    batch = PackingCollator(0, 9)(rows)
    assert batch["input_ids"].tolist() == [[8, 9, 10, 11, 5, 6, 7, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    scored = batch["labels"][0] >= 0
    for name, expected in {
        "labels": [9, 10, 11, 7],
        "places": [0, 1, 2, 5],
        "samples": [1, 1, 1, 0],
    }.items():
        assert batch[name][0, scored].tolist() == expected
    assert batch["task"].tolist() == [0, 1]
    with pytest.raises(InputError, match=r"--max-tokens-per-batch 3: a sample has 4 tokens"):
        PackingCollator(0, 3)(rows)


def test_parts_too_many_are_scored_nowhere():
    batch = PackingCollator(0, 12)(make_rows((5, 3), (6, 2), (4, 4)))
    parts = split_buffers(batch, 5)
    answers = [int((part["labels"] >= 0).sum()) for part in parts]
    assert answers == [3, 2, 4, 0, 0]
    assert all(part["input_ids"].shape == (1, 12) for part in parts)


def models():
    torch.manual_seed(0)
    yield LlamaForCausalLM(LlamaConfig(**SMALL))
    # The window is shorter than the samples, and counts within a sample.
    yield MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("capacity", [16, 40, 100])
def test_losses_and_gradients_are_those_of_padded_rows(model, attention, capacity):
    model.set_attn_implementation(attention)
    model.eval()
    rows = make_rows((9, 4), (3, 5), (12, 4), (7, 1), (2, 2))
    found = []
    for batch in (collate_left(rows, 0), PackingCollator(0, capacity)(rows)):
        model.zero_grad()
        losses, _ = sample_losses(model, batch)
        losses[:, 0].sum().backward()
        found.append([losses.detach(), *(p.grad.clone() for p in model.parameters())])
    assert found[0][0][:, 1].tolist() == [4, 5, 4, 1, 2]
    for padded, packed in zip(*found, strict=True):
        assert torch.allclose(padded, packed, atol=1e-5)


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
def test_families_that_keep_samples_apart_are_found(model):
    model.train()
    assert takes_buffers(model, 64)
    assert model.training


def test_a_family_that_carries_a_state_over_is_found():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert not takes_buffers(MambaForCausalLM(config), 64)
