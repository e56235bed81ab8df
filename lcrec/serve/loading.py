"""What a service is loaded from, at its start and at every reload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lcrec.core.artifacts import find_data, index_path
from lcrec.core.config import option
from lcrec.core.device import Precision, pick_precision, precision_note
from lcrec.core.errors import InputError
from lcrec.core.provenance import fingerprint, provenance_path
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.id_map import Ids, Names, load_names
from lcrec.data.new_items import require_same_catalogue
from lcrec.data.splits import load_split
from lcrec.generate.flags import CALIBRATE, COOCCURRENCE, FUSE, share_of
from lcrec.serve.batching import ServiceLimits

if TYPE_CHECKING:
    from lcrec.serve.requests import RequestHandler

UNDER_WAY = "a reload is under way already; wait for its end"


@dataclass(frozen=True, kw_only=True)
class ServiceSources:
    """Where a service's model, index and data lie, and how they are read."""

    model: Path = option("the checkpoint folder")
    data: Path | None = option(
        "the data folder, for titles, fields and filters, and for the histories of its users", None
    )
    base: str | None = option("where an adapter's base model lies now, if it moved", None)
    index: Path | None = option("an index that adds items to the checkpoint's own", None)
    fuse: str | None = option(f"{FUSE}; of /recommend", None)
    calibrate: str | None = option(CALIBRATE, None)
    reserve_new: int = option(
        "how many of the k places, the last, go to the best of the items that --index adds, which "
        "a model hardly ever ranks high by itself; a request may set another number",
        0,
        minimum=0,
    )
    ids: Ids | None = option(
        "what clients call the items (default: by the raw ids that the checkpoint carries, if any)",
        None,
    )
    precision: Precision | None = option(
        "arithmetic of the model (default: bf16 on a GPU that has it, else fp32)", None
    )
    engine: Literal["torch", "vllm"] = option("what computes the model", "torch")
    engine_python: Path | None = option(
        "the Python of the environment that has vLLM (default: this one)", None
    )
    batch_tokens: int = option("prompt tokens per batch, padding included", 4096, minimum=1)


def load_handler(sources: ServiceSources, limits: ServiceLimits) -> RequestHandler:
    """Load what answers, and let it answer once.

    Raises:
        InputError: a file is missing or damaged, they do not belong together, or the model cannot
            recommend.
    """
    share = _share(sources)
    from lcrec.generate.calibration import calibrate_on
    from lcrec.generate.engines import EngineRecommender
    from lcrec.generate.fusion import CountedFusion, FusionSettings
    from lcrec.generate.recommender import Recommender
    from lcrec.modeling.base import DTYPES
    from lcrec.modeling.checkpoint import CheckpointParts
    from lcrec.serve.requests import RequestHandler, UserData, Versions, require_same_size

    model, data, index = map(_pinned, (sources.model, sources.data, sources.index))
    assert model is not None
    items = user_data = names = fusion = named = valid = None
    if sources.fuse is not None:
        assert data is not None
        named = None if sources.fuse == COOCCURRENCE else _pinned(Path(sources.fuse))
        fusion = FusionSettings.read(named or COOCCURRENCE)
        fusion.require_same_catalogue(data)
    if data is not None:
        items = load_items(data)
        require_same_catalogue(data, model, index)
        interactions = load_interactions(data, len(items))
        names = load_names(data, interactions.users, len(items), sources.ids)
        user_data = UserData(names.users, interactions)
    catalogue = CheckpointParts.read(model, index).catalogue
    require_same_size(items, len(catalogue))
    ids = (replace(catalogue, raw_ids=None) if sources.ids == "numbers" else catalogue).ids
    _require_same_names(sources, ids.is_raw, list(ids.names), names)
    if sources.calibrate is not None:
        assert data is not None
        valid = load_split(data, interactions).valid
    precision = pick_precision(sources.precision)
    dtype = DTYPES[precision]
    recommender: Recommender
    if sources.engine == "vllm":
        recommender = EngineRecommender.start_vllm(
            model,
            dtype=dtype,
            python=sources.engine_python,
            index=index,
            max_batch_tokens=sources.batch_tokens,
        )
    else:
        recommender = Recommender.from_pretrained(
            model,
            dtype=dtype,
            base=sources.base,
            index=index,
            max_batch_tokens=sources.batch_tokens,
        )
    told: list[str] = []
    if sources.engine == "torch" and (
        note := precision_note(precision, recommender.model.num_parameters())
    ):
        told.append(note)
    versions = Versions(
        model=fingerprint(model),
        index=fingerprint(index_path(index or model)),
        data=None if data is None else fingerprint(find_data(data).inter),
        items=None if data is None else fingerprint(find_data(data).item),
        fusion=None if named is None else fingerprint(provenance_path(named)),
    )
    handler = RequestHandler(
        recommender, items, limits, ids, user_data, versions, sources.reserve_new, told
    )
    if valid is not None:
        told.append(calibrate_on(recommender, valid, share))
    if fusion is not None:
        recommender.fusion = CountedFusion.count(fusion, interactions, len(recommender.index))
        told.append(f"/recommend is {fusion.describe()}")
    # A model that cannot recommend is refused here, and the first client does not wait longer.
    recommender.recommend([[0]], 1)
    return handler


def _share(sources: ServiceSources) -> float | None:
    """Return the share that --calibrate names, None for one that validation chooses, or for none.

    Raises:
        InputError: flags of the model's rankings lack another flag.
    """
    for flag, given in (("--fuse", sources.fuse), ("--calibrate", sources.calibrate)):
        if given is not None and sources.data is None:
            raise InputError(f"{flag} {given} needs --data, whose interactions it goes by")
    if sources.reserve_new and sources.index is None:
        raise InputError(
            f"--reserve-new {sources.reserve_new} needs --index, which says what items are new"
        )
    return None if sources.calibrate is None else share_of(sources.calibrate)


def _pinned(path: Path | None) -> Path | None:
    """Return where a path leads now: a link that is set anew meanwhile must not mix two models."""
    if path is None or path.resolve() == path.absolute():
        return path
    return path.resolve()


def _require_same_names(
    sources: ServiceSources, is_raw: bool, item_names: list[str], names: Names | None
) -> None:
    """Refuse raw ids that a checkpoint lacks, or that differ from the data folder's."""
    where = sources.index or sources.model
    if sources.ids == "raw" and not is_raw:
        raise InputError(
            f"--ids raw: {where} carries no raw ids; it was made before there were any, or from a "
            "data folder without <Name>.item2id"
        )
    if names is None or not names.items.is_raw:
        return
    if not is_raw:
        print("note: items go by numbers, since the checkpoint carries no raw ids; train anew")
    elif list(names.items.names) != item_names:
        raise InputError(
            f"--data {sources.data}: its items have other raw ids than those of {where}; name the "
            "data folder that it was trained on, or go by --ids numbers"
        )
