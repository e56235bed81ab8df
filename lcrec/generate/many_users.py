"""Rank for many users: in parts, by any number of processes, going on where a killed run stopped.

A part is the rankings of so many consecutive users, in a file of its own (`lcrec.core.parts`). Its
batches are planned from its own users alone, so a part is the same whichever process makes it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import PartialState
from transformers import PreTrainedTokenizerBase

from lcrec.core.artifacts import atomic_path, write_jsonl
from lcrec.core.errors import InputError
from lcrec.core.parts import make_parts
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.id_map import Names
from lcrec.data.splits import EvalCases
from lcrec.generate.beams import Model
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest, case_requests
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.templates import Template
from lcrec.rankings.fusion import join_lists
from lcrec.rankings.predictions import shortest, write_predictions

ENSEMBLE = "ensemble"  # the template id of joint lists


@dataclass(frozen=True)
class RankingJob:
    """Rankings for many users.

    Attributes:
        users: what they are called, in raw ids where there are any.
        requests: a request per user, all with the same k; their templates are not looked at.
        templates: of `seqrec`, each answers for every user.
        ensemble: also join each user's rankings into one.
    """

    users: list[str]
    requests: Sequence[RankingRequest]
    templates: list[Template]
    ensemble: bool

    @property
    def list_names(self) -> list[str]:
        """The template ids of each user's lists, in order."""
        return [template.id for template in self.templates] + [ENSEMBLE] * self.ensemble

    def users_without_items(self, num_items: int) -> list[str]:
        """Return the users for whom nothing is left of a catalogue of so many items to recommend.

        Their rankings are empty.
        """
        catalogue, found = np.arange(num_items), []
        for user, request in zip(self.users, self.requests, strict=True):
            may, out = catalogue if request.allow is None else request.allow, request.ruled_out()
            if len(out) >= len(may) and np.isin(may, out).all():
                found.append(user)
        return found


@dataclass(frozen=True)
class Part:
    """The lists of some consecutive users, all under one template after those of the last.

    Attributes:
        first: the position of its first user among all.
        lists: per list name, items int64 and scores float32, `[users, k]` each, -1 and -inf where
            a list is shorter.
    """

    first: int
    lists: dict[str, tuple[np.ndarray, np.ndarray]]


def rank_in_parts(
    recommender: Recommender,
    job: RankingJob,
    folder: Path,
    *,
    suffix: str,
    size: int,
    write: Callable[[Path, Part], None],
    provenance: dict[str, Any],
    state: PartialState,
) -> list[Path]:
    """Make every part that is not there yet, and return the paths of all, in the users' order.

    Returns when all processes have done theirs.
    A part has `size` users, and `write` writes it atomically. Parts made of something else than
    `provenance`, JSON values that tell all that shapes the result, are removed first.

    Raises:
        InputError: what `Recommender` raises.
    """
    starts = range(0, len(job.users), size)
    ends = [min(start + size, len(job.users)) for start in starts]
    paths = [folder / f"part-{number:05}{suffix}" for number in range(len(starts))]

    def rank_part(number: int, count_done: Callable[[int], None]) -> None:
        part = _rank_part(recommender, job, starts[number], ends[number], count_done)
        write(paths[number], part)

    make_parts(
        paths,
        [(end - start) * len(job.templates) for start, end in zip(starts, ends, strict=True)],
        rank_part,
        inputs=provenance,
        state=state,
        desc="rank",
        unit="rankings",
    )
    return paths


def _rank_part(
    recommender: Recommender,
    job: RankingJob,
    first: int,
    end: int,
    count_done: Callable[[int], None],
) -> Part:
    requests = job.requests[first:end]
    lists = {}
    for template in job.templates:
        asked = [replace(request, template=template) for request in requests]
        try:
            prompt_ids = recommender.encode(asked)
        except InputError:
            _name_the_user(recommender, job.users[first:end], asked)
            raise
        ranking = recommender.rank(asked, prompt_ids, count_done=count_done)
        lists[template.id] = ranking.items, ranking.scores
    if job.ensemble:
        all_items, all_scores = map(np.stack, zip(*lists.values(), strict=True))
        lists[ENSEMBLE] = join_lists(all_items, all_scores, all_items.shape[-1])
    return Part(first, lists)


def _name_the_user(
    recommender: Recommender, users: Sequence[str], requests: Sequence[RankingRequest]
) -> None:
    """Raise the error of the first request without a prompt, with its user's name."""
    for user, request in zip(users, requests, strict=True):
        try:
            recommender.encode([request])
        except InputError as error:
            raise InputError(f"user {user!r}: {error}".replace("request 0: ", "")) from None


# A split: predictions with targets, in one file in the end.


def write_split_part(path: Path, part: Part, cases: EvalCases) -> None:
    """Write a part of a split in the form of `lcrec.rankings.predictions`."""
    count = len(next(iter(part.lists.values()))[0])
    own = cases.take(range(part.first, part.first + count))
    write_predictions(
        path,
        (
            prediction
            for name, lists in part.lists.items()
            for prediction in own.predictions(_shortened(*lists), name)
        ),
    )


def join_split_parts(
    parts: list[Path], names: list[str], output: Path, joint: Path | None = None
) -> None:
    """Write one predictions file from the parts: all users of the first list name, then the next.

    Joint lists go to a file of their own, which is written first.

    Args:
        parts: as written by `write_split_part`.
        names: the list names of every part.
        output: the predictions file.
        joint: the file of the joint lists, if there are any.
    """
    lines = [part.read_text(encoding="utf-8").removesuffix("\n").split("\n") for part in parts]
    counts = [len(own) // len(names) for own in lines]
    for path, chosen in (
        (joint, [place for place, name in enumerate(names) if name == ENSEMBLE]),
        (output, [place for place, name in enumerate(names) if name != ENSEMBLE]),
    ):
        if path is not None:
            with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                for place in chosen:
                    for own, count in zip(lines, counts, strict=True):
                        rows = own[place * count : (place + 1) * count]
                        file.writelines(f"{row}\n" for row in rows)


# All users: lists without targets, the parts are the result.


def write_jsonl_part(path: Path, part: Part, names: Names) -> None:
    """Write one JSON object per list: user, ranked, scores, template_id."""
    write_jsonl(path, _rows(part, names))


def write_parquet_part(path: Path, part: Part, names: Names) -> None:
    """Write a table: user text, ranked list of int32, or of text where the items have raw ids,
    scores list of float32, template_id text."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        {
            "user": pa.string(),
            "ranked": pa.list_(pa.string() if names.items.is_raw else pa.int32()),
            "scores": pa.list_(pa.float32()),
            "template_id": pa.string(),
        }
    )
    table = pa.Table.from_pylist(list(_rows(part, names)), schema=schema)
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


FORMATS = {"jsonl": write_jsonl_part, "parquet": write_parquet_part}


def _rows(part: Part, names: Names) -> Iterator[dict[str, Any]]:
    for name, lists in part.lists.items():
        for user, (items, scores) in enumerate(_shortened(*lists), start=part.first):
            yield {
                "user": names.users.names[user],
                "ranked": names.items.names_of(items) if names.items.is_raw else items.tolist(),
                "scores": shortest(scores),
                "template_id": name,
            }


def _shortened(items: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each row without what stands behind the end of its list."""
    for row, row_scores in zip(items, scores, strict=True):
        yield row[row >= 0], row_scores[row >= 0]


def catalogue_ranker(
    tokenizer: PreTrainedTokenizerBase,
    index: ItemIndex,
    prompts: PromptSet,
    max_history: int,
    nearby: NearbyItems | None = None,
    *,
    exclude_history: bool = False,
) -> Callable[[Model, EvalCases, int], np.ndarray]:
    """Return what validation in training ranks the catalogue with: (model, cases, beams) -> items.

    Args:
        tokenizer, index, prompts, max_history, nearby: as of `Recommender`.
        exclude_history: never rank an item of the history.
    """

    def rank(model: Model, cases: EvalCases, beams: int) -> np.ndarray:
        recommender = Recommender(  # anew, as what it has read of prompts is of other weights
            model, tokenizer, index, prompts, max_history=max_history, nearby=nearby
        )
        like = RankingRequest(k=beams, num_beams=beams, exclude_history=exclude_history)
        return recommender.rank(case_requests(cases, like), width=beams).items

    return rank
