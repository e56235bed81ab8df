"""Which files the flags mean: folders, globs, archives, and the hub's layout."""

import zipfile
from pathlib import Path

import pytest

from lcrec.core.errors import InputError
from lcrec.prepare.inputs import Inputs, fetch, find_files, find_in, find_inputs, unpack

NONE = {"input": None, "interactions": None, "items": None, "source": None}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(found):
    return [[path.name for path in paths] for paths in found]


@pytest.mark.parametrize(
    ("format", "files", "expected"),
    [
        ("recbole", ["x.inter", "x.item", "x.user"], ["x.inter", "x.item"]),
        ("recbole", ["x.inter", "x.item", "._x.inter", "._x.item"], ["x.inter", "x.item"]),
        ("lcrec", ["X.inter.json", "X.item.json", "X.index.json"], ["X.inter.json", "X.item.json"]),
        ("amazon2018", ["meta_X.json.gz", "X_5.json.gz"], ["X_5.json.gz", "meta_X.json.gz"]),
        ("amazon2018", ["meta_X.json.gz", "X.csv"], ["X.csv", "meta_X.json.gz"]),
        ("amazon2023", ["meta_X.jsonl", "X.jsonl.gz"], ["X.jsonl.gz", "meta_X.jsonl"]),
        ("movielens", ["u.data", "u.item", "u.user"], ["u.data", "u.item"]),
        ("movielens", ["ratings.csv", "movies.csv", "tags.csv"], ["ratings.csv", "movies.csv"]),
        (
            "bookcrossing",
            ["BX-Book-Ratings.csv", "BX-Books.csv", "BX-Users.csv"],
            ["BX-Book-Ratings.csv", "BX-Books.csv"],
        ),
        (
            "hm",
            ["transactions_train.csv", "articles.csv", "customers.csv", "sample_submission.csv"],
            ["transactions_train.csv", "articles.csv"],
        ),
    ],
)
def test_published_names_are_found(tmp_path, format, files, expected):
    assert names(find_in(touch(tmp_path, *files), format)) == [[expected[0]], [expected[1]]]


def test_folders_must_hold_one_data_set(tmp_path):
    with pytest.raises(InputError, match=r"one file of interactions \(\*.inter\), found none"):
        find_in(tmp_path, "recbole")
    touch(tmp_path, "toy.inter")
    with pytest.raises(InputError, match=r"one file of items \(\*.item\), found none"):
        find_in(tmp_path, "recbole")
    touch(tmp_path, "toy.item", "other.inter")
    with pytest.raises(InputError, match=r"found other.inter, toy.inter; name the files with"):
        find_in(tmp_path, "recbole")
    with pytest.raises(InputError, match=r"--input .*nowhere: no such folder or zip archive"):
        find_in(tmp_path / "nowhere", "recbole")


def test_globs_folders_and_lists_of_files(tmp_path):
    touch(tmp_path, "part-2.csv", "part-1.csv", "parts/day=1/b.parquet", "parts/day=0/c.parquet")
    touch(tmp_path, "parts/day=0/._c.parquet")
    glob = find_files("interactions", [tmp_path / "part-*.csv"])
    assert [path.name for path in glob] == ["part-1.csv", "part-2.csv"]
    assert [path.name for path in find_files("items", [tmp_path / "parts"])] == [
        "c.parquet",
        "b.parquet",
    ]
    both = [tmp_path / "part-2.csv", tmp_path / "part-1.csv"]
    assert find_files("interactions", both) == both
    for wrong, message in (
        (tmp_path / "prat-*.csv", r"--items .*prat-\*.csv: no file is called so"),
        (tmp_path / "x.csv", r"--items .*x.csv: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            find_files("items", [wrong])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"without Parquet .*empty/\*.csv'.*by to_parquet"):
        find_files("items", [tmp_path / "empty"])
    with pytest.raises(InputError, match=r"part-1.csv is named twice"):
        find_files("interactions", [tmp_path / "part-*.csv", tmp_path / "part-1.csv"])


def test_relative_globs_are_found_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "a.csv", "b.csv", "._a.csv"))
    assert find_files("items", [Path("*.csv")]) == [Path("a.csv"), Path("b.csv")]


def test_archives_are_unpacked_and_hashed_as_archives(tmp_path):
    archive = tmp_path / "ml.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("ml/ratings.csv", "ratings")
        opened.writestr("ml/movies.csv", "movies")
        opened.writestr("__MACOSX/ml/ratings.csv", "rubbish")
    found = find_inputs("movielens", **{**NONE, "input": archive})
    assert found.hashed() == {"interactions": archive, "items": archive}
    plain = found.plain(None, tmp_path / "work")
    assert [path.read_text() for path in (*plain.interactions, *plain.items)] == [
        "ratings",
        "movies",
    ]
    bare = tmp_path / "log.csv.zip"
    with zipfile.ZipFile(bare, "w") as opened:
        opened.writestr("log.csv", "log")
    assert find_files("interactions", [bare]) == [bare / "log.csv"]
    bare.write_bytes(bare.read_bytes()[:40])
    with pytest.raises(InputError, match=r"log.csv.zip: cannot be read as a zip archive"):
        find_files("interactions", [bare])


def test_a_damaged_member_is_named(tmp_path):
    archive = tmp_path / "log.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("log.csv", "user,item\n" * 100)
    data = bytearray(archive.read_bytes())
    data[60] ^= 1  # within the member's bytes: its checksum disagrees
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"log.zip/log.csv: cannot be unpacked .*CRC"):
        unpack([archive / "log.csv"], tmp_path / "work")


def test_several_files_have_a_role_each(tmp_path):
    found = Inputs("table", (Path("a"), Path("b")), (Path("c"),))
    assert found.hashed() == {
        "interactions 1": Path("a"), "interactions 2": Path("b"), "items": Path("c"),
    }  # fmt: skip
    assert str(found) == "a and 1 more and c"


@pytest.mark.parametrize(
    ("format", "flags", "message"),
    [
        (None, {}, r"--format is required"),
        ("table", {}, r"--format table takes --interactions and --items; given: none"),
        (
            "table",
            {"input": Path()},
            r"--format table takes --interactions and --items; given: --i",
        ),
        (
            "hm",
            {"items": [Path("x")]},
            r"takes --input, or --interactions and --items; given: --it",
        ),
        ("hm", {"source": "hf:a:b"}, r"--format hm takes --input, or"),
        ("amazon2023", {"source": "hub"}, r"--source hub: expected hf:REPOSITORY:CATEGORY"),
        (None, {"source": "hf:x"}, r"--source hf:x: expected hf:REPOSITORY:CATEGORY"),
    ],
)
def test_flags_that_do_not_go_together(format, flags, message):
    with pytest.raises(InputError, match=message):
        find_inputs(format, **{**NONE, **flags})


def test_the_hub_by_a_folder_of_the_same_layout(tmp_path):
    reviews, items = "raw/review_categories/Toys.jsonl", "raw/meta_categories/meta_Toys.jsonl"
    touch(tmp_path, reviews, items)
    found = find_inputs(None, **{**NONE, "source": f"hf:{tmp_path}:Toys"})
    assert found == Inputs("amazon2023", (tmp_path / reviews,), (tmp_path / items,))
    with pytest.raises(InputError, match=r"has no raw/review_categories/Toy.jsonl \(there are: T"):
        fetch(f"hf:{tmp_path}:Toy")
