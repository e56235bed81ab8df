"""lcrec: turn an open language model into a recommender.

Every stage is a command, `python -m lcrec` lists them in order. Importing this package loads
neither torch nor transformers.
"""

__version__ = "0.1.0"
