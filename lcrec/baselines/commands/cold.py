"""Find out which methods find items that nobody has bought yet.

Reads a data folder, and embeddings for the methods that need them; hides a share of the items and
fits every method on the rest. Prints a table and writes a JSON file {"data", "counts", "chance":
Recall@10 of a random order of the cold items, "methods": {as given: {"cold", "all", "warm":
{metric: {"mean", "low", "high"}}, "fit_seconds"}}}: the purchases of cold items ranked among the
cold items alone and among all, and the warm test items among the warm.

The protocol of CARec (CIKM 2024): a share of the items is drawn at random and all their purchases
are moved to a cold test set; of the rest, users and items with too few purchases are dropped until
none is left; users who are still there are asked for the cold items they bought.

Methods that know an item by its purchases alone score a cold one by what it started from, or not
at all; their figures show what that is worth.
"""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lcrec.baselines.base import Baseline, TrainingData, make_method
from lcrec.baselines.runs.flags import parse_entries
from lcrec.baselines.runs.inputs import DEVICE_HELP, EMBEDDINGS_HELP, input_files, load_inputs
from lcrec.baselines.runs.ranking import ranked_matrix
from lcrec.baselines.runs.run import fit_and_measure
from lcrec.core.artifacts import write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import is_current, write_provenance
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import EvalCases, Split, leave_one_out
from lcrec.rankings.metrics import PAD, ndcg_at_k, recall_at_k, summarise


@dataclass(frozen=True)
class ColdSplit:
    """What is left to learn from, and who bought what was taken away.

    Attributes:
        warm: leave-one-out of what is left.
        cold: per user who bought cold items, the train sequence as history, since no method knows
            more, and the cold items as targets, int64 [users, most], padded with -1.
        warm_items: int64, ids of the items that are left, rising.
        cold_items: int64, ids of the items that were drawn, rising.
    """

    warm: Split
    cold: EvalCases
    warm_items: np.ndarray
    cold_items: np.ndarray


def draw_cold(interactions: Interactions, *, share: float, core: int, seed: int) -> ColdSplit:
    """Take a share of the items away.

    Args:
        interactions: the whole sequences.
        share: of the items that somebody bought, more than 0 and less than 1.
        core: the fewest purchases of a user, and of an item, in what is left; at least 3, of
            which leave-one-out trains on one.
        seed: of the draw.

    Raises:
        InputError: the share is none, nothing is left, or nobody who is left bought a cold item.
    """
    if not 0 < share < 1:
        raise InputError(f"--share {share}: it must lie between 0 and 1")
    bought = np.unique(interactions.items)
    count = round(share * len(bought))
    if not count:
        raise InputError(f"--share {share} of {len(bought)} items is none; take a larger share")
    drawn = np.random.default_rng(seed).choice(bought, size=count, replace=False)
    is_cold = np.zeros(int(bought[-1]) + 1, dtype=bool)
    is_cold[drawn] = True

    users = interactions.owners
    kept = _core(users, interactions.items, ~is_cold[interactions.items], core)
    if not kept.any():
        raise InputError(
            f"--core {core}: without the {count} cold items no users and items with {core} "
            "purchases each are left; take a smaller core"
        )
    counts = np.bincount(users[kept], minlength=len(interactions))
    left = np.flatnonzero(counts)
    rest = Interactions(
        [interactions.users[user] for user in left],
        np.concatenate(([0], np.cumsum(counts[left]))),
        interactions.items[kept],
    )
    warm = leave_one_out(rest)
    bought_by = (interactions.sequence(int(user)) for user in left)
    wanted = [np.unique(row[is_cold[row]]) for row in bought_by]
    who = [place for place, items in enumerate(wanted) if len(items)]
    if not who:
        raise InputError(
            f"--share {share}: no user who is left bought any of the {count} cold items, so there "
            "is nothing to test on; take a larger share or a smaller --core"
        )
    targets = np.full((len(who), max(len(wanted[place]) for place in who)), PAD, dtype=np.int64)
    for row, place in zip(targets, who, strict=True):
        row[: len(wanted[place])] = wanted[place]
    cold = EvalCases(
        [rest.users[place] for place in who], [warm.train.sequence(place) for place in who], targets
    )
    return ColdSplit(warm, cold, np.unique(rest.items).astype(np.int64), np.sort(drawn))


def renumber(
    data: TrainingData, interactions: Interactions, seed: int
) -> tuple[TrainingData, Interactions]:
    """Give the items new ids at random.

    Of equal scores the lower id is ranked first, and catalogues are often numbered by first
    purchase: a method that scores all cold items alike would rank them by popularity after all.
    Embeddings and texts are put in the new order, and the interactions; the sequences in `data`,
    which the cold split replaces, are not.
    """
    order = np.random.default_rng(seed).permutation(data.num_items)  # [new id] -> old id
    new_ids = np.argsort(order).astype(np.int32)
    reordered = replace(
        data,
        embeddings=None if data.embeddings is None else data.embeddings[order],
        items=None if data.items is None else Items([data.items.fields[item] for item in order]),
    )
    return reordered, replace(interactions, items=new_ids[interactions.items])


def _core(users: np.ndarray, items: np.ndarray, kept: np.ndarray, core: int) -> np.ndarray:
    """Return which purchases are left once all users and items have `core` of them, bool."""
    while True:
        enough = kept & (np.bincount(users[kept], minlength=users.max() + 1) >= core)[users]
        enough &= (np.bincount(items[kept], minlength=items.max() + 1) >= core)[items]
        if (enough == kept).all():
            return kept
        kept = enough


PROG = "python -m lcrec.baselines cold"
EXAMPLE = (
    "--data data/shop --methods text-cosine alpharec --embeddings runs/shop/embeddings "
    "--output runs/shop/cold.json"
)
TOP = 10
METRICS = {f"Recall@{TOP}": recall_at_k, f"NDCG@{TOP}": ndcg_at_k}
VIEWS = {"cold": "cold among cold", "all": "cold among all", "warm": "warm"}


@dataclass(frozen=True)
class ColdConfig(Writes):
    """Settings of `python -m lcrec.baselines cold`."""

    data: Path = option("the data folder")
    methods: list[str] = option(
        'methods to compare, each with its own flags in quotes if any: "collabcontext --symmetric"'
    )
    output: Path = option("the file for the figures, *.json", writes=".json")
    embeddings: Path | None = option(EMBEDDINGS_HELP, None)
    share: float = option("share of the items to take away, between 0 and 1", 0.05)
    core: int = option("the fewest purchases of a user, and of an item, in the rest", 3, minimum=3)
    exclude_history: bool = option("mask history items, except targets", True)
    device: str | None = option(DEVICE_HELP, None)
    seed: int = option(
        "decides which items are taken away, and what the methods draw", 0, minimum=0
    )


@dataclass(frozen=True)
class _Among:
    """A method's scores, with all items ruled out that are no candidates."""

    method: Baseline
    candidates: np.ndarray
    num_items: int
    as_cold: bool

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        return self.score_without(users, histories, [np.zeros(0, np.int64)] * len(histories))

    def score_without(
        self, users: np.ndarray, histories: list[np.ndarray], exclude: list[np.ndarray]
    ) -> np.ndarray:
        if self.method.max_list_length is not None:  # a search goes to candidates alone
            others = np.setdiff1d(np.arange(self.num_items), self.candidates)
            without = [np.concatenate((others, own)) for own in exclude]
            return self.method.score_without(users, histories, without)
        score = self.method.score_cold if self.as_cold else self.method.score
        scores = score(users, histories)
        among = np.full_like(scores, -np.inf)
        among[:, self.candidates] = scores[:, self.candidates]
        return among


def measure_cold(
    method: Baseline, drawn: ColdSplit, data: TrainingData, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Return {"cold", "all" and "warm": {metric: mean and interval over users}}.

    Args:
        method: fitted on `drawn.warm.train`.
        drawn: the split.
        data: what it was fitted on.
        seed: of the bootstrap over users.
    """
    everything = np.union1d(drawn.warm_items, drawn.cold_items)
    views = {
        "cold": (drawn.cold, _Among(method, drawn.cold_items, data.num_items, as_cold=True)),
        "all": (drawn.cold, _Among(method, everything, data.num_items, as_cold=True)),
        "warm": (drawn.warm.test, _Among(method, drawn.warm_items, data.num_items, as_cold=False)),
    }
    figures = {}
    for view, (cases, scorer) in views.items():
        ranked = ranked_matrix(scorer, cases, data, top=TOP)
        figures[view] = {
            name: summarise(metric(ranked, cases.targets, TOP), seed)
            for name, metric in METRICS.items()
        }
    return figures


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(ColdConfig, argv, prog=PROG, example=EXAMPLE)
    chosen = parse_entries(config.methods)
    for entry in chosen:
        if "index" in entry.settings.needs:
            raise InputError(
                f"--methods: {entry.name} needs an index, which cold items have no part in"
            )
    needs = {need for entry in chosen for need in entry.settings.required_inputs}
    files = input_files(config.data, config.embeddings, needs)
    settings = config_dict(config, without=["device"])
    if is_current(config.output, PROG, settings, files):
        print(f"{config.output} is up to date.")
        return

    inputs = load_inputs(config.data, config.embeddings, needs, "--methods")
    if inputs.split.kind != "leave-one-out":
        raise InputError(
            f"--data {config.data}: has a split of its own, and this command draws one: give a "
            "folder without, or rank its cases with python -m lcrec.baselines NAME"
        )
    training, interactions = renumber(inputs.training, inputs.interactions, config.seed)
    drawn = draw_cold(interactions, share=config.share, core=config.core, seed=config.seed)
    counts = {
        "users": len(drawn.warm.train),
        "warm_items": len(drawn.warm_items),
        "cold_items": len(drawn.cold_items),
        "cold_users": len(drawn.cold),
        "cold_purchases": int((drawn.cold.targets != PAD).sum()),
    }
    print(
        f"{inputs.name}: {counts['cold_items']:,} items are cold; {counts['users']:,} users and "
        f"{counts['warm_items']:,} items are left. Fit {len(chosen)} methods and ask for the "
        f"{counts['cold_purchases']:,} cold purchases of {counts['cold_users']:,} users.",
        flush=True,
    )
    training = dataclasses.replace(
        training,
        train=drawn.warm.train,
        valid=drawn.warm.valid,
        exclude_history=config.exclude_history,
    )
    figures: dict[str, dict[str, Any]] = {}
    for entry in progress(chosen, "cold", "methods", leave=False):
        method = make_method(entry.settings, config.seed, config.device)
        seconds = fit_and_measure(method, training)["fit_seconds"]
        measured = measure_cold(method, drawn, training, config.seed)
        figures[entry.label] = {**measured, "fit_seconds": seconds}
    chance = min(1.0, TOP / counts["cold_items"])
    print(_table(figures))
    print(f"\nA random order of the cold items has Recall@{TOP} {chance:.4f} among them.")
    result = {"data": inputs.name, "counts": counts, "chance": chance, "methods": figures}
    with publish(config.output, PROG, ".json", overwrite=config.overwrite) as file:
        write_json(file, result, indent=2)
        write_provenance(file, PROG, settings, files)
    print(
        f"Wrote {config.output}.\nNext: with other items drawn: {PROG} --data {config.data} "
        f"--seed {config.seed + 1} ..."
    )


def _table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a line per method: its metrics in each view, and the seconds to fit it."""
    width = max(8, *map(len, figures))
    head = " " * width + "".join(f"  {title:>19}" for title in VIEWS.values())
    names = "".join(f"{name:>{11 if at else 10}}" for _ in VIEWS for at, name in enumerate(METRICS))
    lines = [head, f"{'':<{width}}{names}{'seconds':>9}"]
    for label, views in figures.items():
        cells = [views[view][name]["mean"] for view in VIEWS for name in METRICS]
        lines.append(
            f"{label:<{width}}"
            + "".join(f"{cell:>{11 if at % 2 else 10}.4f}" for at, cell in enumerate(cells))
            + f"{views['fit_seconds']:>9,.0f}"
        )
    return "\n".join(lines)
