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
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import leave_one_out
from lcrec.generate.recommender import Recommender

CLIENTS = (1, 8, 64)
K = 10
HISTORIES = 256
TOLERANCE = 1e-3  # of a score: batches of other shapes round otherwise

Latencies = list[float]


class Bench:
    """Histories, what the library recommends after each, and how many answers were not that."""

    def __init__(self, model: Path, data: Path) -> None:
        items = load_items(data)
        histories = leave_one_out(load_interactions(data, len(items))).test.histories
        chosen = np.random.default_rng(0).permutation(len(histories))[:HISTORIES]
        self.histories = [histories[case].tolist() for case in chosen]
        self.recommender = Recommender.from_pretrained(model, device="cpu")
        self.scores = self.recommender.recommend(self.histories, K).scores
        self.sent = self.lost = 0

    def calls(self, seconds: float) -> Latencies:
        """Call the library for one history at a time."""
        latencies: Latencies = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self.recommender.recommend([self.histories[len(latencies) % len(self.histories)]], K)
            latencies.append(time.perf_counter() - start)
        return latencies

    async def clients(self, port: int, count: int, seconds: float) -> Latencies:
        """Let `count` clients ask the service; each asks again when it is answered."""
        end = time.perf_counter() + seconds
        own = (self._client(port, number, end) for number in range(count))
        return [latency for found in await asyncio.gather(*own) for latency in found]

    async def _client(self, port: int, number: int, end: float) -> Latencies:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        latencies: Latencies = []
        while (start := time.perf_counter()) < end:
            case = (number * 37 + len(latencies)) % len(self.histories)
            body = json.dumps({"history": self.histories[case], "k": K}).encode()
            head = (
                "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            self.sent += 1
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = answer.partition("content-length:")[2].partition("\r\n")[0]
            ranked = await reader.readexactly(int(length))
            latencies.append(time.perf_counter() - start)
            self.lost += not self._is_right(answer, ranked, case)
        writer.close()
        return latencies

    def _is_right(self, head: str, body: bytes, case: int) -> bool:
        if not head.startswith("http/1.1 200"):
            return False
        scores = [row["score"] for row in json.loads(body)["items"]]
        return len(scores) == K and np.allclose(scores, self.scores[case], atol=TOLERANCE)


def start_service(model: Path) -> tuple[subprocess.Popen[str], int]:
    """Start the service on a free port; return its process and the port."""
    command = [sys.executable, "-m", "lcrec.serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if found := re.search(r"^Try: curl http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise SystemExit("the service did not start")


def cpu_seconds(pid: int | str) -> float:
    """Return the processor time that a process has used; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    options = parser.parse_args()
    bench = Bench(options.model, options.data)
    process, port = start_service(options.model)
    ways: dict[str, list[tuple[Latencies, float]]] = {
        "calls": [],
        **{f"clients_{count}": [] for count in CLIENTS},
    }
    try:
        for number in range(options.rounds + 1):
            for way, rounds in ways.items():
                pid = "self" if way == "calls" else process.pid
                used = cpu_seconds(pid)
                if way == "calls":
                    latencies = bench.calls(options.seconds)
                else:
                    count = int(way.removeprefix("clients_"))
                    latencies = asyncio.run(bench.clients(port, count, options.seconds))
                used = cpu_seconds(pid) - used
                if number:  # the first round only warms up
                    rounds.append((latencies, used))
                    print(f"round {number} {way}: {len(latencies) / options.seconds:.1f} a second")
    finally:
        process.terminate()
        process.wait(timeout=30)
    found = {way: summary(rounds, options.seconds) for way, rounds in ways.items()}
    calls = found["calls"]
    for count in CLIENTS:
        own = found[f"clients_{count}"]
        own["vs_calls"] = round(own["requests_per_second"] / calls["requests_per_second"], 2)
        own["cpu_vs_calls"] = round(calls["cpu_ms"] / own["cpu_ms"], 2)
    facts = {"sent": bench.sent, "lost": bench.lost, "torch_threads": torch.get_num_threads()}
    print(json.dumps({**found, **facts}))


if __name__ == "__main__":
    main()
