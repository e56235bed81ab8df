"""Base models, adapters and checkpoints.

A checkpoint is one self-contained folder: weights (a whole model, or a LoRA adapter with the item
tokens' rows and the name of its base), tokenizer with chat template, its own copy of the item
index and of the prompts, the resolved recipe, and `lcrec.json`.

Public names: `load_base`, `set_attention_dropout`, `use_liger`, `add_adapter`, `copy_rows`,
`save_checkpoint`, `load_checkpoint`, `Checkpoint`, `DTYPES`.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import PartialState
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from lcrec.core.artifacts import PROMPTS, PROVENANCE, RECIPE
from lcrec.core.errors import InputError, run_stage
from lcrec.core.provenance import read_provenance, require_same_input, write_provenance
from lcrec.index.item_index import ItemIndex
from lcrec.new_rows import compute_rows_apart
from lcrec.prompts.encoder import LOAD_ERRORS, vocabulary_ids
from lcrec.prompts.prompt_set import PromptSet
from lcrec.vocab import weight_of

STAGE = "accelerate launch recipes/finetune.py"
ADAPTER_CONFIG = "adapter_config.json"
# What `--precision` may say.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    name: str, dtype: torch.dtype = torch.float32, *, quantize: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder or the hub.

    Args:
        name: folder, or name on the hub.
        dtype: of the weights, or of the arithmetic where they are quantised.
        quantize: `4bit` or `8bit` to keep the linear layers in few bits, `none` not to.

    Raises:
        InputError: it is not there, or is no causal language model, or a package is missing.
    """
    arguments = _loading(dtype, quantize)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, **arguments)
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


def use_liger(model: PreTrainedModel) -> None:
    """Compute norms, rotations and feed-forward layers by Liger's kernels (arXiv 2410.10989).

    Its fused loss is left out: the trainer's own scores answer positions only.

    Raises:
        InputError: the package or a GPU is missing.
    """
    if not is_liger_kernel_available() or not torch.cuda.is_available():
        raise InputError(
            "--liger needs a CUDA GPU and a package: pip install liger-kernel; or leave it out"
        )
    apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})


def add_adapter(
    model: PreTrainedModel,
    new_ids: list[int],
    *,
    rank: int,
    alpha: int,
    dropout: float,
    dora: bool = False,
    rslora: bool = False,
) -> PeftModel:
    """Freeze the model and add LoRA to its linear layers, training only the new rows besides.

    The rows of the item tokens are trained by PEFT's `trainable_token_indices`, in the embedding
    and in the head, tied or not, instead of copying both matrices.

    Args:
        model: the base model, already resized.
        new_ids: the item tokens' ids.
        rank: LoRA's rank (arXiv 2106.09685); 0 trains the new rows and nothing else.
        alpha, dropout: LoRA's scale and dropout.
        dora: split the update into length and direction (arXiv 2402.09353).
        rslora: scale by the root of the rank (arXiv 2312.03732).
    """
    names = {id(module): name.split(".")[-1] for name, module in model.named_modules()}
    ends = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        ends.append(model.get_output_embeddings())
    modules = [names[id(module)] for module in ends]
    config = LoraConfig(
        r=max(rank, 1),
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=dora,
        use_rslora=rslora,
        target_modules="all-linear" if rank else DUMMY_TARGET_MODULES,
        trainable_token_indices=dict.fromkeys(modules, new_ids),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    compute_rows_apart(adapted)
    return adapted


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
        InputError: the other model has another width or other item tokens.
    """
    other = load_checkpoint(folder)
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
    theirs = torch.from_numpy(vocabulary_ids(other.tokenizer, index))
    ours = torch.from_numpy(vocabulary_ids(tokenizer, index))
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
    **facts: Any,
) -> None:
    """Write a self-contained checkpoint into `folder`; `lcrec.json` comes last.

    Args:
        folder: where to write; made if missing.
        model, tokenizer, index, prompts: what was trained.
        recipe: the resolved settings.
        inputs: the files it was trained on, by role.
        weights: the model's weights by name, where `model` holds but a share of them.
        **facts: what inference must know, such as `max_history`.
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


def load_checkpoint(
    folder: Path, dtype: torch.dtype = torch.float32, *, dequantize: bool = False
) -> Checkpoint:
    """Load what `save_checkpoint` wrote, ready for inference.

    Args:
        folder: the checkpoint.
        dtype: of the weights, or of the arithmetic where they are quantised.
        dequantize: write a base in few bits out in full, as one that is merged must be.

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
            base = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
            if Path(base).is_dir():
                require_same_input(folder, "base", Path(base), f"{STAGE} --base {base}")
            arguments = _loading(dtype, facts["config"].get("quantize", "none"))
            model = AutoModelForCausalLM.from_pretrained(base, **arguments)
            if dequantize and arguments.get("quantization_config"):
                model = model.dequantize()
            table = model.get_input_embeddings().weight
            assert isinstance(table, torch.Tensor)
            if len(table) < len(tokenizer):
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model = PeftModel.from_pretrained(model, folder)
            compute_rows_apart(model)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, **_loading(dtype))
    except InputError:
        raise
    except LOAD_ERRORS as error:
        needs = f", which needs the base model {base}," if base else ""
        raise InputError(
            f"--model {folder}{needs} cannot be loaded ({_reason(error)}); bring back what is "
            f"missing, or train again with: {STAGE}"
        ) from None
    return Checkpoint(model.eval(), tokenizer, index, prompts, facts)


def _loading(dtype: torch.dtype, quantize: str = "none") -> dict[str, Any]:
    """Return what `from_pretrained` is told.

    4 bits are NF4, twice quantised (QLoRA, arXiv 2305.14314); 8 bits are LLM.int8
    (arXiv 2208.07339). Embeddings and head keep `dtype`.

    Raises:
        InputError: bitsandbytes is wanted and missing.
    """
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantize == "none":
        return arguments
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"--quantize {quantize} needs a package: pip install bitsandbytes")
    four = quantize == "4bit"
    arguments["quantization_config"] = BitsAndBytesConfig(
        load_in_8bit=not four,
        load_in_4bit=four,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    arguments["device_map"] = {"": PartialState().device}  # each process its own copy
    return arguments


def _reason(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    from lcrec.merging import main

    run_stage(main)
