"""What other software writes into tables: line ends, nameless columns, NaN, lists, broken text."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcrec.core.errors import InputError
from lcrec.prepare import files
from lcrec.prepare.__main__ import main
from lcrec.prepare.published import read_recbole, read_table
from lcrec.prepare.sequences import read_lcrec
from lcrec.prepare.tables import Options

LOG = "user,item,time\nann,lamp,1\nbob,desk,2\n"
ITEMS = "item,title\nlamp,Lamp\ndesk,Desk\n"
PAIRS = [("ann", "lamp"), ("bob", "desk")]


@pytest.fixture
def read(con, tmp_path):
    """Write two files, read them as tables and return interactions and items as lists of dicts."""

    def run(log=LOG, items=ITEMS, names=("log.csv", "items.csv"), reader=read_table, **options):
        paths = [tmp_path / name for name in names]
        for path, content in zip(paths, (log, items), strict=True):
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        spill = tmp_path / "spill"
        spill.mkdir(exist_ok=True)
        raw = reader(con, *paths, Options(spill=spill, **options))
        tables = (raw.interactions, raw.items)
        return [table.order_by("row").to_pyarrow().to_pylist() for table in tables]

    return run


def pairs(rows):
    return [(row["user"], row["item"]) for row in rows]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize(
    "log",
    [
        "user,item,time\r\nann,lamp,1\nbob,desk,2\n",
        "user,item,time\nann,lamp,1\r\nbob,desk,2",
        "user,item,time\nann,lamp,1\nbob,desk,2\r\n",
        "user,item,time\rann,lamp,1\rbob,desk,2\r",
    ],
    ids=["windows then unix", "unix then windows", "windows at the end", "old mac"],
)
def test_lines_may_end_in_more_than_one_way(read, log, name):
    actions, _ = read(log, names=(name, "items.csv"))
    assert pairs(actions) == PAIRS
    assert [str(row["time"]) for row in actions] == ["1", "2"]


def test_a_lone_carriage_return_is_white_space_of_its_field(read):
    _, items = read(
        "user_id:token\titem_id:token\ttimestamp:float\nann\tlamp\t1\n",
        "item_id:token\ttitle:token_seq\nlamp\tA\r lamp\ndesk\tDesk\n",
        ("x.inter", "x.item"),
        read_recbole,
    )
    assert [(row["item"], row["title"]) for row in items] == [("lamp", "A  lamp"), ("desk", "Desk")]


@pytest.mark.parametrize(
    "log",
    [
        ",user,item,time\n0,ann,lamp,1\n1,bob,desk,2\n",
        "user,item,time,,\nann,lamp,1,,\nbob,desk,2,,\n",
        "user,,item,,time\nann,x,lamp,y,1\nbob,x,desk,y,2\n",
    ],
    ids=["pandas' index", "commas at the end", "in between"],
)
def test_a_column_that_nobody_asks_for_needs_no_name(read, log):
    actions, _ = read(log)
    assert pairs(actions) == PAIRS


def test_a_needed_column_without_a_name_is_missed_by_its_role(read):
    with pytest.raises(InputError, match="no user column was found among item, time"):
        read(",item,time\nann,lamp,1\n")


def test_a_byte_order_mark_is_no_part_of_the_first_row(read):
    log = "\ufeff" + lines({"user": "ann", "item": "lamp", "time": 1})
    actions, items = read(
        log, "\ufeff" + lines({"item": "lamp", "title": "Lamp"}), ("log.jsonl", "items.jsonl")
    )
    assert pairs(actions) == PAIRS[:1]
    assert items[0]["title"] == "Lamp"


@pytest.mark.parametrize("missing", ["NaN", "null", "Infinity", "-Infinity"])
def test_what_is_missing_is_missing_however_it_is_written(read, missing):
    items = f'{{"item": "lamp", "title": "Lamp", "brand": {missing}}}\n'
    items += f'{{"item": "desk", "title": {missing}, "description": "Of oak"}}\n'
    log = lines({"user": "ann", "item": "lamp", "time": 1})
    _, rows = read(log, items, ("log.jsonl", "items.jsonl"))
    assert [(row["title"], row["brand"]) for row in rows] == [("Lamp", None), (None, None)]


def test_nan_is_no_id_and_the_word_is_a_text(read):
    log = '{"user": NaN, "item": "lamp", "time": 1}\n{"user": "ann", "item": "lamp", "time": 2}\n'
    items = lines({"item": "lamp", "title": "Lamp"})
    with pytest.raises(InputError, match=r"the user id \(column 'user'\) is empty"):
        read(log, items, ("log.jsonl", "items.jsonl"))
    actions, _ = read(log, items, ("log.jsonl", "items.jsonl"), bad_rows="drop")
    assert pairs(actions) == PAIRS[:1]
    items = lines({"item": "lamp", "title": "NaN"}, {"item": "desk", "title": "A, NaN, B"})
    log = lines({"user": "ann", "item": "lamp", "time": 1})
    _, rows = read(log, items, ("log.jsonl", "items.jsonl"))
    assert [row["title"] for row in rows] == ["NaN", "A, NaN, B"]


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\uDE00\\uD83D"])
def test_half_a_surrogate_pair_goes_and_its_row_stays(read, half):
    items = f'{{"item": "lamp", "title": "A {half} lamp"}}\n'
    items += '{"item": "desk", "title": "Smile \\ud83d\\ude00"}\n'
    log = lines({"user": "ann", "item": "lamp", "time": 1})
    _, rows = read(log, items, ("log.jsonl", "items.jsonl"))
    assert [row["title"] for row in rows] == ["A  lamp", "Smile \U0001f600"]


def test_numbers_stay_as_they_are_written_beside_a_nan(read):
    log = '{"user": 12345678901234567890, "item": 1.50, "time": 1}\n'
    log += '{"user": "x", "item": "y", "time": 2, "rating": NaN}\n'
    items = '{"item": "y", "title": "Y"}\n'
    actions, _ = read(log, items, ("log.jsonl", "items.jsonl"))
    assert pairs(actions) == [("12345678901234567890", "1.50"), ("x", "y")]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("['A fine lamp.', 'It is blue.']", "A fine lamp. It is blue."),
        ('["A fine lamp.", null]', "A fine lamp."),
        ("['A fine lamp.', None]", "A fine lamp."),
        ("['A fine lamp.', nan]", "A fine lamp."),
        ("[['A'], ['B', ['C']]]", "A B C"),
        ('["Size", 5]', "Size 5"),
        ("[{'id': 28, 'name': 'Action'}, {'id': 7}]", "id: 28; name: Action id: 7"),
        ("[1984]", "[1984]"),
        ("[sic] and so on", "[sic] and so on"),
        ("[]", ""),
    ],
)
def test_lists_in_text_cells_are_joined(read, cell, text):
    quoted = '"' + cell.replace('"', '""') + '"'
    _, items = read(items=f"item,title,description\nlamp,Lamp,{quoted}\ndesk,Desk,Oak\n")
    assert items[0]["description"] == text


def test_lists_and_what_is_missing_in_json(read, con, tmp_path):
    items = lines(
        {"item": "lamp", "title": "Lamp", "description": ["Nice", None, "One"]},
        {"item": "desk", "title": "Desk", "description": ["Nice", 5], "categories": [["A"], ["B"]]},
    )
    log = lines({"user": "ann", "item": "lamp", "time": 1})
    _, rows = read(log, items, ("log.jsonl", "items.jsonl"))
    assert [row["description"] for row in rows] == ["Nice One", "Nice 5"]
    assert rows[1]["categories"] == "A, B"
    inter, item = tmp_path / "x.inter.json", tmp_path / "x.item.json"
    inter.write_text('{"0": [0, 1, 2]}')
    item.write_text(
        '{"0": {"title": "A", "brand": NaN, "categories": ["B", null, ["C"]]},'
        ' "1": {"title": NaN, "description": "D"},'
        ' "2": {"title": "E", "brand": {"name": "F", "own": [1]}}}'
    )
    rows = read_lcrec(con, inter, item, Options()).items.order_by("row").to_pyarrow().to_pylist()
    assert [(row["title"], row["brand"], row["categories"]) for row in rows] == [
        ("A", None, "B C"), (None, None, None), ("E", "name: F; own: 1", None),
    ]  # fmt: skip


def test_a_raw_id_may_hold_what_python_takes_for_a_line_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    users = [f"u{mark}{n}" for mark in "\v\f\x1c\x1d\x1e\x85\u2028\u2029" for n in range(3)]
    log = [{"user": user, "item": f"i{item}", "time": item} for user in users for item in range(3)]
    (tmp_path / "log.jsonl").write_text(lines(*log))
    items = [{"item": f"i{item}", "title": f"Item {item}"} for item in range(3)]
    (tmp_path / "items.jsonl").write_text(lines(*items))
    words = "--format table --interactions log.jsonl --items items.jsonl --output first"
    cores = ["--min-user-items", "3", "--min-item-users", "1"]
    main([*words.split(), *cores])
    words = "--format lcrec --interactions first/first.inter.json --items first/first.item.json"
    main([*words.split(), "--output", "second", *cores])
    ids = [(tmp_path / name / f"{name}.user2id").read_bytes() for name in ("first", "second")]
    assert ids[0] == ids[1]
    assert sorted(line.rpartition("\t")[0] for line in ids[0].decode().split("\n")[:-1]) == users


@pytest.mark.parametrize("zone", ["UTC", "+02:00", None])
@pytest.mark.parametrize("nanos", [(123, 45), (123_000, 45_000)])
@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.jsonl"])
def test_parts_of_a_microsecond_are_kept_where_a_time_has_any(con, tmp_path, zone, nanos, name):
    counts = [1_500_000_000_000_000_000 + more for more in nanos]
    times = pa.array(counts).cast(pa.timestamp("ns", zone))
    log = pa.table({"user": ["ann", "bob"], "item": ["lamp", "desk"], "time": times})
    if name == "log.parquet":
        pq.write_table(log, tmp_path / name)
    else:  # as pandas writes them, "2017-07-14 04:40:00.000000123+02:00"
        frame = log.to_pandas()
        frame["time"] = frame["time"].astype(str)
        lines = {"orient": "records", "lines": True}
        frame.to_csv(tmp_path / name) if name == "log.csv" else frame.to_json(
            tmp_path / name, **lines
        )
    titles = pa.table({"item": ["lamp", "desk"], "title": ["Lamp", "Desk"]})
    pq.write_table(titles, tmp_path / "items.parquet")
    raw = read_table(con, tmp_path / name, tmp_path / "items.parquet", Options())
    found = raw.interactions.order_by("row").time.to_pyarrow()
    if nanos[0] < 1_000:
        assert found.to_pylist() == counts
    else:
        assert found.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist() == [
            count // 1_000 for count in counts
        ]


@pytest.mark.parametrize(
    ("name", "rows", "before"),
    [
        ("log.csv.gz", ["user,item,time"], 0),
        ("log.csv.gz", ["user,item,time", "ann,lamp,1"], 30),
        ("log.jsonl.gz", [json.dumps({"user": "ann", "item": "lamp", "time": 1})], 1500),
        ("log.json", [repr({"user": "ann", "item": "lamp", "time": 1})], 1500),  # Python's notation
    ],
)
def test_a_line_without_an_end_is_refused_by_its_number(read, monkeypatch, name, rows, before):
    """As a few megabytes of gz may hold it; here the bound is low instead."""
    monkeypatch.setattr(files, "LONGEST_LINE", 2**20)
    above = [*rows[:-1], *rows[-1:] * before]
    log = "\n".join([*above, "x" * (6 * 2**20), *rows[-1:] * 3])
    with pytest.raises(InputError, match=rf"{name}, line {len(above) + 1}: is longer than 1 MB"):
        read(log, names=(name, "items.csv"), bad_rows="drop")
