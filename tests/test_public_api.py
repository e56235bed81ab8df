"""What `import lcrec` offers."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lcrec

TOP = Path(__file__).parents[1]


def test_every_name_is_there_and_typed():
    tree = ast.parse((TOP / "lcrec" / "__init__.py").read_text())
    typed = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert sorted(typed) == lcrec.__all__
    for name, (module, inner) in typed.items():
        value = getattr(lcrec, name)
        if name != "__version__":
            assert (value.__module__, value.__name__) == (module, inner)
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = lcrec.Recomender


def test_importing_it_loads_no_library_of_tensors():
    heavy = ["numpy", "torch", "transformers", "yaml"]
    script = f"import lcrec, sys\nassert not set(sys.modules) & set({heavy}), sorted(sys.modules)\n"
    script += "lcrec.load_data\nassert 'torch' not in sys.modules\n"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_shipped_templates_are_the_default(prompts):
    assert lcrec.PromptSet.load().content_hash == prompts.content_hash


def test_a_data_folder_is_read_at_once(shop, shop_items, split):
    data = lcrec.load_data(str(shop))
    assert data.items.title(7) == shop_items.title(7)
    assert len(data.interactions) == len(data.split.test) == 60
    assert data.split.test.targets.tolist() == split.test.targets.tolist()
    assert data.user_texts is not None
    assert data.user_texts.num_users == 60


def test_the_metrics_are_those_of_the_command(tmp_path):
    from lcrec.evaluate.__main__ import main
    from lcrec.rankings.predictions import Prediction, write_predictions

    scores = [-1.0, -2.0, -3.0]
    rows = [Prediction("ann", 1, [0, 1, 2], scores), Prediction("bob", 5, [2, 1, 0], scores)]
    write_predictions(tmp_path / "mine.jsonl", rows)
    main(["--predictions", str(tmp_path / "mine.jsonl")])
    written = json.loads((tmp_path / "mine.metrics.json").read_text())
    assert lcrec.evaluate_predictions([str(tmp_path / "mine.jsonl")]) == written
    (named,) = lcrec.evaluate_predictions([tmp_path / "mine.jsonl"], labels=["A"])["runs"]
    assert named == "A"
