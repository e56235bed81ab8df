"""A data set in memory: what users did (`Interactions`) and what items are (`Items`).

Reads `<Name>.inter.json` {user: [item, ...] oldest first} and `<Name>.item.json`
{item: {title, description, ...}}; item ids are 0 .. n-1 without gaps. What is held out of the
interactions is the business of `lcrec.data.splits`.

Large data has the same as Parquet, which is read and written here too, each a folder of files
`part-00000.parquet` and so on, in the order of their names:
`<Name>.inter.parquet` has the columns user (text) and items (list of 32-bit numbers),
`<Name>.split.parquet` user, train, valid and test, `<Name>.item.parquet` a column of text per
field, row i being item i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.artifacts import find_data, is_parquet, read_json
from lcrec.core.errors import InputError

MOST_ITEMS = 2**31 - 1  # ids are int32

# What `lcrec.prepare` reads by role, in this order; any other field was kept by name.
STANDARD_FIELDS = ("title", "description", "brand", "categories", "features", "details")

LARGEST_VALUE = 1e6  # of an embedding; no encoder comes near it


@dataclass(frozen=True)
class Items:
    """The catalogue; `fields[i]` holds the text fields of item i, empty text where absent."""

    fields: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.fields)

    def text(self, item: int, field: str) -> str:
        """Return a text field of an item, empty where the catalogue has none."""
        return self.fields[item].get(field, "")

    @cached_property
    def kept_fields(self) -> list[str]:
        """The fields besides the standard ones, such as a price, in the order of the catalogue."""
        names = dict.fromkeys(name for entry in self.fields for name in entry)
        return [name for name in names if name not in STANDARD_FIELDS]

    def properties(self, item: int) -> str:
        """Return the item's kept fields in words, such as "price: 12.5; colour: red"."""
        own = ((name, self.text(item, name)) for name in self.kept_fields)
        return "; ".join(f"{name}: {text}" for name, text in own if text)

    def title(self, item: int) -> str:
        """Return the item's title, or a readable stand-in where it has none."""
        return self.text(item, "title") or f"(item {item}, no title)"


@dataclass(frozen=True)
class Interactions:
    """Every user's items, oldest first: user u has `items[offsets[u]:offsets[u + 1]]`.

    `offsets` is int64 [users + 1], `items` int32 [interactions].
    """

    users: list[str]
    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def from_sequences(cls, sequences: dict[str, list[int]]) -> "Interactions":
        """Pack {user: [item, ...]} into arrays, keeping the order of users."""
        lengths = [len(sequence) for sequence in sequences.values()]
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = [item for sequence in sequences.values() for item in sequence]
        return cls(list(sequences), offsets, np.asarray(flat, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.users)

    @property
    def owners(self) -> np.ndarray:
        """The position of each interaction's user, int64 [interactions]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def sequence(self, user: int) -> np.ndarray:
        """Return the items of the user at this position, int32 [length]."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def sequences_of(self, users: Sequence[str]) -> list[np.ndarray]:
        """Return the items of each of these users, int32 [length]; none of an unknown one."""
        places = {user: place for place, user in enumerate(self.users)}
        nothing = self.items[:0]
        return [self.sequence(places[user]) if user in places else nothing for user in users]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.sequence(user) for user in range(len(self)))

    def has_repeats(self) -> bool:
        """Return whether any user has an item more than once."""
        pairs = self.owners * (1 + int(self.items.max(initial=0))) + self.items
        pairs.sort()
        return bool((pairs[1:] == pairs[:-1]).any())


def load_items(folder: Path) -> Items:
    """Read the catalogue of a data folder.

    Raises:
        InputError: the file is missing or malformed, ids have a gap, or an item has no text at all.
    """
    path = find_data(folder).item
    if not path.exists():
        raise InputError(f"{path}: no such file; it holds the items' titles and descriptions")
    if is_parquet(path):
        rows = read_texts(path)
        return Items([item_texts(row, f"{path}: item {item}") for item, row in enumerate(rows)])
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise InputError(
            f"{path}: expected {{item id: {{title, ...}}}}, found {kind_of_value(raw)}"
        )
    fields = []
    for item in range(len(raw)):
        entry = raw.get(str(item))
        if entry is None:
            raise InputError(
                f"{path}: item {item} is missing; {len(raw)} items must be numbered 0 to "
                f"{len(raw) - 1} without gaps"
            )
        fields.append(item_texts(entry, f"{path}: item {item}"))
    return Items(fields)


def item_texts(entry: object, where: str, *, needs_text: bool = True) -> dict[str, str]:
    """Return an item's fields as text.

    Args:
        entry: the item as it stands in `<Name>.item.json`.
        where: the file and the item, for the error.
        needs_text: whether it has to have a title or a description.

    Raises:
        InputError: it is no object, or has neither a title nor a description.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, found {kind_of_value(entry)}")
    texts = {name: text_of(value) for name, value in entry.items()}
    if needs_text and not texts.get("title") and not texts.get("description"):
        raise InputError(
            f"{where} has no text; give it a title or a description, or leave it out with: "
            "python -m lcrec.prepare"
        )
    return texts


def load_interactions(folder: Path, num_items: int | None) -> Interactions:
    """Read the users' sequences of a data folder.

    Args:
        num_items: the size of the catalogue, to check every id against; None where there is no
            catalogue: the items are then those of the sequences.

    Raises:
        InputError: the file is missing or malformed, an id is not in the catalogue, or there is no
            catalogue and the ids have a gap.
    """
    paths = find_data(folder)
    path = paths.inter
    if is_parquet(path):
        users, [(offsets, items)] = read_lists(path, ["items"])
        if num_items is not None:
            require_known(items, num_items, path)
        interactions = Interactions(users, offsets, items)
    else:
        raw = read_json(path)
        if not isinstance(raw, dict) or not raw:
            raise InputError(f"{path}: expected {{user: [item, ...]}}, found {kind_of_value(raw)}")
        for user, sequence in raw.items():
            require_ids(sequence, num_items, f"{path}: user {user!r}")
        interactions = Interactions.from_sequences(raw)
    if num_items is None:
        _require_no_gap(interactions.items, path, paths.item)
    return interactions


def require_ids(sequence: object, num_items: int | None, where: str) -> None:
    """Refuse what is no list of items of the catalogue, or of ids at all where there is none."""
    if not isinstance(sequence, list):
        raise InputError(f"{where}: expected a list, found {kind_of_value(sequence)}")
    limit = MOST_ITEMS if num_items is None else num_items
    for item in sequence:
        if type(item) is not int or not 0 <= item < limit:
            wanted = "an item id from 0 up"
            if num_items is not None:
                wanted = f"in the catalogue, whose ids are 0 to {num_items - 1}"
            raise InputError(f"{where}: item {item!r} is not {wanted}")


def require_known(items: np.ndarray, num_items: int, path: Path) -> None:
    """Refuse ids of Parquet files, which are no less than 0, that are not in the catalogue."""
    if len(items) and int(items.max()) >= num_items:
        raise InputError(
            f"{path}: item {items.max()} is not in the catalogue, whose ids are 0 to "
            f"{num_items - 1}"
        )


def _require_no_gap(items: np.ndarray, path: Path, catalogue: Path) -> None:
    """Refuse ids that leave one out, where nothing else says how many items there are."""
    most = len(items)  # ids there can be
    seen = np.zeros(most + 1, dtype=bool)
    seen[np.minimum(items, most)] = True
    missing = int(seen.argmin())
    if missing <= items.max(initial=-1):
        raise InputError(
            f"{path}: item {missing} is in no sequence, and there is no {catalogue} to say how "
            "many items there are; number the items from 0 without gaps, or add that file"
        )


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1, [rows, dim]; rows of zeros, as of texts without words, stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def check_embeddings(embeddings: np.ndarray, num_items: int, path: Path) -> np.ndarray:
    """Return the embeddings as float32 [items, dim], refusing what cannot be indexed.

    Raises:
        InputError: wrong shape, a row count that is not the catalogue's, or a value not finite or
            beyond `LARGEST_VALUE`.
    """
    is_table = embeddings.ndim == 2 and embeddings.shape[1] > 0
    if not is_table or not np.issubdtype(embeddings.dtype, np.floating):
        raise InputError(
            f"{path}: expected floats of shape [items, dim], found {embeddings.dtype} "
            f"{list(embeddings.shape)}"
        )
    if len(embeddings) != num_items:
        raise InputError(
            f"{path} has {len(embeddings)} rows but the catalogue has {num_items} items; rebuild "
            "it with python -m lcrec.embed"
        )
    with np.errstate(over="ignore"):
        embeddings = embeddings.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} rows hold values that are not finite (first: item {bad[0]}); "
            "rebuild it with python -m lcrec.embed"
        )
    largest = float(np.abs(embeddings).max(initial=0))
    if largest > LARGEST_VALUE:
        raise InputError(
            f"{path}: a value of {largest:.3g}; beyond {LARGEST_VALUE:,.0f} squares and their sums "
            "leave float32; scale the embeddings down"
        )
    return embeddings


def text_of(value: object) -> str:
    """Return a JSON value as text.

    A list is joined by spaces, an object becomes "key: value; key: value", null and NaN are empty.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return " ".join(filter(None, map(text_of, value)))
    if isinstance(value, dict):
        parts = ((text_of(key), text_of(part)) for key, part in value.items())
        return "; ".join(f"{key}: {text}" for key, text in parts if text)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # JSON may hold half of a surrogate pair, which no tokenizer and no UTF-8 file can.
    return text.encode(errors="replace").decode().strip()


def kind_of_value(value: object) -> str:
    """Say in words what a JSON value is, for an error."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing"}
    text = names.get(type(value), "a number")
    return f"an empty {text.split()[-1]}" if value in ({}, []) else text


PART_USERS, PART_ITEMS = 1_000_000, 250_000  # rows per file
GROUP = 100_000  # rows per group within a file


def write_lists(path: Path, users: Sequence[str], lists: dict[str, tuple[Any, Any]]) -> None:
    """Write lists of item ids per user as a new folder of Parquet files.

    Args:
        path: the folder to make.
        lists: column -> (int64 [users + 1], int32 [ids]): user u has the ids from the u-th offset
            to the next.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.mkdir()
    for number, begin in enumerate(range(0, len(users), PART_USERS)):
        end = min(begin + PART_USERS, len(users))
        columns = {"user": pa.array(users[begin:end], pa.string())}
        for name, (offsets, ids) in lists.items():
            within = (offsets[begin : end + 1] - offsets[begin]).astype(np.int32)
            part = np.asarray(ids[offsets[begin] : offsets[end]], dtype=np.int32)
            columns[name] = pa.ListArray.from_arrays(pa.array(within), pa.array(part))
        file = path / f"part-{number:05}.parquet"
        pq.write_table(pa.table(columns), file, compression="zstd", row_group_size=GROUP)


def read_lists(path: Path, names: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Read what `write_lists` wrote, from a folder or a single file.

    Returns:
        The users' names, and for each of `names` a pair (int64 [users + 1], int32 [ids]).

    Raises:
        InputError: nothing lies there, it is no Parquet, a column is missing, empty or of another
            type, or a user stands there twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _read(path, ["user", *names])
    users = table["user"].to_pylist()
    if not all(isinstance(user, str) for user in users):
        raise InputError(f"{path}: column 'user' must hold text in every row")
    if len(set(users)) < len(users):
        raise InputError(f"{path}: a user stands there twice; keep one row of each")
    result = []
    for name in names:
        column = table[name].combine_chunks()
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not (
            pa.types.is_integer(kind.value_type)
        ):
            raise InputError(f"{path}: column {name!r} holds {kind}; lists of numbers are needed")
        flat = column.flatten()
        if column.null_count or flat.null_count:
            raise InputError(f"{path}: column {name!r} is empty in some row, or in some list")
        offsets = np.zeros(len(column) + 1, dtype=np.int64)
        np.cumsum(pc.list_value_length(column).to_numpy(), out=offsets[1:])
        ids = flat.to_numpy()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < 2**31:
            raise InputError(f"{path}: column {name!r} holds {ids.min()} to {ids.max()}; no ids")
        result.append((offsets, ids.astype(np.int32)))
    return users, result


def write_texts(path: Path, fields: Any) -> None:
    """Write the catalogue's texts as a new folder of Parquet files.

    `fields` has a column of text per field, row i being item i.
    """
    import pyarrow.parquet as pq

    path.mkdir()
    for number, begin in enumerate(range(0, fields.num_rows, PART_ITEMS)):
        file = path / f"part-{number:05}.parquet"
        part = fields.slice(begin, PART_ITEMS)
        pq.write_table(part, file, compression="zstd", row_group_size=GROUP)


def read_texts(path: Path) -> list[dict[str, Any]]:
    """Read what `write_texts` wrote, from a folder or a single file: the fields of every item.

    Raises:
        InputError: nothing lies there, or it is no Parquet.
    """
    return _read(path, None).to_pylist()


def _read(path: Path, columns: Sequence[str] | None) -> Any:
    # Loading pyarrow takes longer than reading a small data set, which is JSON.
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise InputError(f"{path}: no such file, or a folder without *.parquet in it")
    tables = []
    for file in files:
        try:
            tables.append(pq.ParquetFile(file).read(columns and list(columns)))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{file}: cannot be read as Parquet ({reason})") from None
        if missing := set(columns or ()).difference(tables[-1].column_names):
            raise InputError(f"{file}: no column {min(missing)!r}; make the data set anew")
    return pa.concat_tables(tables)
