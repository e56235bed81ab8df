"""P5-CID: a T5 over paths of items made from who bought what (Hua et al. 2023).

"How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023, arXiv 2305.06569). The
paths come from recursive spectral clustering, `collaborative_index`: items are nodes, and an edge
weighs how many train sequences hold both. The nodes are clustered, each cluster of more items than
a leaf may have is clustered again within its own part of the graph, and the items of a leaf are
numbered. So items that are bought together begin with the same codes.

    path = code of the cluster at each level, filled up to the deepest, then the number in the leaf

What the paper leaves open: items without an edge within their cluster, such as those never bought,
go to a branch of their own, cut evenly in the order of ids; where clustering brings nothing, or has
gone `SPECTRAL_LEVELS` deep, a cluster is cut evenly along its second eigenvector instead. The
eigenvectors are those of the sparse D^-1/2 W D^-1/2, so no items x items matrix is dense.

As in P5, the tokens of the k-th item of a history share one more embedding, number k ("whole
word"). The published runs start from the weights of T5-small: `--base DIR` takes such a folder,
whose history is then followed by a question in words. Without it the weights are random, and the
settings give the shape, by default T5-small's. Reads and writes nothing but `--base`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import eigsh
from torch import nn
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

from lcrec.baselines.base import TrainingData
from lcrec.baselines.shared.generative import GenerativeBaseline, GenerativeSettings
from lcrec.baselines.shared.graph import purchases
from lcrec.core.config import option
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


QUESTION = "What will the user buy next?"


@dataclass(frozen=True)
class P5CIDSettings(GenerativeSettings):
    """Shape of T5-small; training, clusters and leaf of the authors' code, whose batch is 2 x 64.

    It trains 20 epochs whatever happens, hence the patience.
    """

    dim: int = option("width of the model", 512, minimum=1)
    layers: int = option("of the encoder, and of the decoder", 6, minimum=1)
    heads: int = option("attention heads, of 64 numbers each", 8, minimum=1)
    hidden: int = option("width of the feed-forward layers", 2048, minimum=1)
    learning_rate: float = option("the highest, of AdamW", 1e-3, minimum=0)
    warmup: float = option("share of updates while it rises", 0.05, minimum=0, maximum=1)
    batch_size: int = option("examples per update", 128, minimum=1)
    epochs: int = option("at most", 20, minimum=1)
    clusters: int = option("parts that a cluster of items is divided into", 10, minimum=2)
    leaf: int = option("the most items of a cluster that is not divided", 500, minimum=1)
    whole_words: bool = option("add an embedding of an item's place to its tokens", True)
    base: Path | None = option(
        "a folder with a pretrained T5; its shape then counts; none: random weights", None
    )


class WholeWords(nn.Module):
    """Token embeddings plus one for the item that a token belongs to, counted from 1.

    Args:
        tokens: the token embeddings, shared with the model.
        first: the id of the first item token; item tokens are all from there on.
        starts: how many of them, from the first on, begin an item.
        most: the most items in an input; were there more, they would share the last number.
    """

    def __init__(self, tokens: nn.Embedding, first: int, starts: int, most: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.words = nn.Embedding(most + 1, tokens.embedding_dim)  # row 0: no item
        self.first, self.starts = first, starts

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return [batch, length, dim] for int64 [batch, length]."""
        is_item = ids >= self.first
        places = (is_item & (ids < self.first + self.starts)).cumsum(dim=1)
        # The trial that a search starts with asks about tokens in any number and order.
        last = self.words.num_embeddings - 1
        return self.tokens(ids) + self.words((places * is_item).clamp(max=last))


class P5CID(GenerativeBaseline):
    """A T5 over collaborative paths."""

    Settings: ClassVar[type] = P5CIDSettings
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {"clusters": (10, 20), "leaf": (200, 500)}
    schedule: ClassVar[str] = "linear"
    settings: P5CIDSettings

    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the collaborative index of the train sequences."""
        chosen = self.settings
        return collaborative_index(
            data.train, data.num_items, chosen.clusters, chosen.leaf, self.seed
        )

    def build(self, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        """Return the T5, random or pretrained, and the id of the first item token."""
        if self.settings.base is None:
            network, first = super().build(num_tokens)
        else:
            network, first = self._pretrained(self.settings.base, num_tokens)
        if self.settings.whole_words:
            starts = self.index.level_sizes[0]
            network.encoder.set_input_embeddings(
                WholeWords(network.shared, first, starts, self.settings.max_history)
            )
        return network, first

    def _pretrained(self, base: Path, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        try:
            kind = AutoConfig.from_pretrained(base, local_files_only=True).model_type
            if kind != "t5":
                raise InputError(f"--base {base}: a T5 is needed, found {kind}")
            tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
            network = T5ForConditionalGeneration.from_pretrained(
                base, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"--base {base}: no pretrained T5 can be read there ({error})"
            ) from None
        first = network.config.vocab_size
        network.resize_token_embeddings(first + num_tokens)
        self.suffix = tuple(tokenizer(QUESTION).input_ids)
        return network, first
