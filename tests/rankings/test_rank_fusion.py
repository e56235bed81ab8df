"""Rank fusion: by hand, its laws, the weights that validation chooses, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.baselines.__main__ import main
from lcrec.core.errors import InputError
from lcrec.core.provenance import provenance_path, write_provenance
from lcrec.rankings.fusion import (
    MOST_WEIGHTS,
    best_weights,
    fuse,
    ndcg_of_weights,
    pool,
    weight_grid,
)
from lcrec.rankings.metrics import PAD, ndcg_at_k
from lcrec.rankings.predictions import Prediction, read_predictions, write_predictions

A = (np.array([[5, 2, 7]]), np.array([[9.0, 5.0, 1.0]]))
B = (np.array([[2, 3, PAD]]), np.array([[0.2, 0.1, -np.inf]]))


def test_fusion_by_hand():
    ((items, scores),) = fuse(pool([A, B], "rrf"), [1.0, 2.0], top=10)
    # 2: 1/62 + 2/61; 3: 2/62; 5: 1/61; 7: 1/63.
    assert items.tolist() == [2, 3, 5, 7]
    assert scores.tolist() == pytest.approx([1 / 62 + 2 / 61, 2 / 62, 1 / 61, 1 / 63])
    ((items, scores),) = fuse(pool([A, B], "score"), [0.5, 0.5], top=3)
    # A brings 5, 2, 7 to 1, .5, 0; B brings 2, 3 to 1, 0: of the two at 0 the lower id is first.
    assert items.tolist() == [2, 5, 3]
    assert scores.tolist() == pytest.approx([0.75, 0.5, 0])
    flat = (np.array([[4, 1]]), np.array([[3.0, 3.0]]))
    ((items, scores),) = fuse(pool([flat], "score"), [1.0], top=2)
    assert items.tolist() == [1, 4]
    assert scores.tolist() == [1, 1]


@st.composite
def rankings(draw, files=2, users=3, items=8):
    """Files of lists of any length, scores falling strictly."""
    found = []
    for _ in range(files):
        ranked = np.full((users, items), PAD)
        scores = np.full((users, items), -np.inf, dtype=np.float32)
        for user in range(users):
            own = draw(st.permutations(range(items)))[: draw(st.integers(0, items))]
            steps = draw(st.lists(st.integers(1, 9), min_size=len(own), max_size=len(own)))
            ranked[user, : len(own)] = own
            scores[user, : len(own)] = -np.cumsum(steps)
        found.append((ranked, scores))
    return found


def lists(files, how, weights, top=8):
    return [items.tolist() for items, _ in fuse(pool(files, how), weights, top)]


def plain(ranked):
    return [[item for item in row if item != PAD] for row in ranked.tolist()]


@given(rankings(), st.sampled_from(["rrf", "score"]))
def test_a_weight_of_nothing_leaves_the_other_list(files, how):
    assert lists(files, how, [0.7, 0]) == plain(files[0][0])
    assert lists(files, how, [0, 0.2]) == plain(files[1][0])


@given(rankings(), st.sampled_from(["rrf", "score"]))
def test_the_order_of_files_says_nothing_and_all_items_are_there(files, how):
    fused = lists(files, how, [0.25, 0.75])
    assert fused == lists(files[::-1], how, [0.75, 0.25])
    for row, *own in zip(fused, *(plain(ranked) for ranked, _ in files), strict=True):
        assert sorted(row) == sorted(set().union(*own))


@given(rankings(), st.sampled_from([0.5, 2.0, 8.0]), st.integers(-3, 3))
def test_scales_of_scores_say_nothing(files, factor, shift):
    (ranked, scores), other = files
    moved = [(ranked, scores * factor + shift), other]
    assert lists(files, "score", [0.5, 0.5]) == lists(moved, "score", [0.5, 0.5])
    bent = [(ranked, np.exp(scores)), other]  # any rising function leaves ranks as they are
    assert lists(files, "rrf", [0.5, 0.5]) == lists(bent, "rrf", [0.5, 0.5])


@given(
    rankings(),
    st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True), min_size=3,
             max_size=3),
    st.sampled_from([(1.0, 0.0), (0.5, 0.5), (0.3, 0.7)]),
    st.booleans(),
)  # fmt: skip
def test_counting_gives_the_ndcg_of_the_lists(files, targets, weights, single):
    truths = np.array(targets)
    truths = truths[:, 0] if single else truths
    pooled = pool(files, "rrf")
    ranked = np.full((3, 8), PAD)
    for row, (items, _) in zip(ranked, fuse(pooled, weights, 8), strict=True):
        row[: len(items)] = items
    expected = ndcg_at_k(ranked, truths, 10).mean()
    assert ndcg_of_weights(pooled, weights, truths) == pytest.approx(expected)
    grid = weight_grid(len(files))
    values = [ndcg_of_weights(pooled, each, truths) for each in grid]
    assert best_weights(pooled, truths) == (grid[int(np.argmax(values))], max(values))


@pytest.mark.parametrize("files", [2, 3, 4, 7, 30])
def test_the_grid(files):
    grid = weight_grid(files)
    assert files <= len(grid) <= MOST_WEIGHTS
    assert np.allclose(np.sum(grid, axis=1), 1)
    assert len(set(grid)) == len(grid)
    for file in range(files):  # each file alone is tried too
        assert tuple(float(file == other) for other in range(files)) in grid
    assert len(weight_grid(2)) == 21
    assert grid[0] == pytest.approx([1 / files] * files, abs=0.5)


@pytest.fixture
def files(tmp_path):
    """Predictions of two methods for test and validation, with sidecars."""
    inter = tmp_path / "S.inter.json"
    inter.write_text("{}")
    made = {}
    for split, targets in (("test", [1, 1]), ("valid", [2, 2])):
        for name, ranked in (("a", [1, 2, 3]), ("b", [3, 2, 4])):
            path = tmp_path / f"{name}.{split}.jsonl"
            write_predictions(
                path,
                [
                    Prediction(user, target, ranked, [3, 2, 1])
                    for user, target in zip("uv", targets, strict=True)
                ],
            )
            write_provenance(path, f"stage {name}", {"split": split}, {"inter": inter})
            made[f"{name}.{split}"] = str(path)
    return made


def test_the_command(files, tmp_path, capsys):
    output = tmp_path / "fused.jsonl"
    command = ["fuse", files["a.test"], files["b.test"], "--output", str(output)]
    main([*command, "--valid", files["a.valid"], files["b.valid"]])
    screen = capsys.readouterr().out
    assert "the best of 21 by NDCG@10 on validation" in screen
    assert f"--predictions {output}" in screen
    fused = read_predictions(output)
    assert fused.users == ["u", "v"]
    assert fused.targets.tolist() == [1, 1]
    assert sorted(fused.ranked[None][0].tolist()) == [1, 2, 3, 4]
    record = json.loads(provenance_path(output).read_text())
    assert sum(record["weights"]) == pytest.approx(1)
    assert record["valid_ndcg_at_10"] >= max(record["valid_ndcg_at_10_alone"])
    stamp = output.stat().st_mtime_ns
    main([*command, "--valid", files["a.valid"], files["b.valid"]])
    assert "up to date" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == stamp

    main([*command, "--weights", "1", "0"])
    assert read_predictions(output).ranked[None].tolist() == [[1, 2, 3]] * 2
    main([*command, "--top", "1"])
    assert read_predictions(output).length == 1
    assert "all the same" in capsys.readouterr().out


def test_users_in_another_order_are_brought_together(files, tmp_path):
    shuffled = tmp_path / "c.jsonl"
    write_predictions(shuffled, [Prediction("v", 1, [9], [1]), Prediction("u", 1, [8], [1])])
    output = tmp_path / "fused.jsonl"
    weights = ["--weights", "0", "1"]
    main(["fuse", files["a.test"], str(shuffled), "--output", str(output), *weights])
    assert read_predictions(output).ranked[None].tolist() == [[8], [9]]


def test_what_fuse_refuses(files, tmp_path):
    output = ["--output", str(tmp_path / "fused.jsonl")]
    a, b = files["a.test"], files["b.test"]
    other = tmp_path / "other.jsonl"
    write_predictions(other, [Prediction("u", 1, [1], [1])])
    worded = tmp_path / "worded.jsonl"
    write_predictions(
        worded, [Prediction(u, 1, [1], [1], name) for u in "uv" for name in ("x", "y")]
    )
    elsewhere = tmp_path / "elsewhere.jsonl"
    rows = [Prediction(user, 1, [1], [1]) for user in "uv"]
    write_predictions(elsewhere, rows)
    silent = tmp_path / "silent.jsonl"  # about where it comes from
    write_predictions(silent, rows)
    inter = tmp_path / "T.inter.json"
    inter.write_text('{"x": 1}')
    write_provenance(elsewhere, "stage b", {"split": "test"}, {"inter": inter})
    valid = ["--valid", files["a.valid"], files["b.valid"]]
    cases = [
        ([a, *output], "one predictions file alone"),
        ([a, str(other), *output], "1 users that .* lacks"),
        ([a, files["b.valid"], *output], r"come from different splits \(test and valid\)"),
        ([a, str(elsewhere), *output], "come from different sequences"),
        ([str(silent), a, files["b.valid"], *output], r"different splits \(test and valid\)"),
        ([a, str(worded), *output], "a ranking for each of 2 prompt templates"),
        ([a, a, *output], "is given twice"),
        ([a, b, "--output", a], "is read from there"),
        ([a, b, *output, "--weights", "1"], "--weights has 1 values for 2"),
        ([a, b, *output, "--weights", "0", "0"], "all are 0"),
        ([a, b, *output, "--weights", "1", "1e308"], "too large; the most allowed is 1000000"),
        ([a, b, *output, "--weights", "1", "2", *valid], "give one"),
        ([a, b, *output, "--valid", files["a.valid"]], "--valid has 1 values for 2"),
        ([a, b, *output, *valid[:1], *valid[:0:-1]], "made by 'stage b', but .* by 'stage a'"),
        ([a, b, *output, "--valid", str(tmp_path / "no.jsonl"), b], "is given twice"),
        ([a, b, *output, "--how", "adaptive", "--data", "D"], "adaptive needs --valid"),
        ([a, b, *output, "--how", "adaptive", *valid], "adaptive needs --data"),
        ([a, b, *output, *valid, "--data", str(tmp_path)], "serves --how adaptive alone"),
    ]
    for argv, message in cases:
        with pytest.raises(InputError, match=message):
            main(["fuse", *argv])
    options = {"split": "valid", "exclude_history": True}
    inputs = {"inter": tmp_path / "S.inter.json"}
    for path, config in ((a, {"exclude_history": False}), (files["a.valid"], options)):
        write_provenance(Path(path), "stage a", {"split": "test", **config}, inputs)
    with pytest.raises(InputError, match=r"with exclude_history True, but .* with False"):
        main(["fuse", a, b, *output, *valid])
    copies = []
    for name in ("a", "b"):
        copy = tmp_path / f"copy-{name}.jsonl"
        write_predictions(copy, rows)
        copies.append(str(copy))
    with pytest.raises(InputError, match="would have seen the answers"):
        main(["fuse", a, b, *output, "--valid", *copies])
    assert not (tmp_path / "fused.jsonl").exists()


@pytest.mark.parametrize("fault", [None, "other users", "other items", "nothing to learn from"])
def test_weights_of_each_user_s_own(tmp_path, capsys, fault):
    """Who has a long history is served by the first file, everybody else by the second."""
    data = tmp_path / "S"
    data.mkdir()
    users = {str(user): [0, 1, 2, 3, 4, 5][: 6 if user % 2 else 3] for user in range(40)}
    (data / "S.inter.json").write_text(json.dumps(users))
    (data / "S.item.json").write_text(json.dumps({str(item): {"title": "x"} for item in range(9)}))
    made: dict[str, list[str]] = {}
    for split, back in (("test", 1), ("valid", 2)):
        for name, serves_long in (("a", True), ("b", False)):
            path = tmp_path / f"{name}.{split}.jsonl"
            rows = []
            for user, items in users.items():
                is_right = (len(items) > 3) is serves_long or fault == "nothing to learn from"
                ranked = [items[-back], 7] if is_right else [8 if serves_long else 6, 7]
                ranked[1] = 99 if fault == "other items" else 7
                called = f"x{user}" if fault == "other users" else user
                rows.append(Prediction(called, items[-back], ranked, [2, 1]))
            write_predictions(path, rows)
            made.setdefault(split, []).append(str(path))
    output = tmp_path / "fused.jsonl"
    argv = ["fuse", *made["test"], "--valid", *made["valid"], "--how", "adaptive"]
    argv += ["--data", str(data), "--output", str(output)]
    if fault is not None:
        message = {
            "other users": "--data .* no case of user 'x0' with the target of .*a.valid",
            "other items": "a.valid.jsonl: ranks item 99, but --data .* has 9 items",
        }
        with pytest.raises(InputError, match=message.get(fault, "best file: none")):
            main(argv)
        assert not output.exists()
        return
    main(argv)
    fused = read_predictions(output)
    assert ndcg_at_k(fused.ranked[None], fused.targets, 10).tolist() == [1.0] * 40
    assert "strength" in capsys.readouterr().out
    model = json.loads(provenance_path(output).read_text())["adaptive"]
    assert model["facts"][0] == "length of the history"
