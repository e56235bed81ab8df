"""The editor's bench for `prompts/`: check the wording, see it on real records, list variables.

Reads a prompts folder and, for `show`, a data folder and an item index; writes to the screen only.
Run it as `python -m lcrec.prompts check|show|vars`.

Public names: `main`.
"""

import argparse
import re
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lcrec.data import Interactions, Items, leave_one_out, load_interactions, load_items
from lcrec.errors import InputError, closest
from lcrec.index import ItemIndex
from lcrec.intent_prompts import read_intent_prompts
from lcrec.prompts import CHAT_TEMPLATE, INTENTS, SHIPPED_PROMPTS, PromptSet, read_prompts
from lcrec.tasks import TASKS, TaskData
from lcrec.user_texts import UserTexts, load_user_texts

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


def main(argv: list[str]) -> None:
    """Run `check`, `show` or `vars`.

    Raises:
        InputError: a flag names what does not exist, or `show` meets a folder with faults.
        SystemExit: with status 1 when `check` finds faults.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lcrec.prompts", description="Check, preview and explain prompt templates."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="list every fault; exit with 1 if there is one")
    show = commands.add_parser("show", help="render a task's templates on records of a data set")
    variables = commands.add_parser("vars", help="list what the templates of a task may use")
    for command in (check, show):
        command.add_argument(
            "--prompts",
            type=Path,
            default=SHIPPED_PROMPTS,
            metavar="DIR",
            help="the folder to read; what it lacks comes from ./prompts (default: prompts)",
        )
    show.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    show.add_argument("--template", metavar="ID", help="this template only")
    show.add_argument("--data", type=Path, metavar="DIR", help="default: a made-up music shop")
    show.add_argument("--index", type=Path, metavar="DIR", help="default: made-up item tokens")
    show.add_argument("-n", type=int, metavar="N", help="examples (default: one per template)")
    variables.add_argument("task", nargs="?", metavar="TASK", help="default: every task")
    given = parser.parse_args(argv)

    if given.command != "check" and given.task not in (None, *TASKS):
        raise InputError(
            f"no task {given.task!r}{closest(given.task, TASKS)} (all: {', '.join(TASKS)})"
        )
    if given.command == "check":
        check_folder(given.prompts)
    elif given.command == "vars":
        for task in [given.task] if given.task else TASKS:
            print_variables(task)
    else:
        if given.n is not None and given.n < 1:
            raise InputError(f"-n {given.n}: at least 1 example can be shown")
        prompts = PromptSet.load(given.prompts, base=SHIPPED_PROMPTS)
        data = read_task_data(given.data, given.index)
        if given.index is None:
            print("(the item tokens are made up; --data DIR --index DIR shows real ones)")
        show_task(prompts, given.task, data, given.template, given.n)


def check_folder(folder: Path) -> None:
    """Print every fault of a folder, or how many templates each task has; exit with 1 on faults."""
    prompts, faults = read_prompts(folder, base=SHIPPED_PROMPTS)
    if prompts.chat_template:
        own = folder / CHAT_TEMPLATE
        path = own if own.is_file() else SHIPPED_PROMPTS / CHAT_TEMPLATE
        faults += [f"{path}: {fault}" for fault in chat_template_faults(prompts.chat_template)]
    if any((place / INTENTS).is_file() for place in (folder, SHIPPED_PROMPTS)):
        faults += read_intent_prompts(folder, base=SHIPPED_PROMPTS)[1]
    for fault in faults:
        print(fault)
    if faults:
        print(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {folder}", file=sys.stderr)
        sys.exit(1)
    print(f"{folder}: {len(prompts.templates)} templates, no fault")
    for task in TASKS:
        uses = [template.use for template in prompts.templates if template.task == task]
        counts = ", ".join(f"{uses.count(use)} {use}" for use in ("both", "train", "eval"))
        print(f"  {task:<17}{counts}")
    print(f"Next: python -m lcrec.prompts show seqrec --prompts {folder}")


def chat_template_faults(text: str) -> list[str]:
    """Return what is wrong with a chat template, tried the way `transformers` renders it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # transformers has a tag of its own that marks the assistant's words.
    text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)
    messages = [{"role": "system", "content": "Words."}, {"role": "user", "content": "A question?"}]
    try:
        template = environment.from_string(text)
        prompt = template.render(messages=messages, add_generation_prompt=True)
    except Exception as error:  # what an editor wrote may fail in any way
        return [f"cannot be rendered: {type(error).__name__}: {error}"]
    if "A question?" not in prompt:
        return ["leaves the question out"]
    if prompt != prompt.rstrip(" \t"):
        return ["the prompt ends in a space, which runs into the answer"]
    return []


def print_variables(task: str) -> None:
    """Print what the templates of a task may use."""
    print(f"{task}: {TASKS[task].summary}")
    for name, variable in TASKS[task].variables.items():
        print(f"  {name:<20}{variable.role:<10}{variable.type:<14}{variable.meaning}")


def show_task(
    prompts: PromptSet, task: str, data: TaskData, template_id: str | None, count: int | None
) -> None:
    """Print examples: the templates in turn, each on another record it fits."""
    templates = [template for template in prompts.templates if template.task == task]
    if template_id is not None:
        templates = [prompts.get(template_id)]
        if templates[0].task != task:
            raise InputError(
                f"--template {template_id} belongs to task {templates[0].task}, not {task}"
            )
    print(f"{task}: {TASKS[task].summary}")
    if prompts.system:
        print(f"system: {prompts.system}")
    records = list(islice(TASKS[task].records(data), RECORDS_SEEN))
    for number in range(count or len(templates)):
        template = templates[number % len(templates)]
        fitting = [record for record in records if template.fits(record)]
        print(f"\n-- {template.id} (use: {template.use})")
        if not fitting:
            needs = ", ".join(sorted(template.question_variables | template.answer_variables))
            print(f"   never used here: no record has {needs}")
            continue
        # A prime step shows many users instead of one user's growing history.
        question, answer = template.render(fitting[(number * 37 + 3) % len(fitting)])
        print("   " + question.replace("\n", "\n   "))
        print(" > " + answer.replace("\n", "\n   "))


def read_task_data(folder: Path | None, index_folder: Path | None) -> TaskData:
    """Read what `show` renders; without a data folder, a made-up shop.

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
    return TaskData(items, leave_one_out(interactions).train, index, user_texts=texts)


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
