"""Whether a text gives an item's title away.

An intention is the question of `itemsearch` and the item its answer: one that quotes the title
would teach to look words up instead of meaning. Reads and writes nothing.
"""

from collections import Counter
from collections.abc import Sequence

from lcrec.data.words import words_of

QUOTE_LENGTH = 4


class TitleGuard:
    """Tells what a text says of an item's title.

    A text gives a title away if it holds (a) a word of it with a digit that no other title has,
    such as a model number, (b) four words of it in a row, or (c) every word of it, in any order.

    Args:
        titles: every item's title [items], empty where it has none.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._words = [words_of(title) for title in titles]
        counts = Counter(word for words in self._words for word in set(words))
        self._codes = [
            {word for word in words if counts[word] == 1 and any(map(str.isdigit, word))}
            for words in self._words
        ]

    def title_words(self, item: int) -> list[str]:
        """Return the words of an item's title, in order."""
        return self._words[item]

    def leak(self, item: int, text: str) -> str:
        """Return the words of the item's title that the text gives away; empty if it does not."""
        title, said = self._words[item], words_of(text)
        for word in said:
            if word in self._codes[item]:
                return word
        runs = {tuple(said[start:][:QUOTE_LENGTH]) for start in range(len(said))}
        for start in range(len(title) - QUOTE_LENGTH + 1):
            run = tuple(title[start:][:QUOTE_LENGTH])
            if run in runs:
                return " ".join(run)
        return " ".join(title) if title and set(title) <= set(said) else ""
