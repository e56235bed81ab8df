"""Drawn rows -> token ids, with what rows have in common tokenised once.

Where a side of a template shows items and no text of theirs, all its rows with as many items are
the same ids but for the items' own: such a side is tokenised once, and the items are written in,
thousands of rows at a time. Whether that is so is known from the template, which may only pass
items on, and tried with other items. All other sides are rendered and tokenised row by row.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lcrec.prompts.encoder import PromptEncoder, item_token_ids
from lcrec.prompts.tasks import TASKS, Record, TaskData
from lcrec.prompts.templates import SIDES, Side, Template

# For each row a list of items: those at the places from `first` to before `last` of one array.
Spans = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Ragged:
    """Rows of ids, one after the other.

    Attributes:
        ids: int64 [tokens].
        lengths: int64 [rows].
    """

    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Return lists of ids as one."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = itertools.chain.from_iterable(rows)
        return cls(np.fromiter(flat, dtype=np.int64, count=int(lengths.sum())), lengths)

    def take(self, order: np.ndarray) -> "Ragged":
        """Return rows in another order, int64 [rows]."""
        starts, lengths = (np.cumsum(self.lengths) - self.lengths)[order], self.lengths[order]
        return Ragged(self.ids[_places(starts, lengths)], lengths)

    def beside(self, other: "Ragged") -> "Ragged":
        """Return each row with that of another behind it."""
        lengths = self.lengths + other.lengths
        starts = np.cumsum(lengths) - lengths
        ids = np.empty(int(lengths.sum()), dtype=np.int64)
        ids[_places(starts, self.lengths)] = self.ids
        ids[_places(starts + self.lengths, other.lengths)] = other.ids
        return Ragged(ids, lengths)


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """Return the rows of all parts, one part after the other."""
    empty = np.empty(0, dtype=np.int64)
    return Ragged(
        np.concatenate([empty, *(part.ids for part in parts)]),
        np.concatenate([empty, *(part.lengths for part in parts)]),
    )


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the places from each start on, as many as each length says, int64 [total]."""
    behind = np.cumsum(lengths)
    return np.arange(behind[-1] if len(behind) else 0) + np.repeat(
        starts - (behind - lengths), lengths
    )


@dataclass(frozen=True)
class _Skeleton:
    """The ids of one side of a template with so many items.

    Attributes:
        ids: int64 [length], with any items.
        places: int64 [items shown, levels], where the items' ids stand in it.
        shown: int64 [items shown], which item of the record stands there.
    """

    ids: np.ndarray
    places: np.ndarray
    shown: np.ndarray


class RowJoiner:
    """Turns rows of a data set into token ids; the same ids that rendering each row gives.

    Args:
        encoder: of the tokenizer and prompts that the rows are for.
        data: what their records are made from.
    """

    def __init__(self, encoder: PromptEncoder, data: TaskData) -> None:
        self.encoder, self.data, self.index = encoder, data, data.index
        self._skeletons: dict[tuple[str, Side, tuple[int, ...]], _Skeleton | None] = {}
        self._frames: dict[tuple[str, Side], list[str] | None] = {}

    @cached_property
    def item_ids(self) -> np.ndarray:
        """The token ids of every item, int64 [items, levels]."""
        return item_token_ids(self.encoder.tokenizer, self.index)

    def encode(
        self, templates: Sequence[Template], epoch: int, chosen: np.ndarray, places: np.ndarray
    ) -> tuple[Ragged, Ragged]:
        """Return the prompts and the answers of an epoch's rows.

        Args:
            templates, epoch, chosen, places: as of `DrawnRows`.
        """
        order, found = [], {side: [] for side in SIDES}  # type: tuple[list, dict[Side, list]]
        for number in np.unique(chosen).tolist():
            rows = np.flatnonzero(chosen == number)
            order.append(rows)
            for side in SIDES:
                found[side].append(self._encode_side(templates[number], side, epoch, places[rows]))
        back = np.argsort(np.concatenate([np.empty(0, dtype=np.int64), *order]), kind="stable")
        prompts, answers = (concatenate(found[side]).take(back) for side in SIDES)
        return prompts, answers

    def _encode_side(
        self, template: Template, side: Side, epoch: int, places: np.ndarray
    ) -> Ragged:
        """Return one side of a template for the records at some places of its task."""
        used = sorted(template.variables(side))
        shown = _items_shown(self.data, template.task, places)
        if not template.passes_on(side) or not shown.keys() >= set(used):
            return self._encode_plainly(template, side, epoch, places)
        spans = [shown[name] for name in used]
        counts = np.stack([last - first for _, first, last in spans], axis=1)
        kinds, kind = np.unique(counts, axis=0, return_inverse=True)
        order, parts = [], []
        for number, own in enumerate(kinds.tolist()):
            rows = np.flatnonzero(kind.ravel() == number)
            order.append(rows)
            skeleton = self._skeleton(template, side, used, own)
            if skeleton is None:
                parts.append(self._encode_plainly(template, side, epoch, places[rows]))
                continue
            items = np.concatenate(
                [
                    array[first[rows, None] + np.arange(count)]
                    for (array, first, _), count in zip(spans, own, strict=True)
                ],
                axis=1,
            )
            ids = np.tile(skeleton.ids, (len(rows), 1))
            ids[:, skeleton.places] = self.item_ids[items[:, skeleton.shown]]
            parts.append(Ragged(ids.ravel(), np.full(len(rows), len(skeleton.ids))))
        return concatenate(parts).take(np.argsort(np.concatenate(order), kind="stable"))

    def _encode_plainly(
        self, template: Template, side: Side, epoch: int, places: np.ndarray
    ) -> Ragged:
        task, key = TASKS[template.task], (template.id, side)
        if key not in self._frames:
            is_text = all(task.variables[v].type == "text" for v in template.variables(side))
            self._frames[key] = template.frame(side) if is_text else None
        frame, texts = self._frames[key], []
        for place in places.tolist():
            record = task.record(self.data, epoch, place)
            if frame is None:
                texts.append(template.render_side(side, record))
            else:
                values = [str(record[name]) for name in frame[1::2]]
                filled = [*itertools.chain(*zip(frame[::2], values, strict=False)), frame[-1]]
                texts.append("".join(filled).strip())
        return Ragged.of(self._tokenise(side, texts))

    def _tokenise(self, side: Side, texts: list[str]) -> list[list[int]]:
        encode: Callable[[list[str]], list[list[int]]] = (
            self.encoder.prompt_ids if side == "question" else self.encoder.answer_ids
        )
        return encode(texts)

    def _skeleton(
        self, template: Template, side: Side, used: list[str], counts: list[int]
    ) -> _Skeleton | None:
        key = (template.id, side, tuple(counts))
        if key not in self._skeletons:
            self._skeletons[key] = self._make_skeleton(template, side, used, counts)
        return self._skeletons[key]

    def _make_skeleton(
        self, template: Template, side: Side, used: list[str], counts: list[int]
    ) -> _Skeleton | None:
        """Return a side with so many items; None if other items change more than their ids."""
        total = sum(counts)
        if total > len(self.index):  # each item once, to be known again
            return None
        rng = np.random.default_rng(0)
        chosen = [rng.permutation(len(self.index))[:total] for _ in range(2)]
        variables = TASKS[template.task].variables
        texts = []
        for items in chosen:
            record: Record = {}
            parts = np.split(items, np.cumsum(counts)[:-1])
            for name, own in zip(used, parts, strict=True):
                words = [self.index.texts[item] for item in own.tolist()]
                record[name] = words if variables[name].type == "list of text" else words[0]
            texts.append(template.render_side(side, record))
        found = [
            self._find_items(np.asarray(ids), items)
            for ids, items in zip(self._tokenise(side, texts), chosen, strict=True)
        ]
        first, second = found
        if first is None or second is None or len(first.ids) != len(second.ids):
            return None
        rest = np.setdiff1d(np.arange(len(first.ids)), first.places)
        is_same = (
            np.array_equal(first.places, second.places)
            and np.array_equal(first.shown, second.shown)
            and np.array_equal(first.ids[rest], second.ids[rest])
        )
        return first if is_same else None

    def _find_items(self, ids: np.ndarray, items: np.ndarray) -> _Skeleton | None:
        """Return where the ids of distinct items stand; None where a part of one stands alone."""
        levels = self.index.num_levels
        known = {tuple(own): number for number, own in enumerate(self.item_ids[items].tolist())}
        is_item = np.isin(ids, self.item_ids)
        places, shown, at = [], [], 0
        while at < len(ids):
            if not is_item[at]:
                at += 1
                continue
            number = known.get(tuple(ids[at : at + levels].tolist()))
            if number is None:
                return None
            places.append(range(at, at + levels))
            shown.append(number)
            at += levels
        return _Skeleton(
            ids,
            np.asarray(places, dtype=np.int64).reshape(-1, levels),
            np.asarray(shown, dtype=np.int64),
        )


def _items_shown(data: TaskData, task: str, places: np.ndarray) -> dict[str, Spans]:
    """Return, by variable, the items that records of a task show whatever the epoch."""
    if task in ("seqrec", "fusionseqrec"):
        start, end = (part[places] for part in data.prefixes)
        found = {"target": (data.train.items, end, end + 1)}
        if task == "fusionseqrec" or not data.history_dropout:
            found["history"] = (data.train.items, end - data.shown(end - start), end)
        return found
    if task in ("item2index", "index2item"):
        name = "target" if task == "item2index" else "item"
        return {name: (np.arange(len(data.items)), places, places + 1)}
    return {}
