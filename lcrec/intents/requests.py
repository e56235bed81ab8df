"""What a chat model is asked about every user, and what becomes of its answers.

An answer is a JSON object. One that is not, lacks a text or gives the item's title away is asked
for again; what still gives the title away after the last attempt is dropped and counted. Every
answer that arrives goes into a journal (`<Name>.answers.jsonl`, one line each, found again by the
question's hash), so nothing is asked or paid for twice: not after a kill, not for other users, not
for the texts that a change of the template leaves as they were.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from lcrec.core.console import ProgressBar
from lcrec.core.errors import InputError
from lcrec.data.folder import Items
from lcrec.data.user_texts import IntentSubject, Review
from lcrec.data.words import words_of
from lcrec.prompts.intent_wording import INTENT_TEMPLATES, IntentPrompts, Messages, Variables
from lcrec.prompts.tasks import plain_text

Section = Literal["preference", "train", "test"]
Texts = dict[tuple[str, Section], list[str]]

# Longer texts are cut; a model that cannot stop must not fill the file.
MAX_ANSWER_WORDS = 200


QUOTE_LENGTH = 4


class TitleGuard:
    """Tells what a text says of an item's title.

    A text gives a title away if it holds (a) a word of it with a digit that no other title has,
    such as a model number, (b) four words of it in a row, or (c) every word of it, in any order.

    Args:
        titles: every item's title [items], empty where it has none.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._words = [words_of(title) for title in titles]
        counts = Counter(word for words in self._words for word in set(words))
        self._codes = [
            {word for word in words if counts[word] == 1 and any(map(str.isdigit, word))}
            for words in self._words
        ]

    def title_words(self, item: int) -> list[str]:
        """Return the words of an item's title, in order."""
        return self._words[item]

    def leak(self, item: int, text: str) -> str:
        """Return the words of the item's title that the text gives away; empty if it does not."""
        title, said = self._words[item], words_of(text)
        for word in said:
            if word in self._codes[item]:
                return word
        runs = {tuple(said[start:][:QUOTE_LENGTH]) for start in range(len(said))}
        for start in range(len(title) - QUOTE_LENGTH + 1):
            run = tuple(title[start:][:QUOTE_LENGTH])
            if run in runs:
                return " ".join(run)
        return " ".join(title) if title and set(title) <= set(said) else ""


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        user, section: whom and which part of `<Name>.user.json` it is for.
        name: the template, `intention` or `preference`.
        variables: what the template may use.
        item: the item whose title must not be given away, for an intention.
    """

    user: str
    section: Section
    name: str
    variables: Variables
    item: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came back: the text, the seconds it took and the tokens it cost, as far as known."""

    text: str
    model: str
    seconds: float
    tokens_in: int
    tokens_out: int


class Writer(Protocol):
    """A chat model."""

    def write(self, chats: list[Messages], keep: Callable[[int, Answer], None]) -> None:
        """Ask all; call `keep(number, answer)` as each answer arrives.

        A chat that gets no answer is left out; it is asked again the next time.

        Raises:
            InputError: it makes no sense to go on.
        """


@dataclass
class Outcome:
    """The texts by user and section, and how many questions have less than they should.

    Attributes:
        texts: all that may be used.
        malformed: questions whose answers were no JSON object with the texts asked for.
        leaked: questions that lost a text, or all, because it gave the title away.
        unanswered: questions that got no answer.
    """

    texts: Texts = field(default_factory=dict)
    malformed: int = 0
    leaked: int = 0
    unanswered: int = 0


def make_requests(
    items: Items,
    subjects: Sequence[IntentSubject],
    reviews: dict[tuple[str, int], Review],
    *,
    max_history: int,
    max_text_words: int,
) -> list[Request]:
    """Return every question, in the order of the users.

    What is asked about an item looks at that item and the user's review of it alone; a preference
    looks at what the user trains on, without the last item.

    Args:
        reviews: what users wrote, by (user, item).
        max_history: titles in a preference at most, the latest.
        max_text_words: words of a title, description or review at most.
    """
    fields = ("title", "description", "categories", "brand")
    shown = [
        {name: plain_text(items.text(item, name), max_text_words) for name in fields}
        for item in range(len(items))
    ]
    requests = []
    for subject in subjects:
        user = subject.user
        titles = [shown[item]["title"] for item in subject.liked[-max_history:].tolist()]
        titles = [title for title in titles if title]
        if titles:
            requests.append(Request(user, "preference", "preference", {"titles": titles}))
        for section, (item, _) in subject.taken.items():
            review = reviews.get((user, item), Review("", ""))
            variables: Variables = {
                **shown[item],
                "review": plain_text(review.text, max_text_words),
                "summary": plain_text(review.summary, max_text_words),
            }
            requests.append(Request(user, section, "intention", variables, item))
    return requests


class Journal:
    """Every answer ever received, by the hash of what was asked.

    Args:
        path: the file; made with the first answer. A last line cut short by a kill is removed.

    Raises:
        InputError: the file is no such journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                key = row.pop("key")
                self._answers[key] = Answer(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(
                    f"{path}, line {number}: not an answer kept by lcrec.intents; move the file "
                    "away to ask everything anew"
                ) from None
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def __len__(self) -> int:
        return len(self._answers)

    @staticmethod
    def key(identity: dict[str, Any], chat: Messages, attempt: int) -> str:
        """Return the hash that stands for a question."""
        content = json.dumps([identity, chat, attempt], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def get(self, key: str) -> Answer | None:
        """Return the answer, if there is one."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is in the file when this returns."""
        # A server may send half of a surrogate pair, which UTF-8 cannot hold.
        answer = replace(answer, text=answer.text.encode(errors="replace").decode())
        self._answers[key] = answer
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **vars(answer)}, ensure_ascii=False) + "\n")

    def of_model(self, model: str) -> list[Answer]:
        """Return all answers of a model."""
        return [answer for answer in self._answers.values() if answer.model == model]


def first_chats(
    requests: list[Request], prompts: IntentPrompts, identity: dict[str, Any], journal: Journal
) -> list[Messages]:
    """Return the chats of the first attempt that the journal has no answer to, each once."""
    chats = {}
    for request in requests:
        chat = prompts.messages(request.name, _variables(request, ""))
        chats[Journal.key(identity, chat, 0)] = chat
    return [chat for key, chat in chats.items() if journal.get(key) is None]


def write_texts(
    requests: list[Request],
    prompts: IntentPrompts,
    guard: TitleGuard,
    writer: Callable[[], Writer],
    journal: Journal,
    *,
    identity: dict[str, Any],
    attempts: int,
) -> Outcome:
    """Ask everything, up to `attempts` times each, and return what may be used.

    The same question about two users is asked once.

    Args:
        writer: returns whom to ask; called only where the journal lacks an answer.
        journal: answers that are there already, and where new ones go.
        identity: what an answer depends on besides the question, such as the model's name.

    Raises:
        InputError: the writer gave up; all answers up to then are in the journal.
    """
    outcome = Outcome()
    pending = dict.fromkeys(range(len(requests)), "")  # and the words that gave it away
    best: dict[int, list[str]] = {}
    for attempt in range(attempts):
        chats = {
            number: prompts.messages(requests[number].name, _variables(requests[number], leaked))
            for number, leaked in pending.items()
        }
        keys = {n: Journal.key(identity, chat, attempt) for n, chat in chats.items()}
        missing = {keys[n]: chat for n, chat in chats.items() if journal.get(keys[n]) is None}
        if missing:
            _ask(writer(), missing, journal, f"ask again ({attempt})" if attempt else "ask")
        again = {}
        for number, key in keys.items():
            answer = journal.get(key)
            if answer is None:
                outcome.unanswered += 1
                continue
            request = requests[number]
            texts = parse_answer(answer.text, INTENT_TEMPLATES[request.name].keys)
            leaks = [_leak(guard, request, text) for text in texts]
            clean = [text for text, leak in zip(texts, leaks, strict=True) if not leak]
            best[number] = max(best.get(number, []), clean, key=len)
            if not texts or any(leaks):
                again[number] = next(filter(None, leaks), "")
        pending = again
    outcome.leaked = sum(1 for leaked in pending.values() if leaked)
    outcome.malformed = len(pending) - outcome.leaked
    for number, texts in best.items():
        if texts:
            outcome.texts[requests[number].user, requests[number].section] = texts
    return outcome


def _ask(writer: Writer, missing: dict[str, Messages], journal: Journal, label: str) -> None:
    keys = list(missing)
    with ProgressBar(len(keys), label, "answers") as bar:

        def keep(number: int, answer: Answer) -> None:
            journal.add(keys[number], answer)
            bar.update()

        writer.write(list(missing.values()), keep)


def _variables(request: Request, leaked: str) -> Variables:
    extra: Variables = {} if request.item is None else {"leaked": leaked}
    return {**request.variables, **extra}


def _leak(guard: TitleGuard, request: Request, text: str) -> str:
    return "" if request.item is None else guard.leak(request.item, text)


def parse_answer(text: str, keys: tuple[str, ...]) -> list[str]:
    """Return the texts of the last JSON object in an answer that has all keys; empty if none has.

    What stands around the object (thoughts, a code fence) does not matter.
    """
    decoder = json.JSONDecoder(strict=False)  # models put line breaks into texts
    found: list[str] = []
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value, end = None, start + 1
        texts = [value.get(key) for key in keys] if isinstance(value, dict) else []
        clean = [plain_text(own, MAX_ANSWER_WORDS) for own in texts if isinstance(own, str)]
        if clean and all(clean) and len(clean) == len(keys):
            found = clean
        else:
            end = start + 1  # it may lie within
        start = text.find("{", end)
    return found
