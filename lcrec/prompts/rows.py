"""Tasks x prompts -> training rows, and the token ids that training and inference share.

A row is a prompt, its completion, the task and the template. For every epoch each sample gets a
freshly drawn template; the rows of an epoch are drawn by seed and number when it begins, shuffled,
and trained once in order, so a run is the same for any number of processes and resumes exactly.
What is drawn are numbers; they become words one row at a time.

`python -m lcrec.dataset` writes the rows to a file, to train elsewhere (see `lcrec.dataset`).

Prompt and answer are tokenised apart and their ids joined: what is trained is token for token
what inference sees. The answer ends in EOS, also where the pad token is the same.
"""

import itertools
import os
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import get_worker_info

from lcrec.core.errors import InputError
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.joining import Ragged, RowJoiner
from lcrec.prompts.preview import why_unused
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TASKS, TaskData
from lcrec.prompts.templates import Template

IGNORED = -100
MOST_TOKENS = 2**31 - 1  # of one table: Arrow counts where its lists begin in 32 bits
LONGEST = 8  # records of a task that are tried for each of its variables
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


@dataclass(frozen=True)
class _Fitting:
    """Which templates fit which records of a task.

    Attributes:
        places: the records that a template fits, int64 [samples].
        kinds: for each of them its place in `options`, int64 [samples].
        options: places in `templates` of the prompt set, int64 [templates that fit] each.
        longest: some of the samples, those with the longest values, int64 [some].
        unused: a line for each template that no record fits.
    """

    places: np.ndarray
    kinds: np.ndarray
    options: list[np.ndarray]
    longest: np.ndarray
    unused: list[str]


@dataclass(frozen=True)
class RowSource:
    """What the rows of every epoch are drawn from.

    Attributes:
        data, prompts: the records, and the templates to put them into words.
        mixture: tasks with their share (at most 1) or cap (above 1), from `parse_mixture`.
        seed: decides the draw, with epoch and task.
    """

    data: TaskData
    prompts: PromptSet
    mixture: dict[str, float]
    seed: int
    # By task, and the epoch that it is of; None: of all.
    _fitting: dict[str, tuple[int | None, _Fitting]] = field(default_factory=dict, repr=False)

    def count(self, epoch: int) -> dict[str, int]:
        """Return how many rows of each task an epoch has, which is known without drawing them."""
        return {name: self._count(name, epoch) for name in self.mixture}

    def _count(self, name: str, epoch: int) -> int:
        amount, samples = self.mixture[name], len(self._fit(name, epoch).places)
        return min(samples, int(amount) if amount > 1 else round(amount * samples))

    def draw(self, epoch: int) -> DrawnRows:
        """Draw one epoch's rows, shuffled.

        Each sample gets one template, drawn from those that fit it; a sample that none fits is
        left out before shares and caps apply. The draw depends on seed, epoch and task alone.
        Where `data.alike`, samples of a task and stretch (`TaskData.stretches`) are drawn
        together, get one template and follow one another.

        Args:
            epoch: 0 for the first.
        """
        by_task, places_by_task = zip(
            *(self._draw_task(name, epoch) for name in self.mixture), strict=True
        )
        chosen, places = np.concatenate(by_task), np.concatenate(places_by_task)
        rng = np.random.default_rng([self.seed, epoch])
        if self.data.alike:
            # Rows of a unit, of a stretch or a sample of its own, stay side by side.
            units = np.concatenate(
                [
                    np.stack([np.full(len(own), task), _units(self.data, name, own)])
                    for task, (name, own) in enumerate(
                        zip(self.mixture, places_by_task, strict=True)
                    )
                ],
                axis=1,
            )
            unit = np.unique(units, axis=1, return_inverse=True)[1].ravel()
            order = np.argsort(rng.permutation(unit.max(initial=-1) + 1)[unit], kind="stable")
        else:
            order = rng.permutation(len(chosen))
        unused = [line for name in self.mixture for line in self._fit(name, epoch).unused]
        templates = self.prompts.templates
        return DrawnRows(self.data, epoch, templates, chosen[order], places[order], unused)

    def longest(self) -> DrawnRows:
        """Return the records with the longest values, by every template that fits them.

        Their rows are about as long as any that an epoch draws.
        """
        chosen, places = [], []
        for name in self.mixture:
            fitting = self._fit(name, 0)
            for sample in fitting.longest.tolist():
                options = fitting.options[fitting.kinds[sample]].tolist()
                chosen += options
                places += [fitting.places[sample]] * len(options)
        which, where = (np.asarray(some, dtype=np.int64) for some in (chosen, places))
        return DrawnRows(self.data, 0, self.prompts.templates, which, where, [])

    def _draw_task(self, name: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `chosen` and `places` of one task, in the order of its records."""
        fitting, count = self._fit(name, epoch), self._count(name, epoch)
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(name.encode())])
        kept = np.sort(rng.permutation(len(fitting.places))[:count])
        uniform = rng.random(count)
        if self.data.alike:
            # Whole units are drawn, but for the last one, and a template for each of them.
            unit = np.unique(_units(self.data, name, fitting.places), return_inverse=True)[1]
            ranks = rng.permutation(unit.max(initial=-1) + 1)
            kept = np.sort(np.argsort(ranks[unit], kind="stable")[:count])
            _, first, own = np.unique(unit[kept], return_index=True, return_inverse=True)
            uniform = uniform[first][own]
        chosen, kinds = np.empty(count, dtype=np.int64), fitting.kinds[kept]
        for kind, options in enumerate(fitting.options):
            own = kinds == kind
            chosen[own] = options[(uniform[own] * len(options)).astype(np.int64)]
        return chosen, fitting.places[kept]

    def _fit(self, name: str, epoch: int) -> _Fitting:
        known = self._fitting.get(name)
        if known is None or known[0] not in (None, epoch):
            of = epoch if TASKS[name].varies(self.data) else None
            known = self._fitting[name] = of, _find_fitting(self.data, self.prompts, name, epoch)
        return known[1]


def draw_rows(
    data: TaskData, prompts: PromptSet, mixture: dict[str, float], seed: int, epoch: int
) -> DrawnRows:
    """Draw one epoch's rows, see `RowSource`."""
    return RowSource(data, prompts, mixture, seed).draw(epoch)


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


def _find_fitting(data: TaskData, prompts: PromptSet, name: str, epoch: int) -> _Fitting:
    allowed = {template.id for template in prompts.for_task(name, "train")}
    numbers = [n for n, template in enumerate(prompts.templates) if template.id in allowed]
    measures: dict[str, Callable[[Any], int]] = {
        name: len if v.type == "text" or v.is_tokens else _characters
        for name, v in TASKS[name].variables.items()
    }
    # Which templates fit depends on which variables are known, and there are few such cases.
    cases: dict[tuple[bool, ...], int] = {}
    seen: set[str] = set()
    options: list[np.ndarray] = []
    places, kinds, lengths = array("q"), array("q"), array("q")
    for place, record in enumerate(TASKS[name].records(data, epoch)):
        known = tuple(map(bool, record.values()))
        if known not in cases:
            seen.update(name for name, value in record.items() if value)
            fits = [number for number in numbers if prompts.templates[number].fits(record)]
            cases[known] = len(options)
            options.append(np.asarray(fits, dtype=np.int64))
        if len(options[cases[known]]):
            places.append(place)
            kinds.append(cases[known])
            lengths.extend(measure(record[name]) for name, measure in measures.items())
    by_variable = np.asarray(lengths).reshape(len(places), len(measures))
    longest = np.argsort(by_variable, axis=0, kind="stable")[-LONGEST:]
    used = {number for fits in options for number in fits.tolist()}
    unused = [
        f"Template {template.id} of {name}: {why_unused(template, seen)}"
        for number, template in enumerate(prompts.templates)
        if number in numbers and number not in used
    ]
    return _Fitting(np.asarray(places), np.asarray(kinds), options, np.unique(longest), unused)


def _characters(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


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
    joiner: RowJoiner | None = None,
) -> Dataset:
    """Return the rows of some epochs as token ids, in the order they are to be trained.

    Columns: `input_ids` (prompt and answer), `prompt_length` (how many of them are prompt),
    `task`, `template_id`. Within an epoch, rows of like length share a batch (so that little is
    padded) and the batches keep a random order; without a `batch_size` rows stay as drawn.

    Args:
        joiner: of the rows' data; it keeps what it tokenised from one call to the next.

    Raises:
        InputError: a row is longer than `max_length` tokens, or than the `context` of the model.
    """
    parts = []
    for number, epoch in enumerate(epochs):
        if isinstance(epoch, DrawnRows):
            number = epoch.epoch
            if joiner is None or joiner.data is not epoch.data:
                joiner = RowJoiner(encoder, epoch.data)
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


class EpochRows(torch.utils.data.Dataset):
    """The rows of all epochs in the order of training, made when their epoch begins.

    One epoch is held beside the first. In a worker of a data loader, the next one is made in a
    thread while this one is trained; elsewhere the tokenizer may be in use for something else.

    Args:
        first: of `tokenise_rows`, the first epoch.
        sizes: how many rows each epoch has; empty: there is one epoch.
        make: returns the rows of an epoch, counted from 0.
        longest: tokens of the longest row, as far as that is known.
    """

    def __init__(
        self,
        first: Dataset,
        sizes: Sequence[int] = (),
        make: Callable[[int], Dataset] | None = None,
        longest: int = 0,
    ) -> None:
        self.first, self.sizes, self._make = first, sizes or [len(first)], make
        self.longest = max(longest, int(row_lengths(first).max()))
        self._ends = np.cumsum(self.sizes)
        self._held = 0, first
        self._next: tuple[int, Future[Dataset]] | None = None

    @property
    def tokens(self) -> int:
        """The tokens of all rows, if an epoch has as many a row as the first."""
        return int(row_lengths(self.first).sum()) * len(self) // len(self.first)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        """Return rows, as a data loader asks for a batch of them."""
        found: list[dict[str, Any]] = []
        epochs = np.searchsorted(self._ends, places, side="right").tolist()
        for epoch, own in itertools.groupby(zip(places, epochs, strict=True), lambda pair: pair[1]):
            start = int(self._ends[epoch]) - self.sizes[epoch]
            found += self._rows(epoch).__getitems__([place - start for place, _ in own])
        return found

    def _rows(self, epoch: int) -> Dataset:
        if epoch not in (0, self._held[0]):
            self._held = 0, self.first  # the last epoch goes before this one is made
            if self._next is not None and self._next[0] == epoch:
                made = self._next[1].result()
            else:
                assert self._make is not None
                made = self._make(epoch)
            assert len(made) == self.sizes[epoch]
            self._held, self._next = (epoch, made), None
        if get_worker_info() is not None:
            # A thread pool of the tokenizer's is not there in a process that was forked.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            following = epoch + 1
            if self._make and self._next is None and self._held[0] < following < len(self.sizes):
                future = ThreadPoolExecutor(1).submit(self._make, following)
                self._next = following, future
        return self.first if epoch == 0 else self._held[1]


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
