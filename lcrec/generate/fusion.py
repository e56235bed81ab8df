"""Joins a model's ranking with counted neighbours: `lcrec baselines fuse`, request by request.

    score(item)  =  w_model * share in the model's ranking  +  w_counted * share in the counted one

The counted ranking is the baseline `cooccurrence` (`lcrec.data.cooccurrence`): what other customers
took near the last items of the history. Shares are by score or by rank, as `lcrec.rankings.fusion`
says; weights are those of a fusion that was fitted on validation, for everybody or, by what is
known of a history, of each user's own (`lcrec.rankings.adaptive`), or one half each.

A request gets what `fuse` would write for it, given the same counts, but for two things. An item
that is in the model's ranking nowhere and counted never is not ranked: `cooccurrence` fills its
lists with such items. And a history with nothing counted near it has the model's ranking alone.

Reads the sidecar of a fusion; writes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse

from lcrec.core.artifacts import find_data
from lcrec.core.errors import InputError
from lcrec.core.provenance import alike, provenance_path, read_provenance
from lcrec.data.cooccurrence import count_pairs, score_histories
from lcrec.data.folder import Interactions
from lcrec.data.history_facts import NAMES, SeenSteps
from lcrec.data.new_items import earlier
from lcrec.generate.flags import COOCCURRENCE
from lcrec.generate.requests import RankingRequest
from lcrec.rankings.adaptive import AdaptiveWeights, list_facts
from lcrec.rankings.fusion import Lists, fuse, pool
from lcrec.rankings.metrics import PAD
from lcrec.rankings.predictions import top_items

MODEL, COUNTED = "predictions", "baselines cooccurrence"  # the kinds of files that are joined
LENGTH, COUNTED_LENGTH = 20, 100  # of rankings, unless a fitted fusion says otherwise
SCORES_AT_ONCE = 2**22  # of what is counted, 16 MB
FITTED_WITH = ("templates", "ensemble", "calibrate", "exclude_history", "reserve_new")


@dataclass(frozen=True)
class FusionSettings:
    """How a model's ranking and the counted one are joined.

    Attributes:
        source: the fusion's file, or `cooccurrence` for both rankings alike.
        how: what an item gets for where it stands in a ranking.
        weights: of the two rankings, as their files stand in the fusion.
        adaptive: the weights of each user's own, which then go before `weights`.
        model: which of the two is the model's, 0 or 1.
        length, num_beams: of the model's rankings, and what they were searched with.
        counted_length: of the counted rankings.
        counting: `window`, `distance_decay`, `backward`: see `count_pairs`.
        ending: `last`, `history_decay`: see `score_histories`.
        fitted_with: the flags that the model's file was made with, as far as a request may differ.
        item: the fingerprint of the catalogue that it was fitted on; None if unknown.
    """

    source: str = COOCCURRENCE
    how: Literal["rrf", "score"] = "score"
    weights: tuple[float, float] = (0.5, 0.5)
    adaptive: AdaptiveWeights | None = None
    model: int = 0
    length: int = LENGTH
    num_beams: int | None = None
    counted_length: int = COUNTED_LENGTH
    counting: tuple[tuple[str, Any], ...] = ()
    ending: tuple[tuple[str, Any], ...] = ()
    fitted_with: tuple[str, ...] = ()
    item: str | None = None

    @classmethod
    def read(cls, source: str | Path) -> "FusionSettings":
        """Return the settings of a fusion that `lcrec baselines fuse` wrote, or of `cooccurrence`.

        Raises:
            InputError: there is no such fusion, or it joins something else than rankings of
                `lcrec generate` and of `lcrec baselines cooccurrence`.
        """
        if str(source) == COOCCURRENCE:
            return cls()
        path = Path(source)
        sidecar = provenance_path(path)
        record = read_provenance(path) if sidecar.is_file() else None
        if record is None or record["kind"] != "baselines fuse":
            found = f"{sidecar}: no such file" if record is None else f"it is {record['kind']!r}"
            raise InputError(
                f"--fuse {path}: no fusion ({found}); name a file that `lcrec baselines fuse` "
                f"wrote, or give {COOCCURRENCE} for both rankings alike"
            )
        try:
            return cls._of(str(path), record)
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"--fuse {path}: its sidecar {sidecar} lacks what a service needs "
                f"({type(error).__name__}: {error}); an older version may have written it: delete "
                "the file and fuse anew"
            ) from None

    @classmethod
    def _of(cls, source: str, record: dict[str, Any]) -> "FusionSettings":
        kinds = [None if made is None else made["kind"] for made in record["methods"]]
        if sorted(map(str, kinds)) != sorted((MODEL, COUNTED)):
            told = ", ".join("an unknown method" if kind is None else repr(kind) for kind in kinds)
            raise InputError(
                f"--fuse {source}: joins {told}; requests can be answered by two files alone, one "
                "of `lcrec generate` and one of `lcrec baselines cooccurrence`"
            )
        place = kinds.index(MODEL)
        model, counted = record["methods"][place], record["methods"][1 - place]
        adaptive = None
        if "adaptive" in record:
            adaptive = AdaptiveWeights.from_json(record["adaptive"])
            if adaptive.facts != (*NAMES, *list_facts([_NOTHING, _NOTHING])[0]):
                raise ValueError("its weights go by other facts")
            given: Sequence[float] = adaptive.weights
        else:
            given = record["weights"]
        config = model["config"]
        if "fuse" in config or "fuse" in model["inputs"]:
            raise InputError(
                f"--fuse {source}: the model's rankings were fused already (generate --fuse); fuse "
                "those that were not"
            )
        flags = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {_shown(value)}")
            for name in FITTED_WITH
            if (value := config.get(name)) and value != ["first"]
        ]
        return cls(
            source,
            "rrf" if record["config"]["how"] == "rrf" else "score",
            (float(given[0]), float(given[1])),
            adaptive,
            place,
            int(model["length"]),
            config["beams"],
            int(counted["length"]),
            tuple((name, counted["config"][name]) for name in _COUNTING),
            tuple((name, counted["config"][name]) for name in _ENDING),
            tuple(flags),
            model["inputs"].get("item"),
        )

    def require_same_catalogue(self, data: Path) -> None:
        """Refuse a fusion that was fitted on another catalogue than one that `data` continues.

        Raises:
            InputError: the records disagree.
        """
        same = alike(find_data(data).item, "item")  # but for prices and the like
        if self.item not in (None, *earlier(data, "item"), *same):
            raise InputError(
                f"--fuse {self.source}: was fitted on another catalogue than that of --data {data} "
                f"(sha256 {str(self.item)[:12]}); fit it on predictions for this one, or give "
                f"--fuse {COOCCURRENCE}"
            )

    def describe(self) -> str:
        """Return what is said of the fusion on the screen."""
        model, counted = self.weights[self.model], self.weights[1 - self.model]
        by = "rank" if self.how == "rrf" else "score"
        own = "" if self.adaptive is None else ", from which each user's own depart"
        flags = f"; fitted with {' '.join(self.fitted_with)}" if self.fitted_with else ""
        return (
            f"fused by {by}: weight {model:.3g} for the model's ranking and {counted:.3g} for "
            f"counted neighbours{own} (--fuse {self.source}{flags})"
        )


_NOTHING = (np.full((1, 1), PAD), np.full((1, 1), -np.inf))
_COUNTING = ("window", "distance_decay", "backward")
_ENDING = ("last", "history_decay")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True, eq=False)
class CountedFusion:
    """What joins rankings: the settings, and what was counted.

    Attributes:
        settings: how.
        counts: C of `lcrec.data.cooccurrence`, float32 [items, items].
        seen: the steps that adaptive weights go by; None without these.
    """

    settings: FusionSettings
    counts: sparse.csr_array
    seen: SeenSteps | None

    @classmethod
    def count(
        cls, settings: FusionSettings, counted: Interactions, num_items: int
    ) -> "CountedFusion":
        """Count sequences: all of a data folder to recommend, the train part to be evaluated."""
        counts = count_pairs(counted, num_items, **dict(settings.counting))
        seen = None if settings.adaptive is None else SeenSteps.count(counted, num_items)
        return cls(settings, counts, seen)

    def rank(
        self,
        requests: Sequence[RankingRequest],
        left: np.ndarray | None,
        width: int,
        ask: Callable[[Sequence[RankingRequest], int], tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items of both rankings for each request.

        A request in words is not fused: it gets what the model ranks.

        Args:
            requests: of any kinds.
            left: how many items each of them may get, int64 [requests]; None for all of them.
            width: the columns of the result, where that is more than the largest k.
            ask: takes requests and a width, and returns what the model ranks.

        Returns:
            int64 and float32 [requests, width], padded with -1 and -inf.
        """
        left = np.full(len(requests), self.counts.shape[0]) if left is None else left
        asked = [self._widened(own, int(rest)) for own, rest in zip(requests, left, strict=True)]
        width = max([width, *(own.k for own in requests)])
        by_model, model_scores = ask(asked, width)
        items, scores = by_model[:, :width].copy(), model_scores[:, :width].copy()
        lengths: dict[tuple[int, int], list[int]] = {}  # requests whose rankings are as long
        for row, (own, wider) in enumerate(zip(requests, asked, strict=True)):
            if own.query is None:
                lengths.setdefault((own.k, wider.k), []).append(row)
        at_once = max(1, SCORES_AT_ONCE // self.counts.shape[0])
        for (_, most), rows in lengths.items():
            for start in range(0, len(rows), at_once):
                part = rows[start : start + at_once]
                ranked = by_model[part, :most], model_scores[part, :most]
                items[part], scores[part] = PAD, -np.inf
                joint = self._join([requests[row] for row in part], *ranked)
                for row, best in zip(part, joint, strict=True):
                    items[row, : len(best[0])], scores[row, : len(best[0])] = best
        return items, scores

    def _widened(self, request: RankingRequest, left: int) -> RankingRequest:
        """Return what to ask the model for: as many items as the fusion was fitted with."""
        beams = request.num_beams
        if request.query is not None or (beams is not None and beams < request.k):
            return request  # the latter is refused
        k = max(request.k, min(self.settings.length, left))
        beams = beams or self.settings.num_beams
        beams = None if beams is None else min(max(beams, k), self.counts.shape[0])
        return replace(request, k=k, num_beams=beams)

    def _join(
        self, requests: Sequence[RankingRequest], items: np.ndarray, scores: np.ndarray
    ) -> list[Lists]:
        """Return the best items of both rankings of requests that want as many.

        Args:
            requests: without a query, all with one k.
            items, scores: the model's rankings for them, [requests, length], padded.
        """
        settings, place, k = self.settings, self.settings.model, requests[0].k
        histories = [np.asarray(own.history) for own in requests]
        counts = score_histories(self.counts, histories, **dict(settings.ending))
        near = counts.copy()
        for row, own in enumerate(requests):
            if own.allow is not None:
                near[row] = -np.inf
                near[row, own.allow] = counts[row, own.allow]
        top = min(max(k, settings.counted_length), near.shape[1])
        shape = (len(requests), top)
        counted = np.full(shape, PAD), np.full(shape, -np.inf, dtype=np.float32)
        ranked = top_items(near, top, [own.ruled_out() for own in requests])
        for row, (found, values) in enumerate(ranked):
            if len(found) and values[0] > 0:
                counted[0][row, : len(found)], counted[1][row, : len(found)] = found, values
        lists = [counted]
        lists.insert(place, (items, scores))
        if settings.adaptive is None:
            weights = np.array(settings.weights)
        else:
            assert self.seen is not None
            known = [
                self.seen.facts(history, np.asarray(own.counted))
                for history, own in zip(histories, requests, strict=True)
            ]
            weights = settings.adaptive.of_users(np.hstack((known, list_facts(lists)[1])))
        # A model of weight 0 decides nothing, and fills what is left of a ranking.
        takes_part = np.broadcast_to(weights[..., place] > 0, len(requests))
        joint = []
        for row, (found, values) in enumerate(
            fuse(pool(lists, settings.how), weights, items.shape[1] + top)
        ):
            by_model = np.isin(found, items[row]) & takes_part[row]
            kept = np.flatnonzero(by_model | (counts[row, found] > 0))[:k]
            rest = items[row][~np.isin(items[row], [*found[kept], PAD])][: k - len(kept)]
            scores = np.append(values[kept], np.zeros(len(rest)))
            joint.append((np.append(found[kept], rest), scores))
        return joint
