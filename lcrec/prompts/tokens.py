"""Prompt tools with a tokenizer: what the model reads, where the loss falls, how long it is.

Reads a tokenizer from a folder or the hub; writes to the screen only.
"""

import numpy as np

from lcrec.core.console import printable, progress
from lcrec.core.errors import InputError
from lcrec.core.pretrained import load_tokenizer
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer, vocabulary_ids
from lcrec.prompts.preview import paint
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TASKS, Record, TaskData
from lcrec.prompts.templates import Template


def load_encoder(name: str, prompts: PromptSet, index: ItemIndex) -> PromptEncoder:
    """Load a tokenizer and make it spell item tokens, as fine-tuning would.

    Args:
        name: a folder, a checkpoint's too, or a name on the hub.
        prompts: the prompt templates; their chat template serves where the tokenizer has none.

    Raises:
        InputError: there is no such tokenizer, or it was made for another index.
    """
    tokenizer = load_tokenizer("--tokenizer", name)
    if index.vocabulary[0] in tokenizer.get_vocab():
        vocabulary_ids(tokenizer, index)
    else:
        extend_tokenizer(tokenizer, index)
    return PromptEncoder(tokenizer, prompts)


def lay_out_tokens(encoder: PromptEncoder, question: str, answer: str) -> str:
    """Return a sample as the model reads it, decoded from its ids, the span under loss marked."""
    (prompt,), (completion,) = encoder.prompt_ids([question]), encoder.answer_ids([answer])
    read, trained = (
        printable(encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False), lines=True)
        for ids in (prompt, completion)
    )
    mark = paint("green", "green", "[[ ]]")
    head = f"({len(prompt)} tokens of prompt, {len(completion)} under loss, in {mark})\n"
    text = head + read + paint(trained, "green", f"[[{trained}]]")
    return "   " + text.replace("\n", "\n   ")


def sample_tokens(encoder: PromptEncoder, question: str, answer: str) -> list[tuple[str, bool]]:
    """Return the tokens of a sample in order, each as text with whether the loss falls on it."""
    (prompt,), (completion,) = encoder.prompt_ids([question]), encoder.answer_ids([answer])
    return [
        (str(encoder.tokenizer.decode([token], clean_up_tokenization_spaces=False)), trained)
        for ids, trained in ((prompt, False), (completion, True))
        for token in ids
    ]


def print_stats(
    prompts: PromptSet, data: TaskData, encoder: PromptEncoder, max_length: int, count: int
) -> None:
    """Print how many tokens samples have, by task and template.

    Args:
        encoder: what makes tokens of them.
        max_length: the limit of fine-tuning, in tokens.
        count: how many records are counted per template, spread evenly over the data set; 0 for
            all of them.
    """
    print("Tokens per sample: prompt with markup, answer and its end.\n")
    titles = ("samples", "of", "minimum", "median", "95th", "maximum", f"over {max_length:,}")
    print(f"{'':<30}" + "".join(f"{title:>12}" for title in titles))
    for name, task in TASKS.items():
        templates = [template for template in prompts.templates if template.task == name]
        # Places, not records: these are made anew where they are counted, and not kept.
        fitting: dict[str, list[int]] = {template.id: [] for template in templates}
        try:
            for place, record in enumerate(
                progress(task.records(data), name, "records", leave=False)
            ):
                for template in templates:
                    if template.fits(record):
                        fitting[template.id].append(place)
        except InputError as error:
            print(f"{name}: left out, {error}")
            continue
        rows = {}
        for template in templates:
            places = fitting[template.id]
            if count and count < len(places):
                places = [places[at] for at in np.linspace(0, len(places) - 1, count, dtype=int)]
            records = [task.record(data, 0, place) for place in places]
            rows[template.id] = _lengths(template, records, encoder), len(fitting[template.id])
        whole = np.concatenate([lengths for lengths, _ in rows.values()]) if rows else np.array([])
        print(_stats_line(name, whole, sum(number for _, number in rows.values()), max_length))
        for template_id, (lengths, number) in rows.items():
            print(_stats_line(f"  {template_id}", lengths, number, max_length))


def _lengths(template: Template, records: list[Record], encoder: PromptEncoder) -> np.ndarray:
    """Return the tokens of each sample, int64 [samples]."""
    if not records:
        return np.zeros(0, dtype=np.int64)
    questions, answers = zip(*map(template.render, records), strict=True)
    pairs = zip(encoder.prompt_ids(list(questions)), encoder.answer_ids(list(answers)), strict=True)
    return np.array([len(prompt) + len(answer) for prompt, answer in pairs])


def _stats_line(name: str, lengths: np.ndarray, number: int, max_length: int) -> str:
    if not len(lengths):
        return (
            f"{name:<30}" + f"{0:>12}{number:>12}" + "   never used here: no record has all of it"
        )
    # Lengths that occur, not values between two of them.
    middle, high = np.quantile(lengths, [0.5, 0.95], method="higher")
    values = (len(lengths), number, lengths.min(), middle, high, lengths.max())
    over = (lengths > max_length).mean()
    return f"{name:<30}" + "".join(f"{value:>12,}" for value in values) + f"{over:>12.1%}"
