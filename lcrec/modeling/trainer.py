"""TRL's `SFTTrainer`, extended for training a recommender.

The head scores answer positions only; a batch too large for the device is computed in parts, with
the same result; no gradient that is NaN reaches a weight; the loss is logged per task; validation
ranks the whole catalogue beside the loss, on all processes; and a checkpoint is staged, marked
complete and renamed, before older ones go.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from lcrec.core.console import on_terminal
from lcrec.core.device import compute_plainly
from lcrec.core.errors import InputError
from lcrec.data.splits import EvalCases
from lcrec.modeling.averaging import RunningAverage
from lcrec.modeling.base import base_model
from lcrec.modeling.batches import is_packed, sample_losses, split_batch, split_buffers
from lcrec.modeling.callbacks import TrainingLines
from lcrec.modeling.item_rows import show_frozen_weights
from lcrec.modeling.run_folder import STAGED, explain_damage, explain_disk_full, publish_checkpoint
from lcrec.modeling.trees import PackingCollator
from lcrec.prompts.rows import EpochRows, row_lengths
from lcrec.prompts.tasks import TASKS
from lcrec.rankings.metrics import hit_at_k, ndcg_at_k

# What to try where numbers overflow.
_LESS = "Lower --learning-rate, raise --warmup, or compute in fp32 or bf16 instead of fp16"
# Ranks the catalogue: (model in eval mode, cases, beams) -> item ids, int64 [cases, beams].
Ranker = Callable[[PreTrainedModel | PeftModel, EvalCases, int], np.ndarray]


@dataclass(frozen=True)
class RankingValidation:
    """Held-out users to rank the whole catalogue for.

    Attributes:
        cases: the users' histories and the item that each bought next.
        ranker: ranks the catalogue with the model as it stands; searching is the business of
            `lcrec.generate`, so the caller hands it in.
        num_beams: how many items to rank for each user.
    """

    cases: EvalCases
    ranker: Ranker
    num_beams: int


def training_arguments(settings: Any, work: Path, every: int, **others: Any) -> SFTConfig:
    """Return the arguments of every kind of training.

    Args:
        settings: the run's, with `batch_size`, `accumulate`, `learning_rate`, `weight_decay`,
            `warmup`, `precision`, `gradient_checkpointing`, `report_to` and `seed`.
        work: the folder for checkpoints on the way.
        every: updates between validations, each with a checkpoint.
        others: arguments of one kind of training alone.
    """
    return SFTConfig(
        output_dir=str(work),
        # One pass over the rows of all epochs, in their order: `EpochRows` is one data set.
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg@10",
        greater_is_better=True,
        logging_steps=max(1, every // 5),
        logging_nan_inf_filter=False,  # it would wait for the device at every batch
        report_to=settings.report_to,
        # The loss is that of the answers; and with its router in the output no cache is read.
        router_aux_loss_coef=0.0,
        seed=settings.seed,
        use_cpu=not torch.accelerator.is_available(),
        **others,
    )


class RecommenderTrainer(SFTTrainer):
    """`SFTTrainer` over rows from `collate_left` or a `PackingCollator`, with full ranking.

    Args:
        train_dataset: the rows of all epochs, in the order of training.
        ranking: whom to rank the catalogue for in every validation.
        max_tokens_per_batch: tokens on a device at once; a larger batch is computed in parts.
        epochs: passes over the samples that the rows hold; what is logged counts to it.
        prepare_optimizer: told the optimizer, when it has been made.
        ema: decay of the average of the weights that is validated and saved; None: the weights
            as they are.
    """

    work = "fine-tune"  # as progress calls it

    def __init__(
        self,
        *,
        train_dataset: Dataset | EpochRows,
        ranking: RankingValidation,
        max_tokens_per_batch: int | None = None,
        epochs: int = 1,
        prepare_optimizer: Callable[[torch.optim.Optimizer], None] | None = None,
        ema: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._prepare_optimizer = prepare_optimizer
        self._average: RunningAverage | None = None
        first = train_dataset.first if isinstance(train_dataset, EpochRows) else train_dataset
        super().__init__(train_dataset=first, **kwargs)
        self.train_dataset = train_dataset  # only now: TRL refuses what is no table
        assert self.model is not None
        for weight in self.model.parameters():
            if weight.requires_grad:
                # TRL rounds what is trained on a quantised base to bf16, where most of AdamW's
                # steps are less than half of what the next number is away, and so lost.
                weight.data = weight.data.float()
        # Whether or not the model's own loss does: of a family that does not (Gemma 3n) an update
        # of several parts would be the sum of their means.
        self.model_accepts_loss_kwargs = True
        if ema is not None:
            self._average = RunningAverage(self.model, ema)
            self.add_callback(self._average)
        self.epochs = epochs
        if not on_terminal():
            for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
                self.remove_callback(callback)
            self.add_callback(TrainingLines(epochs, self.work))
        self.ranking = ranking
        self.max_tokens_per_batch = max_tokens_per_batch
        # Per task the summed loss and the number of answer tokens since the last log.
        self.task_losses = torch.zeros(len(TASKS), 2, device=self.args.device)
        # The batches of the update that is being computed, with the tokens that it counts.
        self._batches: list[tuple[dict[str, Tensor], Tensor | int | None]] = []
        # Per part of them the rows, and per row the summed loss and number of answer tokens.
        self._losses: list[tuple[dict[str, Tensor], Tensor]] = []
        self._left_out = 0  # updates in a row
        self._is_halved = False  # the buffers, as they did not fit
        self._staged: str | None = None  # where a checkpoint is being written
        if self.is_fsdp_enabled and isinstance(self.model, PeftModel):
            show_frozen_weights(self.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, and hand it to `prepare_optimizer`."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self._prepare_optimizer is not None:
            self._prepare_optimizer(optimizer)
        return optimizer

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer would ask only after an update: a resumed run may have stopped before.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add up the gradients of a batch, `max_tokens_per_batch` tokens at a time.

        A loss is the sum over answer tokens divided by their number in the whole update, so that
        of the parts is that of the batch.
        """
        self._batches.append((inputs, num_items_in_batch))
        try:
            return self._add_gradients(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError:
            if not self._halve_buffers():
                raise
        return self._add_all_gradients(model)

    def batch_at_once(self) -> tuple[int, int] | None:
        """Return rows and tokens of the batch that is being computed; None between updates."""
        if not self._batches:
            return None
        rows = self._batches[-1][0]["input_ids"]
        at_once = max(part["input_ids"].numel() for part in self._split(self._batches[-1][0]))
        return len(rows), at_once

    def _halve_buffers(self) -> bool:
        """Pack into smaller buffers from now on, once; tell whether that can be done."""
        collator = self.data_collator
        if not isinstance(collator, PackingCollator) or self._is_halved:
            return False
        # Processes that are not out of memory would not know of it.
        if self.accelerator.num_processes > 1 or collator.capacity // 2 < self._longest():
            return False
        collator.capacity //= 2
        self._is_halved = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._say(
            f"Update {self.state.global_step + 1} did not fit into memory: buffers hold "
            f"{collator.capacity:,} tokens from now on, to the same result."
        )
        return True

    def _longest(self) -> int:
        """Return the tokens of the longest sample, of those for validation too."""
        datasets = self.train_dataset, self.eval_dataset
        known = [int(row_lengths(d).max()) for d in datasets if isinstance(d, Dataset)]
        return max([*known, *(d.longest for d in datasets if isinstance(d, EpochRows))])

    def _add_all_gradients(self, model: nn.Module) -> Tensor:
        """Compute the gradients of the update's batches again; return the loss of the last one."""
        model.zero_grad()
        self._losses = []
        for number, (inputs, tokens) in enumerate(self._batches, 1):
            apart = number < len(self._batches)
            with self.accelerator.no_sync(model) if apart else contextlib.nullcontext():
                loss = self._add_gradients(model, inputs, tokens)
        return loss

    def _add_gradients(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        parts = self._split(inputs)
        losses = []
        for number, part in enumerate(parts, 1):
            # Processes exchange gradients once per batch.
            apart = number < len(parts)
            with self.accelerator.no_sync(model) if apart else contextlib.nullcontext():
                losses.append(super().training_step(model, part, num_items_in_batch))
        # For the log alone: an update that is no number is seen in its gradient.
        return torch.stack(losses).sum().nan_to_num(0, 0, 0)

    def _split(self, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return a batch in the parts that are on a device at once."""
        if not is_packed(inputs):
            return split_batch(inputs, self.max_tokens_per_batch, self.accelerator.gather)
        assert isinstance(self.data_collator, PackingCollator)
        inputs = self.data_collator.repack(inputs)  # it may have been packed for larger buffers
        count = len(inputs["input_ids"])
        if self.is_fsdp_enabled or self._is_zero3():  # processes meet in every forward
            counts = torch.tensor([count], device=self.args.device)
            count = int(self.accelerator.gather(counts).max())
        return split_buffers(inputs, count)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        # The Trainer asks this once per update, when its gradients are complete. All processes see
        # one norm, so they decide alike.
        norm = super()._clip_grad_norm(model)
        # DeepSpeed keeps gradients to itself, and in fp16 the scaler leaves out what overflows.
        if self.accelerator.deepspeed_plugin is not None or self.args.fp16:
            self._refuse_bad_losses(self._losses)
        elif not _is_finite(norm):
            norm = self._compute_again(model)
        else:
            self._left_out = 0
        for inputs, per_row in self._losses:
            self.task_losses.index_add_(0, inputs["task"], per_row)
        self._losses.clear()
        self._batches.clear()
        return norm

    def _compute_again(self, model: nn.Module) -> Tensor | float | None:
        """Compute an update again whose gradient is no finite number, without fused kernels.

        If that gives a finite one, training goes on that way; if not, the update is left out.

        Returns:
            The norm of the gradient that the optimizer will see.

        Raises:
            InputError: it is the third update in a row to be left out.
        """
        update = self.state.global_step + 1
        batch = self.keep_batch()
        compute_plainly()
        if isinstance(self.data_collator, PackingCollator):
            base_model(self.accelerator.unwrap_model(model)).set_attn_implementation("sdpa")
            # Plain attention takes memory by the square of a buffer.
            self.data_collator.capacity = min(self.data_collator.capacity, self._longest())
        if not isinstance(self.accelerator.unwrap_model(model), PeftModel):
            # Its weights are float32; those under an adapter may be stored in less.
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        bad = self._losses
        self._add_all_gradients(model)
        norm = super()._clip_grad_norm(model)
        what = f"The gradient of update {update} was NaN or infinite"
        if _is_finite(norm):
            self._left_out = 0
            self._say(
                f"{what}; computed again without fused attention kernels it is not, so training "
                f"goes on that way, more slowly. A kernel is at fault: please report it with "
                f"{batch} and the versions of torch and CUDA."
            )
            return norm
        model.zero_grad()
        self._left_out += 1
        self._losses = []
        if self._left_out == 3:
            self._refuse_bad_losses(bad)
            raise InputError(
                f"the gradients of updates {update - 2} to {update} are NaN or infinite; the last "
                f"batch is in {batch}. {_LESS}"
            )
        self._say(f"{what}, by any kernel; the update is left out. Its batch is in {batch}.")
        return 0.0

    def keep_batch(self) -> Path:
        """Write this process's batch of the update beside the checkpoint, and return where."""
        place = Path(self.args.output_dir or ".").parent
        process = f"_{self.args.process_index}" * (self.args.world_size > 1)
        place /= f"nan_update_{self.state.global_step + 1}{process}.safetensors"
        rows = [inputs for inputs, _ in self._batches]
        named = {f"{i}.{k}": v.contiguous() for i, r in enumerate(rows) for k, v in r.items()}
        save_file(named, place)
        return place

    def _say(self, line: str) -> None:
        if self.args.should_save:
            tqdm.write(line)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean cross-entropy of the answer tokens of the global batch."""
        if is_packed(inputs) and not model.training:  # a whole batch; in training it is one part
            found = [sample_losses(model, part) for part in self._split(inputs)]
            losses, outputs = torch.stack([part for part, _ in found]).sum(0), found[-1][1]
        else:
            losses, outputs = sample_losses(model, inputs)
        total, answers = losses.sum(0)
        if model.training:
            self._losses.append((inputs, losses.detach()))
        if num_items_in_batch is None:
            loss = total / answers
        else:
            loss = total / num_items_in_batch
            if self.args.average_tokens_across_devices:
                # The count is global, and DDP averages gradients over processes.
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _refuse_bad_losses(self, losses: list[tuple[dict[str, Tensor], Tensor]]) -> None:
        """Raise `InputError` naming the first sample of an update whose loss is no number."""
        for inputs, per_row in losses:
            bad = ~per_row[:, 0].isfinite()
            if bad.any():
                row = int(bad.nonzero()[0])
                if is_packed(inputs):
                    ids = inputs["labels"][(inputs["samples"] == row) & (inputs["labels"] >= 0)]
                else:
                    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
                sample = ids.tolist()
                assert isinstance(self.processing_class, PreTrainedTokenizerBase)
                task = list(TASKS)[int(inputs["task"][row])]
                raise InputError(
                    f"the loss of update {self.state.global_step + 1} is NaN or infinite, first "
                    f"in the {task} sample {self.processing_class.decode(sample)[:200]!r}. {_LESS}"
                )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of each task since the last log, and count the epoch to `epochs`."""
        if "loss" in logs:
            sums = self.accelerator.reduce(self.task_losses, "sum")
            for name, (total, tokens) in zip(TASKS, sums.tolist(), strict=True):
                if tokens:
                    logs[f"loss_{name}"] = total / tokens
            self.task_losses.zero_()
        passed = self.state.epoch
        if passed is not None:  # the Trainer makes one pass over the rows of all epochs
            self.state.epoch = passed * self.epochs
        super().log(logs, start_time)
        self.state.epoch = passed

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Add `eval_hr@10` and `eval_ndcg@10` over the whole catalogue to the loss."""
        with self._averaged():
            output = super().evaluation_loop(*args, **kwargs)
            assert output.metrics is not None
            output.metrics.update(self.ranking_metrics(self.rank()))
        return output

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._average is None else self._average.in_place()

    def ranking_metrics(self, ranked: np.ndarray) -> dict[str, float]:
        """Return how good the validation users' ranked items are, int64 [users, beams]."""
        targets = self.ranking.cases.targets
        return {
            "eval_hr@10": float(hit_at_k(ranked, targets, 10).mean()),
            "eval_ndcg@10": float(ndcg_at_k(ranked, targets, 10).mean()),
        }

    def rank(self) -> np.ndarray:
        """Return the validation users' ranked items, int64 [users, beams]; processes share them."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        cases = self.ranking.cases
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        if self._is_zero3():  # processes meet in every forward, so each ranks all
            processes, process = 1, 0
        mine = range(process, len(cases), processes)
        beams = self.ranking.num_beams
        with whole_weights(model), _attention_for_search(model):
            own = self.ranking.ranker(model, cases.take(mine), beams)
        shares = gather_object([(list(mine), own)])
        ranked = np.full((len(cases), beams), -1, dtype=np.int64)
        for rows, items in shares:
            ranked[rows] = items
        model.train(was_training)
        return ranked

    def whole_state(self) -> dict[str, Any] | None:
        """Return the weights to save, on the main process, where every process holds a share.

        Without sharding there is nothing to collect: None. All processes must call this.
        """
        if self._is_zero3():
            return self.accelerator.get_state_dict(self.model_wrapped)
        if not self.is_fsdp_enabled:
            return None
        model = self.model
        assert isinstance(model, PreTrainedModel | PeftModel)
        adapter = isinstance(model, PeftModel)
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter
        )
        weights = get_model_state_dict(model, options=options)
        if isinstance(model, PreTrainedModel):
            for name in model.all_tied_weights_keys:  # kept once, under the other name
                weights.pop(name, None)
        return weights

    def _is_zero3(self) -> bool:
        plugin = self.accelerator.state.deepspeed_plugin
        return plugin is not None and plugin.zero_stage == 3

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Tied weights are in a checkpoint under one name only, so the other is not missing.
        if isinstance(self.model, PreTrainedModel):  # an adapter's checkpoint holds no such weight
            tied = self.model.all_tied_weights_keys
            missing = [name for name in load_result.missing_keys if name not in tied]
            load_result = load_result._replace(missing_keys=missing)
        super()._issue_warnings_after_load(load_result)

    def _load_from_checkpoint(self, checkpoint: str, model: nn.Module | None = None) -> None:
        with explain_damage(checkpoint):
            super()._load_from_checkpoint(checkpoint, model)
            if self._average is not None:
                self._average.resume(Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explain_damage(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with explain_damage(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def _get_output_dir(self, trial: Any = None) -> str:
        # The Trainer asks this for the folder to write a checkpoint in, and to look for others in.
        return self._staged or super()._get_output_dir(trial)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir or ".")
        name, staged = f"checkpoint-{self.state.global_step}", folder / STAGED
        with explain_disk_full(folder.parent):
            self._staged = str(staged)
            try:
                with self._averaged():
                    super()._save_checkpoint(*args, **kwargs)
                    if self._average is not None and self.args.should_save:
                        self._average.save_stepped(staged / name)
            except BaseException:  # a full disk is not kept full
                shutil.rmtree(staged, ignore_errors=True)
                raise
            finally:
                self._staged = None
            if self.state.best_model_checkpoint == str(staged / name):
                self.state.best_model_checkpoint = str(folder / name)
            self.accelerator.wait_for_everyone()  # every process writes its random state there
            if self.args.should_save:
                self.state.save_to_json(str(staged / name / TRAINER_STATE_NAME))
                publish_checkpoint(staged / name, folder / name)
                # Only now: the Trainer's own turn came while this checkpoint was not there yet.
                rotate_checkpoints(
                    output_dir=str(folder),
                    save_total_limit=self.args.save_total_limit,
                    best_model_checkpoint=self.state.best_model_checkpoint,
                    use_mtime=True,
                )
            self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights into a folder."""
        if self.is_fsdp_enabled:
            self._save(output_dir, self.whole_state())
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model = self.model
        if not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            # PEFT's default would write both resized matrices whole beside the trained rows.
            folder = output_dir or str(self.args.output_dir)
            model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)


def _is_finite(norm: Tensor | float | None) -> bool:
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return norm is None or math.isfinite(norm)


@contextlib.contextmanager
def _attention_for_search(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Compute attention by SDPA for a while, and nothing compiled: a search has many shapes."""
    base = base_model(model)
    before = base.config._attn_implementation
    if before != "flex_attention":
        yield
        return
    base.set_attn_implementation("sdpa")
    with torch.compiler.set_stance("force_eager"):
        yield
    base.set_attn_implementation(before)


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Hold all weights on every process for a while, where FSDP2 shards them.

    Processes then need not meet in every forward, so that each can rank its own users.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()
