"""Raw data as people publish it, to the data folder.

`inputs` finds the files, `layouts` and `published` know how they are written, `files` opens them,
and `tables`, `sequences` and `rows` make of them two tables of one form. `pipeline` filters those
(`filters`, `text`) and keeps count; `folder` numbers users and items and writes; `card` describes
the result. Tables are Ibis expressions, run by DuckDB or Spark (`engines`).
"""

from lcrec.core.lazy import lazy_exports

_HOMES = {"READERS": "published", "refine": "pipeline", "write_data_folder": "folder"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_exports(__name__, _HOMES)
