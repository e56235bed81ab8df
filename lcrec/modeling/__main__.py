"""Stage: merge a checkpoint's adapter into one plain Hugging Face model, for export.

    python -m lcrec.modeling merge --model runs/shop/model --output runs/shop/merged

Reads a checkpoint of `lcrec.finetune`; writes a folder that `AutoModelForCausalLM` and
servers such as vLLM load, with a model card, and that is a checkpoint of lcrec still. Merging is
judged before anything is written: the merged model's logits are compared with the live one's.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcrec.core.artifacts import (
    CARD,
    NEIGHBOURS,
    PROMPTS,
    PROVENANCE,
    RECIPE,
    atomic_path,
    read_json,
    write_json,
)
from lcrec.core.config import Writes, option, parse_config
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, claim
from lcrec.core.provenance import read_provenance
from lcrec.prompts.tasks import sequence_record

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from lcrec.modeling.checkpoint import Checkpoint

STAGE = "python -m lcrec.modeling"
EXAMPLE = "--model runs/shop/model --output runs/shop/merged"
# Rounding of float32 sums moves logits by less than this share of their spread.
TOLERANCE = 1e-3
PROBES = 16


@dataclass(frozen=True)
class MergeConfig(Writes):
    """Settings of `python -m lcrec.modeling merge`."""

    model: Path = option("the checkpoint to merge")
    output: Path = option("the folder to write the plain model to", writes=FOLDER)
    base: str | None = option("where its base model lies now, if it moved", None)
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "what the weights are written in; they are merged in fp32", "fp32"
    )
    metrics: Path | None = option("a metrics file of lcrec.evaluate, for the model card", None)


def main(argv: list[str]) -> None:
    """Merge, compare, write."""
    if argv[:1] in (["-h"], ["--help"]):  # of the only command
        argv = ["merge", *argv]
    if argv[:1] != ["merge"]:
        raise InputError(
            f"python -m lcrec.modeling: expected the word merge, found {argv[:1] or 'nothing'}; "
            f"see {STAGE} merge --help"
        )
    config = parse_config(MergeConfig, argv[1:], prog=f"{STAGE} merge", example=EXAMPLE)
    metrics = read_json(config.metrics) if config.metrics else None
    live, model, compared = merge_and_compare(config.model, config.base, config.precision)
    write_merged(config, live, model, metrics)
    print(
        f"Wrote {config.output} ({compared}). Next: python -m lcrec.generate --model "
        f"{config.output}, or AutoModelForCausalLM.from_pretrained"
    )


def merge_and_compare(
    folder: Path, base: str | None, precision: str
) -> tuple[Checkpoint, PreTrainedModel, str]:
    """Merge a checkpoint, and compare the merged model's logits with the live one's.

    Args:
        folder: the checkpoint.
        base: where its base model lies now, if it moved.
        precision: what the merged weights are rounded to, a key of `DTYPES`.

    Returns:
        The checkpoint, its merged model, and what is to be said of the difference of their logits.

    Raises:
        InputError: they differ by more than rounding explains; of a quantised base they may.
    """
    from lcrec.modeling.base import DTYPES
    from lcrec.modeling.checkpoint import CheckpointFacts, load_checkpoint

    quantised = CheckpointFacts.read(folder).quantize != "none"
    print(f"Merging {folder}" + (" into its dequantised base" if quantised else ""))
    live = load_checkpoint(folder, base=base)
    prompts = probe_prompts(live)
    before = logits_of(live.model, prompts)
    model = merge_checkpoint(folder, base)
    distance = float((before - logits_of(model, prompts)).abs().max())
    spread = float(before.std())
    if quantised:
        print(
            f"Its logits lie within {distance:.3g} of the live model's at a spread of "
            f"{spread:.3g}: the base's layers computed quantised, the merged ones do not"
        )
    elif not distance <= TOLERANCE * spread:
        raise InputError(
            f"--model {folder}: merged, its logits would be off by {distance:.3g} at a "
            f"spread of {spread:.3g}, so nothing was written; this is a fault of the merge of "
            f"{type(model).__name__}, not of the checkpoint, which can still be used as it is"
        )
    said = f"logits within {distance:.1e} of the live model's"
    if precision != "fp32":
        for weight in model.parameters():  # and no buffer, which an engine computes anew
            weight.data = weight.data.to(DTYPES[precision]).float()
        moved = float((before - logits_of(model, prompts)).abs().max())
        model.to(DTYPES[precision])  # type: ignore[arg-type]
        said = (
            f"as weights are rounded to {precision}, logits move by up to {moved:.2g} at a spread "
            f"of {spread:.2g}; --precision fp32 keeps them"
        )
    return live, model, said


def merge_checkpoint(folder: Path, base: str | None = None) -> PreTrainedModel:
    """Return a checkpoint's model with its adapter and its new rows merged in, in fp32.

    A quantised base is dequantised first: quantising the sum again would lose much of
    what the adapter has learned.
    """
    from peft import PeftModel

    from lcrec.modeling.checkpoint import load_checkpoint

    model = load_checkpoint(folder, base=base, dequantize=True).model
    return model.merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else model


def probe_prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """Return some prompts with their answers, as the model sees them."""
    from lcrec.prompts.encoder import PromptEncoder

    index, prompts = checkpoint.index, checkpoint.prompts
    template = prompts.evaluation_templates("seqrec")[0]
    encoder = PromptEncoder(checkpoint.tokenizer, prompts)
    chosen = range(0, len(index), -(-len(index) // PROBES))
    asked = encoder.prompt_ids(
        [template.ask(sequence_record(index, [i], 1, checkpoint.nearby)) for i in chosen]
    )
    answers = encoder.answer_ids([index.texts[item] for item in chosen])
    return [prompt + answer for prompt, answer in zip(asked, answers, strict=True)]


def logits_of(model: PreTrainedModel | PeftModel, prompts: list[list[int]]) -> torch.Tensor:
    """Return the logits at every position of every prompt, float32 [positions, vocabulary]."""
    import torch

    model.eval()
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([ids], device=model.device)).logits for ids in prompts]
    return torch.cat([row[0].float().cpu() for row in rows])


def write_merged(
    config: MergeConfig, live: Checkpoint, model: PreTrainedModel, metrics: Any
) -> None:
    """Write the folder of the merged model."""
    record = read_provenance(config.model)
    assert record is not None  # it was loaded
    merged = record | {"config": record["config"] | {"quantize": "none"}}
    card = model_card(config, live, record, metrics)
    with (
        claim(config.output, f"{STAGE} merge", overwrite=config.overwrite),
        atomic_path(config.output) as folder,
    ):
        model.save_pretrained(folder)
        live.tokenizer.save_pretrained(folder)
        live.index.save(folder)
        live.prompts.save(folder / PROMPTS)
        if live.nearby is not None:
            live.nearby.save(folder / NEIGHBOURS)
        shutil.copy(config.model / RECIPE, folder / RECIPE)
        (folder / CARD).write_text(card, encoding="utf-8")
        write_json(folder / PROVENANCE, merged | {"merged_from": str(config.model)}, indent=2)


def model_card(config: MergeConfig, live: Checkpoint, record: dict[str, Any], metrics: Any) -> str:
    """Return the card of the merged model: what it is, what made it, how good it was.

    Args:
        config: which checkpoint was merged into which folder.
        live: the checkpoint, loaded.
        record: its provenance.
        metrics: a metrics file, read; None for none.
    """
    from lcrec.core.pretrained import ADAPTER_CONFIG

    base = "unknown"
    if (config.model / ADAPTER_CONFIG).exists():
        base = read_json(config.model / ADAPTER_CONFIG)["base_model_name_or_path"]
    elif "base" in record["inputs"]:
        base = record["inputs"]["base"]["path"]
    sizes = " x ".join(map(str, record["level_sizes"]))
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [recommendation, lc-rec]",
        "---",
        f"# {config.output.name}",
        "",
        f"A recommender: {base}, fine-tuned by lcrec {record['lcrec']} to read and write the item "
        f"tokens of a catalogue of {len(live.index):,} items ({sizes} codes). `index.json` says "
        "which tokens an item has; `prompts/` holds the prompt templates it was asked with.",
        "",
        "```bash",
        f"{record['stage']} --config recipe.yaml --prompts prompts \\",
        f"    --data DATA --index INDEX --base {base} --output MODEL",
        f"{STAGE} merge --model MODEL --output {config.output.name}",
        "python -m lcrec.generate --model . --data DATA --history 12 7 33",
        "```",
        "",
        "| Made from | sha256 |",
        "|---|---|",
        *(f"| {role} | `{entry['sha256']}` |" for role, entry in record["inputs"].items()),
        f"| prompts | `{record['prompts_hash']}` |",
        "",
        f"NDCG@10 on the held-out users of validation: {record['validation_ndcg_at_10']:.4f}.",
    ]
    if metrics:
        lines += ["", "```json", json.dumps(_means(metrics), indent=2), "```"]
    lines += ["", "Settings:", "", "```json", json.dumps(record["config"], indent=2), "```", ""]
    return "\n".join(lines)


def _means(metrics: Any) -> Any:
    """Return the overall figures of a metrics file.

    Raises:
        InputError: it is none.
    """
    try:
        return {name: run["overall"] for name, run in metrics["runs"].items()}
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            "--metrics: not a metrics file of python -m lcrec.evaluate --output"
        ) from None


if __name__ == "__main__":
    run_stage(main)
