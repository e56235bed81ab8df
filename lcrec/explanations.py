"""What a model has to say, in words, about a customer and about items.

It reads an item's title from the item's tokens (the task `index2item`) and says what a customer
likes from what they have (`preferenceobtain`), as far as it was trained on these tasks.

Public names: `Explanation`, `explain`, `require_task`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lcrec.beams import Model
from lcrec.core.errors import InputError
from lcrec.generation import write_answers
from lcrec.leaf_filter import ItemIds
from lcrec.prompts.encoder import vocabulary_ids
from lcrec.questions import Questions, plan_batches


@dataclass(frozen=True)
class Explanation:
    """What a model has to say, in words, about a request and the items it was given.

    Attributes:
        titles: what the model reads in each item's tokens; None if it never learnt to.
        preference: what the model takes the customer to like; None if it never learnt to say.
    """

    titles: list[str] | None
    preference: str | None


def explain(
    model: Model,
    questions: Questions,
    tasks: Collection[str],
    histories: Sequence[ItemIds],
    items: Sequence[ItemIds],
    *,
    max_new_tokens: int,
    max_batch_tokens: int,
) -> list[Explanation]:
    """Say in words what the model knows of each history and of the items beside it.

    Args:
        model: in eval mode.
        questions: what turns items and histories into prompts.
        tasks: the tasks the model was trained on.
        histories: item ids, oldest first; an empty one has no preference.
        items: per history the items to name.
        max_new_tokens: tokens of a text at most.
        max_batch_tokens: prompt tokens per batch, padding included.

    Raises:
        InputError: an unknown item, not one list of items per history, or a model that learnt
            neither `index2item` nor `preferenceobtain`.
    """
    names, likes = "index2item" in tasks, "preferenceobtain" in tasks
    if not names and not likes:
        require_task(tasks, "index2item")
    if len(items) != len(histories):
        raise InputError(f"{len(items)} lists of items for {len(histories)} histories")
    questions.check_items("history", histories)
    questions.check_items("list of items", items)

    def answer(prompt_ids: list[list[int]]) -> list[str]:
        return _answer(model, questions, prompt_ids, max_new_tokens, max_batch_tokens)

    titles: dict[int, str] = {}
    if names:
        distinct = sorted({int(item) for row in items for item in row})
        texts = answer(questions.titles(distinct, max_new_tokens))
        titles = dict(zip(distinct, texts, strict=True))
    preferences: dict[int, str] = {}
    if likes:
        known = [row for row, history in enumerate(histories) if len(history)]
        texts = answer(questions.preferences([histories[row] for row in known], max_new_tokens))
        preferences = dict(zip(known, texts, strict=True))
    return [
        Explanation([titles[int(item)] for item in own] if names else None, preferences.get(row))
        for row, own in enumerate(items)
    ]


def require_task(tasks: Collection[str], task: str) -> None:
    """Refuse what a model never learnt.

    Raises:
        InputError: the model was not trained on the task.
    """
    if task not in tasks:
        raise InputError(
            f"the model was not trained on {task} (but on {', '.join(sorted(tasks))}); "
            f"add it: recipes/finetune.py --tasks {' '.join(sorted({*tasks, task}))}"
        )


def _answer(
    model: Model,
    questions: Questions,
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    max_batch_tokens: int,
) -> list[str]:
    """Return the model's answer to each prompt in words."""
    tokenizer = questions.encoder.tokenizer
    texts = [""] * len(prompt_ids)
    for rows in plan_batches(prompt_ids, max_batch_tokens):
        input_ids, mask = questions.pad([prompt_ids[row] for row in rows])
        answers = write_answers(
            model,
            input_ids.to(model.device),
            mask.to(model.device),
            max_new_tokens,
            end=tokenizer.eos_token_id,
            banned=vocabulary_ids(tokenizer, questions.index).tolist(),
        )
        for row, answer in zip(rows, answers, strict=True):
            texts[row] = str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
    return texts
