"""ROUGE-L of generated text, for any language.

`rouge-score` (the extra `rouge`) computes it; its own tokenizer keeps nothing but a-z and 0-9, so
words are cut here. Reads and writes nothing. Public names: `RougeL`, `words_of`.
"""

import re
import unicodedata

from lcrec.core.errors import InputError

# Scripts that put no space between words: each character counts as a word, as is usual for ROUGE.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class RougeL:
    """The F-measure of the longest common subsequence of words (Lin 2004).

    Raises:
        InputError: the package `rouge-score` is missing.
    """

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise InputError("ROUGE needs a package: pip install rouge-score") from None
        self._scorer = RougeScorer(["rougeL"], tokenizer=self)

    @staticmethod
    def tokenize(text: str) -> list[str]:
        """Return the words, as `rouge-score` asks for them."""
        return words_of(text)

    def score(self, text: str, references: list[str]) -> float:
        """Return the best F-measure of `text` against any reference, 0 to 1."""
        return max(self._scorer.score(each, text)["rougeL"].fmeasure for each in references)


def words_of(text: str) -> list[str]:
    """Return the words of a text in any script, without case, form of width, or punctuation.

    A word is a run of letters, marks and digits; a symbol, such as an emoji, is a word of its own.
    """
    marked = []
    for sign in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(sign)[0]
        if kind == "S" or UNSPACED.match(sign):
            marked.append(f" {sign} " if kind != "M" else sign)
        else:
            marked.append(sign if kind in "LMN" else " ")
    return "".join(marked).split()
