"""Exports of a package that load their module when they are first used (PEP 562).

`python -m lcrec.X` runs the `__init__` of every package on the way, and a command has to answer
`--help` without loading torch; so no `__init__` here imports what it offers.
"""

import importlib
from collections.abc import Callable
from typing import Any


def lazy_exports(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        homes: {exported name: the module below the package that defines it}, or "module:name"
            where it has another name there.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, inner = homes[name].partition(":")
        return getattr(importlib.import_module(f"{package}.{module}"), inner or name)

    return load
