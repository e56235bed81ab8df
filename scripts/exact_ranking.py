"""Measure what the beam loses against scoring every item exactly, and what else moves a ranking.

    python scripts/exact_ranking.py --model runs/office/model --data data/Office --output runs/exact

Ranks for some users of a split by every item's own score: as many beams as there are items, which
a search by levels keeps all, so that nothing is cut. For a few of them it is checked against plain
forward passes over the prompt and each item's tokens. Beside it, for the same users: rankings of a
few beams, with history items masked, joined over all templates that serve evaluation, and with a
share of each item's unconditional log-probability subtracted (the mean probability over the
validation users' histories, or how often the item stands in training), the share chosen on the
validation users. The scores are kept in --output, so that a run goes on where it stopped. The last
line is a JSON object.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lcrec.core.artifacts import find_data
from lcrec.core.config import option, parse_config
from lcrec.core.console import ProgressBar
from lcrec.core.errors import InputError, run_stage
from lcrec.core.provenance import require_same_input
from lcrec.data.data_set import DataSet, load_data
from lcrec.data.splits import EvalCases
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest, case_requests
from lcrec.prompts.encoder import item_token_ids
from lcrec.rankings.fusion import join_lists
from lcrec.rankings.metrics import hit_at_k, ndcg_at_k, summarise
from lcrec.rankings.predictions import top_items

COMMAND = "python scripts/exact_ranking.py"
K = 10
BEAMS = (10, 20, 50, 100, 200)
SHARES = tuple(round(0.1 * step, 1) for step in range(11))
CHECKED = 2  # users whose scores are compared with plain forward passes
AT_ONCE = 512  # items in a plain forward pass
BLOCK = 25  # users whose scores are written together


@dataclass(frozen=True)
class ExactConfig:
    """Settings of `python scripts/exact_ranking.py`."""

    model: Path = option("the checkpoint folder")
    data: Path = option("the data folder that it was trained on")
    output: Path = option("the folder for the scores")
    users: int = option("users of each split", 400, minimum=2)
    seed: int = option("decides which", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Score, and print the table."""
    config = parse_config(ExactConfig, argv, description=__doc__ or "", prog=COMMAND)
    require_same_input(config.model, "item", find_data(config.data).item, "lcrec finetune")
    found = load_data(config.data)
    recommender = Recommender.from_pretrained(config.model)
    valid, test = (
        cases.one_per_user().sample(config.users, config.seed)
        for cases in (found.split.valid, found.split.test)
    )
    exact = {
        name: exact_scores(recommender, cases, config.output / f"{name}-{config.seed}")
        for name, cases in (("valid", valid), ("test", test))
    }
    figures: dict[str, object] = {
        "users": len(test),
        "items": len(found.items),
        "largest_difference": largest_difference(recommender, test, exact["test"]),
    }
    print(f"\n{len(test)} test users, {len(found.items)} items")
    print(f"{'':44}{'HR@10':>8}{'':14}{'NDCG@10':>8}{'of exact top 10':>17}")
    best = ranked_by(exact["test"], test)

    def tell(name: str, ranked: np.ndarray) -> None:
        """Print a row, and keep its figures."""
        hits, gains = hit_at_k(ranked, test.targets, K), ndcg_at_k(ranked, test.targets, K)
        interval = summarise(hits, 0)
        same = np.mean(
            [np.isin(row[:K], own).sum() / K for row, own in zip(ranked, best, strict=True)]
        )
        print(
            f"{name:44}{hits.mean():8.4f}  {interval['low']:.3f}-{interval['high']:.3f} "
            f"{gains.mean():8.4f}{same:17.4f}"
        )
        figures[name] = {"hr@10": hits.mean(), "ndcg@10": gains.mean(), "same": float(same)}

    tell("every item", best)
    for beams in BEAMS:
        tell(f"{beams} beams", beam_lists(recommender, test, beams))
    tell("every item, history masked", ranked_by(exact["test"], test, masked=True))
    lists = [
        recommender.rank(case_requests(test, RankingRequest(k=50, template=template)))
        for template in recommender.prompts.evaluation_templates("seqrec", ["all"])
    ]
    if len(lists) > 1:
        for number, own in enumerate(lists, start=1):
            tell(f"50 beams, template {number}", own.items[:, :K])
        items, scores = (np.stack([getattr(own, name) for own in lists]) for name in FIELDS)
        tell(f"50 beams, {len(lists)} templates joined", join_lists(items, scores, K)[0])
    for name, prior in priors(found, exact["valid"]).items():
        values = {
            share: ndcg_at_k(ranked_by(exact["valid"] - share * prior, valid), valid.targets, K)
            for share in SHARES
        }
        chosen = max(values, key=lambda share: values[share].mean())
        figures[f"{name}: valid NDCG@10 by share"] = {
            share: float(value.mean()) for share, value in values.items()
        }
        tell(
            f"every item, less {chosen} of {name}", ranked_by(exact["test"] - chosen * prior, test)
        )
        for share in SHARES[1:]:
            ranked = ranked_by(exact["test"] - share * prior, test)
            gains = ndcg_at_k(ranked, test.targets, K)
            figures[f"{name}: test NDCG@10 less {share}"] = gains.mean()
        kept = recommender.rank(case_requests(test, RankingRequest(k=100)))
        again = np.where(
            kept.items >= 0, kept.scores - chosen * prior[kept.items.clip(min=0)], -np.inf
        )
        order = np.argsort(-again, axis=1, kind="stable")[:, :K]
        tell("the same, of 100 beams' items", np.take_along_axis(kept.items, order, axis=1))
    print(json.dumps(figures))


FIELDS = ("items", "scores")


def exact_scores(recommender: Recommender, cases: EvalCases, folder: Path) -> np.ndarray:
    """Return every item's log-probability after every history, float32 [cases, items]."""
    folder.mkdir(parents=True, exist_ok=True)
    num_items = len(recommender.index)
    parts = []
    with ProgressBar(len(cases), "score", "users") as bar:
        for start in range(0, len(cases), BLOCK):
            path = folder / f"{start:06}.npy"
            own = cases.take(range(start, min(start + BLOCK, len(cases))))
            if not path.exists():
                ranking = recommender.rank(
                    case_requests(own, RankingRequest(k=num_items, num_beams=num_items))
                )
                scores = np.empty((len(own), num_items), dtype=np.float32)
                np.put_along_axis(scores, ranking.items, ranking.scores, axis=1)
                np.save(path.with_suffix(".partial.npy"), scores)
                path.with_suffix(".partial.npy").rename(path)
            parts.append(np.load(path))
            if parts[-1].shape != (len(own), num_items):
                raise InputError(f"{path}: is of other users or items; name another --output")
            bar.update(len(own))
    return np.concatenate(parts)


@torch.no_grad()
def largest_difference(recommender: Recommender, cases: EvalCases, scores: np.ndarray) -> float:
    """Return by how much plain forward passes over each item's tokens differ, at most."""
    paths = torch.from_numpy(item_token_ids(recommender.tokenizer, recommender.index))
    depth = paths.shape[1]
    requests = case_requests(cases.take(range(CHECKED)), RankingRequest())
    differences = []
    for prompt, own in zip(recommender.encode(requests), scores, strict=False):
        totals = []
        for some in paths.split(AT_ONCE):
            ids = torch.cat([torch.tensor(prompt).expand(len(some), -1), some], dim=1)
            logits = recommender.model(input_ids=ids.to(recommender.model.device)).logits
            steps = logits[:, -depth - 1 : -1].float().log_softmax(dim=-1).cpu()
            totals.append(steps.gather(2, some[..., None]).sum(dim=(1, 2)))
        differences.append(np.abs(torch.cat(totals).numpy() - own).max())
    return float(max(differences))


def beam_lists(recommender: Recommender, cases: EvalCases, beams: int) -> np.ndarray:
    """Return the first items by a search with so many beams, int64 [cases, K]."""
    return recommender.rank(case_requests(cases, RankingRequest(k=K, num_beams=beams))).items


def ranked_by(scores: np.ndarray, cases: EvalCases, *, masked: bool = False) -> np.ndarray:
    """Return the first items by their scores, int64 [cases, K], with the history masked or not."""
    exclude = None
    if masked:  # never the target, as for every method
        exclude = [
            history[history != target]
            for history, target in zip(cases.histories, cases.first_targets, strict=True)
        ]
    return np.stack([items for items, _ in top_items(scores, K, exclude)])


def priors(found: DataSet, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Return log-probabilities of the items before anything is known of the user, [items] each."""
    mean = np.logaddexp.reduce(valid.astype(np.float64), axis=0) - np.log(len(valid))
    counts = np.bincount(found.split.train.items, minlength=valid.shape[1]) + 1.0
    return {"mean probability": mean, "count": np.log(counts / counts.sum())}


if __name__ == "__main__":
    run_stage(main)
