"""The commands around AlphaRec: transfer, intention, convergence, and what they refuse."""

import json

import numpy as np
import pytest
from planted import write_data

from lcrec import embed
from lcrec.baselines.__main__ import main
from lcrec.baselines.methods.alpharec import AlphaRec
from lcrec.core.artifacts import read_json, write_array, write_json, write_jsonl
from lcrec.core.errors import InputError
from lcrec.core.provenance import provenance_path, write_provenance
from lcrec.index.item_index import ItemIndex
from lcrec.intents import __main__ as intents
from lcrec.rankings.predictions import read_predictions

SMALL = ["--hidden", "8", "--dim", "8", "--epochs", "2", "--negatives", "8", "--every", "1"]
LSA = ["--fields", "title", "--lsa-dim", "6"]
WORDS = ["red", "blue", "soft", "hard", "pen", "cup", "lamp", "desk", "rope", "bell", "tin", "mat"]


def make_data(folder, users, items, seed):
    rng = np.random.default_rng(seed)
    sequences = {f"u{user}": rng.permutation(items)[:5].tolist() for user in range(users)}
    titles = [{"title": f"{WORDS[i % 12]} {WORDS[i // 12]} {i}"} for i in range(items)]
    return write_data(folder, sequences, titles, folder.name)


def make_vectors(folder, items, width, encoder=None, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    write_array(folder / "embeddings.npy", rng.normal(size=(items, width)).astype(np.float32))
    if encoder:
        write_provenance(folder, "python -m lcrec.embed", {"encoder": encoder}, {})
    return folder


@pytest.fixture
def domains(tmp_path):
    """Three data sets and vectors of one encoder."""
    sizes = {"A": (12, 20), "B": (15, 30), "C": (10, 25)}
    data = {name: make_data(tmp_path / name, *size, ord(name)) for name, size in sizes.items()}
    vectors = {
        name: make_vectors(tmp_path / f"{name}-e", items, 6, "some/encoder")
        for name, (_, items) in sizes.items()
    }
    return data, vectors


def transfer(data, vectors, output, *more):
    main(
        [
            *("transfer", "--sources", str(data["A"]), str(data["B"])),
            *("--source-embeddings", str(vectors["A"]), str(vectors["B"])),
            *("--target", str(data["C"]), "--target-embeddings", str(vectors["C"])),
            *("--output", str(output), *SMALL, *more),
        ]
    )


def test_transfer(domains, tmp_path, capsys):
    data, vectors = domains
    output = tmp_path / "runs" / "p.jsonl"
    transfer(data, vectors, output)
    screen = capsys.readouterr().out
    assert "trained on A, B" in screen
    assert f"python -m lcrec.evaluate --predictions {output}" in screen
    predictions = read_predictions(output)
    assert len(predictions) == 10
    assert predictions.length == 25
    record = json.loads(provenance_path(output).read_text())
    assert {"inter", "source 1 inter", "source 2 embeddings"} <= record["inputs"].keys()
    stamp = output.stat().st_mtime_ns
    transfer(data, vectors, output)
    assert "up to date" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == stamp
    transfer(data, vectors, output, "--seed", "1")
    assert output.stat().st_mtime_ns > stamp


def test_what_transfer_refuses(domains, tmp_path, monkeypatch):
    data, vectors = domains
    output = tmp_path / "p.jsonl"
    wide = make_vectors(tmp_path / "wide", 25, 7)
    monkeypatch.setattr(AlphaRec, "fit_domains", None)  # told before anything is trained
    with pytest.raises(InputError, match="6 and 7 numbers wide"):
        transfer(data, {**vectors, "C": wide}, output)
    with pytest.raises(InputError, match="6 and 7 numbers wide"):
        transfer(data, {**vectors, "B": make_vectors(tmp_path / "wide2", 30, 7)}, output)
    other = make_vectors(tmp_path / "other", 25, 6, "another/encoder")
    with pytest.raises(InputError, match="another encoder than"):
        transfer(data, {**vectors, "C": other}, output)
    lsa = make_vectors(tmp_path / "lsa", 30, 6, "lsa")
    with pytest.raises(InputError, match="space of its own"):
        transfer(data, {**vectors, "B": lsa}, output)
    with pytest.raises(InputError, match="is one of --sources"):
        transfer({**data, "C": data["A"]}, vectors, output)
    with pytest.raises(InputError, match="1 folders for 2 --sources"):
        transfer(data, vectors, output, "--source-embeddings", str(vectors["A"]))
    assert not output.exists()


@pytest.fixture
def asked(tmp_path):
    """A data set with LSA embeddings, whose encoder is at hand, and keyword intentions."""
    data = make_data(tmp_path / "Shop", 14, 40, 0)
    embed.main(["--data", str(data), "--output", str(tmp_path / "e"), *LSA])
    intents.main(["--data", str(data), "--method", "keywords"])
    return data, tmp_path / "e"


def intention(asked, output, *more):
    data, vectors = asked
    shared = ["--data", str(data), "--embeddings", str(vectors), "--output", str(output)]
    main(["intention", *shared, *SMALL, *more])


@pytest.mark.parametrize("at", ["input", "output"])
def test_intention(asked, tmp_path, capsys, at):
    output = tmp_path / "p.jsonl"
    intention(asked, output, "--alpha", "0", "0.5", "1", "--intention-at", at, "--layers", "1")
    screen = capsys.readouterr().out
    found = json.loads(next(line for line in screen.splitlines() if line.startswith('{"users"')))
    assert list(found["alpha"]) == ["0", "0.5", "1"]
    predictions = read_predictions(output)
    assert found["users"] == len(predictions)
    assert list(predictions.ranked) == ["alpha=0", "alpha=0.5", "alpha=1"]
    assert (predictions.ranked["alpha=0"] != predictions.ranked["alpha=0.5"]).any()
    intention(asked, output, "--alpha", "0", "0.5", "1", "--intention-at", at, "--layers", "1")
    again = capsys.readouterr().out
    assert "up to date" in again
    assert '{"users"' in again


def test_queries_of_a_file(asked, tmp_path):
    queries = tmp_path / "q.jsonl"
    lines = [{"user": "u3", "query": "red pen"}, {"user": "u3", "query": "soft lamp"}]
    queries.write_text("\n".join(map(json.dumps, [*lines, {"user": "u1", "query": "tin"}])) + "\n")
    output = tmp_path / "p.jsonl"
    intention(asked, output, "--queries", str(queries), "--alpha", "0.5")
    assert read_predictions(output).users == ["u1", "u3"]


def test_users_with_nothing_to_train_on_ask_for_nothing(asked, tmp_path):
    """Nothing is known of u3 but a history: its query must not become that of the last user."""
    data, _ = asked
    interactions = read_json(data / "Shop.inter.json")
    parts = {
        user: {"train": items[:3], "valid": items[3:4], "test": items[4:]}
        for user, items in interactions.items()
    }
    parts["u3"] |= {"train": [], "valid": interactions["u3"][:4]}
    write_json(data / "Shop.split.json", parts)
    found = []
    for name, users in (("one", ["u13"]), ("two", ["u13", "u3"]), ("none", ["u3"])):
        queries = tmp_path / f"{name}.jsonl"
        write_jsonl(queries, [{"user": user, "query": "red pen"} for user in users])
        flags = ["--queries", str(queries), "--alpha", "1", "--layers", "1"]
        if name == "none":
            with pytest.raises(InputError, match="something to train on"):
                intention(asked, tmp_path / "p.jsonl", *flags)
            break
        intention(asked, tmp_path / f"p-{name}.jsonl", *flags)
        found.append(read_predictions(tmp_path / f"p-{name}.jsonl"))
        assert found[-1].users == ["u13"]
    assert (found[0].ranked["alpha=1"] == found[1].ranked["alpha=1"]).all()


def test_what_intention_refuses(asked, tmp_path):
    output, queries = tmp_path / "p.jsonl", tmp_path / "q.jsonl"
    for line, message in [
        ({"user": "u99", "query": "x"}, "line 1: user 'u99' is not in"),
        ({"user": "u1", "query": " "}, "must be text"),
        ({"user": "u1"}, "line 1: expected"),
    ]:
        queries.write_text(json.dumps(line) + "\n")
        with pytest.raises(InputError, match=message):
            intention(asked, output, "--queries", str(queries))
    for flags, message in [
        (["--alpha", "1.5"], r"--alpha 1\.5: .* between 0 and 1"),
        (["--alpha", "0.5", "0.50"], "given twice"),
        (["--queries", str(tmp_path / "none.jsonl")], "no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            intention(asked, output, *flags)
    bare = make_data(tmp_path / "Bare", 5, 40, 1)
    with pytest.raises(InputError, match="no test intentions"):
        main(
            [
                *("intention", "--data", str(bare), "--output", str(output), "--embeddings"),
                str(make_vectors(tmp_path / "v", 40, 6)),
            ]
        )
    with pytest.raises(InputError, match="which encoder made them"):
        intention((asked[0], tmp_path / "v"), output)
    assert not output.exists()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("command", ["transfer", "intention"])
def test_training_is_validated_under_the_mask_of_the_ranking(
    command, mask, domains, asked, tmp_path, masks_of_validation
):
    flags = ["--exclude-history"] if mask else []
    if command == "transfer":
        transfer(*domains, tmp_path / "p.jsonl", *flags)
    else:
        intention(asked, tmp_path / "p.jsonl", *flags)
    assert set(masks_of_validation) == {mask}


def test_convergence(domains, tmp_path, capsys):
    data, vectors = domains
    output = tmp_path / "c.json"
    argv = ["convergence", "--data", str(data["A"]), "--embeddings", str(vectors["A"])]
    main([*argv, "--output", str(output), "--epochs", "3", "--loss", "bpr"])
    screen = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert list(found) == ["alpharec", "lightgcn"]
    for name, one in found.items():
        assert f"\n{name}" in screen
        assert len(one["scores"]) == 3
        assert one["best_score"] == max(one["scores"])
        assert one["scores"][one["best_epoch"] - 1] == one["best_score"]
        assert one["within_1_percent"] <= one["best_epoch"]
    for more, message in [
        (["--output", str(output), "--methods", "popularity"], "it has no epochs"),
        (["--output", str(output), "--methods", "mf", "mf"], "named twice"),
        (["--output", str(output), "--methods", "lightgnc"], "did you mean 'lightgcn'"),
        (
            ["--output", str(output), "--methods", "lightgcn", "sasrec", "--loss", "info_nce"],
            "sasrec can be trained with ce, bce, bpr, sampled",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            main([*argv, *more])


def test_convergence_of_phases_and_of_methods_with_an_index(domains, tmp_path):
    data, vectors = domains
    codes = np.stack(np.divmod(np.arange(20), 5), axis=1).astype(np.int32)
    ItemIndex(codes, (4, 5)).save(tmp_path / "index")
    output = tmp_path / "c.json"
    inputs = ["--data", str(data["A"]), "--embeddings", str(vectors["A"])]
    inputs += ["--index", str(tmp_path / "index"), "--output", str(output)]
    main(["convergence", *inputs, "--methods", "collabcontext", "tiger", "--epochs", "2"])
    found = json.loads(output.read_text())
    assert found["collabcontext"]["epochs"] == 4
    assert found["collabcontext"]["best_epoch"] > 2
    assert found["tiger"]["epochs"] == 2
