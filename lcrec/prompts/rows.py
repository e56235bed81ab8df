"""Tasks x prompts -> training rows, and the token ids that training and inference share.

A row is a prompt, its completion, the task and the template. For every epoch each sample gets a
freshly drawn template; rows of all epochs are drawn up front by seed, shuffled within their epoch
and trained once in order, so a run is the same for any number of processes and resumes exactly.
What is drawn are numbers; they become words one row at a time.

`python -m lcrec.dataset` writes the rows to a file, to train elsewhere (see `lcrec.dataset`).

Prompt and answer are tokenised apart and their ids joined: what is trained is token for token
what inference sees. The answer ends in EOS, also where the pad token is the same.
"""

import itertools
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from lcrec.core.errors import InputError
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.joining import Ragged, RowJoiner
from lcrec.prompts.preview import why_unused
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TASKS, TaskData
from lcrec.prompts.templates import Template

IGNORED = -100
MOST_TOKENS = 2**31 - 1  # of one table: Arrow counts where its lists begin in 32 bits
TASK_NUMBERS = {name: number for number, name in enumerate(TASKS)}


@dataclass(frozen=True)
class Row:
    """One training sample in words."""

    prompt: str
    completion: str
    task: str
    template_id: str


@dataclass(frozen=True)
class DrawnRows:
    """One epoch's rows in their order, put into words one by one as they are asked for.

    Attributes:
        data, epoch: the source of the records.
        templates: all templates of the prompt set.
        chosen: each row's place in `templates`, int64 [rows].
        places: each row's place among the records of its template's task, int64 [rows].
        unused: a line for each template that no record fits.
    """

    data: TaskData
    epoch: int
    templates: tuple[Template, ...]
    chosen: np.ndarray
    places: np.ndarray
    unused: list[str]

    @property
    def tasks(self) -> set[str]:
        """The tasks that have a row."""
        return {self.templates[number].task for number in np.unique(self.chosen)}

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Row]:
        for number, place in zip(self.chosen.tolist(), self.places.tolist(), strict=True):
            template = self.templates[number]
            record = TASKS[template.task].record(self.data, self.epoch, place)
            prompt, completion = template.render(record)
            yield Row(prompt, completion, template.task, template.id)


def draw_rows(
    data: TaskData, prompts: PromptSet, mixture: dict[str, float], seed: int, epoch: int
) -> DrawnRows:
    """Draw one epoch's rows, shuffled.

    Each sample gets one template, drawn from those that fit it; a sample that none fits is
    left out before shares and caps apply. The draw depends on seed, epoch and task alone. Where
    `data.alike`, samples of a task and stretch (`TaskData.stretches`) are drawn together, get one
    template and follow one another.

    Args:
        mixture: tasks with their share (at most 1) or cap (above 1), from `parse_mixture`.
        epoch: 0 for the first.
    """
    drawn = [
        _draw_task(data, prompts, name, amount, seed, epoch) for name, amount in mixture.items()
    ]
    by_task, places_by_task, unused = zip(*drawn, strict=True)
    chosen, places = np.concatenate(by_task), np.concatenate(places_by_task)
    rng = np.random.default_rng([seed, epoch])
    if data.alike:
        # Rows of a unit, of a stretch or a sample of its own, stay side by side.
        units = np.concatenate(
            [
                np.stack([np.full(len(own), task), _units(data, name, own)])
                for task, (name, own) in enumerate(zip(mixture, places_by_task, strict=True))
            ],
            axis=1,
        )
        unit = np.unique(units, axis=1, return_inverse=True)[1].ravel()
        order = np.argsort(rng.permutation(unit.max(initial=-1) + 1)[unit], kind="stable")
    else:
        order = rng.permutation(len(chosen))
    lines = list(itertools.chain.from_iterable(unused))
    return DrawnRows(data, epoch, prompts.templates, chosen[order], places[order], lines)


def require_samples(mixture: Iterable[str], drawn: Collection[str]) -> None:
    """Refuse a mixture of which not every task was drawn, in any epoch.

    Raises:
        InputError: it names the tasks.
    """
    missing = [name for name in mixture if name not in drawn]
    if missing:
        raise InputError(
            f"--tasks: this data set has not one sample of {', '.join(missing)} (or its share is "
            "too small); leave it out"
        )


def _draw_task(
    data: TaskData, prompts: PromptSet, name: str, amount: float, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the `chosen` and `places` of one task, in the order of its records, and `unused`."""
    allowed = {template.id for template in prompts.for_task(name, "train")}
    numbers = [n for n, template in enumerate(prompts.templates) if template.id in allowed]
    # Which templates fit depends on which variables are known, and there are few such cases.
    fitting: dict[tuple[bool, ...], np.ndarray] = {}
    seen: set[str] = set()
    places, options = [], []
    for place, record in enumerate(TASKS[name].records(data, epoch)):
        known = tuple(map(bool, record.values()))
        if known not in fitting:
            seen.update(name for name, value in record.items() if value)
            fits = [number for number in numbers if prompts.templates[number].fits(record)]
            fitting[known] = np.asarray(fits, dtype=np.int64)
        if len(fitting[known]):
            places.append(place)
            options.append(fitting[known])
    rng = np.random.default_rng([seed, epoch, zlib.crc32(name.encode())])
    count = min(len(places), int(amount) if amount > 1 else round(amount * len(places)))
    kept, uniform = np.sort(rng.permutation(len(places))[:count]), rng.random(count)
    if data.alike:
        # Whole units are drawn, but for the last one, and a template for each of them.
        units = _units(data, name, np.asarray(places, dtype=np.int64))
        unit = np.unique(units, return_inverse=True)[1]
        ranks = rng.permutation(unit.max(initial=-1) + 1)
        kept = np.sort(np.argsort(ranks[unit], kind="stable")[:count])
        _, first, own = np.unique(unit[kept], return_index=True, return_inverse=True)
        uniform = uniform[first][own]
    chosen = [
        options[sample][int(draw * len(options[sample]))]
        for sample, draw in zip(kept.tolist(), uniform.tolist(), strict=True)
    ]
    used = {number for fits in fitting.values() for number in fits.tolist()}
    unused = [
        f"Template {template.id} of {name}: {why_unused(template, seen)}"
        for number, template in enumerate(prompts.templates)
        if number in numbers and number not in used
    ]
    return np.asarray(chosen, dtype=np.int64), np.asarray(places, dtype=np.int64)[kept], unused


def _units(data: TaskData, name: str, places: np.ndarray) -> np.ndarray:
    """Return for records of a task which begin alike: those of one number, int64 [records]."""
    stretches = TASKS[name].stretches
    return places if stretches is None else stretches(data)[places]


def tokenise_rows(
    epochs: Iterable[Iterable[Row]],
    encoder: PromptEncoder,
    max_length: int,
    batch_size: int | None,
    context: int | None = None,
) -> Dataset:
    """Return the rows of all epochs as token ids, in the order they are to be trained.

    Columns: `input_ids` (prompt and answer), `prompt_length` (how many of them are prompt),
    `task`, `template_id`. Within an epoch, rows of like length share a batch (so that little is
    padded) and the batches keep a random order; without a `batch_size` rows stay as drawn.

    Raises:
        InputError: a row is longer than `max_length` tokens, or than the `context` of the model.
    """
    joiners: dict[int, RowJoiner] = {}
    parts = []
    for number, epoch in enumerate(epochs):
        if isinstance(epoch, DrawnRows):
            joiner = joiners.setdefault(id(epoch.data), RowJoiner(encoder, epoch.data))
            drawn = epoch.templates, epoch.epoch, epoch.chosen, epoch.places
            prompts, answers = joiner.encode(*drawn)
            names = [(t.task, t.id) for t in epoch.templates]
            labels = [names[chosen] for chosen in epoch.chosen.tolist()]
        else:
            rows = list(epoch)
            prompts = Ragged.of(encoder.prompt_ids([row.prompt for row in rows]))
            answers = Ragged.of(encoder.answer_ids([row.completion for row in rows]))
            labels = [(row.task, row.template_id) for row in rows]
        if not labels:
            continue
        whole = prompts.beside(answers)
        longest = int(whole.lengths.argmax())
        if whole.lengths[longest] > min(max_length, context or max_length):
            row = next(itertools.islice(epoch, longest, None))
            bound = f"--max-length {max_length}; raise it, or lower"
            if max_length >= whole.lengths[longest]:
                bound = f"the {context} of the base model's context; lower"
            raise InputError(
                f"template {row.template_id}: a sample has {whole.lengths[longest]} tokens, "
                f"more than {bound} --max-history or --max-text-words (the sample begins "
                f"{row.prompt[:60]!r})"
            )
        order = np.arange(len(labels))
        if batch_size is not None:
            order = np.asarray(group_by_length(whole.lengths.tolist(), batch_size, number))
        step = MOST_TOKENS // int(whole.lengths[longest])
        for some in np.split(order, range(step, len(order), step)):
            own = whole.take(some)
            offsets = np.concatenate([[0], np.cumsum(own.lengths)]).astype(np.int32)
            columns = {
                "input_ids": pa.ListArray.from_arrays(offsets, own.ids.astype(np.int32)),
                "prompt_length": pa.array(prompts.lengths[some]),
                "task": [labels[row][0] for row in some.tolist()],
                "template_id": [labels[row][1] for row in some.tolist()],
            }
            parts.append(Dataset(pa.table(columns)))
    return concatenate_datasets(parts)


def row_lengths(rows: Dataset) -> np.ndarray:
    """Return the tokens of each of `tokenise_rows`, int64 [rows], without reading the tokens."""
    lists = rows.with_format("arrow")["input_ids"]
    return np.asarray(pc.list_value_length(lists[:]), dtype=np.int64)


def group_by_length(lengths: list[int], batch_size: int, seed: int) -> list[int]:
    """Return an order in which rows that share a batch have about the same length.

    Rows, which come shuffled, are sorted within windows of 50 batches and the batches of a window
    shuffled again; an incomplete batch comes last.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    window = 50 * batch_size
    for start in range(0, len(lengths), window):
        part = np.arange(start, min(start + window, len(lengths)))
        part = part[np.argsort([lengths[row] for row in part], kind="stable")]
        full = len(part) // batch_size * batch_size
        batches = part[:full].reshape(-1, batch_size)
        order += batches[rng.permutation(len(batches))].ravel().tolist() + part[full:].tolist()
    return order


def collate_left(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the left, so that all answers end together and one slice holds every answer.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` (counted from the first real token) and
        `labels` (`IGNORED` but on the answer), each int64 [batch, length], and `task` (its place
        in `TASKS`), int64 [batch].
    """
    width = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for position, row in enumerate(rows):
        ids = torch.tensor(row["input_ids"])
        start = width - len(ids)
        input_ids[position, start:] = ids
        mask[position, start:] = 1
        answer = start + row["prompt_length"]
        labels[position, answer:] = input_ids[position, answer:]
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
        "labels": labels,
        "task": torch.tensor([TASK_NUMBERS[row["task"]] for row in rows]),
    }
