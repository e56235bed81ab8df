"""Numbers as shops write them, such as prices: one notation for a whole column.

A column holds numbers where every value that is there is one, with the same words around it (`12,50
EUR`, `$ 1,299.00`), which are left out. One that begins with needless zeros (`007`) is a code, and
no number. Whether the comma or the point begins the decimals is decided by the whole column; where
both would do (`1.299`), the point does.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

# Marks that part thousands and stand for nothing else.
SPACES = "'\u2019 \u00a0\u202f"
AROUND = re.compile(rf"(\D*?)([+-]?[.,]?\d(?:[\d.,{SPACES}]*\d)?(?:[eE][+-]?\d\d?)?)(\D*)")
GROUPS = re.compile(rf"(?<=\d)[{SPACES}](?=\d{{3}})")
NOTATIONS = {
    mark: re.compile(
        rf"([+-]?(0|[1-9]\d*|[1-9]\d{{0,2}}(\{other}\d{{3}})+)?(\{mark}\d+)?(e[+-]?\d\d?)?)?"
    )
    for mark, other in ((".", ","), (",", "."))
}
MISSING = ("", "nan", "null", "none")  # what software writes where there is no number


def plain_numbers(values: Sequence[str]) -> tuple[list[str], str]:
    """Write a column's numbers as plain decimals with a point, such as 12.5.

    Args:
        values: the column; "" where there is none.

    Returns:
        the column, "" where there is no number, and ""; or, where not all of it is numbers, the
        column as it was and the first value that is none.
    """
    found, around = [], None
    for value in values:
        text = "" if value.casefold() in MISSING else value
        match = AROUND.fullmatch(text)
        if text and (match is None or (around or match.group(1, 3)) != match.group(1, 3)):
            return list(values), value
        if match is not None:
            around = match.group(1, 3)
            text = GROUPS.sub("", match[2]).lower()
        found.append(text)
    wrong = {}
    for mark, notation in NOTATIONS.items():
        wrong[mark] = [place for place, text in enumerate(found) if not notation.fullmatch(text)]
        if not wrong[mark]:
            return [_plain(text, mark) for text in found], ""
    return list(values), values[wrong["."][0]]


def _plain(text: str, mark: str) -> str:
    if not text:
        return ""
    other = "," if mark == "." else "."
    plain = format(Decimal(text.replace(other, "").replace(mark, ".")), "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain
