"""What a fine-tune is told and what it reads, known before any model is loaded.

`TrainingSettings` are the settings that training and its cost depend on; `load_inputs` reads and
checks every file but the base model. Nothing here imports torch, so that a wrong setting or a
wrong file is refused at once.
"""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lcrec.core.artifacts import INDEX, RQVAE_WEIGHTS, find_data
from lcrec.core.config import config_dict, option
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance, require_same_input
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.folder import Items, load_interactions, load_items
from lcrec.data.id_map import load_item_ids
from lcrec.data.splits import Split, load_split
from lcrec.data.user_texts import UserTexts, load_user_texts
from lcrec.index.item_index import WITHOUT_CODEBOOK, ItemIndex
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.tasks import parse_mixture

STAGE = "accelerate launch recipes/finetune.py"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What shapes a fine-tuned model, and what training it costs."""

    data: Path = option("the data folder")
    index: Path = option("the folder that holds index.json")
    base: str = option("the base model, on the hub or in a folder")
    prompts: Path = option(
        "prompt templates; what the folder lacks comes from the shipped ones", SHIPPED_PROMPTS
    )
    tasks: list[str] = option(
        "tasks to train, each with a share or a cap if wanted: seqrec=0.5 fusionseqrec=20000",
        ["seqrec", "item2index", "index2item"],
    )
    mode: Literal["lora", "rows", "full"] = option(
        "train adapters and the new rows, the new rows alone, or everything", "lora"
    )
    lora_rank: int = option("rank of the adapters", 8, minimum=1)
    lora_alpha: int = option("scale of the adapters", 32, minimum=1)
    lora_dropout: float = option("dropout in the adapters", 0.05, minimum=0)
    dora: bool = option("DoRA: split an adapter's update into length and direction", False)
    rslora: bool = option("rank-stabilised LoRA: scale by the root of the rank", False)
    quantize: Literal["none", "8bit", "4bit"] = option(
        "quantise the frozen base (QLoRA), by bitsandbytes", "none"
    )
    dropout: float = option("dropout on the attention weights of the model", 0.0, minimum=0)
    rows: str = option(
        "what the item tokens' rows start from: text (item titles), codebook (the RQ-VAE's codes), "
        "random (noise), or the folder of a model trained with --mode rows",
        "text",
    )
    boundary_tokens: bool = option(
        "put a begin and an end token around an item that is an answer, for engines that need them",
        False,
    )
    epochs: int | None = option(
        "passes over the samples, each with prompt templates drawn anew (default: 4, and up to 40 "
        "where they make fewer than 2,000 updates)",
        None,
        minimum=1,
    )
    learning_rate: float = option("peak step size of AdamW", 5e-5, minimum=1e-12)
    rows_learning_rate: float | None = option(
        "peak step size of the item tokens' rows, which are new to a pretrained model (default: "
        "--learning-rate)",
        None,
        minimum=1e-12,
    )
    ema: float | None = option(
        "decay of a running average of the trained weights, which is validated and kept in their "
        "place; 0.998 averages about 500 updates (default: no average)",
        None,
        minimum=0,
    )
    weight_decay: float = option("AdamW's weight decay", 0.01, minimum=0)
    warmup: float = option("share of the steps to warm up in", 0.01, minimum=0)
    batch_size: int = option("samples per step and process", 8, minimum=1)
    accumulate: int = option("steps to add up before an update", 1, minimum=1)
    max_length: int = option("tokens of a sample at most", 2048, minimum=8)
    max_tokens_per_batch: int | None = option(
        "tokens on a device at once; a larger batch is computed in parts, to the same result "
        "(default: what fits, on CUDA; elsewhere what is fastest)",
        None,
        minimum=1,
    )
    attention: Literal["auto", "flex", "sdpa", "eager"] = option(
        "how attention is computed: flex packs samples without padding and needs CUDA; auto takes "
        "it where the model bears it",
        "auto",
    )
    share_prefix: Literal["auto", "off"] = option(
        "compute once what samples begin with: a user's samples of an epoch get one template and "
        "follow one another; auto does so where the model and the samples allow it",
        "auto",
    )
    max_history: int = option("items of a history shown at most", 20, minimum=1)
    history_dropout: float = option(
        "chance that an item of a seqrec history is left out, anew each epoch", 0.0, minimum=0
    )
    max_text_words: int = option("words of a title or description shown at most", 60, minimum=1)
    precision: Literal["fp32", "bf16", "fp16"] = option("arithmetic of training", "fp32")
    gradient_checkpointing: bool = option("save memory, spend a third more time", False)
    liger: bool = option("Liger's kernels where installed, on CUDA: faster, less memory", False)
    validation_users: int = option("held-out users to rank the catalogue for", 1000, minimum=1)
    validate_every: float = option("epochs between validations", 1.0, minimum=0.01)
    patience: int = option(
        "stop after this many validations without a gain in NDCG@10 or in the loss", 3, minimum=1
    )
    num_beams: int = option("beams in validation", 20, minimum=10)
    report_to: str = option("where metrics go: none, tensorboard, wandb, trackio", "none")
    seed: int = option("decides everything drawn", 42, minimum=0)


@dataclass(frozen=True, kw_only=True)
class HardwareSettings:
    """What a run is planned for (`lcrec plan`)."""

    tflops: float | None = option(
        "the device's peak in TFLOPS; the model's weights are then not needed (default: time a few "
        "steps here)",
        None,
        minimum=0.001,
    )
    mfu: float = option("with --tflops: the share of the peak that is reached", 0.4, minimum=0.001)
    devices: int = option("how many devices will share the work", 1, minimum=1)


def check_settings(settings: TrainingSettings) -> None:
    """Refuse settings that contradict each other or the way the run was launched.

    Raises:
        InputError: a share of 1 or more, or settings that do not go together.
    """
    for flag in ("lora_dropout", "dropout", "warmup", "ema"):
        if (getattr(settings, flag) or 0) >= 1:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} {getattr(settings, flag)}: give a share below 1")
    if settings.mode == "full" and settings.quantize != "none":
        raise InputError(
            f"--quantize {settings.quantize}: a quantised base stays frozen, so --mode full cannot "
            "train it; take --mode lora"
        )
    if settings.attention == "flex" and settings.dropout:
        raise InputError(
            f"--dropout {settings.dropout}: flex attention has no dropout; take --attention sdpa"
        )
    if settings.mode != "lora" and (settings.dora or settings.rslora):
        raise InputError(f"--dora and --rslora are forms of --mode lora, not of {settings.mode}")
    own_rate = settings.rows_learning_rate
    if settings.mode == "rows" and own_rate not in (None, settings.learning_rate):
        raise InputError(
            f"--rows-learning-rate {own_rate}: nothing but these rows is trained; give "
            "--learning-rate the same value"
        )
    # Which weights a process holds, and what it steps, is theirs to know.
    for launcher in ("FSDP", "DEEPSPEED"):
        for flag in ("rows_learning_rate", "ema"):
            value = getattr(settings, flag)
            if value is not None and os.environ.get(f"ACCELERATE_USE_{launcher}") == "true":
                raise InputError(
                    f"--{flag.replace('_', '-')} {value}: not under {launcher}, which shards the "
                    "weights; launch with recipes/accelerate/multi_gpu.yaml, or leave it out"
                )
    if settings.quantize != "none" and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise InputError(
            f"--quantize {settings.quantize}: FSDP cannot shard a quantised base; launch with "
            "recipes/accelerate/multi_gpu.yaml, or use --quantize none"
        )


@dataclass(frozen=True)
class TrainingInputs:
    """What a fine-tune reads besides the base model.

    Attributes:
        files: every file and folder read, by its role in the provenance.
        items, split, user_texts: the data folder's; the users' texts are None without intents.
        index: each item's tokens.
        prompts: the prompt templates.
        mixture: the tasks with their share or cap, see `parse_mixture`.
    """

    files: dict[str, Path]
    items: Items
    split: Split
    user_texts: UserTexts | None
    index: ItemIndex
    prompts: PromptSet
    mixture: dict[str, float]

    @cached_property
    def nearby(self) -> NearbyItems | None:
        """What stands near what in the train sequences; None where no prompt shows neighbours."""
        shown = self.prompts.shows_neighbours
        return NearbyItems.count(self.split.train, len(self.items)) if shown else None


def load_inputs(settings: TrainingSettings) -> TrainingInputs:
    """Read and check the data folder, the item index and the prompt templates.

    Raises:
        InputError: a file is missing or wrong, or the index belongs to another catalogue.
    """
    paths = find_data(settings.data)
    items = load_items(settings.data)
    interactions = load_interactions(settings.data, len(items))
    rebuild = f"python -m lcrec.quantize --data {settings.data} --output {settings.index}"
    index_path = settings.index if settings.index.is_file() else settings.index / INDEX
    require_same_input(index_path.parent, "item", paths.item, rebuild)
    raw_ids = load_item_ids(settings.data, len(items))
    index = replace(ItemIndex.load(index_path, len(items)), raw_ids=raw_ids)
    split = load_split(settings.data, interactions)
    files = {"item": paths.item, **paths.sequences, "index": index_path}
    if settings.rows == "codebook":
        made_by = (read_provenance(index_path.parent) or {}).get("config", {}).get("kind")
        codebooks = index_path.parent / RQVAE_WEIGHTS
        if codebooks.is_file():
            files["codebooks"] = codebooks
        elif made_by not in WITHOUT_CODEBOOK:
            raise InputError(
                f"--rows codebook: {codebooks}: no such file; make index and codebooks "
                f"with: {rebuild}"
            )
    elif settings.rows not in ("text", "random"):
        files["rows"] = Path(settings.rows)
        if not files["rows"].is_dir():
            raise InputError(
                f"--rows {settings.rows}: expected text, codebook, random, or the folder of a "
                "model trained with --mode rows"
            )
    if paths.user.exists():
        files["user"] = paths.user
    if Path(settings.base).exists():
        files["base"] = Path(settings.base)
    return TrainingInputs(
        files=files,
        items=items,
        split=split,
        user_texts=load_user_texts(settings.data, split),
        index=index,
        prompts=PromptSet.load(settings.prompts, base=SHIPPED_PROMPTS),
        mixture=parse_mixture(settings.tasks),
    )


def recipe_of(settings: TrainingSettings, prompts: PromptSet) -> dict[str, Any]:
    """Return the settings that decide the result, as a checkpoint records them."""
    recipe = config_dict(settings) | {"prompts": prompts.hash_of(parse_mixture(settings.tasks))}
    # They decide what may be deleted and what computes, not what is trained.
    for name in ("overwrite", "attention"):
        recipe.pop(name, None)
    if settings.share_prefix == "off":  # as in every checkpoint from before there was a choice
        del recipe["share_prefix"]
    for name in ("boundary_tokens", "rows_learning_rate", "ema"):  # likewise
        if not recipe[name]:
            del recipe[name]
    return recipe
