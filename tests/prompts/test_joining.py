"""Joined rows are the ids that rendering and tokenising each row gives, and few are rendered."""

import numpy as np
import pytest

from lcrec.data.folder import Interactions, Items
from lcrec.data.user_texts import UserTexts
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.joining import Ragged, RowJoiner
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.rows import draw_rows, row_lengths, tokenise_rows
from lcrec.prompts.tasks import TaskData
from lcrec.prompts.templates import Template
from lcrec.tinylm import train_tokenizer

COUNT = 40
CELLS = np.random.default_rng(0).permutation(4**3)[:COUNT]
INDEX = ItemIndex(np.stack(np.unravel_index(CELLS, (4, 4, 4)), axis=1).astype(np.int32), (4,) * 3)
DESCRIPTIONS = ["" if item % 5 == 0 else f"it's [{item}]" for item in range(COUNT)]
ITEMS = Items(
    [{"title": f" Thing {i}. ", "description": text} for i, text in enumerate(DESCRIPTIONS)]
)
RNG = np.random.default_rng(1)
TRAIN = Interactions.from_sequences(
    {f"u{n}": RNG.integers(COUNT, size=size).tolist() for n, size in enumerate((9, 4, 7, 1, 12, 3))}
)
LIKES = {"u0": ["likes  tea", "tea"], "u2": ["red"]}
USERS = UserTexts(LIKES, {"u0": ["a lamp"], "u4": ["ink?"]}, {}, len(TRAIN))
OPTIONS = [{}, {"history_dropout": 0.4}, {"shows_neighbours": True}, {"alike": True}]


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(["thing it's a lamp likes tea red ink next item orders"], 320)
    extend_tokenizer(made, INDEX)
    return made


def rendered(encoder, epochs):
    """Return the rows of epochs as ids, each rendered and tokenised by itself."""
    rows = [row for epoch in epochs for row in epoch]
    prompts, answers = [], []
    for row in rows:
        text = encoder.before + encoder.escape_markup(row.prompt) + encoder.after
        prompts.append(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
        answers.append(encoder.answer_ids([row.completion])[0])
    return rows, prompts, answers


def check(tokenizer, prompts, mixture, **options):
    data = TaskData(ITEMS, TRAIN, INDEX, max_history=6, user_texts=USERS, seed=3, **options)
    epochs = [draw_rows(data, prompts, mixture, 0, epoch) for epoch in range(6)]
    encoder = PromptEncoder(tokenizer, prompts)
    found = tokenise_rows(epochs, encoder, 2000, None)
    rows, asked, answers = rendered(encoder, epochs)
    assert found["input_ids"][:] == [p + a for p, a in zip(asked, answers, strict=True)]
    assert found["prompt_length"][:] == list(map(len, asked))
    assert found["task"][:] == [row.task for row in rows]
    assert found["template_id"][:] == [row.template_id for row in rows]
    assert row_lengths(found).tolist() == list(map(len, found["input_ids"]))
    return data, encoder, epochs


@pytest.mark.parametrize("folder", ["", "short"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shipped_templates(tokenizer, folder, options):
    prompts = PromptSet.load(SHIPPED_PROMPTS / folder, base=SHIPPED_PROMPTS)
    tasks = {template.task: 1.0 for template in prompts.templates}
    check(tokenizer, prompts, tasks, **options)


def test_sides_that_show_items_alone_are_rendered_once_for_all(tokenizer, monkeypatch):
    prompts = PromptSet.load(SHIPPED_PROMPTS)
    data, encoder, epochs = check(tokenizer, prompts, {"seqrec": 1.0})
    joiner = RowJoiner(encoder, data)
    monkeypatch.setattr(joiner, "_encode_plainly", lambda *call: pytest.fail("rendered by rows"))
    for epoch in epochs:
        joiner.encode(epoch.templates, epoch.epoch, epoch.chosen, epoch.places)


@pytest.mark.parametrize(
    "question",
    [
        "{{ history | sort | join(', ') }}",
        "{{ history | unique | join(', ') }}",
        "{% if history[0] < '<a_2>' %}low{% endif %} {{ history | join(' ') }}",
        "{{ history | join(', ') | replace('_1', '_2') }}",
        "{% for item in history %}{{ item[1] }}{{ item }}{% endfor %}",
        "{{ history | first }}{{ history | length }}{{ history | reverse | join }}.",
        "  {% for item in history %}{{ loop.index }} {{ item }}\n{% endfor %}  ",
    ],
)
def test_templates_that_look_at_their_items(tokenizer, question):
    template = Template("own", "seqrec", "both", question, "{{ target }}")
    own = PromptSet((template,), "Be brief.", PromptSet.load(SHIPPED_PROMPTS).chat_template, {})
    check(tokenizer, own, {"seqrec": 1.0})


def test_rows_are_taken_and_put_side_by_side():
    left, right = Ragged.of([[1, 2], [], [3]]), Ragged.of([[4], [5, 6], []])
    both = left.beside(right).take(np.array([2, 0, 1]))
    assert both.ids.tolist() == [3, 1, 2, 4, 5, 6]
    assert both.lengths.tolist() == [1, 3, 2]
    assert Ragged.of([]).beside(Ragged.of([])).ids.tolist() == []
