"""Raw data as people publish it, to the data folder.

`inputs` finds the files, `layouts` and `published` know how they are written, `files` opens them,
and `tables`, `sequences` and `rows` make of them two tables of one form. `pipeline` filters those
(`filters`, `text`) and keeps count; `folder` numbers users and items and writes; `card` describes
the result. Tables are Ibis expressions, run by DuckDB or Spark (`engines`).
"""
