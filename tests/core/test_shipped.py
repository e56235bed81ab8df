"""Where the kit's own folders lie, and how a recipe is named."""

from pathlib import Path

import pytest

from lcrec.core import shipped as module
from lcrec.core.errors import InputError
from lcrec.core.shipped import find_recipe, find_templates, shipped
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS

TOP = Path(__file__).parents[2]


def test_in_a_checkout_its_own_folders_are_used_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    monkeypatch.chdir(tmp_path)
    shipped.cache_clear()
    assert shipped("prompts") == SHIPPED_PROMPTS == TOP / "prompts"
    assert shipped("recipes") == TOP / "recipes"


@pytest.mark.parametrize("project", [None, '[project]\nname = "other"', "[project", "a = 1"])
def test_beside_another_project_the_package_has_them(tmp_path, monkeypatch, project):
    (tmp_path / "prompts").mkdir()
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "lcrec")
    shipped.cache_clear()
    assert shipped("prompts") == tmp_path / "lcrec" / "_prompts"
    shipped.cache_clear()


def test_a_recipe_is_a_file_or_else_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        assert find_recipe(name) == TOP / "recipes" / "quickstart.yaml"
    Path("quickstart.yaml").write_text("epochs: 1\n")
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")
    for name in ("quikstart", "other/quickstart.yaml", "quickstart.json"):
        with pytest.raises(InputError, match=rf"{name}: no such file.*did you mean .*office, "):
            find_recipe(name)


def test_a_shipped_recipe_means_the_shipped_templates(tmp_path, monkeypatch):
    (tmp_path / "prompts" / "short").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    short = Path("prompts/short")
    assert find_templates(short, find_recipe("quickstart")) == TOP / "prompts" / "short"
    assert find_templates(Path("data"), find_recipe("quickstart")) == Path("data")
    assert find_templates(short, tmp_path / "quickstart.yaml") == short
    monkeypatch.chdir(TOP)
    assert find_templates(short, Path("recipes/quickstart.yaml")) == TOP / "prompts" / "short"
