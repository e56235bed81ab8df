"""A data folder as a whole: what most stages read of it, in one call."""

from dataclasses import dataclass
from pathlib import Path

from lcrec.data.folder import Interactions, Items, load_interactions, load_items
from lcrec.data.splits import Split, load_split
from lcrec.data.user_texts import UserTexts, load_user_texts


@dataclass(frozen=True)
class DataSet:
    """A data folder, read and checked.

    Attributes:
        items: the catalogue; item i has id i.
        interactions: every user's whole sequence, oldest first.
        split: what is trained, validated and tested on, as the folder says it.
        user_texts: what users like and look for; None where the folder has no such file.
    """

    items: Items
    interactions: Interactions
    split: Split
    user_texts: UserTexts | None


def load_data(folder: str | Path) -> DataSet:
    """Read a data folder, as `lcrec prepare` or `lcrec synthetic` wrote it.

    Returns:
        catalogue, interactions, split and user texts, each checked against the others.

    Raises:
        InputError: a file is missing or malformed, files belong to different data sets, or the
            interactions cannot be split.
    """
    folder = Path(folder)
    items = load_items(folder)
    interactions = load_interactions(folder, len(items))
    split = load_split(folder, interactions)
    return DataSet(items, interactions, split, load_user_texts(folder, split))
