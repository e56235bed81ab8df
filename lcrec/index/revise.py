"""Revises an index: adds new items (`--index`), or makes shared paths unique (`--repair`).

`extend_index`: the trained RQ-VAE encodes the new items, and each gets its nearest path that is
free. No old item moves and no token is new, because every level's codes are in the vocabulary from
the start: the model that was trained on the old index can generate, and recommend, the new items at
once. It reads an index folder with its `rqvae.safetensors`.

`repair_index`: published indices leave some items with the path of another. Of each such group one
item keeps the path, and the others move to the nearest free one; every item without a conflict
keeps its own. What "nearest" means depends on what is available, best first:

- embeddings and the RQ-VAE: distance in the latent, the item closest to its codes keeps the path;
- embeddings alone: the same, each code standing for the mean of what its items leave it;
- the RQ-VAE alone: distance from the shared path, whose lowest item keeps it;
- neither: the lowest item keeps the path, the next take, under the same prefix, the last codes
  that fewest items have.

Paths of different depth are filled up first, each level by one code of its own.

Both write an index folder: `index.json`, the weights where there are some, and the report on it.
"""

import math
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcrec.core.artifacts import COLLABORATIVE, RQVAE_WEIGHTS, index_path, read_array
from lcrec.core.console import printable
from lcrec.core.errors import InputError
from lcrec.core.provenance import is_current, read_provenance
from lcrec.data.folder import Items
from lcrec.index.assignment import assign_unique
from lcrec.index.item_index import STAGE, ItemIndex, find_conflicts, read_paths, token_name
from lcrec.index.page import print_verdict, write_index
from lcrec.index.quality import measure_fit, measure_index
from lcrec.index.rqvae import RQVAE, load_rqvae


@dataclass(frozen=True)
class Extension:
    """An index with new items, and how well they fit in.

    Attributes:
        index: old and new items.
        moved: how many new items did not get their nearest path, because it was taken.
        explained: the share of the variance about the old items' mean that the codes explain, of
            the old items and of the new. The RQ-VAE learnt from the old, so theirs is higher; near
            zero, the new items are unlike anything it knows.
    """

    index: ItemIndex
    moved: int
    explained: tuple[float, float]


def place_new_items(model: RQVAE, old: ItemIndex, embeddings: np.ndarray) -> Extension:
    """Give the items beyond those of `old` their nearest free paths.

    Args:
        model: the RQ-VAE that `old` was made with.
        old: the index, which stays as it is.
        embeddings: float32 [items, dim], of the old items and then the new.

    Raises:
        InputError: there are not as many free paths as new items.
    """
    capacity = math.prod(old.level_sizes)
    if capacity < len(embeddings):
        raise InputError(
            f"{old.num_levels} levels of {old.level_sizes[-1]} codes spell {capacity:,} items, "
            f"and {len(embeddings)} are wanted: train a new index with more levels or codes, and a "
            "model on it"
        )
    points = torch.from_numpy(embeddings)
    latents, codebooks = model.encode_all(points), model.codebooks().detach()
    if model.num_levels < old.num_levels:
        codes, moved = _next_numbers(old, model.nearest_codes(latents[len(old) :]).numpy()), 0
    else:
        new = assign_unique(latents[len(old) :].numpy(), codebooks.numpy(), taken=old.codes)
        codes, moved = new.codes, len(new.moved)
    index = ItemIndex(np.concatenate([old.codes, codes]), old.level_sizes)
    levels = torch.arange(model.num_levels)
    paths = torch.from_numpy(index.codes[:, : model.num_levels]).long()
    with torch.no_grad():
        decoded = model.decode(codebooks[levels, paths].sum(dim=1))
    errors = (decoded - points).pow(2).sum(dim=1)
    variances = (points - points[: len(old)].mean(dim=0)).pow(2).sum(dim=1)
    before, after = (
        1 - (errors[part].sum() / variances[part].sum().clamp_min(1e-12)).item()
        for part in (slice(len(old)), slice(len(old), None))
    )
    return Extension(index, moved, (before, after))


def _next_numbers(old: ItemIndex, nearest: np.ndarray) -> np.ndarray:
    """Return nearest paths and a last code that tells apart who shares one, int32 [new, levels].

    Raises:
        InputError: more items share a path than the last level has codes.
    """
    used = Counter(map(tuple, old.codes[:, :-1].tolist()))
    codes = np.empty((len(nearest), old.num_levels), dtype=np.int32)
    for row, path in zip(codes, map(tuple, nearest.tolist()), strict=True):
        row[:] = (*path, used[path])
        used[path] += 1
    if codes[:, -1].max() >= old.level_sizes[-1]:
        raise InputError(
            f"the last level's {old.level_sizes[-1]} codes are all used by items that share a "
            "path; make a new index, with more codes, and train a model on it"
        )
    return codes


def extend_index(
    old_folder: Path,
    old_items: int | None,
    name: str,
    items: Items,
    raw_ids: list[str] | None,
    embeddings: np.ndarray,
    output: Path,
    inputs: dict[str, Path],
) -> bool:
    """Write the index in `old_folder`, with the items that `embeddings` has beyond it, to `output`.

    Args:
        old_folder: the index to extend, which stays as it is.
        old_items: how many items it must have; None where fewer than `items` will do.
        name: the catalogue's, for the title of the report.
        raw_ids: theirs, if they have any.
        embeddings: float32 [items, dim], of all items.
        inputs: what was read besides the old index, for the record.

    Returns:
        Whether anything was written; not where the result lies there already.

    Raises:
        InputError: the old index cannot take new items, or these embeddings.
    """
    path = index_path(old_folder)
    weights = path.parent / RQVAE_WEIGHTS
    old = ItemIndex.load(path, old_items)
    if len(old) > len(items):
        raise InputError(
            f"--index {old_folder}: has {len(old)} items, and the catalogue has {len(items)}; name "
            "the data folder that continues its own"
        )
    if not weights.exists():
        raise InputError(
            f"--index {old_folder}: there is no {RQVAE_WEIGHTS}, so its kind of index has no codes "
            "for new items; make an index for all of them with: python -m lcrec.quantize"
        )
    config: dict[str, Any] = (read_provenance(path.parent) or {}).get("config", {})
    inputs = {**inputs, "index": path, "rqvae": weights}
    if is_current(output, STAGE, config, inputs):
        return False
    model, points = load_rqvae(path.parent, embeddings)
    sizes = (model.num_codes,) * model.num_levels
    # One level more than the model's numbers the items that share a path.
    if old.level_sizes not in (sizes, (*sizes, old.level_sizes[-1])):
        raise InputError(
            f"{weights}: has {model.num_levels} levels of {model.num_codes} codes, the index beside"
            f" it {list(old.level_sizes)}; rebuild both with python -m lcrec.quantize"
        )
    print(f"Adding {len(embeddings) - len(old):,} items to the {len(old):,} of {path}")
    extension = None  # on a night without a new item
    if len(old) < len(items):
        extension = place_new_items(model, old, points)
    index = replace(extension.index if extension else old, raw_ids=raw_ids)
    report = measure_index(
        index.codes,
        index.level_sizes,
        embeddings=embeddings,
        items=items,
        fit=measure_fit(model, torch.from_numpy(points), index.codes),
    )
    report["added"] = {"items": len(index) - len(old)}
    if extension:
        report["added"] |= {
            "moved": extension.moved,
            "explained_variance_old": extension.explained[0],
            "explained_variance_new": extension.explained[1],
        }
    title = f"{name}, {len(index) - len(old):,} new items added"
    verdict = write_index(
        output,
        index,
        report,
        title,
        config,
        inputs,
        save_weights=partial(shutil.copyfile, weights),
        appended=points[:, embeddings.shape[1] :],
    )
    print_verdict(verdict)
    return True


def require_same_space(embeddings: Path, index: Path) -> None:
    """Refuse embeddings that do not extend those which the index was made from.

    Where a sidecar is missing, because something was made elsewhere, it counts as agreeing.

    Raises:
        InputError: the embeddings extend others, or were fitted anew (`lsa`), so that no vector
            means what it meant to the RQ-VAE.
    """
    made, trained = read_provenance(embeddings), read_provenance(index_path(index).parent)
    if made is None or trained is None or "embeddings" not in trained["inputs"]:
        return
    wanted = trained["inputs"]["embeddings"]
    extended = made["inputs"].get("embeddings")
    if extended is None and made["config"].get("encoder") != "lsa":
        return
    if extended is None or extended["sha256"] != wanted["sha256"]:
        raise InputError(
            f"--embeddings {embeddings}: do not extend those that the index in {index} was made "
            f"from; make them with: python -m lcrec.embed --data DATA --embeddings "
            f"{Path(wanted['path']).parent}"
        )


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
        the code's items. A code that no item has lies far away, to be used last.
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
    """Return free paths, int32 [moving, levels], that share the longest prefix with a free path.

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
    inputs: dict[str, Path],
    *,
    items: Items | None = None,
    embeddings: np.ndarray | None = None,
) -> bool:
    """Write the index at `source`, without its conflicts, into `output`.

    Args:
        source: an `index.json`, or the folder that holds one.
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
    if is_current(output, STAGE, config, inputs):
        return False

    codebooks = latents = None
    model = points = None
    if weights.exists():
        if embeddings is None:
            model = RQVAE.load(weights)
        else:
            model, points = load_rqvae(path.parent, embeddings)
        require_same_shape(model, weights, codes, path)
    # A level that the model lacks only numbers items that share a path, and can go on counting.
    if model is not None and model.num_levels == codes.shape[1]:
        codebooks = model.codebooks().detach().numpy()
        rule = "the distance between the RQ-VAE's codes; of each group the lowest item stays"
        if points is not None:
            latents = model.encode_all(torch.from_numpy(points)).numpy()
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
    if model is not None and points is not None:
        fit = measure_fit(model, torch.from_numpy(points), index.codes)
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
    kept = path.parent / COLLABORATIVE
    verdict = write_index(
        output,
        index,
        report,
        f"{path.name}, repaired",
        config,
        inputs,
        save_weights=partial(shutil.copyfile, weights) if weights.exists() else None,
        appended=read_array(kept) if kept.exists() else None,
    )
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
            title = "" if items is None else f"  {printable(items.title(item)):.80}"
            print(f"    {item:>7}{title}")
