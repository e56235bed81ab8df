"""A supervisor and its workers, which here have no model: reloads in turn, deaths, bad starts."""

import asyncio
import multiprocessing
import os
import signal
from functools import partial

import pytest

from lcrec.core.errors import InputError
from lcrec.serve import workers
from lcrec.serve.loading import UNDER_WAY
from lcrec.serve.workers import Link, Supervisor


class Journal:
    """In place of a model: writes `what pid` into a file at each reload, or fails as it is told."""

    def __init__(self, folder):
        self.folder = folder

    async def reload(self):
        fail = self.folder / "fail"
        if fail.exists() and fail.read_text() in ("", str(os.getpid())):
            raise InputError("no such checkpoint")
        note(self.folder, "reloaded")


def note(folder, what):
    with (folder / "journal").open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


def journal(folder):
    return [line.split() for line in (folder / "journal").read_text().splitlines()]


def worker(folder, connection):
    """Answer until told to stop; a file `ask` lets the worker named in it ask for a reload."""

    async def run():
        stop, link = asyncio.Event(), Link(connection)
        link.attach(Journal(folder), stop.set)
        link.send(("ready", os.getpid()))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        while not stop.is_set():
            ask = folder / "ask"
            if ask.exists() and ask.read_text() == str(os.getpid()):
                ask.rename(folder / "asked")
                outcomes = await asyncio.gather(
                    link.reload_all(), link.reload_all(), return_exceptions=True
                )
                (folder / "outcomes").write_text("\n".join(map(str, outcomes)))
            await asyncio.sleep(0.02)
        note(folder, "stopped")

    asyncio.run(run())


def refuser(connection):
    Link(connection).send(("failed", "--model gone: no such folder"))


def crasher(connection):
    os._exit(1)


async def until(condition):
    async with asyncio.timeout(60):
        while not (found := condition()):
            await asyncio.sleep(0.02)
    return found


def test_reloads_reach_all_and_the_dead_are_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workers, "PAUSE", 0.01)
    welcomes, forgotten = [], []
    (tmp_path / "journal").touch()

    def reloaded():
        return [pid for what, pid in journal(tmp_path) if what == "reloaded"]

    def ask(pid):
        (tmp_path / "outcomes").unlink(missing_ok=True)
        (tmp_path / "next").write_text(str(pid))
        (tmp_path / "next").rename(tmp_path / "ask")

    async def outcomes():
        await until((tmp_path / "outcomes").exists)
        return (tmp_path / "outcomes").read_text().splitlines()

    async def run():
        supervisor = Supervisor(partial(worker, tmp_path), 2, welcomes.append, forgotten.append)
        running = asyncio.create_task(supervisor.run())
        await until(lambda: welcomes)
        first, second = (own.process.pid for own in supervisor._workers)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: reloaded() == [str(first), str(second)])
        # One worker asks for all; who asks meanwhile is told that it is under way.
        ask(second)
        assert await outcomes() == ["None", UNDER_WAY]
        assert reloaded() == [str(first), str(second)] * 2
        (tmp_path / "fail").touch()
        ask(first)
        assert await outcomes() == ["no such checkpoint", UNDER_WAY]
        (tmp_path / "fail").write_text(str(second))
        ask(first)
        half = "no such checkpoint; 1 of 2 workers have reloaded"
        assert await outcomes() == [half, UNDER_WAY]
        (tmp_path / "fail").unlink()
        # One that dies comes back, and takes part again.
        os.kill(first, signal.SIGKILL)
        await until(lambda: forgotten == [first])
        await until(lambda: supervisor._workers[0].is_ready)
        third = supervisor._workers[0].process.pid
        ask(second)
        assert await outcomes() == ["None", UNDER_WAY]
        assert reloaded()[5:] == [str(third), str(second)]
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 60)
        return first, second, third

    first, second, third = asyncio.run(run())
    assert len(welcomes) == 1
    assert sorted(forgotten) == sorted([first, second, third])
    assert {pid for what, pid in journal(tmp_path) if what == "stopped"} == {
        str(second), str(third)
    }  # fmt: skip
    assert f"worker {first} ended; starting it anew" in caplog.text
    assert "not reloaded: no such checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("work", "message"),
    [(refuser, "--model gone: no such folder"), (crasher, "ended before it could answer")],
)
def test_workers_that_cannot_start_end_the_service(work, message):
    supervisor = Supervisor(work, 2, print, lambda pid: None)
    with pytest.raises(InputError, match=message):
        asyncio.run(supervisor.run())


def supervise(folder, connection):
    """Be a supervisor that tells which worker it has."""
    asyncio.run(Supervisor(partial(worker, folder), 1, connection.send, lambda pid: None).run())


def test_workers_do_not_outlive_their_supervisor(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=supervise, args=(tmp_path, theirs))
    process.start()
    pid = ours.recv()
    process.kill()
    process.join()
    asyncio.run(until((tmp_path / "journal").exists))
    assert journal(tmp_path) == [["stopped", str(pid)]]
