"""Rewards of the items that a model answers with, by item id: what is worth how much.

A reward sees the groups of a batch, best-ranked item first, and the item that each user took next:

- `hit`: 1 for that item, 0 for any other;
- `rank`: a penalty for misses that stand above the hit, -1/log2(1 + rank) over the sum of that for
  all ranks; 0 where none hits (MiniOneRec, arXiv 2510.24431, penalises the misses below as well);
- `codes`: the share of codes right, counted from the left up to the first wrong one;
- `similarity`: the cosine of the two items' embeddings;
- `novelty`: the hit divided by log2(2 + times that the item was bought in training). Within one
  group it is a scaled `hit`: it tells users apart only where advantages are not standardised;
- `module:function`: your own, called with (items int64 [prompts, group], targets int64 [prompts],
  histories, a list of int arrays) for a float array [prompts, group].

Reads and writes nothing, and imports no torch.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.core.errors import InputError, closest

NAMES = ("hit", "rank", "codes", "similarity", "novelty")
LARGEST = 1e12  # of a weighted sum of rewards
Histories = Sequence[np.ndarray]
Reward = Callable[[np.ndarray, np.ndarray, Histories], Any]


def parse_rewards(words: Sequence[str]) -> dict[str, float]:
    """Return the weight of each reward from words such as `hit`, `codes=0.5`, `mine:margin=2`.

    Raises:
        InputError: no name, an unknown one, one given twice, or a weight that is no number other
            than 0.
    """
    if not words:
        raise InputError(f"--rewards: is empty; name at least one of {', '.join(NAMES)}")
    weights: dict[str, float] = {}
    for word in words:
        name, equals, amount = word.partition("=")
        if name not in NAMES and not _is_function(name):
            raise InputError(
                f"--rewards {word}: {name!r} is none of {', '.join(NAMES)} and no module:function"
                f"{closest(name, NAMES)}"
            )
        try:
            weight = float(amount) if equals else 1.0
        except ValueError:
            weight = np.nan
        if not np.isfinite(weight) or weight == 0:
            raise InputError(f"--rewards {word}: the weight must be a number other than 0")
        if name in weights:
            raise InputError(f"--rewards: {name} is given twice; keep one of them")
        weights[name] = weight
    return weights


def _is_function(name: str) -> bool:
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), function])


@dataclass(frozen=True)
class Catalogue:
    """What rewards know of the items.

    Attributes:
        codes: int [items, levels].
        counts: how often each item was bought in training, int64 [items].
        embeddings: of length 1, float32 [items, dimension]; None where no reward asks for them.
    """

    codes: np.ndarray
    counts: np.ndarray
    embeddings: np.ndarray | None = None


class Rewards:
    """A weighted sum of rewards.

    Args:
        weights: of `parse_rewards`.
        catalogue: what the rewards know of the items.

    Raises:
        InputError: a function of your own cannot be imported.
    """

    def __init__(self, weights: dict[str, float], catalogue: Catalogue) -> None:
        self.weights, self._catalogue = weights, catalogue
        self._own = {name: load_function(name) for name in weights if ":" in name}

    def __call__(
        self, items: np.ndarray, targets: np.ndarray, histories: Histories
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Return the reward of every item of the groups, and each reward's mean before weighting.

        Args:
            items: best-ranked first, int64 [prompts, group].
            targets: the item that each user took next, int64 [prompts].
            histories: the items that each user had before.

        Returns:
            float64 [prompts, group], and {reward: mean}.

        Raises:
            InputError: a reward of your own has the wrong shape, or is NaN or infinite; or the sum
                is beyond `LARGEST`.
        """
        total, means = np.zeros(items.shape), {}
        for name, weight in self.weights.items():
            if name in self._own:
                found = self._call_own(name, items, targets, histories)
            else:
                found = getattr(self, f"_{name}")(items, targets)
            total += weight * found
            means[name] = float(found.mean())
        largest = float(np.abs(total).max(initial=0))
        if largest > LARGEST:
            named = " ".join(self.weights)
            raise InputError(
                f"--rewards {named}: a reward of {largest:.3g}; beyond {LARGEST:g} the squares of "
                "advantages leave float32; scale them down"
            )
        return total, means

    def _call_own(
        self, name: str, items: np.ndarray, targets: np.ndarray, histories: Histories
    ) -> np.ndarray:
        try:  # of copies: what it does to them is its own business
            found = np.asarray(
                self._own[name](items.copy(), targets.copy(), list(histories)), dtype=np.float64
            )
        except (Exception, SystemExit) as error:  # a person's own code may fail in any way
            raise InputError(f"--rewards {name}: it fails ({_told(error)})") from error
        if found.shape != items.shape:
            raise InputError(
                f"--rewards {name}: expected rewards of shape {list(items.shape)} (prompts, group),"
                f" got {list(found.shape)}"
            )
        if not np.isfinite(found).all():
            prompt, place = np.argwhere(~np.isfinite(found))[0].tolist()
            raise InputError(
                f"--rewards {name}: the reward of item {items[prompt, place]} where "
                f"{targets[prompt]} was right is {found[prompt, place]}; return a finite number"
            )
        return found

    def _hit(self, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return (items == targets[:, None]).astype(np.float64)

    def _rank(self, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
        hits = items == targets[:, None]
        below = hits[:, ::-1].cumsum(axis=1)[:, ::-1]  # hits from here to the end
        shares = 1 / np.log2(2 + np.arange(items.shape[1]))
        return np.where((below > 0) & ~hits, -shares / shares.sum(), 0.0)

    def _codes(self, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
        codes = self._catalogue.codes
        right = codes[items] == codes[targets][:, None]
        return np.logical_and.accumulate(right, axis=2).mean(axis=2)

    def _similarity(self, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
        vectors = self._catalogue.embeddings
        assert vectors is not None  # the settings ask for them
        return np.einsum("pgd,pd->pg", vectors[items], vectors[targets]).astype(np.float64)

    def _novelty(self, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self._hit(items, targets) / np.log2(2 + self._catalogue.counts[targets])[:, None]


def load_function(name: str) -> Reward:
    """Import `module:function`, from the current folder too.

    Raises:
        InputError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))  # a console script does not look there, unlike `python -m`
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # a person's own code may fail, or end, in any way
        raise InputError(
            f"--rewards {name}: {module} cannot be imported ({_told(error)})"
        ) from None
    finally:
        sys.path[:] = before
    if not callable(found):
        raise InputError(f"--rewards {name}: {module} has no function {function}")
    return found


def source_of(name: str) -> Path | None:
    """Return the file that a reward of your own is in, and None for another one.

    Raises:
        InputError: as of `load_function`.
    """
    if ":" not in name:
        return None
    load_function(name)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return file and Path(file)


def _told(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
