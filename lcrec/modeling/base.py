"""The base model: loaded whole or quantised, with adapter, dropout and kernels as configured."""

import importlib.util
import logging
import os
from typing import Any

import torch
from accelerate.state import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.transformers_weight_conversion import (
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_TARGET_MODULE_MAPPING,
)
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.liger import apply_liger_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_liger_kernel_available

from lcrec.core.device import pick_device
from lcrec.core.errors import InputError
from lcrec.core.pretrained import CAUSAL, load_pair, reason_of
from lcrec.modeling.item_rows import compute_rows_apart
from lcrec.modeling.probe import takes_trees, try_packed_step

_log = logging.getLogger(__name__)
BASE_REMEDY = (
    "name a model on the hub, a folder that holds one, or make a small one with "
    "python -m lcrec.tinylm"
)
# What `--precision` may say.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(
    name: str, dtype: torch.dtype = torch.float32, *, quantize: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder, a GGUF file or the hub.

    Args:
        name: folder, GGUF file, or name on the hub.
        dtype: of the weights, or of the arithmetic where they are quantised.
        quantize: `4bit` or `8bit` to quantise the linear layers, `none` not to.

    Raises:
        InputError: it is not there, not whole, or no causal language model, or a package is
            missing.
    """
    loaded = load_pair("--base", name, CAUSAL, remedy=BASE_REMEDY, **loading(dtype, quantize))
    keep_gradients(loaded[0])
    return loaded


def keep_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights of 4 bits for a CPU kernel that has no gradient.

    It would pack them at the first ranking, and training from there on computes wrong gradients.
    """
    part: Any
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


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


def choose_attention(
    model: PreTrainedModel, wanted: str, *, dropout: float, precision: str = "fp32"
) -> bool:
    """Set how a model computes attention in training.

    Args:
        model: the model, without adapters.
        wanted: `auto`, `flex`, `sdpa` or `eager`.
        dropout: the rate on attention weights, which flex attention does not have.
        precision: of the arithmetic of training, a key of `DTYPES`.

    Returns:
        Whether samples are to be packed into buffers, which flex attention is for.

    Raises:
        InputError: the model, or what it runs on, does not bear what is wanted.
    """
    name = type(model).__name__
    if wanted in ("sdpa", "eager"):
        try:
            model.set_attn_implementation(wanted)
        except (ValueError, ImportError):
            raise InputError(f"--attention {wanted}: {name} has no such attention") from None
        return False
    fault = None
    if not torch.cuda.is_available():
        fault = "it needs a CUDA GPU"
    elif not model._supports_flex_attn:
        fault = f"{name} has no such attention"
    elif not takes_trees(model):
        fault = f"{name} does not keep packed samples apart"
    elif not dropout:
        fault = _set_flex(model, DTYPES[precision])
        if fault is not None and wanted == "auto":
            _log.warning("Samples are padded: %s", fault)
    if wanted == "flex" and fault is not None:
        raise InputError(f"--attention flex: {fault}; take --attention sdpa")
    return fault is None and not dropout


def _set_flex(model: PreTrainedModel, dtype: torch.dtype) -> str | None:
    """Let a model compute by flex attention if that works on this device; say what fails if not.

    It must be compiled, which takes a compiler, a GPU that has the memory for its blocks, and heads
    of 16 dimensions or more. Of a model that will be sharded this is not tried: it may not fit.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("flex_attention")
    ALL_ATTENTION_FUNCTIONS.register("flex_attention", _flex_attention)
    # Compiled for a second size, it would be for all sizes, and then NaN (pytorch/pytorch#186775).
    torch._dynamo.config.automatic_dynamic_shapes = False
    if is_sharded():
        return None
    try:
        if model.device.type == "cpu":  # a quantised base lies there already
            nn.Module.to(model, pick_device())
        try_packed_step(model, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the compilers of kernels, which differ in what they raise
        model.set_attn_implementation(before)
        return f"flex attention does not run here ({reason_of(error)})"
    finally:
        torch._dynamo.reset()  # each function is compiled for a few cases only
    return None


def is_sharded() -> bool:
    """Tell whether weights will be sharded over processes, by FSDP or ZeRO-3."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" or is_deepspeed_zero3_enabled()


def _flex_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    # Autocast leaves rotated queries and keys in float32 and values in bf16: flex attention, unlike
    # SDPA, has no gradients for that in the versions of torch that do not cast them.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return flex_attention_forward(module, query, key, value, *args, **kwargs)


def compile_layers(model: PreTrainedModel | PeftModel) -> None:
    """Compile a model's layers, once for all of them; what fails to compile runs as it is."""
    torch._dynamo.config.suppress_errors = True
    # Under DDP torch would cut each layer's graph at the borders of gradient buckets, for which the
    # end of a layer serves as well; older versions then compile none that holds flex attention
    # (pytorch/pytorch#137481).
    torch._dynamo.config.optimize_ddp = False
    base = base_model(model)
    kinds: Any = base._no_split_modules or ()
    for part in base.modules():
        if type(part).__name__ in kinds:
            part.compile()


def use_liger(model: PreTrainedModel) -> None:
    """Compute norms, rotations and feed-forward layers by Liger's kernels (arXiv 2410.10989).

    Not its fused loss: the trainer's own scores answer positions only.

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

    Raises:
        InputError: PEFT cannot adapt this family.
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
        target_modules=_linear_layers(model) if rank else DUMMY_TARGET_MODULES,
        exclude_modules=_read_by_kernels(model) or None,
        trainable_token_indices=dict.fromkeys(modules, new_ids),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise cannot_train(model.config.model_type, "lora" if rank else "rows", error) from None
    assert isinstance(adapted, PeftModel)
    compute_rows_apart(adapted)
    return adapted


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the causal language model inside an adapter."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def cannot_train(family: str, mode: str, error: Exception) -> InputError:
    """Return the refusal of a family in a mode, with the mode that may train it."""
    other = "take another family" if mode == "full" else "take --mode full"
    return InputError(
        f"--mode {mode}: models of the family {family} cannot be trained so "
        f"({reason_of(error)}); {other}"
    )


def _linear_layers(model: PreTrainedModel) -> str | list[str]:
    """Return the layers to adapt: the linear ones, without the experts of a mixture.

    The experts of a layer are one tensor. PEFT would adapt it in some families, not in others, and
    then without dropout and by building it anew at every step.
    """
    family = _MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type, "")
    experts = _MOE_TARGET_MODULE_MAPPING.get(family)
    if experts is None:
        return "all-linear"
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return sorted(linear - experts.keys())


def _read_by_kernels(model: PreTrainedModel) -> list[str]:
    """Return the layers of state-space mixers whose weights kernels read, adapter or not."""
    return [
        f"{name}.{layer}"
        for name, module in model.named_modules()
        if hasattr(module, "conv1d")
        for layer in ("conv1d", "out_proj")
        if hasattr(module, layer)
    ]


def loading(dtype: torch.dtype, quantize: str = "none") -> dict[str, Any]:
    """Return what `from_pretrained` is told.

    4 bits are NF4, twice quantised (QLoRA, arXiv 2305.14314); 8 bits are LLM.int8
    (arXiv 2208.07339). Embeddings and head keep `dtype`.

    Raises:
        InputError: bitsandbytes is wanted and missing.
    """
    arguments: dict[str, Any] = {"dtype": dtype}
    if quantize == "none":
        return arguments
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"--quantize {quantize} needs a package: pip install 'lcrec[quantization]'"
        )
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
