"""Reads the items' vectors out of a baseline that `lcrec baselines METHOD --save DIR` kept.

What customers did, as a vector per item, for whatever else says what items are by vectors: the item
index takes it beside the texts' (`lcrec quantize --collaborative`). Knows of baselines only what
they wrote.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy import sparse

from lcrec.core.artifacts import METHOD_WEIGHTS, find_data
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance, require_same_input
from lcrec.data.folder import LARGEST_VALUE, load_interactions
from lcrec.data.splits import load_split, require_same_split

BASELINES = "python -m lcrec.baselines "
WIDTH = 64  # of vectors that counts are factorised into


def load_collaborative(folder: Path, data: Path, num_items: int) -> np.ndarray:
    """Return what customers' purchases say of each item, float32 [items, dim].

    Vectors as they are from methods that keep one per item (`lightgcn`, `mf`, `sasrec` and the
    other sequential ones); a factorisation of the counts from `cooccurrence` and `itemknn`. Centred
    and scaled to a mean square of 1, over the items that the train sequences hold. The rows of all
    other items are zero: of them nobody knows anything, and what a method has for them is a start
    that was never trained.

    Args:
        folder: what `--save` wrote.
        data: the data folder, whose split is read too.

    Raises:
        InputError: nothing of the kind lies there, it was fitted on another catalogue, other
            interactions or another split, or the method keeps no vectors of items.
    """
    named = f"--collaborative {folder}"
    refit = f"python -m lcrec.baselines lightgcn --data {data} --output X.jsonl --save {folder}"
    record = read_provenance(folder) if folder.is_dir() else None
    path = folder / METHOD_WEIGHTS
    if record is None or not record["stage"].startswith(BASELINES) or not path.is_file():
        raise InputError(f"{named}: holds no fitted baseline; make it with: {refit}")
    method = record["stage"].removeprefix(BASELINES)
    paths, refit = find_data(data), refit.replace(" lightgcn ", f" {method} ")
    for role, file in (("item", paths.item), ("inter", paths.inter)):
        require_same_input(folder, role, file, refit)
    require_same_split(folder, data, refit)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it with: {refit}") from None
    vectors = _item_vectors(state, num_items)
    if vectors is None:
        raise InputError(
            f"{named}: {method} keeps no vector of each of {num_items:,} items; take one that "
            "does, such as lightgcn, sasrec or cooccurrence"
        )
    split = load_split(data, load_interactions(data, num_items))
    known = np.bincount(split.train.items, minlength=num_items) > 0
    own = vectors[known].astype(np.float64)
    if not np.isfinite(own).all() or np.abs(own).max(initial=0) > LARGEST_VALUE:
        raise InputError(
            f"{path}: holds vectors that are not finite, or huge; make it anew: {refit}"
        )
    own -= own.mean(axis=0)
    size = np.sqrt((own**2).mean()) if own.size else 0.0
    if size <= 1e-9:
        raise InputError(f"{path}: the vectors of all items are alike; make it anew: {refit}")
    result = np.zeros(vectors.shape, dtype=np.float32)
    result[known] = own / size
    return result


def _item_vectors(state: dict[str, np.ndarray], num_items: int) -> np.ndarray | None:
    """Return the vectors in what a method saved, float [items, dim]; None where it has none."""
    vectors = state.get("item_vectors")
    if vectors is None and "items.weight" in state:
        table = state["items.weight"]
        # The row after the last item pads histories, and is zero: so many items there were.
        if len(table) > num_items and not table[num_items].any():
            vectors = table[:num_items]
    if vectors is None and {"data", "indices", "indptr"} <= state.keys():
        parts = (state["data"], state["indices"], state["indptr"])
        size = len(state["indptr"]) - 1
        vectors = factorise_counts(sparse.csr_array(parts, shape=(size, size)), WIDTH)
    is_table = vectors is not None and vectors.ndim == 2 and len(vectors) == num_items
    return vectors if is_table else None


def factorise_counts(counts: sparse.csr_array, width: int) -> np.ndarray:
    """Return vectors whose products tell which items stand together, float32 [items, width].

    With S the counts in both directions, the diagonal left out, and n their sum,

        M[i, j] = max(0, log(S[i, j] * n / (S[i, .] * S[., j]))),  M ~ U D V^T,  vectors = U D^1/2

    positive pointwise mutual information by truncated SVD (Levy and Goldberg 2014). Of a catalogue
    with fewer items the vectors are narrower.

    Args:
        counts: not negative, sparse [items, items].
        width: numbers per vector.
    """
    from sklearn.utils.extmath import randomized_svd

    both = sparse.coo_array(counts + counts.T)
    apart = (both.row != both.col) & (both.data > 0)
    rows, columns, values = both.row[apart], both.col[apart], both.data[apart].astype(np.float64)
    sums = np.bincount(rows, values, minlength=both.shape[0])
    information = np.log(values * values.sum() / (sums[rows] * sums[columns]))
    positive = sparse.csr_array((np.maximum(information, 0), (rows, columns)), shape=both.shape)
    width = max(1, min(width, both.shape[0] - 1))
    left, sizes, _ = randomized_svd(positive, width, random_state=0)
    return (left * np.sqrt(sizes)).astype(np.float32)
