"""The language model: base, adapters, item token rows, training, checkpoints, cost.

`recipe` holds what a fine-tune is told and what it reads. `base` loads a base model and adds
adapters, `item_rows` extends its vocabulary by the item tokens, `finetuning` puts model, rows and
trainer together, `trainer` tunes it, `run_folder` keeps an unfinished run apart from a finished
one, `checkpoint` saves and loads the result. `cost` estimates memory and time, and `probe` tries
which attention masks a model family takes.
"""
