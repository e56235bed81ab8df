"""TIGER: a small T5 that writes the codes of the next item (Rajput et al. 2023).

NeurIPS 2023, arXiv 2305.05065. The codes are those of an item index, whose last level may be one
that only tells items with the same codes apart, as in the paper: `python -m lcrec.quantize --kind
tiger` makes such an index, and one made elsewhere in which items share a path is given that level
when it is read. The paper's token for the user, one of 2,000 by hash, is left out, as in LETTER
(Wang et al. 2024), whose code the defaults are from.

Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from lcrec.baselines.base import Need, TrainingData
from lcrec.baselines.shared.generative import GenerativeBaseline, GenerativeSettings
from lcrec.index.item_index import ItemIndex


@dataclass(frozen=True)
class TIGERSettings(GenerativeSettings):
    """Those of LETTER's TIGER, but for a batch of 256, not 1,024 over two GPUs and two steps."""


class TIGER(GenerativeBaseline):
    """A T5 from random weights over the codes of an item index."""

    Settings: ClassVar[type] = TIGERSettings
    needs: ClassVar[frozenset[Need]] = frozenset({"index"})
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (5e-4, 1e-3, 3e-3),
        "dropout": (0.1, 0.2),
    }
    schedule: ClassVar[str] = "cosine"

    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the index that was given."""
        assert data.index is not None
        return data.index
