"""Items chosen by the values and the numbers of their fields."""

import pytest

from lcrec.core.errors import InputError
from lcrec.data.folder import Items
from lcrec.data.id_map import IdMap
from lcrec.data.item_filters import ItemFilters
from lcrec.generate.one_request import load_allowed, read_item_ids

ITEMS = Items(
    [
        {"title": "Pen", "brand": "Acme", "categories": "Office, Red", "price": "2", "mood": "1"},
        {"title": "Mug", "brand": "Bolt, Ltd", "price": "12.5", "mood": "calm"},
        {"title": "Rug", "brand": "ACME", "categories": "Home, Rugs, Mats, Soft", "price": ""},
    ]
)
IDS = IdMap("item", ["0", "1", "2"], is_raw=False)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"brand": [" acme "]}, [0, 2]),
        ({"brand": ["bolt, ltd", "acme"]}, [0, 1, 2]),
        ({"categories": ["rugs, Mats"]}, [2]),  # one category, with a comma in it
        ({"price": {"max": 12.5}}, [0, 1]),
        ({"price": {"min": 2.5}}, [1]),
        ({"price": {"min": 3, "max": 2}}, []),
        ({"price": {"min": 0}, "brand": ["acme"]}, [0]),  # the rug has no price
        ({"mood": ["CALM"]}, [1]),  # not a number throughout, so its values are words
    ],
)
def test_every_filter_lets_an_item_through(filters, found):
    assert ItemFilters(ITEMS).select(filters).tolist() == found


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("{}", "name a field"),
        ("[1]", "expected a JSON object"),
        ("price<20", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"prise": {"max": 1}}', r"'prise' is no field .*: brand, categories, mood, price; did"),
        ('{"title": ["Pen"]}', "'title' is no field"),
        ('{"brand": []}', "brand holds words: expected a list of values"),
        ('{"brand": "Acme"}', "brand holds words"),
        ('{"brand": ["Acne"]}', "no item has the brand 'Acne'"),
        ('{"brand": [3]}', "no item has the brand '3'"),
        ('{"categories": ["Rugs, Soft"]}', "no item has the categories 'Rugs, Soft'"),
        ('{"categories": ["Rugs, Red"]}', "no item has the categories 'Rugs, Red'"),
        ('{"price": ["2"]}', "price holds numbers: expected"),
        ('{"price": {}}', "price holds numbers"),
        ('{"price": {"most": 2}}', "price holds numbers"),
        ('{"price": {"max": "2"}}', "price holds numbers"),
        ('{"price": {"max": true}}', "price holds numbers"),
        ('{"price": {"max": NaN}}', "price holds numbers"),
        ('{"price": {"min": 1' + "0" * 400 + "}}", "price holds numbers"),
    ],
)
def test_a_filter_that_cannot_be_used_is_named(filters, message):
    with pytest.raises(InputError, match=f"^--filters.*{message}"):
        load_allowed(None, None, filters, 1, ITEMS, IDS)


def test_filters_stand_beside_the_lists_of_the_command_line(tmp_path):
    (tmp_path / "sold.txt").write_text("0\n")

    left = load_allowed(None, tmp_path / "sold.txt", '{"price": {"max": 20}}', 1, ITEMS, IDS)
    assert left.tolist() == [1]
    with pytest.raises(InputError, match="--allow, --deny and --filters leave 0 of 3 items"):
        load_allowed(None, tmp_path / "sold.txt", '{"price": {"max": 5}}', 1, ITEMS, IDS)


def test_zeros_in_front_of_an_id_hide_nothing_of_it(tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text("002\n")
    assert read_item_ids(listed, "--deny", IDS, "refuse") == [2]
    listed.write_text("0" * 12 + "99999\n")
    with pytest.raises(InputError, match=r"line 1: item 0+99999 is not in the catalogue"):
        read_item_ids(listed, "--deny", IDS, "refuse")
