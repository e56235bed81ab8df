"""Prompt templates and tasks: from a user's history to the text and token ids a model reads.

`prompt_set` reads the YAML files of a prompts folder, `templates` checks and renders one template,
`tasks` says what each task's variables are and where their values come from. `encoder` turns a
rendered prompt into token ids with the tokenizer's chat template, and `rows` draws and tokenises
the instruction data set. `preview` and `tokens` show the result to whoever edits the templates.
"""
