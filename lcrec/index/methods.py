"""The ways to index a catalogue.

Each returns an `Indexing`: a unique path per item, and the model whose
codebooks give the codes their meaning, where they have one. `rq-vae` is LC-Rec's. The rest are for
comparison: `rq-kmeans` and `balanced-kmeans` quantise the embeddings without training, `tiger`
tells items that share a path apart by one more token instead of uniform mapping (Rajput et al.
2023), `random` and `vanilla` (a token per item) know nothing of the items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lcrec.core.errors import InputError
from lcrec.index.assignment import assign_unique, require_capacity, shared_rows
from lcrec.index.item_index import CODE_DIGITS, IndexSettings, number_shared
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


def index_items(
    settings: IndexSettings, items: int, embeddings: Tensor | None, model: RQVAE | None
) -> Indexing:
    """Give every item a path of its own, by the kind of index that the settings name.

    Args:
        settings: kind, levels, codes and seed are read.
        embeddings: float32 [items, dim]; None will do where codes stand for nothing.
        model: the RQ-VAE that was trained on them, for a kind that has one.
    """
    kind = settings.kind
    levels, codes = settings.for_items(items).shape
    sizes = (codes,) * levels
    if kind == "vanilla":
        return Indexing(np.arange(items, dtype=np.int32)[:, None], (items,))
    if kind == "random":
        return Indexing(_random_paths(items, levels, codes, settings.seed), sizes)
    assert embeddings is not None
    if kind in ("rq-kmeans", "balanced-kmeans"):
        balanced = kind == "balanced-kmeans"
        model, chosen = _kmeans_model(embeddings, levels, codes, settings.seed, balanced=balanced)
        return _unique(model, embeddings, chosen if balanced else None)
    assert model is not None
    if kind == "rq-vae":
        return _unique(model, embeddings)
    # Items that share a path are numbered by one more level, of as many codes as the others, or as
    # the largest group needs.
    nearest = model.nearest_codes(model.encode_all(embeddings)).numpy().astype(np.int32)
    extra = number_shared(nearest)
    last = max(codes, int(extra.max()) + 1)
    return Indexing(np.column_stack([nearest, extra]), (*sizes, last), nearest, model)


def _random_paths(items: int, levels: int, codes: int, seed: int) -> np.ndarray:
    """Draw distinct paths, int32 [items, levels]."""
    rng = np.random.default_rng(seed)
    if codes**levels <= 2 * items:
        drawn = rng.permutation(codes**levels)[:items]
        paths = np.column_stack(np.unravel_index(drawn, (codes,) * levels))
    else:
        paths = rng.integers(codes, size=(items, levels))
        while (again := shared_rows(paths)).any():
            paths[again] = rng.integers(codes, size=(int(again.sum()), levels))
    return paths.astype(np.int32)


def require_paths(settings: IndexSettings, items: int) -> None:
    """Check that an index of these settings has a path for each item.

    Raises:
        InputError: it has fewer, or needs more tokens than can be named; the remedy is named.
    """
    if settings.kind == "vanilla":
        if items > 10**CODE_DIGITS:
            raise InputError(
                f"--kind vanilla: {items} items need as many tokens, and {10**CODE_DIGITS} can be "
                "named; use another kind"
            )
    elif settings.kind != "tiger":  # its last level grows with the need
        require_capacity(items, *settings.shape)


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
