"""The figures of an index, on catalogues small enough to count by hand."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import identity_rqvae

import lcrec.index.quality
from lcrec.data.folder import Items
from lcrec.index import quality

# Three branches of three, two and one items; the second code only counts.
CODES = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]], dtype=np.int32)
ANGLES = np.radians([0, 5, 10, 120, 125, 240])
EMBEDDINGS = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)]).astype(np.float32)


def catalogue(**fields):
    """Return the items whose fields are given as lists, with titles."""
    count = len(next(iter(fields.values())))
    rows = [{name: values[item] for name, values in fields.items()} for item in range(count)]
    return Items([{"title": f"Desk {item}", **row} for item, row in enumerate(rows)])


def test_the_tree_by_hand():
    report = quality.measure_index(CODES, (4, 3))
    assert report["items"] == 6
    assert report["level_sizes"] == [4, 3]
    assert report["conflicts"] == {"items": 0, "groups": 0, "largest": 0, "examples": []}
    assert report["distinct_prefixes"] == [3, 6]
    assert report["children_mean"] == [3, 2]
    assert report["largest_branch"] == [1 / 2, 1 / 6]
    assert report["items_alone"] == [1 / 6, 1]
    assert report["items_left"] == pytest.approx([(3 * 3 + 2 * 2 + 1) / 6, 1])
    assert report["codes_used"] == [3, 3]
    entropy = -sum(share * math.log(share) for share in (1 / 2, 1 / 3, 1 / 6))
    assert report["perplexity"] == pytest.approx([math.exp(entropy)] * 2)
    assert report["last_level_counts"]


def test_all_figures_are_json():
    items = catalogue(categories=["a", "a", "b", "b", "b", "c"])
    report = quality.measure_index(
        CODES, (4, 3), embeddings=EMBEDDINGS, items=items, fit={"x": 1.0}
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["x"] == 1
    assert report["left_out"] == {}


@pytest.mark.parametrize(
    ("codes", "counts"),
    [
        ([[0, 0], [0, 1], [1, 0]], True),
        ([[0, 0], [0, 2], [1, 0]], False),
        ([[0, 0], [1, 1]], False),
        ([[2], [0], [1]], False),
        ([[0, 0], [0, 1], [1, 1], [1, 0]], False),
        ([[0, 0], [0, 0], [0, 1]], False),
    ],
)
def test_a_last_level_that_only_counts_is_known(codes, counts):
    codes = np.array(codes)
    report = quality.measure_index(codes, tuple(codes.max(axis=0) + 1))
    assert report["last_level_counts"] is counts


def test_conflicts_are_counted_and_named():
    codes = np.array([[0, 1], [1, 1], [0, 1], [0, 1], [1, 0], [1, 1]])
    report = quality.measure_index(codes, (2, 2))
    assert report["conflicts"] == {
        "items": 5, "groups": 2, "largest": 3, "examples": [[0, 2, 3], [1, 5]],
    }  # fmt: skip
    assert report["distinct_prefixes"] == [2, 3]


def test_what_cannot_be_known_is_left_out_and_said():
    report = quality.measure_index(CODES, (4, 3))
    assert set(report["left_out"]) == {"explained_variance", "neighbours", "labels", "branches"}
    assert not report.keys() & report["left_out"].keys()
    report = quality.measure_index(
        CODES, (4, 3), embeddings=EMBEDDINGS, items=catalogue(brand=["x"] * 6)
    )
    assert set(report["left_out"]) == {"explained_variance", "labels"}
    assert "no categories or brands" in report["left_out"]["labels"]
    codes = np.arange(6)[:, None]
    items = catalogue(categories=["a", "a", "b", "b", "b", "c"])
    report = quality.measure_index(codes, (6,), embeddings=EMBEDDINGS, items=items)
    assert not report.keys() & {"neighbours", "labels", "branches", "variance_between_prefixes"}
    assert "no two items share a code" in report["left_out"]["neighbours"]


@pytest.mark.parametrize("count", [1, 2])
def test_the_smallest_catalogues(count):
    codes = np.arange(count)[:, None] * [0, 1]
    items = catalogue(brand=["x"] * count)
    report = quality.measure_index(codes, (1, 2), embeddings=EMBEDDINGS[:count], items=items)
    assert report["items"] == count
    assert ("neighbours" in report) == (count == 2)


@st.composite
def code_tables(draw):
    levels = draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 3), min_size=levels, max_size=levels)
    return np.array(draw(st.lists(row, min_size=1, max_size=30)))


@given(code_tables(), st.randoms(use_true_random=False))
def test_neither_the_order_of_items_nor_the_names_of_codes_matter(codes, random):
    """The last level is left alone: whether it counts depends on its names."""
    order = list(range(len(codes)))
    random.shuffle(order)
    names = [2, 0, 3, 1]
    renamed = codes[order]
    renamed[:, :-1] = np.array(names)[renamed[:, :-1]]
    sizes = (4,) * codes.shape[1]
    before, after = quality.measure_index(codes, sizes), quality.measure_index(renamed, sizes)
    for name in before.keys() - {"conflicts", "perplexity"}:
        assert before[name] == after[name], name
    assert before["perplexity"] == pytest.approx(after["perplexity"])
    assert before["conflicts"]["items"] == after["conflicts"]["items"]


@given(code_tables())
def test_prefix_groups_are_those_of_equal_rows(codes):
    for depth, group in enumerate(quality.prefix_groups(codes), start=1):
        _, expected = np.unique(codes[:, :depth], axis=0, return_inverse=True)
        assert group.tolist() == expected.reshape(-1).tolist()


def test_neighbours_by_hand():
    report = quality.measure_index(CODES, (4, 3), embeddings=EMBEDDINGS)["neighbours"]
    assert (report["count"], report["queries"]) == (5, 6)
    # All five others are neighbours: 2 of 5 share the first code thrice, 1 of 5 twice.
    assert report["kept"] == pytest.approx([(3 * 2 + 2 * 1) / 30, 0])
    assert report["kept"] == pytest.approx(report["chance"])
    assert report["kept"] == pytest.approx(report["most"])
    group = quality.prefix_groups(CODES)[0]
    nearest = quality.nearest_neighbours(EMBEDDINGS, np.arange(6), 1)
    facts = quality.neighbours_kept(group, np.arange(6), nearest)
    assert facts["kept"] == facts["most"] == 5 / 6  # the last item is alone
    assert facts["chance"] == pytest.approx((3 * 2 + 2 * 1) / (6 * 5))
    report = quality.measure_index(CODES, (4, 3), embeddings=np.zeros((6, 2), dtype=np.float32))
    assert report["variance_between_prefixes"] == [None, None]
    assert all(map(math.isfinite, report["neighbours"]["kept"]))


def test_chance_is_the_mean_over_all_orders():
    group = np.array([0, 0, 0, 1, 1])
    neighbours = np.array([[1, 2], [0, 2], [4, 0], [4, 1], [3, 0]])
    kept = [
        quality.neighbours_kept(np.array(shuffled), np.arange(5), neighbours)["kept"]
        for shuffled in itertools.permutations(group)
    ]
    chance = quality.neighbours_kept(group, np.arange(5), neighbours)["chance"]
    assert np.mean(kept) == pytest.approx(chance)


@pytest.mark.parametrize("cells", [1, 100, 10**6])
def test_slices_find_what_a_search_at_once_finds(monkeypatch, cells):
    monkeypatch.setattr(lcrec.index.quality, "CELLS", cells)
    embeddings = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    queries = np.array([3, 17, 39])
    found = quality.nearest_neighbours(embeddings, queries, 4)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for query, neighbours in zip(queries, found, strict=True):
        order = np.argsort(-(unit @ unit[query]))
        assert set(neighbours) == set(order[1:5])


def test_of_many_items_a_sample_is_asked(monkeypatch):
    rng = np.random.default_rng(0)
    codes = np.column_stack([np.arange(400) % 8, np.arange(400) // 8])
    embeddings = np.eye(8)[codes[:, 0]] + rng.normal(scale=0.1, size=(400, 8))
    whole = quality.measure_index(codes, (8, 50), embeddings=embeddings)["neighbours"]
    monkeypatch.setattr(lcrec.index.quality, "SEARCH_BUDGET", 1)
    monkeypatch.setattr(lcrec.index.quality, "LEAST_QUERIES", 50)
    sampled = quality.measure_index(codes, (8, 50), embeddings=embeddings)["neighbours"]
    assert (whole["queries"], sampled["queries"]) == (400, 50)
    assert whole["kept"][0] == sampled["kept"][0] == 1
    again = quality.measure_index(codes, (8, 50), embeddings=embeddings)["neighbours"]
    assert again == sampled


def test_variance_between_prefixes():
    group = np.repeat([0, 1], 6)
    points = np.array([0, 2] * 3 + [4, 6] * 3)[:, None]
    # Squared distances to 3 sum to 60, to the groups' means 1 and 5 to 12; 12 items, 2 groups.
    assert quality.variance_between(group, points) == pytest.approx(1 - 12 / 60 * 11 / 10)
    assert quality.variance_between(group, (group * 7.0)[:, None]) == pytest.approx(1)
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 2)
    points = rng.normal(size=(40, 130)).astype(np.float32)
    values = [quality.variance_between(rng.permutation(group), points) for _ in range(50)]
    assert np.mean(values) == pytest.approx(0, abs=0.02)
    points = np.random.default_rng(0).normal(size=(30, 3))
    assert quality.variance_between(np.arange(30), points) is None
    assert quality.variance_between(np.r_[0, np.arange(29)], points) is None


def test_purity():
    group = np.array([0] * 6 + [2] * 4 + [1])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 5])
    assert quality.purity(group, labels) == pytest.approx((4 + 2) / 10)
    assert quality.purity(np.arange(11), labels) is None
    labels = np.repeat([0, 1], 20)
    codes = np.column_stack([labels, np.arange(40)])
    items = catalogue(categories=np.array(["Pens", "Desks"])[labels].tolist())
    report = quality.measure_index(codes, (2, 40), items=items)["labels"]
    assert report["field"] == "categories"
    assert (report["items"], report["distinct"]) == (40, 2)
    assert report["purity"] == [1, None]
    assert 0.5 <= report["chance"][0] < 0.7
    assert report["chance"][1] is None


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (["Office, Pens", "Office, Desks", "Office, Pens", "Office, Lamps"], [2, 0, 2, 1]),
        (["Pens, Red", "Desks, Red", "Pens, Blue", "Desks, Red"], [1, 0, 1, 0]),
        (["Office, Pens", "", "Office, Pens", "Office, Desks"], [1, -1, 1, 0]),
        (["Pens", "Pens", "Pens", "Desks"], [1, 1, 1, 0]),
    ],
)
def test_categories_are_cut_where_they_tell_items_apart(categories, expected):
    field, labels = quality.choose_labels(catalogue(categories=categories))
    assert field == "categories"
    assert labels.tolist() == expected


@pytest.mark.parametrize("categories", ["", "Office"])
def test_without_categories_that_tell_brands_are_taken(categories):
    items = catalogue(categories=[categories] * 3, brand=["Bic", "", "Bic, France"])
    assert quality.choose_labels(items)[0] == ""
    items = catalogue(categories=[categories] * 3, brand=["Bic", "Pilot", "Bic"])
    field, labels = quality.choose_labels(items)
    assert (field, labels.tolist()) == ("brand", [0, 1, 0])


def test_examples():
    items = catalogue(title=[*"abcde", "f" * 30 + " " + "g" * 50])
    report = quality.measure_index(CODES, (4, 3), items=items)
    assert report["branches"] == [
        {"prefix": "<a_0>", "items": 3, "titles": ["a", "b", "c"]},
        {"prefix": "<a_1>", "items": 2, "titles": ["d", "e"]},
    ]
    codes = np.column_stack([np.arange(60) // 20, np.arange(60) // 2 % 10, np.arange(60) % 2])
    items = catalogue(title=["A long title " * 20] * 60)
    branches = quality.measure_index(codes, (3, 10, 2), items=items)["branches"]
    assert [branch["prefix"] for branch in branches] == [
        "<a_0>", "<a_0><b_0>", "<a_1>", "<a_1><b_0>", "<a_2>", "<a_2><b_0>",
    ]  # fmt: skip
    assert [branch["items"] for branch in branches] == [20, 2] * 3
    assert {len(branch["titles"]) for branch in branches} == {4, 2}
    assert max(len(title) for branch in branches for title in branch["titles"]) <= 70


POINTS = torch.tensor([[-1.0], [-1.0], [9.0]])
SPREAD = (100 + 100 + 400) / 9  # squared distances to the mean 7/3


def test_the_cost_of_uniqueness_by_hand():
    model = identity_rqvae([[0], [10]], [[-1], [1]])
    fit = quality.measure_fit(model, POINTS, np.array([[0, 0], [0, 1], [1, 0]]))
    assert json.loads(json.dumps(fit)) == fit
    # The first two points share their nearest path, 0 - 1; the second moves to 0 + 1.
    assert fit["conflict_rate_before_assignment"] == pytest.approx(2 / 3)
    assert fit["items_moved"] == 1
    assert fit["explained_variance"] == pytest.approx([1 - 3 / SPREAD, 1])
    assert fit["explained_variance_assigned"] == pytest.approx(1 - 4 / SPREAD)
    assert fit["distortion_nearest"] == 0
    assert fit["distortion_assigned"] == pytest.approx(4 / SPREAD)
    fit = quality.measure_fit(model, POINTS, np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]]))
    assert fit["conflict_rate_before_assignment"] == pytest.approx(2 / 3)
    assert fit["items_moved"] == 0
    assert len(fit["explained_variance"]) == 2
    assert fit["explained_variance_assigned"] == pytest.approx(1)
    assert fit["distortion_assigned"] == 0
    codes = np.array([[0, 0], [0, 1], [1, 0]])
    fit = quality.measure_fit(model, POINTS, codes, nearest=codes)
    assert fit["items_moved"] == fit["conflict_rate_before_assignment"] == 0
    assert fit["distortion_nearest"] == fit["distortion_assigned"] == pytest.approx(4 / SPREAD)
    fit = quality.measure_fit(model, torch.full((2, 1), -1.0), np.array([[0, 0], [0, 1]]))
    assert all(np.isfinite(value).all() for value in fit.values())
