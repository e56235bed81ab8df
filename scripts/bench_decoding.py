"""How fast and how lean the decoding is: ratios to transformers' `generate`, on this machine.

    python scripts/bench_decoding.py

A model of 40 million parameters with random weights ranks 10,000 items (4 levels of 256 codes) for
batches of 8 prompts of 200 tokens with 20 beams. All ways run in one process, in turn, round after
round, and a figure is the median over rounds of the ratio within a round, so that what else the
machine does falls on all alike. Memory is the peak resident set above the process with the model
loaded, each way in a process of its own. The last line is one JSON object:

- `vs_prefix_fn`: users per second against `generate` with `prefix_allowed_tokens_fn` over a dict;
- `vs_logits_processor`: against `generate` with `ItemConstraint`, all beams at once;
- `vs_prefill`: time against one forward pass over the prompts with `logits_to_keep=1`;
- `vs_prefill_shared`: the same, of prompts that begin with the same 80 tokens, which are read once
  for all batches; against one forward pass over the whole prompts;
- `memory_ratio`: peak memory against `generate` with `prefix_allowed_tokens_fn`;
- `vs_prefix_fn_152k`: as the first, with a vocabulary of 152,000;
- `tree_10m_seconds`, `tree_10m_peak_mb`: to build the tree of 10 million items;
- `constraint_share`: of a step after the prompt, the share spent in the tree.

`--ways gpu` measures models of 0.135, 0.6 and 7 billion parameters in bf16 on a GPU, in batches of
64 with 20, 50 and 256 beams: `gpu_0.6b_20_users_per_second`, `gpu_0.6b_20_vs_prefill` and so on,
with `20_shared` for 20 beams after prompts that begin with the same 80 tokens, `20_launched` for 20
beams whose steps are launched each time instead of replayed as a CUDA graph; `gpu_0.6b_captured` is
1 where they could be captured.

Ratios of time are given twice: by the clock, and with `_processor` at the end by the processors'
time, which other work on the machine disturbs less (with one thread; two wait for each other
busily). It takes about 10 minutes on two free cores.
"""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from lcrec.core.config import option, parse_config
from lcrec.core.device import prepare_cuda
from lcrec.core.errors import InputError, run_stage
from lcrec.generate.beams import BeamOutput, beam_search, read_head
from lcrec.generate.compiled import StepGraphs
from lcrec.generate.hf_generate import generate_search
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.search import supports_shared_prefix
from lcrec.generate.trie import ItemTrie

WORDS = 32_000  # vocabulary beside the item tokens
LEVELS, CODES = 4, 256
ITEMS = 10_000
BATCH, PROMPT, BEAMS = 8, 200, 20
HEAD = 80  # tokens that prompts begin with, where they begin alike
HAD = 50  # items each user may not get
WAYS = ("speed", "memory", "wide", "tree", "gpu")
GPU_BATCH = 64
SIZES: tuple[str, ...] = ("hidden_size", "intermediate_size", "num_hidden_layers")
SIZES += ("num_attention_heads", "num_key_value_heads", "head_dim")
SMALL = (512, 1536, 7, 8, 4, 64)
# As SmolLM2-135M, as Qwen3-0.6B, and as LLaMA-7B, on which LC-Rec was built.
GPU_SHAPES = {
    "smollm2": (576, 1536, 30, 9, 3, 64),
    "0.6b": (1024, 3072, 28, 16, 8, 128),
    "7b": (4096, 11_008, 32, 32, 32, 128),
    "tiny": (32, 64, 1, 1, 1, 32),  # to try the script with, on a CPU too
}
GPU_BEAMS = (20, 50, 256)


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `scripts/bench_decoding.py`."""

    rounds: int = option("rounds to take the median of", 5, minimum=1)
    threads: int = option("threads of the process", 2, minimum=1)
    ways: list[str] = option(
        "what to measure: speed, memory, wide (the large vocabulary), tree, gpu",
        ["speed", "memory", "wide", "tree"],
    )
    shapes: list[str] = option(
        "models to measure on a GPU: smollm2, 0.6b, 7b, tiny", ["smollm2", "0.6b", "7b"]
    )


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    config = parse_config(
        BenchConfig, argv, description=__doc__ or "", prog="python scripts/bench_decoding.py"
    )
    for way in config.ways:
        if way not in WAYS:
            raise InputError(f"--ways {way}: is none of {', '.join(WAYS)}")
    for shape in config.shapes:
        if shape not in GPU_SHAPES:
            raise InputError(f"--shapes {shape}: is none of {', '.join(GPU_SHAPES)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if "gpu" in config.ways and device == "cpu" and config.shapes != ["tiny"]:
        raise InputError("--ways gpu: there is no CUDA GPU here")
    torch.set_num_threads(config.threads)
    figures: dict[str, float] = {}
    if "memory" in config.ways:
        print("Peak memory above the loaded model, each way in its own process ...")
        figures |= measure_memory(config.threads)
    if "tree" in config.ways:
        print("Building the tree of 10,000,000 items ...")
        figures |= measure_tree(config.threads, config.rounds)
    if "speed" in config.ways:
        print(f"{config.rounds} rounds with a vocabulary of {WORDS + LEVELS * CODES:,} ...")
        figures |= measure_speed(config.rounds)
    if "wide" in config.ways:
        print(f"{config.rounds} rounds with a vocabulary of 152,000 ...")
        figures |= measure_wide(config.rounds)
    if "gpu" in config.ways:
        for name in config.shapes:
            print(f"{config.rounds} rounds with the shape of {name} in bf16 on {device} ...")
            figures |= measure_gpu(name, config.rounds, device)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


# What is compared.


def make_model(vocabulary: int, shape: tuple[int, ...] = SMALL) -> PreTrainedModel:
    """Make a random model of Qwen3's kind; 39 million parameters with 33,024 entries."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(zip(SIZES, shape, strict=True))
    config = Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, **sizes)
    return Qwen3ForCausalLM(config).eval()


def make_catalogue(items: int, first_token: int) -> np.ndarray:
    """Draw distinct paths and spell them in tokens, int64 [items, levels]."""
    rng = np.random.default_rng(0)
    paths = np.unique(rng.integers(CODES**LEVELS, size=items + items // 100))
    while len(paths) < items:
        paths = np.unique(np.append(paths, rng.integers(CODES**LEVELS, size=items)))
    paths = rng.permutation(paths)[:items]
    shifts = 8 * np.arange(LEVELS)[::-1]
    return ((paths[:, None] >> shifts) & (CODES - 1)) + first_token + CODES * np.arange(LEVELS)


def make_prompts(seed: int, batch: int = BATCH) -> Tensor:
    """Draw a batch of prompts, int64 [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(WORDS, (batch, PROMPT), generator=generator)


def dict_of_prefixes(items: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """Return which tokens may follow each prefix of an item."""
    following: dict[tuple[int, ...], set[int]] = {}
    for row in items.tolist():
        for level, token in enumerate(row):
            following.setdefault(tuple(row[:level]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in following.items()}


def generate_by_prefixes(
    model: PreTrainedModel,
    prompts: Tensor,
    prefixes: dict[tuple[int, ...], list[int]],
    beams: int = BEAMS,
) -> Tensor:
    """Search by `generate` with `prefix_allowed_tokens_fn`; paths int64 [batch, beam, levels]."""

    def allowed(_: int, path: Tensor) -> list[int]:
        return prefixes.get(tuple(path[PROMPT:].tolist()), [0])

    generate: Any = model.generate
    found = generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        prefix_allowed_tokens_fn=allowed,
        max_new_tokens=LEVELS,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[:, PROMPT:].view(len(prompts), beams, LEVELS)


class Setting:
    """One model, one catalogue and the ways to search it, each `way(prompts)`."""

    def __init__(self, vocabulary: int, model: PreTrainedModel | None = None) -> None:
        self.model = model or make_model(vocabulary)
        self.items = make_catalogue(ITEMS, vocabulary - LEVELS * CODES)

    def prepare(
        self, way: str, beams: int = BEAMS, graphs: StepGraphs | None = None
    ) -> Callable[[Tensor], Any]:
        """Return a way, with all that it needs made beforehand."""
        model = self.model
        if way == "prefix_fn":
            prefixes = dict_of_prefixes(self.items)
            return lambda prompts: generate_by_prefixes(model, prompts, prefixes)
        trie = ItemTrie.build(self.items).to(model.device)
        if way == "shared_prefix":
            assert supports_shared_prefix(model)
            return lambda p: beam_search(model, p, torch.ones_like(p), trie, beams, graphs=graphs)
        if way == "shared_head":
            start = torch.arange(HEAD, device=model.device)
            head = read_head(model, start.tolist())

            def search(prompts: Tensor) -> BeamOutput:
                prompts = torch.cat([start.expand(len(prompts), -1), prompts[:, HEAD:]], dim=1)
                ones = torch.ones_like(prompts)
                return beam_search(model, prompts, ones, trie, beams, head=head, graphs=graphs)

            return search
        if way == "logits_processor":
            return lambda p: generate_search(model, p, torch.ones_like(p), trie, BEAMS)
        assert way == "prefill"
        return torch.no_grad()(lambda p: model(p, use_cache=True, logits_to_keep=1))


# What is measured.


class Seconds(NamedTuple):
    """Seconds per call in every round, by the clock on the wall and of all processors' work."""

    wall: np.ndarray
    processor: np.ndarray


def time_rounds(
    ways: dict[str, Callable[[Tensor], Any]], rounds: int, order: list[str]
) -> dict[str, Seconds]:
    """Return the seconds per call of every way; a first round, unmeasured, warms up.

    Args:
        ways: what to call with a batch of prompts.
        rounds: how often to go through `order`.
        order: the calls of a round; short ones stand before and after long ones.
    """
    seconds = {way: Seconds(np.zeros(rounds), np.zeros(rounds)) for way in ways}
    for turn in range(rounds + 1):
        prompts = make_prompts(turn)
        for way in order if turn else ways:
            start, start_processor = time.perf_counter(), time.process_time()
            ways[way](prompts)
            if turn:
                share = 1 / order.count(way)
                seconds[way].wall[turn - 1] += share * (time.perf_counter() - start)
                seconds[way].processor[turn - 1] += share * (time.process_time() - start_processor)
    for way, (wall, processor) in seconds.items():
        print(
            f"  {way:<18} {1000 * np.median(wall):9.1f} ms a call, "
            f"{1000 * np.median(processor):9.1f} ms of processors"
        )
    return seconds


def ratios(name: str, numerator: Seconds, denominator: Seconds) -> dict[str, float]:
    """Return the medians over rounds of one time over another, by both clocks."""
    return {
        name: float(np.median(numerator.wall / denominator.wall)),
        f"{name}_processor": float(np.median(numerator.processor / denominator.processor)),
    }


def measure_speed(rounds: int) -> dict[str, float]:
    """Compare the ways, and make sure that they agree."""
    setting = Setting(WORDS + LEVELS * CODES)
    parameters = sum(p.numel() for p in setting.model.parameters())
    print(f"  {parameters / 1e6:.1f} million parameters, {torch.get_num_threads()} threads")
    names = ("shared_prefix", "shared_head", "prefill", "logits_processor", "prefix_fn")
    ways = {name: setting.prepare(name) for name in names}
    short, (*_, processor, prefix_fn) = list(names[:3]), names
    seconds = time_rounds(ways, rounds, [*short, processor, *short, prefix_fn, *short])
    ours = seconds["shared_prefix"]
    prompts = make_prompts(0)
    found = ways["shared_prefix"](prompts)
    assert (found.items == ways["logits_processor"](prompts).items).all()
    paths = torch.from_numpy(setting.items)[found.items]
    assert (paths == ways["prefix_fn"](prompts)).all(), "the ways disagree"
    return {
        **ratios("vs_prefix_fn", seconds["prefix_fn"], ours),
        **ratios("vs_logits_processor", seconds["logits_processor"], ours),
        **ratios("vs_prefill", ours, seconds["prefill"]),
        **ratios("vs_prefill_shared", seconds["shared_head"], seconds["prefill"]),
        "constraint_share": constraint_share(setting, rounds),
    }


def measure_wide(rounds: int) -> dict[str, float]:
    """Compare with a vocabulary as large as those of current models."""
    setting = Setting(152_000)
    ways = {name: setting.prepare(name) for name in ("shared_prefix", "prefix_fn")}
    seconds = time_rounds(ways, rounds, ["shared_prefix", "prefix_fn", "shared_prefix"])
    return ratios("vs_prefix_fn_152k", seconds["prefix_fn"], seconds["shared_prefix"])


def measure_gpu(name: str, rounds: int, device: str) -> dict[str, float]:
    """Measure users per second, and the time against one forward pass over the prompts."""
    vocabulary = WORDS + LEVELS * CODES if name == "tiny" else 152_000
    prepare_cuda()
    with torch.device(device):
        model = make_model(vocabulary, GPU_SHAPES[name])
    torch.nn.Module.to(model, torch.bfloat16)
    setting = Setting(vocabulary, model)
    graphs = StepGraphs(setting.model.device)
    ways = {
        str(beams): setting.prepare("shared_prefix", beams, graphs) for beams in GPU_BEAMS[::-1]
    }
    ways |= {"20_shared": setting.prepare("shared_head", graphs=graphs)}
    ways |= {"20_launched": setting.prepare("shared_prefix"), "prefill": setting.prepare("prefill")}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 2):  # two to warm up, of which the second captures the steps
        prompts = make_prompts(turn, GPU_BATCH if device == "cuda" else 2).to(device)
        for way, call in ways.items():
            start = time.perf_counter()
            call(prompts)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    medians = {way: float(np.median(found[2:])) for way, found in seconds.items()}
    figures = {}
    for way in ways:
        if way != "prefill":
            figures[f"gpu_{name}_{way}_users_per_second"] = len(prompts) / medians[way]
            figures[f"gpu_{name}_{way}_vs_prefill"] = medians[way] / medians["prefill"]
    figures[f"gpu_{name}_captured"] = float(graphs.captures)
    print("  " + ", ".join(f"{key}: {value:.3g}" for key, value in figures.items()), flush=True)
    return figures


def constraint_share(setting: Setting, rounds: int) -> float:
    """Return the share of the time after the prompt, the processors', that goes into the tree.

    Deny lists are part of it.
    """
    trie = ItemTrie.build(setting.items)
    rng = np.random.default_rng(0)
    had = [rng.permutation(ITEMS)[:HAD] for _ in range(BATCH)]
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            result = function(*arguments, **options)
            spent += time.process_time() - start
            return result

        return call

    prefill = setting.prepare("prefill")
    shares = []
    for turn in range(3 * rounds):
        prompts = make_prompts(turn)
        spent = 0.0
        with (
            mock.patch.object(ItemTrie, "children", timed(ItemTrie.children)),
            mock.patch.object(LeafFilter, "reachable", timed(LeafFilter.reachable)),
            mock.patch.object(ItemTrie, "items", timed(ItemTrie.items)),
        ):
            start = time.process_time()
            leaf_filter = timed(LeafFilter.build)(trie, BATCH, deny=had)
            ones = torch.ones_like(prompts)
            beam_search(setting.model, prompts, ones, trie, BEAMS, leaf_filter=leaf_filter)
            whole = time.process_time() - start
        start = time.process_time()
        prefill(prompts)
        steps = whole - (time.process_time() - start)
        shares.append(spent / steps)
    return statistics.median(shares)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process and return what it returns."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_memory(threads: int) -> dict[str, float]:
    """Compare peak memory."""
    peaks = {
        way: in_own_process(peak_of_way, way, threads) for way in ("shared_prefix", "prefix_fn")
    }
    for way, peak in peaks.items():
        print(f"  {way:<18} {peak:9.1f} MB")
    return {"memory_ratio": peaks["shared_prefix"] / peaks["prefix_fn"]}


def peak_of_way(way: str, threads: int) -> float:
    """Return the peak memory of one search above the process with the model loaded, in MB."""
    torch.set_num_threads(threads)
    setting = Setting(WORDS + LEVELS * CODES)
    search = setting.prepare(way)
    # What libraries load on their first call belongs to the process, not to the way.
    warm = torch.ones(1, 2, dtype=torch.int64)
    setting.prepare("prefill")(warm)
    start = start_peak()
    search(make_prompts(0))
    return peak_memory() - start


def measure_tree(threads: int, rounds: int) -> dict[str, float]:
    """Build the tree of 10 million items: seconds, and peak memory above that of its input."""
    runs = [in_own_process(build_tree, threads) for _ in range(min(rounds, 3))]
    seconds, peak = np.median(runs, axis=0).tolist()
    print(f"  {seconds:.1f} s, {peak:.0f} MB above its input")
    return {"tree_10m_seconds": seconds, "tree_10m_peak_mb": peak}


def build_tree(threads: int) -> tuple[float, float]:
    """Return the seconds that building takes, and its peak memory in MB."""
    torch.set_num_threads(threads)
    items = make_catalogue(10_000_000, WORDS)
    before, start = start_peak(), time.perf_counter()
    ItemTrie.build(items)
    return time.perf_counter() - start, peak_memory() - before


def start_peak() -> float:
    """Forget the peak so far and return the memory in use, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """Return the largest resident set since `start_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    run_stage(main)
