"""The command line: the overview, `lcrec STAGE`, and provenance that names the commands."""

import ast
import dataclasses
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lcrec
from lcrec.__main__ import STAGES, main
from lcrec.baselines.__main__ import COMMANDS
from lcrec.baselines.base import METHODS
from lcrec.core.errors import InputError
from lcrec.core.version import __version__

TOP = Path(__file__).parents[1]
NAMES = [name for name, _, _ in STAGES]
HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers"]


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def stages_in_the_code():
    """Return {stage: its file} of every file below lcrec/ that a person runs."""
    found = {}
    for path in sorted((TOP / "lcrec").rglob("*.py")):
        if any(map(is_main_guard, ast.parse(path.read_text(encoding="utf-8")).body)):
            words = path.relative_to(TOP / "lcrec").with_suffix("").parts
            found[".".join(words).removesuffix("__main__").rstrip(".")] = path
    del found[""]  # the overview
    return found


def run(*words):
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)


def test_the_overview_lists_every_stage_and_no_other(capsys):
    assert sorted(NAMES) == sorted(stages_in_the_code())
    main(["--version"])
    assert capsys.readouterr().out == f"lcrec {__version__}\n"
    main([])
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if "->" in line]
    assert max(map(len, lines)) <= 130
    assert [line.split("  ")[0] for line in lines] == [f"lcrec {name}" for name in NAMES]
    order = ["prepare", "embed", "quantize", "finetune", "generate", "evaluate"]
    places = [NAMES.index(name) for name in order]
    assert places == sorted(places)
    main(["--help"])
    assert capsys.readouterr().out == shown


def test_the_overview_loads_nothing_heavy():
    script = (
        "import runpy, sys\n"
        "sys.argv = ['lcrec']\n"
        "runpy.run_module('lcrec', run_name='__main__')\n"
        f"assert not set(sys.modules) & {{'numpy', 'yaml', *{HEAVY}}}\n"
    )
    result = run("-c", script)
    assert result.returncode == 0, result.stderr
    assert "lcrec quantize" in result.stdout


def test_the_names_in_provenance_are_those_of_the_stages():
    commands = {f"python -m lcrec.{name}" for name in NAMES}
    commands |= {f"python -m lcrec.baselines {name}" for name in COMMANDS}
    commands.add("accelerate launch recipes/finetune.py")
    found = {}
    for path in (TOP / "lcrec").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) in ("STAGE", "PROG")
                and isinstance(node.value, ast.Constant)
            ):
                found[path] = node.value.value
    assert len(found) >= 7
    assert set(found.values()) <= commands
    for name, path in stages_in_the_code().items():
        if path in found and name != "finetune":
            assert found[path] == f"python -m lcrec.{name}"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("quantise", "no stage 'quantise'; did you mean 'quantize'? (lcrec --help"),
        ("--data", "no option '--data' (lcrec --help"),
        ("core", "no stage 'core' (lcrec --help"),
    ],
)
def test_an_unknown_stage_is_answered_with_the_one_that_was_meant(word, message):
    with pytest.raises(InputError) as error:
        main([word, "--data", "data/shop"])
    assert str(error.value).startswith(message)


def test_a_stage_runs_as_its_module_does(tmp_path, monkeypatch):
    settings = ["--users", "40", "--items", "30", "--output"]
    by_name = run("-m", "lcrec", "synthetic", *settings, str(tmp_path / "a" / "shop"))
    by_module = run("-m", "lcrec.synthetic", *settings, str(tmp_path / "b" / "shop"))
    assert (by_name.returncode, by_module.returncode) == (0, 0), by_name.stderr + by_module.stderr
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / run_name / "shop").iterdir()}
        for run_name in "ab"
    ]
    assert len(files[0]) > 2
    assert files[0] == files[1]


def test_a_wrong_stage_and_a_wrong_option_end_in_one_line_and_2():
    for words in (["quantise"], ["evaluate", "--prediction", "x"], ["baselines", "sasrecc"]):
        result = run("-m", "lcrec", *words)
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


def test_the_console_script_is_declared():
    text = (TOP / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nlcrec = "lcrec.__main__:console"\n' in text
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="lcrec") or [None]
    if script is not None:  # an environment that was made before it is still one to test in
        assert script.value == "lcrec.__main__:console"


def commands():
    """Return the words of every command: the stages and what stands below them."""
    from lcrec.evaluate.__main__ import COMMANDS as EVALUATE
    from lcrec.plan import COMMANDS as PLAN

    below = {
        "prompts": ["check", "show", "vars", "diff", "stats", "score"],
        "modeling": ["merge"],
        "evaluate": list(EVALUATE),
        "plan": list(PLAN),
        "baselines": [*METHODS, *COMMANDS, "tune itemknn", "tune alpharec"],
    }
    return [[name, *words.split()] for name in NAMES for words in ["", *below.get(name, [])]]


HELP = f"""
import contextlib, io, json, shlex, sys
import lcrec.core.config

class Parsed(Exception):
    pass

parse = lcrec.core.config.parse_config

def parse_only(*arguments, **options):
    parse(*arguments, **options)
    raise Parsed

lcrec.core.config.parse_config = parse_only
from lcrec.__main__ import main

shown = {{}}
for words in json.loads(sys.argv[1]):
    name, out = " ".join(words), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out):
        try:
            main([*words, "--help"])
        except SystemExit as end:
            status = end.code
    example = shlex.split(out.getvalue().splitlines()[-1])
    accepted = False
    given = example[2:]  # behind `lcrec STAGE`
    if words[0] == "prompts":
        import lcrec.prompts.__main__
        accepted = bool(lcrec.prompts.__main__.build_parser().parse_args(given))
    else:
        try:
            main([words[0], *given])
        except Parsed:
            accepted = True
    heavy = [each for each in {HEAVY} if each in sys.modules]
    shown[name] = [status, out.getvalue(), accepted, heavy]
json.dump(shown, sys.stdout)
"""


def helps(every):
    result = run("-c", HELP, json.dumps(every))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_help_ends_in_an_example_that_parses_and_nothing_heavy_is_loaded():
    shown = helps(commands())
    assert len(shown) == len(commands()) >= 38
    for name, (status, text, accepted, heavy) in shown.items():
        assert status == 0, name
        assert text.startswith("usage: "), name
        assert "\nexample:\n  " in text, name
        assert "(default: False)" not in text, name
        assert accepted, name
        assert heavy == [], name


def test_every_number_that_can_be_given_has_a_least_value():
    """So that `parse_config` refuses less; three are checked where they are used."""
    unbounded = {
        field.name
        for each in pkgutil.walk_packages(lcrec.__path__, "lcrec.")
        if each.name != "lcrec.studio.page"  # needs Gradio, and has no settings
        for settings in vars(importlib.import_module(each.name)).values()
        if isinstance(settings, type) and dataclasses.is_dataclass(settings)
        for field in dataclasses.fields(settings)
        if field.metadata.get("minimum", 0) is None and re.search("int|float", str(field.type))
    }
    assert unbounded == {"share", "min_rating", "items"}
