"""AlphaRec for users who say what they look for: a share `alpha` of the user is the query.

Reads a data folder, its embeddings, and queries: the intentions for the test item that stand in
`<Name>.user.json`, or a file of {"user", "query"} lines. Queries are encoded by the encoder that
made the embeddings. Writes `predictions.jsonl` with the lists of the users that have a query, under
a template for every alpha, so that `lcrec.evaluate` compares them; alpha 0 is AlphaRec as it is.

    Z_U' = (1 - alpha) Z_U + alpha q_u   (Sheng et al. 2025)
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lcrec.baselines.base import UNKNOWN, make_method, trained_positions
from lcrec.baselines.runs.inputs import DEVICE_HELP, input_files, load_inputs
from lcrec.baselines.runs.ranking import rank_cases
from lcrec.baselines.runs.run import fit_and_measure
from lcrec.baselines.settings import AlphaRecSettings
from lcrec.core.artifacts import find_data, read_jsonl
from lcrec.core.config import Writes, config_dict, option, parse_config, settings_of
from lcrec.core.console import progress
from lcrec.core.errors import InputError
from lcrec.core.outputs import publish
from lcrec.core.provenance import is_current, write_provenance
from lcrec.data.splits import Split
from lcrec.data.user_texts import load_user_texts
from lcrec.rankings.metrics import METRICS, measure_lists
from lcrec.rankings.predictions import Prediction, read_predictions, write_predictions

COMMAND = "python -m lcrec.baselines intention"
EXAMPLE = "--data data/shop --embeddings runs/shop/embeddings --output runs/shop/intention.jsonl"


@dataclass(frozen=True, kw_only=True)
class IntentionConfig(AlphaRecSettings, Writes):
    """Settings of `python -m lcrec.baselines intention`, with those of AlphaRec."""

    data: Path = option("the data folder")
    embeddings: Path = option("the folder that holds embeddings.npy, as lcrec.embed wrote it")
    output: Path = option("the predictions file to write, *.jsonl", writes=".jsonl")
    queries: Path | None = option(
        'lines of {"user", "query"}; none: the test intentions of <Name>.user.json', None
    )
    alpha: list[float] = option(
        "the share of the query in the user, 0 to 1; several to compare",
        [0.0, 0.25, 0.5, 0.75, 1.0],
        minimum=0,
    )
    intention_at: Literal["input", "output"] = option(
        "mix the query in before mapping and graph, or after them", "input"
    )
    encoder: str | None = option("where the encoder lies now, if it has moved", None)
    top: int = option("how many items to rank per user", 100, minimum=100)
    exclude_history: bool = option("mask history items, except targets", False)
    device: str | None = option(DEVICE_HELP, None)
    seed: int = option("of weights and draws", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(IntentionConfig, argv, prog=COMMAND, example=EXAMPLE)
    for place, alpha in enumerate(config.alpha):
        if alpha > 1:
            raise InputError(f"--alpha {alpha:g}: the share of a query lies between 0 and 1")
        if alpha in config.alpha[:place]:
            raise InputError(f"--alpha {alpha:g} is given twice")
    files = input_files(config.data, config.embeddings, AlphaRecSettings.needs)
    files["queries"] = config.queries or find_data(config.data).user
    settings = config_dict(config, without=["device", "encoder"])
    after = f"Next: python -m lcrec.evaluate --predictions {config.output}"
    if is_current(config.output, COMMAND, settings, files):
        print(f"{config.output} is up to date.")
        _show(config)
        print(after)
        return

    inputs = load_inputs(config.data, config.embeddings, AlphaRecSettings.needs, "intention")
    test, num_items = inputs.split.test.one_per_user(), inputs.training.num_items
    queries = read_queries(config.data, config.queries, inputs.split)
    users = trained_positions(inputs.training.train, test.users)
    asking = np.array([user in queries for user in test.users]) & (users != UNKNOWN)
    if not asking.any():
        raise InputError(
            "none of those with a query has both something to train on and an item in the test "
            "part; give queries of other users"
        )
    cases, users = test.take(np.flatnonzero(asking)), users[asking]
    print(
        f"AlphaRec on {inputs.name}: fit on the train part, then rank all {num_items:,} items for "
        f"the {len(cases):,} of {len(test):,} users with a query, at alpha "
        f"{', '.join(f'{alpha:g}' for alpha in config.alpha)} ({config.intention_at}).",
        flush=True,
    )
    # Before the training: a missing encoder is told at once.
    from lcrec.index.encoders import encoder_of  # here, so that options are read without torch

    vectors = _encode(encoder_of(config.embeddings, config.encoder), cases.users, queries)
    chosen = settings_of(AlphaRecSettings, config)
    method: Any = make_method(chosen, config.seed, config.device)
    data = replace(inputs.training, exclude_history=config.exclude_history)
    seconds = fit_and_measure(method, data)["fit_seconds"]

    def rows() -> Iterator[Prediction]:
        for alpha in config.alpha:
            asked = method.ask(users, vectors, alpha, config.intention_at)
            lists = rank_cases(asked, cases, data, top=config.top)
            yield from cases.predictions(lists, f"alpha={alpha:g}")

    total = len(config.alpha) * len(cases)
    with publish(config.output, COMMAND, ".jsonl", overwrite=config.overwrite) as file:
        write_predictions(file, progress(rows(), "rank", "rankings", total=total))
        write_provenance(file, COMMAND, settings, files, cost={"fit_seconds": seconds})
    _show(config)
    print(f"Fitted in {seconds:,.0f} s. Wrote {config.output}.\n{after}")


def read_queries(folder: Path, path: Path | None, split: Split) -> dict[str, list[str]]:
    """Return what users say they look for, {user: [text, ...]}, each with one text or more.

    Args:
        folder: the data folder.
        path: a file of {"user": text, "query": text} lines, several of a user allowed; None: the
            test intentions of `<Name>.user.json`.
        split: of the folder.

    Raises:
        InputError: there are none, a line is malformed, or a user is not in the data set.
    """
    if path is None:
        texts = load_user_texts(folder, split)
        if texts is None or not texts.test_intentions:
            raise InputError(
                f"--data {folder}: no test intentions in {find_data(folder).user.name}; write them "
                f"with python -m lcrec.intents --data {folder} --method keywords, or give --queries"
            )
        return texts.test_intentions
    known = set(split.train.users)
    found: dict[str, list[str]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"--queries {path}, line {number}"
        if not isinstance(row, dict) or not row.keys() >= {"user", "query"}:
            raise InputError(f'{where}: expected {{"user": ..., "query": ...}}, found {row!r:.60}')
        user, query = row["user"], row["query"]
        if not isinstance(user, str) or user not in known:
            raise InputError(f"{where}: user {user!r} is not in {folder}")
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"{where}: the query of user {user!r} must be text, found {query!r}")
        found.setdefault(user, []).append(query)
    return found


def _encode(
    encode: Callable[[list[str]], np.ndarray], users: list[str], queries: dict[str, list[str]]
) -> np.ndarray:
    """Return the mean vector of each user's queries, float32 [users, dim]."""
    texts = [text for user in users for text in queries[user]]
    counts = np.array([len(queries[user]) for user in users])
    blocks = range(0, len(texts), 256)
    vectors = [
        encode(texts[start : start + 256])
        for start in progress(blocks, "encode", "batches", leave=False)
    ]
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    summed = np.add.reduceat(np.concatenate(vectors).astype(np.float32), starts, axis=0)
    return summed / counts[:, None].astype(np.float32)


def _show(config: IntentionConfig) -> None:
    """Print every alpha's metrics as a table, then as one line of JSON."""
    predictions = read_predictions(config.output)
    found = {}
    print(f"{'':12}" + "".join(f"{metric:>9}" for metric in METRICS))
    for alpha in config.alpha:
        ranked = predictions.ranked[f"alpha={alpha:g}"]
        values = measure_lists(ranked, predictions.targets, depth=config.top)
        found[f"{alpha:g}"] = {metric: round(float(values[metric].mean()), 5) for metric in METRICS}
        cells = "".join(f"{found[f'{alpha:g}'][metric]:9.4f}" for metric in METRICS)
        print(f"alpha {alpha:<6g}{cells}")
    print(json.dumps({"users": len(predictions.users), "alpha": found}))
