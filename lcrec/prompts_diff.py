"""What changed in the wording since a model was trained.

Compares two `PromptSet`s and reads nothing itself; writes to the screen only.

Public names: `print_differences`, `word_diff`.
"""

import re
from difflib import SequenceMatcher
from itertools import groupby

from lcrec.prompts import PromptSet
from lcrec.prompts_show import paint
from lcrec.tasks import TASKS
from lcrec.templates import Template

PIECES = re.compile(r"\w+|\s+|.")


def print_differences(old: PromptSet, new: PromptSet) -> int:
    """Print every difference, by task and template id, and return how many there are.

    Args:
        old: what a model was trained on.
        new: what stands in the folder now.
    """
    entries = [entry for task in TASKS for entry in _task_differences(task, old, new)]
    if old.system != new.system:
        entries.append(("system", ["reworded:", word_diff(old.system, new.system)]))
    if old.chat_template != new.chat_template:
        note = "changed (a trained model keeps the markup in its tokenizer)"
        diff = word_diff(old.chat_template, new.chat_template)
        entries.append(("chat template", [note, diff]))
    for heading, group in groupby(entries, key=lambda entry: entry[0]):
        print(f"\n{heading}")
        for _, lines in group:
            print("  " + "\n".join(lines).replace("\n", "\n      "))
    return len(entries)


def _task_differences(task: str, old: PromptSet, new: PromptSet) -> list[tuple[str, list[str]]]:
    """Return (task, lines) for every template that differs, in the order of the new set."""
    before = {t.id: t for t in old.templates if t.task == task}
    after = {t.id: t for t in new.templates if t.task == task}
    gone = {name: template for name, template in before.items() if name not in after}
    entries = []
    for template in after.values():
        known = before.get(template.id)
        if known is None:
            same = (name for name, t in gone.items() if _wording(t) == _wording(template))
            was = next(same, None)
            if was is None:
                entries.append([f"+ {template.id}: added (use: {template.use})", *_text(template)])
            else:
                use = _use(gone.pop(was), template)
                entries.append([f"= {template.id}: was called {was}", *use])
        elif _wording(known) != _wording(template):
            note = "reworded; under its old id it is not the wording that results speak of"
            entries.append([f"~ {template.id}: {note}", *_use(known, template)])
            for side in ("question", "answer"):
                texts = getattr(known, side).strip(), getattr(template, side).strip()
                entries[-1] += [f"{side}: {word_diff(*texts)}"] if texts[0] != texts[1] else []
        elif known.use != template.use:
            entries.append([f"~ {template.id}:", *_use(known, template)])
    entries += [[f"- {name}: removed", *_text(template)] for name, template in gone.items()]
    return [(task, entry) for entry in entries]


def _wording(template: Template) -> tuple[str, str]:
    return template.question.strip(), template.answer.strip()


def _use(old: Template, new: Template) -> list[str]:
    return [f"use: {old.use} -> {new.use}"] if old.use != new.use else []


def _text(template: Template) -> list[str]:
    question, answer = _wording(template)
    return [question, f"> {answer}"]


def word_diff(old: str, new: str) -> str:
    """Return the new text with what was taken out as [-...-] and what was put in as {+...+}.

    On a terminal, red and green stand for the brackets.
    """
    before, after = PIECES.findall(old), PIECES.findall(new)
    result = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            result += after[c:d]
            continue
        if taken := "".join(before[a:b]):
            result.append(paint(taken, "red", f"[-{taken}-]"))
        if put := "".join(after[c:d]):
            result.append(paint(put, "green", f"{{+{put}+}}"))
    return "".join(result)
