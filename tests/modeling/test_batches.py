"""Packed samples: buffers that hold every token once, and the gradients of padded rows."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lcrec.core.errors import InputError
from lcrec.modeling import trees
from lcrec.modeling.base import choose_attention
from lcrec.modeling.batches import sample_losses, split_buffers
from lcrec.modeling.cost import Activations
from lcrec.modeling.finetuning import TrainingModel, TrainingRows, buffer_tokens, cpu_buffer_tokens
from lcrec.modeling.probe import takes_trees, try_packed_step
from lcrec.modeling.recipe import TrainingSettings
from lcrec.modeling.trees import BLOCK, CHUNK, PackingCollator, attention_masks
from lcrec.prompts.rows import EpochRows, collate_left

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


TREE = [[1, 2, 3, 9, 8], [1, 2, 4, 7], [5, 6], [1, 2, 3, 9, 7]]


def test_a_tree_by_hand():
    rows = [
        {"input_ids": ids, "prompt_length": len(ids) - answer, "task": task}
        for ids, answer, task in zip(
            TREE, (2, 1, 1, 1), ("seqrec", "item2index", "seqrec", "seqrec"), strict=True
        )
    ]
    batch = PackingCollator(0, 9)(rows)
    # In the order of their ids; nothing is predicted from the last token of each.
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 4, 5, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 0, 0, 0]]
    assert batch["ends"].tolist() == [[5, 5, 4, 4, 5, 6, 7, 8, 9]]
    scored = batch["labels"][0] >= 0
    assert not scored[0]  # the Trainer does not count it
    for name, expected in {
        "labels": [7, 9, 8, 7, 6],
        "places": [3, 2, 3, 4, 5],
        "samples": [3, 0, 0, 1, 2],
    }.items():
        assert batch[name][0, scored].tolist() == expected
    assert batch["task"].tolist() == [0, 1, 0, 0]
    assert PackingCollator(0, 9).count_tokens(rows) == 6
    apart = PackingCollator(0, 20, shares=False)(rows)
    assert apart["input_ids"][0, :12].tolist() == [1, 2, 3, 9, 1, 2, 3, 9, 1, 2, 4, 5]
    assert apart["ends"][0, :12].tolist() == [4] * 4 + [8] * 4 + [11] * 3 + [12]
    # A branch that finds no room takes what it shares along.
    assert PackingCollator(0, 5)(rows)["input_ids"].tolist() == [[1, 2, 3, 9, 4], [5, 0, 0, 0, 0]]
    # A row that is longer than a buffer gets one that holds it.
    assert PackingCollator(0, 4)(rows)["input_ids"].shape[1] == 5


SAMPLES = st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=9), min_size=1, max_size=30)


def make_batch(samples, collator):
    rows = [{"input_ids": s, "prompt_length": 1, "task": "seqrec"} for s in samples]
    return collator(rows)


@given(SAMPLES, st.integers(9, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_token_sees_its_own_sample_up_to_itself(samples, capacity, shares):
    batch = make_batch(samples, PackingCollator(0, capacity, shares))
    config = LlamaConfig(**SMALL, attn_implementation="sdpa")
    masks = attention_masks(config, batch["ends"], batch["position_ids"])[:, 0]
    found = [[] for _ in samples]
    answers = torch.stack([batch[name] for name in ("labels", "places", "samples")], dim=-1)
    for ids, mask, scored in zip(batch["input_ids"], masks, answers.tolist(), strict=True):
        for label, place, sample in scored:
            if label >= 0:
                found[sample].append([*ids[mask[place]].tolist(), label])
    for sample, prefixes in zip(samples, found, strict=True):
        assert prefixes == [sample[:end] for end in range(2, len(sample) + 1)]


@given(SAMPLES, st.integers(130, 400), st.sampled_from([None, 3]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_blocks_of_flex_attention_hold_the_dense_mask(samples, capacity, window, shares):
    batch = make_batch(samples * 4, PackingCollator(0, capacity, shares))
    config = MistralConfig(**SMALL, sliding_window=window, attn_implementation="sdpa")
    (dense,), *_ = attention_masks(config, batch["ends"], batch["position_ids"])
    config._attn_implementation = "flex_attention"
    blocks = attention_masks(config, batch["ends"], batch["position_ids"])
    every = torch.arange(capacity)
    assert blocks.mask_mod(torch.tensor(0), 0, every[:, None], every).equal(dense)
    wide = -(-capacity // BLOCK)
    padded = torch.nn.functional.pad(dense, 2 * (0, wide * BLOCK - capacity))
    tiles = padded.view(wide, BLOCK, wide, BLOCK).transpose(1, 2)
    computed = torch.zeros(wide, wide, dtype=torch.int64)
    for counts, which, value in (
        (blocks.kv_num_blocks, blocks.kv_indices, 1),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, 2),
    ):
        for query in range(wide):
            computed[query, which[0, 0, query, : counts[0, 0, query]].long()] += value
    assert computed.max() <= 2  # no block twice
    assert (computed > 0)[tiles.flatten(2).any(2)].all()
    assert tiles[computed == 2].all()


@given(st.integers(20, 60), st.integers(20, 60))
@settings(max_examples=20, deadline=None)
def test_a_batch_packed_anew_is_the_rows_packed_so(before, after):
    rows = make_rows((9, 4), (3, 5), (12, 4), (7, 1), (2, 2))
    rows += [{**rows[0], "input_ids": [*rows[0]["input_ids"][:11], 3, 4]}]
    collator = PackingCollator(0, before)
    batch = collator(rows)
    collator.capacity = after
    for name, value in collator.repack(batch).items():
        assert value.equal(collator(rows)[name]), name


def test_parts_too_many_are_scored_nowhere():
    batch = PackingCollator(0, 12)(make_rows((5, 3), (6, 2), (4, 4)))
    parts = split_buffers(batch, 5)
    answers = [int((part["labels"] >= 0).sum()) for part in parts]
    assert sorted(answers) == [0, 0, 2, 3, 4]
    assert all(part["input_ids"].shape == (1, 7) for part in parts)  # nothing fills them up


torch.manual_seed(0)
MODELS = [
    LlamaForCausalLM(LlamaConfig(**SMALL)),
    # The window is shorter than the samples, and counts within a sample.
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)),
    # Layers with and without a window, each kind with its mask.
    Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, sliding_window_pattern=2)
    ),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("capacity", [16, 40, 100])
def test_losses_and_gradients_are_those_of_padded_rows(model, attention, capacity):
    model.set_attn_implementation(attention)
    model.eval()
    rows = make_rows((9, 4), (3, 5), (12, 4), (7, 1), (2, 2))
    rows += [  # which begin as others do, in the prompt and in the answer
        {**rows[0], "input_ids": [*rows[0]["input_ids"][:11], 3, 4]},
        {**rows[1], "input_ids": rows[1]["input_ids"][:2] + [9] * 5, "prompt_length": 6},
    ]
    found = []
    for batch in (collate_left(rows, 0), PackingCollator(0, capacity)(rows)):
        model.zero_grad()
        parts = split_buffers(batch, len(batch["input_ids"])) if "places" in batch else [batch]
        losses = sum(sample_losses(model, part)[0] for part in parts)
        losses[:, 0].sum().backward()
        found.append([losses.detach(), *(p.grad.clone() for p in model.parameters())])
    assert found[0][0][:, 1].tolist() == [4, 5, 4, 1, 2, 4, 1]
    for padded, packed in zip(*found, strict=True):
        assert torch.allclose(padded, packed, atol=1e-5)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_families_that_keep_samples_apart_are_found(model):
    model.train()
    assert takes_trees(model)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_computes_no_key_that_no_query_of_a_chunk_sees(monkeypatch, dtype):
    trained = LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="sdpa"))
    rows = make_rows(*[(11, 3)] * 30)
    for row in rows:
        row["input_ids"][:5] = [1, 2, 3, 4, 5]
    (part,) = split_buffers(PackingCollator(0, 512)(rows), 1)
    gradients, pairs = [], []
    plain = torch.nn.functional.scaled_dot_product_attention

    def count(query, key, *args, **options):
        pairs[-1] += query.shape[2] * key.shape[2]
        return plain(query, key, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    for size in (512, CHUNK):
        monkeypatch.setattr(trees, "CHUNK", size)
        pairs.append(0)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            losses = sample_losses(trained, part)[0][:, 0]
        gradients.append(torch.autograd.grad(losses.sum(), list(trained.parameters())))
    whole, chunked = pairs
    assert chunked < 0.4 * whole == 0.4 * 2 * part["input_ids"].shape[1] ** 2
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(gradients[0], gradients[1], **near)


def test_a_family_that_carries_a_state_over_is_found():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert not takes_trees(MambaForCausalLM(config))


def test_a_family_that_fails_in_its_own_way_is_found(monkeypatch):
    def refuse(error):
        def forward(*args, **kwargs):
            raise error

        monkeypatch.setattr(MODELS[0], "forward", forward)

    refuse(AttributeError("'dict' object has no attribute 'ndim'"))
    assert not takes_trees(MODELS[0])
    refuse(torch.OutOfMemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        takes_trees(MODELS[0])


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
    monkeypatch.setattr("lcrec.modeling.base.try_packed_step", lambda *_: None)
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


def test_where_flex_attention_does_not_run_samples_are_padded(monkeypatch, caplog):
    """As on a CPU, which has no gradients for it."""
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    try_packed_step(model, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not choose_attention(model, "auto", dropout=0.0)
    assert model.config._attn_implementation == "sdpa"
    assert "Samples are padded: flex attention does not run here (" in caplog.text
    with pytest.raises(InputError, match=r"--attention flex: .*does not run.*--attention sdpa"):
        choose_attention(model, "flex", dropout=0.0)
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        try_packed_step(model, torch.float32)


def test_buffers_hold_the_largest_batch_or_what_fits():
    rows = make_rows(*[(60, 20)] * 30, *[(30, 10)] * 2)
    trained = TrainingModel(MODELS[0], None, [], packs=True)
    train, valid = (EpochRows(Dataset.from_list(rows[:count])) for count in (32, 1))
    found = TrainingRows(train, valid.first, None)

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


@pytest.mark.parametrize(
    ("length", "options", "tokens"),
    [
        (80, {}, 2048),
        (3000, {}, 3000),  # the longest sample fits in any case
        (80, {"max_tokens_per_batch": 100}, 100),
        (80, {"max_tokens_per_batch": 60}, 80),
    ],
)
def test_a_buffer_on_a_cpu_holds_what_was_asked_for_and_the_longest_sample(length, options, tokens):
    rows = Dataset.from_list(make_rows((length - 20, 20), (30, 10)))
    settings = TrainingSettings(data="", index="", base="", **options)
    assert cpu_buffer_tokens(settings, TrainingRows(EpochRows(rows), rows, None)) == tokens
