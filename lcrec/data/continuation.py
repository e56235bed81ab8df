"""A data folder that continues another: everything in it keeps its number, and more follows.

Reads the older folder; writes the new one whole, under a temporary name that is renamed at the end,
so that a killed run leaves nothing. Its record, `lcrec.json`, names what it continues
(`lcrec.data.new_items.earlier`) and hands on how the first folder was prepared.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.artifacts import (
    DATA_CARD,
    DataPaths,
    atomic_path,
    data_paths,
    find_data,
    is_parquet,
    read_json,
    sequence_paths,
    write_json,
)
from lcrec.core.errors import InputError
from lcrec.core.outputs import claim
from lcrec.core.provenance import (
    alike,
    fingerprint,
    is_current,
    kind_of,
    read_provenance,
    write_provenance,
)
from lcrec.data.folder import Interactions, item_texts, read_texts, write_lists, write_texts
from lcrec.data.new_items import earlier
from lcrec.data.splits import write_split

PREPARE = "python -m lcrec.prepare"


@dataclass(frozen=True)
class Growth:
    """The interactions of a folder that continues another.

    Attributes:
        interactions: all, the old and the new, by the users' keys in the files.
        new_users: the raw ids of the users that are new, where the folder has raw ids.
        parts: int8 [interactions], the part of the split each belongs to; None where no file says.
        reviews: those of the new interactions, as `<Name>.review.json` has them.
    """

    interactions: Interactions
    new_users: list[str]
    parts: np.ndarray | None
    reviews: dict[str, Any]


def append_interactions(
    old: Interactions, users: list[str], owners: np.ndarray, items: np.ndarray
) -> tuple[Interactions, np.ndarray]:
    """Return the old interactions with new ones behind them, user by user, and which are new.

    Args:
        users: the keys of all users, those of `old` first.
        owners: int [new interactions], ascending: the position among `users` of each one's user.
        items: int [new interactions].

    Returns:
        The interactions, and bool [interactions].
    """
    lengths = np.zeros(len(users), dtype=np.int64)
    lengths[: len(old)] = np.diff(old.offsets)
    totals = lengths + np.bincount(owners, minlength=len(users))
    offsets = np.concatenate([[0], np.cumsum(totals)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], totals)  # in the user's sequence
    is_new = place >= np.repeat(lengths, totals)
    merged = np.empty(offsets[-1], dtype=np.int32)
    merged[~is_new], merged[is_new] = old.items, items
    return Interactions(users, offsets, merged), is_new


def preparation(data: Path) -> dict[str, Any]:
    """Return the settings of `lcrec prepare` that a data folder, or the first that it continues,
    was made with; empty where it was made otherwise."""
    record = read_provenance(data)
    if record is None:
        return {}
    return record["config"] if record["kind"] == kind_of(PREPARE) else record.get("prepared", {})


def last_time(data: Path) -> str | float | None:
    """Return when the last interaction of a data folder happened.

    Returns:
        A date as text, cut to whole seconds; a number where the unit of the data's times is not
        known; None where nothing tells.
    """
    record = read_provenance(data)
    if record is not None and "last_time" in record:
        return record["last_time"]
    settings = preparation(data)
    is_sequence = settings.get("format") in ("lcrec", "minionerec")
    if is_sequence or settings.get("order") == "file" or not (data / DATA_CARD).exists():
        return None
    return read_json(data / DATA_CARD)["time"]["last"]


def is_done(
    data: Path,
    output: Path,
    stage: str,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    *,
    overwrite: bool,
) -> bool:
    """Tell whether `output` continues `data` by these inputs already.

    Raises:
        InputError: it is an earlier result whose interactions were edited since.
    """
    if is_current(output, stage, settings, inputs):
        return True
    record = read_provenance(output) if output.is_dir() and not overwrite else None
    for inter in sequence_paths(output):
        if record is not None and fingerprint(inter) != record.get("inter_sha256"):
            raise InputError(
                f"--output {output}: {inter.name} was changed since, and would be lost; name "
                "another folder, or give --overwrite to replace it"
            )
    return False


def continue_folder(
    data: Path,
    output: Path,
    stage: str,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    items: dict[str, dict[str, Any]],
    growth: Growth | None = None,
    *,
    changed: Mapping[int, dict[str, Any]] | None = None,
    overwrite: bool,
    **facts: Any,
) -> None:
    """Write a data folder that continues another.

    Args:
        data: the older folder, which stays as it is.
        stage, settings, inputs: for the record.
        items: the items that are new, by raw id, or by number where there are no raw ids.
        growth: the interactions; None where they are those of `data`.
        changed: number of an old item -> the kept fields that have another value now.
        overwrite: whether to replace what another made at `output`.
        **facts: for the record.
    """
    old = find_data(data)
    with claim(output, stage, overwrite=overwrite), atomic_path(output) as folder:
        folder.mkdir()
        new = data_paths(folder, old.name, parquet=is_parquet(old.inter))
        num_items = _write_items(old, new, items, changed or {})
        names = ["review", "answers"]
        if growth is None:
            # Written about the sequences as they were, which others would make stale.
            names += ["inter", "split", "user", "user_ids"]
        for name in names:
            _copy(getattr(old, name), getattr(new, name))
        if growth is not None:
            _write_growth(old, new, growth)
        before = {role: earlier(data, role) for role in ("item", "inter", "split")}
        same = alike(old.item, "item")
        if items:
            before["item"], same = [*before["item"], *same], []
        own = fingerprint(new.item)
        same = [*(one for one in same if one != own), own]
        if old.split.exists() and fingerprint(old.split) != fingerprint(new.split):
            before["split"] = [*before["split"], fingerprint(old.split)]
        if growth is not None:
            before["inter"] = [*before["inter"], fingerprint(old.inter)]
        facts |= {"items": num_items, "inter_sha256": fingerprint(new.inter), "earlier": before}
        facts |= {"alike": {"item": same}} if same[1:] else {}
        facts = {"prepared": preparation(data), "last_time": last_time(data)} | facts
        write_provenance(folder, stage, settings, inputs, **facts)


def _write_items(
    old: DataPaths,
    new: DataPaths,
    items: dict[str, dict[str, Any]],
    changed: Mapping[int, dict[str, Any]],
) -> int:
    """Write the catalogue and the items' raw ids; return how many items there are."""
    if not items and not changed:
        _copy(old.item, new.item)
        _copy(old.item_ids, new.item_ids)
        return len(read_texts(old.item) if is_parquet(old.item) else read_json(old.item))
    if is_parquet(new.item):
        rows = [*read_texts(old.item), *items.values()]
        for number, values in changed.items():
            rows[number] = rows[number] | values
        _write_texts(new.item, rows)
    else:
        rows = read_json(old.item)
        for number, values in changed.items():
            rows[str(number)] |= values
        rows |= {str(number): row for number, row in enumerate(items.values(), start=len(rows))}
        write_json(new.item, rows)
    _extend_ids(old.item_ids, new.item_ids, list(items), len(rows) - len(items))
    return len(rows)


def _write_growth(old: DataPaths, new: DataPaths, growth: Growth) -> None:
    """Write interactions, split, reviews and the users' raw ids."""
    own = growth.interactions
    if is_parquet(new.inter):
        write_lists(new.inter, own.users, {"items": (own.offsets, own.items)})
    else:
        sequences = (sequence.tolist() for sequence in own)
        write_json(new.inter, dict(zip(own.users, sequences, strict=True)))
    if growth.parts is not None:
        write_split(new.inter.parent, own, growth.parts)
    if growth.reviews:
        written = read_json(old.review) if old.review.exists() else {}
        write_json(new.review, written | growth.reviews)
    _extend_ids(old.user_ids, new.user_ids, growth.new_users, len(own) - len(growth.new_users))


def _extend_ids(old: Path, new: Path, names: list[str], first: int) -> None:
    """Write the old lines of raw id, tab, number and those of `names`, where there are any."""
    if old.exists():
        text = old.read_text(encoding="utf-8").removesuffix("\n")
        lines = [f"{name}\t{number}" for number, name in enumerate(names, start=first)]
        new.write_text("\n".join([text, *lines]) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copyfile(source, target)


def _write_texts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write texts as Parquet; a field that some item has, every item has."""
    # Slow to load, and needed for large data alone.
    import pyarrow as pa

    texts = [item_texts(row, f"item {item}") for item, row in enumerate(rows)]
    names = list(dict.fromkeys(name for row in texts for name in row))
    columns = {name: pa.array([row.get(name, "") for row in texts], pa.string()) for name in names}
    write_texts(path, pa.table(columns))
