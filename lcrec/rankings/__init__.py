"""Ranked items on disk, and everything that is measured on them or derived from them.

Whatever recommends writes `predictions.jsonl` (`predictions`): users, targets, ranked items. From
there on the method does not matter: `metrics` measures
them, `evaluation` measures whole files side by side, `comparison` tests one against another
and `comparison_page` shows it, `overlap` counts what two find together and apart, and `fusion`
joins several rankings into one.
"""
