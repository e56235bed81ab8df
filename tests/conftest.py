"""What tests share: a toy shop, its item index, a tiny base model, a checkpoint trained on them.

Each is made once per session, in a temporary folder, in well under a second. Nothing heavy is
imported before a fixture that needs it is asked for.
"""

import functools
import gc
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# Before torch is imported: models this small spend their time waiting for a second thread. And no
# test may look for anything on a model hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Spark on a handful of rows: what Java would optimise for long runs costs more than it saves.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A machine busy with other work is no fault of a test. Every run draws the same examples, so that
# a change is judged by what it changes; `--hypothesis-profile explore` draws new ones.
SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("lcrec", derandomize=True, **SETTINGS)
settings.register_profile("explore", max_examples=1000, **SETTINGS)
settings.load_profile("lcrec")

TOP = Path(__file__).parents[1]
SHARED = Path(os.environ.get("LCREC_SHARED", Path(__file__).parents[2] / "shared"))
LEVEL_SIZES = (4, 4, 5)  # 80 paths for 48 items, which leave <a_3> and <c_4> unused


@pytest.fixture(scope="session")
def real_data():
    """The folder of the public data sets."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the public data sets are absent: name their folder in LCREC_SHARED")
    return SHARED / "data"


@pytest.fixture(scope="session")
def prompts():
    from lcrec.prompts.prompt_set import PromptSet

    return PromptSet.load(TOP / "prompts")


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A data folder with 60 users and 48 items."""
    from lcrec import synthetic

    folder = tmp_path_factory.mktemp("data") / "shop"
    synthetic.main(["--output", str(folder), "--users", "60", "--items", "48"])
    return folder


@pytest.fixture(scope="session")
def shop_items(shop):
    from lcrec.data.folder import load_items

    return load_items(shop)


@pytest.fixture(scope="session")
def split(shop, shop_items):
    from lcrec.data.folder import load_interactions
    from lcrec.data.splits import leave_one_out

    return leave_one_out(load_interactions(shop, len(shop_items)))


@pytest.fixture(scope="session")
def index():
    """Item i has the base-4 digits of i as its codes."""
    from lcrec.index.item_index import ItemIndex

    codes = np.stack(np.unravel_index(np.arange(48), (4, 4, 4)), axis=1)
    return ItemIndex(codes.astype(np.int32), LEVEL_SIZES)


@pytest.fixture
def fast_bf16(monkeypatch):
    """A device that multiplies four times as fast in bf16; toy models count as large ones."""
    import torch

    monkeypatch.setattr("lcrec.core.device.LARGE_MODEL", 0)
    monkeypatch.setattr(
        "lcrec.core.device._product_seconds", lambda _, dtype: 4 if dtype == torch.float32 else 1
    )


@pytest.fixture
def undrawn(monkeypatch):
    """Pages of an index have no pictures, which take longer than all the rest of a toy index."""
    from markupsafe import Markup

    monkeypatch.setattr("lcrec.index.page.draw_svg", lambda draw, description: Markup("<svg />"))


@pytest.fixture
def killed_after(monkeypatch):
    """A function that lets the RQ-VAE save after every epoch, and kills it after one or none."""
    from lcrec.index import rqvae_training

    monkeypatch.setattr(rqvae_training, "SECONDS_BETWEEN_SAVES", 0)
    save = rqvae_training.save_state

    def set_up(epoch):
        def save_and_die(path, call, progress, *rest):
            save(path, call, progress, *rest)
            if progress.epoch == epoch:
                raise KeyboardInterrupt

        monkeypatch.setattr(rqvae_training, "save_state", save_and_die)

    return set_up


@pytest.fixture(scope="session")
def index_folder(index, shop, tmp_path_factory):
    """The index as `lcrec.quantize` would leave it."""
    from lcrec.core.artifacts import find_data
    from lcrec.core.provenance import write_provenance

    folder = tmp_path_factory.mktemp("index")
    index.save(folder)
    inputs = {"item": find_data(shop).item}
    write_provenance(
        folder, "python -m lcrec.quantize", {}, inputs, level_sizes=list(index.level_sizes)
    )
    return folder


@pytest.fixture(scope="session")
def grown(shop, index, tmp_path_factory):
    """The shop with two more items in data/, and the index that adds them in index/."""
    from lcrec import add_items
    from lcrec.core.artifacts import find_data, write_json
    from lcrec.core.provenance import write_provenance
    from lcrec.index.item_index import ItemIndex

    folder = tmp_path_factory.mktemp("grown")
    new = {"48": {"title": "Brand new desk"}, "49": {"title": "Brand new lamp"}}
    write_json(folder / "new.json", new)
    words = ["--data", shop, "--add", folder / "new.json", "--output", folder / "data"]
    add_items.main(list(map(str, words)))
    codes = np.concatenate([index.codes, [[0, 0, 4], [3, 3, 3]]]).astype(np.int32)
    ItemIndex(codes, index.level_sizes).save(folder / "index")
    inputs = {"item": find_data(folder / "data").item}
    write_provenance(
        folder / "index", "python -m lcrec.quantize", {}, inputs, level_sizes=[4, 4, 5]
    )
    return folder


@pytest.fixture(scope="session")
def base(shop_items, prompts, tmp_path_factory):
    """A folder with a random Qwen3 (one layer, width 32, tied head) and the shop's tokenizer."""
    import torch

    from lcrec.tinylm import build_model, collect_corpus, train_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(collect_corpus(shop_items, prompts, max_words=20), 500)
    torch.manual_seed(0)
    # Far from uniform, so that rankings have no ties.
    model = build_model(tokenizer, hidden_size=32, layers=1, context=512)
    for weight in model.parameters():
        weight.data.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_llama(base):
    """A function that makes a random Llama of one layer with the vocabulary of `base`."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    def make(*, tied, width=32):
        torch.manual_seed(0)
        vocabulary = AutoConfig.from_pretrained(base).vocab_size
        sizes = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width}
        heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": tied}
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads))

    return make


@pytest.fixture(scope="session")
def load_script():
    """A function that imports a file outside the package: `load_script("scripts/x.py")`."""

    @functools.cache
    def load(name):
        path = TOP / name
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # where its dataclasses look for their own names
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def recipe():
    """The module `lcrec.finetune`."""
    from lcrec import finetune as module

    # Every run collects garbage: without this, among all objects of the libraries just imported.
    # Thawed in the end, or DuckDB would list all its objects as leaked.
    gc.freeze()
    yield module
    gc.unfreeze()


@pytest.fixture(scope="session")
def finetune_words(shop, index_folder, base):
    """Return the recipe's command line: `finetune_words(output, "--epochs", 3)`.

    The default is 2 epochs of 4 updates, each with a validation on 20 users.
    """
    defaults = {
        "--data": shop, "--index": index_folder, "--base": base, "--prompts": TOP / "prompts",
        "--epochs": 2, "--learning-rate": 0.01, "--max-history": 4, "--max-text-words": 12,
        "--validation-users": 20,
    }  # fmt: skip

    def words(output, *options):
        settings = {**defaults, **dict(zip(options[::2], options[1::2], strict=True))}
        flags = [str(word) for setting in settings.items() for word in setting]
        return [*flags, "--output", str(output), "--tasks", "seqrec=24", "item2index=8"]

    return words


@pytest.fixture(scope="session")
def finetune(recipe, finetune_words):
    """Run the recipe in this process: `finetune(output, "--epochs", 3)` returns `output`."""

    def run(output, *options):
        recipe.main(finetune_words(output, *options))
        return output

    return run


@pytest.fixture(scope="session")
def checkpoint(finetune, tmp_path_factory):
    """A LoRA checkpoint after 8 updates. Tests leave it as it is."""
    return finetune(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def unloaded(monkeypatch):
    """No weights are loaded."""

    def refuse(*arguments, **options):
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr("lcrec.generate.recommender.load_checkpoint", refuse)
    monkeypatch.setattr("lcrec.reinforce.start.load_checkpoint", refuse)


@pytest.fixture(scope="session")
def fused(checkpoint, shop, tmp_path_factory):
    """A function that fuses rankings of the shop and returns the file.

    `fused("score")` takes the name of `--how` and further flags; the rankings of either split lie
    beside it, `model.test.jsonl` and `counted.test.jsonl`.
    """
    from lcrec.baselines.__main__ import main as baselines
    from lcrec.generate.__main__ import main as generate

    folder = tmp_path_factory.mktemp("fusion")
    files = {}
    for split in ("valid", "test"):
        files[split] = [str(folder / f"{name}.{split}.jsonl") for name in ("model", "counted")]
        words = ["--data", str(shop), "--split", split, "--output"]
        generate(["--model", str(checkpoint), *words, files[split][0]])
        baselines(["cooccurrence", *words, files[split][1]])

    def fuse(how, *flags, turned=False):
        order = slice(None, None, -1 if turned else 1)
        words = [*files["test"][order], "--how", how, "--valid", *files["valid"][order]]
        words += ["--data", str(shop)] if how == "adaptive" else []
        output = folder / f"{how}{turned:d}{'-'.join(flags)}.jsonl"
        baselines(["fuse", *words, "--output", str(output), *flags])
        return output

    return fuse


@pytest.fixture(scope="session")
def run_command():
    """Run a command in the top folder and return what it prints; it must exit with `status`."""

    def run(*words, status=0, **environment):
        command = [sys.executable, *map(str, words)]
        result = subprocess.run(
            command, cwd=TOP, env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=900,
        )  # fmt: skip
        assert result.returncode == status, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    return run


@pytest.fixture
def masks_of_validation(monkeypatch):
    """Collect, validation by validation, whether a baseline's history items were masked."""
    from lcrec.baselines.runs import ranking

    seen, original = [], ranking.validate

    def validate(method, cases, data):
        seen.append(data.exclude_history)
        return original(method, cases, data)

    monkeypatch.setattr(ranking, "validate", validate)
    return seen
