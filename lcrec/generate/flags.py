"""The flags of `lcrec generate`, some of them of `lcrec serve` too, and which go together."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcrec.core.config import Writes, option, paths_read
from lcrec.core.device import Precision
from lcrec.core.errors import InputError
from lcrec.core.outputs import FOLDER, check_output

STAGE = "python -m lcrec.generate"
AUTO = "auto"
COOCCURRENCE = "cooccurrence"
FUSE = (
    "join the model's rankings with counted neighbours (what other customers took near the last "
    "items): a file that `lcrec baselines fuse` wrote, for its weights, or "
    f"'{COOCCURRENCE}', for both alike"
)
CALIBRATE = (
    "subtract this share, such as 0.5, of the log-probability that the model gives an item "
    "whatever the history; auto: the share that ranks validation users best"
)


def share_of(calibrate: str) -> float | None:
    """Return the share that `--calibrate` names; None for `auto`.

    Raises:
        InputError: it is none from 0 to 1.
    """
    if calibrate == AUTO:
        return None
    try:
        share = float(calibrate)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise InputError(f"--calibrate {calibrate}: give a share from 0 to 1, or {AUTO}")
    return share


NEED_TREE = "allow", "deny", "filters", "exclude_history", "calibrate", "fuse", "reserve_new"


@dataclass(frozen=True)
class GenerateConfig(Writes):
    """Settings of `python -m lcrec.generate`."""

    model: Path = option("the checkpoint folder")
    data: Path = option("the data folder")
    output: Path | None = option(
        "the predictions file to write for a split; with --all-users, a folder", None
    )
    split: Literal["valid", "test"] | None = option(
        "which held-out items to predict (default: test); with --user, the part to hide "
        "(default: nothing is hidden)",
        None,
    )
    since: Path | None = option(
        "rank only what came after this earlier state of the data folder, from which `lcrec "
        "add_interactions` led to it",
        None,
    )
    all_users: bool = option("rank what comes after all that each user has, for every user", False)
    format: Literal["jsonl", "parquet"] = option("of the files of --all-users", "jsonl")
    shard_users: int = option("users per file of --all-users", 10_000, minimum=1)
    user: str | None = option("show one user's recommendations instead", None)
    history: list[str] | None = option("show recommendations for these items instead", None)
    query: str | None = option(
        "show what fits these words instead (the task itemsearch); --user or --history may add "
        "what the customer has",
        None,
    )
    explain: bool = option("of one request, also show what the model has to say in words", False)
    k: int | None = option(
        "items to rank per user (default: 20, or all of a smaller catalogue)", None, minimum=1
    )
    beams: int | None = option("beams to search with (default: k, at least 20)", None, minimum=1)
    templates: list[str] = option(
        "templates to ask with: ids, 'first', or 'all' that serve evaluation; the rankings of "
        "several are joined for one request",
        ["first"],
    )
    ensemble: bool = option(
        "join the rankings of several templates into one (mean of scores, union of items): for a "
        "split in X.ensemble.jsonl beside the rankings of each",
        False,
    )
    constraint: Literal["trie", "level", "none"] = option(
        "what beams may hold: real items; or, to compare, any code of each level (LC-Rec's own "
        "rule), or anything",
        "trie",
    )
    allow: Path | None = option("a file of the only items to recommend, an id per line", None)
    deny: Path | None = option("a file of items never to recommend, an id per line", None)
    filters: str | None = option(
        "recommend only items whose fields are so, as JSON: "
        """'{"brand": ["Acme"], "price": {"max": 20}}'""",
        None,
    )
    ids: Literal["raw", "numbers"] | None = option(
        "what users and items are called in flags, in the files that those name, on the screen and "
        "in the files of --all-users (default: by raw ids where the data folder has <Name>.user2id "
        "and <Name>.item2id); predictions of a split keep numbers",
        None,
    )
    unknown: Literal["refuse", "ignore"] = option(
        "what becomes of items in --history, --allow and --deny that the catalogue does not have",
        "refuse",
    )
    base: str | None = option("where an adapter's base model lies now, if it moved", None)
    index: Path | None = option("an index that adds items to the checkpoint's own", None)
    prompts: Path | None = option("other templates than the checkpoint's own", None)
    exclude_history: bool = option("never recommend an item of the history", False)
    fuse: str | None = option(FUSE, None)
    calibrate: str | None = option(CALIBRATE, None)
    reserve_new: int = option(
        "how many of the k places, the last, go to the best of the items that --index adds, which "
        "a model hardly ever ranks high by itself",
        0,
        minimum=0,
    )
    precision: Precision | None = option(
        "arithmetic of the model (default: bf16 on a GPU that has it, else fp32)", None
    )
    batch_tokens: int | None = option(
        "prompt tokens per batch, padding included (default: 4096 on a CPU, 32768 on a GPU)",
        None,
        minimum=1,
    )
    show: int = option("example users to print after a split", 0, minimum=0)


def form_of(config: GenerateConfig) -> str:
    """Return the form of the output (see `lcrec.core.outputs`)."""
    return FOLDER if config.all_users else ".jsonl"


def outputs_of(config: GenerateConfig, output: Path) -> list[Path]:
    """Return all that is written: the output, and the joint rankings of a split beside it."""
    joint = config.ensemble and not config.all_users
    return [output, output.with_suffix(".ensemble.jsonl")] if joint else [output]


def check_ways(config: GenerateConfig) -> None:
    """Refuse flags that do not go together, before anything is read."""
    ways = [config.user, config.history, config.query]
    is_one = any(way is not None for way in ways)
    if (config.output is not None) == is_one or (
        config.user is not None and config.history is not None
    ):
        raise InputError(
            "give one of --output FILE.jsonl (to rank for a split), --user and --history (to see "
            "one ranking), or --query, which may go with either of the two"
        )
    if config.all_users and config.output is None:
        raise InputError("--all-users writes to a folder; name it with --output FOLDER")
    if config.all_users and config.split is not None:
        raise InputError(
            f"--split {config.split}: --all-users ranks what comes after all that a user has, and "
            "knows no split; leave one of them out"
        )
    if config.split is not None and config.output is None and config.user is None:
        raise InputError(
            f"--split {config.split}: hides nothing of --history or --query; give it with --user, "
            "or with --output FILE.jsonl"
        )
    if config.since is not None and (config.output is None or config.all_users):
        raise InputError(f"--since {config.since} belongs to a split: --output FILE.jsonl")
    if config.output is not None:
        inputs = paths_read(config)
        inputs += [] if config.fuse in (None, COOCCURRENCE) else [Path(config.fuse)]
        for path in outputs_of(config, config.output):
            check_output(path, STAGE, form_of(config), overwrite=config.overwrite, inputs=inputs)
    joins_templates = config.ensemble or (is_one and config.templates != ["first"])
    if config.calibrate is not None:
        share_of(config.calibrate)
        if config.calibrate == AUTO and is_one:
            raise InputError(
                "--calibrate auto ranks validation users; for one request give a share"
            )
    if config.reserve_new:
        if config.index is None:
            raise InputError(
                f"--reserve-new {config.reserve_new} needs --index, which says what items are new"
            )
        if joins_templates:
            raise InputError(
                "--reserve-new: joining the rankings of several templates would give the places "
                "away again; ask with one template"
            )
    if config.fuse is not None:
        if joins_templates:
            raise InputError(
                "--fuse joins the ranking of one template with what is counted; ask with one, or "
                "join files of rankings with `lcrec baselines fuse`"
            )
        if config.query is not None:
            raise InputError("--fuse goes by what a customer has; leave it out with --query")
    if config.query is not None and not config.query.strip():
        raise InputError("--query: is empty; say what is looked for")
    if config.explain and config.output is not None:
        raise InputError("--explain belongs to one request: --history, --user or --query")
    if config.history is not None and not config.history:
        raise InputError("--history: the list is empty; give at least one item id")
    if config.constraint != "trie":
        for name in NEED_TREE:
            if getattr(config, name):
                raise InputError(
                    f"--{name.replace('_', '-')} needs --constraint trie: other beams leave the "
                    "tree of items"
                )
