"""The predictions file: what is written is read back, and every broken line is named."""

import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lcrec.core.errors import InputError
from lcrec.core.provenance import provenance_path
from lcrec.rankings.predictions import (
    Prediction,
    read_predictions,
    require_comparable,
    require_predictions_path,
    top_items,
    write_predictions,
)

GOOD = {"user": "ann", "target": 3, "ranked": [3, 1], "scores": [0.5, 0.25], "template_id": None}


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(path, *parts):
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_a_list_of_one_target_is_that_target(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", GOOD, {**GOOD, "target": [3], "template_id": "b"})
    assert read_predictions(path).targets.tolist() == [3]


def test_round_trip(tmp_path):
    path = tmp_path / "out" / "predictions.jsonl"
    scores = np.array([0.1, 0.1, -7.25], dtype=np.float32)
    write_predictions(
        path,
        [
            Prediction("ann", 3, np.array([3, 1, 2]), scores, "a"),
            Prediction("bob", 0, [2], [-1.5], "a"),
            Prediction("bob", 0, [0, 1], [2.0, 1.0], "b"),
            Prediction("ann", 3, [1], [0.0], "b"),
        ],
    )
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "user": "ann",
        "target": 3,
        "ranked": [3, 1, 2],
        "scores": [0.1, 0.1, -7.25],  # shortest form: not 0.10000000149011612
        "template_id": "a",
    }
    found = read_predictions(path)
    assert found.users == ["ann", "bob"]
    assert found.targets.tolist() == [3, 0]
    assert found.length == 3
    assert found.ranked["a"].tolist() == [[3, 1, 2], [2, -1, -1]]
    assert found.ranked["b"].tolist() == [[1, -1, -1], [0, 1, -1]]  # users in one order


def test_several_targets(tmp_path):
    path = tmp_path / "several.jsonl"
    lists = [Prediction("ann", np.array([3, 8, -1]), [8, 1], [2, 1])]
    lists += [Prediction("bob", np.array([5, -1, -1]), [5], [1]), Prediction("cat", [4], [], [])]
    write_predictions(path, lists)
    written = [json.loads(line)["target"] for line in path.read_text().splitlines()]
    assert written == [[3, 8], 5, 4]
    found = read_predictions(path)
    assert found.targets.tolist() == [[3, 8], [5, -1], [4, -1]]
    turned = tmp_path / "turned.jsonl"
    write_predictions(turned, [Prediction("cat", 4, [1], [1]), *lists[1::-1]])
    turned.write_text(turned.read_text().replace("[3, 8]", "[8, 3]"))
    require_comparable({"one": found, "other": read_predictions(turned)})
    fewer = tmp_path / "fewer.jsonl"
    write_predictions(fewer, [Prediction("ann", 3, [8], [1]), *lists[1:]])
    single = read_predictions(fewer)
    assert single.targets.tolist() == [3, 5, 4]  # no user has several: one axis
    with pytest.raises(InputError, match=r"targets for 1 users .*'ann': \[3, 8\] and 3"):
        require_comparable({"one": found, "other": single})


def test_what_a_file_may_lack_or_have_besides(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction("ann", 3, [], []), Prediction("bob", 4, [4, 3], [-1, -2])])
    assert read_predictions(path).ranked[None].tolist() == [[-1, -1], [4, 3]]
    write_predictions(path, [Prediction("ann", 3, [], [])])
    assert read_predictions(path).ranked[None].tolist() == [[-1]]
    row = {key: GOOD[key] for key in ("user", "target", "ranked", "scores")}
    path = write_lines(tmp_path / "p.jsonl", {**row, "note": "from elsewhere"})
    assert list(read_predictions(path).ranked) == [None]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"user": 7}, ["user must be text", "7"]),
        ({"user": ""}, ["user must be text"]),
        ({"target": "3"}, ["target", "'3'"]),
        ({"target": None}, ["target", "None"]),
        ({"target": True}, ["target", "True"]),
        ({"target": -1}, ["target", "-1"]),
        ({"target": []}, ["target", "[]"]),
        ({"target": [3, "1"]}, ["target", "'1'"]),
        ({"target": [3, -1]}, ["target", "[3, -1]"]),
        ({"target": [3, 3]}, ["target", "distinct", "[3, 3]"]),
        ({"template_id": 4}, ["template_id", "4"]),
        ({"ranked": "31"}, ["ranked must be a list"]),
        ({"ranked": [3, "1"]}, ["'1'", "no item id"]),
        ({"ranked": [3, -1]}, ["-1", "no item id"]),
        ({"ranked": [3, 2**40]}, [str(2**40), "no item id"]),
        ({"ranked": [3, 3]}, ["item 3 is ranked twice"]),
        ({"scores": [0.5]}, ["2 items need as many scores, found 1"]),
        ({"scores": None}, ["found None"]),
        ({"scores": [0.5, "x"]}, ["'x'", "finite"]),
        ({"scores": [float("nan"), 0.1]}, ["nan", "finite"]),
        ({"scores": [float("inf"), 0.1]}, ["inf", "finite"]),
        ({"scores": [0.1, float("-inf")]}, ["-inf", "finite"]),
        ({"scores": [1e39, 0.1]}, ["1e+39", "beyond a float32"]),
        ({"scores": [True, 0.1]}, ["True", "finite"]),
        ({"scores": [0.1, 0.5]}, ["must not rise", "place 2"]),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, parts):
    broken = {**GOOD, "user": "bob", **change}
    refused(write_lines(tmp_path / "p.jsonl", GOOD, broken), "line 2", *parts)


@pytest.mark.parametrize("key", ["user", "target", "ranked", "scores"])
def test_a_missing_key_is_named(tmp_path, key):
    row = {name: value for name, value in GOOD.items() if name != key}
    refused(write_lines(tmp_path / "p.jsonl", row), "line 1", f"{key!r} is missing")
    row[key + "s"] = GOOD[key]
    refused(write_lines(tmp_path / "p.jsonl", row), f"did you mean '{key}s'?")


def test_files_that_are_no_predictions(tmp_path):
    refused(tmp_path / "absent.jsonl", "no such file")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(empty, "empty")
    refused(write_lines(tmp_path / "list.jsonl", GOOD, [1, 2]), "line 2", "expected an object")
    cut = tmp_path / "cut.jsonl"
    cut.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:30])
    refused(cut, "line 2", "not valid JSON")


def test_users_and_templates_must_be_whole(tmp_path):
    path = tmp_path / "p.jsonl"
    refused(write_lines(path, GOOD, GOOD), "line 2", "'ann'", "second time", "first on line 1")
    a, b = ({**GOOD, "template_id": name} for name in "ab")
    refused(write_lines(path, a, b, b), "line 3", "under template 'b'")
    refused(write_lines(path, a, {**b, "target": 4}), "line 2", "target 4 here but 3 above")
    other = {**a, "user": "bob"}
    refused(write_lines(path, a, other, b), "1 of 2 users", "under template 'b'", "'bob'")
    bob = {**GOOD, "user": "bob", "target": 5}
    both = read_predictions(write_lines(tmp_path / "both.jsonl", GOOD, bob))
    turned = read_predictions(write_lines(tmp_path / "turned.jsonl", bob, GOOD))
    require_comparable({"both": both, "turned": turned})
    one = read_predictions(write_lines(tmp_path / "one.jsonl", GOOD))
    other = read_predictions(write_lines(tmp_path / "other.jsonl", GOOD, {**bob, "target": 6}))
    with pytest.raises(
        InputError,
        match=r"both has 1 users that one lacks .*'bob'.*same --data, --split and --since",
    ):
        require_comparable({"both": both, "one": one})
    with pytest.raises(InputError, match="both has 1 users that one lacks"):
        require_comparable({"one": one, "both": both})
    with pytest.raises(InputError, match=r"different targets for 1 users .*'bob': 5 and 6"):
        require_comparable({"both": both, "other": other})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Prediction("ann", 1, [2, 2], [1, 0])], "line 1: item 2 is ranked twice"),
        ([Prediction("ann", 1, [2, 3], [0, 1])], "must not rise"),
        ([Prediction("ann", 1, [2], [float("nan")])], "finite"),
        ([Prediction("ann", 1, [2], [0])] * 2, "line 2: user 'ann' is predicted a second time"),
    ],
)
def test_a_bad_row_is_not_written(tmp_path, rows, message):
    path = tmp_path / "p.jsonl"
    with pytest.raises(InputError, match=message):
        write_predictions(path, rows)
    assert list(tmp_path.iterdir()) == []


@given(arrays.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
@example(np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32))
@example(np.array([0.1, 3e-7, 1 / 3, 16777216.0, 0.0, -0.0, -7.25], dtype=np.float32))
def test_scores_are_the_shortest_text_that_reads_as_the_same_float32(tmp_path_factory, numbers):
    scores = np.sort(numbers[np.isfinite(numbers)])[::-1]
    path = tmp_path_factory.mktemp("scores") / "p.jsonl"
    write_predictions(path, [Prediction("ann", 1, range(len(scores)), scores)])
    texts = (
        re.search(r'"scores": \[(.*?)\]', path.read_text())[1].split(", ") if len(scores) else []
    )
    assert [float(text) for text in texts] == [float(str(score)) for score in scores]
    (read,) = read_predictions(path).scores.values()
    if len(scores):
        np.testing.assert_array_equal(read[0], scores)
        assert (np.signbit(read[0]) == np.signbit(scores)).all()


def test_paths_and_sidecars(tmp_path):
    path = tmp_path / "p.jsonl"
    provenance_path(path).write_text("{}")
    write_predictions(path, [Prediction("ann", 1, [2], [0])])
    assert not provenance_path(path).exists()
    for path, better in (
        (tmp_path, tmp_path / "predictions.jsonl"),
        (tmp_path / "x.json", tmp_path / "x.jsonl"),
    ):
        with pytest.raises(InputError, match=re.escape(f"such as {better}")):
            require_predictions_path(path)


def test_top_items_by_hand():
    scores = np.array([[1, 5, 5, -2], [0, 0, 0, 0]], dtype=np.float32)
    (ids, values), (ties, _) = top_items(scores, 3)
    assert (ids.tolist(), values.tolist()) == ([1, 2, 0], [5, 5, 1])
    assert ties.tolist() == [0, 1, 2]  # of equal scores the lower id first
    (ids, _), (left, _) = top_items(scores, 99, exclude=[np.array([1, 1]), np.arange(4)])
    assert ids.tolist() == [2, 0, 3]
    assert left.tolist() == []
    assert scores[0].tolist() == [1, 5, 5, -2]  # the caller's array is left alone
    for bad in (np.nan, np.inf):
        for scores in ([[0, 0], [1, bad]], [[0, 0, 0], [bad, 1, -np.inf]]):
            with pytest.raises(ValueError, match="row 1"):
                top_items(np.array(scores, dtype=np.float32), 1)
        many = np.zeros((2, 1003), dtype=np.float32)
        many[1, -1] = bad  # beyond the last whole group
        with pytest.raises(ValueError, match="row 1"):
            top_items(many, 100)


SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, -np.inf]), st.floats(-(2.0**100), 2.0**100, width=32)
)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=SCORES),
    st.integers(1, 14),
)
def test_top_items_is_a_full_stable_sort(scores, top):
    for row, (ids, values) in zip(scores, top_items(scores, top), strict=True):
        order = [item for item in np.argsort(-row, kind="stable") if row[item] > -np.inf]
        assert ids.tolist() == order[:top]
        assert values.tolist() == row[order[:top]].tolist()


@pytest.mark.parametrize("values", [2, 40, 10**9])
def test_top_items_of_a_large_catalogue(values):
    """Enough items for several groups, with few values, so that most are ties."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-values, values, size=(40, 997)).astype(np.float32)
    scores[::3, ::7] = -np.inf
    scores[5] = -np.inf
    for row, (ids, kept) in zip(scores, top_items(scores, 60), strict=True):
        order = [item for item in np.argsort(-row, kind="stable") if row[item] > -np.inf][:60]
        assert ids.tolist() == order
        assert kept.tolist() == row[order].tolist()


def test_scores_and_order(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(
        path, [Prediction("a", 1, [1, 2], [0.5, -1]), Prediction("b", 0, [3], [2.25])]
    )
    read = read_predictions(path)
    assert read.scores[None].tolist() == [[0.5, -1], [2.25, -np.inf]]
    turned = read.in_order_of(read.keys[::-1])
    assert turned.users == ["b", "a"]
    assert turned.targets.tolist() == [0, 1]
    assert turned.ranked[None].tolist() == [[3, -1], [1, 2]]
    assert turned.scores[None].tolist() == [[2.25, -np.inf], [0.5, -1]]
