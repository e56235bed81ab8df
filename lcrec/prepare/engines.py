"""Where a plan of Ibis expressions is computed: DuckDB in this process, or Spark.

Both get a memory limit and a folder to put on disk what does not fit, which is removed at the end.
A plan meets an engine in few places only: `materialise` stores what an expression yields and so
cuts the chain of what it was made from (Spark would compute it anew for every use), `store` what
Python made; `release` lets such a table go; `write_sorted` hands the result over as Parquet files
whose names sort in the order of their rows. On a cluster the folder must be one that every machine
sees: name it in TMPDIR.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
import ibis
import pyarrow as pa
from ibis.backends import BaseBackend
from ibis.expr.types import Table
from ibis.util import gen_name

from lcrec.core.errors import InputError
from lcrec.core.processes import usable_cores


@contextlib.contextmanager
def open_engine(
    engine: Literal["duckdb", "spark"], *, memory_gb: float, spark_master: str = "local[*]"
) -> Iterator[tuple[BaseBackend, Path]]:
    """Open an engine and a folder for what it puts on disk; close and remove both in the end.

    Args:
        memory_gb: GB that DuckDB, or the Spark driver, may take.
        spark_master: where Spark runs, such as `local[*]` or `spark://host:7077`.

    Yields:
        The connection, and the folder.

    Raises:
        InputError: Spark or Java is not installed, or the master does not answer; DuckDB has too
            little memory or disk.
    """
    with tempfile.TemporaryDirectory(prefix="lcrec-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        opened = _duckdb(folder, memory_gb)
        if engine == "spark":
            opened = _spark(folder, memory_gb, spark_master)
        with opened as con:
            yield con, folder


@contextlib.contextmanager
def _duckdb(folder: Path, memory_gb: float) -> Iterator[BaseBackend]:
    # Tables lie in memory as they are, and those that do not fit are put into the folder; a
    # database on disk would compress and write each, which costs more than all that is computed.
    con = ibis.duckdb.connect(
        temp_directory=str(folder / "spill"), memory_limit=f"{memory_gb:.3f}GB"
    )
    if sys.stdout.isatty():
        con.raw_sql("SET enable_progress_bar = true")  # shown from two seconds on
    try:
        yield con
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        free = shutil.disk_usage(folder).free / 2**20
        raise InputError(
            f"DuckDB cannot go on ({str(error).splitlines()[0]}); what does not fit into "
            f"--memory-gb {memory_gb:g} it puts into {folder.parent}, where {free:,.0f} MB are "
            "free: give more memory, or name a larger disk's folder in TMPDIR"
        ) from None
    finally:
        con.disconnect()


@contextlib.contextmanager
def _spark(folder: Path, memory_gb: float, master: str) -> Iterator[BaseBackend]:
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError(
            "--engine spark needs pyspark, which is not installed: pip install 'lcrec[spark]'"
        ) from None
    if shutil.which("java") is None:
        raise InputError("--engine spark needs Java 17 or newer; there is no java in the PATH")
    settings = {
        "spark.driver.memory": f"{max(1, round(memory_gb * 1024))}m",
        "spark.local.dir": str(folder / "spill"),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.session.timeZone": "UTC",
        # Text that is no number is null, as where DuckDB tries to cast.
        "spark.sql.ansi.enabled": "false",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": str(sys.stdout.isatty()).lower(),
        "spark.log.level": "ERROR",
    }
    if master.startswith("local"):
        # Spark's 200 parts are for many machines; here each costs more than it holds.
        settings["spark.sql.shuffle.partitions"] = str(2 * usable_cores())
        # Functions in Python run in this very Python; a cluster's machines have their own.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder: Any = SparkSession.builder
    builder = builder.appName("lcrec").master(master)
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except Exception as error:  # of Java, by way of py4j, in as many kinds as there are reasons
        reason = str(error).strip().splitlines()
        raise InputError(
            f"--spark-master {master}: Spark did not start "
            f"({reason[0] if reason else type(error).__name__})"
        ) from None
    con = ibis.pyspark.connect(session)
    try:
        yield con
    finally:
        with contextlib.suppress(PySparkRuntimeError):  # where the session has died
            con.disconnect()
        session.stop()


def is_spark(table: Table) -> bool:
    """Tell whether a table lives in Spark."""
    return table.get_backend().name == "pyspark"


def materialise(table: Table) -> Table:
    """Compute a table expression once and store the result in its own engine.

    Not `Table.cache`: ibis 12 drops cached tables with a statement that sqlglot 30.18 and later
    write without the table's name, so that every run would end in a traceback.
    """
    return table.get_backend().create_table(gen_name("lcrec"), table)


def store(con: BaseBackend, table: pa.Table) -> Table:
    """Put a small Arrow table into an engine."""
    # By way of memtable, for the reason that `materialise` tells of.
    return con.create_table(gen_name("lcrec"), ibis.memtable(table))


def release(table: Table) -> None:
    """Let go of a table that `materialise` made; nothing may use it from then on."""
    table.get_backend().raw_sql(f"DROP TABLE {table.get_name()}")


def write_sorted(table: Table, keys: list[str], folder: Path, drop: Sequence[str] = ()) -> None:
    """Write a table's rows in the order of `keys` as Parquet files, whose names sort alike.

    Args:
        keys: columns that order the rows; those alike in all of them may come in any order.
        folder: made here.
        drop: keys that are not written.
    """
    ordered, con = table.order_by(keys).drop(*drop), table.get_backend()
    if is_spark(table):
        con.to_parquet_dir(ordered, folder)
        return
    folder.mkdir()
    # Small groups of rows: what reads them holds a group at a time.
    con.to_parquet(ordered, folder / "part-00000.parquet", row_group_size=122_880)
