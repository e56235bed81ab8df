"""The stage from item text to embeddings, with small encoders that are made on the spot."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

import lcrec.add_items
import lcrec.embed
import lcrec.index.encoders
from lcrec.core.artifacts import read_array, read_json, write_array, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.folder import Items
from lcrec.embed import main
from lcrec.index.encoders import collect_texts, fit_lsa, load_encoder, mean_by_owner
from lcrec.tinylm import train_tokenizer

TEXTS = [
    "red desk lamp",
    "a very bright red lamp for the desk, with a long arm and a heavy foot",
    "office chair",
    "grey office chair on five wheels that rolls over every carpet",
    "rug",
    "表 🪑 tisch",
]
ITEMS = {
    "0": {"title": "red desk lamp", "description": "a bright red lamp for the desk"},
    "1": {"title": "desk lamp", "description": ""},
    "2": {"title": "office chair", "description": "a chair on wheels, for the office"},
    "3": {"title": "chair for the office", "brand": "Acme"},
    "4": {"title": "", "description": "woollen rug, hand made"},
    "5": {"title": "woollen rug"},
}

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "bert": lambda size: transformers.BertModel(
        transformers.BertConfig(
            vocab_size=size, intermediate_size=32, max_position_embeddings=64, **SMALL
        )
    ),
    # Its positions begin at 3: 66 rows serve 64 tokens after those up to the padding token's, 1.
    "roberta": lambda size: transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=size,
            intermediate_size=32,
            max_position_embeddings=66,
            pad_token_id=1,
            **SMALL,
        )
    ),
    "gpt2": lambda size: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    ),
    "qwen3": lambda size: transformers.Qwen3Model(
        transformers.Qwen3Config(
            vocab_size=size, intermediate_size=32, num_key_value_heads=2, head_dim=8, **SMALL
        )
    ),
    "t5": lambda size: transformers.T5Model(
        transformers.T5Config(
            vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with one small model and its tokenizer per family; decoders pad on the left."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TEXTS, 300)
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make(len(tokenizer))
        with torch.no_grad():  # positions count, as in a trained model
            for parameter_name, parameter in model.named_parameters():
                if "position" in parameter_name or "wpe" in parameter_name:
                    parameter.mul_(50)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        if name != "bert":
            settings = folder / name / "tokenizer_config.json"
            write_json(settings, {**read_json(settings), "padding_side": "left"})
            assert transformers.AutoTokenizer.from_pretrained(folder / name).padding_side == "left"
    return folder


def write_shop(folder, items=ITEMS):
    write_json(folder / "data" / "Shop.item.json", items)
    write_json(folder / "data" / "Shop.inter.json", {"ann": [0, 1, 2]})


@pytest.fixture
def shop(tmp_path):
    write_shop(tmp_path)
    return tmp_path


def argv(folder, *flags, output="embeddings"):
    return ["--data", str(folder / "data"), "--output", str(folder / output), *map(str, flags)]


def embeddings_of(folder, output="embeddings"):
    return read_array(folder / output / "embeddings.npy")


@pytest.mark.parametrize(
    ("fields", "joined", "expected", "owned"),
    [
        (["title", "description"], False, ["A", "B", "C"], [0, 0, 1]),
        (["title", "description"], True, ["A\nB", "C"], [0, 1]),
        (["description", "title"], True, ["B\nA", "C"], [0, 1]),  # their order is the user's
    ],
)
def test_texts_by_hand(fields, joined, expected, owned):
    items = Items([{"title": "A", "description": "B"}, {"title": "C", "description": ""}])
    texts, owners = collect_texts(items, fields, joined=joined)
    assert (texts, owners.tolist()) == (expected, owned)


def test_fields_and_owners(shop):
    items = Items([{"title": "A", "brand": "", "description": "B"}, {"title": "C"}])
    with pytest.raises(InputError, match=r"--fields titel: no item has any; .* description, title"):
        collect_texts(items, ["titel"], joined=False)
    with pytest.raises(InputError, match="--fields brand: no item has any"):
        collect_texts(items, ["title", "brand"], joined=False)
    with pytest.raises(InputError, match=r"item 1 has no text in description; give --fields"):
        collect_texts(items, ["description"], joined=False)
    vectors = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    assert mean_by_owner(vectors, np.array([1, 1, 0])).tolist() == [[5, 5], [2, 1]]
    # Of users with several values, one without any is left out.
    assert mean_by_owner(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 2])).tolist() == [0.5, 1.0]
    write_shop(shop, {str(item): {"title": title} for item, title in enumerate(TEXTS)})
    with pytest.raises(InputError, match="--fields description: no item has any"):
        main(argv(shop, "--fields", "title", "description"))
    main(argv(shop, "--lsa-dim", 4))
    np.testing.assert_allclose(embeddings_of(shop), lsa_vectors(TEXTS, 4, 0), atol=1e-6)
    assert read_provenance(shop / "embeddings")["config"]["fields"] == ["title"]


def lsa_vectors(texts, dim, seed):
    return fit_lsa(texts, dim, seed).encode(texts)


def test_lsa_vectors_are_of_unit_length_the_seeds_and_shrink_with_the_text():
    vectors = lsa_vectors(TEXTS, 3, 1)
    assert (vectors.shape, vectors.dtype) == ((6, 3), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(vectors, lsa_vectors(TEXTS, 3, 1))
    assert lsa_vectors(["red lamp", "red desk", "grey rug"], 128, 0).shape == (3, 2)
    with pytest.raises(InputError, match="at least 2 texts"):
        lsa_vectors(["red lamp"], 128, 0)
    with pytest.raises(InputError, match=r"lsa finds no words .* --encoder MODEL"):
        lsa_vectors(["?", "!", "a"], 128, 0)


def test_lsa_end_to_end(shop, capsys):
    main(argv(shop, "--lsa-dim", 4))
    embeddings = embeddings_of(shop)
    assert (embeddings.shape, embeddings.dtype) == ((6, 4), np.float32)
    near = embeddings @ embeddings.T
    assert near[0].argsort()[-2:].tolist() == [1, 0]
    assert near[4].argsort()[-2:].tolist() in ([4, 5], [5, 4])
    # Item 0 is the mean of its two texts; item 1 has but one, of unit length.
    texts = ["red desk lamp", "a bright red lamp for the desk", "desk lamp"]
    rest = ["office chair", "a chair on wheels, for the office", "chair for the office"]
    vectors = lsa_vectors([*texts, *rest, "woollen rug, hand made", "woollen rug"], 4, 0)
    np.testing.assert_allclose(embeddings[0], vectors[:2].mean(0), atol=1e-6)
    np.testing.assert_allclose(embeddings[1], vectors[2], atol=1e-6)

    record = read_provenance(shop / "embeddings")
    assert record["stage"] == "python -m lcrec.embed"
    assert set(record["inputs"]) == {"item"}
    assert record["config"]["lsa_dim"] == 4
    out = capsys.readouterr().out
    assert "Embedding 6 items (8 texts) with lsa on 1 process(es)" in out
    assert f"lcrec.quantize --data {shop / 'data'} --embeddings {shop / 'embeddings'}" in out


def test_running_it_again(shop, capsys):
    main(argv(shop))
    first = embeddings_of(shop)
    capsys.readouterr()
    main(argv(shop))
    assert capsys.readouterr().out == f"{shop / 'embeddings'} is up to date.\n"
    # Not where the settings are others, or the text has changed.
    main(argv(shop, "--text", "joined"))
    assert not np.array_equal(embeddings_of(shop), first)
    write_shop(shop, {**ITEMS, "5": {"title": "silken rug"}})
    main(argv(shop))
    assert embeddings_of(shop).shape != first.shape or not np.array_equal(
        embeddings_of(shop), first
    )
    assert "is up to date" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows * np.nan, "6 rows hold values that are not finite"),
        (lambda rows: np.concatenate([rows, rows]), "has 12 rows but the catalogue has 6 items"),
    ],
)
def test_old_embeddings_that_were_spoilt_are_not_passed_on(shop, spoil, message):
    main(argv(shop, "--lsa-dim", 2))
    write_array(shop / "embeddings" / "embeddings.npy", spoil(embeddings_of(shop)))
    with pytest.raises(InputError, match=message):
        main(argv(shop, "--embeddings", shop / "embeddings", output="new"))
    assert not (shop / "new").exists()


def test_a_folder_called_lsa_is_no_encoder(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    for told in ("Wrote lsa", "lsa is up to date"):
        main(["--data", "data", "--output", "lsa", "--lsa-dim", "4"])
        assert told in capsys.readouterr().out


def test_nothing_is_written_where_the_input_is_wrong(shop):
    for flags in (["--fields", "colour"], ["--encoder", str(shop)], ["--lsa-dim", "0"]):
        with pytest.raises(InputError):
            main(argv(shop, *flags))
    write_shop(shop, {**ITEMS, "6": {}})
    with pytest.raises(InputError, match="item 6 has no text"):
        main(argv(shop))
    assert not (shop / "embeddings").exists()


def mean_of_tokens(folder, text, max_tokens=512):
    """Return the mean of the last hidden states of one text on its own, without any padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if model.config.is_encoder_decoder:
        model = model.encoder
    ids = tokenizer(text)["input_ids"][:max_tokens]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_mean_pooling_in_any_batch(models, name, batch_tokens):
    vectors = load_encoder(str(models / name), 512, batch_tokens)(TEXTS)
    assert vectors.dtype == np.float32
    expected = np.stack([mean_of_tokens(models / name, text) for text in TEXTS])
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta"])
def test_long_texts_are_cut(models, name):
    long = ["red lamp " * 500]
    np.testing.assert_allclose(
        load_encoder(str(models / name), 7, 8192)(long)[0],
        mean_of_tokens(models / name, long[0], 7),
        atol=1e-5,
    )
    # The model has 64 positions, whatever --max-tokens says.
    np.testing.assert_allclose(
        load_encoder(str(models / name), 512, 8192)(long)[0],
        mean_of_tokens(models / name, long[0], 64),
        atol=1e-5,
    )


def test_half_precision_weights_give_float32(models, tmp_path):
    transformers.AutoModel.from_pretrained(models / "bert").to(torch.bfloat16).save_pretrained(
        tmp_path
    )
    transformers.AutoTokenizer.from_pretrained(models / "bert").save_pretrained(tmp_path)
    vectors = load_encoder(str(tmp_path), 512, 8192)(TEXTS)
    assert vectors.dtype == np.float32
    exact = load_encoder(str(models / "bert"), 512, 8192)(TEXTS)
    np.testing.assert_allclose(vectors, exact, atol=0.1)


def test_end_to_end_with_an_encoder(shop, models, capsys):
    folder = models / "bert"
    main(argv(shop, "--encoder", folder))
    embeddings = embeddings_of(shop)
    for item, texts in {
        0: ["red desk lamp", "a bright red lamp for the desk"],
        1: ["desk lamp"],
        4: ["woollen rug, hand made"],
    }.items():
        expected = np.mean([mean_of_tokens(folder, text) for text in texts], axis=0)
        np.testing.assert_allclose(embeddings[item], expected, atol=1e-5)
    names = sorted(path.name for path in (shop / "embeddings").iterdir())
    assert names == ["embeddings.npy", "lcrec.json"]

    main(argv(shop, "--encoder", folder, "--text", "joined", output="joined"))
    expected = mean_of_tokens(folder, "red desk lamp\na bright red lamp for the desk")
    np.testing.assert_allclose(embeddings_of(shop, "joined")[0], expected, atol=1e-5)


def test_other_weights_in_the_same_folder_are_noticed(shop, models, tmp_path, capsys):
    folder = tmp_path / "encoder"
    transformers.AutoTokenizer.from_pretrained(models / "bert").save_pretrained(folder)
    arrays = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        transformers.BertModel(
            transformers.AutoModel.from_pretrained(models / "bert").config
        ).save_pretrained(folder)
        main(argv(shop, "--encoder", folder))
        arrays.append(embeddings_of(shop))
    assert not np.allclose(*arrays)
    main(argv(shop, "--encoder", folder))
    assert "is up to date" in capsys.readouterr().out


def test_sentence_transformers_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for name in (str(tmp_path), "sentence-transformers/all-MiniLM-L6-v2"):
        with pytest.raises(InputError, match=r"pip install 'lcrec\[encoders\]'"):
            load_encoder(name, 512, 8192)


@pytest.mark.slow
def test_sentence_transformers_models(models, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "sentence"
    sentence_transformers.SentenceTransformer(str(models / "bert"), device="cpu").save(str(folder))
    assert (folder / "modules.json").exists()
    # Mean pooling is that package's default, so both roads give the same.
    np.testing.assert_allclose(
        load_encoder(str(folder), 512, 8192)(TEXTS),
        load_encoder(str(models / "bert"), 512, 8192)(TEXTS),
        atol=1e-5,
    )


@pytest.fixture
def counted(monkeypatch):
    """Parts of two texts, and a stand-in encoder that notes its texts and may be killed."""
    seen = []

    def encode(texts):
        if len(seen) == encode.killed_after:
            raise KeyboardInterrupt
        seen.append(texts)
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)

    encode.killed_after = None
    monkeypatch.setattr(lcrec.embed, "TEXTS_PER_PART", 2)
    monkeypatch.setattr(lcrec.index.encoders, "load_encoder", lambda *_: encode)
    return encode, seen


def test_a_killed_run_goes_on_where_it_stopped(shop, counted):
    encode, seen = counted
    flags = ["--encoder", "some-model"]
    main(argv(shop, *flags, output="whole"))
    assert len(seen) == 4  # eight texts
    longest_first = [text for part in seen for text in part]
    assert len(longest_first[0]) > len(longest_first[-1])

    seen.clear()
    encode.killed_after = 2
    with pytest.raises(KeyboardInterrupt):
        main(argv(shop, *flags))
    assert not (shop / "embeddings" / "embeddings.npy").exists()
    encode.killed_after = None
    seen.clear()
    main(argv(shop, *flags))
    assert len(seen) == 2
    np.testing.assert_array_equal(embeddings_of(shop), embeddings_of(shop, "whole"))
    assert not (shop / ".embeddings.parts").exists()


@pytest.mark.parametrize("change", ["settings", "items"])
def test_parts_of_another_run_are_not_used(shop, counted, change):
    encode, seen = counted
    encode.killed_after = 3
    with pytest.raises(KeyboardInterrupt):
        main(argv(shop, "--encoder", "some-model"))
    encode.killed_after = None
    seen.clear()
    if change == "items":
        write_shop(shop, {**ITEMS, "0": {"title": "sofa"}})
        main(argv(shop, "--encoder", "some-model"))
        assert sum(map(len, seen)) == 7
    else:
        main(argv(shop, "--encoder", "some-model", "--fields", "title", "description", "brand"))
        assert sum(map(len, seen)) == 9


def test_every_item_gets_the_vectors_of_its_own_texts(shop, counted):
    main(argv(shop, "--encoder", "some-model"))
    texts = read_json(shop / "data" / "Shop.item.json")
    for item, row in enumerate(embeddings_of(shop)):
        fields = [texts[str(item)].get(name) for name in ("title", "description")]
        lengths = [len(text) for text in fields if text]
        assert row[0] == pytest.approx(np.mean(lengths))


@pytest.mark.slow
def test_two_processes_give_the_same_array(models, tmp_path):
    words = [text for text in TEXTS if text.isascii()]
    items = {
        str(item): {
            "title": f"{words[item % 5]} {item}",
            "description": f"{words[item % 3]} number {item * item}",
        }
        for item in range(1100)
    }
    write_shop(tmp_path, items)
    flags = ("--encoder", models / "bert")
    main(argv(tmp_path, *flags, output="one"))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", "lcrec.embed"),
            *argv(tmp_path, *flags, output="two"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "(2,200 texts)" in result.stdout
    assert "on 2 process(es)" in result.stdout
    np.testing.assert_array_equal(embeddings_of(tmp_path, "two"), embeddings_of(tmp_path, "one"))


NEW = {"6": {"title": "grey desk lamp"}, "7": {"title": "rug", "description": "a woollen rug"}}


@pytest.fixture
def grown(shop):
    """A folder with data/ and, with two more items, grown/."""
    write_json(shop / "new.json", NEW)
    words = ["--data", shop / "data", "--add", shop / "new.json", "--output", shop / "grown"]
    lcrec.add_items.main(list(map(str, words)))
    return shop


def add(folder, *flags, embeddings="embeddings", output="more"):
    main(
        [
            *("--data", str(folder / "grown"), "--add", str(folder / "new.json")),
            *("--embeddings", str(folder / embeddings), "--output", str(folder / output)),
            *map(str, flags),
        ]
    )


def test_new_items_are_projected_as_the_old_were(grown, capsys):
    main(argv(grown, "--lsa-dim", 4))
    capsys.readouterr()
    add(grown)
    out = capsys.readouterr().out
    assert "Embedding 2 items (3 texts) with lsa" in out
    assert f"lcrec.quantize --data {grown / 'grown'} --add {grown / 'new.json'} --index OLD" in out
    old, new = embeddings_of(grown), embeddings_of(grown, "more")
    assert new.shape == (8, 4)
    np.testing.assert_array_equal(new[:6], old)
    # Item 6 is a lamp for the desk, item 7 a rug, and the two of them have nothing in common.
    near = new[6:] @ old.T
    assert near[0].argmax() in (0, 1)
    assert near[1].argmax() in (4, 5)
    # What was learnt goes along, so that more items can join.
    for name in ("lsa.json", "lsa.safetensors"):
        assert (grown / "more" / name).read_bytes() == (grown / "embeddings" / name).read_bytes()
    record = read_provenance(grown / "more")
    assert set(record["inputs"]) == {"item", "added", "embeddings"}
    assert record["config"] == read_provenance(grown / "embeddings")["config"]
    add(grown)
    assert capsys.readouterr().out == f"{grown / 'more'} is up to date.\n"


def test_new_items_by_a_model(grown, models):
    flags = ("--encoder", models / "bert", "--text", "joined", "--max-tokens", 9)
    main(argv(grown, *flags))
    add(grown, "--batch-tokens", 7)
    old, new = embeddings_of(grown), embeddings_of(grown, "more")
    np.testing.assert_array_equal(new[:6], old)
    for item, text in {6: "grey desk lamp", 7: "rug\na woollen rug"}.items():
        expected = mean_of_tokens(models / "bert", text, 9)
        np.testing.assert_allclose(new[item], expected, atol=1e-5)


def test_new_items_are_encoded_in_one_way_only(grown):
    main(argv(grown, "--lsa-dim", 4))
    for flags, message in (
        (["--encoder", "some/model"], r"--encoder some/model: the new items .*; leave it out"),
        (["--fields", "title"], r"--fields title: the new items are encoded as those of"),
        (["--seed", 1], "--seed 1: the new items"),
    ):
        with pytest.raises(InputError, match=message):
            add(grown, *flags)
    assert not (grown / "more").exists()


def test_old_embeddings_that_cannot_be_extended(grown, models):
    main(argv(grown, "--lsa-dim", 4))
    with pytest.raises(InputError, match="goes with --embeddings OLD"):
        main(argv(grown, "--add", grown / "new.json"))
    with pytest.raises(InputError, match="is read from there"):
        add(grown, output="embeddings")
    (grown / "embeddings" / "lsa.json").rename(grown / "lsa.json")
    with pytest.raises(InputError, match=r"does not belong to the lsa.json beside it"):
        add(grown)
    (grown / "lsa.json").rename(grown / "embeddings" / "lsa.json")
    lcrec.embed.write_array(grown / "embeddings" / "embeddings.npy", np.zeros((5, 4), np.float32))
    with pytest.raises(InputError, match=r"has 5 rows, but .*grown had 6 items before those of"):
        add(grown)
    write_shop(grown, {**ITEMS, "5": {"title": "silken rug"}})
    main(argv(grown, "--lsa-dim", 4))
    with pytest.raises(InputError, match=r"embeddings was made from .*, but .*grown extends"):
        add(grown)
    (grown / "embeddings" / "lcrec.json").unlink()
    with pytest.raises(InputError, match=r"--embeddings .*: no record of python -m lcrec.embed"):
        add(grown)


def test_an_encoder_that_is_another_one_now(grown, models, tmp_path):
    folder = tmp_path / "encoder"
    transformers.AutoTokenizer.from_pretrained(models / "bert").save_pretrained(folder)
    config = transformers.AutoModel.from_pretrained(models / "bert").config
    transformers.BertModel(config).save_pretrained(folder)
    main(argv(grown, "--encoder", folder))
    transformers.BertModel(config).save_pretrained(folder)
    with pytest.raises(InputError, match="was made from another encoder file"):
        add(grown)
