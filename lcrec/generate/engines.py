"""Rankings by vLLM: the tree of items is searched here, and vLLM scores the tokens of each step.

vLLM runs in a process of its own (`lcrec.generate.vllm_worker`), with the Python of any environment
that has it: its releases and lcrec's rarely ask for the same transformers. What a checkpoint ranks
is what `Recommender` ranks, to rounding: filters, calibration and new items included.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lcrec.core.errors import InputError
from lcrec.core.pretrained import ADAPTER_CONFIG, load_config, load_tokenizer
from lcrec.generate import standalone, vllm_worker
from lcrec.generate.beams import BeamOutput, check_finite, choose_beams, open_children, order_items
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.recommender import Recommender
from lcrec.generate.standalone import Step
from lcrec.generate.trie import ItemTrie
from lcrec.modeling.checkpoint import REMEDY, CheckpointParts


def engine_search(
    step: Step,
    prompt_ids: list[list[int]],
    trie: ItemTrie,
    num_beams: int,
    *,
    leaf_filter: LeafFilter | None = None,
) -> BeamOutput:
    """Find the `num_beams` most likely items for every prompt, as `lcrec.generate.search` does.

    Args:
        step: asks the engine for the log-probabilities of what may follow each beam.
        prompt_ids: the prompts.
        trie: the catalogue, on the CPU.
        num_beams: items wanted per prompt, at most the catalogue's size.
        leaf_filter: which items each prompt may get.

    Raises:
        InputError: the engine's log-probabilities are not finite.
    """
    batch = len(prompt_ids)
    rows = torch.arange(batch)[:, None]
    nodes, scores = torch.zeros(batch, 1, dtype=torch.int64), torch.zeros(batch, 1)
    paths = torch.zeros(batch, 1, 0, dtype=torch.int64)
    for level in range(trie.depth):
        children, tokens, valid = open_children(trie, level, nodes, leaf_filter)
        asked = valid & (scores > -torch.inf)[..., None]  # a beam that stands for nothing asks none
        beams = asked.any(-1).nonzero().tolist()
        found = step(
            [prompt_ids[row] + paths[row, beam].tolist() for row, beam in beams],
            [tokens[row, beam][asked[row, beam]].tolist() for row, beam in beams],
        )
        log_probs = torch.full(tokens.shape, -torch.inf)
        log_probs[asked] = torch.tensor([value for own in found for value in own])
        check_finite(log_probs.masked_fill(~asked, 0))
        opened: tuple[Tensor, Tensor, Tensor] = children, tokens, asked
        nodes, scores, tokens, parent = choose_beams(
            trie, level, nodes, scores, opened, log_probs, num_beams
        )
        paths = torch.cat([paths[rows, parent], tokens[..., None]], dim=2)
    return order_items(trie.items(nodes), scores)


# Neither as a script nor from the current folder, whose modules may bear names of others'.
_RUN = "import runpy, sys; runpy.run_path(sys.argv[1])['main']()"
_PATIENCE = 30.0  # seconds that vLLM may take to end, asked twice

_log = logging.getLogger(__name__)


class VllmProcess:
    """vLLM with a model, in a process that ends with this object or this interpreter.

    Args:
        folder: a whole model, as transformers writes it.
        dtype: what it computes in, such as float32.
        python: of the environment that has vLLM; None for this one.

    Raises:
        InputError: it does not start.
    """

    def __init__(self, folder: Path, dtype: str, python: Path | None = None) -> None:
        program = str(python or sys.executable)
        files = vllm_worker.__file__, standalone.__file__, str(folder.resolve())
        self._command = [program, "-P", "-c", _RUN, *files, dtype]
        self._start()

    def step(self, beams: list[list[int]], allowed: list[list[int]]) -> list[list[float]]:
        """Return the log-probabilities of what may follow each beam.

        A process that has ended is started anew, and asked again.

        Raises:
            RuntimeError: that one ended, too.
            InputError: it does not start.
        """
        question = json.dumps([beams, allowed]) + "\n"
        answer = self._ask(question)
        if not answer:
            _log.error("%s; starting it anew", self._ended())
            self._end()
            self._start()
            answer = self._ask(question)
        if not answer:
            raise RuntimeError(f"{self._ended()}, again")
        found: list[list[float]] = json.loads(answer)
        return found

    def _start(self) -> None:
        try:
            # Not for the keyboard's interrupt: it ends when its input does.
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"--engine-python {self._command[0]}: {error.strerror}") from None
        self._process, self._end = process, weakref.finalize(self, _end, process)
        assert process.stdout is not None
        try:
            if process.stdout.readline():
                return
        except KeyboardInterrupt:  # while it loads, it does not see that its input ends
            process.terminate()
            raise
        status = process.wait()
        if status == vllm_worker.WITHOUT_VLLM:
            raise InputError(
                f"--engine vllm: {self._command[0]} has no vLLM; pip install it into an "
                "environment of its own, and name its Python with --engine-python"
            )
        raise InputError(
            f"--engine vllm: vLLM ended with status {status} while it loaded the model; what it "
            "printed says why"
        )

    def _ask(self, question: str) -> str:
        """Return the line that answers another; an empty one if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):  # the latter of a pipe that was closed
            return ""
        return answer if answer.endswith("\n") else ""

    def _ended(self) -> str:
        return f"vLLM ended with status {self._process.wait()} (what it printed says why)"


def _end(process: subprocess.Popen[str]) -> None:
    """Let a process end, and whatever it has started and left; kill what does not."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with contextlib.suppress(ProcessLookupError):  # until nobody is left
        # Killed at once, they would leave their shared memory behind.
        os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _EngineModel(nn.Module):
    """What a recommender asks of a model that lies elsewhere."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.device = config, torch.device("cpu")


class EngineRecommender(Recommender):
    """A recommender whose model an engine computes; it answers in items, not in words.

    Args:
        step: the engine.
        config: the model's, of transformers.
        others: as for `Recommender`.
    """

    def __init__(self, step: Step, config: Any, *others: Any, **settings: Any) -> None:
        model: Any = _EngineModel(config)
        super().__init__(model, *others, **settings)
        self._step = step

    @classmethod
    def start_vllm(
        cls,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        python: Path | None = None,
        index: Path | None = None,
        max_batch_tokens: int | None = None,
    ) -> EngineRecommender:
        """Start vLLM with a checkpoint.

        Args:
            folder: the checkpoint, whole.
            dtype: what vLLM computes in.
            python: of the environment that has vLLM; None for this one.
            index, max_batch_tokens: as for `Recommender.from_pretrained`.

        Raises:
            InputError: an adapter, an encoder-decoder, parts of different checkpoints, or vLLM does
                not start.
        """
        parts = CheckpointParts.read(folder, index)
        if (folder / ADAPTER_CONFIG).exists():
            raise InputError(
                f"--model {folder}: vLLM is given whole models, and this is an adapter; merge it: "
                f"python -m lcrec.modeling merge --model {folder} --output DIR"
            )
        config = load_config("--model", str(folder))
        if config.is_encoder_decoder:
            raise InputError(f"--model {folder}: vLLM does not rank with an encoder-decoder")
        vllm = VllmProcess(folder, str(dtype).removeprefix("torch."), python)
        return cls(
            vllm.step,
            config,
            load_tokenizer("--model", folder, remedy=REMEDY),
            parts.catalogue,
            parts.prompts,
            max_history=parts.facts.max_history,
            max_text_words=parts.facts.max_text_words,
            tasks=parts.tasks,
            max_batch_tokens=max_batch_tokens,
            nearby=parts.nearby,
            num_trained=len(parts.index),
        )

    def rank_batch(
        self,
        prompt_ids: list[list[int]],
        k: int,
        *,
        leaf_filter: LeafFilter | None = None,
        num_beams: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `Recommender.rank_batch` does, whose arguments and errors these are."""
        beams = self._beams(k, num_beams)
        found = engine_search(self._step, prompt_ids, self.trie, beams, leaf_filter=leaf_filter)
        return found.items[:, :k].numpy(), found.scores[:, :k].numpy()

    def write_texts(self, prompt_ids: Sequence[list[int]], *_: Any, **__: Any) -> list[str]:
        """Refuse: an engine is asked for items alone.

        Raises:
            InputError: always.
        """
        raise InputError("an engine answers in items alone; let Recommender explain")
