"""Whether a family of models bears what a fine-tune does to it, tried before any work is done.

transformers holds some two hundred families; what each does with padding, adapters, positions and
caches is not written anywhere, and changes. So it is tried, on two short rows. The families that
were tried whole: `README.md` beside this file.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lcrec.core.device import whole_float32
from lcrec.core.errors import InputError
from lcrec.core.pretrained import reason_of
from lcrec.modeling.base import cannot_train
from lcrec.modeling.batches import FEATURES, sample_losses
from lcrec.modeling.probe import rounding_of
from lcrec.prompts.rows import IGNORED

TOKENS = 9  # of the longer row of the trial
PADDING = 4  # tokens by which the other is shorter
ANSWER = 3  # tokens under loss, and of a beam
BEAMS = 4


@whole_float32()
def check_family(model: PreTrainedModel | PeftModel, mode: str, rank: Callable[[], Any]) -> None:
    """Refuse a model that cannot be trained in this mode, or not be decoded.

    One step without an update, on the device where the model lies; nothing of it stays.

    Args:
        model: as it will be trained, with its adapter.
        mode: of the fine-tune.
        rank: ranks the catalogue for a user; model in eval mode.

    Raises:
        InputError: naming the family, the fault, and the mode that can where there may be one.
        torch.OutOfMemoryError: two rows of 9 tokens do not fit.
    """
    name = model.config.model_type
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            _step(model)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise cannot_train(name, mode, error) from None
    model.eval()
    difference, tolerance = _padding_error(model)
    if not difference <= tolerance:
        raise InputError(
            f"--base: models of the family {name} score a padded text otherwise than the text "
            f"alone (by {difference:.2g} of the spread), so an answer would depend on its batch; "
            "no --mode can train them, take another family"
        )
    try:
        rank()
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"--base: models of the family {name} cannot be decoded ({reason_of(error)}); no "
            "--mode can help, take another family"
        ) from None
    difference, tolerance = _beam_error(model)
    if not difference <= tolerance:
        raise InputError(
            f"--base: models of the family {name} score beams otherwise than plain passes (by "
            f"{difference:.2g}), so rankings would be wrong; no --mode can help, take another "
            "family"
        )
    model.train()


def _rows(vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Return two rows as `collate_left` makes them, the second padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    labels = ids.clone()
    labels[:, :-ANSWER] = IGNORED
    rows = {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
        "labels": labels,
    }
    return {key: value.to(device) for key, value in rows.items()}


def _step(model: Any) -> None:
    """Compute a loss and its gradient, down to what the embedding gives, and keep neither.

    Raises:
        ValueError: there is no gradient, or one that is no number.
    """
    seen: list[Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    try:
        model.train()
        sums, _ = sample_losses(model, _rows(_vocabulary(model), model.device))
        losses = sums[:, 0]
        gradients = torch.autograd.grad(losses.sum(), seen)
    finally:
        hook.remove()
    if not all(gradient.isfinite().all() for gradient in (losses, *gradients)):
        raise ValueError("loss or gradient is NaN or infinite")


@torch.no_grad()
def _padding_error(model: Any) -> tuple[float, float]:
    """Return by how much padding changes logits, in units of their spread, and what may be."""
    rows = _rows(_vocabulary(model), model.device)
    padded = model(**{name: rows[name] for name in FEATURES}, use_cache=False).logits[1, PADDING:]
    # Told of no positions: those that it was trained with.
    plain = model(input_ids=rows["input_ids"][1:, PADDING:], use_cache=False).logits[0]
    padded, plain = padded.float(), plain.float()
    return float((padded - plain).abs().max() / plain.std()), 1e-3 + 32 * _coarseness(model)


@torch.no_grad()
def _beam_error(model: Any) -> tuple[float, float]:
    """Return by how much scores of beams differ from those of plain passes, and what may be.

    A state that a family keeps outside of its cache does not follow the beams.
    """
    prompt = _rows(_vocabulary(model), model.device)["input_ids"][:1]
    found = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=ANSWER,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    sequences = found.sequences
    logits = model(input_ids=sequences, use_cache=False).logits[:, TOKENS - 1 : -1].float()
    answers = sequences[:, TOKENS:, None]
    plain = logits.log_softmax(-1).gather(2, answers).sum((1, 2))
    difference = float((found.sequences_scores - plain).abs().max())
    return difference, 1e-3 + 64 * _coarseness(model)


def _coarseness(model: Any) -> float:
    # 8 bits too, of each row apart, are as coarse as bf16.
    least = torch.finfo(torch.bfloat16).eps if getattr(model, "is_quantized", False) else 0.0
    return max(least, rounding_of(model))


def _vocabulary(model: Any) -> int:
    table: nn.Embedding = model.get_input_embeddings()
    return int(table.weight.shape[0])
