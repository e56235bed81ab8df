"""The one place that loads models, tokenizers and adapters, whoever made them.

What is loaded is whole or refused: a weight that is missing from its file would be drawn at random
and nothing would tell, and a token whose id lies outside the embedding, or is another token's,
would be read as something else. Nothing that comes with a model is run as code, pickles included.
A GGUF file is expanded to plain weights. Whatever is wrong, is said in one line.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcrec.core.errors import InputError
from lcrec.core.provenance import is_kind

if TYPE_CHECKING:  # each takes seconds to import
    from peft import PeftModel
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
REMEDY = "name a model on the hub, or a folder that holds one"
# What a model may be loaded as: a class of transformers, and what a person calls it.
CAUSAL, ENCODER, T5 = "AutoModelForCausalLM", "AutoModel", "T5ForConditionalGeneration"
KINDS = {CAUSAL: " as a causal language model", ENCODER: "", T5: " as a T5"}
# Parts of a file that another use of the model has, and constants that old files hold.
OTHER_USES = re.compile(
    r"(^|\.)(pooler|seq_relationship|classifier|score|v_head)\.|(masked_bias|position_ids|inv_freq)$"
)
SHOWN = 3  # names in a message
# Rotations whose frequencies follow from the longest sequence of a batch.
MOVING = ("longrope", "dynamic")


def load_model(
    option: str,
    name: str | Path,
    kind: str,
    *,
    remedy: str = REMEDY,
    sampling: bool = False,
    **settings: Any,
) -> PreTrainedModel:
    """Load a model from a folder, a GGUF file or the hub, whole, in eval mode.

    Heads and poolers that the use at hand does not touch may be missing or left over; their names
    are printed.

    Args:
        option: what the person gave the name by; begins every message.
        name: a folder, a GGUF file, or a name on the hub.
        kind: `CAUSAL`, `ENCODER` or `T5`.
        remedy: what to do where nothing can be loaded.
        sampling: keep the model's own settings for sampling; transformers refuses to save some.
        **settings: for `from_pretrained`, such as `dtype`.

    Raises:
        InputError: nothing can be loaded, a weight is missing, left over or misshaped, the folder
            holds an adapter, or a package is missing.
    """
    import transformers

    _refuse_adapter(option, name)
    where = _locate(option, name)
    if "gguf_file" in where:
        if "quantization_config" in settings:
            raise InputError(f"{option} {name}: GGUF is expanded when loaded; leave out --quantize")
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _one_line(option, name, KINDS[kind], remedy), _no_report():
        model, found = getattr(transformers, kind).from_pretrained(
            **where,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are looked at below
            output_loading_info=True,
            **settings,
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # on the hub only now known as one
        raise InputError(f"{option} {name}: {_no_adapter(name)}")
    _check_weights(f"{option} {name}", model, kind, found)
    if "gguf_file" in where:
        _forget_gguf(model)
        model.name_or_path = model.config.name_or_path = str(name)
        print(f"{option} {name}: expanded from GGUF, to {model.dtype} weights")
    if not sampling and model.can_generate():
        ends = {
            key: value
            for key, value in vars(model.generation_config).items()
            if key.endswith("_token_id") and value not in (None, -1)
        }
        model.generation_config = type(model.generation_config)(**ends)
    return model


def load_tokenizer(
    option: str, name: str | Path, *, remedy: str = REMEDY
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a GGUF file or the hub.

    Raises:
        InputError: there is none, it cannot be loaded, or two of its tokens have one id.
    """
    from transformers import AutoTokenizer

    where = _locate(option, name)
    folder = where["pretrained_model_name_or_path"]
    if "gguf_file" in where and Path(folder, "tokenizer.json").exists():
        del where["gguf_file"]  # what the GGUF was made from says it more exactly
    with _one_line(option, name, "", remedy):
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of none
            raise ValueError("there is no tokenizer with it")
    check_ids(f"{option} {name}", tokenizer)
    return tokenizer


def load_config(
    option: str, name: str | Path, *, kind: str = CAUSAL, remedy: str = REMEDY
) -> PreTrainedConfig:
    """Load the shape of a model: its `config.json`, or what a GGUF file says of it.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    from transformers import AutoConfig

    with _one_line(option, name, KINDS[kind], remedy):
        return AutoConfig.from_pretrained(**_locate(option, name), trust_remote_code=False)


def load_pair(
    option: str, name: str | Path, kind: str, *, remedy: str = REMEDY, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model with its tokenizer, see `load_model` and `load_tokenizer`.

    Raises:
        InputError: as they do; or a token's id lies outside the model's embedding.
    """
    model = load_model(option, name, kind, remedy=remedy, **settings)
    tokenizer = load_tokenizer(option, name, remedy=remedy)
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if rows < rows_needed(tokenizer):
        raise InputError(
            f"{option} {name}: its tokenizer has ids up to {rows_needed(tokenizer) - 1:,} and its "
            f"embedding only {rows:,} rows, so the two do not belong together; give the model the "
            "tokenizer it was trained with"
        )
    return model, tokenizer


def encoder_part(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that encodes texts: all of it, but for one that has a decoder."""
    is_pair = hasattr(model, "encoder") and hasattr(model, "decoder")
    return model.get_encoder() if is_pair else model


def load_adapter(
    option: str, folder: Path, model: PreTrainedModel, *, remedy: str = REMEDY
) -> PeftModel:
    """Put an adapter onto its base model.

    Args:
        option: what the person gave the folder by; begins every message.
        folder: holds the adapter's configuration and weights.
        model: the base, its embedding already as large as the tokenizer asks for.
        remedy: what to do where nothing can be loaded.

    Raises:
        InputError: it cannot be loaded, or a weight is missing, left over or misshaped.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with _one_line(option, folder, "", remedy):
        adapted = PeftModel.from_pretrained(model, str(folder))
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            held = set(file.keys())
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # Rows that embedding and head share are in the file under one name only.
    shared = {state[name].data_ptr() for name in held & state.keys()}
    missing = {name for name in state.keys() - held if state[name].data_ptr() not in shared}
    _refuse(f"{option} {folder}", missing, held - state.keys(), [])
    return adapted


def base_of_adapter(folder: Path, remedy: str) -> str:
    """Return the folder or the name on the hub of the model that `--model`'s adapter is for.

    Raises:
        InputError: the adapter's configuration cannot be read.
    """
    from peft import PeftConfig

    with _one_line("--model", folder, "", remedy):
        return str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)


def position_limit(model: Module) -> int | None:
    """Return the longest sequence that a transformers model has positions for, None for no limit.

    Models of the RoBERTa family count positions from the one after their padding token's number,
    so the first rows of their table serve no token. Where one long sequence would change the
    positions of all others in its batch, as beyond the length that Phi-3 was first trained at, that
    length is the limit.
    """
    for name, module in model.named_modules():
        offset = getattr(module, "padding_idx", None)
        if offset is not None and name.endswith("position_embeddings"):
            table: Any = module.weight
            return len(table) - offset - 1
    config: Any = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):
        if isinstance(rope, dict) and rope.get("rope_type") in MOVING:
            limit = rope.get("original_max_position_embeddings") or limit
    return limit


def check_ids(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer two of whose tokens have the same id.

    Args:
        source: begins the message.

    Raises:
        InputError: naming the two.
    """
    owners: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        other = owners.setdefault(number, token)
        if other != token:
            raise InputError(
                f"{source}: the tokens {other!r} and {token!r} of its tokenizer have the same id, "
                f"{number}, so one would be read as the other; give it the tokenizer that the "
                "model was trained with"
            )


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows an embedding needs for this tokenizer, whose ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def reason_of(error: Exception) -> str:
    """Return in one line what an error of a library says."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs Python code of its own, which is never run"
    if text.startswith("Couldn't instantiate the backend tokenizer"):
        return "there is no tokenizer with it, or one that needs another package"
    if text.startswith("Repo id must be"):
        return "no such folder, and no name on the hub"
    text = text.split(" Model type should be one of")[0]
    named = text if isinstance(error, OSError | ValueError | RuntimeError) else ""
    return (named or f"{type(error).__name__} {text}".strip())[:400]


@contextmanager
def _one_line(option: str, name: str | Path, kind: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads somebody's files into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files: tokenizers raises plain `Exception`
        raise InputError(
            f"{option} {name}: cannot be loaded{kind} ({reason_of(error)}); {remedy}"
        ) from None


@contextmanager
def _no_report() -> Iterator[None]:
    """Silence transformers' table of the weights that do not fit: they are named below."""
    logger = logging.getLogger("transformers.modeling_utils")

    # By its level, which it looks at, it would say that no layer is sharded.
    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


def _locate(option: str, name: str | Path) -> dict[str, Any]:
    """Return what `from_pretrained` is told of the place.

    A folder that holds no `config.json` but a GGUF file stands for that file.
    """
    path = Path(name)
    files = [path] if path.is_file() and path.suffix == ".gguf" else []
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
    if not files:
        return {"pretrained_model_name_or_path": str(name)}
    if len(files) > 1:
        raise InputError(
            f"{option} {name}: holds {len(files)} GGUF files ({', '.join(f.name for f in files)}); "
            "name the one to load"
        )
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{option} {name}: GGUF needs a package: pip install 'lcrec[gguf]'")
    return {"pretrained_model_name_or_path": str(files[0].parent), "gguf_file": files[0].name}


def _forget_gguf(model: PreTrainedModel) -> None:
    """Let a model that was expanded from GGUF be trained and saved as any other."""
    for holder, name in (
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if name in vars(holder):
            delattr(holder, name)


def _refuse_adapter(option: str, name: str | Path) -> None:
    if Path(name, ADAPTER_CONFIG).exists():
        raise InputError(f"{option} {name}: {_no_adapter(name)}")


def _no_adapter(name: str | Path) -> str:
    if is_kind(Path(name), "accelerate launch recipes/finetune.py"):  # a checkpoint of ours
        command = f"python -m lcrec.modeling merge --model {name} --output DIR"
    else:
        command = (
            'python -c "from peft import AutoPeftModelForCausalLM as M; '
            f"M.from_pretrained('{name}').merge_and_unload().save_pretrained('DIR')\""
        )
    return f"holds an adapter, not a whole model; merge it first with: {command}"


def _check_weights(source: str, model: PreTrainedModel, kind: str, found: dict[str, Any]) -> None:
    """Refuse a model that its files did not fill, or that had no place for all they hold.

    Args:
        source: begins the message.
        model: as loaded.
        kind: what it was loaded as.
        found: transformers' `output_loading_info`.
    """
    used = encoder_part(model) if kind == ENCODER else model
    parameters = dict(model.named_parameters())
    ours = {id(parameter) for parameter in used.parameters()}
    parts = {name for name, _ in model.named_children()} | {model.base_model_prefix}

    def is_unused(name: str) -> bool:
        if OTHER_USES.search(name):
            return True
        parameter = parameters.get(name)
        if parameter is not None:  # missing: of a decoder, where the encoder alone is used
            return id(parameter) not in ours
        # Left over: the head of another use.
        return kind == ENCODER and name.split(".")[0] not in parts

    missing, extra = found["missing_keys"], found["unexpected_keys"]
    unused = {name for name in (*missing, *extra) if is_unused(name)}
    _refuse(source, missing - unused, extra - unused, found["mismatched_keys"])
    if found["error_msgs"]:
        raise InputError(f"{source}: cannot be loaded ({' '.join(found['error_msgs'])[:400]})")
    if unused:
        unprefixed = {name.removeprefix(f"{model.base_model_prefix}.") for name in unused}
        shown = ", ".join(sorted({name.split(".")[0] for name in unprefixed}))
        print(f"{source}: {len(unused)} weights that nothing here uses do not fit: {shown}")


def _refuse(source: str, missing: set[str], extra: set[str], misshaped: Any) -> None:
    """Refuse weights that do not fit, by name.

    Raises:
        InputError: some are missing, left over, or (name, shape, shape wanted) misshaped.
    """
    faults = []
    if missing:
        faults.append(f"its files lack {_names(missing)}, which would be drawn at random")
    if misshaped:
        shapes = {
            f"{name} ({list(found)} where {list(wanted)} is due)"
            for name, found, wanted in misshaped
        }
        faults.append(f"its files hold {_names(shapes)}")
    if extra:
        faults.append(f"it has no place for {_names(extra)}")
    if faults:
        raise InputError(
            f"{source}: {'; '.join(faults)}; weights and configuration do not belong together, or "
            "a file is damaged: fetch or save them again"
        )


def _names(names: set[str]) -> str:
    """Return the first few names in words."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
