"""The instruction data set as a file, to train with any trainer: `python -m lcrec.dataset`.

Reads the data folder, the item index and the prompts; writes a folder that holds

- `train.parquet` or `train.jsonl`: the rows of all epochs in the order to train them in, with the
  columns `prompt`, `completion`, `task` and `template_id`, the prompt-completion form that TRL
  takes. Prompts are text with the markup of `chat_template.jinja`; for a model with a chat
  template of its own, `--tokenizer` makes prompt and completion lists of messages instead. Item
  text that spells markup is broken up by a space: with `--tokenizer` as in training, in text every
  word in brackets (`[INST]`), for nobody knows who will read it;
- `item_tokens.json`, the tokens to add to the vocabulary, and `index.json`, whose they are;
- `README.md`, the data card: counts, settings, hashes of the sources, how to train.

They are the rows that `lcrec finetune --share-prefix off` trains on for the same data, prompts,
tasks and seed; without that flag it gives a user's samples of an epoch one template.
Rows go to the file as they are made, so memory does not grow with their number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcrec.core.artifacts import (
    CARD,
    INDEX,
    ITEM_TOKENS,
    atomic_path,
    find_data,
    write_json,
    write_jsonl,
)
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, claim
from lcrec.core.pretrained import load_tokenizer
from lcrec.core.provenance import fingerprint, is_current, require_same_input, write_provenance
from lcrec.data.data_set import load_data
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.prompt_set import CHAT_TEMPLATE, SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.tasks import TASKS, TaskData, parse_mixture

if TYPE_CHECKING:
    from lcrec.prompts.rows import Row

STAGE = "python -m lcrec.dataset"
EXAMPLE = "--data data/shop --index runs/shop/index --output runs/shop/instructions"
NEEDS_USER_TEXTS = ("itemsearch", "preferenceobtain")
ROWS_PER_GROUP = 8192  # rows that are in memory at once
# A word in brackets, such as [INST] or [PAD]: to some tokenizers a special token. Those in angle
# brackets never get past `plain_text`.
BRACKETED_WORD = re.compile(r"\[(?=[^\s\[\]]+\])")


@dataclass(frozen=True)
class DatasetConfig(Writes):
    """Settings of `python -m lcrec.dataset`."""

    data: Path = option("the data folder")
    index: Path = option("the folder that holds index.json")
    output: Path = option("the folder to write", writes=FOLDER)
    prompts: Path = option(
        "prompt templates; what the folder lacks comes from the shipped ones", SHIPPED_PROMPTS
    )
    tasks: list[str] | None = option(
        "tasks, each with a share or a cap if wanted: seqrec=0.5 fusionseqrec=20000 (default: "
        "every task that the data set has text for, but neighbours and code2words)",
        None,
    )
    epochs: int = option("passes over the samples, each with freshly drawn templates", 4, minimum=1)
    max_history: int = option("items of a history shown at most", 20, minimum=1)
    history_dropout: float = option(
        "chance that an item of a seqrec history is left out, anew each epoch", 0.0, minimum=0
    )
    max_text_words: int = option("words of a title or description shown at most", 60, minimum=1)
    format: Literal["parquet", "jsonl"] = option("the file to write", "parquet")
    tokenizer: str | None = option(
        "write chat messages, for the chat template of this tokenizer (a folder or a hub name)",
        None,
    )
    seed: int = option("decides everything drawn", 42, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(DatasetConfig, argv, prog=STAGE, example=EXAMPLE)
    paths = find_data(config.data)
    data = load_data(config.data)
    rebuild = f"python -m lcrec.quantize --data {config.data} --output {config.index}"
    index_path = config.index if config.index.is_file() else config.index / INDEX
    require_same_input(index_path.parent, "item", paths.item, rebuild)
    index = ItemIndex.load(index_path, len(data.items))
    prompts = PromptSet.load(config.prompts, base=SHIPPED_PROMPTS)
    has_texts = data.user_texts is not None
    known = [
        name
        for name, task in TASKS.items()
        if task.by_default and (has_texts or name not in NEEDS_USER_TEXTS)
    ]
    mixture = parse_mixture(known if config.tasks is None else config.tasks)
    form, chat_template = choose_form(config.tokenizer, prompts)
    from lcrec.prompts.rows import RowSource, require_samples

    inputs = {"item": paths.item, **paths.sequences, "index": index_path}
    if paths.user.exists():
        inputs["user"] = paths.user
    if config.tokenizer is not None and Path(config.tokenizer).is_dir():
        inputs["tokenizer"] = Path(config.tokenizer)
    settings = config_dict(config) | {"prompts": prompts.content_hash, "tasks": mixture}
    if is_current(config.output, STAGE, settings, inputs):
        print(f"{config.output} is up to date.")
        return
    with claim(config.output, STAGE, overwrite=config.overwrite):
        task_data = TaskData(
            data.items,
            data.split.train,
            index,
            max_history=config.max_history,
            max_text_words=config.max_text_words,
            user_texts=data.user_texts,
            history_dropout=config.history_dropout,
            seed=config.seed,
            shows_neighbours=prompts.shows_neighbours,
        )
        print(
            f"Writing {config.epochs} epoch(s) of {', '.join(mixture)} for "
            f"{len(data.interactions):,} users and {len(data.items):,} items, as "
            f"{'chat messages' if config.tokenizer else 'text'}"
        )
        name = f"train.{config.format}"
        counts: Counter[tuple[int, str, str]] = Counter()

        def rows() -> Iterator[dict[str, Any]]:
            source = RowSource(task_data, prompts, mixture, config.seed)
            for epoch in range(config.epochs):
                drawn = source.draw(epoch)
                for line in () if epoch else drawn.unused:
                    print(line)
                label = f"epoch {epoch + 1} of {config.epochs}"
                for row in progress(drawn, label, "rows"):
                    counts[epoch, row.task, row.template_id] += 1
                    yield form(row)

        with atomic_path(config.output) as folder:
            folder.mkdir()
            write_rows(folder / name, rows(), is_chat=config.tokenizer is not None)
            require_samples(mixture, {task for _, task, _ in counts})
            index.save(folder)
            write_json(folder / ITEM_TOKENS, index.vocabulary)
            if chat_template is not None:
                (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
            hashes = {role: fingerprint(path) for role, path in inputs.items()}
            card = data_card(config, name, paths.name, counts, hashes, prompts.content_hash)
            (folder / CARD).write_text(card, encoding="utf-8")
            write_provenance(
                folder, STAGE, settings, inputs, level_sizes=index.level_sizes, rows=counts.total()
            )
        print(
            f"Wrote {config.output / name}: {counts.total():,} rows. Next: train on it as "
            f"{config.output / CARD} shows, or here: python -m lcrec.finetune --help"
        )


def choose_form(
    tokenizer: str | None, prompts: PromptSet
) -> tuple[Callable[[Row], dict[str, Any]], str | None]:
    """Return what makes a row of the file of a drawn row, and the chat template for chat messages.

    Args:
        tokenizer: whose chat template will be used; None for text with the prompt set's markup.

    Raises:
        InputError: the tokenizer cannot be loaded, or a chat template that cannot be applied.
    """
    from lcrec.prompts.rendering import SENTINEL, fix_prompt, split_markup

    if tokenizer is None:
        _, rendered = fix_prompt(prompts.chat_template, prompts.messages(SENTINEL))
        before, after = split_markup(rendered, CHAT_TEMPLATE)

        def as_text(row: Row) -> dict[str, Any]:
            question, answer = (
                BRACKETED_WORD.sub("[ ", side) for side in (row.prompt, row.completion)
            )
            return {**vars(row), "prompt": before + question + after, "completion": answer}

        return as_text, None
    from lcrec.prompts.encoder import PromptEncoder

    loaded = load_tokenizer("--tokenizer", tokenizer)
    if loaded.chat_template is None:
        raise InputError(
            f"--tokenizer {tokenizer} has no chat template; leave the option out to write text"
        )
    encoder = PromptEncoder(loaded, prompts)

    def as_messages(row: Row) -> dict[str, Any]:
        answer = [{"role": "assistant", "content": encoder.escape_markup(row.completion)}]
        return {**vars(row), "prompt": encoder.messages(row.prompt), "completion": answer}

    return as_messages, str(loaded.chat_template)


def write_rows(path: Path, rows: Iterable[dict[str, Any]], *, is_chat: bool) -> None:
    """Write rows as they come: Parquet or JSONL, by the name of the file.

    Args:
        path: the file, `*.parquet` or `*.jsonl`.
        rows: `prompt`, `completion`, `task`, `template_id`.
        is_chat: prompt and completion are lists of {role, content}, not text.
    """
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    side: pa.DataType = pa.string()
    if is_chat:
        side = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = {"prompt": side, "completion": side, "task": pa.string(), "template_id": pa.string()}
    schema = pa.schema(kinds)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        left = iter(rows)
        while group := list(islice(left, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def data_card(
    config: DatasetConfig,
    file: str,
    data_name: str,
    counts: Counter[tuple[int, str, str]],
    hashes: dict[str, str],
    prompts_hash: str,
) -> str:
    """Return the data card: what the rows are, where they came from, how to train on them.

    Args:
        counts: rows by (epoch, task, template id).
        hashes: sha256 of every input, by role.
        prompts_hash: `PromptSet.content_hash`.
    """
    by_epoch, by_task, by_template = Counter[int](), Counter[str](), Counter[tuple[str, str]]()
    for (epoch, task, template), count in counts.items():
        by_epoch[epoch] += count
        by_task[task] += count
        by_template[task, template] += count
    sizes = ", ".join(f"{by_epoch[epoch]:,}" for epoch in sorted(by_epoch))
    tasks = "\n".join(
        f"| `{name}` | {task.summary} | {by_task[name]:,} |"
        for name, task in TASKS.items()
        if name in by_task
    )
    templates = "\n".join(
        f"| `{task}` | `{template}` | {by_template[task, template]:,} |"
        for task, template in sorted(by_template)
    )
    sources = "\n".join(f"| {role} | `{digest}` |" for role, digest in hashes.items())
    builder = "json" if config.format == "jsonl" else "parquet"
    form, chat = "text", ""
    if config.tokenizer is not None:
        form = f"lists of chat messages, for the chat template of `{config.tokenizer}`"
        chat = (
            "\n# The tokenizer's own, without a clock, chance and thinking, as lcrec renders it.\n"
            f'tokenizer.chat_template = open("{CHAT_TEMPLATE}", encoding="utf-8").read()'
        )
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {file}
---

# Instructions for {data_name}

{counts.total():,} samples that teach a language model to recommend by item tokens (LC-Rec,
arXiv 2311.09049), made by `{STAGE}`.

`{file}` has the columns `prompt` and `completion` ({form}), `task` and `template_id`.
Epochs: {config.epochs}, one after the other ({sizes} rows), each shuffled and worded anew.
Train on the file **once, in its order**, with the loss on the completion and the EOS after it.
A space inside keeps item text from spelling item tokens or markup (`< a_12>`, `[ INST]`).

## Train

```python
import json

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

base = "{config.tokenizer or "BASE MODEL"}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base)
tokenizer.add_tokens(json.load(open("{ITEM_TOKENS}")))
model.resize_token_embeddings(len(tokenizer))
rows = load_dataset("{builder}", data_files="{file}", split="train"){chat}
args = SFTConfig("out", num_train_epochs=1, train_sampling_strategy="sequential", max_length=2048)
SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=args).train()
```

An answer of `seqrec`, `item2index`, `itemsearch`, and of `fusionseqrec` from titles, is an item:
`index.json` says whose tokens they are. When recommending, decode over those sequences only.

## Rows by task

| task | from what to what | rows |
|---|---|---|
{tasks}

## Rows by template

| task | template | rows |
|---|---|---|
{templates}

## Made from

Seed {config.seed}; epochs {config.epochs}; items of a history at most {config.max_history}; history
dropout {config.history_dropout}; words of a text at most {config.max_text_words}.

| source | sha256 |
|---|---|
{sources}
| templates | `{prompts_hash}` |
"""


if __name__ == "__main__":
    run_stage(main)
