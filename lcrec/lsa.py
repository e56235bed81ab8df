"""Latent semantic vectors of texts: TF-IDF and a truncated SVD, which need no weights.

`fit_lsa` learns the words and the projection from a catalogue's texts (Deerwester et al. 1990).
What it learnt is kept beside the embeddings, so that items which join later are projected as the
old ones were: `lsa.safetensors` (inverse document frequencies and components) and `lsa.json` (the
terms, in the order of their columns).

Public names: `Lsa`, `fit_lsa`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from lcrec.core.artifacts import LSA_TERMS, LSA_WEIGHTS, atomic_path, read_json, write_json
from lcrec.core.errors import InputError


@dataclass(frozen=True)
class Lsa:
    """A fitted projection from texts to vectors.

    Attributes:
        terms: words and word pairs, one per column.
        idf: float32 [terms], inverse document frequencies.
        components: float32 [dim, terms], the right singular vectors.
    """

    terms: list[str]
    idf: np.ndarray
    components: np.ndarray

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return float32 [texts, dim] of unit length; zero for a text without a known term."""
        weigh = _vectorizer(vocabulary=self.terms)
        weigh.idf_ = self.idf.astype(np.float64)
        vectors = weigh.transform(texts) @ self.components.T.astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write `lsa.safetensors` and `lsa.json`."""
        write_json(folder / LSA_TERMS, self.terms)
        with atomic_path(folder / LSA_WEIGHTS) as temporary:
            save_file({"idf": self.idf, "components": self.components}, temporary)

    @classmethod
    def load(cls, folder: Path) -> "Lsa":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or damaged, or the two do not belong together.
        """
        path = folder / LSA_WEIGHTS
        remedy = "make the embeddings anew with python -m lcrec.embed, and what was made from them"
        terms = read_json(folder / LSA_TERMS) if (folder / LSA_TERMS).exists() else None
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error}); {remedy}") from None
        if (
            isinstance(terms, list)
            and all(isinstance(term, str) for term in terms)
            and weights.keys() == {"idf", "components"}
            and weights["idf"].shape == (len(terms),)
            and weights["components"].shape[1:] == (len(terms),)
        ):
            return cls(terms, weights["idf"], weights["components"])
        raise InputError(f"{path}: does not belong to the {LSA_TERMS} beside it; {remedy}")


def fit_lsa(texts: list[str], dim: int, seed: int) -> Lsa:
    """Learn the projection from a catalogue's texts.

    Args:
        texts: all of them.
        dim: width of the vectors; less where there are fewer texts or terms.
        seed: decides the SVD's start.

    Raises:
        InputError: the texts hold too little to learn from.
    """
    weigh = _vectorizer()
    try:
        weights = weigh.fit_transform(texts)
    except ValueError:
        raise InputError(
            "lsa finds no words of two letters or more in the items' text; use --encoder MODEL"
        ) from None
    dim = min(dim, *(size - 1 for size in weights.shape))
    if dim < 1:
        raise InputError("lsa needs at least 2 texts and 2 different words; use --encoder MODEL")
    svd = TruncatedSVD(dim, random_state=seed).fit(weights)
    return Lsa(
        weigh.get_feature_names_out().tolist(),
        weigh.idf_.astype(np.float32),
        np.ascontiguousarray(svd.components_, dtype=np.float32),
    )


def _vectorizer(vocabulary: list[str] | None = None) -> TfidfVectorizer:
    limit = 200_000 if vocabulary is None else None
    return TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), max_features=limit, vocabulary=vocabulary
    )
