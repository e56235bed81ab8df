"""Stage: a checkpoint and histories -> ranked items.

Reads a checkpoint folder and the data folder; decodes by beam search over the prefix tree of real
items, so every ranking holds real and distinct items only. There are three uses:

- a split (`--output FILE.jsonl`): predictions {user, target, ranked, scores, template_id};
- all users, for production (`--all-users --output FOLDER`): the items after all that each user
  has, as files of {user, ranked, scores, template_id};
- one request (`--history`, `--user`, `--query`, `--explain`): a table on the screen.

Under torchrun or accelerate the processes share the users, and the result is the same. A run that
was killed goes on where it stopped when its command is given again.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcrec.core.artifacts import atomic_files, atomic_path, find_data, index_path
from lcrec.core.config import config_dict, parse_config
from lcrec.core.console import ProgressBar, printable
from lcrec.core.device import pick_precision, precision_note
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import beside, claim
from lcrec.core.parts import NOTE
from lcrec.core.processes import processes
from lcrec.core.provenance import fingerprint, is_current, provenance_path, write_provenance
from lcrec.core.version import __version__
from lcrec.data.data_set import load_data
from lcrec.data.folder import Interactions, Items, load_interactions, load_items
from lcrec.data.id_map import IdMap, Names, load_names
from lcrec.data.new_items import require_same_catalogue
from lcrec.data.splits import EvalCases, cases_since, describe_known, load_split, require_same_split
from lcrec.generate.flags import (
    COOCCURRENCE,
    STAGE,
    GenerateConfig,
    check_ways,
    form_of,
    outputs_of,
    share_of,
)
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.rankings.metrics import PAD

if TYPE_CHECKING:
    from accelerate.state import PartialState

    from lcrec.generate.item_filter import ItemIds
    from lcrec.generate.many_users import RankingJob
    from lcrec.generate.recommender import Recommender
    from lcrec.generate.requests import RankingRequest
    from lcrec.modeling.checkpoint import CheckpointParts
    from lcrec.prompts.templates import Template

EXAMPLE = "--model runs/shop/model --data data/shop --output runs/shop/predictions.jsonl"
# Users of a split per part: small, so that a few processes get nearly equal shares.
SPLIT_PART, SPLIT_PARTS = 256, 16
# How long a process waits for the others: those that are done wait until all are.
PATIENCE = timedelta(days=30)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(GenerateConfig, argv, prog=STAGE, example=EXAMPLE)
    check_ways(config)
    from lcrec.generate.one_request import check_counts, load_allowed

    items = load_items(config.data)
    if config.split is None and config.output is not None:
        config = replace(config, split="test")
    if config.k is None:
        config = replace(config, k=min(20, len(items)))
    assert config.k is not None
    check_counts(config.k, config.beams, len(items))
    if config.reserve_new > config.k:
        raise InputError(f"--reserve-new {config.reserve_new}: more places than --k {config.k}")
    interactions = load_interactions(config.data, len(items))
    names = load_names(config.data, interactions.users, len(items), config.ids)
    allowed = load_allowed(
        config.allow, config.deny, config.filters, config.k, items, names.items, config.unknown
    )
    hides = config.output is not None or (config.user is not None and config.split is not None)
    split = load_split(config.data, interactions) if hides and not config.all_users else None
    counted = interactions if split is None else split.train
    cases = None if split is None else split.valid if config.split == "valid" else split.test
    whole = cases
    if cases is not None and config.since is not None:
        cases = cases_since(cases, config.data, config.since, len(items))
    forbids = config.output is not None and cases is not None and cases.exclude is not None
    if forbids and config.constraint != "trie":
        raise InputError(
            f"--constraint {config.constraint}: the split of --data {config.data} forbids to rank "
            "what a user trained on, which needs --constraint trie"
        )

    with processes(PATIENCE) as state:
        config = replace(config, precision=pick_precision(config.precision))
        if config.output is None:
            answer(config, items, interactions, names, cases, allowed, counted, state)
            return
        form, active = form_of(config), state.is_main_process
        with claim(config.output, STAGE, form, overwrite=config.overwrite, active=active):
            if cases is None or whole is None:
                rank_everyone(config, names, interactions, allowed, state)
            else:
                if config.since is not None:
                    state.print(
                        f"Since {config.since}: {cases.describe()} out of {whole.describe()}"
                    )
                called = dict(zip(interactions.users, names.users.names, strict=True))
                named = replace(cases, users=[called[user] for user in cases.users])
                rank_split(config, items, names.items, cases, named, allowed, counted, state)


def answer(
    config: GenerateConfig,
    items: Items,
    interactions: Interactions,
    names: Names,
    cases: EvalCases | None,
    allowed: np.ndarray | None,
    counted: Interactions,
    state: PartialState,
) -> None:
    """Answer one request on the screen; `cases` are hidden."""
    from lcrec.generate.one_request import answer_request, history_of, read_history
    from lcrec.generate.requests import require_task, require_words

    own: ItemIds = ()
    if config.user is None:
        history = read_history(config.history or [], names.items, config.unknown)
    else:
        history = history_of(config.user, interactions, names, cases)
        own = counted.sequence(names.users.numbers[config.user])
        if config.query is None and not history:
            raise InputError(
                f"--user {config.user}: has no items to go by; give --query or --history"
            )
    parts, named = read_checkpoint(config, len(items)), config.templates != ["first"]
    if config.query is None:
        templates = choose_templates(config, parts)
    else:
        require_task("itemsearch", parts.tasks)
        known = ["history", "intention"] if history else ["intention"]
        templates = parts.prompts.evaluation_templates(
            "itemsearch",
            config.templates if named else ["all"],
            accepts=lambda t: t.question_variables <= {*known},
            that=f"that asks with {' and '.join(known)} alone",
        )
    if config.explain:
        require_words(parts.tasks)
    request = replace(make_request(config, history, allowed, parts), counted=own)
    recommender = load_recommender(config, parts, counted, state)
    asked = templates if named else [None]  # the recommender's own choice
    if state.is_main_process:
        answer_request(recommender, items, names.items, request, asked, explain=config.explain)


# Many users.


def rank_split(
    config: GenerateConfig,
    items: Items,
    ids: IdMap,
    cases: EvalCases,
    named: EvalCases,
    allowed: np.ndarray | None,
    counted: Interactions,
    state: PartialState,
) -> None:
    """Write predictions for the users of a split; `named` calls them as the screen does."""
    from lcrec.generate.many_users import join_split_parts, rank_in_parts, write_split_part
    from lcrec.generate.one_request import show_examples

    output = config.output
    assert output is not None
    retrain = f"python -m lcrec.finetune --data {config.data} --output DIR"
    require_same_split(config.model, config.data, retrain)
    known = describe_known(config.model, config.data, cases)
    if known and config.split == "valid" and config.since is None:
        state.print(known)
    settings, inputs = recorded(config)
    if is_made(outputs_of(config, output), settings, inputs, state):
        if state.is_main_process:
            show_examples(output, named, items, ids, config.show)
        return
    own = counted.sequences_of(cases.users)
    recommender, job = prepare(config, len(items), named, allowed, counted, own, state)
    folder = beside(output, "parts")
    parts = rank_in_parts(
        recommender,
        job,
        folder,
        suffix=".jsonl",
        size=min(SPLIT_PART, math.ceil(len(cases) / SPLIT_PARTS)),
        write=partial(write_split_part, cases=cases),
        provenance=provenance_of(settings, inputs, recommender),
        state=state,
    )
    if state.is_main_process:
        with atomic_files(output) as file:
            written = outputs_of(config, file)
            join_split_parts(parts, job.list_names, *written)
            for path in written:
                write_provenance(path, STAGE, settings, inputs, **calibrated(config, recommender))
        shutil.rmtree(folder)
        show_examples(output, named, items, ids, config.show)
        files = " ".join(str(output.with_name(path.name)) for path in written)
        print(f"Wrote {files}. Next: python -m lcrec.evaluate --predictions {files}")


def rank_everyone(
    config: GenerateConfig,
    names: Names,
    interactions: Interactions,
    allowed: np.ndarray | None,
    state: PartialState,
) -> None:
    """Write the lists of all users, in files that appear all at once when the last is done."""
    from lcrec.generate.many_users import FORMATS, rank_in_parts

    output = config.output
    assert output is not None
    settings, inputs = recorded(config)
    if is_made([output], settings, inputs, state):
        return
    lengths = np.diff(interactions.offsets)
    if not lengths.all():
        empty = np.flatnonzero(lengths == 0)
        raise InputError(
            f"--data {config.data}: {len(empty)} users have no items (first: user "
            f"{interactions.users[empty[0]]!r}), so there is nothing to go by; leave them out"
        )
    nothing = np.full(len(interactions), PAD)  # is held out
    everyone = EvalCases(list(names.users.names), list(interactions), nothing)
    recommender, job = prepare(
        config, len(names.items.names), everyone, allowed, interactions, list(interactions), state
    )
    folder = beside(output, "parts")
    parts = rank_in_parts(
        recommender,
        job,
        folder,
        suffix=f".{config.format}",
        size=config.shard_users,
        write=partial(FORMATS[config.format], names=names),
        provenance=provenance_of(settings, inputs, recommender),
        state=state,
    )
    if state.is_main_process:
        with atomic_path(output) as temporary:
            facts = calibrated(config, recommender)
            # Hashes the inputs, which takes long: a run that is killed meanwhile still goes on.
            write_provenance(folder, STAGE, settings, inputs, users=len(interactions), **facts)
            (folder / NOTE).unlink()
            folder.rename(temporary)
        print(f"Wrote {output}: {len(interactions):,} users in {len(parts)} file(s).")


def prepare(
    config: GenerateConfig,
    num_items: int,
    cases: EvalCases,
    allowed: np.ndarray | None,
    counted: Interactions,
    own: list[np.ndarray],
    state: PartialState,
) -> tuple[Recommender, RankingJob]:
    """Load the model, say what is about to happen, and put together what is asked of it.

    `counted` is what a fusion counts, and `own` has each case's part of that.
    """
    from lcrec.generate.many_users import ENSEMBLE, RankingJob
    from lcrec.generate.requests import case_requests

    parts = read_checkpoint(config, num_items)
    templates = choose_templates(config, parts)
    if config.ensemble and len(templates) < 2:
        raise InputError("--ensemble joins several templates; name them, or give --templates all")
    if config.ensemble and ENSEMBLE in [template.id for template in templates]:
        raise InputError(
            f"--ensemble: a template is called {ENSEMBLE!r}, as the joint rankings are; give it "
            "another id, or name the templates to join without it"
        )
    requests = case_requests(cases, make_request(config, (), allowed, parts), own)
    job = RankingJob(cases.users, requests, templates, config.ensemble)
    if empty := job.users_without_items(num_items):
        who = f"user {empty[0]!r}" + (f" and {len(empty) - 1:,} more" if empty[1:] else "")
        state.print(f"{printable(who)}: nothing is left to recommend, so the ranking is empty")
    recommender = load_recommender(config, parts, counted, state)
    state.print(
        f"Ranking {len(recommender.index):,} items for {len(cases):,} "
        f"{'users' if cases.numbers is None else 'cases'} with "
        f"{len(job.templates)} template(s) on {state.num_processes} process(es)"
    )
    if not config.exclude_history and cases.exclude is None and not counted.has_repeats():
        state.print(
            f"No user of {config.data} is known to have an item twice: --exclude-history leaves "
            "what a user has out of the ranking"
        )
    if config.exclude_history and not config.all_users and cases.repeats:
        state.print(
            f"{cases.repeats:.1%} of the targets are items that their users have already: "
            "--exclude-history leaves them out too, so none is found. lcrec baselines ranks "
            "them: to compare with it, give --exclude-history neither there nor here"
        )
    return recommender, job


def make_request(
    config: GenerateConfig, history: ItemIds, allowed: np.ndarray | None, parts: CheckpointParts
) -> RankingRequest:
    """Return what is asked for one customer; where no item is new, no place is reserved."""
    from lcrec.generate.requests import RankingRequest

    assert config.k is not None
    return RankingRequest(
        history,
        config.query,
        k=config.k,
        num_beams=config.beams,
        allow=allowed,
        exclude_history=config.exclude_history,
        reserve_new=config.reserve_new if len(parts.catalogue) > len(parts.index) else 0,
    )


def read_checkpoint(config: GenerateConfig, num_items: int) -> CheckpointParts:
    """Return what a checkpoint holds beside its weights, with the prompts that it is asked with.

    Raises:
        InputError: it is none, or was made for another catalogue.
    """
    from lcrec.modeling.checkpoint import CheckpointParts

    require_same_catalogue(config.data, config.model, config.index)
    parts = CheckpointParts.read(config.model, config.index)
    if len(parts.catalogue) != num_items:
        raise InputError(
            f"--data {config.data} has {num_items} items, the index of "
            f"{config.index or config.model} has {len(parts.catalogue)}: they do not belong "
            "together (items that were added need --index, and the data folder that has them)"
        )
    if config.prompts is None:
        return parts
    return replace(parts, prompts=PromptSet.load(config.prompts, base=SHIPPED_PROMPTS))


def choose_templates(config: GenerateConfig, parts: CheckpointParts) -> list[Template]:
    """Return the templates of `seqrec` to ask with, for which the checkpoint has what they show."""
    from lcrec.generate.requests import require_neighbours

    templates = parts.prompts.evaluation_templates("seqrec", config.templates)
    for template in templates:
        require_neighbours(template, parts.nearby)
    return templates


def load_recommender(
    config: GenerateConfig, parts: CheckpointParts, counted: Interactions, state: PartialState
) -> Recommender:
    """Load the checkpoint, and what `--calibrate` and `--fuse` ask for; the latter is `counted`.

    Raises:
        InputError: its weights are damaged, or the fusion was made for another catalogue.
    """
    from lcrec.generate.calibration import calibrate_on
    from lcrec.generate.fusion import CountedFusion, FusionSettings
    from lcrec.generate.recommender import Recommender
    from lcrec.modeling.base import DTYPES

    fusion = None
    if config.fuse is not None:
        fusion = FusionSettings.read(config.fuse)
        fusion.require_same_catalogue(config.data)
    cases = None if config.calibrate is None else load_data(config.data).split.valid
    precision = pick_precision(config.precision)
    recommender = Recommender.from_pretrained(
        config.model,
        device=state.device,
        dtype=DTYPES[precision],
        base=config.base,
        index=config.index,
        prompts=parts.prompts,
        max_batch_tokens=config.batch_tokens,
        constraint=config.constraint,
    )
    if note := precision_note(precision, recommender.model.num_parameters()):
        state.print(note)
    if config.reserve_new and not len(recommender.new_items):
        state.print(
            f"--reserve-new {config.reserve_new}: --index {config.index} adds no item to the "
            "checkpoint's own, so no place is reserved"
        )
    if config.calibrate is not None and cases is not None:
        silent, share = not state.is_main_process, share_of(config.calibrate)
        with ProgressBar(None, "calibrate", "users", leave=False, disable=silent) as bar:
            told = calibrate_on(recommender, cases, share, bar.update)
        if share is None:
            state.print(told)
    if fusion is not None:
        recommender.fusion = CountedFusion.count(fusion, counted, len(parts.catalogue))
        state.print(fusion.describe())
    return recommender


def calibrated(config: GenerateConfig, recommender: Recommender) -> dict[str, Any]:
    """Return what a sidecar tells of `--calibrate`."""
    return {} if config.calibrate is None else {"calibrate": recommender.share}


def recorded(config: GenerateConfig) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return what a result is recorded to be made of: settings and input files."""
    settings = config_dict(config, without=["show", "ids", "base", "unknown"])
    if config.fuse != COOCCURRENCE:
        del settings["fuse"]  # a file is an input
    paths = find_data(config.data)
    inputs = {"model": config.model, "item": paths.item, "inter": paths.inter}
    if not config.all_users or config.calibrate is not None:  # by what validation users rank
        inputs |= paths.sequences
    speaks = config.all_users or config.allow is not None or config.deny is not None
    if speaks and config.ids != "numbers":
        maps = {"user_ids": paths.user_ids, "item_ids": paths.item_ids}
        inputs |= {role: path for role, path in maps.items() if path.exists()}
    if config.index is not None:
        inputs["index"] = index_path(config.index)
    if config.since is not None:
        inputs["since"] = find_data(config.since).inter
    if config.fuse not in (None, COOCCURRENCE):
        inputs["fuse"] = provenance_path(Path(config.fuse))
    for role in ("prompts", "allow", "deny"):
        path = getattr(config, role)
        if path is not None:
            inputs[role] = path
    return settings, inputs


def is_made(
    outputs: list[Path], settings: dict[str, Any], inputs: dict[str, Path], state: PartialState
) -> bool:
    """Tell whether an equal run left its outputs, and say so; all processes call this."""
    made = all(is_current(path, STAGE, settings, inputs) for path in outputs)
    state.wait_for_everyone()  # all have looked before one writes
    if made:
        state.print(f"{outputs[0]} is up to date.")
    return made


def provenance_of(
    settings: dict[str, Any], inputs: dict[str, Path], recommender: Recommender
) -> dict[str, Any]:
    """Return what parts must have in common to be joined."""
    return {
        "lcrec": __version__,
        "config": settings,
        "inputs": {role: fingerprint(path) for role, path in inputs.items()},
        "device": recommender.trie.device.type,
    }


if __name__ == "__main__":
    run_stage(main)
