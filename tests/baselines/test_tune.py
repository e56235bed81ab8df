"""Tuning: every cell of the grid, on validation alone, and no cell twice."""

import json
import shlex

import pytest
from planted import write_data

from lcrec.baselines import __main__ as command
from lcrec.baselines.base import METHODS
from lcrec.baselines.commands import tune
from lcrec.baselines.methods.closed_form import Cooccurrence, ItemKNN
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.rankings.evaluation import evaluate_files
from lcrec.rankings.predictions import DivergedError

# Item 4 follows item 1 and item 5 follows item 2, for whoever is asked on validation.
SHOP = {f"u{user}": [0, 1 + user % 2, 4 + user % 2, 3, 6] for user in range(6)}
SHOP |= {f"v{user}": [3, 1 + user % 2, 4 + user % 2, 6] for user in range(6)}
GRID = {"neighbours": (1, 20), "history_decay": (0.5, 1.0)}


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr(ItemKNN.Settings, "grid", GRID)


@pytest.fixture
def shop(tmp_path):
    return write_data(tmp_path / "Shop", SHOP)


def run(shop, tmp_path, *argv):
    output = tmp_path / "tuned"
    command.main(["tune", "itemknn", "--data", str(shop), "--output", str(output), *argv])
    return json.loads((output / "tune.json").read_text())


def test_the_best_cell_is_what_the_command_finds_on_validation(shop, tmp_path, capsys):
    record = run(shop, tmp_path, "--shrink", "1.5")
    screen = capsys.readouterr().out
    assert len(record["cells"]) == 4
    scores = [row["NDCG@10"] for row in record["cells"]]
    assert scores == sorted(scores, reverse=True)
    assert record["best"] == record["cells"][0]
    assert scores[0] > scores[-1]
    assert record["command"] in screen
    for row in record["cells"]:
        assert f"{row['NDCG@10']:.4f}" in screen

    words = shlex.split(record["command"])
    assert words[:3] == ["python", "-m", "lcrec.baselines"]
    best = record["best"]["settings"]
    assert words[words.index("--shrink") + 1] == "1.5"
    assert words[words.index("--neighbours") + 1] == str(best["neighbours"])
    command.main([*words[3:], "--split", "valid"])
    output = words[words.index("--output") + 1]
    overall = evaluate_files({"best": tmp_path / output}, seed=0)["runs"]["best"]["overall"]
    assert overall["NDCG@10"]["mean"] == pytest.approx(record["best"]["NDCG@10"], abs=1e-6)
    assert overall["HR@10"]["mean"] == pytest.approx(record["best"]["HR@10"], abs=1e-6)


def test_what_was_done_is_not_done_again(shop, tmp_path, monkeypatch):
    fitted = []
    fit = ItemKNN.fit

    def count(self, data):
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append(self.settings)
        fit(self, data)

    monkeypatch.setattr(ItemKNN, "fit", count)
    with pytest.raises(KeyboardInterrupt):
        run(shop, tmp_path)
    assert not (tmp_path / "tuned" / "tune.json").exists()
    monkeypatch.setattr(ItemKNN, "fit", lambda self, data: (fitted.append(0), fit(self, data)))
    first = run(shop, tmp_path)
    assert len(fitted) == 4  # the one that was left
    assert run(shop, tmp_path) == first
    assert len(fitted) == 4
    run(shop, tmp_path, "--shrink", "2")  # other settings: all anew
    assert len(fitted) == 8
    (shop / "Shop.inter.json").write_text(json.dumps({**SHOP, "w": [1, 4, 3]}))
    run(shop, tmp_path, "--shrink", "2")  # other data: all anew
    assert len(fitted) == 12


def test_the_test_items_are_never_looked_at(shop, tmp_path):
    """Other test items leave every figure as it is."""
    before = run(shop, tmp_path)["cells"]
    changed = {user: [*items[:-1], 0] for user, items in SHOP.items()}
    assert changed != SHOP
    (shop / "Shop.inter.json").write_text(json.dumps({**changed, "u0": [*SHOP["u0"][:-1], 6]}))
    after = run(shop, tmp_path)["cells"]
    strip = [
        [(row["settings"], row["NDCG@10"], row["HR@10"]) for row in rows]
        for rows in (before, after)
    ]
    assert strip[0] == strip[1]


def test_a_cell_that_fails_does_not_stop_the_rest(shop, tmp_path, monkeypatch, capsys):
    fit = ItemKNN.fit

    def fail(self, data):
        if self.settings.neighbours == 1:
            raise DivergedError("the loss of epoch 1 is nan")
        fit(self, data)

    monkeypatch.setattr(ItemKNN, "fit", fail)
    cells = run(shop, tmp_path)["cells"]
    assert [row["NDCG@10"] is None for row in cells] == [False, False, True, True]
    assert "failed" in capsys.readouterr().out
    monkeypatch.setattr(ItemKNN.Settings, "grid", {"neighbours": (1,)})
    with pytest.raises(InputError, match="every cell failed; the loss of epoch 1 is nan"):
        run(shop, tmp_path)


def test_where_the_other_settings_start_from(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(ItemKNN.Settings, "tuned", {"shrink": 7.0})
    cell = tmp_path / "tuned" / "neighbours=1,history_decay=0.5"
    run(shop, tmp_path)
    assert read_provenance(cell)["config"]["shrink"] == 0.0
    record = run(shop, tmp_path, "--tuned")
    assert read_provenance(cell)["config"]["shrink"] == 7.0
    assert "--shrink 7.0" in record["command"]


def test_what_it_refuses(shop, tmp_path, monkeypatch, capsys):
    data, output = ["--data", str(shop)], ["--output", str(tmp_path / "t")]
    cases = [
        (["itemkn", *data, *output], "did you mean 'itemknn'"),
        ([*data, *output], "the method comes first"),
        (["popularity", *data, *output], "popularity has nothing to tune; those that do: .*ease"),
        (["itemknn", *data, *output, "--neighbours", "3"], "unknown argument '--neighbours'"),
        (["tiger", *data, *output], "tiger: --index DIR is needed"),
    ]
    for argv, message in cases:
        with pytest.raises(InputError, match=message):
            tune.main(argv)
    assert not (tmp_path / "t").exists()
    tune.main(["--help"])
    assert "itemknn" in capsys.readouterr().out
    assert Cooccurrence.Settings.grid == {}


def test_what_the_settings_do_without_need_not_be_given(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["tssr"], "grid", {"learning_rate": (1e-3,)})
    words = ["--data", str(shop), "--output", str(tmp_path / "tuned"), "--id-only"]
    command.main(["tune", "tssr", *words, "--dim", "8", "--epochs", "1"])
    assert len(json.loads((tmp_path / "tuned" / "tune.json").read_text())["cells"]) == 1
