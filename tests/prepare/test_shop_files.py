"""Files as shops have them: separators, encodings, categories, prices, and what is not used."""

import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcrec.core.artifacts import read_json
from lcrec.core.errors import InputError
from lcrec.data.folder import load_items
from lcrec.data.item_filters import ItemFilters
from lcrec.prepare.__main__ import main
from lcrec.prepare.numbers import plain_numbers
from lcrec.prepare.published import read_table
from lcrec.prepare.tables import Options, parse_keep

TITLES = {"lamp": "Café-Lampe", "desk": "Tisch, groß", "chair": "Stuhl"}
PRICES = {"lamp": "19,90 EUR", "desk": "1.249,00 EUR", "chair": ""}
KINDS = {"lamp": "Wohnen > Licht", "desk": "Wohnen>Tische", "chair": "Wohnen"}


@pytest.fixture(autouse=True)
def plain_page(monkeypatch):
    monkeypatch.setattr("lcrec.prepare.card.card_page", json.dumps)


@pytest.fixture
def shop(tmp_path):
    """A function that writes three users' orders and three items, and returns the command line."""

    def make(*flags, mark=";", encoding="utf-8", suffix=".csv"):
        orders = ["user,item,time,channel".replace(",", mark)]
        orders += [
            mark.join((user, item, str(time), "web"))
            for user in ("ann", "bob", "eve")
            for time, item in enumerate(TITLES)
        ]
        items = ["item,title,price,class,stock".replace(",", mark)]
        items += [
            mark.join((item, f'"{TITLES[item]}"', f'"{PRICES[item]}"', KINDS[item], "3"))
            for item in TITLES
        ]
        # Line ends of two systems in one file.
        for name, lines in (("orders", orders), ("items", items)):
            text = "\r\n".join(lines[:2]) + "".join("\n" + line for line in lines[2:])
            data = text.encode(encoding)
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        argv = ["--format", "table", "--interactions", str(tmp_path / f"orders{suffix}"), "--items"]
        argv += [str(tmp_path / f"items{suffix}"), "--output", str(tmp_path / "Toy")]
        return [*argv, "--min-user-items", "3", "--min-item-users", "1", *flags]

    return make


def fields(tmp_path):
    items = read_json(tmp_path / "Toy" / "Toy.item.json")
    return {entry["title"]: entry for entry in items.values()}


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("encoding", "suffix", "flags"),
    [
        ("utf-8", ".csv", []),
        ("utf-8-sig", ".csv.gz", []),
        ("utf-8", ".tsv", []),
        ("cp1252", ".csv", ["--encoding", "cp1252"]),
        ("latin-1", ".csv.gz", ["--encoding", "latin-1"]),
        ("utf-16", ".csv", ["--encoding", "utf-16"]),
    ],
)
def test_separators_are_found_and_encodings_obeyed(
    tmp_path, shop, capsys, mark, encoding, suffix, flags
):
    main(shop(*flags, mark=mark, encoding=encoding, suffix=suffix))
    assert sorted(fields(tmp_path)) == sorted(TITLES.values())
    out = capsys.readouterr().out
    is_usual = mark == ("\t" if suffix == ".tsv" else ",")
    assert (f": columns are separated by {mark!r}\n" not in out) == is_usual
    assert "not read of the interactions: channel\n" in out
    assert "not read of the items (see --columns and --keep): price stock\n" in out


def test_prices_and_categories_reach_the_filters(tmp_path, shop):
    flags = ["--keep", "price", "left=stock", "--category-separator", ">"]
    main(shop(*flags))
    entries = fields(tmp_path)
    assert [entries[title]["price"] for title in TITLES.values()] == ["19.9", "1249", ""]
    assert entries["Tisch, groß"] | {"price": ""} == {
        "title": "Tisch, groß", "description": "", "brand": "", "categories": "Wohnen, Tische",
        "price": "", "left": "3",
    }  # fmt: skip
    items = load_items(tmp_path / "Toy")

    def titles(**filters):
        return {items.title(item) for item in ItemFilters(items).select(filters).tolist()}

    assert titles(price={"max": 20}) == {"Café-Lampe"}
    assert titles(price={"min": 19.9, "max": 1249}, left={"min": 3}) == {
        "Café-Lampe", "Tisch, groß",
    }  # fmt: skip
    assert titles(categories=["tische"]) == {"Tisch, groß"}
    assert items.properties(0) in ("price: 19.9; left: 3", "price: 1249; left: 3", "left: 3")


@pytest.mark.parametrize(
    ("encoding", "flags", "message"),
    [
        (
            "cp1252",
            [],
            r"items.csv is not UTF-8: try --encoding cp1252, or latin-1$|; items.csv is",
        ),
        ("utf-16", [], r"orders.csv: cannot be read as utf-8 text .*try --encoding utf-16"),
        ("utf-16-le", [], r"orders.csv: cannot be read as utf-8 text .*try --encoding utf-16"),
        ("cp1252", ["--encoding", "utf-16"], r"--encoding utf-16: .*is not written so"),
        ("cp1252", ["--encoding", "utf-8"], r"--encoding utf-8: .*items.csv.* try --encoding cp"),
        ("utf-8", ["--encoding", "cp1523"], r"--encoding cp1523: Python knows no such encoding"),
        ("utf-8", ["--encoding", "base64"], r"--encoding base64: Python knows no such encoding"),
        ("utf-8", ["--keep", "prise"], r"--keep: .*items.csv has no column 'prise'; did you mean"),
        ("utf-8", ["--keep", "Title=price"], r"field 'Title' means something of its own here"),
        ("utf-8", ["--keep", "price", "Price=stock"], r"field 'Price' is given twice"),
        ("utf-8", ["--keep", "=price"], r"expected COLUMN or FIELD=COLUMN, found '=price'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(tmp_path, shop, encoding, flags, message):
    with pytest.raises(InputError, match=message):
        main(shop(*flags, encoding=encoding))
    assert not (tmp_path / "Toy").exists()


def test_json_lines_are_decoded_and_parquet_stays(tmp_path):
    lines = [{"user": user, "item": f"é{n}", "time": n} for user in "abc" for n in range(3)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    (tmp_path / "log.jsonl").write_bytes(text.encode("cp1252"))
    items = {"item": ["é0", "é1", "é2"], "title": ["A", "B", "C"], "price": [1.5, math.nan, 1e7]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    argv = ["--format", "table", "--output", str(tmp_path / "Toy"), "--keep", "price"]
    argv += [
        "--min-user-items",
        "3",
        "--min-item-users",
        "1",
        "--items",
        f"{tmp_path}/items.parquet",
    ]
    with pytest.raises(InputError, match=r"log.jsonl is not UTF-8: try --encoding cp1252"):
        main([*argv, "--interactions", str(tmp_path / "log.jsonl")])
    with pytest.raises(InputError, match="--encoding: Parquet holds its texts in UTF-8"):
        main([*argv, "--interactions", f"{tmp_path}/items.parquet", "--encoding", "cp1252"])
    main([*argv, "--interactions", str(tmp_path / "log.jsonl"), "--encoding", "cp1252"])
    prices = {title: entry["price"] for title, entry in fields(tmp_path).items()}
    assert prices == {"A": "1.5", "B": "", "C": "10000000"}


def test_text_among_numbers_stays_text_and_is_told(tmp_path, shop, capsys):
    (argv := shop("--keep", "price"))
    path = tmp_path / "items.csv"
    path.write_text(path.read_text().replace("19,90 EUR", "auf Anfrage"))
    main(argv)
    assert "price is kept as text, for not every value is a number: 'auf Anfrage'" in (
        capsys.readouterr().out
    )
    assert fields(tmp_path)["Tisch, groß"]["price"] == "1.249,00 EUR"


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (["12,50 EUR", "3 EUR", ""], ["12.5", "3", ""]),
        (["$ 1,299.00", "$ 5"], ["1299", "5"]),
        (["1.299,00 €", "12,5 €"], ["1299", "12.5"]),
        (["1.299"], ["1.299"]),  # of both notations that with a point
        (["1,299"], ["1299"]),
        (["0,50", "0"], ["0.5", "0"]),
        (["12.0", "1e7", "nan", "-0", ".5"], ["12", "10000000", "", "0", "0.5"]),
        (["1'299.50", "2"], ["1299.5", "2"]),
        (["4" * 40, "-0.00"], ["4" * 40, "0"]),  # no digit is lost
    ],
)
def test_a_column_of_numbers_has_one_notation(written, plain):
    assert plain_numbers(written) == (plain, "")


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        (["3", "on request"], "on request"),
        (["3 EUR", "4 USD"], "4 USD"),
        (["12.50", "1,299.00", "3,5"], "3,5"),
        (["2024-05-31"], "2024-05-31"),
        (["1,2,3"], "1,2,3"),
        (["1e999999999"], "1e999999999"),
        (["120", "007"], "007"),  # a code, of which no digit is lost
        (["00", "5"], "00"),
    ],
)
def test_what_is_no_column_of_numbers_stays(written, wrong):
    assert plain_numbers(written) == (written, wrong)


def test_a_tie_of_separators_is_the_usual_one(con, tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time\nann,lamp,1\n")
    (tmp_path / "items.csv").write_text('item,"title; and, more"\nlamp,Lamp\n')
    raw = read_table(
        con,
        tmp_path / "log.csv",
        tmp_path / "items.csv",
        Options(columns={"title": "title; and, more"}, keep=parse_keep([])),
    )
    assert raw.items.title.to_pyarrow().to_pylist() == ["Lamp"]


SECONDS = (1714557600, 1714557601, 1714557602)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("times", "message"),
    [
        (SECONDS, None),
        ((5, *SECONDS[1:]), None),  # a placeholder is no other unit
        ((20240501183000, 20240502183000, 20240503183000), None),  # nor are dates in digits alone
        ((*SECONDS[:2], 1714557600500), r"1714557600 \(seconds\) and 1714557600500 \(millisec"),
        ((1714557600000, 1714557600500, 1714557600000001), r"\(milliseconds\) and .*\(microsec"),
    ],
)
def test_times_have_one_unit(con, tmp_path, suffix, times, message):
    log, items = tmp_path / f"log{suffix}", tmp_path / "items.csv"
    rows = [{"user": "ann", "item": "lamp", "time": time} for time in times]
    if suffix == ".csv":
        log.write_text(
            "".join(f"{','.join(map(str, r))}\n" for r in (rows[0], *map(dict.values, rows)))
        )
    elif suffix == ".jsonl":
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), log)
    items.write_text("item,title\nlamp,Lamp\n")
    if message is None:
        assert read_table(con, log, items, Options()).interactions.count().execute() == 3
        return
    with pytest.raises(InputError, match=rf"log\{suffix}: its times have several units.*{message}"):
        read_table(con, log, items, Options())
    ordered = read_table(con, log, items, Options(order="file"))
    assert ordered.interactions.count().execute() == 3


@pytest.mark.parametrize("factor", [1, 1000])
def test_a_number_in_the_future_is_no_time(con, tmp_path, factor):
    log, items = tmp_path / "log.jsonl", tmp_path / "items.csv"
    times = [1714557600 * factor, 2556057600 * factor, 17145576001 * factor]  # 2024, 2050, 2513
    log.write_text("".join(f'{{"user":"ann","item":"a","time":{time}}}\n' for time in times))
    items.write_text("item,title\na,A\n")
    with pytest.raises(InputError, match=rf"is '?{times[1]}'?: time in the future.*2 of 3 rows"):
        read_table(con, log, items, Options())
    read = read_table(con, log, items, Options(bad_rows="drop"))
    assert read.lost == {"time in the future": 2}
    assert read.interactions.time.to_pyarrow().to_pylist() == times[:1]


def test_rows_left_out_are_told_and_all_of_them_are_an_error(tmp_path, shop, capsys):
    argv = shop("--bad-rows", "drop")
    orders = tmp_path / "orders.csv"
    sound = orders.read_text()
    orders.write_text(sound + "\n;lamp;4;web\n;desk;4;web\nann;lamp;yesterday;web\n")
    main(argv)
    out = capsys.readouterr().out
    assert "rows of the interactions left out: 2 (no user id)\n" in out
    assert "rows of the interactions left out: 1 (time that is no time)\n" in out
    orders.write_text("user;item;time\n;lamp;4\nann;lamp;31.05.2024 18:30\n")
    unusable = r"no row can be used \(no user id: 1, time that is no time: 1\); .*2024-05-31T18"
    with pytest.raises(InputError, match=unusable):
        main(argv)
