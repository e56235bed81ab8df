"""Data sets published as sequences: LC-Rec's files and MiniOneRec's."""

import json

import numpy as np
import pytest

import lcrec.prepare.card
from lcrec.core.errors import InputError
from lcrec.data.data_set import load_data
from lcrec.prepare.__main__ import main
from lcrec.prepare.inputs import find_in
from lcrec.prepare.sequences import read_lcrec, read_minionerec
from lcrec.prepare.tables import Options

INTER = {"0": [1, 0], "1": [0]}
ITEM = {
    "0": {"title": "Lamp", "description": "", "brand": "Lux", "categories": "Light,Desk"},
    "1": {"title": "Desk", "description": ["Oak", "old"]},
}
HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"


@pytest.fixture
def toy(tmp_path):
    """A function that writes a toy data set in LC-Rec's form, with changes."""

    def make(inter=INTER, item=ITEM, **others):
        (tmp_path / "Toy.inter.json").write_text(json.dumps(inter))
        (tmp_path / "Toy.item.json").write_text(json.dumps(item))
        for suffix, content in others.items():
            (tmp_path / f"Toy.{suffix}").write_text(content)
        (actions,), (items,) = find_in(tmp_path, "lcrec")
        return actions, items

    return make


def triples(raw):
    found = raw.interactions.order_by("row").to_pyarrow().to_pylist()
    return [(row["user"], row["item"], row["time"]) for row in found]


def require_alike_alone(read, con, raw, actions, items):
    """Either is read without the other: what joins a data folder comes so."""
    assert triples(read(con, actions, (), Options())) == triples(raw)
    alone = read(con, (), items, Options()).items
    assert alone.order_by("row").to_pyarrow() == raw.items.order_by("row").to_pyarrow()


def test_lcrec_sequences_become_interactions_in_their_order(con, toy):
    raw = read_lcrec(con, *toy(), Options())
    assert triples(raw) == [("0", "1", 0), ("0", "0", 1), ("1", "0", 0)]
    assert raw.items.order_by("row").drop("row").to_pyarrow().to_pylist() == [
        {
            "item": "0", "title": "Lamp", "description": "", "brand": "Lux",
            "categories": "Light,Desk",
        },
        {"item": "1", "title": "Desk", "description": "Oak old", "brand": None, "categories": None},
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["(0, 1)", "('0', 1)", "('0', '1')"])
def test_lcrec_raw_ids_and_reviews_lie_beside(con, toy, key):
    review = {key: {"review": "Solid", "summary": "Good"}}
    paths = toy(
        user2id="A 7\t0\nnan\t1\n", item2id="007\t0\nB\t1\n", **{"review.json": json.dumps(review)}
    )
    raw = read_lcrec(con, *paths, Options(reviews=True))
    assert triples(raw) == [("A 7", "B", 0), ("A 7", "007", 1), ("nan", "007", 0)]
    texts = raw.interactions.order_by("row").select("review_title", "review_text").to_pyarrow()
    assert texts.to_pylist() == [
        {"review_title": "Good", "review_text": "Solid"},
        *[{"review_title": None, "review_text": None}] * 2,
    ]
    assert "review_text" not in read_lcrec(con, *paths, Options()).interactions.columns
    require_alike_alone(read_lcrec, con, raw, *paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inter": {"0": 1}}, r"Toy.inter.json: user '0' has no list of item ids: 1"),
        ({"inter": {"0": [True]}}, r"user '0' has no list of item ids"),
        ({"inter": {"0": [""]}}, r"Toy.inter.json, data row 1: the item id .* is empty"),
        ({"inter": []}, r"Toy.inter.json: expected one JSON object"),
        ({"item": {"0": "Lamp"}}, r"Toy.item.json: item '0' has no fields: 'Lamp'"),
        ({"user2id": "A 0\n"}, r"Toy.user2id, line 1: expected 'raw id, tab, number'"),
        ({"user2id": "A\t5\n"}, r"Toy.user2id: there is no line for number '0'"),
        ({"review.json": '{"(0, 1)": "x"}'}, r"review.json: \(0, 1\): expected the texts .*'x'"),
        ({"review.json": '{"(0, 1)": {"review": 5}}'}, r"expected the texts review and summary"),
    ],
)
def test_wrong_lcrec_files_are_named(con, toy, change, message):
    with pytest.raises(InputError, match=message):
        read_lcrec(con, *toy(**change), Options(reviews=True))


@pytest.fixture
def mini(tmp_path):
    """A function that writes a toy data set in MiniOneRec's form."""

    def make(train, valid, test):
        for split, body in (("train", train), ("valid", valid), ("test", test)):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / "Toy_5_2016-10-2018-11.csv").write_text(HEADER + body)
        (tmp_path / "info").mkdir(exist_ok=True)
        info = '<a_1><b_2><c_3>\tA "Lamp"\t5\n<a_1><b_2><c_4>\tDesk\t7\n'
        (tmp_path / "info" / "Toy_5_2016-10-2018-11.txt").write_text(info)
        return find_in(tmp_path, "minionerec")

    return make


def window(user, history, item):
    return f'{user},"{["T"] * len(history)}",T,"{history}",{item},"[]",<a_1>\n'


def test_minionerec_windows_merge_into_sequences(con, mini):
    paths = mini(
        window("A1", [5], 7) + window("A2", [7], 5),
        window("A1", [5, 7], 5),
        window("A1", [7, 5], 7),
    )
    raw = read_minionerec(con, *paths, Options())
    expected = [("A1", "5", 0), ("A1", "7", 1), ("A1", "5", 2), ("A1", "7", 3)]
    assert triples(raw) == [*expected, ("A2", "7", 0), ("A2", "5", 1)]
    assert raw.items.order_by("row").drop("row").to_pyarrow().to_pylist() == [
        {"item": "5", "title": 'A "Lamp"'},
        {"item": "7", "title": "Desk"},
    ]
    require_alike_alone(read_minionerec, con, raw, *paths)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            window("A1", [5], 7) + window("A1", [7], 5) + window("A1", [5, 5], 7),
            r"data row 3: .*A1",
        ),
        ('A1,x,x,"open(1)",7,x,x\n', r"data row 1: history_item_id is no list: 'open\(1\)'"),
        (window("A1", [5], ""), r"the item id \(column 'item_id'\) is empty"),
    ],
)
def test_wrong_minionerec_rows_are_named(con, mini, train, message):
    paths = mini(train, window("A9", [5], 7), window("A9", [5, 7], 7))
    with pytest.raises(InputError, match=message):
        read_minionerec(con, *paths, Options())


def test_minionerec_needs_its_columns_and_files(con, mini, tmp_path):
    mini("", "", "")
    for path in tmp_path.glob("*/Toy*.csv"):
        path.write_text("user,item\n")
    with pytest.raises(InputError, match=r"no column 'history_item_id' \(columns: user, item\)"):
        read_minionerec(con, *find_in(tmp_path, "minionerec"), Options())
    (tmp_path / "test" / "Toy_5_2016-10-2018-11.csv").unlink()
    with pytest.raises(InputError, match=r"exactly one file in test/, found none"):
        find_in(tmp_path, "minionerec")


@pytest.fixture
def published(tmp_path, mini, monkeypatch):
    """The command line for toy rows, whose last user comes with the test rows."""
    monkeypatch.setattr(lcrec.prepare.card, "card_page", json.dumps)
    mini(
        window("A1", [5], 7) + window("A2", [7], 5),
        window("A1", [5, 7], 5) + window("A1", [5, 7, 5], 5),
        window("A1", [7, 5, 5], 7) + window("A3", [5], 7),
    )
    info = '<a>\tA "Lamp"\t5\n<b>\tDesk\t7\n<c>\tRug\t6\n'
    (tmp_path / "info" / "Toy_5_2016-10-2018-11.txt").write_text(info)
    argv = ["--format", "minionerec", "--input", str(tmp_path), "--name", "Toy"]
    return [*argv, "--output", str(tmp_path / "out")]


def cases_of(cases):
    return [
        (user, history.tolist(), target)
        for user, history, target in zip(
            cases.users, cases.histories, cases.targets.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_the_published_rows_are_the_cases(tmp_path, published, capsys, whole):
    if not whole:
        (tmp_path / "train" / "Toy_5_2016-10-2018-11.csv").unlink()
    main(published)
    found = load_data(tmp_path / "out")
    raw = dict(line.split() for line in (tmp_path / "out" / "Toy.item2id").read_text().splitlines())
    assert set(raw) == {"5", "6", "7"}  # nobody has the rug, which is listed all the same
    assert raw["6"] == "2"
    five, seven = int(raw["5"]), int(raw["7"])
    users = ["0", "1", "2"] if whole else ["0", None, "1"]  # A2 has training rows alone
    assert cases_of(found.split.valid) == [
        ("0", [five, seven], five),
        ("0", [five, seven, five], five),
    ]
    assert cases_of(found.split.test) == [
        ("0", [five, seven, five, five], seven),
        (users[2], [five], seven),
    ]
    trained = {
        user: own.tolist()
        for user, own in zip(found.split.train.users, found.split.train, strict=True)
    }
    assert trained["0"] == [five, seven]
    # A3's first item stands in no training row; where there are none, it is all that is known.
    assert trained[users[2]] == ([] if whole else [five])
    assert ("will be a lower bound" in capsys.readouterr().out) is not whole
    assert np.diff(found.interactions.offsets).sum() == (9 if whole else 7)


def test_an_item_that_nobody_has_may_lack_its_text(tmp_path, published, capsys):
    info = next((tmp_path / "info").iterdir())
    info.write_text(info.read_text().replace("Rug", ""))
    main(published)
    assert len(load_data(tmp_path / "out").items) == 2
    assert "neither title nor description: 1 ('6')" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-user-items", "9"], r"--max-user-items 9 removes rows, and --split published"),
        (["--repeats", "keep"], r"--repeats keep removes rows"),
        (["--split", "time"], r"--split time: .* choose another split"),
        (["--format", "lcrec", "--split", "published"], r"published belongs to --format minio"),
    ],
)
def test_what_goes_with_published_rows(tmp_path, published, flags, message):
    with pytest.raises(InputError, match=message):
        main([*published, *flags])
    assert not (tmp_path / "out").exists()


def test_one_file_is_no_published_split(tmp_path, published):
    files = [str(tmp_path / name / "Toy_5_2016-10-2018-11") for name in ("test", "info")]
    argv = ["--format", "minionerec", "--interactions", f"{files[0]}.csv", "--items"]
    argv += [f"{files[1]}.txt", "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="1 files of interactions were given"):
        main(argv)


@pytest.mark.real_data
def test_office_by_time_keeps_every_published_row(tmp_path, real_data, monkeypatch):
    monkeypatch.setattr(lcrec.prepare.card, "card_page", json.dumps)
    argv = ["--format", "minionerec", "--input", str(real_data / "Office-by-time")]
    main([*argv, "--output", str(tmp_path / "out")])
    found = load_data(tmp_path / "out")
    assert (len(found.split.valid), len(found.split.test), len(found.items)) == (4866, 4866, 3459)


@pytest.mark.real_data
def test_office_is_read_whole(con, real_data):
    raw = read_lcrec(con, *find_in(real_data / "Office", "lcrec"), Options())
    sequences = json.loads((real_data / "Office" / "Office.inter.json").read_text())
    assert triples(raw) == [
        (user, str(item), place)
        for user, sequence in sequences.items()
        for place, item in enumerate(sequence)
    ]
    assert raw.items.count().execute() == 3459
    assert (raw.lost, raw.items_lost) == ({}, {})
