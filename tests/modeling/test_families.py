"""Families of models that a fine-tune, a ranking or a batch cannot bear are refused at once."""

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from lcrec.core.errors import InputError
from lcrec.core.pretrained import position_limit
from lcrec.generate.recommender import Recommender
from lcrec.modeling import finetuning
from lcrec.modeling.base import add_adapter
from lcrec.modeling.families import check_family
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.prompts.encoder import extend_tokenizer

SMALL = {"vocab_size": 60, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 0}
WIDE = SMALL | {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def make(kind, config):
    torch.manual_seed(0)
    return kind(config)


def llama():
    return make(LlamaForCausalLM, LlamaConfig(**WIDE))


def bart():
    config = BartConfig(
        vocab_size=60, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32
    )
    return make(BartForCausalLM, config)


def mixtral():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1}
    return make(MixtralForCausalLM, MixtralConfig(**WIDE, **experts))


def mamba():
    return make(MambaForCausalLM, MambaConfig(**SMALL, hidden_size=16, state_size=4))


@pytest.mark.parametrize("build", [llama, mixtral, mamba])
def test_a_family_that_bears_it_is_left_as_it_was(build):
    model = add_adapter(build(), [57, 58, 59], rank=2, alpha=4, dropout=0.05)
    state = torch.get_rng_state()
    asked = []
    check_family(model, "lora", lambda: asked.append(model.training))
    assert asked == [False]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted
    # Neither what kernels read past the adapter, nor experts, which are one tensor.
    assert not [name for name in adapted if "out_proj" in name or "experts" in name]


def test_padding_that_is_read_as_text_is_refused():
    with pytest.raises(InputError, match="family bart score a padded text otherwise"):
        check_family(bart(), "full", lambda: None)


def test_a_fault_names_the_mode_that_can(monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no such\nbackward")

    broken = llama()
    with pytest.raises(InputError, match=r"family llama cannot be decoded .*no such backward"):
        check_family(broken, "full", fail)
    monkeypatch.setattr(broken.model, "forward", fail)
    with pytest.raises(InputError, match=r"--mode full: .*llama cannot .*; take another family"):
        check_family(broken, "full", lambda: None)
    with pytest.raises(InputError, match=r"--mode lora: .*llama cannot .*; take --mode full"):
        check_family(broken, "lora", lambda: None)
    monkeypatch.setattr("lcrec.modeling.base.get_peft_model", fail)
    with pytest.raises(InputError, match=r"--mode rows: .*llama cannot .*; take --mode full"):
        add_adapter(llama(), [59], rank=0, alpha=1, dropout=0.0)


def test_nan_is_a_fault():
    model = llama()
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN or infinite"):
        check_family(model, "full", lambda: None)


def test_a_finetune_refuses_before_any_work(recipe, finetune_words, base, tmp_path, monkeypatch):
    from lcrec.core.pretrained import load_tokenizer

    tokenizer = load_tokenizer("--base", base)
    config = bart().config
    config.vocab_size = len(tokenizer)
    make(BartForCausalLM, config).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    output = tmp_path / "model"
    for mode in ("full", "lora", "rows"):
        with pytest.raises(InputError, match="family bart score a padded text"):
            recipe.main(finetune_words(output, "--base", tmp_path / "bart", "--mode", mode))
    assert not output.exists()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # where no process holds all weights
    finetuning.try_model(None, None, None, None)


def test_rows_that_are_no_tokens_are_refused(index, base):
    from lcrec.modeling.base import load_base

    model, tokenizer = load_base(str(base))
    model.config.vocab_size -= 1
    extend_tokenizer(tokenizer, index)
    with pytest.raises(InputError, match="rows in their embedding that are no tokens"):
        resize_embeddings(model, tokenizer, index)


def longrope(first):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    rope["original_max_position_embeddings"] = first
    return Phi3Config(
        **WIDE, max_position_embeddings=512, rope_parameters=rope, bos_token_id=None,
        num_key_value_heads=2, original_max_position_embeddings=first,
    )  # fmt: skip


def test_positions_that_move_bound_the_length():
    config = longrope(24)
    model = make(Phi3ForCausalLM, config).eval()
    for layer in model.model.layers:
        layer.self_attn.qkv_proj.weight.data.mul_(20)  # so that positions count
    short, long = torch.arange(20)[None], torch.arange(30)[None]
    with torch.no_grad():
        alone = model(input_ids=short).logits
        beside = model(input_ids=long).logits[:, :20]
    assert (alone - beside).abs().max() > 1e-3  # what the bound is for
    assert position_limit(model) == 24


def test_a_prompt_beyond_the_bound_is_refused(checkpoint):
    loaded = Recommender.from_pretrained(checkpoint)
    inner = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    inner.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 10}
    bounded = Recommender(
        loaded.model, loaded.tokenizer, loaded.index, loaded.prompts, max_history=4
    )
    with pytest.raises(InputError, match="more than the 10 of the model's context"):
        bounded.recommend([[1, 2, 3]], 5)


def test_a_state_that_does_not_follow_the_beams_is_found():
    shape = {"block_types": ["recurrent", "attention"], "num_hidden_layers": 2, "vocab_size": 50}
    sizes = {"hidden_size": 32, "lru_width": 32, "intermediate_size": 64, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model("recurrent_gemma", **shape, **sizes, num_key_value_heads=1)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="recurrent_gemma score beams otherwise than plain passes"):
        check_family(model, "full", lambda: None)
