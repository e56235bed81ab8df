"""The readers: column names found, overruled or missed, and files that cannot be read."""

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcrec.cleaning import load_raw
from lcrec.errors import InputError
from lcrec.formats import find_recbole, parse_columns, read_recbole, read_table

LOG = "user,item,time\nann,lamp,1\n"
ITEMS = "item,title\nlamp,Lamp\n"
ATOMIC_LOG = "user_id:token\titem_id:token\ttimestamp:float\nann\tlamp\t1\n"
ATOMIC_ITEMS = 'item_id:token\tmovie_title:token_seq\tclass:token_seq\nlamp\t"Lux" Lamp\t"A B\n'


@pytest.fixture(scope="module")
def con():
    return ibis.duckdb.connect()


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


def item_rows(raw):
    rows = load_raw(raw).items.order_by("row").to_pyarrow().to_pylist()
    return [{name: value for name, value in row.items() if name != "row"} for row in rows]


def test_parse_columns():
    assert parse_columns("user=a b, item = c=d ,brand=") == {
        "user": "a b",
        "item": "c=d",
        "brand": "",
    }
    assert parse_columns("") == {}
    with pytest.raises(InputError, match="expected role=column, found 'user'"):
        parse_columns("user")
    with pytest.raises(InputError, match="role 'user' is given twice"):
        parse_columns("user=user,user=item")
    with pytest.raises(InputError, match="unknown role 'titel'; did you mean 'title'"):
        parse_columns("titel=x")


def test_the_item_column_may_be_called_otherwise_in_each_file(con, files):
    paths = files("user,sku,time\nann,lamp,1\n", "number,title\nlamp,Lamp\n")
    raw = read_table(con, *paths, {"item": "sku", "id": "number"})
    assert item_rows(raw) == [{"item": "lamp", "title": "Lamp"}]
    with pytest.raises(
        InputError, match=r"items.csv has no column 'numbr' .*did you mean 'number'"
    ):
        read_table(con, *paths, {"item": "sku", "id": "numbr"})


def test_recbole_columns_are_guessed_and_quotes_are_text(con, files):
    raw = read_recbole(con, *atomic(files), {})
    assert raw.interaction_columns == {"user": "user_id", "item": "item_id", "time": "timestamp"}
    assert raw.item_columns == {"item": "item_id", "title": "movie_title", "categories": "class"}
    assert item_rows(raw) == [{"item": "lamp", "title": '"Lux" Lamp', "categories": '"A B'}]


def test_guesses_can_be_overruled(con, files):
    columns = {"title": "class", "description": "movie_title", "categories": ""}
    (row,) = item_rows(read_recbole(con, *atomic(files), columns))
    assert row == {"item": "lamp", "title": '"A B', "description": '"Lux" Lamp'}


@pytest.mark.parametrize("name", ["log.csv", "log.tsv"])
def test_plain_text_files_are_read_as_they_are_written_elsewhere(con, files, name):
    mark = "," if name == "log.csv" else "\t"
    # A byte order mark, Windows line ends, quoted marks and line ends, names that differ in case.
    log = '\ufeffUser,user_id,Item,time\r\n"a;b",x,"the ""lamp""",1\r\n'.replace(",", mark)
    items = '\ufeffItem,Title\r\n"the ""lamp""","two\r\nlines, é"\r\n'
    raw = read_table(con, *files(log, items, log_name=name), {"user": "User"})
    assert item_rows(raw) == [{"item": 'the "lamp"', "title": "two\r\nlines, é"}]
    (row,) = load_raw(raw).interactions.to_pyarrow().to_pylist()
    assert row == {"user": "a;b", "item": 'the "lamp"', "time": 1.0, "row": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.txt", ITEMS, r"expected a .csv, .tsv or .parquet file"),
        ("items.parquet", ITEMS, r"cannot be read as Parquet"),
        ("items.csv", "", r"the file is empty"),
        ("items.csv", "\nlamp,Lamp\n", r"begins with an empty line"),
        ("items.csv", "item,title\n", r"there are no rows below the header"),
        ("items.csv", "item,title\nlamp,Café\n".encode("latin-1"), r"not utf-8|UTF-8"),
        ("items.csv", 'item,title\nlamp,"Lamp\n', r"Line: 2"),
    ],
)
def test_unreadable_files_are_named(con, files, name, content, message):
    paths = files(items=content, items_name=name)
    with pytest.raises(InputError, match=message) as caught:
        load_raw(read_table(con, *paths, {}))
    assert str(paths[1]) in str(caught.value)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("user,thing,time\nann,lamp,1\n", r"log.csv: no item column .*--columns item="),
        ("user,item,moment\nann,lamp,1\n", r"log.csv: no time column .*--columns time="),
        ("user,user,time\nann,lamp,1\n", r"log.csv, line 1: column 'user' stands there twice"),
        (LOG + "bob,lamp,noon\n", r"data row 2: the time .* is 'noon'; every row needs a number"),
        (LOG + "bob,lamp,\n", r"data row 2: the time .* is empty"),
        (LOG + "bob,lamp,inf\n", r"data row 2: the time .* is 'inf'"),
        (LOG + "bob,lamp,2024-05-31\n", r"data row 2: the time .* is '2024-05-31'"),
        (LOG + ",lamp,2\n", r"data row 2: the user id .* is empty"),
        (LOG + "bob,,2\n", r"data row 2: the item id .* is empty"),
        (LOG + '"b\tb",lamp,2\n', r"data row 2: the user id .* holds a tab"),
        (LOG + "bob,lamp\n", r"log.csv: cannot be read .*Line: 3.*Found: 2"),
        (LOG + 'bob,"lamp" x,1\n', r"log.csv: cannot be read .*Line: 3.*quote"),
    ],
)
def test_wrong_interactions_are_named(con, files, log, message):
    with pytest.raises(InputError, match=message):
        load_raw(read_table(con, *files(log=log), {}))


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
        read_recbole(con, *atomic(files, header + "\nlamp\tLamp\tA\n"), {})


def test_recbole_folders_must_hold_one_data_set(tmp_path, files):
    with pytest.raises(InputError, match=r"exactly one \*.inter file, found none"):
        find_recbole(tmp_path)
    inter, item = atomic(files)
    assert find_recbole(tmp_path) == (inter, item)
    item.unlink()
    with pytest.raises(InputError, match=r"toy.item: no such file"):
        find_recbole(tmp_path)
    (tmp_path / "other.inter").touch()
    with pytest.raises(InputError, match=r"found other.inter, toy.inter"):
        find_recbole(tmp_path)
    with pytest.raises(InputError, match=r"--input .*: no such folder"):
        find_recbole(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [1.0], r"'user' \(user\) holds float64; ids must be text or whole numbers"),
        ("item", [[1]], r"'item' \(item\) holds array<int64>"),
        ("time", [True], r"'time' \(time\) holds boolean; times must be numbers or dates"),
        ("time", [float("nan")], r"data row 1: the time .* is nan"),
        ("time", pa.array([None], pa.int64()), r"data row 1: the time .* is empty"),
        ("user", pa.array([None], pa.string()), r"data row 1: the user id .* is empty"),
    ],
)
def test_parquet_columns_must_hold_what_they_stand_for(
    con, files, tmp_path, column, values, message
):
    _, items = files()
    columns = {"user": ["ann"], "item": ["lamp"], "time": [1], column: values}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=message):
        load_raw(read_table(con, tmp_path / "log.parquet", items, {}))


def test_parquet_texts_must_be_text_or_lists(con, files, tmp_path):
    log, _ = files()
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item": ["lamp"], "title": [{"en": "Lamp"}]}), path)
    with pytest.raises(InputError, match=r"'title' \(title\) holds struct.*texts must be text"):
        read_table(con, log, path, {})
