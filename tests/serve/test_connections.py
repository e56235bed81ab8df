"""Connections that send nothing, or too slowly, or are too many, through real sockets."""

import asyncio
import contextlib
from functools import partial

import pytest
import uvicorn

from lcrec.serve.connections import BoundedConnection

SECONDS = 0.3
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer_slowly(scope, receive, send):
    """An answer takes longer than a head may."""
    await asyncio.sleep(2 * SECONDS)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def serving(most=10):
    bounded = partial(BoundedConnection, seconds=SECONDS, most=most)
    config = uvicorn.Config(
        answer_slowly, port=0, http=bounded, lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    running = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        await running


async def trickle(address, start):
    """Send what opens a connection, then a byte of a head at a time until it is closed."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(start)
    answer = await reader.readuntil(b"ok") if start else b""
    ended = asyncio.ensure_future(reader.read())
    for byte in b"GET / HTTP/1.1\r\nHost: " + b"x" * 60:
        if ended.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(SECONDS / 10)
    assert ended.done(), "the connection is still open"
    writer.close()
    return answer


@pytest.mark.parametrize("start", [b"", HEAD])
def test_a_slow_head_is_cut_off_on_a_new_and_on_a_kept_connection(start):
    async def run():
        async with serving() as address:
            return await asyncio.wait_for(trickle(address, start), 20 * SECONDS)

    assert (b"200 OK" in asyncio.run(run())) == bool(start)


def test_silence_is_cut_off_and_an_answer_may_take_longer():
    async def run():
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), 5 * SECONDS) == b""
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEAD)
            answer = await asyncio.wait_for(reader.readuntil(b"ok"), 10 * SECONDS)
            writer.close()
            return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200")


def test_more_connections_than_allowed_are_refused_until_one_leaves():
    async def run():
        async with serving(most=1) as address:
            _, first = await asyncio.open_connection(*address)
            await asyncio.sleep(SECONDS / 10)
            reader, second = await asyncio.open_connection(*address)
            refused = await asyncio.wait_for(reader.read(), SECONDS)
            first.close()
            await asyncio.sleep(SECONDS / 10)
            reader, third = await asyncio.open_connection(*address)
            third.write(HEAD)
            served = await asyncio.wait_for(reader.readuntil(b"ok"), 10 * SECONDS)
            second.close()
            third.close()
            return refused, served

    refused, served = asyncio.run(run())
    assert refused.startswith(b"HTTP/1.1 503")
    assert served.startswith(b"HTTP/1.1 200")
