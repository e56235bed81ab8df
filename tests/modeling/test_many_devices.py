"""The files in recipes/accelerate, and training with the weights shared out over processes."""

import re

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from launching import FILES, fsdp2_environment, launch
from safetensors.torch import load_file

from lcrec.core.provenance import read_provenance
from lcrec.generate.recommender import Recommender
from lcrec.modeling.base import load_base
from lcrec.rankings.metrics import ndcg_at_k


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_what_it_says(file):
    args, environment = launch(file)
    expected = {
        "single": (1, 1, False, None, None), "multi_gpu": (1, 2, True, None, None),
        "multi_node": (2, 16, True, None, None), "fsdp2": (1, 2, False, "2", None),
        "zero2": (1, 2, False, None, "2"), "zero3": (1, 2, False, None, "3"),
    }[file.stem]  # fmt: skip
    found = (
        args.num_machines,
        args.num_processes,
        bool(args.multi_gpu),
        environment.get("FSDP_VERSION"),
        environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"),
    )
    assert found == expected
    # The recipe decides the precision; nothing here may.
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    # Accelerate drops what it does not know without a word, so every key must be a flag or field.
    config = load_config_from_file(str(file))
    known = set(vars(args)) | set(vars(config))
    for line in file.read_text().splitlines():
        if key := re.match(r"\s*(\w+):", line):
            assert key[1] in known, key[1]
    assert f"--config_file recipes/accelerate/{file.name}" in file.read_text()


@pytest.fixture(scope="module")
def bases(base, tmp_path_factory):
    """Two-layer bases with a tied and an untied head."""
    folders = {}
    for kind in ("tied", "untied"):
        model, tokenizer = load_base(str(base))
        torch.manual_seed(0)
        config = model.config
        config.num_hidden_layers = 2
        config.layer_types = config.layer_types * 2
        config.tie_word_embeddings = kind == "tied"
        folders[kind] = tmp_path_factory.mktemp(kind)
        type(model)(config).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), [("tied", "lora"), ("untied", "lora"), ("tied", "full")])
def test_weights_shared_out_train_as_whole_ones(
    finetune, finetune_words, run_command, split, tmp_path, bases, kind, mode
):
    options = ("--epochs", 2, "--lora-dropout", 0, "--validation-users", 15, "--mode", mode)
    options += ("--base", bases[kind], "--batch-size", 4)
    environment = fsdp2_environment()
    shared = tmp_path / "shared"
    command = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "tests/fsdp_worker.py")
    command += (*finetune_words(shared, *options),)
    if (kind, mode) != ("untied", "lora"):  # ended and resumed, which loses no process's share
        run_command(*command, status=1, STOP="1", **environment)
        (kept,) = (shared / ".training").glob("checkpoint-*")
        if mode == "lora":  # adapters, and the embedding under the name of the tied head
            saved = torch.load(kept / "pytorch_model_fsdp.bin")
            frozen = [name for name in saved if "lora_" not in name and "token_adapter" not in name]
            assert frozen == []
            assert any("lora_" in name for name in saved)
    out = run_command(*command, **environment)
    assert "in 2 process(es)" in out
    alone = finetune(tmp_path / "alone", *options, "--accumulate", 2)
    (name,) = [file.name for file in alone.glob("*.safetensors")]
    found, expected = load_file(shared / name), load_file(alone / name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=1e-4), key
    # It loads in one process, and ranks as it did in training.
    held_out = split.valid.sample(15, 42)
    ranked = Recommender.from_pretrained(shared).recommend(held_out.histories, 20).items
    best = ndcg_at_k(ranked, held_out.targets, 10).mean()
    assert read_provenance(shared)["validation_ndcg_at_10"] == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_every_share_comes_back_to_its_process(finetune_words, run_command, tmp_path, bases, mode):
    """Filled with the number of its process before it is saved, it holds it when loaded again."""
    options = ("--epochs", 2, "--validation-users", 15, "--mode", mode, "--lora-dropout", 0)
    environment = fsdp2_environment()
    command = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "tests/shares_worker.py")
    words = (*options, "--base", bases["tied"], "--batch-size", 4)
    command += (*finetune_words(tmp_path / "shared", *words),)
    run_command(*command, status=1, STOP="1", **environment)
    run_command(*command, status=1, REPORT=str(tmp_path), **environment)
    for number in (1, 2):
        line = (tmp_path / str(number)).read_text()
        found = re.match(rf"process {number}: (\d+) shares of (.*), 0 wrong", line)
        assert found, line
        assert found[2] == "['exp_avg', 'exp_avg_sq', 'weight']"
        assert int(found[1]) >= 3 * 10


@pytest.mark.parametrize(
    "flag", [("--quantize", "4bit"), ("--rows-learning-rate", "0.1"), ("--ema", "0.9")]
)
def test_what_cannot_be_shared_out(recipe, finetune_words, tmp_path, monkeypatch, flag):
    from lcrec.core.errors import InputError

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=rf"{' '.join(flag)}.*multi_gpu"):
        recipe.main(finetune_words(tmp_path / "model", *flag))
