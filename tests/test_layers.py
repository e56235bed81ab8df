"""The shape of the house: imports go down only, stages meet on disk, files stay short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lcrec.__main__ import STAGES, main
from lcrec.baselines.__main__ import COMMANDS
from lcrec.core.errors import InputError

TOP = Path(__file__).parents[1]

# Stages that answer at once, because they need no tensors either.
LIGHT = [
    "lcrec",
    "lcrec.core",
    "lcrec.core.artifacts",
    "lcrec.core.config",
    "lcrec.core.report",
]
HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers"]


def module_name(path):
    words = path.relative_to(TOP).with_suffix("").parts
    return ".".join(words).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((TOP / "lcrec").rglob("*.py"))}
SCRIPTS = {
    module_name(path): path
    for folder in ("recipes", "scripts")
    for path in sorted((TOP / folder).glob("*.py"))
}
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"))
    for name, path in {**MODULES, **SCRIPTS}.items()
}


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(name, *, with_main_guard=True):
    """Return every module named in an import anywhere in a file."""
    body = TREES[name].body
    if not with_main_guard:
        body = [node for node in body if not is_main_guard(node)]
    found = set()
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            # `from lcrec import data` names a module, `from lcrec.data import Items` does not.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found


def stages():
    """Return the modules that a person runs."""
    return [
        name
        for name, tree in TREES.items()
        if any(map(is_main_guard, tree.body)) and name != "lcrec.__main__"
    ]


def test_what_needs_no_tensors_loads_none():
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split():\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [heavy for heavy in {HEAVY} if heavy in sys.modules]\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    command = [sys.executable, "-c", script, " ".join(LIGHT)]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# `python -m lcrec`.


def command_of(name):
    if name in SCRIPTS:
        return f"accelerate launch {SCRIPTS[name].relative_to(TOP).as_posix()}"
    return f"python -m {name.removesuffix('.__main__')}"


def test_the_overview_lists_every_stage_and_no_other():
    expected = sorted(command_of(name) for name in stages() if not name.startswith("scripts."))
    assert sorted(command for command, _, _ in STAGES) == expected


def test_the_names_in_provenance_are_those_of_the_overview():
    commands = {command for command, _, _ in STAGES}
    commands |= {f"python -m lcrec.baselines {name}" for name in COMMANDS}
    constants = {
        name: node.value.value
        for name, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("STAGE", "PROG")
        and isinstance(node.value, ast.Constant)
    }
    assert len(constants) >= 7
    assert set(constants.values()) <= commands
    for name, value in constants.items():
        if name in stages():
            assert value == command_of(name)


def test_the_overview_is_in_order_a_line_each(capsys):
    main([])
    lines = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert len(lines) == len(STAGES)
    assert max(map(len, lines)) <= 130
    commands = [line.split("  ")[0] for line in lines]
    assert commands == [command for command, _, _ in STAGES]
    order = ["prepare", "embed", "quantize", "finetune.py", "generate", "evaluate"]
    places = [next(i for i, c in enumerate(commands) if c.endswith(word)) for word in order]
    assert places == sorted(places)
    main(["--help"])
    assert "python -m lcrec.embed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("embed", "python -m lcrec.embed"),
        ("quantise", "python -m lcrec.quantize"),
        ("finetune", "accelerate launch recipes/finetune.py"),
        ("--data", "python -m lcrec."),
    ],
)
def test_an_argument_is_answered_with_the_command_that_was_meant(word, command):
    with pytest.raises(InputError) as error:
        main([word, "--data", "data/shop"])
    message = str(error.value)
    assert f"python -m lcrec takes no argument {word!r}" in message
    assert re.search(rf"such as: {re.escape(command)}.* --help$", message)


def test_the_overview_loads_nothing_heavy():
    script = (
        "import runpy, sys\n"
        "sys.argv = ['lcrec']\n"
        "runpy.run_module('lcrec', run_name='__main__')\n"
        f"assert not set(sys.modules) & {{'numpy', 'yaml', *{HEAVY}}}\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "python -m lcrec.quantize" in result.stdout
