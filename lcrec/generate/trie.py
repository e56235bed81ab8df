"""The catalogue as a prefix tree over item tokens, stored as flat arrays.

Every item is a sequence of `depth` token ids, one per level. `ItemTrie` holds all of them as a
tree in compressed-row (CSR) form: nodes are numbered level by level from the root, node 0, and
within a level in lexicographic order of their paths, so the children of a node are consecutive
nodes and so are the leaves below it. Looking up the children of many nodes is a few gathers,
with no Python loop over beams or items.

`LooseTrie` is a looser constraint, to compare with: LC-Rec's own decoding fixes only which codes
may stand at each level, so a beam may end in no item at all; without any constraint it may hold any
tokens. It still knows which beams are on a real item's path.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcrec.core.errors import InputError

_KEY_BITS = 63  # what a non-negative int64 holds
_MAX_TOKEN = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class ItemTrie:
    """A prefix tree of items, each a path of `depth` token ids; make one with `ItemTrie.build`.

    A leaf's rank is its position among the leaves. All arrays are int32; 10 million items of 4
    levels take about 320 MB.

    Attributes:
        child_start: `[inner nodes + 1]`, the first child of each node; node n's children end where
            those of node n + 1 begin.
        token: `[nodes]`, the token that leads into each node; 0 for the root.
        leaf_start: `[nodes]`, rank of the first leaf below each node.
        leaf_end: `[nodes]`, rank after the last leaf below each node.
        item_of_leaf: `[n_items]`, the catalogue id at each leaf rank.
        leaf_of_item: `[n_items]`, the leaf rank of each catalogue id.
        level_start: first node of each level, root to leaves, then the number of nodes.
        widths: the most children any node has, for each level but the leaves'.
        max_token: the largest token id in the tree.
        bias: float32 `[nodes]`, what the score of a beam loses on the way to each node; None for
            nothing.
    """

    child_start: Tensor
    token: Tensor
    leaf_start: Tensor
    leaf_end: Tensor
    item_of_leaf: Tensor
    leaf_of_item: Tensor
    level_start: tuple[int, ...]
    widths: tuple[int, ...]
    max_token: int
    bias: Tensor | None = None

    @classmethod
    def build(cls, token_ids: np.ndarray) -> "ItemTrie":
        """Build the tree of a catalogue; row i of `token_ids` is item i.

        Args:
            token_ids: int `[n_items, depth]`, vocabulary ids.

        Raises:
            InputError: not a non-empty 2-D integer array, ids negative or beyond 32 bits, or two
                items with the same tokens.
        """
        if token_ids.ndim != 2 or 0 in token_ids.shape or token_ids.dtype.kind not in "iu":
            raise InputError(
                "token_ids: expected integers [n_items, depth] with at least one item and one "
                f"level, got {token_ids.dtype} {list(token_ids.shape)}"
            )
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high > _MAX_TOKEN:
            raise InputError(
                f"token_ids: vocabulary ids lie in 0 to {_MAX_TOKEN}, got {low} to {high}"
            )
        n_items, depth = token_ids.shape
        order = _lexicographic_order(token_ids)

        # Sorted rows share a node at a level as long as they agree up to that level. `changed`
        # marks the rows that open a new node, and only grows from level to level.
        changed = np.zeros(n_items, dtype=bool)
        changed[0] = True
        starts = np.zeros(1, dtype=np.int32)  # per node of the level, its first leaf: the root's
        end = np.array([n_items], dtype=np.int32)
        tokens, leaf_start, leaf_end = [np.zeros(1, dtype=np.int32)], [starts], [end]
        child_start: list[np.ndarray] = []
        level_start, widths = [0, 1], []
        for level in range(depth):
            column = token_ids[order, level].astype(np.int32)
            changed[1:] |= column[1:] != column[:-1]
            node_of_leaf = np.cumsum(changed, dtype=np.int32) - 1
            first_child = node_of_leaf[starts]
            starts = np.flatnonzero(changed).astype(np.int32)
            child_start.append(first_child + np.int32(level_start[-1]))
            widths.append(int(np.diff(first_child, append=len(starts)).max()))
            level_start.append(level_start[-1] + len(starts))
            tokens.append(column[starts])
            leaf_start.append(starts)
            leaf_end.append(np.concatenate([starts[1:], end]))
        if len(starts) < n_items:
            row = int(np.flatnonzero(~changed)[0])
            first, second = sorted((int(order[row - 1]), int(order[row])))
            raise InputError(
                f"token_ids: items {first} and {second} have the same tokens "
                f"{token_ids[first].tolist()}; every item needs its own"
            )
        child_start.append(np.array(level_start[-1:], dtype=np.int32))
        item_of_leaf = order.astype(np.int32)
        leaf_of_item = np.empty_like(item_of_leaf)
        leaf_of_item[order] = np.arange(n_items, dtype=np.int32)
        return cls(
            child_start=torch.from_numpy(np.concatenate(child_start)),
            token=torch.from_numpy(np.concatenate(tokens)),
            leaf_start=torch.from_numpy(np.concatenate(leaf_start)),
            leaf_end=torch.from_numpy(np.concatenate(leaf_end)),
            item_of_leaf=torch.from_numpy(item_of_leaf),
            leaf_of_item=torch.from_numpy(leaf_of_item),
            level_start=tuple(level_start),
            widths=tuple(widths),
            max_token=high,
        )

    @property
    def num_items(self) -> int:
        """How many items, and so leaves, the tree has."""
        return len(self.item_of_leaf)

    @property
    def depth(self) -> int:
        """How many tokens an item has."""
        return len(self.widths)

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return self.token.device

    def to(self, device: torch.device | str) -> "ItemTrie":
        """Return the same tree with its arrays on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def less(self, log_probs: np.ndarray, share: float) -> "ItemTrie":
        """Return the same tree, whose beams lose a share of a distribution's log-probabilities.

        Args:
            log_probs: float `[n_items]`, of the items; a node has the probability of all below it.
            share: how much of them, 0 for nothing.
        """
        probs = np.exp(log_probs[self.item_of_leaf.cpu().numpy()].astype(np.float64))
        before = np.concatenate([[0.0], np.cumsum(probs)])
        start, end = self.leaf_start.cpu().numpy(), self.leaf_end.cpu().numpy()
        mass = np.log(before[end] - before[start])
        bias = torch.from_numpy((share * mass).astype(np.float32)).to(self.device)
        return replace(self, bias=bias if share else None)

    def num_nodes(self, level: int) -> int:
        """Count the nodes of a level: 1 at level 0, the root; `num_items` at level `depth`."""
        return self.level_start[level + 1] - self.level_start[level]

    def max_children(self, level: int) -> int:
        """Return the most children any node of `level` has (0 to `depth - 1`)."""
        return self.widths[level]

    def children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Look up the children of nodes of one level, padded to that level's widest node.

        Args:
            nodes: int64 `[...]`, nodes of `level`.
            level: their level, 0 to `depth - 1`.

        Returns:
            Child nodes int64, their tokens int64 and a bool mask of real children, each
            `[..., width]` with `width = max_children(level)`, in ascending order of tokens. Where
            the mask is False the other two hold another node of the next level and its token.
        """
        start = self.child_start[nodes].long()[..., None]
        end = self.child_start[nodes + 1].long()[..., None]
        children = start + torch.arange(self.widths[level], device=self.device)
        valid = children < end
        children = children.clamp(max=self.level_start[level + 2] - 1)
        return children, self.token[children].long(), valid

    def walk(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Follow token sequences from the root, all at once.

        Args:
            tokens: int64 `[n, steps]`, with `steps` from 0 to `depth`.

        Returns:
            The nodes reached, int64 `[n]`, and whether each sequence is a path of the tree, bool
            `[n]`. Where it is not, the node is an arbitrary one of level `steps`.
        """
        nodes = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
        on_path = torch.ones(len(tokens), dtype=torch.bool, device=self.device)
        for level, step in enumerate(tokens.unbind(dim=1)):
            children, edges, valid = self.children(nodes, level)
            match = valid & (edges == step[:, None])
            on_path &= match.any(dim=1)
            nodes = children.gather(1, match.int().argmax(dim=1, keepdim=True)).squeeze(1)
        return nodes, on_path

    def items(self, leaves: Tensor) -> Tensor:
        """Return the catalogue ids, int64 `[...]`, of leaf nodes, int64 `[...]`."""
        return self.item_of_leaf[leaves - self.level_start[-2]].long()


def _lexicographic_order(token_ids: np.ndarray) -> np.ndarray:
    """Return the order, int64 `[n_items]`, that sorts the rows of `token_ids` by level 0, 1, ...

    Levels are packed into one integer key per row, each in as few bits as its range of ids needs,
    so that the usual catalogue (4 levels of 256 codes) is sorted once, by 32 bits. When the next
    level would not fit, the key so far is replaced by its rank, which never needs more bits than
    the number of items.
    """
    key = np.zeros(len(token_ids), dtype=np.int64)
    used = 0
    for column in token_ids.T:
        lowest = column.min()
        bits = int(column.max() - lowest).bit_length()
        if used + bits > _KEY_BITS:
            distinct, key = np.unique(key, return_inverse=True)
            used = (len(distinct) - 1).bit_length()
        key <<= bits
        key |= (column - lowest).astype(np.int64, copy=False)
        used += bits
    return np.argsort(key)


_OFF = -1  # the node of every beam that is on no real item's path


@dataclass(frozen=True, eq=False)
class LooseTrie(ItemTrie):
    """Any sequence of the tokens allowed at each level; make one with `by_level` or `anything`.

    Attributes:
        allowed: per level the tokens that may stand there, int64 `[tokens]`, ascending; every
            token of a real item is among them.
    """

    allowed: tuple[Tensor, ...] = ()

    @classmethod
    def by_level(cls, trie: ItemTrie) -> "LooseTrie":
        """Allow at each level the tokens that any item has there (LC-Rec's rule)."""
        spans = zip(trie.level_start[1:], trie.level_start[2:], strict=False)
        allowed = tuple(trie.token[start:end].unique().long() for start, end in spans)
        return cls(**vars(trie), allowed=allowed)

    @classmethod
    def anything(cls, trie: ItemTrie, vocabulary: int) -> "LooseTrie":
        """Allow every token of the vocabulary at every level."""
        allowed = torch.arange(vocabulary, device=trie.device)
        return cls(**vars(trie), allowed=(allowed,) * trie.depth)

    def num_nodes(self, level: int) -> int:
        """Count the sequences of `level` tokens."""
        return math.prod(len(tokens) for tokens in self.allowed[:level])

    def max_children(self, level: int) -> int:
        """Return how many tokens may follow any sequence of `level` tokens."""
        return len(self.allowed[level])

    def children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Look children up as `ItemTrie.children` does; a node on no real item's path is -1."""
        on_path = nodes != _OFF
        real, tokens, valid = super().children(nodes.clamp(min=self.level_start[level]), level)
        allowed = self.allowed[level]
        # The extra column takes what is no child of the node, and is cut off again.
        width = len(allowed)
        place = torch.searchsorted(allowed, tokens)
        place = place.masked_fill(~(valid & on_path[..., None]), width)
        children = nodes.new_full((*nodes.shape, width + 1), _OFF).scatter_(-1, place, real)
        children = children[..., :width]
        return children, allowed.expand_as(children), torch.ones_like(children, dtype=torch.bool)

    def items(self, leaves: Tensor) -> Tensor:
        """Return the catalogue ids of leaves, int64 `[...]`; -1 where the path is no item's."""
        return super().items(leaves.clamp(min=self.level_start[-2])).masked_fill(leaves == _OFF, -1)
