"""What an editor of prompt templates sees: samples of a data set, and what changed in a folder.

Reads a data folder and an item index, or makes up a shop; writes to the screen only. Loads neither
torch nor transformers, so that it answers at once.
"""

import os
import re
import sys
from collections.abc import Callable, Collection
from difflib import SequenceMatcher
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.console import printable
from lcrec.core.errors import InputError
from lcrec.data.data_set import load_data
from lcrec.data.folder import Interactions, Items
from lcrec.data.user_texts import UserTexts
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TASKS, TaskData
from lcrec.prompts.templates import Template

COLOURS = {"red": 31, "green": 32}
# How far `show` looks for records, so that it answers at once on any data set.
RECORDS_SEEN = 2000

EXAMPLE_ITEMS = {
    "Maple Ukulele, Soprano": "A small four-string instrument with a warm, bright voice.",
    "Felt Picks, 6 Pack": "Soft picks that bring out the mellow side of nylon strings.",
    "Clip-On Tuner": "Reads the vibration of the wood, so it works in a noisy room.",
    "Padded Gig Bag": "Keeps rain and knocks off a soprano ukulele; has a pocket for a tuner.",
    "Songbook for Beginners": "Thirty tunes with three chords or fewer.",
    "Nylon Strings, Soprano": "A set of four clear strings that hold their pitch.",
}


def show_task(
    prompts: PromptSet,
    task: str,
    data: TaskData,
    template_id: str | None,
    count: int | None,
    lay_out: Callable[[str, str], str] | None = None,
) -> None:
    """Print examples: the templates in turn, each on another record it fits.

    Args:
        template_id: this template only.
        count: how many examples; by default one per template.
        lay_out: makes the text to print of a question and an answer; by default the question,
            and below it the answer behind a ">".

    Raises:
        InputError: the template is unknown or of another task, or the task has no data.
    """
    templates = [template for template in prompts.templates if template.task == task]
    if template_id is not None:
        templates = [prompts.get(template_id)]
        if templates[0].task != task:
            raise InputError(
                f"--template {template_id} belongs to task {templates[0].task}, not {task}"
            )
    records = list(islice(TASKS[task].records(data), RECORDS_SEEN))
    print(f"{task}: {TASKS[task].summary}")
    if prompts.system:
        print(f"system: {printable(prompts.system, lines=True)}")
    for number in range(count or len(templates)):
        template = templates[number % len(templates)]
        fitting = [record for record in records if template.fits(record)]
        print(f"\n-- {template.id} (use: {template.use})")
        if not fitting:
            seen = {name for record in records for name, value in record.items() if value}
            print(f"   {why_unused(template, seen)}")
            continue
        # A prime step shows many users instead of one user's growing history.
        sides = template.render(fitting[(number * 37 + 3) % len(fitting)])
        print((lay_out or lay_out_plainly)(*sides))


def why_unused(template: Template, seen: Collection[str]) -> str:
    """Return why a template fits no record.

    Args:
        seen: the variables that a record has something in.
    """
    lacking = ", ".join(sorted(template.needs.difference(seen)))
    together = f"{', '.join(sorted(template.needs))} at once"
    return f"never used here: no record has {lacking or together}"


def lay_out_plainly(question: str, answer: str) -> str:
    """Return the question and below it the answer behind a ">"."""
    sides = (printable(side, lines=True).replace("\n", "\n   ") for side in (question, answer))
    return "   " + "\n > ".join(sides)


def paint(text: str, colour: str, plain: str) -> str:
    """Return the text in colour, or `plain` where there is no terminal or NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return plain
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def read_task_data(folder: Path | None, index_folder: Path | None, **limits: Any) -> TaskData:
    """Read what templates are rendered on; without a data folder, a made-up shop.

    Args:
        index_folder: the item index; made-up item tokens without one.
        limits: `max_history` and `max_text_words` of `TaskData`, where not its own.

    Raises:
        InputError: anything in the folders is wrong, or there is an index without data.
    """
    if folder is None:
        if index_folder is not None:
            raise InputError(f"--index {index_folder} needs the --data DIR it was made for")
        return example_data()
    data = load_data(folder)
    if index_folder is None:
        index = example_index(len(data.items))
    else:
        index = ItemIndex.load(index_folder, len(data.items))
    texts = data.user_texts
    return TaskData(
        data.items, data.split.train, index, user_texts=texts, shows_neighbours=True, **limits
    )


def example_index(num_items: int) -> ItemIndex:
    """Return item tokens that mean nothing, to preview templates before there is an index."""
    codes = np.stack([np.arange(num_items) // 64, np.arange(num_items) % 64], axis=1)
    return ItemIndex(codes.astype(np.int32), (int(codes[:, 0].max()) + 1, 64))


def example_data() -> TaskData:
    """Return a shop of six items and two customers, with all the texts a task can use."""
    items = Items(
        [
            {"title": title, "description": text, "price": f"{10 + number}.5"}
            for number, (title, text) in enumerate(EXAMPLE_ITEMS.items())
        ]
    )
    texts = UserTexts(
        preferences={"0": ["Plays at home and likes gentle sounds."]},
        train_intentions={"0": ["Something that tells me when a string is out of pitch."]},
        test_intentions={},
        num_users=2,
    )
    train = Interactions.from_sequences({"0": [0, 1, 2], "1": [4, 0, 5, 3]})
    index = example_index(len(items))
    return TaskData(items, train, index, user_texts=texts, shows_neighbours=True)


PIECES = re.compile(r"\w+|\s+|.")


def print_differences(old: PromptSet, new: PromptSet) -> int:
    """Print every difference, by task and template id, and return how many there are."""
    entries = [entry for task in TASKS for entry in _task_differences(task, old, new)]
    if old.system != new.system:
        entries.append(("system", ["reworded:", word_diff(old.system, new.system)]))
    if old.chat_template != new.chat_template:
        note = "changed (a trained model keeps the markup in its tokenizer)"
        diff = word_diff(old.chat_template, new.chat_template)
        entries.append(("chat template", [note, diff]))
    for heading, group in groupby(entries, key=lambda entry: entry[0]):
        print(f"\n{heading}")
        for _, lines in group:
            print("  " + "\n".join(lines).replace("\n", "\n      "))
    return len(entries)


def _task_differences(task: str, old: PromptSet, new: PromptSet) -> list[tuple[str, list[str]]]:
    """Return (task, lines) for every template that differs, in the order of the new set."""
    before = {t.id: t for t in old.templates if t.task == task}
    after = {t.id: t for t in new.templates if t.task == task}
    gone = {name: template for name, template in before.items() if name not in after}
    entries = []
    for template in after.values():
        known = before.get(template.id)
        if known is None:
            same = (name for name, t in gone.items() if _words(t) == _words(template))
            was = next(same, None)
            if was is None:
                entries.append([f"+ {template.id}: added (use: {template.use})", *_text(template)])
            else:
                use = _use(gone.pop(was), template)
                entries.append([f"= {template.id}: was called {was}", *use])
        elif _words(known) != _words(template):
            note = "reworded; results under its id are those of the old text"
            entries.append([f"~ {template.id}: {note}", *_use(known, template)])
            for side in ("question", "answer"):
                texts = getattr(known, side).strip(), getattr(template, side).strip()
                entries[-1] += [f"{side}: {word_diff(*texts)}"] if texts[0] != texts[1] else []
        elif known.use != template.use:
            entries.append([f"~ {template.id}:", *_use(known, template)])
    entries += [[f"- {name}: removed", *_text(template)] for name, template in gone.items()]
    return [(task, entry) for entry in entries]


def _words(template: Template) -> tuple[str, str]:
    return template.question.strip(), template.answer.strip()


def _use(old: Template, new: Template) -> list[str]:
    return [f"use: {old.use} -> {new.use}"] if old.use != new.use else []


def _text(template: Template) -> list[str]:
    question, answer = _words(template)
    return [printable(question, lines=True), f"> {printable(answer, lines=True)}"]


def word_diff(old: str, new: str) -> str:
    """Return the new text with what was removed as [-...-] and what was added as {+...+}.

    On a terminal, red and green stand for the brackets.
    """
    before, after = (PIECES.findall(printable(text, lines=True)) for text in (old, new))
    result = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            result += after[c:d]
            continue
        if removed := "".join(before[a:b]):
            result.append(paint(removed, "red", f"[-{removed}-]"))
        if put := "".join(after[c:d]):
            result.append(paint(put, "green", f"{{+{put}+}}"))
    return "".join(result)
