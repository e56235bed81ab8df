"""Answers, rewards, updates, validations: the loop of reinforcement learning.

It is the trainer of fine-tuning (`lcrec.modeling.trainer`), whose checkpoints, resumption,
processes and ranking validation it keeps; what a batch and its loss are is its own. TRL's
`GRPOTrainer` was read for it (1.16) and left: it lays a prompt out once per answer in its sampler,
its buffers and its loss, and rewards text, so with a shared prompt and item ids nothing of it would
be used but what it inherits from transformers' `Trainer` as well.

The reference is the model at the start. Only what is trained can differ from it, so only that is
kept, and put in place for one pass: an adapter's few weights, or a copy of a whole model's. Where
FSDP2 shards the weights, each process keeps its shard.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from lcrec.core.errors import InputError
from lcrec.data.splits import EvalCases
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.many_users import catalogue_ranker
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.generate.search import search
from lcrec.modeling.trainer import Ranker, RankingValidation, RecommenderTrainer, training_arguments
from lcrec.prompts.encoder import item_token_ids
from lcrec.reinforce.rewards import Rewards, parse_rewards
from lcrec.reinforce.rollouts import draw_items
from lcrec.reinforce.settings import Cases, ReinforceInputs, ReinforceSettings
from lcrec.reinforce.update import (
    answer_log_probabilities,
    dpo_loss,
    group_advantages,
    grpo_loss,
    kl_estimate,
)

TOP = 10  # of the rankings that validation looks at


@dataclass(frozen=True)
class CaseCollator:
    """Makes a batch of training cases: their prompts, padded on the left, and their targets.

    Attributes:
        cases: what is trained on.
        recommender: asks as ranking asks.
    """

    cases: Cases
    recommender: Recommender

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, Tensor]:
        """Return a batch.

        Args:
            rows: `case`, a place in `cases`, and `row`, which tells its rollouts from others.

        Returns:
            `input_ids` and `attention_mask`, int64 [prompts, length]; `case`, `row` and `target`,
            int64 [prompts].
        """
        numbers = [row["case"] for row in rows]
        requests = [
            RankingRequest(self.cases.history(case), train_sequence=self.cases.train_sequence(case))
            for case in numbers
        ]
        input_ids, mask = self.recommender.request_encoder.pad(self.recommender.encode(requests))
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "case": torch.tensor(numbers),
            "row": torch.tensor([row["row"] for row in rows]),
            "target": torch.tensor([self.cases.target(case) for case in numbers]),
        }


def draw_cases(settings: ReinforceSettings, cases: Cases, processes: int) -> Dataset:
    """Return the rows of all epochs in the order of training, drawn up front.

    A batch of all processes stands there as often as its rollouts are used; what does not fill the
    last one is left out.
    """
    drawn = [
        np.random.default_rng([settings.seed, epoch]).permutation(len(cases))[: settings.cases]
        for epoch in range(settings.epochs)
    ]
    chosen = np.concatenate(drawn)
    update = settings.batch_size * settings.accumulate * processes
    rows = np.arange(len(chosen) // update * update or len(chosen))
    if settings.reuse > 1:
        parts = np.split(rows, range(update, len(rows), update))
        rows = np.concatenate([np.tile(part, settings.reuse) for part in parts])
    return Dataset.from_dict({"case": chosen[rows], "row": rows})


def count_updates(settings: ReinforceSettings, rows: int, processes: int) -> tuple[int, int]:
    """Return how many updates the rows of `draw_cases` make, and how many are between validations.

    Rollouts that are used several times are used up before a validation.
    """
    size = settings.batch_size * settings.accumulate * processes
    rollouts = settings.validate_every * rows / settings.epochs / size / settings.reuse
    return -(-rows // size), max(1, round(rollouts)) * settings.reuse


class ReinforceTrainer(RecommenderTrainer):
    """`RecommenderTrainer` over batches of a `CaseCollator`, whose loss is that of the rewards.

    Args:
        settings, inputs: the run's.
        recommender: the model with its tree and its prompts, on the device of training.
    """

    work = "reinforce"

    def __init__(
        self,
        *args: Any,
        settings: ReinforceSettings,
        inputs: ReinforceInputs,
        recommender: Recommender,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.cases = settings, inputs.cases
        self.rewards = Rewards(parse_rewards(settings.rewards), inputs.catalogue)
        self._counts = inputs.catalogue.counts
        model = self.model
        assert isinstance(model, PreTrainedModel | PeftModel)
        disable_dropout(model)
        self._trie = recommender.trie.to(self.args.device)
        paths = torch.from_numpy(item_token_ids(recommender.tokenizer, inputs.index))
        self._paths = paths.to(self.args.device)  # [items, levels]
        self._trained: list[Tensor] = []
        self._reference: list[Tensor] | None = None
        if settings.needs_reference:
            self._trained = [p for p in model.parameters() if p.requires_grad]
            # Where weights will be sharded, whole ones need not wait for it on the device.
            place = torch.device("cpu") if self.is_fsdp_enabled else self.args.device
            self._reference = [p.detach().to(place, copy=True) for p in self._trained]
        # The groups of this update, by the first row of their batch, as long as they are used.
        self._groups: dict[int, dict[str, Tensor]] = {}
        self._sums: dict[str, Tensor] = {}

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Let the model answer a batch of prompts, and add up the gradients of that."""
        inputs = self._prepare_inputs(inputs)
        first = int(inputs["row"][0])
        if first not in self._groups:
            if len(self._groups) == self.settings.accumulate:
                self._groups.clear()
            self.policy.eval()
            with torch.no_grad():
                self._groups[first] = self._answer(inputs)
            self.policy.train()
        return super().training_step(model, inputs | self._groups[first], num_items_in_batch)

    @property
    def policy(self) -> PreTrainedModel | PeftModel:
        """The model that is trained, not wrapped."""
        return self.accelerator.unwrap_model(self.model)

    def _answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the groups of a batch of prompts and what they are worth.

        Returns:
            `items` int64 [prompts, group]; `answers`, their tokens; `weights`, how much each
            counts in its group, `advantages` and `supervised` (the weight of an answer's own
            log-probability), float32 [prompts, group]; with a reference `reference`, float32
            [prompts, group, tokens].
        """
        settings = self.settings
        target = inputs["target"]
        items, weights = self._roll_out(inputs)
        missed = (items != target[:, None]).all(1)
        if settings.objective == "grpo":  # before the target is put in: what the model earned
            rewards, means = self._reward(inputs, items)
            self._add_up("reward", rewards.mean(1))
            for name, mean in means.items():
                self._add_up(f"reward_{name}", torch.full((len(items),), mean))
        if settings.objective == "dpo" or settings.add_target or settings.supervise_misses:
            items[:, -1] = torch.where(missed, target, items[:, -1])
            # No draw, the target has no weight of its own: that of one answer among equals.
            weights[:, -1] = torch.where(missed, weights[:, :-1].mean(1), weights[:, -1])
        weights = weights / weights.sum(1, keepdim=True)
        hits = items == target[:, None]
        group = {"items": items, "answers": self._paths[items], "weights": weights}
        self._add_up("hit", ~missed)
        if settings.objective == "grpo":
            if settings.add_target:
                rewards, _ = self._reward(inputs, items)
            advantages = group_advantages(rewards, weights, scale=settings.scale_advantages)
            supervised = torch.zeros_like(advantages)
            added = hits & missed[:, None]
            if settings.add_target:
                advantages = torch.where(added, settings.add_target * advantages, advantages)
            elif settings.supervise_misses:
                advantages = advantages.masked_fill(missed[:, None], 0)
                supervised = settings.supervise_misses * added.float()
                self._add_up("supervised", missed)
            group |= {"advantages": advantages, "supervised": supervised}
            self._add_up("no_signal", (advantages == 0).all(1) & (supervised == 0).all(1))
        if self._reference is not None:
            with self._at_the_reference():
                group["reference"] = self._log_probs(self.policy, inputs | group)[0]
        return group

    def _reward(self, inputs: dict[str, Tensor], items: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return what the items of a batch are worth, float32 [prompts, group], and the parts."""
        histories = [self.cases.history(case) for case in inputs["case"].tolist()]
        target = inputs["target"].cpu().numpy()
        found, means = self.rewards(items.cpu().numpy(), target, histories)
        return torch.from_numpy(found).float().to(items.device), means

    def _roll_out(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the items that the model answers each prompt with, best first, and their weights.

        The best of a beam count alike.
        """
        prompts = inputs["input_ids"], inputs["attention_mask"]
        leaf_filter = None
        if self.settings.exclude_history:
            deny = [self.cases.history(case) for case in inputs["case"].tolist()]
            leaf_filter = LeafFilter.build(self._trie, len(deny), deny=deny)
        size = self.settings.group
        if self.settings.rollouts == "beam":
            items = search(self.policy, *prompts, self._trie, size, leaf_filter=leaf_filter).items
            return items, torch.ones_like(items, dtype=torch.float32)
        # One stream of draws per batch, so that a resumed run draws what it would have drawn.
        seed = (self.settings.seed << 32) + int(inputs["row"][0])
        generator = torch.Generator().manual_seed(seed)
        drawn = draw_items(
            self.policy, *prompts, self._trie, size, generator, leaf_filter=leaf_filter
        )
        self._add_up("mass", drawn.log_probs.exp().sum(1))
        return drawn.items, drawn.weights

    @contextlib.contextmanager
    def _at_the_reference(self) -> Iterator[None]:
        """Put the starting weights in place of the trained ones for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        assert self._reference is not None
        shards = [part for part in self.policy.modules() if isinstance(part, FSDPModule)]
        for part in shards:  # what is gathered is not what is kept
            part.reshard()
        if shards and not isinstance(self._trained[0], DTensor):
            self._shard_reference()
        for number, parameter in enumerate(self._trained):
            if isinstance(parameter, DTensor):  # FSDP2 reads the place where its shard lies
                own, other = parameter.to_local().detach(), self._reference[number]
                self._reference[number] = own.clone()
                own.copy_(other)
            else:
                parameter.data, self._reference[number] = self._reference[number], parameter.data

    def _shard_reference(self) -> None:
        """Keep of the reference what this process has of the weights, now that they are sharded."""
        assert self._reference is not None
        self._trained = [p for p in self.policy.parameters() if p.requires_grad]
        for number, parameter in enumerate(self._trained):
            assert isinstance(parameter, DTensor)
            whole = self._reference[number]
            shard = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            self._reference[number] = shard.to_local().clone()

    def _log_probs(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return answer_log_probabilities(
            model, batch["input_ids"], batch["attention_mask"], batch["answers"]
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch with its groups.

        Raises:
            InputError: it is NaN or infinite, or the model is too far from where it started.
        """
        settings = self.settings
        log_probs, entropy = self._log_probs(model, inputs)
        self._add_up("entropy", entropy)
        kl = None
        if "reference" in inputs:
            kl = kl_estimate(log_probs, inputs["reference"], inputs["weights"])
            self._add_up("kl", kl)
        if settings.objective == "dpo":
            is_target = inputs["items"] == inputs["target"][:, None]
            loss = dpo_loss(log_probs, inputs["reference"], is_target, settings.dpo_beta)
        else:
            # Of the first update the answers are this very model's.
            old = self._groups[int(inputs["row"][0])].setdefault("old", log_probs.detach())
            advantages, weights = inputs["advantages"], inputs["weights"]
            loss, clipped = grpo_loss(log_probs, old, advantages, weights, settings.clip)
            self._add_up("clipped", clipped.expand(1))
            loss = loss - (log_probs.mean(2) * inputs["supervised"]).sum(1).mean()
            if kl is not None:
                loss = loss + settings.kl * kl.mean()
        self._refuse_explosion(loss, kl)
        return loss

    def _refuse_explosion(self, loss: Tensor, kl: Tensor | None) -> None:
        """Raise `InputError` naming the batch where numbers overflow or the model has run away."""
        distance = 0.0 if kl is None else float(kl.detach().mean())
        where = f"update {self.state.global_step + 1}"
        remedy = "lower --learning-rate, or raise --kl and --warmup"
        if not loss.isfinite():
            raise InputError(
                f"the loss of {where} is NaN or infinite; its batch is in {self.keep_batch()}: "
                f"{remedy}, or compute in fp32"
            )
        if distance > self.settings.max_kl:
            raise InputError(
                f"in {where} the model is {distance:.3g} away from where it started, above "
                f"--max-kl {self.settings.max_kl}; its batch is in {self.keep_batch()}: {remedy}"
            )

    def _compute_again(self, model: nn.Module) -> Tensor | float | None:
        # Other kernels would not help: the rollouts of a model that has run away are as they are.
        raise InputError(
            f"the gradient of update {self.state.global_step + 1} is NaN or infinite; its batch is "
            f"in {self.keep_batch()}: lower --learning-rate, or compute in fp32"
        )

    def _add_up(self, name: str, values: Tensor) -> None:
        """Count values [any] for the mean that is logged next."""
        values = values.detach().float()  # Apple's devices have no float64
        found = torch.stack([values.sum(), values.new_tensor(values.numel())])
        self._sums[name] = self._sums.get(name, 0) + found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log."""
        if "loss" in logs:
            for name in sorted(self._sums):  # all processes have the same names
                total, count = self.accelerator.reduce(self._sums[name], "sum").tolist()
                logs[name] = total / count
            self._sums.clear()
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Rank the catalogue for the held-out users."""
        metrics = self.ranking_metrics(self.rank())
        return EvalLoopOutput(np.empty(0), None, metrics, len(self.ranking.cases))

    def ranking_metrics(self, ranked: np.ndarray) -> dict[str, float]:
        """Add how many items all users' first ten hold, and how often those were bought."""
        shown = ranked[:, :TOP][ranked[:, :TOP] >= 0]
        return super().ranking_metrics(ranked) | {
            "eval_items@10": float(len(np.unique(shown))),
            "eval_popularity@10": float(self._counts[shown].mean()),
        }


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off, so that a model gives in training the probabilities it answered by."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0  # type: ignore[assignment]


class StopBelowStart(TrainerCallback):
    """Stops where a validation falls below the start.

    Args:
        start: what validation found before the first update.
        tolerance: the share of it that may be lost.
    """

    def __init__(self, start: dict[str, float], tolerance: float) -> None:
        self.start, self.tolerance = start, tolerance
        self.reason: str | None = None

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the last validation of a run that is resumed: it may have ended it."""
        validations = [entry for entry in state.log_history if "eval_ndcg@10" in entry]
        if validations:
            self.on_evaluate(args, state, control, validations[-1])

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Neither validate nor keep the update that is made all the same of a run that ended."""
        if self.reason is not None:
            control.should_evaluate = control.should_save = False

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at HR@10 and NDCG@10."""
        for name in ("eval_hr@10", "eval_ndcg@10"):
            least = (1 - self.tolerance) * self.start[name]
            if metrics is not None and metrics[name] < least:
                control.should_training_stop = True
                self.reason = (
                    f"Stopped after {state.global_step:,} updates: {name[5:].upper()} is "
                    f"{metrics[name]:.4f}, at the start it was {self.start[name]:.4f} (--tolerance "
                    f"{self.tolerance:g})"
                )


def make_ranker(settings: ReinforceSettings, recommender: Recommender) -> Ranker:
    """Return what validation ranks the catalogue with, asking as `recommender` asks."""
    encoder = recommender.request_encoder
    return catalogue_ranker(
        recommender.tokenizer,
        recommender.index,
        recommender.prompts,
        encoder.max_history,
        encoder.nearby,
        exclude_history=settings.exclude_history,
    )


def make_trainer(
    settings: ReinforceSettings,
    inputs: ReinforceInputs,
    recommender: Recommender,
    held_out: EvalCases,
    work: Path,
    processes: int,
) -> ReinforceTrainer:
    """Return the trainer of a run.

    Args:
        settings, inputs: the run's.
        recommender: the starting model, its trained weights marked.
        held_out: the users that validation ranks the catalogue for.
        work: the folder for checkpoints on the way.
        processes: how many share the work.
    """
    rows = draw_cases(settings, inputs.cases, processes)
    _, every = count_updates(settings, len(rows), processes)
    beams = min(settings.num_beams, len(inputs.index))
    rank = make_ranker(settings, recommender)
    return ReinforceTrainer(
        model=recommender.model,
        processing_class=recommender.tokenizer,
        train_dataset=rows,
        eval_dataset=rows.select([0]),  # asked for, and not read
        data_collator=CaseCollator(inputs.cases, recommender),
        ranking=RankingValidation(held_out, rank, beams),
        epochs=settings.epochs,
        settings=settings,
        inputs=inputs,
        recommender=recommender,
        args=training_arguments(settings, work, every),
    )
