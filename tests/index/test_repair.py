"""An index in which items share a path: who keeps it, where the others go, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import write_data

from lcrec import quantize
from lcrec.core.artifacts import read_json, write_array, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.index.item_index import ItemIndex, find_conflicts
from lcrec.index.revise import level_paths, mean_codebooks, repair_codes
from lcrec.index.rqvae import RQVAE

pytestmark = pytest.mark.usefixtures("undrawn")
# The first level is a corner of the plane, the second a step from it.
CODEBOOKS = np.array([[[0, 0], [10, 0], [0, 10]], [[0, 0], [1, 0], [0, 1]]], dtype=np.float32)
SHARED = np.array([[0, 0], [1, 1], [1, 1], [1, 0], [1, 1]], dtype=np.int32)


def test_who_keeps_a_shared_path():
    # Items 1, 2 and 4 share the step to the right of (10, 0); item 3 holds the corner itself.
    latents = np.array([[0, 0], [10.6, 0.4], [11, 0], [10, 0], [9, 3]], dtype=np.float32)
    repaired = repair_codes(SHARED[:4], (3, 3), CODEBOOKS, latents[:4])
    assert repaired.tolist() == [[0, 0], [1, 2], [1, 1], [1, 0]]
    # With item 4 the prefix is full: one of the two goes to the corner that is next.
    repaired = repair_codes(SHARED, (3, 3), CODEBOOKS, latents)
    assert repaired[2].tolist() == [1, 1]
    assert sorted(repaired[[1, 4]].tolist()) in ([[0, 1], [1, 2]], [[0, 2], [1, 2]])
    # The RQ-VAE alone: from (11, 0), the corner (10, 0) is taken, and the step up is next.
    assert repair_codes(SHARED[:4], (3, 3), CODEBOOKS).tolist() == [[0, 0], [1, 1], [1, 2], [1, 0]]
    # Nothing at all: the last code 2 is used by none.
    assert repair_codes(SHARED[:4], (3, 3)).tolist() == [[0, 0], [1, 1], [1, 2], [1, 0]]
    # A full prefix: item 4 goes where fewest are, the prefix 2, and there to the code fewest have.
    assert repair_codes(SHARED, (3, 3)).tolist()[3:] == [[1, 0], [2, 2]]
    unique = SHARED[[0, 1, 3]]
    assert repair_codes(unique, (3, 3)) is unique
    with pytest.raises(InputError, match=r"levels of 1, 2 codes spell 2 items, and there are 3"):
        repair_codes(np.zeros((3, 2), np.int32), (1, 2))
    assert sorted(repair_codes(np.zeros((2, 2), np.int32), (1, 2)).tolist()) == [[0, 0], [0, 1]]
    codes = np.array([[0, 0], [0, 0], [1, 0], [2, 0]], dtype=np.int32)
    points = np.array([[0.0], [0.1], [5.0], [9.0]], dtype=np.float32)
    repaired = repair_codes(codes, (3, 1), mean_codebooks(points, codes), points)
    assert len(np.unique(repaired, axis=0)) == 4
    assert (repaired != codes).any(axis=1).sum() == 1


@given(st.data())
def test_whatever_is_shared(data):
    """All differ afterwards; who shared nothing stays; one of each group stays."""
    sizes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    capacity = int(np.prod(sizes))
    path = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = np.array(data.draw(st.lists(path, min_size=1, max_size=capacity)), dtype=np.int32)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    full = (max(sizes),) * len(sizes)
    for level_sizes, known in (
        (sizes, {}),
        (full, {"codebooks": rng.normal(size=(len(full), full[0], 3)).astype(np.float32)}),
        (full, {"latents": rng.normal(size=(len(codes), 3)).astype(np.float32)}),
    ):
        if "latents" in known:
            known["codebooks"] = mean_codebooks(known["latents"], codes)
            level_sizes = (known["codebooks"].shape[1],) * len(full)
            if np.prod(level_sizes) < len(codes):
                continue
        repaired = repair_codes(codes, level_sizes, **known)
        assert len(np.unique(repaired, axis=0)) == len(codes)
        changed = (repaired != codes).any(axis=1)
        groups = find_conflicts(codes)
        assert changed.sum() == sum(len(group) - 1 for group in groups)
        assert all(changed[group].sum() == len(group) - 1 for group in groups)


def test_codebooks_and_paths_by_hand():
    points = np.array([[0, 0], [0, 2], [10, 0], [10, 4]], dtype=np.float32)
    codes = np.array([[0, 0], [0, 1], [2, 0], [2, 1]], dtype=np.int32)
    codebooks = mean_codebooks(points, codes)
    assert codebooks[0, 0].tolist() == [0, 1]
    assert codebooks[0, 2].tolist() == [10, 2]
    # What is left: one below and one above, two below and two above.
    assert codebooks[1, 0].tolist() == [0, -1.5]
    assert codebooks[1, 1].tolist() == [0, 1.5]
    # Nobody knows what an unused code stands for, so it is far from everything.
    assert (codebooks[0, 1] > 1000).all()
    codes, filled = level_paths([[0, 4, 1], [1], [0, 4]])
    assert codes.tolist() == [[0, 4, 1], [1, 5, 2], [0, 4, 2]]
    assert filled == 2
    codes, filled = level_paths([[1, 2], [3, 4]])
    assert (codes.tolist(), filled) == ([[1, 2], [3, 4]], 0)


TITLES = ("Lamp", "Desk", "Red desk", "Chair")
INDEX = {str(i): [f"<a_{a}>", f"<b_{b}>"] for i, (a, b) in enumerate(SHARED[:4].tolist())}


@pytest.fixture
def old(tmp_path):
    """A folder with old/index.json, in which items 1 and 2 share a path, and data/."""
    write_json(tmp_path / "old" / "index.json", INDEX)
    write_data(tmp_path / "data", {"ann": [0, 1, 2]}, [{"title": title} for title in TITLES])
    return tmp_path


def repair(folder, *flags, source="old/index.json"):
    words = ["--repair", folder / source, "--output", folder / "new", *flags]
    quantize.main(list(map(str, words)))


def test_the_conflicts_are_named_and_gone(old, capsys):
    repair(old, "--data", old / "data")
    index = ItemIndex.load(old / "new", 4)
    assert index.texts[:2] == ["<a_0><b_0>", "<a_1><b_1>"]
    assert index.text(3) == "<a_1><b_0>"
    out = capsys.readouterr().out
    assert "2 of 4 items share an index with another, in 1 group(s), such as:" in out
    assert "<a_1><b_1>\n          1  Desk\n          2  Red desk\n" in out
    assert "Moved 1 items by the codes alone, there being no embeddings; of each group" in out
    report = read_json(old / "new" / "report.json")
    assert report["conflicts"]["items"] == 0
    assert report["repaired"]["groups"] == [[1, 2]]
    assert report["repaired"]["moved"] == {"2": index.tokens(2)}
    page = (old / "new" / "report.html").read_text(encoding="utf-8")
    assert "<h1>Item index: index.json, repaired</h1>" in page
    assert "Repaired: 2 items shared an index with another, in 1 group(s). Moved: 1, by" in page
    assert set(read_provenance(old / "new")["inputs"]) == {"index", "item"}
    repair(old, "--data", old / "data")
    assert capsys.readouterr().out == f"{old / 'new'} is up to date.\n"


def test_embeddings_decide_who_keeps_the_path(old, capsys):
    embeddings = np.array([[0, 0], [10, 9], [10, 2], [10, 0]], dtype=np.float32)
    write_array(old / "embeddings" / "embeddings.npy", embeddings)
    repair(old, "--embeddings", old / "embeddings")
    assert "the mean of a code's items; of each group the closest" in capsys.readouterr().out
    index = ItemIndex.load(old / "new")
    moved = [item for item in range(4) if index.tokens(item) != INDEX[str(item)]]
    assert len(moved) == 1
    assert moved[0] in (1, 2)


def test_the_rqvae_beside_it_goes_along(old, capsys):
    rng = np.random.default_rng(0)
    write_array(old / "embeddings" / "embeddings.npy", rng.normal(size=(4, 3)).astype(np.float32))
    words = ["--data", "data", "--embeddings", "embeddings", "--output", "made"]
    words = [word if word.startswith("--") else str(old / word) for word in words]
    quantize.main([*words, "--levels", "2", "--codes", "3", "--epochs", "1"])
    index = read_json(old / "made" / "index.json")
    write_json(old / "made" / "index.json", {**index, "3": index["0"]})
    repair(old, source="made")
    assert "between the RQ-VAE's codes; of each group the lowest" in capsys.readouterr().out
    new = ItemIndex.load(old / "new")
    assert new.level_sizes == (3, 3)
    assert new.tokens(0) == index["0"]
    assert (old / "new" / "rqvae.safetensors").exists()
    repair(old, "--embeddings", old / "embeddings", source="made")
    assert "in the RQ-VAE's latent; of each group the closest" in capsys.readouterr().out
    assert ItemIndex.load(old / "new").tokens(0) == index["0"]  # whose own path it was


def test_an_rqvae_that_is_not_the_indexs(old):
    RQVAE(3, hidden_dims=[], latent_dim=3, num_levels=2, num_codes=2).save(
        old / "old" / "rqvae.safetensors"
    )
    write_json(old / "old" / "index.json", INDEX | {"0": ["<a_2>", "<b_0>"]})
    with pytest.raises(InputError, match=r"2 levels of 2 codes, .*index.json has 2 .* up to 3;"):
        repair(old)
    write_json(old / "old" / "index.json", {"0": ["<a_0>"], "1": ["<a_0>"]})
    with pytest.raises(InputError, match=r"2 levels of 2 codes, .*index.json has 1 levels of up"):
        repair(old)
    # One level more than it has numbers the items that share a path.
    numbered = {"0": ["<a_0>", "<b_1>", "<c_0>"], "1": ["<a_0>", "<b_1>", "<c_0>"]}
    numbered["2"] = ["<a_1>", "<b_1>", "<c_1>"]
    write_json(old / "old" / "index.json", numbered)
    repair(old)
    assert ItemIndex.load(old / "new").text(1) == "<a_0><b_1><c_1>"


def test_nothing_to_repair(old, capsys):
    write_json(old / "old" / "index.json", {"0": ["<a_0>"], "1": ["<a_1>"]})
    repair(old)
    assert "0 of 2 items share an index" in capsys.readouterr().out
    assert read_json(old / "new" / "index.json") == {"0": ["<a_0>"], "1": ["<a_1>"]}


def test_mixed_depths_are_refused_and_repaired(old):
    write_json(old / "old" / "index.json", {"0": ["<a_0>", "<b_7>"], "1": ["<a_0>"]})
    with pytest.raises(InputError, match=r"item 1 has 1 tokens, item 0 has 2; .*--repair .*fills"):
        ItemIndex.load(old / "old")
    repair(old)
    assert ItemIndex.load(old / "new").texts == ["<a_0><b_7>", "<a_0><b_8>"]
    page = (old / "new" / "report.html").read_text(encoding="utf-8")
    assert "1 shorter paths were filled up to one depth." in page


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"0": ["<a_0>"], "2": ["<a_0>"]}, "item 1 is missing; ids run 0 to 1"),
        ({"0": ["<x_0>"]}, "'<x_0>' is no token of level 0"),
        ({"0": []}, "item 0 has 0 tokens"),
        ({"0": ["<a_0>"], "1": ["<a_0>"]}, "levels of 1 codes spell 1 items, and there are 2"),
        ([], r"expected \{item id"),
    ],
)
def test_files_that_cannot_be_repaired(old, index, message):
    write_json(old / "old" / "index.json", index)
    with pytest.raises(InputError, match=message):
        repair(old)
    assert not (old / "new").exists()


def test_flags_that_do_not_fit(old):
    with pytest.raises(InputError, match="--levels 3: --repair trains nothing"):
        repair(old, "--levels", 3)
    with pytest.raises(InputError, match="is read from there"):
        repair(old, "--output", old / "old")
    write_array(old / "embeddings" / "embeddings.npy", np.ones((5, 2), np.float32))
    with pytest.raises(InputError, match=r"--embeddings: has 5 items, .*index.json has 4"):
        repair(old, "--embeddings", old / "embeddings")
    write_json(old / "data" / "Shop.item.json", {"0": {"title": "Lamp"}})
    with pytest.raises(InputError, match=r"--data: has 1 items, .*index.json has 4"):
        repair(old, "--data", old / "data")
    assert not (old / "new").exists()


@pytest.mark.real_data
def test_the_published_index(real_data, tmp_path, capsys):
    source = real_data / "Instruments" / "Instruments.index.json"
    quantize.main(["--repair", str(source), "--output", str(tmp_path)])
    assert (
        "48 of 9,922 items share an index with another, in 23 group(s)" in capsys.readouterr().out
    )
    published = read_json(source)
    index = ItemIndex.load(tmp_path, 9922)
    changed = [item for item in range(9922) if index.tokens(item) != published[str(item)]]
    assert len(changed) == 25
    # Each still shares all but its last token with what it had.
    assert all(index.tokens(item)[:3] == published[str(item)][:3] for item in changed)


@pytest.mark.real_data
def test_a_published_index_of_mixed_depths(real_data, tmp_path, capsys):
    """As clustering makes them: a large cluster is parted again, a small one counts its items."""
    published = read_json(real_data / "Instruments" / "Instruments.index.json")
    counts, mixed = {}, {}
    for item, tokens in published.items():
        deep = int(tokens[0][3:-1]) % 2
        prefix = tuple(tokens[: 2 + deep])
        counts[prefix] = counts.get(prefix, -1) + 1
        mixed[item] = [*prefix, f"<{'cd'[deep]}_{counts[prefix]}>"]
    write_json(tmp_path / "old" / "index.json", mixed)
    with pytest.raises(InputError, match=r"item \d+ has [34] tokens, item 0 has [34]"):
        ItemIndex.load(tmp_path / "old")
    repair(tmp_path)
    shorter = sum(len(tokens) == 3 for tokens in mixed.values())
    assert f"{shorter:,} of 9,922 paths were shorter than the rest" in capsys.readouterr().out
    index = ItemIndex.load(tmp_path / "new", 9922)
    assert all(index.tokens(int(item))[: len(tokens)] == tokens for item, tokens in mixed.items())
