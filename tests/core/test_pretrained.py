"""What somebody else made is loaded whole, without running its code, or refused in one line."""

import io
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from lcrec.core.artifacts import read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.pretrained import (
    CAUSAL,
    ENCODER,
    T5,
    encoder_part,
    load_adapter,
    load_config,
    load_model,
    load_pair,
    load_tokenizer,
    position_limit,
)
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.prompts.encoder import extend_tokenizer

BERT = BertConfig(
    vocab_size=500, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)
T5_SHAPE = T5Config(vocab_size=500, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
UP = "model.layers.0.mlp.up_proj.weight"
SPARE = {"model.layers.7.mlp.up_proj.weight": torch.zeros(2), "stray.weight": torch.zeros(2)}


@pytest.fixture
def own(base, tmp_path):
    """A copy of the base that may be damaged."""
    return shutil.copytree(base, tmp_path / "own")


def change_weights(folder, drop=(), file="model.safetensors", **added):
    weights = load_file(folder / file)
    for name in drop:
        del weights[name]
    save_file(weights | added, folder / file, {"format": "pt"})


def refusal(call, *args, **kwargs):
    """Return the one line in which a call is refused."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("drop", "added", "expected"),
    [
        ([UP], {}, rf"lack {UP}, which would be drawn at random"),
        ([], SPARE, "no place for model.layers.7.mlp.up_proj.weight, stray.weight;"),
        ([], {UP: torch.zeros(3)}, rf"{UP} ([3] where [96, 32] is due)"),
        ([UP], SPARE, "lack"),
    ],
    ids=["missing", "left over", "misshaped", "both"],
)
def test_weights_that_do_not_fit_are_named(own, drop, added, expected):
    change_weights(own, drop, **added)
    message = refusal(load_pair, "--base", own, CAUSAL)
    assert message.startswith(f"--base {own}: ")
    assert expected in message


def test_many_names_are_counted(own):
    config = read_json(own / "config.json")
    write_json(own / "config.json", config | {"num_hidden_layers": 2, "layer_types": None})
    assert "and 8 more, which would be drawn at random" in refusal(load_pair, "--base", own, CAUSAL)


@pytest.mark.parametrize("make", [BertForMaskedLM, BertForPreTraining, BertModel])
def test_an_encoder_of_any_head_is_loaded(make, base, tmp_path, capsys):
    model = make(BERT)
    model.save_pretrained(tmp_path)
    load_tokenizer("--tokenizer", base).save_pretrained(tmp_path)
    loaded, _ = load_pair("--encoder", tmp_path, ENCODER)
    for name, weight in getattr(model, "bert", model).named_parameters():
        if "pooler" not in name or make is not BertForMaskedLM:  # which has none
            assert torch.equal(weight, loaded.get_parameter(name))
    shown = capsys.readouterr().out
    unused = {BertForMaskedLM: "not fit: cls, pooler\n", BertForPreTraining: "not fit: cls\n"}
    assert shown.endswith(unused[make]) if make in unused else not shown


@pytest.mark.parametrize(
    ("drop", "added", "expected"),
    [
        (["bert.encoder.layer.1.output.dense.weight"], {}, "lack encoder.layer.1.output"),
        ([], {"bert.encoder.layer.2.output.dense.weight": torch.zeros(2)}, "no place for"),
        ([], {"bert.stray": torch.zeros(2)}, "no place for bert.stray"),
    ],
)
def test_an_encoder_that_is_not_whole_is_refused(tmp_path, drop, added, expected):
    BertForMaskedLM(BERT).save_pretrained(tmp_path)
    change_weights(tmp_path, drop, **added)
    assert expected in refusal(load_model, "--encoder", tmp_path, ENCODER)


def test_the_decoder_of_an_encoder_may_be_missing(tmp_path, capsys):
    model = T5EncoderModel(T5_SHAPE)
    model.save_pretrained(tmp_path)
    encoder = encoder_part(load_model("--encoder", tmp_path, ENCODER))
    for name, weight in model.encoder.named_parameters():
        assert torch.equal(weight, encoder.get_parameter(name))
    assert "decoder" in capsys.readouterr().out
    assert "lack decoder" in refusal(load_model, "--base", tmp_path, T5)


def test_constants_that_old_files_hold_do_no_harm(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path
    )
    old = {"bias": torch.ones(1, 1, 9, 9), "masked_bias": torch.tensor(-1e4)}
    change_weights(tmp_path, **{f"transformer.h.0.attn.{name}": old[name] for name in old})
    load_model("--base", tmp_path, CAUSAL)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda own: (own / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded as a"),
        (lambda own: (own / "model.safetensors").unlink(), "cannot be loaded as a"),
        (lambda own: (own / "config.json").write_text("{"), "not a valid JSON"),
        (lambda own: (own / "config.json").write_text('{"model_type": "none"}'), "none"),
        (lambda own: (own / "config.json").unlink(), "cannot be loaded"),
        (lambda own: (own / "tokenizer.json").write_text('{"a'), "cannot be loaded"),
        (lambda own: (own / "tokenizer.json").write_text('{"a": 1}'), "KeyError"),
        (lambda own: T5ForConditionalGeneration(T5_SHAPE).save_pretrained(own), "T5Config"),
        (lambda own: [file.unlink() for file in own.glob("token*")], "there is no tokenizer"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_damaged_or_missing_files(own, change, expected):
    change(own)
    message = refusal(load_pair, "--base", own, CAUSAL, remedy="do something")
    assert message.startswith(f"--base {own}: cannot be loaded")
    assert message.endswith("; do something")
    assert expected in message


@pytest.mark.parametrize("name", ["nowhere/to-be-found", "no such folder"])
def test_what_is_not_there(name):
    for load in (load_tokenizer, load_config):
        assert refusal(load, "--base", name).startswith(f"--base {name}: cannot be loaded")


def test_pickled_weights_are_refused(own):
    model = AutoModelForCausalLM.from_pretrained(own)
    torch.save(model.state_dict(), own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    for kind in (CAUSAL, ENCODER):
        assert "model.safetensors" in refusal(load_model, "--base", own, kind)


def test_no_code_is_run_whatever_stands_on_stdin(own, monkeypatch, tmp_path):
    own_code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"}
    (own / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nC = M = T = None\n")
    (own / "custom_generate").mkdir()
    shutil.copy(own / "evil.py", own / "custom_generate" / "generate.py")
    load_pair("--base", own, CAUSAL)
    write_json(own / "config.json", {"model_type": "evil", "auto_map": own_code})
    settings = read_json(own / "tokenizer_config.json")
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    write_json(own / "tokenizer_config.json", settings)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    for load, kinds in (
        (load_model, [CAUSAL]),
        (load_model, [ENCODER]),
        (load_tokenizer, []),
        (load_config, []),
    ):
        assert "Python code of its own, which is never run" in refusal(load, "--base", own, *kinds)
    assert sys.stdin.readline() == "y\n"  # nobody asked
    assert not (tmp_path / "ran").exists()


def test_settings_that_cannot_be_saved_are_dropped(own, tmp_path):
    wrong = {"do_sample": False, "temperature": 0.9, "top_k": 5, "pad_token_id": -1}
    write_json(
        own / "generation_config.json", wrong | {"eos_token_id": [3, 4], "length_penalty": 2.0}
    )
    model = load_model("--base", own, CAUSAL)
    assert model.generation_config.eos_token_id == [3, 4]
    model.generation_config.eos_token_id = 5  # as a trainer does; what is unchanged could be saved
    model.save_pretrained(tmp_path / "saved")
    assert load_model("--model", own, CAUSAL, sampling=True).generation_config.top_k == 5


@pytest.fixture
def adapter(own, tmp_path):
    """A LoRA adapter of somebody else's, on `own`."""
    model = get_peft_model(load_model("--base", own, CAUSAL), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_no_model(adapter, own, checkpoint):
    for file in own.iterdir():  # even where the base's files lie beside it
        if not (adapter / file.name).exists():
            shutil.copy(file, adapter)
    for kind in (CAUSAL, ENCODER):
        message = refusal(load_pair, "--base", adapter, kind)
        assert 'merge it first with: python -c "from peft' in message
        assert f"from_pretrained('{adapter}')" in message
    ours = refusal(load_pair, "--base", checkpoint, CAUSAL)
    assert ours.endswith(f"python -m lcrec.modeling merge --model {checkpoint} --output DIR")


def test_an_adapter_is_whole_or_refused(adapter, own):
    file, name = "adapter_model.safetensors", "base_model.model.model.layers.0.self_attn.q_proj"

    def load():
        return load_adapter("--model", adapter, load_model("--base", own, CAUSAL))

    load()
    shutil.copytree(adapter, adapter.parent / "whole")
    for drop, added, expected in (
        ([f"{name}.lora_A.weight"], {}, f"lack {name}.lora_A.weight"),
        ([], {f"{name}.lora_C.weight": torch.zeros(1)}, f"no place for {name}.lora_C.weight"),
        ([], {f"{name}.lora_A.weight": torch.zeros(1, 1)}, "q_proj.lora_A"),
    ):
        change_weights(adapter, drop, file, **added)
        message = refusal(load)
        assert message.startswith(f"--model {adapter}: ")
        assert expected in message
        shutil.copytree(adapter.parent / "whole", adapter, dirs_exist_ok=True)
    (adapter / file).write_bytes(b"x" * 100)
    assert "cannot be loaded" in refusal(load)


def test_rows_of_item_tokens_are_part_of_an_adapter(checkpoint, tmp_path):
    from lcrec.modeling.checkpoint import load_checkpoint

    shutil.copytree(checkpoint, tmp_path / "model")
    names = load_file(tmp_path / "model" / "adapter_model.safetensors")
    (rows,) = [name for name in names if "trainable_tokens" in name]
    change_weights(tmp_path / "model", [rows], "adapter_model.safetensors")
    assert "trainable_tokens_delta" in refusal(load_checkpoint, tmp_path / "model")


def write_words(folder, last, end="?"):
    """Write a tokenizer of whole words with the ids 0 to 9, and one more whose id is `last`."""
    words = {"?": 0} | {f"word{number}": number for number in range(1, 10)} | {"last": last}
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    written = read_json(folder / "tokenizer.json")
    written["model"]["vocab"] = words
    write_json(folder / "tokenizer.json", written)
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", settings | {"eos_token": end})


def test_two_tokens_of_one_id(own):
    write_words(own, last=9)
    message = refusal(load_pair, "--base", own, CAUSAL)
    assert "'word9'" in message
    assert "'last'" in message
    assert "have the same id, 9" in message


def test_no_item_token_gets_the_id_of_a_word(own, index):
    """The library counts from the number of words on, wherever their ids end."""
    write_words(own, last=15)
    _, tokenizer = load_pair("--base", own, CAUSAL)
    message = refusal(extend_tokenizer, tokenizer, index)
    assert "'last'" in message
    assert "have the same id, 15" in message


def test_ids_with_a_gap_below_the_last_are_no_fault(own, index):
    write_words(own, last=499, end="last")
    model, tokenizer = load_pair("--base", own, CAUSAL)
    assert len(tokenizer) < 499
    new_ids = extend_tokenizer(tokenizer, index)
    assert new_ids == list(range(500, 500 + len(index.vocabulary)))
    resize_embeddings(model, tokenizer, index)
    assert len(model.get_input_embeddings().weight) == 500 + len(index.vocabulary)


def test_ids_beyond_the_embedding(own):
    write_words(own, last=500)
    message = refusal(load_pair, "--base", own, CAUSAL)
    assert "ids up to 500 and its embedding only 500 rows" in message


@pytest.fixture
def gguf_base(own, make_llama, tmp_path):
    """A Llama as llama.cpp keeps it, in 8 bits, with the base's tokenizer; and what it was."""
    gguf = pytest.importorskip("gguf")
    tokenizer = load_tokenizer("--base", own)
    spelt = read_json(own / "tokenizer.json")["model"]
    model = make_llama(tied=False)
    (tmp_path / "gguf").mkdir()
    path = tmp_path / "gguf" / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokenizer))
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([3 if word in tokenizer.all_special_tokens else 1 for word, _ in words])
    writer.add_token_merges([" ".join(pair) for pair in spelt["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # whose rotation llama.cpp orders otherwise
            values = values.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32)
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else None
        values = values if kind is None else gguf.quants.quantize(values, kind)
        name = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model, tokenizer


def test_a_gguf_file_or_its_folder_is_a_base(gguf_base, tmp_path, capsys):
    path, original, tokenizer = gguf_base
    ids = torch.arange(20)[None]
    for name in (path, path.parent):
        model, loaded = load_pair("--base", name, CAUSAL, dtype=torch.float32)
        assert f"--base {name}: expanded from GGUF" in capsys.readouterr().out
        assert model.name_or_path == str(name)
        found, exact = (either(input_ids=ids).logits for either in (model, original))
        assert torch.allclose(found, exact, atol=0.02)
        text = "Bought: red ink pen. Next?"
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.eos_token == tokenizer.eos_token
        assert load_config("--base", name).model_type == "llama"
        model.save_pretrained(tmp_path / "saved")
        again = load_model("--base", tmp_path / "saved", CAUSAL)
        assert torch.equal(again(input_ids=ids).logits, found)


def test_which_gguf(gguf_base, monkeypatch):
    path, _, _ = gguf_base
    wrong = {"quantization_config": None}
    assert "leave out --quantize" in refusal(load_model, "--base", path, CAUSAL, **wrong)
    shutil.copy(path, path.with_name("other.gguf"))
    message = refusal(load_pair, "--base", path.parent, CAUSAL)
    assert "2 GGUF files (other.gguf, tiny.gguf); name the one to load" in message
    path.write_bytes(path.read_bytes()[:200])
    assert "cannot be loaded" in refusal(load_pair, "--base", path, CAUSAL)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'lcrec[gguf]'" in refusal(load_pair, "--base", path, CAUSAL)


@pytest.mark.parametrize(
    ("family", "rows", "tokens"),
    [
        ("bert", 34, 34),
        ("roberta", 34, 32),  # positions begin after that of the padding token, 1
        ("mpnet", 34, 32),
        ("longformer", 34, 32),
        ("ibert", 34, 32),
        ("esm", 34, 32),
        ("nystromformer", 34, 34),  # begin at 2, in a table of two rows more
        ("opt", 34, 34),
    ],
)
def test_a_model_takes_as_many_tokens_as_its_position_table_and_no_more(family, rows, tokens):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 8}
    given = {"intermediate_size": 8, "max_position_embeddings": rows, "pad_token_id": 1, **sizes}
    config = AutoConfig.for_model(family, vocab_size=9, **given)
    model = AutoModel.from_config(config).eval()
    assert position_limit(model) == tokens
    model(torch.full((1, tokens), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, tokens + 1), 5))
