"""The tables of small trained models, on a toy shop, stage by stage."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from trainings import weights

from lcrec import embed


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("scripts/ablation.py")


@pytest.fixture(scope="module")
def words(shop, base, tmp_path_factory):
    """The command line of the table of a given base, and where it keeps what it makes."""
    folder = tmp_path_factory.mktemp("ablation")
    embed.main(["--data", str(shop), "--output", str(folder / "embeddings"), "--lsa-dim", "16"])
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "mode: full\ntasks: [seqrec=24]\nepochs: 1\nmax_history: 4\nmax_text_words: 10\n"
        "validation_users: 5\nrows_learning_rate: 3.0e-3\n"
    )
    flags = {"table": "pretrained", "data": shop, "embeddings": folder / "embeddings"}
    flags |= {"base": base, "recipe": recipe, "run": folder / "run", "seeds": 1}
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture
def ran(script, recipe, monkeypatch):
    """Run the stages in this process, which has loaded the libraries already; keep their names."""
    names = []

    def stage(name, *arguments):
        arguments = [str(argument) for argument in arguments]
        if name == "recipes/finetune.py":
            recipe.main(arguments)
        else:
            package = f"lcrec.{name}"
            if name in ("baselines", "evaluate", "generate"):
                package += ".__main__"
            importlib.import_module(package).main(arguments)
        names.append(name)
        return 1.0, 2.0

    monkeypatch.setattr(script, "stage", stage)
    return names


@pytest.mark.slow
def test_a_pretrained_base_stands_beside_its_shape_with_random_weights(
    script, words, ran, base, capsys
):
    script.main(words)
    cells = script.TABLES["pretrained"]
    assert ran.count("recipes/finetune.py") == len(cells)
    assert "tinylm" not in ran
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["label"] for row in rows] == [cell.label for cell in cells]
    everything, adapters, new_rows = (
        next(row["parameters"] for row in rows if row["label"] == label)
        for label in ("as pretrained", "LoRA and new rows", "new rows only")
    )
    assert new_rows < adapters < everything
    for row in rows:
        low, high = row["hr@10 range"]
        assert low <= row["hr@10"] <= high
        assert low < high  # over users, where there is one seed

    table = Path(words[words.index("--run") + 1], "pretrained")
    drawn, known = weights(table / "weights-drawn-at-random-1" / "base"), weights(base)
    assert drawn.keys() == known.keys()
    (name,) = (name for name in drawn if name.endswith("q_proj.weight"))
    assert drawn[name].shape == known[name].shape
    assert not torch.equal(drawn[name], known[name])

    del ran[:]
    (table / "as-pretrained-1" / "cell.json").unlink()  # killed before it was noted
    script.main(words)
    assert ran.count("recipes/finetune.py") == 1  # which finds its checkpoint up to date
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == rows
