from concurrent.futures import ThreadPoolExecutor
from functools import cache
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, TaskType, get_peft_model
from transformers.integrations import sdpa_attention

from lcrec.core.errors import InputError
from lcrec.generate import beams
from lcrec.generate import search as decoding
from lcrec.generate.beams import beam_search, seq2seq_search
from lcrec.generate.forward import last_token_only
from lcrec.generate.hf_generate import generate_search
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.search import search, supports_shared_prefix
from lcrec.generate.trie import ItemTrie
from lcrec.modeling import probe

VOCAB = 200
WINDOW = 8  # tokens; the prompts are longer
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform, so that a wrong mask shows in the scores
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ALTERNATING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
}
QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {}),
    "llama, tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama, eager": (transformers.LlamaConfig, {"attn_implementation": "eager"}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2, window": (transformers.Qwen2Config, QWEN2_WINDOW),
    "qwen3": (transformers.Qwen3Config, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": WINDOW}),
    "phi3": (transformers.Phi3Config, {"sliding_window": WINDOW}),
    "gemma2": (transformers.Gemma2Config, ALTERNATING),
    "gemma3": (transformers.Gemma3TextConfig, ALTERNATING),
    "gpt2": (transformers.GPT2Config, GPT2),
}


@cache
def make_model(family="llama", seed=0):
    """Make a tiny random model; shared between tests, which leave it as it is."""
    config, options = FAMILIES[family]
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config(**{**SHAPE, **options})).eval()


def make_items(seed=0, count=40, depth=3, codes=5):
    """Draw distinct items int64 [count, depth], every level with tokens of its own from 100 on."""
    paths = np.random.default_rng(seed).choice(codes**depth, count, replace=False)
    levels = np.stack(np.unravel_index(paths, (codes,) * depth), axis=1)
    return torch.from_numpy(levels + 100 + codes * np.arange(depth))


def make_prompts(lengths=(20, 15, 6), seed=0):
    """Draw prompts of the given lengths, padded on the left: ids and mask [batch, longest]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


@torch.no_grad()
def score_all(model, ids, mask, items):
    """Score every item for every prompt [batch, n_items] by forward passes without a cache."""
    scores = []
    for prompt, real in zip(ids, mask.bool(), strict=True):
        prompt = prompt[real]
        sequences = torch.cat([prompt.expand(len(items), -1), items], dim=1)
        log_probs = model(sequences, use_cache=False).logits.float().log_softmax(dim=-1)
        log_probs = log_probs[:, len(prompt) - 1 : -1].gather(2, items[:, :, None])
        scores.append(log_probs.sum(dim=(1, 2)))
    return torch.stack(scores)


def generate_with_prefixes(model, ids, items, num_beams):
    """Search for one prompt [1, length] by `generate` and a function over a dict of prefixes."""
    prefixes = {}
    for row in items.tolist():
        for level, token in enumerate(row):
            prefixes.setdefault(tuple(row[:level]), set()).add(token)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        prefix_allowed_tokens_fn=lambda _, path: list(
            prefixes.get(tuple(path[ids.shape[1] :].tolist()), {0})
        ),
        max_new_tokens=items.shape[1],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = {tuple(row): number for number, row in enumerate(items.tolist())}
    paths = found.sequences[:, ids.shape[1] :].tolist()
    return torch.tensor([rows[tuple(path)] for path in paths]), found.sequences_scores


def spy(function, results):
    """Return the function, with every result noted in `results`."""

    def call(*arguments):
        results.append(function(*arguments))
        return results[-1]

    return call


def assert_exact(output, scores):
    """Check that `output` is the best of `scores` [batch, n_items], in order but for near ties."""
    best = scores.topk(output.items.shape[1]).values
    torch.testing.assert_close(output.scores, best, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.gather(1, output.items), best, atol=1e-4, rtol=0)
    assert all(len(set(row)) == len(row) for row in output.items.tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_beams_as_items_is_brute_force(family):
    model, items, (ids, mask) = make_model(family), make_items(), make_prompts()
    assert supports_shared_prefix(model)
    output = search(model, ids, mask, ItemTrie.build(items.numpy()), len(items))
    assert output.items.dtype == torch.int64
    assert output.scores.dtype == torch.float32
    assert_exact(output, score_all(model, ids, mask, items))


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_beams_give_what_generate_gives(family):
    model, items, (ids, mask) = make_model(family), make_items(seed=1), make_prompts(seed=1)
    output = search(model, ids, mask, ItemTrie.build(items.numpy()), 6)
    for row in range(len(ids)):
        prompt = ids[row : row + 1, mask[row].bool()]
        expected, scores = generate_with_prefixes(model, prompt, items, 6)
        assert output.items[row].tolist() == expected.tolist()
        torch.testing.assert_close(output.scores[row], scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_gets_the_same_answer_alone_and_in_a_padded_batch(family):
    model, trie = make_model(family), ItemTrie.build(make_items(seed=2).numpy())
    ids, mask = make_prompts((30, 17, 9, 1))
    together = search(model, ids, mask, trie, 8)
    for row in range(len(ids)):
        alone = search(
            model, ids[row, None, mask[row].bool()], mask[row, None, mask[row] > 0], trie, 8
        )
        assert together.items[row].tolist() == alone.items[0].tolist()
        torch.testing.assert_close(together.scores[row], alone.scores[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [5, 14])
def test_what_prompts_begin_with_is_encoded_once(family, shared, monkeypatch):
    """Shorter and longer than the window; one prompt is nothing else but for its last token."""
    model, items = make_model(family), make_items()
    ids, mask = make_prompts((24, 20, shared + 1, 18), seed=3)
    for row, real in zip(ids, mask.bool(), strict=True):
        row[real.nonzero()[:shared, 0]] = torch.arange(10, 10 + shared)
    assert supports_shared_prefix(model)
    head = beams.read_head(model, range(10, 10 + shared))
    masks = []
    monkeypatch.setattr(beams, "_masks", spy(beams._masks, masks))
    for rows in (slice(0, 4), slice(2, 3)):  # the same head for another batch
        part = ids[rows], mask[rows]
        output = search(model, *part, ItemTrie.build(items.numpy()), len(items), head=head)
        first = masks[0]["full_attention"] if isinstance(masks[0], dict) else masks[0]
        assert first.shape[2:] == (24 - shared, 24)
        assert_exact(output, score_all(model, *part, items))
        assert head.layers[0][0].shape[2] == shared
        masks.clear()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_no_work_is_done_that_nothing_reads(family, monkeypatch):
    """A prompt's last token alone passes the last MLP, and keys are not copied for every head."""
    model, widths = make_model(family), []
    assert supports_shared_prefix(model)
    copied = mock.Mock(wraps=sdpa_attention.repeat_kv)
    monkeypatch.setattr(sdpa_attention, "repeat_kv", copied)
    before = model.config._attn_implementation
    hook = model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: widths.append(args[0].shape[1])
    )
    search(model, *make_prompts(), ItemTrie.build(make_items().numpy()), 7)
    hook.remove()
    assert widths == [1, 5, 7]
    assert not copied.called
    assert model.config._attn_implementation == before


def test_what_one_thread_cuts_another_computes_whole():
    model = make_model("llama")
    ids, _ = make_prompts((20, 20))
    with torch.no_grad(), ThreadPoolExecutor(1) as other:
        whole = model(ids).logits
        with last_token_only(model):
            assert not model(ids).logits[:, 0].allclose(whole[:, 0])
            assert other.submit(torch.no_grad()(lambda: model(ids).logits)).result().equal(whole)
        assert model(ids).logits.equal(whole)


def test_equal_scores_are_ordered_by_tokens():
    model = make_model(seed=5)
    uniform = torch.zeros_like(model.lm_head.weight)
    items = make_items(count=30)
    by_tokens = sorted(range(30), key=lambda item: items[item].tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.lm_head, "weight", torch.nn.Parameter(uniform))
        output = beam_search(model, *make_prompts(), ItemTrie.build(items.numpy()), 12)
    assert output.items.tolist() == [by_tokens[:12]] * 3
    torch.testing.assert_close(output.scores, torch.full((3, 12), -3 * np.log(VOCAB).item()))


@st.composite
def catalogues(draw):
    """Random trees: 1 to 8 levels of 1 to 6 tokens, with up to 30 items spread unevenly."""
    depth = draw(st.integers(1, 8))
    codes = draw(st.integers(1, 6))
    # A skewed draw: most items share their first tokens, a few stand far off.
    rows = draw(
        st.lists(
            st.lists(st.integers(0, codes - 1), min_size=depth, max_size=depth).map(tuple),
            min_size=1,
            max_size=30,
            unique=True,
        )
    )
    return torch.tensor(rows) + 100 + codes * torch.arange(depth)


@given(items=catalogues(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_all_of_any_tree_is_brute_force(items, data):
    """Levels may have fewer nodes than there are beams, and nodes a single child."""
    family = data.draw(st.sampled_from(["llama", "gemma3", "mistral"]))
    model, (ids, mask) = make_model(family), make_prompts()
    trie, scores = ItemTrie.build(items.numpy()), score_all(make_model(family), ids, mask, items)
    assert_exact(search(model, ids, mask, trie, len(items)), scores)
    assert_exact(generate_search(model, ids, mask, trie, len(items)), scores)


@given(items=catalogues(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_beams_of_any_tree_are_those_of_generate(items, data):
    num_beams = data.draw(st.integers(2, 8).map(lambda beams: min(beams, len(items))))
    assume(num_beams > 1)
    model, (ids, mask) = make_model("qwen3"), make_prompts((18,))
    output = search(model, ids, mask, ItemTrie.build(items.numpy()), num_beams)
    expected, scores = generate_with_prefixes(model, ids, items, num_beams)
    real = scores > -1e8  # beams to spare, where a level has fewer nodes, hold no item
    assert output.items[0][: int(real.sum())].tolist() == expected[real].tolist()
    torch.testing.assert_close(output.scores[0][: int(real.sum())], scores[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("strategy", [beam_search, generate_search])
def test_one_item_and_one_beam(strategy):
    model, (ids, mask) = make_model(), make_prompts()
    items = make_items(count=1)
    output = strategy(model, ids, mask, ItemTrie.build(items.numpy()), 1)
    assert output.items.tolist() == [[0]] * 3
    assert_exact(output, score_all(model, ids, mask, items))


@pytest.mark.parametrize("strategy", [beam_search, generate_search])
def test_a_share_of_what_items_have_anyway_is_subtracted(strategy):
    model, items, (ids, mask) = make_model(), make_items(), make_prompts()
    anyway = np.log(np.random.default_rng(0).dirichlet(np.ones(len(items))))
    trie = ItemTrie.build(items.numpy())
    less = trie.less(anyway, 0.5)
    scores = score_all(model, ids, mask, items) - 0.5 * torch.from_numpy(anyway).float()
    assert_exact(strategy(model, ids, mask, less, len(items)), scores)
    plain = strategy(model, ids, mask, trie, 3)
    assert (strategy(model, ids, mask, trie.less(anyway, 0), 3).items == plain.items).all()
    for num_beams in (1, 3):
        output = strategy(model, ids, mask, less, num_beams)
        other = beam_search(model, ids, mask, less, num_beams)
        assert (output.items == other.items).all()
        own = scores.gather(1, output.items)
        torch.testing.assert_close(output.scores, own, atol=1e-4, rtol=0)
    assert (output.items != plain.items).any()


def test_bfloat16_scores_are_computed_in_float32():
    ids, mask = make_prompts()
    items = make_items()
    model = make_model("qwen3")
    exact = score_all(model, ids, mask, items)
    half = transformers.AutoModelForCausalLM.from_config(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    output = search(half, ids, mask, ItemTrie.build(items.numpy()), len(items))
    assert supports_shared_prefix(half)
    assert output.scores.dtype == torch.float32
    found = torch.empty_like(exact).scatter_(1, output.items, output.scores)
    torch.testing.assert_close(found, score_all(half, ids, mask, items), atol=0.15, rtol=0)
    assert (found - exact).abs().mean() < 0.15


@pytest.mark.parametrize("family", ["llama", "llama, tied", "gemma3"])
def test_adapters_attached_and_merged(family):
    items, (ids, mask) = make_items(), make_prompts()
    trie = ItemTrie.build(items.numpy())
    plain = transformers.AutoModelForCausalLM.from_config(make_model(family).config)
    model = get_peft_model(
        plain,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            target_modules=["q_proj", "v_proj", "up_proj"],
            init_lora_weights=False,
            trainable_token_indices={"embed_tokens": items.unique().tolist()},
        ),
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "trainable_tokens_delta" in name:
                weight.normal_(std=0.3)
    assert supports_shared_prefix(model)
    attached = search(model, ids, mask, trie, 10)
    scores = score_all(model, ids, mask, items)
    assert_exact(search(model, ids, mask, trie, len(items)), scores)
    with model.disable_adapter():
        assert (score_all(model, ids, mask, items) - scores).abs().max() > 0.1

    merged = search(model.merge_and_unload(), ids, mask, trie, 10)
    assert merged.items.tolist() == attached.items.tolist()
    torch.testing.assert_close(merged.scores, attached.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strategy", [beam_search, generate_search])
def test_allowed_and_denied_items(strategy):
    model, items, (ids, mask) = make_model(), make_items(), make_prompts()
    trie = ItemTrie.build(items.numpy())
    scores = score_all(model, ids, mask, items)
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(3, len(items), generator=generator) < 0.7
    denied = torch.randint(len(items), (3, 5), generator=generator)
    taken = torch.zeros_like(allowed).scatter_(1, denied, True)
    allow = [row.nonzero()[:, 0].numpy() for row in allowed]
    deny = denied.tolist()
    some = torch.tensor([[True], [False], [True]])

    cases = [
        ({"allow": allow}, allowed),
        ({"allow": [allow[0]] * 3}, allowed[0].expand(3, -1)),
        ({"deny": deny}, ~taken),
        ({"allow": allow, "deny": deny}, allowed & ~taken),
        ({"allow": [allow[0], None, allow[2]], "deny": deny}, (allowed | ~some) & ~taken),
    ]
    for lists, may in cases:
        leaf_filter = LeafFilter.build(trie, 3, **lists)
        output = strategy(model, ids, mask, trie, len(items), leaf_filter=leaf_filter)
        expected = scores.masked_fill(~may, -torch.inf).sort(descending=True)
        found = expected.values > -torch.inf
        assert ((output.items >= 0) == found).all()
        assert (output.scores[~found] == -torch.inf).all()
        torch.testing.assert_close(output.scores, expected.values, atol=1e-4, rtol=0)
        for row in range(3):
            assert set(output.items[row, found[row]].tolist()) == set(
                may[row].nonzero()[:, 0].tolist()
            )


@pytest.mark.parametrize("strategy", [beam_search, generate_search])
def test_prompts_with_nothing_allowed_get_nothing(strategy):
    model, items, (ids, mask) = make_model(), make_items(), make_prompts()
    trie = ItemTrie.build(items.numpy())
    for allow, lone in (([[], [], []], 0), ([[], [7], []], 1)):
        leaf_filter = LeafFilter.build(trie, 3, allow)
        output = strategy(model, ids, mask, trie, 4, leaf_filter=leaf_filter)
        assert (output.items >= 0).sum() == lone
        assert (output.scores > -torch.inf).sum() == lone
    assert output.items[1].tolist() == [7, -1, -1, -1]


@pytest.mark.parametrize("strategy", [beam_search, generate_search])
def test_broken_logits_are_told(strategy):
    model = transformers.AutoModelForCausalLM.from_config(make_model().config).eval()
    ids, mask = make_prompts()
    with torch.no_grad():
        model.get_input_embeddings().weight[150] = torch.nan
    ids[1, -2] = 150
    trie = ItemTrie.build(make_items().numpy())
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        strategy(model, ids, mask, trie, 4)


def test_the_model_s_generation_config_does_not_leak():
    model, trie = make_model("qwen2", seed=3), ItemTrie.build(make_items().numpy())
    ids, mask = make_prompts()
    expected = beam_search(model, ids, mask, trie, 8)
    with pytest.MonkeyPatch.context() as patch:
        sampling = transformers.GenerationConfig(
            do_sample=True, temperature=0.2, top_k=2, repetition_penalty=2.0,
            eos_token_id=[100, 105, 110], suppress_tokens=[101, 106], max_length=5,
            renormalize_logits=True,
        )  # fmt: skip
        patch.setattr(model, "generation_config", sampling)
        output = generate_search(model, ids, mask, trie, 8)
    assert output.items.tolist() == expected.items.tolist()
    torch.testing.assert_close(output.scores, expected.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "phi3", "gpt2"])
@pytest.mark.parametrize("num_beams", [1, 7])
def test_falling_back_changes_no_answer(family, num_beams, monkeypatch):
    model, trie = make_model(family), ItemTrie.build(make_items().numpy())
    ids, mask = make_prompts()
    fast = search(model, ids, mask, trie, num_beams)
    monkeypatch.setattr(decoding, "supports_shared_prefix", lambda _: False)
    slow = search(model, ids, mask, trie, num_beams)
    assert slow.items.tolist() == fast.items.tolist()
    torch.testing.assert_close(slow.scores, fast.scores, atol=1e-4, rtol=0)


CONVOLUTIONS = {"layer_types": ["conv", "full_attention"]}
LOCAL = {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW}


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (transformers.Lfm2Config, CONVOLUTIONS, "other than full and sliding attention (conv)"),
        (transformers.GPTNeoConfig, LOCAL, "window_size"),
        (transformers.BloomConfig, {"n_layer": 2, "n_head": 4}, "cannot share a prompt"),
        (transformers.MptConfig, {"d_model": 32, "n_layers": 2, "n_heads": 4}, "off by"),
    ],
)
def test_other_models_fall_back_and_say_so_once(config, options, reason, caplog):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**{**SHAPE, **options})).eval()
    items, (ids, mask) = make_items(), make_prompts()
    trie = ItemTrie.build(items.numpy())
    for _ in range(2):
        output = search(model, ids, mask, trie, len(items))
    assert_exact(output, score_all(model, ids, mask, items))
    warnings = [record.getMessage() for record in caplog.records if record.name == probe.__name__]
    assert len(warnings) == 1
    assert reason in warnings[0]


def test_the_trial_notices_a_window_that_is_ignored(monkeypatch, caplog):
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SHAPE, sliding_window=4096)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    masks = beams._masks
    without = transformers.LlamaConfig(**SHAPE)
    monkeypatch.setattr(beams, "_masks", lambda config, *rest: masks(without, *rest))
    assert not supports_shared_prefix(model)
    assert "scores are off by" in caplog.text
    assert config.sliding_window == 4096
    monkeypatch.undo()
    probe._verdicts.clear()
    assert supports_shared_prefix(model)


@pytest.mark.parametrize("ignored", [False, True], ids=["right", "window ignored"])
def test_the_trial_knows_coarse_steps_of_large_logits_from_faults(ignored, monkeypatch):
    torch.manual_seed(0)
    config = transformers.MistralConfig(**{**SHAPE, "num_hidden_layers": 4}, sliding_window=4096)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # as a pretrained model's, whose logits in bf16 have steps of 1/8
        model.lm_head.weight.mul_(28 / model(make_prompts()[0]).logits.abs().max())
    masks, without = beams._masks, transformers.LlamaConfig(**SHAPE)
    if ignored:
        monkeypatch.setattr(beams, "_masks", lambda config, *rest: masks(without, *rest))
    assert supports_shared_prefix(model.to(torch.bfloat16)) == (not ignored)


SMALL = {"vocab_size": VOCAB, "d_model": 32, "decoder_start_token_id": 0}
SEQ2SEQ = {
    "t5": transformers.T5Config(**SMALL, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "bart": transformers.BartConfig(
        **SMALL,
        **dict.fromkeys(["encoder_layers", "decoder_layers"], 2),
        **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 64),
        **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    ),
}


def make_seq2seq(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(SEQ2SEQ[family]).eval()
    with torch.no_grad():  # as they start, BART's logits hardly differ
        for weight in model.parameters():
            weight.mul_(1.5)
    return model


def score_all_seq2seq(model, ids, mask, items):
    """Score every item for every prompt by itself, without padding."""
    read = torch.cat([torch.zeros(len(items), 1, dtype=torch.int64), items[:, :-1]], dim=1)
    with torch.no_grad():
        return torch.stack(
            [
                model(input_ids=prompt[real.bool()].expand(len(items), -1), decoder_input_ids=read)
                .logits.log_softmax(dim=-1)
                .gather(2, items[:, :, None])
                .sum(dim=(1, 2))
                for prompt, real in zip(ids, mask, strict=True)
            ]
        )


def test_all_beams_of_an_encoder_decoder_are_brute_force():
    model, items, (ids, mask) = make_seq2seq("t5"), make_items(), make_prompts()
    trie = ItemTrie.build(items.numpy())
    scores = score_all_seq2seq(model, ids, mask, items)
    assert supports_shared_prefix(model)
    for strategy in (search, generate_search):
        assert_exact(strategy(model, ids, mask, trie, len(items)), scores)
    allow = [[3, 1], [2], list(range(10))]
    leaf_filter = LeafFilter.build(trie, 3, allow)
    output = seq2seq_search(model, ids, mask, trie, 10, leaf_filter=leaf_filter)
    for row, may in enumerate(allow):
        expected, order = scores[row, may].sort(descending=True)
        assert output.items[row, : len(may)].tolist() == [may[place] for place in order]
        assert (output.items[row, len(may) :] == -1).all()
        torch.testing.assert_close(output.scores[row, : len(may)], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", SEQ2SEQ)
@pytest.mark.parametrize("num_beams", [1, 7])
def test_the_beams_of_an_encoder_decoder_are_those_of_generate(family, num_beams):
    """BART counts padding among the positions, so its prompts have none."""
    model = make_seq2seq(family)
    ids, mask = make_prompts() if family == "t5" else make_prompts((6, 6))
    trie = ItemTrie.build(make_items().numpy())
    fast = seq2seq_search(model, ids, mask, trie, num_beams)
    slow = generate_search(model, ids, mask, trie, num_beams)
    assert slow.items.tolist() == fast.items.tolist()
    torch.testing.assert_close(slow.scores, fast.scores, atol=1e-4, rtol=0)


def test_an_encoder_decoder_whose_cache_cannot_be_copied_falls_back(monkeypatch, caplog):
    model, items, (ids, mask) = make_seq2seq("t5"), make_items(), make_prompts()
    with monkeypatch.context() as patch:
        patch.setattr(transformers.DynamicCache, "reorder_cache", lambda self, rows: None)
        assert not supports_shared_prefix(model)
    assert "is decoded by generate" in caplog.text
    output = search(model, ids, mask, ItemTrie.build(items.numpy()), len(items))
    assert_exact(output, score_all_seq2seq(model, ids, mask, items))


OUT_OF_MEMORY = (
    torch.OutOfMemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 80 GB."),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved(monkeypatch, caplog, error):
    monkeypatch.setattr(decoding, "_fitting", WeakKeyDictionary())
    model, trie = make_model(), ItemTrie.build(make_items().numpy())
    ids, mask = make_prompts((20, 15, 6, 9, 12))
    lists = LeafFilter.build(trie, 5, deny=[[row] for row in range(5)])
    expected = search(model, ids, mask, trie, 6, leaf_filter=lists)
    sizes = []

    def small(model, ids, *arguments, **options):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise error
        return beam_search(model, ids, *arguments, **options)

    monkeypatch.setattr(decoding, "beam_search", small)
    output = search(model, ids, mask, trie, 6, leaf_filter=lists)
    assert sizes == [5, 3, 2, 2, 1]
    assert output.items.tolist() == expected.items.tolist()
    assert "batches of 2 prompts" in caplog.text
    # The next batches begin with what fitted: 2 rows of 20 + 2 * 6 slots, so 3 of 6 + 2 * 6.
    del sizes[:]
    search(model, ids, mask, trie, 6, leaf_filter=lists)
    assert sizes == [2, 2, 1]
    del sizes[:]
    search(model, *make_prompts((6,) * 5), trie, 6)
    assert sizes[0] == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("shapes do not fit")])
def test_what_halving_does_not_mend_is_an_error(monkeypatch, error):
    def never(*arguments, **options):
        raise error

    monkeypatch.setattr(decoding, "supports_shared_prefix", lambda _: True)
    monkeypatch.setattr(decoding, "_fitting", WeakKeyDictionary())
    monkeypatch.setattr(decoding, "beam_search", never)
    with pytest.raises(type(error), match=str(error)):
        search(make_model(), *make_prompts(), ItemTrie.build(make_items().numpy()), 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 41}, "num_beams is 41; ask for 1 to 40"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"attention_mask": torch.ones(3, 5)}, r"got \[3, 20\] and \[3, 5\]"),
        ({"attention_mask": make_prompts()[1].flip(1)}, "row 1 is empty or not padded on the left"),
        (
            {"leaf_filter": LeafFilter.build(ItemTrie.build(make_items().numpy()), 2, [[1], None])},
            "leaf_filter: is for 2 prompts, not 3",
        ),
        ({"trie": ItemTrie.build(np.array([[VOCAB]])), "num_beams": 1}, "token id 200"),
        ({"trie": ItemTrie.build(make_items().numpy()).to("meta")}, "the trie is on meta"),
    ],
)
def test_refuses_inputs_that_do_not_fit(changes, message):
    ids, mask = make_prompts()
    arguments = {
        "model": make_model(), "input_ids": ids, "attention_mask": mask,
        "trie": ItemTrie.build(make_items().numpy()), "num_beams": 5,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        search(**{**arguments, **changes})


def test_refuses_a_model_in_training_mode():
    model = transformers.AutoModelForCausalLM.from_config(make_model("gpt2").config).train()
    with pytest.raises(InputError, match="training mode"):
        search(model, *make_prompts(), ItemTrie.build(make_items().numpy()), 5)
