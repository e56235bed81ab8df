"""Measure the item index: against residual k-means, against the published rule, and at size.

    python scripts/bench_quantize.py --embeddings runs/office/embeddings

Every part runs in a process of its own:

  kmeans      the RQ-VAE of `python -m lcrec.quantize` beside residual k-means (scikit-learn) with
              the same levels and codes, on the given embeddings or on synthetic ones. Explained
              variance is that of the embeddings, which is what k-means quantises; the RQ-VAE
              quantises its latent and decodes. Conflicts are those of the nearest codes.
  parity      the same RQ-VAE beside `--parity --epochs 200`, on 10,000 x 384, both with --bf16
  assignment  a path for each of 1,000,000 items, prefixes heavily skewed
  distortion  how far, in ranks of distance among the free codes, items land from their nearest
  sinkhorn    marginals, and loads at .003, on cases from easy to degenerate

Prints what it finds, and one JSON object on the last line. About 20 minutes on two cores; name
some `--parts` for less.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from lcrec.core.artifacts import EMBEDDINGS, read_array
from lcrec.core.config import option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.index.assignment import Assignment, assign_unique, shared_rows
from lcrec.index.clustering import balanced_codes, sinkhorn
from lcrec.index.item_index import IndexSettings
from lcrec.index.rqvae import RQVAE
from lcrec.index.rqvae_training import explained_variance, train_rqvae

Figures = dict[str, Any]


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `python scripts/bench_quantize.py`."""

    embeddings: Path | None = option("a folder with embeddings.npy (default: synthetic)", None)
    parts: list[str] = option(
        "which parts to run", ["kmeans", "parity", "assignment", "distortion", "sinkhorn"]
    )
    seed: int = option("decides the data and every start", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the parts one after the other."""
    config = parse_config(BenchConfig, argv, description=__doc__ or "", prog="bench_quantize.py")
    unknown = set(config.parts) - set(PARTS)
    if unknown:
        raise InputError(f"--parts {sorted(unknown)}: there are {', '.join(PARTS)}")
    if config.embeddings and not (config.embeddings / EMBEDDINGS).exists():
        raise InputError(f"--embeddings {config.embeddings}: there is no {EMBEDDINGS} in it")
    figures: Figures = {"cores": os.cpu_count()}
    for part in config.parts:
        start = time.perf_counter()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(PARTS[part], config).result()
        print(f"{part} ({time.perf_counter() - start:.0f} s)")
        for name, value in found.items():
            print(f"  {name} = {value}")
        figures |= found
    print(json.dumps(figures))


def clusters(items: int, width: int, seed: int) -> np.ndarray:
    """Return float32 [items, width] much like texts' embeddings: topics of unequal size, kinds in
    them, a few directions that carry most, unit length."""
    rng = np.random.default_rng(seed)
    spectrum = (1 + np.arange(width)) ** -0.4
    topics = rng.normal(size=(300, width)) * spectrum
    kinds = topics[rng.zipf(1.3, size=3000) % 300] + rng.normal(size=(3000, width)) * spectrum * 0.6
    rows = kinds[rng.integers(3000, size=items)]
    rows = rows + rng.normal(size=rows.shape) * spectrum * rng.gamma(2, 0.3, size=(items, 1))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def train(embeddings: Tensor, **settings: Any) -> tuple[RQVAE, float]:
    """Return what `python -m lcrec.quantize` would train, and the seconds that took."""
    start = time.perf_counter()
    model = train_rqvae(embeddings, IndexSettings(**settings))
    return model, time.perf_counter() - start


def against_kmeans(config: BenchConfig) -> Figures:
    """Compare with residual k-means on the same embeddings."""
    data = read_array(config.embeddings / EMBEDDINGS) if config.embeddings else None
    points = clusters(10_000, 384, config.seed) if data is None else data.astype(np.float32)
    embeddings = torch.from_numpy(points)
    start = time.perf_counter()
    residual = points - points.mean(0)
    total, variances, codes = float((residual**2).sum()), [], []
    for level in range(4):
        fitted = KMeans(256, n_init=1, random_state=config.seed + level).fit(residual)
        residual = residual - fitted.cluster_centers_[fitted.labels_]
        codes.append(fitted.labels_)
        variances.append(1 - float((residual**2).sum()) / total)
    kmeans_seconds = time.perf_counter() - start
    kmeans_conflicts = float(shared_rows(np.stack(codes, axis=1)).mean())

    model, seconds = train(embeddings, seed=config.seed)
    nearest = model.nearest_codes(model.encode_all(embeddings))
    found = explained_variance(model, embeddings, nearest)
    conflicts = float(shared_rows(nearest.numpy()).mean())
    return {
        "kmeans_data": str(config.embeddings or "synthetic clusters"),
        "kmeans_items": len(points),
        "kmeans_explained": variances,
        "explained": found,
        "ev_vs_kmeans": found[-1] / variances[-1],
        "ev1_vs_kmeans": found[0] / variances[0],
        "min_codes": min(len(level.unique()) for level in nearest.T),
        "kmeans_conflicts": kmeans_conflicts,
        "conflicts": conflicts,
        "conflict_ratio": conflicts / kmeans_conflicts if kmeans_conflicts else None,
        "kmeans_seconds": kmeans_seconds,
        "train_seconds": seconds,
    }


def against_parity(config: BenchConfig) -> Figures:
    """Compare with the published training rule."""
    embeddings = torch.from_numpy(clusters(10_000, 384, config.seed))
    model, seconds = train(embeddings, seed=config.seed, bf16=True)
    reference, parity_seconds = train(
        embeddings, seed=config.seed, bf16=True, parity=True, epochs=200
    )
    found = explained_variance(model, embeddings)[-1]
    published = explained_variance(reference, embeddings)[-1]
    return {
        "parity_data": "synthetic clusters, 10,000 x 384",
        "ev": found,
        "parity_ev": published,
        "ev_ratio": found / published,
        "seconds": seconds,
        "parity_seconds": parity_seconds,
        "time_ratio": seconds / parity_seconds,
    }


def assign_a_million(config: BenchConfig) -> Figures:
    """Give a million items a path each: most codes are rare, and 50,000 items want one prefix."""
    items, width, levels = 1_000_000, 384, 4
    rng = np.random.default_rng(config.seed)
    codebooks = rng.normal(size=(levels, 256, width)).astype(np.float32)
    codebooks *= 0.6 ** np.arange(levels, dtype=np.float32)[:, None, None]
    latents = np.empty((items, width), dtype=np.float32)
    for part in np.array_split(latents, 100):
        part[:] = rng.normal(scale=0.1, size=part.shape)
        for codebook in codebooks:
            part += codebook[np.minimum(rng.zipf(1.5, size=len(part)) - 1, 255)]
    latents[:50_000] = codebooks[:3, 255].sum(0) + rng.normal(scale=0.1, size=(50_000, width))
    start = time.perf_counter()
    assignment = assign_unique(latents, codebooks)
    seconds = time.perf_counter() - start
    distinct = len(np.unique(assignment.codes, axis=0))
    _, sizes = np.unique(assignment.nearest[:, :-1], axis=0, return_counts=True)
    return {
        "assign_1m_unique": distinct == items,
        "assign_1m_seconds": seconds,
        "assign_1m_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "assign_1m_conflicts": assignment.conflict_rate,
        "assign_1m_largest_prefix": int(sizes.max()),
        "assign_1m_left_prefix": float(
            (assignment.codes[:, :-1] != assignment.nearest[:, :-1]).any(axis=1).mean()
        ),
    }


def distance_ranks(
    latents: np.ndarray, codebooks: np.ndarray, assignment: Assignment
) -> tuple[np.ndarray, np.ndarray]:
    """Return each item's rank, int [items], and its group's size, int [items].

    The rank is that of the assigned last code by distance among the codes that no conflict-free
    item of the prefix holds (for such an item: no other), 1 for the nearest. Items whose prefix
    did not fit have none: 0. A group is the items with the same nearest path.
    """
    codes, nearest = assignment.codes, assignment.nearest
    _, inverse, sizes = np.unique(nearest, axis=0, return_inverse=True, return_counts=True)
    size = sizes[inverse.reshape(-1)]
    _, prefix = np.unique(nearest[:, :-1], axis=0, return_inverse=True)
    order = np.argsort(prefix.reshape(-1), kind="stable")
    rank = np.zeros(len(codes), dtype=np.int64)
    for group in np.split(order, np.flatnonzero(np.diff(prefix.reshape(-1)[order])) + 1):
        occupied = np.zeros(codebooks.shape[1], dtype=bool)
        occupied[codes[group[size[group] == 1], -1]] = True
        start = sum(codebooks[level][code] for level, code in enumerate(nearest[group[0], :-1]))
        for item in group:
            if (codes[item, :-1] != nearest[item, :-1]).any():
                continue
            distance = np.linalg.norm(latents[item] - start - codebooks[-1], axis=1)
            free = ~occupied
            free[codes[item, -1]] = True
            rank[item] = 1 + (distance[free] < distance[codes[item, -1]]).sum()
    return rank, size


def distortion(config: BenchConfig) -> Figures:
    """Rank the codes that items get: on clusters, and where every item collides with 1 to 4."""
    rng = np.random.default_rng(config.seed)
    model, _ = train(torch.from_numpy(clusters(10_000, 384, config.seed)), epochs=0)
    embeddings = torch.from_numpy(clusters(10_000, 384, config.seed))
    trained = model.encode_all(embeddings).numpy(), model.codebooks().detach().numpy()
    # As in the published indices' measure: 256 codes, 32 wide, groups of 2 to 5 on one path.
    codebooks = rng.normal(size=(4, 256, 32)).astype(np.float32)
    codebooks *= np.array([1, 0.6, 0.4, 0.3], dtype=np.float32)[:, None, None]
    paths = rng.integers(256, size=(3000, 4)).repeat(rng.integers(2, 6, size=3000), axis=0)
    spots = sum(book[paths[:, level]] for level, book in enumerate(codebooks))
    spots = (spots + rng.normal(scale=0.02, size=spots.shape)).astype(np.float32)
    figures: Figures = {}
    for name, (latents, books) in {"": trained, "_all_collide": (spots, codebooks)}.items():
        assignment = assign_unique(latents, books)
        rank, size = distance_ranks(latents, books, assignment)
        alone, grouped = size == 1, (size >= 2) & (size <= 5)
        if alone.any():
            figures[f"distance_rank_conflict_free{name}"] = float(rank[alone].mean())
        figures[f"distance_rank_mean{name}"] = float(rank[grouped & (rank > 0)].mean())
        figures[f"distance_rank_items{name}"] = int(grouped.sum())
        figures[f"left_prefix{name}"] = int((rank == 0).sum())
    return figures


def sinkhorn_cases(seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield costs [1024, 256]: what training sees first, then what it should never see."""
    torch.manual_seed(seed)
    points, codes = torch.randn(1024, 32), torch.randn(256, 32)
    yield "random", torch.cdist(points, codes).square()
    yield "trained", torch.cdist(points, points[:256] + 0.1 * torch.randn(256, 32)).square()
    yield "uniform", torch.rand(1024, 256)
    yield "two groups", torch.cdist(points + 20 * (torch.rand(1024, 1) < 0.3), codes).square()
    yield "one far row", torch.cdist(torch.cat([points[:1] * 100, points[1:]]), codes).square()
    yield "one far code", torch.cdist(points, torch.cat([codes[:1] + 50, codes[1:]])).square()
    yield "half alike", torch.cat([torch.rand(1, 256).expand(512, 256), torch.rand(512, 256)])
    yield "all alike", torch.rand(1, 256).expand(1024, 256)
    yield "constant", torch.ones(1024, 256)
    yield "huge", torch.rand(1024, 256) * 3e38


def sinkhorn_marginals(config: BenchConfig) -> Figures:
    """Measure the plans' marginals at every epsilon, and the codes' loads at .003."""
    columns = rows = low_rows = 0.0
    finite, share = True, 1024 / 256
    argmax_loads: list[Tensor] = []
    loads: list[Tensor] = []
    for name, cost in sinkhorn_cases(config.seed):
        for epsilon in (1.0, 0.1, 0.01, 0.003, 0.001, 1e-4):
            plan = sinkhorn(cost, epsilon, max_rounds=1000 if epsilon >= 0.01 else 100)
            mass = plan.log_mass.exp()
            finite &= not bool(plan.log_mass.isnan().any())
            columns = max(columns, float((mass.sum(0) * 256 - 1).abs().max()))
            if epsilon >= 0.01:
                rows = max(rows, plan.row_error)
            else:
                low_rows = max(low_rows, plan.row_error)
            if epsilon == 0.003:
                loads.append(balanced_codes(plan).bincount(minlength=256))
                if name in ("random", "trained", "uniform"):
                    argmax_loads.append(plan.log_mass.argmax(1).bincount(minlength=256))
    return {
        "sinkhorn_no_nan": finite,
        "sinkhorn_column_error": columns,
        "sinkhorn_row_error": rows,
        "sinkhorn_row_error_below_01": low_rows,
        "sinkhorn_load_argmax": [
            float(torch.stack(argmax_loads).min()) / share,
            float(torch.stack(argmax_loads).max()) / share,
        ],
        "sinkhorn_load": [
            float(torch.stack(loads).min()) / share,
            float(torch.stack(loads).max()) / share,
        ],
    }


PARTS: dict[str, Callable[[BenchConfig], Figures]] = {
    "kmeans": against_kmeans,
    "parity": against_parity,
    "assignment": assign_a_million,
    "distortion": distortion,
    "sinkhorn": sinkhorn_marginals,
}


if __name__ == "__main__":
    run_stage(main)
