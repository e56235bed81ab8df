"""The language model: base, adapters, item token rows, training, checkpoints, cost.

`recipe` holds what a fine-tune is told and what it reads. `base` loads a base model and adds
adapters, `item_rows` extends its vocabulary by the item tokens, `finetuning` puts model, rows and
trainer together, `trainer` tunes it, `run_folder` keeps an unfinished run apart from a finished
one, `checkpoint` saves and loads the result. `cost` estimates memory and time, and `probe` tries
which attention masks a model family takes.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "Checkpoint": "checkpoint",
    "RecommenderTrainer": "trainer",
    "add_adapter": "base",
    "load_base": "base",
    "load_checkpoint": "checkpoint",
    "resize_embeddings": "item_rows",
    "save_checkpoint": "checkpoint",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
