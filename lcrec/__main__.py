"""`lcrec`: the stages in order, a line each; `lcrec STAGE ...` runs one.

`lcrec STAGE ...` and `python -m lcrec STAGE ...` do what `python -m lcrec.STAGE ...` does. The
overview loads no stage, so it answers at once.
"""

import importlib
import importlib.util

from lcrec.core.errors import InputError, closest, run_stage
from lcrec.core.version import __version__

# In the order of the pipeline: stage, what it reads, what it writes.
STAGES: tuple[tuple[str, str, str], ...] = (
    ("synthetic", "nothing", "a small made-up shop, as a data folder"),
    ("prepare", "raw interactions and item texts", "the data folder"),
    ("add_items", "data, new items", "a data folder with them added"),
    ("add_interactions", "data, new interactions", "a data folder with them added"),
    ("intents", "data, reviews", "user.json: what users like and look for"),
    ("tinylm", "item.json, prompts", "a small base model, for want of a hub"),
    ("embed", "item.json", "embeddings.npy"),
    ("quantize", "embeddings.npy", "index.json, rqvae.safetensors, report.html"),
    ("index_report", "an index made anywhere", "report.json, report.html"),
    ("prompts", "prompts, data, checkpoint", "faults, preview and scores of prompt templates"),
    ("dataset", "data, index.json, prompts", "the instruction data set, to train elsewhere"),
    ("plan", "data, index.json, prompts, base's shape", "nothing: what training would cost"),
    ("finetune", "data, index.json, prompts, base model", "the checkpoint folder"),
    ("reinforce", "checkpoint, data", "the checkpoint folder, its rankings rewarded"),
    ("modeling", "checkpoint", "merge: one plain model, for other software"),
    ("export", "checkpoint", "a folder for transformers, vLLM, FlashRec or sid-gr"),
    ("generate", "checkpoint, data", "predictions.jsonl, or a table on screen"),
    ("serve", "checkpoint, data", "nothing: answers requests over HTTP"),
    ("studio", "checkpoint, data", "nothing: a page in the browser to look at them"),
    ("baselines", "data", "predictions.jsonl of a simpler method"),
    ("evaluate", "predictions.jsonl", "metrics.json, a table"),
)


def main(argv: list[str]) -> None:
    """Print the stages, or run the one that the first word names.

    Raises:
        InputError: there is no such stage, or its own arguments are wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: lcrec STAGE [option ...], or: lcrec --version\n")
        print("The stages, in order; each explains itself with --help:\n")
        rows = [(f"lcrec {name}", read, written) for name, read, written in STAGES]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for command, read, written in rows:
            print(f"{command:<{widths[0]}}  {read:<{widths[1]}}  ->  {written}")
        return
    name, *rest = argv
    if name == "--version":
        print(f"lcrec {__version__}")
        return
    names = [stage for stage, _, _ in STAGES]
    if name not in names:
        is_option = name.startswith("-")
        what, known = ("option", ["--help", "--version"]) if is_option else ("stage", names)
        raise InputError(
            f"no {what} {name!r}{closest(name, known)} (lcrec --help lists the stages)"
        )
    module = f"lcrec.{name}"
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations is not None:
        module += ".__main__"  # a package
    importlib.import_module(module).main(rest)


def console() -> None:
    """Run `main` on the command line: what the console script `lcrec` calls."""
    run_stage(main)


if __name__ == "__main__":
    console()
