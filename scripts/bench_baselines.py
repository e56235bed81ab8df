"""Measure what comparing methods costs: a full evaluation, epochs, and the beams of TIGER.

    python scripts/bench_baselines.py                           synthetic, of Instruments' size
    python scripts/bench_baselines.py --data data/Instruments

Every part runs in a process of its own:

  evaluate   rank all items for every user by dot products of 64 numbers, as a fitted method does,
             write lists of 100, read them back with every check, and take the metrics with their
             intervals. 25,000 users and 10,000 items unless --data says otherwise.
  lightgcn   epochs with the default settings, without validation; the first, which warms up, does
  sasrec     not count
  lengths    a validation of SASRec with histories read in groups by length, and all padded to the
             longest, in turn, median of five rounds of processor time
  places     an epoch of SASRec on 2,000 users with its last block at the one place that an example
             asks for, and at all places, in turn, median of five rounds of processor time
  tiger      users ranked per second by TIGER's T5 with its defaults, random weights and 20 beams,
             and the ratio to `generate` under the same constraint, in turn, median of five rounds
  training   an epoch of TIGER's defaults on 500 users in float32 and with `--precision bf16`, in
             turn, median of five rounds of processor time

Seconds are wall time; `..._cpu_seconds` is the processor's, which other work on the machine hardly
changes. Memory is the peak of the process above what it had with its modules loaded. Prints what
it finds, and one JSON object on the last line. About 4 minutes on two cores.
"""

import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch

from lcrec.baselines.base import TrainingData, find_method, method_class
from lcrec.baselines.methods.attention import SASRec
from lcrec.baselines.methods.generative import TIGER
from lcrec.baselines.runs.inputs import load_inputs
from lcrec.baselines.runs.ranking import rank_cases, validate
from lcrec.baselines.runs.run import peak_mb
from lcrec.baselines.settings import SASRecSettings, TIGERSettings
from lcrec.baselines.shared import sequences
from lcrec.baselines.shared.graph import VectorBaseline
from lcrec.baselines.shared.transformer import Encoder
from lcrec.core.config import option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.data.folder import Interactions
from lcrec.data.splits import Split, leave_one_out
from lcrec.generate.hf_generate import generate_search
from lcrec.generate.search import search
from lcrec.generate.trie import ItemTrie
from lcrec.index.item_index import ItemIndex
from lcrec.rankings.metrics import measure_lists, summarise_all
from lcrec.rankings.predictions import read_predictions, write_predictions

USERS, ITEMS = 25_000, 10_000  # Amazon 2018 Musical Instruments has 24,772 and 9,922
LENGTHS = 5.0, 3.3  # least and mean beyond it: 8.3 per user there
DIM = 64
LEVELS, CODES = 4, 256  # of an index of random paths, for TIGER
HISTORIES, HISTORY, BEAMS, ROUNDS = 16, 8, 20, 5  # histories at a time, items in each
READ_BY_SASREC, READ_BY_TIGER = 2000, 500  # users of an epoch
Figures = dict[str, Any]


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `python scripts/bench_baselines.py`."""

    data: Path | None = option("a data folder (default: synthetic)", None)
    parts: list[str] = option(
        "which parts to run",
        ["evaluate", "lightgcn", "sasrec", "lengths", "places", "tiger", "training"],
    )
    epochs: int = option("epochs that count, of a trained method", 2, minimum=1)
    seed: int = option("decides the data and every start", 0, minimum=0)


class Vectors(VectorBaseline):
    """Random vectors: what a fitted dot-product method is to an evaluation."""

    def fit(self, data: TrainingData) -> None:
        """Draw them."""
        rng = np.random.default_rng(self.seed)
        self.user_vectors = rng.normal(size=(len(data.train), DIM)).astype(np.float32)
        self.item_vectors = rng.normal(size=(data.num_items, DIM)).astype(np.float32)


def main(argv: list[str]) -> None:
    """Run the parts one after the other."""
    config = parse_config(BenchConfig, argv, description=__doc__ or "", prog="bench_baselines.py")
    unknown = set(config.parts) - set(PARTS)
    if unknown:
        raise InputError(f"--parts {sorted(unknown)}: there are {', '.join(PARTS)}")
    figures: Figures = {"cores": os.cpu_count(), "data": str(config.data or "synthetic")}
    for part in config.parts:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(PARTS[part], config).result()
        print(part)
        for name, value in found.items():
            print(f"  {name} = {value}", flush=True)
        figures |= found
    peaks = [value for name, value in figures.items() if name.endswith("_peak_mb")]
    print(json.dumps(figures | ({"peak_mb": max(peaks)} if peaks else {})))


def inputs(config: BenchConfig) -> tuple[Split, int]:
    """Return the split and the size of the catalogue."""
    if config.data is not None:
        read = load_inputs(config.data, None, set(), "bench")
        return read.split, read.training.num_items
    rng = np.random.default_rng(config.seed)
    lengths = (LENGTHS[0] + rng.exponential(LENGTHS[1], USERS)).astype(int)
    popularity = 1 / np.arange(1, ITEMS + 1) ** 0.7
    drawn = rng.choice(ITEMS, size=int(lengths.sum()), p=popularity / popularity.sum())
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    users = [f"u{user}" for user in range(USERS)]
    return leave_one_out(Interactions(users, offsets, drawn.astype(np.int32))), ITEMS


def evaluate(config: BenchConfig) -> Figures:
    """Rank, write, read and measure; then validate, as a training does after an epoch."""
    split, num_items = inputs(config)
    method = Vectors(seed=config.seed)
    data = TrainingData(split.train, num_items)
    method.fit(data)
    before, started = peak_mb(), Clock()
    figures: Figures = {"users": len(split.test), "items": num_items}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        write_predictions(
            path, split.test.predictions(rank_cases(method, split.test, data, top=100))
        )
        figures["rank_and_write_seconds"] = started.seconds()
        predictions = read_predictions(path)
        figures["file_mb"] = path.stat().st_size / 1e6
    (ranked,) = predictions.ranked.values()
    summarise_all(measure_lists(ranked, predictions.targets, 20), config.seed)
    figures["evaluate_seconds"], figures["evaluate_cpu_seconds"] = started.both()
    figures["evaluate_peak_mb"] = above(before)
    del predictions
    started = Clock()
    validate(method, split.valid, data)
    figures["validate_seconds"], figures["validate_cpu_seconds"] = started.both()
    return figures


def lightgcn(config: BenchConfig) -> Figures:
    """Time epochs of LightGCN."""
    return epochs_of("lightgcn", config)


def sasrec(config: BenchConfig) -> Figures:
    """Time epochs of SASRec."""
    return epochs_of("sasrec", config)


def epochs_of(name: str, config: BenchConfig) -> Figures:
    """Time the epochs of a method that keeps a `log` of them."""
    kind = method_class(find_method(name))
    split, num_items = inputs(config)
    method = kind(kind.Settings(epochs=config.epochs + 1), seed=config.seed)
    before, started = peak_mb(), Clock()
    method.fit(TrainingData(split.train, num_items))
    _, cpu = started.both()
    seconds = [epoch.seconds for epoch in method.log.epochs]
    return {
        f"{name}_epoch_seconds": round(float(np.mean(seconds[1:])), 4),
        f"{name}_epoch_cpu_seconds": round(cpu / len(seconds), 2),
        f"{name}_peak_mb": above(before),
    }


def lengths(config: BenchConfig) -> Figures:
    """Time a validation that reads histories by length, against one that pads them all alike."""
    split, num_items = inputs(config)
    method = SASRec(seed=config.seed)
    data = TrainingData(split.train, num_items)
    method.network = method.build(data).eval()
    seconds: dict[int, list[float]] = {sequences.LENGTHS: [], 1: []}
    for turn in range(ROUNDS + 1):  # the first warms up
        for groups, found in seconds.items():
            with mock.patch.object(sequences, "LENGTHS", groups):
                started = time.process_time()
                validate(method, split.valid, data)
            if turn:
                found.append(time.process_time() - started)
    grouped, padded = (float(np.median(found)) for found in seconds.values())
    return {
        "lengths_validate_cpu_seconds": round(grouped, 2),
        "lengths_vs_padded": round(padded / grouped, 2),
    }


def places(config: BenchConfig) -> Figures:
    """Time epochs of SASRec whose last block computes one place of a history, against all."""
    split, num_items = inputs(config)
    data = TrainingData(first_users(split.train, READ_BY_SASREC), num_items)
    one = Encoder.forward

    def every(
        encoder: Encoder, *args: Any, asked: tuple[torch.Tensor, torch.Tensor], **given: Any
    ) -> torch.Tensor:
        return one(encoder, *args, **given)[asked]

    seconds: dict[Any, list[float]] = {one: [], every: []}
    for turn in range(ROUNDS + 1):  # the first warms up
        for forward, found in seconds.items():
            method = SASRec(SASRecSettings(epochs=1), seed=config.seed)
            started = Clock()
            with mock.patch.object(Encoder, "forward", forward):
                method.fit(data)
            if turn:
                found.append(started.both()[1])
    return {
        "places_epoch_cpu_seconds": float(np.median(seconds[one])),
        "places_vs_all": round(float(np.median(np.divide(seconds[every], seconds[one]))), 2),
    }


def first_users(train: Interactions, count: int) -> Interactions:
    """Return the sequences of the first users."""
    offsets = train.offsets[: count + 1]
    return Interactions(train.users[:count], offsets, train.items[: offsets[-1]])


def tiger(config: BenchConfig) -> Figures:
    """Time the two ways to decode an encoder-decoder, which must agree."""
    _, num_items = inputs(config)
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    network, first = TIGER().build(CODES * LEVELS)
    network.eval()
    tokens = first + random_index(num_items, rng).code_columns
    trie = ItemTrie.build(tokens)
    ways = {"shared": search, "generate": generate_search}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):  # the first warms up
        histories = rng.integers(num_items, size=(HISTORIES, HISTORY))
        prompts = torch.from_numpy(tokens[histories].reshape(HISTORIES, -1))
        lists = []
        for name, way in ways.items():
            started = time.perf_counter()
            lists.append(way(network, prompts, torch.ones_like(prompts), trie, BEAMS).items)
            if turn:
                seconds[name].append(time.perf_counter() - started)
        assert (lists[0] == lists[1]).all(), "the ways disagree"
    ratios = np.divide(seconds["generate"], seconds["shared"])
    return {
        "tiger_users_per_second": round(HISTORIES / float(np.median(seconds["shared"])), 1),
        "tiger_vs_generate": round(float(np.median(ratios)), 2),
    }


def training(config: BenchConfig) -> Figures:
    """Time epochs of TIGER in both arithmetics."""
    split, num_items = inputs(config)
    index = random_index(num_items, np.random.default_rng(config.seed))
    data = TrainingData(first_users(split.train, READ_BY_TIGER), num_items, index=index)
    seconds: dict[Literal["fp32", "bf16"], list[float]] = {"fp32": [], "bf16": []}
    for turn in range(ROUNDS + 1):  # the first warms up
        for precision, found in seconds.items():
            method = TIGER(TIGERSettings(epochs=1, precision=precision), seed=config.seed)
            started = Clock()
            method.fit(data)
            if turn:
                found.append(started.both()[1])
    return {
        "training_bf16_cpu_seconds": float(np.median(seconds["bf16"])),
        "training_bf16_vs_fp32": round(
            float(np.median(np.divide(seconds["fp32"], seconds["bf16"]))), 2
        ),
    }


def random_index(num_items: int, rng: np.random.Generator) -> ItemIndex:
    """Return an index of random paths."""
    paths = np.unique(rng.integers(CODES, size=(2 * num_items, LEVELS), dtype=np.int32), axis=0)
    return ItemIndex(rng.permutation(paths)[:num_items], (CODES,) * LEVELS)


class Clock:
    """Wall and processor time since it was made, in seconds."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return the wall time."""
        return round(time.perf_counter() - self.wall, 2)

    def both(self) -> tuple[float, float]:
        """Return the wall time and the processor's."""
        return self.seconds(), round(time.process_time() - self.cpu, 2)


def above(before: int | None) -> int:
    """Return by how many MB the peak has risen.

    Raises:
        InputError: the system does not tell.
    """
    now = peak_mb()
    if before is None or now is None:
        raise InputError("no /proc/self/status here: the peak of memory is measured on Linux only")
    return now - before


PARTS = {
    "evaluate": evaluate,
    "lightgcn": lightgcn,
    "sasrec": sasrec,
    "lengths": lengths,
    "places": places,
    "tiger": tiger,
    "training": training,
}

if __name__ == "__main__":
    run_stage(main)
