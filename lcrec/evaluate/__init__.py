"""Evaluation: metrics of predictions files, and what else a checkpoint can be asked.

The command judges predictions files. `pairs`, `search`, `language` and `templates` ask a checkpoint
(`checkpoint`) itself: target against hard negatives, search by intention, texts, and how much
the prompt template matters.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {"pairwise_accuracy": "pairs", "score_model": "templates"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
