"""Reading a data folder, and the one split that everything is judged on."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, load_interactions, load_items
from lcrec.data.id_map import read_raw_ids
from lcrec.data.splits import leave_one_out

ITEMS = {
    "0": {"title": "Desk", "description": ""},
    "1": {"title": "", "description": "A lamp."},
    "2": {"title": "Chair", "brand": None, "categories": ["Office", "Seats"]},
    "3": {"title": "Rug"},
}
SEQUENCES = {"ann": [0, 1, 2], "bob": [3, 1, 1, 0, 2], "eve": [2, 3, 0, 1]}


@pytest.fixture
def write(tmp_path):
    """A function that writes a data folder, from values or from text as it is."""

    def run(sequences=SEQUENCES, items=ITEMS) -> Path:
        for name, value in (("inter", sequences), ("item", items)):
            text = value if isinstance(value, str) else json.dumps(value)
            (tmp_path / f"Shop.{name}.json").write_text(text, encoding="utf-8")
        return tmp_path

    return run


def test_load_items(write):
    items = load_items(write())
    assert len(items) == 4
    assert items.text(1, "description") == "A lamp."
    assert items.text(2, "brand") == ""
    assert items.text(2, "categories") == "Office Seats"
    assert items.text(0, "colour") == ""
    assert items.title(0) == "Desk"
    assert items.title(1) == "(item 1, no title)"
    shuffled = {key: ITEMS[key] for key in ("2", "0", "3", "1")}
    assert load_items(write(items=shuffled)).title(3) == "Rug"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  Desk \n", "Desk"),
        (12.5, "12.5"),
        ([" Desk", None, ["big", ""]], "Desk big"),
        (
            {"width": 3, "in": ["oak", "ash"], "new": True, "of": None},
            "width: 3; in: oak ash; new: true",
        ),
        (float("nan"), ""),  # pandas writes NaN where a cell is empty
        ("Desk \ud83d", "Desk ?"),  # an emoji cut in half, which JSON may hold
        ("Tisch 🪑 表", "Tisch 🪑 表"),
    ],
)
def test_values_become_text(write, value, text):
    fields = {**ITEMS, "3": {"title": "Rug", "colour": value}}
    read = load_items(write(items=fields)).text(3, "colour")
    assert read == text
    read.encode()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("", "Shop.item.json, line 1, column 1: not valid JSON"),
        ('{"0": {"title": "Desk"},}', "Shop.item.json, line 1"),
        ('{"0": {"title": "Desk"}, "0": {"title": "Rug"}}', "key '0' is written twice"),
        ({}, "Shop.item.json: expected .* found an empty object"),
        ([{"title": "Desk"}], "Shop.item.json: expected .* found a list"),
        ("null", "Shop.item.json: expected .* found nothing"),
        ("3", "Shop.item.json: expected .* found a number"),
        ({**ITEMS, "9": {"title": "Sofa"}}, "item 4 is missing; 5 items .* 0 to 4 without gaps"),
        ({"1": {"title": "Desk"}}, "item 0 is missing"),
        ({"B01": {"title": "Desk"}}, "item 0 is missing"),
        ({**ITEMS, "2": None}, "item 2 is missing"),
        ({**ITEMS, "2": "Chair"}, "item 2: expected an object, found text"),
        ({**ITEMS, "2": {}}, "item 2 has no text; give it a title .*lcrec.prepare"),
        ({**ITEMS, "2": {"title": " ", "description": []}}, "item 2 has no text"),
        ({**ITEMS, "2": {"brand": "Acme"}}, "item 2 has no text"),
    ],
)
def test_bad_items(write, items, message):
    with pytest.raises(InputError, match=message):
        load_items(write(items=items))


@pytest.mark.parametrize(
    ("sequence", "gap"),
    [([2, 1, 0, 0], None), ([], None), ([1, 1], 0), ([0, 1, 3, 3, 3], 2), ([0, 2**31 - 2], 1)],
)
def test_without_a_catalogue_every_item_must_be_in_a_sequence(write, sequence, gap):
    folder = write({"ann": sequence})
    if gap is None:
        assert load_interactions(folder, None).sequence(0).tolist() == sequence
        return
    with pytest.raises(InputError, match=rf"item {gap} is in no sequence, and there is no .*item"):
        load_interactions(folder, None)


def test_missing_items(write):
    folder = write()
    (folder / "Shop.item.json").unlink()
    with pytest.raises(InputError, match=r"Shop.item.json: no such file; it holds the items'"):
        load_items(folder)


def test_load_interactions(write):
    interactions = load_interactions(write(), 4)
    assert len(interactions) == 3
    assert interactions.users == ["ann", "bob", "eve"]
    assert interactions.offsets.tolist() == [0, 3, 8, 12]
    assert (interactions.offsets.dtype, interactions.items.dtype) == (np.int64, np.int32)
    assert interactions.sequence(1).tolist() == [3, 1, 1, 0, 2]
    assert [sequence.tolist() for sequence in interactions] == list(SEQUENCES.values())


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ('{"ann": [0, 1', "Shop.inter.json, line 1.*not valid JSON"),
        ('{"ann": [0], "bob": [1], "ann": [2]}', "Shop.inter.json: key 'ann' is written twice"),
        ({}, "Shop.inter.json: expected .* found an empty object"),
        ([[0, 1]], "Shop.inter.json: expected .* found a list"),
        ({**SEQUENCES, "eve": "0 1 2"}, "user 'eve': expected a list, found text"),
        ({**SEQUENCES, "eve": [0, 4, 1]}, "user 'eve': item 4 is not in the catalogue.* 0 to 3"),
        ({**SEQUENCES, "eve": [0, -1]}, "user 'eve': item -1 is not in the catalogue"),
        ({**SEQUENCES, "eve": [0, "1"]}, "user 'eve': item '1' is not in the catalogue"),
        ({**SEQUENCES, "eve": [0, 1.0]}, "user 'eve': item 1.0 is not in the catalogue"),
        ({**SEQUENCES, "eve": [0, True]}, "user 'eve': item True is not in the catalogue"),
        ({**SEQUENCES, "eve": [0, None]}, "user 'eve': item None is not in the catalogue"),
        ({**SEQUENCES, "eve": [2**40]}, "user 'eve': item 1099511627776 is not in the catalogue"),
    ],
)
def test_bad_interactions(write, sequences, message):
    with pytest.raises(InputError, match=message):
        load_interactions(write(sequences), 4)


@given(st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=6))
def test_repeats_are_those_of_one_user(sequences):
    packed = Interactions.from_sequences({str(u): items for u, items in enumerate(sequences)})
    assert packed.has_repeats() == any(len({*items}) < len(items) for items in sequences)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.lists(st.integers(0, 9), min_size=3, max_size=9),
        min_size=1,
        max_size=8,
    )
)
def test_the_parts_reassemble_every_sequence(sequences):
    split = leave_one_out(Interactions.from_sequences(sequences))
    whole = list(sequences.values())
    assert split.train.users == split.valid.users == split.test.users == list(sequences)
    assert split.train.items.dtype == split.test.targets.dtype == np.int32
    for user, train in enumerate(split.train):
        valid, test = int(split.valid.targets[user]), int(split.test.targets[user])
        assert [*train.tolist(), valid, test] == whole[user]
        assert split.valid.histories[user].tolist() == train.tolist()
        assert split.test.histories[user].tolist() == [*train.tolist(), valid]


@pytest.mark.parametrize("short", [[], [0], [0, 1]])
def test_who_has_fewer_than_three_items_is_trained_on_and_is_no_case(short):
    whole = Interactions.from_sequences(SEQUENCES)
    split = leave_one_out(whole)
    longer = leave_one_out(Interactions.from_sequences({"kim": short, **SEQUENCES, "max": [1]}))
    assert [row.tolist() for row in longer.train] == [
        short,
        *(row.tolist() for row in split.train),
        [1],
    ]
    for part in ("valid", "test"):
        ours, theirs = getattr(split, part), getattr(longer, part)
        assert theirs.users == ours.users == list(SEQUENCES)
        assert theirs.targets.tolist() == ours.targets.tolist()
        assert list(map(list, theirs.histories)) == list(map(list, ours.histories))
    with pytest.raises(InputError, match=r"no user has 3 items; .*python -m lcrec.prepare"):
        leave_one_out(Interactions.from_sequences({"kim": short, "max": [1]}))


def test_the_split_shares_no_memory_that_a_caller_could_spoil():
    interactions = Interactions.from_sequences(SEQUENCES)
    split = leave_one_out(interactions)
    split.train.items[:] = 0
    split.test.targets[:] = 0
    assert [sequence.tolist() for sequence in interactions] == list(SEQUENCES.values())


def test_raw_ids_in_another_encoding_are_named(tmp_path):
    (tmp_path / "Toy.user2id").write_bytes("café\t0\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"Toy\.user2id: cannot be read as UTF-8 text"):
        read_raw_ids(tmp_path / "Toy.user2id")
