"""Stage: a training recipe -> what the fine-tune would cost: parameters, tokens, memory, hours.

    lcrec plan --config recipes/lora_7b.yaml --data DATA --index INDEX --base BASE --tflops 989

Takes the settings of `lcrec finetune`, reads what it reads and writes nothing. With --tflops the
base model's weights are not needed: a folder with its config.json and tokenizer is enough. Without
it a few steps are timed here. How the figures are made is told in lcrec/modeling/cost.py.
"""

from dataclasses import dataclass

from lcrec.core.config import option, parse_config
from lcrec.core.device import pick_device
from lcrec.core.errors import run_stage
from lcrec.modeling.recipe import TrainingSettings, check_settings, load_inputs

STAGE = "python -m lcrec.plan"
EXAMPLE = (
    "--config recipes/lora_7b.yaml --data data/shop --index runs/shop/index --base MODEL "
    "--tflops 989"
)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainingSettings):
    """Settings of `python -m lcrec.plan`."""

    tflops: float | None = option(
        "the device's peak in TFLOPS; the model's weights are then not needed (default: time a few "
        "steps here)",
        None,
        minimum=0.001,
    )
    mfu: float = option("with --tflops: the share of the peak that is reached", 0.4, minimum=0.001)
    devices: int = option("how many devices will share the work", 1, minimum=1)


def main(argv: list[str]) -> None:
    """Print the plan."""
    config = parse_config(PlanConfig, argv, description=__doc__ or "", prog=STAGE, example=EXAMPLE)
    check_settings(config)
    inputs = load_inputs(config)

    from transformers import set_seed

    from lcrec.modeling.cost import Hardware, measure_activations, plan
    from lcrec.modeling.finetuning import (
        cpu_buffer_tokens,
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
    hardware = Hardware(
        devices=config.devices, device=pick_device(), tflops=config.tflops, mfu=config.mfu
    )
    # Steps are timed as a CPU takes them: elsewhere a buffer may be as large as memory allows.
    capacity = None if rows.shared is None else cpu_buffer_tokens(config, rows)
    collate = make_collator(planned, rows, capacity)
    print(plan(planned.model, rows.train, config, hardware, collate, activations, rows.shared))


if __name__ == "__main__":
    run_stage(main)
