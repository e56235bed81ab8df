"""What the commands read: a data folder, its split, and embeddings where a method needs them.

Public names: `Inputs`, `load_inputs`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lcrec.artifacts import EMBEDDINGS, find_data, read_array, require_same_input
from lcrec.baselines.base import Need, TrainingData
from lcrec.data import Split, check_embeddings, leave_one_out, load_interactions, load_items
from lcrec.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """A data set ready to train and to judge on.

    Attributes:
        name: of the data set.
        training: what methods learn from.
        split: train, valid and test.
        files: what was read, by role, for the provenance.
    """

    name: str
    training: TrainingData
    split: Split
    files: dict[str, Path]


def load_inputs(folder: Path, embeddings: Path | None, needs: Iterable[Need], asker: str) -> Inputs:
    """Read what methods need.

    Args:
        folder: the data folder.
        embeddings: the folder that holds `embeddings.npy`, or the file; None: there is none.
        needs: of the methods that will be fitted.
        asker: the methods' names, for errors.

    Raises:
        InputError: a file is missing or malformed, or they do not belong together.
    """
    needs = set(needs)
    paths = find_data(folder)
    items = load_items(folder)
    split = leave_one_out(load_interactions(folder, len(items)))
    files = {"inter": paths.inter, "item": paths.item}
    vectors = None
    if "embeddings" in needs:
        rebuild = f"python -m lcrec.embed --data {folder} --output DIR"
        if embeddings is None:
            raise InputError(f"{asker}: --embeddings DIR is needed; make it with: {rebuild}")
        path = embeddings / EMBEDDINGS if embeddings.is_dir() else embeddings
        require_same_input(path.parent, "item", paths.item, rebuild)
        vectors = check_embeddings(read_array(path), len(items), path)
        files["embeddings"] = path
    training = TrainingData(split.train, len(items), split.valid, vectors, items)
    return Inputs(paths.name, training, split, files)
