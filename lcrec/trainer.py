"""TRL's `SFTTrainer`, with the three things that training a recommender adds.

The head scores answer positions only; validation ranks the whole catalogue beside the loss, on
all processes; and a checkpoint counts only once it is complete, so that a killed run never resumes
from half of one, nor from one of another run.

Public names: `RecommenderTrainer`, `RankingValidation`, `claim_output`, `latest_checkpoint`,
`WORK`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint
from trl import SFTTrainer

from lcrec.artifacts import read_json, read_provenance, write_json
from lcrec.data import Cases
from lcrec.dataset import IGNORED
from lcrec.errors import InputError
from lcrec.index import ItemIndex
from lcrec.metrics import hit_at_k, ndcg_at_k
from lcrec.modeling import STAGE
from lcrec.prompts import PromptSet
from lcrec.recommender import Recommender

WORK = ".training"  # inside the output folder, until the run is finished
COMPLETE = "complete"


@dataclass(frozen=True)
class RankingValidation:
    """Held-out users to rank the whole catalogue for, and what ranking needs."""

    cases: Cases
    index: ItemIndex
    prompts: PromptSet
    max_history: int
    num_beams: int


class RecommenderTrainer(SFTTrainer):
    """`SFTTrainer` over left-padded rows from `collate_left`, with full-ranking validation."""

    def __init__(self, *args: Any, ranking: RankingValidation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranking = ranking
        self.add_callback(_MarkComplete())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean cross-entropy of the answer tokens of the global batch.

        Rows are padded on the left, so the answers are the last columns: only those pass through
        the head, and logits are [batch, longest answer + 1, vocabulary].
        """
        labels = inputs["labels"]
        answer_width = int(labels.shape[1] - (labels != IGNORED).any(0).int().argmax())
        features = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**features, use_cache=False, logits_to_keep=answer_width + 1)
        logits = outputs.logits[:, :-1].float()
        targets = labels[:, -answer_width:]
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        if num_items_in_batch is None:
            loss = total / (targets != IGNORED).sum()
        else:
            loss = total / num_items_in_batch
            if self.args.average_tokens_across_devices:
                # The count is global, and DDP averages gradients over processes.
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Add `eval_hr@10` and `eval_ndcg@10` over the whole catalogue to the loss."""
        output = super().evaluation_loop(*args, **kwargs)
        ranked = self.rank()
        targets = self.ranking.cases.targets
        assert output.metrics is not None
        output.metrics["eval_hr@10"] = float(hit_at_k(ranked, targets, 10).mean())
        output.metrics["eval_ndcg@10"] = float(ndcg_at_k(ranked, targets, 10).mean())
        return output

    def rank(self) -> np.ndarray:
        """Return the validation users' ranked items, int64 [users, beams]; processes share them."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        recommender = Recommender(
            model,
            self.processing_class,
            self.ranking.index,
            self.ranking.prompts,
            max_history=self.ranking.max_history,
        )
        histories = self.ranking.cases.histories
        mine = range(self.accelerator.process_index, len(histories), self.accelerator.num_processes)
        beams = self.ranking.num_beams
        own = recommender.recommend([histories[row] for row in mine], beams, num_beams=beams)
        shares = gather_object([(list(mine), own.items)])
        ranked = np.full((len(histories), beams), -1, dtype=np.int64)
        for rows, items in shares:
            ranked[rows] = items
        model.train(was_training)
        return ranked

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model = self.model
        if not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            # PEFT's default would write both resized matrices whole beside the trained rows.
            folder = output_dir or str(self.args.output_dir)
            model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint folder once everything in it is written."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PartialState().wait_for_everyone()  # every process writes its random state there
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            (folder / COMPLETE).touch()


def claim_output(output: Path, run: dict[str, Any], *, overwrite: bool) -> None:
    """Take the output folder for this run, or refuse it.

    Args:
        output: the folder.
        run: all that decides the result: settings, hashes of the inputs, number of processes.
        overwrite: throw another run away.

    Raises:
        InputError: it holds a run of other settings or inputs, or files that are no run at all.
    """
    note = output / WORK / "run.json"
    files = [path for path in output.rglob("*") if path.is_file() and path.suffix != ".partial"]
    if files:
        finished = read_provenance(output)
        if note.exists():
            found = read_json(note)
        elif finished is not None and finished["stage"] == STAGE:
            hashes = {role: entry["sha256"] for role, entry in finished["inputs"].items()}
            found = finished["config"] | {"inputs": hashes, "processes": run["processes"]}
        else:
            raise InputError(
                f"--output {output} holds something else (such as {files[0].name}), which no run "
                "of this recipe made; name another folder"
            )
        if note.exists() and found == run:
            return
        if not overwrite:
            differing = [key for key in run if found.get(key) != run[key]]
            raise InputError(
                f"--output {output} holds something else: a run that differs in "
                f"{', '.join(differing) or 'the version of lcrec'}; name another folder, or throw "
                "that run away with --overwrite"
            )
        # Set aside whole: half of a run, were this killed, would look like a stranger's files.
        doomed = output.with_name(f".{output.name}.replaced")
        shutil.rmtree(doomed, ignore_errors=True)
        output.rename(doomed)
        shutil.rmtree(doomed)
    write_json(note, run)


def latest_checkpoint(folder: Path) -> str | None:
    """Return the latest complete checkpoint in `folder`, removing incomplete ones."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).exists():
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
