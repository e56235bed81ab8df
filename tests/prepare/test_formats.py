"""The readers: column names found, overruled or missed, and rows that cannot be used."""

import gzip
import json

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.prepare.published import read_recbole, read_table
from lcrec.prepare.tables import Options, load_table, parse_columns

LOG = "user,item,time\nann,lamp,1\n"
ITEMS = "item,title\nlamp,Lamp\n"
ATOMIC_LOG = "user_id:token\titem_id:token\ttimestamp:float\nann\tlamp\t1\n"
ATOMIC_ITEMS = 'item_id:token\tmovie_title:token_seq\tclass:token_seq\nlamp\t"Lux" Lamp\t"A B\n'
DROP = Options(bad_rows="drop")


@pytest.fixture
def files(tmp_path):
    """A function that writes an interactions and an items file and returns their paths."""

    def make(log=LOG, items=ITEMS, log_name="log.csv", items_name="items.csv"):
        for name, content in ((log_name, log), (items_name, items)):
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(data)
        return tmp_path / log_name, tmp_path / items_name

    return make


def atomic(files, items=ATOMIC_ITEMS):
    return files(ATOMIC_LOG, items, "toy.inter", "toy.item")


def columns(**given):
    return Options(columns=given)


def rows(table):
    found = table.order_by("row").to_pyarrow().to_pylist()
    return [{name: value for name, value in row.items() if name != "row"} for row in found]


def test_parse_columns():
    assert parse_columns("user=a b, item = c=d ,brand=") == {
        "user": "a b", "item": "c=d", "brand": "",
    }  # fmt: skip
    assert parse_columns("") == {}
    with pytest.raises(InputError, match="expected role=column, found 'user'"):
        parse_columns("user")
    with pytest.raises(InputError, match="role 'user' is given twice"):
        parse_columns("user=user,user=item")
    with pytest.raises(InputError, match="unknown role 'titel'; did you mean 'title'"):
        parse_columns("titel=x")


def test_the_item_column_is_sought_in_either_file(con, files):
    paths = files("user,sku,time\nann,lamp,1\n", "number,title\nlamp,Lamp\n")
    raw = read_table(con, *paths, columns(item="sku", id="number"))
    assert rows(raw.items) == [{"item": "lamp", "title": "Lamp"}]
    with pytest.raises(
        InputError, match=r"items.csv has no column 'numbr' .*did you mean 'number'"
    ):
        read_table(con, *paths, columns(item="sku", id="numbr"))
    # "item" is a usual name too, but here it is the thing's kind.
    paths = files("user,sku,time\nann,7,1\n", "item,sku,title\nlight,7,Lamp\n")
    (row,) = rows(read_table(con, *paths, Options()).items)
    assert row["item"] == "7"


def test_recbole_columns_are_guessed_or_given_and_quotes_are_text(con, files):
    raw = read_recbole(con, *atomic(files), Options())
    assert raw.interaction_columns == {"user": "user_id", "item": "item_id", "time": "timestamp"}
    assert raw.item_columns == {"item": "item_id", "title": "movie_title", "categories": "class"}
    assert rows(raw.items) == [{"item": "lamp", "title": '"Lux" Lamp', "categories": '"A, B'}]
    # A space is a category's own where commas separate them, or the type says that there is one.
    for kind, categories in (("token_seq", "A B, C"), ("token", "A B")):
        line = f"item_id:token\tname:token\tclass:{kind}\nlamp\tLamp\t{categories}\n"
        (row,) = rows(read_recbole(con, *atomic(files, line), columns(title="name")).items)
        assert row["categories"] == categories
    given = columns(title="class", description="movie_title", categories="")
    (row,) = rows(read_recbole(con, *atomic(files), given).items)
    assert row == {"item": "lamp", "title": '"A B', "description": '"Lux" Lamp'}


@pytest.mark.parametrize("name", ["log.csv", "log.tsv"])
def test_plain_text_files_are_read_as_they_are_written_elsewhere(con, files, name):
    mark = "," if name == "log.csv" else "\t"
    # A byte order mark, Windows line ends, quoted marks and line ends, names that differ in case.
    log = '\ufeffUser,user_id,Item,time\r\n"a;b",x,"the ""lamp""",1\r\n'.replace(",", mark)
    items = '\ufeffItem,Title\r\n"the ""lamp""","two\r\nlines, é"\r\n'
    raw = read_table(con, *files(log, items, log_name=name), columns(user="User"))
    assert rows(raw.items) == [{"item": 'the "lamp"', "title": "two\r\nlines, é"}]
    (row,) = raw.interactions.to_pyarrow().to_pylist()
    assert row == {"user": "a;b", "item": 'the "lamp"', "time": 1, "row": 0}


AWKWARD = [
    "007", "nan", "NaN", "null", "NULL", "NA", "None", "1e5", "12345678901234567890123", " x",
]  # fmt: skip


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet", "toy.inter"])
def test_ids_stay_as_they_are_written(con, files, tmp_path, name):
    if name == "log.csv":
        body = "".join(f"{one},{one},1\n" for one in AWKWARD)
        paths = files("user,item,time\n" + body, "item,title\n007,NA\n")
    elif name == "log.jsonl":
        body = "".join(json.dumps({"user": one, "item": one, "time": 1}) + "\n" for one in AWKWARD)
        paths = files(body, '{"item":"007","title":"NA"}\n', name, "items.jsonl")
    elif name == "toy.inter":
        body = "".join(f"{one}\t{one}\t1\n" for one in AWKWARD)
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        paths = files(header + body, "item_id:token\ttitle:token\n007\tNA\n", name, "toy.item")
    else:
        table = pa.table({"user": AWKWARD, "item": AWKWARD, "time": [1] * len(AWKWARD)})
        pq.write_table(table, tmp_path / name)
        paths = (tmp_path / name, files("", "item,title\n007,NA\n")[1])
    read = read_recbole if name == "toy.inter" else read_table
    raw = read(con, *paths, Options())
    assert [row["user"] for row in rows(raw.interactions)] == AWKWARD
    assert [row["item"] for row in rows(raw.interactions)] == AWKWARD
    assert rows(raw.items) == [{"item": "007", "title": "NA"}]


def test_numbers_in_json_are_ids_to_the_last_digit(con, files):
    log = '{"user":12345678901234567890123,"item":9007199254740993,"time":1}\n'
    paths = files(log, '{"item":9007199254740993,"title":"x"}\n', "log.jsonl", "items.jsonl")
    (row,) = rows(read_table(con, *paths, Options()).interactions)
    assert (row["user"], row["item"]) == ("12345678901234567890123", "9007199254740993")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.txt", ITEMS, r"expected a .csv, .tsv, .jsonl, .json or .parquet file"),
        ("items.parquet", ITEMS, r"cannot be read as Parquet"),
        ("items.csv", "", r"the file is empty"),
        ("items.csv", "\nlamp,Lamp\n", r"begins with an empty line"),
        ("items.csv", "item,title\n", r"there are no rows below the header"),
        ("items.csv", "item,title\nlamp,Café\n".encode("latin-1"), r"line 2: .*not utf-8"),
        ("items.csv", 'item,title\nlamp,"Lamp\n', r"line 2: .*quote"),
        ("items.csv.gz", b"item,title\n", r"cannot be read .*is it whole"),
        ("items.jsonl", "lamp\n", r"hold no JSON object"),
        ("items.jsonl", "", r"the file is empty"),
        ("items.jsonl", '{"item":"a","Item":"b","title":"c"}\n', r"two differ in case only"),
    ],
)
def test_unreadable_files_are_named(con, files, name, content, message):
    paths = files(items=content, items_name=name)
    options = columns(id="item", description="Item") if "Item" in str(content) else Options()
    with pytest.raises(InputError, match=message) as caught:
        read_table(con, *paths, options)
    assert str(paths[1]) in str(caught.value)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("user,thing,time\nann,lamp,1\n", r"log.csv: no item column .*--columns item="),
        ("user,item,moment\nann,lamp,1\n", r"log.csv: no time column .*--columns time="),
        ("user,user,time\nann,lamp,1\n", r"log.csv, line 1: column 'user' stands there twice"),
    ],
)
def test_wrong_headers_are_named(con, files, log, message):
    with pytest.raises(InputError, match=message):
        read_table(con, *files(log=log), Options())


# What stands below two good rows, the reason it is counted under, and what the message says.
BAD = [
    ("bob,lamp,noon", "time that is no time", r"data row 3: the time .*is 'noon'.*every row needs"),
    ("bob,lamp,", "time that is no time", r"data row 3: the time .* is empty"),
    ("bob,lamp,inf", "time that is no time", r"data row 3: the time .* is 'inf'"),
    ("bob,lamp,nan", "time that is no time", r"data row 3: the time .* is 'nan'"),
    ("bob,lamp,2024-05-31", "time that is no time", r"data row 3: the time .* is '2024-05-31'"),
    ("bob,lamp,-5", "time before 1970 or below zero", r"the time .* is '-5': time before 1970"),
    ("bob,lamp,9223372036854775808", "time beyond 64 bits", r"is '9223372036854775808': time"),
    (",lamp,2", "no user id", r"data row 3: the user id \(column 'user'\) is empty"),
    ("bob,,2", "no item id", r"data row 3: the item id .* is empty"),
    (
        '"b\tb",lamp,2',
        "user id of two lines",
        r"the user id .* holds a tab or a line break: 'b\\tb",
    ),
    ("bob,lamp", "unreadable line", r"log.csv, line 4: .*Found: 2"),
    ("bob,lamp,3,4", "unreadable line", r"log.csv, line 4: .*Found: 4"),
    ('bob,"lamp" x,1', "unreadable line", r"log.csv, line 4: .*quote"),
    ('bob,"lamp,1', "unreadable line", r"log.csv, line 4: .*quote"),
    (b"caf\xe9,lamp,1", "unreadable line", r"log.csv, line 4: .*not utf-8"),
]


@pytest.mark.parametrize(("line", "why", "message"), BAD)
def test_rows_that_cannot_be_used_are_named_or_counted(con, files, line, why, message):
    good = LOG + "eve,lamp,2\n"
    paths = files(log=good.encode() + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(InputError, match=rf"{message}.*1 of 3 rows cannot be used \({why}: 1\)"):
        read_table(con, *paths, Options())
    raw = read_table(con, *paths, DROP)
    assert [row["user"] for row in rows(raw.interactions)] == ["ann", "eve"]
    assert raw.lost == {why: 1}


JSON_GOOD = '{"user":"ann","item":"lamp","time":1}\n'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"user":"bob","item":"lamp","ti', "unreadable line"),
        ('{"user":bob}', "unreadable line"),
        ("[1, 2]", "unreadable line"),
        ("{}", "unreadable line"),
        (b'{"user":"caf\xe9","item":"lamp","time":1}', "unreadable line"),
        ('{"user":null,"item":"lamp","time":1}', "no user id"),
        ('{"user":"","item":"lamp","time":1}', "no user id"),
        ('{"item":"lamp","time":1}', "no user id"),
        ('{"user":"bob","item":"lamp","time":null}', "time that is no time"),
        ('{"user":"bob","item":"lamp","time":{"a":1}}', "time that is no time"),
        ('{"user":"bob","item":"lamp","time":1e300}', "time beyond 64 bits"),
    ],
)
def test_json_lines_that_cannot_be_used_are_named_or_counted(con, files, line, why):
    data = JSON_GOOD.encode() + (line if isinstance(line, bytes) else line.encode())
    paths = files(log=data, log_name="log.jsonl")
    with pytest.raises(InputError, match=rf"log.jsonl, data row 2: .*\({why}: 1\)"):
        read_table(con, *paths, Options())
    raw = read_table(con, *paths, DROP)
    assert rows(raw.interactions) == [{"user": "ann", "item": "lamp", "time": 1}]
    assert raw.lost == {why: 1}


def test_future_dates_are_no_times_and_a_truncated_gz_is_an_error(con, files):
    log = "user,item,time\nann,lamp,2024-05-31T18:30:00Z\nbob,lamp,2624-05-31\n"
    raw = read_table(con, *files(log=log), DROP)
    assert raw.lost == {"time in the future": 1}
    (row,) = rows(raw.interactions)
    assert row["time"].isoformat() == "2024-05-31T18:30:00+00:00"
    data = gzip.compress(("user,item,time\n" + "ann,lamp,1\n" * 100_000).encode())
    for name in ("log.csv.gz", "log.jsonl.gz"):
        if name == "log.jsonl.gz":
            data = gzip.compress((JSON_GOOD * 100_000).encode())
        paths = files(log=data[: len(data) // 2], log_name=name)
        with pytest.raises(InputError, match=rf"{name}: cannot be read .*"):
            read_table(con, *paths, DROP)


def test_several_files_are_one_in_the_order_they_are_given(con, files, tmp_path):
    _, items = files()
    first, second = tmp_path / "b.csv", tmp_path / "a.csv.gz"
    first.write_text("user,item,time\nann,lamp,3\nann,lamp,noon\n")
    second.write_bytes(gzip.compress(b"user,item,time\nbob,lamp,1\nbob,lamp,2\n,lamp,2\n"))
    raw = read_table(con, [first, second], items, DROP)
    found = [(row["user"], row["time"]) for row in rows(raw.interactions)]
    assert found == [("ann", 3), ("bob", 1), ("bob", 2)]
    assert raw.lost == {"time that is no time": 1, "no user id": 1}
    message = r"b.csv, data row 2: .*noon.*a.csv.gz, data row 3: the user id .*2 of 5 rows"
    with pytest.raises(InputError, match=message):
        read_table(con, [first, second], items, Options())
    second.write_bytes(gzip.compress(b"user,thing,time\n"))
    with pytest.raises(InputError, match=r"a.csv.gz, line 1: the columns are not those of"):
        read_table(con, [first, second], items, Options())
    with pytest.raises(InputError, match=r"files of different kinds \(delimited, json\)"):
        read_table(con, [first, tmp_path / "c.jsonl"], items, Options())


def test_the_order_of_the_file_as_time_and_the_first_rows_alone(con, files):
    paths = files(log="user,item\nann,lamp\nbob,lamp\n")
    with pytest.raises(InputError, match=r"no time column .*--order file"):
        read_table(con, *paths, Options())
    raw = read_table(con, *paths, Options(order="file"))
    assert [row["time"] for row in rows(raw.interactions)] == [0, 1]
    paths = files(log=LOG + "eve,lamp,2\nbob,lamp,noon\n")
    assert len(rows(read_table(con, *paths, Options(limit=2)).interactions)) == 2


def test_an_id_may_repeat_and_a_stored_table_is_not_stored_again(con, files):
    raw = read_table(con, *files(items=ITEMS + "lamp,Other\n"), Options())
    assert [row["title"] for row in rows(raw.items)] == ["Lamp", "Other"]
    raw = read_table(con, *files(), Options())
    assert load_table(raw.interactions, raw.interactions_path) is raw.interactions


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("item_id:token\tmovie_title:token_sep\tclass:token", r"did you mean 'token_seq'"),
        ("item_id:token\tmovie_title\tclass:token", r"field 'movie_title' has no type"),
        ("item_id:token\tlabel:token\tclass:token", r"no title or description column"),
        ("label:token\tmovie_title:token\tclass:token", r"no item column .*--columns id="),
    ],
)
def test_wrong_recbole_headers_are_named(con, files, header, message):
    with pytest.raises(InputError, match=message):
        read_recbole(con, *atomic(files, header + "\nlamp\tLamp\tA\n"), Options())


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [1.0], r"'user' \(user\) holds float64; ids must be text or whole numbers"),
        ("item", [[1]], r"'item' \(item\) holds array<int64>"),
        ("time", [True], r"'time' \(time\) holds boolean; times must be numbers or dates"),
        ("time", [float("nan")], r"data row 1: the time .* is nan"),
        ("time", pa.array([None], pa.int64()), r"data row 1: the time .* is empty"),
        ("time", pa.array([-1], pa.int64()), r"data row 1: the time .* is -1: time before 1970"),
        ("time", pa.array([2**64 - 1], pa.uint64()), r"time beyond 64 bits"),
        ("user", pa.array([None], pa.string()), r"data row 1: the user id .* is empty"),
    ],
)
def test_parquet_columns_must_hold_what_they_stand_for(
    con, files, tmp_path, column, values, message
):
    _, items = files()
    table = pa.table({"user": ["ann"], "item": ["lamp"], "time": [1], column: values})
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(InputError, match=message):
        read_table(con, tmp_path / "log.parquet", items, Options())


def test_parquet_texts_must_be_text_or_lists(con, files, tmp_path):
    log, _ = files()
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item": ["lamp"], "title": [{"en": "Lamp"}]}), path)
    with pytest.raises(InputError, match=r"'title' \(title\) holds struct.*texts must be text"):
        read_table(con, log, path, Options())


# Any text may be an id but for tabs and line breaks; DuckDB ends a value at a zero byte.
IDS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\u2028\u2029\x85"),
    min_size=1,
    max_size=8,
)


STEPS = st.integers(0, 10**7)  # too small to count from 1970


@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.tuples(IDS, IDS, STEPS), min_size=1, max_size=6))
def test_whatever_is_written_comes_back(tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp("any")
    log, items = folder / "log.jsonl", folder / "items.csv"
    records = [dict(zip(("user", "item", "time"), row, strict=True)) for row in ids]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    items.write_text(ITEMS)
    raw = read_table(ibis.duckdb.connect(), log, items, Options())
    assert rows(raw.interactions) == records
