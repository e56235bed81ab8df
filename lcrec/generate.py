"""Stage: a checkpoint and histories -> ranked items.

Reads a checkpoint folder and the data folder; decodes by beam search over the prefix tree of real
items, so every list holds real and distinct items only. For a split it writes `predictions.jsonl`
{user, target, ranked, scores, template_id}; for one history or one user it prints a table. Under
torchrun or accelerate the processes share the users, and the result is the same.

Public names: `GenerateConfig`, `predict_cases`, `show_ranking`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from lcrec.artifacts import find_data, is_current, write_provenance
from lcrec.config import config_dict, option, parse_config
from lcrec.data import Cases, Items, leave_one_out, load_interactions, load_items
from lcrec.errors import InputError, closest, run_stage
from lcrec.index import index_path
from lcrec.leaf_filter import LeafFilter
from lcrec.modeling import DTYPES
from lcrec.new_items import require_same_catalogue
from lcrec.predictions import (
    Prediction,
    read_predictions,
    require_predictions_path,
    write_predictions,
)
from lcrec.prompts import SHIPPED_PROMPTS, PromptSet, Template
from lcrec.recommender import Recommender

STAGE = "python -m lcrec.generate"


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `python -m lcrec.generate`."""

    model: Path = option("the checkpoint folder")
    data: Path = option("the data folder")
    output: Path | None = option("the predictions file to write, for a split", None)
    split: Literal["valid", "test"] = option("which held-out item to predict", "test")
    user: str | None = option("show one user's recommendations instead", None)
    history: list[int] | None = option("show recommendations for these items instead", None)
    k: int = option("items to rank per user", 20, minimum=1)
    beams: int | None = option("beams to search with (default: k, at least 20)", None, minimum=1)
    templates: list[str] = option(
        "seqrec wordings to ask with: ids, or 'all' that serve evaluation; the first by default",
        ["first"],
    )
    index: Path | None = option("an index that adds items to the checkpoint's own", None)
    prompts: Path | None = option("other wording than the checkpoint's own", None)
    exclude_history: bool = option("never recommend what the user already has", False)
    precision: Literal["fp32", "bf16", "fp16"] = option("arithmetic of the model", "fp32")
    batch_tokens: int = option("prompt tokens per batch, padding included", 4096, minimum=1)
    show: int = option("example users to print after a split", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(GenerateConfig, argv, description=__doc__ or "", prog=STAGE)
    output = config.output
    if sum(wish is not None for wish in (output, config.user, config.history)) != 1:
        raise InputError(
            "give one of --output FILE.jsonl (to rank for a split), --user and --history (to see "
            "one ranking)"
        )
    if output is not None:
        require_predictions_path(output)
    items = load_items(config.data)
    check_counts(config.k, config.beams, len(items))
    split = leave_one_out(load_interactions(config.data, len(items)))
    cases = split.valid if config.split == "valid" else split.test
    if config.history is not None:
        history = check_history(config.history, len(items))
    elif config.user is not None:
        history = history_of(cases, config.user).tolist()

    # Without `cpu`, Accelerate starts every process as if it were alone where there is no GPU.
    state = PartialState(cpu=not torch.accelerator.is_available())
    settings = config_dict(config)
    del settings["show"]
    paths = find_data(config.data)
    inputs = {"model": config.model, "item": paths.item, "inter": paths.inter}
    if config.index is not None:
        inputs["index"] = index_path(config.index)
    if config.prompts is not None:
        inputs["prompts"] = config.prompts
    if output is not None and output.exists() and is_current(output, STAGE, settings, inputs):
        state.print(f"{output} is up to date.")
        if state.is_main_process:
            show_examples(output, cases, items, config.show)
        return

    own_prompts = None
    if config.prompts is not None:
        own_prompts = PromptSet.load(config.prompts, base=SHIPPED_PROMPTS)
    require_same_catalogue(config.data, config.model, config.index)
    recommender = Recommender.from_pretrained(
        config.model,
        device=state.device,
        dtype=DTYPES[config.precision],
        index=config.index,
        prompts=own_prompts,
        max_batch_tokens=config.batch_tokens,
    )
    if len(recommender.index) != len(items):
        raise InputError(
            f"--data {config.data} has {len(items)} items, the index of "
            f"{config.index or config.model} has {len(recommender.index)}: they do not belong "
            "together (items that were added need --index, and the data folder that has them)"
        )
    templates = choose_templates(recommender.prompts, config.templates)

    if output is None:
        ranking = recommender.recommend(
            [history],
            config.k,
            template=templates[0],
            exclude_history=config.exclude_history,
            num_beams=config.beams,
        )
        if state.is_main_process:
            show_ranking(items, history, ranking.items[0], ranking.scores[0])
        return

    state.print(
        f"Ranking {len(items):,} items for {len(cases):,} users with {len(templates)} wording(s) "
        f"on {state.num_processes} process(es)"
    )
    predictions = predict_cases(
        recommender,
        cases,
        templates,
        config.k,
        exclude_history=config.exclude_history,
        num_beams=config.beams,
        state=state,
    )
    if state.is_main_process:
        write_predictions(output, predictions)
        write_provenance(output, STAGE, settings, inputs)
        show_examples(output, cases, items, config.show)
        print(f"Wrote {output}. Next: python -m lcrec.evaluate --predictions {output}")
    state.wait_for_everyone()


def check_counts(k: int, beams: int | None, num_items: int) -> None:
    """Refuse more items or beams than there are, and fewer beams than items to rank."""
    if k > num_items:
        raise InputError(f"--k {k}: the catalogue has only {num_items} items")
    if beams is not None and beams > num_items:
        raise InputError(f"--beams {beams}: the catalogue has only {num_items} items")
    if beams is not None and beams < k:
        raise InputError(f"--beams {beams} cannot rank --k {k} items; take at least {k} beams")


def check_history(history: list[int], num_items: int) -> list[int]:
    """Return the items of `--history`, refusing an empty list and ids that no item has."""
    if not history:
        raise InputError("--history: the list is empty; give at least one item id")
    for item in history:
        if not 0 <= item < num_items:
            raise InputError(
                f"--history: item {item} is not in the catalogue, whose ids are 0 to "
                f"{num_items - 1}"
            )
    return history


def choose_templates(prompts: PromptSet, wanted: list[str]) -> list[Template]:
    """Return the wordings named by `--templates`.

    Raises:
        InputError: an unknown id, or one that is no wording of seqrec.
    """
    serving = prompts.for_task("seqrec", "eval")
    if wanted == ["first"]:
        return serving[:1]
    if wanted == ["all"]:
        return serving
    templates = [prompts.get(template_id) for template_id in wanted]
    for template in templates:
        if template.task != "seqrec":
            raise InputError(f"--templates {template.id}: belongs to {template.task}, not seqrec")
    return templates


def history_of(cases: Cases, user: str) -> np.ndarray:
    """Return a user's history.

    Raises:
        InputError: there is no such user.
    """
    if user not in cases.users:
        raise InputError(f"--user {user}: not in the data set{closest(user, cases.users)}")
    return cases.histories[cases.users.index(user)]


def predict_cases(
    recommender: Recommender,
    cases: Cases,
    templates: list[Template],
    k: int,
    *,
    exclude_history: bool,
    num_beams: int | None,
    state: PartialState,
) -> list[Prediction]:
    """Return every case's ranking under every template, in the order of the cases.

    The batches are planned for all cases at once and dealt out to the processes, so each batch,
    and with it every score, is the same for any number of them. Complete on the main process.
    """
    predictions: list[Prediction] = []
    leaf_filter = None
    if exclude_history:
        leaf_filter = LeafFilter.build(recommender.trie, len(cases), deny=cases.histories)
    for template in templates:
        prompt_ids = recommender.prompt_ids(cases.histories, template)
        batches = recommender.plan_batches(prompt_ids)
        mine = range(state.process_index, len(batches), state.num_processes)
        own = []
        bar = tqdm(total=len(mine), desc=template.id, disable=not state.is_main_process)
        for number in mine:
            rows = batches[number]
            found = recommender.rank_batch(
                [prompt_ids[row] for row in rows],
                k,
                leaf_filter=leaf_filter and leaf_filter.rows(rows),
                num_beams=num_beams,
            )
            own.append((rows, *found))
            bar.update()
        bar.close()
        items = np.full((len(cases), k), -1, dtype=np.int64)
        scores = np.full((len(cases), k), -np.inf, dtype=np.float32)
        for rows, batch_items, batch_scores in gather_object(own):
            items[rows], scores[rows] = batch_items, batch_scores
        for case, (user, target) in enumerate(zip(cases.users, cases.targets, strict=True)):
            found_any = items[case] >= 0
            predictions.append(
                Prediction(
                    user,
                    int(target),
                    items[case][found_any],
                    scores[case][found_any],
                    template.id,
                )
            )
    return predictions


def show_examples(predictions: Path, cases: Cases, items: Items, count: int) -> None:
    """Print the recommendations of `count` users spread over the split."""
    if not count:
        return
    lists = next(iter(read_predictions(predictions).ranked.values()))
    for case in np.linspace(0, len(cases) - 1, min(count, len(cases)), dtype=int):
        print(f"\nUser {cases.users[case]}")
        target = int(cases.targets[case])
        show_ranking(items, cases.histories[case], lists[case][:5], target=target)
    print()


def show_ranking(
    items: Items,
    history: Sequence[int] | np.ndarray,
    ranked: np.ndarray,
    scores: np.ndarray | None = None,
    target: int | None = None,
) -> None:
    """Print what a user had and what is recommended, by title; `target` is marked if found."""
    print("  had, latest last:")
    for item in list(history)[-5:]:
        print(f"      {int(item):>7}  {items.title(int(item)):.80}")
    print("  recommended:")
    for place, item in enumerate(ranked.tolist(), start=1):
        if item < 0:
            break
        score = "" if scores is None else f"  {scores[place - 1]:8.3f}"
        mark = "  <- taken" if item == target else ""
        print(f"  {place:>3} {item:>7}{score}  {items.title(item):.80}{mark}")
    if target is not None and target not in ranked:
        print(f"  taken: {target:>4}  {items.title(target):.80}")


if __name__ == "__main__":
    run_stage(main)
