"""What the three ways to judge a checkpoint share: the model with its data, the table, the file.

Reads a checkpoint and the data folder; writes one JSON file of numbers with its sidecar.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcrec.core.artifacts import EMBEDDINGS, find_data, index_path, read_array, write_json
from lcrec.core.config import Writes, option
from lcrec.core.device import Precision, pick_precision, precision_note
from lcrec.core.outputs import publish
from lcrec.core.provenance import require_same_input, write_provenance
from lcrec.data.data_set import load_data
from lcrec.data.folder import Interactions, check_embeddings, load_items
from lcrec.data.new_items import require_same_catalogue
from lcrec.data.splits import Split, require_same_split
from lcrec.prompts.tasks import TaskData
from lcrec.rankings.metrics import LEVEL, SAMPLES

if TYPE_CHECKING:
    from lcrec.generate.recommender import Recommender
    from lcrec.modeling.checkpoint import CheckpointParts

PROG = "python -m lcrec.evaluate"
CELL = 14  # characters

Summary = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Writes):
    """The settings of every command that judges a checkpoint."""

    model: Path = option("the checkpoint folder")
    data: Path = option("the data folder")
    index: Path | None = option("an index that adds items to the checkpoint's own", None)
    base: str | None = option("where an adapter's base model lies now, if it moved", None)
    output: Path | None = option("where to write the numbers, *.json", None, writes=".json")
    precision: Precision | None = option(
        "arithmetic of the model (default: bf16 on a GPU that has it, else fp32)", None
    )
    batch_tokens: int = option("prompt tokens per batch, padding included", 4096, minimum=1)


@dataclass(frozen=True)
class Subject:
    """A checkpoint on trial, with the data it is asked about; it is loaded when it is first asked.

    Attributes:
        parts: what the checkpoint holds beside its weights.
        load: loads the model, once.
        data: the source of the records, limited as they were in training.
        split: of the data folder.
        interactions: every user's whole sequence.
        inputs: what was read, by role.
    """

    parts: CheckpointParts
    load: Callable[[], Recommender]
    data: TaskData
    split: Split
    interactions: Interactions
    inputs: dict[str, Path]

    @property
    def recommender(self) -> Recommender:
        """The model with its index and its prompt templates."""
        return self.load()


def load_subject(
    model: Path,
    folder: Path,
    precision: Precision | None = None,
    batch_tokens: int | None = None,
    *,
    index: Path | None = None,
    base: str | None = None,
) -> Subject:
    """Read a checkpoint and the data folder it was trained on, or one that continues it.

    Args:
        model: the checkpoint folder.
        folder: the data folder.
        precision: of the model's arithmetic; None for bf16 on a GPU that has it, else float32.
        batch_tokens: prompt tokens per batch, padding included; None for the model's own choice.
        index: adds items to the checkpoint's own index, as the data folder has them.
        base: where an adapter's base model lies now, if it moved.

    Raises:
        InputError: either is missing or damaged, or they do not belong together.
    """
    # Here, so that the commands can read their options without torch.
    from lcrec.generate.recommender import Recommender
    from lcrec.modeling.base import DTYPES
    from lcrec.modeling.checkpoint import CheckpointParts

    paths = find_data(folder)
    data = load_data(folder)
    if model.is_dir():
        require_same_catalogue(folder, model, index)
        retrain = f"python -m lcrec.finetune --data {folder} --output DIR"
        require_same_split(model, folder, retrain)
    parts = CheckpointParts.read(model, index)
    task_data = TaskData(
        data.items,
        data.split.train,
        parts.catalogue,
        max_history=parts.facts.max_history,
        max_text_words=parts.facts.max_text_words,
        user_texts=data.user_texts,
        shows_neighbours=parts.prompts.shows_neighbours,
    )

    @functools.cache
    def load() -> Recommender:
        picked = pick_precision(precision)
        recommender = Recommender.from_pretrained(
            model, dtype=DTYPES[picked], base=base, index=index, max_batch_tokens=batch_tokens
        )
        if note := precision_note(picked, recommender.model.num_parameters()):
            print(note)
        return recommender

    inputs = {"model": model, "item": paths.item, **paths.sequences}
    if data.user_texts is not None:
        inputs["user"] = paths.user
    if index is not None:
        inputs["index"] = index_path(index)
    return Subject(parts, load, task_data, data.split, data.interactions, inputs)


def subject_of(config: JudgeConfig) -> Subject:
    """Read what a command is asked to judge; errors as in `load_subject`."""
    return load_subject(
        config.model,
        config.data,
        config.precision,
        config.batch_tokens,
        index=config.index,
        base=config.base,
    )


def read_embeddings(data: Path, embeddings: Path) -> tuple[np.ndarray, Path]:
    """Return the item embeddings in a folder, or in a file, and the file.

    Raises:
        InputError: there are none, they are of another catalogue than `data`, or not finite.
    """
    path = embeddings / EMBEDDINGS if embeddings.is_dir() else embeddings
    vectors = read_array(path)
    rebuild = f"python -m lcrec.embed --data {data} --output {path.parent}"
    require_same_input(path.parent, "item", find_data(data).item, rebuild)
    return check_embeddings(vectors, len(load_items(data)), path), path


def format_values(rows: dict[str, dict[str, Summary | None]], heading: str) -> str:
    """Return a table: two lines per row, the values and below them their intervals.

    Args:
        rows: {label: {column: result of `lcrec.rankings.metrics.summarise`, None where there is
        none}}. heading: what stands above the labels.
    """
    columns = list(next(iter(rows.values())))
    width = max(map(len, (heading, *rows))) + 2
    lines = [f"{heading:<{width}}" + "".join(f"{column:>{CELL}}" for column in columns)]
    lines.append("-" * len(lines[0]))
    for label, values in rows.items():
        cells, intervals = "", ""
        for column in columns:
            value = values[column]
            cells += f"{value['mean']:>{CELL}.4f}" if value else f"{'-':>{CELL}}"
            interval = f"{value['low']:.3f}-{value['high']:.3f}" if value else ""
            intervals += f"{interval:>{CELL}}"
        lines += [f"{label:<{width}}{cells}", f"{'':<{width}}{intervals}".rstrip()]
    return "\n".join(lines)


def write_result(
    output: Path | None,
    command: str,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    result: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the numbers and where they came from, and say so; without a path, say that too.

    Args:
        output: a file named `*.json`, or None.
        command: the command's name, such as "pairs".
        settings: the resolved settings.
        inputs: what was read, by role.
        result: JSON values only.
        overwrite: whether to replace a file that no `lcrec.evaluate` made.
    """
    if output is None:
        print("\nNothing was written; --output FILE.json keeps these numbers.")
        return
    bootstrap = {"samples": SAMPLES, "level": LEVEL}
    settings.pop("base", None)  # where it lies decides nothing
    with publish(output, PROG, ".json", overwrite=overwrite) as file:
        write_json(file, {"command": command, **bootstrap, **result}, indent=2)
        write_provenance(file, PROG, {"command": command, **settings}, inputs)
    print(f"\nWrote {output}.")
