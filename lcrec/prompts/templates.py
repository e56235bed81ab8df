"""One prompt template of a task: rendering it, and all that can be wrong with it.

A template is checked when it is read, against hostile texts too: one that was read renders for
every item, spells no item token of its own and gives no answer away.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes

from lcrec.core.errors import InputError, closest
from lcrec.index.item_index import ITEM_TOKEN
from lcrec.prompts.rendering import BoundedEnvironment
from lcrec.prompts.tasks import TASKS, Record, Task, plain_text

ENVIRONMENT = BoundedEnvironment(undefined=jinja2.StrictUndefined)
# Templates see the variables of their task and nothing else, and write the same each time.
ENVIRONMENT.globals.clear()
del ENVIRONMENT.filters["random"]

# What sellers and customers write into titles. A template must carry each of them as it is.
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
        "&lt;a_12&gt;",  # `striptags` resolves entities
        ">21_a< x",  # `reverse`
    )
)
EXAMPLE_ITEM = "<a_0><b_0><c_0>"
LONG_ITEM = "<a_255><b_255><c_255><d_255>"
# Role markup of well-known chat models, which editors paste; it is the tokenizer's to add.
MARKUP = re.compile(r"<\|[^\s|>]+\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")


Side = Literal["question", "answer"]
SIDES: tuple[Side, Side] = ("question", "answer")
# What a template may do with values without looking at what they say.
_PASSING = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.For,
    nodes.Filter,
    nodes.If,
    nodes.CondExpr,
    nodes.Not,
    nodes.Add,
    nodes.Getattr,
)
_HOLE = "\u2063"
_PASSING_FILTERS = {"first", "join", "last", "length", "reverse"}


@cache
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str], bool]:
    """Return the compiled text, the variables it uses, and whether it is `{{ target }}` alone."""
    parsed = ENVIRONMENT.parse(source)
    variables = frozenset(meta.find_undeclared_variables(parsed))
    is_target = parsed.body == [nodes.Output([nodes.Name("target", "load")])]
    return ENVIRONMENT.from_string(parsed), variables, is_target


@cache
def _passes_on(source: str) -> bool:
    parsed = jinja2.Environment().parse(source)
    filters = {found.name for found in parsed.find_all(nodes.Filter)}
    owners = [found.node for found in parsed.find_all(nodes.Getattr)]
    return (
        filters <= _PASSING_FILTERS
        and all(isinstance(own, nodes.Name) and own.name == "loop" for own in owners)
        and all(isinstance(found, _PASSING) for found in parsed.find_all(nodes.Node))
    )


@dataclass(frozen=True)
class Template:
    """One prompt template of a task.

    Attributes:
        id: stable name, unique in the set; a new template gets a new id.
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

    def text(self, side: Side) -> str:
        """Return the Jinja text of a side."""
        return self.question if side == "question" else self.answer

    def variables(self, side: Side) -> frozenset[str]:
        """Return what a side uses."""
        return self.question_variables if side == "question" else self.answer_variables

    def passes_on(self, side: Side) -> bool:
        """Tell whether a side writes values as they are, deciding nothing by what they say."""
        return _passes_on(self.text(side))

    def frame(self, side: Side) -> list[str] | None:
        """Return a side's own text and, at every odd place, the name of what it writes there.

        None where it does more than write texts, one after the other.
        """
        source = self.text(side)
        parsed = jinja2.Environment().parse(source)
        if _HOLE in source or any(parsed.find_all((nodes.For, nodes.Filter))):
            return None
        holes: Record = {name: f"{_HOLE}{name}{_HOLE}" for name in self.variables(side)}
        return self.render_side(side, holes).split(_HOLE) if self.passes_on(side) else None

    @cached_property
    def needs(self) -> frozenset[str]:
        """What a record must have, so that the template is used for it."""
        return frozenset(self._needed(self.question_variables | self.answer_variables))

    def fits(self, record: Record) -> bool:
        """Tell whether the record has everything that question and answer use."""
        return all(map(record.get, self.needs))

    def can_ask(self, record: Record) -> bool:
        """Tell whether the record, which may lack the answers, has all that the question uses."""
        return all(map(record.get, self._needed(self.question_variables)))

    def _needed(self, names: frozenset[str]) -> Iterator[str]:
        """Yield the variables that may not be empty."""
        variables = TASKS[self.task].variables
        return (name for name in names if not variables[name].is_optional)

    def ask(self, record: Record) -> str:
        """Return the question, without space around it; the record needs no answers.

        Raises:
            InputError: the template cannot be rendered for this record.
        """
        return self.render_side("question", record)

    def render(self, record: Record) -> tuple[str, str]:
        """Return question and answer, without space around them; raises as `ask`."""
        return self.ask(record), self.render_side("answer", record)

    def render_side(self, side: Side, record: Record) -> str:
        """Return one side, without space around it; raises as `ask`."""
        try:
            return _compile(self.text(side))[0].render(record).strip()
        except Exception as error:  # what an editor wrote may fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"template {self.id}: the {side} cannot be rendered: {reason}"
            ) from error


def syntax_fault(text: str) -> str:
    """Return why a text is not valid Jinja, as the end of a sentence; empty where it is."""
    try:
        _compile(text)
    except jinja2.TemplateSyntaxError as error:
        missing = re.search(r"No filter named '(\w+)'", error.message or "")
        hint = closest(missing[1], ENVIRONMENT.filters) if missing else ""
        return f"not valid Jinja, line {error.lineno}: {error.message}{hint}"
    except (RecursionError, MemoryError, SyntaxError):  # from Jinja's parser, or Python's after it
        return "not valid Jinja: brackets stand too deep within each other"
    return ""


def read_template(entry: Any, task: Task) -> tuple[Template | None, list[str]]:
    """Return the template, if it can be made, and what is wrong with it.

    Args:
        entry: one entry of a task's file, as YAML gave it.
        task: the task of the file.
    """
    faults = list(_entry_faults(entry))
    if faults:
        return None, faults
    found = {side: syntax_fault(entry[side]) for side in SIDES}
    if faults := [f"the {side} is {fault}" for side, fault in found.items() if fault]:
        return None, faults
    template = Template(**{"task": task.name, "use": "both", **entry})
    faults = _variable_faults(template, task) or _render_faults(template, task)
    return template, faults or _item_faults(template, task)


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
            found = "nothing" if value is None else f"{value!r:.60}"
            yield f"{key!r} must be text, found {found}"
        elif key == "id":
            if not re.fullmatch(r"[\w.-]+", value):
                yield f"the id {value!r} may hold letters, digits, '-', '_' and '.' only"
        else:
            yield from text_faults(value, f"the {key}")
    if entry.get("use", "both") not in ("train", "eval", "both"):
        yield f"'use' must be train, eval or both, found {entry['use']!r:.60}"


def text_faults(text: str, name: str) -> Iterator[str]:
    """Yield what is wrong with a text of any prompts file; `name` is what to call it."""
    if any(line != line.rstrip() for line in text.split("\n")):
        yield f"{name} has spaces at the end of a line"
    if markup := MARKUP.search(text):
        yield f"{name} spells {markup[0]}: role markup comes from the tokenizer, leave it out"


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
            faults.append(f"the {side} uses none of {', '.join(own)}: write {{{{ {own[0]} }}}}")
    for name in sorted(template.question_variables & task.variables.keys()):
        if task.variables[name].role == "answer":
            faults.append(f"the question gives the answer away: it uses {name!r}")
    if "target" in template.answer_variables and not template.is_item_answer:
        faults.append(
            "an answer with an item must be exactly {{ target }}, nothing around it; found "
            f"{template.answer.strip()!r:.60}"
        )
    return faults


def _render_faults(template: Template, task: Task) -> list[str]:
    """Return what goes wrong when a template meets hostile items, once for each side."""
    faults: dict[str, str] = {}
    for text, length in itertools.product(HOSTILE_TEXTS, (0, 1, 3)):
        record: Record = {}
        for name, variable in task.variables.items():
            value = EXAMPLE_ITEM if variable.is_tokens else text
            is_list, least = variable.type == "list of text", not variable.is_optional
            record[name] = [value] * max(length, least) if is_list else value
        try:
            sides = template.render(record)
        except InputError as error:
            return [str(error).removeprefix(f"template {template.id}: ")]
        for side, result in zip(("question", "answer"), sides, strict=True):
            lists = (n for n, v in record.items() if v and isinstance(v, list) and str(v) in result)
            naked, fake = next(lists, None), ITEM_TOKEN.search(result.replace(EXAMPLE_ITEM, " "))
            if naked:
                faults[side] = f"the {side} needs {{{{ {naked} | join(', ') }}}}: it is a list"
            elif fake:
                faults[side] = f"the {side} spells {fake[0]}, which stands for no item"
            elif not result:
                faults[side] = f"the {side} can be empty"
    return list(faults.values())


def _item_faults(template: Template, task: Task) -> list[str]:
    """Return whether items do not come through as they are: changed, or cut off, by a filter."""
    faults = []
    tokens = {name for name, variable in task.variables.items() if variable.is_tokens}
    for side in SIDES:
        used = sorted(tokens & template.variables(side))
        if not used:
            continue
        shown = []
        for item in (EXAMPLE_ITEM, LONG_ITEM):
            record: Record = {}
            for name, variable in task.variables.items():
                value = item if variable.is_tokens else "text"
                record[name] = [value] * 25 if variable.type == "list of text" else value
            shown.append(template.render_side(side, record).count(item))
        if 0 in shown or shown[0] != shown[1]:
            faults.append(
                f"the {side} shows no item as it is, whole: write {' or '.join(used)} without a "
                "filter that changes or cuts its tokens"
            )
    return faults
