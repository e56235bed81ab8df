"""Trains the RQ-VAE: on any number of processes, resumable, best state kept.

`train_rqvae` is the training; `save_state` and `load_state` keep its state between two epochs in
one safetensors file.
"""

import copy
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast, broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lcrec.core.artifacts import atomic_path
from lcrec.core.console import ProgressBar
from lcrec.core.version import __version__
from lcrec.index.assignment import shared_rows
from lcrec.index.clustering import SLICE
from lcrec.index.item_index import IndexSettings
from lcrec.index.letter import Letter, cluster_codes, draw_partners
from lcrec.index.rqvae import RQVAE


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        best: the weights with the best score so far, none before the first check.
        best_score: theirs.
        epoch: how many passes over the items are done.
        stale: how many checks have passed since the last worthwhile gain.
    """

    best: dict[str, Tensor]
    best_score: float = float("-inf")
    epoch: int = 0
    stale: int = 0


HIDDEN_WIDTHS = [512, 256]
PUBLISHED_WIDTHS = [2048, 1024, 512, 256, 128, 64]
EPOCHS_PER_CHECK = 5
ALIGNMENT = 0.02  # alpha, the best of LETTER's paper
WORTHWHILE = 1e-3  # a smaller gain of the score does not count against patience
SECONDS_BETWEEN_SAVES = 60


def build_rqvae(settings: IndexSettings, width: int) -> RQVAE:
    """Return the untrained model for embeddings of this width."""
    published, hidden_dims = settings.parity, settings.hidden_dims
    levels, codes = settings.shape
    if hidden_dims is None:
        hidden_dims = PUBLISHED_WIDTHS if published else HIDDEN_WIDTHS
    return RQVAE(
        width,
        hidden_dims=hidden_dims,
        latent_dim=settings.latent_dim or (32 if published else width),
        num_levels=levels,
        num_codes=codes,
        commitment_weight=settings.commitment_weight,
        sinkhorn_epsilons=settings.level_epsilons(),
        parity=published,
    )


def _call(
    settings: IndexSettings, model: RQVAE, embeddings: Tensor, collaborative: Tensor | None
) -> dict[str, Any]:
    """Return what decides the result of training, as JSON values."""
    names = ["patience", "batch_size", "learning_rate", "weight_decay", "seed", "bf16"]
    aligned = {}
    if collaborative is not None:
        names += ["collaborative_weight", "diversity_weight"]
        aligned["collaborative"] = _digest(collaborative)
    return {
        **model.settings,
        "epochs": settings.max_epochs,
        **{name: getattr(settings, name) for name in names},
        "lcrec": __version__,
        "embeddings": _digest(embeddings),
        **aligned,
    }


def _digest(vectors: Tensor) -> str:
    return hashlib.sha256(vectors.contiguous().numpy().data).hexdigest()


def train_rqvae(
    embeddings: Tensor,
    settings: IndexSettings,
    resume_from: Path | None = None,
    collaborative: Tensor | None = None,
) -> RQVAE:
    """Train on all items; return the best model, on the CPU, ready to encode.

    Every `EPOCHS_PER_CHECK` epochs the model is judged by its score: explained variance minus the
    share of items whose nearest path is not theirs alone. Codes that no item uses are then moved
    to items that are badly served. With `parity` none of this happens, and the last state counts.

    Under torchrun or accelerate the processes share each batch, and all return the model. Where
    they divide a batch evenly the result is that of one process up to rounding; a batch that they
    do not is filled up with some of its own items.

    Args:
        embeddings: float32 [items, dim].
        settings: of the model and its training.
        resume_from: a file to keep the state of training in. One that is there is gone on from if
            it was left by the same call, and replaced otherwise. Whoever calls deletes it.
        collaborative: float32 [items, width], to align the quantised vectors with (`Letter`); a row
            of zeros for an item without. Since the score knows nothing of alignment, training then
            goes to its end, and the last state counts.
    """
    settings = settings.for_items(len(embeddings))
    state = PartialState(cpu=not torch.accelerator.is_available())
    # Apple's device has no float64, which balanced codes are found in.
    device = torch.device("cpu") if state.device.type == "mps" else state.device
    seed, parity, epochs = settings.seed, settings.parity, settings.max_epochs
    torch.manual_seed(seed)
    model = build_rqvae(settings, embeddings.shape[1]).to(device)
    trained: nn.Module = model
    letter = None
    if collaborative is not None:
        weight = settings.collaborative_weight
        weight = ALIGNMENT if weight is None else weight
        letter = Letter(model, collaborative.shape[1], weight, settings.diversity_weight)
        trained = letter.to(device)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    call = _call(settings, model, embeddings, collaborative)
    progress = load_state(resume_from, call, trained, optimizer) if resume_from else None
    if progress:
        state.print(f"Going on after epoch {progress.epoch}, from {resume_from}.")
    elif state.is_main_process:  # the others receive its start below
        if resume_from and resume_from.exists():
            print(f"{resume_from} was left by another call: starting anew.")
        model.cpu()
        if parity:
            first = torch.randperm(len(embeddings), generator=_generator(seed, 0))[
                : settings.batch_size
            ]
            model.initialise_as_published(embeddings[first], seed)
        else:
            model.initialise(embeddings, seed)
        model.to(device)
    embeddings = embeddings.to(device)
    if letter is not None and collaborative is not None:
        collaborative = collaborative.to(device)
        if progress is None and state.is_main_process:
            letter.initialise(embeddings, collaborative)
    whole = trained
    if state.num_processes > 1:
        whole = DistributedDataParallel(trained, broadcast_buffers=False)
    if progress is None:
        progress = Progress({})
        if not parity:
            _judge(model, embeddings, progress, state, letter)

    bar = ProgressBar(
        epochs,
        "RQ-VAE",
        "epochs",
        initial=progress.epoch,
        disable=epochs == 0 or not state.is_main_process,
    )
    saved = time.monotonic()
    for epoch in range(progress.epoch + 1, epochs + 1):
        noted: dict[str, str] = {}
        if progress.stale == settings.patience:
            break
        model.train()
        generator = _generator(seed, epoch)
        if letter is not None:
            # Anew each epoch, so that training goes on from any as it would have.
            clusters, rng = cluster_codes(model, seed), np.random.default_rng([seed, epoch])
        for batch in torch.randperm(len(embeddings), generator=generator).split(
            settings.batch_size
        ):
            # Equal shares, so that the mean of the processes' gradients is the batch's.
            filled = -(-len(batch) // state.num_processes) * state.num_processes
            rows = torch.arange(state.process_index, filled, state.num_processes) % len(batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
                if collaborative is None:
                    loss = whole(embeddings[batch[rows]])
                else:
                    partners = draw_partners(clusters, rng).to(device)
                    own = batch[rows]
                    loss = whole(embeddings[own], collaborative[own], partners)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress.epoch = epoch
        if not parity and (epoch % EPOCHS_PER_CHECK == 0 or epoch == epochs):
            model.eval()
            score = _judge(model, embeddings, progress, state, letter)
            noted = {"loss": f"{loss.item():.3f}", "score": f"{score:.3f}"}
            if state.is_main_process:
                model.revive_dead_codes(model.encode_all(embeddings), generator)
            for codebook in model.codebook_weights():
                broadcast(codebook.data)
        bar.update(**noted)
        due = time.monotonic() - saved >= SECONDS_BETWEEN_SAVES
        if resume_from and due and state.is_main_process:
            save_state(resume_from, call, progress, trained, optimizer)
            saved = time.monotonic()
    bar.close()
    if not parity:
        model.load_state_dict(progress.best)
    return model.cpu().eval()


def _generator(seed: int, epoch: int) -> torch.Generator:
    """Return the epoch's own source of chance: training can go on from any epoch."""
    (mixed,) = np.random.SeedSequence([seed, epoch]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


def _judge(
    model: RQVAE, embeddings: Tensor, progress: Progress, state: PartialState, letter: Letter | None
) -> float:
    """Score the model, keep it where it is the best or aligned by `letter`, and return the score.

    The main process decides for all: rounding on their devices must not part them.
    """
    scores = [_score(model, embeddings) if state.is_main_process else 0.0]
    score = broadcast_object_list(scores)[0]
    gain = score - progress.best_score
    progress.stale = 0 if gain > WORTHWHILE or letter is not None else progress.stale + 1
    if gain > 0 or letter is not None:
        progress.best_score, progress.best = score, copy.deepcopy(model.state_dict())
    return score


def _score(model: RQVAE, embeddings: Tensor) -> float:
    codes = model.nearest_codes(model.encode_all(embeddings))
    conflicts = float(shared_rows(codes.cpu().numpy()).mean())
    return explained_variance(model, embeddings, codes)[-1] - conflicts


@torch.no_grad()
def explained_variance(
    model: RQVAE, embeddings: Tensor, codes: Tensor | None = None
) -> list[float]:
    """Return the share of the embeddings' variance explained after each level.

    Args:
        embeddings: float32 [items, dim], on the model's device.
        codes: int64 [items, levels], there too; the nearest ones by default.
    """
    codebooks, mean = model.codebooks(), embeddings.mean(0)
    total, errors = 0.0, [0.0] * len(codebooks)
    for start in range(0, len(embeddings), SLICE):
        part = embeddings[start : start + SLICE]
        latents = model.encode(part)
        chosen = model.nearest_codes(latents) if codes is None else codes[start : start + SLICE]
        total += (part - mean).double().pow(2).sum().item()
        quantized = torch.zeros_like(latents)
        for level, codebook in enumerate(codebooks):
            quantized = quantized + codebook[chosen[:, level]]
            errors[level] += (model.decode(quantized) - part).double().pow(2).sum().item()
    return [1 - error / max(total, 1e-12) for error in errors]


HEADER = "lcrec"


def save_state(
    path: Path,
    call: Mapping[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that `load_state` needs to go on from here.

    Args:
        path: the file; what stands there stays whole until the new one is complete.
        call: what decides the result of training, as JSON values.
    """
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.best.items()}
    tensors |= {
        f"optimizer.{weight}.{name}": value
        for weight, values in moments.items()
        for name, value in values.items()
    }
    header = {
        "call": call,
        "best_score": progress.best_score,
        "epoch": progress.epoch,
        "stale": progress.stale,
    }
    # Copies, since a file holds no two tensors that share their memory.
    tensors = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})


def load_state(
    path: Path, call: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Bring model and optimizer to the state in a file, and return how far that is.

    Returns None, with both as they were, for a file that is missing, was left by another call or
    by another version, or is no such state: training can only start anew then.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
        if header["call"] != json.loads(json.dumps(call)):
            return None
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        weight, kind = name.split(".")
        moments.setdefault(int(weight), {})[kind] = value
    model.load_state_dict(part("model."))
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return Progress(part("best."), header["best_score"], header["epoch"], header["stale"])
