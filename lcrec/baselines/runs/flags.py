"""The settings of a method as flags of a command, beside those that all methods share."""

import dataclasses
import shlex
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcrec.baselines.base import find_method
from lcrec.baselines.settings import MethodSettings
from lcrec.core.config import option, parse_config, settings_of
from lcrec.core.errors import InputError


def method_config(
    shared: type,
    settings: type[MethodSettings],
    *,
    tuned: bool = False,
    without: Collection[str] = (),
) -> type:
    """Return the dataclass of all that a command takes: the shared settings, then the method's.

    With `tuned` the method's start from the best known ones; those in `without` are left out.
    """
    fields = []
    for config_type in (shared, settings):
        hints = typing.get_type_hints(config_type)
        own = config_type is settings
        for field in dataclasses.fields(config_type):
            if not field.init or (own and field.name in without):
                continue
            default = (
                settings.tuned.get(field.name, field.default) if tuned and own else field.default
            )
            made = dataclasses.field(
                default=default, default_factory=field.default_factory, metadata=field.metadata
            )
            fields.append((field.name, hints[field.name], made))
    return dataclasses.make_dataclass(
        f"{settings.__name__}WithShared", fields, frozen=True, kw_only=True
    )


def parse_method_config(
    shared: type,
    settings: type[MethodSettings],
    argv: list[str],
    *,
    description: str,
    prog: str,
    example: str = "",
    without: Collection[str] = (),
) -> Any:
    """Fill `method_config` from file and flags; `shared` has `tuned` and `paper_family`.

    Raises:
        InputError: as `parse_config`, or both of the two are asked for.
    """

    def parse(tuned: bool) -> Any:
        made = method_config(shared, settings, tuned=tuned, without=without)
        return parse_config(made, argv, description=description, prog=prog, example=example)

    config = parse(tuned=False)
    if config.tuned and config.paper_family:
        raise InputError("--tuned and --paper-family are two places to start from; give one")
    return parse(tuned=True) if config.tuned else config


@dataclass(frozen=True)
class _Start:
    """What an entry may have beside the method's own flags."""

    paper_family: bool = option("start from the settings of the method's paper or library", False)
    tuned: bool = option("start from the best known settings", False)


@dataclass(frozen=True)
class MethodEntry:
    """A method as a list of methods names it, such as "sasrec --tuned --dim 128".

    Attributes:
        label: the entry as given.
        name: of the method.
        flags: the words behind it.
        settings: its own settings, as the flags make them.
    """

    label: str
    name: str
    flags: list[str]
    settings: MethodSettings


def parse_entries(entries: Sequence[str]) -> list[MethodEntry]:
    """Read methods that may have flags of their own behind their names.

    Raises:
        InputError: no such method or flag, a quote is not closed, an entry is there twice.
    """
    parsed = []
    for place, entry in enumerate(entries):
        try:
            name, *flags = shlex.split(entry)
        except ValueError:  # nothing in it, or a quote that is not closed
            raise InputError(f"--methods: {entry!r} is no method with its flags") from None
        if entry in entries[:place]:
            raise InputError(f"--methods: {entry!r} is named twice")
        kind = find_method(name)
        try:
            prog = f"python -m lcrec.baselines {name}"
            own = parse_method_config(_Start, kind, flags, description="", prog=prog)
        except InputError as error:
            raise InputError(f"--methods: {entry!r}: {error}") from None
        parsed.append(MethodEntry(entry, name, flags, settings_of(kind, own)))
    return parsed


def settings_files(settings: MethodSettings) -> dict[str, Path]:
    """Return the files that a method's settings name, by setting, for the provenance."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}
