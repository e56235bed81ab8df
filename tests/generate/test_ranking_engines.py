"""Rankings by vLLM are the checkpoint's: with a stand-in that has its interface, and with vLLM."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lcrec.core.errors import InputError
from lcrec.generate.calibration import calibrate, unconditional
from lcrec.generate.engines import EngineRecommender, VllmProcess
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.modeling import __main__ as merging
from lcrec.serve import __main__ as serve

STANDIN = Path(__file__).parents[1] / "vllm_standin"
HISTORIES = [[3, 17, 5], [40], [1, 2, 3, 4, 5, 6]]
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


@pytest.fixture
def standin(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    return monkeypatch


def over(recommender):
    """Return an engine's recommender over the model of another."""

    @torch.no_grad()
    def step(beams, allowed):
        assert all(allowed), "nothing may be asked where nothing may follow"
        rows = [recommender.model(torch.tensor([ids])).logits[0, -1] for ids in beams]
        log_probs = (row.float().log_softmax(-1) for row in rows)
        return [row[ids].tolist() for row, ids in zip(log_probs, allowed, strict=True)]

    encoder = recommender.request_encoder
    return EngineRecommender(
        step,
        recommender.model.config,
        recommender.tokenizer,
        recommender.index,
        recommender.prompts,
        max_history=encoder.max_history,
    )


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


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_search_is_the_checkpoints_own(plain, split, share):
    engine = over(plain)
    own = Recommender(plain.model, plain.tokenizer, plain.index, plain.prompts, max_history=4)
    known = unconditional(plain, split.valid)
    for recommender in (engine, own):
        calibrate(recommender, known.log_probs, share)
    assert_alike(engine.rank(REQUESTS), own.rank(REQUESTS))
    with pytest.raises(InputError, match="answers in items alone"):
        engine.write_texts([[3]], 8, words_only=True)


def test_broken_log_probabilities_are_refused(plain):
    engine = over(plain)
    engine._step = lambda beams, allowed: [[float("nan")] * len(own) for own in allowed]
    with pytest.raises(InputError, match="NaN or infinite"):
        engine.recommend([[3]])


@pytest.mark.slow  # a process that imports transformers
def test_a_process_ranks_and_comes_back(merged, plain, standin, capfd):
    engine = EngineRecommender.start_vllm(merged)
    expected = plain.recommend(HISTORIES, 10)
    assert_alike(engine.recommend(HISTORIES, 10), expected)
    assert "vLLM prints" in capfd.readouterr().err
    process = engine._step.__self__
    first = process._process
    first.kill()
    first.wait()
    assert_alike(engine.recommend(HISTORIES, 10), expected)
    second = process._process
    assert second.pid != first.pid
    del engine, process  # it ends with its owner
    assert second.wait(timeout=60) == 0

    standin.setenv("STANDIN_ENDS", "1")
    engine = EngineRecommender.start_vllm(merged, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="vLLM ended with status 7"):
        engine.recommend([[3]])


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
