"""Reads raw data as people publish it: one reader for each format, two tables out.

Reads the published files of Amazon (2014, 2018, 2023), MovieLens, Steam, Yelp, Book-Crossing, H&M,
RecBole, LC-Rec and MiniOneRec, and any CSV, TSV, JSON lines or Parquet. Returns `RawTables`
(`lcrec.prepare.tables`), Ibis tables on DuckDB or Spark. `lcrec.prepare.inputs` finds the files,
and `lcrec.prepare.rows` removes what cannot be used, and counts it.

The table of published sets says how the files of each are called and written. File names are
patterns without a compression's suffix, most specific first; a file by another name that is given
for a role is used for the last pattern with its suffix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from ibis.backends import BaseBackend

from lcrec.core.errors import InputError
from lcrec.prepare.files import Delimited, bare_name
from lcrec.prepare.layouts import Layout, Paths, as_paths, read_layouts
from lcrec.prepare.sequences import read_lcrec, read_minionerec
from lcrec.prepare.tables import Options, RawTables


@dataclass(frozen=True)
class Published:
    """A data set's files: (pattern, layout) of the interactions and of the items."""

    interactions: tuple[tuple[str, Layout], ...]
    items: tuple[tuple[str, Layout], ...]


# https://jmcauley.ucsd.edu/data/amazon (2014) and https://nijianmo.github.io/amazon (2018) share
# the fields of reviews; the ratings without a header have user and item in different order.
AMAZON_REVIEWS = Layout(
    {
        "user": "reviewerID",
        "item": "asin",
        "time": "unixReviewTime",
        "rating": "overall",
        "review_title": "summary",
        "review_text": "reviewText",
    },
    unit="s",
)
AMAZON_TEXTS = {"item": "asin", "title": "title", "description": "description", "brand": "brand"}
RATING_ROLES = {"user": "user", "item": "item", "time": "timestamp", "rating": "rating"}


def _ratings(*names: str) -> Layout:
    return Layout(RATING_ROLES, Delimited(names=names), delimited=True, unit="s")


AMAZON_2014_ITEMS = Layout({**AMAZON_TEXTS, "categories": "categories"})
AMAZON_2018_ITEMS = Layout(
    {**AMAZON_TEXTS, "categories": "category", "features": "feature", "details": "details"}
)
# https://amazon-reviews-2023.github.io: raw reviews and items, and the rating-only CSV files.
AMAZON_2023_USERS = {
    "user": "user_id",
    "item": "parent_asin",
    "time": "timestamp",
    "rating": "rating",
}
AMAZON_2023_REVIEWS = Layout(
    {**AMAZON_2023_USERS, "review_title": "title", "review_text": "text"}, unit="ms"
)
AMAZON_2023_ITEMS = Layout(
    {
        "item": "parent_asin",
        "title": "title",
        "description": "description",
        "brand": "store",
        "categories": "categories",
        "features": "features",
        "details": "details",
    }
)
# https://grouplens.org/datasets/movielens: the README of each size.
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
U_DATA = Layout(
    RATING_ROLES,
    Delimited("\t", "", "", names=("user", "item", "rating", "timestamp")),
    delimited=True,
    unit="s",
)
U_ITEM = Layout(
    {"item": "item", "title": "title", "categories": "flags"},
    Delimited("|", "", "", "latin-1", ("item", "title", "released", "video", "url", *GENRES_100K)),
    delimited=True,
    flags=GENRES_100K,
)
RATINGS_DAT = Layout(
    RATING_ROLES,
    Delimited("::", "", "", "latin-1", ("user", "item", "rating", "timestamp")),
    delimited=True,
    unit="s",
)
MOVIES_ROLES = {"item": "item", "title": "title", "categories": "genres"}
MOVIES_DAT = Layout(
    MOVIES_ROLES,
    Delimited("::", "", "", "latin-1", ("item", "title", "genres")),
    delimited=True,
    list_mark="|",
)
RATINGS_CSV = Layout(
    {"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"}, unit="s"
)
MOVIES_CSV = Layout({**MOVIES_ROLES, "item": "movieId"}, list_mark="|")
# https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data, version 2: lines of Python literals.
STEAM_REVIEWS = Layout(
    {"user": "username", "item": "product_id", "time": "date", "review_text": "text"}
)
STEAM_GAMES = Layout(
    {
        "item": "id",
        "title": "app_name",
        "brand": "developer",
        "categories": "genres",
        "features": ("tags", "specs"),
    }
)
# https://business.yelp.com/data/resources/open-dataset
YELP_REVIEWS = Layout(
    {
        "user": "user_id",
        "item": "business_id",
        "time": "date",
        "rating": "stars",
        "review_text": "text",
    }
)
YELP_BUSINESSES = Layout(
    {
        "item": "business_id",
        "title": "name",
        "categories": "categories",
        "details": ("city", "state", "attributes"),
    }
)
# Cai-Nicolas Ziegler's crawl: Latin-1, semicolons, quotes escaped by a backslash, and no times.
BOOK_CROSSING = Delimited(";", '"', "\\", "latin-1")
BOOK_RATINGS = Layout({"user": "User-ID", "item": "ISBN", "rating": "Book-Rating"}, BOOK_CROSSING)
BOOKS = Layout(
    {
        "item": "ISBN",
        "title": "Book-Title",
        "brand": "Publisher",
        "details": ("Book-Author", "Year-Of-Publication"),
    },
    BOOK_CROSSING,
)
# https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data
HM_TRANSACTIONS = Layout({"user": "customer_id", "item": "article_id", "time": "t_dat"})
HM_ARTICLES = Layout(
    {
        "item": "article_id",
        "title": "prod_name",
        "description": "detail_desc",
        "categories": ("index_group_name", "product_group_name", "product_type_name"),
        "features": ("colour_group_name", "graphical_appearance_name", "garment_group_name"),
    }
)

PUBLISHED = {
    "amazon2014": Published(
        (
            ("reviews_*.json", AMAZON_REVIEWS),
            ("ratings_*.csv", _ratings("user", "item", "rating", "timestamp")),
            ("*.json", AMAZON_REVIEWS),
            ("*.csv", _ratings("user", "item", "rating", "timestamp")),
        ),
        (("meta_*.json", AMAZON_2014_ITEMS), ("*.json", AMAZON_2014_ITEMS)),
    ),
    "amazon2018": Published(
        (("*.json", AMAZON_REVIEWS), ("*.csv", _ratings("item", "user", "rating", "timestamp"))),
        (("meta_*.json", AMAZON_2018_ITEMS), ("*.json", AMAZON_2018_ITEMS)),
    ),
    "amazon2023": Published(
        (
            ("*.jsonl", AMAZON_2023_REVIEWS),
            ("*.csv", Layout(AMAZON_2023_USERS, unit="ms")),
            ("*.parquet", AMAZON_2023_REVIEWS),
        ),
        (
            ("meta_*.jsonl", AMAZON_2023_ITEMS),
            ("*.jsonl", AMAZON_2023_ITEMS),
            ("*.parquet", AMAZON_2023_ITEMS),
        ),
    ),
    "movielens": Published(
        (("u.data", U_DATA), ("ratings.dat", RATINGS_DAT), ("ratings.csv", RATINGS_CSV)),
        (("u.item", U_ITEM), ("movies.dat", MOVIES_DAT), ("movies.csv", MOVIES_CSV)),
    ),
    "steam": Published(
        (("steam_reviews*.json", STEAM_REVIEWS), ("*.json", STEAM_REVIEWS)),
        (("steam_games*.json", STEAM_GAMES), ("*.json", STEAM_GAMES)),
    ),
    "yelp": Published(
        (("*review.json", YELP_REVIEWS), ("*.json", YELP_REVIEWS)),
        (("*business.json", YELP_BUSINESSES), ("*.json", YELP_BUSINESSES)),
    ),
    "bookcrossing": Published(
        (("*Book-Ratings.csv", BOOK_RATINGS), ("*.csv", BOOK_RATINGS)),
        (("*Books.csv", BOOKS), ("*.csv", BOOKS)),
    ),
    "hm": Published(
        (("transactions_train.csv", HM_TRANSACTIONS), ("*.csv", HM_TRANSACTIONS)),
        (("articles.csv", HM_ARTICLES), ("*.csv", HM_ARTICLES)),
    ),
}


def layout_of(path: Path, files: Sequence[tuple[str, Layout]], format: str) -> Layout:
    """Return how a published file is written, by its name.

    Raises:
        InputError: no file of the format is called so.
    """
    for pattern, layout in files:
        if fnmatchcase(bare_name(path), pattern):
            return layout
    patterns = ", ".join(pattern for pattern, _ in files)
    raise InputError(f"{path}: --format {format} reads {patterns} (or these as .gz, .zst, .zip)")


# Atomic files know no quoting, and their texts are full of quotes.
ATOMIC = Layout(how=Delimited("\t", "", ""), delimited=True, atomic=True)
PLAIN = Layout()


# RecBole's atomic files, `X.inter` and `X.item`.
read_recbole = partial(read_layouts, interaction_layout=ATOMIC, item_layout=ATOMIC)
# Plain CSV, TSV, JSON lines or Parquet files, told apart by their suffix.
read_table = partial(read_layouts, interaction_layout=PLAIN, item_layout=PLAIN)


def read_published(
    format: str, con: BaseBackend, interactions: Paths, items: Paths, options: Options
) -> RawTables:
    """Read the files of a published data set, a key of `PUBLISHED`.

    Raises:
        InputError: a file's name is none of the format's, it cannot be read, or its columns are
            not those it is published with.
    """
    files = PUBLISHED[format]
    return read_layouts(
        con,
        interactions,
        items,
        options,
        *(
            layout_of(as_paths(paths)[0], own, format) if as_paths(paths) else Layout()
            for paths, own in ((interactions, files.interactions), (items, files.items))
        ),
    )


# Each takes (connection, interactions files, items files, options); either may be no file.
READERS: dict[str, Callable[[BaseBackend, Paths, Paths, Options], RawTables]] = {
    "recbole": read_recbole,
    "table": read_table,
    "lcrec": read_lcrec,
    "minionerec": read_minionerec,
    **{name: partial(read_published, name) for name in PUBLISHED},
}
