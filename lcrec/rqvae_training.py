"""Training of the RQ-VAE: on any number of processes, resumable, best state kept.

Public names: `train_rqvae`, `explained_variance`, `PUBLISHED_WIDTHS`.
"""

import copy
from pathlib import Path

import torch
from accelerate.state import PartialState
from torch import Tensor
from tqdm import tqdm

from lcrec.assignment import shared_rows
from lcrec.rqvae import RQVAE

PUBLISHED_WIDTHS = [2048, 1024, 512, 256, 128, 64]
EPOCHS_PER_CHECK = 5
WORTHWHILE = 1e-3  # a smaller gain of the score does not count against patience
SECONDS_BETWEEN_SAVES = 30


def train_rqvae(
    embeddings: Tensor,
    *,
    num_levels: int,
    num_codes: int,
    latent_dim: int,
    hidden_dims: list[int],
    commitment_weight: float,
    sinkhorn_epsilons: list[float],
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    parity: bool = False,
    bf16: bool = False,
    resume_from: Path | None = None,
) -> RQVAE:
    """Train on all items; return the best model, on the CPU, ready to encode.

    Every `EPOCHS_PER_CHECK` epochs the model is judged by its score: explained variance minus the
    share of items whose nearest path is not theirs alone. Codes that no item uses are then moved
    to items that are badly served. With `parity` none of this happens, and the last state counts.

    Under torchrun or accelerate the processes share each batch; the result is that of one process
    up to rounding.

    Args:
        embeddings: float32 [items, dim].
        num_levels, num_codes, latent_dim, hidden_dims: the model's shape.
        commitment_weight, sinkhorn_epsilons: the model's losses and balanced levels.
        epochs: passes over the items at most.
        patience: checks without a gain of `WORTHWHILE` before training stops.
        batch_size: items per step, all processes together.
        learning_rate, weight_decay: AdamW's.
        seed: decides the result on a given machine.
        parity: train as the published code does.
        bf16: encode and decode in bfloat16; distances and losses stay in float32.
        resume_from: a file to keep the state of training in. One that is there is gone on from if
            it was left by the same call, and replaced otherwise. Whoever calls deletes it.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    device = state.device
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RQVAE(
        embeddings.shape[1],
        hidden_dims=hidden_dims,
        latent_dim=latent_dim,
        num_levels=num_levels,
        num_codes=num_codes,
        commitment_weight=commitment_weight,
        sinkhorn_epsilons=sinkhorn_epsilons,
        parity=parity,
    )
    if parity:
        first = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))
        model.initialise_as_published(embeddings[first[:batch_size]], seed)
    else:
        model.initialise(embeddings, seed)
    model.to(device)
    embeddings = embeddings.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best, best_score = copy.deepcopy(model.state_dict()), _score(model, embeddings)
    stale = 0
    bar = tqdm(range(1, epochs + 1), desc="RQ-VAE", unit="epoch", disable=epochs == 0)
    for epoch in bar:
        model.train()
        for batch in torch.randperm(len(embeddings), generator=generator).split(batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(embeddings[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if parity or (epoch % EPOCHS_PER_CHECK and epoch != epochs):
            continue
        model.eval()
        score = _score(model, embeddings)
        bar.set_postfix(loss=f"{loss.item():.3f}", score=f"{score:.3f}")
        stale = 0 if score > best_score + WORTHWHILE else stale + 1
        if score > best_score:
            best, best_score = copy.deepcopy(model.state_dict()), score
        if stale == patience:
            bar.close()
            break
        model.revive_dead_codes(model.encode_all(embeddings), generator)
    if not parity:
        model.load_state_dict(best)
    return model.cpu().eval()


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
        model: the autoencoder.
        embeddings: float32 [items, dim].
        codes: int64 [items, levels]; the nearest ones by default.
    """
    latents = model.encode_all(embeddings)
    codes = model.nearest_codes(latents) if codes is None else codes
    total = (embeddings - embeddings.mean(0)).pow(2).sum().clamp_min(1e-12)
    quantized, shares = torch.zeros_like(latents), []
    for level, codebook in enumerate(model.codebooks()):
        quantized = quantized + codebook[codes[:, level]]
        error = (model.decode(quantized) - embeddings).pow(2).sum()
        shares.append(1 - (error / total).item())
    return shares
