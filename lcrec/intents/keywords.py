"""What users like and look for without any language model: lists of keywords.

The words with the highest TF-IDF weight in the titles and categories of a user's items. Every task
can so be trained without a language model; a list of words is no sentence, gives no reason and
draws no conclusion.
"""

import html
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from lcrec.core.errors import InputError
from lcrec.data.folder import Items
from lcrec.data.user_texts import IntentSubject
from lcrec.data.words import words_of
from lcrec.intents.requests import Outcome, TitleGuard
from lcrec.prompts.intent_wording import IntentPrompts
from lcrec.prompts.tasks import plain_text

LATELY = 3  # items that a short-term preference is about
WANTED_TERMS = 5
LIKED_TERMS = 8


def keyword_texts(
    items: Items,
    subjects: Sequence[IntentSubject],
    prompts: IntentPrompts,
    guard: TitleGuard,
    *,
    max_history: int,
    max_text_words: int,
) -> Outcome:
    """Return every user's texts; `leaked` counts intentions for whose item no word was left.

    An intention looks at its item alone: once at its words of highest weight, once at those that
    most items share. It says at most half of a title's words, no word that only one item has and
    none with a digit. A preference looks at the latest items to train on, but for the last: at all
    of them, at what two of them at least share, and at the last three.

    Args:
        max_history: items in a preference at most.
        max_text_words: words of a title at most.

    Raises:
        InputError: no two items share a word.
    """
    # Without unescaping, what is left of HTML in a catalogue (&quot;) would count as words.
    texts = [
        plain_text(
            html.unescape(f"{items.text(item, 'title')} {items.text(item, 'categories')}"),
            max_text_words,
        )
        for item in range(len(items))
    ]
    # Letters only: a word with digits is a model number or a measure, as is the CLI of CLI-271.
    vectorizer = TfidfVectorizer(
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b(?!-\d)",
        stop_words="english",
        min_df=2,
        sublinear_tf=True,
    )
    try:
        weights = csr_matrix(vectorizer.fit_transform(texts))
    except ValueError:
        raise InputError(
            "--method keywords: no two items have a word of their titles or categories in common; "
            "let a language model write the texts (--method local or openai)"
        ) from None
    terms = vectorizer.get_feature_names_out().tolist()
    shared = np.bincount(weights.indices, minlength=len(terms))  # items that have the term
    outcome = Outcome()

    def wanted(item: int) -> list[str]:
        row = weights[[item]]
        found: dict[frozenset[str], str] = {}
        for rank in (row.data, shared[row.indices]):
            chosen = _harmless(guard, item, [terms[term] for term in _by(rank, row.indices)])
            text = prompts.render("keywords_intention", {"terms": chosen}) if chosen else ""
            if text and not guard.leak(item, text):
                found.setdefault(frozenset(chosen), text)
        return list(found.values())

    intentions: dict[int, list[str]] = {}
    for subject in subjects:
        for section, (item, _) in subject.taken.items():
            if item not in intentions:
                intentions[item] = wanted(item)
            if intentions[item]:
                outcome.texts[subject.user, section] = intentions[item]
            else:
                outcome.leaked += 1
        liked = _liked(weights, subject.liked[-max_history:])
        own = [
            prompts.render(f"keywords_{name}", {"terms": [terms[term] for term in found]})
            for name, found in liked.items()
            if len(found)
        ]
        if own:
            outcome.texts[subject.user, "preference"] = own
    return outcome


def _liked(weights: csr_matrix, history: np.ndarray) -> dict[str, np.ndarray]:
    """Return the terms of each preference, highest weight first."""
    terms, sums, counts = _sums(weights[history])
    found = {
        "overall": _by(sums, terms)[:LIKED_TERMS],
        "long_term": _by(sums[counts > 1], terms[counts > 1])[:LIKED_TERMS],
    }
    # What says the same again is left out.
    if np.array_equal(found["long_term"], found["overall"]):
        del found["long_term"]
    if len(history) > LATELY:
        terms, sums, _ = _sums(weights[history[-LATELY:]])
        found["short_term"] = _by(sums, terms)[:WANTED_TERMS]
    return found


def _sums(rows: csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the terms of some items, each one's weights added up, and how many items have it."""
    terms, places = np.unique(rows.indices, return_inverse=True)
    return terms, np.bincount(places, rows.data, len(terms)), np.bincount(places, None, len(terms))


def _by(rank: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return places ordered by falling rank; ties by place."""
    return places[np.lexsort((places, -rank))]


def _harmless(guard: TitleGuard, item: int, terms: Iterable[str]) -> list[str]:
    """Return the first terms that together give away at most half of the title."""
    title = set(guard.title_words(item))
    left = len(title) // 2
    chosen: list[str] = []
    for term in terms:
        if len(chosen) == WANTED_TERMS:
            break
        told = len(title.intersection(words_of(term)))
        if told > left or guard.leak(item, " ".join([*chosen, term])):
            continue
        left -= told
        chosen.append(term)
    return chosen
