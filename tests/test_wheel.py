"""An installed kit: the wheel holds what it needs, and works where there is no checkout."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
SOURCES = ("lcrec", "prompts", "recipes", "pyproject.toml", "setup.py", "MANIFEST.in")
SOURCES += ("README.md", "LICENSE", "scripts/constraints.txt")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
# One process, said in full: accelerate would otherwise look for a configuration, and warn.
LAUNCH = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


def run_in(folder, *words, status=0, **environment):
    """Run Python in a folder and return what it prints; it must exit with `status`."""
    command = [sys.executable, *map(str, words)]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == status, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, made from a copy: a build leaves files beside what it builds."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip("setuptools 77 or newer is absent, and nothing is downloaded for a test")
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        (copy / name).parent.mkdir(exist_ok=True)
        if (TOP / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(TOP / name, copy / name, ignore=ignored)
        else:
            shutil.copy(TOP / name, copy / name)
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys\nfrom setuptools import build_meta\nbuild_meta.build_sdist(sys.argv[1])"
    run_in(copy, "-c", build, folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the source distribution without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    without = ("--no-deps", "--no-build-isolation", "--no-index")
    run_in(folder, *PIP, "wheel", *without, "--wheel-dir", folder, sdist)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed into."""
    target = tmp_path_factory.mktemp("installed")
    run_in(target, *PIP, "install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of somebody who has a `prompts/`, a `recipes/` and a project of their own."""
    folder = tmp_path / "elsewhere"
    for name in ("prompts", "recipes"):
        (folder / name).mkdir(parents=True)
    (folder / "prompts" / "seqrec.yaml").write_text("not: ours\n")
    (folder / "prompts" / "mine.txt").write_text("Write a poem.\n")
    (folder / "recipes" / "pancakes.yaml").write_text("eggs: 3\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "pancakes"\n')
    return folder


def test_the_sdist_holds_what_builds_the_wheel(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "prompts/seqrec.yaml", "recipes/accelerate/fsdp2.yaml"} <= names
    assert {
        "recipes/finetune.py",
        "scripts/constraints.txt",
        "lcrec/core/page.html",
        "lcrec/studio/parts.html",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "data/", "runs/"))]


def test_the_wheel_holds_the_package_its_prompts_and_its_recipes(wheel):
    expected = {
        path: TOP / path
        for path in ("lcrec/py.typed", "lcrec/core/page.html", "lcrec/studio/parts.html")
    }
    for folder, package, patterns in (
        ("lcrec", "lcrec", ["*.py"]),
        ("prompts", "lcrec/_prompts", ["*.yaml", "*.jinja", "README.md"]),
        ("recipes", "lcrec/_recipes", ["*.yaml"]),
    ):
        for path in (path for pattern in patterns for path in (TOP / folder).rglob(pattern)):
            expected[f"{package}/{path.relative_to(TOP / folder).as_posix()}"] = path
    assert {"lcrec/_prompts/short/system.yaml", "lcrec/_recipes/quickstart.yaml"} <= set(expected)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == set(expected)
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name


def test_an_installed_kit_takes_its_own_prompts_and_recipes(installed, elsewhere):
    path = {"PYTHONPATH": str(installed)}
    shown = run_in(elsewhere, "-m", "lcrec.prompts", "check", **path)
    assert f"{installed}/lcrec/_prompts: " in shown
    assert "templates, no fault" in shown
    script = "from lcrec.core.shipped import find_recipe, shipped\nprint(shipped('prompts'))\n"
    script += "for name in ('quickstart', 'recipes/quickstart.yaml', 'recipes/pancakes.yaml'):\n"
    script += "    print(find_recipe(name))\n"
    assert run_in(elsewhere, "-c", script, **path).splitlines() == [
        f"{installed}/lcrec/_prompts", f"{installed}/lcrec/_recipes/quickstart.yaml",
        f"{installed}/lcrec/_recipes/quickstart.yaml", "recipes/pancakes.yaml",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_installed_kit_walks_the_whole_pipeline(installed, elsewhere):
    shape = ["--vocab-size", 400, "--hidden-size", 32, "--layers", 1, "--epochs", 0.5]
    vectors = ["--data", "shop", "--embeddings", "embeddings"]
    codes = ["--levels", 3, "--codes", 6, "--epochs", 5, "--hidden-dims", 16, "--latent-dim", 8]
    small = ["--tasks", "seqrec=40", "item2index=10", "--epochs", 1, "--patience", 1]
    small += ["--max-history", 3, "--max-text-words", 10, "--validation-users", 10]
    made = ["--data", "shop", "--index", "index", "--base", "base", "--output", "model"]
    predictions = "runs/predictions.jsonl"
    for words in (
        ["lcrec.synthetic", "--output", "shop", "--users", 60, "--items", 48],
        ["lcrec.tinylm", "--data", "shop", "--output", "base", *shape],
        ["lcrec.embed", "--data", "shop", "--output", "embeddings", "--lsa-dim", 16],
        ["lcrec.quantize", *vectors, "--output", "index", *codes],
        [*LAUNCH, "-m", "lcrec.finetune", "--config", "quickstart", *made, *small],
        ["lcrec.generate", "--model", "model", "--data", "shop", "--output", predictions],
        ["lcrec.evaluate", "--predictions", predictions],
    ):
        run_in(elsewhere, "-m", *words, PYTHONPATH=str(installed))
    # The recipe asks for prompts/short, and means the kit's.
    kit = installed / "lcrec" / "_prompts" / "short" / "seqrec.yaml"
    assert (elsewhere / "model" / "prompts" / "seqrec.yaml").read_text() == kit.read_text()
    assert (elsewhere / "runs" / "metrics.json").is_file()
