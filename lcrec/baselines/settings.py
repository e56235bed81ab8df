"""The settings of a method as flags of a command, beside those that all methods share.

Reads and writes nothing. Public names: `method_config`, `parse_method_config`, `method_settings`,
`settings_files`, `default_device`.
"""

import dataclasses
import sys
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lcrec.baselines.base import Baseline
from lcrec.config import parse_config
from lcrec.errors import InputError


def method_config(
    shared: type, method: type[Baseline], *, tuned: bool = False, without: Collection[str] = ()
) -> type:
    """Return the dataclass of all that a command takes: the shared settings, then the method's.

    Args:
        shared: the settings that do not depend on the method.
        method: the class.
        tuned: whether its own settings start from the best known ones.
        without: names of its settings that are not for setting here.
    """
    fields = []
    for config_type in (shared, method.Settings):
        hints = typing.get_type_hints(config_type)
        own = config_type is method.Settings
        for field in dataclasses.fields(config_type):
            if not field.init or (own and field.name in without):
                continue
            default = (
                method.tuned.get(field.name, field.default) if tuned and own else field.default
            )
            made = dataclasses.field(
                default=default, default_factory=field.default_factory, metadata=field.metadata
            )
            fields.append((field.name, hints[field.name], made))
    return dataclasses.make_dataclass(f"{method.__name__}Config", fields, frozen=True)


def parse_method_config(
    shared: type,
    method: type[Baseline],
    argv: list[str],
    *,
    description: str,
    prog: str,
    without: Collection[str] = (),
) -> Any:
    """Fill `method_config` from file and flags; `shared` has `tuned` and `paper_family`.

    Raises:
        InputError: as `parse_config`, or both of the two are asked for.
    """

    def parse(tuned: bool) -> Any:
        made = method_config(shared, method, tuned=tuned, without=without)
        return parse_config(made, argv, description=description, prog=prog)

    config = parse(tuned=False)
    if config.tuned and config.paper_family:
        raise InputError("--tuned and --paper-family are two places to start from; give one")
    return parse(tuned=True) if config.tuned else config


def method_settings(method: type[Baseline], config: Any, **chosen: Any) -> Any:
    """Return the method's own settings out of what its command was given, but for those chosen."""
    names = [field.name for field in dataclasses.fields(method.Settings) if field.init]
    given = {name: getattr(config, name) for name in names if name not in chosen}
    return method.Settings(**given, **chosen)


def settings_files(settings: Any) -> dict[str, Path]:
    """Return the files that a method's settings name, by setting, for the provenance."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}


def default_device() -> str:
    """Return "cuda" where there is a GPU and something has loaded torch, else "cpu"."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
