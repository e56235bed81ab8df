"""Reviews as LC-Rec keeps them."""

import json

import pytest

from lcrec.core.errors import InputError
from lcrec.data.folder import load_interactions
from lcrec.data.user_texts import Review, load_reviews

USERS = ["0", "ann", "o'b, x"]


def read(folder, content):
    (folder / "Toy.inter.json").write_text("{}")
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "Toy.review.json").write_text(text)
    return load_reviews(folder, USERS, 4)


def test_keys_are_tuples_as_text(tmp_path):
    content = {
        "(0, 1)": {"review": "good", "summary": "fine"},
        "('ann', 3)": {"review": "", "summary": None},
        "(ann,2)": {},
        str(("o'b, x", 0)): {"review": "x"},
        "('0', '2')": {"review": "y"},
    }
    assert read(tmp_path, content) == {
        ("0", 1): Review("good", "fine"), ("ann", 3): Review("", ""), ("ann", 2): Review("", ""),
        ("o'b, x", 0): Review("x", ""), ("0", 2): Review("y", ""),
    }  # fmt: skip


def test_a_folder_without_reviews_has_none_and_the_shop_one_for_every_purchase(
    tmp_path, shop, shop_items
):
    (tmp_path / "Toy.inter.json").write_text("{}")
    assert load_reviews(tmp_path, USERS, 4) == {}
    interactions = load_interactions(shop, len(shop_items))
    reviews = load_reviews(shop, interactions.users, len(shop_items))
    assert len(reviews) == len(interactions.items)
    assert all(review.text and review.summary for review in reviews.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected .*user, item"),
        ("{", "line 1"),
        ({"0, 1": {}}, r"the key '0, 1' is not of the form \(user, item\)"),
        ({"(0, x)": {}}, "not of the form"),
        ({"(0)": {}}, "not of the form"),
        ({"('0, 1)": {}}, "not of the form"),
        ({"(eve, 1)": {}}, "no such user or item"),
        ({"(0, 4)": {}}, "no such user or item"),
        ({"(0, -1)": {}}, "no such user or item"),
        ({"(0, 1)": "good"}, "expected {review, summary}, found 'good'"),
        ({"(0, 1)": {"review": 5}}, "must be text"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content)
    assert "Toy.review.json" in str(caught.value)
