"""Measure how well one set of item vectors predicts another, by maps of six kinds.

    ridge, procrustes        closed form: penalised least squares; a rotation and one scale
    linear, mlp-1 .. mlp-3   mean squared error, Adam; 512, 2 x 2048 and 3 x 2048 ReLU units

If text told all of behaviour, a map from text vectors to behaviour vectors would reach R^2 = 1 on
items it was not fitted on. What a linear map reaches there is about what the two share; what a
deep one adds on the items it was fitted on and loses on the others is overfitting (arXiv
2604.22195). A fifth of the items is held out to test the maps on: drawn at random, or the least
popular ones.

Reads item vectors from a `.npy` file, a folder of `python -m lcrec.embed`, or a folder that a
method was kept in with --save; prints a table; writes {"items", "distribution", "maps": {map:
figures}} with --output (the figures of `judge_map`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lcrec.baselines.runs.inputs import load_inputs
from lcrec.core.artifacts import EMBEDDINGS, METHOD_WEIGHTS, read_array, write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import progress
from lcrec.core.errors import InputError, closest
from lcrec.core.outputs import publish
from lcrec.core.provenance import write_provenance
from lcrec.data.folder import unit_rows

HIDDEN: dict[str, tuple[int, ...]] = {
    "linear": (),
    "mlp-1": (512,),
    "mlp-2": (2048, 2048),
    "mlp-3": (2048, 2048, 2048),
}
MAPS = ("ridge", "procrustes", *HIDDEN)
RIDGE = 1.0  # beside a Gram matrix of train items of variance one
LEARNING_RATE = 1e-3
BATCH = 1024
NEIGHBOURS = 20
ANCHORS = 1000
Mapping = Callable[[np.ndarray], np.ndarray]


def fit_map(
    kind: str, source: np.ndarray, target: np.ndarray, *, epochs: int = 400, seed: int = 0
) -> Mapping:
    """Fit a map on paired rows.

    Both sides are centred and brought to variance one over all their numbers first, so that
    nothing depends on their scales.

    Args:
        kind: one of `MAPS`.
        source: float32 [items, source dim].
        target: float32 [items, target dim].
        epochs: of the maps that are trained; the others ignore it.
        seed: likewise.

    Returns:
        a function from float32 [any, source dim] to float32 [any, target dim].
    """
    centre, aim = source.mean(axis=0), target.mean(axis=0)
    scale, spread = (float(np.std(rows - rows.mean(axis=0))) or 1.0 for rows in (source, target))
    x, y = (source - centre) / scale, (target - aim) / spread
    if kind in HIDDEN:
        inner = _train(HIDDEN[kind], x, y, epochs, seed)
    else:
        inner = _closed_form(kind, x.astype(np.float64), y.astype(np.float64))

    def mapped(rows: np.ndarray) -> np.ndarray:
        return np.asarray(inner((rows - centre) / scale) * spread + aim, dtype=np.float32)

    return mapped


def r_squared(mapped: np.ndarray, target: np.ndarray) -> float:
    """Return 1 - squared error / variance, the mean over dimensions that vary; may be negative.

    Args:
        mapped, target: [items, dim].
    """
    error = np.square(mapped - target).mean(axis=0)
    variance = target.var(axis=0)
    varies = variance > 0
    return float((1 - error[varies] / variance[varies]).mean())


def mean_cosine(mapped: np.ndarray, target: np.ndarray) -> float:
    """Return the mean over items of the cosine of both vectors, [items, dim]."""
    return float((unit_rows(mapped) * unit_rows(target)).sum(axis=1).mean())


def neighbour_jaccard(mapped: np.ndarray, target: np.ndarray, count: int = NEIGHBOURS) -> float:
    """Return how alike the sets of nearest items are: |both| / |either|, mean over items.

    Args:
        mapped, target: [items, dim]; neighbours are by cosine among these items, without itself.
        count: neighbours per item; fewer where there are fewer others.
    """
    count = min(count, len(mapped) - 1)
    total = 0.0
    sides = (unit_rows(mapped), unit_rows(target))
    for start in range(0, len(mapped), 512):
        rows = np.arange(start, min(start + 512, len(mapped)))
        nearest = []
        for vectors in sides:
            cosines = vectors[rows] @ vectors.T
            cosines[np.arange(len(rows)), rows] = -np.inf
            nearest.append(np.argpartition(-cosines, count - 1, axis=1)[:, :count])
        common = (nearest[0][:, :, None] == nearest[1][:, None, :]).sum(axis=(1, 2))
        total += float((common / (2 * count - common)).sum())
    return total / len(mapped)


def anchor_correlation(mapped: np.ndarray, target: np.ndarray, seed: int = 0) -> float:
    """Return the rank correlation (Spearman) of cosines to anchors, mean over items.

    Args:
        mapped, target: [items, dim]; the anchors are `ANCHORS` of these items, or all.
        seed: of the draw of anchors.
    """
    from scipy import stats  # here, for it takes as long to load as torch

    anchors = np.random.default_rng(seed).permutation(len(mapped))[:ANCHORS]
    sides = [unit_rows(vectors) for vectors in (mapped, target)]
    total = 0.0
    for start in range(0, len(mapped), 512):
        ranks = [
            stats.rankdata(vectors[start : start + 512] @ vectors[anchors].T, axis=1)
            for vectors in sides
        ]
        centred = [unit_rows(rank - rank.mean(axis=1, keepdims=True)) for rank in ranks]
        total += float((centred[0] * centred[1]).sum())
    return total / len(mapped)


def judge_map(
    mapping: Mapping, source: np.ndarray, target: np.ndarray, train: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Return how well a map does on the items it was fitted on and on the others.

    Args:
        mapping: as `fit_map` returns it.
        source, target: float32 [items, dim] of either side.
        train: bool [items], which it was fitted on; the figures are of the others unless named
            otherwise.
        seed: of the draw of anchors.
    """
    mapped = mapping(source)
    unseen, truth = mapped[~train], target[~train]
    return {
        "train_r2": r_squared(mapped[train], target[train]),
        "test_r2": r_squared(unseen, truth),
        "cosine": mean_cosine(unseen, truth),
        "neighbours": neighbour_jaccard(unseen, truth),
        "spearman": anchor_correlation(unseen, truth, seed),
    }


def _closed_form(kind: str, x: np.ndarray, y: np.ndarray) -> Mapping:
    if kind == "ridge":
        gram = x.T @ x + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x.T @ y)
    else:  # Schönemann and Carroll 1970: the rotation and the scale of least squared error
        left, stretch, right = np.linalg.svd(x.T @ y, full_matrices=False)
        rotation = left @ right
        power = np.square(x @ rotation).sum()
        weights = rotation * (stretch.sum() / power if power > 0 else 0.0)
    return lambda rows: np.asarray(rows @ weights)


def _train(
    hidden: tuple[int, ...], x: np.ndarray, y: np.ndarray, epochs: int, seed: int
) -> Mapping:
    # Here, so that options are read without torch.
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(seed)
    widths = (x.shape[1], *hidden)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], y.shape[1]))
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    inputs = torch.from_numpy(x.astype(np.float32))
    outputs = torch.from_numpy(y.astype(np.float32))
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            loss = functional.mse_loss(network(inputs[rows]), outputs[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def run(rows: np.ndarray) -> np.ndarray:
        return np.asarray(network(torch.from_numpy(rows.astype(np.float32))).numpy())

    return run


COMMAND = "python -m lcrec.baselines probe"
EXAMPLE = "--source runs/shop/embeddings --target runs/shop/lightgcn"
TEST_SHARE = 0.2
LEAST_ITEMS = 10


@dataclass(frozen=True)
class ProbeConfig(Writes):
    """Settings of `python -m lcrec.baselines probe`."""

    source: Path = option("vectors to map from: X.npy, or a folder of embeddings or of a method")
    target: Path = option("vectors to predict, likewise; row i of both is item i")
    maps: list[str] = option(
        "kinds of map", ["ridge", "procrustes", "linear", "mlp-1", "mlp-2", "mlp-3"]
    )
    distribution: Literal["random", "popularity"] = option(
        "which items are held out from the maps: any, or the least popular in the train sequences",
        "random",
    )
    data: Path | None = option("the data folder, for --distribution popularity", None)
    epochs: int = option("of the maps that are trained", 400, minimum=1)
    seed: int = option("of the draw of items and of training", 0, minimum=0)
    output: Path | None = option("where to write the numbers, *.json", None, writes=".json")


def read_vectors(path: Path) -> tuple[np.ndarray, Path]:
    """Return item vectors, float32 [items, dim], and the file they were in.

    Raises:
        InputError: there are none, or none that can be used.
    """
    if (path / METHOD_WEIGHTS).is_file():
        file = path / METHOD_WEIGHTS
        try:
            state = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file}: damaged ({error}); fit the method again") from None
        if "item_vectors" not in state:
            raise InputError(
                f"{file}: this method keeps no vector per item; it has {', '.join(sorted(state))}"
            )
        vectors = state["item_vectors"]
    else:
        file = path / EMBEDDINGS if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            raise InputError(f"{path}: holds neither {EMBEDDINGS} nor {METHOD_WEIGHTS}")
        vectors = read_array(file)
    if vectors.ndim != 2 or not vectors.shape[1] or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(
            f"{file}: expected floats of shape [items, dim], found {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InputError(f"{file}: holds values that are not finite; make it anew")
    return vectors, file


def main(argv: list[str]) -> None:
    """Fit and judge the maps."""
    config = parse_config(ProbeConfig, argv, prog=COMMAND, example=EXAMPLE)
    for kind in config.maps:
        if kind not in MAPS:
            raise InputError(f"--maps: no map {kind!r}{closest(kind, MAPS)} ({', '.join(MAPS)})")
    (source, source_file), (target, target_file) = map(read_vectors, (config.source, config.target))
    if len(source) != len(target):
        raise InputError(
            f"{source_file} has {len(source)} items, but {target_file} has {len(target)}; give "
            "vectors of one catalogue"
        )
    if len(source) < LEAST_ITEMS:
        raise InputError(f"{source_file}: {len(source)} items are too few to keep a fifth apart")
    files = {"source": source_file, "target": target_file}
    train = _train_items(config, len(source), files)
    print(
        f"Maps from {source_file} ({source.shape[1]} numbers) to {target_file} "
        f"({target.shape[1]}): fitted on {train.sum():,} items, judged on "
        f"{(~train).sum():,} ({config.distribution}).",
        flush=True,
    )
    found = {}
    for kind in progress(config.maps, "fit", "maps", leave=False):
        mapping = fit_map(
            kind, source[train], target[train], epochs=config.epochs, seed=config.seed
        )
        found[kind] = judge_map(mapping, source, target, train, config.seed)
    titles = ("train R2", "test R2", "cosine", "neighbours", "Spearman")
    print("\n" + f"{'':<12}" + "".join(f"{title:>12}" for title in titles))
    for kind, figures in found.items():
        print(f"{kind:<12}" + "".join(f"{value:>12.4f}" for value in figures.values()))
    if config.output is None:
        print("\nNothing was written; --output FILE.json keeps these numbers.")
        return
    shown = {"items": len(source), "distribution": config.distribution, "maps": found}
    with publish(config.output, COMMAND, ".json", overwrite=config.overwrite) as file:
        write_json(file, shown, indent=2)
        write_provenance(file, COMMAND, config_dict(config), files)
    print(f"\nWrote {config.output}.")


def _train_items(config: ProbeConfig, num_items: int, files: dict[str, Path]) -> np.ndarray:
    """Return which items the maps are fitted on, bool [items]; note the files that were read."""
    kept_apart = max(2, round(TEST_SHARE * num_items))
    order = np.random.default_rng(config.seed).permutation(num_items)
    if config.distribution == "popularity":
        if config.data is None:
            raise InputError("--distribution popularity needs --data DIR, to count in")
        inputs = load_inputs(config.data, None, (), "probe")
        if inputs.training.num_items != num_items:
            raise InputError(
                f"--data {config.data} has {inputs.training.num_items} items, but the vectors are "
                f"of {num_items}"
            )
        files.update(inputs.files)
        counts = np.bincount(inputs.training.train.items, minlength=num_items)
        order = order[np.argsort(counts[order], kind="stable")]  # of equals, any
    elif config.data is not None:
        raise InputError(f"--data {config.data}: only --distribution popularity counts in it")
    train = np.ones(num_items, dtype=bool)
    train[order[:kept_apart]] = False
    return train
