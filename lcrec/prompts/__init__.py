"""Prompt templates and tasks: from a user's history to the text and token ids a model reads.

`prompt_set` reads the YAML files of a prompts folder, `templates` checks and renders one template,
`tasks` says what each task's variables are and where their values come from. `encoder` turns a
rendered prompt into token ids with the tokenizer's chat template, and `rows` draws and tokenises
the instruction data set. `preview` and `tokens` show the result to whoever edits the templates.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {
    "PromptEncoder": "encoder",
    "PromptSet": "prompt_set",
    "TASKS": "tasks",
    "TaskData": "tasks",
    "draw_rows": "rows",
    "extend_tokenizer": "encoder",
    "tokenise_rows": "rows",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
