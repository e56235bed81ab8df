"""Latent semantic vectors, and the encoder of an embeddings folder for texts that are no items."""

import numpy as np
import pytest
from planted import write_data
from safetensors.numpy import save_file

from lcrec import embed
from lcrec.core.artifacts import read_array, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.index.encoders import Lsa, encoder_of, fit_lsa

TEXTS = ["red desk lamp", "desk lamp", "office chair", "chair for the office", "woollen rug"]


@pytest.fixture
def store(tmp_path):
    write_data(tmp_path / "data", {"ann": [0, 1, 2]}, [{"title": text} for text in TEXTS])
    return tmp_path


def make(store, *flags):
    words = ["--data", store / "data", "--output", store / "embeddings", "--fields", "title"]
    embed.main([str(word) for word in [*words, *flags]])
    return store / "embeddings"


def test_lsa_puts_other_texts_among_the_items(store):
    folder = make(store, "--lsa-dim", "4")
    encode = encoder_of(folder)
    np.testing.assert_allclose(encode(TEXTS), read_array(folder / "embeddings.npy"), atol=1e-5)
    near = encode(["a chair, please"]) @ read_array(folder / "embeddings.npy").T
    assert set(np.argsort(-near[0])[:2]) == {2, 3}
    assert not encode(["unheard of"]).any()


def test_a_folder_that_does_not_say_how_it_was_made(store):
    folder = make(store)
    (folder / "lcrec.json").unlink()
    with pytest.raises(InputError, match="nothing there says which encoder"):
        encoder_of(folder)


def test_a_model_that_is_gone_or_another_one(store, base):
    folder = make(store, "--encoder", base)
    np.testing.assert_allclose(
        encoder_of(folder)(TEXTS), read_array(folder / "embeddings.npy"), atol=1e-4
    )
    moved = store / "moved"
    moved.mkdir()
    for path in base.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert encoder_of(folder, str(moved))(["rug"]).shape == (1, 32)
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    with pytest.raises(InputError, match="made from another encoder file than"):
        encoder_of(folder, str(moved))
    record = read_json(folder / "lcrec.json")
    record["config"]["encoder"] = str(store / "gone")
    write_json(folder / "lcrec.json", record)
    with pytest.raises(InputError, match="gone: cannot be loaded"):
        encoder_of(folder)


PHRASES = ["red lamp", "red desk lamp", "office chair", "grey office chair", "woollen rug"]


@pytest.fixture(scope="module")
def lsa():
    return fit_lsa(PHRASES, 3, seed=0)


def test_what_is_read_encodes_as_what_was_written(lsa, tmp_path):
    lsa.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lsa.json", "lsa.safetensors"]
    read = Lsa.load(tmp_path)
    np.testing.assert_array_equal(read.encode(PHRASES), lsa.encode(PHRASES))


def test_a_text_does_not_depend_on_its_neighbours(lsa):
    together = lsa.encode(["a red lamp", "rug"])
    np.testing.assert_array_equal(lsa.encode(["rug"])[0], together[1])
    assert together[0] @ lsa.encode(["red lamp"])[0] > 0.99
    assert abs(together[0] @ together[1]) < 0.1
    assert not lsa.encode(["xylophone"]).any()
    assert "red lamp" in lsa.terms
    assert lsa.components.shape == (3, len(lsa.terms))
    assert lsa.idf.dtype == lsa.components.dtype == np.float32


def test_files_that_are_missing_or_foreign(lsa, tmp_path):
    with pytest.raises(InputError, match=r"lsa.safetensors: cannot be read .*embeddings anew"):
        Lsa.load(tmp_path)
    lsa.save(tmp_path)
    for terms in (lsa.terms[:-1], {"red": 0}, [1] * len(lsa.terms)):
        write_json(tmp_path / "lsa.json", terms)
        with pytest.raises(InputError, match=r"does not belong to the lsa.json beside it"):
            Lsa.load(tmp_path)
    lsa.save(tmp_path)
    save_file({"idf": lsa.idf}, tmp_path / "lsa.safetensors")
    with pytest.raises(InputError, match="does not belong"):
        Lsa.load(tmp_path)
    (tmp_path / "lsa.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        Lsa.load(tmp_path)
