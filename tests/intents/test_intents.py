"""The stage `lcrec.intents`: all three methods to a `user.json` that the tasks train on."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import endpoint as fake
import pytest

from lcrec.core.artifacts import find_data, read_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.folder import load_interactions, load_items
from lcrec.data.splits import load_split
from lcrec.data.user_texts import load_user_texts
from lcrec.intents.__main__ import IntentsConfig, estimate, main

TOP = Path(__file__).parents[2]
ITEMS = {
    str(i): {"title": f"{word} pen, {i}mm", "categories": "Writing"}
    for i, word in enumerate(("red", "blue", "green", "black", "white"))
}
SEQUENCES = {"ann": [4, 0, 1, 2, 3], "bob": [0, 1, 2], "cid": [3, 2, 4, 1]}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data folder with three users; bob has nothing before his training item."""
    monkeypatch.chdir(TOP)
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "Toy.item.json").write_text(json.dumps(ITEMS))
    (folder / "Toy.inter.json").write_text(json.dumps(SEQUENCES))
    return folder


def keywords(folder, *more):
    main(["--data", str(folder), "--method", "keywords", *map(str, more)])


def words_for(endpoint, folder, *more):
    words = ["--data", folder, "--method", "openai", "--model", "m", "--base-url", endpoint.url]
    return [str(word) for word in (*words, "--retries", 0, *more)]


def ask(endpoint, folder, *more):
    main(words_for(endpoint, folder, "--yes", *more))


def test_the_file_has_the_form_of_lc_rec(toy, capsys):
    keywords(toy)
    content = read_json(toy / "Toy.user.json")
    assert content.keys() == {"user_explicit_preference", "user_vague_intention"}
    assert content["user_explicit_preference"].keys() == {"ann", "cid"}
    assert content["user_vague_intention"]["train"]["ann"]["item"] == 1
    assert content["user_vague_intention"]["train"]["ann"]["inters"] == [4, 0]
    # The test section is filled, for every user.
    test = content["user_vague_intention"]["test"]
    assert {user: (own["item"], own["inters"]) for user, own in test.items()} == {
        "ann": (3, [4, 0, 1, 2]), "bob": (2, [0, 1]), "cid": (1, [3, 2, 4]),
    }  # fmt: skip
    assert all(own["querys"] == ["pen, writing"] for own in test.values())
    out = capsys.readouterr().out
    assert "Next: python -m lcrec.finetune" in out
    record = read_provenance(toy / "Toy.user.json")
    assert record["config"]["method"] == "keywords"
    for said in (out, record["origin"]):
        assert "no language model wrote them" in said


def test_what_lies_there_is_not_made_again_until_an_input_changes(toy, capsys):
    keywords(toy)
    made = (toy / "Toy.user.json").stat().st_mtime_ns
    keywords(toy)
    assert "is up to date" in capsys.readouterr().out
    assert (toy / "Toy.user.json").stat().st_mtime_ns == made
    (toy / "Toy.item.json").write_text(json.dumps(ITEMS | {"5": {"title": "grey pen"}}))
    keywords(toy)
    assert "is up to date" not in capsys.readouterr().out


def test_a_file_from_elsewhere_or_edited_is_kept(toy):
    path = toy / "Toy.user.json"
    path.write_text('{"user_explicit_preference": {}}')
    with pytest.raises(InputError, match=r"Toy\.user\.json has no .*did not make it.*--overwrite"):
        keywords(toy)
    keywords(toy, "--overwrite")
    path.write_text(path.read_text().replace("pen", "fountain pen"))
    with pytest.raises(InputError, match="edited since"):
        keywords(toy, "--max-history", 3)
    assert "fountain pen" in path.read_text()


def test_other_sequences_are_refused_and_so_is_a_shop_without_cases(toy):
    keywords(toy)
    (toy / "Toy.inter.json").write_text(json.dumps(SEQUENCES | {"ann": [0, 4, 1, 2, 3]}))
    split = load_split(toy, load_interactions(toy, 5))
    with pytest.raises(InputError, match=r"made from another inter file.*python -m lcrec\.intents"):
        load_user_texts(toy, split)
    (toy / "Toy.inter.json").write_text(json.dumps({"dan": [0, 1]}))
    with pytest.raises(InputError, match="no user has 3 items"):
        keywords(toy)


def test_a_trial_and_a_dry_run_write_nothing(toy, capsys, endpoint):
    keywords(toy, "--trial", 2)
    out = capsys.readouterr().out
    assert "User ann" in out
    assert "User bob" in out
    assert "User cid" not in out
    main(words_for(endpoint, toy, "--dry-run"))
    out = capsys.readouterr().out
    # Two preferences; six intentions, two pairs of which are about the same item.
    assert "8 questions, 6 of them to ask" in out
    assert 'Reply with {"wish"' in out
    assert endpoint.questions == []
    assert sorted(path.name for path in toy.iterdir()) == ["Toy.inter.json", "Toy.item.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "openai"], "--method openai needs --model NAME"),
        (["--method", "local"], "--method local needs --model NAME"),
        (["--method", "keywords", "--prompts", "none"], "--prompts none: no such folder"),
    ],
)
def test_wrong_flags_are_named(toy, words, message):
    with pytest.raises(InputError) as caught:
        main(["--data", str(toy), *words])
    assert message in str(caught.value)


def test_a_model_writes_every_text(toy, endpoint, capsys):
    ask(endpoint, toy)
    split = load_split(toy, load_interactions(toy, 5))
    texts = load_user_texts(toy, split)
    likes = ["some overall", "some long_term", "some short_term"]
    assert texts.preferences == {"ann": likes, "cid": likes}
    assert texts.train_intentions == {user: ["some wish", "some traits"] for user in SEQUENCES}
    assert texts.test_intentions == texts.train_intentions
    assert read_provenance(toy / "Toy.user.json")["origin"] == "written by m"
    ask(endpoint, toy)
    assert "is up to date" in capsys.readouterr().out
    assert max(endpoint.counts().values()) == 1


def test_it_is_told_the_review_of_that_item_alone(toy, endpoint):
    reviews = {"('ann', 1)": "of one", "('ann', 2)": "of two", "('bob', 1)": "of bob"}
    reviews = {key: {"review": text, "summary": ""} for key, text in reviews.items()}
    (toy / "Toy.review.json").write_text(json.dumps(reviews))
    ask(endpoint, toy)
    about = [question for question in endpoint.questions if "blue pen" in question]
    # ann's and bob's and cid's, who wrote nothing, and the list of titles that cid's has not.
    assert sum("of one" in question for question in about) == 1
    assert sum("of bob" in question for question in endpoint.questions) == 0
    assert not any("of two" in question for question in endpoint.questions)


def test_bad_answers_are_dropped_and_counted_and_the_rest_is_kept(toy, endpoint, capsys):
    def reply(question, turn):
        if "black pen" in question and '"wish"' in question:
            return 200, fake.completion("Sorry, as a model I cannot.")
        if "green pen" in question and '"wish"' in question:
            return 200, fake.completion('{"wish": "a green 2mm pen", "traits": "thin"}')
        return fake.well(question, turn)

    endpoint.reply = reply
    ask(endpoint, toy, "--attempts", 2)
    intentions = read_json(toy / "Toy.user.json")["user_vague_intention"]
    assert intentions["train"].keys() == {"ann", "bob", "cid"}
    assert intentions["test"].keys() == {"bob", "cid"}
    # Half of the answer was clean.
    assert intentions["test"]["bob"]["querys"] == ["thin"]
    assert max(endpoint.counts().values()) == 2
    assert any('"2mm"' in question for question in endpoint.questions)
    record = read_provenance(toy / "Toy.user.json")
    assert (record["malformed"], record["leaked"], record["unanswered"]) == (1, 2, 0)
    out = capsys.readouterr().out
    assert "after up to 2 attempts: 2 answers gave the title away" in out
    assert "1 were no usable JSON" in out


def test_what_got_no_answer_is_asked_by_the_same_command_again(toy, endpoint, capsys):
    endpoint.reply = lambda question, turn: (
        (500, "") if "black" in question and not turn else fake.well(question, turn)
    )
    ask(endpoint, toy)
    assert "questions got no answer (the same command asks them again)" in capsys.readouterr().out
    asked = len(endpoint.questions)
    lacking = {question for question in endpoint.questions if "black" in question}
    ask(endpoint, toy)
    assert set(endpoint.questions[asked:]) == lacking
    assert read_provenance(toy / "Toy.user.json")["unanswered"] == 0


def test_with_no_answer_at_all_nothing_is_written(toy, endpoint):
    endpoint.reply = lambda question, turn: (500, "")
    with pytest.raises(InputError, match=r"Toy\.user\.json is not written: there is no text"):
        ask(endpoint, toy)
    assert not (toy / "Toy.user.json").exists()


def test_a_killed_run_goes_on_where_it_stopped(toy, endpoint):
    def reply(question, turn):
        # The first three are answered, then nobody is, until the process is gone.
        return fake.well(question, turn) if len(endpoint.questions) <= 3 else (60.0, "")

    endpoint.reply = reply
    words = words_for(endpoint, toy, "--yes", "--concurrency", 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "lcrec.intents", *words], cwd=TOP, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(endpoint.questions) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (toy / "Toy.user.json").exists()
    answered, waiting = endpoint.questions[:3], endpoint.questions[3]
    endpoint.reply = fake.well
    ask(endpoint, toy)
    assert len(read_json(toy / "Toy.user.json")["user_vague_intention"]["test"]) == 3
    counts = endpoint.counts()
    assert all(counts[question] == 1 for question in answered)
    assert counts[waiting] == 2


def test_a_trial_is_paid_for_once_and_a_new_wording_asks_what_it_changes(
    toy, endpoint, tmp_path, capsys
):
    ask(endpoint, toy, "--trial", 1)
    assert not (toy / "Toy.user.json").exists()
    assert len(endpoint.questions) == 3
    capsys.readouterr()
    ask(endpoint, toy)
    assert "the mean of 3 answers" in capsys.readouterr().out
    assert max(endpoint.counts().values()) == 1
    asked = len(endpoint.questions)
    own = tmp_path / "own"
    own.mkdir()
    text = (TOP / "prompts" / "intents.yaml").read_text()
    (own / "intents.yaml").write_text(text.replace("What does this", "And what does this"))
    ask(endpoint, toy, "--prompts", own)
    assert len(endpoint.questions) == asked + 2
    assert all("And what does" in question for question in endpoint.questions[asked:])


def test_nothing_is_spent_without_consent(toy, endpoint, monkeypatch):
    with pytest.raises(InputError, match="nobody to ask; add --yes"):
        main(words_for(endpoint, toy))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for reply, consent in (("", False), ("n", False), (EOFError(), False), ("y", True)):
        monkeypatch.setattr("builtins.input", Mock(side_effect=[reply]))
        if consent:
            main(words_for(endpoint, toy))
        else:
            with pytest.raises(InputError, match="nothing was asked"):
                main(words_for(endpoint, toy))
            assert endpoint.questions == []
    assert (toy / "Toy.user.json").exists()


def test_the_estimate_by_hand():
    config = IntentsConfig(Path(), "openai", "m", concurrency=10, price_in=2.0, price_out=10.0)
    chats = [[{"role": "user", "content": "x" * 4000}]] * 1000
    # 1,000 tokens each to read, 120 to write; 3 seconds, ten at once; 2 + 0.12 * 10.
    lines = estimate(config, 1500, chats, []).splitlines()
    assert "1,500 questions, 1,000 of them to ask" in lines[0]
    assert "about 1.000 million tokens to read" in lines[1]
    assert "0.120 million to write" in lines[1]
    assert "about 5.0 minutes" in lines[2]
    assert "about 3.20" in lines[3]


@pytest.mark.slow
def test_the_tasks_train_on_keywords(recipe, finetune_words, shop, tmp_path, capsys, monkeypatch):
    """All three tasks that speak of users or titles, from a shop that has no user texts."""
    folder = tmp_path / "shop"
    folder.mkdir()
    paths = find_data(shop)
    for path in (paths.inter, paths.item):
        shutil.copy(path, folder)
    monkeypatch.chdir(TOP)
    keywords(folder)
    capsys.readouterr()
    words = finetune_words(tmp_path / "model", "--data", folder, "--epochs", 1)
    tasks = ["seqrec=8", "fusionseqrec=16", "itemsearch=16", "preferenceobtain=16"]
    words = [*itertools.takewhile(lambda word: word != "--tasks", words), "--tasks", *tasks]
    recipe.main(words)
    out = capsys.readouterr().out
    users = len(load_interactions(folder, len(load_items(folder))))
    assert f"Shop.user.json: of {users} users" in out
    assert (tmp_path / "model" / "adapter_config.json").exists()
    assert read_provenance(tmp_path / "model")["inputs"].keys() >= {"user"}
