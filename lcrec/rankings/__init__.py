"""Ranked items on disk, and everything that is measured on them or derived from them.

Whatever recommends writes `predictions.jsonl` (`predictions`): users, targets, ranked items. From
there on the method does not matter: `metrics` measures them, `evaluation` measures whole files side
by side, `comparison` tests one against another and `comparison_page` shows it, `overlap` counts
what two find together and apart, and `fusion` and `adaptive` join several rankings into one.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "METRICS": "metrics",
    "Predictions": "predictions",
    "compare_entries": "comparison",
    "evaluate_predictions": "evaluation",
    "fuse": "fusion",
    "join_lists": "fusion",
    "measure_lists": "metrics",
    "read_predictions": "predictions",
    "write_predictions": "predictions",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
