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
from dataclasses import KW_ONLY, dataclass
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


@dataclass(eq=False)
class EndpointWriter:
    """Asks a model over HTTP.

    Attributes:
        model: its name at the endpoint.
        base_url: the endpoint, such as http://localhost:8000/v1; OpenAI's where None.
        concurrency: questions in flight at once.
        timeout: seconds to wait for an answer.
        retries: how often the client tries again before it gives a question up.

    Raises:
        InputError: the address is no HTTP address, or OpenAI's is meant and there is no key.
    """

    model: str
    base_url: str | None
    _: KW_ONLY
    temperature: float
    max_tokens: int
    concurrency: int
    timeout: float
    retries: int

    def __post_init__(self) -> None:
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise InputError(
                f"--base-url {self.base_url}: expected an address such as http://localhost:8000/v1"
            )
        key = os.environ.get("OPENAI_API_KEY")
        if not key and self.base_url is None:
            raise InputError(
                "set OPENAI_API_KEY to your key, or name your own endpoint, which may need none: "
                "--base-url http://localhost:8000/v1"
            )
        self._key = key or "none"
        self._limit = "max_tokens"  # what the endpoint calls it

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
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.retries,
        ) as client:
            await self._require_reachable(client)
            self._failures, self._end = 0, ""
            workers = (self._work(client, waiting, keep) for _ in range(self.concurrency))
            await asyncio.gather(*workers)
        if self._end:
            raise InputError(
                f"{self.base_url or 'the endpoint'}, model {self.model!r}: {self._end}; the "
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
    ) -> None:
        """Take questions until none is left or the run has ended; what is under way is kept."""
        for number, chat in waiting:
            try:
                answer = await self._ask(client, chat)
            except HOPELESS as error:
                self._end = str(error)
            except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is no JSON
                self._failures += 1
                if self._failures >= self.concurrency + FAILURES_IN_A_ROW:
                    self._end = f"{self._failures} failures in a row (the last: {error!s:.300})"
            else:
                self._failures = 0  # since the last answer
                keep(number, answer)
            if self._end:
                return

    async def _ask(self, client: AsyncOpenAI, chat: Messages) -> Answer:
        start = time.monotonic()
        limit = self._limit
        body: Any = {"model": self.model, "messages": chat, "temperature": self.temperature}
        body[limit] = self.max_tokens
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
            self.model,
            round(time.monotonic() - start, 3),
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )
