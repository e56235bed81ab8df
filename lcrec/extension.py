"""New items in an index that a model was trained on: `python -m lcrec.quantize --add`.

The trained RQ-VAE encodes the new items, and each gets its nearest path that is free. No old item
moves and no token is new, because every level's codes are in the vocabulary from the start: the
model that was trained on the old index can spell, and recommend, the new items at once.

Reads an index folder with its `rqvae.safetensors`; writes another, with `index.json` of old and new
items, the same weights, and the report on both. Public names: `extend_index`, `place_new_items`,
`require_same_space`, `Extension`.
"""

import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcrec.assignment import assign_unique
from lcrec.core.artifacts import INDEX, REPORT, REPORT_PAGE, RQVAE_WEIGHTS, atomic_path, index_path
from lcrec.core.errors import InputError
from lcrec.core.provenance import is_current, read_provenance, write_provenance
from lcrec.data.folder import Items
from lcrec.index import ItemIndex
from lcrec.index_fit import load_rqvae, measure_fit
from lcrec.index_page import print_verdict, write_index_report
from lcrec.index_quality import measure_index
from lcrec.rqvae import RQVAE


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
            f"the last level's {old.level_sizes[-1]} codes are all taken by items that share a "
            "path; make a new index, with more codes, and train a model on it"
        )
    return codes


def extend_index(
    old_folder: Path,
    old_items: int,
    name: str,
    items: Items,
    embeddings: np.ndarray,
    output: Path,
    inputs: dict[str, Path],
    stage: str,
) -> bool:
    """Write the index in `old_folder`, with the items that `embeddings` has beyond it, to `output`.

    Args:
        old_folder: the index to extend, which stays as it is.
        old_items: how many items it must have.
        name: the catalogue's, for the title of the report.
        items: all items, old and new.
        embeddings: float32 [items, dim], of all items.
        output: another folder.
        inputs: what was read besides the old index, for the record.
        stage: the command, for the record.

    Returns:
        Whether anything was written; not where the result lies there already.

    Raises:
        InputError: the old index cannot take new items, or these embeddings.
    """
    path = index_path(old_folder)
    weights = path.parent / RQVAE_WEIGHTS
    if output.resolve() == path.parent.resolve():
        raise InputError(
            f"--output {output}: holds the old index, on which models were trained; name another"
        )
    old = ItemIndex.load(path, old_items)
    if not weights.exists():
        raise InputError(
            f"--index {old_folder}: there is no {RQVAE_WEIGHTS}, so its kind of index has no codes "
            "for new items; make an index for all of them with: python -m lcrec.quantize"
        )
    config: dict[str, Any] = (read_provenance(path.parent) or {}).get("config", {})
    inputs = {**inputs, "index": path, "rqvae": weights}
    made = all((output / name).exists() for name in (INDEX, RQVAE_WEIGHTS, REPORT, REPORT_PAGE))
    if made and is_current(output, stage, config, inputs):
        return False
    model = load_rqvae(weights, embeddings.shape[1])
    sizes = (model.num_codes,) * model.num_levels
    # One level more than the model's numbers the items that share a path.
    if old.level_sizes not in (sizes, (*sizes, old.level_sizes[-1])):
        raise InputError(
            f"{weights}: has {model.num_levels} levels of {model.num_codes} codes, the index beside"
            f" it {list(old.level_sizes)}; rebuild both with python -m lcrec.quantize"
        )
    print(f"Adding {len(embeddings) - len(old):,} items to the {len(old):,} of {path}")
    extension = place_new_items(model, old, embeddings)
    index = extension.index
    report = measure_index(
        index.codes,
        index.level_sizes,
        embeddings=embeddings,
        items=items,
        fit=measure_fit(model, torch.from_numpy(embeddings), index.codes),
    )
    report["added"] = {
        "items": len(index) - len(old),
        "moved": extension.moved,
        "explained_variance_old": extension.explained[0],
        "explained_variance_new": extension.explained[1],
    }
    (output / INDEX).unlink(missing_ok=True)
    with atomic_path(output / RQVAE_WEIGHTS) as temporary:
        shutil.copyfile(weights, temporary)
    title = f"{name}, {len(index) - len(old):,} new items added"
    verdict = write_index_report(output, report, title)
    write_provenance(output, stage, config, inputs, level_sizes=old.level_sizes)
    index.save(output)
    print_verdict(verdict)
    return True


def require_same_space(embeddings: Path, index: Path) -> None:
    """Refuse embeddings that do not extend those which the index was made from.

    Records that are missing, because something was made elsewhere, are taken as agreeing.

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
            f"from; make them with: python -m lcrec.embed --add NEW.item.json --embeddings "
            f"{Path(wanted['path']).parent}"
        )
