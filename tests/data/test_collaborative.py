"""Item vectors out of fitted baselines: of each kind, and of none that will do."""

import numpy as np
import pytest
from planted import save_baseline, write_data
from scipy import sparse

from lcrec.baselines.runs.run import MethodRun
from lcrec.core.artifacts import METHOD_WEIGHTS
from lcrec.core.errors import InputError
from lcrec.data.collaborative import factorise_counts, load_collaborative

ITEMS = [{"title": f"Desk {item}"} for item in range(5)]
VECTORS = np.array([[3, 0], [1, 2], [5, 4], [9, 9], [9, 9]], dtype=np.float32)


@pytest.fixture
def data(tmp_path):
    """Leave-one-out keeps items 0, 1 and 2 to train on."""
    return write_data(tmp_path / "data", {"ann": [0, 1, 3, 4], "bob": [2, 3, 4]}, ITEMS)


def test_items_of_the_train_sequences_are_centred_and_others_are_zero(data, tmp_path):
    save_baseline(tmp_path / "m", data, item_vectors=VECTORS, user_vectors=VECTORS[:2])
    found = load_collaborative(tmp_path / "m", data, 5)
    centred = np.array([[0, -2], [-2, 0], [2, 2]])
    expected = centred / np.sqrt((centred**2).mean())
    assert found.dtype == np.float32
    assert np.allclose(found[:3], expected)
    assert not found[3:].any()  # held out alone: a start that was never trained
    table = np.concatenate([VECTORS, np.zeros((1, 2)), np.ones((1, 2))]).astype(np.float32)
    save_baseline(tmp_path / "s", data, "bert4rec", **{"items.weight": table})
    assert np.allclose(load_collaborative(tmp_path / "s", data, 5), found)


def test_counts_are_factorised_so_that_what_stands_together_lies_together():
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    vectors = factorise_counts(sparse.csr_array(blocks), 3)
    assert vectors.shape == (12, 3)
    products = vectors @ vectors.T
    # 9 partners of 36 in all pairs: log 4 / 3... the same for every pair of a block, none beyond.
    apart = ~np.eye(12, dtype=bool)
    inside = products[blocks.astype(bool) & apart]
    assert inside.min() > 0.5
    assert np.abs(products[~blocks.astype(bool)]).max() < 1e-5
    assert factorise_counts(sparse.csr_array(blocks[:2, :2]), 64).shape == (2, 1)


@pytest.mark.parametrize(
    "words", [["cooccurrence"], ["mf", "--epochs", "1"], ["sasrec", "--epochs", "1"]]
)
def test_what_the_command_saves_is_read(shop, tmp_path, words):
    method, *settings = words
    saved = tmp_path / method
    paths = ["--data", shop, "--output", tmp_path / "x.jsonl", "--save", saved]
    MethodRun(method, [*map(str, paths), *settings]).run()
    found = load_collaborative(saved, shop, 48)
    assert found.shape[0] == 48
    assert found.any(axis=1).sum() > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_vectors": VECTORS[:4]}, "mf keeps no vector of each of 5 items"),
        ({"items.weight": np.ones((9, 2), np.float32)}, "mf keeps no vector"),
        ({"counts": np.ones(5, np.float32)}, r"such as lightgcn, sasrec or cooccurrence"),
        ({"item_vectors": np.full((5, 2), np.inf, np.float32)}, "not finite"),
        ({"item_vectors": np.ones((5, 2), np.float32)}, "all items are alike"),
    ],
)
def test_what_holds_no_vectors_of_items_is_refused(data, tmp_path, change, message):
    save_baseline(tmp_path / "m", data, "mf", **change)
    with pytest.raises(InputError, match=message):
        load_collaborative(tmp_path / "m", data, 5)


def test_vectors_of_another_data_set_are_refused(data, tmp_path):
    saved = tmp_path / "m"
    for folder in (saved, data):
        with pytest.raises(InputError, match=r"holds no fitted baseline; .* lightgcn .* --save"):
            load_collaborative(folder, data, 5)
    save_baseline(saved, data, item_vectors=VECTORS)
    other = write_data(tmp_path / "other", {"ann": [0, 1, 3, 4]}, ITEMS)
    with pytest.raises(InputError, match=r"another inter file .*python -m lcrec"):
        load_collaborative(saved, other, 5)
    other = write_data(tmp_path / "renamed", {"ann": [0, 1, 3]}, [{"title": "x"}] * 5)
    with pytest.raises(InputError, match="another item file"):
        load_collaborative(saved, other, 5)
    (saved / METHOD_WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_collaborative(saved, data, 5)
