"""Stage: an item index -> a report on whether it is good.

Reads `index.json`, made here or elsewhere, and writes `report.json` (all figures and the verdict)
and `report.html` (the same as a page with pictures, in one file). With `--embeddings` it says how
far items alike share their codes, with `--data` it names examples and looks at categories; beside
the weights of an RQ-VAE it says what the codes explain, and with `--collaborative` how far items
that are bought alike share their codes. What cannot be known without is left out.

`python -m lcrec.quantize` makes this report of every index by itself.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import (
    EMBEDDINGS,
    METHOD_WEIGHTS,
    REPORT,
    REPORT_PAGE,
    RQVAE_WEIGHTS,
    atomic_path,
    find_data,
    index_path,
    read_array,
    read_json,
)
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, check_output, claim
from lcrec.core.provenance import is_kind, require_same_input, write_provenance
from lcrec.data.collaborative import load_collaborative
from lcrec.data.folder import Items, check_embeddings, load_items
from lcrec.index.item_index import ItemIndex, find_conflicts, read_paths

STAGE = "python -m lcrec.index_report"
EXAMPLE = "--index runs/shop/index --data data/shop --output runs/shop/report"


@dataclass(frozen=True)
class IndexReportConfig(Writes):
    """Settings of `python -m lcrec.index_report`."""

    index: Path = option("the folder that holds index.json, or such a file by itself")
    output: Path = option("the folder to write report.json and report.html to")
    embeddings: Path | None = option("the folder that holds embeddings.npy", None)
    data: Path | None = option("the data folder, for titles and categories", None)
    collaborative: Path | None = option(
        "with --data: a fitted baseline's item vectors, to see what is bought alike; what lcrec "
        "baselines METHOD --save DIR kept",
        None,
    )
    seed: int = option("decides which items of a large catalogue are looked at", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(IndexReportConfig, argv, prog=STAGE, example=EXAMPLE)
    if config.collaborative is not None and config.data is None:
        raise InputError(f"--collaborative {config.collaborative}: needs --data DIR too")
    path = index_path(config.index)
    # A report may also go into the folder of the index that it is about.
    own_folder = config.output.resolve() == path.parent.resolve()
    if not own_folder:
        folders = (config.data, config.embeddings, config.collaborative)
        read = [path, *filter(None, folders)]
        check_output(config.output, STAGE, FOLDER, overwrite=config.overwrite, inputs=read)
    elif not (config.overwrite or is_kind(config.output, "python -m lcrec.quantize")):
        for page in filter(Path.exists, (config.output / REPORT, config.output / REPORT_PAGE)):
            raise InputError(
                f"--output {config.output}: {page.name} in it may be a person's own; name another "
                "folder, or give --overwrite to replace it"
            )
    # Torch is loaded here: help and wrong options need none.
    import torch

    from lcrec.index.page import print_verdict, write_index_report
    from lcrec.index.quality import measure_fit, measure_index
    from lcrec.index.rqvae import load_rqvae

    codes, level_sizes = read_codes(config.index)
    inputs = {"index": path}
    items: Items | None = None
    if config.data is not None:
        inputs["item"] = find_data(config.data).item
        remake = f"python -m lcrec.quantize --data {config.data} --embeddings DIR --output DIR"
        require_same_input(path.parent, "item", inputs["item"], remake)
        items = load_items(config.data)
        if len(items) != len(codes):
            raise InputError(
                f"{path} has {len(codes)} items but {inputs['item']} has {len(items)}: they belong "
                "to different catalogues; name the data folder that the index was made from"
            )
    embeddings = collaborative = model = vectors = None
    if config.collaborative is not None and config.data is not None:
        collaborative = load_collaborative(config.collaborative, config.data, len(codes))
        inputs["collaborative"] = config.collaborative / METHOD_WEIGHTS
    if config.embeddings is not None:
        inputs["embeddings"] = config.embeddings / EMBEDDINGS
        embeddings = check_embeddings(
            read_array(inputs["embeddings"]), len(codes), inputs["embeddings"]
        )
        weights = path.parent / RQVAE_WEIGHTS
        if weights.exists():
            inputs["rqvae"] = weights
            remake = f"python -m lcrec.quantize --embeddings {config.embeddings} --output DIR"
            require_same_input(path.parent, "embeddings", inputs["embeddings"], remake)
            model, points = load_rqvae(path.parent, embeddings)
            vectors = torch.from_numpy(points)

    with claim(config.output, STAGE, overwrite=config.overwrite, active=not own_folder):
        print(f"Looking at {path}: {len(codes):,} items, {codes.shape[1]} codes each.")
        fit = None
        if model is not None and vectors is not None:
            fit = measure_fit(model, vectors, codes)
        report = measure_index(
            codes,
            level_sizes,
            embeddings=embeddings,
            collaborative=collaborative,
            items=items,
            fit=fit,
            seed=config.seed,
        )
        if own_folder and (path.parent / REPORT).exists():
            # How items came to join, or to move, is known to the report of that alone.
            before = read_json(path.parent / REPORT)
            report |= {name: before[name] for name in ("added", "repaired") if name in before}
        name = path.name if config.data is None else find_data(config.data).name
        if own_folder:
            verdict = write_index_report(config.output, report, name)
        else:
            with atomic_path(config.output) as folder:
                verdict = write_index_report(folder, report, name)
                write_provenance(folder, STAGE, config_dict(config), inputs)
        print_verdict(verdict)
        print(f"Wrote {config.output / REPORT_PAGE}: open it in a browser.")


def read_codes(folder: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return codes, int32 [items, levels], and level sizes of an index in which items may collide.

    Raises:
        InputError: the file is missing or malformed, or its paths differ in length.
    """
    paths = read_paths(folder)
    if len(set(map(len, paths))) == 1:
        codes = np.asarray(paths, dtype=np.int32)
        if find_conflicts(codes):  # no index of this kit, so nothing recorded its level sizes
            return codes, tuple((codes.max(axis=0) + 1).tolist())
    index = ItemIndex.load(folder)
    return index.codes, index.level_sizes


if __name__ == "__main__":
    run_stage(main)
