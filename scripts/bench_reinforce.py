"""What reinforcement costs with a shared prompt: ratios to the plain way, in one run here.

    python scripts/bench_reinforce.py

A random model of 40 million parameters answers prompts of 200 tokens with 16 items each out of
10,000 (4 levels of 256 codes), and learns from them. The ways run in one process, in turn, round
after round; a figure is the median over rounds of the ratio within a round. Memory is the peak
resident set above the process with the model loaded, each way in a process of its own. The last
line is one JSON object:

- `rollout_ratio`: prompts answered per second by the beam, against `generate` with
  `prefix_allowed_tokens_fn` over a dict and as many beams;
- `gumbel_ratio`: the same of draws without repetition (Gumbel top-k);
- `update_ratio`: time of forward and backward pass over the log-probabilities of all answers, the
  prompt repeated before each answer, over that from one pass;
- `memory_ratio`: peak memory of the update from one pass over that with the prompt repeated, the
  gradients included in both;
- `step_ratio`: time of a whole GRPO step (rollouts, reference, update) over that of supervised
  training on the same prompts, one answer each.

Ratios of time are given by the clock, and with `_processor` at the end by the processor's time,
which other work on the machine disturbs less.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bench_decoding import (
    CODES,
    LEVELS,
    PROMPT,
    WORDS,
    Setting,
    dict_of_prefixes,
    generate_by_prefixes,
    in_own_process,
    make_prompts,
    peak_memory,
    ratios,
    start_peak,
    time_rounds,
)
from torch import Tensor

from lcrec.core.config import option, parse_config
from lcrec.core.errors import run_stage
from lcrec.generate.beams import beam_search
from lcrec.generate.trie import ItemTrie
from lcrec.reinforce.rollouts import draw_items
from lcrec.reinforce.update import answer_log_probabilities, group_advantages, grpo_loss

GROUP = 16


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `scripts/bench_reinforce.py`."""

    rounds: int = option("rounds to take the median of", 3, minimum=1)
    threads: int = option("threads of the process", 1, minimum=1)
    prompts: int = option("prompts of a step; repeated 16 times they take a GB each", 2, minimum=1)


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    config = parse_config(
        BenchConfig, argv, description=__doc__ or "", prog="python scripts/bench_reinforce.py"
    )
    torch.set_num_threads(config.threads)
    peaks = {
        way: in_own_process(peak_of_update, way, config.prompts, config.threads)
        for way in ("shared", "repeated")
    }
    print(f"Peak above the loaded model: {peaks} MB")
    setting = Setting(WORDS + LEVELS * CODES)
    rolls, updates = rollout_ways(setting), update_ways(setting)
    check(setting, config.prompts)

    def cut(ways: dict[str, Callable[[Tensor], Any]]) -> dict[str, Callable[[Tensor], Any]]:
        return {name: lambda p, way=way: way(p[: config.prompts]) for name, way in ways.items()}

    seconds = time_rounds(cut(rolls), config.rounds, ["beam", "gumbel", "prefix_fn", "beam"])
    seconds |= time_rounds(
        cut(updates), config.rounds, ["shared", "supervised", "step", "repeated", "shared"]
    )
    figures = {
        **ratios("rollout_ratio", seconds["prefix_fn"], seconds["beam"]),
        **ratios("gumbel_ratio", seconds["prefix_fn"], seconds["gumbel"]),
        **ratios("update_ratio", seconds["repeated"], seconds["shared"]),
        "memory_ratio": peaks["shared"] / peaks["repeated"],
        **ratios("step_ratio", seconds["step"], seconds["supervised"]),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def rollout_ways(setting: Setting) -> dict[str, Callable[[Tensor], Any]]:
    """Return the ways to answer prompts, each `way(prompts)`."""
    model, trie = setting.model, ItemTrie.build(setting.items)
    prefixes = dict_of_prefixes(setting.items)
    generator = torch.Generator()
    return {
        "beam": lambda p: beam_search(model, p, torch.ones_like(p), trie, GROUP),
        "gumbel": lambda p: draw_items(model, p, torch.ones_like(p), trie, GROUP, generator),
        "prefix_fn": lambda p: generate_by_prefixes(model, p, prefixes, GROUP),
    }


def update_ways(setting: Setting) -> dict[str, Callable[[Tensor], Any]]:
    """Return the ways to compute gradients, each `way(prompts)`."""
    rng = np.random.default_rng(0)
    roll = rollout_ways(setting)["beam"]

    def draw(prompts: Tensor) -> Tensor:
        chosen = rng.integers(len(setting.items), size=(len(prompts), GROUP))
        return torch.from_numpy(setting.items[chosen])

    def update(log_probs: Tensor) -> None:
        weights = torch.full((len(log_probs), GROUP), 1 / GROUP)
        advantages = group_advantages(torch.eye(GROUP)[: len(log_probs)], weights, scale=True)
        grpo_loss(log_probs, log_probs.detach(), advantages, weights, 0.2)[0].backward()
        setting.model.zero_grad(set_to_none=False)

    def step(prompts: Tensor) -> None:
        answers = torch.from_numpy(setting.items)[roll(prompts).items]
        with torch.no_grad():
            shared(setting, prompts, answers)
        update(shared(setting, prompts, answers))

    def supervised(prompts: Tensor) -> None:
        (-repeated(setting, prompts, draw(prompts)[:, :1]).mean()).backward()
        setting.model.zero_grad(set_to_none=False)

    return {
        "shared": lambda p: update(shared(setting, p, draw(p))),
        "repeated": lambda p: update(repeated(setting, p, draw(p))),
        "supervised": supervised,
        "step": step,
    }


def shared(setting: Setting, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return the log-probabilities [prompts, group, tokens] of answers, from one pass."""
    return answer_log_probabilities(setting.model, prompts, torch.ones_like(prompts), answers)[0]


def repeated(setting: Setting, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return the same, the prompt repeated before each answer."""
    rows = torch.cat([prompts.repeat_interleave(answers.shape[1], 0), answers.flatten(0, 1)], 1)
    logits = setting.model(input_ids=rows[:, :-1], use_cache=False, logits_to_keep=LEVELS).logits
    found = logits.float().log_softmax(-1).gather(2, rows[:, -LEVELS:, None])
    return found.view(answers.shape)


@torch.no_grad()
def check(setting: Setting, prompts: int) -> None:
    """Make sure that the ways agree."""
    rows = make_prompts(0)[:prompts]
    ways = rollout_ways(setting)
    paths = torch.from_numpy(setting.items)[ways["beam"](rows).items]
    assert rows.shape == (prompts, PROMPT)
    assert (paths == ways["prefix_fn"](rows)).all(), "the rollouts disagree"
    apart = shared(setting, rows, paths) - repeated(setting, rows, paths)
    assert float(apart.abs().max()) < 1e-3, "the log-probabilities disagree"


def peak_of_update(way: str, prompts: int, threads: int) -> float:
    """Return the peak memory of one update above the process with the model loaded, in MB."""
    torch.set_num_threads(threads)
    setting = Setting(WORDS + LEVELS * CODES)
    update = update_ways(setting)[way]
    setting.model(input_ids=torch.ones(1, 2, dtype=torch.int64))  # loads what libraries need
    start = start_peak()
    update(make_prompts(0)[:prompts])
    return peak_memory() - start


if __name__ == "__main__":
    run_stage(main)
