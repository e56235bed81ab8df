"""Bench: training samples drawn and put into token ids, against each one rendered and tokenised.

    python scripts/bench_rows.py
    python scripts/bench_rows.py --data data/Office --tokenizer BASE --prompts prompts/short

Draws `--samples` samples of the tasks `seqrec`, `item2index` and `index2item`, epoch after epoch,
as a fine-tune does at the start of each (`RowSource`, `tokenise_rows`), and a twentieth of them by
rendering each and giving its whole text to the tokenizer; both give the same ids, which is checked.
Without `--data` a made-up shop is taken, without `--tokenizer` one that is trained on its texts.
Times are the processor's, `TOKENIZERS_PARALLELISM` permitting of one core. The last line is JSON:
samples; samples_per_second; plain_samples_per_second; ratio; seconds, of all samples;
lengths_seconds, to read the lengths of all of them.
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from transformers import AutoTokenizer

from lcrec import synthetic
from lcrec.core.config import option, parse_config
from lcrec.core.errors import run_stage
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import leave_one_out
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.rows import RowSource, row_lengths, tokenise_rows
from lcrec.prompts.tasks import TaskData, parse_mixture
from lcrec.tinylm import collect_corpus, train_tokenizer

TASKS = ["seqrec", "item2index", "index2item"]
CODES, LEVELS = 256, 4
MAX_HISTORY, MAX_TEXT_WORDS, MAX_LENGTH = 10, 20, 4096
PLAIN = 20  # of so many samples one is rendered and tokenised by itself


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `scripts/bench_rows.py`."""

    data: Path | None = option("a data folder; none: a shop is made up", None)
    tokenizer: str | None = option("a base model's folder; none: one is trained", None)
    prompts: Path = option("the prompt templates", SHIPPED_PROMPTS)
    samples: int = option("samples to draw, all epochs together", 143_000, minimum=100)


def main(argv: list[str]) -> None:
    """Run the bench."""
    config = parse_config(
        BenchConfig, argv, description=__doc__ or "", prog="python scripts/bench_rows.py"
    )
    with tempfile.TemporaryDirectory() as name:
        if config.data is None:
            synthetic.main(["--output", name, "--users", "2000", "--items", "1500"])
        data, encoder, prompts = read(config, config.data or Path(name))
    mixture = parse_mixture(TASKS)
    data.titles, data.descriptions, data.prefixes  # noqa: B018  # read once, whatever the way
    source = RowSource(data, prompts, mixture, 0)
    start, epochs, drawn = time.process_time(), [], 0
    while drawn < config.samples:
        epochs.append(source.draw(len(epochs)))
        drawn += len(epochs[-1])
    rows = tokenise_rows(epochs, encoder, MAX_LENGTH, None)
    seconds = time.process_time() - start
    start = time.process_time()
    tokens = row_lengths(rows).sum()
    lengths_seconds = time.process_time() - start

    chosen = range(0, len(rows), PLAIN)
    words = iter(row for epoch in epochs for row in epoch)
    found, plain_seconds = [], 0.0
    for number in range(len(rows)):
        start = time.process_time()
        row = next(words)
        if number in chosen:
            texts = [
                encoder.before + encoder.escape_markup(row.prompt) + encoder.after,
                encoder.escape_markup(row.completion),
            ]
            prompt, answer = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
            found.append([*prompt, *answer, encoder.tokenizer.eos_token_id])
            plain_seconds += time.process_time() - start
    assert found == rows[::PLAIN]["input_ids"], "the ways disagree"
    plain = len(found) / plain_seconds
    print(f"{len(rows):,} samples, {tokens:,} tokens, in {seconds:.2f} s of one core")
    figures = {
        "samples": len(rows),
        "samples_per_second": len(rows) / seconds,
        "plain_samples_per_second": plain,
        "ratio": len(rows) / seconds / plain,
        "seconds": seconds,
        "lengths_seconds": lengths_seconds,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def read(config: BenchConfig, folder: Path) -> tuple[TaskData, PromptEncoder, PromptSet]:
    """Return what samples are drawn from, with an index of random codes."""
    items = load_items(folder)
    train = leave_one_out(load_interactions(folder, len(items))).train
    cells = np.random.default_rng(0).choice(CODES**LEVELS, len(items), replace=False, shuffle=False)
    codes = np.stack(np.unravel_index(cells, (CODES,) * LEVELS), axis=1).astype(np.int32)
    index = ItemIndex(codes, (CODES,) * LEVELS)
    prompts = PromptSet.load(config.prompts, base=SHIPPED_PROMPTS)
    if config.tokenizer is None:
        corpus = collect_corpus(items, prompts, max_words=MAX_TEXT_WORDS)
        tokenizer = train_tokenizer(corpus, 4000)
    else:
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    extend_tokenizer(tokenizer, index)
    limits = {"max_history": MAX_HISTORY, "max_text_words": MAX_TEXT_WORDS}
    return TaskData(items, train, index, **limits), PromptEncoder(tokenizer, prompts), prompts


if __name__ == "__main__":
    run_stage(main)
