"""What items share besides their buyers: categories and brands, as ids.

Categories are parted at commas; a brand is one value. An item may have none.

Reads and writes nothing.
"""

from dataclasses import dataclass

import numpy as np

from lcrec.core.errors import InputError
from lcrec.data.folder import Items

FIELDS = ("categories", "brand")


@dataclass(frozen=True)
class Attributes:
    """The values of the catalogue's fields.

    Attributes:
        names: (field, value) of every attribute, in the order of their ids.
        fields: per field that any item fills, in the order of `FIELDS`, int64 [items + 1, most
            values of an item]: the ids of each item's values, padded with `len(names)`. The last
            row, for the id that pads sequences, has none.
    """

    names: list[tuple[str, str]]
    fields: list[np.ndarray]


def item_attributes(items: Items, asker: str) -> Attributes:
    """Return the attributes of the catalogue.

    Args:
        items: the catalogue.
        asker: the method that needs them, for the error.

    Raises:
        InputError: no item has any.
    """
    found = {
        field: [_values(items.text(item, field), field) for item in range(len(items))]
        for field in FIELDS
    }
    found = {field: values for field, values in found.items() if any(values)}
    if not found:
        raise InputError(
            f"{asker} learns from what items have in common, but none of the {len(items)} items of "
            f"the catalogue has {' or '.join(FIELDS)}; take a method that needs neither, such as "
            "sasrec, or prepare the data again with them (python -m lcrec.prepare --help)"
        )
    names: list[tuple[str, str]] = []
    fields = []
    for field, values in found.items():
        distinct = sorted({value for row in values for value in row})
        ids = {value: len(names) + place for place, value in enumerate(distinct)}
        names += [(field, value) for value in distinct]
        fields.append([[ids[value] for value in row] for row in values])
    return Attributes(names, [_padded([*rows, []], len(names)) for rows in fields])


def _values(text: str, field: str) -> list[str]:
    parts = text.split(",") if field == "categories" else [text]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _padded(rows: list[list[int]], pad: int) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
