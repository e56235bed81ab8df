"""DuckDB and Spark: opened, closed, and of one mind."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcrec.core.artifacts import PROVENANCE
from lcrec.core.errors import InputError
from lcrec.prepare.engines import is_spark, materialise, open_engine, release, store, write_sorted

HAS_SPARK = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None


def test_tables_come_and_go_and_so_does_the_folder():
    with open_engine("duckdb", memory_gb=1) as (con, folder):
        table = store(con, pa.table({"n": [3, 1, 2]}))
        assert not is_spark(table)
        more = materialise(table.mutate(square=table.n**2))
        write_sorted(more, ["n"], folder / "sorted")
        assert pq.read_table(folder / "sorted")["square"].to_pylist() == [1, 4, 9]
        release(more)
        with pytest.raises(duckdb.CatalogException):
            more.count().execute()
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), open_engine("duckdb", memory_gb=1) as (_, folder):
        raise KeyboardInterrupt
    assert not folder.exists()
    with (
        pytest.raises(InputError, match=r"DuckDB cannot go on \(.*--memory-gb 1 it puts into"),
        open_engine("duckdb", memory_gb=1),
    ):
        raise duckdb.OutOfMemoryException("no room for a block")


def test_spark_without_java(monkeypatch):
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("needs the extra spark")
    monkeypatch.setenv("PATH", "")
    with (
        pytest.raises(InputError, match="--engine spark needs Java 17"),
        open_engine("spark", memory_gb=1),
    ):
        pass


def test_spark_without_pyspark(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with (
        pytest.raises(InputError, match=r"pyspark, which is not installed: pip install 'lcrec\["),
        open_engine("spark", memory_gb=1),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPARK, reason="needs Java 17 and the extra spark")
def test_duckdb_and_spark_make_the_same_data_set(tmp_path):
    rng = random.Random(0)
    rows = [
        (f"u{rng.randrange(60)}", f"i{int(rng.random() ** 2 * 80)}", rng.randrange(50) + 1.4e9)
        for _ in range(1500)
    ]
    (tmp_path / "log").mkdir()
    for part in range(3):  # partitioned, as large data comes
        names = ("user", "item", "time")
        columns = {name: [row[at] for row in rows[part::3]] for at, name in enumerate(names)}
        columns["review_text"] = [rng.choice(["good", "<b>bad</b>", ""]) for _ in rows[part::3]]
        pq.write_table(pa.table(columns), tmp_path / "log" / f"part-{part}.parquet")
    ids = [f"i{item}" for item in range(75)]  # five items have no row
    items = {"item": ids, "title": [f"Item {item}" if item != "i7" else "<br>" for item in ids]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    made = {}
    for engine in ("duckdb", "spark"):
        flags = ["--format", "table", "--interactions", tmp_path / "log", "--name", "Toy"]
        flags += ["--items", tmp_path / "items.parquet", "--output", tmp_path / engine]
        flags += ["--split", "cold-items", "--max-user-items", "15", "--output-format", "parquet"]
        flags += ["--engine", engine]
        # A process of its own: a JVM cannot be given another memory later on.
        command = [sys.executable, "-m", "lcrec.prepare", *map(str, flags)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        files = [path for path in (tmp_path / engine).rglob("*") if path.is_file()]
        made[engine] = {
            path.relative_to(tmp_path / engine).as_posix(): path.read_bytes() for path in files
        }
        made[engine].pop(PROVENANCE)
    assert made["duckdb"] == made["spark"]
    assert json.loads(made["spark"]["data_card.json"])["interactions"] > 500
