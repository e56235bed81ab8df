"""lcrec: turn an open language model into a recommender.

Every stage is a command, `python -m lcrec` lists them in order. Importing this package loads
neither torch nor transformers.
"""

from lcrec.core.version import __version__ as __version__
