"""Training a few rows of a large embedding without copying it.

PEFT's `TrainableTokensLayer` writes the trained rows into a copy of the whole matrix at every
forward, in the embedding and again in the head: with 150,000 entries that is most of a small
model's step. Here old and new rows are looked up, and scored, apart. Parameters, saving, loading
and merging stay PEFT's own.

Public names: `compute_rows_apart`, `show_frozen_weights`.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn import functional as F


def compute_rows_apart(model: PeftModel) -> None:
    """Let every layer with trained rows compute them apart from the frozen ones.

    What the model computes is unchanged, gradients included.
    """
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = _RowsApart
            (indices,) = module.token_indices.values()
            ids, order = torch.tensor(indices, device=module.weight.device).sort()
            module.register_buffer("row_ids", ids, persistent=False)
            module.register_buffer("row_order", order, persistent=False)
            if module.tied_adapter:
                # The rows are the embedding's; under a second name they would be saved and
                # sharded twice.
                rows = module._modules.pop("trainable_tokens_delta")
                module.__dict__["trainable_tokens_delta"] = rows


def show_frozen_weights(model: PeftModel) -> None:
    """Let embedding and head answer with the frozen matrix when asked for their weight.

    PEFT's answer is a copy with the trained rows in it, made anew each time, by which Accelerate's
    FSDP2 cannot see that embedding and head are tied: it would shard what they share twice.
    """
    for module in model.modules():
        if type(module) is TrainableTokensWrapper:
            module.__class__ = _FrozenWeight


class _FrozenWeight(TrainableTokensWrapper):
    def _getattr_wrapped(self, name: str, modules: dict[str, nn.Module]) -> Any:
        return self.token_adapter.base_layer.weight


class _RowsApart(TrainableTokensLayer):
    row_ids: Tensor  # the trained rows' token ids, ascending
    row_order: Tensor  # which trained row each is

    def forward_adapters(
        self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return embeddings [..., width] of token ids, or logits [..., vocabulary] of states."""
        if self.disable_adapters or self.merged:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        (name,) = active_adapters
        rows = self.trainable_tokens_delta[name].to(result.dtype)[self.row_order]
        if isinstance(self.base_layer, nn.Embedding):
            place = torch.searchsorted(self.row_ids, x.contiguous()).clamp_max(
                len(self.row_ids) - 1
            )
            trained = F.embedding(place, rows)
            scale = self._get_embed_scale()  # Gemma multiplies what it looks up
            if scale is not None:
                trained = trained * scale.to(result.dtype)
            return torch.where((self.row_ids[place] == x)[..., None], trained, result)
        bias = getattr(self.base_layer, "bias", None)
        trained = F.linear(x, rows, None if bias is None else bias[self.row_ids])
        return result.index_copy_(-1, self.row_ids, trained)
