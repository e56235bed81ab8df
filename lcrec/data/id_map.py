"""Raw ids: what a shop calls its users and items, beside the numbers that every stage counts in.

Reads `<Name>.user2id` and `<Name>.item2id`, lines of raw id, tab, number. Raw ids are text,
whatever they look like: `007` is not `7`. Writes nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lcrec.core.artifacts import find_data, read_text
from lcrec.core.errors import InputError, closest

Ids = Literal["raw", "numbers"]


@dataclass(frozen=True)
class IdMap:
    """What users or items are called, by number.

    Attributes:
        kind: what they are.
        names: their raw ids, all different; where nobody has named them, their numbers as text.
        is_raw: whether they are raw ids.
    """

    kind: Literal["user", "item"]
    names: Sequence[str]
    is_raw: bool

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each name."""
        return {name: number for number, name in enumerate(self.names)}

    def number(self, name: str) -> int:
        """Return the number of a name.

        Raises:
            InputError: there is no such user or item.
        """
        number = self.numbers.get(name)
        if number is None:
            raise self.unknown(name)
        return number

    def unknown(self, name: str) -> InputError:
        """Return the error about a name that is none of these; it looks for the nearest one."""
        if not isinstance(name, str):
            return InputError(f"{self.kind} {name!r:.60}: raw ids are text")
        if self.is_raw:
            return InputError(f"{self.kind} {name!r:.60} is unknown{closest(name, self.names)}")
        return InputError(
            f"{self.kind} {name:.60} is not in the catalogue, whose ids are 0 to "
            f"{len(self.names) - 1}"
        )

    def numbers_of_lists(self, what: str, lists: Sequence[Any]) -> list[Any]:
        """Return lists of names as numbers; the same object stays one, and None stays None.

        Raises:
            InputError: there are no raw ids, or a name is unknown; `what` and the place of its list
                are named.
        """
        if not self.is_raw:
            raise InputError(
                "ids='raw': the checkpoint carries no raw ids; it was trained before there were "
                "any, or on a data folder without <Name>.item2id"
            )
        found: dict[int, list[int]] = {}
        for position, own in enumerate(lists):
            if own is None or id(own) in found:
                continue
            try:
                found[id(own)] = [self.number(item) for item in own]
            except InputError as error:
                raise InputError(f"{what} {position}: {error}") from None
        return [None if own is None else found[id(own)] for own in lists]

    def names_of(self, numbers: Iterable[int]) -> list[str]:
        """Return the names at these numbers."""
        return [self.names[number] for number in numbers]


class Names(NamedTuple):
    """What the users and the items of a data folder are called."""

    users: IdMap
    items: IdMap


def load_names(folder: Path, users: list[str], num_items: int, ids: Ids | None) -> Names:
    """Return what the users and the items of a data folder are called.

    Args:
        users: its users, as its files have them.
        ids: "raw", "numbers", or None for raw ids where the folder has them.

    Raises:
        InputError: raw ids are asked for and there are none, or the folder's do not fit its data.
    """
    paths = find_data(folder)
    items = [str(item) for item in range(num_items)]
    return Names(
        _load("user", paths.user_ids, users, ids), _load("item", paths.item_ids, items, ids)
    )


def load_item_ids(folder: Path, num_items: int) -> list[str] | None:
    """Return the raw ids of a data folder's items, None where it has none.

    Raises:
        InputError: they do not fit the catalogue.
    """
    items = [str(item) for item in range(num_items)]
    found = _load("item", find_data(folder).item_ids, items, None)
    return list(found.names) if found.is_raw else None


def _load(kind: Literal["user", "item"], path: Path, keys: list[str], ids: Ids | None) -> IdMap:
    raw_ids = None if ids == "numbers" else read_raw_ids(path)
    if raw_ids is None:
        if ids == "raw":
            raise InputError(f"--ids raw: {path}: no such file; it holds the {kind}s' raw ids")
        return IdMap(kind, keys, is_raw=False)
    lacking = next((key for key in keys if key not in raw_ids), None)
    if lacking is not None or len(raw_ids) > len(keys):
        what = f"no line for {kind} {lacking}" if lacking is not None else f"{len(raw_ids)} lines"
        raise InputError(
            f"{path}: {what}, but the data set has {len(keys)} {kind}s; it belongs to another one; "
            f"bring back its own, or delete it, and the {kind}s go by their numbers"
        )
    names = [raw_ids[key] for key in keys]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"{path}: raw id {twice!r} stands there twice; mend or delete it")
    return IdMap(kind, names, is_raw=True)


def read_raw_ids(path: Path) -> dict[str, str] | None:
    """Read lines of raw id, tab, number as {number: raw id}; None where there is no such file.

    Raises:
        InputError: it is no text, a line is no such line, or a number stands there twice.
    """
    if not path.exists():
        return None
    raw_ids: dict[str, str] = {}
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        raw_id, tab, key = line.rpartition("\t")
        if not tab or key in raw_ids:
            raise InputError(
                f"{path}, line {number}: expected 'raw id, tab, number', found {line!r}"
            )
        raw_ids[key] = raw_id
    return raw_ids
