"""Keywords, by hand on a toy catalogue; no title is given away whatever the catalogue."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items, load_interactions, load_items
from lcrec.data.splits import leave_one_out
from lcrec.data.user_texts import intent_subjects
from lcrec.data.words import words_of
from lcrec.intents.keywords import keyword_texts
from lcrec.intents.requests import TitleGuard
from lcrec.prompts.intent_wording import IntentPrompts

SHIPPED = Path(__file__).parents[2] / "prompts"
PROMPTS = IntentPrompts.load(SHIPPED, SHIPPED)
ROWS = [
    ("Acme X1 Red Gel Pen", "Writing"), ("Acme X2 Blue Gel Pen", "Writing"),
    ("Tea Mug", "Kitchen, Cups"), ("Coffee Mug", "Kitchen, Cups"), ("Mug", ""),
    ("Blue &quot;Lamp&quot;", "Light"),
]  # fmt: skip
ITEMS = Items([{"title": title, "categories": categories} for title, categories in ROWS])


def write(sequences, items=ITEMS, max_history=20):
    guard = TitleGuard([items.text(item, "title") for item in range(len(items))])
    return keyword_texts(
        items,
        intent_subjects(leave_one_out(Interactions.from_sequences(sequences))),
        PROMPTS,
        guard,
        max_history=max_history,
        max_text_words=50,
    )


def test_intentions_name_what_items_share_and_half_of_the_title_at_most():
    texts = write({"u": [0, 1, 2], "v": [2, 1, 0]}).texts
    # Of "Acme X1 Red Gel Pen" only acme, gel and pen stand in other titles, and two may be said.
    for text in texts["u", "train"]:
        words = set(words_of(text))
        assert len(words & {"acme", "gel", "pen"}) == 2
        assert words <= {"acme", "gel", "pen", "writing"}
        assert "writing" in words
    assert texts["v", "test"] == texts["u", "train"]
    # "Tea Mug": mug is half of it, and tea is in no other title.
    assert set(words_of(texts["u", "test"][0])) == {"mug", "kitchen", "cups"}


def test_what_nothing_can_be_said_of():
    outcome = write({"u": [4, 4, 0]})
    assert ("u", "train") not in outcome.texts
    assert outcome.leaked == 1
    assert ("u", "preference") not in write({"u": [0, 1, 2]}).texts
    titles = ["Ink CLI-271 Gray Tank", "Ink CLI-272 Blue Tank", "Tank 12-Pack Blue", "Gray 6-Pack"]
    texts = write({"u": [0, 2, 1]}, Items([{"title": title} for title in titles])).texts
    said = {word for own in texts.values() for text in own for word in words_of(text)}
    assert "cli" not in said
    assert {"ink", "tank", "pack"} & said
    items = Items([{"title": word} for word in ("pen", "mug", "lamp")])
    with pytest.raises(InputError, match="--method keywords: no two items have a word"):
        write({"u": [0, 1, 2]}, items)


def test_preferences_are_about_all_about_what_recurs_and_about_the_latest():
    outcome = write({"u": [2, 3, 2, 0, 1, 0, 4, 5, 2]})
    overall, over_time, lately = outcome.texts["u", "preference"]
    # [2, 3, 2, 0, 1, 0]: mugs, then pens; item 5's "blue" and the last three are not told.
    assert {"mug", "pen"} <= set(words_of(overall))
    assert over_time.startswith("over time: ")
    assert "blue" not in over_time
    assert lately.startswith("lately: ")
    assert not {"mug", "kitchen", "cups"} & set(words_of(lately))
    (short, *_) = write({"u": [2, 0, 1, 4, 5, 2]}, max_history=1).texts["u", "preference"]
    assert "mug" not in short


TITLE = st.lists(
    st.sampled_from(["red", "blue", "gel", "pen", "mug", "tea", "x1", "x2", "吉他"]), min_size=1
)


@settings(max_examples=40, deadline=None)
@given(st.lists(TITLE, min_size=4, max_size=6))
def test_no_title_is_ever_given_away(titles):
    rows = [{"title": " ".join(title), "categories": "Writing, Cups"} for title in titles]
    items = Items(rows)
    sequences = {str(item): [0, item, 0, item] for item in range(len(rows))}
    outcome = write(sequences, items)
    guard = TitleGuard([row["title"] for row in rows])
    for (user, section), texts in outcome.texts.items():
        item = int(user)
        if section == "train":
            assert all(not guard.leak(item, text) for text in texts)
            said = {word for text in texts[:1] for word in words_of(text)}
            own = set(words_of(rows[item]["title"]))
            assert len(said & own) <= len(own) // 2


@pytest.mark.real_data
def test_office_gets_every_text_within_seconds(real_data):
    items = load_items(real_data / "Office")
    interactions = load_interactions(real_data / "Office", len(items))
    guard = TitleGuard([items.text(item, "title") for item in range(len(items))])
    start = time.process_time()
    subjects = intent_subjects(leave_one_out(interactions))
    outcome = keyword_texts(items, subjects, PROMPTS, guard, max_history=20, max_text_words=150)
    assert time.process_time() - start < 20
    for user, sequence in zip(interactions.users, interactions, strict=True):
        assert outcome.texts[user, "preference"]
        for section, item in (("train", sequence[-3]), ("test", sequence[-1])):
            assert not any(guard.leak(item, text) for text in outcome.texts[user, section])
