"""Methods to compare with, behind one contract; `python -m lcrec.baselines NAME` runs one.

A method is one file here with a subclass of `Baseline`, and one line in `METHODS`.

Public names: `Method`, `METHODS`, `find_method`.
"""

import importlib
from dataclasses import dataclass

from lcrec.baselines.base import Baseline
from lcrec.errors import InputError, closest

__all__ = ["METHODS", "Method", "find_method"]


@dataclass(frozen=True)
class Method:
    """Where a method's class is, and what it does in a line.

    The class is imported when it is used: most need torch, and a list of names does not.
    """

    path: str
    summary: str

    def load(self) -> type[Baseline]:
        """Return the class."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(f"lcrec.baselines.{module}"), name)


METHODS: dict[str, Method] = {
    "popularity": Method("popularity:Popularity", "the most bought first, the same for everyone"),
    "cooccurrence": Method(
        "cooccurrence:Cooccurrence", "what stood after or near the user's last items elsewhere"
    ),
    "mf": Method("mf:MatrixFactorisation", "a vector per user and item, BPR (Rendle et al. 2009)"),
    "lightgcn": Method(
        "lightgcn:LightGCN", "vectors smoothed over the graph of purchases (He et al. 2020)"
    ),
}


def find_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r}{closest(name, METHODS)} ({', '.join(METHODS)})")
    return METHODS[name]
