"""The prompt templates of the tasks: Jinja, one YAML file per task, that editors own.

Reads a folder of `<task>.yaml`, `<task>.<any name>.yaml`, `system.yaml` and `chat_template.jinja`.
In a folder of one's own, a file replaces the one of the same name in a base folder, one of a new
name adds to its task, and the rest comes from the base. Everything is checked on reading: a
`PromptSet` that was loaded renders for every item. `PromptSet.save` writes the same files, so a
checkpoint carries its own copy.

`lcrec prompts` has the tools for editors (see `lcrec.prompts.__main__`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from lcrec.core.artifacts import atomic_path, read_text
from lcrec.core.config import read_yaml
from lcrec.core.errors import InputError, closest
from lcrec.core.shipped import shipped
from lcrec.index.item_index import ITEM_TOKEN
from lcrec.prompts.rendering import SENTINEL, fix_prompt
from lcrec.prompts.tasks import TASKS, Task
from lcrec.prompts.templates import Template, read_template, text_faults

SHIPPED_PROMPTS = shipped("prompts")
SYSTEM = "system.yaml"
CHAT_TEMPLATE = "chat_template.jinja"
INTENTS = "intents.yaml"  # no task's: lcrec.prompts.intent_wording reads it
FILES = (*(f"{task}.yaml" for task in TASKS), SYSTEM, CHAT_TEMPLATE, INTENTS)
# Endings that editors and browsers give such a file.
STRAY_ENDINGS = (".txt", ".json", ".jinja", ".jinja2", ".j2")
# A text that YAML takes for a mapping.
UNQUOTED = re.compile(r"^[ \t-]*\w+:[ \t]+(\{[{%]|[^'\"|>\s].*:[ \t])", re.MULTILINE)
# What YAML says of other slips -> the rule that was broken.
YAML_RULES = {
    r"character '\t'": "indent with spaces, not with tabs",
    "escape character": 'between "" a backslash is written twice',
    "expected ':'": "text of several lines follows a | and stands further in than its key",
    "another document": "a file is one document: take out the line of three dashes",
    "<block end>": 'the keys of a template begin in one column; between "" stands no other "',
}


@dataclass(frozen=True)
class PromptSet:
    """All prompt templates in use.

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
    def load(cls, folder: str | Path = SHIPPED_PROMPTS, base: Path | None = None) -> "PromptSet":
        """Read and check a folder.

        Args:
            folder: the prompt templates to use; by default those that are shipped with lcrec.
            base: where to find what `folder` lacks, if it exists; usually `SHIPPED_PROMPTS`. A
                checkpoint's own copy is complete and needs none.

        Raises:
            InputError: no such folder, or anything in it is wrong.
        """
        prompts, faults = read_prompts(Path(folder), base)
        refuse_faults(faults, Path(folder))
        return prompts

    def save(self, folder: Path) -> None:
        """Write every file as it was read, replacing the folder atomically."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, text in self.sources.items():
                (temporary / name).write_text(text, encoding="utf-8")

    @cached_property
    def content_hash(self) -> str:
        """A sha256 of all templates; comments and layout of the files do not count."""
        return self.hash_of(TASKS)

    def hash_of(self, tasks: Collection[str]) -> str:
        """Return a sha256 like `content_hash`, without optional tasks that are not in `tasks`.

        So what was made without them stays up to date when one more is shipped.
        """
        rows = [
            [t.task, t.id, t.use, t.question, t.answer]
            for t in self.templates
            if TASKS[t.task].by_default or t.task in tasks
        ]
        content = json.dumps([self.system, self.chat_template, rows])
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def shows_neighbours(self) -> bool:
        """Whether a template of `seqrec` uses the variable `neighbours`."""
        return any(
            template.task == "seqrec" and "neighbours" in template.question_variables
            for template in self.templates
        )

    def for_task(self, task: str, use: Literal["train", "eval"] = "train") -> list[Template]:
        """Return the templates of a task that serve a use.

        Raises:
            InputError: there are none.
        """
        found = [t for t in self.templates if t.task == task and t.use in (use, "both")]
        if not found:
            raise InputError(f"no {use} templates for task {task!r}{closest(task, TASKS)}")
        return found

    def evaluation_templates(
        self,
        tasks: str | Sequence[str],
        wanted: Sequence[str] = ("first",),
        *,
        accepts: Callable[[Template], bool] = lambda template: True,
        that: str = "",
        kind: Callable[[Template], Hashable] = lambda template: None,
    ) -> list[Template]:
        """Return the templates that a model is evaluated and asked with, in their order.

        Every command and the validation in training choose here, so that "the first template" is
        the same one everywhere.

        Args:
            tasks: the task that a template must belong to, or several.
            wanted: ids; or `first` or `all` of those that serve evaluation.
            accepts: what else a template must fulfil.
            that: `accepts` in words for errors, such as "that asks with an intention".
            kind: `first` is the first template of each task and each kind.

        Raises:
            InputError: an unknown id, one named twice, one that is of another task or not
                accepted, or no template that serves evaluation.
        """
        tasks = [tasks] if isinstance(tasks, str) else tasks
        any_task, behind = " or ".join(tasks), that and f" {that}"
        if list(wanted) not in (["first"], ["all"]):
            templates = [self.get(template_id) for template_id in wanted]
            for place, template in enumerate(templates):
                named = f"--templates {template.id}"
                if template.task not in tasks:
                    raise InputError(f"{named}: belongs to {template.task}, not {any_task}")
                if not accepts(template):
                    raise InputError(f"{named}: is no template of {any_task}{behind}")
                if template in templates[:place]:
                    raise InputError(f"{named}: is named twice")
            return templates
        serving = [t for task in tasks for t in self.for_task(task, "eval") if accepts(t)]
        if not serving:
            raise InputError(f"no template of {any_task}{behind}; add one to prompts/")
        if list(wanted) == ["all"]:
            return serving
        first: dict[Hashable, Template] = {}
        for template in serving:
            first.setdefault((template.task, kind(template)), template)
        return list(first.values())

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


def refuse_faults(faults: list[str], folder: Path) -> None:
    """Refuse prompts with the first fault of a folder, if it has any.

    Raises:
        InputError: it has.
    """
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(
            f"{faults[0]}{more}; to see all: python -m lcrec.prompts check --prompts {folder}"
        )


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
            f"--prompts {folder}: no such folder; leave it out for the shipped templates, "
            f"{SHIPPED_PROMPTS}"
        )
    files = prompt_files(folder, base)
    faults = [fault for path in sorted(folder.iterdir()) if (fault := name_fault(path))]
    holds_any = any(path.parent == folder for path in files.values())
    if not (faults or holds_any or (folder / INTENTS).is_file()):
        faults.append(f"{folder}: holds no prompts; expected files such as {', '.join(FILES)}")

    templates: list[Template] = []
    owners: dict[str, Path] = {}
    for task in TASKS.values():
        own: list[Template] = []
        complete = True
        paths = [path for name, path in files.items() if _task_of(name) == task.name]
        for path in paths:
            found, whole = _read_task(path, task, faults)
            complete &= whole
            for template in found:
                if template.id in owners:
                    # Whoever edits this folder changes its files alone.
                    pair = path, owners[template.id]
                    mine, other = sorted(pair, key=lambda each: each.parent != folder)
                    faults.append(
                        f"{mine}: {template.id}: the id is used twice (also in {other.name}); "
                        "give the template its own"
                    )
                owners[template.id] = path
            own += found
        for use in ("train", "eval"):
            served = any(template.use in (use, "both") for template in own)
            if paths and complete and not served:
                faults.append(f"{paths[0]}: no template with use: {use} (or both)")
        templates += own
    sources = {name: _read_text(path, faults) for name, path in files.items()}
    system = _read_system(files[SYSTEM], faults) if SYSTEM in files else ""
    chat_template = sources.get(CHAT_TEMPLATE, "")
    if CHAT_TEMPLATE not in files:
        faults.append(f"{folder / CHAT_TEMPLATE}: no such file; copy the shipped one")
    elif not any(fault.startswith(f"{files[CHAT_TEMPLATE]}: ") for fault in faults):
        faults += [f"{files[CHAT_TEMPLATE]}: {f}" for f in chat_template_faults(chat_template)]
    prompts = PromptSet(tuple(templates), system, chat_template, sources)
    return prompts, list(dict.fromkeys(faults))


def name_fault(path: Path) -> str:
    """Return why something in a prompts folder is not read, as a line; empty where that is meant.

    A slip in a name must not make the shipped templates serve in silence.
    """
    name = path.name
    if name in FILES or _task_of(name) is not None:
        if path.is_file():
            return ""
        found = "a folder" if path.is_dir() else "no file, or a link to none"
        return f"{path}: is {found}; put a file there, or remove it"
    known = {file.split(".")[0] for file in FILES}
    ending = path.suffix.lower()
    is_meant = ending in (".yaml", ".yml") or (
        ending in STRAY_ENDINGS and name.split(".")[0].lower() in known
    )
    if not is_meant or name.startswith("."):
        return ""
    hint = closest(name.lower(), FILES)
    return f"{path}: not the file of a task{hint} (TASK.NAME.yaml adds to a task)"


def save_template(folder: Path, name: str, template: Template, known: PromptSet) -> Path:
    """Write a template into a prompts folder, as `<task>.<name>.yaml`, which adds it to its task.

    Args:
        folder: made where it is missing.
        name: tells the file from others of the task.
        template: checked (`read_template`).
        known: other templates whose ids are taken, besides those of the folder.

    Returns:
        The file.

    Raises:
        InputError: the name or the id will not do, or the file is there already.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"the name {name!r:.60} may hold letters, digits, '-' and '_' only")
    path = folder / f"{template.task}.{name}.yaml"
    if path.exists():
        raise InputError(f"{path} is there already; choose another name")
    beside, _ = read_prompts(folder if folder.is_dir() else SHIPPED_PROMPTS, SHIPPED_PROMPTS)
    if any(template.id == other.id for other in (*known.templates, *beside.templates)):
        raise InputError(f"the id {template.id!r} is used already; give the template its own")
    entry = {key: getattr(template, key) for key in ("id", "use", "question", "answer")}
    document = {"task": template.task, "templates": [entry]}
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=100)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def prompt_files(folder: Path, base: Path | None = None) -> dict[str, Path]:
    """Return the files in use by name: those of `folder`, and of `base` what `folder` lacks.

    A task's own file comes before those that add to it, `<task>.<any name>.yaml`.
    """
    found: dict[str, Path] = {}
    for place in (base or folder, folder):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            is_prompt = path.name in (SYSTEM, CHAT_TEMPLATE) or _task_of(path.name) is not None
            if is_prompt and path.is_file():
                found[path.name] = path
    return dict(sorted(found.items(), key=lambda entry: (entry[0].count("."), entry[0])))


def _task_of(name: str) -> str | None:
    """Return the task that a file of this name holds templates of, if any."""
    match = re.fullmatch(r"(\w+)(\.[\w-]+)?\.yaml", name)
    return match[1] if match and match[1] in TASKS else None


def _read_text(path: Path, faults: list[str]) -> str:
    try:
        return read_text(path, encoding="utf-8-sig")
    except InputError as error:
        faults.append(str(error))
        return ""


def read_mapping(path: Path, keys: tuple[str, ...], faults: list[str]) -> dict[str, Any]:
    """Return a YAML file's keys and values; on a fault, none of them."""
    try:
        document = read_yaml(path)
    except InputError as error:
        text = str(error)
        hint = ""
        if "not valid YAML" in text:
            hint = next((rule for said, rule in YAML_RULES.items() if said in text), "")
            if UNQUOTED.search(path.read_text(encoding="utf-8")):
                hint = "a text that begins with {{ or {%, or that holds ': ', needs quotes"
        faults.append("; ".join([" ".join(text.split()), *([hint] if hint else [])]))
        return {}
    if not isinstance(document, dict) or not document:
        found = f"{document!r:.60}" if document else "nothing"
        faults.append(f"{path}: expected the keys {', '.join(keys)}; found {found}")
        return {}
    unknown = [key for key in document if key not in keys]
    faults += [f"{path}: unknown key {key!r}{closest(str(key), keys)}" for key in unknown]
    return document


def _read_system(path: Path, faults: list[str]) -> str:
    """Return the system message, which is plain text and no template."""
    system = read_mapping(path, ("system",), faults).get("system")
    if system is None:
        return ""
    if not isinstance(system, str):
        faults.append(f"{path}: 'system' must be text, found {system!r:.60}; \"\" is no message")
        return ""
    faults += [f"{path}: {text}" for text in text_faults(system, "the message")]
    if "{{" in system or "{%" in system:
        faults.append(f"{path}: the message is no template, {{{{ }}}} would stay as it is")
    if item := ITEM_TOKEN.search(system):
        faults.append(f"{path}: the message spells {item[0]}, which may stand for an item")
    return system.strip()


def _read_task(path: Path, task: Task, faults: list[str]) -> tuple[list[Template], bool]:
    """Return the templates of a file, and whether that is all of them."""
    document = read_mapping(path, ("task", "templates"), faults)
    if not document:
        return [], False
    if document.get("task") != task.name:
        seen = document.get("task")
        faults.append(f"{path}: 'task' must be {task.name}, as the file is called; found {seen!r}")
    entries = document.get("templates")
    if not isinstance(entries, list):
        found = "nothing" if entries is None else f"{entries!r:.60}"
        faults.append(f"{path}: 'templates' must be a list of templates, found {found}")
        return [], False
    templates: list[Template] = []
    for number, entry in enumerate(entries, start=1):
        named = isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        template, problems = read_template(entry, task)
        templates += [template] if template else []
        faults += [f"{path}: {named or f'template {number}'}: {text}" for text in problems]
    return templates, len(templates) == len(entries)


def chat_template_faults(text: str) -> list[str]:
    """Return what is wrong with a chat template, tried the way `PromptEncoder` renders it."""
    messages = [{"role": "system", "content": "Words."}, {"role": "user", "content": SENTINEL}]
    try:
        _, prompt = fix_prompt(text, messages)
    except Exception as error:  # what an editor wrote may fail in any way
        return [f"cannot be rendered: {type(error).__name__}: {error}"]
    if (count := prompt.count(SENTINEL)) != 1:
        return [f"shows the question as it is {count} times; write each message's content once"]
    if prompt != prompt.rstrip(" \t"):
        return ["the prompt ends in a space, which runs into the answer"]
    return []
