"""Ablation tables: one recipe trained for every cell and seed, judged on the test items.

    python scripts/ablation.py --table tasks --data DATA --embeddings EMBEDDINGS --run runs/small
    python scripts/ablation.py --table pretrained --data DATA --embeddings EMBEDDINGS \
        --run runs/smollm2 --recipe recipes/smollm2.yaml --base SMOLLM2 --seeds 42

Every cell is made by the stages' own commands, in a folder of its own under `--run`, and shares
the data, the embeddings and one base model with the others: a tiny one made from the catalogue,
or `--base`. A cell that is done is not run again, and one that was killed goes on from its last
checkpoint, so a killed table goes on where it stopped. Prints the table, and one JSON object on
the last line.

Tables: `index` (ways to index, two seeds), `tasks` (alignment tasks at the same number of
samples), `training` (what is trained), `rows` (what the item tokens' rows start from),
`collaborative` (purchases in the index and in the tasks; the tasks' samples are added),
`pretrained` (the base as it is, one of its shape with weights drawn at random, what the rows start
from, what is trained, and purchases in the index).
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lcrec.core.artifacts import atomic_path, find_data, read_json, write_json
from lcrec.core.config import option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.provenance import fingerprint, read_provenance

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "office_small.yaml"
BASE = [
    "--vocab-size",
    "2048",
    "--hidden-size",
    "64",
    "--layers",
    "2",
    "--epochs",
    "3",
    "--max-words",
    "40",
]


@dataclass(frozen=True)
class Cell:
    """One row of a table: what it adds to the commands of `quantize` and `finetune.py`.

    `{run}` stands for the folder of the run.
    """

    label: str
    quantize: str = ""
    finetune: str = ""
    random_weights: bool = False  # of the base's shape, in the place of its own


TABLES = {
    "index": [
        Cell("RQ-VAE", "", "--rows text"),
        Cell("residual k-means", "--kind rq-kmeans", "--rows text"),
        Cell("random", "--kind random", "--rows text"),
        Cell("one token per item", "--kind vanilla", "--rows text"),
    ],
    # The same number of samples in every row: what a task gets, seqrec loses.
    "tasks": [
        Cell("SEQ", finetune="--tasks seqrec=12500"),
        Cell("+ MUT", finetune="--tasks seqrec=10500 item2index=1000 index2item=1000"),
        Cell(
            "+ ASY",
            finetune="--tasks seqrec=9500 item2index=1000 index2item=1000 fusionseqrec=1000",
        ),
        Cell(
            "+ ITE",
            finetune="--tasks seqrec=8500 item2index=1000 index2item=1000 fusionseqrec=1000 "
            "itemsearch=1000",
        ),
        Cell(
            "+ PER",
            finetune="--tasks seqrec=7500 item2index=1000 index2item=1000 fusionseqrec=1000 "
            "itemsearch=1000 preferenceobtain=1000",
        ),
    ],
    "training": [
        Cell("everything"),
        Cell("LoRA and new rows", finetune="--mode lora --lora-rank 8"),
        Cell("new rows only", finetune="--mode rows"),
    ],
    "rows": [
        Cell("codebook"),
        Cell("text", finetune="--rows text"),
        Cell("random", finetune="--rows random"),
    ],
    "collaborative": [
        Cell("texts alone"),
        Cell("concat", "--collaborative {run}/cooccurrence"),
        Cell("LETTER", "--collaborative {run}/cooccurrence --collaborative-by letter"),
        Cell(
            "+ neighbours",
            finetune="--tasks seqrec=10500 item2index=1000 index2item=1000 neighbours=3000",
        ),
        Cell(
            "concat, + neighbours",
            "--collaborative {run}/cooccurrence",
            "--tasks seqrec=10500 item2index=1000 index2item=1000 neighbours=3000",
        ),
        Cell(
            "+ code2words",
            finetune="--tasks seqrec=10500 item2index=1000 index2item=1000 code2words",
        ),
    ],
    "pretrained": [
        Cell("as pretrained"),
        Cell("weights drawn at random", random_weights=True),
        Cell("random rows", finetune="--rows random"),
        Cell("LoRA and new rows", finetune="--mode lora --lora-rank 16 --learning-rate 1e-3"),
        Cell("new rows only", finetune="--mode rows --learning-rate 3e-3"),
        Cell("index of texts and purchases", "--collaborative {run}/cooccurrence"),
    ],
}


@dataclass(frozen=True)
class AblationConfig:
    """Settings of `scripts/ablation.py`."""

    table: Literal["index", "tasks", "training", "rows", "collaborative", "pretrained"] = option(
        "the table to make"
    )
    data: Path = option("the data folder (with <Name>.user.json for the table of tasks)")
    embeddings: Path = option("the folder that holds embeddings.npy")
    run: Path = option("where everything made is kept")
    seeds: list[int] = option("a run per seed", [42, 43, 44])
    epochs: int | None = option("epochs instead of the recipe's", None, minimum=1)
    recipe: Path = option("what finetune is given with --config", RECIPE)
    base: str | None = option(
        "the base model, in a folder or on the hub (default: a tiny one made from the catalogue)",
        None,
    )


def main(argv: list[str]) -> None:
    """Fill the table's cells, then print it."""
    config = parse_config(AblationConfig, argv, description=__doc__ or "", prog="ablation.py")
    paths = find_data(config.data)
    if config.table == "tasks" and not paths.user.exists():
        raise InputError(
            f"--data {config.data}: the table of tasks needs {paths.user.name}; write one with "
            f"python -m lcrec.intents --data {config.data} --method keywords"
        )
    data = ["--data", config.data]
    cells = TABLES[config.table]
    if config.base is None:
        stage("tinylm", *data, "--output", config.run / "base", *BASE)
    if any("{run}/cooccurrence" in cell.quantize for cell in cells):
        counts = config.run / "cooccurrence"
        stage("baselines", "cooccurrence", *data, "--output", f"{counts}.jsonl", "--save", counts)
    inputs = {
        "item": fingerprint(paths.item),
        "inter": fingerprint(paths.inter),
        "embeddings": fingerprint(config.embeddings),
        "recipe": fingerprint(config.recipe),
    }
    results = []
    for cell in cells:
        for seed in config.seeds:
            print(f"== {config.table}: {cell.label}, seed {seed}", flush=True)
            results.append(fill(cell, seed, config, inputs))
    summaries = [
        summarise(cell, results[row * len(config.seeds) : (row + 1) * len(config.seeds)])
        for row, cell in enumerate(cells)
    ]
    print(markdown(summaries))
    print(json.dumps({"table": config.table, "seeds": config.seeds, "rows": summaries}))


def fill(cell: Cell, seed: int, config: AblationConfig, inputs: dict[str, str]) -> dict[str, Any]:
    """Return a cell's figures, made by the stages' commands unless they are there already.

    Returns:
        HR@10 and NDCG@10 on the test items with their intervals, `parameters` trained, `minutes`
        and `peak_mb` of the fine-tuning process.
    """
    extra = ["--epochs", str(config.epochs)] if config.epochs else []
    spec = asdict(cell) | {"seed": seed, "extra": extra, "inputs": inputs}
    spec["base"] = config.base or BASE
    slug = "-".join(re.findall(r"[a-z0-9]+", cell.label.lower()))
    folder = config.run / config.table / f"{slug}-{seed}"
    note = folder / "cell.json"
    if note.exists() and (found := read_json(note))["spec"] == spec:
        return found["figures"]
    words = re.findall(r"[a-z0-9]+", cell.quantize.removeprefix("--kind "))
    index = config.run / "index" / ("-".join(words) or "default")
    model, predictions = folder / "model", folder / "predictions.jsonl"
    data = ["--data", config.data]
    added = cell.quantize.format(run=config.run).split()
    made_from = ["--embeddings", config.embeddings, *added]
    stage("quantize", *data, "--output", index, *made_from)
    base = config.base or str(config.run / "base")
    if cell.random_weights:
        base = draw_weights(base, folder / "base", seed)
    minutes, peak = stage(
        "recipes/finetune.py",
        *("--config", config.recipe, *data, "--index", index, "--base", base),
        *("--output", model, "--seed", seed, *cell.finetune.split(), *extra),
        *(["--overwrite"] if note.exists() else []),  # of another recipe; else what was killed
    )
    stage("generate", "--model", model, *data, "--output", predictions, "--split", "test")
    stage("evaluate", "--predictions", predictions, "--output", folder / "metrics.json")
    (measured,) = read_json(folder / "metrics.json")["runs"].values()
    facts = read_provenance(model) or {}
    figures = {
        "hr@10": measured["overall"]["HR@10"],
        "ndcg@10": measured["overall"]["NDCG@10"],
        "parameters": facts["trainable_parameters"],
        "minutes": minutes,
        "peak_mb": peak,
    }
    write_json(note, {"spec": spec, "figures": figures})
    return figures


def draw_weights(base: str, folder: Path, seed: int) -> str:
    """Write a model of the base's shape and tokenizer with weights drawn at random."""
    if not folder.exists():
        torch.manual_seed(seed)
        shape = AutoConfig.from_pretrained(base)
        with atomic_path(folder) as staged:
            AutoModelForCausalLM.from_config(shape).save_pretrained(staged)
            AutoTokenizer.from_pretrained(base).save_pretrained(staged)
    return str(folder)


def stage(name: str, *arguments: object) -> tuple[float, float]:
    """Run a stage; return the minutes it took and its peak resident memory in MB.

    Raises:
        InputError: it failed; what it said stands above.
    """
    program = [str(ROOT / name)] if name.endswith(".py") else ["-m", f"lcrec.{name}"]
    command = [sys.executable, *program, *map(str, arguments)]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: ended with {process.returncode}; see above")
    return (time.monotonic() - started) / 60, usage.ru_maxrss / 1024


def summarise(cell: Cell, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure over the seeds, and the spread of the metrics.

    That is their least and greatest; of one seed it is the interval over users.
    """
    summary: dict[str, Any] = {"label": cell.label}
    for name in results[0]:
        values = [result[name] for result in results]
        if name in ("hr@10", "ndcg@10"):
            means = [value["mean"] for value in values]
            spread = [min(means), max(means)]
            if len(values) == 1:
                spread = [values[0]["low"], values[0]["high"]]
            summary[f"{name} range"] = spread
            values = means
        summary[name] = float(np.mean(values))
    return summary


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown: means, with their spread."""
    lines = [
        "| | HR@10 | NDCG@10 | parameters trained | minutes | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        metrics = " | ".join(
            f"{row[name]:.4f} ({row[f'{name} range'][0]:.4f} to {row[f'{name} range'][1]:.4f})"
            for name in ("hr@10", "ndcg@10")
        )
        lines.append(
            f"| {row['label']} | {metrics} | {row['parameters']:,.0f} | {row['minutes']:.1f} | "
            f"{row['peak_mb']:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
