"""The next item, or one like it? Pairwise accuracy of a checkpoint (LC-Rec, Table V).

Reads a checkpoint, the data folder and item embeddings. For every item held out the model weighs
the item that came next against another that the user has never had: the one nearest in text (cosine
of the embeddings), the one that most customers of the next item bought too (in training; LC-Rec
took the nearest by SASRec's embedding), and one drawn at random. The item with the higher
log-probability after the prompt is the model's choice; equal ones count half. Accuracy is the share
of cases in which that is the item that came next; intervals are over users, each drawn with all
their cases.

By default the model is asked with the first template of `seqrec` that serves evaluation and, where
it was trained on `fusionseqrec`, with the first one that shows titles (LC-Rec's "Title").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.console import ProgressBar
from lcrec.data.folder import Interactions, unit_rows
from lcrec.data.splits import EvalCases
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
from lcrec.prompts.tasks import mixed_record, sequence_record
from lcrec.prompts.templates import Template
from lcrec.rankings.metrics import summarise

EXAMPLE = "--model runs/shop/model --data data/shop --embeddings runs/shop/embeddings"
BLOCK = 256  # cases whose similarities to the whole catalogue are in memory at once
Seen = Sequence[np.ndarray]


def similar_in_text(vectors: np.ndarray, targets: np.ndarray, seen: Seen) -> np.ndarray:
    """Return the item whose text is nearest to the target's by cosine, int64 [cases].

    Args:
        vectors: text embeddings, float [items, dim].
        targets: item ids [cases].
        seen: per case the items that are no negatives, the target among them.

    Returns:
        the nearest, of equals the one with the lower id; -1 where every item was seen.
    """
    unit = unit_rows(vectors)
    found = np.full(len(targets), -1)
    for start in range(0, len(targets), BLOCK):
        rows = slice(start, start + BLOCK)
        found[rows] = _nearest(unit[targets[rows]] @ unit.T, seen[rows], least=-np.inf)
    return found


def bought_alike(
    train: Interactions, num_items: int, targets: np.ndarray, seen: Seen
) -> np.ndarray:
    """Return the item that most of the target's customers bought in training, int64 [cases].

    Of items with equally many shared customers, the one with the fewest others wins. Shared
    customers come first because the few decide otherwise: by cosine, most of Amazon Office's
    negatives are items bought twice, which a model tells apart by rarity alone. Arguments as for
    `similar_in_text`.

    Returns:
        -1 where no other item shares a customer with the target; of equals the lower id.
    """
    owners = train.owners
    pairs = np.ones(len(owners)), (owners, train.items)
    users_by_items = sparse.csr_array(pairs, shape=(len(train), num_items))
    users_by_items.data[:] = 1  # a repeated purchase counts once
    items_by_users = sparse.csr_array(users_by_items.T)
    customers = np.bincount(users_by_items.indices, minlength=num_items)
    found = np.full(len(targets), -1)
    for start in range(0, len(targets), BLOCK):
        rows = slice(start, start + BLOCK)
        shared = (items_by_users[targets[rows]] @ users_by_items).toarray()
        # At most one half, so that it decides between equals only.
        shared += np.where(shared > 0, 0.5 / np.maximum(customers, 1), 0)
        found[rows] = _nearest(shared, seen[rows], least=0.0)
    return found


def at_random(num_items: int, seen: Seen, seed: int) -> np.ndarray:
    """Return any item that was not seen, int64 [cases], each as likely; -1 where there is none."""
    rng = np.random.default_rng(seed)
    found = np.full(len(seen), -1)
    for case, own in enumerate(seen):
        taken = np.unique(own)
        left = num_items - len(taken)
        if left:
            place = rng.integers(left)  # among the others, in the order of their ids
            found[case] = place + np.searchsorted(taken - np.arange(len(taken)), place, "right")
    return found


def _nearest(scores: np.ndarray, seen: Seen, least: float) -> np.ndarray:
    """Return the column of the largest score above `least` in each row, -1 where there is none."""
    for row, own in enumerate(seen):
        scores[row, own] = -np.inf
    return np.where(scores.max(axis=1) > least, scores.argmax(axis=1), -1)


NEGATIVES = {
    "language": "nearest by cosine of the text embeddings",
    "collaborative": "shares the most customers in training; of equals, the rarest",
    "random": "any item, by seed",
}


@dataclass(frozen=True, kw_only=True)
class PairsConfig(JudgeConfig):
    """Settings of `python -m lcrec.evaluate pairs`."""

    embeddings: Path = option("the item embeddings that say which texts are alike")
    split: Literal["valid", "test"] = option("which held-out item is the next one", "test")
    templates: list[str] | None = option(
        "templates to ask with, of seqrec or of fusionseqrec from titles (default: see above)", None
    )
    users: int | None = option("users to sample (default: all)", None, minimum=1)
    seed: int = option("of sampling, random negatives and the bootstrap", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(PairsConfig, argv, prog=f"{PROG} pairs", example=EXAMPLE)
    vectors, path = read_embeddings(config.data, config.embeddings)
    subject = subject_of(config)
    num_items = len(subject.data.items)
    templates = choose_templates(subject, config.templates)
    cases = subject.split.valid if config.split == "valid" else subject.split.test
    cases = cases.one_target_each().sample_users(config.users, config.seed)
    owners = cases.owners
    seen = seen_items(subject, cases)
    print(
        f"Asking {cases.describe()} for the next item against three others, with "
        f"{len(templates)} template(s)"
    )
    negatives = {
        "language": similar_in_text(vectors, cases.targets, seen),
        "collaborative": bought_alike(subject.data.train, num_items, cases.targets, seen),
        "random": at_random(num_items, seen, config.seed),
    }
    rows: dict[str, dict[str, Summary | None]] = {}
    result = {}
    for template in templates:
        accuracy = pairwise_accuracy(subject, template, cases, negatives)
        asked = {kind: ~np.isnan(values) for kind, values in accuracy.items()}
        rows[template.id] = {
            kind: summarise(values[asked[kind]], config.seed, owners[asked[kind]])
            if asked[kind].any()
            else None
            for kind, values in accuracy.items()
        }
        result[template.id] = {
            kind: {"pairs": int(those.sum()), **(rows[template.id][kind] or {})}
            for kind, those in asked.items()
        }
    print("\nAccuracy against each kind of negative; below, its 95 % interval over users.\n")
    print(format_values(rows, "template"))
    for kind, meaning in NEGATIVES.items():
        counts = {template: result[template][kind]["pairs"] for template in result}
        pairs = ", ".join(f"{count:,}" for count in dict.fromkeys(counts.values()))
        print(f"  {kind}: {meaning}; {pairs} pairs")
    settings = config_dict(config)
    inputs = {**subject.inputs, "embeddings": path}
    users = len(set(cases.users))
    several = {"cases": len(cases)} if users < len(cases) else {}
    record = {"users": users, **several, "negatives": NEGATIVES, "templates": result}
    write_result(config.output, "pairs", settings, inputs, record, overwrite=config.overwrite)


def choose_templates(subject: Subject, wanted: list[str] | None) -> list[Template]:
    """Return the templates to ask with.

    Raises:
        InputError: an unknown id, or a template that does not go from a history to the next item.
    """
    tasks = ["seqrec", "fusionseqrec"]
    if wanted is None and "fusionseqrec" not in subject.parts.tasks:
        tasks = ["seqrec"]
    return subject.parts.prompts.evaluation_templates(
        tasks,
        wanted or ["first"],
        accepts=lambda template: template.is_item_answer,
        that="whose answer is {{ target }}",
    )


def seen_items(subject: Subject, cases: EvalCases) -> list[np.ndarray]:
    """Return all items each user ever had, which cannot be wrong answers, [cases] arrays."""
    whole = dict(zip(subject.interactions.users, subject.interactions, strict=True))
    return [whole[user] for user in cases.users]


def pairwise_accuracy(
    subject: Subject, template: Template, cases: EvalCases, negatives: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return 1 where the model prefers the true next item, 0 where it does not, .5 for a tie.

    Args:
        subject: the model and its data.
        template: the prompt template.
        cases: the users.
        negatives: by kind, an item per case, int64 [cases]; -1 where there is none.

    Returns:
        by kind, float64 [cases]; NaN where there is no negative, or the template cannot ask because
        no title of the history is known.
    """
    recommender = subject.recommender
    items = np.stack([cases.targets, *negatives.values()], axis=1).astype(np.int64)
    data = subject.data
    nearby = data.nearby if data.shows_neighbours else None
    records = [
        mixed_record(data, history, int(target))
        | sequence_record(data.index, history, data.max_history, nearby)
        for history, target in zip(cases.histories, cases.targets, strict=True)
    ]
    can_ask = np.flatnonzero([template.can_ask(record) for record in records])
    prompt_ids = recommender.request_encoder.encode_for_items(
        [template.ask(records[case]) for case in can_ask]
    )
    scores = np.full(items.shape, np.nan)

    def score(rows: np.ndarray, batch: list[list[int]]) -> None:
        chosen = can_ask[rows]
        scores[chosen] = score_items(subject, batch, items[chosen])

    with ProgressBar(len(prompt_ids), template.id, "users") as bar:
        recommender.run_in_batches(prompt_ids, score, bar.update)
    true = scores[:, 0]
    return {
        kind: np.where(
            (items[:, place] < 0) | np.isnan(true),
            np.nan,
            (true > scores[:, place]) + 0.5 * (true == scores[:, place]),
        )
        for place, kind in enumerate(negatives, start=1)
    }


def score_items(subject: Subject, prompt_ids: list[list[int]], items: np.ndarray) -> np.ndarray:
    """Return how likely the model finds given items after each prompt of one batch.

    Args:
        subject: the model.
        prompt_ids: the prompts.
        items: int64 [batch, width], the items to score, -1 as padding.

    Returns:
        float32 [batch, width], log-probabilities as in ranking; -inf where the item is -1.
    """
    from lcrec.generate.item_filter import LeafFilter

    recommender = subject.recommender
    allow = [np.unique(own[own >= 0]) for own in items]
    leaf_filter = LeafFilter.build(recommender.trie, len(items), allow)
    # As many as are allowed at most: none of them can be lost on the way.
    most = max(map(len, allow))
    found, likely = recommender.rank_batch(prompt_ids, most, leaf_filter=leaf_filter)
    is_same = found[:, None, :] == items[:, :, None]  # [row, place, rank]
    is_same &= (items >= 0)[:, :, None]
    return np.where(is_same, likely[:, None, :], -np.inf).max(axis=2).astype(np.float32)
