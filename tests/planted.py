"""Interactions, text vectors and codes whose truth is known, to test what methods make of each.

Text and behaviour agree in some factors and each has others of its own; how many is a switch. The
process, whole:

1. Every item has `shared`, `private_behaviour` and `private_text` factors, standard normal.
2. Its behaviour is [shared, private behaviour]. Its text vector is a random rotation of [shared,
   private text], plus normal noise of deviation `noise`.
3. Every user has a standard normal vector over the behaviour factors. A user draws one item after
   another, none twice, by a softmax over items of

       (taste * user + follow * behaviour of the user's last item) . behaviour / sqrt(d)

   with d behaviour factors: so `taste` and `follow` are about the deviations of the two parts.
4. Users have 5 items or more, `mean_length` on average. Cold items are drawn by nobody but by
   every second user as the very last item, where that user draws among cold items alone.

So a text tells shared / (shared + private behaviour) of the variance of its item's behaviour,
by a linear map, and nothing can read more off it.

Reads and writes nothing.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lcrec.core.artifacts import METHOD_WEIGHTS, find_data, write_json
from lcrec.core.provenance import write_provenance
from lcrec.data.folder import Interactions

MIN_LENGTH = 5


@dataclass(frozen=True)
class Planted:
    """What was drawn, and what from.

    Attributes:
        interactions: the users' sequences, oldest item first.
        num_items: the size of the catalogue.
        embeddings: float32 [items, shared + private text], the text vectors.
        behaviour: float32 [items, shared + private behaviour], the shared factors first.
        users: float32 [users, shared + private behaviour], what each user likes.
        cold: int64 [cold], ids of the items that stand in last places alone, rising.
    """

    interactions: Interactions
    num_items: int
    embeddings: np.ndarray
    behaviour: np.ndarray
    users: np.ndarray
    cold: np.ndarray


def make_planted(
    *,
    users: int = 1500,
    items: int = 400,
    shared: int = 8,
    private_text: int = 24,
    private_behaviour: int = 8,
    noise: float = 0.1,
    taste: float = 4.0,
    follow: float = 0.0,
    mean_length: float = 10.0,
    cold: int = 0,
    seed: int = 0,
) -> Planted:
    """Draw a catalogue, its users and their sequences; the same seed draws the same.

    Args:
        users: how many users.
        items: how many items, the cold ones among them.
        shared: factors that text and behaviour share.
        private_text: factors that only the text has.
        private_behaviour: factors that only the behaviour has.
        noise: deviation of the noise on every number of a text vector.
        taste: how much users follow their taste; 0: they draw anything.
        follow: how much the next item is like the last one; 0: the order says nothing.
        mean_length: items per user, at least 5; lengths are 5 plus a Poisson number.
        cold: how many items are cold.
        seed: of all draws.
    """
    behaviour_dim, text_dim = shared + private_behaviour, shared + private_text
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(items, shared))
    behaviour = np.hstack((common, rng.normal(size=(items, private_behaviour))))
    text = np.hstack((common, rng.normal(size=(items, private_text))))
    rotation, _ = np.linalg.qr(rng.normal(size=(text_dim, text_dim)))
    embeddings = text @ rotation + noise * rng.normal(size=text.shape)
    likes = rng.normal(size=(users, behaviour_dim))
    lengths = MIN_LENGTH + rng.poisson(mean_length - MIN_LENGTH, users)
    is_cold = np.zeros(items, dtype=bool)
    is_cold[rng.choice(items, size=cold, replace=False)] = True

    rows = _draw(
        taste * likes @ behaviour.T / behaviour_dim**0.5,
        follow * behaviour / behaviour_dim**0.5,
        behaviour,
        lengths,
        is_cold,
        (np.arange(users) % 2 == 0) & (cold > 0),
        rng,
    )
    return Planted(
        Interactions.from_sequences({f"u{user}": row for user, row in enumerate(rows)}),
        items,
        embeddings.astype(np.float32),
        behaviour.astype(np.float32),
        likes.astype(np.float32),
        np.flatnonzero(is_cold),
    )


def _draw(
    liking: np.ndarray,
    following: np.ndarray,
    behaviour: np.ndarray,
    lengths: np.ndarray,
    is_cold: np.ndarray,
    ends_cold: np.ndarray,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Return the sequences of users whose liking [users, items] is given."""
    users = np.arange(len(liking))
    sequences: list[list[int]] = [[] for _ in users]
    barred = np.tile(is_cold, (len(users), 1))
    last = None
    for step in range(lengths.max()):
        logits = liking if last is None else liking + following[last] @ behaviour.T
        now = barred
        if (ending := ends_cold & (step == lengths - 1)).any():
            now = barred.copy()
            now[ending] = ~is_cold
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        noisy = np.where(now, -np.inf, logits + rng.gumbel(size=logits.shape))
        last = noisy.argmax(axis=1)
        barred[users, last] = True
        for user in users[step < lengths]:
            sequences[user].append(int(last[user]))
    return sequences


def toy_clusters(seed=0):
    """Return float32 [64, 6]: 4 clusters far apart, each of 4 nearer ones, each of 4 points."""
    import torch

    rng = np.random.default_rng(seed)
    coarse, fine = rng.normal(size=(4, 6)) * 10, rng.normal(size=(4, 6))
    centres = np.array([a + b for a, b in itertools.product(coarse, fine)])
    points = np.repeat(centres, 4, axis=0)
    return torch.from_numpy(points + 0.02 * rng.normal(size=points.shape)).float()


def identity_rqvae(*codebooks):
    """Return an RQ-VAE whose latents are the embeddings, with codebooks [codes, dim] per level."""
    import torch

    from lcrec.index.rqvae import RQVAE

    books = torch.tensor(codebooks, dtype=torch.float32)
    levels, codes, dim = books.shape
    model = RQVAE(dim, hidden_dims=[], latent_dim=dim, num_levels=levels, num_codes=codes).eval()
    with torch.no_grad():
        for side in (model.encoder, model.decoder):
            side.begin_linear(torch.eye(dim))
            torch.nn.init.zeros_(side.last.bias)
    for layer, book in zip(model.quantizer.layers, books, strict=True):
        layer._codebook.embed.data = book[None]
    return model


def write_data(folder, sequences, items=None, name="Shop"):
    """Write a data folder and return it; `items` are their fields, or how many things there are."""
    write_json(folder / f"{name}.inter.json", sequences)
    if isinstance(items, int):
        items = [{"title": f"thing {item}"} for item in range(items)]
    if items is not None:
        catalogue = {str(item): fields for item, fields in enumerate(items)}
        write_json(folder / f"{name}.item.json", catalogue)
    return folder


def save_baseline(folder: Path, data: Path, method: str = "lightgcn", **state: np.ndarray) -> None:
    """Write what `lcrec baselines METHOD --save` would, of the data folder's interactions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / METHOD_WEIGHTS)
    paths = find_data(data)
    inputs = {"item": paths.item, **paths.sequences}
    write_provenance(folder, f"python -m lcrec.baselines {method}", {}, inputs)
