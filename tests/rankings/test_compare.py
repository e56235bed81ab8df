"""Comparing methods: figures worked out by hand, the command from nothing to the page, resuming."""

import html
import json
import os
import re
import subprocess
import threading

import numpy as np
import pytest
from markupsafe import Markup
from planted import write_data

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import METHODS
from lcrec.baselines.runs.flags import parse_entries
from lcrec.baselines.runs.many import Run, carry_out, plan_runs
from lcrec.core.errors import InputError
from lcrec.rankings.comparison import Conditions, Entry, compare_entries, item_groups
from lcrec.rankings.comparison_page import comparison_markdown, comparison_page
from lcrec.rankings.predictions import Prediction, Predictions, write_predictions

USERS, ITEMS = 40, 30


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Users of two tastes, who go through its ten items in order; items 20 to 29 are rare."""
    # Drawing takes longer than comparing; `test_the_page` looks at pictures.
    monkeypatch.setattr(
        "lcrec.rankings.comparison_page.draw_svg", lambda *_, **__: Markup("<svg />")
    )
    rng = np.random.default_rng(0)
    sequences = {}
    for user in range(USERS):
        start = int(rng.integers(0, 5))
        items = [(user % 2) * 10 + (start + step) % 10 for step in range(5)]
        sequences[f"u{user}"] = [*items, 20 + user % 10] if user % 7 == 0 else items
    return write_data(tmp_path / "Shop", sequences, ITEMS)


def compare(shop, output, *words):
    main(["compare", "--data", str(shop), "--output", str(output), *map(str, words)])
    return json.loads((output / "comparison.json").read_text())


CONDITIONS = Conditions("Shop <&>", "leave-one-out", False, 0.25, False, 7)


def compared(entries, truth, counts, reference=None):
    return compare_entries(
        entries, truth, CONDITIONS, popularity=np.asarray(counts),
        activity=np.ones(len(truth), dtype=int), reference=reference,
        left_out={"alpharec": "needs | texts"},
    )  # fmt: skip


def figures_of(*words, **named):
    return json.loads(json.dumps(compared(*words, **named).to_json()))


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_what_is_clear_stays_clear_among_many_methods():
    """Thirty times the least p of 1,000 resamples is .06, whatever the methods are like."""
    targets = np.arange(100) % 10
    truth = Predictions([f"u{user}" for user in range(100)], targets, {}, {})
    right, wrong = targets[:, None].astype(np.int32), ((targets[:, None] + 1) % 10).astype(np.int32)
    entries = {"right": Entry(["0"], [[right]], 1)}
    entries |= {f"wrong{number}": Entry(["0"], [[wrong]], 1) for number in range(30)}
    figures = figures_of(entries, truth, np.ones(10, dtype=int))
    assert figures["test_samples"] == 12_000
    adjusted = [
        one["against"]["HR@10"]["p_holm"] for one in figures["methods"].values() if one["against"]
    ]
    assert len(adjusted) == 30
    assert max(adjusted) < 0.01


def test_figures_by_hand():
    users = ["a", "b", "c", "d"]
    truth = Predictions(users, np.array([0, 1, 2, 3]), {}, {})
    good = np.array([[0, 9], [1, 8], [7, 2], [6, 5]], dtype=np.int32)
    other = np.array([[0, 4], [8, 9], [9, 8], [3, 5]], dtype=np.int32)
    counts = np.array([9, 1, 0, 5, 1, 1, 1, 1, 1, 1])
    entries = {"other": Entry(["0"], [[other]], 2), "good": Entry(["0"], [[good]], 2, 3.0, 50)}
    figures = figures_of(entries, truth, counts)
    assert list(figures["methods"]) == ["good", "other"]  # best first
    one = figures["methods"]["good"]
    assert one["overall"]["HR@1"]["mean"] == 0.5
    assert one["overall"]["HR@20"]["mean"] == 0.75
    assert one["overall"]["NDCG@10"]["mean"] == pytest.approx((2 + 1 / np.log2(3)) / 4)
    assert (one["seconds"], one["peak_mb"], one["against"]) == (3.0, 50, None)
    against = figures["methods"]["other"]["against"]["HR@10"]
    assert against["difference"] == -0.25
    assert 0.1 < against["p"] <= against["p_holm"] == against["p"]  # one test: nothing to adjust
    # The .60 and .80 quantiles of the counts are 1 and 1.8.
    assert figures["groups"]["cold"] == {"items": 8, "users": 2}
    assert figures["groups"]["hot"] == {"items": 2, "users": 2}
    assert figures["groups"]["mid"] == {"items": 0, "users": 0}
    assert figures["groups"]["new"] == {"items": 1, "users": 1}
    assert one["groups"]["cold"]["HR@10"] == 1
    assert one["groups"]["hot"]["HR@10"] == 0.5
    assert one["groups"]["mid"]["HR@10"] is None
    (pair,) = figures["pairs"]
    assert (pair["a"], pair["b"]) == ("good", "other")
    assert pair["overlap"] == pytest.approx((1 / 3 + 1 / 3 + 0 + 1 / 3) / 4)
    assert [pair["hits"][side] for side in ("both", "a_only", "b_only")] == [1, 2, 1]
    assert (pair["all"]["oracle"], pair["all"]["gain"]) == (1, 0.25)


def test_seeds_wordings_and_a_chosen_reference():
    truth = Predictions(["a", "b"], np.array([0, 1]), {}, {})
    hit, miss = (np.array([[item], [item + 1]], dtype=np.int32) for item in (0, 5))
    entries = {
        "x": Entry(["0", "1"], [[hit], [miss]], 1),
        "y": Entry(["p.jsonl"], [[hit, miss, miss, miss]], 1),
    }
    comparison = compared(entries, truth, [1] * 7, reference="y")
    figures = comparison.to_json()
    x, y = figures["methods"]["x"], figures["methods"]["y"]
    assert x["overall"]["HR@10"]["by_seed"] == [1, 0]
    assert x["overall"]["HR@10"]["mean"] == 0.5
    assert y["overall"]["HR@10"]["mean"] == 0.25  # a user's value is the mean over wordings
    assert figures["reference"] == "y"
    assert y["against"] is None
    assert x["against"]["HR@10"]["difference"] == 0.25
    text = comparison_markdown(comparison)
    assert ".5000 ± .7071" in text


def test_several_targets_and_groups():
    targets = np.array([[0, 1, 2], [3, -1, -1]])
    truth = Predictions(["a", "b"], targets, {}, {})
    lists = np.array([[2, 9, 0], [8, 3, -1]], dtype=np.int32)
    counts = np.array([5, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    figures = figures_of({"x": Entry(["0"], [[lists]], 3)}, truth, counts)
    assert figures["metrics"] == ["Recall@10", "Recall@20", "NDCG@10", "NDCG@20"]
    x = figures["methods"]["x"]
    assert x["overall"]["Recall@10"]["mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert figures["groups"]["new"] == {"items": 1, "users": 1}
    assert x["groups"]["new"]["Recall@10"] == 0  # item 1 of user a is not listed
    assert x["groups"]["hot"]["Recall@10"] == 1  # item 0 is
    assert figures["pairs"] == []
    groups = item_groups(np.arange(100))
    assert [int(groups[name].sum()) for name in ("cold", "mid", "hot")] == [60, 20, 20]
    assert (groups["cold"].astype(int) + groups["mid"] + groups["hot"] == 1).all()
    assert (groups["new"] ^ groups["known"]).all()
    assert groups["new"].tolist() == [True] + [False] * 99


def toy_figures(names=("x", "y")):
    rng = np.random.default_rng(0)
    truth = Predictions([f"u{user}" for user in range(20)], rng.integers(0, 7, 20), {}, {})
    entries = {
        name: Entry(["0"], [[np.stack([rng.permutation(7) for _ in range(20)])]], 7, 90.4, 321)
        for name in names
    }
    return compared(entries, truth, np.arange(1, 8))


def test_the_page():
    figures = toy_figures(("x", "<y>", "z"))
    page = comparison_page(figures)
    assert page.count("<svg ") == 3
    assert "<y>" not in page
    text = text_of(page)
    assert "3 methods on Shop <&>" in text
    assert "No user's target is missing from train" in text
    assert "needs | texts" in text
    assert "The lists of" in text  # they end before 20 items
    assert text.count("★") >= len(figures.metrics)
    for pair in figures.pairs:
        assert f"{pair.all['oracle']:.4f}".removeprefix("0") in text
    single = comparison_page(toy_figures(["x"]))
    assert "What two find together" not in single


def test_the_markdown():
    text = comparison_markdown(toy_figures())
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
    assert "| alpharec | needs \\| texts |" in text
    assert "| x | 90 | 321 | – |" in text
    best = [line for line in text.splitlines() if "**" in line]
    assert best


def test_from_nothing_to_the_page_and_on(shop, tmp_path, capsys):
    output = tmp_path / "runs"
    elsewhere = tmp_path / "mine.jsonl"
    rows = [
        Prediction(user, items[-1], [items[-1], items[0]], [1, 0])
        for user, items in json.loads((shop / "Shop.inter.json").read_text()).items()
    ]
    write_predictions(elsewhere, rows)
    words = ["--methods", "popularity", "cooccurrence", "--seeds", 3]
    figures = compare(shop, output, *words, "--predictions", f"mine={elsewhere}")
    screen = capsys.readouterr().out
    assert "2 runs" in screen  # a method that draws nothing runs once
    assert "popularity, seed 0: 2 left" in screen
    assert figures["methods"].keys() == {"mine", "cooccurrence", "popularity"}
    assert next(iter(figures["methods"])) == "mine"
    assert figures["methods"]["mine"]["overall"]["HR@1"]["mean"] == 1
    assert figures["methods"]["mine"]["seconds"] is None
    assert "of the targets are items that their users have already" in screen
    trained = figures["methods"]["cooccurrence"]
    assert trained["seeds"] == ["0"]
    assert trained["peak_mb"] > 10
    assert 0 < figures["methods"]["popularity"]["overall"]["HR@10"]["mean"] < 1
    assert figures["groups"]["new"]["users"] > 0
    assert "| mine |" in (output / "comparison.md").read_text()
    assert (output / "comparison.html").read_text().count("<svg ") == 3
    run = output / "cooccurrence-0"
    names = {path.name for path in run.iterdir()}
    made = {f"predictions.{end}" for end in ("jsonl", "lcrec.json", "cost.json")}
    assert names == {"method", "log.txt", *made}

    # One run is gone, as if it had been killed: it alone is made again, with the same result.
    before = (run / "predictions.jsonl").read_bytes()
    stamp = (output / "popularity-0" / "predictions.jsonl").stat().st_mtime_ns
    (run / "predictions.jsonl").unlink()
    again = compare(shop, output, *words, "--predictions", f"mine={elsewhere}")
    screen = capsys.readouterr().out
    assert "1 of 2 runs are done already" in screen
    assert "popularity, seed" not in screen
    assert (run / "predictions.jsonl").read_bytes() == before
    assert (output / "popularity-0" / "predictions.jsonl").stat().st_mtime_ns == stamp
    for one in (figures, again):
        one["methods"]["cooccurrence"].pop("seconds")
        one["methods"]["cooccurrence"].pop("peak_mb")
    assert again == figures


def test_what_a_method_does_not_read_does_not_run_it_again(shop, tmp_path, capsys):
    vectors = tmp_path / "embeddings"
    vectors.mkdir()
    np.save(vectors / "embeddings.npy", np.eye(ITEMS, dtype=np.float32))
    compare(shop, tmp_path / "runs", "--methods", "popularity")
    words = ["--methods", "popularity", "text-cosine", "--embeddings", vectors]
    compare(shop, tmp_path / "runs", *words)
    assert "1 of 2 runs are done already" in capsys.readouterr().out
    np.save(vectors / "embeddings.npy", 1 - np.eye(ITEMS, dtype=np.float32))
    compare(shop, tmp_path / "runs", *words)
    screen = capsys.readouterr().out
    assert "1 of 2 runs are done already" in screen
    assert "text-cosine, seed 0: 1 left" in screen


def test_lists_from_elsewhere_are_masked_like_the_others(shop, tmp_path, capsys):
    """Lists that begin with all that a user has, target included, then lead with the target."""
    elsewhere = tmp_path / "mine.jsonl"
    sequences = json.loads((shop / "Shop.inter.json").read_text())
    rows = []
    for user, items in sequences.items():
        ranked = list(dict.fromkeys(items))
        rows.append(Prediction(user, items[-1], ranked, range(len(ranked), 0, -1)))
    write_predictions(elsewhere, rows)
    words = ["--methods", "popularity", "--predictions", f"mine={elsewhere}"]
    plain = compare(shop, tmp_path / "plain", *words)["methods"]["mine"]["overall"]
    told = "mine: without the masked items 40 of 40 rankings have fewer than 6 items"
    assert told not in capsys.readouterr().out
    masked = compare(shop, tmp_path / "masked", *words, "--exclude-history")
    assert told in capsys.readouterr().out
    assert masked["methods"]["mine"]["overall"]["HR@1"]["mean"] == 1
    assert plain["HR@1"]["mean"] < 1
    assert masked["repeats"] == 0


def test_a_target_that_its_user_has_is_told_of(tmp_path, capsys):
    """Two of four users buy again what they had: under the mask that is given away."""
    sequences = {
        "u0": [0, 1, 2, 3, 0], "u1": [1, 2, 3, 0, 4], "u2": [2, 3, 1, 4, 0], "u3": [0, 4, 2, 4],
    }  # fmt: skip
    folder = write_data(tmp_path / "Again", sequences, name="Again")
    told = "50.0% of the users have their target already"
    for flags in (["--exclude-history"], []):
        output = tmp_path / "runs"
        figures = compare(folder, output, "--methods", "popularity", *flags)
        assert figures["repeats"] == 0.5
        assert (told in (output / "comparison.md").read_text()) == bool(flags)


def test_what_cannot_run_is_named(shop, tmp_path, capsys, monkeypatch):
    few = {name: METHODS[name] for name in ("popularity", "text-cosine")}
    monkeypatch.setattr("lcrec.baselines.commands.compare.METHODS", few)
    figures = compare(shop, tmp_path / "without")
    assert list(figures["methods"]) == ["popularity"]
    assert "needs --embeddings DIR" in figures["left_out"]["text-cosine"]
    assert "Left out: text-cosine: needs --embeddings" in capsys.readouterr().out
    # One that fails while it runs is left out with what it said, and the rest goes on.
    vectors = tmp_path / "embeddings"
    vectors.mkdir()
    np.save(vectors / "embeddings.npy", np.ones((3, 4), dtype=np.float32))
    figures = compare(shop, tmp_path / "short", "--embeddings", vectors)
    assert list(figures["methods"]) == ["popularity"]
    assert "has 3 rows but the catalogue has 30" in figures["left_out"]["text-cosine"]
    with pytest.raises(InputError, match=r"--reference text-cosine: .*3 rows"):
        compare(shop, tmp_path / "short", "--embeddings", vectors, "--reference", "text-cosine")


@pytest.mark.parametrize(
    ("order", "protocol", "first", "told"),
    [
        ([0, 1, 2, 3, 4], "time", "HR@1", "all before it), ranking"),
        ([3, 4, 0, 1, 2], "sets", "Recall@10", "never ranked"),
    ],
)
def test_a_split_of_the_folder(shop, tmp_path, order, protocol, first, told):
    """Two items of each user are to be tested on: two cases in time, else one of two targets."""
    sequences = json.loads((shop / "Shop.inter.json").read_text())
    parts = {}
    for user, items in sequences.items():
        turned = [items[place] for place in order]
        parts[user] = {"train": turned[:2] + items[5:], "valid": [turned[2]], "test": turned[3:]}
        sequences[user] = items[:2] + items[5:] + items[2:5]
    (shop / "Shop.inter.json").write_text(json.dumps(sequences))
    (shop / "Shop.split.json").write_text(json.dumps(parts))
    figures = compare(shop, tmp_path / "runs", "--methods", "cooccurrence")
    assert (figures["protocol"], figures["metrics"][0]) == (protocol, first)
    assert told in (tmp_path / "runs" / "comparison.md").read_text()
    assert (figures["users"], figures["cases"]) == (USERS, USERS * (1 + (protocol == "time")))
    # Lists that were made before there was this split are refused.
    made = next((tmp_path / "runs").rglob("predictions.jsonl"))
    (shop / "Shop.split.json").unlink()
    with pytest.raises(InputError, match=r"another split .*Shop\.split\.json\) than"):
        compare(shop, tmp_path / "other", "--methods", "popularity", "--predictions", f"a={made}")


def test_a_method_in_two_forms_and_cut_short(shop, tmp_path, capsys):
    forms = ["mf", "mf --loss info_nce --dim 8"]
    words = ["--methods", *forms, "--seeds", 1, "--max-minutes", 0, "--jobs", 2]
    figures = compare(shop, tmp_path / "runs", *words, "--reference", forms[1])
    assert figures["methods"].keys() == {*forms}
    for one in figures["methods"].values():
        assert one["training"] == [
            {"epochs": 1, "best_epoch": 1, "updates": 1, "out_of_time": True}
        ]
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {
        "mf-0",
        "mf_loss_info_nce_dim_8-0",
    }
    text = (tmp_path / "runs" / "comparison.md").read_text()
    assert "| 1+ (1) |" in text
    assert "Training was cut short of" in text
    log = (tmp_path / "runs" / "mf-0" / "log.txt").read_text()
    assert "time is up in epoch 1, after 1 updates" in log


def test_several_runs_at_a_time(tmp_path, monkeypatch, capsys):
    """Two methods of two seeds, both seeds of the second failing at once."""
    together = threading.Barrier(2, timeout=20)  # passed by two at a time, or by none
    done = set()

    class ToyRun(Run):
        def facts(self):
            found = {"fit_seconds": 60, "rank_seconds": 60, "peak_mb": None}
            return found if self in done else None

    def train(run, jobs):
        assert jobs == 2
        together.wait()
        if run.label == "good":
            done.add(run)
        return None if run.label == "good" else "it is broken"

    monkeypatch.setattr("lcrec.baselines.runs.many._train", train)
    runs = [
        ToyRun(label, label, seed, tmp_path, [label, str(seed)])
        for label in ("good", "bad")
        for seed in range(2)
    ]
    monkeypatch.setattr(ToyRun, "__hash__", lambda run: hash((run.label, run.seed)))
    finished, failed = carry_out(runs, jobs=2)
    assert finished == runs[:2]
    assert failed == {"bad": "it is broken"}
    screen = capsys.readouterr().out
    assert "good, seed 1, done in" in screen
    assert "left out: bad: it is broken" in screen


def test_jobs_share_the_cores_that_they_may_use(monkeypatch, tmp_path):
    seen = []

    def run(command, env, **_):
        seen.append(env["OMP_NUM_THREADS"])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("lcrec.baselines.runs.many.usable_cores", lambda: 6)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(Run, "facts", lambda run: None)
    carry_out([Run("mf", "mf", 0, tmp_path, [])], jobs=2)
    assert seen == ["3"]


@pytest.mark.slow
def test_seeds_and_a_crash(shop, tmp_path, monkeypatch):
    figures = compare(shop, tmp_path / "runs", "--methods", "mf", "popularity", "--seeds", 2)
    assert figures["methods"]["mf"]["seeds"] == ["0", "1"]
    words = ["--methods", "mf", "popularity"]
    figures = compare(shop, tmp_path / "device", *words, "--device", "nowhere")
    assert figures["left_out"]["mf"].startswith("device nowhere: cannot compute here")
    (tmp_path / "torch.py").write_text("raise RuntimeError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    figures = compare(shop, tmp_path / "crash", *words)
    assert list(figures["methods"]) == ["popularity"]
    assert re.search(r"ended with 1; see .*mf-0/log.txt", figures["left_out"]["mf"])
    assert "Traceback" in (tmp_path / "crash" / "mf-0" / "log.txt").read_text()


def test_runs_of_a_method_that_draws(shop, tmp_path):
    entries = parse_entries(["popularity", "mf --dim 8", "mf --paper-family"])
    runs = plan_runs(entries, 2, tmp_path, ["--data", str(shop)], tuned=True)
    assert [(run.label, run.seed) for run in runs] == [
        ("popularity", 0),
        *(("mf --dim 8", seed) for seed in range(2)),
        *(("mf --paper-family", seed) for seed in range(2)),
    ]
    assert [run.folder.name for run in runs[::2]] == [
        "popularity-0", "mf_dim_8-1", "mf_paper-family-1",
    ]  # fmt: skip
    assert runs[1].argv[2:5] == ["--tuned", "--dim", "8"]
    assert "--tuned" not in runs[3].argv
    with pytest.raises(InputError, match="'mf  --dim 8' is there twice, in other words"):
        plan_runs(parse_entries(["mf --dim 8", "mf  --dim 8"]), 1, tmp_path, [], tuned=False)


def test_what_the_command_refuses(shop, tmp_path):
    other = tmp_path / "other.jsonl"
    write_predictions(other, [Prediction(f"u{user}", 29, [1], [0]) for user in range(USERS)])
    fewer = tmp_path / "fewer.jsonl"
    write_predictions(fewer, [Prediction("u1", 29, [1], [0])])
    stale = tmp_path / "stale.jsonl"
    write_predictions(stale, [Prediction("u1", 29, [1], [0])])
    record = {"lcrec": "0", "stage": "s", "config": {}}
    record["inputs"] = {"inter": {"path": "elsewhere", "sha256": "0" * 64}}
    (tmp_path / "stale.lcrec.json").write_text(json.dumps(record))
    cases = [
        (["--methods", "popularty"], "no method 'popularty'; did you mean 'popularity'"),
        (["--methods", "mf --seed 3"], "--methods: 'mf --seed 3': unknown argument '--seed'"),
        (["--methods", "mf 'x"], "is no method with its flags"),
        (["--methods", "mf", "mf"], "'mf' is named twice"),
        (["--methods", "all", "mf"], "--methods all mf: all, or names"),
        (["--methods", "text-cosine"], "--methods text-cosine: needs --embeddings DIR"),
        (["--predictions", str(other)], "expected NAME=FILE.jsonl"),
        (["--predictions", f" ={other}"], "expected NAME=FILE.jsonl"),
        (["--predictions", f"mf={other}"], "mf is a method here"),
        (["--predictions", f"mf --dim 8={other}"], "mf --dim 8 is a method here"),
        (["--predictions", f"a={other}", f"a={other}"], "given twice"),
        (["--predictions", f"a={tmp_path / 'no.jsonl'}"], "no such file"),
        (["--predictions", f"a={other}"], "--data .*[sS]hop and .* different targets"),
        (["--predictions", f"a={fewer}"], "39 users that .*fewer.jsonl lacks"),
        (["--predictions", f"a={stale}"], "made from another inter file"),
        (["--reference", "lc-rec"], "--reference lc-rec: not compared.*popularity"),
    ]
    for words, message in cases:
        given = {"--methods": ["popularity"], "--output": [str(tmp_path / "out")]}
        given |= {words[0]: words[1:]}
        flags = [word for flag, values in given.items() for word in (flag, *values)]
        with pytest.raises(InputError, match=message):
            main(["compare", "--data", str(shop), *flags])
    assert not (tmp_path / "out").exists()
