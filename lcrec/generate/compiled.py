"""The steps of a search after the prompt, captured once as a CUDA graph and then replayed.

A small model's steps are bound by the processor, which launches thousands of short kernels for
them. Between the prompt and the items nothing waits for the device and all shapes are known, so the
launches can be recorded; on a CPU `StepGraphs.run` calls the steps as they are.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
# Graphs kept at a time. Each holds its inputs; what is computed on the way shares one pool.
MOST_GRAPHS = 16

Outputs = tuple[Tensor, ...]
Steps = Callable[..., Outputs]
# Runs steps once on the tensors given, and returns what runs them again, and where results lie.
Recorder = Callable[[Steps, Outputs], tuple[Callable[[], None], Outputs]]


@dataclass(frozen=True, eq=False)
class _Graph:
    """One captured run: to replay it is to compute `outputs` from what `inputs` hold by then."""

    replay: Callable[[], None]
    inputs: Outputs
    outputs: Outputs
    owners: tuple[Any, ...]  # kept alive: their memory is what the graph reads


class StepGraphs:
    """The captured steps of one model's searches, by the shapes of their batches.

    A shape is captured when it is met for the second time. Whoever searches holds `lock`: one
    memory serves all searches.

    Args:
        device: where the model is. Nothing is captured on a CPU.
        record: captures steps; by default as a CUDA graph.
    """

    def __init__(self, device: torch.device, record: Recorder | None = None) -> None:
        if record is None and device.type == "cuda":
            record = _CudaRecorder(device)
        self._record = record
        self.lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._met: set[Hashable] = set()
        self._buffers: dict[str, Tensor] = {}

    @property
    def captures(self) -> bool:
        """Whether steps are captured; no longer so once it has failed."""
        return self._record is not None

    def buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return memory for a search's cache, at the same place as in the last search if it fits.

        Args:
            name: one of the cache's buffers.
            shape: its shape.
            like: a tensor of its type, on its device.
        """
        size = torch.Size(shape).numel()
        flat = self._buffers.get(name)
        if flat is None or flat.numel() < size or flat.dtype != like.dtype:
            self._graphs.clear()  # they read what lay there
            self._buffers[name] = flat = like.new_empty(size)
        return flat[:size].view(shape)

    def run(self, key: Hashable, owners: tuple[Any, ...], steps: Steps, inputs: Outputs) -> Outputs:
        """Return `steps(*inputs)`, replayed where it was captured before.

        What is replayed lies where the next replay of the same key will write.

        Args:
            key: with the shapes and types of the inputs, all that the steps' work depends on.
            owners: objects that belong to the key, compared by identity: the model, the tree.
            steps: reads nothing but its arguments, the owners' tensors and `buffer`s; always
                computes the same of them, however often it is called.
            inputs: tensors.
        """
        if self._record is None:
            return steps(*inputs)
        kinds = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        key = (key, tuple(map(id, owners)), kinds)
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            for place, tensor in zip(graph.inputs, inputs, strict=True):
                place.copy_(tensor)
            graph.replay()
            return graph.outputs
        outputs = steps(*inputs)
        if key in self._met:
            self._capture(key, owners, steps, tuple(tensor.clone() for tensor in inputs))
        self._met.add(key)
        return outputs

    def _capture(
        self, key: Hashable, owners: tuple[Any, ...], steps: Steps, inputs: Outputs
    ) -> None:
        assert self._record is not None
        try:
            replay, outputs = self._record(steps, inputs)
        except Exception as error:  # of any kernel or library that waits or takes memory
            self.stop()
            reason = (str(error).splitlines() or [""])[0]
            _log.warning(
                "going on without CUDA graphs, which cannot be captured (%s: %s)",
                type(error).__name__,
                reason,
            )
            return
        self._graphs[key] = _Graph(replay, inputs, outputs, owners)
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def stop(self) -> None:
        """Give the memory back and capture no more."""
        self._record = None
        self._graphs.clear()
        self._buffers.clear()


class _CudaRecorder:
    """Captures steps as CUDA graphs that share one pool of memory, for they run one at a time.

    Args:
        device: where the steps run. Of another device than the current one torch would capture
            nothing, and what is replayed would give the results of the capture for ever.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, steps: Steps, inputs: Outputs) -> tuple[Callable[[], None], Outputs]:
        with torch.cuda.device(self._stream.device):
            stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
            # By this thread alone: others, such as those of a service, may take memory meanwhile.
            capture = torch.cuda.graph(
                graph, self._pool, self._stream, capture_error_mode="thread_local"
            )
            try:
                with capture:
                    outputs = steps(*inputs)
            finally:
                torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind
        return graph.replay, outputs
