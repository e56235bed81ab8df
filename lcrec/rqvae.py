"""The residual-quantised autoencoder that turns an item's embedding into a path of codes.

`RQVAE` is LC-Rec's (arXiv 2311.09049, section III-B): an encoder, `ResidualVQ` from
vector-quantize-pytorch, a decoder, and uniform semantic mapping: during training the last level
chooses its codes by `sinkhorn`, which gives every code an equal share of the batch. It differs
from the paper's where that pays: inputs are standardised, encoder and decoder begin as the
principal components beside a perceptron that begins at zero, and the codebooks begin as k-means
of the whole catalogue, level by level, so training starts where residual k-means ends.

Public names: `RQVAE`, `Losses`, `read_codebooks`, `sinkhorn`.
"""

from dataclasses import dataclass
from itertools import count, pairwise, takewhile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import ResidualVQ

from lcrec.errors import InputError

SINKHORN_ITERATIONS = 50


@dataclass(frozen=True)
class Losses:
    """One batch's losses, scalars; `total` is what training minimises."""

    total: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor


class RQVAE(nn.Module):
    """Autoencoder with a residual-quantised latent.

    Args:
        input_dim: width of the embeddings.
        hidden_dims: widths between input and latent; the decoder mirrors them.
        latent_dim: width that is quantised.
        num_levels: how many codes spell an item.
        num_codes: how many codes each level has.
        commitment_weight: weight of the commitment loss beside the codebook loss (beta).
        sinkhorn_epsilon: entropic regularisation of the last level's balanced assignment in
            training; 0 takes the nearest code there too.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        hidden_dims: list[int],
        latent_dim: int,
        num_levels: int,
        num_codes: int,
        commitment_weight: float = 0.25,
        sinkhorn_epsilon: float = 0.003,
    ) -> None:
        super().__init__()
        self.commitment_weight = commitment_weight
        self.num_levels, self.num_codes = num_levels, num_codes
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))
        self.encoder = _LinearPlusPerceptron([input_dim, *hidden_dims, latent_dim])
        self.decoder = _LinearPlusPerceptron([latent_dim, *reversed(hidden_dims), input_dim])
        self.quantizer = ResidualVQ(
            dim=latent_dim,
            num_quantizers=num_levels,
            codebook_size=num_codes,
            learnable_codebook=True,
            ema_update=False,
            rotation_trick=False,
            # The library's loss is beta times one MSE into both sides; `losses` has the paper's.
            commitment_weight=0.0,
        )
        if sinkhorn_epsilon > 0:
            self.quantizer.layers[-1]._codebook.gumbel_sample = _BalancedChoice(sinkhorn_epsilon)

    def encode(self, embeddings: Tensor) -> Tensor:
        """Return latents [batch, latent_dim] of embeddings [batch, input_dim]."""
        return self.encoder((embeddings - self.mean) / self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Return embeddings [batch, input_dim] of latents [batch, latent_dim]."""
        return self.decoder(latents) * self.scale + self.mean

    def codebooks(self) -> Tensor:
        """Return the codes' vectors, float32 [levels, codes, latent_dim]."""
        return torch.stack([layer._codebook.embed[0] for layer in self.quantizer.layers])

    def losses(self, embeddings: Tensor) -> Losses:
        """Return the losses of a batch [batch, input_dim].

        Reconstruction is the mean squared error in standardised units; codebook and commitment
        losses are means over levels. Each level's commitment reaches the encoder, since the
        residual subtracts the detached code (the published code cuts levels after the first off).
        """
        latents = self.encode(embeddings)
        _, indices, _ = self.quantizer(latents)
        codes = self.quantizer.get_codes_from_indices(indices)
        codebook = commitment = latents.new_zeros(())
        residual = latents
        for code in codes:
            codebook = codebook + F.mse_loss(code, residual.detach()) / self.num_levels
            commitment = commitment + F.mse_loss(residual, code.detach()) / self.num_levels
            residual = residual - code.detach()
        # One straight-through step for the sum of codes: the library's own passes the gradient
        # once per level, which multiplies it by their number.
        quantized = latents + (codes.sum(0) - latents).detach()
        standardised = (embeddings - self.mean) / self.scale
        reconstruction = F.mse_loss(self.decoder(quantized), standardised)
        total = reconstruction + codebook + self.commitment_weight * commitment
        return Losses(total, reconstruction, codebook, commitment)

    @torch.no_grad()
    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Return the nearest code at each level, int64 [batch, levels], without balancing."""
        residual, chosen = latents, []
        for codebook in self.codebooks():
            code = torch.cdist(residual, codebook).argmin(dim=1)
            residual = residual - codebook[code]
            chosen.append(code)
        return torch.stack(chosen, dim=1)

    @torch.no_grad()
    def initialise(self, embeddings: Tensor, seed: int) -> None:
        """Start from the whole catalogue's principal components and residual k-means.

        Args:
            embeddings: every item's, float32 [items, input_dim].
            seed: decides the k-means starts.
        """
        self.mean.copy_(embeddings.mean(0))
        centred = embeddings - self.mean
        # One scale for all columns: standardising each would blow up those that carry noise.
        self.scale.copy_(centred.pow(2).mean().sqrt().clamp_min(1e-8))
        centred /= self.scale
        latent_dim = self.encoder.linear.out_features
        _, vectors = torch.linalg.eigh(centred.T.double() @ centred.double())
        components = vectors.flip(1)[:, :latent_dim].T.float()
        self.encoder.begin_linear(components)
        self.decoder.begin_linear(components.T)

        residual = self.encode(embeddings).numpy()
        for level, layer in enumerate(self.quantizer.layers):
            centres = _centres(residual, self.num_codes, seed + level)
            layer._codebook.embed.copy_(torch.from_numpy(centres)[None])
            distance = torch.cdist(torch.from_numpy(residual), torch.from_numpy(centres))
            residual = residual - centres[distance.argmin(1).numpy()]

    @torch.no_grad()
    def revive_dead_codes(self, latents: Tensor, generator: torch.Generator) -> int:
        """Move every code that no item uses to the residual of a poorly served item.

        Args:
            latents: every item's, [items, latent_dim].
            generator: decides which of the poorly served items.

        Returns:
            How many codes were moved, all levels together.
        """
        revived, residual = 0, latents
        for layer in self.quantizer.layers:
            codebook = layer._codebook.embed[0]
            distance, code = torch.cdist(residual, codebook).min(dim=1)
            dead = torch.bincount(code, minlength=self.num_codes) == 0
            # An item can fill one code only, and one served exactly needs none.
            count = min(int(dead.sum()), int((distance > 0).sum()))
            if count:
                chosen = torch.multinomial(distance.pow(2), count, generator=generator)
                codebook[dead.nonzero()[:count, 0]] = residual[chosen]
                revived += count
                code = torch.cdist(residual, codebook).argmin(dim=1)
            residual = residual - codebook[code]
        return revived


class _LinearPlusPerceptron(nn.Module):
    """A linear map plus a ReLU perceptron that starts at zero."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(widths[0], widths[-1])
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layer = nn.Linear(width_in, width_out)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        self.hidden = nn.Sequential(*layers[:-2])
        self.last = layer

    def begin_linear(self, weight: Tensor) -> None:
        """Start as `weight` [out, in] alone (fewer rows or columns are filled with zero)."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.linear.weight[: weight.shape[0], : weight.shape[1]] = weight
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.last(self.hidden(x))


class _BalancedChoice:
    """Stands in for ResidualVQ's nearest-code choice: Sinkhorn in training, nearest otherwise."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(
        self, logits: Tensor, dim: int = -1, training: bool = True, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Return indices [1, batch] and their one-hot form for `logits` = -distance."""
        if training:
            index = sinkhorn(-logits[0].detach(), self.epsilon).argmax(dim=dim)[None]
        else:
            index = logits.argmax(dim=dim)
        return index, F.one_hot(index, logits.shape[dim]).to(logits.dtype)


def read_codebooks(path: Path, level_sizes: tuple[int, ...]) -> Tensor:
    """Read the codes' vectors, float32 [levels, codes, dim], of a trained RQ-VAE.

    Args:
        path: the weights that `lcrec.quantize` wrote.
        level_sizes: how many codes each level of the index has.

    Raises:
        InputError: the file is missing, or does not belong to such an index.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it with lcrec.quantize") from None
    names = (f"quantizer.layers.{level}._codebook.embed" for level in count())
    codebooks = [weights[name][0] for name in takewhile(weights.__contains__, names)]
    found = tuple(len(codebook) for codebook in codebooks)
    if found != level_sizes:
        raise InputError(
            f"{path}: has levels of {list(found)} codes, the index beside it {list(level_sizes)}; "
            "rebuild both with python -m lcrec.quantize"
        )
    return torch.stack(codebooks)


def sinkhorn(cost: Tensor, epsilon: float, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Return the log of the balanced transport plan between a batch and a codebook.

    Every column carries mass 1/codes and every row 1/batch, the rows as nearly as the iterations
    allow. Costs are scaled to [-1, 1] first, as in the paper's code; all work is in the log domain,
    which cannot overflow for a small epsilon.

    Args:
        cost: float [batch, codes], any finite values.
        epsilon: entropic regularisation, > 0; smaller is closer to the exact assignment.
        iterations: alternations of column and row normalisation.
    """
    batch, codes = cost.shape
    low, high = cost.min(), cost.max()
    scaled = (cost - (low + high) / 2) / ((high - low) / 2 + 1e-5)
    log_plan = -scaled / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True) - np.log(batch)
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True) - np.log(codes)
    return log_plan


def _centres(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return k-means centres, float32 [count, dim]; too few points are repeated with noise."""
    distinct = np.unique(points, axis=0)
    if len(distinct) > count:
        fitted = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit(points)
        return fitted.cluster_centers_.astype(np.float32)
    rng = np.random.default_rng(seed)
    spare = distinct[rng.integers(len(distinct), size=count - len(distinct))]
    noise = rng.normal(scale=max(points.std(), 1e-3) * 0.1, size=spare.shape)
    return np.concatenate([distinct, spare + noise]).astype(np.float32)
