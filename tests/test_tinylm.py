"""The small base language model: its tokenizer, its training and the folder it leaves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.folder import Items
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.templates import Template
from lcrec.tinylm import build_model, collect_corpus, main, pretrain, train_tokenizer

TEXTS = [f"the {colour} desk is {colour}" for colour in ("red", "blue", "grey", "green")] * 8
TOKENIZER = train_tokenizer(TEXTS, 300)


def small_model(seed=0):
    torch.manual_seed(seed)
    return build_model(TOKENIZER, hidden_size=32, layers=1, context=256)


@given(st.text())
@example("Fender Stratocaster 🎸, 21 frets")
@example("  two  spaces , and a space before a comma ")
@example("👩🏽‍🎤 吉他 ギター גיטרה")
@example("tab\tnewline\n\r\nend")
@example("\u2028\x00\ufeff")
@example("don't , n't 's .")
def test_any_text_survives_the_round_trip(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= token < len(TOKENIZER) for token in ids)
    assert TOKENIZER.unk_token is None


def test_the_tokenizer_learns_the_shops_words_up_to_its_size():
    assert len(TOKENIZER) <= 300
    assert len(TOKENIZER("the desk is red")["input_ids"]) <= 6
    assert len(TOKENIZER("qzxvkj")["input_ids"]) == 6
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == "<|endoftext|>"
    assert TOKENIZER.bos_token is None
    # Nothing is added on its own: what is trained is what is written.
    assert TOKENIZER.eos_token_id not in TOKENIZER("the desk")["input_ids"]
    words = [f"word{number} and other{number}" for number in range(300)]
    sizes = [len(train_tokenizer(words, size)) for size in (300, 400)]
    assert sizes == [300, 400]


def test_corpus_by_hand():
    items = Items(
        [
            {"title": "Desk", "description": "one two three four", "brand": "Acme"},
            {"title": "Lamp", "description": "", "categories": "Office", "colour": "red"},
        ]
    )
    template = Template("a", "seqrec", "both", "After {{ history }}?", "{{ target }}")
    prompts = PromptSet((template,), "", "", {})
    assert collect_corpus(items, prompts, max_words=3) == [
        "Desk", "one two three", "Acme", "Lamp", "Office", "After {{ history }}?",
    ]  # fmt: skip


def test_the_shape_of_the_model():
    model = small_model()
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.num_attention_heads == 1
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.eos_token_id == TOKENIZER.eos_token_id
    assert model.config.bos_token_id is None
    assert build_model(TOKENIZER, 96, 2, 64).config.num_attention_heads == 3


def loss_of(model, text):
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


def test_training_lowers_the_loss_and_no_training_changes_nothing():
    model = small_model()
    assert loss_of(model, TEXTS[0]) == pytest.approx(math.log(len(TOKENIZER)), rel=0.1)
    loss = pretrain(model, TOKENIZER, TEXTS, 30, 1e-2, seed=0, block=16, batch_size=8)
    assert loss < 2
    assert not model.training
    assert loss_of(model, TEXTS[0]) < 2
    assert loss_of(model, "xyzzy qwert") > 4  # it learned these texts, not everything
    model = small_model()
    before = model.model.embed_tokens.weight.clone()
    assert math.isnan(pretrain(model, TOKENIZER, TEXTS, 0, 1e-2, seed=0))
    assert model.model.embed_tokens.weight.equal(before)

    def weights(seed):
        model = small_model()
        pretrain(model, TOKENIZER, TEXTS, 2, 1e-2, seed=seed, block=16, batch_size=4)
        return model.model.embed_tokens.weight

    assert weights(1).equal(weights(1))
    assert not weights(1).equal(weights(2))


@pytest.mark.parametrize("texts", [["a"], ["red desk"], TEXTS[:3]])
def test_less_text_than_one_block(texts):
    loss = pretrain(small_model(), TOKENIZER, texts, 3, 1e-3, seed=0, block=128)
    assert math.isfinite(loss)


def test_every_text_is_seen_once_per_epoch(monkeypatch):
    """One block holds exactly the whole corpus: every row is a permutation of the same tokens."""
    model = small_model()
    texts = ["red", "blue desk", "grey"]
    total = sum(len(TOKENIZER(text)["input_ids"]) + 1 for text in texts)
    rows = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: rows.append(inputs["input_ids"]) or forward(**inputs)
    )
    pretrain(model, TOKENIZER, texts, 4, 1e-3, seed=0, block=total, batch_size=1)
    decoded = [TOKENIZER.decode(row[0]).split("<|endoftext|>") for row in rows]
    assert len(decoded) == 4
    assert all(sorted(words) == sorted(["", *texts]) for words in decoded)
    assert len({tuple(words) for words in decoded}) > 1  # in another order each time


SETTINGS = {
    "vocab-size": 400, "hidden-size": 32, "layers": 1, "context": 128, "epochs": 0.2,
    "max-words": 10,
}  # fmt: skip


@pytest.fixture
def argv(shop, tmp_path):
    """A function that returns the command line, with changes."""

    def make(output="base", **changes):
        flags = {
            "data": shop,
            "output": tmp_path / output,
            **SETTINGS,
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        return [word for name, value in flags.items() for word in (f"--{name}", str(value))]

    return make


def test_the_folder_is_a_plain_hugging_face_model(argv, tmp_path, capsys):
    main(argv())
    folder = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen3"
    assert model.config.max_position_embeddings == 128
    assert model.config.vocab_size == len(tokenizer) == 400
    text = "a red desk 🎸"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.shape[1] + 3
    assert (folder / "model.safetensors").exists()

    record = read_provenance(folder)
    assert record["stage"] == "python -m lcrec.tinylm"
    assert set(record["inputs"]) == {"item"}
    assert record["config"]["prompts"] == PromptSet.load(SHIPPED_PROMPTS).content_hash
    assert record["loss"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    out = capsys.readouterr().out
    assert f"Next: python -m lcrec.finetune --base {folder}" in out


def test_a_folder_of_wording_may_hold_a_part_of_it(argv, tmp_path):
    main(argv(prompts=SHIPPED_PROMPTS / "short"))
    record = read_provenance(tmp_path / "base")
    both = PromptSet.load(SHIPPED_PROMPTS / "short", base=SHIPPED_PROMPTS)
    assert record["config"]["prompts"] == both.content_hash


def test_running_it_again(argv, tmp_path, capsys):
    main(argv())
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    main(argv())
    assert "is up to date" in capsys.readouterr().out
    main(argv("again"))
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    main(argv(seed=1))
    assert (tmp_path / "base" / "model.safetensors").read_bytes() != weights


def test_settings_that_cannot_work_or_that_train_nothing(argv, tmp_path):
    with pytest.raises(InputError, match="--hidden-size 40: take a multiple of 32"):
        main(argv(hidden_size=40))
    with pytest.raises(InputError, match="--vocab-size: 100 is too small"):
        main(argv(vocab_size=100))
    main(argv(epochs=0))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert np.isfinite(model.get_input_embeddings().weight.detach().numpy()).all()
    assert read_provenance(tmp_path / "base")["loss"] is None
