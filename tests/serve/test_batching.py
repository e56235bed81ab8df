"""What arrives together is answered together; the queue is bounded; one that fails fails alone."""

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.serve.batching import Batcher, ShuttingDown, answer_apart


class Doubler:
    """Answers numbers by their doubles; keeps the batches it was given."""

    def __init__(self):
        self.batches = []
        self.threads = set()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.threads.add(threading.current_thread())
        assert self.go_on.wait(10)
        if -1 in numbers:
            raise ValueError("a batch with -1 in it")
        return [2 * number for number in numbers]


def batcher(answer, **settings):
    return Batcher(answer, **{"max_batch": 4, "max_wait": 0.02, "max_queue": 100, **settings})


async def submit_all(own, numbers):
    return await asyncio.gather(*map(own.submit, numbers), return_exceptions=True)


def test_requests_that_come_together_share_a_batch():
    doubler, seen = Doubler(), []

    async def run():
        own = batcher(doubler, observe=lambda size, seconds: seen.append((size, seconds)))
        async with own:
            return await submit_all(own, range(10))

    assert asyncio.run(run()) == [2 * number for number in range(10)]
    assert doubler.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [size for size, _ in seen] == [4, 4, 2]
    assert all(0 <= seconds < 1 for _, seconds in seen)
    assert len(doubler.threads) == 1
    assert threading.main_thread() not in doubler.threads


def test_a_request_waits_for_others_only_so_long():
    doubler = Doubler()

    async def run():
        async with batcher(doubler, max_wait=0.3) as own:
            first = asyncio.create_task(own.submit(1))
            await asyncio.sleep(0.05)
            assert own.depth == 1
            assert not doubler.batches
            started = time.monotonic()
            await own.submit(2)
            waited = time.monotonic() - started
            await first
            started = time.monotonic()
            await submit_all(own, range(4))
            return waited, time.monotonic() - started

    waited, full = asyncio.run(run())
    assert doubler.batches[0] == [1, 2]
    assert 0.1 < waited < 0.29  # the clock runs from the first one's arrival
    assert full < 0.2, "a full batch waits for nobody"


def test_what_gathers_behind_a_batch_goes_at_once():
    doubler = Doubler()

    async def run():
        async with batcher(doubler, max_wait=0.1) as own:
            doubler.go_on.clear()
            first = asyncio.create_task(submit_all(own, range(4)))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(submit_all(own, [7, 8]))
            await asyncio.sleep(0.15)
            doubler.go_on.set()
            await first
            started = time.monotonic()
            await second
            return time.monotonic() - started

    assert asyncio.run(run()) < 0.08
    assert doubler.batches == [[0, 1, 2, 3], [7, 8]]


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=40))
def test_whatever_fails_the_others_are_answered(numbers):
    doubler = Doubler()
    answers = answer_apart(doubler, numbers)
    assert len(answers) == len(numbers)
    for number, answer in zip(numbers, answers, strict=True):
        assert isinstance(answer, ValueError) if number == -1 else answer == 2 * number
    if -1 not in numbers:
        assert len(doubler.batches) == 1


def test_too_few_answers_are_no_answers():
    (error,) = answer_apart(lambda numbers: [], [1])
    assert isinstance(error, RuntimeError)
    assert "0 answers to 1 requests" in str(error)


def test_closing_answers_what_is_queued_and_takes_no_more():
    doubler = Doubler()

    async def run():
        async with batcher(doubler, max_wait=60) as own:
            assert own.alive
            tasks = [asyncio.create_task(own.submit(number)) for number in range(6)]
            await asyncio.sleep(0.05)
            assert own.depth == 2, "the full batch has gone, the rest waits a minute"
            own.close()
            with pytest.raises(ShuttingDown):
                await own.submit(9)
        assert not own.alive
        return await asyncio.gather(*tasks)

    started = time.monotonic()
    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10]
    assert time.monotonic() - started < 5


def test_a_thousand_requests_none_lost():
    doubler = Doubler()

    async def client(own, number):
        await asyncio.sleep((number * 7919 % 101) / 2000)
        return await own.submit(number)

    async def run():
        async with batcher(doubler, max_batch=16, max_wait=0.002, max_queue=1000) as own:
            return await asyncio.gather(*(client(own, number) for number in range(1000)))

    assert asyncio.run(run()) == [2 * number for number in range(1000)]
    assert sorted(number for batch in doubler.batches for number in batch) == list(range(1000))
    assert max(map(len, doubler.batches)) <= 16
