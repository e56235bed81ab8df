"""Stage: raw interactions and item texts -> the data folder everything else starts from.

Reads what `lcrec.prepare.published` can read. Writes `<Name>.inter.json` and `<Name>.item.json` (of
large data Parquet, read alike), `<Name>.user2id` and `<Name>.item2id` (raw id, tab, number), where
there are reviews `<Name>.review.json`, with another split than leave-one-out `<Name>.split.json`,
and `data_card.json`, `data_card.html` and the sidecar `lcrec.json` into the folder `--output`. All
is computed by an embedded DuckDB, or by Spark, from the same Ibis expressions:

    read -> time window -> ratings -> repeats -> k-core -> text -> length -> split -> numbers

The same input gives the same bytes, whatever the order of its rows, the engine and its threads:
users are numbered by their first interaction, ties by raw id; a user's items are ordered by time,
ties by a hash of user and item; items are numbered by first appearance, of one time by raw id.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lcrec.core.artifacts import DataPaths, data_paths, sequence_paths
from lcrec.core.config import Writes, config_dict, option, parse_config, settings_of
from lcrec.core.console import printable
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import SHARED_FOLDER, claim
from lcrec.core.provenance import is_current, kind_of, read_provenance, write_provenance
from lcrec.data.splits import cold_parts, random_parts, time_parts

if TYPE_CHECKING:
    from lcrec.prepare.folder import Numbered
    from lcrec.prepare.pipeline import Refined
    from lcrec.prepare.tables import RawTables

STAGE = "python -m lcrec.prepare"
EXAMPLE = "--format recbole --input downloads/ml-100k --output data/ml-100k"
DRY_RUN_ROWS = 1_000_000
JSON_MOST = 2_000_000  # interactions; what has more is written as Parquet
COLUMN_HELP = (
    "which columns to read, as role=column,role=column; roles: user item time rating title "
    "description brand categories features details review_title review_text, and id for the item "
    "column of the items file where it is called otherwise than in the interactions; a role left "
    "out is the format's own or, for tables, guessed from usual names; 'brand=' reads none"
)
# What removes rows that could be used.
REMOVING = (
    *("min_rating", "since", "until", "repeats", "min_text", "max_title_words"),
    *("min_user_items", "min_item_users", "max_user_items"),
)
# What decides how the work is done, but not what comes of it.
MEANS = ("engine", "spark_master", "memory_gb", "dry_run")


@dataclass(frozen=True)
class PrepareConfig(Writes):
    """Settings of this stage."""

    output: Path = option("the data folder to write", writes=SHARED_FOLDER)
    # mypy wants the names spelled out; they are the keys of published.READERS.
    # fmt: off
    format: Literal[
        "amazon2014", "amazon2018", "amazon2023", "bookcrossing", "hm", "lcrec", "minionerec",
        "movielens", "recbole", "steam", "table", "yelp",
    ] | None = option(
        "how the files are written: a published data set's, or table: any CSV, TSV, JSON lines or "
        "Parquet; needed unless --source says it",
        None,
    )
    # fmt: on
    input: Path | None = option(
        "the folder or zip archive that holds the files by their published names", None
    )
    interactions: list[Path] | None = option(
        "in place of --input: files with one row per interaction; several, "
        "'part-*.csv.gz', or a folder of Parquet files",
        None,
    )
    items: list[Path] | None = option("with --interactions: files with one row per item", None)
    source: str | None = option(
        "in place of --input: hf:REPOSITORY:CATEGORY, such as hf:McAuley-Lab/Amazon-Reviews-2023:"
        "Office_Products; a folder with the repository's files may stand for it",
        None,
    )
    order: Literal["time", "file"] = option(
        "time: by their times; file: rows have no times and stand in order", "time"
    )
    bad_rows: Literal["error", "drop"] = option(
        "rows that cannot be used: refuse, naming the first; or drop and count them", "error"
    )
    encoding: str | None = option(
        "how text files are encoded, such as cp1252, latin-1 or utf-16 (default: UTF-8, or what "
        "the published format says)",
        None,
    )
    columns: str | None = option(COLUMN_HELP, None)
    keep: list[str] = option(
        "columns of the items to keep as fields of their own, such as price: to filter by, and to "
        "show in prompts as properties; FIELD=COLUMN gives one another name",
        [],
    )
    category_separator: Literal[">", "|", "/", ",", ";", " "] | None = option(
        "what separates categories within their column, ' ' in RecBole's MovieLens (default: a "
        "comma, or what the published format says)",
        None,
    )
    name: str | None = option("the data set's name; none: the output folder's", None)
    min_rating: float | None = option("drop interactions rated lower", None)
    since: str | None = option(
        "drop what happened before this date (2018-10-01, UTC) or number in the data's unit", None
    )
    until: str | None = option("drop what happened on this date, or at this number, or later", None)
    repeats: Literal["drop", "keep", "all"] = option(
        "when a user takes an item again: keep the first time only (LC-Rec, and most papers), "
        "every time once, or all, rows alike in user, item and time too",
        "drop",
    )
    items_without_text: Literal["drop", "error"] = option(
        "items with neither title nor description, or no row at all in the items file, and those "
        "that --min-text and --max-title-words rule out",
        "drop",
    )
    differing_items: Literal["error", "longest"] = option(
        "when an item has several rows with different texts: refuse, or take the one with most "
        "text",
        "error",
    )
    min_text: int = option("fewest characters of title and description together", 1, minimum=1)
    max_title_words: int | None = option(
        "drop items whose title has more words; MiniOneRec takes 20; none: any", None, minimum=1
    )
    min_user_items: int = option(
        "fewest different items per user (k-core; LC-Rec: 5); the split needs 3", 5, minimum=3
    )
    min_item_users: int = option(
        "fewest different users per item (k-core; LC-Rec: 5)", 5, minimum=1
    )
    max_user_items: int | None = option(
        "keep so many of a user's interactions, the latest, and take the k-core again; none: all",
        None,
        minimum=3,
    )
    reviews: Literal["keep", "drop"] = option(
        "whether to write the texts of reviews, where there are any, for lcrec.intents", "keep"
    )
    split: Literal["leave-one-out", "random", "time", "cold-items", "published"] | None = option(
        "what every later stage holds out; leave-one-out: the last item of every user to test, the "
        "one before to validate; random: 8:1:1 of every user's items; time: 8:1:1 of all "
        "interactions, at two moments; cold-items: test on items that nobody trains on; published: "
        "the rows that --format minionerec is published with, all of them; none: published for "
        "minionerec, else leave-one-out",
        None,
    )
    cold_share: float = option("cold-items: the share of items to test on", 0.05, minimum=0)
    seed: int = option("of the random split and of the cold items", 0, minimum=0)
    output_format: Literal["auto", "json", "parquet"] = option(
        f"how to write interactions, items and split; auto: JSON up to {JSON_MOST:,} "
        "interactions, then Parquet",
        "auto",
    )
    engine: Literal["duckdb", "spark"] = option(
        "what computes: DuckDB in this process, or Spark (pip install 'lcrec[spark]', Java 17)",
        "duckdb",
    )
    spark_master: str = option("where Spark runs, such as spark://host:7077", "local[*]")
    memory_gb: float = option(
        "GB the engine may take before it puts data on disk (in TMPDIR)",
        4.0,
        minimum=0.25,
        maximum=1e6,
    )
    dry_run: bool = option(
        f"show what would come of the first {DRY_RUN_ROWS:,} interactions, and write nothing", False
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    description = (
        "Make a data folder from raw interactions and item texts: clean the texts, drop what is "
        "too rare to learn from, order every user's items by time, number users and items."
    )
    config = parse_config(PrepareConfig, argv, description=description, prog=STAGE, example=EXAMPLE)
    if config.split is None:
        published = config.format == "minionerec"
        config = replace(config, split="published" if published else "leave-one-out")
    _check_settings(config)
    _run(config)


def _run(config: PrepareConfig) -> None:
    # Here, so that options are read without any engine.
    from lcrec.prepare.card import card_page, make_card
    from lcrec.prepare.engines import open_engine
    from lcrec.prepare.folder import number, sort_interactions, with_unbought, write_data_folder
    from lcrec.prepare.inputs import find_inputs
    from lcrec.prepare.pipeline import FilterSettings, refine
    from lcrec.prepare.published import READERS
    from lcrec.prepare.tables import ITEM_ROLES, Options, parse_columns, parse_keep

    columns, keep = parse_columns(config.columns or ""), parse_keep(config.keep)
    found = find_inputs(
        config.format,
        input=config.input,
        interactions=config.interactions,
        items=config.items,
        source=config.source,
    )
    if config.split == "time" and found.format in ("lcrec", "minionerec"):
        raise InputError(
            f"--split time: files of --format {found.format} tell the order of each user's items "
            "and no time; choose another split"
        )
    inputs = found.hashed()
    folder = config.output
    name = config.name or folder.resolve().name
    if not name or name.startswith(".") or Path(name).name != name:
        raise InputError(f"--name {name!r}: give a plain name, without slashes or a leading dot")
    # The name is in it once resolved, so that a renamed data set is another one.
    settings = {**config_dict(config), "name": name}
    settings = {key: value for key, value in settings.items() if key not in MEANS}
    if not config.dry_run and _is_done(folder, name, settings, inputs):
        print(f"{folder} is up to date: {STAGE} has nothing to do; {_next_command(folder, name)}")
        return

    print(f"preparing data set {name} from {found}")
    engine = open_engine(
        config.engine, memory_gb=config.memory_gb, spark_master=config.spark_master
    )
    claimed = claim(
        folder, STAGE, SHARED_FOLDER, overwrite=config.overwrite, active=not config.dry_run
    )
    with claimed, engine as (con, work):
        plain = found.plain(config.encoding, work)
        options = settings_of(
            Options,
            config,
            columns=columns,
            keep=keep,
            is_decoded=config.encoding is not None,
            reviews=config.reviews == "keep",
            limit=DRY_RUN_ROWS if config.dry_run else None,
            spill=work,
        )
        raw = READERS[plain.format](con, plain.interactions, plain.items, options)
        texts = {role: raw.item_columns.get(role, "(none)") for role in (*ITEM_ROLES, *keep)}
        for whose, read in (("columns:", raw.interaction_columns), ("of items:", texts)):
            print(whose, *(f"{role}={printable(name)}" for role, name in read.items()), flush=True)
        for whose, how, unused, lost in (
            ("the interactions", "", raw.unused[0], raw.lost),
            ("the items", " (see --columns and --keep)", raw.unused[1], raw.items_lost),
        ):
            if unused:
                print(f"not read of {whose}{how}:", *map(printable, unused), flush=True)
            for reason, count in lost.items():
                print(f"rows of {whose} left out: {count:,} ({reason})", flush=True)
        print(*map(printable, raw.notes), sep="\n", end="\n" if raw.notes else "", flush=True)
        filters = settings_of(
            FilterSettings,
            config,
            keep=tuple(keep),
            keep_reviews=config.reviews == "keep",
            cold_share=config.cold_share if config.split == "cold-items" else None,
        )
        if config.split == "published":
            if raw.parts is None:
                raise InputError(
                    f"--split published: {len(found.interactions)} files of interactions were "
                    "given; MiniOneRec publishes TRAIN VALID TEST, of which TRAIN may be missing"
                )
            if len(found.interactions) == 2:
                print(
                    "no train file: trained on is what the histories of the rows hold, a part of "
                    "what was published to train on, so all figures will be a lower bound"
                )
            filters = replace(
                filters, min_user_items=1, min_item_users=1, repeats="all", keep_unbought=True
            )
        refined = refine(
            raw, work, filters, say=lambda line: print(printable(line, lines=True), flush=True)
        )
        has_reviews = "review" in refined.interactions.columns
        sort_interactions(refined.interactions, work / "sorted")
        items = refined.catalogue.items
        numbered = number(work / "sorted")
        if filters.keep_unbought:
            numbered = with_unbought(numbered, items["item"])
        parts = _parts(config, numbered, refined, raw)
        card = make_card(name, refined.ledger, refined.catalogue, numbered, parts)
        _tell(refined, card["split"])
        if config.dry_run:
            print("a dry run: nothing was written; leave --dry-run out to do it with all rows")
            return
        parquet = config.output_format == "parquet"
        if config.output_format == "auto":
            parquet = len(numbered.items) > JSON_MOST
        paths = data_paths(folder, name, parquet=parquet)
        facts = {name: card[name] for name in ("users", "items", "interactions")}
        write_data_folder(
            paths,
            numbered,
            items,
            parts,
            work / "sorted" / "rows" if has_reviews else None,
            card,
            card_page(card),
            replaces=_made_before(folder, name),
            finish=lambda: write_provenance(
                folder, STAGE, settings, inputs, **facts, reviews=has_reviews
            ),
        )
    print(f"wrote {paths.inter} and {paths.item}; what they hold: {paths.card_page}")
    print(_next_command(folder, name))


def _check_settings(config: PrepareConfig) -> None:
    """Refuse settings that do not go together."""
    most = config.max_user_items
    if most is not None and most < config.min_user_items:
        raise InputError(
            f"--max-user-items {most} is less than --min-user-items {config.min_user_items}: "
            "nobody would be left"
        )
    if config.split == "published":
        if config.format != "minionerec":
            raise InputError(
                "--split published belongs to --format minionerec, whose files say what is held "
                "out; choose another split"
            )
        for setting in fields(PrepareConfig):
            value = getattr(config, setting.name)
            if setting.name in REMOVING and value != setting.default:
                raise InputError(
                    f"--{setting.name.replace('_', '-')} {value} removes rows, and --split "
                    "published keeps all that are published; choose one, such as with --split "
                    "leave-one-out"
                )
    if config.cold_share >= 1:
        raise InputError(f"--cold-share {config.cold_share:g}: give a share below 1, such as 0.05")
    if config.encoding is not None:
        try:
            is_text = codecs.lookup(config.encoding)._is_text_encoding
        except LookupError:
            is_text = False
        if not is_text:
            raise InputError(
                f"--encoding {config.encoding}: Python knows no such encoding of text; take one "
                "such as cp1252, latin-1, utf-16 or utf-8"
            )
    if config.spark_master != "local[*]" and config.engine != "spark":
        raise InputError(f"--spark-master {config.spark_master} belongs to --engine spark")


def _parts(
    config: PrepareConfig, numbered: Numbered, refined: Refined, raw: RawTables
) -> np.ndarray | None:
    """Return the part of the split every interaction belongs to; None for leave-one-out."""
    if config.split == "random":
        return random_parts(numbered.offsets, numbered.items, config.seed)
    if config.split == "time":
        return time_parts(numbered.times)
    if config.split == "published":
        published = raw.parts or {}
        users, starts = numbered.user_ids.to_pylist(), numbered.offsets
        return np.concatenate(
            [
                np.array(published[user], dtype=np.int8)[numbered.times[start:end]]
                for user, start, end in zip(users, starts[:-1], starts[1:], strict=True)
            ]
        )
    if config.split == "cold-items":
        cold = set(refined.cold)
        is_cold = np.array([item in cold for item in numbered.item_ids.to_pylist()])
        return cold_parts(numbered.offsets, is_cold[numbered.items])
    return None


def _tell(refined: Refined, parts: dict[str, int] | None) -> None:
    """Print what became of the texts, how it looks, and the sizes of the split's parts."""
    from lcrec.prepare.pipeline import some_of

    for field, ids in refined.catalogue.emptied.items():
        print(f"  {field} of {len(ids):,} items was nothing but markup: {some_of(ids)}")
    for field, value in refined.catalogue.words.items():
        print(f"  {field} is kept as text, for not every value is a number: {value[:80]!r}")
    for field, before, after in refined.catalogue.samples[:1]:
        print(f"  {field} before: {before[:160]!r}\n  {field} after:  {after[:160]!r}")
    if parts is not None:
        print("split:", ", ".join(f"{count:,} to {part}" for part, count in parts.items()))


def _next_command(folder: Path, name: str) -> str:
    return f"next: python -m lcrec.embed --data {folder} --output runs/{name}/embeddings"


def _is_done(folder: Path, name: str, settings: dict[str, object], inputs: dict[str, Path]) -> bool:
    """Tell whether the data set lies there already.

    Raises:
        InputError: something lies there that this run would destroy or make wrong.
    """
    forms = [data_paths(folder, name, parquet=parquet) for parquet in (False, True)]
    known = [paths.inter for paths in forms]
    others = [path for path in sequence_paths(folder) if path not in known]
    if others:
        raise InputError(
            f"--output {folder}: it holds another data set, {others[0].name}; choose another folder"
        )
    record = read_provenance(folder)
    ours = record is not None and record["kind"] == kind_of(STAGE)
    has_reviews = ours and record is not None and bool(record.get("reviews"))
    whole = any(_is_whole(paths, settings, has_reviews) for paths in forms)
    if whole and is_current(folder, STAGE, settings, inputs):
        return True
    others = [forms[0].user, *([] if has_reviews else [forms[0].review])]
    for path in others:
        if path.exists():
            raise InputError(
                f"{path} goes by the old numbers of users and items, which other settings or "
                "inputs change; delete it, or choose another --output"
            )
    return False


def _is_whole(paths: DataPaths, settings: dict[str, object], has_reviews: bool) -> bool:
    """Tell whether all files are there that these settings ask for."""
    made = [paths.inter, paths.item, paths.user_ids, paths.item_ids, paths.card, paths.card_page]
    if settings["split"] != "leave-one-out":
        made.append(paths.split)
    if has_reviews:
        made.append(paths.review)
    return all(path.exists() for path in made)


def _made_before(folder: Path, name: str) -> list[Path]:
    """Return where an earlier run may have left what this one replaces, in either form."""
    forms = [data_paths(folder, name, parquet=parquet) for parquet in (False, True)]
    return [path for paths in forms for path in (paths.inter, paths.item, paths.split)] + [
        forms[0].review
    ]


if __name__ == "__main__":
    run_stage(main)
