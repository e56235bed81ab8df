"""A shop's own ids: in flags, files and on the screen, the same rankings as by numbers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from lcrec.core.artifacts import find_data, read_json
from lcrec.core.errors import InputError
from lcrec.data.id_map import IdMap
from lcrec.generate import __main__ as generate
from lcrec.generate.one_request import read_item_ids
from lcrec.generate.recommender import Recommender
from lcrec.index.item_index import ItemIndex

# They look like numbers, and are others: item 40 is called 007.
ITEMS = [f"{47 - item:03}" for item in range(48)]
USERS = [f"C-{59 - user:02}" for user in range(60)]


@pytest.fixture
def named(shop, tmp_path):
    """The shop, whose users and items have raw ids."""
    folder = tmp_path / "named"
    folder.mkdir()
    for path in (find_data(shop).inter, find_data(shop).item):
        shutil.copy(path, folder)
    write(folder / "Shop.user2id", USERS)
    write(folder / "Shop.item2id", ITEMS)
    return folder


def write(path, names):
    path.write_text("".join(f"{name}\t{number}\n" for number, name in enumerate(names)))


@pytest.fixture
def run(checkpoint, named, capsys):
    def call(*words):
        generate.main(["--model", str(checkpoint), "--data", str(named), *map(str, words)])
        return capsys.readouterr().out

    return call


def in_raw_ids(table):
    """Return a table of numbers with the raw ids in place of the items' numbers."""
    lines = []
    for line in table.splitlines():
        number = line[6:13]
        own = f"{ITEMS[int(number)]:>7}" if number.strip().isdecimal() else number
        lines.append(line[:6] + own + line[13:])
    return lines


def test_a_table_is_the_same_but_for_the_names(run):
    by_number = run("--history", 12, 7, "--k", 5, "--ids", "numbers")
    assert run("--history", ITEMS[12], ITEMS[7], "--k", 5).splitlines() == in_raw_ids(by_number)
    by_number = run("--user", 17, "--k", 5, "--ids", "numbers")
    assert run("--user", USERS[17], "--k", 5).splitlines() == in_raw_ids(by_number)


def test_files_of_items_and_of_all_users(run, tmp_path):
    few = [1, 5, 20, 33]
    for name, ids in (("numbers", map(str, few)), ("raw", (ITEMS[item] for item in few))):
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
        flags = ["--ids", name, "--allow", tmp_path / f"{name}.txt", "--all-users", "--k", 3]
        run(*flags, "--output", tmp_path / name)
    by_number, raw = (
        [json.loads(line) for line in (tmp_path / name / "part-00000.jsonl").open()]
        for name in ("numbers", "raw")
    )
    for user, (ours, theirs) in enumerate(zip(by_number, raw, strict=True)):
        assert ours["user"] == str(user)
        assert theirs["user"] == USERS[user]
        assert theirs["ranked"] == [ITEMS[item] for item in ours["ranked"]]
        assert theirs["scores"] == ours["scores"]
    run(*flags, "--format", "parquet", "--output", tmp_path / "table")
    table = pq.read_table(tmp_path / "table" / "part-00000.parquet")
    assert table["ranked"].to_pylist() == [row["ranked"] for row in raw]


def test_predictions_keep_numbers(run, tmp_path):
    run("--output", tmp_path / "p.jsonl", "--k", 3)
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert first["user"] == "0"
    assert all(type(item) is int for item in [first["target"], *first["ranked"]])


def test_a_split_speaks_of_its_users_by_raw_ids(run, tmp_path, monkeypatch):
    printed = run("--output", tmp_path / "p.jsonl", "--k", 3, "--show", 2)
    assert f"User {USERS[0]}\n" in printed
    assert f"User {USERS[59]}\n" in printed
    monkeypatch.setattr("lcrec.generate.recommender.position_limit", lambda model: 10)
    with pytest.raises(InputError, match=f"user '{USERS[0]}': its prompt has"):
        run("--output", tmp_path / "q.jsonl", "--k", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--history", "7"], "--history: item '7' is unknown.*; for numbers .*: --ids numbers$"),
        (["--history", "480"], "--history: item '480' is unknown(; did [^;]*)?$"),
        (["--user", "17"], "--user 17: not in the data set.*: --ids numbers$"),
        (["--user", "C-1x"], "--user C-1x: not in the data set; did you mean 'C-"),
        (
            ["--history", "007", "--deny", "deny.txt"],
            "line 2: item '40' is unknown; did .*: --unknown ignore",
        ),
    ],
)
def test_numbers_are_no_raw_ids(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deny.txt").write_text("040\n40\n")
    with pytest.raises(InputError, match=message):
        run(*words)


def test_spaces_at_the_ends_of_an_id_may_be_left_out(tmp_path):
    ids = IdMap("item", ["7", " 7", "8\u2028", "9"], is_raw=True)
    (tmp_path / "deny.txt").write_text(" 7\r\n8\u2028\n\n  9 \r\n7\n", encoding="utf-8")
    assert read_item_ids(tmp_path / "deny.txt", "--deny", ids, "refuse") == [1, 2, 3, 0]


def test_an_ignored_id_is_compared_with_no_other(tmp_path, monkeypatch):
    """A stock list of the whole shop has many of them, and the nearest name takes long to find."""
    monkeypatch.setattr("lcrec.data.id_map.closest", lambda *_: pytest.fail("compared"))
    (tmp_path / "stock.txt").write_text("7\nNEW-1\nNEW-2\n")
    ids = IdMap("item", ["7", "9"], is_raw=True)
    assert read_item_ids(tmp_path / "stock.txt", "--allow", ids, "ignore") == [0]


def test_unknown_items_are_ignored_where_that_is_asked_for(run, tmp_path):
    """A stock list names what the catalogue never had."""
    (tmp_path / "known.txt").write_text("040\n")
    (tmp_path / "all.txt").write_text("040\nNEW-9\n40\n", encoding="utf-8-sig")
    by_known = run("--history", "007", "--deny", tmp_path / "known.txt", "--k", 5)
    words = ["--history", "X", "007", "--deny", tmp_path / "all.txt", "--unknown", "ignore"]
    told, *table = run(*words, "--k", 5).split("  had, latest last:")
    assert by_known.endswith("  had, latest last:".join(["", *table]))
    assert f"--deny {tmp_path / 'all.txt'}: ignoring 2 items that are not in the" in told
    assert "--history: ignoring 1 items that are not in the catalogue ('X')" in told
    with pytest.raises(InputError, match="--history: none of its items is in the catalogue"):
        run("--history", "X", "--unknown", "ignore")
    (tmp_path / "numbers.txt").write_text("48\n1\n")
    numbers = ["--ids", "numbers", "--history", 2, "--deny", tmp_path / "numbers.txt"]
    assert "ignoring 1 items" in run(*numbers, "--unknown", "ignore")
    with pytest.raises(InputError, match=r"numbers.txt, line 1: item 48 is not in the catalogue"):
        run(*numbers)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("item2id", ITEMS[:-1], "Shop.item2id: no line for item 47, but the data set has 48 items"),
        ("item2id", [*ITEMS, "048"], "Shop.item2id: 49 lines, but the data set has 48 items"),
        ("item2id", [*ITEMS[:-1], "007"], "raw id '007' stands there twice"),
        ("user2id", USERS[:3], "Shop.user2id: no line for user 3, but the data set has 60 users"),
        ("user2id", None, "--ids raw: .*Shop.user2id: no such file; it holds the users' raw ids"),
    ],
)
def test_maps_that_do_not_fit(run, named, name, lines, message):
    if lines is None:
        (named / f"Shop.{name}").unlink()
    else:
        write(named / f"Shop.{name}", lines)
    with pytest.raises(InputError, match=message):
        run("--user", "1", *(["--ids", "raw"] if lines is None else []))


def test_the_checkpoint_carries_them(named, finetune, tmp_path):
    """So that Python and the service need no data folder."""
    model = finetune(tmp_path / "model", "--data", named, "--epochs", 1)
    assert read_json(model / "item_ids.json") == ITEMS
    recommender = Recommender.from_pretrained(model)
    lists = {"allow": [range(30)], "deny": [[1, 2]]}
    by_number = recommender.recommend([[12, 7]], 5, **lists)
    ours = {name: [[ITEMS[item] for item in own[0]]] for name, own in lists.items()}
    raw = recommender.recommend([[ITEMS[12], ITEMS[7]]], 5, **ours, ids="raw")
    assert raw.raw_ids == [[ITEMS[item] for item in by_number.items[0]]]
    assert (raw.items == by_number.items).all()
    assert by_number.raw_ids is None
    with pytest.raises(InputError, match="history 1: item '7' is unknown"):
        recommender.recommend([["007"], ["7"]], 5, ids="raw")
    with pytest.raises(InputError, match="history 0: item 7: raw ids are text"):
        recommender.recommend([[7]], 5, ids="raw")


def test_a_checkpoint_without_them_works_by_numbers(checkpoint):
    assert not (checkpoint / "item_ids.json").exists()
    recommender = Recommender.from_pretrained(checkpoint)
    with pytest.raises(InputError, match="the checkpoint carries no raw ids"):
        recommender.recommend([["007"]], 5, ids="raw")


@pytest.mark.parametrize("content", ['{"0": "a"}', "[1, 2]", '["a"]', '["a", "a"]'])
def test_damaged_raw_ids_of_an_index(index, tmp_path, content):
    index.save(tmp_path)
    (tmp_path / "item_ids.json").write_text(content)
    with pytest.raises(InputError, match=r"item_ids\.json: expected"):
        ItemIndex.load(tmp_path)


def test_an_index_that_adds_items_brings_theirs(index, tmp_path):
    known = replace(index, raw_ids=ITEMS)
    codes = np.concatenate([index.codes, [[3, 3, 3]]]).astype(np.int32)
    for names, message in (
        ([*ITEMS, "new"], None),
        (None, "the items have not the raw ids that they had before"),
        (["other", *ITEMS], "the items have not the raw ids that they had before"),
    ):
        folder = tmp_path / str(message)[:4] / str(names)[:4]
        folder.mkdir(parents=True)
        ItemIndex(codes, index.level_sizes, names).save(folder)
        if message is None:
            assert known.load_extension(folder).ids.number("new") == 48
        else:
            with pytest.raises(InputError, match=message):
                known.load_extension(folder)
    index.save(tmp_path / "own")  # what it was trained on: the same items, which it names
    assert known.load_extension(tmp_path / "own").raw_ids == ITEMS
