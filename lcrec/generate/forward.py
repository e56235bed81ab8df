"""How a search runs a causal model: the results of a plain call, with less work.

Keys and values lie in buffers made once (`slot_cache`); heads that share keys are computed together
(`grouped_attention`); of a prompt only the last token passes the last MLP (`last_token_only`), for
nothing else is read of what comes behind it.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lcrec.core.device import whole_float32
from lcrec.modeling.base import base_model

# Makes the buffer called so, of the shape and kind given.
MakeBuffer = Callable[[str, tuple[int, ...], Tensor], Tensor]


class SlotLayer(DynamicLayer):
    """Keys and values of one layer in buffers with room for all that a search will add.

    Args:
        slots: tokens that a row has room for.
        number: of the layer.
        make_buffer: where the buffers come from.
    """

    def __init__(self, slots: int, number: int, make_buffer: MakeBuffer) -> None:
        super().__init__()
        self.slots, self.number, self.make_buffer = slots, number, make_buffer
        self.buffers: list[Tensor] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, for states `[batch, heads, length, dim]` like these."""
        self.dtype, self.device = key_states.dtype, key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            batch, heads, _, dim = states.shape
            shape = (batch, heads, self.slots, dim)
            self.buffers.append(self.make_buffer(f"{name} {self.number}", shape, states))
        self.is_initialized = True
        self.keep(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write states behind those that are there; return all, as views of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self.keep(end)

    def keep(self, length: int) -> tuple[Tensor, Tensor]:
        """Forget all but the first `length` tokens."""
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)
        return self.keys, self.values


def slot_cache(slots: int, make_buffer: MakeBuffer | None = None) -> DynamicCache:
    """Return an empty cache of `SlotLayer`s.

    Made without the model's config, it keeps every slot; made with it, a layer with a sliding
    window would drop its oldest slots and take the beams for tokens that follow one another.
    """
    cache, numbers = DynamicCache(), itertools.count()
    make = make_buffer or (lambda name, shape, like: like.new_empty(shape))
    layer: Any = lambda: SlotLayer(slots, next(numbers), make)  # noqa: E731
    cache.layer_class_to_replicate = layer
    return cache


def keep_slots(cache: DynamicCache, length: int) -> None:
    """Forget what a `slot_cache` holds behind the first `length` tokens of each row."""
    for layer in cache.layers:
        assert isinstance(layer, SlotLayer)
        layer.keep(length)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers' `sdpa` does, without a copy of the keys for every head.

    Queries of heads that share keys stand one below the other, under the same mask.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    is_plain = attention_mask is not None and attention_mask.shape[1] == 1
    if not is_plain or groups == 1 or others.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    assert attention_mask is not None
    batch, heads, length, dim = query.shape
    output = F.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, dim),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=scaling,
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


_GROUPED = "lcrec_grouped"
AttentionInterface.register(_GROUPED, _attend)
AttentionMaskInterface.register(_GROUPED, sdpa_mask)


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let heads that share keys be computed together for a while, where SDPA computes them."""
    base = base_model(model)
    config = base.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa" or not base._can_set_attn_implementation():
        yield
        return
    config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


_last_mlps: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()


@contextmanager
def last_token_only(model: Any) -> Iterator[None]:
    """Let only the last token pass the last layer's MLP for a while.

    What the model puts out is right for the last token alone. A model whose last layer is no
    attention and MLP, one after the other, is run as it is.
    """
    if model not in _last_mlps:
        _last_mlps[model] = _find_last_mlp(model)
    mlp = _last_mlps[model]
    if mlp is None:
        yield
        return
    with _cut(mlp):
        yield


@contextmanager
def _cut(mlp: nn.Module) -> Iterator[None]:
    thread = threading.get_ident()  # others may search with the model meanwhile

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # What it gives for one token is added to what every token carries past it.
        return (args[0][:, -1:], *args[1:]) if threading.get_ident() == thread else args

    hook = mlp.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        hook.remove()


@whole_float32()
@torch.no_grad()
def _find_last_mlp(model: Any) -> nn.Module | None:
    """Return the MLP of the last layer if nothing changes for a last token that passes alone."""
    layers = getattr(base_model(model).get_decoder(), "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) else None
    if mlp is None:
        return None
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, (2, 5), generator=generator).to(model.device)
    run = functools.partial(model, input_ids=ids, use_cache=False, logits_to_keep=1)
    whole = run().logits.float()
    try:
        with _cut(mlp):
            alone = run().logits.float()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # families differ in what they hand to an MLP, and do with what it gives
        return None
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    limit = (1e-4 + 32 * eps) * max(1.0, float(whole.abs().max()))
    return mlp if alone.shape == whole.shape and (alone - whole).abs().max() <= limit else None
