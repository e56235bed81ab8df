"""The preview of the editor's bench: templates rendered on records of a data set.

Reads a data folder and an item index, or makes up a shop; writes to the screen only. Loads neither
torch nor transformers, so that it answers at once.

Public names: `show_task`, `read_task_data`, `example_data`, `example_index`, `paint`.
"""

import os
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items, load_interactions, load_items
from lcrec.data.splits import leave_one_out
from lcrec.data.user_texts import UserTexts, load_user_texts
from lcrec.index.item_index import ItemIndex
from lcrec.prompts import PromptSet
from lcrec.tasks import TASKS, TaskData

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
        prompts: the wording.
        task: the task to show.
        data: where the records come from.
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
        print(f"system: {prompts.system}")
    for number in range(count or len(templates)):
        template = templates[number % len(templates)]
        fitting = [record for record in records if template.fits(record)]
        print(f"\n-- {template.id} (use: {template.use})")
        if not fitting:
            needs = ", ".join(sorted(template.question_variables | template.answer_variables))
            print(f"   never used here: no record has {needs}")
            continue
        # A prime step shows many users instead of one user's growing history.
        sides = template.render(fitting[(number * 37 + 3) % len(fitting)])
        print((lay_out or lay_out_plainly)(*sides))


def lay_out_plainly(question: str, answer: str) -> str:
    """Return the question and below it the answer behind a ">"."""
    return "   " + question.replace("\n", "\n   ") + "\n > " + answer.replace("\n", "\n   ")


def paint(text: str, colour: str, plain: str) -> str:
    """Return the text in colour, or `plain` where there is no terminal or NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return plain
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def read_task_data(folder: Path | None, index_folder: Path | None, **limits: int) -> TaskData:
    """Read what templates are rendered on; without a data folder, a made-up shop.

    Args:
        folder: the data folder.
        index_folder: the item index; made-up item tokens without one.
        limits: `max_history` and `max_text_words` of `TaskData`, where not its own.

    Raises:
        InputError: anything in the folders is wrong, or there is an index without data.
    """
    if folder is None:
        if index_folder is not None:
            raise InputError(f"--index {index_folder} needs the --data DIR it was made for")
        return example_data()
    items = load_items(folder)
    interactions = load_interactions(folder, len(items))
    if index_folder is None:
        index = example_index(len(items))
    else:
        index = ItemIndex.load(index_folder, len(items))
    texts = load_user_texts(folder, interactions)
    return TaskData(items, leave_one_out(interactions).train, index, user_texts=texts, **limits)


def example_index(num_items: int) -> ItemIndex:
    """Return item tokens that mean nothing, for looking at wording before there is an index."""
    codes = np.stack([np.arange(num_items) // 64, np.arange(num_items) % 64], axis=1)
    return ItemIndex(codes.astype(np.int32), (int(codes[:, 0].max()) + 1, 64))


def example_data() -> TaskData:
    """Return a shop of six items and two customers, with all the texts a task can use."""
    items = Items([{"title": t, "description": d} for t, d in EXAMPLE_ITEMS.items()])
    texts = UserTexts(
        preferences={"0": ["Plays at home and likes gentle sounds."]},
        train_intentions={"0": ["Something that tells me when a string is out of pitch."]},
        test_intentions={},
        num_users=2,
    )
    train = Interactions.from_sequences({"0": [0, 1, 2], "1": [4, 0, 5, 3]})
    return TaskData(items, train, example_index(len(items)), user_texts=texts)
