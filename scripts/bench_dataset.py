"""Bench: check the shipped templates, and write every sample of a data set of Instruments' size.

    python scripts/bench_dataset.py
    python scripts/bench_dataset.py --interactions FOLDER

Makes a data folder with as many users, items and interactions as LC-Rec's Instruments (24,772,
9,922 and 206,153), or takes the sequences of the folder named; all text is made up, so that every
task has some. Then runs `python -m lcrec.prompts check` and one epoch of `python -m lcrec.dataset`,
each as a process of its own. The last line is JSON: check_seconds and seconds, the two wall times,
Python's start included; samples; peak_mb, the largest resident memory of the second process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import data_paths, write_json
from lcrec.core.provenance import read_provenance
from lcrec.data.folder import Interactions, load_interactions
from lcrec.index.item_index import ItemIndex

TOP = Path(__file__).parents[1]
USERS, ITEMS, INTERACTIONS, SHORTEST = 24_772, 9_922, 206_153, 5
LEVEL_SIZES = (256, 256, 256, 256)
# Words of the made-up texts: a title, a description, what a user likes or looks for.
TITLE, DESCRIPTION, INTENTION = 12, 60, 25


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interactions", type=Path, metavar="FOLDER", help="a data folder")
    folder = parser.parse_args().interactions
    rng = np.random.default_rng(0)
    interactions = load_interactions(folder, ITEMS) if folder else make_sequences(rng)
    print(f"{len(interactions):,} users, {len(interactions.items):,} interactions")
    check_seconds, _ = run("lcrec.prompts", "check")
    with tempfile.TemporaryDirectory() as name:
        data, index, rows = (Path(name) / part for part in ("data", "index", "rows"))
        write_data(data, interactions, rng)
        cells = rng.choice(np.prod(LEVEL_SIZES), ITEMS, replace=False, shuffle=False)
        codes = np.stack(np.unravel_index(cells, LEVEL_SIZES), axis=1)
        ItemIndex(codes.astype(np.int32), LEVEL_SIZES).save(index)
        flags = {"--data": data, "--index": index, "--output": rows, "--epochs": 1}
        seconds, peak_mb = run("lcrec.dataset", *(str(w) for flag in flags.items() for w in flag))
        record = read_provenance(rows)
    assert record is not None
    result = {
        "check_seconds": round(check_seconds, 2),
        "samples": record["rows"],
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb),
    }
    print(json.dumps(result))


def make_sequences(rng: np.random.Generator) -> Interactions:
    """Return sequences whose lengths are geometric above the shortest and add up exactly."""
    extra = INTERACTIONS - USERS * SHORTEST
    owners = rng.choice(USERS, extra, p=rng.dirichlet(np.ones(USERS)))
    lengths = SHORTEST + np.bincount(owners, minlength=USERS)
    popularity = 1 / np.arange(10, ITEMS + 10)
    items = rng.choice(ITEMS, INTERACTIONS, p=popularity / popularity.sum())
    parts = np.split(items, np.cumsum(lengths)[:-1])
    return Interactions.from_sequences({str(u): part.tolist() for u, part in enumerate(parts)})


def write_data(folder: Path, interactions: Interactions, rng: np.random.Generator) -> None:
    """Write the data folder: the sequences, and made-up text for every item and user."""
    words = np.array(["".join(letters) for letters in rng.choice(list("aeioulnrst"), (5000, 6))])

    def texts(count: int, length: int) -> list[str]:
        return [" ".join(row) for row in words[rng.integers(len(words), size=(count, length))]]

    names = zip(texts(ITEMS, TITLE), texts(ITEMS, DESCRIPTION), strict=True)
    items = {str(i): {"title": t, "description": d} for i, (t, d) in enumerate(names)}
    users, intentions = interactions.users, texts(4 * len(interactions), INTENTION)
    likes = {user: intentions[4 * u : 4 * u + 3] for u, user in enumerate(users)}
    seeks = {
        user: {"item": int(interactions.sequence(u)[-3]), "querys": [intentions[4 * u + 3]]}
        for u, user in enumerate(users)
    }
    paths = data_paths(folder, "Bench")
    sequences = zip(users, interactions, strict=True)
    write_json(paths.inter, {user: sequence.tolist() for user, sequence in sequences})
    write_json(paths.item, items)
    write_json(
        paths.user,
        {"user_explicit_preference": likes, "user_vague_intention": {"train": seeks, "test": {}}},
    )


def run(module: str, *arguments: str) -> tuple[float, float]:
    """Run a stage; return its wall time in seconds and its peak resident memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=TOP)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{module} failed")
    return seconds, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
