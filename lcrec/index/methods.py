"""The ways to index a catalogue, behind one contract.

Each takes the same arguments and returns an `Indexing`: a unique path per item, and the model whose
codebooks give the codes their meaning, where they have one. `rq-vae` is LC-Rec's. The rest are for
comparison: `rq-kmeans` and `balanced-kmeans` quantise the embeddings without training, `tiger`
tells items that share a path apart by one more token instead of uniform mapping (Rajput et al.
2023), `random` and `vanilla` (a token per item) know nothing of the items.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lcrec.core.errors import InputError
from lcrec.index.assignment import assign_unique, require_capacity, shared_rows
from lcrec.index.item_index import CODE_DIGITS, number_shared
from lcrec.index.rqvae import RQVAE


@dataclass(frozen=True)
class Indexing:
    """What every way to index returns.

    Attributes:
        codes: int32 [items, levels], no two rows alike.
        level_sizes: how many codes each level has, used or not.
        nearest: int32 [items, model levels], what the model alone would give, rows may be alike;
            None without a model.
        model: encodes items and holds the vectors of the codes, of all levels or of all but the
            last; None where codes stand for nothing.
    """

    codes: np.ndarray
    level_sizes: tuple[int, ...]
    nearest: np.ndarray | None = None
    model: RQVAE | None = None


# Takes embeddings [items, dim], levels, codes, seed, and for the kinds in `TRAINED` the RQ-VAE that
# was trained on these embeddings.
Indexer = Callable[[Tensor, int, int, int, RQVAE | None], Indexing]


def index_by_rqvae(
    embeddings: Tensor, levels: int, codes: int, seed: int, model: RQVAE | None
) -> Indexing:
    """Give each item the path that the RQ-VAE has for it, or one near to it that is free."""
    assert model is not None
    return _unique(model, embeddings)


def index_by_kmeans(
    embeddings: Tensor, levels: int, codes: int, seed: int, model: RQVAE | None
) -> Indexing:
    """Quantise the embeddings themselves by residual k-means."""
    model, _ = _kmeans_model(embeddings, levels, codes, seed, balanced=False)
    return _unique(model, embeddings)


def index_by_balanced_kmeans(
    embeddings: Tensor, levels: int, codes: int, seed: int, model: RQVAE | None
) -> Indexing:
    """Quantise by residual k-means in which the codes of a level share the items evenly."""
    model, chosen = _kmeans_model(embeddings, levels, codes, seed, balanced=True)
    return _unique(model, embeddings, chosen)


def index_with_extra_token(
    embeddings: Tensor, levels: int, codes: int, seed: int, model: RQVAE | None
) -> Indexing:
    """Number the items that share a path of the RQ-VAE by one more level.

    That level has as many codes as the others, or as the largest group needs.
    """
    assert model is not None
    nearest = model.nearest_codes(model.encode_all(embeddings)).numpy().astype(np.int32)
    extra = number_shared(nearest)
    paths = np.column_stack([nearest, extra])
    return Indexing(paths, (codes,) * levels + (max(codes, int(extra.max()) + 1),), nearest, model)


def index_at_random(
    embeddings: Tensor, levels: int, codes: int, seed: int, model: RQVAE | None
) -> Indexing:
    """Draw distinct paths."""
    items = len(embeddings)
    rng = np.random.default_rng(seed)
    if codes**levels <= 2 * items:
        drawn = rng.permutation(codes**levels)[:items]
        paths = np.column_stack(np.unravel_index(drawn, (codes,) * levels))
    else:
        paths = rng.integers(codes, size=(items, levels))
        while (again := shared_rows(paths)).any():
            paths[again] = rng.integers(codes, size=(int(again.sum()), levels))
    return Indexing(paths.astype(np.int32), (codes,) * levels)


def index_by_name(
    embeddings: Tensor, levels: int, codes: int, seed: int, model: RQVAE | None
) -> Indexing:
    """Give each item a token of its own; levels and codes play no part."""
    items = len(embeddings)
    return Indexing(np.arange(items, dtype=np.int32)[:, None], (items,))


INDEXERS: dict[str, Indexer] = {
    "rq-vae": index_by_rqvae,
    "rq-kmeans": index_by_kmeans,
    "balanced-kmeans": index_by_balanced_kmeans,
    "tiger": index_with_extra_token,
    "random": index_at_random,
    "vanilla": index_by_name,
}
TRAINED = ("rq-vae", "tiger")
WITHOUT_MODEL = ("random", "vanilla")


def require_paths(kind: str, items: int, levels: int, codes: int) -> None:
    """Check that an index of this kind has a path for each item.

    Raises:
        InputError: it has fewer, or needs more tokens than can be named; the remedy is named.
    """
    if kind == "vanilla":
        if items > 10**CODE_DIGITS:
            raise InputError(
                f"--kind vanilla: {items} items need as many tokens, and {10**CODE_DIGITS} can be "
                "named; use another kind"
            )
    elif kind != "tiger":  # its last level grows with the need
        require_capacity(items, levels, codes)


def _kmeans_model(
    embeddings: Tensor, levels: int, codes: int, seed: int, *, balanced: bool
) -> tuple[RQVAE, np.ndarray]:
    """Return residual k-means as the untrained RQ-VAE it is, and its codes [items, levels].

    Its latent is the embedding, turned onto its principal axes.
    """
    torch.manual_seed(seed)
    width = embeddings.shape[1]
    model = RQVAE(width, hidden_dims=[], latent_dim=width, num_levels=levels, num_codes=codes)
    chosen = model.initialise(embeddings, seed, balanced=[balanced] * levels, weighted=False)
    return model.eval(), chosen.numpy()


def _unique(model: RQVAE, embeddings: Tensor, nearest: np.ndarray | None = None) -> Indexing:
    assignment = assign_unique(
        model.encode_all(embeddings).numpy(), model.codebooks().detach().numpy(), nearest=nearest
    )
    sizes = (model.num_codes,) * model.num_levels
    return Indexing(assignment.codes, sizes, assignment.nearest, model)
