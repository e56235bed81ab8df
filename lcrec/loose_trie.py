"""Constraints looser than the tree of real items, to compare it with.

LC-Rec's own decoding fixes only which codes may stand at each level, so a beam may end in no item
at all; without any constraint it may hold any tokens. `LooseTrie` offers the search what an
`ItemTrie` offers, and still knows which beams are on a real item's path.

Public names: `LooseTrie`, `Constraint`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lcrec.trie import ItemTrie

_OFF = -1  # the node of every beam that is on no real item's path


@dataclass(frozen=True, eq=False)
class LooseTrie:
    """Any sequence of the tokens allowed at each level; make one with `by_level` or `anything`.

    Attributes:
        trie: the real items.
        allowed: per level the tokens that may stand there, int64 `[tokens]`, ascending; every
            token of a real item is among them.
    """

    trie: ItemTrie
    allowed: tuple[Tensor, ...]

    @classmethod
    def by_level(cls, trie: ItemTrie) -> "LooseTrie":
        """Allow at each level the tokens that any item has there (LC-Rec's rule)."""
        spans = zip(trie.level_start[1:], trie.level_start[2:], strict=False)
        return cls(trie, tuple(trie.token[start:end].unique().long() for start, end in spans))

    @classmethod
    def anything(cls, trie: ItemTrie, vocabulary: int) -> "LooseTrie":
        """Allow every token of the vocabulary at every level."""
        return cls(trie, (torch.arange(vocabulary, device=trie.device),) * trie.depth)

    @property
    def num_items(self) -> int:
        """How many real items there are."""
        return self.trie.num_items

    @property
    def depth(self) -> int:
        """How many tokens an item has."""
        return self.trie.depth

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return self.trie.device

    @property
    def max_token(self) -> int:
        """The largest token id of a real item."""
        return self.trie.max_token

    def to(self, device: torch.device | str) -> "LooseTrie":
        """Return the same constraint with its arrays on `device`."""
        allowed = tuple(tokens.to(device) for tokens in self.allowed)
        return replace(self, trie=self.trie.to(device), allowed=allowed)

    def num_nodes(self, level: int) -> int:
        """Count the sequences of `level` tokens."""
        return math.prod(len(tokens) for tokens in self.allowed[:level])

    def max_children(self, level: int) -> int:
        """Return how many tokens may follow any sequence of `level` tokens."""
        return len(self.allowed[level])

    def children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Look children up as `ItemTrie.children` does; a node on no real item's path is -1."""
        on_path = nodes != _OFF
        real, tokens, valid = self.trie.children(
            nodes.clamp(min=self.trie.level_start[level]), level
        )
        allowed = self.allowed[level]
        # The extra column takes what is no child of the node, and is cut off again.
        width = len(allowed)
        place = torch.searchsorted(allowed, tokens)
        place = place.masked_fill(~(valid & on_path[..., None]), width)
        children = nodes.new_full((*nodes.shape, width + 1), _OFF).scatter_(-1, place, real)
        children = children[..., :width]
        return children, allowed.expand_as(children), torch.ones_like(children, dtype=torch.bool)

    def walk(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Follow token sequences from the root as `ItemTrie.walk` does."""
        nodes, is_real = self.trie.walk(tokens)
        may = torch.ones_like(is_real)
        for step, allowed in zip(tokens.unbind(dim=1), self.allowed, strict=False):
            may &= torch.isin(step, allowed)
        return nodes.masked_fill(~is_real, _OFF), may

    def items(self, leaves: Tensor) -> Tensor:
        """Return the catalogue ids of leaves, int64 `[...]`; -1 where the path is no item's."""
        first = self.trie.level_start[-2]
        return self.trie.items(leaves.clamp(min=first)).masked_fill(leaves == _OFF, -1)


Constraint = ItemTrie | LooseTrie
