"""What fine-tuning costs: ratios to the plain way, in one run on this machine.

    python scripts/bench_finetune.py
    python scripts/bench_finetune.py --data FOLDER
    python scripts/bench_finetune.py --shapes 0.6b 7b

A random model of Qwen3's shape (2 layers x 128, 150,000 entries, tied head) is trained with LoRA
on the recipe's default tasks, as `recipes/finetune.py` does it and the plain way: transformers'
`Trainer`, batches padded to their longest row, logits of every position, and PEFT with
`modules_to_save` of embedding and head (tied, as they are in the base). All start from the same
weights, rows of item tokens and adapters included, and get the same batches in the same order
(the kit's, by length, which spares the plain way padding too), the same optimizer, no dropout.
Each runs in a process of its own, in turn, round after round. The last line is one JSON object:

- `tokens_ratio`: tokens of real content per second, the kit's over the plain way's, median over
  the rounds, without the first steps;
- `cpu_tokens_ratio`: the same per second of processor time, which other work on the machine
  changes little;
- `memory_ratio`: peak memory above the process with the base model loaded (resident set on a CPU,
  allocated on a GPU), likewise;
- `adapter_ratio`: bytes of the saved adapter, likewise;
- `loss_difference`: of the mean training loss over the last quarter of the steps, relative; no
  sample comes twice, so every loss is one of samples not trained on yet;
- `same_rows_difference`: the same, but the plain way trains what the kit trains, the item tokens'
  rows by PEFT's `trainable_token_indices` (once, in the first round): what remains is arithmetic;

- `prefix_ratio`, `packing_ratio`, `plain_ratio`, `prefix_ratio_office` (with --data),
  `prefix_loss_difference`, `bf16_ratio`: of samples that share what they begin with, see
  `bench_finetune_prefix.py`; `--prefix` measures these alone.

With `--shapes` models of real sizes (smollm2, 0.6b, 7b) are trained instead, made in memory: full,
full with padded rows, LoRA and QLoRA, in bf16, batches of 256 samples. Per way the line holds
tokens per second, MFU (of what a large matrix product in bf16 reaches), tokens of a buffer, GiB at
the peak, reserved, and as `lcrec plan` has it, and the seconds before the first timed update.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_finetune_prefix import measure_prefix
from bench_finetune_shapes import SHAPES, measure_shapes
from bench_finetune_ways import WARM_UP, Job, train

from lcrec.core.config import option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.data.folder import load_items
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.base import load_base

TOP = Path(__file__).resolve().parents[1]
LEVEL_SIZES = (256, 256, 256, 256)
WORDS = 7168  # entries of the tokenizer, at most
LEAST = WORDS + sum(LEVEL_SIZES)
BASE = ["--hidden-size", "128", "--layers", "2", "--context", "2048", "--epochs", "0"]


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `scripts/bench_finetune.py`."""

    data: Path | None = option("a data folder (default: a small made-up shop)", None)
    vocabulary: int = option(
        "entries of the base model's vocabulary", 150_000, minimum=WORDS + sum(LEVEL_SIZES)
    )
    steps: int = option("updates of every run", 24, minimum=WARM_UP + 1)
    learning_rate: float = option("peak step size of AdamW", 2e-4, minimum=1e-12)
    rounds: int = option("rounds to take the median of", 3, minimum=1)
    threads: int = option("threads of a process", 2, minimum=1)
    prefix: bool = option("measure shared beginnings alone", False)
    samples: int = option("samples of a batch for shared beginnings", 128, minimum=1)
    layers: int = option("layers of the model for shared beginnings", 30, minimum=1)
    shapes: list[str] = option(f"measure these instead: {', '.join(SHAPES)}", [])


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    config = parse_config(
        BenchConfig, argv, description=__doc__ or "", prog="python scripts/bench_finetune.py"
    )
    for shape in config.shapes:
        if shape not in SHAPES:
            raise InputError(f"--shapes {shape}: expected {' or '.join(SHAPES)}")
    if config.shapes:
        print(json.dumps(measure_shapes(config.shapes, config.steps)))
        return
    torch.set_num_threads(config.threads)
    shared = measure_prefix(
        config.data, layers=config.layers, batch_size=config.samples, rounds=config.rounds
    )
    if config.prefix:
        print(json.dumps(shared))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = (config.data or folder / "shop").resolve()
        if config.data is None:
            stage("synthetic", "--output", data, "--users", "600", "--items", "300")
        prepare(folder, data, config.vocabulary)
        result = compare(folder, data, config)
    print(json.dumps(result | shared))


# What is compared.


def prepare(folder: Path, data: Path, vocabulary: int) -> None:
    """Write the item index and the base model that all runs share."""
    items = load_items(data)
    rng = np.random.default_rng(0)
    cells = rng.choice(np.prod(LEVEL_SIZES), len(items), replace=False, shuffle=False)
    codes = np.stack(np.unravel_index(cells, LEVEL_SIZES), axis=1)
    ItemIndex(codes.astype(np.int32), LEVEL_SIZES).save(folder / "index")
    output = folder / "base"
    stage("tinylm", "--data", data, "--output", output, "--vocab-size", str(WORDS), *BASE)
    model, _ = load_base(str(output))
    torch.manual_seed(0)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(output)


def stage(name: str, *words: str | Path) -> None:
    """Run a stage of the pipeline, from the top folder."""
    command = [sys.executable, "-m", f"lcrec.{name}", *words]
    subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.DEVNULL)


def compare(folder: Path, data: Path, config: BenchConfig) -> dict[str, float]:
    """Train both ways in turn; print what each takes, and return the ratios."""
    job = Job(folder, folder / "base", data, config.steps, config.learning_rate, config.threads)
    print(f"{config.rounds} rounds of {job.steps} updates of {job.batch_size} samples ...")
    rounds = []
    for number in range(1, config.rounds + 1):
        found = {}
        for way in ("plain", "kit", "rows") if number == 1 else ("plain", "kit"):
            found[way] = figures = in_own_process(train, replace(job, way=way))
            print(
                f"  round {number} {way:<6} {figures.tokens_per_second:7.0f} tokens/s "
                f"{figures.own_mb:8.1f} MB  adapter {figures.adapter_bytes / 1e6:7.2f} MB  "
                f"loss {figures.losses[0]:.4f} to {figures.loss:.4f}  "
                f"trained {figures.trainable:,}"
            )
        rounds.append(found)
    plain, kit, rows = (rounds[0][way] for way in ("plain", "kit", "rows"))
    # All train on the same tokens.
    ratios = {
        "tokens_ratio": [found["plain"].seconds / found["kit"].seconds for found in rounds],
        "cpu_tokens_ratio": [
            found["plain"].cpu_seconds / found["kit"].cpu_seconds for found in rounds
        ],
        "memory_ratio": [found["kit"].own_mb / found["plain"].own_mb for found in rounds],
        "adapter_ratio": [kit.adapter_bytes / plain.adapter_bytes],
        "loss_difference": [abs(kit.loss - plain.loss) / plain.loss],
        "same_rows_difference": [abs(kit.loss - rows.loss) / rows.loss],
    }
    return {name: round(statistics.median(values), 6) for name, values in ratios.items()}


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process and return what it returns."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    run_stage(main)
