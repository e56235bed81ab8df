"""The command: what it trains, keeps, resumes, refuses and says."""

import dataclasses
import functools
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launching import fsdp2_environment
from safetensors.torch import load_file
from trainings import Killed, assert_same_weights, kill_in_step, let_every_validation_win, weights
from transformers import AutoTokenizer, TrainingArguments

from lcrec.core.artifacts import read_json, write_json
from lcrec.core.config import parse_config
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.folder import Interactions
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest, RequestEncoder
from lcrec.modeling.checkpoint import CheckpointFacts
from lcrec.prompts.encoder import extend_tokenizer
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.tasks import TASKS, TaskData
from lcrec.reinforce.settings import Cases, ReinforceSettings, check_settings, load_inputs
from lcrec.reinforce.start import load_start, make_recommender
from lcrec.reinforce.trainer import CaseCollator, ReinforceTrainer
from lcrec.reinforce.update import group_advantages


def nothing(items, targets, histories):
    return np.zeros(items.shape)


def undecided(items, targets, histories):
    return np.full(items.shape, np.nan)


NOTHING = f"{__name__}:nothing"


@pytest.fixture(scope="module")
def whole_model(finetune, tmp_path_factory):
    """A checkpoint of `--mode full`."""
    return finetune(tmp_path_factory.mktemp("full") / "model", "--mode", "full", "--dropout", 0.1)


@pytest.fixture
def logged(monkeypatch):
    """Return what is logged, a dictionary for each time."""
    seen = []
    log = ReinforceTrainer.log

    def remember(self, logs, *args):
        assert {each.dtype for each in self._sums.values()} <= {torch.float32}  # Apple's most
        log(self, logs, *args)
        seen.append(dict(logs))

    monkeypatch.setattr(ReinforceTrainer, "log", remember)
    return seen


@pytest.fixture
def kill_at(monkeypatch):
    """Make the run die in the given batch, counted from 1."""
    return functools.partial(kill_in_step, monkeypatch, ReinforceTrainer)


def test_a_finished_run(reinforce, checkpoint, tmp_path, logged, capsys):
    output = reinforce(tmp_path / "model")
    facts, before = CheckpointFacts.read(output), CheckpointFacts.read(checkpoint)
    assert (facts.tasks, facts.max_history) == (before.tasks, before.max_history)
    record = read_provenance(output)
    assert record["stage"] == "python -m lcrec.reinforce"
    assert record["config"]["reinforce.group"] == 4
    assert set(record["inputs"]) == {"model", "item", "inter", "base"}
    assert facts.validation_ndcg_at_10 >= before.validation_ndcg_at_10 - 1e-9
    ranking = Recommender.from_pretrained(output).recommend([[1, 2]], 48)
    assert sorted(ranking.items[0].tolist()) == list(range(48))
    means = [logs for logs in logged if "loss" in logs]
    assert means
    for name in ("reward", "reward_hit", "reward_rank", "hit", "no_signal", "kl", "entropy"):
        assert all(math.isfinite(logs[name]) for logs in means), name
    assert 0 < max(logs["hit"] for logs in means) < 1
    assert means[-1]["kl"] > 0  # it has moved
    validations = [logs for logs in logged if "eval_ndcg@10" in logs]
    assert len(validations) == 2
    assert 10 <= validations[-1]["eval_items@10"] <= 48
    assert not (output / ".training").exists()
    (output / ".training").mkdir()  # killed before it was cleared away
    reinforce(output)
    assert "is up to date" in capsys.readouterr().out
    assert not (output / ".training").exists()


@pytest.mark.parametrize("options", [(), ("--kl", 0), ("--rollouts", "gumbel", "--reuse", 2)])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_reward_that_is_always_0_changes_nothing(
    reinforce, checkpoint, whole_model, tmp_path, monkeypatch, logged, kind, options
):
    """Not a bit of a weight, though AdamW makes steps of the same size of any gradient."""
    model = checkpoint if kind == "lora" else whole_model
    last = {}
    train = ReinforceTrainer.train

    def remember(self, **kwargs):
        self.args.load_best_model_at_end = False
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        train(self, **kwargs)
        last.update({n: (before[n], p.detach()) for n, p in self.model.named_parameters()})

    monkeypatch.setattr(ReinforceTrainer, "train", remember)
    output = reinforce(tmp_path / "model", "--model", model, "--rewards", NOTHING, *options)
    assert all(torch.equal(before, after) for before, after in last.values())
    assert_same_weights(output, model)
    assert read_provenance(output)["inputs"][f"reward {NOTHING}"]["path"] == __file__
    assert {logs["no_signal"] for logs in logged if "no_signal" in logs} == {1.0}


@pytest.mark.parametrize(
    "options",
    [
        ("--objective", "dpo"),
        ("--rollouts", "gumbel"),
        ("--add-target", 0.5),
        ("--supervise-misses", 0.5),
        ("--reuse", 3, "--clip", 0.01),
        ("--accumulate", 2, "--batch-size", 3),
        ("--precision", "bf16"),
        ("--gradient-checkpointing", None),
        ("--epochs", 2, "--max-history", 2),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_other_settings(reinforce, tmp_path, logged, options):
    output = reinforce(tmp_path / "model", *options)
    assert read_provenance(output)["validation_ndcg_at_10"] >= 0
    last = [logs for logs in logged if "loss" in logs][-1]
    assert last["kl"] > 0
    assert any("reward" in logs for logs in logged) == ("dpo" not in options)
    if "gumbel" in options:
        assert 0 < last["mass"] <= 1
    if "--supervise-misses" in options:
        assert last["supervised"] == pytest.approx(1 - last["hit"])
    if "--reuse" in options:
        assert any(logs.get("clipped", 0) > 0 for logs in logged)
    if "--add-target" in options:  # a group with its target always says something
        assert last["no_signal"] == 0


@pytest.mark.parametrize("rollouts", ["beam", "gumbel"])
def test_items_of_the_history_are_no_answers(reinforce, tmp_path, monkeypatch, rollouts):
    compute, rank, seen = ReinforceTrainer.compute_loss, ReinforceTrainer.rank, []

    def check(self, model, inputs, *args, **kwargs):
        for case, items in zip(inputs["case"].tolist(), inputs["items"].tolist(), strict=True):
            seen.append(set(items) & set(self.cases.history(case).tolist()))
        return compute(self, model, inputs, *args, **kwargs)

    def check_validation(self):
        ranked = rank(self)
        for history, items in zip(self.ranking.cases.histories, ranked.tolist(), strict=True):
            seen.append(set(items) & set(history.tolist()))
        return ranked

    monkeypatch.setattr(ReinforceTrainer, "compute_loss", check)
    monkeypatch.setattr(ReinforceTrainer, "rank", check_validation)
    reinforce(tmp_path / "model", "--exclude-history", None, "--rollouts", rollouts)
    assert len(seen) == 24 + 3 * 20
    assert not any(seen)


@pytest.mark.parametrize("option", ["--add-target", "--supervise-misses"])
@pytest.mark.parametrize("rollouts", ["beam", "gumbel"])
def test_groups_that_missed_their_target(
    reinforce, tmp_path, monkeypatch, logged, option, rollouts
):
    """The target is put in the last place; its advantage, or its own loss, counts half."""
    seen = []
    compute = ReinforceTrainer.compute_loss

    def check(self, model, inputs, *args, **kwargs):
        items, target, share = inputs["items"], inputs["target"], inputs["weights"]
        torch.testing.assert_close(share.sum(1), torch.ones(len(share)))
        hits = (items == target[:, None]).float()
        assert (hits.sum(1) == 1).all()
        plain = group_advantages(hits, share, scale=True)
        loss = compute(self, model, inputs, *args, **kwargs)
        with torch.no_grad():
            log_probs = self._log_probs(model, inputs)[0].mean(2)
        for row in range(len(items)):
            missed = bool((inputs["advantages"][row] - plain[row]).abs().max() > 1e-6)
            if not missed:  # the ratio to what the model was is 1
                seen.append(0)
                continue
            seen.append(1)
            assert items[row, -1] == target[row]
            wanted, own = plain[row] * 0, hits[row] * 0.5
            if option == "--add-target":
                wanted, own = torch.where(hits[row] > 0, 0.5 * plain[row], plain[row]), own * 0
            torch.testing.assert_close(inputs["advantages"][row], wanted)
            torch.testing.assert_close(inputs["supervised"][row], own)
        gained = (inputs["advantages"] * share).sum(1) + (inputs["supervised"] * log_probs).sum(1)
        torch.testing.assert_close(loss.detach(), -gained.mean(), rtol=1e-4, atol=1e-5)
        return loss

    monkeypatch.setattr(ReinforceTrainer, "compute_loss", check)
    words = (option, 0.5, "--rollouts", rollouts, "--rewards", "hit", "--kl", 0, "--group", 8)
    reinforce(tmp_path / "model", *words)
    assert 0 < np.mean(seen) < 1  # groups of both kinds were looked at
    for logs in logged:  # the rewards of what the model answered, not of what was put in
        assert logs.get("reward_hit", 0) == pytest.approx(logs.get("hit", 0) / 8)


@pytest.mark.parametrize("words", [(), ("--rollouts", "gumbel", "--reuse", 2, "--accumulate", 2)])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    reinforce, checkpoint, whole_model, tmp_path, kill_at, words, kind, capsys
):
    """Killed behind the first checkpoint; the reference is that of the start all the same."""
    options = ("--model", checkpoint if kind == "lora" else whole_model, "--kl", 0.1, *words)
    whole = reinforce(tmp_path / "whole", *options)
    kill_at(6 if not words else 11)
    with pytest.raises(Killed):
        reinforce(tmp_path / "killed", *options)
    assert list((tmp_path / "killed" / ".training").glob("checkpoint-*"))
    assert_same_weights(reinforce(tmp_path / "killed", *options), whole)
    assert (
        f"Going on from {tmp_path / 'killed' / '.training' / 'checkpoint-'}"
        in capsys.readouterr().out
    )


def test_an_update_may_add_up_several_batches(reinforce, tmp_path, monkeypatch):
    metrics = let_every_validation_win(ReinforceTrainer.ranking_metrics)
    monkeypatch.setattr(ReinforceTrainer, "ranking_metrics", metrics)
    one = reinforce(tmp_path / "one", "--kl", 0.1)
    two = reinforce(tmp_path / "two", "--kl", 0.1, "--batch-size", 2, "--accumulate", 2)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes(
    reinforce, checkpoint, whole_model, shop, tmp_path, run_command, monkeypatch, kind, way
):
    """Give the weights of one: they share prompts, validation, and under FSDP2 the weights.

    There the run is ended and resumed too, which must not take the reference from its middle.
    """
    metrics = let_every_validation_win(ReinforceTrainer.ranking_metrics)
    monkeypatch.setattr(ReinforceTrainer, "ranking_metrics", metrics)
    start = checkpoint if kind == "lora" else whole_model
    options = ("--model", start, "--cases", 16, "--kl", 0.1, "--supervise-misses", 1)
    one = reinforce(tmp_path / "one", *options)
    words = ["--data", shop, "--group", 4, "--learning-rate", 0.003, "--validation-users", 20]
    words += ["--validate-every", 0.5, "--tolerance", 99, *options, "--batch-size", 2]
    two, script, environment = tmp_path / "two", "tests/reinforce_worker.py", {}
    if way == "fsdp2":
        environment = fsdp2_environment() | {"RECIPE": script}
        script = "tests/fsdp_worker.py"
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", 2, script, *words)
    if way == "fsdp2":
        run_command(*launch, "--output", two, status=1, STOP="1", **environment)
        assert (two / ".training" / "checkpoint-2").is_dir()
    assert "in 2 process(es)" in run_command(*launch, "--output", two, **environment)
    assert read_provenance(two)["validation_ndcg_at_10"] == 5  # of the fourth update
    found, before = weights(two), weights(start)
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)
    assert max((found[name] - before[name]).abs().max() for name in found) > 1e-3


def test_training_stops_where_validation_falls_below_the_start(
    reinforce, checkpoint, tmp_path, monkeypatch, capsys
):
    ranked = []

    def rank(self):
        targets = self.ranking.cases.targets
        found = np.full((len(targets), 20), -1)
        found[:, len(ranked)] = targets  # first, second, third
        ranked.append(self.state.global_step)
        return found

    monkeypatch.setattr(ReinforceTrainer, "rank", rank)
    options = ("--validate-every", 0.17, "--tolerance", 0.4)

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("lcrec.modeling.checkpoint.save_checkpoint", die)
        with pytest.raises(Killed):
            reinforce(tmp_path / "model", *options)
    capsys.readouterr()
    output = reinforce(tmp_path / "model", *options)  # does not train past the end
    assert ranked == [0, 1, 2]  # NDCG@10 1, .63, .5
    said = capsys.readouterr().out
    assert "Stopped after 2 updates: NDCG@10 is 0.5000, at the start it was 1.0000" in said
    assert "the start's weights, for no validation beat its NDCG@10 of 1.0000" in said
    assert_same_weights(output, checkpoint)
    assert read_provenance(output)["validation_ndcg_at_10"] == 1


def test_the_best_weights_are_kept(reinforce, tmp_path, monkeypatch):
    seen = []

    def rank(self):
        targets = self.ranking.cases.targets
        found = np.full((len(targets), 20), -1)
        found[:, [5, 3, 0, 1][len(seen)]] = targets
        seen.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
        return found

    monkeypatch.setattr(ReinforceTrainer, "rank", rank)
    output = reinforce(tmp_path / "model", "--validate-every", 0.34)
    assert read_provenance(output)["validation_ndcg_at_10"] == 1
    best = {name.replace(".default", ""): value for name, value in seen[2].items()}
    for name, value in weights(output).items():
        assert torch.equal(best[name], value), name


def test_an_explosion_names_its_batch(reinforce, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # as the second of two processes, which sees it alone
        patch.setattr(TrainingArguments, "process_index", 1)
        patch.setattr(TrainingArguments, "world_size", 2)
        message = r"in update \d+ the model is .* above --max-kl 1e-09"
        with pytest.raises(InputError, match=message) as e:
            reinforce(tmp_path / "model", "--max-kl", 1e-9)
    (file,) = (tmp_path / "model").glob("nan_update_*.safetensors")
    assert str(file) in str(e.value)
    batch = load_file(file)
    assert batch["0.items"].shape == (4, 4)
    assert {"0.input_ids", "0.target", "0.advantages", "0.reference"} <= batch.keys()

    def overflow(log_probs, *args):
        return log_probs.sum() * math.nan, torch.zeros(())

    monkeypatch.setattr("lcrec.reinforce.trainer.grpo_loss", overflow)
    with pytest.raises(InputError, match="the loss of update 1 is NaN or infinite; its batch is"):
        reinforce(tmp_path / "other")

    def steep(log_probs, *args):
        return (0 * log_probs).sum().sqrt(), torch.zeros(())  # 0, and infinitely steep there

    monkeypatch.setattr("lcrec.reinforce.trainer.grpo_loss", steep)
    with pytest.raises(InputError, match="the gradient of update 1 is NaN or infinite; its batch"):
        reinforce(tmp_path / "steep")
    assert list((tmp_path / "steep").glob("nan_update_1.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--group", 49), "--group 49: the catalogue has 48 items; take at most 48"),
        (("--rewards", "hits"), "did you mean 'hit'"),
        (("--rewards", f"{__name__}:undecided"), "reward of item .* is nan"),
        (("--rewards", "similarity"), "--rewards similarity: compares embeddings; name them"),
        (("--embeddings", "."), "only the reward similarity reads them"),
        (("--objective", "dpo", "--clip", 0.1), "--clip 0.1: is a setting of --objective grpo"),
        (("--kl", 0, "--max-kl", 1), "--max-kl 1.0: with --kl 0 the distance .* is not computed"),
        (("--dpo-beta", 2), "--dpo-beta 2.0: is a setting of --objective dpo"),
        (("--add-target", 1, "--supervise-misses", 1), "are two ways to treat groups"),
        (("--model", "nowhere"), "--model nowhere: not a checkpoint of lcrec"),
        (("--group", 1), "--group: 1 is too small"),
    ],
)
def test_bad_settings(reinforce, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        reinforce(tmp_path / "model", *options)
    assert not (tmp_path / "model").exists()


def test_the_shipped_recipe_goes_with_either_objective():
    words = ["--config", "recipes/reinforce.yaml", "--model", "M", "--data", "D", "--objective"]
    for objective in ("grpo", "dpo"):
        settings = parse_config(
            ReinforceSettings, [*words, objective], description="", prog="lcrec reinforce"
        )
        check_settings(settings)


def test_embeddings(checkpoint, shop, tmp_path):
    file = tmp_path / "embeddings.npy"
    settings = ReinforceSettings(
        model=checkpoint, data=shop, group=4, rewards=["similarity"], embeddings=file
    )
    vectors = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    np.save(file, vectors)
    inputs = load_inputs(settings)
    assert inputs.files["embeddings"] == file
    np.testing.assert_allclose(np.linalg.norm(inputs.catalogue.embeddings, axis=1), 1, rtol=1e-6)
    vectors[7, 1] = np.nan
    np.save(file, vectors)
    with pytest.raises(InputError, match=r"1 rows hold values that are not finite \(first: item 7"):
        load_inputs(settings)


def test_bad_models(reinforce, base, recipe, finetune_words, tmp_path):
    with pytest.raises(InputError, match=r"not a checkpoint of lcrec .*reinforcement starts from"):
        reinforce(tmp_path / "model", "--model", base)
    words = finetune_words(tmp_path / "titles", "--epochs", 1)
    recipe.main([*words[: words.index("--tasks")], "--tasks", "item2index=8"])
    with pytest.raises(InputError, match=r"was not fine-tuned on seqrec \(but on item2index=8\)"):
        reinforce(tmp_path / "model", "--model", tmp_path / "titles")


@pytest.mark.usefixtures("unloaded")
def test_a_prompt_that_the_context_cannot_hold(reinforce, base, tmp_path):
    moved = shutil.copytree(base, tmp_path / "base")
    config = read_json(moved / "config.json")
    write_json(moved / "config.json", config | {"max_position_embeddings": 9})
    with pytest.raises(InputError, match=r"its prompt has .* more than the 9 of the model's"):
        reinforce(tmp_path / "model", "--base", moved)


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "does not train under DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "True", "FSDP_VERSION": "1"}, {}, "by FSDP2 alone"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            {"quantize": "4bit"},
            r"its base is quantised \(4bit\), which FSDP2 cannot shard",
        ),
    ],
)
def test_ways_to_shard_that_are_refused(
    reinforce, checkpoint, tmp_path, monkeypatch, environment, settings, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    record = read_provenance(checkpoint)
    record["config"] |= settings
    monkeypatch.setattr("lcrec.reinforce.settings.read_provenance", lambda folder: record)
    with pytest.raises(InputError, match=message + ".*multi_gpu.yaml"):
        reinforce(tmp_path / "model")


def test_an_adapter_whose_base_is_gone(reinforce, finetune, base, tmp_path):
    moved = tmp_path / "base"
    moved.symlink_to(base)
    model = finetune(tmp_path / "adapter", "--base", moved, "--epochs", 1)
    moved.unlink()
    with pytest.raises(InputError, match=r"base model is no longer in .*with --base"):
        reinforce(tmp_path / "model", "--model", model)
    output = reinforce(tmp_path / "model", "--model", model, "--base", base)
    assert read_json(output / "adapter_config.json")["base_model_name_or_path"] == str(base)


def test_cases(split):
    train = Interactions.from_sequences({"a": [3, 5, 3, 7, 5, 7], "b": [7], "c": [5, 3]})
    split = dataclasses.replace(split, train=train)
    every = Cases.of(split, exclude_history=False)
    found = [(every.history(case).tolist(), every.target(case)) for case in range(len(every))]
    assert found[:2] == [([3], 5), ([3, 5], 3)]
    assert len(found) == 6
    assert every.train_sequence(1).tolist() == [3, 5, 3, 7, 5, 7]
    assert every.train_sequence(5).tolist() == [5, 3]
    new = Cases.of(split, exclude_history=True)
    found = [(new.history(case).tolist(), new.target(case)) for case in range(len(new))]
    assert found == [([3], 5), ([3, 5, 3], 7), ([5], 3)]


def test_prompts_are_those_of_fine_tuning(base, index, shop_items, split):
    """A user's own pairs are not among the neighbours shown: they would give the answer away."""
    prompts = PromptSet.load(SHIPPED_PROMPTS / "retrieval", base=SHIPPED_PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(base)
    extend_tokenizer(tokenizer, index)
    data = TaskData(shop_items, split.train, index, max_history=4, shows_neighbours=True)
    encoder = RequestEncoder(
        *(tokenizer, index, prompts),
        max_history=4,
        max_text_words=12,
        context=None,
        nearby=data.nearby,
    )
    recommender = SimpleNamespace(encode=encoder.encode_requests, request_encoder=encoder)
    cases = Cases.of(split, exclude_history=False)
    batch = CaseCollator(cases, recommender)([{"case": n, "row": n} for n in range(len(cases))])
    template = prompts.evaluation_templates("seqrec")[0]
    assert "neighbours" in template.question_variables
    asked = [template.ask(record) for record in TASKS["seqrec"].records(data)]
    found = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert found == encoder.prompt_encoder.prompt_ids(asked)


def test_neighbours_are_counted_in_what_is_trained_on(checkpoint, shop, index):
    """In a later state of the folder there are pairs that the fine-tune could not count."""
    settings = ReinforceSettings(model=checkpoint, data=shop)
    found = load_inputs(settings)
    train = Interactions.from_sequences({"a": [0, 1], "b": [0, 2]})
    prompts = PromptSet.load(SHIPPED_PROMPTS / "retrieval", base=SHIPPED_PROMPTS)
    split = dataclasses.replace(found.split, train=train)
    inputs = dataclasses.replace(found, prompts=prompts, split=split)
    encoder = make_recommender(inputs, load_start(settings)).request_encoder
    asked = RankingRequest(np.array([0]), train_sequence=np.array([0, 1]))
    assert encoder.record(asked)["neighbours"] == [index.texts[2]]
