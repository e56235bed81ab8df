"""The evaluation stage on files whose numbers are plain to see."""

import json
import math
import random

import pytest

from lcrec.core.errors import InputError
from lcrec.core.provenance import provenance_path, write_provenance
from lcrec.evaluate.__main__ import main
from lcrec.rankings.evaluation import evaluate_predictions
from lcrec.rankings.predictions import Prediction, write_predictions

# Ten users, target 0. A list with the target at rank r, or without it (None).
ITEMS = list(range(1, 13))


def make(path, ranks, template=None, length=12):
    """Write predictions for users 0, 1, ... whose target 0 stands at the given ranks."""
    write_predictions(path, rows(ranks, template, length))
    return path


def rows(ranks, template=None, length=12):
    for user, rank in enumerate(ranks):
        ranked = ITEMS[:length]
        if rank is not None:
            ranked = [*ranked[: rank - 1], 0, *ranked[rank - 1 :]][:length]
        yield Prediction(f"u{user}", 0, ranked, [-float(i) for i in range(length)], template)


def row_of(screen, label):
    """Return the cells of the table's line that begins with this label."""
    (line,) = [line for line in screen.splitlines() if line.startswith(f"{label} ")]
    return line.removeprefix(label).split()


def test_one_file(tmp_path, capsys):
    path = make(tmp_path / "run" / "predictions.jsonl", [1, 2, 5, 10, 11, None, 1, 1, 1, 1])
    main(["--predictions", str(path)])
    screen = capsys.readouterr().out
    assert "10 users" in screen
    assert row_of(screen, "run")[:3] == ["0.5000", "0.7000", "0.8000"]
    assert "*" not in screen  # nothing to be better than
    assert max(map(len, screen.replace(str(path.parent), "").splitlines())) <= 100

    metrics = path.with_name("metrics.json")
    assert f"Wrote {metrics}" in screen
    result = json.loads(metrics.read_text())
    assert (result["users"], result["mrr_depth"], result["level"]) == (10, 12, 0.95)
    run = result["runs"]["run"]
    means = {metric: values["mean"] for metric, values in run["overall"].items()}
    log = math.log2
    assert means == pytest.approx(
        {
            "HR@1": 0.5,
            "HR@5": 0.7,
            "HR@10": 0.8,
            "NDCG@5": (5 + 1 / log(3) + 1 / log(6)) / 10,
            "NDCG@10": (5 + 1 / log(3) + 1 / log(6) + 1 / log(11)) / 10,
            "MRR": (5 + 1 / 2 + 1 / 5 + 1 / 10 + 1 / 11) / 10,
        }
    )
    for values in run["overall"].values():
        assert values["low"] < values["mean"] < values["high"]
    assert list(run["templates"]) == ["(no template)"]
    assert run["across_templates"] is None
    record = json.loads(provenance_path(metrics).read_text())
    assert record["stage"] == "python -m lcrec.evaluate"
    assert list(record["inputs"]) == ["run"]


def test_same_seed_same_file(tmp_path):
    path = make(tmp_path / "predictions.jsonl", [1, 2, None])
    written = []
    for seed in ("0", "0", "1"):
        main(["--predictions", str(path), "--seed", seed])
        written.append((tmp_path / "metrics.json").read_bytes())
    assert written[0] == written[1] != written[2]


def test_the_order_of_lines_changes_nothing(tmp_path):
    """Neither intervals nor means do, and equal rows have equal figures whoever is found."""
    draw = random.Random(0)
    ranks = [draw.choice([1, 2, 3, 5, 7, 11, None]) for _ in range(200)]
    others = draw.sample(ranks, len(ranks))
    templates = ("x", "y", "z")
    lines = [line for name in templates for line in rows(draw.sample(ranks, len(ranks)), name)]
    found = []
    for shuffled in (False, True):
        files = {"ranks": [*rows(ranks)], "others": [*rows(others)], "templates": [*lines]}
        for name, own in files.items():
            if shuffled:
                draw.shuffle(own)
            write_predictions(tmp_path / f"{name}.jsonl", own)
        found.append(evaluate_predictions([tmp_path / f"{name}.jsonl" for name in files]))
    assert found[0] == found[1]
    means = [
        [values["mean"] for values in found[0]["runs"][name]["overall"].values()]
        for name in ("ranks", "others")
    ]
    assert means[0] == means[1]


def test_several_files_side_by_side(tmp_path, capsys):
    good = make(tmp_path / "good.jsonl", [1, 1, 2, 2])
    bad = make(tmp_path / "bad.jsonl", [1, 7, None, None])
    short = make(tmp_path / "short" / "predictions.jsonl", [1, 1, 2, None], length=5)
    before = sorted(tmp_path.rglob("*"))
    main(["--predictions", str(bad), str(good), str(short)])
    screen = capsys.readouterr().out
    measured, differences = screen.split("\nDifferences to bad, paired by user.")
    assert row_of(measured, "bad")[:3] == ["0.2500", "0.2500", "0.5000"]
    assert row_of(measured, "good")[:3] == ["0.5000*", "1.0000*", "1.0000*"]
    assert row_of(measured, "short")[:3] == ["0.5000*", "0.7500", "0.7500"]  # a tie, both marked
    # Lists of 5 against lists of 12: MRR looks at 5 places of each.
    assert "MRR@5" in measured
    assert row_of(measured, "bad")[5] == "0.2500"
    # A quarter of the users more at HR@1, half of them at HR@10.
    assert row_of(differences, "good")[:3] == ["+0.2500", "+0.7500", "+0.5000"]
    assert row_of(differences, "short")[:3] == ["+0.2500", "+0.5000", "+0.2500"]
    assert "lists of short end at 5 items" in screen
    assert "Nothing was written" in screen
    assert sorted(tmp_path.rglob("*")) == before

    output = tmp_path / "table.json"
    labels = ["--labels", "ours", "theirs", "third"]
    files = ["--predictions", str(good), str(bad), str(short)]
    main([*files, "--output", str(output), *labels])
    runs = json.loads(output.read_text())["runs"]
    assert list(runs) == ["ours", "theirs", "third"]
    assert "difference" not in runs["ours"]
    assert runs["theirs"]["difference"]["HR@5"]["difference"] == -0.75
    assert row_of(capsys.readouterr().out, "ours")[2] == "1.0000*"


def test_rankings_without_an_item_have_no_length(tmp_path):
    result = evaluate_predictions([make(tmp_path / "none.jsonl", [None, None], length=0)])
    assert result["runs"]["none"]["list_length"] == 0
    assert result["runs"]["none"]["overall"]["MRR"]["mean"] == 0


def test_templates_are_averaged_per_user(tmp_path, capsys):
    path = tmp_path / "lcrec.jsonl"
    write_predictions(path, [*rows([1, 1], "plain"), *rows([2, None], "a template of many words")])
    main(["--predictions", str(path)])
    screen = capsys.readouterr().out
    assert "lcrec, by template" in screen
    assert row_of(screen, "lcrec")[0] == "0.5000"
    assert row_of(screen, "plain")[0] == "1.0000"
    assert row_of(screen, "a template of many words")[:2] == ["0.0000", "0.5000"]
    assert [row_of(screen, name)[1] for name in ("mean", "lowest", "highest")] == [
        "0.7500", "0.5000", "1.0000",
    ]  # fmt: skip
    run = json.loads((tmp_path / "lcrec.metrics.json").read_text())["runs"]["lcrec"]
    assert run["templates"]["plain"]["HR@1"] == 1
    assert run["across_templates"]["HR@5"] == {"mean": 0.75, "min": 0.5, "max": 1.0}
    assert run["overall"]["HR@5"]["mean"] == 0.75


def test_what_cannot_be_judged(tmp_path):
    a = make(tmp_path / "a" / "predictions.jsonl", [1, 2])
    b = make(tmp_path / "b" / "predictions.jsonl", [1, 2, 3])
    twin = make(tmp_path / "other" / "a" / "predictions.jsonl", [1, 2])
    cases = [
        (["--predictions", str(tmp_path / "none.jsonl")], "none.jsonl: no such file"),
        (["--predictions", "."], r"^\.: cannot be read as UTF-8 text"),
        (["--predictions", str(a), str(b)], "has 1 users that .* lacks"),
        (["--predictions", str(a), str(twin)], "would both be called 'a'.*--labels"),
        (["--predictions", str(a), "--labels", "x", "y"], "2 names for 1 files"),
    ]
    for argv, message in cases:
        with pytest.raises(InputError, match=message):
            main(argv)
    assert not list(tmp_path.rglob("*metrics*"))


def test_several_targets(tmp_path, capsys):
    path = tmp_path / "several.jsonl"
    scores = [-float(i) for i in range(12)]
    lists = [
        Prediction("ann", [3, 40], ITEMS, scores),
        Prediction("bob", 1, ITEMS, scores),
        Prediction("cat", [12, 50, 51], ITEMS, scores),
    ]
    write_predictions(path, lists)
    main(["--predictions", str(path)])
    screen = capsys.readouterr().out
    assert screen.splitlines()[4].split() == ["Recall@10", "Recall@20", "NDCG@10", "NDCG@20"]
    assert row_of(screen, "several")[:2] == ["0.5000", "0.6111"]
    assert "the lists of several end at 12 items" in screen
    run = json.loads((tmp_path / "several.metrics.json").read_text())["runs"]["several"]
    assert run["overall"]["Recall@20"]["mean"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    single = tmp_path / "single.jsonl"
    write_predictions(single, [Prediction(row.user, 1, row.ranked, scores) for row in lists])
    with pytest.raises(InputError, match="different targets for 2 users"):
        main(["--predictions", str(path), str(single)])


def test_every_case_counts_and_every_user_does(tmp_path, capsys):
    """One user has three cases, all hits, and another one, a miss: 3 of 4, and 1 of 2."""
    cases = [("a", 1, 1), ("a", 2, 1), ("a", 3, 1), ("b", 1, 0)]
    path = tmp_path / "predictions.jsonl"
    lines = [Prediction(user, 7, [7 if hit else 8], [0.0], case=case) for user, case, hit in cases]
    write_predictions(path, lines)
    main(["--predictions", str(path)])
    (found,) = json.loads((tmp_path / "metrics.json").read_text())["runs"].values()
    assert (found["overall"]["HR@10"]["mean"], found["by_user"]["HR@10"]["mean"]) == (0.75, 0.5)
    assert "by user" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stages", "labels"),
    [
        (["lcrec.generate", "lcrec.baselines popularity"], ["lc-rec", "popularity"]),
        (["lcrec.generate", "lcrec.generate"], ["lc-rec (a)", "lc-rec (b)"]),
        (["lcrec.generate", None], ["lc-rec", "b"]),
    ],
)
def test_a_row_is_called_after_the_method(tmp_path, capsys, stages, labels):
    paths = [make(tmp_path / name / "predictions.jsonl", [1, 2, None]) for name in "ab"]
    for path, stage in zip(paths, stages, strict=True):
        if stage is not None:
            write_provenance(path, f"python -m {stage}", {}, {})
    main(["--predictions", *map(str, paths)])
    measured, _, _ = capsys.readouterr().out.partition("\nDifferences to ")
    for label in labels:
        row_of(measured, label)
