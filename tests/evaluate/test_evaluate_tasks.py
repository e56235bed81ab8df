"""What the tasks taught: pairs, search and language, on answers that are plain to see."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lcrec.evaluate.language
import lcrec.evaluate.pairs
from lcrec import embed
from lcrec.core.artifacts import find_data, read_json, write_array, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.splits import EvalCases
from lcrec.evaluate import __main__ as evaluate
from lcrec.evaluate.checkpoint import format_values, load_subject
from lcrec.evaluate.language import answer_questions, is_exact, sample_questions
from lcrec.evaluate.pairs import pairwise_accuracy, score_items, seen_items
from lcrec.evaluate.search import make_queries, rank_by_text
from lcrec.evaluate.templates import score_model
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.prompts.tasks import TaskData, plain_text


@pytest.fixture(scope="module")
def embeddings(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    embed.main(["--data", str(shop), "--output", str(folder), "--lsa-dim", "16"])
    return folder


@pytest.fixture
def words(checkpoint, shop):
    """Return a command line: `words("pairs", "--users", 5)`."""

    def make(command, *more):
        fixed = [command, "--model", checkpoint, "--data", shop]
        return [str(word) for word in (*fixed, *more)]

    return make


@pytest.fixture(scope="module")
def subject(checkpoint, shop):
    return load_subject(checkpoint, shop, "fp32", 4096)


def row_of(screen, label):
    """Return the cells of the table's line that begins with this label."""
    lines = [line for line in screen.splitlines() if line.startswith(f"{label}  ")]
    return lines[-1].removeprefix(label).split()


def test_a_mistyped_command_is_answered():
    with pytest.raises(InputError, match="no command 'pair'; did you mean 'pairs'"):
        evaluate.main(["pair", "--model", "x"])


def test_a_table_by_hand():
    rows = {
        "one": {"a": {"mean": 0.5, "low": 0.25, "high": 0.75}, "b": None},
        "another": {"a": {"mean": 1.0, "low": 1.0, "high": 1.0}, "b": None},
    }
    lines = format_values(rows, "template").splitlines()
    assert lines[0].split() == ["template", "a", "b"]
    assert lines[2].split() == ["one", "0.5000", "-"]
    assert lines[3].split() == ["0.250-0.750"]
    assert lines[4].split() == ["another", "1.0000", "-"]


class PrefersLowIds:
    """A model that finds item i as likely as exp(-i), and items 3 and 4 equally likely."""

    index = SimpleNamespace(num_levels=3)
    request_encoder = SimpleNamespace(encode_for_items=lambda questions: [[1]] * len(questions))

    run_in_batches = Recommender.run_in_batches

    def plan_batches(self, prompt_ids):
        return [np.arange(len(prompt_ids))[:2], np.arange(len(prompt_ids))[2:]]


@pytest.fixture
def low_ids(monkeypatch):
    def score_items(subject, prompt_ids, items):
        assert len(prompt_ids) == len(items)
        likely = -np.minimum(items, 3).astype(np.float32)
        return np.where(items < 0, -np.inf, likely)

    monkeypatch.setattr(lcrec.evaluate.pairs, "score_items", score_items)
    return PrefersLowIds()


@pytest.mark.parametrize("several", ["cases", "targets"])
def test_every_case_of_a_user_is_asked(
    several, words, embeddings, subject, monkeypatch, capsys, tmp_path
):
    one, other = subject.split.test.users[:2]
    if several == "cases":
        histories, targets = [[9], [9, 5], [7]], np.array([1, 2, 3], np.int32)
        users, numbers = [one, one, other], np.array([1, 2, 1])
    else:
        histories, targets = [[9], [7]], np.array([[1, 2], [3, -1]], np.int32)
        users, numbers = [one, other], None
    test = EvalCases(users, [np.array(own) for own in histories], targets, None, numbers)
    judged = replace(subject, split=replace(subject.split, test=test))
    for module in ("checkpoint", "templates"):
        monkeypatch.setattr(f"lcrec.evaluate.{module}.load_subject", lambda *_, **__: judged)
    output = ["--output", tmp_path / "pairs.json"]
    evaluate.main(words("pairs", "--embeddings", embeddings, *output))
    record = read_json(tmp_path / "pairs.json")
    assert (record["users"], record["cases"]) == (2, 3)
    assert {kind["pairs"] for own in record["templates"].values() for kind in own.values()} == {3}
    assert "Asking 3 cases of 2 users for" in capsys.readouterr().out

    template = next(t for t in judged.recommender.prompts.templates if t.id == "next-title-short")
    asked = sample_questions(judged, template, 9, 0)
    assert [question.about for question in asked] == [one, one, other]
    titles = [plain_text(subject.data.items.title(item), 60) for item in (1, 2, 3)]
    assert [question.references for question in asked] == [[title] for title in titles]

    score_model(tmp_path, tmp_path, None, "test", 9, 0)
    screen = capsys.readouterr().out
    wanted = ["3 cases of 2 users", "HR@10"] if several == "cases" else ["2 users", "Recall@10"]
    assert all(f" {words}" in screen for words in wanted)


def test_accuracy_by_hand(subject, low_ids, index):
    cases = EvalCases(["a", "b", "c"], [np.array([9])] * 3, np.array([1, 2, 3], dtype=np.int32))
    judged = replace(subject, load=lambda: low_ids)
    template = subject.recommender.prompts.for_task("seqrec", "eval")[0]
    accuracy = pairwise_accuracy(
        judged, template, cases, {"x": np.array([2, 1, 4]), "y": np.array([-1, 7, 0])}
    )
    assert accuracy["x"].tolist() == [1.0, 0.0, 0.5]
    np.testing.assert_equal(accuracy["y"], [np.nan, 1.0, 0.0])
    items = type(subject.data.items)([{"title": "" if i == 9 else "t"} for i in range(48)])
    data = TaskData(items, subject.data.train, index)
    cases = EvalCases(
        ["a", "b"], [np.array([9]), np.array([9, 5])], np.array([1, 2], dtype=np.int32)
    )
    judged = replace(subject, load=lambda: low_ids, data=data)
    template = subject.recommender.prompts.get("titles-short")
    accuracy = pairwise_accuracy(judged, template, cases, {"x": np.array([7, 7])})
    np.testing.assert_equal(accuracy["x"], [np.nan, 1.0])


def test_given_items_have_the_scores_of_the_full_ranking(subject):
    """Each prompt has its own items, in any order, with padding and repetitions."""
    prompt_ids = subject.recommender.encode(
        list(map(RankingRequest, ([1, 2, 3], [40], [7, 7, 7, 9])))
    )
    ranked, scores = subject.recommender.rank_batch(prompt_ids, 48)
    items = np.array([[5, 30, -1, 5], [47, 0, 21, 40], [-1, 3, -1, -1]])
    found = score_items(subject, prompt_ids, items)
    for row in range(3):
        for place, item in enumerate(items[row]):
            expected = -np.inf if item < 0 else scores[row, list(ranked[row]).index(item)]
            assert found[row, place] == pytest.approx(expected, abs=1e-4)
    valid = subject.split.valid.sample(3, 0)
    whole = dict(zip(subject.split.test.users, subject.split.test.histories, strict=True))
    for user, own in zip(valid.users, seen_items(subject, valid), strict=True):
        assert own[:-1].tolist() == whole[user].tolist()


def test_pairs(words, embeddings, tmp_path, capsys):
    output = tmp_path / "pairs.json"
    evaluate.main(words("pairs", "--embeddings", embeddings, "--output", output))
    screen = capsys.readouterr().out
    result = read_json(output)
    (template,) = result["templates"]  # not trained on fusionseqrec: not asked by titles
    assert (result["users"], result["command"]) == (60, "pairs")
    for place, kind in enumerate(("language", "collaborative", "random")):
        value = result["templates"][template][kind]
        assert value["low"] <= value["mean"] <= value["high"]
        assert row_of(screen, template)[place] == f"{value['mean']:.4f}"
    assert result["templates"][template]["random"]["pairs"] == 60
    record = read_provenance(output)
    assert record["stage"] == "python -m lcrec.evaluate"
    assert set(record["inputs"]) == {"model", "item", "inter", "user", "embeddings"}
    again = tmp_path / "again.json"
    evaluate.main(words("pairs", "--embeddings", embeddings, "--output", again))
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.usefixtures("fast_bf16")
def test_pairs_by_titles_and_fewer_users(words, embeddings, capsys):
    more = ["--users", 7, "--templates", "titles-short", "--split", "valid"]
    evaluate.main(words("pairs", "--embeddings", embeddings, *more))
    screen = capsys.readouterr().out
    assert "Asking 7 users" in screen
    assert "--precision bf16 saves time" in screen
    assert len(row_of(screen, "titles-short")) == 3
    assert "Nothing was written" in screen


@pytest.mark.usefixtures("unloaded")
def test_what_pairs_refuses(words, embeddings, tmp_path):
    write_array(tmp_path / "short" / "embeddings.npy", np.zeros((3, 2), dtype=np.float32))
    vectors = np.ones((48, 2), dtype=np.float32)
    vectors[5, 1] = np.nan
    write_array(tmp_path / "nan" / "embeddings.npy", vectors)
    for more, message in (
        (["--templates", "next-nothing"], "no template 'next-nothing'"),
        (["--templates", "name-short"], "belongs to item2index, not seqrec or fusionseqrec"),
        (["--templates", "next-title-short"], "is no template of .* whose answer is"),
        (["--embeddings", tmp_path], "embeddings.npy: no such file"),
        (["--embeddings", tmp_path / "short"], "has 3 rows but the catalogue has 48 items"),
        (["--embeddings", tmp_path / "nan"], r"1 rows hold values that are not finite .*item 5"),
        (["--model", tmp_path], "not a checkpoint"),
        (["--model", tmp_path / "none"], "not a checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(words("pairs", "--embeddings", embeddings, *more))


def test_text_retrieval_by_hand():
    vectors = np.array([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    answers = {"east": [5.0, 0.1], "north": [0.0, 1.0], "nothing": [0.0, 0.0]}

    def encode(texts):
        return np.array([answers[text] for text in texts])

    ranked = rank_by_text(encode, vectors, list(answers), 3)
    assert ranked.tolist() == [[0, 2, 1], [1, 2, 0], [0, 1, 2]]


def test_search(words, embeddings, tmp_path, capsys, shop):
    output = tmp_path / "search.json"
    evaluate.main(words("search", "--embeddings", embeddings, "--output", output))
    screen = capsys.readouterr().out
    assert "was not trained on itemsearch" in screen
    result = read_json(output)
    texts = json.loads(find_data(shop).user.read_text())["user_vague_intention"]["test"]
    assert result["users"] == len(texts)
    assert result["queries"] == sum(len(entry["querys"]) for entry in texts.values())
    assert list(result["runs"]) == [
        "text retrieval", "search-short", "search-history-short", "search-all-fields",
    ]  # fmt: skip
    for name, run in result["runs"].items():
        assert row_of(screen, name)[2] == f"{run['overall']['HR@10']['mean']:.4f}"
    # The shop's intentions speak of their item: text finds it far more often than chance, 10/48.
    assert result["runs"]["text retrieval"]["overall"]["HR@10"]["mean"] > 0.5


def test_queries_are_the_users_texts_with_what_went_before(subject):
    queries, owners, targets = make_queries(subject, 5, seed=1)
    texts, test = subject.data.user_texts, subject.split.test
    assert len(targets) == 5
    by_target = {}
    for row, query in zip(owners.tolist(), queries, strict=True):
        by_target.setdefault(row, []).append(query)
    for row, own in by_target.items():
        users = [
            user
            for user, target in zip(test.users, test.targets, strict=True)
            if target == targets[row] and texts.test_intentions.get(user) == [q.query for q in own]
        ]
        assert users
        history = test.histories[test.users.index(users[0])]
        assert own[0].history.tolist() == history.tolist()


def test_queries_of_nobody_in_the_test_part_are_refused(subject):
    nobody = replace(subject.split, test=subject.split.test.take([]))
    with pytest.raises(InputError, match="no user with a test intention"):
        make_queries(replace(subject, split=nobody), None, 0)


@pytest.mark.usefixtures("unloaded")
def test_what_search_refuses(words, embeddings, shop, tmp_path):
    bare, untold = tmp_path / "bare", tmp_path / "untold"
    for folder in (bare, untold):
        folder.mkdir()
        for path in (find_data(shop).inter, find_data(shop).item):
            shutil.copy(path, folder)
    write_json(
        untold / find_data(shop).user.name,
        {"user_explicit_preference": {}, "user_vague_intention": {"train": {}, "test": {}}},
    )
    naked = tmp_path / "naked"
    naked.mkdir()
    shutil.copy(embeddings / "embeddings.npy", naked)
    for more, message in (
        (["--data", bare], r"python -m lcrec\.intents"),
        (["--data", untold], r"python -m lcrec\.intents"),
        (["--embeddings", naked], "which encoder made them"),
        (["--embeddings", tmp_path], "embeddings.npy: no such file"),
        (["--templates", "like-history-short"], r"asks with \{\{ intention"),
        (["--k", "49"], "--k 49: the catalogue has only 48 items"),
        (["--k", "9"], "too small"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(words("search", "--embeddings", embeddings, *more))


def test_answers_are_the_likeliest_tokens(subject):
    """Against plain forward passes; a batch, and the model's own settings, change nothing."""
    recommender = subject.recommender
    model, tokenizer = recommender.model, recommender.tokenizer
    questions = ["a b", "the title of a much longer question, please", "c"]
    model.generation_config.repetition_penalty = 5.0
    answers = answer_questions(recommender, questions, 6, label="test")
    for question, answer in zip(questions, answers, strict=True):
        ids = recommender.request_encoder.prompt_encoder.prompt_ids([question])[0]
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0, -1].argmax().item()
            if best == tokenizer.eos_token_id:
                break
            ids = [*ids, best]
        assert answer == tokenizer.decode(ids[start:]).strip()


def test_answers_end_at_eos(subject, monkeypatch):
    recommender = subject.recommender
    end, word = recommender.tokenizer.eos_token_id, recommender.tokenizer("a")["input_ids"][0]

    def generate(input_ids, attention_mask, generation_config):
        tail = torch.tensor([[word, end, end], [word, word, word]])[: len(input_ids)]
        return torch.cat([input_ids, tail], dim=1)

    monkeypatch.setattr(recommender.model, "generate", generate)
    monkeypatch.setattr(recommender, "plan_batches", lambda ids: [np.array([1, 0])])
    answers = answer_questions(recommender, ["x", "y"], 3, label="test")
    a = recommender.tokenizer.decode([word])
    assert answers == [recommender.tokenizer.decode([word] * 3).strip(), a.strip()]


def test_questions_of_every_task(subject):
    prompts, data = subject.recommender.prompts, subject.data
    titles = sample_questions(subject, prompts.get("title-short"), 500, 0)
    assert [question.references for question in titles] == [[title] for title in data.titles]
    some = sample_questions(subject, prompts.get("title-short"), 5, 3)
    assert len(some) == 5
    assert {q.question for q in some} <= {q.question for q in titles}

    after = sample_questions(subject, prompts.get("next-title-short"), 500, 0)
    targets = subject.split.test.targets
    assert [q.references for q in after] == [[data.titles[target]] for target in targets]

    taste = sample_questions(subject, prompts.get("taste-short"), 500, 0)
    known = data.user_texts.preferences
    assert [q.references for q in taste] == [
        [plain_text(text, data.max_text_words) for text in known[user]]
        for user in subject.split.test.users
        if user in known
    ]


def test_exact_is_but_for_case_and_spaces():
    assert is_exact(" Red  PEN\n", ["x", "red pen"])
    assert not is_exact("red pens", ["red pen"])
    assert not is_exact("", ["red pen"])


def test_language_with_right_answers_and_wrong_ones(words, subject, tmp_path, capsys, monkeypatch):
    output = tmp_path / "language.json"
    names = ["title-short", "next-title-short", "taste-short"]
    seen = []

    def answer(recommender, questions, max_new_tokens, *, label):
        seen.append((label, len(questions)))
        right = sample_questions(subject, subject.recommender.prompts.get(label), 8, 0)
        assert [q.question for q in right] == questions
        return ["\N{GUITAR}"] * 8 if label == "title-short" else [q.references[-1] for q in right]

    monkeypatch.setattr(lcrec.evaluate.language, "answer_questions", answer)
    flags = ["--templates", *names, "--users", 8, "--output", output, "--show", 1]
    evaluate.main(words("language", *flags))
    screen = capsys.readouterr().out
    assert seen == [(name, 8) for name in names]
    assert row_of(screen, "title-short") == ["0.0000", "0.0000"]
    assert row_of(screen, "next-title-short") == ["1.0000", "1.0000"]
    assert row_of(screen, "taste-short") == ["1.0000", "1.0000"]
    result = read_json(output)["templates"]
    assert result["taste-short"]["asks_for"] == ["preference"]
    assert result["title-short"]["answers"] == 8
    assert result["next-title-short"]["exact"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_language_as_it_is(words, capsys):
    flags = ["--templates", "title-short", "--users", 3, "--max-new-tokens", 4]
    evaluate.main(words("language", *flags))
    screen = capsys.readouterr().out
    assert screen.count("model  ") == 2
    assert len(row_of(screen, "title-short")) == 2


@pytest.mark.usefixtures("unloaded")
def test_what_language_refuses(words, shop, tmp_path):
    for path in (find_data(shop).inter, find_data(shop).item):
        shutil.copy(path, tmp_path)
    for more, message in (
        ([], "trained on item2index, seqrec, none of which answers in words"),
        (["--templates", "name-short"], "belongs to item2index"),
        (["--templates", "nothing"], "no template 'nothing'"),
        (["--templates", "taste-short", "--data", tmp_path], "no template has anything to ask"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(words("language", *more))
