"""New items in a data folder: numbers go on, and nothing old changes; what does not fit."""

import shutil
import subprocess
import sys

import pytest

from lcrec.add_items import main
from lcrec.core.artifacts import find_data, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import write_provenance
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.new_items import count_old_items, read_new_items, require_same_past

OLD = {"0": {"title": "Lamp", "colour": ["red", "blue"]}, "1": {"title": "Desk"}}
NEW = {"2": {"title": "Rug", "price": 3}, "3": {"description": "a chair"}}


@pytest.fixture
def shop(tmp_path):
    """A folder with data/ of two items, and new.json with two more."""
    write_json(tmp_path / "data" / "Shop.item.json", OLD)
    write_json(tmp_path / "data" / "Shop.inter.json", {"ann": [0, 1, 0]})
    write_json(tmp_path / "new.json", NEW)
    return tmp_path


def add(shop, *, data="data", new="new.json", output="grown"):
    main(["--data", str(shop / data), "--add", str(shop / new), "--output", str(shop / output)])


def test_the_screen_has_the_stages_own_lines_alone(shop):
    """DuckDB told of objects that were left when the process ended."""
    command = [sys.executable, "-m", "lcrec.add_items", "--data", "data", "--add", "new.json"]
    done = subprocess.run(
        [*command, "--output", "grown"], cwd=shop, check=True, capture_output=True, text=True
    )
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


def test_numbers_go_on_and_every_field_is_kept(shop, capsys):
    before = {path: path.read_bytes() for path in (shop / "data").iterdir()}
    add(shop)
    assert read_json(shop / "grown" / "Shop.item.json") == OLD | NEW
    assert [load_items(shop / "grown").title(item) for item in (0, 2)] == ["Lamp", "Rug"]
    assert load_interactions(shop / "grown", 4).sequence(0).tolist() == [0, 1, 0]
    assert {path: path.read_bytes() for path in (shop / "data").iterdir()} == before
    out = capsys.readouterr().out
    assert "Adding 2 items to the 2 of Shop" in out
    assert f"Next: python -m lcrec.embed --data {shop / 'grown'} --embeddings OLD" in out


def test_all_files_of_the_folder_come_along(shop):
    for name in ("Shop.user.json", "Shop.review.json", "Shop.user2id"):
        (shop / "data" / name).write_text(name)
    add(shop)
    names = {path.name for path in (shop / "data").iterdir()} | {"lcrec.json"}
    assert {path.name for path in (shop / "grown").iterdir()} == names
    assert (shop / "grown" / "Shop.user.json").read_text() == "Shop.user.json"


def test_again_and_again(shop, capsys):
    add(shop)
    capsys.readouterr()
    add(shop)
    assert f"{shop / 'grown'} is up to date." in capsys.readouterr().out
    # More items join those that joined.
    write_json(shop / "newer.json", {"4": {"title": "Vase"}})
    add(shop, data="grown", new="newer.json", output="more")
    assert len(load_items(shop / "more")) == 5
    # A correction of the new items is taken up; a purchase made since is not thrown away.
    write_json(shop / "new.json", NEW | {"3": {"title": "a better chair"}})
    add(shop)
    assert load_items(shop / "grown").title(3) == "a better chair"
    write_json(shop / "grown" / "Shop.inter.json", {"ann": [0, 1, 3]})
    write_json(shop / "new.json", NEW)
    with pytest.raises(InputError, match=r"Shop.inter.json was changed since, and would be lost"):
        add(shop)
    assert read_json(shop / "grown" / "Shop.inter.json") == {"ann": [0, 1, 3]}


def test_raw_ids_where_the_folder_has_them(shop):
    (shop / "data" / "Shop.item2id").write_text("B07\t0\nB01\t1\n")
    write_json(shop / "new.json", {"X9": NEW["2"], "A1": NEW["3"]})
    add(shop)
    assert (shop / "grown" / "Shop.item2id").read_text() == "B07\t0\nB01\t1\nX9\t2\nA1\t3\n"
    assert read_json(shop / "grown" / "Shop.item.json") == OLD | NEW
    for key, message in (
        ("B01", "no item of it is new to"),
        ("a\tb", "holds a tab"),
        ("", "is empty"),
    ):
        write_json(shop / "new.json", {key: {"title": "Rug"}})
        with pytest.raises(InputError, match=message):
            add(shop, output="other")


def test_prices_in_json_are_written_as_those_of_the_catalogue(shop):
    """A list of known items needs no texts; a field of numbers stays one."""
    priced = {key: entry | {"price": "3"} for key, entry in OLD.items()}
    write_json(shop / "data" / "Shop.item.json", priced)
    write_json(shop / "new.json", {"0": {"price": "1.299,50 EUR"}, "1": {"price": 2.5}})
    add(shop)
    items = load_items(shop / "grown")
    assert [items.fields[0]["price"], items.fields[1]["price"]] == ["1299.5", "2.5"]
    assert items.title(0) == "Lamp"
    for value in ("cheap", ["a", "b"], True, float("inf")):
        write_json(shop / "new.json", {"0": {"price": value}})
        with pytest.raises(InputError, match=r"new.json: price .* is no number, as those of all"):
            add(shop, output="other")


def test_objects_and_lists_of_new_items_become_text(shop):
    new = {"title": "Rug", "description": ["<b>Soft</b>", {"made": "1 &amp; 2", "of": None}]}
    write_json(shop / "new.json", {"2": new | {"features": {"size": [1, "m"]}}})
    add(shop)
    fields = load_items(shop / "grown").fields[2]
    assert fields["description"] == "Soft made: 1 & 2"
    assert read_json(shop / "grown" / "Shop.item.json")["2"]["features"] == "size: 1 m"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({}, r"new.json: expected the new items as \{id"),
        ([1], r"new.json: expected the new items"),
        ({"2": {"title": ""}}, r"new.json: item 2 has no text; give it a title"),
        ({"2": "Rug"}, r"new.json: item 2: expected an object, found text"),
        ({"1": {"title": "Rug"}}, r"new.json: no item of it is new to"),
        ({"3": {"title": "Rug"}}, r"1 new items must be numbered 2 to 2, after the 2 of .*found 3"),
        ({"2": {"title": "R"}, "4": {"title": "S"}}, r"numbered 2 to 3, .*found 2, 4"),
        ({"B01": {"title": "Rug"}}, r"must be numbered 2 to 2, .*found B01"),
        ({"٢": {"title": "Rug"}}, r"must be numbered 2 to 2"),
        ({"02": {"title": "Rug"}}, r"must be numbered 2 to 2"),
    ],
)
def test_new_items_that_do_not_fit(shop, new, message):
    write_json(shop / "new.json", new)
    with pytest.raises(InputError, match=message):
        add(shop)
    assert not (shop / "grown").exists()


def test_order_in_the_file_does_not_matter_where_keys_are_numbers(shop):
    write_json(shop / "new.json", dict(reversed(NEW.items())))
    add(shop)
    assert read_json(shop / "grown" / "Shop.item.json") == OLD | NEW
    numbers = {str(number): {"title": "x"} for number in (10, 9, 100)}
    write_json(shop / "new.json", numbers)
    assert list(read_new_items(shop / "new.json")) == ["9", "10", "100"]


def test_folders_that_are_not_overwritten(shop):
    for output in ("data", ""):
        with pytest.raises(InputError, match="is read from there"):
            add(shop, output=output)
    with pytest.raises(InputError, match="no such file"):
        add(shop, new="missing.json")
    assert sorted(path.name for path in shop.iterdir()) == ["data", "new.json"]


@pytest.mark.parametrize("description", ["a chair", "a <b>chair</b>\n\n&amp; its cushion"])
def test_how_many_items_there_were(shop, description):
    write_json(shop / "new.json", NEW | {"3": {"description": description}})
    add(shop)
    items = load_items(shop / "grown")
    assert count_old_items(items, shop / "grown", shop / "new.json") == 2
    with pytest.raises(
        InputError, match=r"its last items are not those of --add .*lcrec.add_items"
    ):
        count_old_items(load_items(shop / "data"), shop / "data", shop / "new.json")
    write_json(shop / "all.json", OLD | NEW)
    with pytest.raises(InputError, match="its last items are not those"):
        count_old_items(items, shop / "grown", shop / "all.json")


def test_an_artifact_of_another_catalogue(shop):
    add(shop)
    for name in ("made", "other"):
        write_provenance(shop / name, "toy", {}, {"item": find_data(shop / "data").item})
        write_json(shop / "data" / "Shop.item.json", {**OLD, "1": {"title": "Sofa"}})
    new = shop / "new.json"
    for added in (None, new):
        require_same_past(shop / "grown", shop / "made", added)
        with pytest.raises(InputError, match=r"other was made from .*Shop.item.json .* extends"):
            require_same_past(shop / "grown", shop / "other", added)
        # Without a record of its making, an artifact is taken as it is.
        require_same_past(shop / "grown", shop, added)
    # So is a folder, where the new items are named.
    shutil.copytree(shop / "grown", shop / "by-hand")
    (shop / "by-hand" / "lcrec.json").unlink()
    require_same_past(shop / "by-hand", shop / "other", new)
    with pytest.raises(InputError, match=r"no record says that .*by-hand continues it"):
        require_same_past(shop / "by-hand", shop / "other", None)
