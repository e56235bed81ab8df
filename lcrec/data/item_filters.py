"""Which items a person may want: by the values of their fields, and by ranges of their numbers.

The same form everywhere, from Python, in the service and on the command line:
`{"brand": ["Acme"], "price": {"max": 20}}`.
"""

from collections.abc import Mapping
from functools import lru_cache, reduce

import numpy as np

from lcrec.core.errors import InputError, closest
from lcrec.data.folder import Items

# Of the standard fields those that have values; the others are texts.
VALUES = ("brand", "categories")
BOUNDS = ("min", "max")
LARGEST = 1e300


class FilterError(InputError):
    """A filter that cannot be used; `field` is the one at fault, None where there is no such."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ItemFilters:
    """Finds the items that filters let through: brand, categories, and every kept field.

    A field whose values are all numbers is filtered by a range, any other by its values, whole or
    between commas, whatever their case. A value may hold commas itself (`Kitchen, Dining`).

    Attributes:
        values: field -> folded value -> the items that have it, int64, ascending.
        numbers: field -> every item's number, float64 [items], NaN where it has none.
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self.values: dict[str, dict[str, np.ndarray]] = {}
        self.numbers: dict[str, np.ndarray] = {}
        for field in dict.fromkeys((*VALUES, *items.kept_fields)):
            texts = [items.text(item, field) for item in range(len(items))]
            numbers = None if field in VALUES else _numbers(texts)
            if numbers is not None:
                self.numbers[field] = numbers
            elif any(texts):
                self.values[field] = _items_by_value(texts)
        # Requests that share a list share its cost, and a shop asks for the same ranges.
        self._between = lru_cache(64)(self._find_between)
        self._with_commas = lru_cache(64)(self._find_with_commas)

    def select(self, filters: Mapping[str, object]) -> np.ndarray:
        """Return the items that every filter lets through, int64 ascending.

        Args:
            filters: field -> values of which an item has one, or {"min": a, "max": b}, both
                inclusive, either alone too. An item without the field passes no filter on it.

        Raises:
            FilterError: no filter, or one with an unknown field, a value that no item has, or
                another form than the field's.
        """
        chosen: np.ndarray | None = None
        for field, wanted in filters.items():
            if field in self.numbers:
                own = self._between(field, *_bounds(field, wanted))
            elif field in self.values:
                own = self._with_values(field, wanted)
            else:
                known = [*self.values, *self.numbers]
                raise FilterError(
                    f"{field[:40]!a} is no field to filter by here: {', '.join(known) or 'none'}"
                    f"{closest(field[:40], known)}"
                )
            chosen = own if chosen is None else np.intersect1d(chosen, own, assume_unique=True)
        if chosen is None:
            raise FilterError('name a field, such as {"brand": ["Acme"]}')
        return chosen

    def _with_values(self, field: str, wanted: object) -> np.ndarray:
        if not isinstance(wanted, list | tuple) or not wanted:
            raise FilterError(
                f"{field} holds words: expected a list of values, found {wanted!r:.60}", field
            )
        # Keyed by value: a request may name one so often that its items do not fit in memory.
        named = {}
        for value in wanted:
            folded = value.strip().casefold() if isinstance(value, str) else ""
            own = self.values[field].get(folded)
            own = self._with_commas(field, folded) if own is None else own
            if not len(own):
                raise FilterError(f"no item has the {field} {str(value)[:80]!a}", field)
            named[folded] = own
        lists = list(named.values())
        # One list alone stays the object it is: requests that share it share its cost.
        if len(lists) == 1:
            return lists[0]
        passes = np.zeros(len(self._items), dtype=bool)
        passes[np.concatenate(lists)] = True
        return np.flatnonzero(passes)

    def _find_with_commas(self, field: str, folded: str) -> np.ndarray:
        """Return the items in whose values these stand side by side, as they do in one value."""
        known, wanted = self.values[field], _parts(folded)
        if not all(part in known for part in wanted):
            return np.zeros(0, dtype=np.int64)
        among = reduce(np.intersect1d, (known[part] for part in set(wanted)))

        def stands_in(item: int) -> bool:
            own = _parts(self._items.text(item, field).casefold())
            places = range(len(own) - len(wanted) + 1)
            return any(own[place : place + len(wanted)] == wanted for place in places)

        return np.array([item for item in among.tolist() if stands_in(item)], dtype=np.int64)

    def _find_between(self, field: str, low: float, high: float) -> np.ndarray:
        numbers = self.numbers[field]
        return np.flatnonzero((numbers >= low) & (numbers <= high))


def _bounds(field: str, wanted: object) -> tuple[float, float]:
    """Return the range that a filter on numbers names."""
    is_range = isinstance(wanted, Mapping) and wanted and not wanted.keys() - set(BOUNDS)
    if not is_range or not all(
        isinstance(bound, int | float) and not isinstance(bound, bool) and abs(bound) < LARGEST
        for bound in wanted.values()  # type: ignore[attr-defined]
    ):
        raise FilterError(
            f'{field} holds numbers: expected {{"min": a, "max": b}}, or one of the two, found '
            f"{wanted!r:.60}",
            field,
        )
    low, high = (wanted.get(name) for name in BOUNDS)  # type: ignore[attr-defined]
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _numbers(texts: list[str]) -> np.ndarray | None:
    """Return a field's numbers, float64 [items]; None where a text is no number, or all are ""."""
    try:
        numbers = np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return None
    there = np.array([bool(text) for text in texts])
    return numbers if there.any() and np.isfinite(numbers[there]).all() else None


def _parts(text: str) -> list[str]:
    """Return what stands between commas."""
    return [part.strip() for part in text.split(",")]


def _items_by_value(texts: list[str]) -> dict[str, np.ndarray]:
    """Return the items with each value, ascending, by folded value.

    A text may hold several values, separated by commas; the whole of it counts as one too.
    """
    found: dict[str, list[int]] = {}
    for item, text in enumerate(texts):
        for value in {part.strip().casefold() for part in (text, *text.split(","))} - {""}:
            found.setdefault(value, []).append(item)
    return {value: np.asarray(ids) for value, ids in found.items()}
