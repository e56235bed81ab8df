"""The residual-quantised autoencoder that turns an item's embedding into a path of codes.

`RQVAE` is LC-Rec's (arXiv 2311.09049, section III-B): an encoder, `ResidualVQ` from
vector-quantize-pytorch, a decoder, and uniform semantic mapping: in training, a level with an
epsilon chooses its codes by `sinkhorn`, which gives every code an equal share of the batch. It
differs from the paper's where that pays: inputs are standardised, encoder and decoder begin as the
principal components beside a perceptron that begins at zero, the codebooks begin as k-means of the
whole catalogue, level by level, so training starts where residual k-means ends, and some items are
reconstructed from a prefix. With `parity` none of this holds, and the model is the published one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from vector_quantize_pytorch import ResidualVQ

from lcrec.core.artifacts import COLLABORATIVE, RQVAE_WEIGHTS, read_array
from lcrec.core.errors import InputError
from lcrec.index.clustering import (
    SLICE,
    balanced_codes,
    nearest_codes,
    residual_kmeans,
    sinkhorn,
    sinkhorn_as_published,
)

ITEMS_PER_PREFIX = 5
SETTINGS = "lcrec"  # the key of the model's shape in the header of its file


@dataclass(frozen=True)
class Losses:
    """One batch's losses, scalars; `total` is what training minimises.

    Attributes:
        quantized: what the items were reconstructed from, [batch, latent_dim]; its gradient is that
            of the latents.
        codes: the codes that were chosen, int64 [batch, levels].
    """

    total: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor
    quantized: Tensor
    codes: Tensor


class RQVAE(nn.Module):
    """Autoencoder with a residual-quantised latent.

    Args:
        input_dim: width of the embeddings.
        hidden_dims: widths between input and latent; the decoder mirrors them.
        latent_dim: width that is quantised.
        num_levels: how many codes spell an item.
        commitment_weight: weight of the commitment loss beside the codebook loss (beta).
        sinkhorn_epsilons: one per level, the entropic regularisation of the balanced choice of
            codes in training; 0, as for all by default, takes the nearest code.
        parity: the published model: plain perceptrons, 50 Sinkhorn iterations at the one epsilon,
            and no commitment gradient from the second level on.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        hidden_dims: Sequence[int],
        latent_dim: int,
        num_levels: int,
        num_codes: int,
        commitment_weight: float = 0.25,
        sinkhorn_epsilons: Sequence[float] = (),
        parity: bool = False,
    ) -> None:
        super().__init__()
        self.epsilons = list(sinkhorn_epsilons) or [0.0] * num_levels
        self.settings: dict[str, Any] = {
            "input_dim": input_dim,
            "hidden_dims": list(hidden_dims),
            "latent_dim": latent_dim,
            "num_levels": num_levels,
            "num_codes": num_codes,
            "commitment_weight": commitment_weight,
            "sinkhorn_epsilons": self.epsilons,
            "parity": parity,
        }
        self.commitment_weight, self.parity = commitment_weight, parity
        self.input_dim, self.num_levels, self.num_codes = input_dim, num_levels, num_codes
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))
        body = _Perceptron if parity else _LinearPlusPerceptron
        self.encoder = body([input_dim, *hidden_dims, latent_dim])
        self.decoder = body([latent_dim, *reversed(hidden_dims), input_dim])
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
        for layer, epsilon in zip(self.quantizer.layers, self.epsilons, strict=True):
            if epsilon > 0:
                layer._codebook.gumbel_sample = _BalancedChoice(epsilon, parity)

    def save(self, path: Path) -> None:
        """Write weights and shape to a safetensors file."""
        weights = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, path, metadata={SETTINGS: json.dumps(self.settings)})

    @classmethod
    def load(cls, path: Path) -> "RQVAE":
        """Read what `save` wrote, on the CPU, ready to encode.

        Raises:
            InputError: the file is missing, or is no such model.
        """
        try:
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {})[SETTINGS])
            model = cls(**settings)
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path}: not an RQ-VAE of this version ({error}); make it with "
                "python -m lcrec.quantize"
            ) from None
        return model.eval()

    def encode(self, embeddings: Tensor) -> Tensor:
        """Return latents [batch, latent_dim] of embeddings [batch, input_dim].

        Raises:
            InputError: embeddings of another width.
        """
        if embeddings.shape[-1] != self.input_dim:
            raise InputError(
                f"the embeddings are {embeddings.shape[-1]} wide, the RQ-VAE was trained on "
                f"{self.input_dim}: embed the items with the encoder it was trained with"
            )
        return self.encoder((embeddings - self.mean) / self.scale)

    @torch.no_grad()
    def encode_all(self, embeddings: Tensor) -> Tensor:
        """Return what `encode` does, without gradients, for any number of items."""
        return torch.cat([self.encode(part) for part in embeddings.split(SLICE)])

    def decode(self, latents: Tensor) -> Tensor:
        """Return embeddings [batch, input_dim] of latents [batch, latent_dim]."""
        return self.decoder(latents) * self.scale + self.mean

    def codebooks(self) -> Tensor:
        """Return the codes' vectors, float32 [levels, codes, latent_dim]."""
        return torch.stack([weight[0] for weight in self.codebook_weights()])

    def codebook_weights(self) -> list[nn.Parameter]:
        """Return what `codebooks` is stacked from, each [1, codes, latent_dim]."""
        return [layer._codebook.embed for layer in self.quantizer.layers]

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return what training minimises (a wrapper for several processes calls only this)."""
        return self.losses(embeddings).total

    def losses(self, embeddings: Tensor) -> Losses:
        """Return the losses of a batch [batch, input_dim].

        Reconstruction is the mean squared error in standardised units; codebook and commitment
        losses are means over levels. Each level's commitment reaches the encoder, since the
        residual subtracts the detached code (the published code cuts levels after the first off).
        In training, one item in `ITEMS_PER_PREFIX` is reconstructed from a prefix of its path:
        first levels that only serve the whole would come to stand for less.
        """
        latents = self.encode(embeddings).float()  # distances in bf16 would mix codes up
        with torch.autocast(latents.device.type, enabled=False):
            _, indices, _ = self.quantizer(latents)
            codes = self.quantizer.get_codes_from_indices(indices)
            codebook = commitment = latents.new_zeros(())
            residual = latents
            for code in codes:
                codebook = codebook + F.mse_loss(code, residual.detach()) / self.num_levels
                commitment = commitment + F.mse_loss(residual, code.detach()) / self.num_levels
                residual = residual - code.detach()
                if self.parity:
                    residual = residual.detach()
            # One straight-through step for the sum of codes: the library's own passes the gradient
            # once per level, which multiplies it by their number.
            quantized = latents + (self._sums(codes) - latents).detach()
        standardised = (embeddings - self.mean) / self.scale
        reconstruction = F.mse_loss(self.decoder(quantized).float(), standardised)
        total = reconstruction + codebook + self.commitment_weight * commitment
        return Losses(total, reconstruction, codebook, commitment, quantized, indices)

    def _sums(self, codes: Tensor) -> Tensor:
        """Return what each item of [levels, batch, dim] is reconstructed from, [batch, dim]."""
        levels, batch, _ = codes.shape
        depth = torch.full((batch,), levels - 1, device=codes.device)
        if self.training and not self.parity and levels > 1:
            # By position, since batches are drawn at random: another draw would have to be kept
            # for training to go on from.
            shortened = depth[::ITEMS_PER_PREFIX]
            shortened[:] = torch.arange(len(shortened), device=codes.device) % (levels - 1)
        return codes.cumsum(0)[depth, torch.arange(batch, device=codes.device)]

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Return the nearest code at each level, int64 [batch, levels], without balancing."""
        return nearest_codes(latents, self.codebooks())

    @torch.no_grad()
    def initialise(
        self,
        embeddings: Tensor,
        seed: int,
        *,
        balanced: Sequence[bool] | None = None,
        weighted: bool = True,
    ) -> Tensor:
        """Start from the whole catalogue's principal components and residual k-means.

        Args:
            embeddings: every item's, float32 [items, input_dim].
            balanced: for each level, whether k-means gives its codes equal shares of the items;
                by default where training does.
            weighted: let k-means count errors relative to what is left of an item.

        Returns:
            The code that k-means gave each item at each level, int64 [items, levels].
        """
        self.mean.copy_(embeddings.mean(0))
        centred = embeddings - self.mean
        # One scale for all columns: standardising each would blow up those that carry noise.
        self.scale.copy_(centred.pow(2).mean().sqrt().clamp_min(1e-8))
        centred /= self.scale
        parts = (part.double() for part in centred.split(SLICE))
        _, vectors = torch.linalg.eigh(sum(part.T @ part for part in parts))
        components = vectors.flip(1)[:, : self.settings["latent_dim"]].T.float()
        assert isinstance(self.encoder, _LinearPlusPerceptron)
        assert isinstance(self.decoder, _LinearPlusPerceptron)
        self.encoder.begin_linear(components)
        self.decoder.begin_linear(components.T)
        balanced = [epsilon > 0 for epsilon in self.epsilons] if balanced is None else balanced
        return self._initialise_codebooks(
            self.encode_all(embeddings), seed, balanced, weighted=weighted
        )

    @torch.no_grad()
    def initialise_as_published(self, batch: Tensor, seed: int) -> None:
        """Start the codebooks from k-means of the first batch [batch, input_dim]."""
        self._initialise_codebooks(self.encode(batch), seed, [False] * self.num_levels)

    def _initialise_codebooks(
        self, latents: Tensor, seed: int, balanced: Sequence[bool], *, weighted: bool = False
    ) -> Tensor:
        codebooks, codes = residual_kmeans(
            latents.cpu().numpy(), self.num_codes, seed, balanced=balanced, weighted=weighted
        )
        for weight, codebook in zip(self.codebook_weights(), codebooks, strict=True):
            weight.copy_(torch.from_numpy(codebook)[None])
        return torch.from_numpy(codes)

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
        for weight in self.codebook_weights():
            codebook = weight[0]
            code = nearest_codes(residual, codebook[None])[:, 0]
            distance = (residual - codebook[code]).norm(dim=1)
            dead = torch.bincount(code, minlength=self.num_codes) == 0
            # An item can fill one code only, and one served exactly needs none.
            count = min(int(dead.sum()), int((distance > 0).sum()))
            if count:
                odds = distance.double().pow(2).cpu()
                chosen = torch.multinomial(odds, count, generator=generator).to(code.device)
                codebook[dead.nonzero()[:count, 0]] = residual[chosen]
                revived += count
                code = nearest_codes(residual, codebook[None])[:, 0]
            residual = residual - codebook[code]
        return revived


class _Perceptron(nn.Module):
    """A ReLU perceptron; no activation after the last layer."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layer = nn.Linear(width_in, width_out)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        self.hidden = nn.Sequential(*layers[:-2])
        self.last = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x))


class _LinearPlusPerceptron(_Perceptron):
    """A linear map plus a ReLU perceptron that starts at zero."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__(widths)
        self.linear = nn.Linear(widths[0], widths[-1])

    def begin_linear(self, weight: Tensor) -> None:
        """Start as `weight` [out, in] alone (fewer rows or columns are filled with zero)."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.linear.weight[: weight.shape[0], : weight.shape[1]] = weight
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + super().forward(x)


class _BalancedChoice:
    """Stands in for ResidualVQ's nearest-code choice: Sinkhorn in training, nearest otherwise.

    Several processes that train together balance their batches as one.
    """

    def __init__(self, epsilon: float, parity: bool) -> None:
        self.epsilon, self.parity = epsilon, parity

    def __call__(
        self, logits: Tensor, dim: int = -1, training: bool = True, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Return indices [1, batch] and their one-hot form for `logits` = -distance."""
        if training:
            index = self._choose(logits[0].detach().square())[None]
        else:
            index = logits.argmax(dim=dim)
        return index, F.one_hot(index, logits.shape[dim]).to(logits.dtype)

    def _choose(self, cost: Tensor) -> Tensor:
        """Return indices [batch] for squared distances [batch, codes]."""
        batch = len(cost)
        rank = 0
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            rank = distributed.get_rank()
            parts = [torch.empty_like(cost) for _ in range(distributed.get_world_size())]
            distributed.all_gather(parts, cost.contiguous())
            cost = torch.cat(parts)
        if self.parity:
            index = sinkhorn_as_published(cost, self.epsilon).log_mass.argmax(dim=1)
        else:
            # Training needs even loads, which `balanced_codes` sees to, not an exact plan.
            plan = sinkhorn(cost, self.epsilon, tolerance=0.05, max_rounds=20)
            index = balanced_codes(plan)
        return index[rank * batch : (rank + 1) * batch]


def read_codebooks(path: Path, level_sizes: tuple[int, ...]) -> Tensor:
    """Read the codes' vectors, float32 [levels, codes, dim], of a trained RQ-VAE.

    Args:
        path: the weights that `lcrec.quantize` wrote.
        level_sizes: how many codes each level of the index has. The last level may be one that
            tells items apart and stands for nothing (`--kind tiger`): it has no vectors.

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
    if not found or found not in (level_sizes, level_sizes[:-1]):
        raise InputError(
            f"{path}: has levels of {list(found)} codes, the index beside it {list(level_sizes)}; "
            "rebuild both with python -m lcrec.quantize"
        )
    return torch.stack(codebooks)


def load_rqvae(folder: Path, embeddings: np.ndarray) -> tuple[RQVAE, np.ndarray]:
    """Return the RQ-VAE in an index folder and what it reads of the items, float32 [items, dim].

    It reads the embeddings, and what was appended to them when the index was made: of an item that
    joined later nothing is known, which zeros say.

    Raises:
        InputError: it was trained on embeddings of another width, what was appended belongs to more
            items than there are, or as `RQVAE.load`.
    """
    points, beside = embeddings, folder / COLLABORATIVE
    if beside.exists():
        known = read_array(beside)
        if known.ndim != 2 or len(known) > len(embeddings):
            raise InputError(
                f"{beside} has shape {list(known.shape)}, and there are {len(embeddings)} items; "
                "make the index anew with python -m lcrec.quantize --collaborative"
            )
        joined = np.zeros((len(embeddings), known.shape[1]), dtype=np.float32)
        joined[: len(known)] = known
        points = np.concatenate([embeddings, joined], axis=1)
    weights, width = folder / RQVAE_WEIGHTS, points.shape[1]
    model = RQVAE.load(weights)
    if width != model.input_dim:
        raise InputError(
            f"--embeddings: {width} wide, but {weights} was trained on {model.input_dim}-wide "
            "ones; name those that the index was made from (python -m lcrec.embed --embeddings OLD "
            "encodes new items as the old were)"
        )
    return model, points


def scale_beside(embeddings: np.ndarray, collaborative: np.ndarray, weight: float) -> np.ndarray:
    """Return collaborative vectors whose variance is `weight` times that of the embeddings.

    Args:
        embeddings: float32 [items, dim].
        collaborative: float32 [items, width]; rows of zeros count as the mean.
        weight: of the whole variance, the sum over columns.
    """
    ours = collaborative.astype(np.float64).var(axis=0).sum()
    theirs = embeddings.astype(np.float64).var(axis=0).sum()
    return (collaborative * np.sqrt(weight * theirs / max(ours, 1e-12))).astype(np.float32)
