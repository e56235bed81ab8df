"""Reinforcement learning behind fine-tuning: the model is rewarded for the items that it ranks.

`settings` holds what a run is told and reads it without torch. `rollouts` lets the model answer
each prompt with a group of real items, `rewards` judges them by item id, `update` makes a loss of
the rewards, with all answers of a prompt in one pass, and `trainer` repeats the three, validates
and keeps the best.
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {"ReinforceSettings": "settings", "Rewards": "rewards"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
