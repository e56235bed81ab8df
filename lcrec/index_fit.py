"""How well a trained RQ-VAE's codes stand for the embeddings, and what uniqueness cost.

Public names: `measure_fit`, `load_rqvae`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcrec.assignment import shared_rows
from lcrec.core.errors import InputError
from lcrec.rqvae import RQVAE
from lcrec.rqvae_training import explained_variance


def load_rqvae(weights: Path, width: int) -> RQVAE:
    """Read the RQ-VAE beside an index, for embeddings `width` wide.

    Raises:
        InputError: it was trained on embeddings of another width, or as `RQVAE.load`.
    """
    model = RQVAE.load(weights)
    if width != len(model.mean):
        raise InputError(
            f"--embeddings: {width} wide, but {weights} was trained on {len(model.mean)}-wide "
            "ones; name those that the index was made from (python -m lcrec.embed --add encodes "
            "new items as the old were)"
        )
    return model


@torch.no_grad()
def measure_fit(
    model: RQVAE, embeddings: Tensor, codes: np.ndarray, nearest: np.ndarray | None = None
) -> dict[str, Any]:
    """Return what only the model knows of an index, as JSON values.

    Distortion is the squared distance between what was quantised and what the codes stand for, as
    a share of the variance of what was quantised (an RQ-VAE quantises its latent). Levels beyond
    the model's, such as one that tells items apart, stand for nothing.

    Args:
        model: the one whose codebooks the index was made with.
        embeddings: float32 [items, dim].
        codes: int [items, levels], the index.
        nearest: int [items, model levels], the codes before each item got its own; by default the
            nearest ones.
    """
    vectors = model.encode_all(embeddings)
    if nearest is None:
        nearest = model.nearest_codes(vectors).numpy()
    assigned = codes[:, : nearest.shape[1]]
    before, after = (torch.from_numpy(rows.astype(np.int64)) for rows in (nearest, assigned))
    spread = (vectors - vectors.mean(0)).double().pow(2).sum().clamp_min(1e-12)

    def distortion(chosen: Tensor) -> float:
        residual = vectors
        for codebook, code in zip(model.codebooks(), chosen.T, strict=True):
            residual = residual - codebook[code]
        return (residual.double().pow(2).sum() / spread).item()

    return {
        "explained_variance": explained_variance(model, embeddings, before),
        "explained_variance_assigned": explained_variance(model, embeddings, after)[-1],
        "conflict_rate_before_assignment": float(shared_rows(nearest).mean()),
        "items_moved": int((assigned != nearest).any(axis=1).sum()),
        "distortion_nearest": distortion(before),
        "distortion_assigned": distortion(after),
    }
