"""Asks a chat model that `transformers` runs here: from a folder or the hub, in batches.

Writes no file.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from lcrec.core.device import pick_device
from lcrec.core.errors import InputError
from lcrec.core.pretrained import CAUSAL, load_pair
from lcrec.intents.requests import Answer
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.intent_wording import Messages
from lcrec.prompts.prompt_set import PromptSet


class LocalWriter:
    """Generates with a causal language model whose tokenizer has a chat template.

    A review that spells a special token or role markup cannot end the question: `PromptEncoder`
    breaks it up.

    Args:
        model: a folder, or a name on the hub.
        temperature: of the sampling; 0 takes the likeliest token.
        batch_tokens: per batch, padding and answers included.

    Raises:
        InputError: the model cannot be loaded, or is no chat model.
    """

    def __init__(
        self, model: str, *, temperature: float, max_tokens: int, batch_tokens: int, seed: int
    ) -> None:
        remedy = "name an instruction-tuned model on the hub, or a folder that holds one"
        network, tokenizer = load_pair(
            "--model", model, CAUSAL, remedy=remedy, sampling=True, dtype="auto"
        )
        if not tokenizer.chat_template:
            raise InputError(
                f"--model {model}: its tokenizer has no chat template, so it is no chat model; "
                "name one that was tuned on instructions"
            )
        # What is generated must follow the prompt, not the padding.
        tokenizer.padding_side = "left"
        self._network: Any = network.eval()
        self._network.to(pick_device())
        self._tokenizer = tokenizer
        self._encoders: dict[str, PromptEncoder] = {}  # by system message, mostly one
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._model = model
        # Greedy search warns of the sampling that a model's own settings ask for.
        greedy = {"temperature": None, "top_p": None, "top_k": None}
        self._sampling: dict[str, Any] = {
            "do_sample": temperature > 0,
            **({"temperature": temperature} if temperature else greedy),
        }
        torch.manual_seed(seed)

    def prompt_ids(self, chat: Messages) -> list[int]:
        """Return a chat as the model reads it, up to where its answer begins."""
        *system, question = (message["content"] for message in chat)
        message = "".join(system)
        if message not in self._encoders:
            prompts = PromptSet((), message, self._tokenizer.chat_template, {})
            self._encoders[message] = PromptEncoder(self._tokenizer, prompts)
        return self._encoders[message].prompt_ids([question])[0]

    def write(self, chats: list[Messages], keep: Callable[[int, Answer], None]) -> None:
        """Answer all, the longest first; call `keep(number, answer)` for each.

        Raises:
            InputError: a batch needs more memory than there is.
        """
        ids = [self.prompt_ids(chat) for chat in chats]
        # Longest first: too little memory, and too low an estimate, would show late otherwise.
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        start = 0
        while start < len(order):
            longest = len(ids[order[start]]) + self._max_tokens
            batch = order[start : start + max(1, self._batch_tokens // longest)]
            begin = time.monotonic()
            answers = self._generate([ids[number] for number in batch])
            seconds = round((time.monotonic() - begin) / len(batch), 3)
            for number, answer in zip(batch, answers, strict=True):
                text = self._tokenizer.decode(answer, skip_special_tokens=True)
                assert isinstance(text, str)
                keep(number, Answer(text, self._model, seconds, len(ids[number]), len(answer)))
            start += len(batch)

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """Return the tokens generated after each prompt, without padding."""
        batch = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        width = batch["input_ids"].shape[1]
        try:
            output = self._network.generate(
                **batch.to(self._network.device),
                max_new_tokens=self._max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **self._sampling,
            )
        except torch.OutOfMemoryError:
            raise InputError(
                f"--batch-tokens {self._batch_tokens}: {len(prompts)} chats of {width} tokens need "
                "more memory than there is; lower it: the answers so far are kept"
            ) from None
        ends = self._network.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        answers = []
        for row in output[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            answers.append(row[:end])
        return answers
