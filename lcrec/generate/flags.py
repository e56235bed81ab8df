"""The flags that change what a model ranks, of `lcrec generate` and `lcrec serve` alike."""

import math

from lcrec.core.errors import InputError

AUTO = "auto"
COOCCURRENCE = "cooccurrence"
FUSE = (
    "join the model's rankings with counted neighbours (what other customers took near the last "
    "items): a file that `lcrec baselines fuse` wrote, for its weights, or "
    f"'{COOCCURRENCE}', for both alike"
)
CALIBRATE = (
    "subtract this share, such as 0.5, of the log-probability that the model gives an item "
    "whatever the history; auto: the share that ranks validation users best"
)


def share_of(calibrate: str) -> float | None:
    """Return the share that `--calibrate` names; None for `auto`.

    Raises:
        InputError: it is none from 0 to 1.
    """
    if calibrate == AUTO:
        return None
    try:
        share = float(calibrate)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise InputError(f"--calibrate {calibrate}: give a share from 0 to 1, or {AUTO}")
    return share
