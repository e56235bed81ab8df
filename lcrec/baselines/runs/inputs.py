"""What the commands read: a data folder, its split, and what else a method needs.

A folder without a catalogue (`<Name>.item.json`) will do for methods that need no texts; its items
are then those of the sequences.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.baselines.base import TrainingData
from lcrec.baselines.settings import Need
from lcrec.core.artifacts import EMBEDDINGS, find_data, index_path, read_array
from lcrec.core.errors import InputError
from lcrec.core.provenance import require_same_input
from lcrec.data.folder import Interactions, check_embeddings, load_interactions, load_items
from lcrec.data.splits import Split, load_split
from lcrec.index.item_index import ItemIndex, find_conflicts, number_shared, read_codes

DEVICE_HELP = "cpu, cuda, cuda:N or mps; none: a GPU where there is one, on a Mac the CPU"
EMBEDDINGS_HELP = "the folder that holds embeddings.npy, for the methods that need it"
INDEX_HELP = "the folder that holds index.json, or such a file, for the methods that need it"


@dataclass(frozen=True)
class Inputs:
    """A data set ready to train and to judge on.

    Attributes:
        name: of the data set.
        training: what methods learn from.
        interactions: the whole sequences.
        split: of them, as the data folder has it.
        files: what was read, by role, for the provenance.
    """

    name: str
    training: TrainingData
    interactions: Interactions
    split: Split
    files: dict[str, Path]


def load_inputs(
    folder: Path,
    embeddings: Path | None,
    needs: Iterable[Need],
    asker: str,
    *,
    index: Path | None = None,
) -> Inputs:
    """Read what methods need.

    Args:
        folder: the data folder.
        embeddings: the folder that holds `embeddings.npy`, or the file; None: there is none.
        needs: of the methods that will be fitted.
        asker: the methods' names, for errors.
        index: the folder that holds `index.json`, or such a file; None: there is none. Where
            items share a path, one more level numbers them (Rajput et al. 2023, section 3.1).

    Raises:
        InputError: a file is missing or malformed, or they do not belong together.
    """
    needs = set(needs)
    paths = find_data(folder)
    has_catalogue = paths.item.exists() or bool(needs & {"embeddings", "texts"})
    items = load_items(folder) if has_catalogue else None
    interactions = load_interactions(folder, None if items is None else len(items))
    parts = load_split(folder, interactions)
    num_items = int(interactions.items.max()) + 1 if items is None else len(items)
    files = input_files(folder, embeddings, needs, index)
    vectors = None
    if "embeddings" in needs:
        rebuild = f"python -m lcrec.embed --data {folder} --output DIR"
        if embeddings is None:
            raise InputError(f"{asker}: --embeddings DIR is needed; make it with: {rebuild}")
        path = files["embeddings"]
        require_same_input(path.parent, "item", paths.item, rebuild)
        vectors = check_embeddings(read_array(path), num_items, path)
    codes = None
    if "index" in needs:
        rebuild = f"python -m lcrec.quantize --data {folder} --embeddings DIR --output DIR"
        if index is None:
            raise InputError(f"{asker}: --index DIR is needed; make it with: {rebuild}")
        if items is not None:
            require_same_input(files["index"].parent, "item", paths.item, rebuild)
        codes = _read_index(files["index"], num_items)
    training = TrainingData(parts.train, num_items, parts.valid, vectors, items, codes)
    return Inputs(paths.name, training, interactions, parts, files)


def input_files(
    folder: Path, embeddings: Path | None, needs: Iterable[Need], index: Path | None = None
) -> dict[str, Path]:
    """Return what `load_inputs` reads, by role, for the provenance.

    Arguments are those of `load_inputs`. What is asked for and not given is left out.

    Raises:
        InputError: no data folder.
    """
    needs, paths = set(needs), find_data(folder)
    files = paths.sequences
    if paths.item.exists():
        files["item"] = paths.item
    if "embeddings" in needs and embeddings is not None:
        files["embeddings"] = embeddings / EMBEDDINGS if not embeddings.is_file() else embeddings
    if "index" in needs and index is not None:
        files["index"] = index_path(index)
    return files


def _read_index(path: Path, num_items: int) -> ItemIndex:
    """Return the index, items that share a path told apart by one more level."""
    codes = read_codes(path, num_items)
    if not find_conflicts(codes):
        return ItemIndex.load(path, num_items)
    numbers = number_shared(codes)
    sizes = (codes.max(axis=0) + 1).tolist()
    print(
        f"{path}: {int((numbers > 0).sum()):,} items have the path of another; one more level "
        "tells them apart."
    )
    return ItemIndex(np.column_stack([codes, numbers]), (*sizes, int(numbers.max()) + 1))
