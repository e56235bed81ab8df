"""Runs recipes/reinforce.py where every validation counts as better than the one before.

So that a run ends with its last weights, of all its updates.
"""

import runpy

from trainings import let_every_validation_win

from lcrec.reinforce.trainer import ReinforceTrainer

ReinforceTrainer.ranking_metrics = let_every_validation_win(ReinforceTrainer.ranking_metrics)
runpy.run_path("recipes/reinforce.py", run_name="__main__")
