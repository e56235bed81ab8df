"""An index in which items share a path, made unique: `python -m lcrec.quantize --repair`.

Published indices leave some items with the path of another. Of each such group one item keeps the
path, and the others move to the nearest free one; every item without a conflict keeps its own.
What "nearest" means depends on what is at hand, best first:

- embeddings and the RQ-VAE: distance in the latent, the item closest to its codes keeps the path;
- embeddings alone: the same, each code standing for the mean of what its items leave it;
- the RQ-VAE alone: distance from the shared path, whose lowest item keeps it;
- neither: the lowest item keeps the path, the next take, under the same prefix, the last codes
  that fewest items have.

Paths of different depth are filled up first, each level by one code of its own.

Reads an `index.json`; writes another, with the report on it. Public names: `repair_index`,
`repair_codes`, `level_paths`, `mean_codebooks`.
"""

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcrec.assignment import assign_unique
from lcrec.core.artifacts import INDEX, REPORT, REPORT_PAGE, RQVAE_WEIGHTS, atomic_path, index_path
from lcrec.core.errors import InputError
from lcrec.core.provenance import is_current, read_provenance, write_provenance
from lcrec.data.folder import Items
from lcrec.index import ItemIndex, find_conflicts, read_paths, token_name
from lcrec.index_fit import load_rqvae, measure_fit
from lcrec.index_page import print_verdict, write_index_report
from lcrec.index_quality import measure_index
from lcrec.rqvae import RQVAE

EXAMPLES = 5


def level_paths(paths: list[list[int]]) -> tuple[np.ndarray, int]:
    """Return the paths at one depth, int32 [items, levels], and how many had to be filled up.

    A shorter path is filled up, level by level, by the code after the largest of that level.
    """
    depth = max(map(len, paths))
    fill = [1 + max(path[level] for path in paths if len(path) > level) for level in range(depth)]
    codes = np.asarray([[*path, *fill[len(path) :]] for path in paths], dtype=np.int32)
    return codes, sum(len(path) < depth for path in paths)


def mean_codebooks(points: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return what each code stands for, judging by the items that have it.

    Args:
        points: float32 [items, dim].
        codes: int [items, levels].

    Returns:
        float32 [levels, codes, dim]: level by level, the mean of what the levels before left of
        the code's items. A code that no item has lies far away, to be taken last.
    """
    size = int(codes.max()) + 1
    residual = points.astype(np.float64)
    far = 1e3 * (1 + np.abs(residual).max())
    codebooks = np.full((codes.shape[1], size, points.shape[1]), far, dtype=np.float32)
    for level, column in enumerate(codes.T):
        sums = np.zeros((size, points.shape[1]))
        np.add.at(sums, column, residual)
        counts = np.bincount(column, minlength=size)
        used = counts > 0
        codebooks[level, used] = sums[used] / counts[used, None]
        residual = residual - codebooks[level, column]
    return codebooks


def repair_codes(
    codes: np.ndarray,
    level_sizes: tuple[int, ...],
    codebooks: np.ndarray | None = None,
    latents: np.ndarray | None = None,
) -> np.ndarray:
    """Return int32 [items, levels], all rows different; rows that were are as they were.

    Args:
        codes: int32 [items, levels].
        level_sizes: how many codes each level has, where there are no codebooks.
        codebooks: float32 [levels, codes, dim], what the codes stand for, if that is known.
        latents: float32 [items, dim], where the items lie in that space; by default each where
            its path is.

    Raises:
        InputError: there are fewer paths than items.
    """
    if codebooks is not None:
        level_sizes = (codebooks.shape[1],) * len(codebooks)
    capacity = math.prod(level_sizes)
    if capacity < len(codes):
        raise InputError(
            f"levels of {', '.join(map(str, level_sizes))} codes spell {capacity:,} items, and "
            f"there are {len(codes)}; make a new index with python -m lcrec.quantize"
        )
    moving: list[int] = []
    if codebooks is not None:
        paths = codebooks[np.arange(codes.shape[1]), codes].sum(axis=1)
        latents = paths if latents is None else latents
        distance = ((latents - paths) ** 2).sum(axis=1)
    else:
        distance = np.zeros(len(codes))
    for group in find_conflicts(codes):
        keeper = group[int(distance[group].argmin())]
        moving += [item for item in group if item != keeper]
    moving.sort()
    if not moving:
        return codes
    kept = np.delete(codes, moving, axis=0)
    repaired = codes.copy()
    if codebooks is None or latents is None:
        repaired[moving] = _least_used(codes[moving], kept, level_sizes)
    else:
        asked = assign_unique(latents[moving], codebooks, nearest=codes[moving], taken=kept)
        repaired[moving] = asked.codes
    return repaired


def _least_used(wanted: np.ndarray, kept: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """Return free paths, int32 [moving, levels], that share as long a prefix as there is room for.

    Below it, each level takes the code that fewest of the kept items have.
    """
    levels = len(level_sizes)
    below = [
        float(np.prod(np.asarray(level_sizes[depth:], dtype=float))) for depth in range(levels)
    ]
    below.append(1)
    used: Counter[tuple[int, ...]] = Counter()
    for path in kept.tolist():
        used.update(tuple(path[:depth]) for depth in range(levels + 1))
    order = [
        np.argsort(np.bincount(kept[:, level], minlength=size), kind="stable").tolist()
        for level, size in enumerate(level_sizes)
    ]
    found = np.empty_like(wanted)
    for row, path in enumerate(wanted.tolist()):
        depth = next(d for d in range(levels - 1, -1, -1) if used[tuple(path[:d])] < below[d])
        free = tuple(path[:depth])
        for level in range(depth, levels):
            free = next(
                branch for code in order[level] if used[branch := (*free, code)] < below[level + 1]
            )
        used.update(free[:depth] for depth in range(levels + 1))
        found[row] = free
    return found


def repair_index(
    source: Path,
    output: Path,
    stage: str,
    inputs: dict[str, Path],
    *,
    items: Items | None = None,
    embeddings: np.ndarray | None = None,
) -> bool:
    """Write the index at `source`, without its conflicts, into `output`.

    Args:
        source: an `index.json`, or the folder that holds one.
        output: another folder.
        stage: the command, for the record.
        inputs: what was read besides the index, for the record.
        items: the catalogue, to print titles.
        embeddings: float32 [items, dim].

    Returns:
        Whether anything was written; not where the result lies there already.

    Raises:
        InputError: the index cannot be read or repaired, or does not fit the embeddings or items.
    """
    path = index_path(source)
    weights = path.parent / RQVAE_WEIGHTS
    if output.resolve() == path.parent.resolve():
        raise InputError(f"--output {output}: holds the index to repair; name another folder")
    codes, filled = level_paths(read_paths(path))
    for what, size in (("--data", items), ("--embeddings", embeddings)):
        if size is not None and len(size) != len(codes):
            raise InputError(f"{what}: has {len(size)} items, {path} has {len(codes)}")
    record: dict[str, Any] = read_provenance(path.parent) or {}
    sizes = tuple((codes.max(axis=0) + 1).tolist())
    if len(record.get("level_sizes", ())) == len(sizes):
        sizes = tuple(map(max, sizes, record["level_sizes"]))
    inputs = {**inputs, "index": path} | ({"rqvae": weights} if weights.exists() else {})
    config = {**record.get("config", {}), "repair": True}
    made = all((output / name).exists() for name in (INDEX, REPORT, REPORT_PAGE))
    if made and is_current(output, stage, config, inputs):
        return False

    codebooks = latents = None
    model = None
    if weights.exists():
        model = (
            RQVAE.load(weights) if embeddings is None else load_rqvae(weights, embeddings.shape[1])
        )
        require_same_shape(model, weights, codes, path)
    # A level that the model lacks only numbers items that share a path, and can go on counting.
    if model is not None and model.num_levels == codes.shape[1]:
        codebooks = model.codebooks().detach().numpy()
        rule = "the distance between the RQ-VAE's codes; of each group the lowest item stays"
        if embeddings is not None:
            latents = model.encode_all(torch.from_numpy(embeddings)).numpy()
            rule = "distance in the RQ-VAE's latent; of each group the closest item stays"
    elif embeddings is not None:
        codebooks, latents = mean_codebooks(embeddings, codes), embeddings
        rule = "distance from the mean of a code's items; of each group the closest item stays"
    else:
        rule = (
            "the codes alone, there being no embeddings; of each group the lowest item stays, the "
            "others take last codes that few items have"
        )
    groups = find_conflicts(codes)
    if filled:
        print(f"{filled:,} of {len(codes):,} paths were shorter than the rest and are filled up.")
    print_conflicts(codes, groups, items)
    repaired = repair_codes(codes, sizes, codebooks, latents)
    sizes = tuple(map(max, sizes, (repaired.max(axis=0) + 1).tolist()))
    index = ItemIndex(repaired, sizes)
    moved = np.flatnonzero((index.codes != codes).any(axis=1)).tolist()
    fit = None
    if model is not None and embeddings is not None:
        fit = measure_fit(model, torch.from_numpy(embeddings), index.codes)
    report = measure_index(
        index.codes, index.level_sizes, embeddings=embeddings, items=items, fit=fit
    )
    report["repaired"] = {
        "items_in_conflict": sum(map(len, groups)),
        "groups": groups,
        "moved": {str(item): index.tokens(item) for item in moved},
        "paths_filled_up": filled,
        "rule": rule,
    }
    (output / INDEX).unlink(missing_ok=True)
    if weights.exists():
        with atomic_path(output / RQVAE_WEIGHTS) as temporary:
            shutil.copyfile(weights, temporary)
    verdict = write_index_report(output, report, f"{path.name}, repaired")
    write_provenance(output, stage, config, inputs, level_sizes=sizes)
    index.save(output)
    print_verdict(verdict)
    print(f"Moved {len(moved):,} items by {rule}. {len(codes) - len(moved):,} keep their index.")
    return True


def require_same_shape(model: RQVAE, weights: Path, codes: np.ndarray, path: Path) -> None:
    """Check that the index at `path`, int [items, levels], can be by the RQ-VAE beside it.

    One level more than the model's numbers the items that share a path.

    Raises:
        InputError: it has other levels, or codes that the model has none of.
    """
    levels = model.num_levels
    if codes.shape[1] in (levels, levels + 1) and codes[:, :levels].max() < model.num_codes:
        return
    raise InputError(
        f"{weights}: has {levels} levels of {model.num_codes} codes, {path} has {codes.shape[1]} "
        f"levels of up to {codes.max() + 1}; they do not belong together: take the index to a "
        "folder of its own"
    )


def print_conflicts(codes: np.ndarray, groups: list[list[int]], items: Items | None) -> None:
    """Print how many items share a path, and the first groups, by title where there are any."""
    print(
        f"{sum(map(len, groups)):,} of {len(codes):,} items share an index with another, in "
        f"{len(groups):,} group(s)" + (", such as:" if groups else ".")
    )
    for group in groups[:EXAMPLES]:
        tokens = (token_name(level, code) for level, code in enumerate(codes[group[0]].tolist()))
        print(f"  {''.join(tokens)}")
        for item in group[:EXAMPLES]:
            print(f"    {item:>7}" + ("" if items is None else f"  {items.title(item):.80}"))
