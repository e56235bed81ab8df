"""The experiment on items that join after the training, on a toy shop, stage by stage."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lcrec import embed
from lcrec.core.artifacts import read_array, read_json
from lcrec.core.errors import InputError
from lcrec.data.folder import load_interactions, load_items
from lcrec.index.item_index import ItemIndex
from lcrec.rankings.predictions import read_predictions

COLD = 12  # of 48 items


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("scripts/cold_items.py")


@pytest.fixture(scope="module")
def words(shop, base, tmp_path_factory):
    """The command line without `--output`."""
    folder = tmp_path_factory.mktemp("cold")
    embed.main(["--data", str(shop), "--output", str(folder / "embeddings"), "--lsa-dim", "16"])
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "tasks: [seqrec=24]\nepochs: 1\nmax_history: 4\nmax_text_words: 10\nvalidation_users: 5\n"
    )
    flags = {"data": shop, "embeddings": folder / "embeddings", "base": base, "recipe": recipe}
    flags |= {"share": COLD / 48, "levels": 3, "codes": 5}
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def in_process(script, recipe):
    """Run the stages in this process, which has loaded the libraries already; keep their names."""
    ran = []

    def run(command, cwd, check):
        assert command[0] == sys.executable
        assert check
        if command[1] == "-m":
            name, arguments = command[2], command[3:]
            package = f"{name}.__main__" if name == "lcrec.generate" else name
            importlib.import_module(package).main(arguments)
        else:
            name, arguments = command[1], command[2:]
            assert (cwd / name).exists()
            recipe.main(arguments)
        ran.append(name)

    script.subprocess = SimpleNamespace(run=run)
    return ran


@pytest.fixture(scope="module")
def run_folder(script, words, in_process, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    script.main([*words, "--output", str(folder)])
    return folder


def test_the_cold_items_were_never_seen(run_folder, shop, words):
    warm, grown = load_items(run_folder / "warm"), load_items(run_folder / "grown")
    assert (len(warm), len(grown)) == (48 - COLD, 48)
    assert grown.fields[: len(warm)] == warm.fields
    originals = [sorted(fields.items()) for fields in load_items(shop).fields]
    assert sorted(originals) == sorted(sorted(fields.items()) for fields in grown.fields)
    assert len(load_interactions(run_folder / "warm", len(warm))) <= 60  # which checks every id
    trained = read_json(run_folder / "model" / "lcrec.json")["inputs"]["item"]["path"]
    assert trained == str(run_folder / "warm" / "Shop.item.json")
    assert len(ItemIndex.load(run_folder / "model")) == 48 - COLD
    source = read_array(Path(words[3]) / "embeddings.npy")
    sorted_rows = read_array(run_folder / "embeddings" / "embeddings.npy")
    old, new = load_items(shop).fields, load_items(run_folder / "grown").fields
    for item, fields in enumerate(new):
        np.testing.assert_array_equal(sorted_rows[item], source[old.index(fields)])
    files = sorted(run_folder.glob("*.jsonl"))
    assert len(files) == 4
    for path in files:
        predictions = read_predictions(path)
        (ranked,) = predictions.ranked.values()
        assert (predictions.targets >= 48 - COLD).all()
        assert ranked.shape == (len(predictions), 10)
        if path.stem.endswith("-cold"):
            assert (ranked >= 48 - COLD).all()
    users = read_json(run_folder / "cases.json")
    assert set(predictions.users) == set(users)


def test_again_nothing_is_made_anew_and_the_last_line_is_json(
    script, words, in_process, run_folder, capsys
):
    times = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*") if path.is_file()}
    del in_process[:]
    capsys.readouterr()
    script.main([*words, "--output", str(run_folder)])
    out = capsys.readouterr().out
    assert out.count("is up to date") == 5
    stages = ["quantize", "finetune.py", "add_items", "quantize", "generate"]
    assert [name.split("/")[-1].split("lcrec.")[-1] for name in in_process] == stages
    kept = {path: path.stat().st_mtime_ns for path in times}
    assert kept == times | {path: kept[path] for path in kept if "neighbour" in path.name}
    figures = json.loads(out.splitlines()[-1])
    assert figures["cold_items"] == COLD
    assert figures["cases"] == len(read_json(run_folder / "cases.json"))
    assert figures["chance_hr@10_among_cold"] == 10 / COLD
    for method in ("lc_rec", "nearest_neighbour"):
        among_all, among_cold = (
            figures[f"{method}_among_{among}_hr@10"] for among in ("all", "cold")
        )
        assert 0 <= among_all <= among_cold <= 1
        low, high = figures[f"{method}_among_cold_hr@10_interval"]
        assert low <= among_cold <= high


def test_other_settings_need_another_folder(script, words, run_folder, tmp_path):
    with pytest.raises(InputError, match="holds a run of other settings; choose another folder"):
        script.main([*words, "--seed", "1", "--output", str(run_folder)])
    with pytest.raises(InputError, match=r"--share 0.1 of 48 items holds 5 out; at least 11"):
        script.main([*words, "--share", "0.1", "--output", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())
