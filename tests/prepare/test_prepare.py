"""The stage from raw dumps to the data folder, end to end."""

import json
import random
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lcrec.prepare.__main__
import lcrec.prepare.card
import lcrec.prepare.pipeline
from lcrec.core.artifacts import PROVENANCE, read_json
from lcrec.core.errors import InputError
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import leave_one_out, load_split
from lcrec.data.user_texts import Review, load_reviews
from lcrec.prepare.__main__ import main

# Three users and four items; "ann" takes the lamp twice, "bob" has two items at one time.
ACTIONS = [
    ("ann", "lamp", 30), ("ann", "desk", 10), ("ann", "chair", 20), ("ann", "lamp", 40),
    ("bob", "desk", 5), ("bob", "lamp", 7), ("bob", "chair", 7), ("eve", "chair", 1),
    ("eve", "rug", 2), ("eve", "desk", 3),
]  # fmt: skip
TITLES = {"lamp": "Lamp", "desk": "Desk &amp; drawer", "chair": "Chair", "rug": "<b>Rug</b>"}
# By first interaction: eve (1), bob (5), ann (10); items as these three meet them.
USERS = ["eve", "bob", "ann"]
ITEMS = ["chair", "rug", "desk", "lamp"]
# Bob's chair and lamp have one time: the chair, first in the alphabet, has the lower number, and
# the hash of "bob" with "lamp" is the lower one.
SEQUENCES = {"0": [0, 1, 2], "1": [2, 3, 0], "2": [2, 0, 3]}


@pytest.fixture(autouse=True)
def plain_page(monkeypatch):
    """Drawing takes longer than all the rest of a toy shop; tests/test_data_card.py looks at it."""
    monkeypatch.setattr(lcrec.prepare.card, "card_page", json.dumps)


def write_csv(path, header, rows):
    lines = [",".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def shop(tmp_path):
    """A function that writes the toy shop as CSV, with changes, and returns the command line."""

    def make(*flags, actions=ACTIONS, items=None, header=("user", "item", "time")):
        write_csv(tmp_path / "log.csv", header, actions)
        write_csv(tmp_path / "items.csv", ("item", "title"), items or TITLES.items())
        argv = ["--format", "table", "--interactions", str(tmp_path / "log.csv")]
        argv += ["--items", str(tmp_path / "items.csv"), "--output", str(tmp_path / "out" / "Toy")]
        return [*argv, "--min-user-items", "3", "--min-item-users", "1", *flags]

    return make


def result(tmp_path, name="Toy"):
    folder = tmp_path / "out" / "Toy"
    return read_json(folder / f"{name}.inter.json"), read_json(folder / f"{name}.item.json")


def check_toy(tmp_path):
    sequences, items = result(tmp_path)
    assert sequences == SEQUENCES
    assert [entry["title"] for entry in items.values()] == ["Chair", "Rug", "Desk & drawer", "Lamp"]
    assert [items["0"][name] for name in ("description", "brand")] == ["", ""]
    folder = tmp_path / "out" / "Toy"
    lines = [f"{raw}\t{number}\n" for number, raw in enumerate(USERS)]
    assert (folder / "Toy.user2id").read_text() == "".join(lines)
    lines = [f"{raw}\t{number}\n" for number, raw in enumerate(ITEMS)]
    assert (folder / "Toy.item2id").read_text() == "".join(lines)


def test_toy_shop_from_csv(tmp_path, shop, capsys):
    main(shop(items=[*TITLES.items(), ("lamp", "Lamp")]))  # identical item rows count once
    check_toy(tmp_path)
    screen = capsys.readouterr().out
    assert "user=user item=item time=time" in screen
    assert "next: python -m lcrec.embed --data" in screen
    rows = [line.split() for line in screen.splitlines()]
    # Ten interactions, one of them a repeat, of three users and four items.
    assert ["reading", "3", "4", "10", "16.667%", "3.33"] in rows
    assert ["first", "of", "repeats", "3", "4", "9", "25.000%", "3.00"] in rows


def test_toy_shop_from_parquet_with_lists_dates_and_number_ids(tmp_path):
    numbers = {item: 100 + at for at, item in enumerate(TITLES)}
    stamps = pa.array([time * 10**6 for *_, time in ACTIONS], pa.timestamp("us"))
    actions = {
        "customer": [user for user, *_ in ACTIONS],
        "sku": [numbers[item] for _, item, _ in ACTIONS],
        "when": stamps,
    }
    pq.write_table(pa.table(actions), tmp_path / "log.parquet")
    items = {
        "number": [numbers[item] for item in TITLES],
        "label": [[title] for title in TITLES.values()],
        "kind": [[["Home", "Office"], ["New"]]] * 4,
        "features": [["Fine", "<b>Solid</b>"], [], None, ["Soft"]],
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    argv = ["--format", "table", "--interactions", str(tmp_path / "log.parquet")]
    argv += ["--items", str(tmp_path / "items.parquet"), "--output", str(tmp_path / "out" / "Toy")]
    argv += ["--min-user-items", "3", "--min-item-users", "1", "--columns"]
    argv += [
        "user=customer,item=sku,id=number,time=when,title=label,categories=kind,"
        "description=features"
    ]
    main(argv)
    sequences, catalogue = result(tmp_path)
    # The hash of "bob" with "102", the chair, is below that with "100", the lamp.
    assert sequences == {**SEQUENCES, "1": [2, 0, 3]}
    assert catalogue["3"] == {
        "title": "Lamp", "description": "Fine Solid", "brand": "",
        "categories": "Home, Office, New",
    }  # fmt: skip
    assert catalogue["2"]["description"] == ""
    assert (tmp_path / "out" / "Toy" / "Toy.item2id").read_text().startswith("102\t0\n")


@pytest.mark.parametrize(
    ("flags", "categories"), [([], "Home, Garden"), (["--category-separator", ","], "Home Garden")]
)
def test_toy_shop_from_recbole(tmp_path, flags, categories):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [f"{user}\t{item}\t{time}" for user, item, time in ACTIONS]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (raw / "toy.inter").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    head = "item_id:token\tmovie_title:token_seq\tclass:token_seq"
    rows = [f"{item}\t{title}\tHome Garden" for item, title in TITLES.items()]
    (raw / "toy.item").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    argv = ["--format", "recbole", "--input", str(raw), "--output", str(tmp_path / "out" / "Toy")]
    main([*argv, *flags, "--min-user-items", "3", "--min-item-users", "1"])
    check_toy(tmp_path)
    assert result(tmp_path)[1]["0"]["categories"] == categories


def test_items_without_text_go_before_the_core(tmp_path, shop, capsys):
    # Without the rug (no row) and the lamp (no text), ann and bob have too few items left.
    actions = [*ACTIONS, ("eve", "lamp", 9), ("eve", "sofa", 8)]
    items = [("lamp", "<br>"), ("desk", "Desk"), ("chair", "Chair"), ("sofa", "...")]
    main(shop(actions=actions, items=items))
    sequences, catalogue = result(tmp_path)
    assert sequences == {"0": [0, 1, 2]}
    assert [entry["title"] for entry in catalogue.values()] == ["Chair", "Desk", "..."]
    screen = capsys.readouterr().out
    assert "nothing but markup: 1 ('lamp'); item has no row in the items file: 1 ('rug')" in screen
    assert card(tmp_path)["dropped"] == {
        "first of repeats": 1, "item's text is nothing but markup": 3,
        "item has no row in the items file": 1, "core 3 items, 1 users again": 4,
    }  # fmt: skip


def test_items_without_text_can_be_refused(shop):
    items = [("lamp", ""), ("desk", "Desk"), ("chair", "Chair"), ("rug", "Rug")]
    with pytest.raises(
        InputError, match=r"neither title nor description: 1 \('lamp'\).*--items-without-text"
    ):
        main(shop("--items-without-text", "error", items=items))


def test_ratings_below_the_least_go(tmp_path, shop):
    header = ("user", "item", "time", "stars")
    actions = [(*row, 2 if row[:2] == ("eve", "rug") else 5) for row in ACTIONS]
    actions.append(("eve", "lamp", 4, 4.5))
    main(shop("--min-rating", "4.5", actions=actions, header=header))
    assert result(tmp_path)[0]["0"] == [0, 1, 2]
    assert "rug" not in (tmp_path / "out" / "Toy" / "Toy.item2id").read_text()


def files_of(folder):
    """The bytes of all files of a folder, but for the sidecar, which knows the input's hash."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != PROVENANCE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


@settings(max_examples=2)
@given(st.integers(0, 10**6))
@pytest.mark.parametrize("form", ["json", "parquet"])
def test_the_order_of_rows_does_not_matter(tmp_path_factory, form, seed):
    # Many equal times, and items with several rows.
    folder = tmp_path_factory.mktemp("shuffled")
    rng = random.Random(seed)
    rows = [(f"u{n % 4}", f"i{rng.randrange(8)}", rng.randrange(5)) for n in range(40)]
    reviewed = [(*row, rng.choice("abc")) for row in rows]
    items = [(f"i{n % 8}", f"Item {n % 8}{'!' * (n // 8)}") for n in range(16)]
    made = []
    for _ in range(2):
        header = ("user", "item", "time", "review_text")
        actions = write_csv(folder / "log.csv", header, reviewed)
        catalogue = write_csv(folder / "items.csv", ("item", "title"), items)
        argv = ["--format", "table", "--interactions", str(actions), "--items", str(catalogue)]
        argv += ["--min-user-items", "3", "--min-item-users", "2", "--repeats", "keep"]
        argv += ["--differing-items", "longest", "--split", "random", "--output-format", form]
        main([*argv, "--output", str(folder / str(len(made)) / "Toy")])
        made.append(files_of(folder / str(len(made)) / "Toy"))
        rng.shuffle(reviewed)
        rng.shuffle(items)
    assert made[0] == made[1]
    assert len(made[0]) == 8


@pytest.mark.parametrize("repeats", ["drop", "keep", "all"])
def test_repeats(tmp_path, shop, repeats):
    actions = [*ACTIONS, ("ann", "lamp", 40)]
    main(shop("--repeats", repeats, actions=actions))
    lamps = {"drop": [3], "keep": [3, 3], "all": [3, 3, 3]}[repeats]
    assert result(tmp_path)[0]["2"] == [2, 0, *lamps]
    dropped = {"drop": {"duplicates": 1, "first of repeats": 1}, "keep": {"duplicates": 1}}
    assert card(tmp_path)["dropped"] == dropped.get(repeats, {})


def card(tmp_path):
    return read_json(tmp_path / "out" / "Toy" / "data_card.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": [("lamp", "Lamp"), ("", "Chair")]}, r"items.csv, data row 2: the item id"),
        (
            {"items": [*TITLES.items(), ("lamp", "Light")]},
            r"item 'lamp' has several rows, .* title .*'Lamp' and 'Light'.*--differing-items",
        ),
        ({"items": [("x1", "Lamp")]}, r"no row in the items file: 4 \('chair', 'desk', .*'x1'"),
        (
            {"items": [(item, "") for item in TITLES]},
            r"items.csv: item has neither title nor description: 4 .*: nothing is left",
        ),
    ],
)
def test_wrong_content_is_named_and_nothing_is_written(tmp_path, shop, change, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        main(shop(**change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-user-items", "2"], r"--min-user-items: 2 is too small; the least allowed is 3"),
        (["--min-user-items", "4"], r"--min-user-items 4: .*round 1.*most items has 3"),
        (["--min-item-users", "4"], r"--min-item-users 4: .*round 1.*most users has 3"),
        (["--min-item-users", "3"], r"--min-user-items 3: .*round 2.*most items has 2"),
        (["--min-rating", "4"], r"--min-rating 4: no rating column was found in .*log.csv"),
        (["--columns", "title=titl"], r"items.csv has no column 'titl' .*did you mean 'title'"),
        (["--columns", "title="], r"no title or description column .*--columns title="),
        (["--items", "nowhere.csv"], r"--items nowhere.csv: no such file"),
        (["--input", "."], r"--format table takes --interactions and --items; given: --input"),
        (["--format", "recbole"], r"log.csv, line 1: field .* has no type"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_written(tmp_path, shop, flags, message):
    with pytest.raises(InputError, match=message):
        main(shop(*flags))
    assert not (tmp_path / "out").exists()


def test_running_again_does_nothing(tmp_path, shop, capsys, monkeypatch):
    main(shop())
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(lcrec.prepare.pipeline, "refine", None)
        main(shop())
    assert "is up to date" in capsys.readouterr().out
    (tmp_path / "out" / "Toy" / "Toy.item2id").unlink()
    main(shop())
    check_toy(tmp_path)


def test_other_settings_or_inputs_make_it_anew(tmp_path, shop):
    main(shop())
    main(shop("--repeats", "keep"))
    assert result(tmp_path)[0]["2"] == [2, 0, 3, 3]
    main(shop("--repeats", "keep", actions=[*ACTIONS, ("ann", "rug", 50)]))
    assert result(tmp_path)[0]["2"] == [2, 0, 3, 3, 1]


def test_a_folder_with_other_data_is_left_alone(tmp_path, shop):
    folder = tmp_path / "out" / "Toy"
    folder.mkdir(parents=True)
    (folder / "Office.inter.json").write_text("{}")
    with pytest.raises(InputError, match=r"Office.inter.json has no lcrec.json beside it"):
        main(shop())
    with pytest.raises(InputError, match=r"holds another data set, Office.inter.json"):
        main(shop("--overwrite"))
    assert (folder / "Office.inter.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["Toy.user.json", "Toy.review.json"])
def test_texts_that_go_by_old_numbers_stop_a_new_run(tmp_path, shop, name):
    main(shop())
    (tmp_path / "out" / "Toy" / name).write_text("{}")
    main(shop())  # up to date
    with pytest.raises(InputError, match=rf"{name} goes by the old numbers"):
        main(shop("--repeats", "keep"))


def test_a_run_killed_while_writing_can_be_run_again(tmp_path, shop, monkeypatch):
    main(shop())
    folder = tmp_path / "out" / "Toy"

    def killed(*args, **facts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lcrec.prepare.__main__, "write_provenance", killed)
        with pytest.raises(KeyboardInterrupt):
            main(shop("--repeats", "keep"))
    # No stage takes the folder for a data set, and no temporary file is left.
    assert not (folder / "Toy.inter.json").exists()
    assert not list(folder.glob(".*"))
    main(shop())
    check_toy(tmp_path)
    assert json.loads((folder / PROVENANCE).read_text())["interactions"] == 9


@pytest.mark.real_data
def test_movielens_100k(real_data, tmp_path, capsys):
    source, folder = real_data / "ml-100k", tmp_path / "ml-100k"
    main(["--format", "recbole", "--input", str(source), "--output", str(folder)])
    items = load_items(folder)
    interactions = load_interactions(folder, len(items))
    split = leave_one_out(interactions)
    assert (len(interactions), len(items), len(interactions.items)) == (943, 1349, 99287)
    assert len(split.test) == 943
    assert min(map(len, interactions)) >= 5
    assert min(Counter(interactions.items.tolist()).values()) >= 5
    assert "1,682" in capsys.readouterr().out
    # Every sequence follows the times of the file.
    users = [line.split("\t")[0] for line in (folder / "ml-100k.user2id").read_text().splitlines()]
    raw_items = [
        line.split("\t")[0] for line in (folder / "ml-100k.item2id").read_text().splitlines()
    ]
    times = {}
    for line in (source / "ml-100k.inter").read_text().splitlines()[1:]:
        user, item, _, time = line.split("\t")
        times[user, item] = float(time)
    for user, sequence in zip(users, interactions, strict=True):
        taken = [times[user, raw_items[item]] for item in sequence]
        assert taken == sorted(taken)
    titles = dict(
        line.split("\t")[:2] for line in (source / "ml-100k.item").read_text().splitlines()
    )
    assert all(items.title(at) == titles[raw] for at, raw in enumerate(raw_items))


def test_a_split_is_written_and_read(tmp_path, shop):
    actions = [*ACTIONS, ("eve", "lamp", 4), ("bob", "rug", 9), ("ann", "rug", 50)]
    flags = ["--split", "cold-items", "--cold-share", "0.25", "--repeats", "keep"]
    main(shop(*flags, actions=actions))
    folder = tmp_path / "out" / "Toy"
    split = load_split(folder, load_interactions(folder, 4))
    (cold,) = {target for row in split.test.targets.tolist() for target in row if target >= 0}
    assert split.test.users == ["0", "1", "2"]
    assert cold not in split.train.items
    assert cold not in split.valid.targets
    whole = load_interactions(folder, 4)
    for user, sequence in enumerate(whole):
        rest = [item for item in sequence.tolist() if item != cold]
        assert split.train.sequence(user).tolist() == rest[:-1]
        assert split.valid.targets[user].tolist() == [rest[-1]]
    assert sum(card(tmp_path)["split"].values()) == len(whole.items)
    main(shop("--split", "leave-one-out"))
    assert not (folder / "Toy.split.json").exists()


def test_reviews_are_written_where_intents_reads_them(tmp_path, shop):
    header = ("user", "item", "time", "summary", "review_text")
    texts = {30: ("First", "Bright<br>lamp"), 40: ("Again", ""), 5: ("", "Flat"), 10: ("", "")}
    actions = [(*row, *texts.get(row[2], ("", ""))) for row in ACTIONS]
    main(shop(actions=actions, header=header))
    folder = tmp_path / "out" / "Toy"
    found = load_reviews(folder, ["0", "1", "2"], 4)
    assert found == {("1", 2): Review("Flat", ""), ("2", 3): Review("Bright lamp", "First")}
    (folder / "Toy.review.json").unlink()
    main(shop(actions=actions, header=header))  # what is missing is made anew
    assert load_reviews(folder, ["0", "1", "2"], 4) == found
    main(shop("--repeats", "keep", actions=actions, header=header))  # of repeats the latest
    assert load_reviews(folder, ["0", "1", "2"], 4)["2", 3] == Review("", "Again")
    main(shop("--reviews", "drop", actions=actions, header=header))
    assert not (folder / "Toy.review.json").exists()


def test_limits_are_followed_by_the_core_again(tmp_path, shop):
    # Of four items the latest three; the desk is then left with one user, who falls below three.
    actions = [*ACTIONS, ("ann", "rug", 60), ("bob", "rug", 60)]
    main(shop("--max-user-items", "3", "--min-item-users", "2", actions=actions))
    made = card(tmp_path)
    assert [step["after"] for step in made["steps"]][-2:] == [
        "latest 3 of a user",
        "core 3 items, 2 users again",
    ]
    assert made["interactions"] == 6
    assert made["dropped"]["latest 3 of a user"] == 2
    assert sum(made["dropped"].values()) + made["interactions"] == made["input_interactions"] == 12


def test_a_dry_run_writes_nothing(tmp_path, shop, capsys, monkeypatch):
    main(shop("--dry-run"))
    assert not (tmp_path / "out").exists()
    screen = capsys.readouterr().out
    assert ["first", "of", "repeats", "3", "4", "9", "25.000%", "3.00"] in [
        line.split() for line in screen.splitlines()
    ]
    assert "a dry run: nothing was written" in screen
    monkeypatch.setattr(lcrec.prepare.__main__, "DRY_RUN_ROWS", 9)
    with pytest.raises(InputError, match="nothing is left"):
        main(shop("--dry-run", "--min-item-users", "3"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--since", "100"], r"--since and --until: nothing is left; before, there were 10 inter"),
        (["--since", "x"], r"--since 'x': expected a date"),
        (["--max-user-items", "3", "--min-user-items", "4"], r"--max-user-items 3 is less than"),
        (["--min-text", "99"], r"shorter than --min-text: 4 .*nothing is left"),
        (["--cold-share", "1.5"], r"--cold-share 1.5: give a share below 1"),
        (["--split", "cold-items"], r"--cold-share 0.05: of 4 items that is none; give more"),
        (
            ["--split", "cold-items", "--cold-share", "0.9"],
            r"--cold-share 0.9: of 4 items that is all; give less",
        ),
        (["--spark-master", "local[1]"], r"--spark-master local\[1\] belongs to --engine spark"),
    ],
)
def test_wrong_rules_are_named_and_nothing_is_written(tmp_path, shop, flags, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        main(shop(*flags))
    assert not (tmp_path / "out").exists()


def test_large_data_is_written_as_parquet(tmp_path, shop, monkeypatch):
    main(shop())
    monkeypatch.setattr(lcrec.prepare.__main__, "JSON_MOST", 8)
    main(shop("--seed", "1"))
    folder = tmp_path / "out" / "Toy"
    assert sorted(path.name for path in folder.iterdir()) == [
        "Toy.inter.parquet", "Toy.item.parquet", "Toy.item2id", "Toy.user2id", "data_card.html",
        "data_card.json", "lcrec.json",
    ]  # fmt: skip
    assert load_items(folder).title(1) == "Rug"
    sequences = {user: ids.tolist() for user, ids in enumerate(load_interactions(folder, 4))}
    assert {str(user): ids for user, ids in sequences.items()} == SEQUENCES
    monkeypatch.setattr(lcrec.prepare.__main__, "JSON_MOST", 9)
    main(shop("--seed", "2"))
    assert load_items(folder).title(1) == "Rug"  # exactly one form lies there
    assert not [path for path in folder.iterdir() if "parquet" in path.name]


@pytest.mark.slow
def test_a_disk_that_fills_up(tmp_path, shop):
    """No file may grow beyond 2 MB, which the engine's own, but not the catalogue, stay below."""
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    main(shop())
    before = files_of(tmp_path / "out" / "Toy")
    argv = shop("--differing-items", "longest")
    rows = [(f"u{u}", f"i{(u + k) % 300}", k) for u in range(300) for k in range(5)]
    write_csv(log, ("user", "item", "time"), rows)
    write_csv(items, ("item", "title"), [(f"i{i}", "x" * 9_000) for i in range(300)])
    lines = "import resource, sys; from lcrec.core.errors import run_stage\n"
    lines += "import lcrec.prepare.folder\n"
    lines += "from lcrec.prepare.__main__ import main; made = lcrec.prepare.folder._write_items\n"
    lines += "def limited(*args):\n"
    lines += "    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)); made(*args)\n"
    lines += "lcrec.prepare.folder._write_items = limited; run_stage(main)"
    command = [sys.executable, "-c", lines, *argv]
    full = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert full.returncode == 2, full.stderr
    assert "cannot be written (" in full.stderr
    assert "MB are free there" in full.stderr
    assert files_of(tmp_path / "out" / "Toy") == before
