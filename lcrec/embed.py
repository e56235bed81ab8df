"""Stage: item text -> embeddings.

Reads `<Name>.item.json`; writes `embeddings.npy`, float32 [items, dim], row i = item i. The text
fields are encoded apart and averaged (LC-Rec, section IV-A4; an empty field takes no part), or
joined into one text. The encoder is `lsa` (TF-IDF and SVD, needs no weights; what it learnt is
kept beside the embeddings), any sentence-transformers model, or any Hugging Face encoder or
decoder, mean-pooled over its tokens (see `lcrec.index.encoders`).

With `--embeddings OLD`, for a data folder that `lcrec.add_items` or `lcrec.add_interactions`
extended, the old rows are copied from OLD and the new items are encoded with OLD's own settings.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lcrec.core.artifacts import EMBEDDINGS, atomic_path, find_data, read_array, write_array
from lcrec.core.config import Writes, config_dict, option, parse_config, refuse_settings
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, beside, claim
from lcrec.core.parts import make_parts
from lcrec.core.processes import processes
from lcrec.core.provenance import (
    fingerprint,
    is_current,
    kind_of,
    read_provenance,
    require_same_input,
    write_provenance,
)
from lcrec.data.folder import Items, check_embeddings, load_items
from lcrec.data.new_items import count_old_items, require_same_past

if TYPE_CHECKING:
    from accelerate.state import PartialState

    from lcrec.index.encoders import Encoder

STAGE = "python -m lcrec.embed"
EXAMPLE = "--data data/shop --output runs/shop/embeddings"
TEXTS_PER_PART = 1024
ENCODING = ("encoder", "fields", "text", "max_tokens", "lsa_dim", "seed")  # what shapes a vector


@dataclass(frozen=True)
class EmbedConfig(Writes):
    """Settings of `python -m lcrec.embed`."""

    data: Path = option("the data folder")
    output: Path = option("the folder to write embeddings.npy to", writes=FOLDER)
    encoder: str = option("'lsa', or a model on the hub or in a folder", "lsa")
    fields: list[str] | None = option(
        "the item's text fields to encode (default: title and description, where any item has one)",
        None,
    )
    text: Literal["apart", "joined"] = option(
        "encode fields apart and average them, or joined into one text", "apart"
    )
    max_tokens: int = option("longer texts are cut (models only)", 512, minimum=1)
    batch_tokens: int = option("tokens per batch, padding included (models only)", 8192, minimum=1)
    lsa_dim: int = option("width of the embeddings (lsa only)", 128, minimum=1)
    seed: int = option("decides the SVD's start (lsa only)", 0, minimum=0)
    add: Path | None = option(
        "with --embeddings: the new items that --data ends in, where no record tells them", None
    )
    embeddings: Path | None = option(
        "the embeddings of a catalogue that --data continues: encode its new items only", None
    )


def main(argv: list[str]) -> None:
    """Run the stage; under torchrun or accelerate the processes share the texts."""
    config = parse_config(EmbedConfig, argv, prog=STAGE, example=EXAMPLE)
    if config.add is not None and config.embeddings is None:
        raise InputError("--add NEW.item.json goes with --embeddings OLD, which it extends")
    with processes() as state:
        _run(config, state)


def _run(config: EmbedConfig, state: PartialState) -> None:
    inputs = {"item": find_data(config.data).item}
    items = load_items(config.data)
    old = None
    if config.embeddings is not None:
        inputs["embeddings"] = config.embeddings / EMBEDDINGS
        config, old = read_old(config, items, config.embeddings)
    if config.add is not None:
        inputs["added"] = config.add
    if config.fields is None:
        both = ("title", "description")
        used = [name for name in both if any(fields.get(name) for fields in items.fields)]
        config = dataclasses.replace(config, fields=used)
    if config.encoder != "lsa" and Path(config.encoder).is_dir():
        inputs["encoder"] = Path(config.encoder)
    current = is_current(config.output, STAGE, config_dict(config), inputs)
    state.wait_for_everyone()  # all have looked before one writes
    if current:
        state.print(f"{config.output} is up to date.")
        return
    main = state.is_main_process
    with claim(config.output, STAGE, overwrite=config.overwrite, active=main):
        _embed(config, state, items, inputs, old)


def _embed(
    config: EmbedConfig,
    state: PartialState,
    items: Items,
    inputs: dict[str, Path],
    old: np.ndarray | None,
) -> None:
    """Encode the items that `old` has no rows of, and write all rows."""
    from lcrec.index.encoders import Lsa, collect_texts, fit_lsa, load_encoder, mean_by_owner

    assert config.fields is not None
    texts, owners = collect_texts(items, config.fields, joined=config.text == "joined")
    first = 0 if old is None else len(old)
    texts, owners = texts[np.searchsorted(owners, first) :], owners[owners >= first] - first
    state.print(
        f"Embedding {len(items) - first:,} items ({len(texts):,} texts) with {config.encoder} "
        f"on {state.num_processes} process(es)"
    )
    lsa, parts = None, beside(config.output, "parts")
    if config.encoder == "lsa":
        if state.is_main_process:
            if config.embeddings is None:
                lsa = fit_lsa(texts, config.lsa_dim, config.seed)
            else:
                lsa = Lsa.load(config.embeddings)
        vectors = None if lsa is None or not texts else lsa.encode(texts)
    elif not texts:  # a night without a new item
        vectors = None
    else:
        encoder = load_encoder(config.encoder, config.max_tokens, config.batch_tokens)
        hashes = {role: fingerprint(path) for role, path in inputs.items()}
        made_from = {"config": config_dict(config), "inputs": hashes}
        vectors = _encode_in_parts(texts, encoder, parts, made_from, state)
    if state.is_main_process:
        rows = [] if old is None else [old]
        if vectors is not None:
            rows.append(mean_by_owner(vectors, owners).astype(np.float32))
        path = config.output / EMBEDDINGS
        embeddings = check_embeddings(np.concatenate(rows), len(items), path)
        with atomic_path(config.output) as folder:
            folder.mkdir()
            if lsa is not None:
                lsa.save(folder)
            write_array(folder / EMBEDDINGS, embeddings)
            write_provenance(folder, STAGE, config_dict(config), inputs)
        shutil.rmtree(parts, ignore_errors=True)
        added = "" if old is None else "--index OLD "
        added = added if config.add is None else f"--add {config.add} {added}"
        print(
            f"Wrote {path} {list(embeddings.shape)}. Next: python -m "
            f"lcrec.quantize --data {config.data} {added}--embeddings {config.output} --output DIR"
        )


def read_old(config: EmbedConfig, items: Items, folder: Path) -> tuple[EmbedConfig, np.ndarray]:
    """Return the settings that the old embeddings were made with, and the old rows.

    Raises:
        InputError: settings are given that differ from the old ones, the old embeddings were made
            elsewhere or from another catalogue, or the catalogue does not end in the new items.
    """
    heeded = {"data", "output", "overwrite", "add", "embeddings", "batch_tokens"}
    refuse_settings(
        config, heeded, f"the new items are encoded as those of {folder} were; leave it out"
    )
    record = read_provenance(folder)
    if record is None or record["kind"] != kind_of(STAGE):
        raise InputError(
            f"--embeddings {folder}: no record of {STAGE}, so how to encode the new items is "
            f"unknown; encode all of {config.data} where they were made, and give the folder to "
            "python -m lcrec.quantize --index"
        )
    add = config.add
    require_same_past(config.data, folder, add)
    settings = {name: record["config"][name] for name in ENCODING}
    config = dataclasses.replace(config, **settings)
    if "encoder" in record["inputs"]:
        rebuild = f"{STAGE} --encoder {config.encoder}"
        require_same_input(folder, "encoder", Path(config.encoder), rebuild)
    rows = read_array(folder / EMBEDDINGS)
    if add is not None and len(rows) != (before := count_old_items(items, config.data, add)):
        raise InputError(
            f"--embeddings {folder}: has {len(rows)} rows, but {config.data} had {before} items "
            f"before those of {add} were added; name the embeddings of these {before}"
        )
    return config, rows


def _encode_in_parts(
    texts: list[str], encode: Encoder, folder: Path, inputs: dict[str, Any], state: PartialState
) -> np.ndarray | None:
    """Encode by length, in parts that a killed run keeps.

    Returns:
        the vectors in the order of `texts` in the main process, None in the others.
    """
    order = np.argsort([len(text) for text in texts], kind="stable")
    parts = [
        order[start : start + TEXTS_PER_PART] for start in range(0, len(order), TEXTS_PER_PART)
    ]
    paths = [folder / f"{part}.npy" for part in range(len(parts))]

    def encode_part(part: int, count_done: Callable[[int], None]) -> None:
        write_array(paths[part], encode([texts[text] for text in parts[part]]))
        count_done(len(parts[part]))

    make_parts(
        paths,
        [len(part) for part in parts],
        encode_part,
        inputs=inputs,
        state=state,
        desc="embed",
        unit="texts",
        last_first=True,  # longest first: an estimate made on short texts would be far too low
    )
    if not state.is_main_process:
        return None
    joined = np.concatenate([read_array(path) for path in paths])
    vectors = np.empty_like(joined)
    vectors[order] = joined
    return vectors


if __name__ == "__main__":
    run_stage(main)
