"""Methods that write the next item token by token: a T5 from the tokens of the history.

    in:   the tokens of the last items, oldest first
    out:  the tokens of the next item, likelihood = product over its tokens

Every prefix of a train sequence is an example. The kit's prefix tree and scoring decode it: beams
end in real items only, the encoder's output is computed once per history and expanded over the
beams, and a score is the sum of log-probabilities under the softmax over the whole vocabulary. The
end of a sequence is neither trained nor decoded: every item has the same number of tokens.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import eigsh
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, get_scheduler

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.settings import GenerativeSettings, P5CIDSettings, TIGERSettings
from lcrec.baselines.shared.purchases import purchases
from lcrec.baselines.shared.sequences import cut_examples
from lcrec.baselines.shared.training import Step, train_baseline
from lcrec.core.errors import InputError
from lcrec.core.pretrained import T5, load_config, load_pair
from lcrec.data.folder import Interactions, unit_rows
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.search import search
from lcrec.generate.trie import ItemTrie
from lcrec.index.item_index import ItemIndex

PAD = 0  # also what the decoder starts from, as in T5
HEAD_DIM = 64  # of T5 in all its sizes, and of TIGER
CLIP = 1.0  # the largest norm of a gradient, that of both families' code
BATCHES_TO_SORT = 64  # among which histories of a length come together
PROMPTS_AT_ONCE = {"cpu": 16}  # what its beams keep in memory is 25 to 50 MB per history
PROMPTS_ELSEWHERE = 256


class Prefixes:
    """The examples in train sequences: every item but the first, with what came before it."""

    def __init__(self, train: Interactions, max_history: int) -> None:
        examples = cut_examples(train, max_history, "prefixes")
        self.items = train.items
        self.ends = examples.stops  # where the target stands
        self.lengths = examples.stops - examples.starts

    def __len__(self) -> int:
        return len(self.ends)

    def batches(
        self, batch_size: int, rng: np.random.Generator
    ) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Yield every example once: histories, oldest first, and targets int32 [batch].

        Their order is drawn, but some batches at a time are sorted by length to save padding.
        """
        order = rng.permutation(len(self))
        for window in range(0, len(order), batch_size * BATCHES_TO_SORT):
            chosen = order[window : window + batch_size * BATCHES_TO_SORT]
            chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
            starts = np.arange(0, len(chosen), batch_size)
            for start in rng.permutation(starts):
                rows = chosen[start : start + batch_size]
                ends, lengths = self.ends[rows], self.lengths[rows]
                histories = [
                    self.items[end - length : end]
                    for end, length in zip(ends, lengths, strict=True)
                ]
                yield histories, self.items[ends]


class GenerativeBaseline(Baseline):
    """A T5 over the tokens of an index; a subclass says which index, and may build another T5."""

    settings: GenerativeSettings
    schedule: ClassVar[str]
    suffix: tuple[int, ...] = ()  # token ids that every history is followed by

    @property
    def max_list_length(self) -> int | None:
        """As many items as there are beams."""
        return self.settings.beams

    @abstractmethod
    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the tokens that items are spelt with."""

    def build(self, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        """Return a T5 with random weights, and the id of the first of `num_tokens` item tokens."""
        chosen = self.settings
        shape: dict[str, Any] = {
            "vocab_size": 1 + num_tokens,
            "d_model": chosen.dim,
            "d_kv": HEAD_DIM,
            "d_ff": chosen.hidden,
            "num_layers": chosen.layers,
            "num_heads": chosen.heads,
            "dropout_rate": chosen.dropout,
            "pad_token_id": PAD,
            "decoder_start_token_id": PAD,
            "eos_token_id": None,
        }
        return T5ForConditionalGeneration(T5Config(**shape)), 1

    def fit(self, data: TrainingData) -> None:
        """Train to the best validation NDCG@10."""
        chosen = self.settings
        examples = Prefixes(data.train, chosen.max_history)
        torch.manual_seed(self.seed)
        self._set_up(self.spell(data))
        updates = -(-len(examples) // chosen.batch_size) * chosen.epochs
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=chosen.learning_rate,
            weight_decay=chosen.weight_decay,
            fused=True,  # a third of the time, which is a fifth of a step in bf16
        )
        schedule = get_scheduler(self.schedule, optimizer, int(chosen.warmup * updates), updates)
        rng = np.random.default_rng(self.seed)
        asked = data.valid
        if asked is not None:
            asked = asked.sample(chosen.valid_users or None, self.seed)

        kind, half = torch.device(self.device).type, chosen.precision == "bf16"

        def losses() -> Iterator[Step]:
            for histories, targets in examples.batches(chosen.batch_size, rng):
                input_ids, mask = self._encode(histories)
                labels = torch.from_numpy(self.token_ids[targets]).to(self.device)
                with torch.autocast(kind, torch.bfloat16, enabled=half):
                    output = self.network(input_ids=input_ids, attention_mask=mask, labels=labels)
                yield output.loss, len(targets)

        def step() -> None:
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
            optimizer.step()
            schedule.step()

        data = replace(data, valid=asked)
        self.log = train_baseline(self, data, self.network, optimizer, losses, step=step)

    def _set_up(self, index: ItemIndex) -> None:
        """Make the network for an index, with fresh weights."""
        self.index = index
        self.network, first = self.build(len(index.vocabulary))
        module: nn.Module = self.network
        module.to(self.device)
        self.token_ids = first + index.code_columns
        self.trie = ItemTrie.build(self.token_ids).to(self.device)

    def _encode(self, histories: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask, int64 [batch, length], padded on the left."""
        recent = [history[-self.settings.max_history :] for history in histories]
        depth = self.token_ids.shape[1]
        width = depth * max(map(len, recent))
        ids = np.full((len(recent), width + len(self.suffix)), PAD, dtype=np.int64)
        ids[:, width:] = self.suffix
        mask = np.ones_like(ids)
        for row, history in enumerate(recent):
            start = width - depth * len(history)
            ids[row, start:width] = self.token_ids[history].ravel()
            mask[row, :start] = 0
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Return the beams' log-probabilities, float32 [batch, num_items]; -inf elsewhere."""
        return self.score_without(users, histories, None)

    def score_without(
        self, users: np.ndarray, histories: list[np.ndarray], exclude: list[np.ndarray] | None
    ) -> np.ndarray:
        """Return the same of a search that finds none of these items."""
        self.network.eval()
        scores = np.full((len(histories), len(self.index)), -np.inf, dtype=np.float32)
        by_length = np.argsort([len(history) for history in histories], kind="stable")
        at_once = PROMPTS_AT_ONCE.get(torch.device(self.device).type, PROMPTS_ELSEWHERE)
        for start in range(0, len(by_length), at_once):
            rows = by_length[start : start + at_once]
            input_ids, mask = self._encode([histories[row] for row in rows])
            beams = min(self.settings.beams, len(self.index))
            leaf_filter = None
            if exclude is not None:
                deny = [exclude[row] for row in rows]
                leaf_filter = LeafFilter.build(self.trie, len(rows), deny=deny)
            found = search(self.network, input_ids, mask, self.trie, beams, leaf_filter=leaf_filter)
            items, values = found.items.cpu().numpy(), found.scores.cpu().numpy()
            place, beam = np.nonzero(items >= 0)
            scores[rows[place], items[place, beam]] = values[place, beam]
        return scores

    def state(self) -> dict[str, np.ndarray]:
        """Return the weights, those that are shared once, and the index."""
        weights = {
            name: value.detach().cpu().numpy() for name, value in self.network.named_parameters()
        }
        sizes = np.array(self.index.level_sizes, dtype=np.int32)
        return {"index.codes": self.index.codes, "index.level_sizes": sizes, **weights}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Take weights and index.

        Raises:
            ValueError: they are of another catalogue, or of other settings.
        """
        codes = state["index.codes"]
        if len(codes) != data.num_items:
            raise ValueError(f"it has {len(codes)} items, the catalogue {data.num_items}")
        self._set_up(ItemIndex(codes, tuple(state["index.level_sizes"].tolist())))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if state[name].shape != parameter.shape:
                    raise ValueError(f"{name} is {state[name].shape}, not {tuple(parameter.shape)}")
                parameter.copy_(torch.from_numpy(state[name]))
        self.network.eval()


class TIGER(GenerativeBaseline):
    """TIGER: a small T5 that writes the codes of the next item (Rajput et al. 2023).

    NeurIPS 2023, arXiv 2305.05065. The codes are those of an item index, whose last level may be
    one that only tells items with the same codes apart, as in the paper: `python -m lcrec.quantize
    --kind tiger` makes such an index, and one made elsewhere in which items share a path is given
    that level when it is read. The paper's token for the user, one of 2,000 by hash, is left out,
    as in LETTER (Wang et al. 2024), whose code the defaults are from.
    """

    Settings = TIGERSettings
    schedule: ClassVar[str] = "cosine"

    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the index that was given."""
        assert data.index is not None
        return data.index


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

    labels = KMeans(clusters, n_init=4, random_state=seed).fit_predict(unit_rows(vectors))
    return labels.astype(np.int64)


def _even(order: np.ndarray, parts: int) -> np.ndarray:
    """Return int64 [nodes]: the part of each when their order is cut into parts of one size."""
    labels = np.empty(len(order), dtype=np.int64)
    for label, chosen in enumerate(np.array_split(order, min(parts, len(order)))):
        labels[chosen] = label
    return labels


QUESTION = "What will the user buy next?"
REMEDY = "name a folder that holds a T5"


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
    """P5-CID: a T5 over paths of items made from who bought what (Hua et al. 2023).

    "How to Index Item IDs for Recommendation Foundation Models" (SIGIR-AP 2023, arXiv 2305.06569).
    The paths come from recursive spectral clustering, `collaborative_index`: items are nodes, and
    an edge weighs how many train sequences hold both. The nodes are clustered, each cluster of more
    items than a leaf may have is clustered again within its own part of the graph, and the items of
    a leaf are numbered. So items that are bought together begin with the same codes.

        path = code of the cluster at each level, filled up to the deepest, then number in the leaf

    What the paper leaves open: items without an edge within their cluster, such as those never
    bought, go to a branch of their own, cut evenly in the order of ids; where clustering brings
    nothing, or has gone `SPECTRAL_LEVELS` deep, a cluster is cut evenly along its second
    eigenvector instead. The eigenvectors are those of the sparse D^-1/2 W D^-1/2, so no items x
    items matrix is dense.

    As in P5, the tokens of the k-th item of a history share one more embedding, number k ("whole
    word"). The published runs start from the weights of T5-small: `--base DIR` takes such a folder,
    whose history is then followed by a question in words. Without it the weights are random, and
    the settings give the shape, by default T5-small's. Reads and writes nothing but `--base`.
    """

    Settings = P5CIDSettings
    schedule: ClassVar[str] = "linear"
    settings: P5CIDSettings

    def spell(self, data: TrainingData) -> ItemIndex:
        """Return the collaborative index of the train sequences.

        Raises:
            InputError: `--base` is no T5, which the clustering need not be waited for.
        """
        chosen = self.settings
        if chosen.base is not None:
            self._require_t5(chosen.base)
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

    def _require_t5(self, base: Path) -> None:
        if not base.is_dir():
            raise InputError(f"--base {base}: no such folder; {REMEDY}")
        kind = load_config("--base", base, kind=T5, remedy=REMEDY).model_type
        if kind != "t5":
            raise InputError(f"--base {base}: a T5 is needed, found {kind}")

    def _pretrained(self, base: Path, num_tokens: int) -> tuple[T5ForConditionalGeneration, int]:
        network, tokenizer = load_pair("--base", base, T5, remedy=REMEDY, dtype=torch.float32)
        assert isinstance(network, T5ForConditionalGeneration)
        first = network.config.vocab_size
        network.resize_token_embeddings(first + num_tokens)
        self.suffix = tuple(tokenizer(QUESTION).input_ids)
        return network, first
