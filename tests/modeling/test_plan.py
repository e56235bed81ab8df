"""`lcrec plan`: parameters, tokens, memory and time, by hand and on shapes too large to hold."""

import re

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, T5Config

from lcrec import plan
from lcrec.core.errors import InputError
from lcrec.modeling import cost, finetuning
from lcrec.modeling.base import add_adapter, load_base
from lcrec.modeling.batches import padded_losses, split_buffers
from lcrec.prompts.rows import collate_left

PLAIN = {"precision": "bf16", "quantize": "none", "checkpointing": False}


def adapt(model):
    return add_adapter(model, [48, 49], rank=2, alpha=4, dropout=0.0)


def small(tied):
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


# By hand: a layer has 4 x 8 x 8 of attention, 3 x 8 x 16 of feed-forward, 2 x 8 of norms.
LAYER = 256 + 384 + 16


@pytest.mark.parametrize("tied", [True, False])
def test_parameters(tied):
    shape = cost.measure_shape(small(tied))
    ends = 400 if tied else 800
    assert shape.total == shape.trainable == ends + 3 * LAYER + 8
    assert (shape.ends, shape.head, shape.linear) == (ends, 400, 3 * LAYER + 8)
    assert (shape.layers, shape.width, shape.vocabulary) == (3, 8, 50)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_an_adapter(tied):
    plain = cost.measure_shape(small(tied))
    shape = cost.measure_shape(adapt(small(tied)))
    # Per layer: four matrices 8 to 8, two 8 to 16, one 16 to 8; rank times both sides.
    lora = 3 * 2 * (4 * 16 + 3 * 24)
    rows = 2 * 8 * (1 if tied else 2)
    assert shape.trainable == lora + rows
    assert (shape.linear, shape.ends) == (plain.linear, plain.ends)


def test_four_bits_hide_no_parameter(base):
    models = [load_base(str(base), quantize=bits)[0] for bits in ("none", "4bit")]
    adapted = [add_adapter(model, [3, 4], rank=2, alpha=4, dropout=0.0) for model in models]
    whole, packed = map(cost.measure_shape, adapted)
    assert packed == whole


def rows(*lengths, answer=2):
    return Dataset.from_dict(
        {
            "input_ids": [[1] * length for length in lengths],
            "prompt_length": [length - answer for length in lengths],
        }
    )


def test_work():
    work = cost.measure_work(
        rows(5, 7, 3, 4, 6), batch_size=2, accumulate=1, processes=1, max_tokens=None
    )
    assert (work.samples, work.tokens, work.answer_tokens, work.steps) == (5, 25, 10, 3)
    assert (work.batch_tokens, work.batch_answers) == (14, 4)  # 2 x 7; 2 x 2 answers
    assert cost.measure_work(
        rows(5, 7, 3, 4, 6), batch_size=2, accumulate=2, processes=2, max_tokens=8
    ) == cost.Work(samples=5, tokens=25, answer_tokens=10, steps=1, batch_tokens=8, batch_answers=4)


SHAPE = cost.Shape(
    total=1000, trainable=100, linear=700, ends=200, block=350, head=200, layers=2, width=10,
    vocabulary=20,
)  # fmt: skip
WORK = cost.Work(samples=4, tokens=40, answer_tokens=8, steps=2, batch_tokens=20, batch_answers=6)

HELD = cost.Activations(per_token=300, per_answer=280, fixed=70)


def test_memory_and_operations_by_hand():
    activations, logits = 20 * 300, 6 * 280
    alone = cost.memory(SHAPE, WORK, HELD, processes=1, sharding="none", **PLAIN)
    assert alone == 900 * 2 + 100 * 16 + 70 + activations + logits
    zero2 = cost.memory(SHAPE, WORK, HELD, processes=2, sharding="zero2", **PLAIN)
    assert alone - zero2 == 100 * 12 / 2
    whole = cost.memory(SHAPE, WORK, HELD, processes=2, sharding="full", **PLAIN)
    # Two blocks are whole, and no weight is cast for autocast.
    assert alone - whole == (900 * 2 + 100 * 16) / 2 - 2 * 350 * 2 + 70
    four = cost.memory(
        SHAPE, WORK, HELD, processes=1, sharding="none", **(PLAIN | {"quantize": "4bit"})
    )
    assert alone - four == pytest.approx(700 * (2 - 4.127 / 8))
    checkpointed = cost.memory(
        SHAPE, WORK, HELD, processes=1, sharding="none", **(PLAIN | {"checkpointing": True})
    )
    assert alone - checkpointed == activations - (20 * 10 * 2 * 2 + 20 * 150)
    through = 40 * 700 * (4 + 2 * 0.1)
    assert cost.operations(SHAPE, WORK, checkpointing=False) == pytest.approx(through + 8 * 200 * 6)
    again = cost.operations(SHAPE, WORK, checkpointing=True) - cost.operations(
        SHAPE, WORK, checkpointing=False
    )
    assert again == pytest.approx(40 * 700 * 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_activations_are_what_a_forward_pass_keeps(precision, mode):
    def make():
        return small(True) if mode == "full" else adapt(small(True))

    with torch.device("meta"):
        shape = make()
    found = cost.measure_activations(shape, precision)
    model = make().train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that none is used twice
        return tensor

    batch = collate_left([{**row, "task": "seqrec"} for row in rows(*[64] * 5, 50, answer=3)], 0)
    arithmetic = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), arithmetic:
        padded_losses(model, batch, 3)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    logits = 50 * (8 if precision == "fp32" else 10)
    estimate = 384 * found.per_token + 18 * (found.per_answer - logits) + found.fixed
    assert estimate == pytest.approx(real, rel=0.1)


def test_no_weights_are_needed(base, tmp_path):
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    Qwen3Config(num_hidden_layers=36, hidden_size=4096).save_pretrained(tmp_path)
    model, _ = cost.load_shape(str(tmp_path))
    assert {p.device for p in model.parameters()} == {torch.device("meta")}
    assert 7e9 < cost.measure_shape(model).total < 15e9


def test_a_shape_that_is_none(base, tmp_path):
    with pytest.raises(InputError, match=r"--base .*cannot be loaded.*config\.json"):
        cost.load_shape(str(tmp_path))
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"--base .*cannot be planned as a causal language model"):
        cost.load_shape(str(tmp_path))


def number(text, pattern):
    return float(re.search(pattern, text)[1].replace(",", ""))


@pytest.fixture
def planning(finetune_words, tmp_path, capsys):
    """Plan the run of the fixture `finetune`: `planning("--tflops", 1)` returns what is printed."""

    def run(*options):
        words = finetune_words(tmp_path / "model", *options)
        place = words.index("--output")
        plan.main(words[:place] + words[place + 2 :])
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("options", [(), ("--tflops", 1)], ids=["timed", "estimated"])
def test_a_run_is_planned(planning, tmp_path, options):
    out = planning(*options)
    assert not (tmp_path / "model").exists()  # a plan leaves nothing behind
    assert number(out, r"Samples, tokens +([\d,]+)") == 64
    assert number(out, r"Updates +([\d,]+)") == 8
    assert "FSDP or ZeRO-3 on 2" in out
    assert ("from timed steps" if not options else "estimated from") in out
    assert ("On a CPU add 1 to 2 GiB" in out) == (not options)


def test_the_timing_of_steps_tells_how_far_it_is(planning, monkeypatch):
    told = []

    def progress(steps, *words, **options):
        told.append((len(steps), *words))
        return steps

    monkeypatch.setattr(cost, "progress", progress)
    planning()
    assert told == [(5, "time", "steps")]


def test_steps_are_timed_packed_where_training_packs(planning, monkeypatch):
    """As on a GPU, where each width of padded rows would be compiled anew."""
    monkeypatch.setattr(finetuning, "choose_attention", lambda *_, **__: True)
    monkeypatch.setattr(finetuning, "device_bytes", lambda: 2**30)
    widths = []

    def note(batch, count):
        widths.append(batch["input_ids"].shape[1])
        return split_buffers(batch, count)

    monkeypatch.setattr("lcrec.modeling.cost.split_buffers", note)
    assert "from timed steps" in planning("--share-prefix", "off")
    assert len(widths) > 1
    assert len(set(widths)) == 1


def test_a_plan_for_more_devices_than_there_are(planning):
    out = planning("--tflops", 1, "--devices", 4)
    assert number(out, r"Updates +([\d,]+)") == 2
    assert "FSDP or ZeRO-3 on 4" in out
    assert "on 4 device(s)" in out


@pytest.mark.usefixtures("fast_bf16")
def test_a_plan_says_what_training_then_says(planning, finetune, tmp_path, capsys):
    planned = planning()
    finetune(tmp_path / "model")
    trained = capsys.readouterr().out
    assert number(planned, r", trained ([\d,]+)") == number(trained, r"Training ([\d,]+)")
    assert number(planned, r"and ([\d,]+), in answers") == number(trained, r"([\d,]+) tokens")
    assert "--precision bf16 saves time" in planned
    assert "--precision bf16 saves time" in trained


def test_what_a_plan_refuses(planning):
    with pytest.raises(InputError, match=r"--warmup 1\.0: give a share below 1"):
        planning("--warmup", 1)
    with pytest.raises(InputError, match="--devices: 0 is too small"):
        planning("--devices", 0)
