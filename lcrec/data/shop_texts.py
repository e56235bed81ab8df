"""The sentences of the synthetic shop: what its items, users and reviews say.

`lcrec.synthetic` decides what is true, this puts it into words with the tables of
`lcrec.data.shop_words`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lcrec.data.shop_words import DEPARTMENTS, Kind, Style, Tier, Words

DEPARTMENT_OF = {kind.name: name for name, kinds in DEPARTMENTS.items() for kind in kinds}
Taste = tuple[Style, Tier]


class Ware(NamedTuple):
    """An item: what it is, and the text that says so."""

    kind: Kind
    style: Style
    tier: Tier
    colour: str
    brand: str
    title: str
    description: str


def word_lists(kind: Kind, style: Style, tier: Tier) -> tuple[Words, ...]:
    """Return the words to choose from for a title, a list per place."""
    return kind.nouns, kind.materials, kind.sizes, style.colours, style.words, tier.words


def describe(
    kind: Kind, style: Style, tier: Tier, brand: str, words: list[str], rng: np.random.Generator
) -> Ware:
    """Put an item into words."""
    noun, material, size, colour, style_word, tier_word = words
    make = f"{style_word} {material} {noun}"
    titles = (
        f"{brand} {tier_word} {make}, {colour}, {size}",
        f"{brand} {make}, {tier_word}, {size}, {colour}",
        f"{tier_word} {make} by {brand}, {size}, {colour}",
    )
    thing = f"a {style.name} {noun.lower()} in {colour.lower()} from {brand}"
    look = _pick(rng, style.looks)
    sentences = (
        _sentence(_pick(rng, (f"{thing}, {look}", f"{look}: {thing}"))),
        _pick(rng, kind.features),
        _sentence(_pick(rng, tier.promises)),
    )
    return Ware(kind, style, tier, colour, brand, _pick(rng, titles), " ".join(sentences))


def review(bought: Sequence[Ware], taste: Taste, rng: np.random.Generator) -> dict[str, str]:
    """Return what a user of this taste says of the last item bought."""
    ware, (style, tier) = bought[-1], taste
    occasion = _occasion(bought)
    reason = f"{occasion}I needed {ware.kind.need}" if occasion else f"I wanted {ware.kind.need}"
    if ware.style == style:
        about_style = _pick(rng, style.praise)
    else:
        about_style = f"not my usual look, since I like {style.liking}"
    if ware.tier == tier:
        about_tier = _pick(rng, tier.praise)
    else:
        about_tier = f"normally I {tier.liking}, but so be it"
    summaries = {
        (True, True): ("Just my taste", "Made for me", "Would buy it again"),
        (True, False): ("My style, not my usual price", "Love the look"),
        (False, True): ("Right price, unusual look for me", "Does its job"),
        (False, False): ("A change from what I usually buy", "On a whim"),
    }
    return {
        "review": " ".join(map(_sentence, (reason, about_style, about_tier))),
        "summary": _pick(rng, summaries[ware.style == style, ware.tier == tier]),
    }


def intention(bought: Sequence[Ware], taste: Taste, rng: np.random.Generator) -> list[str]:
    """Return what the user wants and what would answer it: the last item, its title unsaid."""
    ware, (style, tier) = bought[-1], taste
    liking = f"I like {style.liking}"
    if ware.style != style:
        liking = f"mostly {liking}, but this time I want {ware.style.liking}"
    price = f"I {ware.tier.liking}"
    if ware.tier != tier:
        price = f"for once {price}"
    need = f"{_occasion(bought)}I need {ware.kind.need}"
    sentences = [liking, price]
    sentences.insert(2 * int(rng.integers(2)), need)
    colour, look = ware.colour.lower(), _pick(rng, ware.style.looks)
    thing = f"a {ware.style.name} {ware.kind.name} in {colour}, {look}"
    return [
        " ".join(map(_sentence, sentences)),
        " ".join(map(_sentence, (thing, _pick(rng, ware.tier.promises)))),
    ]


def preference(history: Sequence[Ware], taste: Taste, rng: np.random.Generator) -> list[str]:
    """Return an overall, a long-term and a short-term preference of whoever bought this."""
    style, tier = taste
    departments = [DEPARTMENT_OF[ware.kind.name] for ware in history]
    # The most frequent department, the latest of those that tie.
    main = max(reversed(departments), key=departments.count).lower()
    last = history[-1].kind.name
    overall = (
        f"this shopper likes {style.liking}, and tends to {tier.liking}",
        f"what counts here is to {tier.liking} and to find {style.liking}",
    )
    long_term = (
        f"in the long run it is {style.name} design at a {tier.name} level, above all for {main}",
        f"lasting interests: {main}, a {style.name} look and {tier.name} goods",
    )
    short_term = (
        f"just now it is about {departments[-1].lower()}, and about what goes with a {last}",
        f"the latest need was a {last}, so what is used along with it comes next",
    )
    return [_sentence(_pick(rng, texts)) for texts in (overall, long_term, short_term)]


def _occasion(bought: Sequence[Ware]) -> str:
    """Return `"after my tent "` where the last item follows from the one before, else nothing."""
    if len(bought) > 1 and bought[-1].kind.name in bought[-2].kind.followers:
        return f"after my {bought[-2].kind.name} "
    return ""


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
