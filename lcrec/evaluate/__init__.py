"""Evaluation: metrics of predictions files, and what else a checkpoint can be asked.

The command judges predictions files. `pairs`, `search`, `language` and `templates` ask a checkpoint
(`checkpoint`) itself: target against hard negatives, search by intention, texts, and how much
the prompt template matters.
"""
