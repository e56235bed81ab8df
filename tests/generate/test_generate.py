"""Predictions for a split by one and several processes, the view of one user, every refusal."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lcrec.core.artifacts import find_data, read_json, write_json
from lcrec.core.console import printable
from lcrec.core.errors import InputError
from lcrec.core.provenance import write_provenance
from lcrec.data.folder import Items, load_interactions
from lcrec.data.id_map import IdMap
from lcrec.data.splits import leave_one_out
from lcrec.generate import __main__ as generate
from lcrec.generate import many_users
from lcrec.generate.one_request import show_ranking
from lcrec.generate.recommender import Recommender
from lcrec.modeling.checkpoint import CheckpointFacts
from lcrec.prompts.tasks import TASKS
from lcrec.rankings.fusion import join_lists
from lcrec.rankings.predictions import read_predictions

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
    """Make a data folder that goes on from the shop, with these users."""
    folder.mkdir()
    shutil.copy(find_data(shop).item, folder)
    write_json(folder / "Shop.inter.json", sequences)
    inputs = {"inter": find_data(shop).inter}
    write_provenance(folder, "python -m lcrec.add_interactions", {}, inputs)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_user_gets_the_recommenders_list(predicted, shop, split, checkpoint, run, tmp_path):
    rows = lines(predicted)
    assert [row["user"] for row in rows] == split.test.users
    assert [row["target"] for row in rows] == split.test.targets.tolist()
    for row in rows:
        assert len(row["ranked"]) == len(set(row["ranked"])) == 20
        assert set(row["ranked"]) <= set(range(ITEMS))
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert row["template_id"] == "next-short"
    ranking = Recommender.from_pretrained(checkpoint, max_batch_tokens=700).recommend(
        split.test.histories, 20
    )
    assert (read_predictions(predicted).ranked["next-short"] == ranking.items).all()
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
    # Another setting is done again.
    run("--output", path, "--k", 4)
    assert {len(row["ranked"]) for row in lines(path)} == {4}
    assert "up to date" not in capsys.readouterr().out
    record = read_json(tmp_path / "predictions.lcrec.json")
    assert record["config"]["k"] == 4
    assert set(record["inputs"]) == {"model", "item", "inter"}


@pytest.mark.slow
def test_several_processes_give_the_same(run, run_command, checkpoint, shop, predicted, tmp_path):
    path = tmp_path / "predictions.jsonl"
    out = run_command(
        *("-m", "torch.distributed.run", "--nproc_per_node", 3, "-m", "lcrec.generate"),
        *("--model", checkpoint, "--data", shop, "--output", path, "--batch-tokens", 100),
    )
    assert "for 60 users with 1 template(s) on 3 process(es)" in out
    assert out.count("Wrote") == 1
    # Parts are dealt out unevenly.
    alone = tmp_path / "alone.jsonl"
    run("--output", alone, "--batch-tokens", 100)
    assert path.read_bytes() == alone.read_bytes()
    assert [row["user"] for row in lines(path)] == [row["user"] for row in lines(predicted)]
    assert [row["ranked"] for row in lines(path)] == [row["ranked"] for row in lines(predicted)]


@pytest.mark.parametrize("share", ["auto", "0.5", "0"])
def test_a_share_of_popularity_is_subtracted(run, predicted, tmp_path, capsys, share):
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--calibrate", share, "--batch-tokens", 700)
    out = capsys.readouterr().out
    chosen = read_json(tmp_path / "predictions.lcrec.json")["calibrate"]
    if share == "auto":
        assert f"--calibrate {chosen:g}, by NDCG@10 of 60 validation users" in out
    else:
        assert chosen == float(share)
    before, after = (read_predictions(file).scores["next-short"] for file in (predicted, path))
    assert (before == after).all() == (chosen == 0)


def test_histories_of_any_length(run, checkpoint, shop, tmp_path):
    long = list(range(30))
    sequences = {
        "shortest": [5, 6, 7], "long": long, "its end": long[-6:], "repeats": [4, 4, 4, 4, 4, 4],
        "another": [9, 8, 7, 6],
    }  # fmt: skip
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


def test_every_wording_answers_for_every_user(run, prompts, shop, tmp_path):
    users = {f"user {number}": [number, 7, 9, 30 - number] for number in range(9)}
    data = with_sequences(shop, tmp_path / "data", users)
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--templates", "all", "--k", 5, data=data)
    serving = [template.id for template in prompts.for_task("seqrec", "eval")]
    rows = lines(path)
    assert [(row["template_id"], row["user"]) for row in rows] == [
        (template, user) for template in serving for user in users
    ]
    run("--output", path, "--templates", serving[3], serving[1], "--k", 5, data=data)
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


def test_a_killed_run_goes_on_where_it_stopped(run, predicted, tmp_path, monkeypatch, capsys):
    path, asked = tmp_path / "predictions.jsonl", []
    rank = Recommender.rank_batch

    monkeypatch.setattr(Recommender, "rank_batch", counting(rank, asked, 55))
    with pytest.raises(KeyboardInterrupt):
        run("--output", path)
    assert not path.exists()
    parts = sorted(file.name for file in (tmp_path / ".predictions.jsonl.parts").glob("*.jsonl"))
    assert parts == [f"part-{number:05}.jsonl" for number in range(13)]  # of 4 users each

    del asked[:]
    monkeypatch.setattr(Recommender, "rank_batch", counting(rank, asked))
    run("--output", path)
    assert "Going on: 13 of 15 parts are there." in capsys.readouterr().out
    assert sum(asked) == 8
    assert [row["ranked"] for row in lines(path)] == [row["ranked"] for row in lines(predicted)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "predictions.jsonl",
        "predictions.lcrec.json",
    ]


def counting(rank, asked, most=10**9):
    """Return `rank`, which notes its batches' sizes in `asked` and is killed beyond `most` rows."""

    def call(self, prompt_ids, *arguments, **options):
        asked.append(len(prompt_ids))
        if sum(asked) > most:
            raise KeyboardInterrupt
        return rank(self, prompt_ids, *arguments, **options)

    return call


def test_parts_made_of_something_else_are_not_joined(run, tmp_path, monkeypatch, capsys):
    path, parts = tmp_path / "p.jsonl", tmp_path / ".p.jsonl.parts"
    run("--output", tmp_path / "five.jsonl", "--k", 5)
    monkeypatch.setattr(many_users, "join_split_parts", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--output", path, "--k", 4)
    assert len(list(parts.iterdir())) == 16
    monkeypatch.undo()
    run("--output", path, "--k", 5)
    assert "Starting anew" in capsys.readouterr().out
    assert path.read_bytes() == (tmp_path / "five.jsonl").read_bytes()
    assert not parts.exists()


def test_looser_constraints(run, predicted, split, tmp_path):
    """The shop has every sequence of the codes that its levels use, so a level rule is its tree."""
    path = tmp_path / "predictions.jsonl"
    run("--output", path, "--constraint", "level")
    assert [row["ranked"] for row in lines(path)] == [row["ranked"] for row in lines(predicted)]
    run("--output", path, "--constraint", "none")
    rows = lines(path)
    assert [row["user"] for row in rows] == split.test.users
    assert [row["target"] for row in rows] == split.test.targets.tolist()
    assert any(len(row["ranked"]) < 20 for row in rows)
    for row in rows:
        assert len(row["ranked"]) == len(set(row["ranked"])) == len(row["scores"])
        assert set(row["ranked"]) <= set(range(ITEMS))
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert read_json(tmp_path / "predictions.lcrec.json")["config"]["constraint"] == "none"


def test_no_template_is_called_as_the_joint_rankings_are(run, tmp_path):
    """Each list would be taken for the other, and the files cut in the wrong places."""
    (tmp_path / "seqrec.yaml").write_text(
        "task: seqrec\ntemplates:\n"
        '  - {id: ensemble, question: "{{ history | join(\' \') }}", answer: "{{ target }}"}\n'
        '  - {id: b, question: "{{ history | join(\'+\') }}", answer: "{{ target }}"}\n'
    )
    words = ["--output", tmp_path / "p.jsonl", "--prompts", tmp_path, "--ensemble", "--templates"]
    for named in (["all"], ["b", "ensemble"]):
        with pytest.raises(InputError, match="a template is called 'ensemble'"):
            run(*words, *named)


def test_wordings_are_joined(run, prompts, split, tmp_path, capsys):
    path, serving = tmp_path / "p.jsonl", prompts.for_task("seqrec", "eval")[:3]
    names = [template.id for template in serving]
    run("--output", path, "--templates", *names, "--ensemble", "--k", 4)
    assert f"--predictions {path} {tmp_path / 'p.ensemble.jsonl'}" in capsys.readouterr().out
    each = read_predictions(path)
    assert list(each.ranked) == names
    joint = read_predictions(tmp_path / "p.ensemble.jsonl")
    assert list(joint.ranked) == ["ensemble"]
    assert joint.users == each.users == split.test.users
    by_user = {}
    for row in lines(path):
        by_user.setdefault(row["user"], []).append(row)
    for row in lines(tmp_path / "p.ensemble.jsonl"):
        lists = [dict(zip(r["ranked"], r["scores"], strict=True)) for r in by_user[row["user"]]]
        means = {
            item: sum(own.get(item, min(own.values())) for own in lists) / 3
            for item in set().union(*lists)
        }
        best = sorted(means, key=lambda item: -means[item])[:4]
        assert row["ranked"] == best
        assert row["scores"] == pytest.approx([means[item] for item in best], rel=1e-5)
    run("--output", path, "--templates", *names, "--ensemble", "--k", 4)
    assert "is up to date" in capsys.readouterr().out


def test_allowed_and_denied_items(run, split, tmp_path):
    (tmp_path / "stock.txt").write_text("".join(f"{item}\n" for item in range(10, 40)) + "\n")
    (tmp_path / "sold.txt").write_text(" 10\r\n11\n")
    path = tmp_path / "p.jsonl"
    lists = ["--allow", tmp_path / "stock.txt", "--deny", tmp_path / "sold.txt"]
    run("--output", path, *lists, "--k", 28)
    assert all(sorted(row["ranked"]) == list(range(12, 40)) for row in lines(path))
    run("--output", path, *lists, "--k", 28, "--exclude-history")
    for row, history in zip(lines(path), split.test.histories, strict=True):
        assert sorted(row["ranked"]) == sorted({*range(12, 40)} - {*history.tolist()})
    assert {"allow", "deny"} <= set(read_json(tmp_path / "p.lcrec.json")["inputs"])
    # Another stock is another result.
    (tmp_path / "sold.txt").write_text("10\n12\n")
    run("--output", path, *lists, "--k", 28)
    assert all(12 not in row["ranked"] for row in lines(path))


@pytest.fixture(scope="module")
def everyone(shop, tmp_path_factory):
    """A data folder with users of one and two items among others."""
    folder = tmp_path_factory.mktemp("everyone") / "data"
    sequences = {f"user {n}": [n % ITEMS, (7 * n) % ITEMS, n // 2][: 1 + n % 3] for n in range(23)}
    return with_sequences(shop, folder, sequences)


def all_lists(folder):
    return [row for part in sorted(folder.glob("part-*.jsonl")) for row in lines(part)]


def test_all_users_by_what_they_have(run, everyone, checkpoint, tmp_path, capsys):
    out = tmp_path / "lists"
    run("--output", out, "--all-users", "--shard-users", 10, "--k", 5, data=everyone)
    assert f"Wrote {out}: 23 users in 3 file(s)" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "lcrec.json",
        *(f"part-0000{number}.jsonl" for number in range(3)),
    ]
    rows = all_lists(out)
    sequences = read_json(everyone / "Shop.inter.json")
    assert [row["user"] for row in rows] == list(sequences)
    assert all(set(row) == {"user", "ranked", "scores", "template_id"} for row in rows)
    expected = Recommender.from_pretrained(checkpoint).recommend(list(sequences.values()), 5)
    assert [row["ranked"] for row in rows] == expected.items.tolist()
    run("--output", out, "--all-users", "--shard-users", 10, "--k", 5, data=everyone)
    assert "is up to date" in capsys.readouterr().out


def test_killed_while_it_is_recorded_it_ranks_nobody_again(
    run, everyone, tmp_path, monkeypatch, capsys
):
    """What was read is hashed then, which takes a while of a large model."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    words = ["--output", tmp_path / "lists", "--all-users", "--shard-users", 10, "--k", 5]
    monkeypatch.setattr(generate, "write_provenance", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*words, data=everyone)
    monkeypatch.undo()
    run(*words, data=everyone)
    assert "Going on: 3 of 3 parts are there." in capsys.readouterr().out
    assert len(all_lists(tmp_path / "lists")) == 23


def test_says_that_no_user_has_an_item_twice(run, shop, tmp_path, capsys):
    told = "No user of {} is known to have an item twice: --exclude-history leaves"
    words = ["--output", tmp_path / "lists", "--all-users", "--overwrite"]
    again = with_sequences(shop, tmp_path / "again", {"ann": [3, 7], "bob": [7, 1, 7]})
    run(*words, data=again)
    assert told.format(again) not in capsys.readouterr().out
    once = with_sequences(shop, tmp_path / "once", {"ann": [3, 7], "bob": [7, 1]})
    run(*words, data=once)
    assert told.format(once) in capsys.readouterr().out
    run(*words, "--exclude-history", data=once)
    assert told.format(once) not in capsys.readouterr().out


def test_says_how_many_targets_the_mask_hides(run, shop, tmp_path, capsys):
    data = with_sequences(shop, tmp_path / "again", {"ann": [3, 7, 1, 3], "bob": [7, 1, 5, 4]})
    told = "50.0% of the targets are items that their users have already"
    run("--output", tmp_path / "all.jsonl", data=data)
    assert told not in capsys.readouterr().out
    run("--output", tmp_path / "new.jsonl", "--exclude-history", data=data)
    assert told in capsys.readouterr().out
    assert 3 not in lines(tmp_path / "new.jsonl")[0]["ranked"]


def test_a_user_with_everything_gets_an_empty_ranking(run, shop, tmp_path, capsys):
    data = with_sequences(shop, tmp_path / "data", {"ann": [*range(ITEMS)], "bob": [3, 4]})
    run("--output", tmp_path / "lists", "--all-users", "--exclude-history", data=data)
    assert "user 'ann': nothing is left to recommend, so the ranking is empty\n" in (
        capsys.readouterr().out
    )
    ann, bob = all_lists(tmp_path / "lists")
    assert ann["ranked"] == ann["scores"] == []
    assert len(bob["ranked"]) == 20
    data = with_sequences(shop, tmp_path / "split", {"ann": [*range(ITEMS), 0], "bob": [3, 4, 5]})
    run("--output", tmp_path / "p.jsonl", "--exclude-history", data=data)
    assert [len(line["ranked"]) for line in lines(tmp_path / "p.jsonl")] == [0, 20]


def test_parquet_holds_the_same(run, everyone, tmp_path):
    from pyarrow import parquet

    words = ["--all-users", "--shard-users", 10, "--k", 5, "--exclude-history"]
    run("--output", tmp_path / "rows", *words, data=everyone)
    run("--output", tmp_path / "tables", *words, "--format", "parquet", data=everyone)
    tables = sorted((tmp_path / "tables").glob("part-*.parquet"))
    assert [row for path in tables for row in parquet.read_table(path).to_pylist()] == [
        {**row, "scores": pytest.approx(row["scores"])} for row in all_lists(tmp_path / "rows")
    ]


def test_a_killed_run_for_all_users_goes_on_and_replaces_the_last(
    run, everyone, tmp_path, monkeypatch
):
    out = tmp_path / "lists"
    words = ["--output", out, "--all-users", "--shard-users", 10]
    run(*words, "--k", 3, data=everyone)
    old = all_lists(out)
    rank, asked = Recommender.rank_batch, []

    monkeypatch.setattr(Recommender, "rank_batch", counting(rank, asked, 20))
    with pytest.raises(KeyboardInterrupt):
        run(*words, "--k", 4, data=everyone)
    assert all_lists(out) == old  # whoever reads the folder sees one run, whole
    del asked[:]
    monkeypatch.setattr(Recommender, "rank_batch", counting(rank, asked))
    run(*words, "--k", 4, data=everyone)
    assert sum(asked) == 3
    rows = all_lists(out)
    assert [row["user"] for row in rows] == [row["user"] for row in old]
    assert {len(row["ranked"]) for row in rows} == {4}
    assert [path.name for path in tmp_path.iterdir()] == ["lists"]


@pytest.mark.slow
def test_several_processes_give_all_users_the_same(
    run, run_command, everyone, checkpoint, tmp_path
):
    words = ["--all-users", "--shard-users", 5, "--k", 5, "--templates", "next-short", "next-bare"]
    out = run_command(
        *("-m", "torch.distributed.run", "--nproc_per_node", 2, "-m", "lcrec.generate"),
        *("--model", checkpoint, "--data", everyone, "--output", tmp_path / "many", *words),
    )
    assert "on 2 process(es)" in out
    run("--output", tmp_path / "one", *words, data=everyone)
    names = [path.name for path in sorted((tmp_path / "one").glob("part-*"))]
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_users_without_items(run, shop, tmp_path):
    data = with_sequences(shop, tmp_path / "data", {"ann": [0], "bob": []})
    with pytest.raises(InputError, match=r"1 users have no items .first: user 'bob'"):
        run("--output", tmp_path / "lists", "--all-users", data=data)
    assert not (tmp_path / "lists").exists()


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
    with pytest.raises(InputError, match=r"items joined after --model .* with --index, made with"):
        run(*out, data=grown / "data")
    with pytest.raises(InputError, match=r"index was made from another item file .*quantize"):
        run(*out, "--index", grown / "index", data=shop)
    with pytest.raises(InputError, match=r"index.json: no such file"):
        run(*out, "--index", tmp_path, data=shop)
    shutil.copy(grown / "index" / "index.json", tmp_path)  # without the record of its making
    with pytest.raises(InputError, match=r"has 48 items, the index of .* has 50: they do not"):
        run(*out, "--index", tmp_path / "index.json", data=shop)
    assert not (tmp_path / "p.jsonl").exists()


def test_nothing_of_one_user_is_hidden(run, shop, shop_items, split, capsys):
    everything = load_interactions(shop, len(shop_items)).sequence(17).tolist()
    for words, had in (
        ([], everything),
        (["--split", "test"], everything[:-1]),
        (["--split", "valid"], everything[:-2]),
    ):
        run("--user", "17", "--k", 5, *words)
        shown = capsys.readouterr().out.split("recommended:")[0]
        assert shop_items.title(had[-1])[:80] in shown.strip().splitlines()[-1]


@pytest.mark.usefixtures("fast_bf16")
def test_one_user(run, shop_items, predicted, split, capsys):
    run("--user", "17", "--k", 5, "--split", "test")
    out = capsys.readouterr().out
    assert "--precision bf16 saves time" in out
    assert "had, latest last:" in out
    had, recommended = out.split("recommended:")
    for item in split.test.histories[17].tolist()[-5:]:
        assert shop_items.title(item)[:80] in had
    shown = [line.split() for line in recommended.strip().splitlines()]
    ranked = lines(predicted)[17]["ranked"][:5]
    assert [(int(row[0]), int(row[1])) for row in shown] == list(enumerate(ranked, start=1))
    for row, item in zip(shown, ranked, strict=True):
        assert shop_items.title(item)[:80] == " ".join(row[3:])


def test_a_catalogue_of_fewer_items_than_the_default(tmp_path):
    write_json(tmp_path / "Tiny.item.json", {"0": {"title": "lamp"}})
    write_json(tmp_path / "Tiny.inter.json", {"ann": [0, 0, 0]})
    words = ["--data", str(tmp_path), "--model", str(tmp_path), "--user", "ann"]
    with pytest.raises(InputError, match="not a checkpoint"):  # what comes after the counts
        generate.main(words)
    with pytest.raises(InputError, match="--k 20: the catalogue has only 1 items"):
        generate.main([*words, "--k", "20"])


def test_titles_cannot_command_the_terminal(capsys):
    items = Items(
        [{"title": "Lamp\x1b[2J\n    1  0  faked"}, {"title": "Rug\u202e"}, {"description": "soft"}]
    )
    ids = IdMap("item", ["0", "1", "2"], is_raw=False)
    show_ranking(items, ids, [], np.array([2]))
    assert "    1       2  (no title)\n" in capsys.readouterr().out
    show_ranking(items, ids, [0], np.array([0, 1]), target=1)
    show_ranking(items, ids, [1], np.array([0]), target=1)
    out = capsys.readouterr().out
    assert out.count(r"Lamp\x1b[2J\n    1  0  faked") == 3
    assert not set(out) & {"\x1b", "\u202e"}


def ranked_on_screen(out):
    """Return the ids in the table of a request."""
    table = out.split("recommended:\n")[1].split("  the model")[0]
    return [int(line.split()[1]) for line in table.strip().splitlines()]


def test_one_request_in_several_wordings(run, checkpoint, capsys):
    loaded = Recommender.from_pretrained(checkpoint)
    names = ["next-short", "next-bare"]
    run("--history", 12, 7, "--k", 5, "--templates", *names)
    both = [loaded.recommend([[12, 7]], 5, template=loaded.prompts.get(name)) for name in names]
    items, _ = join_lists(
        *(np.stack([getattr(r, n) for r in both]) for n in ("items", "scores")), 5
    )
    assert ranked_on_screen(capsys.readouterr().out) == items[0].tolist()
    history = list(range(40))
    run("--history", *history, "--exclude-history", "--k", 20)
    shown = capsys.readouterr().out.split("recommended:")[1].strip().splitlines()
    assert sorted(int(line.split()[1]) for line in shown) == list(range(40, ITEMS))


@pytest.fixture
def taught(monkeypatch):
    """Every checkpoint passes for one trained on all tasks."""
    read = CheckpointFacts.read

    def call(folder):
        return replace(read(folder), tasks=tuple(TASKS))

    monkeypatch.setattr(CheckpointFacts, "read", call)


@pytest.mark.usefixtures("taught")
def test_a_query(run, checkpoint, split, capsys):
    loaded = Recommender.from_pretrained(checkpoint)
    run("--query", "a desk lamp", "--k", 4)
    out = capsys.readouterr().out
    assert "looks for: a desk lamp" in out
    assert "had, latest last" not in out
    assert ranked_on_screen(out) == loaded.search(["a desk lamp"], k=4).items[0].tolist()
    run("--query", "a desk lamp", "--user", "17", "--k", 4, "--exclude-history", "--split", "test")
    history = split.test.histories[17]
    expected = loaded.search(["a desk lamp"], histories=[history], k=4, exclude_history=True).items[
        0
    ]
    assert ranked_on_screen(capsys.readouterr().out) == expected.tolist()
    run("--query", "a desk lamp", "--k", 4, "--templates", "all")
    assert len(ranked_on_screen(capsys.readouterr().out)) == 4


@pytest.mark.usefixtures("taught", "unloaded")
def test_a_query_that_no_wording_asks(run, tmp_path):
    own = tmp_path / "prompts"
    own.mkdir()
    (own / "itemsearch.yaml").write_text(
        "task: itemsearch\ntemplates:\n  - id: both\n"
        "    question: \"{{ history | join(' ') }}: {{ intention }}\"\n"
        '    answer: "{{ target }}"\n'
    )
    for wanted in ("first", "all"):
        with pytest.raises(InputError, match=r"no template of itemsearch .* intention alone"):
            run("--query", "a lamp", "--prompts", own, "--templates", wanted)


@pytest.mark.usefixtures("taught")
def test_an_explanation(run, checkpoint, capsys):
    run("--history", 12, 7, "--k", 2, "--explain")
    out = capsys.readouterr().out
    loaded = Recommender.from_pretrained(checkpoint)
    (words,) = loaded.explain([[12, 7]], [ranked_on_screen(out)])
    assert f"the model takes them to like: {printable(words.preference)}" in out
    assert out.rstrip().endswith(f"  2 {printable(words.titles[1])}".rstrip())


def test_one_request_with_lists(run, tmp_path, capsys):
    (tmp_path / "stock.txt").write_text("3\n5\n40\n")
    run("--history", 12, 7, "--k", 3, "--allow", tmp_path / "stock.txt")
    assert sorted(ranked_on_screen(capsys.readouterr().out)) == [3, 5, 40]
    run("--history", 12, 5, "--k", 4, "--allow", tmp_path / "stock.txt", "--exclude-history")
    out = capsys.readouterr().out
    assert "--allow, --deny and --filters leave 3 of 48 items, fewer than --k 4\n" in out
    assert sorted(ranked_on_screen(out)) == [3, 40]


@pytest.mark.parametrize("flag", ["--allow", "--deny"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"3\nchair\n", "line 2: item chair is not in the catalogue, whose ids are 0 to 47"),
        (b"48\n", "line 1: item 48 is not in the catalogue, whose ids are 0 to 47"),
        (b"-1\n", "item -1 is not in the catalogue"),
        ("\u0663\n".encode(), "item \u0663 is not in the catalogue"),
        (b"9" * 5000, "item 9{60} is not in the catalogue"),
        (b"\xff\xfe", "cannot be read as UTF-8 text .*; save it as UTF-8"),
        (None, ": no such file$"),
    ],
)
def test_lists_that_hold_something_else(run, tmp_path, flag, text, message):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=f"{flag} .*list.txt.*{message}"):
        run("--history", 1, flag, path)


def test_a_night_without_a_new_item_reserves_no_place(run, checkpoint, capsys):
    run("--history", 1, "--k", 4)
    plain = capsys.readouterr().out
    run("--history", 1, "--k", 4, "--reserve-new", 2, "--index", checkpoint)
    told, table = capsys.readouterr().out.split("\n", 1)
    assert f"--reserve-new 2: --index {checkpoint} adds no item to the checkpoint's own" in told
    assert table == plain


# Refusals: before the model is loaded, and nothing is written.


ONE = """task: seqrec
templates:
- {id: only, question: "{{ history | join }}", answer: "{{ target }}"}
- {id: near, use: train, question: "Near: {{ neighbours | join }}", answer: "{{ target }}"}
"""


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
        (["--user", "6O"], "--user 6O: not in the data set; did you mean '6'"),
        (["--user", "nobody"], "--user nobody: not in the data set$"),
        (["--history", "3", "48"], "--history: item 48 is not in the catalogue.* 0 to 47"),
        (["--history", "-1"], "--history: item -1 is not in the catalogue"),
        (["--history", "three"], "--history: expected a whole number, found 'three'"),
        (["--user", "1", "--templates", "next-shor"], "no template.*did you mean 'next-short'"),
        (["--user", "1", "--templates", "name-short"], "name-short: belongs to item2index"),
        (["--output", "x.jsonl", "--prompts", "nowhere"], "--prompts nowhere: no such folder"),
        (["--all-users", "--history", "2"], "--all-users writes to a folder"),
        (["--all-users", "--output", "x", "--split", "test"], "--split test: --all-users ranks"),
        (["--user", "1", "--index", "x"], "x/index.json: no such file; make one with"),
        (["--all-users", "--output", "x", "--since", "d"], "--since d belongs to a split"),
        (["--history", "1", "--split", "test"], "--split test: hides nothing of --history"),
        (["--query", "lamp", "--split", "valid"], "--split valid: hides nothing of"),
        (["--user", "1", "--since", "d"], "--since d belongs to a split: --output FILE"),
        (["--output", "x.jsonl", "--since", "nowhere"], "nowhere: no such folder"),
        (["--explain", "--output", "x.jsonl"], "--explain belongs to one request"),
        (["--query", "lamp", "--output", "x.jsonl"], "give one of --output"),
        (["--output", "x.jsonl", "--ensemble"], "--ensemble joins several templates"),
        (
            ["--output", "x.jsonl", "--ensemble", "--templates", "all", "--prompts", "one"],
            "--ensemble joins several templates",
        ),
        (["--output", "x.jsonl", "--templates", "near", "--prompts", "one"], "near: shows neigh"),
        (["--history", "1", "--templates", "near", "--prompts", "one"], "near: shows neighbours"),
        (["--query", "lamp"], r"not trained on itemsearch .*--tasks"),
        (["--query", " "], "--query: is empty"),
        (["--history", "12", "7", "--explain"], "was not trained on index2item"),
        (["--output", "x.jsonl", "--reserve-new", "2"], "--reserve-new 2 needs --index"),
        (
            ["--output", "x.jsonl", "--calibrate", "1.5"],
            "--calibrate 1.5: give a share from 0 to 1",
        ),
        (
            ["--output", "x.jsonl", "--calibrate", "0.1", "--constraint", "level"],
            "--calibrate needs --constraint trie",
        ),
        (
            ["--output", "x.jsonl", "--reserve-new", "2", "--index", "i", "--ensemble"],
            "joining the rankings of several templates would give",
        ),
        (
            ["--output", "x.jsonl", "--reserve-new", "9", "--index", "i", "--k", "5"],
            "--reserve-new 9: more places than --k 5",
        ),
        (
            ["--output", "x.jsonl", "--templates", "next-short", "next-short"],
            "next-short: is named twice",
        ),
        (
            ["--output", "x.jsonl", "--constraint", "level", "--exclude-history"],
            "--exclude-history needs --constraint trie",
        ),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_refusals(run, tmp_path, monkeypatch, words, message):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "seqrec.yaml").write_text(ONE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        run(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.usefixtures("taught", "unloaded")
def test_a_template_of_another_task(run):
    with pytest.raises(InputError, match="belongs to seqrec, not itemsearch"):
        run("--query", "a desk lamp", "--templates", "next-short")


@pytest.mark.usefixtures("unloaded")
def test_calibration_needs_a_folder_that_can_be_read(run, shop, tmp_path):
    data = with_sequences(shop, tmp_path / "data", {"ann": [0, 1, 2, 3], "bob": [3, 4, 5, 6]})
    (data / "Shop.split.json").write_text("{}")
    with pytest.raises(InputError, match=r"Shop\.split\.json"):
        run("--output", tmp_path / "out", "--all-users", "--calibrate", 0.5, data=data)


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
    with pytest.raises(InputError, match=r"from another item file.*lcrec\.finetune --data"):
        run("--output", tmp_path / "p.jsonl", data=data)
    assert not (tmp_path / "p.jsonl").exists()


def test_one_request_needs_no_split(run, shop, tmp_path, capsys):
    data = with_sequences(shop, tmp_path / "data", {"ann": [0, 1], "bob": [3, 4]})
    run("--history", 3, 4, data=data)
    asked = ranked_on_screen(capsys.readouterr().out)
    run("--user", "bob", data=data)
    assert ranked_on_screen(capsys.readouterr().out) == asked


@pytest.mark.usefixtures("unloaded")
def test_users_with_too_few_items(run, shop, tmp_path):
    data = with_sequences(shop, tmp_path / "data", {"ann": [0, 1, 2], "bob": [3, 4]})
    with pytest.raises(InputError, match="--user bob: the split holds nothing of theirs"):
        run("--user", "bob", "--split", "test", data=data)
    (tmp_path / "c.yaml").write_text("history: []\n")
    with pytest.raises(InputError, match="--history: the list is empty"):
        run("--config", tmp_path / "c.yaml")
