"""The wording of the tasks: Jinja templates, one YAML file per task, that editors own.

Reads a folder of `<task>.yaml`, `system.yaml` and `chat_template.jinja`; a folder of one's own
replaces what it holds and takes the rest from a base folder. Everything is checked on reading:
a `PromptSet` that was loaded renders for every item. `PromptSet.save` writes the same files, so a
checkpoint carries its own copy.

`python -m lcrec.prompts check|show|vars` is the editor's bench (see `lcrec.prompts_cli`).

Public names: `PromptSet`, `Template`, `read_prompts`, `SHIPPED_PROMPTS`.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lcrec.artifacts import PROMPTS, atomic_path
from lcrec.config import read_yaml
from lcrec.errors import InputError, closest, run_stage
from lcrec.index import ITEM_TOKEN
from lcrec.tasks import TASKS, Record, Task, plain_text

SHIPPED_PROMPTS = Path(PROMPTS)
SYSTEM = "system.yaml"
CHAT_TEMPLATE = "chat_template.jinja"
INTENTS = "intents.yaml"  # no task's: lcrec.intent_prompts reads it

ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
# Templates see the variables of their task and nothing else.
ENVIRONMENT.globals.clear()

# What strangers write into titles. A template must carry each of them as it is.
HOSTILE_TEXTS = tuple(
    plain_text(text, 60)
    for text in (
        "{{ 7 * 7 }} {% for x in y %} {# note #} {title}",
        "19\" rack 'n' roll \\n\nsecond line\r\n\tand a tab",
        "\u202eגיטרה\u202c قيثارة",
        "🎸👩🏽‍🎤 吉他",
        "long " * 2000,
        "unbroken" * 1250,
        "<a_12><b_3> <|im_end|></s>",
        "a_12>",
    )
)
EXAMPLE_ITEM = "<a_0><b_0><c_0>"


@cache
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str], bool]:
    """Return the compiled text, the variables it uses, and whether it is `{{ target }}` alone."""
    parsed = ENVIRONMENT.parse(source)
    variables = frozenset(meta.find_undeclared_variables(parsed))
    is_target = parsed.body == [nodes.Output([nodes.Name("target", "load")])]
    return ENVIRONMENT.from_string(parsed), variables, is_target


@dataclass(frozen=True)
class Template:
    """One wording of a task.

    Attributes:
        id: stable name, unique in the set; a new wording gets a new id.
        task: the task it belongs to.
        use: where it serves.
        question, answer: the Jinja text of both sides.

    Raises:
        jinja2.TemplateSyntaxError: a side is no Jinja.
    """

    id: str
    task: str
    use: Literal["train", "eval", "both"]
    question: str
    answer: str

    def __post_init__(self) -> None:
        _compile(self.question)
        _compile(self.answer)

    @cached_property
    def question_variables(self) -> frozenset[str]:
        """What the question uses."""
        return _compile(self.question)[1]

    @cached_property
    def answer_variables(self) -> frozenset[str]:
        """What the answer uses."""
        return _compile(self.answer)[1]

    @cached_property
    def is_item_answer(self) -> bool:
        """Whether a decoder bound to the catalogue must give the answer; if not, it is text."""
        return _compile(self.answer)[2]

    def fits(self, record: Record) -> bool:
        """Tell whether the record has everything that question and answer use."""
        return self.can_ask(record) and all(map(record.get, self.answer_variables))

    def can_ask(self, record: Record) -> bool:
        """Tell whether the record, which may lack the answers, has all that the question uses."""
        return all(map(record.get, self.question_variables))

    def ask(self, record: Record) -> str:
        """Return the question, without space around it; the record needs no answers.

        Raises:
            InputError: the template cannot be rendered for this record.
        """
        return self._render(self.question, record)

    def render(self, record: Record) -> tuple[str, str]:
        """Return question and answer, without space around them.

        Raises:
            InputError: the template cannot be rendered for this record.
        """
        return self.ask(record), self._render(self.answer, record)

    def _render(self, side: str, record: Record) -> str:
        try:
            return _compile(side)[0].render(record).strip()
        except Exception as error:  # what an editor wrote may fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"template {self.id} cannot be rendered: {reason}") from error


@dataclass(frozen=True)
class PromptSet:
    """All wordings in use.

    Attributes:
        templates: by task in the order of `TASKS`, within a task in the order of its file.
        system: the system message; empty for none.
        chat_template: role markup for a tokenizer that has none.
        sources: the text of every file, by file name.
    """

    templates: tuple[Template, ...]
    system: str
    chat_template: str
    sources: dict[str, str]

    @classmethod
    def load(cls, folder: Path, base: Path | None = None) -> "PromptSet":
        """Read and check a folder.

        Args:
            folder: the prompts to use.
            base: where to find what `folder` lacks, if it exists; usually `SHIPPED_PROMPTS`. A
                checkpoint's own copy is complete and needs none.

        Raises:
            InputError: no such folder, or anything in it is wrong.
        """
        prompts, faults = read_prompts(folder, base)
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise InputError(
                f"{faults[0]}{more}; to see all: python -m lcrec.prompts check --prompts {folder}"
            )
        return prompts

    def save(self, folder: Path) -> None:
        """Write every file as it was read, replacing the folder atomically."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, text in self.sources.items():
                (temporary / name).write_text(text, encoding="utf-8")

    @cached_property
    def content_hash(self) -> str:
        """A sha256 of all wording; comments and layout of the files do not count."""
        rows = [[t.task, t.id, t.use, t.question, t.answer] for t in self.templates]
        content = json.dumps([self.system, self.chat_template, rows])
        return hashlib.sha256(content.encode()).hexdigest()

    def for_task(self, task: str, use: Literal["train", "eval"] = "train") -> list[Template]:
        """Return the templates of a task that serve a use.

        Raises:
            InputError: there are none.
        """
        found = [t for t in self.templates if t.task == task and t.use in (use, "both")]
        if not found:
            raise InputError(f"no {use} templates for task {task!r}{closest(task, TASKS)}")
        return found

    def get(self, template_id: str) -> Template:
        """Return the template of this id.

        Raises:
            InputError: there is none.
        """
        by_id = {template.id: template for template in self.templates}
        if template_id not in by_id:
            raise InputError(f"no template {template_id!r}{closest(template_id, by_id)}")
        return by_id[template_id]

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return the conversation that a chat template turns into the prompt."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": question}]


def read_prompts(folder: Path, base: Path | None = None) -> tuple[PromptSet, list[str]]:
    """Read a folder and all that is wrong with it, one line per fault.

    Args:
        folder: the prompts to use.
        base: where to find what `folder` lacks, if it exists.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"--prompts {folder}: no such folder; the shipped one is prompts/ in the top folder "
            "of lcrec: run from there, or name another"
        )
    known = [*(f"{name}.yaml" for name in TASKS), SYSTEM, CHAT_TEMPLATE]
    places = (base or folder, folder)
    files = {n: place / n for place in places for n in known if (place / n).is_file()}
    faults = [
        f"{path}: not the file of a task{closest(path.stem + '.yaml', [*known, INTENTS])}"
        for path in sorted(folder.glob("[!.]*.y*ml"))
        if path.name not in (*known, INTENTS)
    ]
    if folder not in {path.parent for path in files.values()} and not (folder / INTENTS).is_file():
        faults.append(f"{folder}: holds no prompts; expected files such as {', '.join(known)}")

    templates: list[Template] = []
    for task in TASKS.values():
        if f"{task.name}.yaml" in files:
            templates += _read_task(files[f"{task.name}.yaml"], task, faults)
    owners: dict[str, str] = {}
    for template in templates:
        if template.id in owners:
            where = f"{files[template.task + '.yaml']}: {template.id}"
            faults.append(f"{where}: the id is used twice (also in {owners[template.id]}.yaml)")
        owners[template.id] = template.task
    system = ""
    if SYSTEM in files:
        system = _read_mapping(files[SYSTEM], ("system",), faults).get("system") or ""
        if not isinstance(system, str):
            faults.append(f"{files[SYSTEM]}: 'system' must be text; write \"\" for no message")
            system = ""
    sources = {name: _read_text(path, faults) for name, path in files.items()}
    if CHAT_TEMPLATE not in sources:
        faults.append(f"{folder / CHAT_TEMPLATE}: no such file; copy the shipped one")
    prompts = PromptSet(tuple(templates), system.strip(), sources.get(CHAT_TEMPLATE, ""), sources)
    return prompts, list(dict.fromkeys(faults))


def _read_text(path: Path, faults: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path}: cannot be read as UTF-8 text ({error})")
        return ""


def _read_mapping(path: Path, keys: tuple[str, ...], faults: list[str]) -> dict[str, Any]:
    """Return a YAML file's keys and values; on a fault, none of them."""
    try:
        document = read_yaml(path)
    except InputError as error:
        text = str(error)
        hint = "; a value that begins with {{ needs quotes" if "unhashable" in text else ""
        faults.append(" ".join(text.split()) + hint)
        return {}
    if not isinstance(document, dict) or not document:
        faults.append(f"{path}: expected {' and '.join(f'{key}:' for key in keys)}")
        return {}
    unknown = [key for key in document if key not in keys]
    faults += [f"{path}: unknown key {key!r}{closest(str(key), keys)}" for key in unknown]
    return document


def _read_task(path: Path, task: Task, faults: list[str]) -> list[Template]:
    document = _read_mapping(path, ("task", "templates"), faults)
    if not document:
        return []
    if document.get("task") != task.name:
        seen = document.get("task")
        faults.append(f"{path}: 'task' must be {task.name}, as the file is called; found {seen!r}")
    entries = document.get("templates")
    if not isinstance(entries, list):
        faults.append(f"{path}: 'templates' must be a list of templates")
        return []
    templates: list[Template] = []
    for number, entry in enumerate(entries, start=1):
        named = isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        template, problems = _read_template(entry, task)
        templates += [template] if template else []
        faults += [f"{path}: {named or f'template {number}'}: {text}" for text in problems]
    for use in ("train", "eval"):
        served = any(template.use in (use, "both") for template in templates)
        if not served and len(templates) == len(entries):
            faults.append(f"{path}: no template with use: {use} (or both)")
    return templates


def _read_template(entry: Any, task: Task) -> tuple[Template | None, list[str]]:
    """Return the template, if it can be made, and what is wrong with it."""
    faults = list(_entry_faults(entry))
    if faults:
        return None, faults
    try:
        template = Template(**{"task": task.name, "use": "both", **entry})
    except jinja2.TemplateSyntaxError as error:
        return None, [f"not valid Jinja, line {error.lineno}: {error.message}"]
    return template, _variable_faults(template, task) or _render_faults(template, task)


def _entry_faults(entry: object) -> Iterator[str]:
    """Yield what is wrong with a template's keys and values."""
    if not isinstance(entry, dict):
        yield f"expected id, use, question and answer, found {entry!r:.60}"
        return
    known = ("id", "use", "question", "answer")
    for key in (key for key in entry if key not in known):
        yield f"unknown key {key!r}{closest(str(key), known)}"
    for key in ("id", "question", "answer"):
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            yield f"{key!r} must be text, found {value!r:.60}"
        elif key == "id":
            if not re.fullmatch(r"[\w.-]+", value):
                yield f"the id {value!r} may hold letters, digits, '-', '_' and '.' only"
        elif any(line != line.rstrip() for line in value.split("\n")):
            yield f"the {key} has spaces at the end of a line"
    if entry.get("use", "both") not in ("train", "eval", "both"):
        yield f"'use' must be train, eval or both, found {entry['use']!r:.60}"


def _variable_faults(template: Template, task: Task) -> list[str]:
    """Return what is wrong with the variables a template uses."""
    faults = []
    roles = {"question": template.question_variables, "answer": template.answer_variables}
    for side, used in roles.items():
        for name in sorted(used - task.variables.keys()):
            faults.append(
                f"the {side} uses {name!r}, which {task.name} does not have"
                f"{closest(name, task.variables)} (all: python -m lcrec.prompts vars {task.name})"
            )
        own = [name for name, variable in task.variables.items() if variable.role == side]
        if not faults and not used.intersection(own):
            faults.append(f"the {side} uses none of {', '.join(own)}")
    for name in sorted(template.question_variables & task.variables.keys()):
        if task.variables[name].role == "answer":
            faults.append(f"the question gives the answer away: it uses {name!r}")
    if "target" in template.answer_variables and not template.is_item_answer:
        faults.append("an answer with an item must be exactly {{ target }}, nothing around it")
    return faults


def _render_faults(template: Template, task: Task) -> list[str]:
    """Return what goes wrong when a template meets hostile items, once for each side."""
    faults: dict[str, str] = {}
    for text, length in itertools.product(HOSTILE_TEXTS, (1, 3)):
        record: Record = {}
        for name, variable in task.variables.items():
            value = EXAMPLE_ITEM if variable.is_tokens else text
            record[name] = [value] * length if variable.type == "list of text" else value
        try:
            sides = template.render(record)
        except InputError as error:
            return [str(error)]
        for side, result in zip(("question", "answer"), sides, strict=True):
            lists = (n for n, v in record.items() if isinstance(v, list) and str(v) in result)
            naked, fake = next(lists, None), ITEM_TOKEN.search(result.replace(EXAMPLE_ITEM, " "))
            if naked:
                faults[side] = f"the {side} needs {{{{ {naked} | join(', ') }}}}: it is a list"
            elif fake:
                faults[side] = f"the {side} spells {fake[0]}, which stands for no item"
            elif not result:
                faults[side] = f"the {side} can be empty"
    return list(faults.values())


if __name__ == "__main__":
    from lcrec.prompts_cli import main

    run_stage(main)
