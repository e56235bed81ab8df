"""A request's fused ranking is what `fuse` writes for the same user, and keeps what is asked."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.core.provenance import provenance_path
from lcrec.data.folder import Interactions
from lcrec.generate.__main__ import main
from lcrec.generate.fusion import CountedFusion, FusionSettings
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.rankings.predictions import read_predictions

WAYS = [("rrf", False), ("score", False), ("score", True), ("adaptive", False), ("adaptive", True)]


def only_list(path):
    (ranked,) = read_predictions(path).ranked.values()
    (scores,) = read_predictions(path).scores.values()
    return ranked, scores


@pytest.mark.parametrize(("how", "turned"), WAYS)
def test_a_user_gets_what_fuse_writes(fused, checkpoint, shop, tmp_path, capsys, how, turned):
    file = fused(how, turned=turned)
    joint, joint_scores = only_list(file)
    model, _ = only_list(file.with_name("model.test.jsonl"))
    counted, counts = only_list(file.with_name("counted.test.jsonl"))
    output = tmp_path / "p.jsonl"
    words = ["--model", checkpoint, "--data", shop, "--fuse", file, "--output", output]
    capsys.readouterr()
    main([*map(str, words), "--k", "12"])
    weights = json.loads(provenance_path(file).read_text()).get("adaptive", {}).get("weights")
    weights = weights or FusionSettings.read(file).weights
    told = f"weight {weights[turned]:.3g} for the model's ranking and {weights[not turned]:.3g} for"
    assert told in capsys.readouterr().out
    found, scores = only_list(output)
    assert len(found) == len(joint) == 60
    for user in range(len(found)):
        known = {*model[user], *counted[user][counts[user] > 0]}
        kept = np.flatnonzero(np.isin(joint[user], [*known]))[:12]
        assert found[user].tolist() == joint[user][kept].tolist()
        assert scores[user] == pytest.approx(joint_scores[user][kept], abs=1e-4)
    assert (found != model[:, :12]).any()


@pytest.fixture
def recommender(checkpoint):
    return Recommender.from_pretrained(checkpoint)


def count(recommender, sequences, settings):
    counted = Interactions.from_sequences({str(u): own for u, own in enumerate(sequences)})
    recommender.fusion = CountedFusion.count(settings, counted, len(recommender.index))


def test_what_is_counted_comes_first_but_not_against_the_request(recommender):
    """Items 4 to 7 follow item 3, in this order by how often; nothing is near item 20."""
    plain = recommender.recommend([[3], [20]], 10)
    rows = [[3, item] for item in (4, 5, 6, 7) for _ in range(8 - item)]
    settings = FusionSettings(weights=(0.0, 1.0))
    count(recommender, rows, settings)
    items = recommender.recommend([[3], [20]], 10).items.tolist()
    assert items[0][:4] == [4, 5, 6, 7]
    assert items[0][4:] == [item for item in plain.items[0] if item not in (4, 5, 6, 7)][:6]
    assert items[1] == plain.items[1].tolist()

    def first(k=4, **options):
        return recommender.recommend([[3]], k, **options).items[0].tolist()

    assert first(deny=[[5]])[:3] == [4, 6, 7]
    assert 5 not in first(40, deny=[[5]])
    assert first(2, allow=[[7, 6, 30]]) == [6, 7]
    assert sorted(first(3, allow=[[7, 6, 30]])) == [6, 7, 30]
    count(recommender, [[3, 3, 3, 4]], settings)
    assert first(1) == [3]
    assert first(1, exclude_history=True) == [4]
    assert 3 not in first(48, exclude_history=True)
    assert sorted(first(48)) == list(range(48))
    assert first(2, allow=[[7]]) == [7, -1]
    with pytest.raises(InputError, match="5 beams cannot give 6 items"):
        first(6, num_beams=5)


@pytest.mark.parametrize("twice", [[], [9]])
def test_a_model_of_weight_0_decides_between_no_counted_items(recommender, twice):
    plain = recommender.recommend([[3]], 20).items[0]
    rows = [[3, item] for item in (40, 4, 21, 9, *twice)]
    count(recommender, rows, FusionSettings(weights=(0.0, 1.0)))
    found = recommender.recommend([[3]], 10)
    first = sorted((4, 9, 21, 40), key=lambda item: (item not in twice, item))
    assert found.items[0].tolist() == [*first, *plain[~np.isin(plain, first)][:6]]
    assert (np.diff(found.scores[0]) <= 0).all()


def test_in_company_or_alone_a_fused_ranking_is_the_same(recommender, split, fused):
    settings = replace(FusionSettings.read(fused("adaptive")), length=6, num_beams=9)
    recommender.fusion = CountedFusion.count(settings, split.train, len(recommender.index))
    requests = [
        RankingRequest(history, k=1 + case % 9, exclude_history=case % 2 == 0, counted=history[:-1])
        for case, history in enumerate(split.test.histories[:30])
    ]
    requests[3] = replace(requests[3], allow=range(7), k=7)
    together = recommender.rank(requests)
    for row, request in enumerate(requests):
        alone = recommender.rank([request])
        assert alone.items[0].tolist() == together.items[row, : request.k].tolist()
        assert alone.scores[0] == pytest.approx(together.scores[row, : request.k], abs=1e-4)
        assert (together.items[row, request.k :] == -1).all()
        assert (alone.items >= 0).all()


def test_one_request_and_all_users(fused, checkpoint, shop, tmp_path, capsys):
    """What is hidden is not counted; otherwise all is."""
    from lcrec.data.data_set import load_data

    data = load_data(shop)
    model = ["--model", str(checkpoint), "--data", str(shop), "--fuse", str(fused("adaptive"))]
    main([*model, "--all-users", "--output", str(tmp_path / "all"), "--k", "5"])
    (part,) = (tmp_path / "all").glob("part-*.jsonl")
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    own = Recommender.from_pretrained(checkpoint)
    settings = FusionSettings.read(fused("adaptive"))
    own.fusion = CountedFusion.count(settings, data.interactions, len(data.items))
    requests = [RankingRequest(items, k=5, counted=items) for items in data.interactions]
    assert [row["ranked"] for row in rows] == own.rank(requests).items.tolist()
    for words, counted, history in (
        ([], data.interactions, data.interactions.sequence(7)),
        (["--split", "test"], data.split.train, data.split.test.histories[7]),
    ):
        own.fusion = CountedFusion.count(settings, counted, len(data.items))
        request = RankingRequest(history, k=5, counted=counted.sequence(7))
        expected = own.rank([request]).items[0].tolist()
        capsys.readouterr()
        main([*model, "--user", data.interactions.users[7], "--k", "5", *words])
        shown = capsys.readouterr().out.split("recommended:")[1]
        assert [int(line.split()[1]) for line in shown.splitlines()[1:6]] == expected


def edited(file, tmp_path, change):
    """Return a fusion whose sidecar was changed."""
    record = json.loads(provenance_path(file).read_text())
    change(record)
    (tmp_path / "x.lcrec.json").write_text(json.dumps(record))
    return tmp_path / "x.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("methods"), "lacks what a service needs (KeyError: 'methods'); an older"),
        (lambda r: r.pop("weights"), "KeyError: 'weights'"),
        (lambda r: r.update(weights=[1]), "lacks what a service needs"),
        (lambda r: r.update(kind="predictions"), "no fusion (it is 'predictions')"),
        (lambda r: r["methods"].append(None), "x.jsonl: joins 'predictions', 'baselines cooccurr"),
        (lambda r: r["methods"][1].update(kind="baselines ease"), "'baselines ease'; requests can"),
        (lambda r: r["methods"][0]["inputs"].update(fuse="1"), "were fused already"),
        (lambda r: r["methods"][0]["inputs"].update(item="1234"), "another catalogue than that of"),
    ],
)
def test_fusions_that_cannot_be_used(fused, checkpoint, shop, tmp_path, change, message):
    file = edited(fused("score"), tmp_path, change)
    words = ["--model", checkpoint, "--data", shop, "--history", "1", "--fuse", file]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        main([*map(str, words)])
    assert f"--fuse {file}: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fuse", "nowhere.jsonl"], "no fusion (nowhere.lcrec.json: no such file)"),
        (["--fuse", "cooccurrence", "--constraint", "level"], "--fuse needs --constraint trie"),
        (["--fuse", "cooccurrence", "--templates", "all"], "one template"),
        (["--fuse", "cooccurrence", "--query", "ink"], "leave it out with --query"),
    ],
)
def test_flags_that_do_not_go_together(checkpoint, shop, words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--model", str(checkpoint), "--data", str(shop), "--history", "1", *words])


def test_a_fusion_is_not_replaced_by_what_it_makes(tmp_path):
    file = str(tmp_path / "fused.jsonl")
    words = ["--model", "m", "--data", "d", "--output", file, "--fuse", file, "--overwrite"]
    with pytest.raises(InputError, match="is read from there"):
        main(words)
