"""Rows computed apart give what PEFT's own layer gives, and what is saved is PEFT's own."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from lcrec.modeling.base import add_adapter
from lcrec.modeling.item_rows import compute_rows_apart, lengthen_steps, trained_rows

SHAPE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip
# Gemma multiplies what it looks up; Phi's head has a bias.
MODELS = {
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "untied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "gemma": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SHAPE, head_dim=8, num_key_value_heads=1, tie_word_embeddings=True)
    ),
}
NEW = [38, 31, 35]  # in no order, with gaps
IDS = torch.tensor([[1, 31, 38, 7], [35, 2, 39, 31]])


def adapted(make, *, apart):
    """Return the model with LoRA and trained rows that differ from those they stand for."""
    torch.manual_seed(0)
    model = make()
    rows = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices=dict.fromkeys(rows, NEW),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name:
                parameter += torch.arange(3)[:, None] + 1
    if apart:
        compute_rows_apart(model)
    return model


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_logits_and_gradients_are_peft_s(make):
    found = []
    for apart in (False, True):
        model = adapted(make, apart=apart)
        logits = model(input_ids=IDS).logits
        logits.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(gradient is not None for gradient in gradients)
        found.append([logits, *gradients])
    for peft, ours in zip(*found, strict=True):
        assert torch.allclose(peft, ours, rtol=1e-4, atol=1e-6)


def test_a_head_with_a_bias():
    """PEFT's layer leaves the bias out; the model it merges into does not."""
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**SHAPE, tie_word_embeddings=False))
    torch.nn.init.normal_(model.lm_head.bias)
    model = add_adapter(model, NEW, rank=0, alpha=1, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1.0
        live = model(input_ids=IDS).logits
        merged = model.merge_and_unload()(input_ids=IDS).logits
    assert torch.allclose(live, merged, atol=1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_plain_peft_loads_and_merges_what_is_saved(make, tmp_path):
    model = adapted(make, apart=True).eval()
    with torch.no_grad():
        live = model(input_ids=IDS).logits
        model.save_pretrained(str(tmp_path), save_embedding_layers=False)
        torch.manual_seed(0)
        plain = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
        assert torch.allclose(plain(input_ids=IDS).logits, live, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=IDS).logits, live, atol=1e-2)
        merged = model.merge_and_unload()
        assert torch.allclose(merged(input_ids=IDS).logits, live, atol=1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_longer_steps_are_a_rate_of_their_own(make):
    """As AdamW steps the rows where they are a parameter of their own, at the higher rate."""
    model, old = make(), [i for i in range(40) if i not in NEW]
    rows = trained_rows(model, NEW)
    assert len(rows) == (1 if model.config.tie_word_embeddings else 2)
    optimizer = torch.optim.AdamW([own for own, _ in rows], lr=0.01, weight_decay=0.1)
    lengthen_steps(model, NEW, 7.0, optimizer)
    apart = [[own.detach()[part].clone() for part in (old, NEW)] for own, _ in rows]
    groups = [
        {"params": [parts[which] for parts in apart], "lr": rate}
        for which, rate in ((0, 0.01), (1, 0.07))
    ]
    reference = torch.optim.AdamW(groups, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for (own, _), parts in zip(rows, apart, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            for part, places in zip(parts, (old, NEW), strict=True):
                part.grad = own.grad[places]
        optimizer.step()
        reference.step()
    for (own, _), (kept, new) in zip(rows, apart, strict=True):
        torch.testing.assert_close(own.detach()[old], kept, rtol=0, atol=0)
        torch.testing.assert_close(own.detach()[NEW], new, rtol=1e-5, atol=1e-6)
