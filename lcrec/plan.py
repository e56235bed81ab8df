"""Stage: a training recipe -> what the fine-tune would cost: parameters, tokens, memory, hours.

    lcrec plan --config recipes/lora_7b.yaml --data DATA --index INDEX --base BASE --tflops 989

Takes the settings of `lcrec finetune`, reads what it reads and writes nothing. With --tflops the
base model's weights are not needed: a folder with its config.json and tokenizer is enough. Without
it a few steps are timed here. How the figures are made is told in lcrec/modeling/cost.py.
What `lcrec reinforce` would cost: lcrec plan reinforce --help
"""

import importlib
from dataclasses import dataclass

from lcrec.core.config import parse_config
from lcrec.core.errors import run_stage
from lcrec.modeling.recipe import HardwareSettings, TrainingSettings, check_settings, load_inputs

STAGE = "python -m lcrec.plan"
COMMANDS = {"reinforce": "lcrec.reinforce.plan"}
EXAMPLE = (
    "--config recipes/lora_7b.yaml --data data/shop --index runs/shop/index --base MODEL "
    "--tflops 989"
)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(HardwareSettings, TrainingSettings):
    """Settings of `python -m lcrec.plan`."""


def main(argv: list[str]) -> None:
    """Print the plan."""
    if argv and argv[0] in COMMANDS:
        importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
        return
    config = parse_config(PlanConfig, argv, prog=STAGE, example=EXAMPLE)
    check_settings(config)
    inputs = load_inputs(config)

    from transformers import set_seed

    from lcrec.modeling.cost import measure_activations, plan
    from lcrec.modeling.finetuning import (
        buffer_tokens,
        cpu_buffer_tokens,
        device_bytes,
        draw_training_rows,
        load_model,
        load_model_shape,
        make_collator,
    )

    set_seed(config.seed)
    without_weights = load_model_shape(config, inputs)
    activations = measure_activations(without_weights.model, config.precision)
    planned = without_weights if config.tflops else load_model(config, inputs)
    rows = draw_training_rows(config, inputs, planned, config.devices)
    capacity = None
    if planned.packs:
        capacity = buffer_tokens(config, planned, rows, activations, device_bytes())
    elif rows.shared is not None:
        capacity = cpu_buffer_tokens(config, rows)
    collate = make_collator(planned, rows, capacity)
    print(plan(planned.model, rows.train, config, config, collate, activations, rows.shared))


if __name__ == "__main__":
    run_stage(main)
