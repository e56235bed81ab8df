"""The prompt templates of `lcrec.intents`: questions to a chat model, and sentences of keywords.

Reads `intents.yaml` of a prompts folder, or of a base folder where that has none. Writes nothing.
Unlike the templates of the tasks they are not kept with a checkpoint: what they yield is.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from jinja2 import meta

from lcrec.core.errors import InputError, closest
from lcrec.prompts.prompt_set import INTENTS, name_fault, read_mapping, refuse_faults
from lcrec.prompts.templates import ENVIRONMENT, HOSTILE_TEXTS, syntax_fault, text_faults

Variables = dict[str, str | list[str]]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class IntentTemplate:
    """One text of `intents.yaml`.

    Attributes:
        variables: what its template may use, with one line of meaning each.
        needs: the variables of which it must use one.
        keys: those of the JSON object it must ask for.
    """

    variables: dict[str, str]
    needs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


_TERMS = IntentTemplate({"terms": "a list of words, highest weight first"}, ("terms",))
INTENT_TEMPLATES: dict[str, IntentTemplate] = {
    "system": IntentTemplate({}),
    "intention": IntentTemplate(
        {
            "title": "the item that was chosen",
            "description": "its description; may be empty",
            "categories": "its categories; may be empty",
            "brand": "its brand; may be empty",
            "review": "what the customer wrote about it; may be empty",
            "summary": "the review's headline; may be empty",
            "leaked": "words of the title that the last answer gave away; empty at first",
        },
        ("title", "review"),
        ("wish", "traits"),
    ),
    "preference": IntentTemplate(
        {"titles": "a list of the titles so far, oldest first"},
        ("titles",),
        ("overall", "long_term", "short_term"),
    ),
    "keywords_intention": _TERMS,
    "keywords_overall": _TERMS,
    "keywords_long_term": _TERMS,
    "keywords_short_term": _TERMS,
}


@cache
def _compile(text: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(text)


@dataclass(frozen=True)
class IntentPrompts:
    """The texts of one `intents.yaml`, by the names in `INTENT_TEMPLATES`; `path` is the file."""

    path: Path
    texts: dict[str, str]

    @classmethod
    def load(cls, folder: Path, base: Path) -> "IntentPrompts":
        """Read and check `intents.yaml` of a folder, or of `base` where that has none.

        Raises:
            InputError: there is no such folder or file, or anything in it is wrong.
        """
        prompts, faults = read_intent_prompts(folder, base)
        refuse_faults(faults, folder)
        return prompts

    def render(self, name: str, variables: Variables) -> str:
        """Return one text without space around it.

        Raises:
            InputError: it cannot be rendered.
        """
        try:
            return _compile(self.texts[name]).render(variables).strip()
        except Exception as error:  # what an editor wrote may fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.path}: {name} cannot be rendered: {reason}") from error

    def messages(self, name: str, variables: Variables) -> Messages:
        """Return the conversation that asks a chat model for `intention` or `preference`."""
        system = self.render("system", {})
        start = [{"role": "system", "content": system}] if system else []
        return [*start, {"role": "user", "content": self.render(name, variables)}]


def read_intent_prompts(folder: Path, base: Path) -> tuple[IntentPrompts, list[str]]:
    """Read `intents.yaml` and all that is wrong with it, one line per fault.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"--prompts {folder}: no such folder; leave it out for {base}")
    own = folder / INTENTS
    if os.path.lexists(own) and (fault := name_fault(own)):
        return IntentPrompts(own, {}), [fault]
    path = own if own.is_file() else base / INTENTS
    faults: list[str] = []
    document = read_mapping(path, tuple(INTENT_TEMPLATES), faults)
    if not document:
        return IntentPrompts(path, {}), faults
    texts = {name: document.get(name) for name in INTENT_TEMPLATES}
    prompts = IntentPrompts(path, {k: v for k, v in texts.items() if isinstance(v, str)})
    for name, template in INTENT_TEMPLATES.items():
        found = _faults(prompts, name, template)
        faults += [f"{path}: {name}: {fault}" for fault in found]
    return prompts, faults


def _faults(prompts: IntentPrompts, name: str, template: IntentTemplate) -> list[str]:
    """Return what is wrong with one text."""
    text = prompts.texts.get(name)
    if text is None or (not text.strip() and name != "system"):
        remedy = '"" for no message' if name == "system" else "that of the shipped file will do"
        return [f"must be text ({remedy})"]
    if careless := list(text_faults(text, "it")):
        return careless
    if fault := syntax_fault(text):
        return [fault]
    used = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
    known = ", ".join(template.variables) or "none"
    faults = [
        f"uses {variable!r}, which it does not have{closest(variable, template.variables)} "
        f"(all: {known})"
        for variable in sorted(used - template.variables.keys())
    ]
    if not faults and template.needs and not used.intersection(template.needs):
        faults.append(f"uses none of {', '.join(template.needs)}")
    faults += [
        f'does not ask for "{key}", a key of the JSON object that is read from the answer'
        for key in template.keys
        if f'"{key}"' not in text
    ]
    return faults or _render_faults(prompts, name, template)


def _render_faults(prompts: IntentPrompts, name: str, template: IntentTemplate) -> list[str]:
    """Return what goes wrong with hostile texts, and with nothing but what is always there."""
    lists = {"titles", "terms"}
    for text in HOSTILE_TEXTS:
        for filled in (True, False):
            variables: Variables = {}
            for variable in template.variables:
                value = text if filled or variable in template.needs else ""
                variables[variable] = [value, value] if variable in lists else value
            try:
                result = prompts.render(name, variables)
            except InputError as error:
                return [str(error).removeprefix(f"{prompts.path}: {name} ")]
            for variable in lists & variables.keys():
                if str(variables[variable]) in result:
                    return [f"needs {{{{ {variable} | join(', ') }}}}: it is a list"]
            if not result and template.needs:
                return ["can be empty"]
    return []
