"""Stage: item text -> embeddings.

Reads `<Name>.item.json`; writes `embeddings.npy`, float32 [items, dim], row i = item i. The text
fields are encoded apart and averaged (LC-Rec, section IV-A4; an empty field takes no part), or
joined into one text. The encoder is `lsa` (TF-IDF and SVD, needs no weights), any
sentence-transformers model, or any Hugging Face encoder or decoder, mean-pooled over its tokens
(see `lcrec.encoders`).

Public names: `EmbedConfig`, `average_by_owner`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate.state import PartialState
from tqdm import tqdm

from lcrec.artifacts import (
    EMBEDDINGS,
    find_data,
    fingerprint,
    is_current,
    read_array,
    read_json,
    write_array,
    write_json,
    write_provenance,
)
from lcrec.config import config_dict, option, parse_config
from lcrec.data import load_items
from lcrec.encoders import Encoder, collect_texts, embed_lsa, load_encoder
from lcrec.errors import run_stage

STAGE = "python -m lcrec.embed"
TEXTS_PER_PART = 1024


@dataclass(frozen=True)
class EmbedConfig:
    """Settings of `python -m lcrec.embed`."""

    data: Path = option("the data folder")
    output: Path = option("the folder to write embeddings.npy to")
    encoder: str = option("'lsa', or a model on the hub or in a folder", "lsa")
    fields: list[str] = option("the item's text fields to encode", ["title", "description"])
    text: Literal["apart", "joined"] = option(
        "encode fields apart and average them, or joined into one text", "apart"
    )
    max_tokens: int = option("longer texts are cut (models only)", 512, minimum=1)
    batch_tokens: int = option("tokens per batch, padding included (models only)", 8192, minimum=1)
    lsa_dim: int = option("width of the embeddings (lsa only)", 128, minimum=1)
    seed: int = option("decides the SVD's start (lsa only)", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage; under torchrun or accelerate the processes share the texts."""
    config = parse_config(EmbedConfig, argv, description=__doc__ or "", prog=STAGE)
    inputs = {"item": find_data(config.data).item}
    if Path(config.encoder).is_dir():
        inputs["encoder"] = Path(config.encoder)
    items = load_items(config.data)
    # Without `cpu`, Accelerate starts every process as if it were alone where there is no GPU.
    state = PartialState(cpu=not torch.accelerator.is_available())
    made = (config.output / EMBEDDINGS).exists()
    current = made and is_current(config.output, STAGE, config_dict(config), inputs)
    state.wait_for_everyone()  # all have looked before one writes
    if current:
        state.print(f"{config.output} is up to date.")
        return
    texts, owners = collect_texts(items, config.fields, joined=config.text == "joined")
    state.print(
        f"Embedding {len(items):,} items ({len(texts):,} texts) with {config.encoder} "
        f"on {state.num_processes} process(es)"
    )
    if config.encoder == "lsa":
        vectors = embed_lsa(texts, config.lsa_dim, config.seed) if state.is_main_process else None
    else:
        encoder = load_encoder(config.encoder, config.max_tokens, config.batch_tokens)
        hashes = {role: fingerprint(path) for role, path in inputs.items()}
        made_of = {"config": config_dict(config), "inputs": hashes}
        vectors = _encode_in_parts(texts, encoder, config.output / ".parts", made_of, state)
    if state.is_main_process:
        assert vectors is not None
        embeddings = average_by_owner(vectors, owners, len(items))
        (config.output / EMBEDDINGS).unlink(missing_ok=True)
        write_provenance(config.output, STAGE, config_dict(config), inputs)
        write_array(config.output / EMBEDDINGS, embeddings)
        shutil.rmtree(config.output / ".parts", ignore_errors=True)
        print(
            f"Wrote {config.output / EMBEDDINGS} {list(embeddings.shape)}. Next: python -m "
            f"lcrec.quantize --data {config.data} --embeddings {config.output} --output DIR"
        )
    state.wait_for_everyone()


def average_by_owner(vectors: np.ndarray, owners: np.ndarray, num_items: int) -> np.ndarray:
    """Return float32 [items, dim], the mean of each item's text vectors [texts, dim]."""
    sums = np.zeros((num_items, vectors.shape[1]))
    np.add.at(sums, owners, vectors)
    counts = np.bincount(owners, minlength=num_items)
    return (sums / counts[:, None]).astype(np.float32)


def _encode_in_parts(
    texts: list[str], encode: Encoder, folder: Path, made_of: dict, state: PartialState
) -> np.ndarray | None:
    """Encode by length, one file per part, so that a killed run goes on where it stopped.

    Each process takes every n-th part; the main process joins them and returns the vectors in
    the order of `texts`, the others None.
    """
    note = folder / "parts.json"
    if state.is_main_process and (not note.exists() or read_json(note) != made_of):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(note, made_of)
    state.wait_for_everyone()
    order = np.argsort([len(text) for text in texts], kind="stable")
    parts = [
        order[start : start + TEXTS_PER_PART] for start in range(0, len(order), TEXTS_PER_PART)
    ]
    mine = range(state.process_index, len(parts), state.num_processes)
    # Longest first: an estimate made on short texts would be far too low.
    for part in tqdm(
        reversed(mine), total=len(mine), desc="embed", disable=not state.is_main_process
    ):
        path = folder / f"{part}.npy"
        if not path.exists():
            write_array(path, encode([texts[text] for text in parts[part]]))
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    joined = np.concatenate([read_array(folder / f"{part}.npy") for part in range(len(parts))])
    vectors = np.empty_like(joined)
    vectors[order] = joined
    return vectors


if __name__ == "__main__":
    run_stage(main)
