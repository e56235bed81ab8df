"""Scores the prompt templates of `seqrec` on a trained model: which works best, without training.

Asks a checkpoint with every template, those never trained on and freshly edited ones too, and ranks
the whole catalogue for the same held-out users each time. Reads a checkpoint, a data folder and,
where given, a prompts folder; writes to the screen only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.core.console import ProgressBar
from lcrec.data.splits import EvalCases
from lcrec.evaluate.checkpoint import load_subject
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest, case_requests, require_neighbours
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.templates import Template
from lcrec.rankings.metrics import bootstrap_interval, ndcg_at_k, recall_at_k

DEPTH = 10
# Enough for the far tails that a choice among many templates asks for.
SAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Score:
    """How a template did.

    Attributes:
        template: the prompt template.
        kind: what the model knows of it: "trained", "eval-only", "reworded" or "new".
        hits, ndcg: HR@10 (Recall@10 of several targets) and NDCG@10 of each case, float64 [cases].
    """

    template: Template
    kind: str
    hits: np.ndarray
    ndcg: np.ndarray


def score_model(
    folder: Path,
    data: Path,
    own: Path | None,
    split: str,
    users: int,
    seed: int,
    index: Path | None = None,
) -> None:
    """Load a checkpoint, score every template of `seqrec` on the same users, print the table.

    Args:
        folder: the checkpoint.
        data: the data folder it was trained on.
        own: a prompts folder to score; by default the checkpoint's own templates.
        split: "valid" or "test".
        users: how many users to ask for, drawn by `seed`.
        seed: of the draw and of the intervals.
        index: adds items to the checkpoint's own index, as the data folder has them.

    Raises:
        InputError: a folder is wrong, or they do not belong together.
    """
    prompts = PromptSet.load(own, base=SHIPPED_PROMPTS) if own is not None else None
    subject = load_subject(folder, data, index=index)
    own_split, known = subject.split, subject.parts.prompts
    cases = (own_split.valid if split == "valid" else own_split.test).sample_users(users, seed)
    default = known.evaluation_templates("seqrec")[0]
    templates = [t for t in (prompts or known).templates if t.task == "seqrec"]
    for template in templates:
        require_neighbours(template, subject.parts.nearby)
    asked = trained = subject.recommender
    if prompts is not None:
        asked = Recommender(
            trained.model,
            trained.tokenizer,
            trained.index,
            prompts,
            max_history=trained.request_encoder.max_history,
            nearby=trained.request_encoder.nearby,
        )
    print(
        f"Asking {folder} with {len(templates)} templates of seqrec for the {split} items of "
        f"{cases.describe()}, ranking {len(trained.index):,} items"
    )
    scores = score_templates(asked, templates, cases, known)
    same = asked.prompts.system == known.system
    baseline = next((s for s in scores if same and _asks_alike(s.template, default)), None)
    if baseline is None:
        (baseline,) = score_templates(trained, [default], cases, known)
    if not same:
        print("The system message is not the one that the model was trained with.")
    chosen = print_scores(scores, baseline, seed, cases)
    flags = f"--templates {chosen.template.id}"
    if own is not None and chosen in scores:
        flags = f"--prompts {own} {flags}"
    if index is not None:
        flags = f"--index {index} {flags}"
    print(
        f"Next: python -m lcrec.generate --model {folder} --data {data} {flags} "
        "--output DIR/predictions.jsonl"
    )


def score_templates(
    recommender: Recommender, templates: list[Template], cases: EvalCases, known: PromptSet
) -> list[Score]:
    """Rank the catalogue for every case with every template.

    Args:
        recommender: the model, with the prompt set (its system message) to ask with.
        templates: those of `seqrec`.
        cases: whom to ask for.
        known: what the model was trained on.
    """
    scores = []
    k = min(DEPTH, len(recommender.index))
    asks = [case_requests(cases, RankingRequest(k=k, template=own)) for own in templates]
    prompts = [recommender.encode(requests) for requests in asks]
    bar = ProgressBar(len(templates) * len(cases), "rank", "rankings", leave=False)
    for template, requests, prompt_ids in zip(templates, asks, prompts, strict=True):
        ranked = recommender.rank(requests, prompt_ids, count_done=bar.update).items
        hits = recall_at_k(ranked, cases.targets, DEPTH)
        ndcg = ndcg_at_k(ranked, cases.targets, DEPTH)
        scores.append(Score(template, _kind(template, known), hits, ndcg))
    bar.close()
    return scores


def print_scores(
    scores: list[Score], baseline: Score, seed: int, cases: EvalCases | None = None
) -> Score:
    """Print a line per template, best first, and return the one to use.

    That is the best by NDCG@10 if it beats the baseline beyond chance, else the baseline.

    Args:
        scores: at least one.
        baseline: the template that the model answers with when none is named; also among `scores`,
            or not.
        seed: of the bootstrap.
        cases: those that were asked; None for one of each user.
    """
    owners = None if cases is None else cases.owners
    others = [score for score in scores if score is not baseline]
    rows = sorted([*others, baseline], key=lambda score: -score.ndcg.mean())
    metric = "HR@10" if cases is None or cases.targets.ndim == 1 else "Recall@10"
    print(f"\n{'':<30}{'use':<7}{'text':<9}{metric:>9}{'':<13}{'NDCG@10':>9}")
    for score in rows:
        cells = []
        for values in (score.hits, score.ndcg):
            low, high = bootstrap_interval(values, seed, owners=owners)
            cells.append(f"{values.mean():.4f}  {low:.3f}-{high:.3f}")
        mark = "  <- the default" if score is baseline else ""
        name = f"{score.template.id:<30}{score.template.use:<7}{score.kind:<11}"
        print(f"{name}{cells[0]:>20}{cells[1]:>22}{mark}")
    print("Intervals: 95 %, bootstrap over users.")

    best = rows[0]
    if best is baseline:
        print(f"\nBest is the default, {best.template.id}.")
        return best
    # The best of many looks better than it is: the interval is widened for the choice (Bonferroni).
    difference = best.ndcg - baseline.ndcg
    level = 1 - 0.05 / len(others)
    low, high = bootstrap_interval(difference, seed, SAMPLES, level, owners)
    print(
        f"\nBest is {best.template.id}: NDCG@10 {difference.mean():+.4f} against the default, "
        f"{baseline.template.id}; interval {low:+.4f} to {high:+.4f}\n"
        f"(95 %, the same users, widened for the choice among {len(others)})."
    )
    if low > 0:
        print("That is beyond chance.")
        return best
    print("That is within chance: no reason here to leave the default.")
    return baseline


def _kind(template: Template, known: PromptSet) -> str:
    """Return what a model trained on `known` has seen of this template."""
    same = [t for t in known.templates if _asks_alike(t, template)]
    if any(t.use != "eval" for t in same):
        return "trained"
    if same:
        return "eval-only"
    return "reworded" if any(t.id == template.id for t in known.templates) else "new"


def _asks_alike(one: Template, other: Template) -> bool:
    return (one.task, one.question.strip()) == (other.task, other.question.strip())
