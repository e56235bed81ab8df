"""Stage: a small base language model made from the catalogue's own text.

For machines without a model hub, and for experiments that must end in minutes. Reads
`<Name>.item.json` and the templates in `prompts/`; trains a byte-level BPE tokenizer and a small
Qwen3 on them, and writes a plain Hugging Face folder that `--base` takes. It knows the words of
one shop and little else: say so wherever its numbers stand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lcrec.core.artifacts import atomic_path, find_data
from lcrec.core.config import Writes, config_dict, option, parse_config
from lcrec.core.console import ProgressBar
from lcrec.core.errors import InputError, run_stage
from lcrec.core.outputs import FOLDER, claim
from lcrec.core.provenance import is_current, write_provenance
from lcrec.data.folder import Items, load_items
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.tasks import plain_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

STAGE = "python -m lcrec.tinylm"
EXAMPLE = "--data data/shop --output runs/shop/base"
END = "<|endoftext|>"


@dataclass(frozen=True)
class TinyLMConfig(Writes):
    """Settings of `python -m lcrec.tinylm`."""

    data: Path = option("the data folder")
    output: Path = option("the folder to write the model to", writes=FOLDER)
    prompts: Path = option(
        "templates to learn too; what the folder lacks comes from the shipped ones", SHIPPED_PROMPTS
    )
    vocab_size: int = option("entries of the tokenizer at most", 4096, minimum=300)
    hidden_size: int = option("width of the model, a multiple of 32", 192, minimum=32)
    layers: int = option("depth of the model", 4, minimum=1)
    context: int = option(
        "the longest context that the model declares, in tokens", 4096, minimum=64
    )
    epochs: float = option("passes over the text", 3.0, minimum=0)
    max_words: int = option("words of each item's text to learn from, at most", 120, minimum=1)
    learning_rate: float = option("peak step size of AdamW", 2e-3, minimum=0)
    seed: int = option("decides weights and order", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Run the stage."""
    config = parse_config(TinyLMConfig, argv, prog=STAGE, example=EXAMPLE)
    if config.hidden_size % 32:
        raise InputError(f"--hidden-size {config.hidden_size}: take a multiple of 32")
    inputs = {"item": find_data(config.data).item}
    items = load_items(config.data)
    prompts = PromptSet.load(config.prompts, base=SHIPPED_PROMPTS)
    settings = config_dict(config) | {"prompts": prompts.content_hash}
    if is_current(config.output, STAGE, settings, inputs):
        print(f"{config.output} is up to date.")
        return
    with claim(config.output, STAGE, overwrite=config.overwrite):
        texts = collect_corpus(items, prompts, config.max_words)
        import torch

        print(f"Training a tokenizer on {len(texts):,} texts")
        tokenizer = train_tokenizer(texts, config.vocab_size)
        torch.manual_seed(config.seed)
        model = build_model(tokenizer, config.hidden_size, config.layers, config.context)
        print(f"Pre-training {model.num_parameters():,} parameters")
        loss = pretrain(
            model, tokenizer, texts, config.epochs, config.learning_rate, seed=config.seed
        )
        with atomic_path(config.output) as temporary:
            tokenizer.save_pretrained(temporary)
            model.save_pretrained(temporary)
            noted = None if math.isnan(loss) else loss  # JSON has no NaN
            write_provenance(temporary, STAGE, settings, inputs, loss=noted)
        print(
            f"Wrote {config.output} (loss {loss:.2f} per token). Next: python -m "
            f"lcrec.finetune --base {config.output} --data {config.data} --index DIR --output DIR"
        )


def collect_corpus(items: Items, prompts: PromptSet, max_words: int) -> list[str]:
    """Return one text per item and field, and one per template, as prompts will show them."""
    texts = [
        plain_text(text, max_words)
        for item in range(len(items))
        for field in ("title", "description", "brand", "categories")
        if (text := items.text(item, field))
    ]
    return texts + [template.question for template in prompts.templates]


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text survives the round trip, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def build_model(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, context: int
) -> Qwen3ForCausalLM:
    """Return a randomly initialised Qwen3 of this size with a tied head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 32,
            head_dim=32,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    epochs: float,
    learning_rate: float,
    *,
    seed: int,
    block: int = 128,
    batch_size: int = 32,
) -> float:
    """Train to predict the next token of the texts, joined and cut into blocks.

    AdamW's step size rises over 5 % of the steps to `learning_rate` and falls by a cosine to zero.

    Returns:
        The loss per token, averaged over the last tenth of the steps; NaN without any step.
    """
    import torch

    rng = np.random.default_rng(seed)

    def batches() -> Iterator[torch.Tensor]:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        while True:
            order = rng.permutation(len(ids))
            stream = [token for text in order for token in (*ids[text], tokenizer.eos_token_id)]
            stream *= math.ceil(block / len(stream))
            rows = torch.tensor(stream[: len(stream) // block * block]).view(-1, block)
            yield from rows.split(batch_size)

    total = sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    steps = math.ceil(epochs * total / (block * batch_size))
    if not steps:
        return float("nan")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / max(1, 0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        ),
    )
    losses = []
    model.train()
    bar = ProgressBar(steps, "pre-train", "steps")
    for rows in itertools.islice(batches(), steps):
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        bar.update(loss=f"{losses[-1]:.2f}")
    bar.close()
    model.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


if __name__ == "__main__":
    run_stage(main)
