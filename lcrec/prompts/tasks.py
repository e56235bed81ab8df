"""The alignment tasks: a data set and its item index -> records of named template variables.

A task says what a prompt may speak of (`variables`), how many training samples a data set has, and
what the record of each one is; how it is worded stands in `prompts/`. A record holds every variable
of its task, empty where the data has nothing: a template may be used for a record only if all it
uses is non-empty. Any record can be made on its own, so an epoch of millions is shuffled as numbers
and put into words one by one.

Item text is not to be trusted, so every text passes through `plain_text` on its way in.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from lcrec.core.errors import InputError, closest
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.folder import Interactions, Items
from lcrec.data.user_texts import UserTexts
from lcrec.data.words import words_of
from lcrec.index.item_index import ItemIndex

Record = dict[str, str | list[str]]
Lengths = TypeVar("Lengths", int, np.ndarray)

# Text without spaces (Chinese, a wall of symbols) is bounded by characters instead.
CHARACTERS_PER_WORD = 8
# Control characters, and halves of surrogate pairs, which JSON may hold but UTF-8 cannot.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
OPENING_BRACKET = re.compile(r"<(?=\S)")
CODE_WORDS = 8  # words that say what a code stands for, at most


@dataclass(frozen=True)
class TaskData:
    """All that training records are made from.

    Attributes:
        items, index: the catalogue, and its items' tokens.
        train: every user's training sequence (`Split.train`), which may be empty.
        max_history: how many of the latest items a history holds.
        max_text_words: the length, in words, that titles and all other texts are cut to.
        user_texts: preferences and intentions, where the data set has them.
        history_dropout: the chance that an item of a `seqrec` history is left out, drawn anew
            each epoch; one at least stays. On small data it keeps a model from
            recognising a user by the whole history instead of learning what follows what.
        seed: decides what is left out, and which neighbour `neighbours` asks for.
        shows_neighbours: whether `seqrec` records hold the variable `neighbours`, which takes time
            to look up; empty where not.
        alike: the histories of a user begin alike (`shown`) and lose the same items in an epoch.

    Raises:
        InputError: the index has another number of items, a limit is below 1, or the chance is
            not in [0, 1).
    """

    items: Items
    train: Interactions
    index: ItemIndex
    max_history: int = 20
    max_text_words: int = 60
    user_texts: UserTexts | None = None
    history_dropout: float = 0.0
    seed: int = 0
    shows_neighbours: bool = False
    alike: bool = False

    def __post_init__(self) -> None:
        if len(self.index) != len(self.items):
            raise InputError(
                f"the index has {len(self.index)} items but the catalogue has {len(self.items)}; "
                "rebuild it with python -m lcrec.quantize"
            )
        for name in ("max_history", "max_text_words"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; the least allowed is 1")
        if not 0 <= self.history_dropout < 1:
            raise InputError(f"history_dropout is {self.history_dropout}; take 0 to below 1")

    def shown(self, length: Lengths) -> Lengths:
        """Return how many of the latest items of a history that long a sample shows.

        That is up to `max_history`. Where samples shall begin alike, a longer history begins at a
        multiple of half of that: as many samples in a row share their beginning.

        Args:
            length: of the whole history; a number, or int64 [samples].
        """
        step = max(1, self.max_history // 2) if self.alike else 1
        beyond = np.maximum(length - self.max_history, 0)
        return length - -(-beyond // step) * step

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

    @cached_property
    def properties(self) -> list[str]:
        """Every item's kept fields as prompts show them, such as "price: 12.5", empty for none."""
        return [
            plain_text(self.items.properties(item), self.max_text_words)
            for item in range(len(self.items))
        ]

    @cached_property
    def nearby(self) -> NearbyItems:
        """What stands near what in the train sequences."""
        return NearbyItems.count(self.train, len(self.items))

    @cached_property
    def code_words(self) -> list[tuple[str, list[str]]]:
        """The item tokens with words that tell their items from others, best words first.

        The items under a token are those that have this code at this level. A word of their titles
        says the more the larger its share of them, and the larger against its share of all items:

            share under the token * log(share under the token / share of all items)

        and has to be in two titles, unless the token has one item alone. Numbers and single letters
        tell nothing. TS-Rec (arXiv 2602.22632) asks a language model for such words.
        """
        words = [set(filter(_can_tell, words_of(title))) for title in self.titles]
        overall = Counter(word for own in words for word in own)
        under: defaultdict[str, list[int]] = defaultdict(list)
        for item in range(len(self.items)):
            for token in self.index.tokens(item):
                under[token].append(item)
        found = []
        for token in self.index.vocabulary:
            own = under[token]
            counts = Counter(word for item in own for word in words[item])
            weights = {
                word: count / len(own) * math.log(count / len(own) * len(words) / overall[word])
                for word, count in counts.items()
                if count > 1 or len(own) == 1
            }
            telling = sorted((-weight, word) for word, weight in weights.items() if weight > 0)
            if telling:
                found.append((token, [word for _, word in telling[:CODE_WORDS]]))
        return found

    @cached_property
    def prefixes(self) -> tuple[np.ndarray, np.ndarray]:
        """Every training item that has a history: where its user's sequence begins, where it is.

        Both are int64 [samples], places in `train.items`.
        """
        starts = np.repeat(self.train.offsets[:-1], np.diff(self.train.offsets))
        places = np.flatnonzero(np.arange(len(self.train.items)) > starts)
        return starts[places], places

    @cached_property
    def stretches(self) -> np.ndarray:
        """For each of `prefixes` the stretch of its user's sequence that it is in, int64 [samples].

        One has as many samples in a row as a history shows items at most: their histories begin
        alike, or nearly so (`shown`).
        """
        starts, places = self.prefixes
        return starts + (places - starts - 1) // self.max_history * self.max_history

    @cached_property
    def searching_users(self) -> list[int]:
        """The positions of the users who like or look for something that is known."""
        texts = _user_texts(self, "itemsearch")
        return [
            position
            for position, user in enumerate(self.train.users)
            if (user in texts.preferences or user in texts.train_intentions)
            and len(self.train.sequence(position))
        ]

    @cached_property
    def liking_users(self) -> list[int]:
        """The positions of the users with a known preference and a history to tell it from."""
        texts = _user_texts(self, "preferenceobtain")
        return [
            position
            for position, user in enumerate(self.train.users)
            if user in texts.preferences and len(self.train.sequence(position)) > 1
        ]


@dataclass(frozen=True)
class Variable:
    """What a template may use.

    Attributes:
        type: what the record holds.
        role: the side of the conversation it belongs to; an answer never stands in a question.
        meaning: one line for the editor of a template.
        is_tokens: it holds item tokens, not words.
        is_optional: a template that uses it is used where it is empty too.
    """

    type: Literal["text", "list of text"]
    role: Literal["question", "answer"]
    meaning: str
    is_tokens: bool = False
    is_optional: bool = False


@dataclass(frozen=True)
class Task:
    """One alignment task.

    Attributes:
        name: the task's name, also that of its file in `prompts/`.
        summary: one line on what is asked.
        variables: what its templates may use, by name.
        count: how many training records a data set has. Raises `InputError` where the task needs
            preferences or intentions and the data set has none.
        record: the record at a place from 0, for a data set and an epoch: where a user has several
            texts, each epoch takes the next one.
        by_default: whether `lcrec dataset` writes it unless told which tasks to write.
        stretches: for each record the number of its stretch, int64 [records], in which histories
            begin alike; None where none do.
        varies: whether a record may lack what a template needs in one epoch and not in another.
    """

    name: str
    summary: str
    variables: dict[str, Variable]
    count: Callable[[TaskData], int]
    record: Callable[[TaskData, int, int], Record]
    by_default: bool = True
    stretches: Callable[[TaskData], np.ndarray] | None = None
    varies: Callable[[TaskData], bool] = lambda data: False

    def records(self, data: TaskData, epoch: int = 0) -> Iterator[Record]:
        """Yield all training records in their order; arguments and errors as above."""
        return (self.record(data, epoch, place) for place in range(self.count(data)))


def plain_text(text: str, max_words: int) -> str:
    """Return text that is safe inside a prompt: one line, cut, free of markup tokens.

    A space follows every "<" (one at the end is dropped), so neither an item token (`<a_12>`) nor
    a chat model's own markup (`<|im_end|>`, `</s>`) can be spelled by a title. Text without a
    letter, digit or symbol is empty: published data sets write "." where a description is missing.

    Args:
        max_words: words kept; text without spaces is cut at 8 characters per word.
    """
    words = UNPRINTABLE.sub(" ", text).split(maxsplit=max_words)[:max_words]
    line = " ".join(words)[: max_words * CHARACTERS_PER_WORD]
    line = OPENING_BRACKET.sub("< ", line).rstrip("< ")
    return line if any(unicodedata.category(sign)[0] in "LNS" for sign in line) else ""


def _can_tell(word: str) -> bool:
    """Tell whether a word may say what items are; in some scripts one character is a word."""
    return not word.isdecimal() and (len(word) > 1 or not word.isascii())


def history_record(
    index: ItemIndex, history: Sequence[int] | np.ndarray, max_history: int
) -> Record:
    """Return what the customer had, the latest items, as training and generation show them.

    Args:
        history: item ids [length], oldest first.
        max_history: how many of the latest are kept.
    """
    recent = history[max(0, len(history) - max_history) :]
    return {"history": [index.texts[item] for item in recent]}


def sequence_record(
    index: ItemIndex,
    history: Sequence[int] | np.ndarray,
    max_history: int,
    nearby: NearbyItems | None = None,
    without: np.ndarray | None = None,
) -> Record:
    """Return the question side of `seqrec`, as training and generation show it.

    Args:
        index, history, max_history: as for `history_record`.
        nearby: where neighbours are looked up; None for none.
        without: in training, the customer's own train sequence, see `NearbyItems.near`.
    """
    found = () if nearby is None else nearby.near(np.asarray(history), without=without)[0].tolist()
    return {
        **history_record(index, history, max_history),
        "neighbours": [index.texts[item] for item in found],
    }


def item_record(data: TaskData, item: int) -> Record:
    """Return what the catalogue says about an item: the question side of `item2index`."""
    return {
        "title": data.titles[item],
        "description": data.descriptions[item],
        "properties": data.properties[item],
    }


def mixed_record(data: TaskData, history: Sequence[int] | np.ndarray, target: int) -> Record:
    """Return the record of `fusionseqrec`: a history in items and in titles, and what follows it.

    A title that is not known is left out of the history of titles.
    """
    shown = data.shown(len(history))
    titles = (data.titles[item] for item in history[len(history) - shown :])
    return {
        **history_record(data.index, history, shown),
        "title_history": [title for title in titles if title],
        "target": data.index.texts[target],
        "target_title": data.titles[target],
        "target_description": data.descriptions[target],
    }


def search_record(
    index: ItemIndex,
    history: Sequence[int] | np.ndarray,
    max_history: int,
    *,
    preference: str = "",
    intention: str = "",
    max_text_words: int,
) -> Record:
    """Return the question side of `itemsearch`; a text that is not known is empty.

    Args:
        index, history, max_history: as for `history_record`; the history may be empty.
        preference: what the customer likes in general.
        intention: what the customer looks for now.
        max_text_words: the length, in words, that both texts are cut to.
    """
    return {
        **history_record(index, history, max_history),
        "preference": plain_text(preference, max_text_words),
        "intention": plain_text(intention, max_text_words),
    }


def _history_and_target(data: TaskData, place: int) -> tuple[np.ndarray, int]:
    """Return the whole history before a training item, and the item."""
    start, end = (int(places[place]) for places in data.prefixes)
    return data.train.items[start:end], int(data.train.items[end])


def _next_item(data: TaskData, epoch: int, place: int) -> Record:
    history, target = _history_and_target(data, place)
    if data.history_dropout:
        start = int(data.prefixes[0][place])
        rng = np.random.default_rng([data.seed, epoch, start if data.alike else place])
        kept = rng.random(len(history)) >= data.history_dropout
        kept[rng.integers(len(history))] |= not kept.any()
        history = history[kept]
    nearby = whole = None
    if data.shows_neighbours:
        nearby = data.nearby
        start = data.prefixes[0][place]
        whole = data.train.sequence(int(np.searchsorted(data.train.offsets, start, "right")) - 1)
    record = sequence_record(data.index, history, data.shown(len(history)), nearby, whole)
    return {**record, "target": data.index.texts[target]}


def _item_by_text(data: TaskData, epoch: int, item: int) -> Record:
    return {**item_record(data, item), "target": data.index.texts[item]}


def _text_by_item(data: TaskData, epoch: int, item: int) -> Record:
    return {"item": data.index.texts[item], **item_record(data, item)}


def _mixed_forms(data: TaskData, epoch: int, place: int) -> Record:
    return mixed_record(data, *_history_and_target(data, place))


def _search(data: TaskData, epoch: int, place: int) -> Record:
    position, texts = data.searching_users[place], _user_texts(data, "itemsearch")
    user, sequence = data.train.users[position], data.train.sequence(position)
    record = search_record(
        data.index,
        sequence[:-1],
        data.max_history,
        preference=_one_of(texts.preferences, user, position + epoch),
        intention=_one_of(texts.train_intentions, user, position + epoch),
        max_text_words=data.max_text_words,
    )
    return {**record, "target": data.index.texts[sequence[-1]]}


def _preference(data: TaskData, epoch: int, place: int) -> Record:
    position, texts = data.liking_users[place], _user_texts(data, "preferenceobtain")
    user, sequence = data.train.users[position], data.train.sequence(position)
    record = history_record(data.index, sequence[:-1], data.max_history)
    preference = _one_of(texts.preferences, user, position + epoch)
    return {**record, "preference": plain_text(preference, data.max_text_words)}


def _neighbour(data: TaskData, epoch: int, place: int) -> Record:
    item = int(data.nearby.known[place])
    found, scores = data.nearby.near(np.array([item]))
    rng = np.random.default_rng([data.seed, epoch, place])
    target = int(rng.choice(found, p=scores / scores.sum()))
    return {
        "item": data.index.texts[item],
        "title": data.titles[item],
        "target": data.index.texts[target],
        "target_title": data.titles[target],
    }


def _words_of_code(data: TaskData, epoch: int, place: int) -> Record:
    code, words = data.code_words[place]
    return {"code": code, "words": list(words)}


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


def _lacks_words(data: TaskData) -> bool:
    """Tell whether a text of a user is empty as a prompt shows it; a user's texts take turns."""
    texts = data.user_texts
    users = [*texts.preferences.values(), *texts.train_intentions.values()] if texts else []
    return not all(plain_text(text, data.max_text_words) for own in users for text in own)


_HISTORY = Variable(
    "list of text", "question", "the items so far, oldest first, each as its item tokens", True
)
_PROPERTIES = "what `prepare --keep` kept of the item, such as its price"
_TARGET = Variable("text", "answer", "the item tokens of the item to name", True)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "seqrec",
            "from the items so far to the next item",
            {
                "history": _HISTORY,
                "neighbours": Variable(
                    "list of text",
                    "question",
                    "items that others had near the last ones, nearest first; may be empty",
                    is_tokens=True,
                    is_optional=True,
                ),
                "target": _TARGET,
            },
            lambda data: len(data.prefixes[0]),
            _next_item,
            stretches=lambda data: data.stretches,
        ),
        Task(
            "item2index",
            "from an item's title or description to the item",
            {
                "title": Variable("text", "question", "the item's title"),
                "description": Variable("text", "question", "the item's description"),
                "properties": Variable("text", "question", _PROPERTIES),
                "target": _TARGET,
            },
            lambda data: len(data.items),
            _item_by_text,
        ),
        Task(
            "index2item",
            "from an item to its title or description",
            {
                "item": Variable("text", "question", "the item tokens of the item", True),
                "title": Variable("text", "answer", "the item's title"),
                "description": Variable("text", "answer", "the item's description"),
                "properties": Variable("text", "answer", _PROPERTIES),
            },
            lambda data: len(data.items),
            _text_by_item,
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
            lambda data: len(data.prefixes[0]),
            _mixed_forms,
            stretches=lambda data: data.stretches,
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
            lambda data: len(data.searching_users),
            _search,
            varies=_lacks_words,
        ),
        Task(
            "preferenceobtain",
            "from the items so far to what the customer likes",
            {
                "history": _HISTORY,
                "preference": Variable("text", "answer", "what the customer likes in general"),
            },
            lambda data: len(data.liking_users),
            _preference,
            varies=_lacks_words,
        ),
        Task(
            "neighbours",
            "from an item to one that stands near it in the train sequences, drawn by counts",
            {
                "item": Variable("text", "question", "the item tokens of the item", True),
                "title": Variable("text", "question", "the item's title"),
                "target": _TARGET,
                "target_title": Variable("text", "answer", "the title of the item to name"),
            },
            lambda data: len(data.nearby.known),
            _neighbour,
            by_default=False,
            varies=lambda data: not all(data.titles),
        ),
        Task(
            "code2words",
            "from one item token to words that its items share and others lack",
            {
                "code": Variable("text", "question", "the item token", True),
                "words": Variable("list of text", "answer", "the words, the most telling first"),
            },
            lambda data: len(data.code_words),
            _words_of_code,
            by_default=False,
        ),
    )
}


def parse_mixture(tasks: list[str]) -> dict[str, float]:
    """Read `seqrec`, `seqrec=0.5` (a share of its samples) or `fusionseqrec=20000` (a cap).

    Raises:
        InputError: no task at all, an unknown one, one named twice, or an amount that is no
            positive number.
    """
    if not tasks:
        raise InputError(f"--tasks: the list is empty; name some of {', '.join(TASKS)}")
    mixture: dict[str, float] = {}
    for entry in tasks:
        name, _, amount = entry.partition("=")
        if name not in TASKS:
            raise InputError(f"--tasks: no task {name!r}{closest(name, TASKS)}")
        if name in mixture:
            raise InputError(f"--tasks: {name!r} is named twice")
        try:
            value = float(amount or 1.0)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf") or (value > 1 and value != int(value)):
            raise InputError(
                f"--tasks {entry}: expected a share in (0, 1] such as {name}=0.5, or a whole "
                f"number of samples such as {name}=20000"
            )
        mixture[name] = value
    return mixture
