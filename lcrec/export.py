"""Stage: a checkpoint -> a folder that another engine serves, or trains on.

    python -m lcrec.export --model runs/shop/model --to vllm --output runs/shop/vllm

`transformers`, `vllm` and `flashrec` get the merged weights, the tokenizer, a line per item and the
prompt's form; the first two also `recommend.py`, which ranks with them and without lcrec. `sid-gr`,
which trains a model of its own, gets codes and sequences (and needs --data). A README beside them
has the commands. Everything is checked on the way, without the engine.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lcrec.core.artifacts import CARD, atomic_path, find_data, write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, claim
from lcrec.core.provenance import is_current, write_provenance

if TYPE_CHECKING:
    from lcrec.modeling.checkpoint import Checkpoint

STAGE = "python -m lcrec.export"
EXAMPLE = "--model runs/shop/model --to vllm --output runs/shop/vllm"


@dataclass(frozen=True)
class ExportConfig(Writes):
    """Settings of `python -m lcrec.export`."""

    model: Path = option("the checkpoint")
    output: Path = option("the folder to write", writes=FOLDER)
    to: Literal["transformers", "vllm", "flashrec", "sid-gr"] = option(
        "the engine to export for", "transformers"
    )
    data: Path | None = option("the data folder, for the sequences of sid-gr", None)
    base: str | None = option("where an adapter's base model lies now, if it moved", None)
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "what the weights are written in; they are merged in fp32", "bf16"
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(ExportConfig, argv, prog=STAGE, example=EXAMPLE)
    if (config.to == "sid-gr") != (config.data is not None):
        raise InputError(
            "--to sid-gr needs the --data whose sequences it trains on"
            if config.data is None
            else f"--data {config.data}: only --to sid-gr writes sequences; leave it out"
        )
    from lcrec.modeling.checkpoint import CheckpointFacts

    facts = CheckpointFacts.read(config.model)  # which refuses what is no checkpoint
    inputs = {"model": config.model}
    if config.data is not None:
        paths = find_data(config.data)
        inputs |= {"item": paths.item, **paths.sequences}
    settings = config_dict(config)
    if is_current(config.output, STAGE, settings, inputs):
        print(f"{config.output} is up to date: exported from this checkpoint already.")
        return
    with (
        claim(config.output, STAGE, overwrite=config.overwrite),
        atomic_path(config.output) as folder,
    ):
        folder.mkdir()
        if config.data is not None:
            items = _write_sequences(folder, config.model, config.data, facts.max_history)
        else:
            items = _write_model(folder, config, facts.max_history)
        write_provenance(folder, STAGE, settings, inputs, items=items)
    print(f"Wrote {config.output}: {items:,} items, checked. Next: {config.output / CARD}")


def _write_model(folder: Path, config: ExportConfig, max_history: int) -> int:
    """Write weights, tokenizer, items, prompt and README; return the number of items."""
    from lcrec.generate import exports, standalone
    from lcrec.modeling.__main__ import merge_and_compare
    from lcrec.modeling.item_rows import weight_of
    from lcrec.prompts.encoder import PromptEncoder

    live, model, compared = merge_and_compare(config.model, config.base, config.precision)
    if model.config.is_encoder_decoder and config.to != "transformers":
        raise InputError(f"--to {config.to}: an encoder-decoder is exported to transformers alone")
    if config.to == "flashrec" and model.config.model_type != "qwen3":
        raise InputError(
            f"--to flashrec: FlashRec serves models of the family qwen3, and this one is of "
            f"{model.config.model_type}; export for transformers or vllm"
        )
    template = exports.history_template(live.prompts)
    encoder = PromptEncoder(live.tokenizer, live.prompts)
    vocabulary = len(weight_of(model.get_input_embeddings()))
    ids = exports.write_items(folder / exports.ITEMS, live.tokenizer, live.index, vocabulary)
    form = exports.prompt_form(encoder, template, max_history)
    write_json(folder / exports.PROMPT, form, indent=2)
    print(f"Merged: {compared}")
    model.save_pretrained(folder)
    live.tokenizer.save_pretrained(folder)
    if config.to == "flashrec":
        catalogue = {",".join(map(str, codes)): 1 for codes in live.index.codes.tolist()}
        write_json(folder / exports.CATALOGUE, catalogue)
        flags = exports.flashrec_flags(encoder, template, live.index, ids)
        question = template.ask({"history": live.index.texts[:1]})
        card = _flashrec_card(live, flags, encoder.messages(question))
    else:
        program = Path(standalone.__file__).read_text(encoding="utf-8") + _RUN
        (folder / exports.PROGRAM).write_text(program, encoding="utf-8")
        card = _program_card(live, config.to, config.precision)
    (folder / CARD).write_text(card, encoding="utf-8")
    return len(live.index)


def _write_sequences(folder: Path, model: Path, data: Path, max_history: int) -> int:
    """Write codes, sequences, settings and README for sid-gr; return the number of items."""
    from lcrec.data.data_set import load_data
    from lcrec.data.new_items import require_same_catalogue
    from lcrec.data.splits import require_same_split
    from lcrec.generate import exports
    from lcrec.index.item_index import ItemIndex

    require_same_catalogue(data, model, None)
    require_same_split(model, data, f"python -m lcrec.finetune --data {data} --output DIR")
    read = load_data(data)
    index = ItemIndex.load(model, len(read.items))
    exports.write_sid_gr(folder, index, read.split, max_history, find_data(data).name)
    (folder / CARD).write_text(_SID_GR_CARD, encoding="utf-8")
    return len(index)


def _program_card(live: Checkpoint, engine: str, precision: str) -> str:
    rounded = "" if precision == "fp32" else f", up to the rounding of its weights to {precision}"
    history = shlex.join(live.index.ids.names[:2])
    install = {"transformers": "transformers torch jinja2", "vllm": "vllm jinja2"}[engine]
    lines = [
        f"# A recommender for {engine}",
        "",
        "```bash",
        f"pip install {install}",
        f"python recommend.py --engine {engine} --history {history} --k 5",
        "```",
        "",
        "prints a line per item, best first. `recommend.py` is all that is needed beside this "
        "folder: it puts the",
        "history into words (`prompt.json`), and asks the engine step by step for the tokens that "
        "go on towards an item",
        f"(`items.jsonl`), so that only real items come out and the ranking is lcrec's{rounded}.",
    ]
    if engine == "vllm":
        lines += [
            "",
            "`vllm serve .` serves the same weights over HTTP; a plain completion there is not "
            "bound to the catalogue.",
        ]
    return "\n".join([*lines, ""])


def _flashrec_card(live: Checkpoint, flags: list[str], messages: list[dict[str, str]]) -> str:
    levels = live.index.num_levels
    body = {"messages": messages, "n": 20, "max_tokens": levels, "temperature": 0}
    shown = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return "\n".join(
        [
            "# A recommender for FlashRec",
            "",
            "```bash",
            "flashrec --serve --model-path . --port 8000 --sid-vocab-file catalog.json \\",
            f"    {' '.join(flags)} \\",
            f"    --beam-width 20 --max-tokens {levels}",
            "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
            f"    -d '{shown}'",
            "```",
            "",
            "Each choice is the tokens of an item; `items.jsonl` says whose, and `prompt.json` how "
            "a history is put into words.",
            "FlashRec compares the item tokens with each other alone, where lcrec compares them "
            "with the whole vocabulary:",
            "scores differ, and a ranking may. Written after FlashRec's code; it needs a GPU and "
            "was not run.",
            "",
        ]
    )


# A library file runs nothing; its copy is a program.
_RUN = '\n\nif __name__ == "__main__":\n    main()\n'

_SID_GR_CARD = """# A data set for sid-gr

From `examples/sid_gr` of NVIDIA's recsys-examples, with this folder as DIR: put DIR before the file
names in `sid.gin`, add the `TrainerArgs`, `NetworkArgs` and `OptimizerArgs` of
`configs/sid_amazn.gin`, and

```bash
PYTHONPATH=$PYTHONPATH:$(realpath ../) torchrun --nproc_per_node 1 \\
    ./training/pretrain_sid_gr.py --gin-config-file DIR/sid.gin
```

`item-sid-mapping.pt` holds the codes [levels, items]; a row of the Parquet files is a user, and the
last item of `sequence_data` is what is predicted. sid-gr trains a model of its own, so there are no
weights here. Written after its code; it needs a GPU and was not run.
"""


if __name__ == "__main__":
    run_stage(main)
