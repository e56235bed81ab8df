"""Measure how well items are recommended that joined the catalogue after the training.

    python scripts/cold_items.py --data D --embeddings E --base B --output RUN

Removes a share of the items from the catalogue and from every sequence; an index is made and a
model trained without them. Then they are added by the stages' own `--add`, and the
unchanged checkpoint ranks for the users whose last item is one of them: among these cold items
alone (an allow list), and among all items. Beside it the semantic nearest neighbour: the cosine of
an item's embedding with the mean of the history's. Last comes what places that are reserved for
the cold items (`generate --reserve-new`) give these users, and take from users of warm items.

The embeddings must be those of all items; unless their encoder is pretrained, they have seen the
held-out items' text, and so has a base made from it (no sequence of theirs, and no index). What is
done is not done again. The last line of the output is a JSON object.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import (
    EMBEDDINGS,
    data_paths,
    find_data,
    read_array,
    read_json,
    write_array,
    write_json,
)
from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.provenance import is_current, read_provenance, require_same_input, write_provenance
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import EvalCases, load_split
from lcrec.generate.recommender import Recommender
from lcrec.rankings.metrics import bootstrap_interval, hit_at_k, ndcg_at_k
from lcrec.rankings.predictions import read_predictions, top_items, write_predictions

TOP = Path(__file__).resolve().parents[1]
COMMAND = "python scripts/cold_items.py"
K = 10
METHODS = ("lc-rec", "nearest-neighbour")
AMONG = ("cold", "all")
RESERVED = (0, 1, 2, 5)  # places of the ten for cold items
WARM_USERS = 1000  # whose next item is no cold one: what the places cost them


@dataclass(frozen=True)
class ColdItemsConfig:
    """Settings of `python scripts/cold_items.py`."""

    data: Path = option("the data folder")
    embeddings: Path = option("the folder with the embeddings of all its items")
    base: Path = option("the folder of the base model")
    output: Path = option("the folder for everything that is made")
    recipe: Path = option("how to train", TOP / "recipes" / "cold_items.yaml")
    share: float = option("share of the items to hold out", 0.05, minimum=0)
    levels: int = option("of the index", 4, minimum=1)
    codes: int = option("of each level", 256, minimum=2)
    seed: int = option("decides which items are held out", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the experiment."""
    config = parse_config(ColdItemsConfig, argv, description=__doc__ or "", prog=COMMAND)
    run = config.output.resolve()
    hold_out(config, run)

    def stage(name: str, *words: object) -> None:
        command = [sys.executable, *name.split(), *map(str, words)]
        print(f"\n== {' '.join(map(str, (name, *words)))}", flush=True)
        subprocess.run(command, cwd=TOP, check=True)

    warm, new, grown = run / "warm", run / "new.item.json", run / "grown"
    stage(
        *("-m lcrec.quantize", "--data", warm, "--embeddings", run / "embeddings-warm"),
        *("--output", run / "index", "--levels", config.levels, "--codes", config.codes),
    )
    stage(
        *("recipes/finetune.py", "--config", config.recipe.resolve(), "--data", warm),
        *("--index", run / "index", "--base", config.base.resolve(), "--output", run / "model"),
    )
    stage("-m lcrec.add_items", "--data", warm, "--add", new, "--output", grown)
    stage(
        *("-m lcrec.quantize", "--data", grown, "--add", new, "--index", run / "index"),
        *("--embeddings", run / "embeddings", "--output", run / "index-grown"),
    )
    cases = write_cases(run)
    files = {
        (method, among): run / f"{method}-{among}.jsonl" for method in METHODS for among in AMONG
    }
    stage(
        *("-m lcrec.generate", "--model", run / "model", "--index", run / "index-grown"),
        *("--data", run / "cases", "--output", files["lc-rec", "all"], "--k", K),
    )
    num_warm, num_items = len(load_items(warm)), len(load_items(grown))
    cold = np.arange(num_warm, num_items)
    rank_cold(run, cases, cold, files["lc-rec", "cold"])
    rank_neighbours(run, cases, cold, files)

    figures: dict[str, object] = {
        "items": num_items,
        "cold_items": len(cold),
        "cases": len(cases),
        "chance_hr@10_among_cold": min(1.0, K / len(cold)),
    }
    print(f"\n{len(cases)} users whose next item is one of {len(cold)} cold items of {num_items}")
    print(f"{'':20}{'ranked among':>14}{'HR@10':>9}{'':15}{'NDCG@10':>9}")
    for (method, among), path in files.items():
        predictions = read_predictions(path)
        (ranked,) = predictions.ranked.values()
        hits = hit_at_k(ranked, predictions.targets, K)
        ndcg = ndcg_at_k(ranked, predictions.targets, K)
        low, high = bootstrap_interval(hits, 0, 1000, 0.95)
        name = f"{method.replace('-', '_')}_among_{among}"
        figures |= {f"{name}_hr@10": float(hits.mean()), f"{name}_ndcg@10": float(ndcg.mean())}
        figures[f"{name}_hr@10_interval"] = [low, high]
        print(f"{method:20}{among:>14}{hits.mean():9.4f}   {low:.3f}-{high:.3f}{ndcg.mean():9.4f}")
    figures |= price_of_places(run, cases)
    print(json.dumps(figures))


def price_of_places(run: Path, cases: EvalCases) -> dict[str, float]:
    """Print and return HR@10 among all items with places reserved, of cold and of warm items."""
    interactions = load_interactions(run / "warm", len(load_items(run / "warm")))
    others = load_split(run / "warm", interactions).test.sample(WARM_USERS, 0)
    recommender = Recommender.from_pretrained(run / "model", index=run / "index-grown")
    figures = {}
    print(f"\n{'places of ten for cold items':30}{'HR@10: cold':>22}{'warm':>24}")
    for places in RESERVED:
        line = f"{places:30}"
        for name, asked in (("cold", cases), ("warm", others)):
            ranking = recommender.recommend(asked.histories, K, reserve_new=places)
            hits = hit_at_k(ranking.items, asked.targets, K)
            low, high = bootstrap_interval(hits, 0, 1000, 0.95)
            figures[f"{name}_hr@10_with_{places}_places"] = float(hits.mean())
            line += f"{hits.mean():10.4f} {low:.3f}-{high:.3f}"
        print(line, flush=True)
    return figures


def hold_out(config: ColdItemsConfig, run: Path) -> None:
    """Write what there is before the cold items join: data and embeddings; and the items apart.

    Raises:
        InputError: the output folder holds another run, or nothing is left to train or judge on.
    """
    paths = find_data(config.data)
    inputs = {
        "item": paths.item,
        "inter": paths.inter,
        "embeddings": config.embeddings / EMBEDDINGS,
    }
    if is_current(run, COMMAND, config_dict(config), inputs):
        return
    if run.is_dir() and any(run.iterdir()) and read_provenance(run) is not None:
        raise InputError(f"--output {run}: holds a run of other settings; choose another folder")
    items = load_items(config.data)
    rebuild = f"python -m lcrec.embed --data {config.data} --output {config.embeddings}"
    require_same_input(config.embeddings, "item", paths.item, rebuild)
    embeddings = read_array(config.embeddings / EMBEDDINGS)
    if len(embeddings) != len(items):
        raise InputError(
            f"--embeddings {config.embeddings}: has {len(embeddings)} rows, {config.data} has "
            f"{len(items)} items"
        )
    count = round(config.share * len(items))
    if not K < count < len(items) - K:
        raise InputError(
            f"--share {config.share} of {len(items)} items holds {count} out; at least {K + 1} "
            "must be held out, and as many stay"
        )
    order = np.random.default_rng(config.seed).permutation(len(items))
    # The cold items come last, as they will when they join; both parts keep their order.
    order = np.concatenate([np.sort(order[count:]), np.sort(order[:count])])
    num_warm = len(items) - count
    number = np.argsort(order)
    sequences = {
        user: number[sequence].tolist()
        for user, sequence in zip(*_sequences(config.data, len(items)), strict=True)
    }
    warm = {
        user: [item for item in sequence if item < num_warm] for user, sequence in sequences.items()
    }
    raw = read_json(paths.item)
    entries = {str(place): raw[str(item)] for place, item in enumerate(order.tolist())}
    folder = data_paths(run / "warm", paths.name)
    # The split wants three items of a user: one to train, to validate and to test on.
    write_json(folder.inter, {user: kept for user, kept in warm.items() if len(kept) >= 3})
    write_json(folder.item, {key: entry for key, entry in entries.items() if int(key) < num_warm})
    new = {key: entry for key, entry in entries.items() if int(key) >= num_warm}
    write_json(run / "new.item.json", new)
    write_json(
        run / "cases.json",
        {user: kept for user, kept in sequences.items() if kept[-1] >= num_warm and len(kept) >= 3},
    )
    write_array(run / "embeddings" / EMBEDDINGS, embeddings[order])
    write_array(run / "embeddings-warm" / EMBEDDINGS, embeddings[order[:num_warm]])
    write_provenance(run, COMMAND, config_dict(config), inputs)


def _sequences(data: Path, num_items: int) -> tuple[list[str], list[np.ndarray]]:
    interactions = load_interactions(data, num_items)
    if load_split(data, interactions).kind != "leave-one-out":
        raise InputError(
            f"--data {data}: holds out more than the last items of every user, and this splits by "
            "leave-one-out; give a folder without a split.json"
        )
    return interactions.users, list(interactions)


def write_cases(run: Path) -> EvalCases:
    """Write the data folder of the users to judge on, and return their test cases."""
    grown = find_data(run / "grown")
    folder = data_paths(run / "cases", grown.name)
    if not folder.inter.exists():
        folder.inter.parent.mkdir(exist_ok=True)
        shutil.copyfile(grown.item, folder.item)
        write_json(folder.inter, read_json(run / "cases.json"))
        # The model has never seen a cold item, so it may rank what ends in one.
        record = {"inter": grown.inter}
        write_provenance(run / "cases", "python -m lcrec.add_interactions", {}, record)
    interactions = load_interactions(run / "cases", len(load_items(run / "cases")))
    return load_split(run / "cases", interactions).test


def rank_cold(run: Path, cases: EvalCases, cold: np.ndarray, path: Path) -> None:
    """Let the checkpoint rank the cold items alone, and write the predictions."""
    inputs = {"model": run / "model", "index": run / "index-grown", "cases": run / "cases"}
    if path.exists() and is_current(path, COMMAND, {}, inputs):
        return
    recommender = Recommender.from_pretrained(run / "model", index=run / "index-grown")
    ranking = recommender.recommend(cases.histories, K, allow=[cold] * len(cases))
    lists = zip(ranking.items, ranking.scores, strict=True)
    write_predictions(path, cases.predictions(lists))
    write_provenance(path, COMMAND, {}, inputs)


def rank_neighbours(
    run: Path, cases: EvalCases, cold: np.ndarray, files: dict[tuple[str, str], Path]
) -> None:
    """Rank by the cosine with the mean of the history's embeddings, and write the predictions."""
    embeddings = read_array(run / "embeddings" / EMBEDDINGS)
    means = np.stack([embeddings[history].mean(axis=0) for history in cases.histories])
    unit, towards = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
        for rows in (embeddings, means)
    )
    scores = towards @ unit.T
    others = np.arange(cold[0])
    for among, exclude in (("all", None), ("cold", [others] * len(cases))):
        lists = top_items(scores, K, exclude)
        write_predictions(files["nearest-neighbour", among], cases.predictions(lists))


if __name__ == "__main__":
    run_stage(main)
