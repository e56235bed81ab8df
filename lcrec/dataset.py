"""Tasks x prompts -> training rows, and the token ids that training and inference share.

A row is a prompt, its completion, the task and the template. For every epoch each sample gets a
fresh wording; rows of all epochs are drawn up front by seed, shuffled within their epoch and
trained once in order, so a run is the same for any number of processes and resumes exactly.

Prompt and answer are tokenised apart and their ids joined: what is trained is token for token
what inference sees. The answer ends in EOS, also where the pad token is the same.

Public names: `PromptEncoder`, `parse_mixture`, `draw_rows`, `Row`, `tokenise_rows`,
`collate_left`, `IGNORED`.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lcrec.errors import InputError, closest
from lcrec.index import ITEM_TOKEN
from lcrec.prompts import PromptSet
from lcrec.tasks import TASKS, TaskData

IGNORED = -100
TASK_NUMBERS = {name: number for number, name in enumerate(TASKS)}
SENTINEL = "\u2063lcrec\u2063"
# Role markup that is no token of its own, such as Llama 2's [INST] and <<SYS>>.
BRACKETED = re.compile(r"\[[^\s\[\]]+\]|<+[^\s<>]+>+")


@dataclass(frozen=True)
class Row:
    """One training sample in words."""

    prompt: str
    completion: str
    task: str
    template_id: str


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
        # The markup around a question is always the same: rendered once, not once per row.
        parts = self._markup(prompts, SENTINEL).split(SENTINEL)
        if len(parts) != 2:
            raise InputError("the tokenizer's chat template does not show a question as it is")
        self.before, self.after = parts
        marks = {mark.strip() for mark in _special_tokens(tokenizer)}
        marks |= set(BRACKETED.findall(self.before + self.after))
        # One character cannot be broken up; as a token it is the one that plain text has too.
        self.marks = tuple(
            mark for mark in marks if len(mark) > 1 and not ITEM_TOKEN.fullmatch(mark)
        )
        first = "".join(sorted({re.escape(mark[0]) for mark in self.marks}))
        # Most brackets of a prompt open an item token: passed over here, for speed alone.
        self.openings = re.compile(f"[{first}](?!{ITEM_TOKEN.pattern[1:]})") if first else None

    def _markup(self, prompts: PromptSet, question: str) -> str:
        conversations = [prompts.messages(question)]
        if prompts.system:
            # Some chat templates (Gemma's, for one) refuse a system message.
            joined = {"role": "user", "content": f"{prompts.system}\n\n{question}"}
            conversations.append([joined])
        for conversation in conversations:
            try:
                # Models that think aloud are asked not to: the answer follows at once.
                text = self.tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
                break
            except jinja2.TemplateError as error:
                reason = str(error)
        else:
            raise InputError(f"the tokenizer's chat template fails: {reason}")
        assert isinstance(text, str)
        start = str(self.tokenizer.bos_token or "")
        wants_start = self.tokenizer("x")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return start + text if wants_start and not text.startswith(start) else text

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


def parse_mixture(tasks: list[str]) -> dict[str, float]:
    """Read `seqrec`, `seqrec=0.5` (a share of its samples) or `fusionseqrec=20000` (a cap).

    Raises:
        InputError: an unknown task, a task named twice, or an amount that is no positive number.
    """
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
) -> list[Row]:
    """Return one epoch's rows, shuffled.

    Each sample gets one wording, drawn from those that can say it; a sample that none can say is
    left out. The draw depends on seed, epoch and task alone.

    Args:
        data: what the records are made from.
        prompts: the wordings.
        mixture: tasks with their share (at most 1) or cap (above 1), from `parse_mixture`.
        seed: decides the draw.
        epoch: 0 for the first.
    """
    rows: list[Row] = []
    for name, amount in mixture.items():
        rng = np.random.default_rng([seed, epoch, zlib.crc32(name.encode())])
        templates = prompts.for_task(name, "train")
        records = list(TASKS[name].records(data, epoch))
        count = min(len(records), int(amount) if amount > 1 else round(amount * len(records)))
        chosen = np.sort(rng.permutation(len(records))[:count])
        draws = rng.random(count)
        for position, draw in zip(chosen.tolist(), draws.tolist(), strict=True):
            record = records[position]
            fitting = [template for template in templates if template.fits(record)]
            if fitting:
                template = fitting[int(draw * len(fitting))]
                rows.append(Row(*template.render(record), name, template.id))
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return [rows[position] for position in order]


def tokenise_rows(
    epochs: Iterable[list[Row]], encoder: PromptEncoder, max_length: int, batch_size: int
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
        if not epoch:
            continue
        prompts = encoder.prompt_ids([row.prompt for row in epoch])
        answers = encoder.answer_ids([row.completion for row in epoch])
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        longest = int(np.argmax(lengths))
        if lengths[longest] > max_length:
            raise InputError(
                f"template {epoch[longest].template_id}: a sample has {lengths[longest]} "
                f"tokens, more than --max-length {max_length}; raise it, or lower "
                f"--max-history or --max-text-words (the sample begins "
                f"{epoch[longest].prompt[:60]!r})"
            )
        order = group_by_length(lengths, batch_size, number)
        columns = {
            "input_ids": [prompts[row] + answers[row] for row in order],
            "prompt_length": [len(prompts[row]) for row in order],
            "task": [epoch[row].task for row in order],
            "template_id": [epoch[row].template_id for row in order],
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
