"""The whole road by the commands a user types, from nothing to a comparison; then again."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOP = Path(__file__).parents[1]
# One process, said in full: accelerate would otherwise look for a configuration, and warn.
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
BASELINES = ("popularity", "cooccurrence")


def stages(top):
    """Return each stage's name and arguments, in order; everything lies below `top`."""
    data, files = top / "data", top / "predictions"
    base, embeddings, index, model = (top / n for n in ("base", "embeddings", "index", "model"))
    shape = ["--vocab-size", 400, "--hidden-size", 32, "--layers", 1, "--epochs", 0.5]
    small = ["--tasks", "seqrec=40", "item2index=10", "index2item=10", "--epochs", 2]
    small += ["--max-history", 3, "--max-text-words", 10, "--validation-users", 10]
    codes = ["--levels", 3, "--codes", 6, "--epochs", 5, "--hidden-dims", 16, "--latent-dim", 8]
    predictions = [files / f"{name}.jsonl" for name in ("lc-rec", *BASELINES)]
    return [
        ("synthetic", ["--output", data, "--users", 40, "--items", 50]),
        ("embed", ["--data", data, "--output", embeddings, "--lsa-dim", 16]),
        ("quantize", ["--data", data, "--embeddings", embeddings, "--output", index, *codes]),
        ("tinylm", ["--data", data, "--output", base, *shape]),
        ("finetune", ["--data", data, "--index", index, "--base", base, "--output", model, *small]),
        ("generate", ["--model", model, "--data", data, "--output", predictions[0]]),
        *(
            ("baselines", [name, "--data", data, "--output", path])
            for name, path in zip(BASELINES, predictions[1:], strict=True)
        ),
        ("evaluate", ["--predictions", *predictions, "--output", top / "comparison.json"]),
    ]


@pytest.fixture(scope="module")
def road(run_command, tmp_path_factory):
    """Walk the road once; return its folder and what each stage printed."""
    top = tmp_path_factory.mktemp("road")
    printed = []
    for name, words in stages(top):
        start = [*LAUNCH, "recipes/finetune.py"] if name == "finetune" else ["-m", f"lcrec.{name}"]
        printed.append((name, run_command(*start, *words)))
    return top, printed


def test_every_stage_says_what_it_made_from_what_and_what_comes_next(road):
    top, printed = road
    for name, out in printed:
        assert str(top) in out
        assert "Traceback" not in out
        if name != "evaluate":
            assert "Next: " in out, name
    assert "in 1 process(es)" in dict(printed)["finetune"]
    assert "lc-rec" in dict(printed)["evaluate"]
    top, _ = road
    inputs = {
        "embeddings": {"item"},
        "index": {"item", "embeddings"},
        "base": {"item"},
        "model": {"item", "inter", "user", "index", "base"},
    }
    for folder, expected in inputs.items():
        assert set(json.loads((top / folder / "lcrec.json").read_text())["inputs"]) == expected
    partial = [path for path in top.rglob("*") if path.name.endswith((".partial", ".replaced"))]
    assert not partial


def test_again_everything_is_up_to_date(road, load_command, monkeypatch, capsys):
    top, _ = road
    monkeypatch.chdir(TOP)
    before = {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}
    for name, words in stages(top):
        load_command(f"lcrec.{name}").main(list(map(str, words)))
        out = capsys.readouterr().out
        assert name == "evaluate" or "is up to date" in out or "nothing to do" in out, name
    assert {path: path.read_bytes() for path in top.rglob("*") if path.is_file()} == before
