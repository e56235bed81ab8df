"""Item tokens in every kind of tokenizer; the new rows of tied and untied embeddings."""

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer, item_token_ids, vocabulary_ids
from lcrec.tinylm import train_tokenizer

# Titles of pens and of mugs; the last code is an item's own, the first says pen or mug.
TITLES = ["red ink pen fine", "blue ink pen fine", "large clay mug glazed", "small clay mug glazed"]
INDEX = ItemIndex(np.array([[0, 0], [0, 1], [1, 2], [1, 3]], dtype=np.int32), (3, 6))
TEXTS = [*TITLES, "Bought: , . Next? A: ", "abcdefghijklmnopqrstuvwxyz <>_0123456789"]


def bpe():
    """Byte-level BPE without BOS (GPT-2's and Qwen's kind); pad = EOS."""
    return train_tokenizer(TEXTS, 300)


def bpe_with_bos():
    """Byte-level BPE whose post-processor puts BOS first (Llama 3's kind), without a pad token."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )


def wordpiece():
    """WordPiece that lowers case, splits at punctuation and adds [CLS] and [SEP] (BERT's kind)."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]",
        cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip


def unigram(marked="always"):
    """Unigram over words marked by a leading ▁ (sentencepiece's kind)."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=marked)
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


def unigram_at_start():
    """Unigram that marks the word at a text's start, but none behind an added token."""
    return unigram("first")


KINDS = {
    "byte-level BPE": bpe,
    "BPE with BOS": bpe_with_bos,
    "WordPiece": wordpiece,
    "Unigram": unigram,
    "Unigram, marked at the start": unigram_at_start,
    "slow, in Python": transformers.ByT5Tokenizer,
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def check_tokens(tokenizer, index):
    """Extend, then look at every property an item token must have."""
    before = len(tokenizer)
    sentence = "Bought: red ink pen. Next?"
    plain = tokenizer(sentence)["input_ids"]
    new_ids = extend_tokenizer(tokenizer, index)
    assert len(tokenizer) == before + len(index.vocabulary)
    # Every token is one id, the ids follow the order of the vocabulary, and none existed before.
    alone = tokenizer(index.vocabulary, add_special_tokens=False)["input_ids"]
    assert alone == [[token_id] for token_id in new_ids]
    assert len(set(new_ids)) == len(new_ids)
    assert min(new_ids) >= before
    assert vocabulary_ids(tokenizer, index).tolist() == new_ids
    # An item is spelt by its ids, whatever stands around it, and by nothing else.
    rows = item_token_ids(tokenizer, index).tolist()
    for item, text in enumerate(index.texts):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == rows[item]
        for around in (f"Bought:{text}, pen", f"x{text}y", f"{text}{index.texts[0]}", f" {text} "):
            ids = tokenizer(around, add_special_tokens=False)["input_ids"]
            places = [n for n in range(len(ids)) if ids[n : n + len(rows[item])] == rows[item]]
            assert places, around
        decoded = tokenizer.decode(rows[item], skip_special_tokens=True)
        assert decoded.replace(" ", "") == text
    assert tokenizer(sentence)["input_ids"] == plain


@kinds
def test_every_kind_of_tokenizer(make):
    check_tokens(make(), INDEX)


@kinds
def test_pieces_tokenised_once_are_the_ids_of_the_whole(make, prompts):
    tokenizer = make()
    extend_tokenizer(tokenizer, INDEX)
    encoder = PromptEncoder(tokenizer, prompts)
    one, two = INDEX.texts[0], INDEX.texts[2]
    texts = ["red pen", one, one + two, f"{one}, {two}, {one}", f"Bought {one}\n\né.{two} ", ""]
    for _ in range(2):  # what is not known yet, then what is
        whole = [encoder.before + text + encoder.after for text in texts]
        expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert encoder.prompt_ids(texts) == expected
        answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert encoder.answer_ids(texts) == [[*ids, tokenizer.eos_token_id] for ids in answers]
    assert (encoder._pieces is None) == (make is unigram_at_start)


@kinds
def test_tokens_survive_saving(make, tmp_path):
    tokenizer = make()
    new_ids = extend_tokenizer(tokenizer, INDEX)
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary_ids(loaded, INDEX).tolist() == new_ids
    question = f"Bought: {INDEX.texts[2]} pen"
    assert loaded(question)["input_ids"] == tokenizer(question)["input_ids"]


@pytest.mark.real_data
def test_qwen3(real_data):
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_data / "tokenizers" / "Qwen3")
    check_tokens(tokenizer, INDEX)


def test_pad_may_be_eos():
    tokenizer = bpe_with_bos()
    tokenizer.pad_token = tokenizer.eos_token
    check_tokens(tokenizer, INDEX)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


@pytest.fixture(scope="module")
def extended():
    tokenizer = bpe()
    extend_tokenizer(tokenizer, INDEX)
    return tokenizer


@given(before=st.text(max_size=20), after=st.text(max_size=20), item=st.integers(0, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_text_around_an_item_never_touches_it(extended, before, after, item):
    ids = extended(before + INDEX.texts[item] + after, add_special_tokens=False)["input_ids"]
    sides = extended([before, after], add_special_tokens=False)["input_ids"]
    assert ids == sides[0] + item_token_ids(extended, INDEX)[item].tolist() + sides[1]


def test_a_tuned_tokenizer_is_refused_and_missing_tokens_are_counted(extended):
    with pytest.raises(InputError, match=r"already has '<a_0>'.*start from a base model"):
        extend_tokenizer(extended, INDEX)
    larger = ItemIndex(INDEX.codes, (3, 8))
    with pytest.raises(InputError, match=r"lacks 2 of the index's 11 tokens \(first: '<b_6>'\)"):
        vocabulary_ids(extended, larger)


def make_model(tokenizer, *, tied, spare=0):
    """Make a random model whose table has `spare` more entries than the tokenizer."""
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer) + spare, hidden_size=32, intermediate_size=32,
            num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=tied, pad_token_id=None,
        )
    )  # fmt: skip


def tables(model):
    """Return copies of the embedding table and the head, which are one where they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight.detach().clone() for module in modules]


def grow(*, tied, spare=0, texts=TITLES, codebooks=None, index=INDEX):
    """Return the tables before and after, and the ids of the new rows."""
    tokenizer = bpe()
    model = make_model(tokenizer, tied=tied, spare=spare)
    before, size = tables(model), len(tokenizer)
    new_ids = extend_tokenizer(tokenizer, index)
    resize_embeddings(model, tokenizer, index, texts=texts, codebooks=codebooks)
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied
    assert model.config.vocab_size == len(model.get_input_embeddings().weight)
    return before, tables(model), new_ids, size


@pytest.mark.parametrize("texts", [TITLES, None], ids=["from text", "random"])
@pytest.mark.parametrize("spare", [0, 3, 40])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_rows(tied, spare, texts):
    before, after, new_ids, size = grow(tied=tied, spare=spare, texts=texts)
    for old, new in zip(before, after, strict=True):
        # A table with room to spare, such as Qwen's, is used as it is.
        assert len(new) == max(size + len(new_ids), size + spare)
        assert torch.equal(new[:size], old[:size])
        rows = new[new_ids]
        assert rows.isfinite().all()
        assert torch.pdist(rows).min() > 1e-3
        # As large as the rows that the model knows how to read, around the same mean.
        spread = (rows - old[:size].mean(0)).std() / old[:size].std()
        assert 0.5 < spread < 2
    assert torch.equal(after[0], after[1]) == tied


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_like_texts_have_like_rows(tied):
    _, after, new_ids, size = grow(tied=tied)
    for table in after:
        mean = table[:size].mean(0)
        own = torch.nn.functional.normalize(table[new_ids[3:7]] - mean, dim=1)  # <b_0> to <b_3>
        likeness = own @ own.T
        pens, mugs = likeness[0, 1], likeness[2, 3]
        across = likeness[:2, 2:].max()
        assert pens > across + 0.3
        assert mugs > across + 0.3
        # A code that both pens share lies between them, near to both.
        pen = torch.nn.functional.normalize(table[new_ids[0]] - mean, dim=0)
        assert (own[:2] @ pen).min() > (own[2:] @ pen).max() + 0.3


def test_rows_are_the_same_every_time():
    first, second = grow(tied=False)[1], grow(tied=False)[1]
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("texts", [["pen"] * 4, ["", *TITLES[1:]]], ids=["all alike", "one empty"])
def test_rows_differ_whatever_the_texts(texts):
    _, (table, _), new_ids, _ = grow(tied=True, texts=texts)
    assert torch.pdist(table[new_ids]).min() > 1e-3


@pytest.mark.parametrize("dim", [4, 100], ids=["narrower than the table", "wider"])
def test_rows_from_codebooks_keep_the_angles_between_codes(dim):
    levels, size = 2, 6
    counted = np.column_stack([INDEX.codes, np.zeros(len(INDEX), dtype=np.int32)])
    index = ItemIndex(counted, (size,) * levels + (2,))  # the last level has no codebook
    codebooks = torch.zeros(levels, size, dim)
    codebooks[:, :, :3] = torch.randn(levels, size, 3, generator=torch.Generator().manual_seed(1))
    # A later level's codes are shorter; their rows are not.
    codebooks[1:] *= 0.01
    before, after, new_ids, size_before = grow(tied=True, codebooks=codebooks, index=index)
    rows = after[0][new_ids] - before[0][:size_before].mean(0)
    for level in range(levels):
        codes = codebooks[level] - codebooks[level].mean(0)
        own = rows[level * size : (level + 1) * size]
        angles = torch.nn.functional.cosine_similarity(codes[:, None], codes[None], dim=2)
        kept = torch.nn.functional.cosine_similarity(own[:, None], own[None], dim=2)
        assert torch.allclose(angles, kept, atol=1e-3)
    assert torch.pdist(rows).min() > 1e-3
    assert rows.std() == pytest.approx(before[0][:size_before].std(), rel=0.5)
