"""The one transformer encoder of the methods that read sequences.

Post-norm (Vaswani et al. 2017) with learned absolute positions, as in SASRec, BERT4Rec and S3-Rec:

    x = LN(x + drop(a * attention(x)));  x = LN(x + drop(a * FFN(x))),  FFN of two layers with GELU

The scale a is 1, or learned per sublayer (Bachlechner et al. 2021, ReZero) for methods whose deep
stacks start as the identity. A sequence may be padded on either side; what stands in a padded
place changes no real one.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lcrec.core.errors import InputError

EPSILON = 1e-12  # of the layer norms, as in BERT and RecBole
DEVIATION = 0.02  # of the normal distribution that weights are drawn from, likewise


def initialise(module: nn.Module) -> None:
    """Draw the weights of all linear layers and embeddings below from N(0, .02), biases 0.

    The row of an embedding's padding stays 0.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=DEVIATION)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=DEVIATION)
            if part.padding_idx is not None:
                nn.init.zeros_(part.weight[part.padding_idx])


def allowed_keys(real: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Return which places may look at which: bool [batch, 1, length, length], queries first.

    A place sees real places, itself always (so that a padded one has something to see), and, when
    causal, none later than itself.

    Args:
        real: bool [batch, length], False at padding.
        causal: whether the future is hidden.
    """
    length = real.shape[1]
    allowed = real[:, None, :].expand(-1, length, -1)
    if causal:
        allowed = allowed.tril()
    return (allowed | torch.eye(length, dtype=torch.bool, device=real.device))[:, None]


class Positions(nn.Module):
    """What stands before the blocks: drop(LN(x + position)).

    Args:
        length: the most places a sequence can have.
        dim: numbers per place.
        dropout: share of the sum that is dropped.
    """

    def __init__(self, length: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return [batch, length, dim] from [batch, length, dim]."""
        return self.dropout(self.norm(vectors + self.table.weight[: vectors.shape[1]]))


class Attention(nn.Module):
    """Multi-head attention from one sequence to another or to itself."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"--dim {dim} cannot be split among --heads {heads}; take a multiple")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Return [batch, queries, dim]; see `Block.forward`."""
        query, key, value = (
            layer(side).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, side in ((self.query, x), (self.key, context), (self.value, context))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, dropout_p=dropout
        )
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention, then a feed-forward network, each with its residual and layer norm behind.

    Args:
        dim: numbers per place.
        heads: of the attention; divides `dim`.
        hidden: width of the feed-forward network.
        dropout: share of what a sublayer adds that is dropped.
        attention_dropout: share of attention weights that is dropped.
        residual_scale: where the learned scale of each sublayer starts; None: 1, not learned.

    Raises:
        InputError: `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        attention_dropout: float,
        *,
        residual_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, attention_dropout)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.attention_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.scales: nn.Parameter | None = None
        if residual_scale is not None:
            self.scales = nn.Parameter(torch.full((2,), residual_scale))

    def forward(
        self, x: torch.Tensor, allowed: torch.Tensor, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return [batch, queries, dim].

        Args:
            x: [batch, queries, dim].
            allowed: bool [batch, 1, queries, keys], as `allowed_keys` gives it.
            context: [batch, keys, dim], what is looked at; None: `x` itself.
        """
        added = self.attention(x, x if context is None else context, allowed)
        x = self.attention_norm(x + self.dropout(self._scaled(added, 0)))
        return self.feed_forward_norm(x + self.dropout(self._scaled(self.feed_forward(x), 1)))

    def _scaled(self, added: torch.Tensor, sublayer: int) -> torch.Tensor:
        return added if self.scales is None else added * self.scales[sublayer]


class Encoder(nn.Module):
    """Blocks of self-attention, one after another.

    Args:
        layers: how many blocks.
        shape, residual_scale: the arguments of `Block`.

    Raises:
        InputError: `heads` does not divide `dim`.
    """

    def __init__(self, layers: int, *shape: Any, residual_scale: float | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(*shape, residual_scale=residual_scale) for _ in range(layers)
        )

    @classmethod
    def of(cls, chosen: Any) -> "Encoder":
        """Return the encoder of a method's settings, which name what is given here."""
        shape = (chosen.layers, chosen.dim, chosen.heads, chosen.hidden)
        return cls(*shape, chosen.dropout, chosen.attention_dropout)

    def forward(
        self,
        vectors: torch.Tensor,
        real: torch.Tensor,
        *,
        causal: bool,
        asked: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return a state per place, [batch, length, dim], or of the places asked for, [asked, dim].

        Args:
            vectors: [batch, length, dim], positions already in them.
            real: bool [batch, length], False at padding.
            causal: whether a place sees none later than itself.
            asked: rows and columns of places, row by row, at least one of every row. Where it is
                one, the last block computes that place alone.
        """
        allowed = allowed_keys(real, causal=causal)
        *blocks, last = self.blocks
        for block in blocks:
            vectors = block(vectors, allowed)
        if asked is None:
            return last(vectors, allowed)
        if len(asked[0]) > len(vectors):
            return last(vectors, allowed)[asked]
        rows, columns = asked
        sees = allowed[rows, :, columns]  # [batch, 1, keys]
        return last(vectors[asked][:, None], sees[:, :, None], vectors)[:, 0]
