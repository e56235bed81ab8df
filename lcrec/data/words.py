"""The words of a text in any script, for whatever compares texts word by word.

Tokenisers of Latin text alone would find no word in a Japanese title, and a language model's tokens
are no words.
"""

import re
import unicodedata

# Scripts that put no space between words: each character counts as a word.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class _Spacing(dict[int, str]):
    """What `str.translate` puts for each character, found when the character is first met."""

    def __init__(self, *, symbols: bool) -> None:
        super().__init__()
        self._symbols = symbols

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kind = unicodedata.category(sign)[0]
        if UNSPACED.match(sign) or (self._symbols and kind == "S"):
            self[code] = f" {sign} " if kind != "M" else sign
        else:
            self[code] = sign if kind in "LMN" else " "
        return self[code]


_SPACING = {symbols: _Spacing(symbols=symbols) for symbols in (False, True)}


def words_of(text: str, *, symbols: bool = False) -> list[str]:
    """Return the words of a text in order, without case, form of width, or punctuation.

    A word is a run of letters, marks and digits.

    Args:
        text: in any script; in those without spaces between words each character is a word.
        symbols: whether a symbol, such as an emoji, is a word of its own or none.
    """
    return unicodedata.normalize("NFKC", text).casefold().translate(_SPACING[symbols]).split()
