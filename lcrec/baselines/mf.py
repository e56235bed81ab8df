"""Matrix factorisation: a vector per user and item, trained with BPR (Rendle et al. 2009).

It is LightGCN without its graph: zero layers of smoothing.

Reads and writes nothing. Public names: `MatrixFactorisation`, `MatrixFactorisationSettings`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lcrec.baselines.lightgcn import LightGCN, LightGCNSettings


@dataclass(frozen=True)
class MatrixFactorisationSettings(LightGCNSettings):
    """Those of LightGCN; the number of layers is not for setting."""

    layers: int = field(default=0, init=False)


class MatrixFactorisation(LightGCN):
    """A vector per user and item, matched by their dot product."""

    Settings: ClassVar[type] = MatrixFactorisationSettings
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "loss": ("bpr", "info_nce"),
        "learning_rate": (1e-3, 5e-3),
    }
