"""Command: how much of one set of item vectors can be told from another, by maps of six kinds.

Reads item vectors from a `.npy` file, a folder of `python -m lcrec.embed`, or a folder that a
method was kept in with --save; prints a table; writes {"items", "distribution", "maps": {map:
figures}} with --output (the figures of `lcrec.baselines.probes.judge_map`). A fifth of the items
is kept from the maps and tells how they carry over: drawn at random, or the least popular ones.

Public names: `ProbeConfig`, `read_vectors`, `main`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from lcrec.baselines.inputs import load_inputs
from lcrec.baselines.store import WEIGHTS
from lcrec.core.artifacts import EMBEDDINGS, read_array, write_json
from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.errors import InputError, closest
from lcrec.core.provenance import provenance_path, write_provenance

COMMAND = "python -m lcrec.baselines probe"
TEST_SHARE = 0.2
LEAST_ITEMS = 10


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of `python -m lcrec.baselines probe`."""

    source: Path = option("vectors to tell from: X.npy, or a folder of embeddings or of a method")
    target: Path = option("vectors to be told, likewise; row i of both is item i")
    maps: list[str] = option(
        "kinds of map", ["ridge", "procrustes", "linear", "mlp-1", "mlp-2", "mlp-3"]
    )
    distribution: Literal["random", "popularity"] = option(
        "which items are kept from the maps: any, or the least popular in the train sequences",
        "random",
    )
    data: Path | None = option("the data folder, for --distribution popularity", None)
    epochs: int = option("of the maps that are trained", 400, minimum=1)
    seed: int = option("of the draw of items and of training", 0, minimum=0)
    output: Path | None = option("where to write the numbers, *.json", None)


def read_vectors(path: Path) -> tuple[np.ndarray, Path]:
    """Return item vectors, float32 [items, dim], and the file they were in.

    Raises:
        InputError: there are none, or none that can be used.
    """
    if (path / WEIGHTS).is_file():
        file = path / WEIGHTS
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
            raise InputError(f"{path}: holds neither {EMBEDDINGS} nor {WEIGHTS}")
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
    config = parse_config(ProbeConfig, argv, description=__doc__ or "", prog=COMMAND)
    # Torch is loaded here: help and errors need none.
    from lcrec.baselines.probes import MAPS, fit_map, judge_map

    for kind in config.maps:
        if kind not in MAPS:
            raise InputError(f"--maps: no map {kind!r}{closest(kind, MAPS)} ({', '.join(MAPS)})")
    if config.output is not None and (config.output.suffix != ".json" or config.output.is_dir()):
        raise InputError(f"--output {config.output}: the numbers go to a file named *.json")
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
    for kind in tqdm(config.maps, desc="maps", unit=" maps", leave=False):
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
    provenance_path(config.output).unlink(missing_ok=True)
    shown = {"items": len(source), "distribution": config.distribution, "maps": found}
    write_json(config.output, shown, indent=2)
    write_provenance(config.output, COMMAND, config_dict(config), files)
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
