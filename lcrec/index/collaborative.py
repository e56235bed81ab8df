"""What an RQ-VAE reads beside the embeddings of texts: the items' collaborative vectors.

`lcrec quantize --collaborative` appends them, scaled, to the embeddings and keeps them beside the
index (`collaborative.npy`), so that whatever encodes items with that index's RQ-VAE reads the same.
"""

from pathlib import Path

import numpy as np

from lcrec.core.artifacts import COLLABORATIVE, read_array
from lcrec.core.errors import InputError


def scale_beside(embeddings: np.ndarray, collaborative: np.ndarray, weight: float) -> np.ndarray:
    """Return collaborative vectors whose variance is `weight` times that of the embeddings.

    Args:
        embeddings: float32 [items, dim].
        collaborative: float32 [items, width]; rows of zeros count as the mean.
        weight: of the whole variance, the sum over columns.
    """
    ours = collaborative.astype(np.float64).var(axis=0).sum()
    theirs = embeddings.astype(np.float64).var(axis=0).sum()
    return (collaborative * np.sqrt(weight * theirs / max(ours, 1e-12))).astype(np.float32)


def model_inputs(folder: Path, embeddings: np.ndarray) -> np.ndarray:
    """Return what the RQ-VAE in an index folder reads of the items, float32 [items, dim].

    These are the embeddings, and what was appended to them when the index was made: of an item that
    joined later nothing is known, which zeros say.

    Raises:
        InputError: what was appended belongs to more items than there are.
    """
    path = folder / COLLABORATIVE
    if not path.exists():
        return embeddings
    known = read_array(path)
    if known.ndim != 2 or len(known) > len(embeddings):
        raise InputError(
            f"{path} has shape {list(known.shape)}, and there are {len(embeddings)} items; make "
            "the index anew with python -m lcrec.quantize --collaborative"
        )
    joined = np.zeros((len(embeddings), known.shape[1]), dtype=np.float32)
    joined[: len(known)] = known
    return np.concatenate([embeddings, joined], axis=1)
