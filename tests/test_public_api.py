"""What `import lcrec` offers."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lcrec
from lcrec.core.errors import InputError

TOP = Path(__file__).parents[1]


def test_every_name_is_there_and_typed():
    tree = ast.parse((TOP / "lcrec" / "__init__.py").read_text())
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*lcrec.__all__, "TYPE_CHECKING", "lazy_exports"} == set(typed)
    assert set(lcrec._HOMES) == {*lcrec.__all__} - {"__version__"}
    for name in lcrec._HOMES:
        value = getattr(lcrec, name)
        assert (value.__module__, value.__name__) == typed[name]
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = lcrec.Recomender


PACKAGES = [path.parent.name for path in sorted((TOP / "lcrec").glob("*/__init__.py"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_package_is_there(package):
    if package == "studio":
        pytest.importorskip("gradio")
    exports = importlib.import_module(f"lcrec.{package}")
    assert exports.__all__
    assert all(getattr(exports, name) is not None for name in exports.__all__)


def test_importing_it_loads_no_library_of_tensors():
    heavy = ["numpy", "torch", "transformers", "yaml"]
    script = f"import lcrec, sys\nassert not set(sys.modules) & set({heavy}), sorted(sys.modules)\n"
    script += "lcrec.load_data\nassert 'torch' not in sys.modules\n"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_windows_is_told_in_one_line():
    script = "import runpy, sys\nsys.platform, sys.argv = 'win32', ['embed', '--help']\n"
    command = [sys.executable, "-c", script + "runpy._run_module_as_main('lcrec.embed')"]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "lcrec runs on Linux and macOS, whose file locks it needs; on Windows, " in line


@pytest.mark.parametrize(("told", "is_off"), [(None, True), ("0", False), ("1", True)])
def test_libraries_report_no_use(told, is_off):
    environment = {k: v for k, v in os.environ.items() if not k.endswith(("TRACK", "TELEMETRY"))}
    environment |= {} if told is None else {"DO_NOT_TRACK": told}
    script = "import lcrec\nfrom huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY as off\n"
    command = [sys.executable, "-c", script + "print(off)"]
    result = subprocess.run(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, check=True)
    assert result.stdout.decode().strip() == str(is_off)


@pytest.mark.slow
def test_an_adapter_is_made_without_a_word():
    script = """
import lcrec
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
get_peft_model(LlamaForCausalLM(shape), LoraConfig(target_modules=["q_proj"]))
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
    assert "Warning" not in result.stderr


def test_data_and_templates_are_read_at_once(shop, shop_items, split, prompts):
    data = lcrec.load_data(str(shop))
    assert data.items.title(7) == shop_items.title(7)
    assert len(data.interactions) == len(data.split.test) == 60
    assert data.split.test.targets.tolist() == split.test.targets.tolist()
    assert data.user_texts is not None
    assert data.user_texts.num_users == 60
    assert lcrec.PromptSet.load().content_hash == prompts.content_hash


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


def test_an_index_is_that_of_the_command(shop, tmp_path):
    from lcrec import embed, quantize

    embed.main(["--data", str(shop), "--output", str(tmp_path / "vectors"), "--lsa-dim", "16"])
    words = ["--data", shop, "--embeddings", tmp_path / "vectors", "--output", tmp_path / "index"]
    words += ["--levels", 3, "--codes", 6, "--epochs", 5, "--latent-dim", 8, "--seed", 3]
    quantize.main(list(map(str, words)))
    settings = lcrec.IndexSettings(levels=3, codes=6, epochs=5, latent_dim=8, seed=3)
    built = lcrec.build_index(np.load(tmp_path / "vectors" / "embeddings.npy"), settings)
    written = lcrec.ItemIndex.load(tmp_path / "index")
    assert built.codes.tolist() == written.codes.tolist()
    assert built.level_sizes == written.level_sizes == (6, 6, 6)
    with pytest.raises(InputError, match="48"):
        lcrec.build_index(np.eye(48), lcrec.IndexSettings(levels=2, codes=6))


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({"kind": "random"}, 48, "--kind random knows nothing"),
        ({"kind": "rq-kmeans", "collaborative_by": "letter"}, 48, "--kind rq-kmeans trains"),
        ({"kind": "rq-kmeans"}, 40, "expected 48 rows of finite"),
        ({"kind": "rq-kmeans"}, 0, "--collaborative-by: needs"),
    ],
)
def test_an_index_does_not_pass_over_what_purchases_say(settings, rows, message):
    if not rows:
        settings = settings | {"collaborative_by": "letter"}
    with pytest.raises(InputError, match=message):
        lcrec.build_index(
            np.eye(48),
            lcrec.IndexSettings(**settings),
            collaborative=np.ones((rows, 4), dtype=np.float32) if rows else None,
        )


def test_fine_tuning_returns_the_checkpoint(shop, index_folder, base, tmp_path):
    small = {"tasks": ["seqrec=16"], "epochs": 1, "max_history": 3, "validation_users": 10}
    config = lcrec.FinetuneConfig(
        data=shop, index=index_folder, base=str(base), output=tmp_path / "model", **small
    )
    folder = lcrec.fine_tune(config)
    assert folder == tmp_path / "model"
    data = lcrec.load_data(shop)
    ranking = lcrec.Recommender.from_pretrained(folder).recommend(data.split.test.histories[:2], 5)
    assert ranking.items.shape == (2, 5)
