"""The alignment tasks: a data set and its item index -> records of named template variables.

Reads (through `load_user_texts`) the optional `<Name>.user.json`; writes nothing. A task says what
a prompt may speak of (`variables`) and yields one record per training sample; how it is worded
stands in `prompts/`. A record holds every variable of its task, empty where the data has nothing:
a template may be used for a record only if all it uses is non-empty.

Item text is written by strangers, so every text passes through `plain_text` on its way in.

Public names: `TASKS`, `Task`, `Variable`, `Record`, `TaskData`, `UserTexts`, `load_user_texts`,
`plain_text`, `history_record`, `item_record`, `search_record`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from lcrec.artifacts import find_data, read_json
from lcrec.data import Interactions, Items
from lcrec.errors import InputError
from lcrec.index import ItemIndex

Record = dict[str, str | list[str]]

# Text without spaces (Chinese, a wall of symbols) is bounded by characters instead.
CHARACTERS_PER_WORD = 8
# Control characters, and halves of surrogate pairs, which JSON may hold but UTF-8 cannot.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
OPENING_BRACKET = re.compile(r"<(?=\S)")


@dataclass(frozen=True)
class UserTexts:
    """What users like, and looked for when they took the last training item and the test item.

    Each is {user: [text, ...]}; users may be missing. `num_users` counts all of the data set.
    """

    preferences: dict[str, list[str]]
    train_intentions: dict[str, list[str]]
    test_intentions: dict[str, list[str]]
    num_users: int

    def describe(self) -> str:
        """Return one line that says how many users have which text."""
        return (
            f"of {self.num_users:,} users {len(self.preferences):,} have preferences, "
            f"{len(self.train_intentions):,} an intention to train on, "
            f"{len(self.test_intentions):,} one to test on"
        )


@dataclass(frozen=True)
class TaskData:
    """All that training records are made from.

    Attributes:
        items, index: the catalogue, and its items' tokens.
        train: every user's training sequence (`leave_one_out(...).train`).
        max_history: how many of the latest items a history holds.
        max_text_words: the length, in words, that titles and all other texts are cut to.
        user_texts: preferences and intentions, where the data set has them.

    Raises:
        InputError: the index has another number of items, or a limit is below 1.
    """

    items: Items
    train: Interactions
    index: ItemIndex
    max_history: int = 20
    max_text_words: int = 60
    user_texts: UserTexts | None = None

    def __post_init__(self) -> None:
        if len(self.index) != len(self.items):
            raise InputError(
                f"the index has {len(self.index)} items but the catalogue has {len(self.items)}; "
                "rebuild it with python -m lcrec.quantize"
            )
        for name in ("max_history", "max_text_words"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; the least allowed is 1")

    @cached_property
    def titles(self) -> list[str]:
        """Every item's title as prompts show it, empty where it has none."""
        return self._texts("title")

    @cached_property
    def descriptions(self) -> list[str]:
        """Every item's description as prompts show it, empty where it has none."""
        return self._texts("description")

    def _texts(self, field: str) -> list[str]:
        return [
            plain_text(self.items.text(item, field), self.max_text_words)
            for item in range(len(self.items))
        ]


@dataclass(frozen=True)
class Variable:
    """What a template may use.

    Attributes:
        type: what the record holds.
        role: the side of the conversation it belongs to; an answer never stands in a question.
        meaning: one line for the editor of a template.
        is_tokens: it holds item tokens, not words.
    """

    type: Literal["text", "list of text"]
    role: Literal["question", "answer"]
    meaning: str
    is_tokens: bool = False


@dataclass(frozen=True)
class Task:
    """One alignment task.

    Attributes:
        name: the task's name, also that of its file in `prompts/`.
        summary: one line on what is asked.
        variables: what its templates may use, by name.
        make: what `records` calls.
    """

    name: str
    summary: str
    variables: dict[str, Variable]
    make: Callable[[TaskData, int], Iterator[Record]]

    def records(self, data: TaskData, epoch: int = 0) -> Iterator[Record]:
        """Yield the training records, always in the same order.

        Args:
            data: what to make them from.
            epoch: where a user has several texts, each epoch takes the next one.

        Raises:
            InputError: the task needs preferences or intentions and the data set has none.
        """
        return self.make(data, epoch)


def plain_text(text: str, max_words: int) -> str:
    """Return text that is safe inside a prompt: one line, cut, free of markup tokens.

    A space follows every "<" (one at the end is dropped), so neither an item token (`<a_12>`) nor
    a chat model's own markup (`<|im_end|>`, `</s>`) can be spelled by a title.

    Args:
        text: any text.
        max_words: words kept; text without spaces is cut at 8 characters per word.
    """
    words = UNPRINTABLE.sub(" ", text).split(maxsplit=max_words)[:max_words]
    line = " ".join(words)[: max_words * CHARACTERS_PER_WORD]
    return OPENING_BRACKET.sub("< ", line).rstrip("< ")


def history_record(
    index: ItemIndex, history: Sequence[int] | np.ndarray, max_history: int
) -> Record:
    """Return the question side of `seqrec`: the latest items, as training and generation see them.

    Args:
        index: the items' tokens.
        history: item ids [length], oldest first.
        max_history: how many of the latest are kept.
    """
    recent = history[max(0, len(history) - max_history) :]
    return {"history": [index.texts[item] for item in recent]}


def item_record(data: TaskData, item: int) -> Record:
    """Return the question side of `item2index`: what the catalogue says about an item."""
    return {"title": data.titles[item], "description": data.descriptions[item]}


def search_record(
    data: TaskData, history: Sequence[int] | np.ndarray, preference: str, intention: str
) -> Record:
    """Return the question side of `itemsearch`; a text that is not known is empty."""
    return {
        **history_record(data.index, history, data.max_history),
        "preference": plain_text(preference, data.max_text_words),
        "intention": plain_text(intention, data.max_text_words),
    }


def _prefixes(data: TaskData) -> Iterator[tuple[np.ndarray, int]]:
    """Yield every training item that has a history, after the whole history before it."""
    for sequence in data.train:
        for end in range(1, len(sequence)):
            yield sequence[:end], int(sequence[end])


def _next_items(data: TaskData, epoch: int) -> Iterator[Record]:
    for history, target in _prefixes(data):
        record = history_record(data.index, history, data.max_history)
        yield {**record, "target": data.index.texts[target]}


def _items_by_text(data: TaskData, epoch: int) -> Iterator[Record]:
    for item, tokens in enumerate(data.index.texts):
        yield {**item_record(data, item), "target": tokens}


def _texts_by_item(data: TaskData, epoch: int) -> Iterator[Record]:
    for item, tokens in enumerate(data.index.texts):
        yield {"item": tokens, **item_record(data, item)}


def _mixed_forms(data: TaskData, epoch: int) -> Iterator[Record]:
    for history, target in _prefixes(data):
        titles = (data.titles[item] for item in history[-data.max_history :])
        yield {
            **history_record(data.index, history, data.max_history),
            "title_history": [title for title in titles if title],
            "target": data.index.texts[target],
            "target_title": data.titles[target],
            "target_description": data.descriptions[target],
        }


def _searches(data: TaskData, epoch: int) -> Iterator[Record]:
    texts = _user_texts(data, "itemsearch")
    for position, (user, sequence) in enumerate(zip(data.train.users, data.train, strict=True)):
        preference = _one_of(texts.preferences, user, position + epoch)
        intention = _one_of(texts.train_intentions, user, position + epoch)
        if preference or intention:
            record = search_record(data, sequence[:-1], preference, intention)
            yield {**record, "target": data.index.texts[sequence[-1]]}


def _preferences(data: TaskData, epoch: int) -> Iterator[Record]:
    texts = _user_texts(data, "preferenceobtain")
    for position, (user, sequence) in enumerate(zip(data.train.users, data.train, strict=True)):
        preference = _one_of(texts.preferences, user, position + epoch)
        if preference and len(sequence) > 1:
            record = history_record(data.index, sequence[:-1], data.max_history)
            yield {**record, "preference": plain_text(preference, data.max_text_words)}


def _user_texts(data: TaskData, task: str) -> UserTexts:
    if data.user_texts is None:
        raise InputError(
            f"task {task} needs what users like and look for, and this data set has no "
            "<Name>.user.json; leave the task out, or make the file with: python -m lcrec.intents"
        )
    return data.user_texts


def _one_of(texts: dict[str, list[str]], user: str, turn: int) -> str:
    own = texts.get(user)
    return own[turn % len(own)] if own else ""


def load_user_texts(folder: Path, interactions: Interactions) -> UserTexts | None:
    """Read `<Name>.user.json`, or return None where the data folder has none.

    Args:
        folder: the data folder.
        interactions: the whole sequences, to check that an intention is about the right item:
            the last training item ([-3]) or the test item ([-1]).

    Raises:
        InputError: the file is malformed, speaks of a user the data set does not have, or of
            another item than the one to be predicted.
    """
    path = find_data(folder).user
    if not path.exists():
        return None
    raw = read_json(path)
    names = ("user_explicit_preference", "user_vague_intention")
    if not isinstance(raw, dict) or not any(name in raw for name in names):
        raise InputError(f"{path}: expected an object with {' and '.join(map(repr, names))}")
    intentions = _require_object(raw.get(names[1], {}), f"{path}: {names[1]}")
    last_items = dict(zip(interactions.users, interactions, strict=True))
    sections: list[dict[str, list[str]]] = []
    for section, where, back in (
        (raw.get(names[0], {}), f"{path}: {names[0]}", None),
        (intentions.get("train", {}), f"{path}: {names[1]}: train", 3),
        (intentions.get("test", {}), f"{path}: {names[1]}: test", 1),
    ):
        texts = {}
        for user, entry in _require_object(section, where).items():
            here = f"{where}: user {user!r}"
            if user not in last_items:
                raise InputError(f"{here} has no sequence; the file belongs to another data set")
            if back is not None:
                entry = _intention_texts(entry, last_items[user][-back:], back, here)
            if not isinstance(entry, list) or not all(isinstance(text, str) for text in entry):
                raise InputError(f"{here}: expected a list of texts, found {entry!r:.80}")
            texts[user] = [text for text in entry if text.strip()]
        sections.append({user: own for user, own in texts.items() if own})
    preferences, train_intentions, test_intentions = sections
    return UserTexts(preferences, train_intentions, test_intentions, len(interactions))


def _intention_texts(entry: object, last_items: np.ndarray, back: int, where: str) -> object:
    """Return the texts of an intention, which must be about the first of the user's last items."""
    if not isinstance(entry, dict) or "item" not in entry or "querys" not in entry:
        raise InputError(f"{where}: expected {{item, querys: [text, ...]}}, found {entry!r:.80}")
    item = int(last_items[0]) if len(last_items) else None
    if entry["item"] != item:
        raise InputError(
            f"{where}: the intention is about item {entry['item']!r}, but the user's item at "
            f"[-{back}] is {item}; the file belongs to other sequences: make it anew with "
            "python -m lcrec.intents"
        )
    return entry["querys"]


def _require_object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object by user, found {value!r:.80}")
    return value


_HISTORY = Variable(
    "list of text", "question", "the items so far, oldest first, each as its item tokens", True
)
_TARGET = Variable("text", "answer", "the item tokens of the item to name", True)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "seqrec",
            "from the items so far to the next item",
            {"history": _HISTORY, "target": _TARGET},
            _next_items,
        ),
        Task(
            "item2index",
            "from an item's title or description to the item",
            {
                "title": Variable("text", "question", "the item's title"),
                "description": Variable("text", "question", "the item's description"),
                "target": _TARGET,
            },
            _items_by_text,
        ),
        Task(
            "index2item",
            "from an item to its title or description",
            {
                "item": Variable("text", "question", "the item tokens of the item", True),
                "title": Variable("text", "answer", "the item's title"),
                "description": Variable("text", "answer", "the item's description"),
            },
            _texts_by_item,
        ),
        Task(
            "fusionseqrec",
            "from items to the next title or description, or from titles to the next item",
            {
                "history": _HISTORY,
                "title_history": Variable(
                    "list of text", "question", "the titles of the items so far, oldest first"
                ),
                "target": _TARGET,
                "target_title": Variable("text", "answer", "the title of the next item"),
                "target_description": Variable("text", "answer", "the next item's description"),
            },
            _mixed_forms,
        ),
        Task(
            "itemsearch",
            "from what a customer looks for, or likes, to the item",
            {
                "history": _HISTORY,
                "preference": Variable("text", "question", "what the customer likes in general"),
                "intention": Variable("text", "question", "what the customer looks for now"),
                "target": _TARGET,
            },
            _searches,
        ),
        Task(
            "preferenceobtain",
            "from the items so far to what the customer likes",
            {
                "history": _HISTORY,
                "preference": Variable("text", "answer", "what the customer likes in general"),
            },
            _preferences,
        ),
    )
}
