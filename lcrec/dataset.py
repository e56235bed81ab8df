"""Tasks x prompts -> training rows, and the token ids that training and inference share.

A row is a prompt, its completion, the task and the template. For every epoch each sample gets a
fresh wording; rows of all epochs are drawn up front by seed, shuffled within their epoch and
trained once in order, so a run is the same for any number of processes and resumes exactly. What is
drawn are numbers; words are made of them one row at a time.

`python -m lcrec.dataset` writes the rows to a file, to train elsewhere (see `lcrec.dataset_cli`).

Prompt and answer are tokenised apart and their ids joined: what is trained is token for token
what inference sees. The answer ends in EOS, also where the pad token is the same.

Public names: `PromptEncoder`, `parse_mixture`, `draw_rows`, `DrawnRows`, `Row`, `tokenise_rows`,
`collate_left`, `split_markup`, `IGNORED`.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcrec.core.errors import InputError, closest, run_stage
from lcrec.index.item_index import ITEM_TOKEN
from lcrec.prompts import PromptSet
from lcrec.tasks import TASKS, TaskData
from lcrec.templates import Template

IGNORED = -100
TASK_NUMBERS = {name: number for number, name in enumerate(TASKS)}
SENTINEL = "\u2063lcrec\u2063"
# Models that think aloud are asked not to: the answer follows at once.
CHAT_SETTINGS: dict[str, Any] = {"enable_thinking": False}
# Role markup that is no token of its own, such as Llama 2's [INST] and <<SYS>>.
BRACKETED = re.compile(r"\[[^\s\[\]]+\]|<+[^\s<>]+>+")


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
        data, epoch: what records are made of.
        templates: all wordings of the prompt set.
        chosen: each row's place in `templates`, int64 [rows].
        places: each row's place among the records of its template's task, int64 [rows].
    """

    data: TaskData
    epoch: int
    templates: tuple[Template, ...]
    chosen: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Row]:
        for number, place in zip(self.chosen.tolist(), self.places.tolist(), strict=True):
            template = self.templates[number]
            record = TASKS[template.task].record(self.data, self.epoch, place)
            prompt, completion = template.render(record)
            yield Row(prompt, completion, template.task, template.id)


class PromptEncoder:
    """Turns a question into prompt ids and an answer into completion ids.

    Role markup comes from the tokenizer's chat template; a tokenizer without one is given the
    prompt set's, which then travels with the checkpoint. Item text may spell what is plain words
    to one tokenizer and markup to another (`[INST]`, `[PAD]`): in questions and answers a space
    breaks it up, so markup and special tokens stand where the chat template put them alone.

    Raises:
        InputError: the tokenizer has no EOS token, or a chat template that cannot be applied.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no EOS token, so an answer could never end")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.chat_template is None:
            tokenizer.chat_template = prompts.chat_template
        # What stands around a question is always the same: rendered once, not once per row.
        conversations = [prompts.messages(SENTINEL)]
        if prompts.system:
            # Some chat templates (Gemma's, for one) refuse a system message.
            joined = {"role": "user", "content": f"{prompts.system}\n\n{SENTINEL}"}
            conversations.append([joined])
        for conversation in conversations:
            try:
                text = tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True, **CHAT_SETTINGS
                )
                break
            except jinja2.TemplateError as error:
                reason = str(error)
        else:
            raise InputError(f"the tokenizer's chat template fails: {reason}")
        assert isinstance(text, str)
        start = str(tokenizer.bos_token or "")
        wants_start = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.conversation = conversation
        self.before, self.after = split_markup(text, "the tokenizer's chat template")
        if wants_start and not text.startswith(start):
            self.before = start + self.before
        marks = {mark.strip() for mark in _special_tokens(tokenizer)}
        marks |= set(BRACKETED.findall(self.before + self.after))
        # One character cannot be broken up; as a token it is the one that plain text has too.
        self.marks = tuple(
            mark for mark in marks if len(mark) > 1 and not ITEM_TOKEN.fullmatch(mark)
        )
        first = "".join(sorted({re.escape(mark[0]) for mark in self.marks}))
        # Most brackets of a prompt open an item token: passed over here, for speed alone.
        self.openings = re.compile(f"[{first}](?!{ITEM_TOKEN.pattern[1:]})") if first else None

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the conversation that this tokenizer's chat template turns into the prompt."""
        question = self.defuse(question)
        return [
            {**message, "content": message["content"].replace(SENTINEL, question)}
            for message in self.conversation
        ]

    def prompt_ids(self, questions: list[str]) -> list[list[int]]:
        """Return the prompt of each question as token ids."""
        texts = [self.before + self.defuse(question) + self.after for question in questions]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def answer_ids(self, answers: list[str]) -> list[list[int]]:
        """Return each answer as token ids that end in EOS."""
        texts = [self.defuse(answer) for answer in answers]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*answer, self.tokenizer.eos_token_id] for answer in ids]

    def defuse(self, text: str) -> str:
        """Return the text of a question or answer with a space inside all that would be markup."""
        if self.openings is None:
            return text
        return self.openings.sub(
            lambda found: found[0] + " " * text.startswith(self.marks, found.start()), text
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the tokens that mean more to the model than their letters."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def split_markup(text: str, source: str) -> tuple[str, str]:
    """Return what stands before and after the question, which is `SENTINEL`, in a prompt.

    Raises:
        InputError: the question is not there exactly once, as it is; `source` names the culprit.
    """
    parts = text.split(SENTINEL)
    if len(parts) != 2:
        raise InputError(f"{source} does not show a question as it is")
    return parts[0], parts[1]


def parse_mixture(tasks: list[str]) -> dict[str, float]:
    """Read `seqrec`, `seqrec=0.5` (a share of its samples) or `fusionseqrec=20000` (a cap).

    Raises:
        InputError: no task at all, an unknown one, one named twice, or an amount that is no
            positive number.
    """
    if not tasks:
        raise InputError(f"--tasks: the list is empty; name some of {', '.join(TASKS)}")
    mixture: dict[str, float] = {}
    for entry in tasks:
        name, _, amount = entry.partition("=")
        if name not in TASKS:
            raise InputError(f"--tasks: no task {name!r}{closest(name, TASKS)}")
        if name in mixture:
            raise InputError(f"--tasks: {name!r} is named twice")
        try:
            value = float(amount or 1.0)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf") or (value > 1 and value != int(value)):
            raise InputError(
                f"--tasks {entry}: expected a share in (0, 1] such as {name}=0.5, or a whole "
                f"number of samples such as {name}=20000"
            )
        mixture[name] = value
    return mixture


def draw_rows(
    data: TaskData, prompts: PromptSet, mixture: dict[str, float], seed: int, epoch: int
) -> DrawnRows:
    """Draw one epoch's rows, shuffled.

    Each sample gets one wording, drawn from those that can say it; a sample that none can say is
    left out before shares and caps are taken. The draw depends on seed, epoch and task alone.

    Args:
        data: what the records are made from.
        prompts: the wordings.
        mixture: tasks with their share (at most 1) or cap (above 1), from `parse_mixture`.
        seed: decides the draw.
        epoch: 0 for the first.
    """
    drawn = [
        _draw_task(data, prompts, name, amount, seed, epoch) for name, amount in mixture.items()
    ]
    chosen, places = (np.concatenate(part) for part in zip(*drawn, strict=True))
    order = np.random.default_rng([seed, epoch]).permutation(len(chosen))
    return DrawnRows(data, epoch, prompts.templates, chosen[order], places[order])


def _draw_task(
    data: TaskData, prompts: PromptSet, name: str, amount: float, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `chosen` and `places` of one task, in the order of its records."""
    wordings = {template.id for template in prompts.for_task(name, "train")}
    numbers = [n for n, template in enumerate(prompts.templates) if template.id in wordings]
    # Which wordings fit depends on which variables are known, and there are few such cases.
    fitting: dict[tuple[bool, ...], np.ndarray] = {}
    places, options = [], []
    for place, record in enumerate(TASKS[name].records(data, epoch)):
        known = tuple(map(bool, record.values()))
        if known not in fitting:
            fits = [number for number in numbers if prompts.templates[number].fits(record)]
            fitting[known] = np.asarray(fits, dtype=np.int64)
        if len(fitting[known]):
            places.append(place)
            options.append(fitting[known])
    rng = np.random.default_rng([seed, epoch, zlib.crc32(name.encode())])
    count = min(len(places), int(amount) if amount > 1 else round(amount * len(places)))
    taken = np.sort(rng.permutation(len(places))[:count])
    draws = rng.random(count)
    chosen = [
        options[sample][int(draw * len(options[sample]))]
        for sample, draw in zip(taken.tolist(), draws.tolist(), strict=True)
    ]
    return np.asarray(chosen, dtype=np.int64), np.asarray(places, dtype=np.int64)[taken]


def tokenise_rows(
    epochs: Iterable[Iterable[Row]], encoder: PromptEncoder, max_length: int, batch_size: int
) -> Dataset:
    """Return the rows of all epochs as token ids, in the order they are to be trained.

    Columns: `input_ids` (prompt and answer), `prompt_length` (how many of them are prompt),
    `task`, `template_id`. Within an epoch, rows of like length share a batch (so that little is
    padded) and the batches keep a random order.

    Raises:
        InputError: a row is longer than `max_length` tokens, or there are no rows at all.
    """
    parts = []
    for number, epoch in enumerate(epochs):
        rows = list(epoch)
        if not rows:
            continue
        prompts = encoder.prompt_ids([row.prompt for row in rows])
        answers = encoder.answer_ids([row.completion for row in rows])
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        longest = int(np.argmax(lengths))
        if lengths[longest] > max_length:
            raise InputError(
                f"template {rows[longest].template_id}: a sample has {lengths[longest]} "
                f"tokens, more than --max-length {max_length}; raise it, or lower "
                f"--max-history or --max-text-words (the sample begins "
                f"{rows[longest].prompt[:60]!r})"
            )
        order = group_by_length(lengths, batch_size, number)
        columns = {
            "input_ids": [prompts[row] + answers[row] for row in order],
            "prompt_length": [len(prompts[row]) for row in order],
            "task": [rows[row].task for row in order],
            "template_id": [rows[row].template_id for row in order],
        }
        parts.append(Dataset.from_dict(columns))
    if not parts:
        raise InputError("--tasks: no task has a single sample in this data set")
    return concatenate_datasets(parts)


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


if __name__ == "__main__":
    from lcrec.dataset_cli import main

    run_stage(main)
