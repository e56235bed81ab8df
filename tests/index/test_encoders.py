"""The encoder of an embeddings folder, for texts that are no items. The rest: test_embed.py."""

import numpy as np
import pytest
from planted import write_data

from lcrec import embed
from lcrec.core.artifacts import read_array, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.index.encoders import encoder_of

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
