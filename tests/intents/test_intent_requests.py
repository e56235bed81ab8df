"""Questions, answers and the journal, with a writer that answers from a list."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import leave_one_out
from lcrec.data.user_texts import Review, intent_subjects
from lcrec.intents.requests import (
    Answer,
    Journal,
    Request,
    TitleGuard,
    first_chats,
    make_requests,
    parse_answer,
    write_texts,
)
from lcrec.prompts.intent_wording import INTENT_TEMPLATES, IntentPrompts

TEXTS = dict.fromkeys(INTENT_TEMPLATES, "{{ leaked }}") | {
    "system": "",
    "intention": "{{ title }} {{ review }} [{{ leaked }}]",
    "preference": "{{ titles | join('/') }}",
}
PROMPTS = IntentPrompts(None, TEXTS)
ITEMS = Items([{"title": title} for title in ("Red Pen", "Blue Pen", "Tea Mug", "Fine Lamp")])
GUARD = TitleGuard([items["title"] for items in ITEMS.fields])
KEYS = ("wish", "traits")
GOOD = '{"wish": "to write", "traits": "thin"}'
IDENTITY = {"model": "m"}


class Scripted:
    """Answers the n-th time a question is asked with the n-th text; None is no answer."""

    def __init__(self, script):
        self.script = {question: list(answers) for question, answers in script.items()}
        self.asked = []

    def write(self, chats, keep):
        for number, chat in enumerate(chats):
            question = chat[-1]["content"]
            self.asked.append(question)
            answer = self.script[question].pop(0)
            if answer is not None:
                keep(number, Answer(answer, "m", 1.0, 10, 5))


def intention(user, item, section="train", review=""):
    variables = {"title": ITEMS.title(item), "review": review}
    return Request(user, section, "intention", variables, item)


def run(requests, writer, journal, attempts=3, prompts=PROMPTS):
    return write_texts(
        requests, prompts, GUARD, lambda: writer, journal, identity=IDENTITY, attempts=attempts
    )


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "Toy.answers.jsonl")


def test_questions_look_at_no_more_than_they_may():
    interactions = Interactions.from_sequences({"ann": [3, 0, 1, 2, 3, 0], "bob": [1, 2, 3]})
    subjects = intent_subjects(leave_one_out(interactions))
    reviews = {("ann", 2): Review("warm", "ok"), ("ann", 3): Review("bright", "")}
    requests = make_requests(ITEMS, subjects, reviews, max_history=2, max_text_words=50)
    seen = [(r.user, r.section, r.item, r.variables.get("review")) for r in requests]
    assert seen == [
        ("ann", "preference", None, None),
        ("ann", "train", 2, "warm"),
        ("ann", "test", 0, ""),
        # bob has nothing before the item he is trained on.
        ("bob", "train", 1, ""),
        ("bob", "test", 3, ""),
    ]
    assert requests[0].variables == {"titles": ["Red Pen", "Blue Pen"]}
    assert requests[1].variables["title"] == "Tea Mug"


def test_strangers_words_are_made_plain():
    items = Items([{"title": "<|im_end|> x", "description": "a\nb"}] * 3)
    subjects = intent_subjects(leave_one_out(Interactions.from_sequences({"u": [0, 1, 2]})))
    reviews = {("u", 0): Review("</s> " + "long " * 99, "")}
    (first, _) = make_requests(items, subjects, reviews, max_history=2, max_text_words=3)
    assert first.variables["title"] == "< |im_end|> x"
    assert first.variables["description"] == "a b"
    assert first.variables["review"] == "< /s> long long"


def test_good_answers_become_texts(journal):
    writer = Scripted({"Red Pen  []": [GOOD], "Tea Mug hot []": [GOOD.replace("write", "drink")]})
    outcome = run([intention("ann", 0), intention("ann", 2, "test", "hot")], writer, journal)
    assert outcome.texts == {
        ("ann", "train"): ["to write", "thin"],
        ("ann", "test"): ["to drink", "thin"],
    }
    assert (outcome.malformed, outcome.leaked, outcome.unanswered) == (0, 0, 0)


def test_the_same_question_is_asked_once(journal):
    writer = Scripted({"Red Pen  []": [GOOD]})
    outcome = run([intention(user, 0) for user in "abc"], writer, journal)
    assert len(outcome.texts) == 3
    assert writer.asked == ["Red Pen  []"]


def test_a_leak_is_named_and_asked_again_then_dropped(journal):
    leaky = '{"wish": "a red pen", "traits": "thin"}'
    whole = '{"wish": "a red pen", "traits": "pen, red"}'
    writer = Scripted(
        {
            "Red Pen  []": [leaky], "Red Pen  [red pen]": [GOOD], "Red Pen never []": [leaky],
            "Red Pen never [red pen]": [whole, whole], "Red Pen all []": [whole],
            "Red Pen all [red pen]": [whole, "nothing"],
        }
    )  # fmt: skip
    requests = [intention("ann", 0), intention("bob", 0, "train", "never")]
    requests.append(intention("cid", 0, "train", "all"))
    outcome = run(requests, writer, journal)
    # What ann got in the end; the half of bob's first answer that was clean; nothing for cid.
    assert outcome.texts == {("ann", "train"): ["to write", "thin"], ("bob", "train"): ["thin"]}
    assert (outcome.malformed, outcome.leaked) == (1, 1)
    assert len(writer.asked) == 8


def test_malformed_answers_are_asked_again_then_dropped(journal):
    writer = Scripted({"Red Pen  []": ["I cannot", '{"wish": "x"}', GOOD], "Tea Mug  []": [""] * 3})
    outcome = run([intention("ann", 0), intention("ann", 2, "test")], writer, journal)
    assert outcome.texts == {("ann", "train"): ["to write", "thin"]}
    assert outcome.malformed == 1


def test_no_answer_loses_only_itself_and_is_asked_again_next_time(journal):
    requests = [intention("ann", 0), intention("bob", 2)]
    first = run(requests, Scripted({"Red Pen  []": [None], "Tea Mug  []": [GOOD]}), journal)
    assert first.unanswered == 1
    assert list(first.texts) == [("bob", "train")]
    writer = Scripted({"Red Pen  []": [GOOD]})
    again = run(requests, writer, Journal(journal.path))
    assert again.unanswered == 0
    assert len(again.texts) == 2
    assert writer.asked == ["Red Pen  []"]


def test_bad_answers_are_not_paid_for_again_either(journal):
    requests = [intention("ann", 0)]
    run(requests, Scripted({"Red Pen  []": ["no"] * 3}), journal)
    again = run(requests, Scripted({}), Journal(journal.path))
    assert again.malformed == 1


def test_another_model_or_wording_asks_anew_what_it_changes(journal):
    requests = [intention("ann", 0), Request("ann", "preference", "preference", {"titles": ["x"]})]
    journal.add(Journal.key(IDENTITY, PROMPTS.messages("preference", {"titles": ["x"]}), 0), ANY)
    assert len(first_chats(requests, PROMPTS, IDENTITY, journal)) == 1
    assert len(first_chats(requests, PROMPTS, {"model": "n"}, journal)) == 2
    changed = IntentPrompts(None, TEXTS | {"preference": "new: {{ titles | join('/') }}"})
    assert len(first_chats(requests, changed, IDENTITY, journal)) == 2


ANY = Answer("text ü \ud83d", "m", 0.5, 3, 4)


def test_the_journal_survives_a_cut_in_its_last_line(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.add("one", ANY)
    journal.add("two", ANY)
    whole = path.read_bytes()
    for cut in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        assert again.get("one").text == "text ü ?"
        assert again.get("two") is None
        again.add("three", ANY)
        assert Journal(path).get("three").tokens_out == 4
    assert len(again.of_model("m")) == 2
    assert again.of_model("other") == []


@pytest.mark.parametrize("line", ["{}", "[]", "no", '{"key": "a", "text": "b"}', "{}\n{}"])
def test_a_foreign_journal_is_refused(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: not an answer kept by lcrec"):
        Journal(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"<think>{{maybe}} {{}} </think> Sure! {GOOD} Anything else?",
        f'{{"answer": {GOOD}}}',
        '{"wish": "", "traits": "x"} or rather ' + GOOD,
        '{"wish": "to\nwrite", "traits": " thin ", "more": 1}',
        '{"wish": "draft", "traits": "draft"} ' + GOOD,
    ],
)
def test_the_object_is_found_wherever_it_stands(text):
    assert parse_answer(text, KEYS) == ["to write", "thin"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "to write",
        "{",
        "{" * 5000,
        '{"wish": "to write"}',
        '{"wish": "to write", "traits": ""}',
        '{"wish": "to write", "traits": null}',
        '{"wish": "to write", "traits": ["thin"]}',
        '["to write", "thin"]',
        '{"wish": "to write", "traits": "thin"',
    ],
)
def test_anything_else_is_malformed(text):
    assert parse_answer(text, KEYS) == []


def test_an_answer_that_does_not_end_is_cut():
    (wish, _) = parse_answer(json.dumps({"wish": "word " * 999, "traits": "\ud800 x"}), KEYS)
    assert len(wish.split()) == 200


NO_BRACE = st.text(st.characters(exclude_characters="{", exclude_categories=["Cs"]))


@settings(deadline=None)
@given(NO_BRACE, NO_BRACE, st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_what_surrounds_an_answer_does_not_matter(before, after, word):
    answer = json.dumps({"wish": word, "traits": f"not {word}"})
    assert parse_answer(before + answer + after, KEYS) == [word, f"not {word}"]
