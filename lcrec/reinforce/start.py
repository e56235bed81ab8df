"""The model that a run starts from: with its weights, or its shape alone for planning."""

from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from lcrec.core.device import pick_device
from lcrec.core.errors import InputError
from lcrec.core.pretrained import ADAPTER_CONFIG, load_tokenizer, position_limit, rows_needed
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest, RequestEncoder
from lcrec.generate.search import supports_shared_prefix
from lcrec.modeling.base import DTYPES, base_model, keep_gradients
from lcrec.modeling.checkpoint import REMEDY, Checkpoint, find_base, load_checkpoint
from lcrec.modeling.cost import load_shape
from lcrec.modeling.item_rows import compute_rows_apart, weight_of
from lcrec.modeling.probe import takes_trees
from lcrec.reinforce.settings import ReinforceInputs, ReinforceSettings


def load_start(settings: ReinforceSettings) -> Checkpoint:
    """Load the checkpoint to start from, the weights that its fine-tune trained marked as trained.

    Raises:
        InputError: weights are missing or damaged, or its family cannot share a prompt.
    """
    checkpoint = load_checkpoint(settings.model, _stored_dtype(settings), base=settings.base)
    model = checkpoint.model
    keep_gradients(model)
    if not (takes_trees(base_model(model)) and supports_shared_prefix(model)):
        raise InputError(
            f"--model {settings.model}: models of the family {model.config.model_type} cannot "
            "share a prompt between answers, so they cannot be reinforced; take another family"
        )
    mark_trained(model)
    return checkpoint


def _stored_dtype(settings: ReinforceSettings) -> torch.dtype:
    # Frozen weights need no more than the precision of the arithmetic; trained ones do.
    is_adapter = (settings.model / ADAPTER_CONFIG).exists()
    return DTYPES[settings.precision] if is_adapter else torch.float32


def load_start_shape(settings: ReinforceSettings) -> PreTrainedModel | PeftModel:
    """Return the model of `load_start` without weights, on the meta device.

    Raises:
        InputError: its configuration, or that of its base model, cannot be read.
    """
    folder = settings.model
    if not (folder / ADAPTER_CONFIG).exists():
        return load_shape(str(folder))[0]
    base = settings.base or find_base(folder)
    model: Any = load_shape(base)[0]
    model.to(_stored_dtype(settings))
    size = rows_needed(load_tokenizer("--model", folder, remedy=REMEDY))
    if len(weight_of(model.get_input_embeddings())) < size:
        model.resize_token_embeddings(size, mean_resizing=False)
    adapter = PeftConfig.from_pretrained(str(folder))
    adapter.inference_mode = False
    adapted = get_peft_model(model, adapter)
    compute_rows_apart(adapted)
    return adapted


def mark_trained(model: PreTrainedModel | PeftModel) -> None:
    """Let gradients reach an adapter with its rows, or all of a whole model."""
    if not isinstance(model, PeftModel):
        model.requires_grad_(True)
        return
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    own = {value.data_ptr() for value in state.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.data_ptr() in own)


def encode_histories(
    settings: ReinforceSettings,
    inputs: ReinforceInputs,
    histories: list[np.ndarray],
    model: PreTrainedModel | PeftModel,
) -> list[list[int]]:
    """Return the prompt of each history, and of the longest of all cases, as token ids.

    `model` is that of `load_start_shape`: no weights are read.

    Raises:
        InputError: a prompt is longer than the model's context.
    """
    encoder = RequestEncoder(
        load_tokenizer("--model", settings.model, remedy=REMEDY),
        inputs.index,
        inputs.prompts,
        max_history=inputs.max_history,
        max_text_words=60,  # of a query, which none has
        context=position_limit(model),
        nearby=inputs.nearby,
    )
    asked = [*histories, inputs.cases.longest_history()]
    return encoder.encode_requests(list(map(RankingRequest, asked)))


def make_recommender(inputs: ReinforceInputs, checkpoint: Checkpoint) -> Recommender:
    """Return the recommender of the starting model, on this process's device."""
    if checkpoint.facts.quantize == "none":  # a quantised base lies there already
        nn.Module.to(checkpoint.model, pick_device())
    return Recommender(
        checkpoint.model,
        checkpoint.tokenizer,
        checkpoint.index,
        checkpoint.prompts,
        max_history=inputs.max_history,
        nearby=inputs.nearby,
    )
