"""What `lcrec reinforce` would cost: parameters, prompts, memory and hours.

    lcrec plan reinforce --config recipes/reinforce.yaml --model MODEL --data DATA --tflops 989

Takes the settings of `lcrec reinforce`, reads what it reads and writes nothing. With --tflops the
model's weights are not needed. Without it a few steps are timed here, each of its parts by itself:
rollouts, the reference's log-probabilities, update and validation. How the figures are made is told
in lcrec/reinforce/cost.py.
"""

from dataclasses import dataclass

from lcrec.core.config import parse_config
from lcrec.modeling.recipe import HardwareSettings
from lcrec.reinforce.settings import ReinforceSettings, check_settings, load_inputs

PLAN = "python -m lcrec.plan reinforce"
EXAMPLE = "--config recipes/reinforce.yaml --model runs/shop/model --data data/shop"


@dataclass(frozen=True, kw_only=True)
class ReinforcePlanConfig(HardwareSettings, ReinforceSettings):
    """Settings of `python -m lcrec.plan reinforce`."""


def main(argv: list[str]) -> None:
    """Print the plan."""
    config = parse_config(ReinforcePlanConfig, argv, prog=PLAN, example=EXAMPLE)
    check_settings(config)
    inputs = load_inputs(config)

    from lcrec.reinforce.cost import plan

    print(plan(config, config, inputs))
