"""Rankings by vLLM are the checkpoint's: with a stand-in that has its interface, and with vLLM."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lcrec.core.errors import InputError
from lcrec.data.data_set import load_data
from lcrec.generate.engines import EngineRecommender, VllmProcess
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.modeling import __main__ as merging
from lcrec.serve import __main__ as serve
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.loading import ServiceSources, load_handler
from lcrec.serve.requests import RecommendRequest

STANDIN = Path(__file__).parents[1] / "vllm_standin"
# The Python of an environment that has vLLM, such as /opt/vllm/bin/python.
VLLM_PYTHON = Path(os.environ.get("LCREC_VLLM_PYTHON", sys.executable))


@pytest.fixture(scope="module")
def merged(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "model"
    merging.main(["merge", "--model", str(checkpoint), "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def plain(merged):
    return Recommender.from_pretrained(merged)


class Beside:
    """What vLLM's process does, in this one."""

    def __init__(self, folder, dtype, python):
        assert (dtype, python) == ("float32", None)
        self.model = Recommender.from_pretrained(folder).model

    @torch.no_grad()
    def step(self, beams, allowed):
        assert all(allowed), "nothing may be asked where nothing may follow"
        rows = [self.model(torch.tensor([ids])).logits[0, -1] for ids in beams]
        log_probs = (row.float().log_softmax(-1) for row in rows)
        return [row[ids].tolist() for row, ids in zip(log_probs, allowed, strict=True)]


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setattr("lcrec.generate.engines.VllmProcess", Beside)


def assert_alike(found, expected):
    assert found.items.tolist() == expected.items.tolist()
    assert np.allclose(found.scores, expected.scores, atol=1e-4)


REQUESTS = [
    RankingRequest([3, 17, 5]),
    RankingRequest([40], k=48),
    RankingRequest([1, 2], k=3, allow=[7, 9, 40], num_beams=3),
    RankingRequest([1, 2], k=5, allow=[7, 9, 40, 41, 42, 43], deny=[9]),
    RankingRequest([5, 6, 7], k=45, exclude_history=True),
]


def test_the_search_is_the_checkpoints_own(merged, plain, beside):
    engine = EngineRecommender.start_vllm(merged)
    assert_alike(engine.rank(REQUESTS), plain.rank(REQUESTS))
    with pytest.raises(InputError, match="answers in items alone"):
        engine.write_texts([[3]], 8, words_only=True)
    engine._step = lambda beams, allowed: [[float("nan")] * len(own) for own in allowed]
    with pytest.raises(InputError, match="NaN or infinite"):
        engine.recommend([[3]])


@pytest.mark.parametrize(
    "ways",
    [{"fuse": "cooccurrence"}, {"calibrate": "0.6"}, {"fuse": "cooccurrence", "reserve_new": 2}],
    ids=str,
)
def test_the_service_answers_as_without_an_engine(merged, shop, grown, beside, ways):
    data, index = (grown / "data", grown / "index") if "reserve_new" in ways else (shop, None)
    sources = ServiceSources(model=merged, data=data, index=index, precision="fp32", **ways)
    users = [{"user": user} for user in load_data(data).interactions.users[:10]]
    bodies = [*users, {"history": [3, 7], "k": 6, "deny": [9], "exclude_history": True}]
    rankings, told = [], []
    for engine in ("torch", "vllm"):
        handler = load_handler(replace(sources, engine=engine), ServiceLimits())
        encoded = [handler.encode(RecommendRequest(**body)) for body in bodies]
        told.append(handler.told)
        answers = zip(encoded, handler.rank(encoded), strict=True)
        rankings.append([handler.answer(*own) for own in answers])
    assert told[0] == told[1]
    for own, expected in zip(*rankings, strict=True):
        assert [row.item for row in own.items] == [row.item for row in expected.items]
        scores = [row.score for row in expected.items]
        assert [row.score for row in own.items] == pytest.approx(scores, abs=1e-4)


PROGRAM = f"""#!{sys.executable}
import json, os, subprocess, sys, time
memory = f"{{sys.argv[0]}}.{{os.getpid()}}"
cleans = "trap 'rm $0; exit' TERM; touch $0; sleep 600 & wait"
child = subprocess.Popen(["sh", "-c", cleans, memory], stdout=subprocess.DEVNULL)
while not os.path.exists(memory):
    time.sleep(0.01)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    beams, allowed = json.loads(line)
    if beams == [[7]]:
        sys.exit(7)
    print(json.dumps([[child.pid] for _ in beams]), flush=True)
"""


def has_ended(pid):
    """Tell whether a process is gone; whoever it falls to may take it from the table later."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_process_that_ends_is_started_anew_and_leaves_nobody(tmp_path, caplog):
    program = tmp_path / "python"

    def write(text):
        program.write_text(text)
        program.chmod(0o755)

    write(PROGRAM)
    engine = VllmProcess(tmp_path, "float32", program)
    ((first,),) = engine.step([[1]], [[5]])
    engine._process.kill()
    ((second,),) = engine.step([[1]], [[5]])
    assert has_ended(first)
    assert caplog.messages == [
        "vLLM ended with status -9 (what it printed says why); starting it anew"
    ]
    with pytest.raises(RuntimeError, match=r"vLLM ended with status 7 .*, again"):
        engine.step([[7]], [[5]])
    assert has_ended(second)

    write("#!/bin/false")
    with pytest.raises(InputError, match="ended with status 1 while it loaded the model"):
        engine.step([[1]], [[5]])
    program.unlink()
    for _ in range(2):
        with pytest.raises(InputError, match=r"--engine-python .*python: No such file"):
            engine.step([[1]], [[5]])
    write(PROGRAM)
    ((third,),) = engine.step([[1]], [[5]])
    process = engine._process
    del engine  # they end with it
    assert (process.returncode, has_ended(third)) == (0, True)
    assert list(tmp_path.iterdir()) == [program], "somebody had no time to clean up"


def test_an_interrupt_while_it_loads_ends_it_at_once(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho $$ > $0.pid; sleep 1; kill -ALRM $PPID; exec sleep 600")
    program.chmod(0o755)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            VllmProcess(tmp_path, "float32", program)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert has_ended(int(Path(f"{program}.pid").read_text()))


@pytest.mark.slow  # a process that imports transformers
def test_a_process_with_vllms_interface_ranks_as_the_checkpoint(merged, plain, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    engine = EngineRecommender.start_vllm(merged)
    assert_alike(engine.rank(REQUESTS), plain.rank(REQUESTS))
    assert "vLLM prints" in capfd.readouterr().err


@pytest.mark.slow
def test_vllm_itself_ranks_as_the_checkpoint(merged, plain):
    finds = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if subprocess.run([VLLM_PYTHON, "-c", finds], check=False).returncode:
        pytest.skip(f"{VLLM_PYTHON} has no vLLM: name one that has it in LCREC_VLLM_PYTHON")
    engine = EngineRecommender.start_vllm(merged, python=VLLM_PYTHON)
    assert_alike(engine.rank(REQUESTS), plain.rank(REQUESTS))


def test_what_cannot_be_served_is_refused(checkpoint, merged):
    with pytest.raises(InputError, match=r"this is an adapter; merge it: .*--model .*model"):
        EngineRecommender.start_vllm(checkpoint)
    with pytest.raises(InputError, match="--engine-python nowhere: No such file"):
        EngineRecommender.start_vllm(merged, python=Path("nowhere"))
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(InputError, match="has no vLLM; pip install it"):
            EngineRecommender.start_vllm(merged)
    with pytest.raises(InputError, match="ended with status 1 while it loaded the model"):
        VllmProcess(merged, "no-such-type", Path("/bin/false"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--engine-python python", "is for --engine vllm"),
        ("--engine vllm --workers 2", "--workers 2: an engine uses its device alone"),
        ("--engine vllm --base b", "--base b: vLLM is given whole models"),
        ("--engine vlm", "did you mean 'vllm'"),
    ],
)
def test_options_that_do_not_go_together(words, message):
    with pytest.raises(InputError, match=message):
        serve.main(["--model", "m", *words.split()])
