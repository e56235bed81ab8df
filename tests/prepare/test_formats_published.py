"""Every published format, on small files in exactly its schema."""

import gzip
import json
import zipfile

import pyarrow as pa
import pytest

from lcrec.core.errors import InputError
from lcrec.prepare.inputs import FOLDERS, find_in, unpack
from lcrec.prepare.literals import convert_lines, evaluate
from lcrec.prepare.published import READERS
from lcrec.prepare.tables import Options

# Seconds of 2014-01-02 and 2014-01-03, as Amazon rounds them to days.
DAY, NEXT_DAY = 1388620800, 1388707200


@pytest.fixture
def read(con, tmp_path):
    """A function that reads the folder of files written by `write`, and returns plain rows."""

    def go(format, **options):
        actions, items = find_in(tmp_path, format)
        (tmp_path / "spill").mkdir(exist_ok=True)
        spill = tmp_path / "spill"
        actions, items = unpack(actions, spill), unpack(items, spill)
        raw = READERS[format](con, actions, items, Options(spill=spill, **options))
        both = rows(raw.interactions), rows(raw.items)
        for number, files in enumerate(((actions, ()), ((), items))):  # either alone is the same
            apart = tmp_path / f"spill-{number}"
            apart.mkdir(exist_ok=True)
            alone = READERS[format](con, *files, Options(spill=apart, **options))
            found = alone.items if number else alone.interactions
            assert rows(found) == both[number]
        return raw, *both

    return go


def rows(table):
    found = table.order_by("row").drop("row").to_pyarrow().to_pylist()
    for row in found:
        if "time" in row and not isinstance(row["time"], int | float):
            row["time"] = int(row["time"].timestamp())
    return found


@pytest.fixture
def write(tmp_path):
    """A function that writes one file, text or bytes, by the compression its name tells."""

    def go(name, content):
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            data = gzip.compress(data)
        elif name.endswith(".zst"):
            data = pa.compress(data, "zstd", asbytes=True)
        path.write_bytes(data)

    return go


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


REVIEW_2014 = json.loads(
    '{"reviewerID": "A2IBPI20UZIR0U", "asin": "0013714", "reviewerName": "cassandra", '
    '"helpful": [0, 0], "reviewText": "Not much to write about here", "overall": 5.0, '
    f'"summary": "good", "unixReviewTime": {DAY}, "reviewTime": "01 2, 2014"}}'
)
META_2014 = (
    "{'asin': '0013714', 'title': 'It\\'s a \"Tutu\"', 'price': 3.17, "
    "'related': {'also_bought': ['B00JHONN1S']}, 'salesRank': {'Toys & Games': 211836}, "
    "'brand': 'Coxlures', 'categories': [['Sports', 'Dance'], ['Toys']]}\n"
    "{'asin': 'B2', 'description': 'Smile \\ud83d\\ude00', 'categories': [['Toys']]}\n"
)
ITEMS_2014 = [
    {
        "item": "0013714", "title": 'It\'s a "Tutu"', "description": None, "brand": "Coxlures",
        "categories": "Sports, Dance, Toys",
    },
    {"item": "B2", "title": None, "description": "Smile 😀", "brand": None, "categories": "Toys"},
]  # fmt: skip


@pytest.mark.parametrize("name", ["reviews_Toys.json.gz", "reviews_Toys_5.json", "Toys_5.json.zst"])
def test_amazon_2014_reviews_with_python_literal_items(write, read, name):
    write(name, lines(REVIEW_2014, {**REVIEW_2014, "asin": "B2", "unixReviewTime": NEXT_DAY}))
    write("meta_Toys.json.gz", META_2014)
    raw, actions, items = read("amazon2014", reviews=True)
    first = {"user": "A2IBPI20UZIR0U", "item": "0013714", "time": DAY, "rating": "5.0"}
    said = {"review_title": "good", "review_text": "Not much to write about here"}
    assert actions == [first | said, first | said | {"item": "B2", "time": NEXT_DAY}]
    assert items == ITEMS_2014
    assert (raw.lost, raw.items_lost) == ({}, {})


def test_amazon_ratings_have_their_columns_in_another_order_in_each_year(write, read, tmp_path):
    write("meta_Toys.json.gz", META_2014)
    write("ratings_Toys.csv", f"U1,0013714,4.0,{DAY}\n")
    expected = [{"user": "U1", "item": "0013714", "time": DAY, "rating": "4.0"}]
    assert read("amazon2014")[1] == expected
    (tmp_path / "ratings_Toys.csv").unlink()
    write("Toys.csv", f"0013714,U1,4.0,{DAY}\n")
    assert read("amazon2018")[1] == expected


def test_amazon_2018(write, read):
    write(
        "Office_5.json.gz",
        '{"overall": 4.0, "verified": true, "reviewTime": "01 2, 2014", "reviewerID": "A1", '
        '"asin": "B1", "style": {"Size:": " Large"}, "reviewerName": "x", "reviewText": "ok", '
        f'"summary": "s", "unixReviewTime": {DAY}, "vote": "2"}}\n',
    )
    write(
        "meta_Office.json.gz",
        '{"asin": "B1", "title": "[1984] Lamp", "description": ["One.", "Two."], "brand": "Lux", '
        '"category": ["Office", "Lamps"], "feature": ["Bright", "Cheap"], '
        '"details": {"Weight: ": "2 kg"}}\n'
        '{"asin": "B2", "title": "Desk", "description": "plain", "category": [], "feature": []}\n',
    )
    _, actions, catalogue = read("amazon2018")
    assert actions == [{"user": "A1", "item": "B1", "time": DAY, "rating": "4.0"}]
    assert catalogue[0] == {
        "item": "B1", "title": "[1984] Lamp", "description": "One. Two.", "brand": "Lux",
        "categories": "Office, Lamps", "features": "Bright Cheap", "details": "Weight: : 2 kg",
    }  # fmt: skip
    assert catalogue[1]["description"] == "plain"
    assert catalogue[1]["categories"] == ""


META_2023 = (
    '{"main_category": "Office Products", "title": "Pen", "average_rating": 4.5, '
    '"rating_number": 12, "features": ["Blue", "Fine"], "description": ["Writes.", "Well."], '
    '"price": null, "images": [], "videos": [], "store": "PenCo", "bought_together": null, '
    '"categories": ["Office Products", "Pens"], "parent_asin": "P1", '
    '"details": {"Color": "Blue", "Best Sellers Rank": {"Pens": 3}}}\n'
)
REVIEW_2023 = (
    '{"rating": 5.0, "title": "Great", "text": "Writes", "images": [], "asin": "C1", '
    f'"parent_asin": "P1", "user_id": "AE1", "timestamp": {DAY}250, "helpful_vote": 0, '
    '"verified_purchase": true}\n'
)


def test_amazon_2023(write, read, tmp_path):
    write("Office_Products.jsonl.gz", REVIEW_2023)
    write("meta_Office_Products.jsonl.gz", META_2023)
    raw, actions, items = read("amazon2023", reviews=True)
    expected = {"user": "AE1", "item": "P1", "time": DAY}
    assert actions == [
        expected | {"rating": "5.0", "review_title": "Great", "review_text": "Writes"}
    ]
    assert raw.interactions.time.execute()[0].microsecond == 250_000
    assert items == [
        {
            "item": "P1",
            "title": "Pen",
            "description": "Writes. Well.",
            "brand": "PenCo",
            "categories": "Office Products, Pens",
            "features": "Blue Fine",
            "details": 'Color: Blue; Best Sellers Rank: {"Pens": 3}',
        }
    ]
    (tmp_path / "Office_Products.jsonl.gz").unlink()
    write("Office_Products.csv", f"user_id,parent_asin,rating,timestamp\nAE1,P1,4.0,{DAY}000\n")
    assert read("amazon2023")[1] == [expected | {"rating": "4.0"}]


def test_movielens_100k(write, read):
    write("u.data", f"196\t242\t3\t{DAY}\n")
    flags = "|".join("1" if place in (1, 5) else "0" for place in range(19))
    url = "http://us.imdb.com/M/title-exact?Kolya%20(1996)"
    write("u.item", f"242|Les Misérables (1996)|24-Jan-1997||{url}|{flags}\n".encode("latin-1"))
    _, actions, items = read("movielens")
    assert actions == [{"user": "196", "item": "242", "time": DAY, "rating": "3"}]
    expected = {"item": "242", "title": "Les Misérables (1996)", "categories": "Action, Comedy"}
    assert items == [expected]


def test_movielens_1m_from_its_archive(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/README", "words")
        archive.writestr("ml-1m/ratings.dat", f"1::1193::5::{DAY}\n2::661::3::{NEXT_DAY}\n")
        movies = '1193::One Flew "Over" (1975)::Drama\n661::Café: A, B (1996)::Action|Comedy\n'
        archive.writestr("ml-1m/movies.dat", movies.encode("latin-1"))
    _, actions, items = read("movielens")
    assert actions[1] == {"user": "2", "item": "661", "time": NEXT_DAY, "rating": "3"}
    assert items == [
        {"item": "1193", "title": 'One Flew "Over" (1975)', "categories": "Drama"},
        {"item": "661", "title": "Café: A, B (1996)", "categories": "Action, Comedy"},
    ]


def test_movielens_csv(write, read):
    write("ratings.csv", f"userId,movieId,rating,timestamp\n1,307,3.5,{DAY}\n")
    movies = '307,"Blue, Three (1993)",Drama|Mystery\n308,Red,(no genres listed)\n'
    write("movies.csv", "movieId,title,genres\n" + movies)
    write("tags.csv", "userId,movieId,tag,timestamp\n")
    _, actions, items = read("movielens")
    assert actions == [{"user": "1", "item": "307", "time": DAY, "rating": "3.5"}]
    assert items == [
        {"item": "307", "title": "Blue, Three (1993)", "categories": "Drama, Mystery"},
        {"item": "308", "title": "Red", "categories": None},
    ]


def test_steam(write, read):
    write(
        "steam_reviews.json.gz",
        "{u'username': u'nan', u'hours': 0.1, u'products': 41, u'product_id': u'007', "
        "u'page_order': 0, u'date': u'2014-01-02', u'text': u'It\\'s \\d', u'page': 1}\n",
    )
    write(
        "steam_games.json.gz",
        "{u'publisher': u'P', u'genres': [u'Action', u'Indie'], u'app_name': u'Lost', "
        "u'title': u'Lost', u'tags': [u'2D'], u'specs': [u'Single-player'], u'price': 4.99, "
        "u'id': u'007', u'developer': u'Koto'}\n",
    )
    _, actions, items = read("steam", reviews=True)
    assert actions == [{"user": "nan", "item": "007", "time": DAY, "review_text": "It's \\d"}]
    assert items == [
        {
            "item": "007", "title": "Lost", "brand": "Koto", "categories": "Action, Indie",
            "features": "2D, Single-player",
        }
    ]  # fmt: skip


def test_yelp(write, read):
    review = {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 5.0, "useful": 0}
    review |= {"text": "Nice", "date": "2014-01-02 00:00:00"}
    write("yelp_academic_dataset_review.json", lines(review))
    business = {"business_id": "b", "name": "Café", "city": "Affton", "state": "MO", "stars": 3.0}
    business |= {"attributes": {"WiFi": "u'free'"}, "categories": "Food, Coffee", "hours": None}
    write("yelp_academic_dataset_business.json", lines(business))
    _, actions, items = read("yelp", reviews=True)
    expected = {"user": "u", "item": "b", "time": DAY, "rating": "5.0", "review_text": "Nice"}
    assert actions == [expected]
    assert items == [
        {
            "item": "b", "title": "Café", "categories": "Food, Coffee",
            "details": "Affton, MO, WiFi: u'free'",
        }
    ]  # fmt: skip


BOOKS_HEADER = (
    '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";'
    '"Image-URL-M";"Image-URL-L"\n'
)
URLS = '"http://s";"http://m";"http://l"'


def test_book_crossing_has_no_times_and_escapes_its_quotes(write, read):
    ratings = '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n"2";"0001";"5"\n'
    write("BX-Book-Ratings.csv", ratings)
    books = BOOKS_HEADER + f'"034545104X";"The \\"J\\" &amp; Café";"A; B";"2002";"P";{URLS}\n'
    write("BX-Books.csv", books.encode("latin-1"))
    with pytest.raises(InputError, match=r"no time column .*--order file"):
        read("bookcrossing")
    _, actions, items = read("bookcrossing", order="file")
    assert [row["time"] for row in actions] == [0, 1]
    assert actions[0] == {"user": "276725", "item": "034545104X", "rating": "0", "time": 0}
    assert items == [
        {"item": "034545104X", "title": 'The "J" &amp; Café', "brand": "P", "details": "A; B, 2002"}
    ]


def test_book_crossing_lines_with_a_stray_escape_are_counted(write, read):
    write("BX-Book-Ratings.csv", '"User-ID";"ISBN";"Book-Rating"\n"1";"0001";"5"\n')
    broken = f'"078946697X";"Readers (Level 4)\\";Michael";"2000";"DK";{URLS}\n'
    write("BX-Books.csv", BOOKS_HEADER + broken + f'"0001";"T";"A";"1999";"P";{URLS}\n')
    with pytest.raises(InputError, match=r"BX-Books.csv, line 2: .*1 of 2 rows.*--bad-rows drop"):
        read("bookcrossing", order="file")
    raw, _, items = read("bookcrossing", order="file", bad_rows="drop")
    assert [row["item"] for row in items] == ["0001"]
    assert raw.items_lost == {"unreadable line": 1}


def test_hm_keeps_the_zeros_of_its_ids(write, read):
    header = "t_dat,customer_id,article_id,price,sales_channel_id\n"
    write("transactions_train.csv", header + "2014-01-02,0005af,0108775015,0.05,2\n")
    names = (
        "article_id,product_code,prod_name,product_type_name,product_group_name,"
        "graphical_appearance_name,colour_group_name,index_group_name,garment_group_name,"
        "detail_desc\n"
    )
    row = (
        '0108775015,0108775,Strap top,Vest top,Garment Upper,Solid,Black,Ladieswear,Basic,"A, b"\n'
    )
    write("articles.csv", names + row)
    _, actions, items = read("hm")
    assert actions == [{"user": "0005af", "item": "0108775015", "time": DAY}]
    assert items == [
        {
            "item": "0108775015",
            "title": "Strap top",
            "description": "A, b",
            "categories": "Ladieswear, Garment Upper, Vest top",
            "features": "Black, Solid, Basic",
        }
    ]


def test_columns_overrule_a_published_format(write, read):
    write("ratings.csv", f"userId,movieId,rating,timestamp\n1,307,3.5,{DAY}\n")
    write("movies.csv", "movieId,title,genres\n307,Blue,Drama\n")
    raw, _, items = read("movielens", columns={"title": "genres", "categories": ""})
    assert items == [{"item": "307", "title": "Drama"}]
    assert raw.item_columns == {"item": "movieId", "title": "genres"}


def test_every_format_is_read_and_found_and_told_from_others(write, read):
    write("ratings.csv", f"user,movie,rating,timestamp\n1,307,3.5,{DAY}\n")
    write("movies.csv", "movieId,title,genres\n307,Blue,Drama\n")
    with pytest.raises(InputError, match=r"ratings.csv: no user column .*among user, movie"):
        read("movielens")
    with pytest.raises(
        InputError, match=r"expected exactly one file of interactions \(\*.inter\), found none"
    ):
        read("recbole")
    assert FOLDERS.keys() | {"minionerec", "table"} == READERS.keys()


def test_what_runs_no_code_and_leaves_no_rows(write, read, tmp_path):
    write("reviews_T.json", lines(REVIEW_2014))
    wrong = "{'asin': __import__('os').getcwd()}\n{'asin': 'B9', 'title': 'Half\n\n[1]\n{'\n"
    write("meta_T.json", META_2014 + wrong)
    with pytest.raises(InputError, match=r"meta_T.json, data row 3: the line cannot be read"):
        read("amazon2014")
    raw, _, items = read("amazon2014", bad_rows="drop")
    assert items == ITEMS_2014
    assert raw.items_lost == {"unreadable line": 4}
    data = gzip.compress((META_2014 * 5000).encode())
    path = tmp_path / "meta.json.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"meta.json.gz: cannot be read to its end"):
        convert_lines([path], ["asin"], tmp_path / "x.parquet", evaluate=evaluate)
