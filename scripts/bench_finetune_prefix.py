"""What it costs to compute what samples begin with once, against three ways that do not.

A part of `scripts/bench_finetune.py`. A random model of SmolLM2's shape and markup (24 tokens
before and 6 after each question) takes the gradients of the same samples four ways: trees of
samples; rows padded, by length, as the kit trains without sharing; TRL's packing (best fit, no
padding); and the plain way, transformers' loss over rows padded in the order they come. Each is
one batch of `seqrec` samples, all of a user's with one prompt template.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import load_split
from lcrec.modeling.batches import sample_losses, split_batch, split_buffers
from lcrec.modeling.trees import PackingCollator
from lcrec.prompts.rows import IGNORED, collate_left

# SmolLM2-135M's shape (huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json).
SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
BEFORE, AFTER, LEVELS, CODES = 24, 6, 4, 256  # tokens around a question; tokens of an item
LONGEST = 20  # items of a history
AT_ONCE = 4096  # tokens of padded rows on a device
BUFFER = 512

Rows = list[dict[str, Any]]


def measure_prefix(data: Path | None, *, layers: int, batch_size: int, rounds: int) -> dict:
    """Return the ratios of samples per second, and the largest difference of losses.

    Args:
        data: a data folder, whose users give a second set of samples; None for none.
        layers: of the model; SmolLM2 has 30.
        batch_size: samples whose gradients are added up.
        rounds: how often each way is measured, in turn; the median counts.

    Returns:
        `prefix_ratio`, `packing_ratio`, `plain_ratio` and `prefix_loss_difference` on users with
        20 items each, `prefix_ratio_office` on users of `data`; and `bf16_ratio`, samples per
        second with products in bf16 (`--precision bf16`) over those in float32.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2, num_hidden_layers=layers))
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, 10_000, (batch_size, LONGEST)).tolist()
    rows = make_rows(sequences, batch_size)
    ways: dict[str, Callable[[nn.Module, Rows], float]] = {
        "trees": add_by_trees, "padded": add_padded, "packed": add_packed, "plain": add_plain,
    }  # fmt: skip
    seconds, losses = measure(model, rows, ways, rounds)
    tree = seconds["trees"]
    result = {
        "prefix_ratio": seconds["padded"] / tree,
        "packing_ratio": seconds["packed"] / tree,
        "plain_ratio": seconds["plain"] / tree,
        "prefix_loss_difference": max(
            abs(losses[way] - losses["trees"]) / losses["trees"] for way in losses
        ),
    }
    if data is not None:
        train = load_split(data, load_interactions(data, len(load_items(data)))).train
        order = rng.permutation(len(train.users)).tolist()
        rows = make_rows((train.sequence(user).tolist() for user in order), batch_size)
        two = {way: ways[way] for way in ("trees", "padded")}
        seconds, _ = measure(model, rows, two, rounds)
        result["prefix_ratio_office"] = seconds["padded"] / seconds["trees"]
    trees = {"trees": add_by_trees}
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = measure(model, rows, trees, rounds)
    result["bf16_ratio"] = seconds["trees"] / low["trees"]
    return {name: round(value, 6) for name, value in result.items()}


def make_rows(sequences: Any, count: int) -> Rows:
    """Return the samples of users, one after another, as `tokenise_rows` returns them.

    Args:
        sequences: item ids of each user, oldest first.
        count: samples wanted.
    """
    first_code = SMOLLM2["vocab_size"] - LEVELS * CODES
    before = list(range(10, 10 + BEFORE))
    after = list(range(40, 40 + AFTER))
    comma, end = 7, 2

    def spell(item: int) -> list[int]:
        return [
            first_code + level * CODES + (item * (level + 3)) % CODES for level in range(LEVELS)
        ]

    rows: Rows = []
    for sequence in sequences:
        for length in range(1, len(sequence)):
            shown = [spell(item) for item in sequence[max(0, length - LONGEST) : length]]
            history = [token for item in shown for token in (*item, comma)][:-1]
            prompt = [*before, *history, *after]
            answer = [*spell(sequence[length]), end]
            rows.append(
                {"input_ids": prompt + answer, "prompt_length": len(prompt), "task": "seqrec"}
            )
            if len(rows) == count:
                return rows
    return rows


def measure(
    model: nn.Module, rows: Rows, ways: dict[str, Callable[[nn.Module, Rows], float]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median of processor seconds that each way takes, and its loss."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses = {}
    for _ in range(rounds):
        for way, add_gradients in ways.items():
            model.zero_grad()
            began = time.process_time()
            losses[way] = add_gradients(model, rows)
            seconds[way].append(time.process_time() - began)
    return {way: statistics.median(found) for way, found in seconds.items()}, losses


def add_by_trees(model: nn.Module, rows: Rows) -> float:
    """Add the gradients of samples that share what they begin with; return the summed loss."""
    batch = PackingCollator(0, BUFFER)(rows)
    return add_parts(model, split_buffers(batch, len(batch["input_ids"])))


def add_padded(model: nn.Module, rows: Rows) -> float:
    """Add the gradients of padded rows, in parts of like length."""
    return add_parts(model, split_batch(collate_left(rows, 0), AT_ONCE, lambda count: count))


def add_parts(model: nn.Module, parts: list[dict[str, torch.Tensor]]) -> float:
    """Add the gradients of the parts of a batch and return their summed loss."""
    total = 0.0
    for part in parts:
        loss = sample_losses(model, part)[0][:, 0].sum()
        loss.backward()
        total += loss.item()
    return total


def add_packed(model: nn.Module, rows: Rows) -> float:
    """Add the gradients of samples packed by TRL, without its trainer around."""
    columns = {
        "input_ids": [row["input_ids"] for row in rows],
        "labels": [labels_of(row) for row in rows],
    }
    packed = pack_dataset(Dataset.from_dict(columns), AT_ONCE // 2, "bfd")
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    return sum(add_labelled(model, collate([row])) for row in packed)


def labels_of(row: dict[str, Any]) -> list[int]:
    """Return the tokens of a row under loss, `IGNORED` before the answer."""
    return [IGNORED] * row["prompt_length"] + row["input_ids"][row["prompt_length"] :]


def add_plain(model: nn.Module, rows: Rows) -> float:
    """Add the gradients of rows padded as they come, 32 at a time, all positions scored."""
    labelled = [
        {
            "input_ids": row["input_ids"],
            "attention_mask": [1] * len(row["input_ids"]),
            "labels": labels_of(row),
        }
        for row in rows
    ]
    total = 0.0
    for start in range(0, len(labelled), 32):
        part = labelled[start : start + 32]
        width = max(len(row["input_ids"]) for row in part)
        batch = {
            name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in part])
            for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED))
        }
        total += add_labelled(model, batch)
    return total


def add_labelled(model: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Add the gradients of a batch with labels, by transformers' own loss; return its sum."""
    answers = int((batch["labels"][:, 1:] != IGNORED).sum())
    batch = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    loss = model(**batch, use_cache=False).loss * answers
    loss.backward()
    return loss.item()
