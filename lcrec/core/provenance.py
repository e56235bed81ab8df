"""What an artifact was made of: the sidecar `lcrec.json`, written last and checked before use."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lcrec.core.artifacts import PROVENANCE, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.version import __version__


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        # The sidecar tells of the folder's making, not of its content.
        if file.is_file() and file.name != PROVENANCE:
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\0".encode())
    return digest.hexdigest()


def provenance_path(artifact: Path) -> Path:
    """Return an artifact's sidecar: `lcrec.json` in a folder, `X.lcrec.json` beside `X.jsonl`."""
    is_file = artifact.suffix in (".json", ".jsonl", ".parquet")
    return artifact.with_suffix(f".{PROVENANCE}") if is_file else artifact / PROVENANCE


def write_provenance(
    artifact: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path], **facts: Any
) -> None:
    """Write the sidecar: last, or before the one file without which the artifact is none.

    Args:
        artifact: the folder or file that was made.
        stage: the command that made it, as typed (`python -m lcrec.embed`).
        config: the resolved settings, JSON values only, without paths (see `config_dict`).
        inputs: what was read, by role; each is hashed.
        **facts: anything a later stage needs to know, JSON values only.
    """
    record = {
        "lcrec": __version__,
        "stage": stage,
        "config": config,
        "inputs": {
            role: {"path": str(path), "sha256": fingerprint(path)} for role, path in inputs.items()
        },
        **facts,
    }
    write_json(provenance_path(artifact), record, indent=2)


def read_provenance(artifact: Path) -> dict[str, Any] | None:
    """Return the artifact's provenance, or None where there is none.

    Raises:
        InputError: the sidecar is damaged.
    """
    path = provenance_path(artifact)
    if not path.exists():
        return None
    record = read_json(path)
    whole = (
        isinstance(record, dict)
        and record.keys() >= {"lcrec", "stage", "config", "inputs"}
        and isinstance(record["inputs"], dict)
        and all(
            isinstance(entry, dict) and entry.keys() >= {"path", "sha256"}
            for entry in record["inputs"].values()
        )
    )
    if not whole:
        raise InputError(
            f"{path}: not an lcrec provenance file; delete it and rebuild what it belongs to"
        )
    return record


def is_current(artifact: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> bool:
    """Tell whether `artifact` is what `stage` would make of these settings and inputs."""
    record = read_provenance(artifact)
    return (
        record is not None
        and (record["lcrec"], record["stage"]) == (__version__, stage)
        and record["config"] == json.loads(json.dumps(config))
        and {role: entry["sha256"] for role, entry in record["inputs"].items()}
        == {role: fingerprint(path) for role, path in inputs.items() if path.exists()}
    )


def require_same_input(artifact: Path, role: str, path: Path, rebuild: str) -> None:
    """Refuse an artifact that was made from another file than the one now in use.

    Args:
        artifact: the folder or file; one without a sidecar (made elsewhere) is taken as it is.
        role: the input's role in the sidecar, such as "item".
        path: the file in use now.
        rebuild: the command that makes the artifact anew.

    Raises:
        InputError: the recorded hash is not the file's.
    """
    record = read_provenance(artifact)
    if record is None or role not in record["inputs"]:
        return
    entry = record["inputs"][role]
    if entry["sha256"] != fingerprint(path):
        raise InputError(
            f"{artifact} was made from another {role} file than {path} (it recorded "
            f"{entry['path']}, sha256 {entry['sha256'][:12]}); rebuild it with: {rebuild}"
        )
