"""Methods to compare with, behind one contract; `lcrec baselines NAME` runs one.

A method is a subclass of `Baseline` in `methods/`, its settings in `settings.py` and a line in
`METHODS` (`base`). `runs/` fits and ranks with one, `commands/` do more than run one.
"""
