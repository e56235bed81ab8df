"""How good an item index is, in figures: what `report.json` holds.

Works on the codes alone, however they were made; embeddings, labels and titles add what can be
known with them, and the RQ-VAE that made the codes says how well they stand for the embeddings
(`measure_fit`). A depth is a number of leading codes: items that share them share a prefix, a
branch of the tree. Wherever chance alone gives a non-zero figure, the chance level stands beside
it: of the same tree with its items shuffled.
"""

import math
from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcrec.core.console import ProgressBar
from lcrec.data.folder import Items
from lcrec.index.assignment import shared_rows
from lcrec.index.item_index import find_conflicts, token_name
from lcrec.index.rqvae import RQVAE
from lcrec.index.rqvae_training import explained_variance

NEIGHBOURS = 10
# Multiplications that the search for neighbours may cost, some ten seconds of one core, and the
# items it asks for at least, however many there are.
SEARCH_BUDGET = 1e11
LEAST_QUERIES = 500
CELLS = 2**24  # similarities in memory at once
SHUFFLES = 5
LEAST_SHARING = 10  # items that share a prefix; of fewer nothing is said
EXAMPLES = 3


def measure_index(
    codes: np.ndarray,
    level_sizes: Sequence[int],
    *,
    embeddings: np.ndarray | None = None,
    collaborative: np.ndarray | None = None,
    items: Items | None = None,
    fit: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all figures of an index, JSON values only.

    A figure "per level" or "per depth" is a list, the first level first. What cannot be known is
    absent, and `left_out` says why.

    Args:
        codes: int [items, levels]; rows may be alike, as in an index made elsewhere.
        embeddings: float [items, dim], finite.
        collaborative: what purchases say of the items, float [items, width], finite; items whose
            rows are zero are left out.
        items: the catalogue, for titles and labels.
        fit: what `measure_fit` says of the model that made the codes.
        seed: decides which items are asked for their neighbours, and the shuffles of chance.
    """
    groups = prefix_groups(codes)
    report = {**_tree(codes, level_sizes, groups), **_use(codes)}
    left_out = {}
    if fit is None:
        left_out["explained_variance"] = "needs the RQ-VAE that made the codes, if one did"
    else:
        report |= fit
    shares_prefixes = report["distinct_prefixes"][0] < len(codes)
    if embeddings is None:
        left_out["neighbours"] = "needs the items' embeddings (--embeddings)"
    elif not shares_prefixes:
        left_out["neighbours"] = "no two items share a code that could bring them together"
    else:
        report["variance_between_prefixes"] = [
            variance_between(group, embeddings) for group in groups
        ]
        report["neighbours"] = _neighbours(groups, embeddings, seed)
    if collaborative is not None and shares_prefixes:
        known = collaborative.any(axis=1)
        own = [np.unique(group[known], return_inverse=True)[1] for group in groups]
        report["collaborative_neighbours"] = _neighbours(own, collaborative[known], seed)
    if items is None:
        left_out["labels"] = "needs the items' categories (--data)"
        left_out["branches"] = "needs the items' titles (--data)"
    elif not shares_prefixes:
        left_out["labels"] = left_out["branches"] = "no two items share a code"
    else:
        field, labels = choose_labels(items)
        if field:
            report["labels"] = _labels(groups, field, labels, seed)
        else:
            left_out["labels"] = "the catalogue has no categories or brands that items share"
        report["branches"] = _branches(codes, groups, items)
    return {**report, "left_out": left_out}


def prefix_groups(codes: np.ndarray) -> list[np.ndarray]:
    """Return which prefix each item has at each depth, numbered from 0: int64 [items] per depth.

    Args:
        codes: int [items, levels].
    """
    groups, group = [], np.zeros(len(codes), dtype=np.int64)
    for level in codes.T.astype(np.int64):
        # One number for prefix and code together: much faster to sort than rows.
        _, group = np.unique(group * (level.max() + 1) + level, return_inverse=True)
        groups.append(group)
    return groups


def variance_between(group: np.ndarray, embeddings: np.ndarray) -> float | None:
    """Return the share of variance that knowing an item's group explains, beyond chance.

    With n items in k groups, chance alone explains (k - 1) / (n - 1); the share is rescaled so
    that chance is 0 and full knowledge 1 (the adjusted coefficient of determination). None where
    every item is a group, or the embeddings do not vary.

    Args:
        group: int64 [items], numbered from 0 without gaps.
        embeddings: float [items, dim].
    """
    counts = np.bincount(group)
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    between = total = 0.0
    for start in range(0, embeddings.shape[1], 64):  # in slices: a copy of all could be large
        part = embeddings[:, start : start + 64].astype(np.float64)
        part -= part.mean(axis=0)
        total += (part**2).sum()
        sums = np.add.reduceat(part[order], starts, axis=0)
        between += (sums**2 / counts[:, None]).sum()
    if len(group) - len(counts) < LEAST_SHARING or total <= 1e-12 * embeddings.size:
        return None
    return float(1 - (1 - between / total) * (len(group) - 1) / (len(group) - len(counts)))


def nearest_neighbours(embeddings: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return the nearest other items by cosine, int64 [queries, count], in no particular order.

    The search is exact; memory is bounded by slices of the queries.

    Args:
        embeddings: float [items, dim].
        queries: int [queries], items.
        count: how many neighbours, less than the items.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))
    scale = 1 / np.maximum(norms, 1e-12)
    found = np.empty((len(queries), count), dtype=np.int64)
    step = max(1, CELLS // len(embeddings))
    with ProgressBar(len(queries), "neighbours", "items", delay=1, leave=False) as bar:
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            similarity = (embeddings[part] @ embeddings.T) * scale
            similarity[np.arange(len(part)), part] = -np.inf
            found[start : start + step] = np.argpartition(-similarity, count - 1)[:, :count]
            bar.update(len(part))
    return found


def neighbours_kept(
    group: np.ndarray, queries: np.ndarray, neighbours: np.ndarray
) -> dict[str, float]:
    """Return how many of an item's neighbours share its group, as mean shares over the queries.

    Args:
        group: int64 [items], numbered from 0 without gaps.
        queries: int [queries], the items that were asked for their neighbours.
        neighbours: int [queries, count].

    Returns:
        `kept`; `chance`, of the same groups with their items shuffled (exact, not sampled); and
        `most`, what the sizes of the groups allow at best.
    """
    counts = np.bincount(group)
    count, items = neighbours.shape[1], len(group)
    others = counts[group[queries]] - 1
    return {
        "kept": float((group[neighbours] == group[queries, None]).mean()),
        "chance": float((counts * (counts - 1.0)).sum() / (items * (items - 1.0))),
        "most": float(np.minimum(others, count).mean() / count),
    }


def choose_labels(items: Items) -> tuple[str, np.ndarray]:
    """Return the field that tells kinds of items apart, and the label it gives each item.

    `categories` run from general to special, by commas. As few of the leading ones are used as
    leave at most half of the items under one label: the name of a shop's one department tells
    nothing. Where no two items, or all of them, share their categories, the `brand` is used.

    Returns:
        The field, empty where neither will do, and int64 [items], -1 for an item without.
    """
    paths = []
    for item in range(len(items)):
        words = (word.strip() for word in items.text(item, "categories").split(","))
        paths.append(tuple(word for word in words if word))
    chosen: list[Any] = []
    for depth in range(1, max(map(len, paths)) + 1):
        labels: list[Any] = [path[:depth] for path in paths]
        if _tell_apart(labels):
            chosen = labels
            counts = Counter(filter(None, labels))
            if max(counts.values()) <= counts.total() / 2:
                break
    field = "categories"
    if not chosen:
        chosen, field = [items.text(item, "brand") for item in range(len(items))], "brand"
        if not _tell_apart(chosen):
            return "", np.full(len(items), -1)
    numbers = {label: number for number, label in enumerate(sorted(set(filter(None, chosen))))}
    return field, np.array([numbers.get(label, -1) for label in chosen])


def _tell_apart(labels: list[Any]) -> bool:
    """Tell whether there are several labels, and some that items share."""
    given = [label for label in labels if label]
    return 1 < len(set(given)) < len(given)


def purity(group: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of items whose label is the most common one in their group.

    Only items that share their group with another count: one alone is always pure. None where next
    to no items share a group.

    Args:
        group: int64 [items].
        labels: int64 [items], not negative.
    """
    pairs, counts = np.unique(group * (labels.max() + 1) + labels, return_counts=True)
    group = pairs // (labels.max() + 1)
    sizes = np.bincount(group, weights=counts)
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, group, counts)
    shared = sizes > 1
    if sizes[shared].sum() < LEAST_SHARING:
        return None
    return float(largest[shared].sum() / sizes[shared].sum())


def _tree(
    codes: np.ndarray, level_sizes: Sequence[int], groups: list[np.ndarray]
) -> dict[str, Any]:
    """Return what the codes alone tell: conflicts, and the shape of the tree per depth."""
    items = len(codes)
    sizes = [np.bincount(group) for group in groups]
    distinct = [len(size) for size in sizes]
    conflicts = find_conflicts(codes)
    # An extra token that tells items apart counts them: 0, 1, ... under every prefix, and 0 where
    # an item is alone. (In a tree without one alone, every prefix may simply be full.)
    above = groups[-2] if len(groups) > 1 else np.zeros(items, dtype=np.int64)
    under = np.bincount(above)
    highest = np.zeros(len(under), dtype=np.int64)
    np.maximum.at(highest, above, codes[:, -1])
    return {
        "items": items,
        "level_sizes": list(map(int, level_sizes)),
        "conflicts": {
            "items": sum(map(len, conflicts)),
            "groups": len(conflicts),
            "largest": max(map(len, conflicts), default=0),
            "examples": conflicts[:EXAMPLES],
        },
        "last_level_counts": bool((highest + 1 == under).all() and (under == 1).any()),
        "distinct_prefixes": distinct,
        "children_mean": [
            count / parents for parents, count in zip([1, *distinct], distinct, strict=False)
        ],
        "largest_branch": [float(size.max() / items) for size in sizes],
        "items_alone": [float((size == 1).sum() / items) for size in sizes],
        "items_left": [float((size**2.0).sum() / items) for size in sizes],
    }


def _use(codes: np.ndarray) -> dict[str, Any]:
    """Return how the codes of each level are used, whatever stands before them."""
    used, perplexity = [], []
    for level in codes.T:
        counts = np.bincount(level)
        share = counts[counts > 0] / len(level)
        used.append(len(share))
        perplexity.append(math.exp(-(share * np.log(share)).sum()))
    return {"codes_used": used, "perplexity": perplexity}


def _neighbours(groups: list[np.ndarray], embeddings: np.ndarray, seed: int) -> dict[str, Any]:
    """Return `neighbours_kept` per depth; of many items, a sample is asked."""
    items, dim = embeddings.shape
    count = min(NEIGHBOURS, items - 1)
    affordable = max(LEAST_QUERIES, int(SEARCH_BUDGET / (items * dim)))
    queries = np.arange(items)
    if items > affordable:
        sample = np.random.default_rng(seed).choice(items, affordable, replace=False)
        queries = np.sort(sample)
    neighbours = nearest_neighbours(embeddings, queries, count)
    facts = [neighbours_kept(group, queries, neighbours) for group in groups]
    by_name = {name: [fact[name] for fact in facts] for name in facts[0]}
    return {"count": count, "queries": len(queries), **by_name}


def _labels(groups: list[np.ndarray], field: str, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the purity of prefixes per depth, and that of shuffled labels."""
    rng = np.random.default_rng(seed)
    known = labels >= 0
    labels = labels[known]
    shuffled = [rng.permutation(labels) for _ in range(SHUFFLES)]
    pure, chance = [], []
    for group in groups:
        value = purity(group[known], labels)
        by_chance = [purity(group[known], order) for order in shuffled]
        pure.append(value)
        chance.append(None if value is None else float(np.mean(by_chance)))  # type: ignore[arg-type]
    return {
        "field": field,
        "items": int(known.sum()),
        "distinct": len(np.unique(labels)),
        "purity": pure,
        "chance": chance,
    }


def _branches(codes: np.ndarray, groups: list[np.ndarray], items: Items) -> list[dict[str, Any]]:
    """Return example branches of average size, each followed down while items share it."""
    first = groups[0]
    counts = np.bincount(first)
    by_size = np.argsort(-counts, kind="stable")
    # Evenly over the items, not over the branches: most branches may be small.
    places = (np.arange(EXAMPLES) + 0.5) / EXAMPLES * len(codes)
    chosen = by_size[np.searchsorted(np.cumsum(counts[by_size]), places)]
    branches = []
    for start in dict.fromkeys(chosen.tolist()):
        members = np.flatnonzero(first == start)
        for depth, group in enumerate(groups):
            members = members[group[members] == np.bincount(group[members]).argmax()]
            if len(members) == 1:
                break
            shown = members[np.linspace(0, len(members) - 1, min(4, len(members))).astype(int)]
            path = enumerate(codes[members[0], : depth + 1].tolist())
            branches.append(
                {
                    "prefix": "".join(token_name(level, code) for level, code in path),
                    "items": len(members),
                    "titles": [
                        shorten(items.title(int(item)), 70, placeholder=" …") for item in shown
                    ],
                }
            )
    return branches


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
