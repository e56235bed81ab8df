"""Item indices: from embeddings to a unique sequence of codes per item, and how good they are.

Embeddings (`encoders`) become codes by an RQ-VAE (`rqvae`, `rqvae_training`) or by one of the other
ways in `methods`, with `clustering` below both. `assignment` sees to it that no two items share
their codes. The result is an `ItemIndex` (`item_index`), which every later stage reads; `quality`
measures it, `verdict` judges the figures, `page` shows them, `tree` answers for one prefix or item,
and `revise` adds or repairs items.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "ItemIndex": "item_index",
    "ItemTree": "tree",
    "RQVAE": "rqvae",
    "assign_unique": "assignment",
    "load_encoder": "encoders",
    "measure_index": "quality",
    "read_codes": "item_index",
    "train_rqvae": "rqvae_training",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
