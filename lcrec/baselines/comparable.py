"""Predictions files of the same users and targets, read to be set against each other.

Public names: `read_comparable`, `lists_of`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.predictions import Predictions, read_predictions, require_comparable


def read_comparable(files: Sequence[Path]) -> list[Predictions]:
    """Read predictions files that answer for the same users and targets of the same data.

    Returns:
        one per file, all with the users of the first in its order.

    Raises:
        InputError: a file is damaged, or two differ in users or targets, or, where they have
            sidecars, in the split or in the hash of the sequences that they were made from.
    """
    records = [_made_from(path) for path in files]
    for path, record in zip(files[1:], records[1:], strict=True):
        for what, value in record.items():
            if records[0].get(what, value) != value:
                raise InputError(
                    f"{files[0]} and {path} come from different {what} ({records[0][what][:12]} "
                    f"and {value[:12]}); give files made from the same --data and the same --split"
                )
    read = [read_predictions(path) for path in files]
    require_comparable({str(path): one for path, one in zip(files, read, strict=True)})
    return [one.in_order_of(read[0].users) for one in read]


def lists_of(
    read: Sequence[Predictions], files: Sequence[Path]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each file's lists, int64 [users, length], and their scores, float32 likewise.

    Raises:
        InputError: a file has several lists per user.
    """
    for path, one in zip(files, read, strict=True):
        if len(one.ranked) > 1:
            raise InputError(
                f"{path}: has a list for each of {len(one.ranked)} wordings; one list per user is "
                "needed, such as python -m lcrec.generate --ensemble writes beside them"
            )
    return [(next(iter(one.ranked.values())), next(iter(one.scores.values()))) for one in read]


def _made_from(path: Path) -> dict[str, str]:
    """Return what a file's sidecar says of its data and split, as far as it has one."""
    record = read_provenance(path)
    if record is None:
        return {}
    found = {}
    if "inter" in record["inputs"]:
        found["sequences"] = str(record["inputs"]["inter"]["sha256"])
    if "split" in record["config"]:
        found["splits"] = str(record["config"]["split"])
    return found
