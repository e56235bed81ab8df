"""The item index: one path of codes per item, spelled in item tokens."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.artifacts import INDEX, PROVENANCE, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import write_provenance
from lcrec.index import item_index

TOY = np.array([[0, 2], [1, 0], [0, 0]], dtype=np.int32)
TOY_JSON = {"0": ["<a_0>", "<b_2>"], "1": ["<a_1>", "<b_0>"], "2": ["<a_0>", "<b_0>"]}


@pytest.fixture
def write(tmp_path):
    """A function that writes an index.json and returns its folder."""

    def run(value=TOY_JSON):
        write_json(tmp_path / "index.json", value)
        return tmp_path

    return run


@st.composite
def indices(draw):
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=6))
    path = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = draw(st.lists(path, min_size=1, max_size=20, unique=True))
    return item_index.ItemIndex(np.array(codes, dtype=np.int32), tuple(sizes))


def test_tokens_by_hand(write):
    index = item_index.ItemIndex(TOY, (2, 3))
    assert len(index) == 3
    assert index.num_levels == 2
    assert index.tokens(0) == ["<a_0>", "<b_2>"]
    assert index.texts == ["<a_0><b_2>", "<a_1><b_0>", "<a_0><b_0>"]
    # Unused codes are in the vocabulary too: an item that joins later needs no new token.
    assert index.vocabulary == ["<a_0>", "<a_1>", "<b_0>", "<b_1>", "<b_2>"]
    assert index.code_columns.tolist() == [[0, 4], [1, 2], [0, 2]]
    assert index.code_columns.dtype == np.int64
    folder = write()
    item_index.ItemIndex(TOY, (2, 3)).save(folder)
    assert read_json(folder / "index.json") == TOY_JSON
    index = item_index.ItemIndex(np.zeros((1, 26), dtype=np.int32), (1,) * 26)
    assert index.tokens(0)[-1] == "<z_0>" == item_index.token_name(25, 0)


@given(indices())
def test_vocabulary_columns_and_texts_agree(index):
    assert len(set(index.vocabulary)) == sum(index.level_sizes)
    for item, columns in enumerate(index.code_columns):
        assert [index.vocabulary[column] for column in columns] == index.tokens(item)
    assert [item_index.ITEM_TOKEN.findall(text) for text in index.texts] == [
        [("abcdef"[level], str(code)) for level, code in enumerate(row)]
        for row in index.codes.tolist()
    ]
    assert len(set(index.texts)) == len(index)


@given(indices())
def test_round_trip(tmp_path_factory, index):
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    write_provenance(folder, "python -m toy", {}, {}, level_sizes=index.level_sizes)
    index.save(folder)
    for path in (folder, folder / "index.json"):
        read = item_index.ItemIndex.load(path, len(index))
        np.testing.assert_array_equal(read.codes, index.codes)
        assert read.codes.dtype == np.int32
        assert read.level_sizes == index.level_sizes
        assert read.texts == index.texts


def test_level_sizes_come_from_the_sidecar_or_from_the_largest_code(write):
    folder = write()
    assert item_index.ItemIndex.load(folder).level_sizes == (2, 3)
    write_provenance(folder, "python -m toy", {}, {}, level_sizes=(4, 8))
    assert item_index.ItemIndex.load(folder).level_sizes == (4, 8)
    write_provenance(folder, "python -m toy", {}, {})  # the record of another stage
    assert item_index.ItemIndex.load(folder).level_sizes == (2, 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 2), r"index.json: item 0: code 2 at level 1 is outside 0 to 1"),
        ((2, 3, 4), r"index.json: an index needs codes of shape \[items, 3\], found \[3, 2\]"),
        (3, "index.json: the record beside it gives level_sizes as 3"),
        (["2", "3"], "index.json: the record beside it gives level_sizes"),
        ([], "index.json: an index needs codes of shape"),
        (None, "index.json: the record beside it gives level_sizes as None"),
    ],
)
def test_a_sidecar_that_does_not_fit(write, sizes, message):
    folder = write()
    write_provenance(folder, "python -m toy", {}, {}, level_sizes=sizes)
    with pytest.raises(InputError, match=message):
        item_index.ItemIndex.load(folder)


def test_items_that_share_a_path(write):
    shared = {**TOY_JSON, "3": ["<a_1>", "<b_0>"], "4": ["<a_0>", "<b_1>"]}
    with pytest.raises(InputError) as error:
        item_index.ItemIndex.load(write(shared))
    message = str(error.value)
    assert "index.json: 2 items share an index with another" in message
    assert "items 1 and 3 (<a_1><b_0>)" in message
    assert "python -m lcrec.quantize" in message
    shared = {"0": ["<a_0>", "<b_2>"], "1": ["<a_1>", "<b_0>"], "2": ["<a_0>", "<b_2>"]}
    assert item_index.read_codes(write(shared) / INDEX).tolist() == [[0, 2], [1, 0], [0, 2]]
    with pytest.raises(InputError, match="has 3 items but the catalogue has 4"):
        item_index.read_codes(write(shared) / INDEX, 4)
    assert item_index.find_conflicts(TOY) == []
    codes = np.array([[1, 1], [0, 5], [1, 1], [0, 5], [0, 6], [1, 1]])
    assert sorted(item_index.find_conflicts(codes)) == [[0, 2, 5], [1, 3]]
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 1], [1, 2], [0, 0]])
    assert item_index.number_shared(codes).tolist() == [0, 0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"index.json: expected {item id"),
        ([["<a_0>"]], r"index.json: expected {item id"),
        ({"0": ["<a_0>"], "2": ["<a_1>"]}, "item 1 is missing; ids run 0 to 1"),
        ({"0": ["<a_0>"], "x": ["<a_1>"]}, "item 1 is missing"),
        ({"0": "<a_0>"}, "item 0: expected a list of tokens, found '<a_0>'"),
        ({"0": ["<a_0>", "<a_1>"]}, "item 0: '<a_1>' is no token of level 1; expected <b_CODE>"),
        ({"0": ["a_0"]}, "item 0: 'a_0' is no token of level 0; expected <a_CODE>"),
        ({"0": ["<A_0>"]}, "item 0: '<A_0>' is no token"),
        ({"0": ["<a_-1>"]}, "item 0: '<a_-1>' is no token"),
        ({"0": ["<a_01>"]}, "item 0: '<a_01>' is no token"),
        ({"0": ["<a_٣>"]}, "item 0: '<a_٣>' is no token"),
        ({"0": ["<a_1> "]}, "item 0: '<a_1> ' is no token"),
        ({"0": [f"<a_{'9' * 9000}>"]}, "item 0: .* is no token .* up to 6 digits"),
        ({"0": [12]}, "item 0: 12 is no token of level 0"),
        ({"0": []}, "item 0 has 0 tokens"),
        (
            {"0": ["<a_0>", "<b_0>"], "1": ["<a_0>"]},
            "item 1 has 1 tokens, item 0 has 2; every item needs the same number",
        ),
        ({"0": ["<a_0>"] * 27}, "item 0 has 27 tokens; at most 26 levels"),
    ],
)
def test_bad_files(write, value, message):
    with pytest.raises(InputError, match=message):
        item_index.ItemIndex.load(write(value))


def test_no_index_of_this_catalogue(tmp_path, write):
    with pytest.raises(InputError, match=r"index.json: no such file; .*lcrec.quantize"):
        item_index.ItemIndex.load(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index.json, line 1"):
        item_index.ItemIndex.load(tmp_path)
    with pytest.raises(InputError, match=r"has 3 items but the catalogue has 4: it belongs to"):
        item_index.ItemIndex.load(write(), 4)
    assert len(item_index.ItemIndex.load(write(), 3)) == 3
    folder = write()
    (folder / PROVENANCE).write_text('{"level_sizes": [2, 3]}')
    with pytest.raises(InputError, match=r"lcrec.json: not an lcrec provenance file"):
        item_index.ItemIndex.load(folder)


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (TOY, (2,), r"codes of shape \[items, 1\], found \[3, 2\]"),
        (TOY[0], (2, 3), r"codes of shape \[items, 2\], found \[2\]"),
        (TOY[:0], (2, 3), r"found \[0, 2\]"),
        (np.zeros((1, 0), dtype=np.int32), (), r"found \[1, 0\]"),
        (TOY, (1, 3), "item 1: code 1 at level 0 is outside 0 to 0"),
        (TOY - 1, (2, 3), "item 0: code -1 at level 0 is outside 0 to 1"),
        (np.zeros((1, 27), dtype=np.int32), (1,) * 27, "27 levels; at most 26"),
    ],
)
def test_codes_that_are_no_index(codes, sizes, message):
    with pytest.raises(InputError, match=message):
        item_index.ItemIndex(codes, sizes)


@pytest.mark.real_data
def test_the_published_index_is_read_and_its_conflicts_are_named(real_data, tmp_path):
    path = real_data / "Instruments" / "Instruments.index.json"
    with pytest.raises(InputError) as error:
        item_index.ItemIndex.load(path, 9922)
    message = str(error.value)
    assert "Instruments.index.json" in message

    published = json.loads(path.read_text())
    items_of = {}
    for item, tokens in published.items():
        items_of.setdefault("".join(tokens), []).append(item)
    assert len(items_of) == 9897
    sharing = [items for items in items_of.values() if len(items) > 1]
    assert f"{sum(map(len, sharing))} items share an index" in message
    assert any(f"items {items[0]} and {items[1]} " in message for items in sharing)

    # One item of each path makes a good index.
    unique = dict(enumerate(dict.fromkeys(tuple(tokens) for tokens in published.values())))
    write_json(tmp_path / "index.json", unique)
    index = item_index.ItemIndex.load(tmp_path, 9897)
    assert index.num_levels == 4
    assert max(index.level_sizes) == 256
    assert index.tokens(0) == published["0"]


@pytest.mark.parametrize(
    ("longer", "message"),
    [
        ({"3": ["<a_1>", "<b_2>"]}, None),
        ({}, None),
        ({"0": ["<a_1>", "<b_2>"]}, r"1 items have another index than before, such as item 0"),
        ({"2": None}, r"has 2 items of 2 levels and cannot extend an index of 3 items of 2"),
        (
            {"3": ["<a_1>", "<b_3>"]},
            r"item 3: code 3 at level 1 is outside 0 to 2, the codes there",
        ),
        ({"3": ["<a_0>", "<b_2>"]}, r"2 items share an index with another"),
        (
            {str(item): ["<a_0>", "<b_0>", f"<c_{item}>"] for item in range(4)},
            r"has 4 items of 3 levels .*quantize --index OLD",
        ),
    ],
)
def test_an_index_that_adds_items(write, longer, message):
    old = item_index.ItemIndex(TOY, (3, 3))
    folder = write({key: path for key, path in (TOY_JSON | longer).items() if path})
    if message:
        with pytest.raises(InputError, match=message):
            old.load_extension(folder)
    else:
        index = old.load_extension(folder / "index.json")
        assert index.texts[:3] == old.texts
        assert index.vocabulary == old.vocabulary
        assert len(index) == 3 + len(longer)
