"""Methods to compare with, behind one contract; `lcrec baselines NAME` runs one.

A method is a subclass of `Baseline` in `methods/`, its settings in `settings.py` and a line in
`METHODS`. `runs/` fits and ranks with one, `commands/` do more than run one.
"""

from lcrec.core.lazy import lazy_exports

__all__ = ["METHODS", "Baseline", "TrainingData", "find_method", "make_method"]

__getattr__ = lazy_exports(
    __name__,
    {
        "METHODS": "base",
        "Baseline": "base",
        "TrainingData": "base",
        "find_method": "base",
        "make_method": "base",
    },
)
