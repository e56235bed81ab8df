"""Laws that a GPU's kernels may break, each against float64 on the CPU.

The same laws hold on the CPU, which is asked where that is cheap. `pytest -m cuda` asks a GPU.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from lcrec.core.device import prepare_cuda
from lcrec.generate.beams import beam_search, read_head
from lcrec.generate.compiled import StepGraphs
from lcrec.generate.item_filter import LeafFilter
from lcrec.generate.search import supports_shared_prefix
from lcrec.generate.trie import ItemTrie
from lcrec.modeling.base import choose_attention, compile_layers
from lcrec.modeling.batches import sample_losses, split_buffers
from lcrec.modeling.families import check_family
from lcrec.modeling.probe import takes_trees
from lcrec.modeling.trees import PackingCollator
from lcrec.prompts.rows import collate_left

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]
ON_CUDA = [pytest.mark.cuda, needs_cuda]
VOCABULARY = 128


@pytest.fixture(autouse=True)
def kernels():
    prepare_cuda()
    yield
    torch._dynamo.reset()


def make_model():
    """Make a Llama of SmolLM2's proportions whose first head attends to all tokens at -120.

    The biases lie in the dimensions that rotate least; cuDNN's gradients are NaN below -88.7.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias[63] = (120 * 8) ** 0.5
            layer.self_attn.k_proj.bias[63] = -((120 * 8) ** 0.5)
    return model.eval()


def make_rows(width):
    generator = torch.Generator().manual_seed(width)
    lengths = (width, width - 7, width // 2, 9)
    return [
        {
            "input_ids": torch.randint(VOCABULARY, (length,), generator=generator).tolist(),
            "prompt_length": length - 4,
            "task": "seqrec",
        }
        for length in lengths
    ]


def in_whole_float32():
    """Multiply float32 as such: TF32, which `prepare_cuda` chooses, rounds more than laws allow."""
    torch.backends.cuda.matmul.allow_tf32 = False


def losses_and_gradients(model, parts, dtype=None):
    """Return the samples' losses [parts, samples] and the gradient of their sum, as one vector."""
    in_whole_float32()
    found = []
    for part in parts:
        part = {name: value.to(model.device) for name, value in part.items()}
        with torch.autocast(model.device.type, dtype, enabled=dtype == torch.bfloat16):
            losses = sample_losses(model, part)[0][:, 0]
        losses.sum().backward()
        found.append(losses.detach().double().cpu())
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters()]
    return torch.stack(found), torch.cat(gradients)


@pytest.mark.parametrize("width", [52, 64, 192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("device", "way"),
    [
        ("cpu", "padded"),
        ("cpu", "packed"),
        pytest.param("cuda", "padded", marks=ON_CUDA),
        pytest.param("cuda", "packed", marks=ON_CUDA),
        pytest.param("cuda", "compiled", marks=ON_CUDA),
    ],
)
def test_losses_and_gradients_are_those_of_float64(device, way, dtype, width):
    rows = make_rows(width)
    alone = [collate_left([row], 0) for row in rows]  # no padding, which kernels differ about
    expected, exact = losses_and_gradients(make_model().double(), alone)
    model = make_model().to(device)
    parts = [collate_left(rows, 0)]
    if way != "padded":
        assert choose_attention(model, "auto", dropout=0.0) == (device == "cuda")
        batch = PackingCollator(0, 256)(rows)
        parts = split_buffers(batch, len(batch["input_ids"]))
    if way == "compiled":
        compile_layers(model)
    losses, gradients = losses_and_gradients(model, parts, dtype)
    assert gradients.isfinite().all()
    tolerance = 0.05 if dtype == torch.bfloat16 else 2e-3 if device == "cuda" else 1e-4
    assert torch.allclose(losses.sum(0), expected[:, 0], rtol=tolerance)
    assert (gradients - exact).norm() <= 4 * tolerance * exact.norm()


def test_what_is_planted_lies_below_the_least_that_cudnn_bears(monkeypatch):
    model, sums = make_model(), []
    model.set_attn_implementation("eager")
    softmax = nn.functional.softmax

    def noted(scores, *args, **kwargs):
        sums.append(scores[:, 0].logsumexp(-1))
        return softmax(scores, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "softmax", noted)
    with torch.no_grad():
        model(input_ids=torch.arange(64)[None], use_cache=False)
    assert len(sums) == 2
    assert torch.cat(sums).max() < -88.7


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("beams", [6, 40])
def test_rankings_are_those_of_float64(device, dtype, beams):
    paths = np.random.default_rng(0).choice(5**3, 40, replace=False)
    items = np.stack(np.unravel_index(paths, (5,) * 3), axis=1) + 100 + 5 * np.arange(3)
    model = make_model()
    with torch.no_grad():  # far from uniform, so that rankings have no ties
        model.lm_head.weight.mul_(10)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, (3, 70), generator=generator)
    prompts[:, :25] = prompts[0, :25]

    def rank(model, dtype, head):
        in_whole_float32()
        model.to(dtype)
        where = model.device
        ids, trie = prompts.to(where), ItemTrie.build(items).to(where)
        head = read_head(model, prompts[0, :25].tolist()) if head else None
        found = beam_search(model, ids, torch.ones_like(ids), trie, beams, head=head)
        return found.items.cpu(), found.scores.cpu()

    expected_items, expected = rank(model, torch.float64, False)
    for head in (False, True):
        found_items, scores = rank(make_ranker(model, device), dtype, head)
        if dtype == torch.float32 and device == "cpu":
            assert found_items.equal(expected_items)
        tolerance = 0.06 if dtype == torch.bfloat16 else 2e-3 if device == "cuda" else 1e-4
        assert torch.allclose(scores, expected, rtol=tolerance)


def make_ranker(model, device):
    copy = make_model()
    copy.load_state_dict(model.state_dict())
    return copy.float().to(device)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_captured_graph_finds_what_the_steps_find(dtype):
    """Other prompts, widths and lists each time; on a CPU `tests/generate/test_compiled.py`.

    The device is the last, so that of several it is not the current one.
    """
    items = np.stack(np.unravel_index(np.arange(60), (5,) * 3), axis=1) + 100 + 5 * np.arange(3)
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    model, trie = make_model().to(device, dtype), ItemTrie.build(items).to(device)
    graphs = StepGraphs(device)
    for turn in range(9):
        prompts = torch.randint(100, (3, 30 + turn % 2), device=device)
        mask = torch.ones_like(prompts)
        mask[0, : turn % 3] = 0
        options = {}
        if turn % 3:
            options["leaf_filter"] = LeafFilter.build(trie, 3, deny=[[turn], range(turn), None])
        found = beam_search(model, prompts, mask, trie, 20, graphs=graphs, **options)
        expected = beam_search(model, prompts, mask, trie, 20, **options)
        assert found.items.equal(expected.items)
        assert torch.allclose(found.scores, expected.scores, rtol=1e-3)
    assert graphs.captures  # no capture failed


@pytest.mark.parametrize("device", DEVICES)
def test_trials_of_a_model_multiply_in_whole_float32(device):
    model, seen = make_model().to(device), set()
    model.lm_head.register_forward_pre_hook(
        lambda *_: seen.add(torch.backends.cuda.matmul.allow_tf32)
    )
    assert takes_trees(model)
    check_family(model, "full", lambda: None)
    assert supports_shared_prefix(model.eval())
    assert seen == {False}
    assert torch.backends.cuda.matmul.allow_tf32


class Waits(TorchDispatchMode):
    """Notes every operation whose result or shape the processor must know, and so waits for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        waits = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal}
        by_mask = function.overloadpacket == aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if function.overloadpacket in waits or by_mask:
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_a_search_waits_for_the_device_once_at_its_end(device):
    model, prompts = make_model().to(device), torch.randint(100, (3, 30), device=device)
    prompts[:, :8] = prompts[0, :8]
    items = np.stack(np.unravel_index(np.arange(60), (5,) * 3), axis=1) + 100 + 5 * np.arange(3)
    trie, head = ItemTrie.build(items).to(device), read_head(model, prompts[0, :8].tolist())
    ones = torch.ones_like(prompts)
    leaf_filter = LeafFilter.build(trie, 3, deny=[[1], [2, 3], None])
    with Waits() as waits:
        beam_search(model, prompts, ones, trie, 20, head=head, leaf_filter=leaf_filter)
    assert len(waits.seen) == 1, waits.seen
