"""Prompt tools: check the templates in `prompts/`, preview them, count tokens, score them.

    python -m lcrec.prompts check|show|vars|diff|stats|score

Reads a prompts folder and, by command, a data folder, an item index, a tokenizer or a checkpoint;
writes to the screen only. What needs no tokenizer loads neither torch nor transformers, so it
answers at once.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from lcrec.core.artifacts import PROMPTS
from lcrec.core.config import Parser
from lcrec.core.console import printable
from lcrec.core.errors import InputError, closest, run_stage
from lcrec.prompts.intent_wording import read_intent_prompts
from lcrec.prompts.preview import print_differences, read_task_data, show_task
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet, prompt_files, read_prompts
from lcrec.prompts.tasks import TASKS


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number from `least` up."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a number from {least} up, found {text!r}")
        return int(text)

    return read


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `lcrec prompts`."""
    parser = Parser(
        prog="lcrec prompts",
        description="Check, preview, count and score prompt templates.",
        epilog="example:\n  lcrec prompts check --prompts prompts",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {parser.prog} {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    check = command("check", "list every fault; exit with 1 if there is one", "--prompts prompts")
    show = command(
        "show",
        "render a task's templates on records of a data set",
        "seqrec --data data/shop --index runs/shop/index",
    )
    variables = command("vars", "list what the templates of a task may use", "seqrec")
    diff = command(
        "diff",
        "what changed since a model was trained, or from one folder of templates to another",
        "runs/shop/model --prompts prompts",
    )
    stats = command(
        "stats",
        "how many tokens samples have, by template",
        "--tokenizer runs/shop/base --data data/shop --index runs/shop/index",
    )
    score = command(
        "score",
        "which template a trained model answers best",
        "--model runs/shop/model --data data/shop",
    )
    for each in (check, show, diff, stats):
        each.add_argument(
            "--prompts",
            type=Path,
            default=SHIPPED_PROMPTS,
            metavar="DIR",
            help="the folder to read; what it lacks comes from the shipped one (default: that)",
        )
    show.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    show.add_argument("--template", metavar="ID", help="this template only")
    show.add_argument(
        "-n", type=at_least(1), metavar="N", help="examples (default: one per template)"
    )
    variables.add_argument("task", nargs="?", metavar="TASK", help="default: every task")
    diff.add_argument(
        "old",
        nargs="?",
        type=Path,
        default=SHIPPED_PROMPTS,
        metavar="OLD",
        help="the model's folder, or one of templates (default: the shipped ones)",
    )
    stats.add_argument(
        "-n",
        type=at_least(0),
        default=1000,
        metavar="N",
        help="records counted per template, 0 for all (default: 1000)",
    )
    for flag, default, text in (
        ("--max-length", 2048, "the limit to compare with, in tokens"),
        ("--max-history", 20, "items of a history shown at most"),
        ("--max-text-words", 60, "words of a title or description shown at most"),
    ):
        stats.add_argument(
            flag,
            type=at_least(1),
            default=default,
            metavar="N",
            help=f"{text} (default: {default}, as in fine-tuning)",
        )
    for each in (show, stats):
        each.add_argument("--data", type=Path, metavar="DIR", help="default: a made-up shop")
        each.add_argument("--index", type=Path, metavar="DIR", help="default: made-up item tokens")
        each.add_argument(
            "--tokenizer",
            metavar="NAME",
            required=each is stats,
            help="a folder or a model on the hub: shows chat markup, tokens and what is trained",
        )
    score.add_argument("--model", type=Path, metavar="DIR", required=True, help="the checkpoint")
    score.add_argument("--data", type=Path, metavar="DIR", required=True, help="its data folder")
    score.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="an index that adds items to the checkpoint's own, as --data has them",
    )
    score.add_argument(
        "--prompts", type=Path, metavar="DIR", help="other templates than the checkpoint's own"
    )
    score.add_argument(
        "--split",
        choices=("valid", "test"),
        default="valid",
        help="the held-out items to ask for; choose templates on valid (default)",
    )
    score.add_argument(
        "--users",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="users to ask for (default: 1000)",
    )
    score.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="draws them (default: 0)"
    )
    return parser


def main(argv: list[str]) -> None:
    """Run one of the commands.

    Raises:
        InputError: an argument is unknown or names what does not exist, or prompts that are not
            being checked have faults.
        SystemExit: with status 1 when `check` finds faults.
    """
    given, unknown = build_parser().parse_known_args(argv)
    if unknown:
        hint = "; a folder is named with --prompts" if Path(unknown[0]).is_dir() else ""
        raise InputError(
            f"unrecognized arguments: {' '.join(unknown)}{hint} (all arguments: lcrec prompts "
            f"{given.command} --help)"
        )
    task = getattr(given, "task", None)
    if task is not None and task not in TASKS:
        raise InputError(f"no task {task!r}{closest(task, TASKS)} (all: {', '.join(TASKS)})")
    if given.command == "check":
        check_folder(given.prompts)
    elif given.command == "vars":
        for name in [task] if task else TASKS:
            print_variables(name)
    elif given.command == "diff":
        print_diff(given.old, given.prompts)
    elif given.command == "score":
        from lcrec.evaluate.templates import score_model

        score_model(
            given.model,
            given.data,
            given.prompts,
            given.split,
            given.users,
            given.seed,
            given.index,
        )
    else:
        preview(given)


def preview(given: argparse.Namespace) -> None:
    """Run `show` or `stats`."""
    prompts = PromptSet.load(given.prompts, base=SHIPPED_PROMPTS)
    limits = {}
    if given.command == "stats":
        limits = {"max_history": given.max_history, "max_text_words": given.max_text_words}
    data = read_task_data(given.data, given.index, **limits)
    if given.index is None:
        print(
            f"(the item tokens, {data.index.num_levels} an item, are made up; --data DIR --index "
            "DIR shows real ones)"
        )
    if given.tokenizer is None:
        show_task(prompts, given.task, data, given.template, given.n)
        return
    from lcrec.prompts.tokens import lay_out_tokens, load_encoder, print_stats

    encoder = load_encoder(given.tokenizer, prompts, data.index)
    if given.command == "stats":
        print_stats(prompts, data, encoder, given.max_length, given.n)
    else:
        lay_out = functools.partial(lay_out_tokens, encoder)
        show_task(prompts, given.task, data, given.template, given.n, lay_out)


def print_diff(old: Path, folder: Path) -> None:
    """Print what changed from the templates of a checkpoint, or of a folder, to those of a folder.

    Raises:
        InputError: one of them holds no prompts, or has faults.
    """
    is_checkpoint = (old / PROMPTS).is_dir()
    if not is_checkpoint and not old.is_dir():
        raise InputError(
            f"{old}: not a checkpoint of lcrec (no {PROMPTS}/ in it), nor a folder of templates; "
            "name a folder that lcrec.finetune wrote, or one of templates"
        )
    # A checkpoint's own copy is complete.
    source, base = (old / PROMPTS, None) if is_checkpoint else (old, SHIPPED_PROMPTS)
    before = PromptSet.load(source, base)
    after = PromptSet.load(folder, base=SHIPPED_PROMPTS)
    meaning = "the model was trained on" if is_checkpoint else "stands in the first"
    print(f"{old} -> {folder}: - is what {meaning}, + what stands there now")
    count = print_differences(before, after)
    if not count:
        print("No difference: the templates are the same.")
        return
    print(f"\n{count} difference{'s' * (count > 1)}")
    if is_checkpoint:
        print(f"Next: python -m lcrec.prompts score --model {old} --data DIR --prompts {folder}")


def check_folder(folder: Path) -> None:
    """Print every fault of a folder, or how many templates each task has; exit with 1 on faults."""
    base = _from_here(SHIPPED_PROMPTS)
    folder = base if folder == SHIPPED_PROMPTS else folder
    prompts, faults = read_prompts(folder, base=base)
    faults += read_intent_prompts(folder, base=base)[1]
    faults = list(dict.fromkeys(faults))
    for fault in faults:
        print(printable(fault))
    if faults:
        print(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {folder}", file=sys.stderr)
        sys.exit(1)
    print(f"{folder}: {len(prompts.templates)} templates, no fault")
    files = prompt_files(folder, base)
    for task in TASKS:
        uses = [template.use for template in prompts.templates if template.task == task]
        counts = ", ".join(f"{uses.count(use)} {use}" for use in ("both", "train", "eval"))
        origins = [path for name, path in files.items() if name.split(".")[0] == task]
        print(f"  {task:<17}{counts:<27}{', '.join(map(str, origins))}")
    print(f"Next: python -m lcrec.prompts show seqrec --prompts {folder}")


def _from_here(path: Path) -> Path:
    """Return a path as an editor types it: relative, if it lies below the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def print_variables(task: str) -> None:
    """Print what the templates of a task may use."""
    print(f"{task}: {TASKS[task].summary}")
    for name, variable in TASKS[task].variables.items():
        print(f"  {name:<20}{variable.role:<10}{variable.type:<14}{variable.meaning}")


if __name__ == "__main__":
    run_stage(main)
