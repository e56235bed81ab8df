"""Items for what a customer looks for: `itemsearch` of a checkpoint against text retrieval.

Reads a checkpoint, the data folder with its `<Name>.user.json`, and item embeddings. Every test
intention (LC-Rec, Fig. 3) is a query, the item the user then bought the only right answer, and
the whole catalogue is ranked: by the model, with the first evaluation template for each of the
things `itemsearch` can be asked with (the intention alone, with the history, with both history and
preference); where a user has several cases, the first item held out, which the intention is about;
and by the cosine between the intention and the item embeddings, encoded by the very
encoder they were made with. A user with several intentions counts as their mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.console import ProgressBar, progress
from lcrec.core.errors import InputError
from lcrec.data.folder import unit_rows
from lcrec.evaluate.checkpoint import (
    PROG,
    JudgeConfig,
    Subject,
    Summary,
    format_values,
    read_embeddings,
    subject_of,
    write_result,
)
from lcrec.prompts.templates import Template
from lcrec.rankings.metrics import measure_lists, summarise
from lcrec.rankings.predictions import top_items

if TYPE_CHECKING:
    from lcrec.generate.requests import RankingRequest
    from lcrec.index.encoders import Encoder

EXAMPLE = "--model runs/shop/model --data data/shop --embeddings runs/shop/embeddings"
RETRIEVAL = "text retrieval"
BLOCK = 256  # queries encoded at once


@dataclass(frozen=True, kw_only=True)
class SearchConfig(JudgeConfig):
    """Settings of `python -m lcrec.evaluate search`."""

    embeddings: Path = option("the folder of item embeddings to retrieve from")
    encoder: str | None = option("their encoder, if it lies elsewhere now", None)
    templates: list[str] | None = option(
        "itemsearch templates that use the intention (default: see above)", None
    )
    users: int | None = option("users to sample (default: all with an intention)", None, minimum=1)
    k: int | None = option(
        "items to rank per query, the depth of MRR (default: 20, or all of a smaller catalogue)",
        None,
        minimum=10,
    )
    seed: int = option("of sampling and the bootstrap", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(SearchConfig, argv, prog=f"{PROG} search", example=EXAMPLE)
    vectors, path = read_embeddings(config.data, config.embeddings)
    subject = subject_of(config)
    num_items = len(subject.data.items)
    k = min(20, num_items) if config.k is None else config.k
    if k > num_items:
        raise InputError(f"--k {k}: the catalogue has only {num_items} items")
    templates = choose_templates(subject, config.templates)
    queries, owners, targets = make_queries(subject, config.users, config.seed)
    from lcrec.index.encoders import encoder_of, mean_by_owner

    encode = encoder_of(config.embeddings, config.encoder)
    print(
        f"Ranking {num_items:,} items for {len(queries):,} intentions of {len(targets):,} users, "
        f"by text and with {len(templates)} template(s)"
    )
    if "itemsearch" not in subject.parts.tasks:
        print("Note: this model was not trained on itemsearch; it is asked what it never learnt.")
    texts = [query.query or "" for query in queries]
    ranked = {RETRIEVAL: (owners, rank_by_text(encode, vectors, texts, k))}
    records = [subject.recommender.request_encoder.record(query) for query in queries]
    for template in templates:
        asked = np.flatnonzero([template.can_ask(record) for record in records])
        if len(asked):
            own = [replace(queries[row], template=template, k=k) for row in asked]
            with ProgressBar(len(own), template.id, "queries") as bar:
                lists = subject.recommender.rank(own, count_done=bar.update).items
            ranked[template.id] = (owners[asked], lists)
        else:
            print(f"Note: {template.id} asks with what no user has; left out.")
    rows: dict[str, dict[str, Summary | None]] = {}
    counts = {}
    for name, (users, lists) in ranked.items():
        by_query = measure_lists(lists, targets[users], k)
        counts[name] = len(np.unique(users))
        rows[name] = {
            metric: summarise(mean_by_owner(values, users), config.seed)
            for metric, values in by_query.items()
        }
    print(f"\nMRR looks {k} items deep. Below each value, its 95 % interval over users.\n")
    print(format_values(rows, "asked by"))
    for name, count in counts.items():
        if count < len(targets):
            print(f"  {name}: {count:,} users; the others lack what it asks with")
    inputs = {**subject.inputs, "embeddings": path}
    record = {
        "users": len(targets),
        "queries": len(queries),
        "mrr_depth": k,
        "runs": {name: {"users": counts[name], "overall": rows[name]} for name in rows},
    }
    settings = config_dict(config) | {"k": k}
    write_result(config.output, "search", settings, inputs, record, overwrite=config.overwrite)


def choose_templates(subject: Subject, wanted: list[str] | None) -> list[Template]:
    """Return the templates to ask with, by default one for each set of things to ask with.

    Raises:
        InputError: an unknown id, or a template without an intention.
    """
    return subject.parts.prompts.evaluation_templates(
        "itemsearch",
        wanted or ["first"],
        accepts=lambda template: "intention" in template.question_variables,
        that="that asks with {{ intention }}",
        kind=lambda template: template.question_variables,
    )


def make_queries(
    subject: Subject, users: int | None, seed: int
) -> tuple[list[RankingRequest], np.ndarray, np.ndarray]:
    """Return the intentions of a sample of users who have a test intention, as requests.

    Returns:
        the requests, the row of each one's user in the targets int64 [requests], and the users'
        targets int64 [users].

    Raises:
        InputError: the data set has no test intentions, or none of the test part's users.
    """
    from lcrec.generate.requests import RankingRequest

    texts = subject.data.user_texts
    if texts is None or not texts.test_intentions:
        raise InputError(
            "search needs what users look for at the test item, which this data set's "
            "<Name>.user.json does not say; make it with: python -m lcrec.intents"
        )
    test = subject.split.test.one_per_user()
    known = [case for case, user in enumerate(test.users) if user in texts.test_intentions]
    if not known:
        raise InputError(
            "no user with a test intention in <Name>.user.json has an item in the test part; write "
            "the intentions anew with: python -m lcrec.intents"
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(known)[:users])
    queries, owners = [], []
    for row, case in enumerate(drawn.tolist()):
        user = test.users[case]
        preference = texts.preferences.get(user, [""])[0]
        for text in texts.test_intentions[user]:
            queries.append(RankingRequest(test.histories[case], text, preference))
            owners.append(row)
    return queries, np.asarray(owners), test.targets[drawn].astype(np.int64)


def rank_by_text(encode: Encoder, vectors: np.ndarray, queries: list[str], k: int) -> np.ndarray:
    """Return the k items nearest to each query by cosine, int64 [queries, k].

    Args:
        encode: the encoder of the item embeddings.
        vectors: the item embeddings, float [items, dim].
        queries: what is looked for.
        k: how many items; of equals the lower id comes first.
    """
    unit = unit_rows(vectors)
    items = np.empty((len(queries), k), dtype=np.int64)
    for start in progress(range(0, len(queries), BLOCK), RETRIEVAL, "batches"):
        found = unit_rows(encode(queries[start : start + BLOCK])) @ unit.T
        items[start : start + BLOCK] = [ranked for ranked, _ in top_items(found, k)]
    return items
