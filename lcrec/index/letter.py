"""LETTER's two losses beside those of the RQ-VAE (Wang et al. 2024, arXiv 2405.07314).

    L     = L_RQ-VAE + alpha * L_CF + beta * L_Div
    L_CF  = - mean over i of            log exp<z_i, h_i> / sum over items j of exp<z_i, h_j>
    L_Div = - mean over levels and i of log exp<e_i, e_+> / sum over codes e but e_i of exp<e_i, e>

z_i is the quantised vector of an item, h_i its collaborative one: items that the same customers
bought are to have codes alike. e_i is the code that an item has at a level, e_+ another one of the
same cluster of codes: clusters draw together and part from each other, so that codes are used more
evenly. As in the paper, the clusters are even ones by k-means, ten per level.

Two things are not the paper's. Its latent is as wide as the collaborative vectors; here a linear
map, which starts as ridge regression, brings z_i to their width. And products are divided, by the
root of that width in L_CF and by the width of the latent in L_Div: here the inputs are
standardised, and a product of vectors grows with their width.

Items without a collaborative vector (a row of zeros) have no part in L_CF. On several processes
each contrasts the items of its own share of a batch.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lcrec.index.clustering import even_clusters
from lcrec.index.rqvae import RQVAE

CLUSTERS = 10


class Letter(nn.Module):
    """An RQ-VAE in training with both losses.

    Args:
        width: of the collaborative vectors.
        alignment: the weight of L_CF, alpha.
        diversity: the weight of L_Div, beta.
    """

    def __init__(self, model: RQVAE, width: int, alignment: float, diversity: float) -> None:
        super().__init__()
        self.model = model
        self.map = nn.Linear(model.settings["latent_dim"], width)
        self.alignment, self.diversity = alignment, diversity

    @torch.no_grad()
    def initialise(self, embeddings: Tensor, collaborative: Tensor) -> None:
        """Start the map as the ridge regression of the collaborative vectors on the latents.

        Args:
            embeddings: float32 [items, input_dim].
            collaborative: float32 [items, width].
        """
        known = collaborative.any(dim=1)
        latents = self.model.encode_all(embeddings)[known].double()
        gram = latents.T @ latents
        gram.diagonal().add_(max(1, len(latents)))
        solution = torch.linalg.solve(gram, latents.T @ collaborative[known].double())
        self.map.weight.copy_(solution.T)
        nn.init.zeros_(self.map.bias)

    def forward(self, embeddings: Tensor, collaborative: Tensor, partners: Tensor) -> Tensor:
        """Return what training minimises.

        Args:
            embeddings: float32 [batch, input_dim].
            collaborative: float32 [batch, width], rows of zeros where there is none.
            partners: int64 [levels, codes], another code of each code's cluster.
        """
        losses = self.model.losses(embeddings)
        aligned = alignment_loss(self.map(losses.quantized), collaborative)
        diverse = diversity_loss(self.model.codebooks(), losses.codes, partners)
        return losses.total + self.alignment * aligned + self.diversity * diverse


def alignment_loss(mapped: Tensor, collaborative: Tensor) -> Tensor:
    """Return L_CF, a scalar; zero where no item of the batch has a collaborative vector.

    Args:
        mapped: quantised vectors at the width of the collaborative ones, float [batch, width].
        collaborative: float [batch, width].
    """
    known = collaborative.any(dim=1).nonzero()[:, 0]
    products = mapped[known] @ collaborative[known].T / math.sqrt(collaborative.shape[1])
    wanted = torch.arange(len(known), device=known.device)
    # Of no item the sum is zero, but still one of the map's outputs, as several processes need.
    return functional.cross_entropy(products, wanted, reduction="sum") / max(1, len(known))


def diversity_loss(codebooks: Tensor, codes: Tensor, partners: Tensor) -> Tensor:
    """Return L_Div, a scalar, the mean over levels.

    Args:
        codebooks: float [levels, codes, dim].
        codes: int64 [batch, levels], what each item has.
        partners: int64 [levels, codes].
    """
    total = codebooks.new_zeros(())
    for codebook, chosen, partner in zip(codebooks, codes.T, partners, strict=True):
        products = codebook[chosen] @ codebook.T / codebook.shape[1]
        itself = functional.one_hot(chosen, len(codebook)).bool()
        total = total + functional.cross_entropy(
            products.masked_fill(itself, -torch.inf), partner[chosen]
        )
    return total / len(codebooks)


def cluster_codes(model: RQVAE, seed: int) -> np.ndarray:
    """Return the cluster of every code, int64 [levels, codes]: even, of two codes at least."""
    count = max(1, min(CLUSTERS, model.num_codes // 2))
    codebooks = model.codebooks().detach().cpu().numpy()
    return np.stack([even_clusters(codebook, count, seed) for codebook in codebooks])


def draw_partners(clusters: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Draw another code of its cluster for each code, int64 [levels, codes]."""
    partners = np.empty_like(clusters)
    for level, own in enumerate(clusters):
        order = np.lexsort((rng.random(len(own)), own))  # cluster by cluster, shuffled within
        counts = np.bincount(own)
        first = (np.cumsum(counts) - counts)[own[order]]
        place = np.arange(len(own)) - first
        # The next one of the cluster, and after its last the first.
        partners[level, order] = order[first + (place + 1) % counts[own[order]]]
    return torch.from_numpy(partners)
