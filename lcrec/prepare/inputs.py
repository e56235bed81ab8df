"""Which files a person means: folders, globs, zip archives, and data sets on the Hugging Face hub.

Looks at names only, except that `unpack` writes the members of zip archives into a folder and
`fetch` lets `datasets` download files into its cache.
"""

import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lcrec.core.errors import InputError
from lcrec.prepare.files import bare_name, decode_file
from lcrec.prepare.published import PUBLISHED

# Format -> patterns of interactions and of items, most specific first.
FOLDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recbole": (("*.inter",), ("*.item",)),
    "lcrec": (("*.inter.json",), ("*.item.json",)),
    **{
        name: (
            tuple(pattern for pattern, _ in files.interactions),
            tuple(pattern for pattern, _ in files.items),
        )
        for name, files in PUBLISHED.items()
    },
}
SPLITS = ("train", "valid", "test")
# Raw files of Amazon-Reviews-2023 on the hub, by category; its loading script cannot be run.
HUB_REVIEWS = "raw/review_categories/{}.jsonl"
HUB_ITEMS = "raw/meta_categories/meta_{}.jsonl"
# RuntimeError: the member is encrypted.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
NO_MEMBER = ("__MACOSX", ".")


@dataclass(frozen=True)
class Inputs:
    """The files of a run: the format, those of interactions in their order, and those of items."""

    format: str
    interactions: tuple[Path, ...]
    items: tuple[Path, ...]

    def hashed(self) -> dict[str, Path]:
        """Return role -> file for the provenance; of an archive, the archive itself."""
        return hashed("interactions", self.interactions) | hashed("items", self.items)

    def plain(self, encoding: str | None, folder: Path) -> "Inputs":
        """Return the same as plain files in UTF-8.

        Members of archives, and copies of files in another encoding (None: leave all as they are),
        are written into `folder` by the files' own names. Parquet, whose texts are UTF-8, stays as
        it is.

        Raises:
            InputError: a member is damaged; of an encoding: all files are Parquet or JSON, or one
                is not in it.
        """
        files = unpack([*self.interactions, *self.items], folder)
        if encoding is not None:
            files = self._decoded(files, encoding, folder)
        count = len(self.interactions)
        return Inputs(self.format, tuple(files[:count]), tuple(files[count:]))

    def _decoded(self, files: list[Path], encoding: str, folder: Path) -> list[Path]:
        if self.format == "lcrec":
            raise InputError("--encoding: files of --format lcrec are JSON, which is UTF-8")
        copies = []
        for number, path in enumerate(files):
            if path.suffix.lower() == ".parquet":
                copies.append(path)
                continue
            copies.append(folder / f"decoded-{number}" / bare_name(path))
            copies[-1].parent.mkdir()
            decode_file(path, encoding, copies[-1])
        if copies == files:
            raise InputError("--encoding: Parquet holds its texts in UTF-8; leave the flag out")
        return copies

    def __str__(self) -> str:
        parts = [
            str(paths[0]) + (f" and {len(paths) - 1} more" if paths[1:] else "")
            for paths in (self.interactions, self.items)
        ]
        return " and ".join(parts)


def hashed(role: str, paths: Sequence[Path]) -> dict[str, Path]:
    """Return role -> file for the provenance, numbered where there are several."""
    files = dict.fromkeys(_archive_of(path) or path for path in paths)
    return {
        role if len(files) == 1 else f"{role} {number}": path
        for number, path in enumerate(files, start=1)
    }


def find_inputs(
    format: str | None,
    *,
    input: Path | None,
    interactions: Sequence[Path] | None,
    items: Sequence[Path] | None,
    source: str | None,
) -> Inputs:
    """Find the files that the flags of these names mean.

    Raises:
        InputError: flags are missing or do not go together, or the files are not there.
    """
    if format is None and source is None:
        raise InputError("--format is required: how the files are written (see --help)")
    format = format or "amazon2023"  # the one kind of source there is
    flags = {"input": input, "interactions": interactions, "items": items, "source": source}
    given = [name for name, value in flags.items() if value]
    ways = [["interactions", "items"]]
    if format in FOLDERS or format == "minionerec":
        ways.insert(0, ["input"])
    if format == "amazon2023":
        ways.append(["source"])
    if given not in ways:
        choice = ", or ".join(" and ".join(f"--{name}" for name in way) for way in ways)
        named = " and ".join(f"--{name}" for name in given) or "none of them"
        raise InputError(f"--format {format} takes {choice}; given: {named}")
    if source is not None:
        reviews, metadata = fetch(source)
        return Inputs(format, tuple(reviews), tuple(metadata))
    if input is not None:
        actions, catalogue = find_in(input, format)
    else:
        actions = find_files("interactions", interactions or [])
        catalogue = find_files("items", items or [])
    return Inputs(format, tuple(actions), tuple(catalogue))


def find_in(place: Path, format: str) -> tuple[list[Path], list[Path]]:
    """Return the interactions and items files in a folder or zip archive, by their published names.

    A member of an archive is returned as archive/member; `unpack` makes a file of it.

    Raises:
        InputError: nothing is there, or not exactly one file is called so.
    """
    if not place.is_dir() and not (place.is_file() and place.suffix.lower() == ".zip"):
        raise InputError(f"--input {place}: no such folder or zip archive")
    if format == "minionerec":
        return _find_minionerec(place)
    files = _files_in(place)
    interaction_patterns, item_patterns = FOLDERS[format]
    items = _match(files, item_patterns)
    # The items' last patterns may be wide; what is surely an item is no interaction.
    sure = _match(files, item_patterns[:1])
    actions = _match([path for path in files if path not in sure], interaction_patterns)
    items = sure or [path for path in items if path not in actions]
    for what, found, patterns in (
        ("interactions", actions, interaction_patterns),
        ("items", items, item_patterns),
    ):
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(
                f"--input {place}: expected exactly one file of {what} ({' or '.join(patterns)}), "
                f"found {names}; name the files with --interactions and --items"
            )
    return actions, items


def _files_in(place: Path) -> list[Path]:
    if place.is_dir():
        inside = [path for path in place.glob("[!.]*") if path.is_file()]
        zipped = [member for path in inside if path.suffix == ".zip" for member in _members(path)]
        return sorted([path for path in inside if path.suffix != ".zip"] + zipped)
    return _members(place)


def _match(files: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    """Return the files that the first pattern with any matches."""
    for pattern in patterns:
        found = [path for path in files if fnmatchcase(bare_name(path), pattern)]
        if found:
            return found
    return []


def _find_minionerec(place: Path) -> tuple[list[Path], list[Path]]:
    there = place.rglob("[!.]*") if place.is_dir() else ()
    inside = sorted(path for path in there if path.is_file())
    inside = inside or _members(place)
    named = {
        name: [
            path
            for path in inside
            if bare_name(path).endswith(suffix)
            and name in (path.parent.name, bare_name(path).removesuffix(suffix))
        ]
        for name, suffix in (*((split, ".csv") for split in SPLITS), ("info", ".txt"))
    }
    if not named["train"]:
        del named["train"]  # the published rows to validate and to test on stand for themselves
    for name, found in named.items():
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(
                f"--input {place}: expected exactly one file in {name}/, found {names}; name the "
                "files with --interactions TRAIN VALID TEST --items INFO"
            )
    return [path for name in SPLITS for path in named.get(name, ())], named["info"]


def find_files(flag: str, given: Sequence[Path]) -> list[Path]:
    """Return the files that paths and globs name: each glob's by name, a folder's Parquet files.

    Hidden files, such as `._X.csv` of macOS, are found by their own names alone.

    Raises:
        InputError: a path or glob names nothing, or a file is named twice.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            matches = sorted(path.rglob("[!.]*.parquet"))
            what = (
                "a folder without Parquet files; name files of another kind themselves "
                f"('{path}/*.csv'), and write what Hugging Face's save_to_disk made by to_parquet"
            )
        elif path.is_file():
            matches, what = [path], ""
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(root)) if path.is_absolute() else str(path)
            is_glob = any(mark in pattern for mark in "*?[")
            hidden = path.name.startswith(".")
            matches = sorted(
                match
                for match in root.glob(pattern)
                if match.is_file() and match.name.startswith(".") == hidden
            )
            what = "no file is called so" if is_glob else "no such file"
        members = [
            member
            for match in matches
            for member in (_members(match) if match.suffix.lower() == ".zip" else [match])
        ]
        if not members:
            raise InputError(f"--{flag} {path}: {what or 'the archive holds no file'}")
        found += members
    if len(set(found)) < len(found):
        twice = min(path for path, count in Counter(found).items() if count > 1)
        raise InputError(f"--{flag}: {twice} is named twice; its rows would count double")
    return found


def _members(archive: Path) -> list[Path]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [entry.filename for entry in opened.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: cannot be read as a zip archive ({error})") from None
    return [archive / name for name in sorted(names) if not name.startswith(NO_MEMBER)]


def _archive_of(path: Path) -> Path | None:
    """Return the zip archive that a path leads into, or None for a plain file."""
    return next((parent for parent in path.parents if parent.is_file()), None)


def unpack(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return plain files: members of zip archives are written into `folder` first.

    Raises:
        InputError: a member is damaged.
    """
    plain = []
    for number, path in enumerate(paths):
        archive = _archive_of(path)
        if archive is None:
            plain.append(path)
            continue
        member = path.relative_to(archive).as_posix()
        # Its own folder for each: members of two archives may have one name.
        target = folder / f"unpacked-{archive.stem}-{number}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                zipfile.ZipFile(archive) as opened,
                opened.open(member) as source,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 2**20)
        except DAMAGED as why:
            raise InputError(f"{path}: cannot be unpacked ({why}); is the archive whole?") from None
        plain.append(target)
    return plain


def fetch(source: str) -> tuple[list[Path], list[Path]]:
    """Return the raw files of `hf:REPOSITORY:CATEGORY`, laid out as Amazon-Reviews-2023.

    `datasets` downloads them into its cache, where a second run finds them. The hub's own loading
    script is not run, as no code from the hub is. A local folder may stand for the repository.

    Raises:
        InputError: the source is written otherwise, or the files are not there.
    """
    scheme, _, rest = source.partition(":")
    repository, colon, category = rest.rpartition(":")
    if scheme != "hf" or not colon or not repository or not category:
        raise InputError(
            f"--source {source}: expected hf:REPOSITORY:CATEGORY, such as "
            "hf:McAuley-Lab/Amazon-Reviews-2023:Office_Products"
        )
    names = [pattern.format(category) for pattern in (HUB_REVIEWS, HUB_ITEMS)]
    folder = Path(repository).expanduser()
    if folder.is_dir():
        for name in names:
            if not (folder / name).is_file():
                known = sorted(path.stem for path in (folder / name).parent.glob("*.jsonl"))
                raise InputError(
                    f"--source {source}: {folder} has no {name} (there are: "
                    f"{', '.join(known[:40]) or 'none'})"
                )
        urls = [str(folder / name) for name in names]
    else:
        urls = [f"hf://datasets/{repository}/{name}" for name in names]
    # Importing it takes seconds, which only those pay who ask for it.
    from datasets import DownloadManager

    try:
        reviews, items = DownloadManager().download(urls)
    except Exception as error:  # of the hub's client, in as many kinds as there are reasons
        raise InputError(
            f"--source {source}: {urls[0]} or {urls[1]} cannot be had ({error}); a download of "
            "the two files is read by --format amazon2023 --interactions --items"
        ) from None
    return [Path(reviews)], [Path(items)]
