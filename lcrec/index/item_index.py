"""The item index: every item's own short path of codes, and the tokens that spell it.

`ItemIndex` maps item <-> codes <-> item tokens (`<a_12><b_3><c_200><d_7>`: one letter per level,
codes from 0). It reads and writes LC-Rec's `index.json` {item: ["<a_12>", ...]} and refuses an
index in which two items share a path. `IndexSettings` says how items get their codes.
"""

import math
import re
import string
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np

from lcrec.core.artifacts import INDEX, ITEM_IDS, index_path, read_json, write_json
from lcrec.core.config import option
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.id_map import IdMap

STAGE = "python -m lcrec.quantize"  # the command that makes an index
LEVEL_LETTERS = string.ascii_lowercase
CODE_DIGITS = 6  # every code up to the largest becomes a token, so there is a limit
ITEM_TOKEN = re.compile(r"<([a-z])_(\d+)>")


@dataclass(frozen=True)
class ItemIndex:
    """A unique path of codes per item.

    Attributes:
        codes: int32 [items, levels]; row i is item i.
        level_sizes: how many codes each level has, used or not. All of them become tokens, so an
            item that joins later needs no new one.
        raw_ids: what the items are called outside, by number; None where nobody said.
    """

    codes: np.ndarray
    level_sizes: tuple[int, ...]
    raw_ids: list[str] | None = None

    def __post_init__(self) -> None:
        codes, sizes = self.codes, np.asarray(self.level_sizes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or not codes.size:
            raise InputError(
                f"an index needs codes of shape [items, {len(sizes)}], found {list(codes.shape)}"
            )
        if len(sizes) > len(LEVEL_LETTERS):
            raise InputError(f"{len(sizes)} levels; at most {len(LEVEL_LETTERS)} can be named")
        if codes.min() < 0 or (codes >= sizes).any():
            item, level = np.argwhere((codes < 0) | (codes >= sizes))[0]
            raise InputError(
                f"item {item}: code {codes[item, level]} at level {level} is outside "
                f"0 to {sizes[level] - 1}"
            )
        conflicts = find_conflicts(codes)
        if conflicts:
            group = conflicts[0]
            raise InputError(
                f"{sum(map(len, conflicts))} items share an index with another, such as items "
                f"{' and '.join(map(str, group[:2]))} ({self.text(group[0])}); every item needs "
                "its own: repair it with python -m lcrec.quantize --repair INDEX --output DIR"
            )

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        """How many tokens spell an item."""
        return self.codes.shape[1]

    def tokens(self, item: int) -> list[str]:
        """Return the item's tokens, one per level."""
        return [token_name(level, code) for level, code in enumerate(self.codes[item].tolist())]

    def text(self, item: int) -> str:
        """Return the item's tokens as the text a language model reads and writes."""
        return "".join(self.tokens(item))

    @cached_property
    def texts(self) -> list[str]:
        """The text of every item, in catalogue order."""
        return [self.text(item) for item in range(len(self))]

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every token of every level, level by level, whether an item uses it or not."""
        return [
            token_name(level, code)
            for level, size in enumerate(self.level_sizes)
            for code in range(size)
        ]

    @cached_property
    def code_columns(self) -> np.ndarray:
        """Codes as positions in `vocabulary`, int64 [items, levels]."""
        starts = np.cumsum((0, *self.level_sizes[:-1]))
        return self.codes.astype(np.int64) + starts

    @cached_property
    def ids(self) -> IdMap:
        """What the items are called: their raw ids, or their numbers where they have none."""
        names = self.raw_ids or [str(item) for item in range(len(self))]
        return IdMap("item", names, is_raw=self.raw_ids is not None)

    def save(self, folder: Path) -> None:
        """Write `index.json`, and `item_ids.json` where there are raw ids; the level sizes belong
        into the folder's provenance facts."""
        write_json(folder / INDEX, {str(item): self.tokens(item) for item in range(len(self))})
        if self.raw_ids is not None:
            write_json(folder / ITEM_IDS, self.raw_ids)

    @classmethod
    def load(cls, folder: str | Path, num_items: int | None = None) -> "ItemIndex":
        """Read `index.json` from `folder`, or the file itself where a file is named.

        An index made elsewhere has no record of its level sizes: the largest code seen counts.

        Raises:
            InputError: missing or malformed file, a gap in the ids, an unknown token, paths of
                different depth, items that share a path, or a size that is not `num_items`.
        """
        path = index_path(Path(folder))
        codes = read_codes(path, num_items)
        record = read_provenance(path.parent) or {}
        sizes = record.get("level_sizes", (codes.max(axis=0) + 1).tolist())
        if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
            raise InputError(
                f"{path}: the record beside it gives level_sizes as {sizes!r}, not as a list of "
                "whole numbers; rebuild the index with python -m lcrec.quantize"
            )
        try:
            return cls(codes, tuple(sizes), _read_raw_ids(path.parent / ITEM_IDS, len(codes)))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def load_extension(self, folder: Path) -> "ItemIndex":
        """Read an index that adds items to this one.

        Returns:
            The longer index, with the level sizes of this one: its tokens are all known already.

        Raises:
            InputError: an item of this index is missing there or has another path, a new item has
                a token that this index has none of, or as `load`.
        """
        path = index_path(folder)
        longer = ItemIndex.load(folder)
        remedy = "an index that adds items is made with python -m lcrec.quantize --index OLD"
        if longer.num_levels != self.num_levels or len(longer) < len(self):
            raise InputError(
                f"{path}: has {len(longer)} items of {longer.num_levels} levels and cannot extend "
                f"an index of {len(self)} items of {self.num_levels}; {remedy}"
            )
        changed = np.flatnonzero((longer.codes[: len(self)] != self.codes).any(axis=1))
        if len(changed):
            item = int(changed[0])
            raise InputError(
                f"{path}: {len(changed)} items have another index than before, such as item {item}:"
                f" {longer.text(item)} instead of {self.text(item)}; {remedy}"
            )
        raw_ids = longer.raw_ids
        if raw_ids is None and len(longer) == len(self):
            raw_ids = self.raw_ids  # the very index that a checkpoint was trained on
        if self.raw_ids is not None and (raw_ids or [])[: len(self)] != self.raw_ids:
            raise InputError(
                f"{path}: the items have not the raw ids that they had before ({ITEM_IDS} beside "
                f"it); {remedy}"
            )
        try:
            return ItemIndex(longer.codes, self.level_sizes, raw_ids)
        except InputError as error:
            raise InputError(f"{path}: {error}, the codes there were before; {remedy}") from None


def _read_raw_ids(path: Path, num_items: int) -> list[str] | None:
    """Return the raw ids of an index's items, None where there is no such file."""
    if not path.exists():
        return None
    raw_ids = read_json(path)
    if not isinstance(raw_ids, list) or not all(isinstance(name, str) for name in raw_ids):
        raise InputError(f"{path}: expected a list of the items' raw ids")
    if len(raw_ids) != num_items or len(set(raw_ids)) != num_items:
        raise InputError(f"{path}: expected {num_items} different raw ids, one for each item")
    return raw_ids


def token_name(level: int, code: int) -> str:
    """Return the token of a code, such as `<b_12>` for code 12 of the second level."""
    return f"<{LEVEL_LETTERS[level]}_{code}>"


def read_codes(path: Path, num_items: int | None = None) -> np.ndarray:
    """Return the codes of an `index.json`, int32 [items, levels], whether items share paths or not.

    Raises:
        InputError: as for `ItemIndex.load`, but for items that share a path.
    """
    paths = read_paths(path)
    if num_items is not None and len(paths) != num_items:
        raise InputError(
            f"{path} has {len(paths)} items but the catalogue has {num_items}: it belongs to "
            "another catalogue; rebuild it with python -m lcrec.quantize"
        )
    for item, codes_of_item in enumerate(paths):
        if len(codes_of_item) != len(paths[0]):
            raise InputError(
                f"{path}: item {item} has {len(codes_of_item)} tokens, item 0 has "
                f"{len(paths[0])}; every item needs the same number: python -m lcrec.quantize "
                f"--repair {path} --output DIR fills the shorter ones up"
            )
    return np.asarray(paths, dtype=np.int32)


def find_conflicts(codes: np.ndarray) -> list[list[int]]:
    """Return the groups of items that share a path; codes are int [items, levels]."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    shared = np.split(order, np.cumsum(counts)[:-1])
    return [group.tolist() for group in shared if len(group) > 1]


def number_shared(codes: np.ndarray) -> np.ndarray:
    """Return int32 [items]: 0, 1, ... among the items that share a path, in order of their ids.

    Args:
        codes: int [items, levels].
    """
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    numbers = np.empty(len(codes), dtype=np.int32)
    numbers[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return numbers


def read_paths(folder: Path) -> list[list[int]]:
    """Read the codes of items 0 .. n-1 as they stand: paths may be shared, or differ in length.

    Raises:
        InputError: missing or malformed file, a gap in the ids, an item without tokens, or an
            unknown token.
    """
    path = index_path(folder)
    if not path.exists():
        raise InputError(f"{path}: no such file; make one with: python -m lcrec.quantize")
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path}: expected {{item id: [token, ...]}}")
    rows: list[list[int]] = []
    for item in range(len(raw)):
        tokens = raw.get(str(item))
        if tokens is None:
            raise InputError(f"{path}: item {item} is missing; ids run 0 to {len(raw) - 1}")
        if not isinstance(tokens, list):
            raise InputError(f"{path}: item {item}: expected a list of tokens, found {tokens!r}")
        if not tokens:
            raise InputError(f"{path}: item {item} has 0 tokens; every item needs its own index")
        if len(tokens) > len(LEVEL_LETTERS):
            raise InputError(
                f"{path}: item {item} has {len(tokens)} tokens; at most {len(LEVEL_LETTERS)} "
                "levels can be named"
            )
        row = []
        for level, token in enumerate(tokens):
            match = ITEM_TOKEN.fullmatch(token) if isinstance(token, str) else None
            # One spelling only: no letter of another level, no leading zero, no endless number.
            if match is None or token != token_name(level, int(match[2][:CODE_DIGITS])):
                raise InputError(
                    f"{path}: item {item}: {token!r} is no token of level {level}; expected "
                    f"<{LEVEL_LETTERS[level]}_CODE>, a code of up to {CODE_DIGITS} digits"
                )
            row.append(int(match[2]))
        rows.append(row)
    return rows


WITHOUT_CODEBOOK = ("random", "vanilla")  # kinds whose codes stand for nothing
SMALL = 2000  # items; with fewer, the published 4 levels of 256 codes are too many


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """The settings of an item index: how items get their codes."""

    kind: Literal["rq-vae", "rq-kmeans", "balanced-kmeans", "tiger", "random", "vanilla"] = option(
        "how to index: rq-vae (LC-Rec's), rq-kmeans and balanced-kmeans (no training), tiger (no "
        "uniform mapping, one more token tells apart), random paths, vanilla (a token per item)",
        "rq-vae",
    )
    levels: int | None = option(
        "how many tokens spell an item (default: 4, or 3 where a catalogue has fewer than 2,000)",
        None,
        minimum=1,
    )
    codes: int | None = option(
        "how many codes each level has (default: 256; for fewer than 2,000 items the power of 2 "
        "near 1.3 times the root of their number)",
        None,
        minimum=2,
    )
    parity: bool = option(
        "train as the published code does, to compare: its widths, k-means of the first batch, "
        "nothing standardised, dead codes left, last state kept",
        False,
    )
    latent_dim: int | None = option(
        "width of the latent that is quantised (default: the embeddings'; with --parity 32)",
        None,
        minimum=1,
    )
    hidden_dims: list[int] | None = option(
        "widths of the encoder between input and latent (default: 512 256; with --parity 2048 "
        "1024 512 256 128 64)",
        None,
        minimum=1,
    )
    commitment_weight: float = option("weight of the commitment loss (beta)", 0.25, minimum=0)
    sinkhorn_epsilon: list[float] = option(
        "uniform semantic mapping, smaller is stricter and 0 turns it off: one number for the last "
        "level, or one per level",
        [0.003],
        minimum=0,
    )
    epochs: int | None = option(
        "passes over the catalogue at most (default: 60; with --parity 5000)", None, minimum=0
    )
    patience: int = option(
        "stop after this many checks (every 5 epochs) without a gain", 8, minimum=1
    )
    batch_size: int = option("items per step, all processes together", 1024, minimum=2)
    learning_rate: float = option("AdamW's step size", 1e-3, minimum=0)
    weight_decay: float = option("AdamW's weight decay", 1e-4, minimum=0)
    bf16: bool = option("encode and decode in bfloat16 while training", False)
    seed: int = option("decides initialisation and order", 0, minimum=0)
    collaborative_by: Literal["concat", "letter"] = option(
        "how the index learns of --collaborative: concat (appended to the embeddings, scaled), or "
        "letter (the quantised vector is aligned with it, LETTER's losses)",
        "concat",
    )
    collaborative_weight: float | None = option(
        "concat: its variance against the embeddings' (default: 1); letter: the weight of the "
        "alignment, alpha (default: 0.02)",
        None,
        minimum=0,
    )
    diversity_weight: float = option("letter: the weight of diversity, beta", 1e-4, minimum=0)

    def for_items(self, items: int) -> Self:
        """Return the settings with the levels and codes that suit so many items, unless given.

        From 2,000 items on they are the published ones, and with `parity` always. A smaller
        catalogue cannot fill 256 codes: most would stand for one item or none, and a prefix that
        belongs to one item says nothing of others.
        """
        levels, codes = 4, 256
        if items < SMALL and not self.parity:
            levels, codes = 3, max(4, 2 ** round(math.log2(1.3 * math.sqrt(items))))
        return replace(self, levels=self.levels or levels, codes=self.codes or codes)

    @property
    def shape(self) -> tuple[int, int]:
        """Levels and codes, of settings that are for a catalogue (`for_items`)."""
        assert self.levels is not None
        assert self.codes is not None
        return self.levels, self.codes

    @property
    def is_trained(self) -> bool:
        """Whether the kind trains an RQ-VAE."""
        return self.kind in ("rq-vae", "tiger")

    @property
    def has_model(self) -> bool:
        """Whether the codes stand for vectors."""
        return self.kind not in WITHOUT_CODEBOOK

    @property
    def max_epochs(self) -> int:
        """Passes over the items at most."""
        if self.epochs is not None:
            return self.epochs
        return 5000 if self.parity else 60

    def level_epsilons(self) -> list[float]:
        """Return Sinkhorn's epsilon per level; without uniform mapping (`tiger`) it is zero.

        Raises:
            InputError: `sinkhorn_epsilon` is neither one number nor one per level.
        """
        given, (levels, _) = self.sinkhorn_epsilon, self.shape
        if self.kind == "tiger":
            return [0.0] * levels
        if len(given) == levels:
            return given
        if len(given) == 1:
            return [0.0] * (levels - 1) + given
        raise InputError(
            f"--sinkhorn-epsilon: {len(given)} numbers for --levels {levels}; give one for the "
            "last level, or one per level"
        )
