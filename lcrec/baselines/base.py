"""What every baseline is: a method that learns from train sequences and scores the catalogue.

To add a method, write a class that fills in the abstract methods, put what can be set of it into
`lcrec/baselines/settings.py`, and name that in `METHODS` below.
"""

import importlib
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lcrec.baselines import settings
from lcrec.baselines.settings import MethodSettings
from lcrec.core.device import pick_device
from lcrec.core.errors import InputError, closest
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import EvalCases
from lcrec.index.item_index import ItemIndex

UNKNOWN = -1


@dataclass(frozen=True)
class TrainingData:
    """All that a method may learn from; what is held out is not here, but for validation.

    Attributes:
        train: the users' sequences to learn from.
        num_items: the size of the catalogue; ids are 0 to `num_items` - 1.
        valid: cases on which training may be stopped; None: train to the last epoch.
        embeddings: float32 [items, dim], item texts as vectors, for methods that need them.
        items: the catalogue's fields, for methods that need them.
        index: the items' paths of codes, for methods that need them.
        exclude_history: whether rankings will mask history items, so that
            validation judges them alike.
        deadline: when, on `time.perf_counter`, to stop training and keep what is best so
            far; None: never.
    """

    train: Interactions
    num_items: int
    valid: EvalCases | None = None
    embeddings: np.ndarray | None = None
    items: Items | None = None
    index: ItemIndex | None = None
    exclude_history: bool = False
    deadline: float | None = None


class Baseline(ABC):
    """A method to compare with, judged on the same split as everything else.

    Args:
        settings: an instance of `Settings`; None for its defaults, those of the paper or of the
            library that its family of papers used.
        seed: of whatever the method draws at random; methods that draw nothing ignore it.
        device: where tensors live, such as "cpu" or "cuda"; methods without tensors ignore it.

    Attributes:
        Settings: the dataclass of what can be set, each default with its source.
        learnt: the attributes, plain arrays, that `fit` leaves; a method that leaves something else
            has a `state` and `load_state` of its own.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    learnt: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any = None, *, seed: int = 0, device: str = "cpu") -> None:
        self.settings: Any = self.Settings() if settings is None else settings
        self.seed = seed
        self.device = device

    @property
    def max_list_length(self) -> int | None:
        """How many items a list can have at most; None for a method that scores all."""
        return None

    @property
    def training(self) -> dict[str, Any] | None:
        """How far `fit` went: `epochs`, `best_epoch`, `updates`, `out_of_time`; None: no epochs."""
        log = getattr(self, "log", None)
        return None if log is None else log.summary()

    @abstractmethod
    def fit(self, data: TrainingData) -> None:
        """Learn from the train sequences, oldest item first.

        Raises:
            InputError: the data cannot serve this method, such as items without text.
        """

    @abstractmethod
    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Score the whole catalogue for each user.

        Args:
            users: int64 [batch], positions in the train sequences this was fitted on, -1 for a
                user it has not seen. Methods that look at histories alone ignore it.
            histories: int32 [length] each, oldest first, whole, at least one item. They may hold
                items that no train sequence has. Methods that keep a vector per user ignore it
                for users they know.

        Returns:
            float32 [batch, num_items], higher is better; -inf rules an item out. A method with
            a `max_list_length` gives it to every item that its search did not reach.
        """

    def score_without(
        self, users: np.ndarray, histories: list[np.ndarray], exclude: list[np.ndarray]
    ) -> np.ndarray:
        """Score the catalogue where some items will not be ranked, ids [any] per history.

        For a method that searches, which then finds others in their place. Most score all items
        anyway: then this is `score`, whose other arguments and result it has.
        """
        return self.score(users, histories)

    def score_cold(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Score the whole catalogue where items without any purchase are to be found.

        For a method that scores such items in a way of its own, all items in that way, so that
        their scores compare. Most have one way for all: then this is `score`, whose arguments and
        result it has.
        """
        return self.score(users, histories)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that `fit` learnt, as plain arrays by name."""
        return {name: getattr(self, name) for name in self.learnt}

    def load_state(self, state: dict[str, np.ndarray], data: TrainingData) -> None:
        """Become what `state` was taken from.

        Args:
            state: as `state` gave it, from a method of the same settings.
            data: what it was fitted on.

        Raises:
            KeyError, ValueError: it is of a method with other settings or another catalogue.
        """
        for name in self.learnt:
            setattr(self, name, state[name])


def positions(train: Interactions, users: list[str]) -> np.ndarray:
    """Return the position of each user in the train sequences, -1 where there is none, int64."""
    if users is train.users:
        return np.arange(len(users))
    places = {user: place for place, user in enumerate(train.users)}
    return np.array([places.get(user, UNKNOWN) for user in users], dtype=np.int64)


def trained_positions(train: Interactions, users: list[str]) -> np.ndarray:
    """Return `positions`, but -1 too for users with nothing to train on, of whom nothing is known.

    A split by time has such users; what a method would have for them is a vector without training.
    """
    places = positions(train, users)
    is_empty = np.append(np.diff(train.offsets) == 0, True)  # the last is that of -1
    return np.where(is_empty[places], UNKNOWN, places)


def require_embeddings(data: TrainingData, asker: str) -> np.ndarray:
    """Return the items' embeddings, float32 [num_items, dim].

    Raises:
        InputError: there are none.
    """
    if data.embeddings is None:
        raise InputError(
            f"{asker} needs the items' texts as vectors, and this data set comes without; make "
            "them with: python -m lcrec.embed"
        )
    return data.embeddings


def method_class(kind: type[MethodSettings]) -> type[Baseline]:
    """Return the class of a method by its settings.

    It is loaded when it is used: most need torch, and options are read without it.
    """
    module, _, name = kind.path.partition(":")
    return getattr(importlib.import_module(f"lcrec.baselines.methods.{module}"), name)


def make_method(chosen: MethodSettings, seed: int = 0, device: str | None = None) -> Baseline:
    """Return a method with these settings, not fitted yet.

    Args:
        chosen: the settings; their type says which method.
        seed: of whatever the method draws.
        device: where tensors live; None: a GPU where there is one, but for a Mac's, which has no
            sparse matrices by rows (pytorch/pytorch#196192). Without torch loaded, as for methods
            that count, it is the CPU.
    """
    kind = method_class(type(chosen))
    if "torch" in sys.modules:
        picked = pick_device(device)
        device = "cpu" if device is None and picked.type == "mps" else str(picked)
    return kind(chosen, seed=seed, device=device or "cpu")


METHODS: dict[str, type[MethodSettings]] = {
    "popularity": settings.PopularitySettings,
    "cooccurrence": settings.CooccurrenceSettings,
    "itemknn": settings.ItemKNNSettings,
    "ease": settings.EASESettings,
    "mf": settings.MatrixFactorisationSettings,
    "lightgcn": settings.LightGCNSettings,
    "fusion": settings.FusionSettings,
    "collabcontext": settings.CollabContextSettings,
    "text-cosine": settings.TextCosineSettings,
    "linear-mapping": settings.LinearMappingSettings,
    "alpharec": settings.AlphaRecSettings,
    "sasrec": settings.SASRecSettings,
    "bert4rec": settings.BERT4RecSettings,
    "gru4rec": settings.GRU4RecSettings,
    "fmlp": settings.FMLPSettings,
    "caser": settings.CaserSettings,
    "hgn": settings.HGNSettings,
    "fdsa": settings.FDSASettings,
    "s3rec": settings.S3RecSettings,
    "tiger": settings.TIGERSettings,
    "p5cid": settings.P5CIDSettings,
    "tssr": settings.TSSRSettings,
}


def find_method(name: str) -> type[MethodSettings]:
    """Return the settings of the method of this name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r}{closest(name, METHODS)} ({', '.join(METHODS)})")
    return METHODS[name]
