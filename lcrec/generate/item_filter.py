"""Which items each request may be given: allow and deny lists as masks over a trie's leaves.

Leaves are in lexicographic order and a node spans consecutive ones, so "how many of these items lie
below this node" is the difference of two ranks in their sorted list, whatever the node. All lists
of a batch are one sorted array of keys (list number, leaf rank), so lists of any lengths stand side
by side unpadded, and a list that many requests share (what is in stock) is stored once. The tree is
never rebuilt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lcrec.core.errors import InputError
from lcrec.generate.trie import ItemTrie

_BEYOND = torch.iinfo(torch.int64).max
ItemIds = Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class _Lists:
    """Sorted lists of leaf ranks, and which of them each request has.

    Attributes:
        keys: int64 `[entries]`, `list * stride + leaf rank`, ascending and distinct.
        first: int64 `[batch]`, each request's `list * stride`.
    """

    keys: Tensor
    first: Tensor

    def count(self, start: Tensor, end: Tensor) -> Tensor:
        """Count each request's entries from rank `start` to before `end`, int64 `[batch, n]`."""
        first = self.first[:, None]
        return torch.searchsorted(self.keys, first + end) - torch.searchsorted(
            self.keys, first + start
        )


@dataclass(frozen=True, eq=False)
class LeafFilter:
    """Which leaves of a trie each request of a batch may reach; make one with `LeafFilter.build`.

    Attributes:
        leaf_start, leaf_end: the trie's.
        allow: the allow lists; None where no request has one.
        has_allow: bool `[batch]`, which requests have one; to the others everything is allowed.
        deny: what is taken from the allowed items, nothing of it twice.
    """

    leaf_start: Tensor
    leaf_end: Tensor
    allow: _Lists | None
    has_allow: Tensor
    deny: tuple[_Lists, ...]

    @classmethod
    def build(
        cls,
        trie: ItemTrie,
        batch: int,
        allow: Sequence[ItemIds | None] | None = None,
        deny: Sequence[ItemIds | None] | None = None,
        exclude: Sequence[ItemIds | None] | None = None,
    ) -> "LeafFilter | None":
        """Prepare the question "does an item allowed to this request lie below this node".

        The cost grows with the lists, not with the catalogue. Give requests that share a list the
        same object: it is then stored once.

        Args:
            trie: the catalogue.
            batch: how many requests there are.
            allow: per request the only items it may get, in any order; None for all of them.
            deny: per request items that it must not get, allowed or not; None for none.
            exclude: likewise, for lists of each request's own beside a deny list that many share.

        Returns:
            The filter, or None if nothing is ruled out.

        Raises:
            InputError: not one list per request, or an item that is not in the catalogue.
        """
        allow, deny, exclude = (
            [None] * batch if lists is None else lists for lists in (allow, deny, exclude)
        )
        for name, lists in (("allow", allow), ("deny", deny), ("exclude", exclude)):
            if len(lists) != batch:
                raise InputError(f"{name}: has {len(lists)} lists for {batch} requests")
        stride = trie.num_items + 1
        leaf_of_item = trie.leaf_of_item.cpu().numpy()

        allow_numbers = _number([None if ids is None else (id(ids),) for ids in allow])
        allow_keys = _keys("allow", allow, allow_numbers, leaf_of_item)
        ruled_out: list[tuple[np.ndarray, np.ndarray]] = []
        for name, lists in (("deny", deny), ("exclude", exclude)):
            # What is ruled out counts only where it is allowed, and once; so a list shared by
            # requests that differ in the lists before it is a list for each of them.
            before = [allow_numbers, *(numbers for numbers, _ in ruled_out)]
            rows = zip(lists, *(numbers.tolist() for numbers in before), strict=True)
            numbers = _number([None if ids is None else (id(ids), *rest) for ids, *rest in rows])
            keys = _keys(name, lists, numbers, leaf_of_item)
            has_allow_list, counts = _find(keys, numbers, allow_keys, allow_numbers, stride)
            counts |= ~has_allow_list
            for other_numbers, other_keys in ruled_out:
                counts &= ~_find(keys, numbers, other_keys, other_numbers, stride)[1]
            ruled_out.append((numbers, keys[counts]))

        if not (allow_numbers >= 0).any() and not any(len(keys) for _, keys in ruled_out):
            return None
        device = trie.device
        has_allow = torch.from_numpy(allow_numbers >= 0).to(device)

        def pack(keys: np.ndarray, numbers: np.ndarray) -> _Lists:
            # A request without a list has one beyond the last, which is empty.
            own = np.where(numbers < 0, len(numbers), numbers) * stride
            return _Lists(torch.from_numpy(keys).to(device), torch.from_numpy(own).to(device))

        return cls(
            trie.leaf_start,
            trie.leaf_end,
            pack(allow_keys, allow_numbers) if has_allow.any() else None,
            has_allow,
            tuple(pack(keys, numbers) for numbers, keys in ruled_out if len(keys)),
        )

    def rows(self, rows: slice | np.ndarray) -> "LeafFilter":
        """Return the filter of some of the requests."""
        chosen = rows if isinstance(rows, slice) else torch.from_numpy(rows)

        def pick(lists: _Lists) -> _Lists:
            return replace(lists, first=lists.first[chosen])

        return replace(
            self,
            allow=self.allow and pick(self.allow),
            has_allow=self.has_allow[chosen],
            deny=tuple(map(pick, self.deny)),
        )

    def tensors(self, *, pad: bool) -> tuple[Tensor, ...]:
        """Return what differs from batch to batch, for `with_tensors`.

        Args:
            pad: whether keys are padded to a power of two, by some that lie behind all others, so
                that sizes are few.
        """
        found = [self.has_allow]
        for lists in (self.allow, *self.deny):
            if lists is not None:
                size = len(lists.keys)
                beyond = (1 << (size - 1).bit_length()) - size if pad and size else 0
                padding = lists.keys.new_full((beyond,), _BEYOND)
                found += [torch.cat([lists.keys, padding]), lists.first]
        return tuple(found)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "LeafFilter":
        """Return the filter over tensors like those of `tensors()`."""
        has_allow, *rest = tensors
        pairs = iter(zip(rest[::2], rest[1::2], strict=True))
        allow = self.allow and _Lists(*next(pairs))
        return replace(
            self, has_allow=has_allow, allow=allow, deny=tuple(_Lists(*pair) for pair in pairs)
        )

    def count(self, nodes: Tensor) -> Tensor:
        """Count the allowed items below each node, int64 `[batch, n]` to int64 `[batch, n]`."""
        start, end = self.leaf_start[nodes].long(), self.leaf_end[nodes].long()
        left = end - start
        if self.allow is not None:
            left = torch.where(self.has_allow[:, None], self.allow.count(start, end), left)
        for lists in self.deny:
            left = left - lists.count(start, end)
        return left

    def reachable(self, nodes: Tensor) -> Tensor:
        """Tell whether an allowed item lies below each node: int64 to bool, both `[batch, ...]`."""
        return (self.count(nodes.flatten(1)) > 0).view(nodes.shape)

    def totals(self) -> np.ndarray:
        """Return how many items each request may get, int64 `[batch]`."""
        root = self.has_allow.new_zeros(len(self.has_allow), 1, dtype=torch.int64)
        return self.count(root)[:, 0].cpu().numpy()


def _number(names: Sequence[tuple[int, ...] | None]) -> np.ndarray:
    """Number distinct names from 0 in order of appearance, int64; -1 for None."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array(
        [-1 if name is None else numbers.setdefault(name, len(numbers)) for name in names],
        dtype=np.int64,
    )


def _keys(
    name: str, lists: Sequence[ItemIds | None], numbers: np.ndarray, leaf_of_item: np.ndarray
) -> np.ndarray:
    """Return `list * (items + 1) + leaf rank` of every entry of the numbered lists, ascending."""
    num_items, parts = len(leaf_of_item), [np.zeros(0, dtype=np.int64)]
    for number, request in zip(*np.unique(numbers, return_index=True), strict=True):
        if number < 0:
            continue
        ids = np.asarray(lists[request])
        where = f"the {name} list of request {request}"
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise InputError(f"{where}: expected item ids, found {lists[request]!r:.60}")
        ids = ids.astype(np.int64)
        outside = (ids < 0) | (ids >= num_items)
        if outside.any():
            raise InputError(
                f"{where}: item {ids[outside][0]} is not in the catalogue, whose ids are 0 to "
                f"{num_items - 1}"
            )
        parts.append(number * (num_items + 1) + leaf_of_item[ids])
    keys = np.sort(np.concatenate(parts))  # 60 times as fast as np.unique where keys are many
    return keys[np.diff(keys, prepend=-1) > 0]


def _find(
    keys: np.ndarray,
    numbers: np.ndarray,
    other_keys: np.ndarray,
    other_numbers: np.ndarray,
    stride: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Look the entries of numbered lists up in other lists that the same requests have.

    Returns:
        per key whether its requests have another list, and whether that holds the entry, bool.
    """
    other_of_list = np.full(numbers.max(initial=0) + 2, -1)  # the last takes what number -1 has
    other_of_list[numbers] = other_numbers
    other = other_of_list[keys // stride]
    wanted = other * stride + keys % stride
    place = np.searchsorted(other_keys, wanted)
    return other >= 0, np.append(other_keys, _BEYOND)[place] == wanted
