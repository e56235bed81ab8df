"""Asks a chat model behind an OpenAI-compatible endpoint: OpenAI's own, vLLM, Ollama, llama.cpp.

Reads the key from OPENAI_API_KEY, which goes to the endpoint that is named. Up to `concurrency`
questions are in flight at once. The client tries again after time-outs, broken connections and the
statuses 408, 409, 429 and 5xx: when a Retry-After header says so (up to two minutes), else after
twice as long each time. Writes no file.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
from openai import AsyncOpenAI

from lcrec.core.errors import InputError
from lcrec.intents.requests import Answer
from lcrec.prompts.intent_wording import Messages

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
