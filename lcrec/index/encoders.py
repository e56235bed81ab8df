"""What turns text into vectors: latent semantic analysis, or a language model.

Reads encoders' weights; writes nothing. `lcrec.embed` encodes the items with it, and whoever has
another text to compare with them takes `encoder_of` their embeddings.

Latent semantic vectors of texts: TF-IDF and a truncated SVD, which need no weights.

`fit_lsa` learns the words and the projection from a catalogue's texts (Deerwester et al. 1990).
What it learnt is kept beside the embeddings, so that items which join later are projected as the
old ones were: `lsa.safetensors` (inverse document frequencies and components) and `lsa.json` (the
terms, in the order of their columns).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.state import PartialState
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from lcrec.core.artifacts import LSA_TERMS, LSA_WEIGHTS, atomic_path, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.pretrained import ENCODER, encoder_part, load_pair, position_limit, reason_of
from lcrec.core.provenance import read_provenance, require_same_input
from lcrec.data.folder import Items

Encoder = Callable[[list[str]], np.ndarray]


def collect_texts(items: Items, fields: list[str], *, joined: bool) -> tuple[list[str], np.ndarray]:
    """Return the non-empty texts to encode and the item each belongs to, int64 [texts].

    Raises:
        InputError: a field that no item has, or an item with no text in any of the fields.
    """
    known = sorted({name for entry in items.fields for name, text in entry.items() if text})
    for field in fields:
        if field not in known:
            raise InputError(
                f"--fields {field}: no item has any; the catalogue has {', '.join(known)}"
            )
    texts, owners = [], []
    for item in range(len(items)):
        parts = [text for field in fields if (text := items.text(item, field))]
        if not parts:
            raise InputError(
                f"item {item} has no text in {' or '.join(fields)}; give --fields another that it "
                "has, or leave the item out with python -m lcrec.prepare"
            )
        parts = ["\n".join(parts)] if joined else parts
        texts += parts
        owners += [item] * len(parts)
    return texts, np.asarray(owners)


def mean_by_owner(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return the mean of each owner's values, in the order of the owners who have some.

    Args:
        values: float `[values, ...]`, such as the vectors of texts.
        owners: int `[values]`, whose each is.

    Returns:
        float64 `[owners with a value, ...]`.
    """
    counts = np.bincount(owners)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, owners, values)
    some = counts > 0
    return sums[some] / counts[some].reshape(-1, *[1] * (values.ndim - 1))


def load_encoder(name: str, max_tokens: int, batch_tokens: int) -> Encoder:
    """Return a function from texts to vectors, float32 [texts, dim].

    A folder with `modules.json`, or a hub name that starts with `sentence-transformers/`, is read
    by sentence-transformers, which knows that model's own pooling; anything else by transformers.

    Raises:
        InputError: the model cannot be loaded, or the package it needs is missing.
    """
    device = PartialState().device
    if (Path(name) / "modules.json").exists() or name.startswith("sentence-transformers/"):
        try:
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(name, device=str(device), trust_remote_code=False)
        except ImportError:
            raise InputError(
                f"--encoder {name} needs a package: pip install 'lcrec[encoders]'"
            ) from None
        except Exception as error:  # whatever a damaged folder brings about
            raise InputError(f"--encoder {name}: cannot be loaded ({reason_of(error)})") from None
        max_tokens = min(max_tokens, position_limit(model) or max_tokens)
        model.max_seq_length = min(model.max_seq_length or max_tokens, max_tokens)

        def encode(texts: list[str]) -> np.ndarray:
            return model.encode(texts, batch_size=64, show_progress_bar=False)

        return encode
    encoder, tokenizer = load_pair("--encoder", name, ENCODER, dtype="auto")
    encoder = encoder_part(encoder).to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # On the left, padding would move the text to other positions.
    tokenizer.padding_side = "right"
    max_tokens = min(max_tokens, tokenizer.model_max_length, position_limit(encoder) or max_tokens)

    @torch.inference_mode()
    def encode_mean(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
        vectors: list[np.ndarray] = []
        # Neighbours in `texts` are alike in length, so little is padded.
        size = max(1, batch_tokens // max(map(len, ids)))
        for start in range(0, len(ids), size):
            batch = tokenizer.pad({"input_ids": ids[start : start + size]}, return_tensors="pt")
            batch = batch.to(device)
            hidden = encoder(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
            vectors.append(pooled.cpu().numpy())
        return np.concatenate(vectors)

    return encode_mean


def encoder_of(embeddings: Path, name: str | None = None) -> Encoder:
    """Return the encoder that an embeddings folder was made with, for other texts.

    Args:
        embeddings: what `lcrec.embed` wrote.
        name: where the encoder lies now; None for where it was.

    Raises:
        InputError: the folder does not say how it was made, or the encoder is gone or another one.
    """
    record = read_provenance(embeddings) if embeddings.is_dir() else None
    settings = record["config"] if record else {}
    if not settings.keys() >= {"encoder", "fields", "text", "max_tokens", "batch_tokens"}:
        raise InputError(
            f"--embeddings {embeddings}: nothing there says which encoder made them; make them "
            "with: python -m lcrec.embed"
        )
    if settings["encoder"] == "lsa":
        return Lsa.load(embeddings).encode
    name = name or settings["encoder"]
    if Path(name).is_dir():
        rebuild = f"python -m lcrec.embed --encoder {name} --output {embeddings}"
        require_same_input(embeddings, "encoder", Path(name), rebuild)
    return load_encoder(name, settings["max_tokens"], settings["batch_tokens"])


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

    They are `dim` wide, less where there are fewer texts or terms.

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
