"""The recipe: what it trains and keeps; runs killed, resumed, stopped early, refused, repeated."""

import dataclasses
import functools
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from trainings import Killed, assert_same_weights, kill_in_step, weights
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lcrec.core.artifacts import find_data, read_json, write_json
from lcrec.core.config import parse_config
from lcrec.core.errors import InputError
from lcrec.core.outputs import SHARED_FOLDER, claim
from lcrec.core.provenance import read_provenance, write_provenance
from lcrec.data.folder import load_items
from lcrec.finetune import describe_end
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.modeling import checkpoint as checkpoint_module
from lcrec.modeling.averaging import RunningAverage
from lcrec.modeling.checkpoint import load_checkpoint
from lcrec.modeling.finetuning import count_epochs, draw_training_rows, load_model
from lcrec.modeling.recipe import STAGE, TrainingSettings, load_inputs
from lcrec.modeling.run_folder import latest_checkpoint
from lcrec.modeling.trainer import RecommenderTrainer
from lcrec.rankings.metrics import ndcg_at_k


@pytest.fixture
def kill_at(monkeypatch):
    """Make the run die in the given update, counted from 1 over all runs of this test."""
    return functools.partial(kill_in_step, monkeypatch, RecommenderTrainer)


@pytest.fixture
def script_validation(monkeypatch):
    """Let validation see a planned NDCG@10 and loss; returns the weights at each validation."""

    def plan(places, losses=None):
        """Put the target at these places (from 1, 0 for nowhere), one per validation.

        The losses are those given, one per validation, or never change.
        """
        seen = []
        loop = RecommenderTrainer.evaluation_loop

        def evaluate(self, *args, **kwargs):
            output = loop(self, *args, **kwargs)
            output.metrics["eval_loss"] = losses[len(seen) - 1] if losses else 1.0
            return output

        def rank(self):
            place = places[len(seen)]
            model = self.accelerator.unwrap_model(self.model)
            seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
            targets = self.ranking.cases.targets
            ranked = np.full((len(targets), 20), -1, dtype=np.int64)
            if place:
                ranked[:, place - 1] = targets
            return ranked

        monkeypatch.setattr(RecommenderTrainer, "rank", rank)
        monkeypatch.setattr(RecommenderTrainer, "evaluation_loop", evaluate)
        return seen

    return plan


def test_a_finished_run(checkpoint, prompts):
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"adapter_model.safetensors", "index.json", "prompts", "recipe.yaml"}
    assert ".training" not in names
    facts = read_provenance(checkpoint)
    assert facts["max_history"] == 4
    assert facts["config"]["tasks"] == ["seqrec=24", "item2index=8"]
    assert facts["config"]["prompts"] == prompts.hash_of(["seqrec", "item2index"])
    assert set(facts["inputs"]) == {"item", "inter", "index", "user", "base"}


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_live_and_reloaded_model_rank_alike(finetune, tmp_path, monkeypatch, split, mode):
    live = []
    train = RecommenderTrainer.train

    def remember(self, **kwargs):
        result = train(self, **kwargs)
        live.append(self.rank())
        return result

    monkeypatch.setattr(RecommenderTrainer, "train", remember)
    output = finetune(tmp_path / "model", "--mode", mode, "--validation-users", 60)
    recommender = Recommender.from_pretrained(output)
    assert (recommender.recommend(split.valid.histories, 20).items == live[0]).all()
    ndcg = ndcg_at_k(live[0], split.valid.targets, 10).mean()
    assert ndcg == pytest.approx(read_provenance(output)["validation_ndcg_at_10"])
    assert (mode == "full") == (output / "model.safetensors").exists()


def test_training_lowers_the_loss_and_learns(finetune, tmp_path, monkeypatch):
    losses = []
    loop = RecommenderTrainer.evaluation_loop

    def remember(self, *args, **kwargs):
        output = loop(self, *args, **kwargs)
        losses.append(output.metrics["eval_loss"])
        return output

    monkeypatch.setattr(RecommenderTrainer, "evaluation_loop", remember)
    finetune(tmp_path / "model", "--epochs", 12, "--mode", "full", "--patience", 99)
    assert len(losses) == 12
    assert min(losses) < losses[0] - 1


def test_the_seed_matters(finetune, checkpoint, tmp_path):
    other = weights(finetune(tmp_path / "other", "--seed", 1))
    assert any(not torch.equal(value, other[name]) for name, value in weights(checkpoint).items())


def test_rows_may_start_from_noise(finetune, checkpoint, index, tmp_path):
    finetune(tmp_path / "noise", "--rows", "random", "--learning-rate", 1e-9)
    finetune(tmp_path / "text", "--learning-rate", 1e-9)
    name = next(name for name in weights(checkpoint) if "token_adapter" in name)
    noise, text = (weights(tmp_path / rows)[name] for rows in ("noise", "text"))
    # Only the codes that no item uses have no text to start from.
    same = (noise - text).abs().max(dim=1).values < 1e-6
    assert [t for t, s in zip(index.vocabulary, same, strict=True) if s] == ["<a_3>", "<c_4>"]


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "bf16"),
        ("--mode", "full", "--precision", "bf16"),
        ("--mode", "rows"),
        ("--quantize", "8bit"),
        ("--max-tokens-per-batch", 60),
        ("--dropout", 0.2),
        ("--batch-size", 3, "--accumulate", 2),
        ("--validate-every", 50),
        ("--epochs", 1, "--validate-every", 0.3),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_other_settings(finetune, tmp_path, options):
    output = finetune(tmp_path / "model", *options)
    assert read_provenance(output)["validation_ndcg_at_10"] >= 0
    ranking = Recommender.from_pretrained(output).recommend([[1, 2]], 48)
    assert sorted(ranking.items[0].tolist()) == list(range(48))


def test_kinds_of_lora(recipe, finetune_words, tmp_path):
    output = tmp_path / "model"
    recipe.main([*finetune_words(output, "--epochs", 1), "--dora", "--rslora"])
    config = read_json(output / "adapter_config.json")
    assert (config["use_dora"], config["use_rslora"]) == (True, True)
    Recommender.from_pretrained(output)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "rows"])
def test_a_base_in_four_bits(finetune, tmp_path, base, make_llama, mode):
    """Two epochs with validations between them: the packed weights serve both."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    make_llama(tied=False, width=64).save_pretrained(folder)
    output = finetune(tmp_path / "model", "--base", folder, "--quantize", "4bit", "--mode", mode)
    checkpoint = load_checkpoint(output)
    assert checkpoint.facts.quantize == "4bit"
    packed = [m for m in checkpoint.model.modules() if type(m) is bitsandbytes.nn.Linear4bit]
    assert len(packed) == 7  # every linear layer of the block, the head not
    ranking = Recommender.from_pretrained(output).recommend([[1, 2]], 48)
    assert sorted(ranking.items[0].tolist()) == list(range(48))


def test_rows_may_start_from_a_stage_that_trained_them_alone(finetune, tmp_path, index, base):
    first = finetune(tmp_path / "rows", "--mode", "rows", "--epochs", 1)
    second = finetune(tmp_path / "model", "--rows", first, "--epochs", 1, "--learning-rate", 1e-12)
    (trained,) = (v for n, v in weights(first).items() if "trainable_tokens_delta" in n)
    (started,) = (v for n, v in weights(second).items() if "trainable_tokens_delta" in n)
    assert torch.allclose(trained, started, atol=1e-6)
    assert set(weights(first)) < set(weights(second))
    with pytest.raises(InputError, match="--rows nowhere: expected text, codebook, random"):
        finetune(tmp_path / "other", "--rows", "nowhere")
    with pytest.raises(InputError, match=f"--rows {tmp_path}: not a checkpoint of lcrec"):
        finetune(tmp_path / "other", "--rows", tmp_path)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_item_rows_may_learn_at_a_rate_of_their_own(finetune, tmp_path, mode, index):
    options = ("--epochs", 1, "--mode", mode, "--weight-decay", 0, "--learning-rate", 1e-9)
    still, moved = (
        weights(finetune(tmp_path / str(len(rate)), *options, *rate))
        for rate in ((), ("--rows-learning-rate", 1e-2))
    )
    for name, value in moved.items():
        changed = (
            (value - still[name]).abs().flatten(1).max(1).values > 1e-4 if value.ndim > 1 else 0
        )
        if "token_adapter" in name:
            assert changed.all()
        elif "embed_tokens" in name or "lm_head" in name:  # the item tokens stand last
            new = len(index.vocabulary)
            assert changed.tolist() == [False] * (len(value) - new) + [True] * new
        else:
            torch.testing.assert_close(value, still[name], atol=1e-6, rtol=0)


def test_the_average_of_the_weights_is_validated_and_kept(finetune, tmp_path, monkeypatch):
    name = "model.norm.weight"
    averages, stepped, ranked = [], [], []
    step, rank = RunningAverage.on_step_end, RecommenderTrainer.rank

    def on_step_end(self, args, state, control, **kwargs):
        step(self, args, state, control, **kwargs)
        averages.append(self._average[name].clone())
        stepped.append(self._trained()[name].detach().clone())

    def rank_with(self):
        ranked.append(dict(self.model.named_parameters())[name].detach().clone())
        return rank(self)

    monkeypatch.setattr(RunningAverage, "on_step_end", on_step_end)
    monkeypatch.setattr(RecommenderTrainer, "rank", rank_with)
    kept = weights(finetune(tmp_path / "model", "--mode", "full", "--epochs", 1, "--ema", 0.5))
    assert any(torch.equal(kept[name], average) for average in averages)
    assert not any(torch.equal(kept[name], weight) for weight in stepped)
    assert ranked
    assert all(any(torch.equal(weight, one) for one in averages) for weight in ranked)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("step", [2, 6])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    finetune, tmp_path, kill_at, step, mode, capsys
):
    """Update 2 is before the first checkpoint (at 4), update 6 after it. Dropout is on."""
    options = (
        "--lora-dropout",
        0.3,
        "--dropout",
        0.2,
        "--mode",
        mode,
        "--rows-learning-rate",
        0.02,
        "--ema",
        0.8,
    )
    whole = finetune(tmp_path / "whole", *options)
    kill_at(step)
    with pytest.raises(Killed):
        finetune(tmp_path / "killed", *options)
    work = tmp_path / "killed" / ".training"
    assert (latest_checkpoint(work) is not None) == (step == 6)
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "killed")
    resumed = finetune(tmp_path / "killed", *options)
    told = f"Going on from {work / 'checkpoint-4'}."
    assert (told in capsys.readouterr().out) == (step == 6)
    assert_same_weights(resumed, whole)
    assert read_provenance(resumed)["config"] == read_provenance(whole)["config"]
    assert not work.exists()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "adapter_model.safetensors"]
)
def test_a_damaged_checkpoint_is_named(finetune, tmp_path, kill_at, name):
    kill_at(6)
    with pytest.raises(Killed):
        finetune(tmp_path / "model")
    (damaged,) = (tmp_path / "model" / ".training").glob(f"checkpoint-4/{name}")
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(InputError, match=r"checkpoint-4 cannot be resumed from .*; remove that"):
        finetune(tmp_path / "model")
    shutil.rmtree(damaged.parent)
    assert (finetune(tmp_path / "model") / "lcrec.json").exists()


def test_a_device_whose_memory_is_full(finetune, tmp_path, monkeypatch):
    """What is complete is kept, and the command with smaller batches goes on from it."""
    exact = "--lora-dropout", 0  # it is drawn buffer by buffer
    whole = finetune(tmp_path / "whole", *exact)
    with monkeypatch.context() as patch:

        def full(trainer, *args):
            if trainer.state.global_step == 5:
                raise torch.OutOfMemoryError
            return answer(trainer, *args)

        answer = RecommenderTrainer._add_gradients
        patch.setattr(RecommenderTrainer, "_add_gradients", full)
        with pytest.raises(InputError, match=r"full in update 6 \([\d,]+ tokens at once") as told:
            finetune(tmp_path / "model", *exact)
    assert re.search(r"lcrec plan\) to need \d+\.\d\d GiB", str(told.value))
    (flag, tokens) = re.search(r"(--max-tokens-per-batch) (\d+)", str(told.value)).groups()
    resumed = finetune(tmp_path / "model", flag, tokens, *exact)
    one, other = map(weights, (resumed, whole))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def test_a_second_run_is_refused_while_the_first_lives(finetune, tmp_path):
    refused = rf"another run \(process {os.getpid()}\) is writing there"
    with claim(tmp_path / "model", STAGE, SHARED_FOLDER), pytest.raises(InputError, match=refused):
        finetune(tmp_path / "model")


def die(*args, **kwargs):
    raise Killed


def test_a_run_killed_while_saving(finetune, checkpoint, tmp_path, monkeypatch):
    save = checkpoint_module.save_checkpoint

    def die(folder, model, *args, **kwargs):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        raise Killed

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", die)
    with pytest.raises(Killed):
        finetune(tmp_path / "model")
    monkeypatch.setattr(checkpoint_module, "save_checkpoint", save)
    assert_same_weights(finetune(tmp_path / "model"), checkpoint)


def test_a_run_killed_while_clearing_up(finetune, tmp_path, recipe, monkeypatch, capsys):
    rmtree = shutil.rmtree

    def die(path, *args, **kwargs):
        if str(path).endswith(".training"):
            raise Killed
        return rmtree(path, *args, **kwargs)

    monkeypatch.setattr(recipe.shutil, "rmtree", die)
    with pytest.raises(Killed):
        finetune(tmp_path / "model")
    monkeypatch.setattr(recipe.shutil, "rmtree", rmtree)
    finetune(tmp_path / "model")
    assert "is up to date" in capsys.readouterr().out
    assert not (tmp_path / "model" / ".training").exists()


def test_the_best_weights_are_kept_and_training_stops(finetune, tmp_path, script_validation):
    seen = script_validation([5, 2, 9, 0, 4])
    output = finetune(tmp_path / "model", "--epochs", 9, "--patience", 3)
    # The second validation was the best; three more without a gain, and it ended.
    assert len(seen) == 5
    assert read_provenance(output)["validation_ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    kept = dict(load_checkpoint(output).model.named_parameters())
    trained = [name for name in kept if "lora_" in name or "trainable_tokens" in name]
    assert all(torch.equal(kept[name], seen[1][name]) for name in trained)
    assert not any(torch.equal(kept[name], seen[4][name]) for name in trained)


def test_an_epoch_of_no_whole_number_of_updates_is_validated_once(
    finetune, tmp_path, script_validation
):
    seen = script_validation([1, 1, 1, 1])
    finetune(tmp_path / "model", "--epochs", 3, "--batch-size", 10)
    assert len(seen) == 3


def test_templates_that_no_record_fits_are_named_once(finetune, tmp_path, capsys):
    finetune(tmp_path / "model", "--epochs", 1)
    line = "Template card-properties of item2index: never used here: no record has properties\n"
    assert capsys.readouterr().out.count(line) == 1


def test_training_goes_on_while_the_loss_falls(finetune, tmp_path, script_validation, capsys):
    # Never lower than at the third: the sixth is the third in a row without any gain.
    seen = script_validation([2, 0, 0, 0, 0, 0, 0, 0, 0], [5, 4, 3, 3, 4, 3, 3, 3, 3])
    finetune(tmp_path / "model", "--epochs", 9, "--patience", 3)
    assert len(seen) == 6
    assert "Stopped early at epoch 6, best epoch 1 of 9." in capsys.readouterr().out


def test_a_resumed_run_stops_where_it_would_have(finetune, tmp_path, script_validation, kill_at):
    places = [5, 2, 9, 0, 4, 1, 1, 1, 1]  # the sixth would be better, but is never reached
    losses = [3, 2, 2, 2, 2, 2, 2, 2, 2]
    script_validation(places, losses)
    whole = finetune(tmp_path / "whole", "--epochs", 9, "--patience", 3)
    seen = script_validation(places, losses)
    kill_at(18)  # after the fourth validation, which follows update 16
    with pytest.raises(Killed):
        finetune(tmp_path / "killed", "--epochs", 9, "--patience", 3)
    assert len(seen) == 4
    (tmp_path / "killed").rename(tmp_path / "moved")  # with the best weights so far
    assert_same_weights(finetune(tmp_path / "moved", "--epochs", 9, "--patience", 3), whole)
    assert len(seen) == 5


def test_a_run_that_stopped_and_was_killed_then_stays_stopped(
    finetune, tmp_path, script_validation, monkeypatch
):
    seen = script_validation([5, 2, 9, 0, 4, 1, 1, 1, 1])
    options = tmp_path / "model", "--epochs", 9, "--patience", 3
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "save_checkpoint", die)
        with pytest.raises(Killed):
            finetune(*options)
    output = finetune(*options)
    assert len(seen) == 5
    assert read_provenance(output)["validation_ndcg_at_10"] == pytest.approx(1 / np.log2(3))


def test_a_finished_run_is_up_to_date(finetune, checkpoint, capsys):
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    finetune(checkpoint)
    assert f"{checkpoint} is up to date." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before


def test_overwrite(finetune, tmp_path, checkpoint):
    output = tmp_path / "model"
    shutil.copytree(checkpoint, output)
    with pytest.raises(InputError, match="differs in learning_rate"):
        finetune(output, "--learning-rate", 0.02)
    assert read_provenance(output)["config"]["learning_rate"] == 0.01
    (tmp_path / "c.yaml").write_text("overwrite: true\n")
    finetune(output, "--learning-rate", 0.02, "--config", tmp_path / "c.yaml")
    assert read_provenance(output)["config"]["learning_rate"] == 0.02
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["model"]


def test_an_unfinished_run_on_other_data_is_refused(finetune, shop, tmp_path, kill_at):
    data = tmp_path / "data"
    shutil.copytree(shop, data)
    kill_at(6)
    with pytest.raises(Killed):
        finetune(tmp_path / "model", "--data", data)
    sequences = read_json(find_data(data).inter)
    sequences["0"].insert(0, 7)
    write_json(find_data(data).inter, sequences)
    with pytest.raises(InputError, match="differs in inputs"):
        finetune(tmp_path / "model", "--data", data)


def test_an_index_of_another_catalogue(finetune, shop, tmp_path, index_folder):
    data = tmp_path / "data"
    shutil.copytree(shop, data)
    items = read_json(data / "Shop.item.json")
    items["5"]["title"] = "Something else"
    write_json(data / "Shop.item.json", items)
    assert len(load_items(data)) == 48
    with pytest.raises(InputError, match=r"made from another item file .*lcrec\.quantize"):
        finetune(tmp_path / "model", "--data", data)
    assert not (tmp_path / "model").exists()
    raw = read_json(index_folder / "index.json")
    del raw["47"]
    write_json(tmp_path / "index.json", raw)
    with pytest.raises(InputError, match="47 items but the catalogue has 48"):
        finetune(tmp_path / "model", "--index", tmp_path)


def test_the_index_may_be_named_as_a_file(finetune, checkpoint, index_folder, tmp_path):
    output = finetune(tmp_path / "model", "--index", index_folder / "index.json")
    assert_same_weights(output, checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "full", "--quantize", "4bit"), "--quantize 4bit: .* take --mode lora"),
        (("--lora-dropout", 1), "--lora-dropout 1.0: give a share below 1"),
        (("--mode", "rows", "--rows-learning-rate", 1), "nothing but these rows is trained"),
        (("--warmup", 10), "--warmup 10.0: give a share below 1"),
        (("--ema", 1), "--ema 1.0: give a share below 1"),
        (("--max-length", 30), "more than --max-length 30"),
        (("--prompts", "nowhere"), "--prompts nowhere: no such folder"),
        (("--num-beams", 5), "--num-beams: 5 is too small"),
    ],
)
def test_refusals(finetune, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        finetune(tmp_path / "model", *options)
    # The folder is not taken: once the mistake is put right, the run can begin.
    assert not (tmp_path / "model").exists()


def test_a_sample_that_is_too_long_in_a_later_epoch_is_refused_at_once(shop, index_folder, base):
    settings = TrainingSettings(
        data=shop, index=index_folder, base=str(base), tasks=["item2index=3"], epochs=5, seed=0
    )
    inputs = load_inputs(settings)
    model = load_model(settings, inputs)
    rows = draw_training_rows(settings, inputs, model, 1).train
    lengths = [len(rows[row]["input_ids"]) for row in range(15)]
    assert max(lengths[:3]) < max(lengths) < rows.longest  # of what none of them drew
    enough = dataclasses.replace(settings, max_length=max(lengths))
    assert draw_training_rows(enough, inputs, model, 1).train.longest == max(lengths)
    with pytest.raises(InputError, match="more than --max-length"):
        draw_training_rows(
            dataclasses.replace(settings, max_length=max(lengths) - 1), inputs, model, 1
        )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--liger", "--liger needs a CUDA GPU and a package"),
        ("--dora", "--dora and --rslora are forms of --mode lora, not of"),
    ],
)
def test_switches_that_need_something(recipe, finetune_words, tmp_path, flag, message):
    with pytest.raises(InputError, match=message):
        recipe.main([*finetune_words(tmp_path / "model", "--mode", "rows"), flag])


def test_unknown_tasks_and_keys(recipe, shop, index_folder, base, tmp_path):
    words = ["--data", shop, "--index", index_folder, "--base", base, "--output", tmp_path / "m"]
    with pytest.raises(InputError, match="no task 'seqrek'; did you mean 'seqrec'"):
        recipe.main([*map(str, words), "--tasks", "seqrek"])
    (tmp_path / "c.yaml").write_text("epohcs: 3\n")
    with pytest.raises(InputError, match="unknown key 'epohcs'; did you mean 'epochs'"):
        recipe.main([*map(str, words), "--config", str(tmp_path / "c.yaml")])
    assert not (tmp_path / "m").exists()


@pytest.fixture
def launches(recipe, monkeypatch):
    """Three devices and no launcher; returns the commands that are launched instead of run."""
    commands = []

    def remember(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, returncode=0)

    for name in recipe.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(recipe, "count_devices", lambda: 3)
    monkeypatch.setattr(recipe.subprocess, "run", remember)
    return commands


def test_the_launched_command_is_one_that_accelerate_takes(
    recipe, launches, finetune_words, tmp_path, capsys
):
    words = finetune_words(tmp_path / "model")
    recipe.main(words)
    (command,) = launches
    assert command == recipe.launch_command(words, 3)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args(command[3:])
    assert (parsed.module, parsed.training_script) == (True, "lcrec.finetune")
    assert parsed.training_script_args == words
    assert (parsed.multi_gpu, parsed.num_processes, parsed.num_machines) == (True, 3, 1)
    assert capsys.readouterr().out == "Launching on 3 devices\n"
    assert not (tmp_path / "model").exists()  # the launched processes claim it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "rows", "--rows-learning-rate", 1), "nothing but these rows is trained"),
        (("--warmup", 10), "--warmup 10.0"),
        (("--prompts", "nowhere"), "--prompts nowhere: no such folder"),
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--index", "nowhere"), "nowhere/index.json"),
        (("--rows", "codebook"), r"--rows codebook: .*rqvae.safetensors: no such file; make"),
    ],
)
def test_nothing_is_launched_that_would_be_refused(
    recipe, launches, finetune_words, tmp_path, options, message
):
    with pytest.raises(InputError, match=message):
        recipe.main(finetune_words(tmp_path / "model", *options))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex has no"):
        recipe.main(finetune_words(tmp_path / "taken"))
    assert launches == []


def test_a_current_run_launches_nothing_and_a_failed_launch_fails_the_command(
    recipe, launches, finetune_words, checkpoint, capsys, tmp_path, monkeypatch
):
    recipe.main(finetune_words(checkpoint))
    assert "is up to date" in capsys.readouterr().out
    assert launches == []
    failed = subprocess.CompletedProcess([], returncode=3)
    monkeypatch.setattr(recipe.subprocess, "run", lambda command, check: failed)
    with pytest.raises(SystemExit) as ended:
        recipe.main(finetune_words(tmp_path / "model"))
    assert ended.value.code == 3


@pytest.mark.parametrize("name", ["RANK", "ACCELERATE_DYNAMO_BACKEND"])
def test_a_launched_process_trains_itself(
    recipe, launches, finetune_words, checkpoint, monkeypatch, name
):
    monkeypatch.setenv(name, "0")
    assert recipe.is_launched({name: "0"})
    assert not recipe.is_launched({"PATH": "/bin"})
    monkeypatch.setattr(recipe, "_finetune", lambda job: launches.append(job.config.epochs))
    recipe.main(finetune_words(checkpoint, "--epochs", 9))
    assert launches == [9]


@pytest.mark.parametrize(
    "script", [["recipes/finetune.py"], ["-m", "lcrec.finetune"]], ids=" ".join
)
def test_under_a_launcher_the_error_stands_before_its_words(run_command, tmp_path, script):
    words = ["--data", "nowhere", "--index", "i", "--base", "b", "--output", tmp_path / "m"]
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1]
    said = run_command(*launcher, *script, *words, status=1).splitlines()
    (place,) = (number for number, line in enumerate(said) if line.startswith("error: "))
    assert said[place].startswith("error: --data nowhere: no such folder")
    assert said[place + 1] == "Traceback (most recent call last):"
    assert said[-1].startswith("subprocess.CalledProcessError: ")
    assert sum(line.startswith("Traceback") for line in said) == 1


def test_a_run_from_python(recipe, finetune_words, checkpoint, tmp_path):
    words = finetune_words(tmp_path / "model")
    config = parse_config(recipe.FinetuneConfig, words, description="", prog="")
    assert recipe.run(config) == tmp_path / "model"
    assert_same_weights(tmp_path / "model", checkpoint)
    with pytest.raises(InputError, match=r"--dropout 1\.5: give a share below 1"):
        recipe.run(dataclasses.replace(config, dropout=1.5))


@pytest.mark.slow
def test_two_processes_train_the_same(
    run_command, finetune, finetune_words, split, recipe, tmp_path
):
    options = ("--epochs", 1, "--lora-dropout", 0, "--ema", 0.8, "--validation-users", 15)
    shared = tmp_path / "shared"
    out = run_command(
        *recipe.launch_command(finetune_words(shared, *options, "--batch-size", 4), 2)[1:]
    )
    assert "8 per update" in out
    assert "in 2 process(es)" in out
    assert out.count("Wrote") == 1
    assert not (shared / ".training").exists()
    # One process that adds up two batches sees the same rows in every update.
    alone = finetune(tmp_path / "alone", *options, "--batch-size", 4, "--accumulate", 2)
    expected = weights(alone)
    for name, value in weights(shared).items():
        assert torch.allclose(value, expected[name], atol=1e-4), name
    # The 15 users, dealt out unevenly, were all ranked.
    held_out = split.valid.sample(15, 42)
    ranked = Recommender.from_pretrained(shared).recommend(held_out.histories, 20).items
    best = ndcg_at_k(ranked, held_out.targets, 10).mean()
    assert read_provenance(shared)["validation_ndcg_at_10"] == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.real_data
def test_a_model_of_qwen3s_kind(finetune, real_data, tmp_path):
    """The real tokenizer, with its chat template, and a table with room to spare for the items."""
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "Qwen3")
    folder = tmp_path / "base"
    tokenizer.save_pretrained(folder)
    shape = {"vocab_size": 151_936, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    config = Qwen3Config(**shape, **heads, num_hidden_layers=1, tie_word_embeddings=True)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    output = finetune(tmp_path / "model", "--base", folder, "--epochs", 1)
    loaded = Recommender.from_pretrained(output)
    assert loaded.model.get_input_embeddings().weight.shape[0] == 151_936
    assert loaded.tokenizer.decode(loaded.encode([RankingRequest([1, 2])])[0]).endswith(
        "</think>\n\n"
    )
    ranking = loaded.recommend([[1, 2], [3]], 48)
    assert all(sorted(row) == list(range(48)) for row in ranking.items.tolist())
    assert sum(path.stat().st_size for path in output.glob("*.safetensors")) < 100_000


def test_guessing_and_counting_stand_beside_the_model(finetune, tmp_path, capsys):
    finetune(tmp_path / "model", "--epochs", 1, "--learning-rate", 1e-12)
    out = capsys.readouterr().out
    found = re.search(r"To beat on 20 held-out users: chance HR@10 (\S+), NDCG@10 (\S+);", out)
    # 10 of 48 items are hit by chance, each place as often as another.
    assert float(found[1]) == pytest.approx(10 / 48, abs=1e-4)
    places = sum(1 / math.log2(rank + 2) for rank in range(10))
    assert float(found[2]) == pytest.approx(places / 48, abs=1e-4)
    assert re.search(r"; popularity HR@10 \S+, NDCG@10 \S+; co-occurrence HR@10 ", out)
    # A model that learnt nothing is said to be useless.
    assert re.search(r"Trained to the end, best epoch 1 of 1\. The model ranks no better than", out)


@pytest.mark.parametrize(("best", "longer"), [(40, True), (30, False)])
def test_more_epochs_are_advised_where_the_last_was_the_best(best, longer):
    state = SimpleNamespace(max_steps=40, global_step=40, best_global_step=best, best_metric=0.1)
    rows = SimpleNamespace(train=SimpleNamespace(sizes=[8] * 4))
    said = describe_end(SimpleNamespace(state=state), {"co-occurrence": (0.2, 0.15)}, rows)
    assert f"best epoch {best // 10} of 4. The model ranks no better than co-occurrence" in said
    assert ("train longer (--epochs)" in said) is longer


@pytest.mark.parametrize(
    ("samples", "processes", "given", "epochs"),
    [(64, 1, None, 40), (8 * 100, 1, None, 20), (8 * 100, 2, None, 40), (8 * 9000, 1, None, 4)],
)
def test_epochs_follow_from_the_updates_of_one(samples, processes, given, epochs):
    settings = TrainingSettings(data="", index="", base="", batch_size=8, epochs=given)
    assert count_epochs(settings, samples, processes) == epochs
    assert count_epochs(dataclasses.replace(settings, epochs=3), samples, processes) == 3


def test_an_index_without_a_codebook_starts_from_titles(finetune, index, shop, tmp_path, capsys):
    index.save(tmp_path / "index")
    write_provenance(
        tmp_path / "index",
        "python -m lcrec.quantize",
        {"kind": "random"},
        {"item": find_data(shop).item},
        level_sizes=list(index.level_sizes),
    )
    finetune(tmp_path / "model", "--rows", "codebook", "--index", tmp_path / "index")
    assert "--rows codebook: this index has none, so rows start from" in capsys.readouterr().out
