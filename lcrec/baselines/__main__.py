"""Stage: fit a baseline on the train part and rank the whole catalogue for every user.

Reads a data folder; writes `predictions.jsonl` (the form of `lcrec.predictions`) with the users
and targets of the chosen split, and its provenance beside it.

Public names: `BaselineConfig`, `predict`, `main`.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from lcrec.artifacts import find_data, is_current, write_provenance
from lcrec.baselines import BASELINES, Baseline
from lcrec.config import config_dict, option, parse_config
from lcrec.data import Cases, leave_one_out, load_interactions, load_items
from lcrec.errors import InputError, closest, run_stage
from lcrec.predictions import Prediction, require_predictions_path, top_items, write_predictions

PROG = "python -m lcrec.baselines"
BATCH_SCORES = 2**22  # scores held at once: 16 MB, and a few times that while they are ranked


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of `python -m lcrec.baselines NAME`."""

    data: Path = option("the data folder")
    output: Path = option("the predictions file to write, *.jsonl")
    split: Literal["valid", "test"] = option("which held-out item to predict", "test")
    top: int = option("how many items to list per user", 100, minimum=100)
    exclude_history: bool = option(
        "never list what the user already has (then a target bought before is always missed)", False
    )
    seed: int = option("of whatever the method draws at random", 0, minimum=0)


def predict(
    method: Baseline, cases: Cases, num_items: int, *, top: int, exclude_history: bool = False
) -> Iterator[Prediction]:
    """Rank the catalogue for every case, batch by batch, with a fitted method.

    Args:
        method: fitted.
        cases: the users, their histories and targets.
        num_items: the size of the catalogue.
        top: how many items to list; all of them where the catalogue is smaller.
        exclude_history: leave out the items of each user's history.

    Yields:
        one prediction per case, in order; of equal scores the lower id comes first.

    Raises:
        InputError: a user's history leaves nothing to list.
    """
    batch = max(1, BATCH_SCORES // num_items)
    for start in range(0, len(cases), batch):
        histories = cases.histories[start : start + batch]
        exclude = histories if exclude_history else None
        lists = top_items(method.score(histories), top, exclude)
        for case, (ranked, scores) in enumerate(lists, start=start):
            if not len(ranked):
                raise InputError(
                    f"user {cases.users[case]!r} already has every item, so none is left to list; "
                    "run again without --exclude-history"
                )
            yield Prediction(cases.users[case], int(cases.targets[case]), ranked, scores)


def main(argv: list[str]) -> None:
    """Run the stage."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = argv
    if name not in BASELINES:
        if name.startswith("-"):
            raise InputError(f"the method comes first: {PROG} NAME {name} ...\n\n{_overview()}")
        raise InputError(f"no method {name!r}{closest(name, BASELINES)} ({', '.join(BASELINES)})")
    prog = f"{PROG} {name}"
    config = parse_config(BaselineConfig, rest, description=_summary(name), prog=prog)
    require_predictions_path(config.output)
    data = find_data(config.data)
    inputs = {"inter": data.inter, "item": data.item}
    after = f"Next: python -m lcrec.evaluate --predictions {config.output}"
    if config.output.exists() and is_current(config.output, prog, config_dict(config), inputs):
        print(f"{config.output} is up to date.\n{after}")
        return

    num_items = len(load_items(config.data))
    split = leave_one_out(load_interactions(config.data, num_items))
    cases: Cases = getattr(split, config.split)
    without = ", leaving out what the user already has" if config.exclude_history else ""
    print(
        f"{name} on {data.name}: fit on the train part of {len(cases):,} users, then rank all "
        f"{num_items:,} items for the {config.split} split{without}."
    )
    method = BASELINES[name](seed=config.seed)
    method.fit(split.train, num_items)
    rows = predict(method, cases, num_items, top=config.top, exclude_history=config.exclude_history)
    progress = tqdm(rows, total=len(cases), desc=name, unit=" users")
    write_predictions(config.output, progress)
    write_provenance(config.output, prog, config_dict(config), inputs)
    up_to = "up to " if config.exclude_history else ""
    print(f"Wrote {config.output}: {up_to}{min(config.top, num_items)} items per user.\n{after}")


def _overview() -> str:
    width = max(map(len, BASELINES))
    return "\n".join(
        [
            f"usage: {PROG} NAME --data DIR --output FILE.jsonl [more options]",
            "",
            "Fit a baseline on the train part and rank the whole catalogue for every user.",
            "",
            "methods:",
            *(f"  {name:<{width}}  {_summary(name)}" for name in BASELINES),
            "",
            f"options of a method: {PROG} NAME --help",
        ]
    )


def _summary(name: str) -> str:
    return (inspect.getdoc(BASELINES[name]) or name).splitlines()[0]


if __name__ == "__main__":
    run_stage(main)
