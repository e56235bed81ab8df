"""New items in an index that a model was trained on: near, unique, and nothing old moves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import identity_rqvae, save_baseline, write_data

from lcrec import add_items, embed, quantize
from lcrec.core.artifacts import read_json, write_array, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.index.item_index import ItemIndex
from lcrec.index.revise import place_new_items

pytestmark = pytest.mark.usefixtures("undrawn")
NAMES = ("red desk lamp", "tall floor lamp", "office chair", "garden chair", "woollen rug")
ITEMS = [{"title": f"{name} number {number}"} for number in range(5) for name in NAMES]
NEW = {"25": {"title": "green desk lamp"}, "26": {"title": "woollen rug number 2"}}


@pytest.fixture
def model():
    """Two levels of three codes: the first is a corner of the plane, the second a step from it."""
    return identity_rqvae([[0, 0], [10, 0], [0, 10]], [[0, 0], [1, 0], [0, 1]])


def index_of(*codes, sizes=(3, 3)):
    return ItemIndex(np.array(codes, dtype=np.int32), sizes)


def place(model, old, *new):
    """Return the codes that new points get; where the old ones lie does not matter for them."""
    points = np.array([*([[0, 0]] * len(old)), *new], dtype=np.float32)
    extension = place_new_items(model, old, points)
    assert extension.index.codes[: len(old)].tolist() == old.codes.tolist()
    return extension.index.codes[len(old) :].tolist(), extension


@pytest.mark.parametrize(
    ("old", "new", "expected", "moved"),
    [
        ([[0, 0], [1, 1]], [[10, 0.9], [0.1, 9.9]], [[1, 2], [2, 0]], 0),
        # Nearest is the step to the right, which item 1 has, and next to it none at all.
        ([[0, 0], [1, 1]], [[10.8, 0.3]], [[1, 0]], 1),
        ([[0, 0]], [[10, 0]] * 3, [[1, 0], [1, 1], [1, 2]], 2),
        # The prefix is full: the corner next to it, a step to the right.
        ([[1, 0], [1, 1], [1, 2]], [[7, 0]], [[0, 1]], 1),
    ],
    ids=["free", "taken", "alike", "full prefix"],
)
def test_the_nearest_path_that_is_free(model, old, new, expected, moved):
    codes, extension = place(model, index_of(*old), *new)
    assert sorted(codes) == expected
    assert extension.moved == moved
    assert extension.index.level_sizes == (3, 3)


def test_a_full_code_space(model, shop, tmp_path):
    full = index_of(*([a, b] for a in range(3) for b in range(3)))
    with pytest.raises(InputError, match=r"2 levels of 3 codes spell 9 items, and 10 are wanted"):
        place(model, full, [0, 0])
    nearly = index_of(*([a, b] for a in range(3) for b in range(3) if (a, b) != (2, 2)))
    assert place(model, nearly, [0, 0])[0] == [[2, 2]]
    small = {**WHOLE, "levels": 2, "codes": 5, "output": tmp_path / "index"}
    run(quantize, shop, **small)
    with pytest.raises(InputError, match="spell 25 items, and 27 are wanted: train a new index"):
        run(
            quantize, shop, **ADD_TO_INDEX | {"index": tmp_path / "index", "output": tmp_path / "o"}
        )
    assert not (tmp_path / "o").exists()


def test_how_well_the_codes_describe_the_new_items_and_how_shared_paths_are_numbered(model):
    points = np.array([[10, 0], [11, 0], [0, 0], [0, 13]], dtype=np.float32)
    extension = place_new_items(model, index_of([1, 0], [1, 1]), points)
    assert extension.index.codes[2:].tolist() == [[0, 0], [2, 2]]
    # Only item 3 is not where its path is, but 2 above it; the old mean is (10.5, 0).
    before, after = extension.explained
    assert before == 1
    assert after == pytest.approx(1 - 2**2 / (10.5**2 + 10.5**2 + 13**2))
    old = index_of([0, 0, 0], [0, 0, 1], [1, 1, 0], sizes=(3, 3, 3))
    codes, _ = place(model, old, [0, 0], [11, 0], [0, 10])
    assert codes == [[0, 0, 2], [1, 1, 1], [2, 0, 0]]
    with pytest.raises(InputError, match="the last level's 3 codes are all used"):
        place(model, old, [0, 0], [0, 0])


@given(st.data())
def test_whatever_joins(data):
    """All are unique, none of the old moves, and who wants a free path alone gets it."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    model = identity_rqvae(*rng.normal(size=(2, 4, 3)).tolist())
    paths = rng.permutation(16)
    num_old = data.draw(st.integers(1, 15))
    num_new = data.draw(st.integers(1, 16 - num_old))
    old = ItemIndex(np.column_stack(np.divmod(paths[:num_old], 4)).astype(np.int32), (4, 4))
    points = rng.normal(size=(num_old + num_new, 3)).astype(np.float32)
    index = place_new_items(model, old, points).index  # which refuses two of a kind
    assert (index.codes[:num_old] == old.codes).all()
    wanted = model.nearest_codes(torch.from_numpy(points[num_old:])).tolist()
    taken = old.codes.tolist()
    for path, got in zip(wanted, index.codes[num_old:].tolist(), strict=True):
        if path not in taken and wanted.count(path) == 1:
            # Unless one whose prefix was full came first.
            assert got == path or len({tuple(row[:1]) for row in wanted}) < len(wanted)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with data/, its embeddings/ and index/, and grown/ with its own embeddings."""
    folder = tmp_path_factory.mktemp("extension")
    write_data(folder / "data", {"ann": [0, 1, 2]}, ITEMS)
    write_json(folder / "new.json", NEW)
    run(embed, folder, data="data", output="embeddings", fields="title", lsa_dim=8)
    run(quantize, folder, **WHOLE)
    run(add_items, folder, data="data", add="new.json", output="grown")
    run(embed, folder, **ADD | {"embeddings": "embeddings", "output": "grown-embeddings"})
    return folder


ADD = {"data": "grown", "add": "new.json"}
WHOLE = {"data": "data", "embeddings": "embeddings", "output": "index"}
WHOLE |= {"levels": 3, "codes": 4, "epochs": 3, "hidden_dims": 8}
ADD_TO_INDEX = {**ADD, "embeddings": "grown-embeddings", "index": "index", "output": "more"}
PATHS = ("data", "add", "embeddings", "index", "output")


def run(stage, folder, **settings):
    words = []
    for name, value in settings.items():
        if value is not None:
            value = folder / value if name in PATHS else value
            words += [f"--{name.replace('_', '-')}", str(value)]
    stage.main(words)


def test_end_to_end(shop, tmp_path, capsys):
    before = {path: path.read_bytes() for path in (shop / "index").iterdir()}
    run(quantize, shop, **ADD_TO_INDEX | {"output": tmp_path})
    old, index = ItemIndex.load(shop / "index"), ItemIndex.load(tmp_path, 27)
    assert index.level_sizes == (4, 4, 4)
    assert (index.codes[:25] == old.codes).all()
    assert index.codes[26, 0] in old.codes[4::5, 0]  # a rug like the other rugs
    assert {path: path.read_bytes() for path in (shop / "index").iterdir()} == before
    assert (tmp_path / "rqvae.safetensors").read_bytes() == before[
        shop / "index" / "rqvae.safetensors"
    ]
    report = read_json(tmp_path / "report.json")
    assert (report["items"], report["conflicts"]["items"]) == (27, 0)
    added = report["added"]
    assert added["items"] == 2
    # A lamp and a rug, of the kinds that there were.
    assert 0.5 < added["explained_variance_new"] < 1
    assert 0.5 < added["explained_variance_old"] < 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Item index: Shop, 2 new items added</h1>" in page
    assert "2 items joined later: the codes explain" in page
    record = read_provenance(tmp_path)
    assert set(record["inputs"]) == {"item", "embeddings", "added", "index", "rqvae"}
    out = capsys.readouterr().out
    assert f"Adding 2 items to the 25 of {shop / 'index' / 'index.json'}" in out
    assert f"lcrec.generate --model MODEL --index {tmp_path} --data {shop / 'grown'}" in out
    run(quantize, shop, **ADD_TO_INDEX | {"output": tmp_path})
    assert capsys.readouterr().out == f"{tmp_path} is up to date.\n"


def test_new_items_in_an_index_that_learnt_from_purchases(shop, tmp_path):
    save_baseline(tmp_path / "bought", shop / "data", item_vectors=np.eye(25, 3, dtype=np.float32))
    settings = WHOLE | {"output": tmp_path / "index", "collaborative": tmp_path / "bought"}
    with pytest.raises(InputError, match="alike"):  # one item is trained on, which is its own mean
        run(quantize, shop, **settings)
    write_data(tmp_path / "data", {"ann": [*range(20), 23, 24]}, ITEMS)
    save_baseline(
        tmp_path / "bought", tmp_path / "data", item_vectors=np.eye(25, 3, dtype=np.float32)
    )
    run(quantize, shop, **settings | {"data": tmp_path / "data"})
    run(quantize, shop, **ADD_TO_INDEX | {"index": tmp_path / "index", "output": tmp_path / "more"})
    old, new = (np.load(tmp_path / name / "collaborative.npy") for name in ("index", "more"))
    assert (new[:25] == old).all()
    assert new.shape == (27, 3)
    assert not new[25:].any()  # nobody knows anything of them
    codes = ItemIndex.load(tmp_path / "index").codes
    assert (ItemIndex.load(tmp_path / "more", 27).codes[:25] == codes).all()


def test_twice_in_a_row(shop, tmp_path):
    run(quantize, shop, **ADD_TO_INDEX | {"output": tmp_path / "once"})
    write_json(tmp_path / "newer.json", {"27": {"title": "tall green lamp"}})
    more = {"data": shop / "grown", "add": tmp_path / "newer.json", "output": tmp_path / "data"}
    run(add_items, tmp_path, **more)
    # The record tells which items are new.
    more = {"data": tmp_path / "data", "output": tmp_path / "embeddings"}
    run(embed, tmp_path, **more | {"embeddings": shop / "grown-embeddings"})
    more |= {"embeddings": tmp_path / "embeddings", "index": tmp_path / "once"}
    run(quantize, tmp_path, **more | {"output": tmp_path / "twice"})
    once, twice = ItemIndex.load(tmp_path / "once"), ItemIndex.load(tmp_path / "twice")
    assert len(twice) == 28
    assert (twice.codes[:27] == once.codes).all()
    with pytest.raises(InputError, match=r"do not extend those that the index in .* was made from"):
        run(quantize, tmp_path, **more | {"index": shop / "index", "output": tmp_path / "no"})
    # A night without a new item takes the same commands.
    run(embed, tmp_path, data="data", embeddings="embeddings", output="same-embeddings")
    same = {"embeddings": "same-embeddings", "index": "twice", "output": "same"}
    run(quantize, tmp_path, data="data", **same)
    for name in ("embeddings", "same-embeddings"):
        rows = np.load(tmp_path / name / "embeddings.npy")
        assert (rows == np.load(tmp_path / "embeddings" / "embeddings.npy")).all()
    assert (ItemIndex.load(tmp_path / "same", 28).codes == twice.codes).all()
    assert read_json(tmp_path / "same" / "report.json")["added"] == {"items": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": None}, "--add NEW.item.json goes with --index OLD"),
        ({"data": None}, "--data is required"),
        ({"embeddings": None}, "--embeddings is required"),
        ({"epochs": 5}, "--epochs 5: adding items trains nothing"),
        ({"kind": "random"}, "--kind random: adding items trains nothing"),
        ({"embeddings": "embeddings"}, "embeddings was made from another item file"),
        ({"data": "data", "embeddings": "embeddings"}, "its last items are not those of --add"),
        ({"index": "data"}, r"index.json: no such file"),
    ],
)
def test_what_does_not_fit(shop, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(quantize, shop, **{**ADD_TO_INDEX, "output": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


def test_embeddings_of_another_space(shop, tmp_path):
    # All items anew by lsa, which was fitted to other texts then.
    run(embed, shop, data="grown", output=tmp_path / "anew", fields="title", lsa_dim=8)
    with pytest.raises(InputError, match=r"anew: do not extend .*--embeddings .*embeddings"):
        run(quantize, shop, **ADD_TO_INDEX | {"embeddings": tmp_path / "anew"})
    # Made elsewhere, they are taken as they are, where their width is right.
    for width, message in ((5, "5 wide, but .*rqvae.safetensors was trained on 8-wide"), (8, "")):
        write_array(tmp_path / "own" / "embeddings.npy", np.ones((27, width), np.float32))
        own = ADD_TO_INDEX | {"embeddings": tmp_path / "own", "output": tmp_path / "out"}
        if message:
            with pytest.raises(InputError, match=message):
                run(quantize, shop, **own)
        else:
            run(quantize, shop, **own)
    assert len(ItemIndex.load(tmp_path / "out")) == 27


@pytest.mark.parametrize("kind", ["vanilla", "random"])
def test_a_kind_of_index_that_takes_no_new_items(shop, tmp_path, kind):
    whole = {**WHOLE, "epochs": None, "hidden_dims": None, "output": tmp_path / kind, "kind": kind}
    run(quantize, shop, **whole)
    with pytest.raises(InputError, match=r"no rqvae.safetensors, so its kind .*an index for all"):
        run(quantize, shop, **ADD_TO_INDEX | {"index": tmp_path / kind})
