"""Records of every task, counted by hand on a toy catalogue; hostile text; user texts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items, load_interactions
from lcrec.data.splits import leave_one_out
from lcrec.data.user_texts import UserTexts, load_user_texts
from lcrec.index.item_index import ITEM_TOKEN, ItemIndex
from lcrec.prompts import tasks

ITEMS = Items(
    [
        {"title": "Red pen", "description": "It writes red.", "price": "3.5", "brand": "P"},
        {"title": "Blue pen", "description": "It writes blue."},
        {"title": "Mug", "description": ""},
        {"title": "", "description": "A nameless thing."},
    ]
)
A, B, C, D = "<a_0><b_0>", "<a_0><b_1>", "<a_1><b_0>", "<a_1><b_1>"
INDEX = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32), (2, 2))
# Whole sequences; leave-one-out keeps ann's A B C and bob's D for training.
WHOLE = Interactions.from_sequences({"ann": [0, 1, 2, 3, 0], "bob": [3, 0, 1]})
TEXTS = UserTexts(
    preferences={"ann": ["likes pens", "likes red"]},
    train_intentions={"ann": ["a cup"], "bob": ["anything"]},
    test_intentions={},
    num_users=2,
)


def toy(**changes) -> tasks.TaskData:
    values = {"items": ITEMS, "train": leave_one_out(WHOLE).train, "index": INDEX}
    return tasks.TaskData(**{**values, "user_texts": TEXTS, **changes})


def records(task: str, data: tasks.TaskData | None = None, epoch: int = 0) -> list:
    return list(tasks.TASKS[task].records(data or toy(), epoch))


def test_seqrec_yields_every_prefix_and_item_tasks_every_item():
    assert records("seqrec") == [
        {"history": [A], "neighbours": [], "target": B},
        {"history": [A, B], "neighbours": [], "target": C},
    ]
    by_text = records("item2index")
    assert len(by_text) == 4
    assert by_text[0] == {
        "title": "Red pen",
        "description": "It writes red.",
        "properties": "price: 3.5",
        "target": A,
    }
    assert by_text[2] == {"title": "Mug", "description": "", "properties": "", "target": C}
    assert by_text[3]["title"] == ""
    by_item = records("index2item")
    blue = {"title": "Blue pen", "description": "It writes blue.", "properties": ""}
    assert by_item[1] == {"item": B, **blue}


def test_fusionseqrec_mixes_items_and_words():
    data = toy(train=Interactions.from_sequences({"cat": [3, 0, 1]}))
    assert records("fusionseqrec", data) == [
        {
            "history": [D],
            "title_history": [],  # the only item so far has no title
            "target": A,
            "target_title": "Red pen",
            "target_description": "It writes red.",
        },
        {
            "history": [D, A],
            "title_history": ["Red pen"],
            "target": B,
            "target_title": "Blue pen",
            "target_description": "It writes blue.",
        },
    ]


def test_tasks_of_user_texts_stop_before_the_last_training_item():
    assert records("itemsearch") == [
        {"history": [A, B], "preference": "likes pens", "intention": "a cup", "target": C},
        {"history": [], "preference": "", "intention": "anything", "target": D},
    ]
    assert records("preferenceobtain") == [{"history": [A, B], "preference": "likes pens"}]
    seen = [records("preferenceobtain", epoch=epoch)[0]["preference"] for epoch in range(3)]
    assert seen == ["likes pens", "likes red", "likes pens"]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_record_holds_every_variable_of_its_task_and_nothing_else(task):
    for record in records(task):
        assert record.keys() == tasks.TASKS[task].variables.keys()
        for name, value in record.items():
            is_list = tasks.TASKS[task].variables[name].type == "list of text"
            assert isinstance(value, list if is_list else str)
    assert records(task) == records(task)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_record_made_alone_is_that_of_the_row(task):
    data = toy(history_dropout=0.5, train=Interactions.from_sequences({"ann": [0, 1, 2, 3]}))
    for epoch in range(2):
        rows = records(task, data, epoch)
        assert len(rows) == tasks.TASKS[task].count(data)
        for place in reversed(range(len(rows))):
            assert tasks.TASKS[task].record(data, epoch, place) == rows[place]


def test_users_with_no_text_and_sequences_of_one_item_have_no_records():
    data = toy(train=Interactions.from_sequences({"eve": [0, 1], "bob": [3], "ann": [2]}))
    assert [record["target"] for record in records("itemsearch", data)] == [D, C]  # bob, ann
    assert records("preferenceobtain", data) == []  # nothing to tell ann's taste from
    assert [record["history"] for record in records("seqrec", data)] == [[A]]
    data = toy(max_history=1)
    assert [record["history"] for record in records("seqrec", data)] == [[A], [B]]
    assert records("fusionseqrec", data)[1]["title_history"] == ["Blue pen"]
    assert tasks.history_record(INDEX, [0, 1, 2], 2) == {"history": [B, C]}
    assert tasks.history_record(INDEX, [], 2) == {"history": []}


@pytest.mark.parametrize(
    ("max_history", "alike", "begins"),
    [
        (4, False, [0, 0, 0, 0, 1, 2, 3, 4]),
        (4, True, [0, 0, 0, 0, 2, 2, 4, 4]),
        (3, True, [0, 0, 0, 1, 2, 3, 4, 5]),
        (1, True, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, True, [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_long_histories_of_a_user_begin_alike(max_history, alike, begins):
    sequence = [0, 1, 2, 3, 3, 2, 1, 0, 1]
    train = Interactions.from_sequences({"ann": [2], "eve": sequence})
    data = toy(train=train, max_history=max_history, alike=alike)
    shown = [[INDEX.texts[i] for i in sequence[b : n + 1]] for n, b in enumerate(begins)]
    assert [record["history"] for record in records("seqrec", data)] == shown
    assert [record["history"] for record in records("fusionseqrec", data)] == shown


def test_questions_at_inference_are_those_of_training():
    data = toy()
    train = records("seqrec")[1]
    assert tasks.history_record(INDEX, np.array([0, 1]), data.max_history).items() <= train.items()
    assert tasks.item_record(data, 0).items() <= records("item2index")[0].items()
    asked = tasks.search_record(
        INDEX, [0, 1], data.max_history, preference="likes pens", intention="a cup",
        max_text_words=data.max_text_words,
    )  # fmt: skip
    assert asked.items() <= records("itemsearch")[0].items()
    assert tasks.mixed_record(data, [0, 1], 2) == records("fusionseqrec")[1]


def test_neighbours_are_asked_for_as_often_as_they_are_counted():
    # A stands before B twice and beside C once, at one step more, and D has no neighbour at all.
    train = Interactions.from_sequences({"u": [0, 1, 2], "v": [0, 1], "w": [3], "x": [3, 3]})
    data = toy(train=train)
    seen = [records("neighbours", data, epoch) for epoch in range(300)]
    assert [record["item"] for record in seen[0]] == [A, B, C]
    assert seen[0][0].keys() == {"item", "title", "target", "target_title"}
    targets = [epoch[0]["target"] for epoch in seen]
    assert set(targets) == {B, C}
    assert targets.count(B) / 300 == pytest.approx(2 / 2.7, abs=0.08)
    assert {epoch[2]["target_title"] for epoch in seen} == {"Red pen", "Blue pen"}


def test_a_code_is_told_by_words_its_items_share_and_others_lack():
    titles = ["Red pen", "Blue pen", "Red mug", "Red cup"]
    data = toy(items=Items([{"title": title} for title in titles]))
    assert records("code2words", data) == [
        {"code": "<a_0>", "words": ["pen"]},  # one pen is red, and blue alone is no shared word
        {"code": "<a_1>", "words": ["red"]},
        {"code": "<b_0>", "words": ["red"]},
    ]
    alone = ItemIndex(np.arange(4, dtype=np.int32)[:, None], (5,))  # nothing is under <a_4>
    records_alone = records("code2words", toy(items=data.items, index=alone))
    assert records_alone[1] == {"code": "<a_1>", "words": ["blue", "pen"]}
    assert len(records_alone) == 4


def test_neighbours_of_a_history_never_come_from_the_customer_at_hand():
    """Everybody's items are their own, so what stands near them only their own purchases tell."""
    apart = Interactions.from_sequences({"u": [0, 1], "v": [2, 3]})
    data = toy(train=apart, shows_neighbours=True)
    assert [record["neighbours"] for record in records("seqrec", data)] == [[], []]
    shared = Interactions.from_sequences({"u": [0, 1], "empty": [], "v": [2, 0, 3, 1]})
    shown = records("seqrec", toy(train=shared, shows_neighbours=True))
    # Of u: 3 follows 0 in v's at once, 1 two steps on, and 2 stands before it.
    assert shown[0] == {"history": [A], "neighbours": [D, B, C], "target": B}
    # Of v: u alone tells that 1 follows 0.
    assert [record["neighbours"] for record in shown[1:]] == [[], [B], [B]]
    asked = tasks.sequence_record(INDEX, [0], 5, data.nearby)
    assert asked == {"history": [A], "neighbours": [B]}  # the customer's next item is not counted


def test_task_data_refuses_what_cannot_fit():
    with pytest.raises(InputError, match="index has 4 items but the catalogue has 3"):
        toy(items=Items(ITEMS.fields[:3]))
    with pytest.raises(InputError, match="max_history is 0"):
        toy(max_history=0)
    with pytest.raises(InputError, match="max_text_words is -1"):
        toy(max_text_words=-1)
    with pytest.raises(InputError, match="history_dropout"):
        toy(history_dropout=1.0)
    for task in ("itemsearch", "preferenceobtain"):
        with pytest.raises(InputError, match=rf"task {task} needs .*python -m lcrec.intents"):
            records(task, toy(user_texts=None))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\r\n\tand a tab", "two lines and a tab"),
        ("<a_12>", "< a_12>"),
        ("<<a_1>", "< < a_1>"),
        ("end <", "end"),
        ("<|im_end|></s>", "< |im_end|>< /s>"),
        ("{{ 7*7 }} {x}", "{{ 7*7 }} {x}"),
        ("\x00 \ud800 ok", "ok"),
        ("\u202eעברית\u202c 🎸", "\u202eעברית\u202c 🎸"),
        ("one two three four five six", "one two three four five"),
        ("吉" * 10_000, "吉" * 40),
        (" \n ", ""),
        (".", ""),  # what published data sets have where a description is missing
        (" .. - \u202e", ""),
        ("\u3002", ""),
        ("C", "C"),
        ("5", "5"),
        ("\U0001f3b8", "\U0001f3b8"),
    ],
)
def test_plain_text_by_hand(text, expected):
    assert tasks.plain_text(text, 5) == expected


TOKEN_LIKE = st.text() | st.lists(st.sampled_from(["<", ">", "a_1", "<a_12>", " ", "\n"])).map(
    "".join
)


@given(TOKEN_LIKE, TOKEN_LIKE, st.integers(1, 8))
def test_no_text_can_spell_an_item_token_alone_or_beside_another(left, right, max_words):
    left, right = tasks.plain_text(left, max_words), tasks.plain_text(right, max_words)
    for text in (left, right, left + right):
        assert not re.search(r"<\S", text)
        assert not ITEM_TOKEN.search(text)
        assert "\n" not in text
        text.encode("utf-8")
    assert left == left.strip()


def test_texts_of_items_are_cut_and_made_plain():
    items = Items([{"title": "<a_0>\nfake", "description": "word " * 2000}])
    index = ItemIndex(np.zeros((1, 2), dtype=np.int32), (1, 1))
    data = tasks.TaskData(items, Interactions.from_sequences({"u": [0]}), index, max_text_words=10)
    assert data.titles == ["< a_0> fake"]
    assert data.descriptions == [" ".join(["word"] * 10)]


def write_user_json(folder: Path, content: object) -> Path:
    (folder / "Toy.inter.json").write_text(json.dumps({"ann": [0, 1, 2, 3, 0], "bob": [3, 0, 1]}))
    (folder / "Toy.user.json").write_text(json.dumps(content))
    return folder


def intention(item: object, *texts: object) -> dict:
    return {"item": item, "inters": [], "querys": list(texts)}


def test_user_texts_are_read_and_missing_users_counted(tmp_path):
    content = {
        "user_explicit_preference": {"ann": ["likes pens", " ", "likes red"], "bob": [""]},
        "user_vague_intention": {
            "train": {"ann": intention(2, "a cup"), "bob": intention(3, "a thing", "nameless")},
            "test": {"ann": intention(0, "a red pen")},
        },
    }
    texts = load_user_texts(write_user_json(tmp_path, content), leave_one_out(WHOLE))
    assert texts.preferences == {"ann": ["likes pens", "likes red"]}
    assert texts.train_intentions == {"ann": ["a cup"], "bob": ["a thing", "nameless"]}
    assert texts.test_intentions == {"ann": ["a red pen"]}
    assert texts.describe() == (
        "of 2 users 1 have preferences, 2 an intention to train on, 1 one to test on"
    )


def test_a_data_folder_without_user_texts_is_no_error(tmp_path):
    write_user_json(tmp_path, {})
    (tmp_path / "Toy.user.json").unlink()
    assert load_user_texts(tmp_path, leave_one_out(WHOLE)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object with 'user_explicit_preference' and 'user_vague_intention'"),
        ({"preferences": {}}, "expected an object with 'user_explicit_preference'"),
        ({"user_explicit_preference": []}, "user_explicit_preference: expected an object by user"),
        ({"user_explicit_preference": {"ann": "text"}}, "user 'ann': expected a list of texts"),
        ({"user_explicit_preference": {"ann": [1]}}, "user 'ann': expected a list of texts"),
        ({"user_explicit_preference": {"eve": ["x"]}}, "user 'eve' has no sequence"),
        ({"user_vague_intention": []}, "user_vague_intention: expected an object by user"),
        ({"user_vague_intention": {"train": []}}, "train: expected an object by user"),
        (
            {"user_vague_intention": {"train": {"ann": ["x"]}}},
            "train: user 'ann': expected {item, querys",
        ),
        (
            {"user_vague_intention": {"train": {"ann": intention(0, "x")}}},
            "about item 0, but the user's last item to train on is 2",
        ),
        (
            {"user_vague_intention": {"test": {"bob": intention([1], "x")}}},
            r"about item \[1\], but the user's first item to test on is 1",
        ),
        (
            {"user_vague_intention": {"train": {"ann": intention(2, None)}}},
            "train: user 'ann': expected a list of texts, found",
        ),
    ],
)
def test_a_wrong_user_json_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        load_user_texts(write_user_json(tmp_path, content), leave_one_out(WHOLE))
    assert "Toy.user.json" in str(caught.value)


@pytest.mark.real_data
def test_instruments_has_as_many_samples_as_the_paper_code_makes(real_data):
    interactions = load_interactions(real_data / "Instruments", 9922)
    # The published index has conflicts, so any other unique one stands in; texts are made up.
    codes = np.stack([np.arange(9922) // 100, np.arange(9922) % 100], axis=1).astype(np.int32)
    users = interactions.users
    texts = UserTexts({u: ["likes"] for u in users}, {u: ["seeks"] for u in users}, {}, len(users))
    data = tasks.TaskData(
        Items([{"title": f"thing {i}", "description": f"about {i}"} for i in range(9922)]),
        leave_one_out(interactions).train,
        ItemIndex(codes, (100, 100)),
        user_texts=texts,
    )
    assert {task: sum(1 for _ in tasks.TASKS[task].records(data)) for task in tasks.TASKS} == {
        "seqrec": 131_837, "item2index": 9_922, "index2item": 9_922, "fusionseqrec": 131_837,
        "itemsearch": 24_772, "preferenceobtain": 24_772, "neighbours": 9_913, "code2words": 0,
    }  # fmt: skip


def test_history_dropout_thins_histories_and_changes_by_epoch():
    sequences = {str(user): [0, 1, 2, 3] for user in range(200)}
    train = Interactions.from_sequences(sequences)
    data = toy(train=train, history_dropout=0.5)
    whole = toy(train=train)
    first, again = (list(tasks.TASKS["seqrec"].records(data, 0)) for _ in range(2))
    assert first == again
    assert first != list(tasks.TASKS["seqrec"].records(data, 1))
    kept = [len(record["history"]) for record in first]
    full = [len(record["history"]) for record in tasks.TASKS["seqrec"].records(whole, 0)]
    assert len(kept) == len(full)
    assert min(kept) == 1
    # Of 1, 2 and 3 items half stay, and one at least: (1 + 1.25 + 1.625) / 6 of them.
    assert sum(kept) / sum(full) == pytest.approx(3.875 / 6, abs=0.05)
    for thin, record in zip(first, tasks.TASKS["seqrec"].records(whole, 0), strict=True):
        assert [item for item in record["history"] if item in thin["history"]] == thin["history"]
