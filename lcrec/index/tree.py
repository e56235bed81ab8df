"""The index as a tree to look at: what a prefix of codes holds, and who stands near an item.

`ItemTree` answers for one prefix or one item at a time, from the codes, the catalogue's texts and,
where they are given, the embeddings.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np

from lcrec.core.errors import InputError
from lcrec.data.folder import Items, unit_rows
from lcrec.data.words import words_of
from lcrec.index.item_index import CODE_DIGITS, ITEM_TOKEN, ItemIndex, token_name
from lcrec.index.quality import choose_labels

TYPICAL_WORDS = 4


@dataclass(frozen=True, eq=False)
class Branch:
    """The items that share a prefix of codes.

    Attributes:
        prefix: the codes, at least one.
        items: their ids, int64 [items], ascending.
        words: the words that set their titles apart from the others', most telling first.
        purity: the share of them that has their most common label (`choose_labels`), among those
            that have one; None where none has, or an item is alone.
    """

    prefix: tuple[int, ...]
    items: np.ndarray
    words: list[str]
    purity: float | None

    @property
    def text(self) -> str:
        """The prefix as the tokens that spell it."""
        return "".join(token_name(level, code) for level, code in enumerate(self.prefix))


@dataclass(frozen=True)
class Neighbour:
    """An item beside another one.

    Attributes:
        item: its id.
        shared: how many leading codes the two share.
        cosine: of their embeddings; None where there are none.
    """

    item: int
    shared: int
    cosine: float | None


class ItemTree:
    """An item index with its catalogue, to be looked at branch by branch.

    Args:
        embeddings: float [items, dim]; None where there are none.

    Raises:
        InputError: the three differ in the number of items.
    """

    def __init__(
        self, index: ItemIndex, items: Items, embeddings: np.ndarray | None = None
    ) -> None:
        counts = {len(index), len(items)} | ({len(embeddings)} if embeddings is not None else set())
        if len(counts) > 1:
            raise InputError(
                f"the index has {len(index)} items, the catalogue {len(items)}"
                + (f" and the embeddings {len(embeddings)}" if embeddings is not None else "")
                + "; they belong to different catalogues"
            )
        self.index, self.items = index, items
        self.vectors = None if embeddings is None else unit_rows(embeddings)

    @cached_property
    def _title_words(self) -> list[set[str]]:
        return [set(words_of(self.items.text(i, "title"))) for i in range(len(self.items))]

    @cached_property
    def _word_counts(self) -> Counter[str]:
        return Counter(word for words in self._title_words for word in words)

    @cached_property
    def _labels(self) -> np.ndarray:
        return choose_labels(self.items)[1]

    def read_prefix(self, text: str) -> tuple[int, ...]:
        """Return the codes of a prefix such as `<a_3><b_0>`.

        Raises:
            InputError: it is no run of item tokens from the first level on, or no item has it.
        """
        found = islice(ITEM_TOKEN.finditer(text), self.index.num_levels)
        codes = [int(match[2][:CODE_DIGITS]) for match in found]
        written = "".join(token_name(level, code) for level, code in enumerate(codes))
        if not codes or written != text.strip():
            raise InputError(f"{text!r:.60} is no prefix; write one such as {self.index.text(0)}")
        self.members(codes)
        return tuple(codes)

    def members(self, prefix: Sequence[int]) -> np.ndarray:
        """Return the items below a prefix, int64 ascending; all of them where it is empty.

        Raises:
            InputError: no item has it.
        """
        found = np.flatnonzero((self.index.codes[:, : len(prefix)] == list(prefix)).all(axis=1))
        if not len(found):
            name = "".join(token_name(level, code) for level, code in enumerate(prefix))
            raise InputError(f"no item has the prefix {name:.60}")
        return found

    def branch(self, prefix: Sequence[int]) -> Branch:
        """Return what a prefix holds; raises as `members`."""
        members = self.members(prefix)
        return Branch(
            tuple(map(int, prefix)), members, self._typical(members), self._purity(members)
        )

    def path(self, item: int) -> list[Branch]:
        """Return the branches that lead to an item, the first code alone first."""
        codes = self.index.codes[item].tolist()
        return [self.branch(codes[:depth]) for depth in range(1, len(codes) + 1)]

    def children(self, prefix: Sequence[int] = ()) -> list[Branch]:
        """Return the branches one code below a prefix, the largest first; raises as `members`."""
        codes = self.index.codes[self.members(prefix), len(prefix)]
        values, counts = np.unique(codes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [self.branch([*prefix, code]) for code in values[order].tolist()]

    def near(
        self,
        item: int,
        count: int,
        by: Literal["codes", "embeddings"],
        among: Sequence[int] | np.ndarray | None = None,
    ) -> list[Neighbour]:
        """Return the items nearest to one, itself left out; of equals the lower id comes first.

        Args:
            count: how many at most.
            by: the number of leading codes that they share, or the cosine of their embeddings.
            among: the items to choose from; None for all.

        Raises:
            InputError: embeddings are asked for and there are none.
        """
        if by == "embeddings" and self.vectors is None:
            raise InputError("no embeddings are loaded; name their folder with --embeddings")
        others = np.arange(len(self.index)) if among is None else np.unique(among)
        others = others[others != item]
        codes = self.index.codes
        shared = (codes[others] == codes[item]).cumprod(axis=1).sum(axis=1)
        cosines = None if self.vectors is None else self.vectors[others] @ self.vectors[item]
        nearness = shared if by == "codes" else cosines
        assert nearness is not None
        chosen = np.argsort(-nearness, kind="stable")[:count].tolist()
        return [
            Neighbour(
                int(others[row]), int(shared[row]), None if cosines is None else float(cosines[row])
            )
            for row in chosen
        ]

    def _typical(self, members: np.ndarray) -> list[str]:
        """Return the words with the largest share of the divergence from the whole catalogue."""
        counts = Counter(word for item in members.tolist() for word in self._title_words[item])
        scores = {
            word: count * math.log(count / len(members) * len(self.items) / self._word_counts[word])
            for word, count in counts.items()
        }
        telling = [word for word, score in scores.items() if score > 0]
        return sorted(telling, key=lambda word: (-scores[word], word))[:TYPICAL_WORDS]

    def _purity(self, members: np.ndarray) -> float | None:
        labels = self._labels[members]
        labels = labels[labels >= 0]
        if len(members) < 2 or not len(labels):
            return None
        return float(np.bincount(labels).max() / len(labels))
