"""The files of the pipeline: their names, atomic reading and writing, and where each came from.

This is the only module that knows file names. Every write goes to a temporary name in the same
folder and is renamed when complete, so a killed stage leaves no half file. Every artifact folder
carries `lcrec.json`: the version, the stage, its settings and the sha256 of its inputs; a stage
that is asked for what already lies there does nothing, and one whose input has changed since
refuses, naming the command that rebuilds it. A folder is replaced whole, and a file together with
its sidecar, so that nobody reads a mixture of old and new.
"""

import contextlib
import ctypes
import glob
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.errors import REMEDIES, InputError

EMBEDDINGS = "embeddings.npy"
LSA_WEIGHTS = "lsa.safetensors"
LSA_TERMS = "lsa.json"
INDEX = "index.json"
RQVAE_WEIGHTS = "rqvae.safetensors"
COLLABORATIVE = "collaborative.npy"  # what the RQ-VAE reads beside the embeddings
METHOD_WEIGHTS = "method.safetensors"  # a fitted baseline
REPORT = "report.json"
REPORT_PAGE = "report.html"
TRAINING_PAGE = "training.html"
PROVENANCE = "lcrec.json"
COST = "cost.json"  # what the making took
PROMPTS = "prompts"
RECIPE = "recipe.yaml"
CARD = "README.md"
ITEM_TOKENS = "item_tokens.json"
NEIGHBOURS = "neighbours.safetensors"  # counts of items bought together
ITEM_IDS = "item_ids.json"  # raw ids, by number
DATA_CARD = "data_card.json"
DATA_CARD_PAGE = "data_card.html"


@dataclass(frozen=True)
class DataPaths:
    """The files of one data folder, `DIR/<Name>.*` (LC-Rec's names).

    Where a data set is large, inter, item and split are folders of Parquet files.
    """

    name: str
    inter: Path
    item: Path
    split: Path
    user: Path
    review: Path
    answers: Path
    user_ids: Path
    item_ids: Path
    card: Path
    card_page: Path

    @property
    def sequences(self) -> dict[str, Path]:
        """The files, by role, that say who had what in which order, and what is held out of it."""
        return {"inter": self.inter} | ({"split": self.split} if self.split.exists() else {})


def data_paths(folder: Path, name: str, *, parquet: bool = False) -> DataPaths:
    """Return where the files of data set `name` lie in `folder`, existing or not.

    Args:
        parquet: whether inter, item and split are folders of Parquet files, not JSON.
    """
    form = "parquet" if parquet else "json"
    return DataPaths(
        name=name,
        inter=folder / f"{name}.inter.{form}",
        item=folder / f"{name}.item.{form}",
        split=folder / f"{name}.split.{form}",
        user=folder / f"{name}.user.json",
        review=folder / f"{name}.review.json",
        answers=folder / f"{name}.answers.jsonl",
        user_ids=folder / f"{name}.user2id",
        item_ids=folder / f"{name}.item2id",
        card=folder / DATA_CARD,
        card_page=folder / DATA_CARD_PAGE,
    )


def find_data(folder: Path) -> DataPaths:
    """Find the one data set in `folder`.

    Raises:
        InputError: no such folder, or not exactly one `*.inter.json` or `*.inter.parquet` in it.
    """
    if not folder.is_dir():
        raise InputError(
            f"--data {folder}: no such folder; make one with: python -m lcrec.prepare --help"
        )
    found = sequence_paths(folder)
    if len(found) != 1:
        seen = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise InputError(
            f"--data {folder}: expected exactly one <Name>.inter.json or <Name>.inter.parquet, "
            f"{seen}"
        )
    name = found[0].name.rsplit(".inter.", 1)[0]
    return data_paths(folder, name, parquet=is_parquet(found[0]))


def sequence_paths(folder: Path) -> list[Path]:
    """Return the interactions of every data set in a folder; hidden files are none.

    macOS puts `._X.inter.json` beside what it copies to disks of other systems.
    """
    return sorted([*folder.glob("[!.]*.inter.json"), *folder.glob("[!.]*.inter.parquet")])


def is_parquet(path: Path) -> bool:
    """Tell by its name whether a file of a data folder holds Parquet, else it is JSON."""
    return path.suffix == ".parquet"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    Works for a file or a folder. A folder replaces the one that stood there. On any exception the
    temporary is removed and what stood at `path` is untouched. What is renamed has reached the
    disk, so that a power cut leaves the old or the new, whole. What killed processes left beside
    `path` is cleared away; where one died between two renames, the old comes back to its place.
    """
    if path.is_dir():
        path = path.resolve()  # "." cannot be renamed, and a link stays where it is
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.partial"
    replaced = path.parent / f".{path.name}.{os.getpid()}.replaced"
    clear_leftovers(path)
    try:
        _remove(temporary)  # a killed process may have had this number
        yield temporary
        _flush(temporary)
        if not (temporary.is_dir() and path.is_dir()):
            temporary.replace(path)
        elif not _exchange(temporary, path):
            # Renamed first: removing takes time, and half of a folder looks like a folder.
            _remove(replaced)
            path.replace(replaced)
            temporary.replace(path)
        _flush_names(path.parent)
    finally:
        if replaced.exists() and not path.exists():
            replaced.replace(path)
        _remove(temporary)
        _remove(replaced)


@contextlib.contextmanager
def atomic_files(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file whose sidecar, and what else stands by it, is written too.

    When the block ends well, all that was written beside the temporary moves beside `path`, the
    sidecar last. In between there is no sidecar, so none ever speaks for another file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    folder = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        _remove(folder)
        folder.mkdir()
        yield folder / path.name
        made = sorted(folder.iterdir(), key=lambda file: file.name.endswith(PROVENANCE))
        for file in made:
            if file.name.endswith(PROVENANCE):
                for name in (PROVENANCE, COST):  # of the file before
                    old = file.name.removesuffix(PROVENANCE) + name
                    (path.parent / old).unlink(missing_ok=True)
        for file in made:
            file.replace(path.parent / file.name)
        _flush_names(path.parent)
    finally:
        _remove(folder)


# What a write is called until it is whole, and what it takes the place of: `.NAME.PID.KIND`.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(?P<kind>partial|replaced)")


def clear_leftovers(path: Path, *, locked: bool = False) -> None:
    """Remove what processes that no longer live left beside `path`, or put it in its place.

    Their names are `.NAME.PID.partial`, which nobody needs, and `.NAME.PID.replaced`, which is the
    old content where the new one did not come to stand at `path`.

    Args:
        path: a file or folder.
        locked: whether this process is the only one that writes there: then whatever goes by such
            a name was left, that within the folder as well, though a process has the number again.
    """
    beside = path.parent.glob(f".{glob.escape(path.name)}.*")
    for leftover in [*beside, *(path.rglob(".*.*") if locked and path.is_dir() else ())]:
        match = LEFTOVER.fullmatch(leftover.name)
        if match is None or not (locked or not _lives(int(match["process"]))):
            continue
        place = leftover.with_name(match["name"])
        if match["kind"] == "replaced" and not place.exists():
            leftover.replace(place)
        else:
            _remove(leftover)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's process; no process
        return True
    return True


def _flush(path: Path) -> None:
    """Wait until a file, or all of a folder, is on the disk, and let those read it who may.

    safetensors makes files that only their owner can read, whatever the umask says.
    """
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    mask = os.umask(0)
    os.umask(mask)
    for file in files:
        file.chmod(file.stat().st_mode | (0o666 & ~mask))
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for folder in [path, *path.rglob("*")]:
        if folder.is_dir():
            _flush_names(folder)


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, where the system and its file system know how to."""
    if not sys.platform.startswith("linux") or other.is_symlink():
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, see renameat2(2)
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_text(path: Path, *, flag: str = "", encoding: str = "utf-8") -> str:
    """Read a text file.

    Args:
        flag: the option that names it, for errors.
        encoding: UTF-8; `utf-8-sig` passes over the mark that some editors put first.

    Raises:
        InputError: the file is missing, cannot be read or is not UTF-8.
    """
    named = f"{flag} {path}".strip()
    try:
        return path.read_text(encoding=encoding)
    except FileNotFoundError:
        raise InputError(f"{named}: no such file") from None
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "bring back the file")
        raise InputError(f"{named}: cannot be read as UTF-8 text ({error}); {remedy}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{named}: cannot be read as UTF-8 text ({error}); save it as UTF-8"
        ) from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, not UTF-8, not JSON (with line and column), or writes a
            key twice, where JSON would keep the last silently.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        ) from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of lists in lists
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; the `object_pairs_hook` of readers that take no key twice.

    Raises:
        InputError: a key stands there twice, where JSON would keep the last silently.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"key {key!r:.60} is written twice; keep one of them")
    return result


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as JSON, atomically, non-ASCII text kept readable."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=indent)
        file.write("\n")


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value per line.

    Raises:
        InputError: the file is missing, empty, or a line is no JSON (its number is named).
    """
    # Not splitlines(): a text may hold U+2028 and its like, which JSON does not escape.
    lines = read_text(path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise InputError(f"{path}: the file is empty")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: cannot be read as JSON ({error})") from None
    return rows


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value per line, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_array(path: Path) -> np.ndarray:
    """Read a `.npy` file; pickled content is refused.

    Raises:
        InputError: the file is missing or is no plain array.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a plain NumPy array ({error})") from None


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def index_path(folder: Path) -> Path:
    """Return the index file of a folder, or the file itself where one is named."""
    return folder if folder.is_file() or folder.name == INDEX else folder / INDEX
