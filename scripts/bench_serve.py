"""Measure the service: requests per second and latency at 1, 8 and 64 clients, none lost.

    .venv/bin/python scripts/bench_serve.py --model runs/shop/model --data data/shop

Starts `python -m lcrec.serve` with its usual settings and lets clients send histories of the data
set over kept-alive connections, each its next one when it has the answer to the last. What it is
measured against is `Recommender.recommend`, called for one history at a time in this process,
without any service in between. All ways take turns, so that whatever else the machine does meets
each of them. Every answer is compared with the library's.

The last line is one JSON object. For each way: requests per second, the latencies that 50 % and
99 % of the requests stay below, and the processor time that a request costs the service (or the
calls), both in milliseconds, as medians over the rounds; `vs_calls` is the ratio of requests per
second to the single calls, `cpu_vs_calls` that of the requests that a second of processor time
answers, which other work on the machine changes little; `lost` counts requests without a right
answer. Set OMP_NUM_THREADS=1 where cores are few: the clients need one too.

`--fuse FILE` (or `cooccurrence`) starts a second service, which fuses with counted neighbours; both
know the data folder then. Its ways are `fused_1` and so on, with `cpu_vs_plain`, the processor time
of a fused request over that of a plain one at as many clients. `--engine-python PYTHON`, of an
environment that has vLLM, starts another with `--engine vllm`; its ways are `vllm_1` and so on.

`--soak MINUTES` lets 200 clients send mixed requests instead, a fifth of them hostile: broken JSON,
other protocols, bodies too large or never sent, clients that leave, ids that nobody has. Each has
to get its right answer or its refusal. The JSON then has requests by answer, `lost`, the latencies
of what was ranked, and the service's memory: at the end of the first fifth, which warms up, at the
end, and `growth_mb`, the last fifth's median above the second's.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import load_split
from lcrec.generate.fusion import CountedFusion, FusionSettings
from lcrec.generate.recommender import Recommender

CLIENTS = (1, 8, 64)
K = 10
HISTORIES = 256
TOLERANCE = 1e-3  # of a score: batches of other shapes round otherwise
SOAK_CLIENTS = 200
HOSTILE = 0.2  # of the requests of a soak
HEAD_END = b"\r\n\r\n"

Latencies = list[float]


def request(path: str, body: bytes | None = None, length: int | None = None) -> bytes:
    """Return a GET, or a POST of a body, with a length of its own or one that is claimed."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: localhost".encode() + HEAD_END
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}"
    )
    return head.encode() + HEAD_END + body


def post(path: str, **fields: object) -> bytes:
    """Return a POST of a JSON body."""
    return request(path, json.dumps(fields).encode())


@dataclass(frozen=True)
class Exchange:
    """What a client of a soak sends, and what has to come back.

    Attributes:
        sent: the bytes.
        status: of the answer; None where the client leaves without waiting for one.
        is_right: tells whether the body of the answer is.
        ranked: whether the model is asked, so that its latency counts.
        closes: whether the service has to close the connection.
    """

    sent: bytes
    status: int | None
    is_right: Callable[[bytes], bool] = lambda body: True
    ranked: bool = False
    closes: bool = False


class Bench:
    """Histories, what the library recommends after each, and how many answers were not that."""

    def __init__(self, model: Path, data: Path, fuse: str | None = None) -> None:
        self.model, self.items = model, load_items(data)
        interactions = load_interactions(data, len(self.items))
        histories = load_split(data, interactions).test.histories
        chosen = np.random.default_rng(0).permutation(len(histories))[:HISTORIES]
        self.histories = [histories[case].tolist() for case in chosen]
        self.recommender = Recommender.from_pretrained(model, device="cpu")
        self.scores = self.recommender.recommend(self.histories, K).scores
        if fuse is not None:
            settings = FusionSettings.read(fuse)
            counted = CountedFusion.count(settings, interactions, len(self.items))
            self.recommender.fusion = counted
            self.fused_scores = self.recommender.recommend(self.histories, K).scores
            self.recommender.fusion = None
        self.searches = "itemsearch" in self.recommender.tasks
        self.sent = self.lost = 0

    def calls(self, seconds: float) -> Latencies:
        """Call the library for one history at a time."""
        latencies: Latencies = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self.recommender.recommend([self.histories[len(latencies) % len(self.histories)]], K)
            latencies.append(time.perf_counter() - start)
        return latencies

    async def clients(self, port: int, count: int, seconds: float, kind: str) -> Latencies:
        """Let `count` clients ask the service; each asks again when it is answered."""
        end = time.perf_counter() + seconds
        scores = self.fused_scores if kind == "fused" else self.scores
        own = (self._client(port, number, end, scores) for number in range(count))
        return [latency for found in await asyncio.gather(*own) for latency in found]

    async def _client(self, port: int, number: int, end: float, scores: np.ndarray) -> Latencies:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        latencies: Latencies = []
        while (start := time.perf_counter()) < end:
            case = (number * 37 + len(latencies)) % len(self.histories)
            self.sent += 1
            writer.write(post("/recommend", history=self.histories[case], k=K))
            status, body = await read_answer(reader)
            latencies.append(time.perf_counter() - start)
            self.lost += status != 200 or not has_scores(body, scores[case])
        writer.close()
        return latencies


class Soak:
    """Mixed requests, and what came back."""

    def __init__(self, bench: Bench) -> None:
        self.good = self._good(bench)
        self.hostile = [
            Exchange(b"\x16\x03\x01\x02\x00\x01" + HEAD_END, 400, closes=True),
            Exchange(request("/recommend", b'{"history": [1'), 400),
            Exchange(request("/recommend", b"[" * 50_000), 400),
            Exchange(request("/recommend", b"", length=10**9), 413, closes=True),
            Exchange(request("/recommend", b"{", length=100), None, closes=True),
            Exchange(bench_request(bench, 0), None, closes=True),
            Exchange(post("/recommend", history=["x", None, {}]), 422),
            Exchange(post("/recommend", history=[1], k=10**6), 422),
            Exchange(post("/search", query="x" * 100_000), 422 if bench.searches else 501),
            Exchange(request("/items/" + "9" * 2000), 404),
            Exchange(request("/../../etc/passwd"), 404),
        ]
        self.answers: Counter[str] = Counter()
        self.latencies: Latencies = []
        self.lost: list[str] = []

    @staticmethod
    def _good(bench: Bench) -> list[Exchange]:
        """Return requests that get what the library says, or what is popular."""
        found = [request("/healthz"), request("/items/1"), request("/metrics")]
        exchanges = [Exchange(sent, 200) for sent in found]
        exchanges.append(
            Exchange(post("/recommend", user="nobody"), 200, lambda body: b"popularity" in body)
        )
        asked = [(bench_request(bench, case), scores) for case, scores in enumerate(bench.scores)]
        if bench.searches:
            queries = [bench.items.title(item) for item in range(min(32, len(bench.items)))]
            sent = [post("/search", query=query, k=K) for query in queries]
            scores = bench.recommender.search(queries, k=K).scores
            asked += zip(sent, scores, strict=True)
        return exchanges + [
            Exchange(own, 200, partial(has_scores, expected=scores), ranked=True)
            for own, scores in asked
        ]

    async def run(self, port: int, pid: int, seconds: float) -> list[float]:
        """Let the clients ask for so long; return the service's memory in MB, sampled."""
        end = time.perf_counter() + seconds
        clients = [
            asyncio.create_task(self._client(port, number, end)) for number in range(SOAK_CLIENTS)
        ]
        memory = []
        while time.perf_counter() < end:
            await asyncio.sleep(seconds / 100)
            memory.append(resident_mb(pid))
        await asyncio.gather(*clients)
        return memory

    async def _client(self, port: int, number: int, end: float) -> None:
        source, connection = random.Random(number), None
        while (start := time.perf_counter()) < end:
            own = source.choice(self.hostile if source.random() < HOSTILE else self.good)
            if connection is None:
                connection = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = connection
            writer.write(own.sent)
            if own.status is None:
                await writer.drain()
                self.answers["none wanted"] += 1
            else:
                try:
                    status, body = await read_answer(reader)
                except (EOFError, OSError) as error:
                    status, body, connection = 0, str(error).encode(), None
                if own.ranked:
                    self.latencies.append(time.perf_counter() - start)
                self.answers[str(status)] += 1
                if status != own.status or not own.is_right(body):
                    self.lost.append(f"{own.sent[:60]!r} got {status} {body[:100]!r}")
            if own.closes or connection is None:
                writer.close()
                connection = None


def soak(bench: Bench, data: Path, minutes: float) -> dict[str, object]:
    """Let many clients send mixed requests; return the figures."""
    own = Soak(bench)
    # A busy machine may take longer than the usual ten seconds for 200 clients.
    process, port = start_service(bench.model, "--data", str(data), "--timeout", "60")
    try:
        memory = asyncio.run(own.run(port, process.pid, minutes * 60))
    finally:
        process.terminate()
        process.wait(timeout=90)
    for line in own.lost[:10]:
        print("lost:", line)
    fifth = len(memory) // 5
    second, last = (statistics.median(memory[at : at + fifth]) for at in (fifth, 4 * fifth))
    return {
        "minutes": minutes,
        "clients": SOAK_CLIENTS,
        "sent": own.answers.total(),
        "answers": dict(sorted(own.answers.items())),
        "lost": len(own.lost),
        "ranked_per_second": round(len(own.latencies) / minutes / 60, 1),
        "p50_ms": round(float(np.percentile(own.latencies, 50)) * 1000, 1),
        "p99_ms": round(float(np.percentile(own.latencies, 99)) * 1000, 1),
        "warm_mb": round(memory[fifth - 1], 1),
        "end_mb": round(memory[-1], 1),
        "growth_mb": round(last - second, 1),
        "torch_threads": torch.get_num_threads(),
    }


def bench_request(bench: Bench, case: int) -> bytes:
    """Return the request for one of the bench's histories."""
    return post("/recommend", history=bench.histories[case], k=K)


def has_scores(body: bytes, expected: np.ndarray) -> bool:
    """Tell whether an answer has the scores that the library gives."""
    scores = [row["score"] for row in json.loads(body)["items"]]
    return len(scores) == K and np.allclose(scores, expected, atol=TOLERANCE)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    head = (await reader.readuntil(HEAD_END)).decode().lower()
    length = head.partition("content-length:")[2].partition("\r\n")[0]
    body = reader.readexactly(int(length)) if length else reader.read()  # until it is closed
    return int(head.split()[1]), await body


def resident_mb(pid: int) -> float:
    """Return the memory that a process holds; Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def start_service(model: Path, *words: str) -> tuple[subprocess.Popen[str], int]:
    """Start the service on a free port; return its process and the port."""
    command = [sys.executable, "-m", "lcrec.serve", "--model", str(model), "--port", "0"]
    command += ["--ids", "numbers", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if found := re.search(r"^Try: curl http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise SystemExit("the service did not start")


def cpu_seconds(service: subprocess.Popen[str] | None) -> float:
    """Return the processor time of a service and the processes it has, or of this process."""
    if service is None:
        return time.process_time()
    own = psutil.Process(service.pid)
    return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True)))


def summary(rounds: list[tuple[Latencies, float]], seconds: float) -> dict[str, float]:
    """Return the medians over the rounds, each its latencies and the processor time used."""
    columns = {
        "requests_per_second": [len(latencies) / seconds for latencies, _ in rounds],
        "p50_ms": [float(np.percentile(latencies, 50)) * 1000 for latencies, _ in rounds],
        "p99_ms": [float(np.percentile(latencies, 99)) * 1000 for latencies, _ in rounds],
        "cpu_ms": [used / len(latencies) * 1000 for latencies, used in rounds],
    }
    return {name: round(statistics.median(column), 1) for name, column in columns.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of every way in every round")
    parser.add_argument("--fuse", metavar="FILE", help="also measure a service that fuses")
    parser.add_argument("--engine-python", metavar="PYTHON", help="also measure one with vLLM")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed requests instead")
    options = parser.parse_args()
    bench = Bench(options.model, options.data, options.fuse)
    if options.soak is not None:
        print(json.dumps(soak(bench, options.data, options.soak)))
        return
    words = [] if options.fuse is None else ["--data", str(options.data)]
    services = {"clients": start_service(options.model, *words)}
    if options.fuse is not None:
        services["fused"] = start_service(options.model, *words, "--fuse", options.fuse)
    if options.engine_python is not None:
        engine = ("--engine", "vllm", "--engine-python", options.engine_python)
        services["vllm"] = start_service(options.model, *words, *engine)
    ways: dict[str, list[tuple[Latencies, float]]] = {
        "calls": [],
        **{f"{kind}_{count}": [] for count in CLIENTS for kind in services},
    }
    try:
        for number in range(options.rounds + 1):
            for way, rounds in ways.items():
                kind, _, count = way.partition("_")
                process, port = services.get(kind, (None, 0))
                used = cpu_seconds(process)
                if process is None:
                    latencies = bench.calls(options.seconds)
                else:
                    asked = bench.clients(port, int(count), options.seconds, kind)
                    latencies = asyncio.run(asked)
                used = cpu_seconds(process) - used
                if number:  # the first round only warms up
                    rounds.append((latencies, used))
                    print(f"round {number} {way}: {len(latencies) / options.seconds:.1f} a second")
    finally:
        for process, _ in services.values():
            process.terminate()
            process.wait(timeout=120)
    found = {way: summary(rounds, options.seconds) for way, rounds in ways.items()}
    calls = found["calls"]
    for count in CLIENTS:
        own = found[f"clients_{count}"]
        own["vs_calls"] = round(own["requests_per_second"] / calls["requests_per_second"], 2)
        own["cpu_vs_calls"] = round(calls["cpu_ms"] / own["cpu_ms"], 2)
        for kind in services.keys() - {"clients"}:
            other = found[f"{kind}_{count}"]
            other["cpu_vs_plain"] = round(other["cpu_ms"] / own["cpu_ms"], 2)
    facts = {"sent": bench.sent, "lost": bench.lost, "torch_threads": torch.get_num_threads()}
    print(json.dumps({**found, **facts}))


if __name__ == "__main__":
    main()
