"""`lcrec plan reinforce`: prompts, memory and hours, by hand and against what a run then does."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from lcrec import plan
from lcrec.core.errors import InputError
from lcrec.modeling import cost as modeling_cost
from lcrec.reinforce import cost
from lcrec.reinforce.trainer import ReinforceTrainer
from lcrec.reinforce.update import answer_log_probabilities

SHAPE = modeling_cost.Shape(
    total=1000, trainable=100, linear=700, ends=200, block=350, head=200, layers=2, width=10,
    vocabulary=20,
)  # fmt: skip
WORK = cost.ReinforceWork(
    rollouts=10, updates=5, validations=3, users=4, length=6.0, longest=9, answer=2, group=8,
    beams=20,
)  # fmt: skip


def test_operations_by_hand():
    """A prompt of 6 tokens, 8 answers of 3 whose last is never computed: 22 tokens, 17 scored."""
    found = cost.operations(SHAPE, WORK, reuse=2, checkpointing=False)
    once = 2 * 700 * 22 + 2 * 200 * 17
    assert found["rollouts"] == found["reference"] == 10 * once
    assert found["update"] == 10 * 2 * (700 * 22 * (4 + 2 * 0.1) + 6 * 200 * 17)
    assert found["validation"] == 3 * 4 * (2 * 700 * 46 + 2 * 200 * 41)
    again = cost.operations(SHAPE, WORK, reuse=2, checkpointing=True)
    assert again["update"] - found["update"] == pytest.approx(10 * 2 * 2 * 700 * 22)


def test_what_a_device_holds_under_fsdp2():
    """A quarter of 16 bytes for each of 100 weights, 2 for 900 others, and the reference; all."""
    found = cost.sharded_memory(SHAPE, 400, "bf16", 4)
    assert found == {"validation": (1600 + 1800 + 400) / 4 + 2000, "the loading": 400 + 1800}


@pytest.fixture
def planning(checkpoint, shop, capsys):
    """Plan a run: `planning("--tflops", 1)` returns what is said."""

    def run(*options):
        defaults = {
            "--model": checkpoint, "--data": shop, "--cases": 12, "--batch-size": 4, "--group": 4,
            "--reuse": 2, "--validation-users": 20, "--validate-every": 0.5,
        }  # fmt: skip
        settings = defaults | dict(zip(options[::2], options[1::2], strict=True))
        plan.main(["reinforce", *(str(w) for pair in settings.items() for w in pair)])
        return capsys.readouterr().out

    return run


def number(text, pattern):
    return float(re.search(pattern, text)[1].replace(",", ""))


@pytest.mark.usefixtures("fast_bf16")
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("options", [(), ("--tflops", 1)], ids=["timed", "estimated"])
def test_a_plan_says_what_the_run_then_does(
    planning, reinforce, checkpoint, finetune, tmp_path, monkeypatch, capsys, mode, options
):
    model = checkpoint
    if mode == "full":
        model = finetune(tmp_path / "full", "--mode", "full", "--epochs", 1)
    planned = planning("--model", model, *options)
    assert ("from timed steps" if not options else "estimated from") in planned
    parts = re.search(r": rollouts .*, reference .*, update .*, validation ", planned)
    assert parts, planned

    longest, ranked = 0, []
    rank = ReinforceTrainer.rank

    def measure(self, model, batch):
        nonlocal longest
        longest = max(longest, batch["input_ids"].shape[1])
        assert batch["answers"].shape[1:] == (4, 3)
        return log_probs(self, model, batch)

    def remember(self):
        ranked.append(len(self.ranking.cases))
        return rank(self)

    log_probs = ReinforceTrainer._log_probs
    monkeypatch.setattr(ReinforceTrainer, "_log_probs", measure)
    monkeypatch.setattr(ReinforceTrainer, "rank", remember)
    reinforce(tmp_path / "model", "--model", model, "--cases", 12, "--reuse", 2)
    said = capsys.readouterr().out
    assert "--precision bf16 saves time" in said
    assert number(planned, r", trained ([\d,]+)") == number(said, r"Reinforcing ([\d,]+)")
    assert number(planned, r"Prompts +([\d,]+)") == number(said, r"on ([\d,]+) prompts")
    assert number(planned, r"and (\d+) validations of 20 users") == len(ranked) == 3
    assert number(planned, r"Updates +([\d,]+)") == 6
    assert 0 < longest <= number(planned, r"at most ([\d,]+)")
    assert "; 4 answers of 3 tokens to each" in planned


def test_the_reference_is_a_copy_of_what_is_trained(planning, monkeypatch):
    needed = []
    memory = cost.memory

    def small(*args, **settings):
        needed.append(memory(*args, **settings))
        return 0.0

    monkeypatch.setattr(cost, "memory", small)
    planned = planning("--tflops", 1)
    trained = number(planned, r", trained ([\d,]+)")
    monkeypatch.setattr(cost, "GIB", 4 * trained)
    planned = planning("--tflops", 1)
    assert number(planned, r"Memory +([\d.]+)") == 1
    assert number(planned, r"under FSDP2 .* ([\d.]+) GiB of it the reference") == 0.5
    assert "copy of the trained weights" in planned
    planned = planning("--tflops", 1, "--kl", 0)
    assert number(planned, r"Memory +([\d.]+)") == 0
    assert ", reference" not in planned
    assert " 0.00 GiB of it the reference" in planned
    assert needed[0] > 16 * trained


def test_the_estimated_memory_is_what_an_update_keeps(base):
    """Against what autograd holds of 8 answers to each of 4 prompts of 64 tokens."""
    model = AutoModelForCausalLM.from_pretrained(base)
    activations = modeling_cost.measure_activations(model.to("meta"), "fp32")
    model = AutoModelForCausalLM.from_pretrained(base)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, answers = torch.ones(4, 64, dtype=torch.int64), torch.ones(4, 8, 3, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer_log_probabilities(model, ids, torch.ones_like(ids), answers)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    scored = 4 * (1 + 8 * 2)
    tokens = 4 * (64 + 8 * 2)
    logits = model.config.vocab_size * 8
    estimate = tokens * activations.per_token + activations.fixed
    estimate += scored * (activations.per_answer - logits)
    assert estimate == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize(
    "options", [("--rollouts", "gumbel", "--reuse", 1), ("--precision", "bf16")]
)
def test_other_runs_are_planned(planning, options):
    assert "from timed steps" in planning(*options)


def test_what_a_plan_refuses(planning):
    with pytest.raises(InputError, match="--group 49: the catalogue has 48 items"):
        planning("--group", 49)
    with pytest.raises(InputError, match="--devices: 0 is too small"):
        planning("--devices", 0)
    with pytest.raises(InputError, match="--model nowhere: not a checkpoint"):
        planning("--model", "nowhere")
