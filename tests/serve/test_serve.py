"""`python -m lcrec.serve` as a process: it answers, refuses rubbish, finishes what is queued."""

import asyncio
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from lcrec.core.errors import InputError
from lcrec.core.provenance import fingerprint
from lcrec.generate.recommender import Recommender
from lcrec.modeling import __main__ as merging
from lcrec.serve import __main__ as serve
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.live import Live
from lcrec.serve.loading import ServiceSources, load_handler
from lcrec.serve.requests import RecommendRequest

TOP = Path(__file__).parents[2]


class Service:
    """A running service; `close` ends it with a signal and returns what it printed."""

    def __init__(self, *words, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lcrec.serve", *map(str, words), "--port", "0"],
            cwd=TOP,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if line.startswith("Try:"):
                break
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.printed)
        assert found, self.printed
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        for _ in range(100):
            try:
                httpx.get(f"{self.url}/healthz").raise_for_status()
                return
            except httpx.ConnectError:
                time.sleep(0.05)
        raise AssertionError("it never answered")

    def close(self, sign=signal.SIGTERM):
        self.process.send_signal(sign)
        printed, _ = self.process.communicate(timeout=120)
        self.printed += printed
        return self.printed


@pytest.mark.slow  # a process that loads a model
def test_a_process_from_start_to_end(checkpoint, shop):
    # What is queued waits for a second, or for more requests than there are.
    words = ("--model", checkpoint, "--data", shop, "--batch-wait", 1000, "--max-batch", 64)
    service = Service(*words, LCREC_TOKEN="a-secret")
    try:
        head = {"Authorization": "Bearer a-secret"}
        with httpx.Client(base_url=service.url, headers=head, timeout=30) as client:
            item = client.get("/items/3").json()
            assert len(item["tokens"]) == 3
            assert item["fields"]["title"] == item["title"]
            assert httpx.get(f"{service.url}/items/3").status_code == 401
            assert client.get("/docs").status_code == 200

            # 10 MB are refused, and the connection still serves.
            large = client.post("/recommend", content=b"[" + b"0," * 5_000_000 + b"0]")
            assert large.status_code == 413
            assert large.headers["content-type"] == "application/problem+json"
            chunks = client.post("/recommend", content=(b"x" * 100_000 for _ in range(100)))
            assert chunks.status_code == 413
            for rubbish in (
                b"\x16\x03\x01\x02\x00",
                b"GET\r\n\r\n",
                b"POST /recommend HTTP/9\r\n\r\n",
            ):
                with socket.create_connection(("127.0.0.1", service.port), timeout=5) as stream:
                    stream.sendall(rubbish)
                    stream.shutdown(socket.SHUT_WR)
                    assert stream.recv(100).split()[1:2] in ([], [b"400"])

            # One who leaves is dropped; those who wait are answered although the end has come.
            leaver = http.client.HTTPConnection("127.0.0.1", service.port)
            leaver.request(
                "POST", "/recommend", json.dumps({"history": [9]}),
                {**head, "Content-Type": "application/json"},
            )  # fmt: skip
            wait_for(client, "lcrec_queue_depth 1.0")
            leaver.close()
            wait_for(client, "lcrec_queue_depth 0.0")

            with ThreadPoolExecutor(12) as pool:
                waiting = [
                    pool.submit(client.post, "/recommend", json={"history": [number], "k": 3})
                    for number in range(12)
                ]
                wait_for(client, "lcrec_queue_depth 12.0")
                printed = service.close()
                answers = [answer.result() for answer in waiting]
        for answer in answers:
            assert answer.status_code == 200
            assert len({row["item"] for row in answer.json()["items"]}) == 3
            assert all(row["title"] for row in answer.json()["items"])
        assert service.process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in printed
        assert "/search is off: the model was not trained on itemsearch" in printed
        assert "-H 'Authorization: Bearer '\"$LCREC_TOKEN\"" in printed
        assert "a-secret" not in printed
        assert "anyone who reaches" not in printed
    finally:
        service.process.kill()


ENGINE = f"""#!{sys.executable}
import json, pathlib, sys, time
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    beams, allowed = json.loads(line)
    print(json.dumps([[-1.0] * len(own) for own in allowed]), flush=True)
time.sleep(1)
pathlib.Path(sys.argv[0] + ".ended").touch()
"""


@pytest.mark.slow  # a process that loads a tokenizer
def test_an_engine_ends_with_its_service(checkpoint, tmp_path):
    merging.main(["merge", "--model", str(checkpoint), "--output", str(tmp_path / "model")])
    program = tmp_path / "python"
    program.write_text(ENGINE)
    program.chmod(0o755)
    words = ("--model", tmp_path / "model", "--engine", "vllm", "--engine-python", program)
    service = Service(*words, LCREC_TOKEN="a-secret")
    try:
        body = {"history": [3], "k": 2}
        answer = httpx.post(f"{service.url}/recommend", json=body, headers=HEAD, timeout=30)
        assert [row["score"] for row in answer.json()["items"]] == [-3, -3]
        reloaded = httpx.post(f"{service.url}/reload", headers=HEAD)
        assert (reloaded.status_code, "no room for a second" in reloaded.text) == (409, True)
        assert "Traceback" not in service.close()
        assert (service.process.returncode, Path(f"{program}.ended").exists()) == (0, True)
    finally:
        service.process.kill()


class Asker:
    """Clients that ask without pause and keep every answer, until told to stop."""

    def __init__(self, url, body, clients):
        self.answers, self._go_on = [], True
        self._pool = ThreadPoolExecutor(clients)
        self._running = [self._pool.submit(self._ask, url, body) for _ in range(clients)]

    def _ask(self, url, body):
        with httpx.Client(base_url=url, headers=HEAD, timeout=60) as client:
            while self._go_on:
                self.answers.append(client.post("/recommend", json=body))

    def stop(self):
        self._go_on = False
        for task in self._running:
            task.result()


HEAD = {"Authorization": "Bearer a-secret"}


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


@pytest.mark.slow  # processes that load a model
@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_under_load_loses_nothing(checkpoint, shop, tmp_path, workers):
    """The link to the model is set anew; every answer is one of the old model or of the new."""
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * own for name, own in weights.items()}, other / "adapter_model.safetensors")
    link, body = tmp_path / "current", {"history": [3, 7], "k": 5}
    models = {fingerprint(path): path for path in (checkpoint, other)}
    expected = {
        version: Recommender.from_pretrained(path).recommend([[3, 7]], 5)
        for version, path in models.items()
    }
    old, new = models
    assert expected[old].scores[0] != pytest.approx(expected[new].scores[0], abs=1e-3)

    def point_to(version):
        (tmp_path / "next").symlink_to(models[version])
        (tmp_path / "next").rename(link)

    def versions():
        """Connections are shared among workers: twenty are enough to meet both."""
        return {httpx.get(f"{service.url}/healthz").json()["model"] for _ in range(20)}

    point_to(old)
    log = tmp_path / "access.jsonl"
    words = ["--model", link, "--data", shop, "--workers", workers, "--access-log", log]
    service = Service(*words, LCREC_TOKEN="a-secret")
    try:
        asker = Asker(service.url, body, 6)
        assert versions() == {old}
        point_to(new)
        answer = httpx.post(f"{service.url}/reload", headers=HEAD, timeout=60)
        assert answer.json()["model"] == new, answer.text
        assert versions() == {new}
        point_to(old)
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: versions() == {old})
        (tmp_path / "next").symlink_to(tmp_path)
        (tmp_path / "next").rename(link)
        refused = httpx.post(f"{service.url}/reload", headers=HEAD, timeout=60)
        assert (refused.status_code, refused.json()["status"]) == (409, 409)
        assert "not a checkpoint of lcrec" in refused.json()["detail"]
        assert versions() == {old}
        asker.stop()
        counted = 'lcrec_requests_total{route="/recommend",status="200"} '
        metrics = httpx.get(f"{service.url}/metrics", headers=HEAD).text
        assert float(metrics.split(counted)[1].split()[0]) == len(asker.answers)
    finally:
        printed = service.close()
    found = set()
    for answer in asker.answers:
        assert answer.status_code == 200
        rows = answer.json()["items"]
        (model,) = [
            version
            for version, ranking in expected.items()
            if [row["score"] for row in rows] == pytest.approx(ranking.scores[0], abs=1e-3)
        ]
        assert [row["item"] for row in rows] == expected[model].items[0].tolist()
        found.add(model)
    assert found == {old, new}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line["route"] == "/recommend" for line in lines) == len(asker.answers)
    assert {line["model"] for line in lines if "model" in line} == {old, new}
    assert "Traceback" not in printed


@pytest.mark.slow  # processes
def test_workers_that_cannot_start_end_in_one_line(run_command):
    words = ["-m", "lcrec.serve", "--model", "nowhere", "--workers", 2, "--port", 0]
    printed = run_command(*words, status=2)
    assert printed.count("error: ") == 1
    assert "nowhere" in printed
    assert "Traceback" not in printed


def wait_for(client, line):
    for _ in range(200):
        if line in client.get("/metrics").text:
            return
        time.sleep(0.01)
    raise AssertionError(f"{line} never came")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--model", "m", "--port", "65536"], "--port 65536: the highest port is 65535"),
        (["--model", "m", "--host", "256.0.0.1"], "--host 256.0.0.1 --port 8000: cannot be"),
        (["--model", "m", "--host", "192.0.2.1"], "--host 192.0.2.1"),
        (["--model", "m", "--batch-wait", "-1"], "--batch-wait"),
        (["--model", "m", "--timeout", "0"], "--timeout"),
        (["--model", "m", "--access-log", "no/where"], "--access-log no/where: cannot be written"),
        (["--model", "m", "--port", "0", "--data", "nowhere"], "--data nowhere: no such folder"),
    ],
)
def test_settings_that_cannot_be(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        serve.main(words)


def test_several_workers_need_linux(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(InputError, match="--workers 2: only Linux shares a port's connections"):
        serve.main(["--model", "m", "--workers", "2"])


def test_a_port_in_use_is_known_before_the_model_is_loaded():
    with serve.bind("127.0.0.1", 0) as first:
        # Else asyncio leaves Nagle's algorithm on, and kept connections wait.
        assert first.proto == socket.IPPROTO_TCP
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: cannot be listened on .*in use"):
            serve.main(["--model", "nowhere", "--port", str(port)])


def test_a_catalogue_of_another_checkpoint(checkpoint, shop, tmp_path):
    for path in shop.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    items = next(tmp_path.glob("*.item.json"))
    items.write_text(items.read_text().replace("title", "titel"))
    with pytest.raises(InputError, match="was made from another item file"):
        serve.main(["--model", str(checkpoint), "--data", str(tmp_path), "--port", "0"])


def test_items_that_were_added(checkpoint, shop, grown, monkeypatch):
    served = []

    def stop(live, **settings):
        served.extend([live.handler.recommender, live.handler.items])
        raise KeyboardInterrupt

    monkeypatch.setattr("lcrec.serve.app.create_app", stop)
    words = ["--model", str(checkpoint), "--index", str(grown / "index"), "--port", "0"]
    with pytest.raises(KeyboardInterrupt):
        serve.main([*words, "--data", str(grown / "data")])
    recommender, items = served
    assert len(recommender.index) == len(items) == 50
    ranking = recommender.recommend([[49, 3]], 1, allow=[[48]])
    assert ranking.items.tolist() == [[48]]
    with pytest.raises(InputError, match=r"index was made from another item file .*quantize"):
        serve.main([*words, "--data", str(shop)])


def test_a_release_with_new_items_arrives_by_a_reload(
    checkpoint, shop, index_folder, grown, tmp_path
):
    """One link says which index and data are live; the model stays."""
    for name, index, data in (
        ("old", index_folder, shop),
        ("new", grown / "index", grown / "data"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index").symlink_to(index)
        (tmp_path / name / "data").symlink_to(data)
    live = tmp_path / "live"
    live.symlink_to("old")
    sources = ServiceSources(model=checkpoint, index=live / "index", data=live / "data")
    load = partial(load_handler, sources, ServiceLimits())
    service = Live(load(), load)
    before = service.handler
    live.unlink()
    live.symlink_to("new")
    asyncio.run(service.reload())
    after = service.handler
    assert (before.num_items, after.num_items) == (48, 50)
    assert before.versions.model == after.versions.model
    assert before.versions.index != after.versions.index
    body = RecommendRequest(history=[49], k=1, allow=[48])
    assert before.encode(body.model_copy(update={"allow": None})).ignored == {"history": [49]}
    encoded = after.encode(body)
    assert after.answer(encoded, *after.rank([encoded])).items[0].title == "Brand new desk"
    # Half a release is none.
    (tmp_path / "new" / "data").unlink()
    (tmp_path / "new" / "data").symlink_to(shop)
    with pytest.raises(InputError, match="index was made from another item file"):
        asyncio.run(service.reload())
    assert service.handler is after


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"ids": "raw"}, "--ids raw: .* carries no raw ids"),
        ({"index": "grown"}, "48 items and the model's index 50"),
        ({"calibrate": "0.5"}, r"Shop\.split\.json"),
    ],
)
def test_what_is_refused_without_the_weights(
    checkpoint, shop, grown, tmp_path, monkeypatch, sources, message
):
    data = None if "ids" in sources else shutil.copytree(shop, tmp_path / "data")
    if "calibrate" in sources:
        (data / "Shop.split.json").write_text("{}")
    if "index" in sources:  # as where the data folder's history says nothing against it
        sources = {"index": grown / "index"}
        monkeypatch.setattr("lcrec.serve.loading.require_same_catalogue", lambda *_: None)
    with pytest.raises(InputError, match=message):
        load_handler(ServiceSources(model=checkpoint, data=data, **sources), ServiceLimits())


def test_a_model_that_cannot_recommend_is_not_served(checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(broken / "adapter_model.safetensors")
    save_file(
        {name: weight * torch.nan for name, weight in weights.items()},
        broken / "adapter_model.safetensors",
    )
    with pytest.raises(InputError, match="logits are NaN"):
        serve.main(["--model", str(broken), "--port", "0"])


@pytest.mark.parametrize("token", ["", " ", "two words", "new\nline", "sécret", "a=b"])
def test_tokens_that_no_client_could_send(token, monkeypatch):
    monkeypatch.setenv("LCREC_TOKEN", token)
    with pytest.raises(InputError, match="LCREC_TOKEN") as error:
        serve.main(["--model", "nowhere", "--port", "0"])
    assert not token.strip() or token not in str(error.value)


def test_tokens():
    assert serve.read_token(None) is None
    assert serve.read_token("aB3-._~+/==") == "aB3-._~+/=="


@pytest.mark.parametrize(
    ("host", "token", "warned"),
    [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "secret", False)],
)
def test_an_open_door_is_announced(host, token, warned, capsys):
    serve.print_welcome(host, 8000, serve.Welcome(48, 0, searches=True), token)
    printed = capsys.readouterr()
    assert ("anyone who reaches 0.0.0.0 can use the service" in printed.err) == warned
    assert "Serving 48 items on http://" in printed.out
    assert "secret" not in printed.out
    assert "/search is off" not in printed.out


def test_the_command_to_try_bears_any_id(capsys):
    example = """5" 'b'; $(id) \\ 🚲\n"""
    serve.print_welcome("127.0.0.1", 8000, serve.Welcome(48, example, searches=True), None)
    command = capsys.readouterr().out.split("Try: ")[1]
    body = shlex.split(command)[-1]
    assert json.loads(body) == {"history": [example], "k": 5}


def test_without_its_packages_the_stage_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"needs the package uvicorn: pip install .*\[serve\]"):
        serve.main(["--model", "nowhere"])
