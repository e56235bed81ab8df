"""Predictions for a split by one and several processes, the view of one user, every refusal."""

import json
import shutil

import pytest

from lcrec import generate
from lcrec.artifacts import find_data, read_json, write_json
from lcrec.data import leave_one_out, load_interactions
from lcrec.errors import InputError
from lcrec.predictions import read_predictions
from lcrec.recommender import Recommender

ITEMS = 48


@pytest.fixture
def run(checkpoint, shop):
    """Run the stage in this process; `None` leaves a default out."""

    def call(*words, model=checkpoint, data=shop):
        generate.main(["--model", str(model), "--data", str(data), *map(str, words)])

    return call


@pytest.fixture(scope="module")
def predicted(checkpoint, shop, tmp_path_factory):
    """Predictions for the test split of the shop. Tests leave them as they are."""
    path = tmp_path_factory.mktemp("predicted") / "predictions.jsonl"
    words = ["--model", checkpoint, "--data", shop, "--output", path, "--batch-tokens", 700]
    generate.main(list(map(str, words)))
    return path


def with_sequences(shop, folder, sequences):
    """Make a data folder with the shop's catalogue and these users."""
    folder.mkdir()
    shutil.copy(find_data(shop).item, folder)
    write_json(folder / "Shop.inter.json", sequences)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# A split.


def test_every_user_gets_real_and_distinct_items(predicted, shop, split):
    rows = lines(predicted)
    assert [row["user"] for row in rows] == split.test.users
    assert [row["target"] for row in rows] == split.test.targets.tolist()
    for row in rows:
        assert len(row["ranked"]) == len(set(row["ranked"])) == 20
        assert set(row["ranked"]) <= set(range(ITEMS))
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert row["template_id"] == "next-short"


def test_the_lists_are_those_of_the_recommender(predicted, checkpoint, split):
    ranking = Recommender.from_pretrained(checkpoint, max_batch_tokens=700).recommend(
        split.test.histories, 20
    )
    assert (read_predictions(predicted).ranked["next-short"] == ranking.items).all()


def test_twice_gives_identical_files(run, predicted, tmp_path):
    run("--output", tmp_path / "again.jsonl", "--batch-tokens", 700)
    assert (tmp_path / "again.jsonl").read_bytes() == predicted.read_bytes()


def test_what_is_up_to_date_is_left_alone(run, tmp_path, capsys):
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--k", 3)
    assert f"Wrote {path}. Next: python -m lcrec.evaluate" in capsys.readouterr().out
    before = path.stat().st_mtime_ns
    run("--output", path, "--k", 3, "--show", 2)
    out = capsys.readouterr().out
    assert f"{path} is up to date." in out
    assert out.count("had, latest last:") == 2
    assert path.stat().st_mtime_ns == before
    # Another setting, or a run that was killed before its sidecar, is done again.
    run("--output", path, "--k", 4)
    assert {len(row["ranked"]) for row in lines(path)} == {4}
    (tmp_path / "predictions.lcrec.json").unlink()
    run("--output", path, "--k", 4)
    assert "up to date" not in capsys.readouterr().out
    record = read_json(tmp_path / "predictions.lcrec.json")
    assert record["config"]["k"] == 4
    assert set(record["inputs"]) == {"model", "item", "inter"}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch_tokens"), [(2, 700), (3, 8000)])
def test_several_processes_give_the_same(
    run, run_command, checkpoint, shop, predicted, tmp_path, processes, batch_tokens
):
    path = tmp_path / "predictions.jsonl"
    out = run_command(
        *("-m", "torch.distributed.run", "--nproc_per_node", processes, "-m", "lcrec.generate"),
        *("--model", checkpoint, "--data", shop, "--output", path, "--batch-tokens", batch_tokens),
    )
    assert f"for 60 users with 1 wording(s) on {processes} process(es)" in out
    assert out.count("Wrote") == 1
    # Batches are dealt out unevenly; with so many tokens per batch, one process has none at all.
    alone = tmp_path / "alone.jsonl"
    run("--output", alone, "--batch-tokens", batch_tokens)
    assert path.read_bytes() == alone.read_bytes()
    assert [row["user"] for row in lines(path)] == [row["user"] for row in lines(predicted)]
    assert [row["ranked"] for row in lines(path)] == [row["ranked"] for row in lines(predicted)]


def test_histories_of_any_length(run, checkpoint, shop, tmp_path):
    long = list(range(30))
    sequences = {
        "shortest": [5, 6, 7],
        "long": long,
        "its end": long[-6:],
        "repeats": [4, 4, 4, 4, 4, 4],
        "another": [9, 8, 7, 6],
    }
    data = with_sequences(shop, tmp_path / "data", sequences)
    path = tmp_path / "valid.jsonl"
    run("--output", path, "--split", "valid", "--k", ITEMS, data=data)
    rows = {row["user"]: row for row in lines(path)}
    assert list(rows) == list(sequences)
    assert [row["target"] for row in rows.values()] == [s[-2] for s in sequences.values()]
    assert all(sorted(row["ranked"]) == list(range(ITEMS)) for row in rows.values())
    # A prompt shows the latest four, so these two ask the same.
    assert rows["long"]["ranked"] == rows["its end"]["ranked"]
    cases = leave_one_out(load_interactions(data, ITEMS)).valid
    assert [len(history) for history in cases.histories] == [1, 28, 4, 4, 2]


def test_the_two_splits_differ(run, predicted, split, tmp_path):
    run("--output", tmp_path / "valid.jsonl", "--split", "valid")
    rows = lines(tmp_path / "valid.jsonl")
    assert [row["target"] for row in rows] == split.valid.targets.tolist()
    assert [row["ranked"] for row in rows] != [row["ranked"] for row in lines(predicted)]


def test_the_history_can_be_excluded(run, split, tmp_path):
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--exclude-history", "--k", ITEMS)
    for row, history in zip(lines(path), split.test.histories, strict=True):
        assert sorted(row["ranked"]) == sorted(set(range(ITEMS)) - set(history.tolist()))


def test_every_wording_answers_for_every_user(run, prompts, split, tmp_path):
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--templates", "all", "--k", 5)
    serving = [template.id for template in prompts.for_task("seqrec", "eval")]
    rows = lines(path)
    assert [(row["template_id"], row["user"]) for row in rows] == [
        (template, user) for template in serving for user in split.test.users
    ]
    run("--output", path, "--templates", serving[3], serving[1], "--k", 5)
    chosen = [row for t in (serving[3], serving[1]) for row in rows if row["template_id"] == t]
    assert [row["ranked"] for row in lines(path)] == [row["ranked"] for row in chosen]


def test_other_wording(run, shop, predicted, tmp_path):
    own = tmp_path / "prompts"
    own.mkdir()
    (own / "seqrec.yaml").write_text(
        "task: seqrec\ntemplates:\n  - id: mine\n    question: \"{{ history | join('+') }}\"\n"
        '    answer: "{{ target }}"\n'
    )
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--prompts", own, "--batch-tokens", 700)
    assert {row["template_id"] for row in lines(path)} == {"mine"}
    assert [row["ranked"] for row in lines(path)] != [row["ranked"] for row in lines(predicted)]
    (own / "system.yaml").write_text('system: "Answer in haste."\n')
    run("--output", path, "--prompts", own, "--batch-tokens", 700)
    record = read_json(tmp_path / "predictions.lcrec.json")
    assert set(record["inputs"]) == {"model", "item", "inter", "prompts"}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision(run, tmp_path, precision):
    run("--output", tmp_path / "p.jsonl", "--precision", precision)
    assert all(len(set(row["ranked"])) == 20 for row in lines(tmp_path / "p.jsonl"))


def test_items_that_were_added(run, grown, tmp_path, capsys):
    path = tmp_path / "predictions.jsonl"
    words = ("--output", path, "--k", 50, "--index", grown / "index")
    run(*words, data=grown / "data")
    assert all(sorted(row["ranked"]) == list(range(50)) for row in lines(path))
    assert set(read_json(tmp_path / "predictions.lcrec.json")["inputs"]) >= {"model", "index"}
    run("--history", 49, "--k", 50, "--index", grown / "index", data=grown / "data")
    assert capsys.readouterr().out.count("Brand new lamp") == 2  # had, and recommended


def test_added_items_need_the_data_and_the_index_that_have_them(run, grown, shop, tmp_path):
    out = ("--output", tmp_path / "p.jsonl")
    with pytest.raises(InputError, match=r"was made from another item file"):
        run(*out, data=grown / "data")
    with pytest.raises(InputError, match=r"index was made from another item file .*--add NEW"):
        run(*out, "--index", grown / "index", data=shop)
    with pytest.raises(InputError, match=r"index.json: no such file"):
        run(*out, "--index", tmp_path, data=shop)
    shutil.copy(grown / "index" / "index.json", tmp_path)  # without the record of its making
    with pytest.raises(InputError, match=r"has 48 items, the index of .* has 50: they do not"):
        run(*out, "--index", tmp_path / "index.json", data=shop)
    assert not (tmp_path / "p.jsonl").exists()


# One request.


def test_one_user(run, shop_items, predicted, split, capsys):
    run("--user", "17", "--k", 5)
    out = capsys.readouterr().out
    assert "had, latest last:" in out
    had, recommended = out.split("recommended:")
    for item in split.test.histories[17].tolist()[-5:]:
        assert shop_items.title(item)[:80] in had
    shown = [line.split() for line in recommended.strip().splitlines()]
    ranked = lines(predicted)[17]["ranked"][:5]
    assert [(int(row[0]), int(row[1])) for row in shown] == list(enumerate(ranked, start=1))
    for row, item in zip(shown, ranked, strict=True):
        assert shop_items.title(item)[:80] == " ".join(row[3:])


def test_one_history(run, checkpoint, capsys):
    run("--history", 12, 7, 33, "--k", 4)
    shown = capsys.readouterr().out.split("recommended:")[1].strip().splitlines()
    expected = Recommender.from_pretrained(checkpoint).recommend([[12, 7, 33]], 4).items[0]
    assert [int(line.split()[1]) for line in shown] == expected.tolist()


def test_one_history_excluded(run, capsys):
    history = list(range(40))
    run("--history", *history, "--exclude-history", "--k", 20)
    shown = capsys.readouterr().out.split("recommended:")[1].strip().splitlines()
    assert sorted(int(line.split()[1]) for line in shown) == list(range(40, ITEMS))


# Refusals. Nothing is written, and all but a few come before the model is loaded.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --output FILE.jsonl"),
        (["--user", "1", "--history", "2"], "give one of --output"),
        (["--user", "1", "--output", "x.jsonl"], "give one of --output"),
        (["--output", "x.csv"], r"--output x\.csv: .* such as x\.jsonl"),
        (["--output", "x.jsonl", "--k", "49"], "--k 49: the catalogue has only 48"),
        (["--output", "x.jsonl", "--beams", "49"], "--beams 49: the catalogue has only 48"),
        (["--output", "x.jsonl", "--beams", "9"], "--beams 9 cannot rank --k 20"),
        (["--output", "x.jsonl", "--k", "0"], "--k: 0 is too small"),
        (["--user", "6O"], "--user 6O: not in the data set; did you mean '6'"),
        (["--user", "nobody"], "--user nobody: not in the data set$"),
        (["--history", "3", "48"], "--history: item 48 is not in the catalogue.* 0 to 47"),
        (["--history", "-1"], "--history: item -1 is not in the catalogue"),
        (["--history", "three"], "--history: expected a whole number, found 'three'"),
        (["--user", "1", "--templates", "next-shor"], "no template.*did you mean 'next-short'"),
        (["--user", "1", "--templates", "title-words"], "no template|belongs to item2index"),
        (["--output", "x.jsonl", "--prompts", "nowhere"], "--prompts nowhere: no such folder"),
        (["--output", "x.jsonl", "--split", "train"], "'train' is none of valid, test"),
        (["--outptu", "x.jsonl"], "unknown argument '--outptu'; did you mean '--output'"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        run(*words)
    assert not list(tmp_path.iterdir())


def test_a_wording_of_another_task(run, prompts):
    other = prompts.for_task("item2index", "eval")[0].id
    with pytest.raises(InputError, match=rf"--templates {other}: belongs to item2index"):
        run("--user", "1", "--templates", other)


def test_an_empty_history(run, tmp_path):
    (tmp_path / "c.yaml").write_text("history: []\n")
    with pytest.raises(InputError, match="--history: the list is empty"):
        run("--config", tmp_path / "c.yaml")


def test_what_is_no_checkpoint(run, base, tmp_path):
    for model in (base, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=rf"--model {model}: not a checkpoint of lcrec"):
            run("--output", tmp_path / "p.jsonl", model=model)
    assert not list(tmp_path.iterdir())


def test_data_of_another_catalogue(run, shop, tmp_path):
    data = with_sequences(shop, tmp_path / "data", {"ann": [0, 1, 2]})
    items = read_json(data / "Shop.item.json")
    items["5"]["title"] = "Something else"
    write_json(data / "Shop.item.json", items)
    with pytest.raises(InputError, match=r"was made from another item file.*finetune\.py --data"):
        run("--output", tmp_path / "p.jsonl", data=data)
    assert not (tmp_path / "p.jsonl").exists()


def test_users_with_too_few_items(run, shop, tmp_path):
    data = with_sequences(shop, tmp_path / "data", {"ann": [0, 1, 2], "bob": [3, 4]})
    with pytest.raises(InputError, match=r"fewer than 3 items.*'bob'"):
        run("--output", tmp_path / "p.jsonl", data=data)


def test_a_user_who_has_everything(run, shop, tmp_path):
    data = with_sequences(shop, tmp_path / "data", {"ann": [*range(ITEMS), 0]})
    with pytest.raises(InputError, match="at least one item"):
        run("--output", tmp_path / "p.jsonl", "--exclude-history", data=data)
    assert not (tmp_path / "p.jsonl").exists()
