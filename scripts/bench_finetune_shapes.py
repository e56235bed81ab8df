"""Training speed and memory of models of real sizes, made in memory: `bench_finetune.py --shapes`.

A model with random weights is made on the device and trained by the kit's own trainer on random
samples as long as those of Amazon Office Products (32 to 72 tokens, 5 of them answer), in bf16.
"""

import gc
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from bench_finetune_ways import WARM_UP, Clock, peak_memory, start_peak
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from lcrec.data.splits import EvalCases
from lcrec.modeling.base import add_adapter, base_model, choose_attention, compile_layers
from lcrec.modeling.cost import (
    GIB,
    Work,
    measure_activations,
    measure_shape,
    measure_work,
    memory,
    operations,
)
from lcrec.modeling.finetuning import (
    FILLED,
    TrainingModel,
    TrainingRows,
    buffer_tokens,
    make_trainer,
)
from lcrec.modeling.recipe import TrainingSettings
from lcrec.prompts.rows import EpochRows

ITEM_TOKENS = 1024
SHORTEST, LONGEST, ANSWER = 32, 72, 5
# SmolLM2-135M, Qwen3-0.6B, LLaMA-7B, and one to try the script with.
SHAPES: dict[str, PretrainedConfig] = {
    "smollm2": LlamaConfig(
        vocab_size=49_152 + ITEM_TOKENS,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "0.6b": Qwen3Config(
        vocab_size=151_936 + ITEM_TOKENS,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "7b": LlamaConfig(
        vocab_size=32_000 + ITEM_TOKENS,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    "tiny": LlamaConfig(
        vocab_size=2 * ITEM_TOKENS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        tie_word_embeddings=True,
    ),
}
# What is trained, and how attention is computed: packed where it may be, and padded.
WAYS = {
    "full": ("full", "none", "auto"),
    "full, padded": ("full", "none", "sdpa"),
    "LoRA": ("lora", "none", "auto"),
    "QLoRA": ("lora", "4bit", "auto"),
}


def measure_shapes(names: list[str], steps: int) -> dict[str, dict[str, float]]:
    """Train models of these shapes every way that fits, and print and return what each takes.

    Args:
        names: of `SHAPES`.
        steps: updates of each run, of which the first `WARM_UP` are not timed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = measured_tflops(device)
    print(f"A large matrix product reaches {peak:.3g} TFLOPS in bf16", flush=True)
    table = {}
    for name in names:
        for way, (_, quantize, _) in WAYS.items():
            if quantize != "none" and find_spec("bitsandbytes") is None:
                print(f"  {name} {way}: left out, bitsandbytes is not installed")
                continue
            try:
                row = train_shape(name, way, steps, device, peak)
            except torch.OutOfMemoryError:
                row = None
            print(f"  {name} {way}: {row or 'does not fit into the memory of this device'}")
            if row:
                table[f"{name} {way}"] = row
            gc.collect()  # the trainer and its model hold each other
            torch._dynamo.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return table


def train_shape(
    name: str, way: str, steps: int, device: torch.device, peak: float
) -> dict[str, float] | None:
    """Return what a run takes; None where it would not fit into memory."""
    mode, quantize, attention = WAYS[way]
    batch_size = 4 if device.type == "cpu" else 256
    checkpointing = SHAPES[name].hidden_size > 2048
    settings: Any = TrainingSettings(
        data="",  # type: ignore[arg-type]
        index="",  # type: ignore[arg-type]
        base="",
        mode=mode,  # type: ignore[arg-type]
        quantize=quantize,  # type: ignore[arg-type]
        precision="bf16",
        gradient_checkpointing=checkpointing,
        lora_dropout=0.0,
        epochs=1,
        batch_size=batch_size,
        learning_rate=1e-5,
    )
    rows = draw_rows(steps * batch_size, SHAPES[name].vocab_size)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 2.0**33
    started = time.perf_counter()
    planned: Any = adapt(make_shape(name, torch.device("meta"), mode), mode)
    shape = measure_shape(planned)
    activations = measure_activations(planned, "bf16")
    how: Any = {"precision": "bf16", "quantize": quantize, "checkpointing": checkpointing}
    how |= {"processes": 1, "sharding": "none"}
    if memory(shape, Work(0, 0, 0, 0, 0, 0), activations, **how) > FILLED * free:
        return None
    model = make_shape(name, device, mode)
    packs = choose_attention(model, attention, dropout=0.0, precision="bf16")
    packs |= device.type == "cpu" and attention == "auto"  # by a dense mask there
    if quantize == "4bit":
        quantise_layers(model)
    adapted = adapt(model, mode)
    trained = TrainingModel(adapted, make_tokenizer(), [], packs)
    capacity = buffer_tokens(settings, trained, rows, activations, free) if packs else None
    if packs and device.type == "cuda":
        compile_layers(adapted)
    start_peak()
    trainer = make_trainer(
        settings,
        trained,
        rows,
        lambda *_: np.zeros((0, 20), dtype=np.int64),
        num_items=20,
        work="runs/none",  # type: ignore[arg-type]
        processes=1,
        capacity=capacity,
    )
    trainer.remove_callback(EarlyStoppingCallback)
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.args.eval_strategy = IntervalStrategy.NO
    trainer.args.load_best_model_at_end = False
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = clock.wall[-1] - clock.wall[WARM_UP - 1]
    timed = rows.train.first.select(range(WARM_UP * batch_size, len(rows.train)))
    work = measure_work(
        timed, batch_size=batch_size, accumulate=1, processes=1, max_tokens=capacity
    )
    estimate = memory(shape, work, activations, **how)
    held = torch.cuda.max_memory_reserved() / GIB if device.type == "cuda" else peak_memory() / 1024
    amount = operations(shape, work, checkpointing=checkpointing)
    return {
        "tokens_per_second": round(work.tokens / seconds),
        "mfu": round(amount / seconds / (peak * 1e12), 4),
        "buffer": capacity or 0,
        "peak_gib": round(peak_memory() / 1024, 2),
        "reserved_gib": round(held, 2),
        "planned_gib": round(estimate / GIB, 2),
        "before_seconds": round(clock.wall[WARM_UP - 1] - started, 1),
    }


def draw_rows(count: int, vocabulary: int) -> TrainingRows:
    """Draw samples as long as those of a shop, of random tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, count).tolist()
    train = Dataset.from_dict(
        {
            "input_ids": [rng.integers(vocabulary, size=length).tolist() for length in lengths],
            "prompt_length": [length - ANSWER for length in lengths],
            "task": ["seqrec"] * count,
        }
    )
    nobody = EvalCases([], [], np.zeros(0, dtype=np.int64))
    return TrainingRows(EpochRows(train), train.select(range(1)), nobody)


def make_shape(name: str, device: torch.device, mode: str) -> PreTrainedModel:
    """Make a random model on the device: in float32 where all is trained, else in bf16."""
    torch.manual_seed(0)
    dtype = torch.float32 if mode == "full" else torch.bfloat16
    with device:
        return AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype)


def adapt(model: PreTrainedModel, mode: str) -> PreTrainedModel | PeftModel:
    """Return the model with what is trained of it: everything, or adapters and the last rows."""
    if mode == "full":
        return model
    vocabulary = model.config.vocab_size
    new_ids = list(range(vocabulary - ITEM_TOKENS, vocabulary))
    return add_adapter(model, new_ids, rank=8, alpha=32, dropout=0.0)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of two entries, which the trainer asks for padding and nothing else."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    )


def quantise_layers(model: PreTrainedModel) -> None:
    """Put NF4, twice quantised, in the place of the blocks' linear layers, one after another."""
    import bitsandbytes

    head = base_model(model).get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or layer is head:
                continue
            four = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            weight = bitsandbytes.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", module=four
            )
            four.weight = weight.to(layer.weight.device)
            setattr(parent, name, four)
    model.is_loaded_in_4bit = True  # by which PEFT knows


def measured_tflops(device: torch.device) -> float:
    """Return what a large matrix product in bf16 reaches, in 10^12 operations per second."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for repeats in (3, 20):  # the first is to warm up
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return 2 * size**3 * 20 / seconds / 1e12
