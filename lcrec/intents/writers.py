"""Ask chat models: behind an OpenAI-compatible endpoint, or run here by `transformers`.

`EndpointWriter` asks OpenAI's own, vLLM, Ollama, llama.cpp and others. It reads the key from
OPENAI_API_KEY, which goes to the endpoint that is named. Up to `concurrency` questions are in
flight at once. The client tries again after time-outs, broken connections and the statuses 408,
409, 429 and 5xx: when a Retry-After header says so (up to two minutes), else after twice as long
each time. `LocalWriter` reads a model from a folder or the hub and answers in batches. Neither
writes a file.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import torch
from openai import AsyncOpenAI

from lcrec.core.device import pick_device
from lcrec.core.errors import InputError
from lcrec.core.pretrained import CAUSAL, load_pair
from lcrec.intents.requests import Answer
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.intent_wording import Messages
from lcrec.prompts.prompt_set import PromptSet

# Another question would fare no better: wrong key, wrong model, wrong address.
HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
# So many failures without an answer in between, besides those that were under way, end the run.
FAILURES_IN_A_ROW = 10


class EndpointWriter:
    """Asks a model over HTTP.

    Args:
        model: its name at the endpoint.
        base_url: the endpoint, such as http://localhost:8000/v1; OpenAI's where None.
        temperature: of its sampling.
        max_tokens: of an answer.
        concurrency: questions in flight at once.
        timeout: seconds to wait for an answer.
        retries: how often the client tries again before it gives a question up.

    Raises:
        InputError: the address is no HTTP address, or OpenAI's is meant and there is no key.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        *,
        temperature: float,
        max_tokens: int,
        concurrency: int,
        timeout: float,
        retries: int,
    ) -> None:
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise InputError(
                f"--base-url {base_url}: expected an address such as http://localhost:8000/v1"
            )
        key = os.environ.get("OPENAI_API_KEY")
        if not key and base_url is None:
            raise InputError(
                "set OPENAI_API_KEY to your key, or name your own endpoint, which may need none: "
                "--base-url http://localhost:8000/v1"
            )
        self._model = model
        self._base_url = base_url
        self._key = key or "none"
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._limit = "max_tokens"
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries

    def write(self, chats: list[Messages], keep: Callable[[int, Answer], None]) -> None:
        """Ask all; call `keep(number, answer)` as each answer arrives.

        A question that fails for good (rejected, or no whole answer after all retries) is left
        out.

        Raises:
            InputError: the key or the model is refused, or nothing but failures arrives.
        """
        asyncio.run(self._write(chats, keep))

    async def _write(self, chats: list[Messages], keep: Callable[[int, Answer], None]) -> None:
        waiting = iter(enumerate(chats))
        async with AsyncOpenAI(
            api_key=self._key,
            base_url=self._base_url,
            timeout=self._timeout,
            max_retries=self._retries,
        ) as client:
            await self._require_reachable(client)
            run = _Run(self._concurrency + FAILURES_IN_A_ROW)
            workers = (self._work(client, waiting, keep, run) for _ in range(self._concurrency))
            await asyncio.gather(*workers)
        if run.end:
            raise InputError(
                f"{self._base_url or 'the endpoint'}, model {self._model!r}: {run.end}; the "
                "answers so far are kept: give the same command again to go on"
            )

    async def _require_reachable(self, client: AsyncOpenAI) -> None:
        """Refuse an address where nobody answers at once, not after all retries."""
        try:
            await client.with_options(max_retries=1, timeout=10.0).models.list()
        except openai.APIConnectionError as error:
            raise InputError(
                f"{client.base_url}: cannot be reached ({error}); start the server, or name "
                "another with --base-url"
            ) from None
        except (openai.OpenAIError, ValueError):
            pass  # any answer at all will do: not every server lists its models

    async def _work(
        self,
        client: AsyncOpenAI,
        waiting: Iterator[tuple[int, Messages]],
        keep: Callable[[int, Answer], None],
        run: "_Run",
    ) -> None:
        """Take questions until none is left or the run has ended; what is under way is kept."""
        for number, chat in waiting:
            try:
                answer = await self._ask(client, chat)
            except HOPELESS as error:
                run.end = str(error)
            except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is no JSON
                run.failed(error)
            else:
                run.failures = 0
                keep(number, answer)
            if run.end:
                return

    async def _ask(self, client: AsyncOpenAI, chat: Messages) -> Answer:
        start = time.monotonic()
        limit = self._limit
        body: Any = {"model": self._model, "messages": chat, "temperature": self._temperature}
        body[limit] = self._max_tokens
        try:
            completion = await client.chat.completions.create(**body)
        except openai.BadRequestError as error:
            # OpenAI's newer models know this name only, most other servers the old one only.
            if "max_completion_tokens" not in str(error) or limit != "max_tokens":
                raise
            self._limit = "max_completion_tokens"
            return await self._ask(client, chat)
        try:
            text = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            raise ValueError(f"no chat completion came back: {completion!s:.200}") from None
        usage = completion.usage
        return Answer(
            text or "",
            self._model,
            round(time.monotonic() - start, 3),
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )


class _Run:
    """How a run fares: failures since the last answer, and why it ended early, if it did."""

    def __init__(self, most_failures: int) -> None:
        self.most_failures = most_failures
        self.failures = 0
        self.end = ""

    def failed(self, error: Exception) -> None:
        self.failures += 1
        if self.failures >= self.most_failures:
            self.end = f"{self.failures} failures in a row (the last: {error!s:.300})"


class LocalWriter:
    """Generates with a causal language model whose tokenizer has a chat template.

    A review that spells a special token or role markup cannot end the question: `PromptEncoder`
    breaks it up.

    Args:
        model: a folder, or a name on the hub.
        temperature: of the sampling; 0 takes the likeliest token.
        max_tokens: of an answer.
        batch_tokens: per batch, padding and answers included.
        seed: decides what is sampled.

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
