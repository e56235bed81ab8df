"""Base models, adapters and checkpoints.

A checkpoint is one self-contained folder: weights (a whole model, or a LoRA adapter with the item
tokens' rows and the name of its base), tokenizer with chat template, its own copy of the item
index and of the prompts, the resolved recipe, and `lcrec.json`.

Public names: `load_base`, `set_attention_dropout`, `add_adapter`, `save_checkpoint`,
`load_checkpoint`, `Checkpoint`, `DTYPES`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lcrec.artifacts import (
    PROMPTS,
    PROVENANCE,
    RECIPE,
    read_provenance,
    require_same_input,
    write_provenance,
)
from lcrec.errors import InputError
from lcrec.index import ItemIndex
from lcrec.prompts import PromptSet

STAGE = "accelerate launch recipes/finetune.py"
ADAPTER_CONFIG = "adapter_config.json"
# What `--precision` may say.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What loading raises for weights that are missing, foreign or damaged.
LOAD_ERRORS = (OSError, ValueError, KeyError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tuned model with everything it needs to recommend.

    `facts` is what `lcrec.json` says, `max_history` among it.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    index: ItemIndex
    prompts: PromptSet
    facts: dict[str, Any]


def load_base(
    name: str, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder or the hub.

    Raises:
        InputError: it is not there, or is no causal language model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except LOAD_ERRORS as error:
        raise InputError(
            f"--base {name}: cannot be loaded as a causal language model ({_reason(error)}); name "
            "a model on the hub, a folder that holds one, or make a small one with "
            "python -m lcrec.tinylm"
        ) from None
    return model, tokenizer


def set_attention_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop this share of the attention weights in training.

    Raises:
        InputError: the model's family has no such setting.
    """
    holders: list[Any] = [part for part in model.modules() if hasattr(part, "attention_dropout")]
    if not holders:
        raise InputError(
            f"--dropout {rate}: {type(model).__name__} has no dropout on its attention weights; "
            "leave it at 0"
        )
    for holder in (model.config, *holders):
        holder.attention_dropout = rate


def add_adapter(
    model: PreTrainedModel, new_ids: list[int], *, rank: int, alpha: int, dropout: float
) -> PeftModel:
    """Freeze the model and add LoRA to its linear layers, training only the new rows besides.

    The rows of the item tokens are trained by PEFT's `trainable_token_indices`, in the embedding
    and in the head, tied or not, instead of copying both matrices.

    Args:
        model: the base model, already resized.
        new_ids: the item tokens' ids.
        rank, alpha, dropout: LoRA's.
    """
    rows: list[int] | dict[str, list[int]] = new_ids
    if not model.config.tie_word_embeddings:
        names = {id(module): name.split(".")[-1] for name, module in model.named_modules()}
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        rows = {names[id(module)]: new_ids for module in ends}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    index: ItemIndex,
    prompts: PromptSet,
    recipe: dict[str, Any],
    inputs: dict[str, Path],
    **facts: Any,
) -> None:
    """Write a self-contained checkpoint into `folder`; `lcrec.json` comes last.

    Args:
        folder: where to write; made if missing.
        model, tokenizer, index, prompts: what was trained.
        recipe: the resolved settings.
        inputs: the files it was trained on, by role.
        **facts: what inference must know, such as `max_history`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        # PEFT's default would write both resized matrices whole beside the trained rows.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    index.save(folder)
    prompts.save(folder / PROMPTS)
    (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    write_provenance(
        folder,
        STAGE,
        recipe,
        inputs,
        level_sizes=index.level_sizes,
        prompts_hash=prompts.content_hash,
        **facts,
    )


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load what `save_checkpoint` wrote, ready for inference.

    Raises:
        InputError: the folder is no checkpoint of ours, its weights are damaged, or its base model
            is gone or is another one now.
    """
    facts = read_provenance(folder) if folder.is_dir() else None
    if facts is None or facts.get("stage") != STAGE:
        raise InputError(
            f"--model {folder}: not a checkpoint of lcrec (no {PROVENANCE} of recipes/finetune.py "
            "in it); train one with: accelerate launch recipes/finetune.py --output DIR"
        )
    index = ItemIndex.load(folder)
    prompts = PromptSet.load(folder / PROMPTS)
    model: PreTrainedModel | PeftModel
    base = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if (folder / ADAPTER_CONFIG).exists():
            base = str(LoraConfig.from_pretrained(str(folder)).base_model_name_or_path)
            if Path(base).is_dir():
                require_same_input(folder, "base", Path(base), f"{STAGE} --base {base}")
            model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
            table = model.get_input_embeddings().weight
            assert isinstance(table, torch.Tensor)
            if len(table) < len(tokenizer):
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model = PeftModel.from_pretrained(model, folder)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except InputError:
        raise
    except LOAD_ERRORS as error:
        needs = f", which needs the base model {base}," if base else ""
        raise InputError(
            f"--model {folder}{needs} cannot be loaded ({_reason(error)}); bring back what is "
            f"missing, or train again with: {STAGE}"
        ) from None
    return Checkpoint(model.eval(), tokenizer, index, prompts, facts)


def _reason(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
