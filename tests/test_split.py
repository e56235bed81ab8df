"""One split, read by every stage: none sees an interaction that it keeps from it.

Item 47 is planted where it is to be tested on, and nowhere else.
"""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lcrec import dataset
from lcrec.baselines.__main__ import main as baselines
from lcrec.core.artifacts import find_data
from lcrec.core.errors import InputError
from lcrec.data.data_set import load_data
from lcrec.data.folder import Interactions
from lcrec.data.splits import TEST, cold_parts, random_parts, time_parts, write_split
from lcrec.data.user_texts import intent_subjects
from lcrec.evaluate import __main__ as evaluate
from lcrec.evaluate import checkpoint as judging
from lcrec.evaluate.templates import score_model
from lcrec.generate import __main__ as generate
from lcrec.generate.recommender import Recommender
from lcrec.intents import __main__ as intents
from lcrec.intents.requests import make_requests
from lcrec.rankings.predictions import read_predictions

PLANTED = 47
KINDS = ("time", "random", "cold-items")


def plant(kind, sequences):
    """Return the sequences and the part of each of their interactions."""
    lengths = np.array([len(own) for own in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate(sequences)
    items[items == PLANTED] = 46
    rng = np.random.default_rng(0)
    if kind == "time":
        began = np.repeat(rng.integers(0, 30, len(sequences)), lengths)
        parts = time_parts(began + np.arange(len(items)) - np.repeat(offsets[:-1], lengths))
        last = offsets[1:] - 1
        items[last[parts[last] == TEST]] = PLANTED
    elif kind == "random":
        parts = random_parts(offsets, items, 0)
        for begin, end in itertools.pairwise(offsets):
            items[begin + np.flatnonzero(parts[begin:end] == TEST)[:1]] = PLANTED
    else:
        items[offsets[:-1] + rng.integers(0, lengths - 1)] = PLANTED
        parts = cold_parts(offsets, items == PLANTED)
    return np.split(items, offsets[1:-1]), np.split(parts, offsets[1:-1])


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def planted(kind, shop, tmp_path_factory):
    """The data folder of the shop with the split and the plant."""
    folder = tmp_path_factory.mktemp(kind) / "data"
    folder.mkdir()
    paths = find_data(shop)
    shutil.copy(paths.item, folder)
    users = json.loads(paths.inter.read_text())
    sequences, parts = plant(kind, [np.array(own) for own in users.values()])
    inter = {user: own.tolist() for user, own in zip(users, sequences, strict=True)}
    (folder / "Shop.inter.json").write_text(json.dumps(inter))
    write_split(folder, Interactions.from_sequences(inter), np.concatenate(parts))
    return folder


@pytest.fixture(scope="module")
def model(planted, finetune, tmp_path_factory):
    """A checkpoint trained on it."""
    return finetune(tmp_path_factory.mktemp("model") / "model", "--data", planted, "--epochs", 1)


def test_the_plant(planted, kind):
    """It is to be found where it should be."""
    split = load_data(planted).split
    assert split.kind == ("time" if kind == "time" else "sets")
    assert (split.test.targets == PLANTED).any()
    assert (np.diff(split.train.offsets) == 0).any() == (kind == "time")


def test_samples_of_training_do_not_have_it(planted, index_folder, index, tmp_path):
    words = ["--data", planted, "--index", index_folder, "--output", tmp_path / "rows"]
    words += ["--tasks", "seqrec", "fusionseqrec", "--format", "jsonl", "--epochs", 1]
    dataset.main(list(map(str, words)))
    text = (tmp_path / "rows" / "train.jsonl").read_text()
    assert index.texts[46] in text
    assert index.texts[PLANTED] not in text


def test_texts_about_users_do_not_have_it(planted):
    data = load_data(planted)
    title = data.items.title(PLANTED)
    requests = make_requests(
        data.items, intent_subjects(data.split), {}, max_history=99, max_text_words=99
    )
    assert any(request.section == "test" and request.item == PLANTED for request in requests)
    assert not any(request.section == "train" and request.item == PLANTED for request in requests)
    preferences = [one.variables["titles"] for one in requests if one.section == "preference"]
    assert preferences
    assert not any(title in titles for titles in preferences)
    intents.main(["--data", str(planted), "--method", "keywords"])
    texts = load_data(planted).user_texts  # which checks what each is about
    assert texts is not None
    assert texts.train_intentions.keys() <= {
        user for user, own in zip(data.split.train.users, data.split.train, strict=True) if len(own)
    }
    (planted / "Shop.user.json").unlink()


@pytest.mark.parametrize("part", ["valid", "test"])
def test_histories_do_not_have_it(planted, part):
    cases = getattr(load_data(planted).split, part)
    assert not any(PLANTED in history for history in cases.histories)
    if part == "valid":
        assert PLANTED not in cases.targets


@pytest.mark.parametrize("name", ["popularity", "cooccurrence", "itemknn"])
def test_methods_have_not_counted_it(planted, name, tmp_path):
    output = tmp_path / "p.jsonl"
    baselines([name, "--data", str(planted), "--output", str(output)])
    found = read_predictions(output)
    rows, places = np.nonzero(found.ranked[None] == PLANTED)
    assert len(rows) == len(found)
    assert (found.scores[None][rows, places] == 0).all()
    assert (found.scores[None][:, 0] > 0).any()


def test_a_comparison_takes_it_for_new(planted, kind, tmp_path):
    words = ["--data", planted, "--output", tmp_path / "out", "--methods", "popularity"]
    baselines(["compare", *map(str, words)])
    figures = json.loads((tmp_path / "out" / "comparison.json").read_text())
    train = load_data(planted).split.train.items
    assert PLANTED not in train
    assert figures["groups"]["new"]["items"] == 48 - len(set(train.tolist()))
    assert (figures["cases"] > figures["users"]) == (kind == "time")


def test_cold_draws_a_split_of_its_own(planted, tmp_path):
    words = ["cold", "--data", str(planted), "--methods", "popularity"]
    with pytest.raises(InputError, match="has a split of its own, and this command draws one"):
        baselines([*words, "--output", str(tmp_path / "cold.json")])


def ranked(model, data, output, *more):
    words = ["--model", model, "--data", data, "--output", output, "--k", 5, *more]
    generate.main(list(map(str, words)))
    return read_predictions(Path(output))


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_model_is_asked_for_the_cases_of_the_split(model, planted, part, tmp_path, monkeypatch):
    requests = []
    encode = Recommender.encode
    monkeypatch.setattr(
        Recommender, "encode", lambda self, own: requests.extend(own) or encode(self, own)
    )
    found = ranked(model, planted, tmp_path / "p.jsonl", "--split", part)
    cases = getattr(load_data(planted).split, part)
    assert not any(PLANTED in request.history for request in requests)
    assert [request.history.tolist() for request in requests] == [
        history.tolist() for history in cases.histories
    ]
    assert found.users == cases.users
    assert found.targets.tolist() == cases.targets.reshape(found.targets.shape).tolist()
    (lists,) = found.ranked.values()
    for items, forbidden in zip(lists, cases.exclude or [()] * len(cases), strict=True):
        assert not np.isin(items, forbidden).any()
    numbers = [json.loads(line).get("case") for line in (tmp_path / "p.jsonl").open()]
    assert numbers == ([None] * len(cases) if cases.numbers is None else cases.numbers.tolist())


def test_a_model_and_counting_are_judged_side_by_side(model, planted, kind, tmp_path, capsys):
    files = [str(tmp_path / f"{name}.jsonl") for name in "pqr"]
    ranked(model, planted, files[0])
    baselines(["popularity", "--data", str(planted), "--output", files[1]])
    baselines(["fuse", *files[:2], "--output", files[2]])
    capsys.readouterr()
    evaluate.main(["--predictions", *files, "--output", str(tmp_path / "m.json")])
    cases = load_data(planted).split.test
    told = f"{len(cases)} cases of {len(set(cases.users))} users."
    assert (told in capsys.readouterr().out) == (kind == "time")
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["users"] == len(set(cases.users))
    assert result.get("cases", 0) == (len(cases) if kind == "time" else 0)
    baselines(["diagnose", *files[:2], "--data", str(planted), "--k", "5"])


def test_a_model_of_another_split_is_refused(model, checkpoint, shop, planted, tmp_path):
    for trained, data, told in (
        (model, shop, r"Shop\.split\.json\) than --data .* has \(leave-one-out\)"),
        (checkpoint, planted, r"\(leave-one-out\) than --data .*Shop\.split\.json\), so it may"),
    ):
        with pytest.raises(InputError, match=rf"made with another split .*{told}"):
            ranked(trained, data, tmp_path / "p.jsonl")
        with pytest.raises(InputError, match="another split"):
            judging.load_subject(trained, data, "fp32", 4096)
        with pytest.raises(InputError, match="another split"):
            score_model(trained, data, None, "valid", 9, 0)


def test_another_split_is_another_training(model, planted, finetune, capsys):
    finetune(model, "--data", planted, "--epochs", 1)
    assert "up to date" in capsys.readouterr().out
    path = planted / "Shop.split.json"
    before = path.read_text()
    path.write_text(before + " ")
    with pytest.raises(InputError, match="--overwrite"):
        finetune(model, "--data", planted, "--epochs", 1)
    path.write_text(before)


def test_all_users_get_what_comes_after_everything(model, planted, tmp_path):
    """Production knows no split."""
    words = ["--model", model, "--data", planted, "--output", tmp_path / "all", "--all-users"]
    generate.main([*map(str, words), "--k", "3"])
    rows = [json.loads(line) for line in (tmp_path / "all" / "part-00000.jsonl").open()]
    assert len(rows) == len(load_data(planted).interactions)
