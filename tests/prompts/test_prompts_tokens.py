"""What the model reads of a sample, and how long samples are, counted by hand."""

import re

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.__main__ import main
from lcrec.prompts.preview import paint
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TaskData
from lcrec.prompts.templates import Template
from lcrec.prompts.tokens import lay_out_tokens, load_encoder, print_stats, sample_tokens
from lcrec.tinylm import train_tokenizer

INDEX = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32), (2, 2))
ITEMS = Items([{"title": "pen"}, {"title": "pen"}, {"title": "<s>[X]"}, {"description": "mug"}])
TRAIN = Interactions.from_sequences({"u": [0, 1, 2, 3]})
DATA = TaskData(ITEMS, TRAIN, INDEX)
PROMPTS = PromptSet(
    (
        Template("row", "seqrec", "both", "{{ history | join('') }}", "{{ target }}"),
        Template("last", "seqrec", "eval", "{{ history | last }}", "{{ target }}"),
        Template("no-text", "item2index", "both", "{{ title }}{{ description }}", "{{ target }}"),
    ),
    "",
    "[X]{{ messages[-1].content }}",
    {},
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    made = train_tokenizer(["pen"] * 9, 300)
    made.add_special_tokens({"additional_special_tokens": ["[X]"]})
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tokenizer_folder):
    return load_encoder(str(tokenizer_folder), PROMPTS, INDEX)


def test_each_token_is_shown_with_whether_it_is_trained(encoder):
    tokens = sample_tokens(encoder, "<a_0><b_0>", "<a_1><b_1>")
    end = encoder.tokenizer.eos_token
    assert [text for text, trained in tokens if trained] == ["<a_1>", "<b_1>", end]
    assert [text for text, trained in tokens if not trained] == ["[X]", "<a_0>", "<b_0>"]


def test_a_sample_is_laid_out_as_it_is_trained(encoder, monkeypatch):
    laid = lay_out_tokens(encoder, "<a_0><b_0>", "<a_1><b_1>")
    assert laid == (
        "   (3 tokens of prompt, 3 under loss, in [[ ]])\n"
        "   [X]<a_0><b_0>[[<a_1><b_1><|endoftext|>]]"
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    span = paint("<a_1><b_1><|endoftext|>", "green", "")
    assert span.startswith("\033[32m")
    assert lay_out_tokens(encoder, "<a_0><b_0>", "<a_1><b_1>").endswith(f"[X]<a_0><b_0>{span}")


def test_tokens_are_counted_of_all_or_of_an_even_sample(encoder, capsys):
    print_stats(PROMPTS, DATA, encoder, max_length=8, count=0)
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[4:]}
    # Each row shares the one before it, 3 and 5 tokens of the 24.
    # [X], a history of 1, 2, 3 items of 2 tokens, an answer of 2 and its end: 6, 8 and 10.
    assert lines["row"] == ["3", "3", "6", "8", "10", "10", "33.3%", "33.3%"]
    # Its prompts share [X], and two of them <a_0>: 3 tokens of 18.
    assert lines["last"] == ["3", "3", "6", "6", "6", "6", "0.0%", "16.7%"]
    assert lines["seqrec"] == ["6", "6", "6", "6", "10", "10", "16.7%", "26.2%"]
    reason = "never used here: no record has description, target, title at once"
    assert " ".join(lines["no-text"]) == f"0 0 {reason}"
    print_stats(PROMPTS, DATA, encoder, max_length=8, count=2)
    shown = capsys.readouterr().out
    assert re.search(r"row +2 +3 +6 +10 +10 +10 +50.0%", shown)
    assert "itemsearch: left out, task itemsearch needs what users like" in shown
    assert "[X]one\n   two[[three\n   four<|endoftext|>]]" in lay_out_tokens(
        encoder, "one\ntwo", "three\nfour"
    )


def test_a_tokenizer_that_knows_the_items_is_taken_as_it_is(checkpoint, index, prompts):
    encoder = load_encoder(str(checkpoint), prompts, index)
    (ids,) = encoder.answer_ids([index.texts[5]])
    assert len(ids) == 4
    with pytest.raises(InputError, match=r"lacks .* model and index do not belong"):
        load_encoder(str(checkpoint), prompts, ItemIndex(INDEX.codes, (9, 9)))


def test_on_the_command_line(checkpoint, shop, capsys):
    real = ["--tokenizer", str(checkpoint), "--data", str(shop), "--index", str(checkpoint)]
    main(["show", "index2item", "-n", "2", *real])
    shown = capsys.readouterr().out
    assert "made up" not in shown
    assert shown.count("<|endoftext|>]]") == 2
    assert "\n   Q: <a_" in shown
    limits = ["--max-length", "20", "--max-history", "2", "--max-text-words", "5"]
    main(["stats", *real, "-n", "3", *limits])
    shown = capsys.readouterr().out
    assert "over 20" in shown
    assert re.search(r"\n  next-short +3 ", shown)
