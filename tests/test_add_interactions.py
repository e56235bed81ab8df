"""New orders in a data folder: numbers stay, a model of before serves it, and what does not fit."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import lcrec.__main__
from lcrec import add_interactions, add_items
from lcrec.core.artifacts import find_data, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import fingerprint, read_provenance, write_provenance
from lcrec.data.folder import Interactions, load_interactions, load_items
from lcrec.data.id_map import load_names
from lcrec.data.item_filters import ItemFilters
from lcrec.data.new_items import require_same_catalogue
from lcrec.data.splits import (
    cases_since,
    describe_known,
    load_split,
    require_same_split,
    write_split,
)
from lcrec.generate import __main__ as generate

PREPARE = "python -m lcrec.prepare"
COLUMNS = "user=customer,item=sku,time=at,title=name"
ITEMS = ["A-1", "A-2", "B-1", "007"]
SEQUENCES = {"0": [0, 1, 2], "1": [3, 1, 0, 2], "2": [1, 3, 2]}
USERS = ["ann", "bob", "008"]
LAST = "2024-05-30T12:00:00+00:00"
HEAD = "customer,sku,at\n"
# In no order; zones that change it; a line twice; what bob has; an item and users that are new.
ORDERS = f"""{HEAD}
bob,A-1,2024-06-02T09:00:00Z
ann,007,2024-05-31T23:30:00-05:00
ann,NEW-9,2024-06-01T08:00:00+09:00
zoe,B-1,2024-06-01T10:00:00Z
ann,007,2024-05-31T23:30:00-05:00
yan,007,2024-06-01T09:00:00+02:00
zoe,A-2,2024-06-01T10:00:00Z
008,A-1,2024-05-30T14:00:00+02:00
"""
PRODUCTS = """sku,name,description,price
NEW-9,<b>Rug</b> &amp; pad,<p>woollen</p>,7
NEW-1,Vase,,3
A-1,another lamp,,5
NEW-0,<br/>,,3
"""


def write_folder(folder, *, settings=None, sequences=SEQUENCES):
    """Write a data folder as `lcrec prepare` would, four items and three users by raw ids."""
    texts = {str(item): {"title": f"item {name}"} for item, name in enumerate(ITEMS)}
    write_json(folder / "Shop.item.json", texts)
    write_json(folder / "Shop.inter.json", sequences)
    for kind, names in (("user", USERS), ("item", ITEMS)):
        lines = (f"{name}\t{number}\n" for number, name in enumerate(names))
        (folder / f"Shop.{kind}2id").write_text("".join(lines))
    write_json(folder / "data_card.json", {"time": {"unit": "microseconds", "last": LAST}})
    settings = {"format": "table", "columns": COLUMNS, "split": "leave-one-out"} | (settings or {})
    write_provenance(folder, PREPARE, settings, {})


@pytest.fixture
def place(tmp_path):
    """A folder with data/, orders.csv and products.csv."""
    write_folder(tmp_path / "data")
    (tmp_path / "orders.csv").write_text(ORDERS)
    (tmp_path / "products.csv").write_text(PRODUCTS)
    return tmp_path


def add(place, *flags, data="data", orders="orders.csv", output="new"):
    words = ["--data", place / data, "--interactions", place / orders, "--output", place / output]
    add_interactions.main([*map(str, words), *map(str, flags)])


def by_name(folder):
    """Return {user: [item, ...]} in raw ids."""
    items = load_items(folder)
    interactions = load_interactions(folder, len(items))
    names = load_names(folder, interactions.users, len(items), "raw")
    own = zip(names.users.names, interactions, strict=True)
    return {user: names.items.names_of(sequence) for user, sequence in own}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_known_users_go_on_and_new_ones_follow(place, capsys):
    before = contents(place / "data")
    add(place)
    assert contents(place / "data") == before
    after = contents(place / "new")
    for name in ("Shop.item.json", "Shop.item2id"):
        assert after[name] == before[name]
    assert after["Shop.user2id"] == before["Shop.user2id"] + b"yan\t3\nzoe\t4\n"
    sequences = by_name(place / "new")
    # At one moment a hash decides, as in the folder itself: zoe's order is that of no column.
    assert sequences.pop("zoe") in (["A-2", "B-1"], ["B-1", "A-2"])
    assert sequences == {
        "ann": ["A-1", "A-2", "B-1", "007"],
        "bob": ["007", "A-2", "A-1", "B-1"],
        "008": ["A-2", "007", "B-1", "A-1"],
        "yan": ["007"],
    }
    out = capsys.readouterr().out
    assert "Adding 5 of 8 interactions to" in out
    assert "2 of their 5 users are new" in out
    for told in ("not in the catalogue: 1 left", "twice: 1 left", "user before: 1 left", "'NEW-9'"):
        assert told in out
    record = read_provenance(place / "new")
    assert (record["users"], record["interactions"]) == (5, 15)
    assert record["last_time"] == "2024-06-02T09:00:00+00:00"
    split = load_split(place / "new", load_interactions(place / "new", 4))
    assert split.test.users == ["0", "1", "2"]
    assert split.test.targets.tolist() == [3, 2, 0]
    add(place)
    assert capsys.readouterr().out == f"{place / 'new'} is up to date.\n"


def test_ties_are_ordered_as_prepare_orders_them(place):
    """By the MD5 of user, tab and item, whatever the order of the rows."""
    import hashlib

    rows = [f"eve,{item},2024-06-01" for item in ITEMS] + ["ann,007,2024-06-01"]
    expected = sorted(ITEMS, key=lambda item: hashlib.md5(f"eve\t{item}".encode()).hexdigest())
    for name, own in (("one", rows), ("two", rows[::-1])):
        (place / "orders.csv").write_text(HEAD + "\n".join(own))
        add(place, output=name)
        assert by_name(place / name)["eve"] == expected


def test_new_items_are_taken_along(place, capsys):
    add(place, "--items", place / "products.csv")
    texts = read_json(place / "new" / "Shop.item.json")
    assert [texts[number]["title"] for number in ("4", "5")] == ["Vase", "Rug & pad"]
    assert texts["5"]["description"] == "woollen"
    assert texts["0"] == {"title": "item A-1"}
    assert by_name(place / "new")["ann"] == ["A-1", "A-2", "B-1", "NEW-9", "007"]
    out = capsys.readouterr().out
    assert "1 items are known and stay" in out
    assert "markup: 1 left out ('NEW-0')" in out
    assert f"embed --data {place / 'new'} --embeddings OLD" in out
    old = read_provenance(place / "new")["inputs"]["item"]["sha256"]
    assert read_provenance(place / "new")["earlier"]["item"] == [old]
    # The same file by itself.
    words = ["--data", place / "data", "--add", place / "products.csv", "--output", place / "items"]
    add_items.main(list(map(str, words)))
    assert read_json(place / "items" / "Shop.item.json") == texts
    # The next day knows them, and still knows what it continues.
    (place / "next.csv").write_text(f"{HEAD}zoe,NEW-1,2024-06-03\n")
    add(place, data="new", orders="next.csv", output="third")
    assert by_name(place / "third")["zoe"][-1] == "NEW-1"
    assert read_provenance(place / "third")["earlier"]["item"] == [old]


def test_a_split_by_time_keeps_its_dates(place):
    write_folder(place / "data", settings={"split": "time"})
    old = load_interactions(place / "data", 4)
    write_split(place / "data", old, np.array([0, 1, 2, 0, 0, 0, 1, 0, 1, 2], dtype=np.int8))
    add(place)
    before, after = (
        load_split(place / name, load_interactions(place / name, 4)) for name in ("data", "new")
    )
    assert before.kind == after.kind == "time"
    assert [row.tolist() for row in after.train][:3] == [row.tolist() for row in before.train]
    assert after.valid.targets.tolist() == before.valid.targets.tolist()
    # What is new tests, but the first of a user who has no history.
    assert after.test.users == ["0", "0", "2", "2", "4"]
    # A model of before has seen nothing that is held out now.
    require_same_split(made_from(place / "data", place / "model"), place / "new", "")
    path = find_data(place / "data").split
    path.write_text(path.read_text() + " ")
    made_from(place / "data", place / "model")
    with pytest.raises(InputError, match=r"made with another split .*, so it may have seen"):
        require_same_split(place / "model", place / "new", "")


def made_from(folder, model):
    """Leave the record of a model that was trained on a data folder."""
    write_provenance(model, "toy", {}, dict(find_data(folder).sequences))
    return model


def test_what_knows_earlier_orders_alone_has_not_seen_what_is_held_out(place):
    add(place)
    (place / "next.csv").write_text(f"{HEAD}zoe,007,2024-06-03\n")
    add(place, data="new", orders="next.csv", output="third")
    days = [place / name for name in ("data", "new", "third")]
    for number, day in enumerate(days):
        model = made_from(day, place / "model")
        for later in days[number:]:
            require_same_split(model, later, "finetune")
        for before in days[:number]:
            told = rf"model was made from {day}/\S+, .* --data {before} continues it.* finetune"
            with pytest.raises(InputError, match=told):
                require_same_split(model, before, "finetune")


def test_who_had_two_items_was_trained_on_with_both(place):
    """Zoe has three items on the third day: on the second she had two, and neither was held out."""
    add(place)
    (place / "next.csv").write_text(f"{HEAD}zoe,007,2024-06-03\n")
    add(place, data="new", orders="next.csv", output="third")
    valid = load_split(place / "third", load_interactions(place / "third", 4)).valid
    told = describe_known(made_from(place / "new", place / "model"), place / "third", valid)
    assert "may know the validation items of 1 users" in told
    with pytest.raises(InputError, match=r"no case of .* came later"):
        cases_since(valid, place / "third", place / "new", 4)
    assert not describe_known(made_from(place / "third", place / "model"), place / "third", valid)


def test_cases_since_an_earlier_day(place):
    """Of three users with a case two have ordered; what they had before is no case."""
    add(place)
    old, new = place / "data", place / "new"
    split = load_split(new, load_interactions(new, 4))
    later = cases_since(split.test, new, old, 4)
    assert (later.users, later.targets.tolist()) == (["0", "2"], [3, 0])
    write_split(new, load_interactions(new, 4), np.array([0, 2, 0, 1] * 4 + [0] * 3, np.int8)[:15])
    drawn = load_split(new, load_interactions(new, 4)).test
    for cases, data, since, told in (
        (split.valid, new, old, r"--since .*data: no case of --data .*new came later"),
        (split.test, new, new, r"--since .*new: no record says that --data .*new continues it"),
        (split.test, old, new, r"--since .*new: no record says that --data .*data continues it"),
        (drawn, new, old, r"--since .*data: the split .* does not predict what came next"),
    ):
        with pytest.raises(InputError, match=told):
            cases_since(cases, data, since, 4)


def test_repeats_and_ratings_count_as_they_did(place):
    write_folder(place / "data", settings={"repeats": "keep", "min_rating": 4})
    rows = ("ann,A-1,5,2024-06-02", "ann,A-1,5,2024-06-01", "ann,A-2,3,2024-06-01")
    (place / "orders.csv").write_text("customer,sku,rating,at\n" + "\n".join(rows))
    add(place)
    assert by_name(place / "new")["ann"] == ["A-1", "A-2", "B-1", "A-1", "A-1"]


@pytest.mark.parametrize(
    ("orders", "told"),
    [
        ("", "Adding 0 of 0"),
        ("ann,A-1,5,2024-05-01", "older than"),
        ("ann,A-1,3,2024-06-01", "rated lower: 1 left out"),
    ],
)
def test_a_night_without_a_good_rating(place, capsys, orders, told):
    write_folder(place / "data", settings={"min_rating": 4})
    (place / "orders.csv").write_text("customer,sku,rating,at\n" + orders)
    add(place, "--late", "drop")
    assert told in capsys.readouterr().out
    assert by_name(place / "new") == by_name(place / "data")


def test_a_folder_of_numbers(place):
    """Of a folder without raw ids and without a record, ids are the numbers."""
    for name in ("Shop.user2id", "Shop.item2id", "data_card.json", "lcrec.json"):
        (place / "data" / name).unlink()
    (place / "orders.csv").write_text("user,item,time\n2,0,1717236000\n17,3,1717236001\n")
    with pytest.raises(InputError, match="--format is required: nothing says how files for"):
        add(place)
    add(place, "--format", "table")
    after = read_json(place / "new" / "Shop.inter.json")
    assert after == SEQUENCES | {"2": [1, 3, 2, 0], "17": [3]}
    assert read_provenance(place / "new")["last_time"] == "2024-06-01T10:00:01+00:00"


def test_sequences_follow_without_times(place):
    write_json(place / "more.inter.json", {"bob": ["A-1"], "eve": ["007", "A-2"]})
    add(place, "--format", "lcrec", orders="more.inter.json")
    assert by_name(place / "new")["eve"] == ["007", "A-2"]
    assert read_provenance(place / "new")["last_time"] == LAST


def test_reviews_come_along(place):
    write_json(place / "data" / "Shop.review.json", {"(0, 1)": {"review": "good", "summary": ""}})
    head = HEAD.replace("at", "at,review_text")
    (place / "orders.csv").write_text(
        f"{head}ann,007,2024-06-01,<i>fine</i>\neve,A-1,2024-06-01,\n"
    )
    add(place)
    assert read_json(place / "new" / "Shop.review.json") == {
        "(0, 1)": {"review": "good", "summary": ""},
        "(0, 3)": {"review": "fine", "summary": ""},
    }


def test_large_data(place):
    """Parquet goes on as Parquet."""
    import pyarrow as pa

    from lcrec.data.folder import write_lists, write_texts

    old = Interactions.from_sequences(SEQUENCES)
    for name in ("inter", "item"):
        (place / "data" / f"Shop.{name}.json").unlink()
    lists = {"items": (old.offsets, old.items)}
    write_lists(place / "data" / "Shop.inter.parquet", old.users, lists)
    write_texts(place / "data" / "Shop.item.parquet", pa.table({"title": ITEMS}))
    add(place, "--items", place / "products.csv")
    assert by_name(place / "new")["ann"] == ["A-1", "A-2", "B-1", "NEW-9", "007"]
    assert load_items(place / "new").title(5) == "Rug & pad"


@pytest.mark.parametrize(
    ("orders", "flags", "message"),
    [
        ("ann,007,9999999999", [], r"'9999999999': time in the future; 1 of 1 rows cannot"),
        (
            "ann,007,2024-05-30T11:59:59Z\nbob,A-1,2024-06-01",
            [],
            r"1 rows are older than the last interaction of .*data \(2024-05-30T12:00:00\+00:00\), "
            r"such as user 'ann', item '007', 2024-05-30 11:59:59.*--late drop",
        ),
        ("eve,007,2024-06-01", [], r"none of its 1 users is in .*data, such as 'eve', while 'ann'"),
        (
            "\n".join(f"ann,{number},2024-06-01" for number in range(11)),
            [],
            r"none of its 11 items is in the catalogue of .*, such as '0', while 'A-1'.*item=",
        ),
        ("eve,7,2024-06-01", [], r"none of its 1 users is in .*data, such as 'eve', while 'ann'"),
        (
            "ann,007,17",
            [],
            r"its times \(17 to 17\) are not of the kind that those of .*2024-05-30",
        ),
        ("ann,007,", [], r"orders.csv, data row 1: the time \(column 'at'\) is empty"),
        ("ann,007,2024-06-01", ["--format", "tabel"], "--format tabel: none of .*'table'"),
        ("ann,007,2024-06-01", ["--columns", "item=ean"], "no column 'ean' to read the item from"),
    ],
)
def test_orders_that_do_not_fit(place, orders, flags, message):
    (place / "orders.csv").write_text(HEAD + orders)
    with pytest.raises(InputError, match=message):
        add(place, *flags)
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("orders", "told"),
    [
        ("ann,A-1,2024-06-01", "Adding 0 of 1 interactions"),
        ("", "Adding 0 of 0 interactions"),
        ("ann,007,2024-05-01", "older than 2024-05-30T12:00:00+00:00: 1 left out"),
        (
            "ann,XX-1,2024-06-01\nbob,XX-1,2024-06-01",
            "catalogue: 1 ('XX-1'); --items FILE takes them along; if they are not written as "
            "those of it are ('A-1'): --columns item=...",
        ),
    ],
)
def test_a_night_of_nothing_new_is_a_night(place, capsys, orders, told):
    (place / "orders.csv").write_text(HEAD + orders)
    add(place, "--late", "drop")
    assert told in capsys.readouterr().out
    assert contents(place / "new")["Shop.inter.json"] == contents(place / "data")["Shop.inter.json"]
    # The next night goes on from it.
    (place / "orders.csv").write_text(f"{HEAD}ann,007,2024-06-02\n")
    add(place, data="new", output="third")
    assert by_name(place / "third")["ann"][-1] == "007"


@pytest.mark.parametrize(
    ("repeats", "stamp"),
    [
        ("keep", "2024-06-{:02}"),
        ("all", "2024-06-{:02}T10:00:00.5Z"),
        ("all", "17172{:02}000"),
        ("drop", "2024-06-{:02}"),
    ],
)
def test_nights_that_overlap_take_no_order_twice(place, repeats, stamp):
    """Neither one of the last second; what came in that second only later is taken."""
    write_folder(place / "data", settings={"repeats": repeats})
    if stamp.startswith("1"):
        (place / "data" / "data_card.json").unlink()
    monday = [("ann", "007", 1), ("bob", "A-1", 2), ("bob", "A-2", 2), ("eve", "B-1", 2)]
    tuesday = [*monday, ("bob", "A-1", 2), ("eve", "A-1", 2), ("ann", "007", 3)]
    folder = "data"
    for night, orders in enumerate((monday, tuesday, tuesday)):
        lines = [f"{user},{item},{stamp.format(day)}" for user, item, day in orders]
        (place / "orders.csv").write_text(HEAD + "\n".join(lines))
        add(place, "--late", "drop", data=folder, output=f"night{night}")
        folder = f"night{night}"
    bought = by_name(place / folder)
    again, once = {"drop": ([], []), "keep": (["007"], []), "all": (["007"], ["A-1"])}[repeats]
    assert bought["ann"] == ["A-1", "A-2", "B-1", "007", *again]
    own = ["A-1"] if repeats != "drop" else []  # what bob has from before
    assert sorted(bought["bob"][4:]) == sorted([*own, "A-2", *once] if own else [])
    assert bought["eve"] == ["B-1", "A-1"]


def test_a_name_that_differs_in_spaces_alone_is_told(place, capsys):
    (place / "orders.csv").write_text(f"{HEAD}ann,007,2024-06-01\nBob ,007,2024-06-01\n")
    add(place)
    assert "1 new users differ from known ones in case or spaces alone, such as 'Bob ' and" in (
        capsys.readouterr().out
    )


def test_what_the_remedies_do(place):
    (place / "orders.csv").write_text(f"{HEAD}ann,007,2024-05-01\nann,007,2024-06-01\n")
    add(place, "--late", "drop")
    assert by_name(place / "new")["ann"][-1] == "007"
    (place / "orders.csv").write_text(f"{HEAD}eve,007,2024-06-01\n")
    add(place, "--only-new-users", output="eve")
    assert by_name(place / "eve")["eve"] == ["007"]
    (place / "products.csv").write_text("sku,name\nX,rug\nX,a rug\n,lamp\n")
    words = ["--data", place / "data", "--add", place / "products.csv", "--output", place / "more"]
    flags: list[str] = []
    for flag, value in (("--bad-rows", "drop"), ("--differing-items", "longest")):
        with pytest.raises(InputError, match=f"{flag} {value}$"):
            add_items.main([*map(str, words), *flags])
        flags += [flag, value]
    add_items.main([*map(str, words), *flags])
    assert load_items(place / "more").title(4) == "a rug"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Shop.item2id", "A-1\t0\n", "Shop.item2id: no line for item 1, but the data set has 4"),
        ("Shop.user2id", "ann\t0\nbob\t1\nann\t2\n", "user2id: raw id 'ann' stands there twice"),
        ("Shop.split.json", None, r"its split \(Shop.split.json\) was drawn, and later"),
        ("Shop.inter.json", json.dumps({"3": [0, 1]}), "user2id: no line for user 3"),
    ],
)
def test_a_folder_that_does_not_fit(place, name, content, message):
    if content is None:
        old = load_interactions(place / "data", 4)
        write_split(place / "data", old, np.array([1, 0, 2, 0, 1, 0, 2, 2, 0, 1], dtype=np.int8))
    else:
        (place / "data" / name).write_text(content)
    with pytest.raises(InputError, match=message):
        add(place)
    assert not (place / "new").exists()


@pytest.mark.parametrize("moment", ["continuation._write_growth", "continuation.write_provenance"])
def test_a_run_that_is_killed_leaves_nothing(place, moment):
    before = contents(place / "data")
    module, function = moment.split(".")
    words = ["--data", "data", "--interactions", "orders.csv", "--output", "new"]
    script = (
        f"import os; from lcrec.data import {module}; from lcrec.add_interactions import main\n"
        f"{module}.{function} = lambda *_, **__: os._exit(9)\nmain({words})"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=place, check=False)
    assert result.returncode == 9
    assert not (place / "new").exists()
    assert contents(place / "data") == before
    add(place)
    assert by_name(place / "new")["yan"] == ["007"]
    assert {path.name for path in place.iterdir()} == {"data", "new", "orders.csv", "products.csv"}


@pytest.fixture
def trained(shop, checkpoint, tmp_path):
    """A folder with the shop of `checkpoint` in data/mine, prepared by raw ids, and the model."""
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    for path in (find_data(shop).inter, find_data(shop).item):
        shutil.copy(path, folder)
    for kind, names in (("user", USER_NAMES), ("item", ITEM_NAMES)):
        lines = (f"{name}\t{number}\n" for number, name in enumerate(names))
        (folder / f"Shop.{kind}2id").write_text("".join(lines))
    write_provenance(folder, PREPARE, {"format": "table", "columns": COLUMNS}, {})
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model").symlink_to(checkpoint)
    return tmp_path


USER_NAMES = [f"C-{number:02}" for number in range(60)]
ITEM_NAMES = [f"SKU-{number:02}" for number in range(48)]


def commands_of(page, word):
    """Return the commands, as words, of the one block of a page that holds `word`."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    (block,) = [block for block in blocks if word in block]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def nightly_commands():
    """Return the nightly job of the README, of one night."""
    stop, night, *commands = commands_of("README.md", "add_interactions")
    assert (stop, " ".join(night)) == (["set", "-e"], "NIGHT=$(date +%F)")
    return [[word.replace("$NIGHT", "2024-06-02") for word in words] for words in commands]


def test_the_nightly_job_is_three_commands(trained, monkeypatch, capsys):
    """Orders in, rankings for all users out, by a model that knows nothing of them."""
    monkeypatch.chdir(trained)
    (trained / "data" / "today").symlink_to("mine")
    (trained / "orders.csv").write_text(f"{HEAD}C-07,SKU-05,2024-06-01\nN-1,SKU-03,2024-06-01\n")
    orders, rankings, link = nightly_commands()
    for words in (orders, rankings):
        assert words[0] == "lcrec"
        lcrec.__main__.main([*words[1:], *(["--k", "3"] if words is rankings else [])])
    subprocess.run(link, check=True)
    assert (trained / "data" / "today").resolve() == trained / "data" / "2024-06-02"
    (part,) = (trained / "runs" / "mine" / "rankings").glob("*.jsonl")
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    assert [row["user"] for row in rows] == [*USER_NAMES, "N-1"]
    assert all(set(row["ranked"]) <= set(ITEM_NAMES) for row in rows)
    assert "SKU-05" not in rows[7]["ranked"]
    # The next night goes on from there.
    (trained / "orders.csv").write_text(f"{HEAD}N-1,SKU-04,2024-06-02\n")
    orders[-1] = "data/2024-06-03"
    lcrec.__main__.main(orders[1:])
    assert by_name(trained / "data" / "2024-06-03")["N-1"] == ["SKU-03", "SKU-04"]


def test_the_weekly_comparison(trained, monkeypatch, capsys):
    """A retrained model and the live one rank what came since, and neither may have seen it."""
    monkeypatch.chdir(trained)
    (trained / "orders.csv").write_text(f"{HEAD}C-07,SKU-05,2024-06-01\nC-09,SKU-03,2024-06-01\n")
    add(trained / "data", data="mine", orders="../orders.csv", output="2026-11-27")
    # As finetune --data data/2026-11-27 would leave it, but for what it learnt.
    shutil.copytree(trained / "runs" / "mine" / "model", trained / "runs" / "new")
    record = read_json(trained / "runs" / "new" / "lcrec.json")
    inter = find_data(Path("data/2026-11-27")).inter
    record["inputs"]["inter"] = {"path": str(inter), "sha256": fingerprint(inter)}
    write_json(trained / "runs" / "new" / "lcrec.json", record)
    finetune, *commands = commands_of("lcrec/generate/README.md", "--since")
    assert finetune[:2] == ["lcrec", "finetune"]
    assert {"data/2026-11-27", "runs/new"} <= {*finetune}
    capsys.readouterr()
    for words in commands:
        lcrec.__main__.main(words[1:])
    out = capsys.readouterr().out
    assert out.count("Since data/mine: 2 users out of 60 users") == 2
    assert "2 users. Below each value" in out
    assert re.search(r"^lc-rec \(new\) +\+0\.0000 ", out, re.M)  # it learnt nothing
    rows = Path("runs/week/new.jsonl").read_text().splitlines()
    assert [(row["user"], row["target"]) for row in map(json.loads, rows)] == [("7", 5), ("9", 3)]
    with pytest.raises(InputError, match=r"runs/new was made from data/2026-11-27/.*may have seen"):
        generate.main(["--model", "runs/new", "--data", "data/mine", "--output", "x.jsonl"])


def test_after_new_items_an_index_is_asked_for_and_no_training(trained, monkeypatch):
    monkeypatch.chdir(trained)
    (trained / "orders.csv").write_text(f"{HEAD}C-07,NEW-9,2024-06-01\n")
    (trained / "products.csv").write_text(PRODUCTS)
    add(trained / "data", "--items", trained / "products.csv", data="mine", orders="../orders.csv")
    words = ["--model", "runs/mine/model", "--data", "data/new", "--user", "C-07"]
    with pytest.raises(InputError, match=r"items joined after --model .*--index") as error:
        generate.main(words)
    assert "finetune" not in str(error.value)


def test_files_are_read_and_kept_as_prepare_read_and_kept_them(place):
    """A separator and an encoding, and a price that can be filtered by."""
    texts = {str(item): {"title": f"item {name}", "price": "3"} for item, name in enumerate(ITEMS)}
    settings = {"encoding": "cp1252", "keep": ["price"], "category_separator": "|"}
    write_folder(place / "data", settings=settings)
    write_json(place / "data" / "Shop.item.json", texts)
    (place / "orders.csv").write_text(ORDERS.replace(",", ";"), encoding="cp1252")
    products = 'sku;name;category;price\nÜ-9;Spüle;Küche|Bad;"1.200,50"\nNEW-9;Rug;;{}\n'
    (place / "products.csv").write_text(products.format("7,5"), encoding="cp1252")
    add(place, "--items", place / "products.csv")
    new = load_items(place / "new")
    assert new.fields[5] | {"title": "Spüle", "categories": "Küche, Bad"} == new.fields[5]
    assert ItemFilters(new).select({"price": {"min": 5}}).tolist() == [4, 5]
    assert by_name(place / "new")["ann"][-2:] == ["NEW-9", "007"]
    (place / "products.csv").write_text(products.format("on request"), encoding="cp1252")
    with pytest.raises(InputError, match="price 'on request' is no number, as those of all"):
        add(place, "--items", place / "products.csv", output="other")


def prices_of(folder):
    items = load_items(folder)
    return [items.text(item, "price") for item in range(len(items))]


def test_prices_change_and_the_items_stay_the_same(place, capsys):
    """Whatever was made before belongs to the folder still, unless items joined or were edited."""
    write_folder(place / "data", settings={"keep": ["price"]})
    for name, texts in (("monday", "3 EUR,4 EUR,,5 EUR"), ("tuesday", '3,,"1.250,5",5')):
        rows = zip(ITEMS, next(csv.reader([texts])), strict=True)
        with (place / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("sku", "price"), *rows])
    before = find_data(place / "data").item
    write_provenance(place / "model", "toy", {}, {"item": before})
    words = ["--data", place / "data", "--add", place / "monday.csv", "--output", place / "monday"]
    add_items.main([*map(str, words)])
    assert prices_of(place / "monday") == ["3", "4", "", "5"]
    add(place, "--items", place / "tuesday.csv", data="monday", output="tuesday")
    assert prices_of(place / "tuesday") == ["3", "", "1250.5", "5"]
    out = capsys.readouterr().out
    assert "4 items are known: their texts stay, and new values: price of 3" in out
    assert "4 items are known: their texts stay, and new values: price of 2" in out
    assert read_provenance(place / "tuesday")["earlier"]["item"] == []
    for day in ("data", "monday", "tuesday"):
        require_same_catalogue(place / day, place / "model", None)
    # New items join, with a list that has words for them.
    (place / "products.csv").write_text("sku,name,price\nNEW-9,Rug,8\nA-1,,2\n")
    late = ["--late", "drop"]
    add(place, "--items", place / "products.csv", *late, data="tuesday", output="third")
    assert prices_of(place / "third") == ["2", "", "1250.5", "5", "8"]
    assert load_items(place / "third").title(0) == "item A-1"
    with pytest.raises(InputError, match=r"items joined after .*--index"):
        require_same_catalogue(place / "third", place / "model", None)
    # Edited by hand, nobody knows what it is.
    edited = find_data(place / "tuesday").item
    edited.write_text(edited.read_text().replace("item B-1", "item B-2"))
    with pytest.raises(InputError, match="model was made from another item file"):
        require_same_catalogue(place / "tuesday", place / "model", None)


def test_products_without_a_column_of_prices(place, capsys):
    """New ones join, and known ones keep what they cost; a column that nobody reads may clash."""
    write_folder(place / "data", settings={"keep": ["price"]})
    texts = {str(item): {"title": f"item {name}", "price": "3"} for item, name in enumerate(ITEMS)}
    write_json(place / "data" / "Shop.item.json", texts)
    (place / "products.csv").write_text("sku,name,stock,Stock\nA-1,Other,4,5\nNEW-9,Rug,5,6\n")
    add(place, "--items", place / "products.csv")
    assert prices_of(place / "new") == ["3", "3", "3", "3", ""]
    assert load_items(place / "new").title(0) == "item A-1"
    assert "no column of price: known items keep what they have there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ("sku,price\nA-1,free\n", "price 'free' is no number, as those of all items in"),
        ("sku,price\nA-1,3\nA-1,4\n", r"item 'A-1' has several rows, with a different price"),
        ("sku,price\nA-1,3\nA-1,4\n", "keep one of them$"),
        ("sku,stock\nA-1,3\n", r"no column 'name' .*; nor has it .* the kept fields \(price\)"),
        (
            "sku,price\n" + "".join(f"X-{number},3\n" for number in range(20)),
            r"none of its 20 items is in the catalogue .*'X-0', while 'A-1' is, .*--columns item=",
        ),
    ],
)
def test_price_lists_that_do_not_fit(place, prices, message):
    write_folder(place / "data", settings={"keep": ["price"]})
    texts = {str(item): {"title": f"item {name}", "price": "3"} for item, name in enumerate(ITEMS)}
    write_json(place / "data" / "Shop.item.json", texts)
    (place / "prices.csv").write_text(prices)
    with pytest.raises(InputError, match=message):
        add(place, "--items", place / "prices.csv")
    assert not (place / "new").exists()


def test_a_service_filters_by_the_prices_of_today(trained, monkeypatch):
    """A shop changes its prices overnight and reloads; the checkpoint is that of before."""
    from fastapi.testclient import TestClient

    from lcrec.serve.app import create_app
    from lcrec.serve.batching import ServiceLimits
    from lcrec.serve.live import Live
    from lcrec.serve.loading import ServiceSources, load_handler

    monkeypatch.chdir(trained)
    settings = {"format": "table", "columns": COLUMNS, "keep": ["price"]}
    write_provenance(trained / "data" / "mine", PREPARE, settings, {})
    (trained / "orders.csv").write_text(HEAD)
    nights = ("mine", "monday", "tuesday")
    for (old, new), names in zip(pairwise(nights), (ITEM_NAMES, ITEM_NAMES[::-1]), strict=True):
        lines = [f"{name},{price}.50" for price, name in enumerate(names)]
        (trained / "prices.csv").write_text("\n".join(["sku,price", *lines]))
        flags = ["--items", trained / "prices.csv"]
        add(trained / "data", *flags, data=old, output=new, orders="../orders.csv")
    today = trained / "data" / "today"
    today.symlink_to("monday")
    sources = ServiceSources(model=trained / "runs" / "mine" / "model", data=today)

    def load():
        return load_handler(sources, ServiceLimits())

    head = {"Authorization": "Bearer secret"}
    with TestClient(create_app(Live(load(), load), token="secret"), headers=head) as client:

        def cheap():
            body = {"user": "C-07", "k": 3, "filters": {"price": {"max": 3}}}
            return {item["item"] for item in client.post("/recommend", json=body).json()["items"]}

        was = client.get("/healthz").json()
        assert cheap() == {0, 1, 2}  # the checkpoint carries no raw ids
        today.unlink()
        today.symlink_to("tuesday")
        now = client.post("/reload").json()
        assert cheap() == {45, 46, 47}
        assert client.get("/items/47").json()["fields"]["price"] == "0.5"
    assert {name for name in now if now[name] != was[name]} == {"status", "items"}


@pytest.mark.slow
def test_in_two_steps_sequences_are_those_of_one(tmp_path):
    """Wherever the core filter, which is not applied to what joins, takes nothing."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{rng.integers(30)}", f"i-{rng.integers(40):02}", 1_600_000_000 + 60 * int(hour))
        for hour in np.sort(rng.integers(0, 90, 900))  # many at one time
    ]
    (tmp_path / "items.csv").write_text(
        "item,title\n" + "".join(f"i-{i:02},x\n" for i in range(40))
    )
    cut = 1_600_000_000 + 60 * 60
    parts = {"whole": rows, "first": [row for row in rows if row[2] < cut]}
    parts["rest"] = [row for row in rows if row[2] >= cut]
    for name, own in parts.items():
        lines = [f"{user},{item},{time}\n" for user, item, time in rng.permutation(own)]
        (tmp_path / f"{name}.csv").write_text("user,item,time\n" + "".join(lines))
        if name != "rest":
            files = ["--interactions", tmp_path / f"{name}.csv", "--items", tmp_path / "items.csv"]
            words = ["prepare", "--format", "table", *files, "--output", tmp_path / name]
            lcrec.__main__.main([*map(str, words), "--min-user-items", "3"])
    add(tmp_path, "--items", tmp_path / "items.csv", data="first", orders="rest.csv")
    assert by_name(tmp_path / "new") == by_name(tmp_path / "whole")
