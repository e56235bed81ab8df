"""How items get their codes; apart from the rest, so that options are read without torch."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from lcrec.core.config import option
from lcrec.core.errors import InputError

WITHOUT_CODEBOOK = ("random", "vanilla")  # kinds whose codes stand for nothing
SMALL = 2000  # items; with fewer, the published 4 levels of 256 codes are too many


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How items get their codes."""

    kind: Literal["rq-vae", "rq-kmeans", "balanced-kmeans", "tiger", "random", "vanilla"] = option(
        "how to index: rq-vae (LC-Rec's), rq-kmeans and balanced-kmeans (no training), tiger (no "
        "uniform mapping, one more token tells apart), random paths, vanilla (a token per item)",
        "rq-vae",
    )
    levels: int | None = option(
        "how many tokens spell an item (default: 4, or 3 where a catalogue has fewer than 2,000)",
        None,
        minimum=1,
    )
    codes: int | None = option(
        "how many codes each level has (default: 256; for fewer than 2,000 items about twice the "
        "root of their number)",
        None,
        minimum=2,
    )
    parity: bool = option(
        "train as the published code does, to compare: its widths, k-means of the first batch, "
        "nothing standardised, dead codes left, last state kept",
        False,
    )
    latent_dim: int | None = option(
        "width of the latent that is quantised (default: the embeddings'; with --parity 32)",
        None,
        minimum=1,
    )
    hidden_dims: list[int] | None = option(
        "widths of the encoder between input and latent (default: 512 256; with --parity 2048 "
        "1024 512 256 128 64)",
        None,
        minimum=1,
    )
    commitment_weight: float = option("weight of the commitment loss (beta)", 0.25, minimum=0)
    sinkhorn_epsilon: list[float] = option(
        "uniform semantic mapping, smaller is stricter and 0 turns it off: one number for the last "
        "level, or one per level",
        [0.003],
        minimum=0,
    )
    epochs: int | None = option(
        "passes over the catalogue at most (default: 60; with --parity 5000)", None, minimum=0
    )
    patience: int = option(
        "stop after this many checks (every 5 epochs) without a gain", 8, minimum=1
    )
    batch_size: int = option("items per step, all processes together", 1024, minimum=2)
    learning_rate: float = option("AdamW's step size", 1e-3, minimum=0)
    weight_decay: float = option("AdamW's weight decay", 1e-4, minimum=0)
    bf16: bool = option("encode and decode in bfloat16 while training", False)
    seed: int = option("decides initialisation and order", 0, minimum=0)

    def for_items(self, items: int) -> Self:
        """Return the settings with the levels and codes that suit so many items, unless given.

        From 2,000 items on they are the published ones, and with `parity` always. A smaller
        catalogue cannot fill 256 codes: most would stand for one item or none, and a prefix that
        belongs to one item says nothing of others.
        """
        levels, codes = 4, 256
        if items < SMALL and not self.parity:
            levels, codes = 3, max(4, 2 ** round(math.log2(2 * math.sqrt(items))))
        return replace(self, levels=self.levels or levels, codes=self.codes or codes)

    @property
    def shape(self) -> tuple[int, int]:
        """Levels and codes, of settings that are for a catalogue (`for_items`)."""
        assert self.levels is not None
        assert self.codes is not None
        return self.levels, self.codes

    @property
    def is_trained(self) -> bool:
        """Whether the kind trains an RQ-VAE."""
        return self.kind in ("rq-vae", "tiger")

    @property
    def has_model(self) -> bool:
        """Whether the codes stand for vectors."""
        return self.kind not in WITHOUT_CODEBOOK

    @property
    def max_epochs(self) -> int:
        """Passes over the items at most."""
        if self.epochs is not None:
            return self.epochs
        return 5000 if self.parity else 60

    def level_epsilons(self) -> list[float]:
        """Return Sinkhorn's epsilon per level; without uniform mapping (`tiger`) it is zero.

        Raises:
            InputError: `sinkhorn_epsilon` is neither one number nor one per level.
        """
        given, (levels, _) = self.sinkhorn_epsilon, self.shape
        if self.kind == "tiger":
            return [0.0] * levels
        if len(given) == levels:
            return given
        if len(given) == 1:
            return [0.0] * (levels - 1) + given
        raise InputError(
            f"--sinkhorn-epsilon: {len(given)} numbers for --levels {levels}; give one for the "
            "last level, or one per level"
        )
