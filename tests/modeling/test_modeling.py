"""Base models, adapters that train the new rows only, and checkpoints that come back whole."""

import shutil

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from lcrec.core.errors import InputError
from lcrec.modeling.base import add_adapter, load_base, set_attention_dropout
from lcrec.modeling.checkpoint import CheckpointFacts, load_checkpoint, save_checkpoint
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.prompts.encoder import extend_tokenizer

NEW = 13  # item tokens of the toy index
MODES = ["lora", "full"]


@pytest.fixture(scope="module")
def untied_base(base, make_llama, tmp_path_factory):
    """A random Llama with a head of its own, beside the tokenizer of `base`."""
    folder = tmp_path_factory.mktemp("untied") / "base"
    shutil.copytree(base, folder)
    make_llama(tied=False).save_pretrained(folder)
    return folder


@pytest.fixture(params=["tied", "untied"])
def any_base(request, base, untied_base):
    return base if request.param == "tied" else untied_base


def prepare(folder, index, mode="lora"):
    """Return a model with its new rows, ready to train, its tokenizer and the new ids."""
    model, tokenizer = load_base(str(folder))
    new_ids = extend_tokenizer(tokenizer, index)
    resize_embeddings(model, tokenizer, index)
    if mode == "lora":
        torch.manual_seed(0)
        model = add_adapter(model, new_ids, rank=2, alpha=4, dropout=0.0)
    return model, tokenizer, new_ids


SETTINGS = {"base": "b", "tasks": ["seqrec=24"], "max_text_words": 60}


def train_a_little(model, new_ids):
    """Take three steps on a sequence that ends in item tokens."""
    ids = torch.tensor([[5, 6, 7, *new_ids[:4]]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model, new_ids):
    ids = torch.tensor([[9, 8, *new_ids[::2], 3]])
    with torch.no_grad():
        return model(input_ids=ids).logits


def save(folder, model, tokenizer, index, prompts, base):
    inputs = {"base": base} if base else {}
    facts = {"max_history": 7, "validation_ndcg_at_10": 0.5, "trainable_parameters": 9}
    save_checkpoint(folder, model, tokenizer, index, prompts, SETTINGS, inputs, **facts)
    return folder


def test_load_base(base):
    model, tokenizer = load_base(str(base))
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size


def test_an_adapter_trains_the_new_rows_only(any_base, index):
    model, _, new_ids = prepare(any_base, index)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    inner = model.get_base_model()
    tied = inner.config.tie_word_embeddings
    rows = [
        p for name, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in name
    ]
    assert sum(p.numel() for p in rows) == NEW * 32 * (1 if tied else 2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_a_little(model, new_ids)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    # Merged, the old rows are as they were, and the rows that were seen have moved.
    merged = model.merge_and_unload()
    for table in (merged.get_input_embeddings().weight, merged.get_output_embeddings().weight):
        original = load_base(str(any_base))[0]
        was = original.get_input_embeddings().weight
        if not tied and table is merged.get_output_embeddings().weight:
            was = original.get_output_embeddings().weight
        assert torch.equal(table[: new_ids[0]], was)
        assert len(table) == len(was) + NEW


def test_attention_dropout(base):
    model, _ = load_base(str(base))
    ids = torch.arange(20)[None]
    model.train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    set_attention_dropout(model, 0.5)
    assert model.config.attention_dropout == 0.5
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InputError, match=r"--dropout 0\.1: GPT2LMHeadModel has no dropout"):
        set_attention_dropout(model, 0.1)


def test_a_ranking_changes_no_gradient_of_four_bits(base, make_llama, tmp_path):
    """For rankings on a CPU bitsandbytes has a kernel without a gradient."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    make_llama(tied=True, width=64).save_pretrained(folder)
    model = load_base(str(folder), quantize="4bit")[0]
    adapted = add_adapter(model, [3, 4], rank=2, alpha=4, dropout=0.0)
    ids = torch.arange(20)[None]

    def gradients():
        adapted.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        return [p.grad for p in adapted.parameters() if p.requires_grad]

    before = gradients()
    with torch.no_grad():
        adapted.eval()(input_ids=ids)
    after = gradients()
    assert all(map(torch.allclose, before, after))


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_comes_back_whole(any_base, index, prompts, tmp_path, mode):
    model, tokenizer, new_ids = prepare(any_base, index, mode)
    untrained = logits(model, new_ids)
    train_a_little(model, new_ids)
    trained = logits(model, new_ids)
    assert (trained - untrained).abs().max() > 0.1
    folder = save(tmp_path / "model", model, tokenizer, index, prompts, any_base)

    loaded = load_checkpoint(folder)
    assert torch.equal(logits(loaded.model, new_ids), trained)
    assert not loaded.model.training
    assert isinstance(loaded.model, PeftModel) == (mode == "lora")
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    assert (loaded.index.codes == index.codes).all()
    assert loaded.index.level_sizes == index.level_sizes
    assert loaded.prompts == prompts
    assert loaded.facts == CheckpointFacts(7, 60, ("seqrec=24",), "b", "none", 0.5)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == SETTINGS


def test_an_adapter_holds_neither_full_matrix(any_base, index, prompts, tmp_path):
    model, tokenizer, _ = prepare(any_base, index)
    folder = save(tmp_path / "model", model, tokenizer, index, prompts, any_base)
    weights = folder / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes
    assert all(max(shape) < 100 for shape in shapes.values()), shapes
    tables = sum(p.numel() * 4 for p in load_base(str(any_base))[0].parameters())
    assert weights.stat().st_size < tables / 2
    assert not list(folder.glob("model*.safetensors"))


def test_loading_in_lower_precision(base, index, prompts, tmp_path):
    model, tokenizer, new_ids = prepare(base, index)
    folder = save(tmp_path / "model", model, tokenizer, index, prompts, base)
    low = logits(load_checkpoint(folder, torch.bfloat16).model, new_ids)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), logits(model, new_ids), atol=0.2)


@pytest.fixture
def saved(base, index, prompts, tmp_path):
    """A fresh LoRA checkpoint and its own copy of the base, to be damaged."""
    own_base = tmp_path / "base"
    shutil.copytree(base, own_base)
    model, tokenizer, _ = prepare(own_base, index)
    return save(tmp_path / "model", model, tokenizer, index, prompts, own_base), own_base


def test_what_is_no_checkpoint(tmp_path, index_folder, base, shop, saved):
    for folder in (tmp_path / "nowhere", tmp_path, index_folder, base, shop):
        with pytest.raises(InputError, match=r"not a checkpoint of lcrec.*lcrec\.finetune"):
            load_checkpoint(folder)
    folder, _ = saved
    (folder / "lcrec.json").unlink()  # which comes last
    with pytest.raises(InputError, match="not a checkpoint of lcrec"):
        load_checkpoint(folder)


def test_the_base_has_gone_or_moved(saved, tmp_path):
    folder, own_base = saved
    there = logits(load_checkpoint(folder).model, [])
    moved = own_base.rename(tmp_path / "moved")
    gone = rf"no longer in {own_base}; bring it back, or name its new place with --base"
    with pytest.raises(InputError, match=f"--model {folder}: .*{gone}"):
        load_checkpoint(folder)
    assert logits(load_checkpoint(folder, base=str(moved)).model, []).equal(there)
    shutil.rmtree(moved)
    with pytest.raises(InputError, match=rf"needs the base model {moved}: cannot be loaded"):
        load_checkpoint(folder, base=str(moved))


def test_the_base_is_another_one_now(saved):
    folder, own_base = saved
    model = AutoModelForCausalLM.from_pretrained(own_base)
    model.model.norm.weight.data += 1
    model.save_pretrained(own_base)
    with pytest.raises(InputError, match=r"made from another base file .*finetune\.py --base"):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "index.json"])
def test_missing_files(saved, file):
    folder, _ = saved
    (folder / file).unlink()
    with pytest.raises(InputError, match=str(folder)):
        load_checkpoint(folder)


def test_a_missing_prompt_is_no_surprise(saved):
    folder, _ = saved
    shutil.rmtree(folder / "prompts")
    with pytest.raises(InputError, match="prompts: no such folder"):
        load_checkpoint(folder)
