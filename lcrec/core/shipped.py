"""The folders that travel with the kit beside its code: `prompts/` and `recipes/`.

In a checkout (an editable install too) they lie in its top folder, where people edit them; a wheel
has them inside the package as `_prompts` and `_recipes` (`setup.py` puts them there). The current
folder plays no part: a folder `prompts/` in it is somebody else's.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from lcrec.core.errors import InputError, closest

PACKAGE = Path(__file__).parents[1]


@cache
def shipped(name: Literal["prompts", "recipes"]) -> Path:
    """Return the kit's own folder of this name, as an absolute path."""
    checkout = PACKAGE.parent
    if _is_checkout(checkout) and (checkout / name).is_dir():
        return checkout / name
    return PACKAGE / f"_{name}"


def find_recipe(given: str) -> Path:
    """Return the settings file that a person named: a file, or else a shipped recipe.

    Args:
        given: a path. Where there is no such file, `quickstart`, `quickstart.yaml` and
            `recipes/quickstart.yaml` mean the shipped ones.

    Raises:
        InputError: there is neither; the shipped recipes are named.
    """
    path = Path(given)
    if path.exists():
        return path
    recipes = {file.stem: file for file in sorted(shipped("recipes").glob("*.yaml"))}
    is_name = str(path.parent) in (".", "recipes") and path.suffix in ("", ".yaml")
    if is_name and path.stem in recipes:
        return recipes[path.stem]
    raise InputError(
        f"--config {given}: no such file, and no shipped recipe{closest(path.stem, recipes)} "
        f"(shipped: {', '.join(recipes)})"
    )


def find_templates(given: Path, recipe: Path) -> Path:
    """Return the folder that a settings file means by a path.

    Args:
        given: the path. In a shipped recipe `prompts/short` is the shipped folder, wherever the
            command is given; any other path is as it stands.
    """
    is_shipped = recipe.resolve().parent == shipped("recipes").resolve()
    if is_shipped and given.parts[:1] == ("prompts",):
        return shipped("prompts").joinpath(*given.parts[1:])
    return given


def _is_checkout(folder: Path) -> bool:
    """Return whether a folder's `pyproject.toml` is that of lcrec."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return project.get("project", {}).get("name") == "lcrec"
