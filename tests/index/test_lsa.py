"""Latent semantic vectors, and that what was learnt survives on disk."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lcrec.core.artifacts import write_json
from lcrec.core.errors import InputError
from lcrec.index.encoders import Lsa, fit_lsa

TEXTS = ["red lamp", "red desk lamp", "office chair", "grey office chair", "woollen rug"]


@pytest.fixture(scope="module")
def lsa():
    return fit_lsa(TEXTS, 3, seed=0)


def test_what_is_read_encodes_as_what_was_written(lsa, tmp_path):
    lsa.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lsa.json", "lsa.safetensors"]
    read = Lsa.load(tmp_path)
    np.testing.assert_array_equal(read.encode(TEXTS), lsa.encode(TEXTS))


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
