"""The paper's tables beside ours: hand-made predictions, and the whole road at toy size."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.artifacts import write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import sha256
from lcrec.data.folder import Interactions, load_interactions, load_items
from lcrec.rankings.metrics import measure_lists
from lcrec.rankings.predictions import Prediction, Predictions, write_predictions

TOP = Path(__file__).parents[2]
ROAD = TOP / "recipes" / "lcrec_paper.sh"


@pytest.fixture(scope="module")
def paper(load_script):
    return load_script("scripts/paper_table.py")


def test_other_methods_beside_the_published_ones(paper, tmp_path, capsys):
    path = tmp_path / "comparison.json"
    figures = {metric: {"mean": 0.1} for metric in paper.METRICS}
    cut = {"epochs": 7, "best_epoch": 6, "updates": 900, "out_of_time": True}
    methods = {
        "ease": {"overall": figures, "training": [None]},
        "sasrec": {"overall": figures},
        "sasrec --tuned": {"overall": figures, "training": [cut]},
    }
    record = {"protocol": "leave-one-out", "users": 1234, "methods": methods}
    write_json(path, record)
    words = ["--table", "baselines", "--published", "Instruments"]
    paper.main([*words, "--comparison", str(path)])
    screen = capsys.readouterr().out
    assert "1,234 users" in screen
    lines = screen.splitlines()
    here = lines.index(next(line for line in lines if line.startswith("SASRec (published)"))) + 1
    assert lines[here].split() == ["here", *["0.1000"] * 5]
    assert lines[here + 1].split()[1:] == ["+98.8%", "+33.2%", "+5.6%", "+59.5%", "+44.9%"]
    assert lines[here + 2].split() == ["here", "--tuned", "[7+]", *["0.1000"] * 5]
    assert row_of(screen, "ease (here)") == ["0.1000"] * 5
    with pytest.raises(InputError, match="name it with --comparison"):
        paper.main(words)
    write_json(path, record | {"protocol": "sets"})
    with pytest.raises(InputError, match="made with the split 'sets'"):
        paper.main([*words, "--comparison", str(path)])
    write_json(path, [])
    with pytest.raises(InputError, match=r"not a comparison\.json"):
        paper.main([*words, "--comparison", str(path)])


@pytest.fixture
def old_index(tmp_path):
    """Four items, of which 1 and 2 share a path."""
    paths = [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_0>", "<b_1>"], ["<a_1>", "<b_0>"]]
    path = tmp_path / "old" / "index.json"
    write_json(path, {str(item): tokens for item, tokens in enumerate(paths)})
    return path


def row_of(screen, label):
    """Return the cells of the one line that begins with this label."""
    (line,) = [line for line in screen.splitlines() if line.startswith(f"{label} ")]
    return line.removeprefix(label).split()


def write_lists(path, lists):
    """Write {(user, target, wording): ranked items}."""
    write_predictions(
        path,
        [
            Prediction(user, target, ranked, [-float(place) for place in range(len(ranked))], name)
            for (user, target, name), ranked in lists.items()
        ],
    )
    return path


def test_published_figures_hang_together(paper):
    assert paper.RESULTS.keys() == paper.COUNTS.keys()
    for methods in paper.RESULTS.values():
        for hr1, hr5, hr10, ndcg5, ndcg10 in methods.values():
            assert hr1 <= ndcg5 <= hr5 <= hr10
            assert ndcg5 <= ndcg10 <= hr10
    # Table II also prints these two, which follow from the counts.
    text = paper.format_counts(paper.COUNTS["Instruments"], paper.COUNTS["Games"])
    assert row_of(text, "published")[3:] == ["99.92%", "8.32"]
    assert row_of(text, "here")[3:] == ["99.95%", "8.96"]
    arts = paper.format_counts(paper.COUNTS["Arts"], paper.COUNTS["Arts"])
    assert row_of(arts, "published")[3:] == ["99.96%", "8.66"]


def test_counts_beside_the_published(paper, shop, capsys):
    paper.main(["--table", "data", "--published", "Arts", "--data", str(shop)])
    screen = capsys.readouterr().out
    interactions = load_interactions(shop, len(load_items(shop)))
    assert row_of(screen, "here")[0] == "60"
    assert row_of(screen, "difference")[0] == f"{60 - 45_142:,}"
    assert row_of(screen, "here")[2] == str(len(interactions.items))
    two = Interactions.from_sequences({"a": [5, 7, 5], "b": [7]})
    assert paper.count(two) == (2, 2, 4)  # items that occur, not ids up to the largest


@pytest.mark.real_data
def test_the_published_data_is_one_user_and_one_item_short(paper, real_data):
    interactions = load_interactions(real_data / "Instruments", 9_922)
    users, items, rows = paper.COUNTS["Instruments"]
    assert paper.count(interactions) == (users - 1, items - 1, rows)


@pytest.mark.real_data
def test_the_published_index_has_items_that_share(paper, real_data):
    owners = paper.index_owners(real_data / "Instruments" / "Instruments.index.json")
    assert len(owners) == 9_922
    assert len(np.unique(owners)) == 9_897
    assert (np.bincount(owners)[owners] > 1).sum() == 48


def test_mean_lowest_and_highest_over_wordings(paper, tmp_path, capsys):
    first = {("u", 0, "plain"): [0, 1, 2], ("v", 3, "plain"): [1, 3]}
    second = {("u", 0, "terse"): [1, 2], ("v", 3, "terse"): [1, 3, 0]}
    trie = write_lists(tmp_path / "trie.jsonl", first | second)
    level = write_lists(tmp_path / "level.jsonl", first)
    output = tmp_path / "table3.json"
    words = ["--table", "results", "--published", "Games", "--output", str(output)]
    paper.main([*words, "--predictions", str(level), str(trie)])
    screen = capsys.readouterr().out
    assert "2 users" in screen
    published = ["0.0317", "0.0800", "0.1174", "0.0560", "0.0681"]
    assert row_of(screen, "LC-Rec (published)") == published
    # plain: ranks 1 and 2; terse: missed and 2.
    assert row_of(screen, "level, by item, mean of 1")[:2] == ["0.5000", "1.0000"]
    assert row_of(screen, "trie, by item, mean of 2")[:2] == ["0.2500", "0.7500"]
    result = json.loads(output.read_text())
    assert result["inputs"] == {str(path): sha256(path) for path in (level, trie)}
    run = result["runs"]["trie, by item"]
    assert (run["min"]["HR@1"], run["max"]["HR@1"]) == (0.0, 0.5)
    assert (run["min"]["HR@10"], run["max"]["HR@10"]) == (0.5, 1.0)
    assert run["mean"]["NDCG@10"] == pytest.approx((1 + 2 / np.log2(3)) / 4)
    assert run["difference"]["HR@1"] == pytest.approx(0.25 / 0.0317 - 1)
    assert not any("by index" in label for label in result["runs"])


def test_items_that_share_an_index_are_scored_both_ways(paper, tmp_path, old_index, capsys):
    lists = {
        ("u", 2, None): [1, 0],  # its twin is found in its place
        ("v", 3, None): [1, 2, 3],  # third by item; the twins take one place by index
        ("w", 0, None): [3],
    }
    path = write_lists(tmp_path / "trie.jsonl", lists)
    words = ["--table", "results", "--published", "Arts", "--index", str(old_index)]
    paper.main([*words, "--predictions", str(path)])
    screen = capsys.readouterr().out
    log = np.log2
    item = ["0.0000", "0.3333", "0.3333", f"{1 / log(4) / 3:.4f}", f"{1 / log(4) / 3:.4f}"]
    shared = ["0.3333", "0.6667", "0.6667"] + [f"{(1 + 1 / log(3)) / 3:.4f}"] * 2
    assert row_of(screen, "trie, by item, mean of 1") == item
    assert row_of(screen, "trie, by index, mean of 1") == shared
    assert "2 of 4 items share an index" in screen


@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=8),
    st.lists(st.permutations(range(8)), min_size=1, max_size=5),
    st.integers(0, 7),
)
def test_by_index_never_lowers_a_metric(paper, groups, lists, target):
    owners = np.array([groups.index(group) for group in groups])
    ranked = np.array(lists)[:, :6]
    users = [str(row) for row in range(len(ranked))]
    strict = Predictions(users, np.full(len(ranked), target), {None: ranked}, {})
    merged = paper.by_index(strict, owners, Path("p.jsonl"), Path("index.json"))
    for row, found in zip(ranked, merged.ranked[None], strict=True):
        kept = found[found >= 0].tolist()
        assert kept == list(dict.fromkeys(owners[row].tolist()))
    before = measure_lists(strict.ranked[None], strict.targets, 10)
    after = measure_lists(merged.ranked[None], merged.targets, 10)
    assert all((after[metric] >= before[metric]).all() for metric in paper.METRICS)


def test_where_all_items_have_their_own_index_both_ways_agree(paper):
    lists = np.array([[2, 0, -1], [1, 2, 0]])
    strict = Predictions(["u", "v"], np.array([0, 1]), {"a": lists}, {})
    merged = paper.by_index(strict, np.arange(3), Path("p.jsonl"), Path("index.json"))
    np.testing.assert_array_equal(merged.ranked["a"], lists)
    np.testing.assert_array_equal(merged.targets, strict.targets)


def test_what_cannot_be_compared_is_refused(paper, tmp_path, old_index):
    path = write_lists(tmp_path / "trie.jsonl", {("u", 4, None): [0]})
    results = ["--table", "results", "--published", "Arts"]
    with pytest.raises(InputError, match="--data"):
        paper.main(["--table", "data", "--published", "Arts"])
    with pytest.raises(InputError, match="--predictions"):
        paper.main(results)
    with pytest.raises(InputError, match=r"has 4 items, but .*trie\.jsonl holds item 4"):
        paper.main([*results, "--predictions", str(path), "--index", str(old_index)])
    with pytest.raises(InputError, match=r"\*\.json"):
        paper.main([*results, "--predictions", str(path), "--output", "table.txt"])
    other = write_lists(tmp_path / "more" / "trie.jsonl", {("u", 4, None): [0]})
    with pytest.raises(InputError, match="both be called 'trie'"):
        paper.main([*results, "--predictions", str(path), str(other)])
    third = write_lists(tmp_path / "level.jsonl", {("u", 3, None): [0]})
    with pytest.raises(InputError, match="different targets"):
        paper.main([*results, "--predictions", str(path), str(third)])


def run_road(status=0, words=(), **variables):
    """Run the script and return what it prints; it must exit with `status`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", str(ROAD), *words],
        env={**os.environ, "PATH": path, **{name: str(v) for name, v in variables.items()}},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == status, f"{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def test_help_names_every_variable_the_road_reads():
    used = set(re.findall(r"\$\{([A-Z_]+):", ROAD.read_text()))
    shown = run_road(words=["--help"])
    assert used >= {"DATA", "RUN", "LLM", "PROCESSES", "QUANTIZE_FLAGS"}
    assert {name for name in used if not re.search(rf"\b{name}\b", shown)} == set()
    assert "set -euo" not in shown


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PUBLISHED": "Beauty"}, "PUBLISHED=Beauty: take Instruments, Arts or Games"),
        ({"PROCESSES": "3"}, "PROCESSES=3: take 1, 2, 4, 8 or 16"),
        ({"RAW": "x", "ITEMS": "y"}, "RAW, INTERACTIONS and ITEMS"),
        ({"DATA": "/nowhere/at/all"}, "/nowhere/at/all: no such folder"),
    ],
)
def test_the_road_refuses_what_it_cannot_walk(variables, message):
    assert message in run_road(status=2, **variables)


@pytest.mark.slow
def test_the_whole_road_at_toy_size(shop, shop_items, base, tmp_path):
    interactions = load_interactions(shop, len(shop_items))
    raw = tmp_path / "downloads"  # as Amazon 2018 is published: ratings without a header, metadata
    raw.mkdir()
    with (raw / "Toys.csv").open("w", newline="") as file:
        for user, sequence in zip(interactions.users, interactions, strict=True):
            csv.writer(file).writerows(
                [f"B{item}", user, 5.0, 1_500_000_000 + time] for time, item in enumerate(sequence)
            )
    with (raw / "meta_Toys.json").open("w", encoding="utf-8") as file:
        for item in range(len(shop_items)):
            title, text = (shop_items.text(item, field) for field in ("title", "description"))
            file.write(json.dumps({"asin": f"B{item}", "title": title, "description": [text]}))
            file.write("\n")
    tasks = "seqrec=16 item2index=4 index2item=4 fusionseqrec=4 itemsearch=4 preferenceobtain=4"
    paths = [[f"<a_{item // 8}>", f"<b_{item % 8}>"] for item in range(48)]
    old = {str(item): tokens for item, tokens in enumerate([paths[1], *paths[1:]])}
    write_json(tmp_path / "index.json", old)
    run = tmp_path / "run"
    screen = run_road(
        DATA=tmp_path / "Toys",
        RAW=raw,
        PREPARE_FLAGS="--min-item-users 1",
        RUN=run,
        LLM=base,
        PROCESSES=1,
        EMBED_FLAGS="--max-tokens 128",
        QUANTIZE_FLAGS="--levels 3 --codes 8 --epochs 5 --batch-size 16 --hidden-dims 16 "
        "--latent-dim 8",
        FINETUNE_FLAGS=f"--prompts prompts/short --tasks {tasks} --epochs 1 --accumulate 1 "
        "--precision fp32 --no-gradient-checkpointing --validation-users 10 --max-text-words 12",
        GENERATE_FLAGS="--precision fp32",
        OLD_INDEX=tmp_path / "index.json",
    )
    assert row_of(screen, "published")[:2] == ["24,773", "9,923"]
    assert row_of(screen, "here")[0] == "60"
    assert [line[3] for line in screen.splitlines() if line.startswith("== ")] == list("1234567")
    assert row_of(screen, "LC-Rec (published)")[0] == "0.0706"
    runs = json.loads((run / "table3.json").read_text())["runs"]
    ways = [f"{rule}, by {what}" for rule in ("level", "trie") for what in ("item", "index")]
    assert list(runs) == ways
    assert "2 of 48 items share an index" in screen
    for label, figures in runs.items():
        assert figures["templates"] == 2, label
        for metric, mean in figures["mean"].items():
            assert figures["min"][metric] <= mean <= figures["max"][metric]
    settings = json.loads((run / "index" / "lcrec.json").read_text())["config"]
    assert settings["parity"] is True
    model = json.loads((run / "model" / "lcrec.json").read_text())["config"]
    assert (model["mode"], model["learning_rate"], model["warmup"]) == ("full", 5e-5, 0.01)
