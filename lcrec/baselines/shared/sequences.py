"""Batches of sequences for the methods that read a history.

Examples are cut from the train sequences in one of two ways:

- `prefixes`: every item but a user's first is the target of an example of its own, whose history
  is up to `max_history` items before it. This is how RecBole feeds every sequential method.
- `windows`: a user's items once, with a target after every item, for methods whose state at a place
  knows nothing of later ones. For a user with no more than `max_history` + 1 items the loss is the
  same sum over the same targets, at a fraction of the cost. They differ in that one draw of dropout
  serves a whole window, and that a longer sequence is cut into windows that overlap by half: each
  target counts once, with at least `max_history` / 2 items before it rather than all `max_history`.

Sequences are padded at their end with an id that no item has, the size of the catalogue.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions

LENGTHS = 4  # groups that a batch's histories are read in, so that short ones are not padded to 20


@dataclass(frozen=True)
class Batch:
    """Padded histories, and at which of their places a next item is asked for.

    Attributes:
        users: int64 [batch], positions in the train sequences, -1 for an unseen user.
        items: int64 [batch, length], oldest first, padded at the end.
        lengths: int64 [batch], how many items are real; at least 1.
        rows, columns: int64 [predictions], places of `items` whose next item is asked for, row by
            row, at least one of every row.
        targets: int64 [predictions], the items that came next; empty where nobody knows.
    """

    users: torch.Tensor
    items: torch.Tensor
    lengths: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """Bool [batch, length], False at padding."""
        places = torch.arange(self.items.shape[1], device=self.items.device)
        return places < self.lengths[:, None]

    @property
    def asked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The places whose next item is asked for, as an index of [batch, length, ...]."""
        return self.rows, self.columns

    def with_target(self, pad: int) -> torch.Tensor:
        """Return the histories and the item after each, int64 [batch, length + 1].

        Only of a batch with targets, which asks once per row after its last item.
        """
        last = self.targets[self.columns == self.lengths[self.rows] - 1]
        places = self.lengths[:, None]
        return functional.pad(self.items, (0, 1), value=pad).scatter(1, places, last[:, None])

    def by_length(self, parts: int) -> "list[Batch]":
        """Return the same rows in up to `parts` batches, short histories and long ones apart.

        Each is as wide as its own longest: what a method computes of them together is what it
        computes of the whole, and most of the padding is gone.
        """
        order, bounds = cut_by_length(self.lengths, parts)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        asked, predictions = place[self.rows].sort(stable=True)  # in the rows' new order
        firsts = torch.searchsorted(asked, torch.tensor(bounds).to(asked)).tolist()
        batches = []
        for start, stop, first, last in zip(bounds, bounds[1:], firsts, firsts[1:], strict=False):
            rows, lengths = order[start:stop], self.lengths[order[start:stop]]
            own = predictions[first:last]
            batches.append(
                Batch(
                    *(self.users[rows], self.items[rows, : int(lengths.max())], lengths),
                    *(asked[first:last] - start, self.columns[own]),
                    self.targets[own] if len(self.targets) else self.targets,
                )
            )
        return batches

    def to(self, device: str) -> "Batch":
        """Return a copy whose tensors live on the device."""
        return Batch(
            *(
                tensor.to(device)
                for tensor in (
                    *(self.users, self.items, self.lengths),
                    *(self.rows, self.columns, self.targets),
                )
            )
        )


def cut_by_length(lengths: torch.Tensor, parts: int) -> tuple[torch.Tensor, list[int]]:
    """Return the rows by length, int64 [batch], and where to cut them into up to `parts` groups.

    Of all such cuts it is the one with the fewest places once each group is padded to its longest.
    The first bound is 0, the last the number of rows.

    Args:
        lengths: int64 [batch], in any order.
        parts: at least 1.
    """
    widths, counts = np.unique(lengths.cpu().numpy(), return_counts=True)
    ends = np.cumsum(counts)
    # Places of a group from one width to another, [from, to].
    cost = ((ends - (ends - counts)[:, None]) * widths).astype(np.float64)
    cost[np.tril_indices(len(widths), -1)] = np.inf
    fewest, firsts = cost[0], []
    for _ in range(min(parts, len(widths)) - 1):
        total = cost[1:] + fewest[:-1, None]  # by where the last group begins
        firsts.append(total.argmin(axis=0) + 1)
        fewest = total.min(axis=0)
    bounds, first = [len(lengths)], len(widths)
    for chosen in reversed(firsts):
        first = chosen[first - 1]
        bounds.append(int(ends[first - 1]))
    return lengths.argsort(stable=True), [0, *reversed(bounds)]


@dataclass(frozen=True)
class Examples:
    """Stretches of train sequences: `train.items[start:stop]` is a history of the user.

    Each asks for the items after its last `counts` places. All int64 [examples].
    """

    users: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    counts: np.ndarray


def require_order(lengths: np.ndarray) -> None:
    """Refuse train sequences, by their lengths, in which nothing follows anything.

    Raises:
        InputError: no user has two items.
    """
    if not (lengths > 1).any():
        raise InputError(
            "every user has one item to train on, so there is nothing to learn an order from; "
            "keep users with 4 items or more, such as with python -m lcrec.prepare "
            "--min-user-items 5"
        )


def cut_examples(
    train: Interactions, max_history: int, form: Literal["prefixes", "windows"]
) -> Examples:
    """Cut the train sequences into examples; see the module's description.

    Raises:
        InputError: no user has two items, so nothing follows anything.
    """
    lengths = np.diff(train.offsets)
    require_order(lengths)
    asked = (lengths - 1).clip(min=0)  # targets per user
    if form == "prefixes":
        per_user = asked
    else:
        step = max(1, max_history // 2)
        later = (asked - max_history).clip(min=0)
        per_user = np.where(asked > 0, 1 + -(-later // step), 0)
    users = np.repeat(np.arange(len(train)), per_user)
    number = np.arange(len(users)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
    first = train.offsets[users]
    if form == "prefixes":
        stops = first + number + 1
        counts = np.ones_like(stops)
    else:
        asked_so_far = np.minimum(max_history + number * step, asked[users])
        stops = first + asked_so_far
        counts = np.where(
            number == 0, asked_so_far, asked_so_far - max_history - step * (number - 1)
        )
    return Examples(users, np.maximum(first, stops - max_history), stops, counts)


class SequenceBatches:
    """Shuffled examples, padded.

    Args:
        train: the sequences.
        num_items: the size of the catalogue, and the id that pads.
        max_history: the most items of a history.
        form: how examples are cut.
        batch_size: next items asked for per update, in either form; a batch ends with the example
            that reaches it.
        seed: of the order, which is another one every epoch.

    Raises:
        InputError: no user has two items.
    """

    def __init__(
        self,
        train: Interactions,
        num_items: int,
        *,
        max_history: int,
        form: Literal["prefixes", "windows"],
        batch_size: int,
        seed: int,
    ) -> None:
        self.items = train.items.astype(np.int64)
        self.pad = num_items
        self.batch_size = batch_size
        self.examples = cut_examples(train, max_history, form)
        self.rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Batch]:
        order = self.rng.permutation(len(self.examples.users))
        filled = (np.cumsum(self.examples.counts[order]) - 1) // self.batch_size
        for chosen in np.split(order, np.flatnonzero(np.diff(filled)) + 1):
            yield self._batch(chosen)

    def _batch(self, chosen: np.ndarray) -> Batch:
        starts, stops = self.examples.starts[chosen], self.examples.stops[chosen]
        counts, lengths = self.examples.counts[chosen], stops - starts
        places = np.arange(lengths.max())
        real = places < lengths[:, None]
        items = np.full(real.shape, self.pad, dtype=np.int64)
        items[real] = self.items[(starts[:, None] + places)[real]]
        rows, columns = np.nonzero(real & (places >= (lengths - counts)[:, None]))
        targets = self.items[starts[rows] + columns + 1]
        arrays = (self.examples.users[chosen], items, lengths, rows, columns, targets)
        return Batch(*map(torch.from_numpy, arrays))


def pad_histories(
    users: np.ndarray, histories: list[np.ndarray], num_items: int, max_history: int
) -> Batch:
    """Return the last `max_history` items of each history, asking for what comes next.

    Args:
        users: int64 [batch], -1 for an unseen user.
        histories: ids [length] each, oldest first, at least one.
        num_items: the size of the catalogue, and the id that pads.
        max_history: the most items of a history.
    """
    recent = [history[-max_history:] for history in histories]
    lengths = np.array([len(history) for history in recent], dtype=np.int64)
    items = np.full((len(recent), lengths.max()), num_items, dtype=np.int64)
    items[np.arange(items.shape[1]) < lengths[:, None]] = np.concatenate(recent)
    arrays = (
        *(np.asarray(users, dtype=np.int64), items, lengths),
        *(np.arange(len(recent)), lengths - 1, np.empty(0, dtype=np.int64)),
    )
    return Batch(*map(torch.from_numpy, arrays))


def read_by_length(
    network: Callable[[Batch], torch.Tensor],
    users: np.ndarray,
    histories: list[np.ndarray],
    *,
    num_items: int,
    max_history: int,
    device: str,
) -> torch.Tensor:
    """Return a network's states [batch, dim] after histories, short and long ones read apart.

    Args:
        network: returns the states [predictions, dim] that a batch asks for.
        users, histories, num_items, max_history: as for `pad_histories`.
        device: where the network lives.
    """
    order = np.argsort([len(history) for history in histories], kind="stable")
    sorted_histories = [histories[row] for row in order]
    batch = pad_histories(np.asarray(users)[order], sorted_histories, num_items, max_history)
    states = torch.cat([network(part) for part in batch.to(device).by_length(LENGTHS)])
    return states[torch.from_numpy(np.argsort(order)).to(device)]


def pad_in_front(batch: Batch, length: int, pad: int) -> torch.Tensor:
    """Return the histories as int64 [batch, length], padded at their start: the newest item last.

    For methods with weights per place: what counts there is how long ago an item was bought.

    Args:
        batch: whose histories have at most `length` items.
        length: places.
        pad: the id that pads.
    """
    columns = torch.arange(length, device=batch.items.device) - length + batch.lengths[:, None]
    return batch.items.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, pad)
