"""Paths of items from who bought what: recursive spectral clustering (Hua et al. 2023).

The collaborative index of "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP
2023, arXiv 2305.06569). Items are nodes, and an edge weighs how many train sequences hold both. The
nodes are clustered, each cluster of more items than a leaf may have is clustered again within its
own part of the graph, and the items of a leaf are numbered. So items that are bought together begin
with the same codes.

    path = code of the cluster at each level, filled up to the deepest, then the number in the leaf

What the paper leaves open: items without an edge within their cluster, such as those never bought,
go to a branch of their own, cut evenly in the order of ids; where clustering brings nothing, or has
gone `SPECTRAL_LEVELS` deep, a cluster is cut evenly along its second eigenvector instead.

The eigenvectors are those of the sparse D^-1/2 W D^-1/2, so no items x items matrix is dense.

Reads and writes nothing. Public names: `collaborative_index`, `spectral_parts`.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

from lcrec.baselines.graph import purchases
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.index.item_index import ItemIndex

SPECTRAL_LEVELS = 6
MOST_PAIRS = 2 * 10**8  # of items in one sequence; the graph of so many takes up to 2.4 GB
DENSE = 500  # nodes up to which all eigenvectors are found, exactly


def collaborative_index(
    train: Interactions, num_items: int, clusters: int, leaf: int, seed: int
) -> ItemIndex:
    """Return a path for every item; the last level counts the items of a leaf.

    Args:
        train: the sequences that make the graph.
        num_items: the size of the catalogue.
        clusters: parts that a cluster is divided into, at least 2. Two more codes per level stand
            for items without company, and for no further division.
        leaf: the most items of a cluster that is not divided.
        seed: of k-means.

    Raises:
        InputError: the sequences are too long to count their pairs.
    """
    bought = purchases(train, num_items)
    pairs = int((np.diff(bought.indptr).astype(np.int64) ** 2).sum())
    if pairs > MOST_PAIRS:
        raise InputError(
            f"p5cid: the train sequences hold {pairs:,} pairs of items, more than "
            f"{MOST_PAIRS:,}; use fewer users or shorter sequences"
        )
    graph = sparse.csr_array(bought.T @ bought)
    graph.setdiag(0)
    graph.eliminate_zeros()

    alone, undivided = clusters, clusters + 1
    leaves: list[tuple[tuple[int, ...], np.ndarray]] = []
    open_nodes: list[tuple[tuple[int, ...], np.ndarray]] = [((), np.arange(num_items))]
    while open_nodes:
        path, items = open_nodes.pop()
        if len(items) <= leaf:
            leaves.append((path, items))
            continue
        part = graph[items][:, items]
        linked = np.diff(part.indptr) > 0
        if linked.any():
            parts = spectral_parts(
                part[linked][:, linked], clusters, seed, even=len(path) >= SPECTRAL_LEVELS
            )
            labels = np.full(len(items), alone)
            labels[linked] = parts
            if len(np.unique(labels)) == 1:
                labels = spectral_parts(part, clusters, seed, even=True)
        else:
            labels = _even(np.arange(len(items)), clusters)
        open_nodes += [((*path, int(code)), items[labels == code]) for code in np.unique(labels)]

    depth = max(len(path) for path, _ in leaves)
    codes = np.full((num_items, depth + 1), undivided, dtype=np.int32)
    for path, items in leaves:
        codes[items, : len(path)] = path
        codes[items, depth] = np.arange(len(items))
    return ItemIndex(codes, (clusters + 2,) * depth + (int(codes[:, -1].max()) + 1,))


def spectral_parts(
    graph: sparse.csr_array, clusters: int, seed: int, *, even: bool = False
) -> np.ndarray:
    """Divide a graph (Ng, Jordan and Weiss 2001), int64 [nodes], parts from 0.

    Args:
        graph: symmetric weights above 0, [nodes, nodes]; no node without an edge.
        clusters: how many parts; no more than nodes.
        seed: of k-means.
        even: cut along the second eigenvector into parts of one size, instead of k-means.
    """
    nodes = graph.shape[0]
    clusters = min(clusters, nodes)
    wanted = 2 if even else clusters
    roots = graph.sum(axis=1).astype(np.float64) ** -0.5
    scaled = sparse.diags_array(roots) @ graph.astype(np.float64) @ sparse.diags_array(roots)
    if nodes <= max(DENSE, 2 * wanted):
        vectors = np.linalg.eigh(scaled.toarray())[1][:, -wanted:]
    else:
        # The same in every run: near the first eigenvector, and not on it.
        start = 1 / roots + np.linalg.norm(1 / roots) * np.cos(np.arange(nodes)) / nodes**0.5
        _, vectors = eigsh(scaled, k=wanted, which="LA", v0=start, tol=1e-4)
    if even:  # eigh and eigsh give them in rising order
        return _even(np.argsort(vectors[:, 0] * roots, kind="stable"), clusters)
    from sklearn.cluster import KMeans  # slow to load, and only for this

    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return KMeans(clusters, n_init=4, random_state=seed).fit_predict(rows).astype(np.int64)


def _even(order: np.ndarray, parts: int) -> np.ndarray:
    """Return int64 [nodes]: the part of each when their order is cut into parts of one size."""
    labels = np.empty(len(order), dtype=np.int64)
    for label, chosen in enumerate(np.array_split(order, min(parts, len(order)))):
        labels[chosen] = label
    return labels
