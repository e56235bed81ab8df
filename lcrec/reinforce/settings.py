"""What reinforcement learning is told and what it reads, known before any model is loaded.

Nothing here imports torch, so that a wrong setting or a wrong file is refused at once.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lcrec.core.artifacts import EMBEDDINGS, PROMPTS, PROVENANCE, find_data, read_array
from lcrec.core.config import config_dict, option, refuse_settings
from lcrec.core.errors import InputError
from lcrec.core.pretrained import ADAPTER_CONFIG
from lcrec.core.provenance import is_kind, read_provenance, require_same_input
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.data_set import load_data
from lcrec.data.folder import check_embeddings, unit_rows
from lcrec.data.splits import Split, require_same_split
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import parse_mixture
from lcrec.reinforce.rewards import Catalogue, Rewards, parse_rewards, source_of

STAGE = "python -m lcrec.reinforce"


@dataclass(frozen=True, kw_only=True)
class ReinforceSettings:
    """What shapes a reinforced model."""

    model: Path = option("the fine-tuned checkpoint to start from")
    data: Path = option("the data folder it was trained on")
    base: str | None = option("where the base model of an adapter lies now, if it moved", None)
    objective: Literal["grpo", "dpo"] = option(
        "grpo: rewards of a group of answers; dpo: the target against the other answers (S-DPO)",
        "grpo",
    )
    rollouts: Literal["beam", "gumbel"] = option(
        "how a prompt is answered: by the best items of the beam, or by items drawn without "
        "repetition from the model's distribution over the catalogue",
        "beam",
    )
    group: int = option("items that answer a prompt", 16, minimum=2)
    rewards: list[str] = option(
        "what an item is rewarded for, each with its weight if it is not 1: hit, rank, codes, "
        "similarity, novelty, or module:function",
        ["hit", "rank"],
    )
    embeddings: Path | None = option("the items' embeddings, for the reward similarity", None)
    scale_advantages: bool = option("divide advantages by the group's standard deviation", True)
    add_target: float = option(
        "put the target into groups that missed it, its advantage multiplied by this; 0: do not",
        0.0,
        minimum=0,
    )
    supervise_misses: float = option(
        "replace the objective of groups without a hit by the supervised loss of the target, "
        "multiplied by this; 0: do not",
        0.0,
        minimum=0,
    )
    clip: float = option(
        "with grpo: how far a token's probability may move, as a share of what it was, before its "
        "gradient is cut off; of use with --reuse above 1",
        0.2,
        minimum=0,
    )
    reuse: int = option("updates made of the same rollouts", 1, minimum=1)
    kl: float = option("with grpo: weight of the distance to the start", 0.001, minimum=0)
    max_kl: float = option(
        "stop where a batch is further from the start than this", 10.0, minimum=0
    )
    dpo_beta: float = option("with dpo: scale of the implicit reward", 1.0, minimum=1e-6)
    epochs: int = option("passes over the training cases", 1, minimum=1)
    cases: int | None = option(
        "training cases of an epoch, drawn anew (default: all)", None, minimum=1
    )
    learning_rate: float = option("peak step size of AdamW", 1e-5, minimum=1e-12)
    weight_decay: float = option("AdamW's weight decay", 0.0, minimum=0)
    warmup: float = option("share of the updates to warm up in", 0.03, minimum=0, maximum=0.99)
    batch_size: int = option("prompts per step and process", 16, minimum=1)
    accumulate: int = option("steps to add up before an update", 1, minimum=1)
    max_history: int | None = option(
        "items of a history shown at most (default: as in fine-tuning)", None, minimum=1
    )
    exclude_history: bool = option("never answer with an item of the history", False)
    precision: Literal["fp32", "bf16", "fp16"] = option("arithmetic of training", "fp32")
    gradient_checkpointing: bool = option("save memory, spend a third more time", False)
    validation_users: int = option("held-out users to rank the catalogue for", 1000, minimum=1)
    validate_every: float = option("epochs between validations", 0.25, minimum=0.01)
    tolerance: float = option(
        "stop where HR@10 or NDCG@10 has lost more than this share of what it was at the start",
        0.1,
        minimum=0,
    )
    num_beams: int = option("beams in validation", 20, minimum=10)
    report_to: str = option("where metrics go: none, tensorboard, wandb, trackio", "none")
    seed: int = option("decides everything drawn", 42, minimum=0)

    @property
    def needs_reference(self) -> bool:
        """Whether the log-probabilities of the model at the start are computed."""
        return self.kl > 0 or self.objective == "dpo"


def check_settings(settings: ReinforceSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        InputError: it names them.
    """
    if settings.objective == "dpo":
        unused = {"rewards", "scale_advantages", "add_target", "supervise_misses", "clip", "kl"}
        every = set(vars(settings)) - unused
        refuse_settings(settings, every, "is a setting of --objective grpo, not of dpo")
    elif settings.dpo_beta != 1.0:
        raise InputError(f"--dpo-beta {settings.dpo_beta}: is a setting of --objective dpo")
    if not settings.needs_reference:
        refuse_settings(
            settings,
            set(vars(settings)) - {"max_kl"},
            "with --kl 0 the distance to the start is not computed; give a small --kl",
        )
    if settings.add_target and settings.supervise_misses:
        raise InputError(
            f"--add-target {settings.add_target} and --supervise-misses "
            f"{settings.supervise_misses} are two ways to treat groups without a hit; choose one"
        )
    weights = parse_rewards(settings.rewards)
    if "similarity" in weights and settings.embeddings is None:
        raise InputError(
            "--rewards similarity: compares embeddings; name them with --embeddings, made by "
            f"python -m lcrec.embed --data {settings.data} --output EMBEDDINGS"
        )
    if "similarity" not in weights and settings.embeddings is not None:
        raise InputError(
            f"--embeddings {settings.embeddings}: only the reward similarity reads them; add it to "
            "--rewards"
        )
    for name in weights:
        source_of(name)


@dataclass(frozen=True)
class Cases:
    """What the model is trained on: what stands in a history, and what came next.

    Attributes:
        items: all users' training items, one user behind the other, int32 [items].
        starts, places, ends: for each case where its user's items begin, where its target is, and
            where they end, int64 [cases]; the history is all before the target.
    """

    items: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def of(cls, split: Split, *, exclude_history: bool) -> "Cases":
        """Return every training item that has a history; with `exclude_history` not in it."""
        items, offsets = split.train.items, split.train.offsets
        starts, ends = (np.repeat(own, np.diff(offsets)) for own in (offsets[:-1], offsets[1:]))
        places = np.flatnonzero(np.arange(len(items)) > starts)
        if exclude_history:  # of a user's orders of one item the first
            pairs = starts * (int(items.max(initial=0)) + 1) + items
            first = np.unique(pairs, return_index=True)[1]
            places = np.intersect1d(places, first, assume_unique=True)
        return cls(items, starts[places], places, ends[places])

    def history(self, case: int) -> np.ndarray:
        """Return the items before a case's target, oldest first."""
        return self.items[self.starts[case] : self.places[case]]

    def train_sequence(self, case: int) -> np.ndarray:
        """Return all training items of a case's user, oldest first."""
        return self.items[self.starts[case] : self.ends[case]]

    def longest_history(self) -> np.ndarray:
        """Return the longest history of all, whose prompt shows whether all fit."""
        return self.history(int((self.places - self.starts).argmax()))

    def target(self, case: int) -> int:
        """Return the item that came next."""
        return int(self.items[self.places[case]])


@dataclass(frozen=True)
class ReinforceInputs:
    """What a run reads besides the weights.

    Attributes:
        files: every file and folder read, by its role in the provenance.
        recipe: the settings of the fine-tune that it starts from.
        index, prompts: the checkpoint's own.
        split: of the data folder.
        cases: what is trained on.
        catalogue: what rewards know of the items.
        max_history: how many items of a history a prompt shows.
    """

    files: dict[str, Path]
    recipe: dict[str, Any]
    index: ItemIndex
    prompts: PromptSet
    split: Split
    cases: Cases
    catalogue: Catalogue
    max_history: int

    @cached_property
    def nearby(self) -> NearbyItems | None:
        """What stands near what in these train sequences; None where no prompt shows neighbours."""
        shown = self.prompts.shows_neighbours
        return NearbyItems.count(self.split.train, len(self.index)) if shown else None


def load_inputs(settings: ReinforceSettings) -> ReinforceInputs:
    """Read and check the data folder and what a checkpoint says of itself.

    Raises:
        InputError: no checkpoint, one that never learnt `seqrec`, another data folder than it was
            trained on, a file that is missing or wrong, or groups that the catalogue cannot fill.
    """
    model = settings.model
    if not is_kind(model, "python -m lcrec.finetune"):
        raise InputError(
            f"--model {model}: not a checkpoint of lcrec (no {PROVENANCE} of a fine-tune in it); "
            "reinforcement starts from one: python -m lcrec.finetune --output DIR"
        )
    record = read_provenance(model)
    assert record is not None
    recipe = record["config"]
    if "seqrec" not in parse_mixture(list(recipe["tasks"])):
        raise InputError(
            f"--model {model}: was not fine-tuned on seqrec (but on {', '.join(recipe['tasks'])}), "
            "so it has no ranking to reward; add the task: lcrec.finetune --tasks seqrec ..."
        )
    paths = find_data(settings.data)
    retrain = f"python -m lcrec.finetune --data {settings.data} --output DIR"
    data = load_data(settings.data)
    require_same_input(model, "item", paths.item, retrain)
    require_same_split(model, settings.data, retrain)
    index = ItemIndex.load(model)
    files = {"model": model, "item": paths.item, **paths.sequences}
    if (model / ADAPTER_CONFIG).exists():
        base = settings.base or recipe.get("base")
        if base is not None and Path(base).exists():
            files["base"] = Path(base)
    if settings.embeddings is not None:
        files["embeddings"] = settings.embeddings
    for name in parse_rewards(settings.rewards):
        if (source := source_of(name)) is not None:
            files[f"reward {name}"] = source
    cases = Cases.of(data.split, exclude_history=settings.exclude_history)
    if not len(cases):
        raise InputError(f"--data {settings.data}: no training item has a history to learn from")
    longest = int((cases.places - cases.starts).max()) if settings.exclude_history else 0
    if settings.group + longest > len(index):
        raise InputError(
            f"--group {settings.group}: the catalogue has {len(index)} items"
            + (f", up to {longest} of them in a history" if longest else "")
            + f"; take at most {len(index) - longest}"
        )
    catalogue = Catalogue(
        index.codes,
        np.bincount(data.split.train.items, minlength=len(index)),
        None if settings.embeddings is None else _embeddings(settings, paths.item, len(index)),
    )
    _try_rewards(settings, cases, catalogue)
    return ReinforceInputs(
        files,
        recipe,
        index,
        PromptSet.load(model / PROMPTS),
        data.split,
        cases,
        catalogue,
        settings.max_history or record["max_history"],
    )


def _try_rewards(settings: ReinforceSettings, cases: Cases, catalogue: Catalogue) -> None:
    """Ask functions of one's own once, before a model is loaded and validated.

    Raises:
        InputError: one fails.
    """
    weights = {name: 1.0 for name in parse_rewards(settings.rewards) if ":" in name}
    if not weights:
        return
    asked = range(min(2, len(cases)))
    items = np.tile(np.arange(settings.group), (len(asked), 1))
    targets = np.array([cases.target(case) for case in asked])
    Rewards(weights, catalogue)(items, targets, [cases.history(case) for case in asked])


def _embeddings(settings: ReinforceSettings, item_file: Path, items: int) -> np.ndarray:
    """Return the items' embeddings, each of length 1."""
    assert settings.embeddings is not None
    place = settings.embeddings
    path = place / EMBEDDINGS if place.is_dir() else place
    rebuild = f"python -m lcrec.embed --data {settings.data} --output {path.parent}"
    vectors = read_array(path)
    require_same_input(path.parent, "item", item_file, rebuild)
    return unit_rows(check_embeddings(vectors, items, path))


def recipe_of(settings: ReinforceSettings, inputs: ReinforceInputs) -> dict[str, Any]:
    """Return what a checkpoint records: the fine-tune's settings, and these behind `reinforce.`."""
    own = config_dict(settings, without=["base"])  # a place: what lies there is known by its hash
    return inputs.recipe | {f"reinforce.{name}": value for name, value in own.items()}
