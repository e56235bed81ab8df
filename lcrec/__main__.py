"""`python -m lcrec`: the stages in order, a line each.

Reads and writes nothing, and loads no stage, so it answers at once.

Public names: `STAGES`, `main`.
"""

import difflib
import re

from lcrec.core.errors import InputError, run_stage

# In the order of the way through it: command, what it reads, what it writes.
STAGES: tuple[tuple[str, str, str], ...] = (
    ("python -m lcrec.synthetic", "nothing", "a small made-up shop, as a data folder"),
    ("python -m lcrec.prepare", "raw interactions and item texts", "the data folder"),
    ("python -m lcrec.add_items", "data, new items", "a data folder with them added"),
    ("python -m lcrec.intents", "data, reviews", "user.json: what users like and look for"),
    ("python -m lcrec.tinylm", "item.json, prompts", "a small base model, for want of a hub"),
    ("python -m lcrec.embed", "item.json", "embeddings.npy"),
    ("python -m lcrec.quantize", "embeddings.npy", "index.json, rqvae.safetensors, report.html"),
    ("python -m lcrec.index_report", "an index made anywhere", "report.json, report.html"),
    (
        "python -m lcrec.prompts",
        "prompts, data, checkpoint",
        "faults, preview and scores of the wording",
    ),
    (
        "python -m lcrec.dataset",
        "data, index.json, prompts",
        "the instruction data set, to train elsewhere",
    ),
    (
        "accelerate launch recipes/finetune.py",
        "data, index.json, prompts, base model",
        "the checkpoint folder",
    ),
    ("python -m lcrec.modeling", "checkpoint", "merge: one plain model, for other software"),
    ("python -m lcrec.generate", "checkpoint, data", "predictions.jsonl, or a table on screen"),
    ("python -m lcrec.serve", "checkpoint, data", "nothing: answers requests over HTTP"),
    ("python -m lcrec.baselines", "data", "predictions.jsonl of a simpler method"),
    ("python -m lcrec.evaluate", "predictions.jsonl", "metrics.json, a table"),
)


def main(argv: list[str]) -> None:
    """Print the stages.

    Raises:
        InputError: there is an argument other than `--help`.
    """
    if argv and argv[0] not in ("-h", "--help"):
        commands = {
            re.split("[./]", command.removesuffix(".py"))[-1]: command for command, _, _ in STAGES
        }
        (meant,) = difflib.get_close_matches(argv[0], commands, n=1) or ["embed"]
        raise InputError(
            f"python -m lcrec takes no argument {argv[0]!r}; each stage is a command of its own, "
            f"such as: {commands[meant]} --help"
        )
    print("The stages, in order; each explains itself with --help:\n")
    widths = [max(len(stage[column]) for stage in STAGES) for column in (0, 1)]
    for command, read, written in STAGES:
        print(f"{command:<{widths[0]}}  {read:<{widths[1]}}  ->  {written}")


if __name__ == "__main__":
    run_stage(main)
