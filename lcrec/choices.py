"""What a person chose on the command line of `lcrec.generate`, checked against the data.

Public names: `check_counts`, `load_allowed`, `find_history`, `choose_templates`.
"""

from pathlib import Path

import numpy as np

from lcrec.core.errors import InputError, closest
from lcrec.data.splits import Cases
from lcrec.prompts import Template
from lcrec.prompts.prompt_set import PromptSet


def check_counts(k: int, beams: int | None, num_items: int) -> None:
    """Refuse more items or beams than there are, and fewer beams than items to rank."""
    if k > num_items:
        raise InputError(f"--k {k}: the catalogue has only {num_items} items")
    if beams is not None and beams > num_items:
        raise InputError(f"--beams {beams}: the catalogue has only {num_items} items")
    if beams is not None and beams < k:
        raise InputError(f"--beams {beams} cannot rank --k {k} items; take at least {k} beams")


def load_allowed(
    allow: Path | None, deny: Path | None, k: int, num_items: int
) -> np.ndarray | None:
    """Return the items that `--allow` and `--deny` leave, int64 ascending; None for all.

    Raises:
        InputError: a file is missing or holds something else than item ids, or fewer than `k`
            items are left.
    """
    if allow is None and deny is None:
        return None
    may = np.full(num_items, allow is None)
    if allow is not None:
        may[read_item_ids(allow, "--allow", num_items)] = True
    if deny is not None:
        may[read_item_ids(deny, "--deny", num_items)] = False
    left = int(may.sum())
    if left < k:
        raise InputError(f"--k {k}: --allow and --deny leave only {left} of {num_items} items")
    return np.flatnonzero(may)


def read_item_ids(path: Path, flag: str, num_items: int) -> list[int]:
    """Read a text file of one item id per line; empty lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read as text ({error})") from None
    ids = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and int(text[:12]) < num_items):
            raise InputError(
                f"{flag} {path}, line {number}: expected an item id from 0 to {num_items - 1}, "
                f"found {text!r:.60}"
            )
        ids.append(int(text))
    return ids


def find_history(
    user: str | None, history: list[int] | None, cases: Cases, num_items: int
) -> list[int]:
    """Return the items of `--history` or of `--user`, none where neither is given.

    Raises:
        InputError: an item that is not in the catalogue, or no such user.
    """
    if user is not None:
        if user not in cases.users:
            raise InputError(f"--user {user}: not in the data set{closest(user, cases.users)}")
        return cases.histories[cases.users.index(user)].tolist()
    for item in history or []:
        if not 0 <= item < num_items:
            raise InputError(
                f"--history: item {item} is not in the catalogue, whose ids are 0 to "
                f"{num_items - 1}"
            )
    return history or []


def choose_templates(
    prompts: PromptSet, wanted: list[str], task: str = "seqrec", known: set[str] | None = None
) -> list[Template]:
    """Return the wordings named by `--templates`.

    Args:
        prompts: the wording.
        wanted: ids, or `first` or `all` of those that serve evaluation.
        task: what they must belong to.
        known: what there is to ask with, None for everything.

    Raises:
        InputError: an unknown id, one named twice, or one that is no wording of the task.
    """
    serving = [
        template
        for template in prompts.for_task(task, "eval")
        if known is None or template.question_variables <= known
    ]
    if not serving:
        given = " and ".join(sorted(known or ()))
        raise InputError(f"no wording of {task} asks with {given} alone; add one to prompts/")
    if wanted == ["first"]:
        return serving[:1]
    if wanted == ["all"]:
        return serving
    templates = [prompts.get(template_id) for template_id in wanted]
    for place, template in enumerate(templates):
        if template.task != task:
            raise InputError(f"--templates {template.id}: belongs to {template.task}, not {task}")
        if template in templates[:place]:
            raise InputError(f"--templates {template.id}: is named twice")
    return templates
