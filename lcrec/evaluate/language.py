"""Titles, descriptions and preferences in words: what a checkpoint writes, and how near it comes.

Reads a checkpoint and the data folder. The model answers without any constraint, the likeliest
token first, with the first template that serves evaluation for each kind of answer (of the tasks it
was trained on):

- `index2item`: the title, the description or both of items. All of them were in training, so this
  says how well the catalogue was learnt by heart;
- `fusionseqrec`: the title or the description of each test item, from the history before it;
- `preferenceobtain`: what a user likes, from that history; any of the user's texts counts as right,
  and those were in training too.

Exact is the share of answers that are the right text but for case and spaces; ROUGE-L is the
F-measure of the longest common subsequence of words, for any language (needs the extra `rouge`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lcrec.core.config import config_dict, option, parse_config
from lcrec.core.console import ProgressBar
from lcrec.core.errors import InputError
from lcrec.data.words import words_of
from lcrec.evaluate.checkpoint import (
    PROG,
    JudgeConfig,
    Subject,
    format_values,
    subject_of,
    write_result,
)
from lcrec.prompts.tasks import TASKS, Record, history_record, mixed_record, plain_text
from lcrec.prompts.templates import Template
from lcrec.rankings.metrics import summarise

if TYPE_CHECKING:
    from lcrec.generate.recommender import Recommender

EXAMPLE = "--model runs/shop/model --data data/shop --output runs/shop/language.json"


class RougeL:
    """The F-measure of the longest common subsequence of words (Lin 2004).

    `rouge-score` computes it. It is wrapped because its own tokenizer keeps nothing but a-z and
    0-9, so that a Japanese answer would score 0.

    Raises:
        InputError: the package `rouge-score` is missing.
    """

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise InputError("ROUGE needs a package: pip install 'lcrec[rouge]'") from None
        self._scorer = RougeScorer(["rougeL"], tokenizer=self)

    @staticmethod
    def tokenize(text: str) -> list[str]:
        """Return the words, as `rouge-score` asks for them."""
        return words_of(text, symbols=True)

    def score(self, text: str, references: list[str]) -> float:
        """Return the best F-measure of `text` against any reference, 0 to 1."""
        return self._scorer.score_multi(references, text)["rougeL"].fmeasure


LANGUAGE_TASKS = ("index2item", "fusionseqrec", "preferenceobtain")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(JudgeConfig):
    """Settings of `python -m lcrec.evaluate language`."""

    templates: list[str] | None = option(
        "templates whose answer is text (default: see above)", None
    )
    users: int = option(
        "users (cases, where users have several), or items, to sample for each template",
        500,
        minimum=1,
    )
    max_new_tokens: int = option("tokens of an answer at most", 128, minimum=1)
    show: int = option("answers to print for each template", 2, minimum=0)
    seed: int = option("of sampling and the bootstrap", 0, minimum=0)


@dataclass(frozen=True)
class Question:
    """A prompt's question, the texts that answer it, and the user or the item it is about."""

    question: str
    references: list[str]
    about: str


def main(argv: list[str]) -> None:
    """Run the command."""
    config = parse_config(LanguageConfig, argv, prog=f"{PROG} language", example=EXAMPLE)
    rouge = RougeL()
    subject = subject_of(config)
    templates = choose_templates(subject, config.templates)
    print(f"Writing answers to {len(templates)} template(s), {config.users:,} of each at most")
    asked = []
    for template in templates:
        questions = sample_questions(subject, template, config.users, config.seed)
        if questions:
            asked.append((template, questions))
        else:
            print(f"Note: {template.id} has nothing to ask about in this data set; left out.")
    if not asked:
        raise InputError("no template has anything to ask about in this data set; see the notes")
    escape = subject.recommender.request_encoder.prompt_encoder.escape_markup
    rows: dict[str, dict[str, Any]] = {}
    result: dict[str, dict[str, Any]] = {}
    for template, questions in asked:
        prompts = [question.question for question in questions]
        answers = answer_questions(
            subject.recommender, prompts, config.max_new_tokens, label=template.id
        )
        # As they were trained.
        right = [list(map(escape, question.references)) for question in questions]
        scores = {
            "exact": list(map(is_exact, answers, right)),
            "ROUGE-L": list(map(rouge.score, answers, right)),
        }
        _, owners = np.unique([question.about for question in questions], return_inverse=True)
        rows[template.id] = {
            name: summarise(np.asarray(values, dtype=np.float64), config.seed, owners)
            for name, values in scores.items()
        }
        result[template.id] = {
            "task": template.task,
            "asks_for": sorted(template.answer_variables),
            "answers": len(answers),
            **rows[template.id],
        }
        for texts, answer in zip(right[: config.show], answers, strict=False):
            print(f"  {template.id}\n    right  {texts[0]!r:.110}")
            print(f"    model  {answer!r:.110}")
    print("\nBelow each value, its 95 % interval over users or items.\n")
    print(format_values(rows, "template"))
    for name, entry in result.items():
        print(f"  {name}: {entry['task']}, {' and '.join(entry['asks_for'])}, {entry['answers']:,}")
    record = {"templates": result}
    write_result(
        config.output,
        "language",
        config_dict(config),
        subject.inputs,
        record,
        overwrite=config.overwrite,
    )


def choose_templates(subject: Subject, wanted: list[str] | None) -> list[Template]:
    """Return the templates to ask with, by default one for each kind of answer that was trained.

    Raises:
        InputError: an unknown id, a template whose answer is an item, or a model that was trained
            on no task with answers in words.
    """
    tasks: tuple[str, ...] = LANGUAGE_TASKS
    if wanted is None:
        tasks = tuple(task for task in LANGUAGE_TASKS if task in subject.parts.tasks)
        if not tasks:
            raise InputError(
                f"--model was trained on {', '.join(sorted(subject.parts.tasks))}, none of "
                "which answers in words; name --templates to ask all the same"
            )
    return subject.parts.prompts.evaluation_templates(
        tasks,
        wanted or ["first"],
        accepts=lambda template: not template.is_item_answer,
        that="whose answer is in words",
        kind=lambda template: template.answer_variables,
    )


def sample_questions(subject: Subject, template: Template, count: int, seed: int) -> list[Question]:
    """Return at most `count` questions with this template, drawn by seed, in their order."""
    records = [entry for entry in _records(subject, template.task) if template.fits(entry[0])]
    drawn = np.sort(np.random.default_rng(seed).permutation(len(records))[:count])
    questions = []
    for place in drawn.tolist():
        record, others, about = records[place]
        answers = [template.render({**record, **other})[1] for other in others]
        questions.append(Question(template.ask(record), answers, about))
    return questions


def _records(subject: Subject, task: str) -> Iterator[tuple[Record, list[Record], str]]:
    """Yield each record to ask about, what each right answer changes in it, and whom it is about.

    A preference is the user's, so it is told from the first of their histories alone.
    """
    data, test = subject.data, subject.split.test
    test = test.one_target_each() if task == "fusionseqrec" else test.one_per_user()
    if task == "index2item":
        for item, record in enumerate(TASKS[task].records(data)):
            yield record, [{}], str(item)
        return
    preferences = data.user_texts.preferences if data.user_texts else {}
    for user, history, target in zip(test.users, test.histories, test.targets, strict=True):
        if task == "fusionseqrec":
            yield mixed_record(data, history, int(target)), [{}], user
        elif user in preferences:
            texts = [plain_text(text, data.max_text_words) for text in preferences[user]]
            others: list[Record] = [{"preference": text} for text in texts if text]
            if others:
                record = history_record(data.index, history, data.max_history)
                yield {**record, **others[0]}, others, user


def answer_questions(
    recommender: Recommender, questions: list[str], max_new_tokens: int, *, label: str
) -> list[str]:
    """Let the model answer in words: the likeliest token, one after the other, until EOS.

    Args:
        recommender: the model.
        questions: what to ask, [questions].
        max_new_tokens: tokens of an answer at most.
        label: of the progress bar.

    Returns:
        [questions] texts; item tokens in them are shown as they are.
    """
    prompt_ids = recommender.request_encoder.encode(questions, max_new_tokens)
    with ProgressBar(len(questions), label, "answers") as bar:
        return recommender.write_texts(
            prompt_ids, max_new_tokens, words_only=False, count_done=bar.update
        )


def is_exact(text: str, references: list[str]) -> bool:
    """Tell whether a text is one of the references, but for case and spaces."""
    words = text.casefold().split()
    return any(words == reference.casefold().split() for reference in references)
