"""Every command a person is shown can be typed: README files, CONTRIBUTING, scripts, recipes."""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lcrec
from lcrec import plan
from lcrec.baselines.__main__ import COMMANDS
from lcrec.baselines.base import METHODS, TrainingData
from lcrec.baselines.commands import tune
from lcrec.baselines.runs.flags import method_config
from lcrec.baselines.runs.run import BaselineConfig
from lcrec.core.config import parse_config, read_yaml
from lcrec.data.folder import Interactions, Items
from lcrec.evaluate import __main__ as evaluate
from lcrec.finetune import FinetuneConfig
from lcrec.index.item_index import ItemIndex
from lcrec.prompts import __main__ as prompts_cli
from lcrec.prompts import tasks
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.rows import draw_rows
from lcrec.prompts.tasks import parse_mixture
from lcrec.reinforce.__main__ import ReinforceConfig
from lcrec.reinforce.settings import check_settings

ROOT = Path(__file__).parents[1]
PAGE_FOLDERS = ("prompts", "recipes", "scripts")
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob(".github/*.md")),
    *sorted(ROOT.glob("lcrec/**/README.md")),
    *(page for page in sorted(ROOT.glob("*/README.md")) if page.parent.name in PAGE_FOLDERS),
]
DOCUMENTS = [
    *PAGES, *sorted((ROOT / "scripts").glob("*.sh")), *sorted((ROOT / "recipes").glob("*.sh")),
]  # fmt: skip
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Flags of other programs, as the pages name them.
OTHER_FLAGS = {"--cpu", "--num-processes", "--num-cpu-threads-per-process", "--nproc-per-node"}
A_COMMAND = re.compile(
    r"-m lcrec\.\w+ |(^|\W)lcrec \w|recipes/\w+\.py |^(\w+=\S+ )*python scripts/\w+\.py"
)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page that are in one of the languages."""
    found = re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return [block for language, block in found if language in languages]


def commands(document: Path) -> list[list[str]]:
    """Return the lcrec commands in a document, split as a shell would."""
    if document.suffix == ".md":
        text = "\n".join(blocks(document, "", "bash"))
    else:
        text = document.read_text(encoding="utf-8")
    text = text.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if not line.strip().startswith("#")]
    return [
        shlex.split(line, comments=True)
        for line in lines
        if A_COMMAND.search(line) and "echo" not in line
    ]


def stage_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """Return the stage ("embed") or the script ("scripts/ablation.py") and what follows it."""
    for position, word in enumerate(words):
        if word in ("recipes/finetune.py", "recipes/reinforce.py"):
            return Path(word).stem, words[position + 1 :]
        if word.startswith("scripts/"):
            return word, words[position + 1 :]
        if word == "-m" and words[position + 1].startswith("lcrec."):
            return words[position + 1].removeprefix("lcrec."), words[position + 2 :]
        if word == "lcrec":
            return words[position + 1], words[position + 2 :]
    raise AssertionError(words)


def settings_module(stage: str):
    """Return the module that holds a stage's settings: a package has them in its `__main__`."""
    name = f"lcrec.{stage}"
    if (ROOT / "lcrec" / stage).is_dir():
        name += ".__main__"
    return importlib.import_module(name)


def config_type(module):
    """Return the settings of a stage, which may stand in another module of its package."""
    stage = module.__name__.removesuffix(".__main__")
    found = [
        value
        for name, value in vars(module).items()
        if name.endswith("Config")
        and dataclasses.is_dataclass(value)
        and f"{value.__module__}.".startswith(f"{stage}.")
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
    assert {ROOT / "README.md", ROOT / "prompts" / "README.md"} <= set(PAGES)
    assert len(RECIPES) >= 8


class Parsed(Exception):
    """Ends a script as soon as its arguments are read."""


def parse(words: list[str], monkeypatch, load_script):
    """Read a command's arguments as its stage or script would; return the settings."""
    stage, arguments = stage_and_arguments(words)
    # A shell variable stands for a value: one of a few, a number, more flags, or else a path.
    values = {
        "$format": "recbole", "$published": "Instruments", "$split": "test", "$constraint": "level",
        "$seed": "42", "$number": "0", "$shop": "600", "${methods[@]}": "popularity",
        "$((16 / processes))": "2",
    }  # fmt: skip
    arguments = [
        values.get(word, word)
        for word in arguments
        if word not in ("...", "$@") and not re.fullmatch(r"\$\w+_flags", word)
    ]
    if stage == "prompts":
        return prompts_cli.build_parser().parse_args(arguments)
    if stage.startswith("scripts/"):
        module = load_script(stage)
        if not hasattr(module, "parse_config"):
            return parse_with_argparse(module, arguments, monkeypatch)
    elif stage == "baselines":
        name, *arguments = arguments
        if name == "tune":  # a method's name comes next, and its settings may follow
            kind, *arguments = arguments
            kind = METHODS[kind]
            made = method_config(tune.TuneConfig, kind, without=kind.grid)
            return parse_config(made, arguments, description="", prog=stage)
        if name not in COMMANDS:
            assert name in METHODS or name.startswith("$")
            kind = METHODS.get(name, METHODS["popularity"])
            made = method_config(BaselineConfig, kind)
            return parse_config(made, arguments, description="", prog=stage)
        module = importlib.import_module(COMMANDS[name][0])
    elif stage == "modeling":
        assert arguments[0] == "merge"
        module, arguments = settings_module(stage), arguments[1:]
    elif stage == "evaluate" and arguments[0] in evaluate.COMMANDS:
        module = importlib.import_module(evaluate.COMMANDS[arguments[0]])
        arguments = arguments[1:]
    elif stage == "plan" and arguments[0] in plan.COMMANDS:
        module = importlib.import_module(plan.COMMANDS[arguments[0]])
        arguments = arguments[1:]
    else:
        module = settings_module(stage)
    return parse_config(config_type(module), arguments, description="", prog=stage)


def parse_with_argparse(module, arguments: list[str], monkeypatch) -> argparse.Namespace:
    """Read the arguments of a script that uses argparse in its `main`, and go no further."""
    read = argparse.ArgumentParser.parse_args

    def read_only(parser, *_):
        raise Parsed(read(parser, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_only)
    with pytest.raises(Parsed) as parsed:
        module.main()
    return parsed.value.args[0]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_a_command_in_a_document_is_accepted(words, load_script, monkeypatch, tmp_path):
    # Not in the checkout, whose data/ and runs/ hold whatever its user has made.
    for folder in ("recipes", "prompts"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    parse(words, monkeypatch, load_script)


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted(ROOT.glob("lcrec/**/*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_an_extra_that_is_to_be_installed_exists_for_any_install_of_lcrec(page):
    """pip adds it to a checkout and to a wheel alike; `.[x]` would need the checkout's folder."""
    text = page.read_text(encoding="utf-8")
    for target, names in re.findall(r"pip\s+install\s+([^\n`]*?)\[([\w,]+)\]", text):
        assert set(names.split(",")) <= set(EXTRAS)
        assert target == ("-e '." if names == "dev" else "'lcrec")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_fits_the_settings(recipe):
    """Of the stage whose settings know all its keys, of which there must be one."""
    stages = {
        FinetuneConfig: ("data", "index", "base", "output"),
        ReinforceConfig: ("model", "data", "output"),
    }
    keys = read_yaml(recipe).keys()
    (stage,) = (s for s in stages if keys <= {field.name for field in dataclasses.fields(s)})
    paths = [word for name in stages[stage] for word in (f"--{name}", name)]
    config = parse_config(stage, ["--config", str(recipe), *paths], description="", prog="stage")
    if stage is FinetuneConfig:
        parse_mixture(config.tasks)
    else:
        check_settings(config)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_what_it_takes_and_how_that_was_found_out(recipe, load_script, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = itertools.takewhile(lambda line: line.startswith("#"), recipe.read_text().splitlines())
    head = "\n".join(line.removeprefix("#").strip() for line in lines)
    assert re.search(r"^Hardware and time: .*\d", head, flags=re.MULTILINE)
    assert ("(measured" in head) != ("(estimated" in head)
    (source,) = re.findall(r"\((?:measured|estimated)[^()]*?((?:bash|python|lcrec) [^()]*)\)", head)
    words = shlex.split(source)
    for word in words[1:2]:
        assert (ROOT / word).exists() or word in ("-m", "plan", "reinforce")
    if "(estimated" in head:
        assert words[words.index("--config") + 1] == f"recipes/{recipe.name}"
        assert parse(words, monkeypatch, load_script).tflops


@pytest.mark.parametrize(
    "script",
    sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("recipes/*.sh"), ROOT / ".ci" / "run"]),
    ids=lambda path: path.name,
)
def test_a_script_is_valid_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def anchors(page: Path) -> set[str]:
    """Return the headings of a page as GitHub writes them in links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    for link, anchor in links:
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{page.relative_to(ROOT)}, block {number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, "python"))
    ],
)
def test_names_that_a_page_imports_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lcrec":
            assert hasattr(lcrec, node.attr), node.attr


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag that a stage, a method or a script declares."""
    found = {"--config", "--help", *OTHER_FLAGS}
    for path in (*ROOT.glob("lcrec/**/*.py"), *ROOT.glob("scripts/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                if ast.unparse(node.value.func) == "option":
                    name = ast.unparse(node.target).replace("_", "-")
                    found |= {f"--{name}", f"--no-{name}"}
            elif isinstance(node, ast.Constant) and str(node.value).startswith("--"):
                found.add(node.value)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_flag_that_a_page_names_exists(page, flags):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {
        flag.replace("_", "-")
        for code in re.findall(r"`([^`]+)`", text)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", code)
    }
    assert named <= flags


def test_the_example_of_a_baseline_works(tmp_path, monkeypatch):
    code, _ = blocks(ROOT / ".github" / "CONTRIBUTING.md", "python")
    (tmp_path / "an_example_of_a_baseline.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("an_example_of_a_baseline").RecentPopularity()
    train = Interactions.from_sequences({"ann": [0, 1, 2, 3], "bob": [2, 3]})
    data = TrainingData(train, num_items=5)
    method.fit(data)
    copy = type(method)()
    copy.load_state(method.state(), data)
    for fitted in (method, copy):  # the last three of ann, both of bob
        assert fitted.score(np.array([0]), [np.array([4])]).tolist() == [[0, 1, 2, 2, 0]]


def test_the_example_of_a_task_works(tmp_path, monkeypatch):
    page = ROOT / ".github" / "CONTRIBUTING.md"
    _, code = blocks(page, "python")
    (template,) = blocks(page, "yaml")
    function, entry = ast.parse(code).body
    names = dict(vars(tasks))
    exec(ast.unparse(function), names)
    task = eval(ast.unparse(entry), names)
    monkeypatch.setitem(tasks.TASKS, task.name, task)
    (tmp_path / f"{task.name}.yaml").write_text(template)
    prompts = PromptSet.load(tmp_path, ROOT / "prompts")
    data = tasks.TaskData(
        Items([{"title": "tuner", "brand": "Acme"}, {"title": "capo"}]),
        Interactions.from_sequences({"ann": [0, 1]}),
        ItemIndex(np.array([[0], [1]], dtype=np.int32), (2,)),
    )
    rows = list(draw_rows(data, prompts, {task.name: 1}, seed=0, epoch=0))
    assert [(row.prompt, row.completion) for row in rows] == [
        ("Who makes <a_0>?", "Acme")  # of the capo nothing is known
    ]


@pytest.mark.slow
def test_the_front_page_runs_as_written(tmp_path):
    """Its commands and its program, on a smaller shop in the quickstart's place.

    Left out are the two scripts, what installs or needs the network, the server and its client,
    files that no one has (`orders.csv`), and the nightly job, which has a test of its own.
    """
    for folder in ("recipes", "prompts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    left_out = re.compile(r"bash |source |pip |curl |lcrec serve|lcrec studio|.*(qwen|orders\.csv)")
    shown = [
        command
        for block in blocks(ROOT / "README.md", "bash")
        if "$NIGHT" not in block
        for command in block.replace("\\\n", " ").splitlines()
        if not left_out.match(command)
    ]
    own = [command for command in shown if "mine" in command]
    assert [command.split()[1] for command in own] == (
        ["prepare", "embed", "quantize", "launch", "generate"]
    )
    quickstart = [
        "lcrec synthetic --output data/shop --users 300 --items 100",
        "lcrec tinylm --data data/shop --output runs/quickstart/base --vocab-size 600"
        " --hidden-size 32 --layers 1 --epochs 1",
        *(
            command.replace("data/mine", "data/shop")
            .replace("runs/mine/predictions.jsonl", "runs/quickstart/predictions/lc-rec.jsonl")
            .replace("runs/mine", "runs/quickstart")
            for command in own[1:]
        ),
    ]
    (tmp_path / "python_block.py").write_text(*blocks(ROOT / "README.md", "python"))
    script = [
        "set -e",
        f'lcrec() {{ "{sys.executable}" -m lcrec "$@"; }}',
        *quickstart,
        *shown,
        f'"{sys.executable}" python_block.py',
    ]
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^<a_\d+><b_\d+><c_\d+>$", done.stdout, re.MULTILINE)
    assert (tmp_path / "runs" / "quickstart" / "index" / "report.html").exists()
    assert (tmp_path / "runs" / "quickstart" / "compare" / "comparison.html").exists()


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_constraints_pin_every_direct_dependency():
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
