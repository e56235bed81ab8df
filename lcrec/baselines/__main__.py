"""Stage: fit a baseline on the train part and rank the whole catalogue for every user.

The first word is a method, whose run is `lcrec.baselines.runs.run`, or one of `COMMANDS`, which
do more than run one method.
"""

import importlib

from lcrec.baselines.base import METHODS
from lcrec.baselines.runs.run import PROG, MethodRun, example_of
from lcrec.core.config import console_command
from lcrec.core.errors import InputError, closest, run_stage

# Loaded when asked for: {first word: (module with `main(argv)`, what it does)}.
COMMANDS: dict[str, tuple[str, str]] = {
    "tune": (
        "lcrec.baselines.commands.tune",
        "try the settings in a method's grid, on validation only",
    ),
    "cold": (
        "lcrec.baselines.commands.cold",
        "which methods find items that nobody has bought yet?",
    ),
    "fuse": ("lcrec.baselines.commands.fuse", "join predictions files of several methods into one"),
    "diagnose": (
        "lcrec.baselines.commands.diagnose",
        "what two predictions files find, together and apart",
    ),
    "probe": (
        "lcrec.baselines.commands.probe",
        "how much of one set of item vectors another one tells",
    ),
    "transfer": (
        "lcrec.baselines.commands.transfer",
        "AlphaRec trained on some data sets, ranking another",
    ),
    "intention": (
        "lcrec.baselines.commands.intention",
        "AlphaRec for users who say what they look for",
    ),
    "convergence": (
        "lcrec.baselines.commands.convergence",
        "how many epochs methods take to their best",
    ),
    "compare": (
        "lcrec.baselines.commands.compare",
        "train what is missing, judge all, one table and page",
    ),
}


def main(argv: list[str]) -> None:
    """Run a method, or the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = argv
    if name in COMMANDS:
        importlib.import_module(COMMANDS[name][0]).main(rest)
        return
    if name.startswith("-"):
        raise InputError(f"the method comes first: {PROG} NAME {name} ...\n\n{_overview()}")
    known = [*METHODS, *COMMANDS]
    if name not in METHODS:
        raise InputError(f"no method {name!r}{closest(name, known)} ({', '.join(known)})")
    MethodRun(name, rest).run()


def _overview() -> str:
    command = console_command(PROG)
    width = max(map(len, [*METHODS, *COMMANDS]))
    return "\n".join(
        [
            f"usage: {command} NAME --data DIR --output FILE.jsonl [more options]",
            "",
            "Fit a baseline on the train part and rank the whole catalogue for every user.",
            "",
            "methods:",
            *(f"  {name:<{width}}  {kind.summary}" for name, kind in METHODS.items()),
            "",
            "commands:",
            *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
            "",
            f"options of a method: {command} NAME --help",
            "",
            f"example:\n  {command} popularity {example_of('popularity', frozenset())}",
        ]
    )


if __name__ == "__main__":
    run_stage(main)
