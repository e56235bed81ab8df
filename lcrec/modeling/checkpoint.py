"""Base models, adapters and checkpoints.

A checkpoint is one self-contained folder: weights (a whole model, or a LoRA adapter with the item
tokens' rows and the name of its base), tokenizer with chat template, its own copy of the item
index and of the prompts, the counts that its prompts look neighbours up in, if they show any, the
resolved recipe, and `lcrec.json`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcrec.core.artifacts import NEIGHBOURS, PROMPTS, PROVENANCE, RECIPE
from lcrec.core.errors import InputError
from lcrec.core.pretrained import (
    ADAPTER_CONFIG,
    CAUSAL,
    base_of_adapter,
    load_adapter,
    load_model,
    load_pair,
    load_tokenizer,
    rows_needed,
)
from lcrec.core.provenance import is_kind, read_provenance, require_same_input, write_provenance
from lcrec.data.cooccurrence import NearbyItems
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.base import loading
from lcrec.modeling.item_rows import compute_rows_apart, weight_of
from lcrec.modeling.recipe import STAGE
from lcrec.prompts.encoder import added_ids, boundary_ids
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import parse_mixture

REMEDY = f"bring back what is missing, or train again with: {STAGE}"


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint's `lcrec.json` and recipe say of it.

    Attributes:
        max_history: how many of a user's latest items a prompt showed in training.
        max_text_words: the length, in words, that titles and descriptions were cut to.
        tasks: the tasks it was trained on, each with its share or cap, as `parse_mixture` reads it.
        base: the base model, on the hub or in a folder; None where the recipe does not say.
        quantize: what the frozen base is stored in, `none`, `8bit` or `4bit`.
        validation_ndcg_at_10: NDCG@10 over the whole catalogue on held-out users.
    """

    max_history: int
    max_text_words: int
    tasks: tuple[str, ...]
    base: str | None
    quantize: str
    validation_ndcg_at_10: float

    @classmethod
    def read(cls, folder: Path) -> "CheckpointFacts":
        """Read the facts of a checkpoint, of any version of lcrec.

        Raises:
            InputError: the folder is no checkpoint of ours, or its record lacks a fact.
        """
        if not is_kind(folder, STAGE):
            raise InputError(
                f"--model {folder}: not a checkpoint of lcrec (no {PROVENANCE} of a fine-tune in "
                "it); train one with: python -m lcrec.finetune --output DIR"
            )
        record = read_provenance(folder)
        assert record is not None
        recipe = record["config"]
        told = {"base": None, "quantize": "none"} | recipe | record
        for name, kinds in _FACTS.items():
            if not isinstance(told.get(name), kinds):
                found = f"it tells {told[name]!r:.60} as" if name in told else "it does not tell"
                raise InputError(
                    f"{folder / PROVENANCE}: not a checkpoint's record, {found} {name!r}; train "
                    f"the checkpoint again with: {STAGE}"
                )
        return cls(**{name: told[name] for name in _FACTS} | {"tasks": tuple(told["tasks"])})


_FACTS: dict[str, Any] = {
    "max_history": int,
    "max_text_words": int,
    "tasks": list,
    "base": str | None,
    "quantize": str,
    "validation_ndcg_at_10": int | float,
}


@dataclass(frozen=True, kw_only=True)
class CheckpointParts:
    """What a checkpoint holds beside weights and tokenizer, to be checked before these are loaded.

    Attributes:
        nearby: what stood near what in training, where its prompts show neighbours, else None.
        catalogue: the items to rank: those of `index`, and those that another one adds to them.
    """

    index: ItemIndex
    prompts: PromptSet
    facts: CheckpointFacts
    nearby: NearbyItems | None
    catalogue: ItemIndex

    @classmethod
    def read(cls, folder: Path, index: Path | None = None) -> "CheckpointParts":
        """Read them; `index` adds items to the checkpoint's own.

        Raises:
            InputError: the folder is no checkpoint of ours, or `index` does not continue its own.
        """
        facts = CheckpointFacts.read(folder)
        own = ItemIndex.load(folder)
        prompts = PromptSet.load(folder / PROMPTS)
        return cls(
            index=own,
            prompts=prompts,
            facts=facts,
            nearby=NearbyItems.load(folder / NEIGHBOURS) if prompts.shows_neighbours else None,
            catalogue=own if index is None else own.load_extension(index),
        )

    @property
    def tasks(self) -> set[str]:
        """The tasks that the model was trained on."""
        return set(parse_mixture(list(self.facts.tasks)))


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointParts):
    """A fine-tuned model with everything it needs to recommend."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase


@torch.no_grad()
def copy_rows(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, index: ItemIndex
) -> None:
    """Start the item tokens' rows where another model's training left them.

    Args:
        folder: the other model's checkpoint, made from the same base with the same item tokens,
            such as one of `--mode rows`.
        model, tokenizer: the base model, already resized, and its extended tokenizer.
        index: the item index.

    Raises:
        InputError: the other model has another width or other item tokens, or cannot be loaded.
    """
    try:
        other = load_checkpoint(folder)
    except InputError as error:  # by the flag that named the folder
        raise InputError(str(error).replace("--model", "--rows", 1)) from None
    source = other.model
    if isinstance(source, PeftModel):
        source = source.merge_and_unload()
    width = weight_of(model.get_input_embeddings()).shape[1]
    found = weight_of(source.get_input_embeddings()).shape[1]
    if found != width or other.index.vocabulary != index.vocabulary:
        raise InputError(
            f"--rows {folder}: its rows are {found} wide for {len(other.index.vocabulary)} item "
            f"tokens, this model's {width} wide for {len(index.vocabulary)}; train them with "
            "--mode rows on this base and index"
        )
    theirs, ours = (torch.from_numpy(added_ids(own, index)) for own in (other.tokenizer, tokenizer))
    if len(theirs) != len(ours):
        with_or_without = "with" if boundary_ids(other.tokenizer) else "without"
        raise InputError(
            f"--rows {folder}: was trained {with_or_without} --boundary-tokens; do so here too"
        )
    for table, origin in (
        (model.get_input_embeddings(), source.get_input_embeddings()),
        (model.get_output_embeddings(), source.get_output_embeddings()),
    ):
        weight_of(table)[ours] = weight_of(origin)[theirs].to(weight_of(table))


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    index: ItemIndex,
    prompts: PromptSet,
    recipe: dict[str, Any],
    inputs: dict[str, Path],
    weights: dict[str, Any] | None = None,
    *,
    max_history: int,
    validation_ndcg_at_10: float | None,
    trainable_parameters: int,
    nearby: NearbyItems | None = None,
    stage: str = STAGE,
) -> None:
    """Write a self-contained checkpoint into `folder`; `lcrec.json` comes last.

    Args:
        folder: where to write; made if missing.
        model, tokenizer, index, prompts: what was trained.
        recipe: the resolved settings, `tasks` and `max_text_words` among them.
        inputs: the files it was trained on, by role.
        weights: the model's weights by name, where `model` holds but a share of them.
        max_history: how many of a user's latest items a prompt shows.
        validation_ndcg_at_10: of the weights that are saved.
        trainable_parameters: how many numbers were trained.
        nearby: what stands near what in the train sequences, for prompts that show neighbours.
        stage: the command that trained it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        # PEFT's default would write both resized matrices whole beside the trained rows.
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    else:
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    index.save(folder)
    prompts.save(folder / PROMPTS)
    if nearby is not None:
        nearby.save(folder / NEIGHBOURS)
    (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    write_provenance(
        folder,
        stage,
        recipe,
        inputs,
        level_sizes=index.level_sizes,
        prompts_hash=prompts.content_hash,
        max_history=max_history,
        validation_ndcg_at_10=validation_ndcg_at_10,
        trainable_parameters=trainable_parameters,
    )


def find_base(folder: Path) -> str:
    """Return the base model of an adapter, on the hub or in a folder.

    Raises:
        InputError: it lay in a folder that is gone.
    """
    base = base_of_adapter(folder, REMEDY)
    record = read_provenance(folder)
    if record is not None and "base" in record["inputs"] and not Path(base).exists():
        raise InputError(
            f"--model {folder}: its base model is no longer in {base}; bring it back, or name its "
            "new place with --base"
        )
    return base


def load_checkpoint(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    base: str | None = None,
    index: Path | None = None,
    dequantize: bool = False,
) -> Checkpoint:
    """Load what `save_checkpoint` wrote, ready for inference.

    Args:
        folder: the checkpoint.
        dtype: of the weights, or of the arithmetic where they are quantised.
        base: where the base model of an adapter lies now; None for where it was.
        index: one that adds items to the checkpoint's own; None for that alone.
        dequantize: expand a quantised base to full precision, as one that is merged must be.

    Raises:
        InputError: the folder is no checkpoint of ours, `index` does not continue its own, its
            weights are damaged, or its base model is gone or is another one now.
    """
    parts = CheckpointParts.read(folder, index)
    if not (folder / ADAPTER_CONFIG).exists():
        if base is not None:
            raise InputError(f"--base {base}: --model {folder} is whole and needs no base model")
        model, tokenizer = load_pair("--model", folder, CAUSAL, remedy=REMEDY, **loading(dtype))
        return Checkpoint(model=model, tokenizer=tokenizer, **vars(parts))
    tokenizer = load_tokenizer("--model", folder, remedy=REMEDY)
    if base is None:
        base = find_base(folder)
    if Path(base).exists():
        require_same_input(folder, "base", Path(base), f"{STAGE} --base {base}")
    arguments = loading(dtype, parts.facts.quantize)
    whose = f"--model {folder}, which needs the base model"
    model = load_model(whose, base, CAUSAL, remedy=REMEDY, **arguments)
    if dequantize and arguments.get("quantization_config"):
        model = model.dequantize()
    if len(weight_of(model.get_input_embeddings())) < rows_needed(tokenizer):
        model.resize_token_embeddings(rows_needed(tokenizer), mean_resizing=False)
    adapted = load_adapter("--model", folder, model, remedy=REMEDY)
    compute_rows_apart(adapted)
    return Checkpoint(model=adapted.eval(), tokenizer=tokenizer, **vars(parts))
