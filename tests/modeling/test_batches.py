"""Packed samples: buffers that hold every token once, and the gradients of padded rows."""

import pytest
import torch
from datasets import Dataset
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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lcrec.core.errors import InputError
from lcrec.modeling.base import choose_attention
from lcrec.modeling.batches import (
    PackingCollator,
    first_fit,
    sample_losses,
    split_buffers,
    takes_buffers,
)
from lcrec.modeling.cost import Activations
from lcrec.modeling.finetuning import TrainingModel, TrainingRows, buffer_tokens
from lcrec.modeling.recipe import TrainingSettings
from lcrec.prompts.rows import collate_left

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


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


@given(st.integers(20, 60), st.integers(20, 60))
@settings(max_examples=20, deadline=None)
def test_a_batch_packed_anew_is_the_rows_packed_so(before, after):
    rows = make_rows((9, 4), (3, 5), (12, 4), (7, 1), (2, 2))
    collator = PackingCollator(0, before)
    batch = collator(rows)
    collator.capacity = after
    for name, value in collator.repack(batch).items():
        assert value.equal(collator(rows)[name]), name


def test_parts_too_many_are_scored_nowhere():
    batch = PackingCollator(0, 12)(make_rows((5, 3), (6, 2), (4, 4)))
    parts = split_buffers(batch, 5)
    answers = [int((part["labels"] >= 0).sum()) for part in parts]
    assert answers == [3, 2, 4, 0, 0]
    assert all(part["input_ids"].shape == (1, 12) for part in parts)


torch.manual_seed(0)
MODELS = [
    LlamaForCausalLM(LlamaConfig(**SMALL)),
    # The window is shorter than the samples, and counts within a sample.
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("capacity", [16, 40, 100])
def test_losses_and_gradients_are_those_of_padded_rows(model, attention, capacity):
    model.set_attn_implementation(attention)
    model.eval()
    rows = make_rows((9, 4), (3, 5), (12, 4), (7, 1), (2, 2))
    found = []
    for batch in (collate_left(rows, 0), PackingCollator(0, capacity)(rows)):
        model.zero_grad()
        parts = split_buffers(batch, len(batch["input_ids"])) if "places" in batch else [batch]
        losses = sum(sample_losses(model, part)[0] for part in parts)
        losses[:, 0].sum().backward()
        found.append([losses.detach(), *(p.grad.clone() for p in model.parameters())])
    assert found[0][0][:, 1].tolist() == [4, 5, 4, 1, 2]
    for padded, packed in zip(*found, strict=True):
        assert torch.allclose(padded, packed, atol=1e-5)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_families_that_keep_samples_apart_are_found(model):
    model.train()
    assert takes_buffers(model)
    assert model.training


def test_a_family_that_carries_a_state_over_is_found():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert not takes_buffers(MambaForCausalLM(config))


def test_attention_is_what_was_asked_for_or_refused(monkeypatch):
    model, mamba = MODELS[0], MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1))
    assert not choose_attention(model, "eager", dropout=0.0)
    assert model.config._attn_implementation == "eager"
    assert not choose_attention(model, "sdpa", dropout=0.0)
    assert model.config._attn_implementation == "sdpa"
    assert not choose_attention(model, "auto", dropout=0.0)
    with pytest.raises(InputError, match=r"--attention flex: it needs a CUDA GPU; take"):
        choose_attention(model, "flex", dropout=0.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"--attention flex: MambaForCausalLM has no such"):
        choose_attention(mamba, "flex", dropout=0.0)
    assert not choose_attention(model, "auto", dropout=0.1)
    assert model.config._attn_implementation == "sdpa"
    seen = []
    forward = "lcrec.modeling.base.flex_attention_forward"
    monkeypatch.setattr(forward, lambda _, *given: seen.extend(t.dtype for t in given))
    for wanted in ("auto", "flex"):
        assert choose_attention(model, wanted, dropout=0.0)
        assert model.config._attn_implementation == "flex_attention"
        # Under autocast rotated queries and keys come in float32, and values do not.
        rotated, value = torch.ones(1, 4, 8, 16), torch.ones(1, 4, 8, 16, dtype=torch.bfloat16)
        ALL_ATTENTION_FUNCTIONS["flex_attention"](None, rotated, rotated, value)
        model.set_attn_implementation("sdpa")
    assert set(seen) == {torch.bfloat16}


def test_buffers_hold_the_largest_batch_or_what_fits():
    rows = make_rows(*[(60, 20)] * 30, *[(30, 10)] * 2)
    trained = TrainingModel(MODELS[0], None, packs=True)
    found = TrainingRows(Dataset.from_list(rows), 1, 32, Dataset.from_list(rows[:1]), None)

    def size(free, **options):
        settings = TrainingSettings(data="", index="", base="", batch_size=10, **options)
        return buffer_tokens(settings, trained, found, Activations(5000, 600, 0), free)

    assert size(1e12) == 896  # 10 x 80 in blocks of 128
    halves = size(6e6)
    assert 400 + 80 <= halves < 896
    assert size(0) == 256  # still room for a sample beside another
    assert size(0, max_tokens_per_batch=80) == 80
    with pytest.raises(InputError, match="--max-tokens-per-batch 79: the longest sample has 80"):
        size(0, max_tokens_per_batch=79)
