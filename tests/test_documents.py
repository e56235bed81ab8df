"""Every command a person is shown can be typed: README, prompts/README.md, scripts, recipes."""

import dataclasses
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lcrec.baselines import METHODS
from lcrec.baselines.__main__ import COMMANDS
from lcrec.baselines.commands import tune
from lcrec.baselines.runs.run import BaselineConfig
from lcrec.baselines.runs.settings import method_config
from lcrec.core.config import parse_config
from lcrec.evaluate import __main__ as evaluate
from lcrec.prompts import __main__ as prompts_cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "prompts" / "README.md",
    *sorted((ROOT / "scripts").glob("*.sh")),
    *sorted((ROOT / "recipes").glob("*.sh")),
]
# Where the settings of a command are, if not in the module of its name.
COMMAND_MODULES = {"dataset": "dataset_cli"}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LINKS = [ROOT / "README.md", ROOT / "prompts" / "README.md"]


@pytest.fixture(scope="module")
def finetune(load_script):
    return load_script("recipes/finetune.py")


def commands(document: Path) -> list[list[str]]:
    """Return the lcrec commands in a document, split as a shell would."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".md":
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        text = "\n".join(block for language, block in blocks if language in ("", "bash"))
    text = text.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("#")]
    found = []
    for line in lines:
        if re.search(r"-m lcrec\.\w+ |recipes/finetune\.py ", line) and "echo" not in line:
            found.append(shlex.split(line, comments=True))
    return found


def stage_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """Return the stage ("embed", "recipes/finetune.py") and what follows it."""
    for position, word in enumerate(words):
        if word == "recipes/finetune.py":
            return word, words[position + 1 :]
        if word == "-m" and words[position + 1].startswith("lcrec."):
            return words[position + 1].removeprefix("lcrec."), words[position + 2 :]
    raise AssertionError(words)


def config_type(module):
    found = [
        value
        for name, value in vars(module).items()
        if name.endswith("Config")
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} should have one settings class"
    return found[0]


ALL_COMMANDS = [
    pytest.param(words, id=f"{document.name}: {' '.join(words)[:60]}")
    for document in DOCUMENTS
    for words in commands(document)
]


def test_there_are_commands_to_check():
    assert len(ALL_COMMANDS) >= 20
    stages = {stage_and_arguments(param.values[0])[0] for param in ALL_COMMANDS}
    assert {"prepare", "embed", "quantize", "generate", "evaluate", "baselines"} <= stages


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_a_command_in_a_document_is_accepted(words, finetune, monkeypatch):
    monkeypatch.chdir(ROOT)
    stage, arguments = stage_and_arguments(words)
    if stage == "prompts":
        prompts_cli.build_parser().parse_args(arguments)
        return
    # A shell variable stands for a value: one of a few, a number, more flags, or else a path.
    values = {
        "$format": "recbole",
        "$split": "test",
        "$constraint": "level",
        "$seed": "42",
        "$number": "0",
        "${methods[@]}": "popularity",
        "$((16 / processes))": "2",
    }
    arguments = [
        values.get(word, word)
        for word in arguments
        if word not in ("...", "$@") and not re.fullmatch(r"\$\w+_flags", word)
    ]
    if stage == "recipes/finetune.py":
        module = finetune
    elif stage == "baselines":
        name, *arguments = arguments
        if name == "tune":  # a method's name comes next, and its settings may follow
            kind, *arguments = arguments
            kind = METHODS[kind].load()
            made = method_config(tune.TuneConfig, kind, without=kind.grid)
            parse_config(made, arguments, description="", prog=stage)
            return
        if name in COMMANDS:
            module = importlib.import_module(COMMANDS[name][0])
        else:
            assert name in METHODS or name.startswith("$")
            kind = METHODS.get(name, METHODS["popularity"]).load()
            made = method_config(BaselineConfig, kind)
            parse_config(made, arguments, description="", prog=stage)
            return
    elif stage == "modeling":
        assert arguments[0] == "merge"
        module, arguments = importlib.import_module("lcrec.modeling.__main__"), arguments[1:]
    elif stage == "evaluate" and arguments[0] in evaluate.COMMANDS:
        module = importlib.import_module(evaluate.COMMANDS[arguments[0]])
        arguments = arguments[1:]
    else:
        module = importlib.import_module(f"lcrec.{COMMAND_MODULES.get(stage, stage)}")
    parse_config(config_type(module), arguments, description="", prog=stage)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_fits_the_settings(recipe, finetune):
    paths = ["--data", "d", "--index", "i", "--base", "b", "--output", "o"]
    config = parse_config(
        finetune.FinetuneConfig, ["--config", str(recipe), *paths], description="", prog="finetune"
    )
    finetune.parse_mixture(config.tasks)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_what_it_takes_and_how_that_was_found_out(recipe, finetune):
    lines = itertools.takewhile(lambda line: line.startswith("#"), recipe.read_text().splitlines())
    head = "\n".join(line.removeprefix("#").strip() for line in lines)
    assert re.search(r"^Hardware and time: .*\d", head, flags=re.MULTILINE)
    assert ("(measured" in head) != ("(estimated" in head)
    (source,) = re.findall(
        r"\((?:measured|estimated)[^()]*?((?:bash|python) [^()]*\.(?:sh|py)[^()]*)\)", head
    )
    words = shlex.split(source)
    assert (ROOT / words[1]).exists()
    if "(estimated" in head:
        config = parse_config(finetune.FinetuneConfig, words[2:], description="", prog="finetune")
        assert words[words.index("--config") + 1] == f"recipes/{recipe.name}"
        assert config.dry_run
        assert config.tflops


def test_every_recipe_is_found():
    assert {path.stem for path in RECIPES} >= {
        *("quickstart", "office", "office_small", "qwen3_0.6b", "qwen3_4b"),
        *("lora_7b", "full_7b", "qlora_7b_24gb"),
    }


@pytest.mark.parametrize(
    "script",
    sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("recipes/*.sh"), ROOT / ".ci" / "run"]),
    ids=lambda path: path.name,
)
def test_a_script_is_valid_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("document", LINKS, ids=lambda path: path.parent.name)
def test_links_to_files_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    for link in links:
        assert (document.parent / link).exists(), link


def test_the_map_names_every_module_once():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## The map") : text.index("## Troubles")]
    named = re.findall(r"(\w+)\.py`", table)
    modules = {path.stem for path in (ROOT / "lcrec").glob("*.py")} - {"__init__", "__main__"}
    assert sorted(name for name in named if name != "finetune") == sorted(modules)


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_constraints_pin_every_direct_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(
        itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    )
    names = {normal(re.split(r"[\[<>=]", requirement)[0]) for requirement in wanted}
    pinned = {
        normal(line.split("==")[0])
        for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names - {"lcrec"} <= pinned
