"""Stage: what users like and look for, in words.

Reads `<Name>.inter.json`, `<Name>.item.json` and, where there is one, `<Name>.review.json` (without
it, titles and descriptions are all that is used); writes `<Name>.user.json` in LC-Rec's form, for
the tasks itemsearch and preferenceobtain. Every user gets two intentions, for the item at [-3] (to
train on) and the one at [-1] (to test search with), written from that item and the user's review of
it alone, and preferences written from the items before [-3]. Three ways to write them: `keywords`
(TF-IDF, no language model), `local` (a chat model run by transformers), `openai` (any
OpenAI-compatible endpoint, with the key in OPENAI_API_KEY).
"""

import functools
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lcrec.core.artifacts import DataPaths, atomic_files, find_data, write_json
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import printable
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import check_output, claim
from lcrec.core.provenance import fingerprint, is_current, read_provenance, write_provenance
from lcrec.data.folder import Items, load_interactions, load_items
from lcrec.data.splits import Split, load_split
from lcrec.data.user_texts import IntentSubject, intent_subjects, load_reviews, load_user_texts
from lcrec.intents.requests import (
    Answer,
    Journal,
    Outcome,
    Request,
    Texts,
    TitleGuard,
    Writer,
    first_chats,
    make_requests,
    write_texts,
)
from lcrec.prompts.intent_wording import IntentPrompts, Messages
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS

STAGE = "python -m lcrec.intents"
EXAMPLE = "--data data/shop --method keywords"
KEYWORDS_NOTE = "lists of keywords (TF-IDF of titles and categories); no language model wrote them"
# Where nothing is known yet: what a question takes and an answer holds.
ASSUMED_SECONDS, ASSUMED_TOKENS, CHARACTERS_PER_TOKEN = 3.0, 120, 4
# What decides how the texts are asked for, but not what they are.
MEANS: tuple[str, ...] = ("concurrency", "timeout", "retries", "batch_tokens", "price_in")
MEANS += ("price_out", "yes", "trial", "dry_run")


@dataclass(frozen=True)
class IntentsConfig(Writes):
    """Settings of `python -m lcrec.intents`."""

    data: Path = option("the data folder; <Name>.user.json is written there")
    method: Literal["keywords", "local", "openai"] = option("who writes the texts")
    model: str | None = option("the chat model (local: a folder or on the hub)", None)
    base_url: str | None = option("the endpoint (openai only; OpenAI's if left out)", None)
    prompts: Path = option(
        "the folder of intents.yaml; without one, the shipped file", SHIPPED_PROMPTS
    )
    trial: int | None = option(
        "the first N users only: show their texts, keep the answers, write no user.json",
        None,
        minimum=1,
    )
    max_history: int = option("titles a preference is told from at most", 20, minimum=1)
    max_text_words: int = option("words of a title, review, ... at most", 150, minimum=1)
    attempts: int = option(
        "how often a question is asked at most, when answers are refused (models only)",
        3,
        minimum=1,
    )
    temperature: float = option("temperature of the sampling (models only)", 0.4, minimum=0)
    max_tokens: int = option("tokens of an answer at most (models only)", 300, minimum=16)
    batch_tokens: int = option("tokens per batch, padding included (local only)", 8192, minimum=1)
    concurrency: int = option("questions in flight at once (openai only)", 8, minimum=1)
    timeout: float = option("seconds to wait for an answer (openai only)", 60.0, minimum=0.1)
    retries: int = option(
        "how often a question without an answer is sent again (openai only)", 10, minimum=0
    )
    price_in: float | None = option(
        "price of a million prompt tokens, for the estimate", None, minimum=0
    )
    price_out: float | None = option(
        "price of a million answer tokens, for the estimate", None, minimum=0
    )
    yes: bool = option("do not ask before spending (openai only)", False)
    dry_run: bool = option("show what would be asked, and the estimate, and stop", False)
    seed: int = option("decides the sampling (local only)", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(IntentsConfig, argv, prog=STAGE, example=EXAMPLE)
    if config.method != "keywords" and config.model is None:
        raise InputError(f"--method {config.method} needs --model NAME")
    paths = find_data(config.data)
    items = load_items(config.data)
    split = load_split(config.data, load_interactions(config.data, len(items)))
    prompts = IntentPrompts.load(config.prompts, SHIPPED_PROMPTS)
    settings = config_dict(config, without=MEANS)
    inputs = {**paths.sequences, "item": paths.item, "intents": prompts.path}
    if config.method != "keywords" and paths.review.exists():
        inputs["review"] = paths.review
    if config.method == "local" and Path(config.model or "").is_dir():
        inputs["model"] = Path(config.model or "")
    writes = config.trial is None and not config.dry_run
    if writes:
        check_output(paths.user, STAGE, ".json", overwrite=config.overwrite, flag="--data")
    if writes and is_done(paths.user, settings, inputs, overwrite=config.overwrite):
        print(f"{paths.user} is up to date.\n{next_command(config.data)}")
        return

    claimed = claim(
        paths.user, STAGE, ".json", overwrite=config.overwrite, flag="--data", active=writes
    )
    with claimed:
        _write(config, paths, items, split, prompts, settings, inputs, writes=writes)


def _write(
    config: IntentsConfig,
    paths: DataPaths,
    items: Items,
    split: Split,
    prompts: IntentPrompts,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    *,
    writes: bool,
) -> None:
    """Get all texts and write them, or show the first where `writes` is off."""
    chosen = intent_subjects(split, config.trial)
    guard = TitleGuard([items.text(item, "title") for item in range(len(items))])
    limits = {"max_history": config.max_history, "max_text_words": config.max_text_words}
    outcome: Outcome | None
    if config.method == "keywords":
        from lcrec.intents.keywords import keyword_texts

        print(f"Writing {KEYWORDS_NOTE}, about {len(chosen):,} users")
        outcome = keyword_texts(items, chosen, prompts, guard, **limits)
    else:
        reviews = load_reviews(config.data, split.train.users, len(items))
        told = f"{len(reviews):,} reviews" if reviews else "titles and descriptions (no reviews)"
        print(f"Asking {config.model} about {len(chosen):,} users, from {told}")
        requests = make_requests(items, chosen, reviews, **limits)
        outcome = ask_model(config, requests, prompts, guard, Journal(paths.answers))
    if outcome is None:
        return
    print(account(outcome, config))
    if not writes:
        show_texts(outcome.texts, chosen, items, count=len(chosen) if config.trial else 1)
        print(f"{paths.user.name} is not written: this was a trial.")
        return
    if not outcome.texts:
        raise InputError(f"{paths.user} is not written: there is no text to write")
    with atomic_files(paths.user) as file:
        write_json(file, user_json(chosen, outcome.texts))
        write_provenance(
            file,
            STAGE,
            settings,
            inputs,
            sha256=fingerprint(file),
            origin=KEYWORDS_NOTE if config.method == "keywords" else f"written by {config.model}",
            leaked=outcome.leaked,
            malformed=outcome.malformed,
            unanswered=outcome.unanswered,
        )
    texts = load_user_texts(config.data, split)
    assert texts is not None
    show_texts(outcome.texts, chosen, items, count=1)
    print(f"Wrote {paths.user}: {texts.describe()}.\n{next_command(config.data)}")


def is_done(
    path: Path, settings: dict[str, Any], inputs: dict[str, Path], *, overwrite: bool
) -> bool:
    """Tell whether the file is there, complete and of these settings and inputs.

    Raises:
        InputError: the file came from elsewhere, or was edited, and `overwrite` is off.
    """
    if not path.exists():
        return False
    record = read_provenance(path)
    if record is None or record.get("sha256") != fingerprint(path):
        if overwrite:
            return False
        raise InputError(
            f"{path}: not what {STAGE} wrote, but made elsewhere or edited since; keep it, move it "
            "away, or replace it with --overwrite"
        )
    return record.get("unanswered") == 0 and is_current(path, STAGE, settings, inputs)


def ask_model(
    config: IntentsConfig,
    requests: list[Request],
    prompts: IntentPrompts,
    guard: TitleGuard,
    journal: Journal,
) -> Outcome | None:
    """Ask a chat model all that the journal does not answer; None after a dry run.

    Raises:
        InputError: the model cannot be had, spending was not agreed to, or nobody answers.
    """
    model = config.model or ""
    sampling: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    # The same name may mean another model at another endpoint, or in the same folder tomorrow.
    identity = {"model": model, **sampling}
    if config.method == "openai":
        identity["base_url"] = config.base_url
    else:
        identity["seed"] = config.seed
        identity["sha256"] = fingerprint(Path(model)) if Path(model).is_dir() else None
    chats = first_chats(requests, prompts, identity, journal)
    print(estimate(config, len(requests), chats, journal.of_model(model)))
    if config.dry_run:
        show_questions(requests, prompts)
        return None

    @functools.cache
    def writer() -> Writer:
        if config.method == "local":
            from lcrec.intents.local import LocalWriter

            how = {"batch_tokens": config.batch_tokens, "seed": config.seed}
            return LocalWriter(model, **sampling, **how)
        try:
            from lcrec.intents.endpoint import EndpointWriter
        except ImportError:
            raise InputError(
                "--method openai needs a package: pip install 'lcrec[openai]'"
            ) from None
        return EndpointWriter(
            model,
            config.base_url,
            **sampling,
            concurrency=config.concurrency,
            timeout=config.timeout,
            retries=config.retries,
        )

    if chats and config.method == "openai":
        writer()  # which refuses a wrong address before anybody is asked to agree
        if not config.yes:
            confirm()
    return write_texts(
        requests, prompts, guard, writer, journal, identity=identity, attempts=config.attempts
    )


def estimate(
    config: IntentsConfig, num_requests: int, chats: list[Messages], answers: list[Answer]
) -> str:
    """Return what asking will take, in questions, tokens, time and money.

    Args:
        num_requests: questions in all.
        chats: those that must be asked; the rest is answered already, or is the same question.
        answers: what the model answered before, which seconds and tokens are counted from.
    """
    asked = len(chats)
    seconds, tokens, base = ASSUMED_SECONDS, float(ASSUMED_TOKENS), "assumed"
    if answers:
        seconds = sum(answer.seconds for answer in answers) / len(answers)
        tokens = sum(answer.tokens_out for answer in answers) / len(answers)
        base = f"the mean of {len(answers):,} answers"
    read = sum(len(message["content"]) for chat in chats for message in chat)
    millions = (read / CHARACTERS_PER_TOKEN / 1e6, asked * tokens / 1e6)
    lines = [
        f"{num_requests:,} questions, {asked:,} of them to ask (the rest is answered already or "
        "is the same question again)",
        f"about {millions[0]:.3f} million tokens to read ({CHARACTERS_PER_TOKEN} characters each) "
        f"and {millions[1]:.3f} million to write ({tokens:.0f} per answer, {base})",
    ]
    if config.method == "openai" or answers:
        at_once = config.concurrency if config.method == "openai" else 1
        minutes = asked * seconds / at_once / 60
        lines.append(f"about {minutes:.1f} minutes ({seconds:.1f} s per answer, {base})")
    if config.price_in is not None and config.price_out is not None:
        cost = millions[0] * config.price_in + millions[1] * config.price_out
        lines.append(f"about {cost:.2f} in money, what is asked again not included")
    elif config.method == "openai":
        lines.append("cost: give --price-in and --price-out (per million tokens) to see it")
    return "\n".join(f"  {line}" for line in lines)


def confirm() -> None:
    """Ask whether to spend.

    Raises:
        InputError: the answer is no, or there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise InputError("this may cost money, and there is nobody to ask; add --yes to agree")
    try:
        reply = input("Ask them? [y/N] ")
    except EOFError:  # Ctrl-D
        reply = ""
    if reply.strip().lower() not in ("y", "yes"):
        raise InputError("nothing was asked; --trial 20 tries it on a few users first")


def account(outcome: Outcome, config: IntentsConfig) -> str:
    """Return what is missing, and why."""
    if config.method == "keywords":
        return f"  {outcome.leaked:,} intentions left out: no word but those that name the item"
    return (
        f"  after up to {config.attempts} attempts: {outcome.leaked:,} answers gave the title "
        f"away (what did is dropped), {outcome.malformed:,} were no usable JSON (dropped), "
        f"{outcome.unanswered:,} questions got no answer"
        + (" (the same command asks them again)" if outcome.unanswered else "")
    )


def user_json(subjects: Sequence[IntentSubject], texts: Texts) -> dict[str, Any]:
    """Return LC-Rec's form of the texts; users without a text are left out of its section."""
    intentions: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    preferences = {}
    for subject in subjects:
        user = subject.user
        if own := texts.get((user, "preference")):
            preferences[user] = own
        for section, (item, before) in subject.taken.items():
            if own := texts.get((user, section)):
                intentions[section][user] = {"item": item, "inters": before.tolist(), "querys": own}
    return {"user_explicit_preference": preferences, "user_vague_intention": intentions}


def show_questions(requests: list[Request], prompts: IntentPrompts) -> None:
    """Print the first question of each template."""
    for name in ("preference", "intention"):
        request = next((request for request in requests if request.name == name), None)
        if request is not None:
            for message in prompts.messages(name, {**request.variables, "leaked": ""}):
                text = printable(message["content"], lines=True)
                print(f"-- {name}, {message['role']}:\n{text}")


def show_texts(
    texts: Texts, subjects: Sequence[IntentSubject], items: Items, *, count: int
) -> None:
    """Print what was written about the first `count` users who have any text."""
    known = {user for user, _ in texts}
    for subject in itertools.islice((s for s in subjects if s.user in known), count):
        user = subject.user
        print(f"User {printable(user)}")
        for text in texts.get((user, "preference"), []):
            print(f"  likes      {printable(text)}")
        for section, (item, _) in subject.taken.items():
            for text in texts.get((user, section), []):
                print(f"  looked for {printable(text)}")
            print(f"  and took   {printable(items.title(item))}  (to {section})")


def next_command(data: Path) -> str:
    """Return the hint at what comes next."""
    return (
        f"Next: python -m lcrec.finetune --data {data} --index DIR --base DIR "
        "--output DIR --tasks seqrec item2index index2item fusionseqrec itemsearch preferenceobtain"
    )


if __name__ == "__main__":
    run_stage(main)
