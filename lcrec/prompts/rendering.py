"""Jinja templates of strangers, rendered within bounds, and the same today and tomorrow.

The sandbox keeps a template away from the machine, but not from its memory and time:
`BoundedEnvironment` ends a rendering that writes or computes too much. `fix_prompt` takes the
clock, chance and thinking out of a chat model's template, so that a model is asked tomorrow with
what it was trained on.
"""

import json
import re
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from lcrec.core.errors import InputError

# Of one rendering: characters written, on the way too, and rounds of loops, together.
MOST_WORK = 2_000_000
ROUND = 20  # what a round counts, in characters
# A template needs no larger number; `center(2000000000)` would fill the memory in one step.
MOST_NUMBER = 1_000_000
WIDE_FORMAT = re.compile(r"[%{]\D*\d{7}")
TOO_LONG = (
    f"it writes more than {MOST_WORK:,} characters, or loops more than {MOST_WORK // ROUND:,} times"
)


class RenderingTooLong(jinja2.TemplateRuntimeError):
    """A template wrote or computed more than `MOST_WORK`."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no rendering goes on for ever.

    Every template is changed when it is parsed: loops and macros count their rounds, and what
    filters, calls, operators and outputs give is counted by its length. The bound is on work, not
    on seconds, so it is the same on every machine.

    Raises:
        RenderingTooLong: from a template's `render`.
        jinja2.TemplateSyntaxError: from parsing, for a number beyond `MOST_NUMBER` too.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        # Optimised, Jinja would compute constants while it compiles, out of reach of the bounds.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, **settings)
        self.finalize = self.count

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        for constant in parsed.find_all(nodes.Const):
            value = constant.value
            is_large = isinstance(value, int | float) and abs(value) > MOST_NUMBER
            if is_large or (isinstance(value, str) and WIDE_FORMAT.search(value)):
                raise jinja2.TemplateSyntaxError(
                    f"{value!r:.60} holds a number beyond {MOST_NUMBER:,}", constant.lineno
                )
        return _CountWork().visit(parsed)

    @pass_context
    def step(self, context: Context, work: int) -> None:
        """Count a round of a loop or a macro, which writes `work` characters of its own."""
        context.work = getattr(context, "work", 0) + ROUND + work  # type: ignore[attr-defined]
        if context.work > MOST_WORK:  # type: ignore[attr-defined]
            raise RenderingTooLong(TOO_LONG)

    @pass_context
    def count(self, context: Context, value: Any) -> Any:
        """Count a value by its length and return it."""
        if isinstance(value, int | float) and abs(value) > MOST_NUMBER:
            raise RenderingTooLong(f"it computes with a number beyond {MOST_NUMBER:,}")
        self.step(context, len(value) if isinstance(value, str | list | tuple | dict) else 0)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, refusing what would be too large before it is made."""
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    self.step(context, len(many) * max(times, 0))
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers and right * left.bit_length() > 64:
            raise RenderingTooLong(f"it computes with a number beyond {MOST_NUMBER:,}")
        return self.count(context, super().call_binop(context, operator, left, right))


class _CountWork(NodeTransformer):
    """Puts calls of an environment's `step` and `count` into a template."""

    def _loop(self, node: Any) -> nodes.Node:
        written = sum(len(text.data) for part in node.body for text in part.find_all(_TEXT))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step", nodes.Const(written))))
        return node

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return _call("count", node)

    def _body(self, node: Any) -> nodes.Node:
        """Leave alone what is no expression of its own: `{% filter x %}`, `{% call f() %}`."""
        node.body = [self.visit(part) for part in node.body]
        return node

    visit_For = visit_Macro = _loop
    visit_Filter = visit_Call = visit_Concat = _counted
    visit_FilterBlock = visit_AssignBlock = visit_CallBlock = _body


_TEXT = nodes.TemplateData


def _call(name: str, argument: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)


# What stands for the question where a prompt's markup is rendered.
SENTINEL = "\u2063lcrec\u2063"
# The day that a chat template is told, always: a model is asked as it was trained, and the same
# command trains the same model tomorrow.
DAY = datetime(2025, 1, 1)
RENDERINGS = 8  # all alike, or chance has a hand in them
MOVING = re.compile("strftime_now|random|enable_thinking")
RANDOM = re.compile(r"\|(\s*)random\b(?:\s*\(\s*\))?")
# A tag of transformers' own that marks the assistant's words; nothing of it is written.
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# What a chat template opens for models that think aloud, such as <think>.
THINKING = re.compile(r"([<\[◁])((?:\w+:)?think(?:ing)?)([>\]▷])", re.IGNORECASE)


@cache
def _chat_environment() -> BoundedEnvironment:
    """Return Jinja as transformers sets it up for chat templates, without the clock."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = BoundedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment


def fix_prompt(template: str, messages: list[dict[str, str]], **variables: Any) -> tuple[str, str]:
    """Return a chat template without clock, chance and thinking, and what it makes of a prompt.

    The clock always shows `DAY`, a random choice takes the first, a model that can think is asked
    not to, and a thought that is opened is closed, empty, as Qwen3's own template writes it. A
    template without any of these is returned as it is.

    Args:
        template: the chat template.
        messages: of `role` and `content`; the last holds `SENTINEL`.
        variables: what else the template is given, such as `bos_token`.

    Raises:
        Exception: whatever a stranger's template may raise; `RenderingTooLong` where it writes too
            much, `jinja2.TemplateError` where chance remains.
    """
    if MOVING.search(template):  # what follows takes as long as compiling the template
        template = _fix_template(template)
    compiled = _chat_environment().from_string(GENERATION.sub("", template))
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **variables}
    texts = {compiled.render(messages=messages, **given) for _ in range(RENDERINGS)}
    if len(texts) > 1:
        raise jinja2.TemplateError("it writes another prompt each time")
    text = texts.pop()
    end = _end_of_thought(text.rpartition(SENTINEL)[2])
    if end:
        closing = f"{{{{ {end!r} if add_generation_prompt else '' }}}}"
        template, text = template.removesuffix("\n") + closing, text + end
    return template, text


def _fix_template(template: str) -> str:
    """Return a chat template without clock, random choices and the switch for thinking."""
    parsed = _chat_environment().parse(GENERATION.sub("", template))
    names = meta.find_undeclared_variables(parsed)
    if any(found.name == "random" for found in parsed.find_all(nodes.Filter)):
        template = RANDOM.sub(r"|\1first", template)
    if "enable_thinking" in names:
        template = "{%- set enable_thinking = false %}\n" + template
    if "strftime_now" in names:
        shown = dict.fromkeys(re.findall(r"%-?\w", template))
        days = "".join(f"|replace({sign!r}, {DAY.strftime(sign)!r})" for sign in shown)
        macro = f"{{%- macro strftime_now(format) -%}}{{{{ format{days} }}}}{{%- endmacro %}}\n"
        template = macro + template
    return template


def _end_of_thought(after: str) -> str:
    """Return what closes the thought that a prompt's end leaves open, if it does."""
    opened = list(THINKING.finditer(after))
    if not opened:
        return ""
    left, name, right = opened[-1].groups()
    thought, close = after[opened[-1].end() :], f"{left}/{name}{right}"
    if close in thought:
        return ""
    gap = "" if thought.endswith("\n") else "\n"
    return f"{gap}\n{close}\n\n"


def split_markup(text: str, source: str) -> tuple[str, str]:
    """Return what stands before and after the question, which is `SENTINEL`, in a prompt.

    Raises:
        InputError: the question is not there exactly once, as it is; `source` names the culprit.
    """
    parts = text.split(SENTINEL)
    if len(parts) != 2:
        raise InputError(f"{source} does not show a question as it is")
    return parts[0], parts[1]
