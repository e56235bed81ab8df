"""Recommend from an exported folder, with transformers or vLLM and without lcrec.

    python recommend.py --history 12 7 33 --k 5 --engine vllm

`lcrec export` puts a copy of this file, named recommend.py, into the folder that it writes. The
folder holds the model, `prompt.json` (how a history is put into words) and `items.jsonl` (a line
per item: its id, and the tokens that spell it). A beam search over the tree of all items asks the
engine for one step at a time: the log-probabilities, under the whole vocabulary, of the tokens that
go on towards an item. So the ranking is that of lcrec itself, to rounding.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

# Asks for one step: (token ids of each beam, what may follow it) -> log-probabilities, likewise.
Step = Callable[[list[list[int]], list[list[int]]], list[list[float]]]
LEAST_BEAMS = 20
MOST_TOKENS = 128  # that vLLM scores by id in one request
# Bytes for keys and values; vLLM's VLLM_CPU_KVCACHE_SPACE names others, in GiB.
CPU_CACHE = 4 * 2**30


def prompt_of(form: dict[str, Any], history: Sequence[str]) -> str:
    """Return the prompt of a history.

    Args:
        form: what `prompt.json` holds.
        history: the texts of the items, oldest first.
    """
    shown = list(history[-form["max_history"] :])
    question = jinja2.Template(form["question"]).render(history=shown).strip()
    return form["before"] + question + form["after"]


def read_items(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of `items.jsonl` by item id, as text."""
    # Line by line of the file: to splitlines() an id may hold what ends a line, such as U+2028.
    with (folder / "items.jsonl").open(encoding="utf-8") as lines:
        return {str(row["item"]): row for row in map(json.loads, lines)}


def rank(
    step: Step, prompt: list[int], paths: dict[tuple[int, ...], str], k: int
) -> list[tuple[str, float]]:
    """Return the k best items and the log-probabilities of their tokens, best first.

    Args:
        step: the engine.
        prompt: token ids.
        paths: {token ids of an item: item id}.
        k: how many items.
    """
    children: dict[tuple[int, ...], set[int]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            children.setdefault(path[:depth], set()).add(token)
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(len(next(iter(paths)))):
        allowed = [sorted(children[path]) for path, _ in beams]
        scores = step([prompt + list(path) for path, _ in beams], allowed)
        longer = [
            ((*path, token), score + more)
            for (path, score), tokens, row in zip(beams, allowed, scores, strict=True)
            for token, more in zip(tokens, row, strict=True)
        ]
        beams = sorted(longer, key=lambda beam: -beam[1])[: max(k, LEAST_BEAMS)]
    return [(paths[path], score) for path, score in beams[:k]]


def load_transformers(folder: Path) -> tuple[Step, Callable[[str], list[int]]]:
    """Load the model with transformers; return its step and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def step(beams: list[list[int]], allowed: list[list[int]]) -> list[list[float]]:
        logits = model(torch.tensor(beams)).logits[:, -1].float().log_softmax(-1)
        return [row[tokens].tolist() for row, tokens in zip(logits, allowed, strict=True)]

    return step, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def load_vllm(folder: Path, dtype: str | None = None) -> tuple[Step, Callable[[str], list[int]]]:
    """Load the model with vLLM; return its step and its tokenizer.

    It computes in `dtype`, or what the weights are written in: vLLM would round float32.
    """
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    if dtype is None:
        dtype = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    on_gpu = torch.cuda.is_available()
    engine = LLM(
        model=str(folder),
        dtype=dtype,
        enable_prefix_caching=True,
        enforce_eager=not on_gpu,  # compiling for a CPU takes minutes
        # Else vLLM takes 92 % of a machine's memory, and does not start where less is free.
        kv_cache_memory_bytes=None if on_gpu else CPU_CACHE,
    )
    tokenizer = engine.get_tokenizer()

    def step(beams: list[list[int]], allowed: list[list[int]]) -> list[list[float]]:
        parts = [
            (row, tokens[start : start + MOST_TOKENS])
            for row, tokens in enumerate(allowed)
            for start in range(0, len(tokens), MOST_TOKENS)
        ]
        outputs = engine.generate(
            [TokensPrompt(prompt_token_ids=beams[row]) for row, _ in parts],
            [
                SamplingParams(
                    max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=tokens
                )
                for _, tokens in parts
            ],
            use_tqdm=False,
        )
        scores: list[list[float]] = [[] for _ in beams]
        for (row, tokens), output in zip(parts, outputs, strict=True):
            found = output.outputs[0].logprobs[0]
            scores[row] += [found[token].logprob for token in tokens]
        return scores

    return step, lambda text: tokenizer.encode(text, add_special_tokens=False)


ENGINES = {"transformers": load_transformers, "vllm": load_vllm}


def main() -> None:
    """Print the ranking of one history, a JSON object a line."""
    parser = argparse.ArgumentParser(description="Recommend from an exported folder.")
    parser.add_argument("--history", nargs="+", required=True, metavar="ITEM", help="oldest first")
    parser.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    parser.add_argument("--engine", choices=list(ENGINES), default="transformers")
    given = parser.parse_args()
    folder = Path(__file__).resolve().parent
    items = read_items(folder)
    unknown = next((item for item in given.history if item not in items), None)
    if unknown is not None:
        parser.error(f"--history {unknown}: no such item in items.jsonl")
    if not 1 <= given.k <= len(items):
        parser.error(f"--k {given.k}: the catalogue has {len(items)} items")
    form = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    prompt = prompt_of(form, [items[item]["text"] for item in given.history])
    step, encode = ENGINES[given.engine](folder)
    paths = {tuple(row["token_ids"]): item for item, row in items.items()}
    for item, score in rank(step, encode(prompt), paths, given.k):
        print(json.dumps({"item": item, "score": score}))
