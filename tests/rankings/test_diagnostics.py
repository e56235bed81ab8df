"""What two rankings share: by hand, the identities, the command."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import write_data

from lcrec.baselines.__main__ import main
from lcrec.core.errors import InputError
from lcrec.rankings.metrics import PAD, recall_at_k
from lcrec.rankings.overlap import (
    compare_lists,
    found_targets,
    overlap,
    popularity_groups,
    target_places,
)
from lcrec.rankings.predictions import Prediction, write_predictions

ITEMS = 12


@st.composite
def two_rankings(draw, users=4):
    """A, B and targets: lists of any length, one to three targets per user."""
    found = []
    for most in (8, 8, 3):
        rows = np.full((users, most), PAD)
        for row in rows:
            own = draw(st.permutations(range(ITEMS)))
            length = draw(st.integers(1 if most == 3 else 0, most))
            row[:length] = own[:length]
        found.append(rows)
    return found


def compare(a, b, targets, k=5, popularity=None):
    popularity = np.arange(ITEMS) if popularity is None else popularity
    activity = np.arange(len(a)) + 1
    return compare_lists(a, b, targets, k, popularity=popularity, activity=activity)


@given(two_rankings(), st.integers(1, 9))
def test_the_identities(rankings, k):
    a, b, targets = rankings
    found = compare(a, b, targets, k)
    hits, everything = found["hits"], found["all"]
    in_a, in_b = (found_targets(ranked, targets, k) for ranked in (a, b))
    assert hits["both"] + hits["a_only"] + hits["b_only"] == hits["total"]
    assert hits["total"] == (in_a | in_b).sum()
    assert everything["recall_a"] == pytest.approx(recall_at_k(a, targets, k).mean())
    assert everything["recall_b"] == pytest.approx(recall_at_k(b, targets, k).mean())
    assert everything["oracle"] >= max(everything["recall_a"], everything["recall_b"]) - 1e-12
    added = ((in_b & ~in_a).sum(axis=1) / (targets != PAD).sum(axis=1)).mean()
    assert everything["oracle"] - everything["recall_a"] == pytest.approx(added)
    assert everything["oracle_at_k"] <= everything["oracle"] + 1e-12
    assert sum(found["users"][name] for name in ("both", "a_only", "b_only", "none")) == len(a)
    assert 0 <= found["overlap"] <= 1


def test_overlap_and_popularity_groups():
    a, b = np.array([[0, 1], [2, PAD]]), np.array([[2, 3], [PAD, PAD]])
    assert overlap(a, b, 2).tolist() == [0, 0]
    assert overlap(np.array([[0, 1, 2]]), np.array([[1, 0, 3]]), 2).tolist() == [1]
    assert overlap(np.array([[0, 1, 2]]), np.array([[1, 0, 3]]), 3).tolist() == [0.5]
    counts = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])  # quantiles 6 and 8
    assert popularity_groups(counts).tolist() == [0] * 7 + [1] * 2 + [2] * 2
    assert popularity_groups(np.zeros(4, dtype=int)).tolist() == [0] * 4


def test_by_hand():
    a = np.array([[0, 1], [2, 3], [4, 5], [0, 1]])
    b = np.array([[0, 9], [9, 8], [5, 6], [8, 9]])
    targets = np.array([[0, PAD], [9, 3], [7, PAD], [1, 0]])
    popularity = np.array([10, 9, 0, 1, 0, 0, 0, 0, 5, 2, 0, 0])
    found = compare(a, b, targets, k=2, popularity=popularity)
    # User 0: both find 0. User 1: A finds 3, B finds 9. User 2: none. User 3: A finds both.
    assert found["hits"]["both"] == 1
    assert found["hits"]["a_only"] == 3
    assert found["hits"]["b_only"] == 1
    assert found["hits"]["complementary"] == 4 / 5
    assert found["hits"]["log_popularity"]["b_only"] == pytest.approx(np.log(3))
    assert found["users"]["both"] == 2
    assert found["users"]["a_only"] == 1
    assert found["users"]["none"] == 1
    assert found["users"]["log_activity"]["none"] == pytest.approx(np.log(4))
    assert found["all"]["recall_a"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["all"]["recall_b"] == pytest.approx((1 + 0.5) / 4)
    assert found["all"]["oracle"] == pytest.approx(3 / 4)
    assert found["all"]["gain"] == pytest.approx(3 / 4 - 2.5 / 4)
    # 0 and 1 are hot (above 5), 8 would be mid, 9 and 3 are mid, 7 is cold.
    assert found["groups"]["hot"]["users"] == 2
    assert found["groups"]["hot"]["recall_a"] == 1
    assert found["groups"]["cold"]["oracle"] == 0
    one = compare(a[:1], b[:1], targets[:1, 0], k=1, popularity=popularity)
    assert one["groups"]["cold"] is None
    assert one["hits"]["complementary"] == 0
    a, b = np.array([[0, 1]]), np.array([[2, 3]])
    found = compare(a, b, np.array([[0, 1, 2]]), k=2)["all"]
    assert found["oracle"] == 1
    assert found["oracle_at_k"] == pytest.approx(2 / 3)


@pytest.fixture
def shop(tmp_path):
    folder = write_data(tmp_path / "Shop", {"u": [0, 1, 2, 3], "v": [0, 2, 1, 0]}, 4)
    paths = []
    for name, ranked in (("a", [3, 1, 2]), ("b", [0, 2, 1])):
        path = tmp_path / f"{name}.jsonl"
        rows = [
            Prediction(user, target, ranked, [3, 2, 1]) for user, target in (("u", 3), ("v", 0))
        ]
        write_predictions(path, rows)
        paths.append(str(path))
    return folder, paths


def test_the_command(shop, tmp_path, capsys):
    folder, paths = shop
    output = tmp_path / "d.json"
    main(["diagnose", *paths, "--data", str(folder), "--k", "1", "3", "--output", str(output)])
    screen = capsys.readouterr().out
    assert "hits of A alone" in screen
    assert f"fuse {paths[0]} {paths[1]}" in screen
    figures = json.loads(output.read_text())["k"]
    assert figures["1"]["hits"]["a_only"] == figures["1"]["hits"]["b_only"] == 1
    assert figures["1"]["all"]["oracle"] == 1
    assert figures["1"]["all"]["gain"] == 0.5
    assert figures["3"]["overlap"] == 0.5
    # Train holds u: 0 1, v: 0 2: item 0 twice, so it alone is hot; 3 never.
    assert figures["1"]["groups"]["hot"]["recall_b"] == 1
    assert figures["1"]["groups"]["cold"]["recall_a"] == 1
    assert figures["1"]["hits"]["log_popularity"]["b_only"] == pytest.approx(np.log(3))
    main(["diagnose", *paths, "--data", str(folder), "--k", "1"])
    assert "Nothing was written" in capsys.readouterr().out


def test_what_diagnose_refuses(shop, tmp_path):
    folder, paths = shop
    data = ["--data", str(folder)]
    short = tmp_path / "other.jsonl"
    write_predictions(short, [Prediction("u", 3, [1], [1])])
    far = [tmp_path / "far.jsonl", tmp_path / "away.jsonl"]
    for path in far:
        write_predictions(path, [Prediction("u", 3, [77], [1]), Prediction("v", 0, [1], [1])])
    strange = [tmp_path / "x.jsonl", tmp_path / "y.jsonl"]
    for path in strange:
        write_predictions(path, [Prediction("zoe", 3, [1], [1])])
    cases = [
        ([paths[0], *data], "1 predictions files given"),
        ([paths[0], str(short), *data], "users that"),
        ([*paths, *data, "--k", "50"], "--k 50: the shorter lists have 3"),
        ([*map(str, far), *data, "--k", "1"], "has item 77"),
        ([*map(str, strange), *data, "--k", "1"], "has user 'zoe'"),
    ]
    for argv, message in cases:
        with pytest.raises(InputError, match=message):
            main(["diagnose", *argv])


def test_the_place_of_the_first_target_found():
    ranked = np.array([[3, 5, 7], [1, PAD, PAD], [4, 2, 0], [8, 9, 6]])
    targets = np.array([[5, 3], [PAD, 2], [0, PAD], [6, 9]])
    assert target_places(ranked, targets, 3).tolist() == [1, 0, 3, 2]
    assert target_places(ranked, targets[:, 0], 2).tolist() == [2, 0, 0, 0]
