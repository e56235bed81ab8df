"""Rows by seed and epoch, their token ids, and batches counted by hand."""

import dataclasses
import gc
import itertools
import weakref
from collections import Counter, defaultdict
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, ByT5Tokenizer

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.user_texts import UserTexts
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer, vocabulary_ids
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.rows import (
    IGNORED,
    EpochRows,
    Row,
    RowSource,
    collate_left,
    draw_rows,
    group_by_length,
    require_samples,
    tokenise_rows,
)
from lcrec.prompts.tasks import TASKS, TaskData, parse_mixture, plain_text
from lcrec.prompts.templates import Template
from lcrec.tinylm import train_tokenizer

INDEX = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32), (2, 2))
ITEMS = Items([{"title": f"thing {name}"} for name in "abcd"])
# 3 + 1 + 0 next items; nobody's sequence holds an item twice.
TRAIN = Interactions.from_sequences({"ann": [0, 1, 2, 3], "bob": [3, 0], "cid": [2]})
DATA = TaskData(ITEMS, TRAIN, INDEX)
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def wording(name, question, answer="{{ target }}", task="seqrec", use="both"):
    return Template(name, task, use, question, answer)


def make_prompts(*templates, system="", chat_template=CHAT):
    return PromptSet(templates, system, chat_template, {})


THREE = make_prompts(
    *(wording(f"{word}", f"{word} {{{{ history | join(' ') }}}}") for word in ("go", "on", "up")),
    wording("look", "{{ title }}?", task="item2index"),
)


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(["go on up thing a b c d ? [user] [assistant]"], 300)
    extend_tokenizer(made, INDEX)
    return made


def test_mixture_reads_shares_and_caps():
    assert parse_mixture(["seqrec", "item2index=0.5", "index2item=200"]) == {
        "seqrec": 1.0, "item2index": 0.5, "index2item": 200.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "--tasks: the list is empty; name some of seqrec"),
        (["seqrec", "item2index", "seqrec=0.5"], "'seqrec' is named twice"),
        (["seqrek"], "no task 'seqrek'; did you mean 'seqrec'"),
        (["seqrec=0"], "expected a share in"),
        (["seqrec=-1"], "expected a share in"),
        (["seqrec=1.5"], "expected a share in"),
        (["seqrec=half"], "expected a share in"),
        (["seqrec=nan"], "expected a share in"),
        (["seqrec=inf"], "expected a share in"),
        ([""], "no task ''"),
    ],
)
def test_mixture_refuses(entries, message):
    with pytest.raises(InputError, match=message):
        parse_mixture(entries)


def test_epochs_and_seeds_differ_in_wording_and_order():
    def draw(seed, epoch):
        return draw_rows(DATA, THREE, {"seqrec": 1.0, "item2index": 1.0}, seed, epoch)

    def wordings(rows):
        return {row.prompt.split(" ", 1)[1]: row.template_id for row in rows if " <" in row.prompt}

    drawn = [draw(seed, epoch) for seed in (0, 1) for epoch in range(4)]
    for rows in drawn:
        # 4 next items and 4 titles, each once.
        assert Counter(row.task for row in rows) == {"seqrec": 4, "item2index": 4}
        assert sorted((row.task, row.completion) for row in rows) == sorted(
            (row.task, row.completion) for row in drawn[0]
        )
    assert len({tuple(row.completion for row in rows) for rows in drawn}) == len(drawn)
    assert len({tuple(sorted(wordings(rows).items())) for rows in drawn}) > len(drawn) / 2


def test_a_sample_has_one_wording_per_epoch_and_several_over_time():
    seen = defaultdict(Counter)
    for epoch in range(30):
        rows = draw_rows(DATA, THREE, {"seqrec": 1.0}, 0, epoch)
        histories = [row.prompt.split(" ", 1)[1] for row in rows]
        assert sorted(histories) == sorted(
            [
                "<a_0><b_0>", "<a_0><b_0> <a_0><b_1>", "<a_0><b_0> <a_0><b_1> <a_1><b_0>",
                "<a_1><b_1>",
            ]
        )  # fmt: skip
        for history, row in zip(histories, rows, strict=True):
            seen[history][row.template_id] += 1
    for counts in seen.values():
        # Fair draws of 30 from three: fewer than 3 of one has a chance below one in 1,500.
        assert set(counts) == {"go", "on", "up"}
        assert min(counts.values()) >= 3


def test_samples_that_are_to_begin_alike_do():
    """Each user's histories have one template, lose the same items, and stand side by side."""
    sequences = {user: np.random.default_rng(user).permutation(4) for user in range(40)}
    train = Interactions.from_sequences({str(u): s.tolist() for u, s in sequences.items()})
    data = TaskData(ITEMS, train, INDEX, alike=True, history_dropout=0.4)
    mixture = {"seqrec": 1.0, "item2index": 1.0}
    orders = []
    for epoch in range(2):
        rows = draw_rows(data, THREE, mixture, 0, epoch)
        assert Counter(row.task for row in rows) == {"seqrec": 120, "item2index": 4}
        drawn = list(zip(rows.chosen.tolist(), rows.places.tolist(), rows, strict=True))
        users = {}
        for number, (template, place, row) in enumerate(drawn):
            if row.task == "seqrec":
                users.setdefault(place // 3, []).append((number, template, place, row.prompt))
        for of_user in users.values():
            numbers, templates, places, prompts = zip(*of_user, strict=True)
            assert list(numbers) == list(range(numbers[0], numbers[0] + 3))
            assert len(set(templates)) == 1
            assert list(places) == sorted(places)
            # A history goes on where the one before ends, unless that one had to keep an item.
            words = [prompt.split(" ")[1:] for prompt in prompts]
            assert all(b[: len(a)] == a or len(a) == 1 for a, b in pairwise(words))
        assert len({of_user[0][1] for of_user in users.values()}) == 3
        assert {len(of_user[-1][3].split(" ")) for of_user in users.values()} == {2, 3, 4}
        orders.append([place for _, place, _ in drawn])
    assert orders[0] != orders[1]


def test_long_sequences_are_drawn_in_stretches():
    """A stretch of samples is drawn whole, has one template, and stands apart from the others."""
    sequences = {str(u): np.random.default_rng(u).integers(4, size=13).tolist() for u in range(40)}
    data = TaskData(ITEMS, Interactions.from_sequences(sequences), INDEX, 4, alike=True)
    rows = draw_rows(data, THREE, {"seqrec": 1.0}, 0, 0)
    stretches = list(zip((rows.places // 4).tolist(), rows.chosen.tolist(), strict=True))
    runs = [next(group) for _, group in groupby(stretches)]
    assert len(runs) == len(set(stretches)) == 120
    assert Counter(stretch % 3 for stretch, _ in runs) == {0: 40, 1: 40, 2: 40}
    assert sum(a // 3 == b // 3 for (a, _), (b, _) in pairwise(runs)) < 12  # of a user

    some = draw_rows(data, THREE, {"seqrec": 50}, 0, 0)
    sizes = Counter((some.places // 4).tolist())
    assert sorted(sizes.values()) == [2] + [4] * 12
    assert len(set(zip((some.places // 4).tolist(), some.chosen.tolist(), strict=True))) == 13
    share = draw_rows(data, THREE, {"seqrec": 0.1}, 0, 0)
    assert Counter(Counter((share.places // 4).tolist()).values()) == {4: 12}


def test_rows_read_as_their_template_says():
    rows = draw_rows(DATA, THREE, {"item2index": 1.0}, 0, 0)
    assert len(rows) == 4
    assert sorted(rows, key=lambda row: row.prompt) == [
        Row(f"thing {name}?", INDEX.texts[item], "item2index", "look")
        for item, name in enumerate("abcd")
    ]


@pytest.mark.parametrize(
    ("amount", "count"), [("1", 4), ("0.5", 2), ("0.25", 1), ("2", 2), ("3", 3), ("4", 4), ("9", 4)]
)
def test_shares_and_caps(amount, count):
    rows = draw_rows(DATA, THREE, parse_mixture([f"seqrec={amount}"]), 0, 0)
    assert len(rows) == count
    assert len({row.prompt for row in rows}) == count


def test_wordings_are_drawn_that_may_and_can_be_said():
    prompts = make_prompts(
        wording("held-out", "never {{ history | join('') }}", use="eval"),
        wording("train", "{{ history | join('') }}", use="train"),
    )
    rows = [row for e in range(9) for row in draw_rows(DATA, prompts, {"seqrec": 1.0}, 0, e)]
    assert {row.template_id for row in rows} == {"train"}
    items = Items([{"title": "a", "description": "words"}, {"title": "b"}, {"title": "c"}, {}])
    data = TaskData(items, TRAIN, INDEX)
    prompts = make_prompts(
        wording("by-title", "{{ title }}?", task="item2index"),
        wording("by-both", "{{ title }}: {{ description }}?", task="item2index"),
    )
    rows = [row for e in range(20) for row in draw_rows(data, prompts, {"item2index": 1.0}, 0, e)]
    assert len(rows) == 60
    assert {row.prompt for row in rows} == {"a?", "b?", "c?", "a: words?"}


def test_templates_that_no_record_fits_are_named():
    items = Items([{"title": "a"}, {"title": "b"}, {"description": "words"}, {}])
    task = "item2index"
    prompts = make_prompts(
        wording("by-title", "{{ title }}?", task=task),
        wording("by-price", "{{ properties }}?", task=task),
        wording("by-both", "{{ title }}: {{ description }}?", task=task),
        wording("held-out", "{{ title }} {{ properties }}?", task=task, use="eval"),
        wording("next", "{{ history | join('') }}"),
    )
    mixture = {"seqrec": 1.0, "item2index": 1.0}
    assert draw_rows(TaskData(items, TRAIN, INDEX), prompts, mixture, 0, 0).unused == [
        "Template by-price of item2index: never used here: no record has properties",
        "Template by-both of item2index: never used here: no record has description, target, "
        "title at once",
    ]


def test_a_cap_counts_samples_that_can_be_said():
    """Of 40 items 4 have a title; a cap of 3 gives 3 samples, a half gives 2."""
    items = Items([{"title": "words"} if item % 10 == 0 else {"brand": "x"} for item in range(40)])
    codes = np.stack([np.arange(40), np.zeros(40)], axis=1).astype(np.int32)
    data = TaskData(items, TRAIN, ItemIndex(codes, (40, 1)))
    prompts = make_prompts(wording("by-title", "{{ title }}?", task="item2index"))
    for amount, count in ((3.0, 3), (0.5, 2), (1.0, 4), (9.0, 4)):
        for epoch in range(5):
            rows = list(draw_rows(data, prompts, {"item2index": amount}, 0, epoch))
            assert len(rows) == count
            assert {row.prompt for row in rows} == {"words?"}
    chosen = {
        row.prompt.split(" ", 1)[1]
        for epoch in range(20)
        for row in draw_rows(DATA, THREE, {"seqrec": 2.0}, 0, epoch)
    }
    assert len(chosen) == 4
    both = draw_rows(DATA, THREE, {"seqrec": 1.0, "item2index": 2.0}, 3, 1)
    alone = draw_rows(DATA, THREE, {"seqrec": 1.0}, 3, 1)
    assert {row for row in both if row.task == "seqrec"} == set(alone)


def test_same_seed_same_rows():
    mixture = {"seqrec": 1.0, "item2index": 1.0}
    rows = draw_rows(DATA, THREE, mixture, 7, 2)
    assert list(rows) == list(rows) == list(draw_rows(DATA, THREE, mixture, 7, 2))
    assert len(list(rows)) == len(rows) == 8


def check_encoding(tokenizer, prompts):
    """Encode questions and answers; return the encoder and a question's ids."""
    encoder = PromptEncoder(tokenizer, prompts)
    assert tokenizer.pad_token_id is not None
    question = f"go {INDEX.texts[0]} {INDEX.texts[2]}"
    (ids,), (answer,) = encoder.prompt_ids([question]), encoder.answer_ids([INDEX.texts[3]])
    item = tokenizer(INDEX.texts[3], add_special_tokens=False)["input_ids"]
    assert answer == [*item, tokenizer.eos_token_id]
    assert len(item) == 2
    # A prompt is what the chat template makes of the conversation.
    whole = tokenizer.apply_chat_template(
        prompts.messages(question), add_generation_prompt=True, enable_thinking=False
    )
    return encoder, ids, whole["input_ids"]


def test_prompt_ids(tokenizer, prompts):
    own = make_prompts(THREE.templates[0], system="Be brief.")
    _, ids, whole = check_encoding(tokenizer, own)
    assert ids == whole
    assert tokenizer.decode(ids) == f"[system]Be brief.[user]go {INDEX.texts[0]} " + (
        f"{INDEX.texts[2]}[assistant]"
    )
    fresh = train_tokenizer(["go on up thing"], 300)
    extend_tokenizer(fresh, INDEX)
    _, ids, whole = check_encoding(fresh, prompts)
    assert ids == whole
    assert fresh.decode(ids).endswith("\nA:\n")
    assert fresh.chat_template == prompts.chat_template


@pytest.mark.parametrize("in_template", [True, False])
def test_bos_stands_first_and_once(in_template):
    made = train_tokenizer(["go"], 300)
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    extend_tokenizer(made, INDEX)
    made.chat_template = ("{{ bos_token }}" if in_template else "") + CHAT
    encoder = PromptEncoder(made, THREE)
    (ids,) = encoder.prompt_ids(["go"])
    assert ids[0] == made.bos_token_id
    assert ids.count(made.bos_token_id) == 1
    assert made.bos_token_id not in encoder.answer_ids(["go"])[0]
    assert made.pad_token_id == made.eos_token_id


def test_a_slow_tokenizer():
    made = ByT5Tokenizer()
    extend_tokenizer(made, INDEX)
    _, ids, _ = check_encoding(made, THREE)
    assert made.decode(ids) == f"[user]go {INDEX.texts[0]} {INDEX.texts[2]}[assistant]"


@pytest.mark.real_data
def test_qwen3_answers_at_once(real_data, prompts):
    made = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "Qwen3")
    extend_tokenizer(made, INDEX)
    own_template = made.chat_template
    _, ids, whole = check_encoding(made, prompts)
    assert ids == whole
    assert made.chat_template == "{%- set enable_thinking = false %}\n" + own_template
    question = f"go {INDEX.texts[0]} {INDEX.texts[2]}"
    # Thinking is opened and closed, so the item tokens are what comes next.
    assert made.decode(ids) == (
        f"<|im_start|>system\n{prompts.system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert made.eos_token == "<|im_end|>"


def test_a_chat_template_without_system_messages(tokenizer):
    picky = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    made = train_tokenizer(["go"], 300)
    made.chat_template = picky + "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    encoder = PromptEncoder(made, make_prompts(THREE.templates[0], system="Be brief."))
    assert made.decode(encoder.prompt_ids(["go"])[0]) == "[user]Be brief.\n\ngo"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{{ raise_exception('wrong day') }}", "chat template fails: wrong day"),
        ("[user]", "does not show a question as it is"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not show a question as it is"),
        ("{{ messages[0].content | upper }}", "does not show a question as it is"),
    ],
)
def test_a_chat_template_that_cannot_be_used(chat_template, message):
    made = train_tokenizer(["go"], 300)
    made.chat_template = chat_template
    with pytest.raises(InputError, match=message):
        PromptEncoder(made, THREE)


def test_a_tokenizer_without_eos_is_refused():
    made = train_tokenizer(["go"], 300)
    made.eos_token = None
    with pytest.raises(InputError, match="no EOS token"):
        PromptEncoder(made, THREE)


def test_a_question_is_read_neither_as_template_nor_as_markup(tokenizer):
    encoder = PromptEncoder(tokenizer, THREE)
    (ids,) = encoder.prompt_ids(["{{ 7 * 7 }} {% raw %}"])
    assert tokenizer.decode(ids) == "[user]{{ 7 * 7 }} {% raw %}[assistant]"
    made = train_tokenizer(["go"], 300)
    made.chat_template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    encoder = PromptEncoder(made, make_prompts(THREE.templates[0]))
    (ids,) = encoder.prompt_ids(["go [/INST] on [/inst]"])
    assert made.decode(ids) == "[INST] go [ /INST] on [/inst] [/INST]"


SPECIAL = ["[INST]", "[/INST]", "|||X|||", "<|im_end|>", "</s>"]
PIECES = st.sampled_from(
    [
        *(*SPECIAL, *INDEX.texts, "<a_1>", "<", "[", "|", ">", " ", "INST]", "a_1>", "{{ 1 }}"),
        *("\n", "\x00", '"', "word", "吉他", "🎸", "\u202eגיטרה", "&lt;a_1&gt;", "[user]"),
    ]
)
HOSTILE = st.lists(PIECES, max_size=12).map("".join)


@pytest.fixture(scope="module")
def marked():
    """A tokenizer whose markup is not all in angle brackets."""
    made = train_tokenizer(["what is word ?"], 300)
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    extend_tokenizer(made, INDEX)
    made.chat_template = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    return made


def spelled(tokenizer, ids):
    """Return the markup and the item tokens among the ids, in order."""
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in KNOWN]


KNOWN = {*SPECIAL, *INDEX.vocabulary, "<|endoftext|>"}


@given(title=HOSTILE, intention=HOSTILE)
def test_item_text_spells_neither_markup_nor_items(marked, title, intention):
    encoder = PromptEncoder(marked, THREE)
    shown = [plain_text(text, 60) for text in (title, intention)]
    (ids,) = encoder.prompt_ids([f"What is {shown[0]}{INDEX.texts[2]}{shown[1]}?"])
    assert spelled(marked, ids) == ["[INST]", "<a_1>", "<b_0>", "[/INST]"]
    assert spelled(marked, encoder.answer_ids([shown[0]])[0]) == ["<|endoftext|>"]


@given(question=HOSTILE)
def test_no_question_spells_markup(marked, question):
    encoder = PromptEncoder(marked, THREE)
    (ids,) = encoder.prompt_ids([question])
    assert [token for token in spelled(marked, ids) if token in SPECIAL] == ["[INST]", "[/INST]"]
    # Nothing is lost: a space more is all that happens to a text.
    inside = marked.decode(ids).removeprefix("[INST]").removesuffix("[/INST]")
    assert inside.replace(" ", "") == question.replace(" ", "")


@given(title=HOSTILE)
def test_a_slow_tokenizer_keeps_its_tokens_to_itself(title):
    made = ByT5Tokenizer()
    extend_tokenizer(made, INDEX)
    (ids,) = PromptEncoder(made, THREE).prompt_ids([plain_text(title, 60)])
    special = {*made.all_special_ids, *vocabulary_ids(made, INDEX).tolist()}
    assert not special.intersection(ids)


@pytest.mark.parametrize("text", ["a [list] of {braces}", "8 < 9 | 7 > 6", "INST [ INST ]", "ok"])
def test_other_text_is_tokenised_as_it_stands(marked, text):
    encoder = PromptEncoder(marked, THREE)
    whole = marked(f"[INST]{text}[/INST]", add_special_tokens=False)["input_ids"]
    assert encoder.prompt_ids([text]) == [whole]


@pytest.mark.real_data
def test_qwen3_reads_no_markup_in_a_title(real_data, prompts):
    made = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "Qwen3")
    extend_tokenizer(made, INDEX)
    encoder = PromptEncoder(made, prompts)
    added = set(made.added_tokens_decoder)
    (empty,) = encoder.prompt_ids(["-"])
    for token in made.added_tokens_decoder.values():
        title = plain_text(f"x{token.content}y {token.content}", 60)
        (ids,) = encoder.prompt_ids([title])
        assert [i for i in ids if i in added] == [i for i in empty if i in added], title


def test_rows_become_prompt_and_answer(tokenizer, monkeypatch):
    encoder = PromptEncoder(tokenizer, THREE)
    epochs = [draw_rows(DATA, THREE, {"seqrec": 1.0}, 0, epoch) for epoch in range(3)]
    dataset = tokenise_rows(epochs, encoder, 200, 2)
    assert dataset.column_names == ["input_ids", "prompt_length", "task", "template_id"]
    assert len(dataset) == 12
    for number, epoch in enumerate(epochs):
        left = {(row.prompt, row.completion): row for row in epoch}
        for row in dataset.select(range(4 * number, 4 * number + 4)):
            prompt = row["input_ids"][: row["prompt_length"]]
            answer = row["input_ids"][row["prompt_length"] :]
            assert answer.count(tokenizer.eos_token_id) == 1
            assert answer[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(prompt).removeprefix("[user]").removesuffix("[assistant]")
            words = left.pop((text, tokenizer.decode(answer[:-1])))
            assert (row["task"], row["template_id"]) == (words.task, words.template_id)
            assert prompt == encoder.prompt_ids([words.prompt])[0]
            assert answer == encoder.answer_ids([words.completion])[0]
        assert not left
    # In several tables they are the same.
    longest = max(map(len, dataset["input_ids"]))
    monkeypatch.setattr("lcrec.prompts.rows.MOST_TOKENS", 2 * longest)
    assert tokenise_rows(epochs, encoder, 200, 2).to_dict() == dataset.to_dict()


class Epochs:
    """Six epochs drawn at once, and an epoch at a time.

    `made` holds those that were, weakly; `alive` how many of them were there as another was made.
    """

    def __init__(self, tokenizer):
        self.source = RowSource(DATA, THREE, {"seqrec": 1.0, "item2index": 1.0}, 0)
        self.encoder = PromptEncoder(tokenizer, THREE)
        self.whole = tokenise_rows(map(self.source.draw, range(6)), self.encoder, 200, 3)
        self.made, self.alive = [], []
        first = self.make(0)
        sizes = [sum(self.source.count(epoch).values()) for epoch in range(6)]
        self.rows = EpochRows(first, sizes, self.make)

    def make(self, epoch):
        self.alive.append(self.count_alive())
        rows = tokenise_rows([self.source.draw(epoch)], self.encoder, 200, 3)
        self.made.append((epoch, weakref.ref(rows)))
        return rows

    def count_alive(self):
        gc.collect()
        return sum(rows() is not None for _, rows in self.made)


def test_one_epoch_is_held_beside_the_first(tokenizer):
    epochs = Epochs(tokenizer)
    assert len(epochs.rows) == len(epochs.whole) == 48
    for start in range(0, 48, 5):  # batches that begin in one epoch and end in the next
        batch = list(range(start, min(start + 5, 48)))
        assert epochs.rows.__getitems__(batch) == epochs.whole.select(batch).to_list()
        assert epochs.count_alive() <= 2
    assert epochs.alive == [0, 1, 1, 1, 1, 1]  # the last one is gone when the next is made
    # Processes that have no batch left begin anew.
    assert epochs.rows.__getitems__([47, 0]) == epochs.whole.select([47, 0]).to_list()
    assert [epoch for epoch, _ in epochs.made] == list(range(6))


def test_a_run_that_goes_on_makes_no_epoch_before_its_own(tokenizer):
    epochs = Epochs(tokenizer)
    assert epochs.rows[35] == epochs.whole[35]
    assert [epoch for epoch, _ in epochs.made] == [0, 4]


def test_workers_make_the_same_rows(tokenizer):
    epochs = Epochs(tokenizer)
    batches = DataLoader(epochs.rows, batch_size=5, num_workers=2, collate_fn=list)
    assert [row for batch in batches for row in batch] == epochs.whole.to_list()


def test_rows_are_counted_without_drawing_them():
    texts = UserTexts({"ann": ["quiet", "."], "bob": ["-"]}, {}, {}, 3)
    data = TaskData(ITEMS, TRAIN, INDEX, user_texts=texts)
    prompts = make_prompts(
        *THREE.templates,
        wording("likes", "{{ history[0] }}", "{{ preference }}", task="preferenceobtain"),
    )
    mixture = {"seqrec": 3.0, "item2index": 0.5, "preferenceobtain": 1.0}
    source, found = RowSource(data, prompts, mixture, 0), []
    for epoch in range(4):
        drawn = draw_rows(data, prompts, mixture, 0, epoch)
        assert Counter(source.count(epoch)) == Counter(row.task for row in drawn)
        assert list(source.draw(epoch)) == list(drawn)
        found.append(len(drawn))
    # Where a text of a user has no word, the sample is there in the other's turn.
    assert found == [6, 5, 6, 5]


def test_the_longest_records_are_tried_by_every_template(tokenizer):
    titles = Items([{"title": "thing " * count} for count in (1, 30, 2, 3)])
    data = dataclasses.replace(DATA, items=titles)
    longest = list(RowSource(data, THREE, {"seqrec": 1.0, "item2index": 0.5}, 0).longest())
    assert {row.template_id for row in longest} == {"go", "on", "up", "look"}
    assert "thing " * 29 in max((row.prompt for row in longest), key=len)
    assert max(row.prompt.count("<a_") for row in longest) == 3


def test_a_row_that_is_too_long_names_its_template(tokenizer):
    encoder = PromptEncoder(tokenizer, THREE)
    rows = list(draw_rows(DATA, THREE, {"seqrec": 1.0}, 0, 0))
    lengths = [
        len(encoder.prompt_ids([row.prompt])[0] + encoder.answer_ids([row.completion])[0])
        for row in rows
    ]
    longest = rows[int(np.argmax(lengths))]
    tokenise_rows([rows], encoder, max(lengths), 2)
    with pytest.raises(InputError) as caught:
        tokenise_rows([rows], encoder, max(lengths) - 1, 2)
    message = str(caught.value)
    assert f"template {longest.template_id}: a sample has {max(lengths)} tokens" in message
    assert f"--max-length {max(lengths) - 1}" in message
    assert "--max-history" in message
    tokenise_rows([rows], encoder, 999, 2, context=max(lengths))
    with pytest.raises(InputError, match=f"more than the {max(lengths) - 1} of the base model's"):
        tokenise_rows([rows], encoder, 999, 2, context=max(lengths) - 1)


def test_an_epoch_may_be_empty(tokenizer):
    encoder = PromptEncoder(tokenizer, THREE)
    rows = draw_rows(DATA, THREE, {"seqrec": 1.0}, 0, 0)
    assert len(tokenise_rows([[], rows, []], encoder, 200, 2)) == len(rows)


def test_every_task_of_a_mixture_has_a_sample_or_is_refused():
    untitled = dataclasses.replace(DATA, items=Items([{"brand": "x"}] * len(DATA.items)))
    mixture = {"seqrec": 1.0, "item2index": 1.0}
    with pytest.raises(InputError, match="not one sample of item2index"):
        require_samples(mixture, draw_rows(untitled, THREE, mixture, 0, 0).tasks)
    require_samples(mixture, draw_rows(DATA, THREE, mixture, 0, 0).tasks)


@given(
    lengths=st.lists(st.integers(1, 99), max_size=300),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_grouping_is_a_permutation_within_windows(lengths, batch_size, seed):
    order = group_by_length(lengths, batch_size, seed)
    assert sorted(order) == list(range(len(lengths)))
    window = 50 * batch_size
    for start in range(0, len(lengths), window):
        part = order[start : start + window]
        assert sorted(part) == list(range(start, min(start + window, len(lengths))))
        # Batches cut the sorted lengths into runs: no two of them overlap.
        full = len(part) // batch_size * batch_size
        batches = [part[n : n + batch_size] for n in range(0, full, batch_size)]
        spans = sorted((min(lengths[r] for r in b), max(lengths[r] for r in b)) for b in batches)
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    assert order == group_by_length(lengths, batch_size, seed)


def test_batches_come_in_random_order():
    firsts = {group_by_length(list(range(100)), 10, seed)[0] for seed in range(20)}
    assert len(firsts) > 5


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=1, max_size=6),
            st.lists(st.integers(0, 9), min_size=1, max_size=4),
            st.sampled_from(list(TASKS)),
        ),
        min_size=1,
        max_size=5,
    ),
    pad=st.sampled_from([0, 9]),  # which may be the EOS that closes an answer
)
def test_collate_keeps_every_token_and_trains_on_answers_only(rows, pad):
    batch = collate_left(
        [
            {"input_ids": prompt + answer, "prompt_length": len(prompt), "task": task}
            for prompt, answer, task in rows
        ],
        pad_token_id=pad,
    )
    width = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    assert [list(TASKS)[number] for number in batch.pop("task")] == [task for *_, task in rows]
    assert all(value.shape == (len(rows), width) for value in batch.values())
    for (prompt, answer, _), ids, mask, positions, labels in zip(
        rows,
        *(batch[name].tolist() for name in ("input_ids", "attention_mask", "position_ids")),
        batch["labels"].tolist(),
        strict=True,
    ):
        length = len(prompt) + len(answer)
        assert ids == [pad] * (width - length) + prompt + answer
        assert mask == [0] * (width - length) + [1] * length
        assert positions == [0] * (width - length) + list(range(length))
        assert labels == [IGNORED] * (width - len(answer)) + answer
