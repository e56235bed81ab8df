"""The same readers on Spark: what comes out is what DuckDB makes of the same files."""

import json
import shutil

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcrec.core.errors import InputError
from lcrec.prepare.engines import open_engine
from lcrec.prepare.published import READERS
from lcrec.prepare.tables import Options, load_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]
ROWS = [("ann", "007", 5), ("nan", "lamp, old", 3), ("null", 'a "b"', 4), ("é", "two\nlines", 9)]
GOOD = ROWS[:3]


@pytest.fixture(scope="module")
def spark():
    pytest.importorskip("pyspark")
    with open_engine("spark", memory_gb=1, spark_master="local[2]") as (con, _):
        con.raw_sql("SET spark.sql.shuffle.partitions = 2")  # of a handful of rows
        yield con


@pytest.fixture
def folder(tmp_path):
    """A folder with the same four rows, the last of no use, in three formats."""
    quoted = ['"' + item.replace('"', '""') + '"' for _, item, _ in ROWS]
    body = [f"{user},{item},{time}" for (user, _, time), item in zip(ROWS, quoted, strict=True)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *body, "short,row"]) + "\n")
    lines = [json.dumps({"user": u, "item": i, "time": t}) for u, i, t in ROWS]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"user": "half']))
    columns = dict(zip(("user", "item", "time"), zip(*ROWS, strict=True), strict=True))
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), tmp_path / "log.parquet")
    (tmp_path / "items.jsonl").write_text(
        '{"item": "007", "title": "Bond", "features": ["a", "b"], "description": "x"}\n'
        '{"item": "lamp, old", "title": "[1984]", "features": [], "description": null}\n'
    )
    return tmp_path


def rows(table, *columns):
    found = table.select(*columns).to_pyarrow().to_pylist()
    return sorted(found, key=lambda row: [str(value) for value in row.values()])


def test_spark_reads_what_duckdb_reads(spark, folder):
    options = Options(bad_rows="drop")
    items = folder / "items.jsonl"
    for name in ("log.csv", "log.jsonl", "log.parquet"):
        ours, theirs = (
            READERS["table"](con, folder / name, items, options)
            for con in (ibis.duckdb.connect(), spark)
        )
        columns = ("user", "item", "time")
        found = rows(ours.interactions, *columns)
        assert rows(theirs.interactions, *columns) == found, name
        assert {tuple(row.values()) for row in found} == set(GOOD), name
        assert theirs.lost == ours.lost, name
        assert theirs.lost["item id of two lines"] == 1
    texts = ("item", "title", "features", "description")
    assert rows(theirs.items, *texts) == rows(ours.items, *texts)
    # Rows have no position in Spark, but are told apart all the same.
    stored = load_table(theirs.interactions, folder / name)
    assert stored.row.nunique().execute() == len(GOOD)


def test_spark_reads_published_formats_with_their_units(spark, tmp_path):
    (tmp_path / "ratings.dat").write_text("1::307::5::1388620800\n")
    (tmp_path / "movies.dat").write_bytes("307::Café (1993)::Drama|War\n".encode("latin-1"))
    for con in (ibis.duckdb.connect(), spark):
        raw = READERS["movielens"](
            con, tmp_path / "ratings.dat", tmp_path / "movies.dat", Options()
        )
        (action,) = raw.interactions.select("user", "item", "time").to_pyarrow().to_pylist()
        assert (action["user"], action["item"]) == ("1", "307")
        assert action["time"].isoformat() == "2014-01-02T00:00:00+00:00"
        (item,) = raw.items.drop("row").to_pyarrow().to_pylist()
        assert item == {"item": "307", "title": "Café (1993)", "categories": "Drama, War"}


def test_what_needs_duckdb_says_so(spark, tmp_path):
    (tmp_path / "steam_reviews.json").write_text("{u'username': u'a', u'product_id': u'1'}\n")
    (tmp_path / "steam_games.json").write_text("{u'id': u'1', u'app_name': u'A'}\n")
    files = tmp_path / "steam_reviews.json", tmp_path / "steam_games.json"
    with pytest.raises(InputError, match=r"Python literals are read with --engine duckdb only"):
        READERS["steam"](spark, *files, Options(order="file"))
    (tmp_path / "log.csv").write_text("user,item\na,1\n")
    (tmp_path / "items.csv").write_text("item,title\n1,A\n")
    with pytest.raises(InputError, match=r"--order file: .*--engine duckdb only"):
        READERS["table"](spark, tmp_path / "log.csv", tmp_path / "items.csv", Options(order="file"))
    (tmp_path / "X.inter.json").write_text('{"0": [0]}')
    (tmp_path / "X.item.json").write_text('{"0": {"title": "A"}}')
    with pytest.raises(InputError, match=r"sequences are read with --engine duckdb only"):
        READERS["lcrec"](spark, tmp_path / "X.inter.json", tmp_path / "X.item.json", Options())


def test_parts_of_a_microsecond_in_text_and_in_parquet(spark, folder):
    counts = [1_388_620_800_000_000_000 + more for more in (123, 45)]
    written = [f"2014-01-02T02:00:00.{count % 10**9:09d}+02:00" for count in counts]
    columns = {"user": ["ann", "bob"], "item": ["007", "007"]}
    for name, times in (("text", written), ("moments", pa.array(counts, pa.timestamp("ns")))):
        pq.write_table(pa.table({**columns, "time": times}), folder / f"{name}.parquet")
    for con in (ibis.duckdb.connect(), spark):
        raw = READERS["table"](con, folder / "text.parquet", folder / "items.jsonl", Options())
        assert sorted(row["time"] for row in rows(raw.interactions, "time")) == counts[::-1]
    with pytest.raises(InputError, match=r"moments.parquet: Spark cannot read it .*NANOS.*duckdb"):
        READERS["table"](spark, folder / "moments.parquet", folder / "items.jsonl", Options())


def test_files_as_shops_have_them(spark, tmp_path):
    (tmp_path / "log.csv").write_bytes(b"user;item;time\r\nann;lamp;1\nbob;lamp;2\r\n")
    text = "item;title;price;class\nlamp;Café-Lampe;1.249,50;Wohnen > Licht\r\n"
    (tmp_path / "items.csv").write_text(text, newline="")
    options = Options(keep={"price": "price"}, category_separator=">", spill=tmp_path)
    found = []
    for con in (ibis.duckdb.connect(), spark):
        raw = READERS["table"](con, tmp_path / "log.csv", tmp_path / "items.csv", options)
        found.append(
            [
                rows(raw.interactions, "user", "item", "time"),
                rows(raw.items, "item", "title", "price", "categories"),
                raw.notes,
            ]
        )
    assert found[0] == found[1]
    assert found[1][1] == [
        {"item": "lamp", "title": "Café-Lampe", "price": "1.249,50", "categories": "Wohnen, Licht"}
    ]
    (tmp_path / "items.csv").write_bytes(text.encode("cp1252"))
    raw = READERS["table"](spark, tmp_path / "log.csv", tmp_path / "items.csv", options)
    assert "items.csv is not UTF-8: try --encoding cp1252" in raw.notes[-1]
