"""Prompt tools with a tokenizer: what the model reads, where the loss falls, how long it is.

Reads a tokenizer from a folder or the hub; writes to the screen only.
"""

from itertools import takewhile

import numpy as np

from lcrec.core.console import printable, progress
from lcrec.core.errors import InputError
from lcrec.core.pretrained import load_tokenizer
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder, extend_tokenizer, vocabulary_ids
from lcrec.prompts.preview import paint, why_unused
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TASKS, Task, TaskData
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
    print(
        "Tokens per sample: prompt with markup, answer and its end. shared: what the customer's "
        "sample\nbefore it begins with too, which training computes once.\n"
    )
    titles = ["samples", "of", "minimum", "median", "95th", "maximum"]
    titles += [f"over {max_length:,}", "shared"]
    print(f"{'':<30}" + "".join(f"{title:>12}" for title in titles))
    for name, task in TASKS.items():
        templates = [template for template in prompts.templates if template.task == name]
        # Places, not records: these are made anew where they are counted, and not kept.
        fitting: dict[str, list[int]] = {template.id: [] for template in templates}
        seen: set[str] = set()
        try:
            for place, record in enumerate(
                progress(task.records(data), name, "records", leave=False)
            ):
                seen.update(name for name, value in record.items() if value)
                for template in templates:
                    if template.fits(record):
                        fitting[template.id].append(place)
        except InputError as error:
            print(f"{name}: left out, {error}")
            continue
        rows = []
        for template in templates:
            places = fitting[template.id]
            if count and count < len(places):
                places = [places[at] for at in np.linspace(0, len(places) - 1, count, dtype=int)]
            rows.append(_count(template, task, data, places, encoder))
        number = sum(map(len, fitting.values()))
        whole = np.concatenate(rows, axis=1) if rows else np.zeros((2, 0))
        print(_stats_line(name, whole, number, max_length, "no sample"))
        for template, counts in zip(templates, rows, strict=True):
            number, unused = len(fitting[template.id]), why_unused(template, seen)
            print(_stats_line(f"  {template.id}", counts, number, max_length, unused))


def _count(
    template: Template, task: Task, data: TaskData, places: list[int], encoder: PromptEncoder
) -> np.ndarray:
    """Return the tokens of each sample, and how many of them it shares, int64 [2, samples]."""
    counts = np.zeros((2, len(places)), dtype=np.int64)
    sides = [template.render(task.record(data, 0, place)) for place in places]
    prompts = encoder.prompt_ids([question for question, _ in sides])
    answers = encoder.answer_ids([answer for _, answer in sides])
    counts[0] = [len(one) + len(other) for one, other in zip(prompts, answers, strict=True)]
    stretches = None if task.stretches is None else task.stretches(data)
    earlier = {
        number: record
        for number, place in enumerate(places)
        if stretches is not None and place and stretches[place - 1] == stretches[place]
        if template.can_ask(record := task.record(data, 0, place - 1))
    }
    asked = encoder.prompt_ids([template.ask(record) for record in earlier.values()])
    for number, before in zip(earlier, asked, strict=True):
        pairs = zip(before, prompts[number], strict=False)
        counts[1, number] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return counts


def _stats_line(name: str, counts: np.ndarray, number: int, max_length: int, unused: str) -> str:
    lengths, shared = counts
    if not len(lengths):
        return f"{name:<30}{0:>12}{number:>12}   {unused}"
    # Lengths that occur, not values between two of them.
    middle, high = np.quantile(lengths, [0.5, 0.95], method="higher")
    values = (len(lengths), number, lengths.min(), middle, high, lengths.max())
    shares = f"{(lengths > max_length).mean():>12.1%}{shared.sum() / lengths.sum():>12.1%}"
    return f"{name:<30}" + "".join(f"{value:>12,}" for value in values) + shares
