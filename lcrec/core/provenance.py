"""Where an artifact came from: the sidecar `lcrec.json`, written last and checked before use.

It records what the artifact is (`kind` and `format`), its settings and the sha256 of its inputs:
these decide whether it is current. The command and the version of lcrec are recorded for people;
a renamed command or a new release makes nothing stale.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from lcrec.core.artifacts import COST, LEFTOVER, PROVENANCE, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.version import __version__

# The kind of what a command makes. A renamed command gets a line of its own with the same kind, so
# that what it made under its old name stays current. What is not named here (a baseline's
# predictions, a metrics file) has a kind called after its command.
KINDS = {
    "python -m lcrec.synthetic": "synthetic data",
    "python -m lcrec.prepare": "data",
    "python -m lcrec.add_items": "extended data",
    "python -m lcrec.add_interactions": "extended data",
    "python -m lcrec.intents": "intents",
    "python -m lcrec.tinylm": "base",
    "python -m lcrec.embed": "embeddings",
    "python -m lcrec.quantize": "index",
    "python -m lcrec.index_report": "index report",
    "python -m lcrec.dataset": "instructions",
    "accelerate launch recipes/finetune.py": "checkpoint",
    "python -m lcrec.finetune": "checkpoint",
    "python -m lcrec.reinforce": "checkpoint",
    "python -m lcrec.export": "export",
    "python -m lcrec.generate": "predictions",
    "python -m lcrec.evaluate": "metrics",
    "python -m lcrec.evaluate pairs": "metrics",
    "python -m lcrec.evaluate search": "metrics",
    "python -m lcrec.evaluate language": "metrics",
}
# The layout of a kind's files, raised when an older one can no longer be read; 1 where absent.
FORMATS: dict[str, int] = {}
FILES = (".json", ".jsonl", ".parquet")  # what an artifact that is a file is called
LARGE_FILE = 2**20  # bytes


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes; a large file is read once per process.

    A stage looks at its inputs when it begins, to see whether it has work, and when it records
    them; the weights of a large model take many seconds each time.
    """
    found = path.stat()
    if found.st_size < LARGE_FILE:  # times of files are too coarse to tell two quick writes apart
        return _digest(path)
    return _digest_once(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _digest_once(path: Path, *state: int) -> str:
    return _digest(path)


def fingerprint(path: Path) -> str:
    """Return a sha256 that stands for a file or for every file of a folder, names included.

    Raises:
        InputError: nothing lies at `path`.
    """
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        # Sidecars tell of the folder's making, not of its content; a killed run's leftovers are no
        # content either.
        parts = file.relative_to(path).parts
        if (
            file.is_file()
            and file.name not in (PROVENANCE, COST)
            and not any(map(LEFTOVER.fullmatch, parts))
        ):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\0".encode())
    return digest.hexdigest()


def provenance_path(artifact: Path) -> Path:
    """Return an artifact's sidecar: `lcrec.json` in a folder, `X.lcrec.json` beside `X.jsonl`."""
    is_file = artifact.suffix in FILES
    return artifact.with_suffix(f".{PROVENANCE}") if is_file else artifact / PROVENANCE


def cost_path(artifact: Path) -> Path:
    """Return the file that tells what making an artifact took, beside or in it as its sidecar."""
    sidecar = provenance_path(artifact)
    return sidecar.with_name(sidecar.name.removesuffix(PROVENANCE) + COST)


def write_provenance(
    artifact: Path,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    *,
    cost: dict[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Write the sidecar, when all files of a folder that is replaced whole are there.

    Args:
        artifact: the folder or file that was made.
        stage: the command that made it, as typed (`python -m lcrec.embed`); it says which kind of
            artifact this is.
        config: the resolved settings, JSON values only, without paths (see `config_dict`).
        inputs: what was read, by role; each is hashed.
        cost: what the making took, such as seconds: no two runs take the same, so it stands in a
            file of its own, and equal runs have equal sidecars.
        **facts: anything a later stage needs to know, JSON values only.
    """
    kind = kind_of(stage)
    record = {
        "kind": kind,
        "format": format_of(kind),
        "lcrec": __version__,
        "stage": stage,
        "config": config,
        "inputs": {
            role: {"path": str(path), "sha256": fingerprint(path)} for role, path in inputs.items()
        },
        **facts,
    }
    if cost is not None:
        write_json(cost_path(artifact), cost, indent=2)
    if artifact.is_dir():
        # A later run replaces the folder, but not what a person has put beside these.
        record["files"] = sorted(path.name for path in artifact.iterdir() if path.name[0] != ".")
    write_json(provenance_path(artifact), record, indent=2)


def kind_of(stage: str) -> str:
    """Return the kind of artifact that a command makes."""
    return KINDS.get(stage) or stage.removeprefix("python -m lcrec.")


def format_of(kind: str) -> int:
    """Return the number of the layout that this version writes a kind of artifact in."""
    return FORMATS.get(kind, 1)


def read_provenance(artifact: Path) -> dict[str, Any] | None:
    """Return the artifact's provenance, or None where there is none.

    A sidecar of version 0.1.0, which has no kind, gets that of its command, in format 1.

    What the making took (`cost_path`) is in it too, as in the sidecars of version 0.1.0.

    Raises:
        InputError: the sidecar is damaged, or of a format that this version does not know.
    """
    path = provenance_path(artifact)
    if not path.exists():
        return None
    record = read_json(path)
    if isinstance(record, dict) and isinstance(record.get("stage"), str):
        record = {"kind": kind_of(record["stage"]), "format": 1} | record
    if not _is_whole(record):
        raise InputError(
            f"{path}: not an lcrec provenance file; delete it and rebuild what it belongs to"
        )
    if record["format"] != format_of(record["kind"]):
        raise InputError(
            f"{path}: format {record['format']!r} of {record['kind']!r}, made by lcrec "
            f"{record['lcrec']}, cannot be read by lcrec {__version__}, which knows format "
            f"{format_of(record['kind'])}; use that version, or delete it and rebuild"
        )
    cost = cost_path(artifact)
    return record | (read_json(cost) if cost.exists() else {})


def _is_whole(record: Any) -> bool:
    """Tell whether a sidecar, which a person may have edited, is what `write_provenance` writes."""
    if not isinstance(record, dict):
        return False
    files, sums = record.get("files", []), [record.get(name, {}) for name in ("earlier", "alike")]
    return (
        all(isinstance(record.get(name), str) for name in ("kind", "lcrec", "stage"))
        and isinstance(record.get("format"), int)
        and isinstance(record.get("config"), dict)
        and isinstance(record.get("prepared", {}), dict)
        and isinstance(record.get("inputs"), dict)
        and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(name), str) for name in ("path", "sha256"))
            for entry in record["inputs"].values()
        )
        and all(isinstance(by_role, dict) for by_role in sums)
        and all(map(_is_texts, [files, *(own for by_role in sums for own in by_role.values())]))
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def is_kind(artifact: Path, stage: str) -> bool:
    """Tell whether `artifact` is a folder of the kind that `stage` makes, in whatever state."""
    record = read_provenance(artifact) if artifact.is_dir() else None
    return record is not None and record["kind"] == kind_of(stage)


def missing_files(artifact: Path, record: dict[str, Any]) -> list[str]:
    """Return the names in a folder's record that are no longer in the folder."""
    return [name for name in record.get("files", ()) if not (artifact / name).exists()]


def is_current(artifact: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> bool:
    """Tell whether `artifact` is there, whole, and what `stage` would make of settings and inputs.

    Kind, format, settings and inputs decide; neither how the command was called then nor the
    version of lcrec does.
    """
    record = read_provenance(artifact) if artifact.exists() else None
    return (
        record is not None
        and not missing_files(artifact, record)
        and record["kind"] == kind_of(stage)
        and record["config"] == json.loads(json.dumps(config))
        and {role: entry["sha256"] for role, entry in record["inputs"].items()}
        == {role: fingerprint(path) for role, path in inputs.items() if path.exists()}
    )


def alike(path: Path, role: str) -> list[str]:
    """Return the fingerprints that count as that of a file, its own last.

    The record of its folder names them, for the file as it was written with the record: a catalogue
    with other prices has the same items, with the same numbers and texts.
    """
    own = fingerprint(path)
    record = read_provenance(path.parent) or {}
    same = record.get("alike", {}).get(role, [])
    return same if own in same else [own]


def require_same_input(artifact: Path, role: str, path: Path, rebuild: str) -> None:
    """Refuse an artifact that was made from another file than the one now in use.

    An artifact without a sidecar, made elsewhere, is accepted, and so is one that was made from
    what counts as the same file (`alike`). `role` is the input's name in it, such as "item", and
    `rebuild` the command that makes the artifact anew.

    Raises:
        InputError: the recorded hash is not the file's.
    """
    record = read_provenance(artifact)
    if record is None or role not in record["inputs"]:
        return
    entry = record["inputs"][role]
    if entry["sha256"] not in alike(path, role):
        raise InputError(
            f"{artifact} was made from another {role} file than {path} (it recorded "
            f"{entry['path']}, sha256 {entry['sha256'][:12]}); rebuild it with: {rebuild}"
        )
