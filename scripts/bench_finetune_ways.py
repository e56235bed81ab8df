"""One training run of `scripts/bench_finetune.py`: the kit's way or a plain one, measured."""

import functools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig

from lcrec.core.errors import InputError
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import load_split
from lcrec.generate.many_users import catalogue_ranker
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.base import DTYPES, add_adapter, load_base
from lcrec.modeling.cost import measure_shape, measure_work, operations
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.modeling.trainer import RankingValidation, RecommenderTrainer
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.rows import IGNORED, collate_left, draw_rows, tokenise_rows
from lcrec.prompts.tasks import TaskData, parse_mixture

TASKS = ["seqrec", "item2index", "index2item"]  # the recipe's default
RANK, ALPHA = 8, 32
MAX_LENGTH = 2048
WARM_UP = 3  # steps that are not timed


@dataclass(frozen=True)
class Job:
    """A run to measure.

    `folder` holds the item index and takes what is saved; `way` is the kit's, the plain one, or
    the plain one that trains no more rows than the kit does.
    """

    folder: Path
    base: Path
    data: Path
    steps: int
    learning_rate: float
    threads: int
    way: Literal["kit", "plain", "rows"] = "kit"
    precision: str = "fp32"
    quantize: str = "none"
    checkpointing: bool = False
    batch_size: int = 8


@dataclass(frozen=True)
class Figures:
    """What a run took; `operations` counts those of the timed steps, which took `seconds`."""

    tokens: int
    seconds: float
    cpu_seconds: float
    loaded_mb: float
    peak_mb: float
    adapter_bytes: int
    losses: list[float]
    trainable: int
    operations: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of real content: padding does not count."""
        return self.tokens / self.seconds

    @property
    def own_mb(self) -> float:
        """Peak memory above the process with the base model loaded."""
        return self.peak_mb - self.loaded_mb

    @property
    def loss(self) -> float:
        """The mean over the last quarter of the steps."""
        return statistics.mean(self.losses[-max(1, len(self.losses) // 4) :])


def train(job: Job) -> Figures:
    """Train one way and say what it took."""
    torch.set_num_threads(job.threads)
    items = load_items(job.data)
    split = load_split(job.data, load_interactions(job.data, len(items)))
    index = ItemIndex.load(job.folder / "index", len(items))
    prompts = PromptSet.load(SHIPPED_PROMPTS)
    model, tokenizer = load_base(str(job.base), DTYPES[job.precision], quantize=job.quantize)
    new_ids = extend_tokenizer(tokenizer, index)
    titles = [items.title(item) for item in range(len(items))]
    resize_embeddings(model, tokenizer, index, texts=titles)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if job.quantize == "none":
        model.to(device)  # type: ignore[arg-type]
    drawn = draw_rows(TaskData(items, split.train, index), prompts, parse_mixture(TASKS), 0, 0)
    count = job.steps * job.batch_size
    if len(drawn) < count:
        raise InputError(f"--steps {job.steps}: the data has but {len(drawn):,} samples")
    encoder = PromptEncoder(tokenizer, prompts)
    rows = tokenise_rows([drawn], encoder, max_length=MAX_LENGTH, batch_size=job.batch_size)
    rows = rows.select(range(count))
    labelled = rows.map(with_labels, remove_columns=rows.column_names)

    # What libraries load on their first call belongs to the process, not to the way.
    model(input_ids=torch.tensor([[0, 1]], device=device))
    loaded = start_peak()
    set_seed(0)
    trainer: Trainer
    if job.way == "kit":
        adapted = add_adapter(model, new_ids, rank=RANK, alpha=ALPHA, dropout=0.0)
        trainer = RecommenderTrainer(
            model=adapted,
            processing_class=tokenizer,
            train_dataset=rows,
            data_collator=functools.partial(collate_left, pad_token_id=tokenizer.pad_token_id),
            ranking=RankingValidation(
                split.valid, catalogue_ranker(tokenizer, index, prompts, 20), num_beams=10
            ),
            args=SFTConfig(
                **arguments(job),
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=MAX_LENGTH,
            ),
        )
    else:
        adapted = add_plain_adapter(model, new_ids if job.way == "rows" else None)
        trainer = Trainer(
            model=adapted,
            processing_class=tokenizer,
            train_dataset=labelled,
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
            args=TrainingArguments(**arguments(job)),
        )
    trainer.remove_callback(PrinterCallback)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    peak = peak_memory()
    adapter = job.folder / "adapter"
    trainer.save_model(str(adapter))
    timed = rows.select(range(WARM_UP * job.batch_size, count))
    shape = measure_shape(adapted)
    work = measure_work(
        timed, batch_size=job.batch_size, accumulate=1, processes=1, max_tokens=None
    )
    return Figures(
        tokens=work.tokens,
        seconds=clock.wall[-1] - clock.wall[WARM_UP - 1],
        cpu_seconds=clock.cpu[-1] - clock.cpu[WARM_UP - 1],
        loaded_mb=loaded,
        peak_mb=peak,
        adapter_bytes=(adapter / "adapter_model.safetensors").stat().st_size,
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        trainable=shape.trainable,
        operations=operations(shape, work, checkpointing=job.checkpointing),
    )


def arguments(job: Job) -> dict[str, Any]:
    """Return the settings of the recipe's that both trainers take."""
    return {
        "output_dir": str(job.folder / "run"),
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "per_device_train_batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "bf16": job.precision == "bf16",
        "activation_checkpointing": job.checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": not torch.cuda.is_available(),
    }


def add_plain_adapter(model: PreTrainedModel, rows: list[int] | None) -> PeftModel:
    """Add LoRA as the plain way does, training embedding and head whole, or just these rows."""
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules="all-linear",
        modules_to_save=None if rows else ["embed_tokens", "lm_head"],
        trainable_token_indices=rows,
        ensure_weight_tying=rows is None,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora)
    assert isinstance(adapted, PeftModel)
    return adapted


def with_labels(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `tokenise_rows` as `Trainer` takes it, with the loss on the answer alone."""
    prompt = row["prompt_length"]
    labels = [IGNORED] * prompt + row["input_ids"][prompt:]
    return {"input_ids": row["input_ids"], "labels": labels}


class Clock(TrainerCallback):
    """Notes when each step ended, by two clocks: of the wall, and of this process's own work."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the times, once the device has done its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def start_peak() -> float:
    """Forget the peak so far and return the memory in use, in MB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """Return the peak memory since `start_peak`, in MB: of the GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
