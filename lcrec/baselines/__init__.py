"""Methods to compare with, behind one contract; `python -m lcrec.baselines NAME` runs one.

A method is one file here with a subclass of `Baseline`, and one line in `BASELINES`.

Public names: `Baseline`, `BASELINES`.
"""

from lcrec.baselines.base import Baseline
from lcrec.baselines.cooccurrence import Cooccurrence
from lcrec.baselines.popularity import Popularity

__all__ = ["BASELINES", "Baseline"]

BASELINES: dict[str, type[Baseline]] = {
    "popularity": Popularity,
    "cooccurrence": Cooccurrence,
}
