"""The command that reports on an index made anywhere, end to end."""

from typing import get_args, get_type_hints

import numpy as np
import pytest

from lcrec.core.artifacts import read_json, write_array, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance, write_provenance
from lcrec.index.item_index import IndexSettings, ItemIndex
from lcrec.index.rqvae import RQVAE
from lcrec.index_report import main
from lcrec.quantize import main as quantize

pytestmark = pytest.mark.usefixtures("undrawn")
ITEMS = 24
CODES = np.column_stack([np.arange(ITEMS) // 6, np.arange(ITEMS) % 6])


@pytest.fixture
def shop(tmp_path):
    """A folder with data/, embeddings/ and an index.json made elsewhere."""
    item = tmp_path / "data" / "Shop.item.json"
    kinds = CODES[:, 0].tolist()
    write_json(item, {str(i): {"title": f"Desk {i}", "categories": f"Kind {k}"}
                      for i, k in enumerate(kinds)})  # fmt: skip
    write_json(tmp_path / "data" / "Shop.inter.json", {"ann": [0, 1, 2]})
    rng = np.random.default_rng(0)
    rows = np.eye(4, 6)[kinds] * 5 + rng.normal(size=(ITEMS, 6))
    write_array(tmp_path / "embeddings" / "embeddings.npy", rows.astype(np.float32))
    write_index(tmp_path / "made" / "index.json", CODES)
    return tmp_path


def write_index(path, codes):
    write_json(path, {str(i): [f"<{'ab'[level]}_{code}>" for level, code in enumerate(row)]
                      for i, row in enumerate(codes.tolist())})  # fmt: skip


def run(folder, index="made", *, output="report", embeddings=True, data=True, **more):
    flags = {"index": folder / index, "output": folder / output, **more}
    flags |= {"embeddings": folder / "embeddings"} if embeddings else {}
    flags |= {"data": folder / "data"} if data else {}
    main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    return read_json(folder / output / "report.json")


def test_an_index_made_elsewhere(shop, capsys):
    report = run(shop)
    assert report["level_sizes"] == [4, 6]
    assert report["labels"]["purity"] == [1, None]
    assert report["branches"][0]["titles"] == ["Desk 0", "Desk 1", "Desk 3", "Desk 5"]
    assert set(report["left_out"]) == {"explained_variance"}
    record = read_provenance(shop / "report")
    assert set(record["inputs"]) == {"index", "item", "embeddings"}
    out = capsys.readouterr().out
    assert "24 items, 2 codes each" in out
    assert report["verdict"]["text"] in out
    assert f"Wrote {shop / 'report' / 'report.html'}" in out
    report = run(shop, "made/index.json", embeddings=False, data=False)
    assert set(report["left_out"]) == {"explained_variance", "neighbours", "labels", "branches"}
    assert report["verdict"]["grade"] == "note"
    codes = CODES.copy()
    codes[7] = codes[6]
    write_index(shop / "made" / "index.json", codes)
    report = run(shop)
    assert report["conflicts"]["examples"] == [[6, 7]]
    assert report["verdict"]["text"] == "Not fit for training: items share an index."


def test_a_persons_report_beside_an_index_is_kept(shop):
    (shop / "made" / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"report\.html in it may be a person's own"):
        run(shop, output="made")
    assert (shop / "made" / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["data", "embeddings"])
def test_what_is_read_is_not_replaced(shop, name):
    with pytest.raises(InputError, match="is read from there; name another place"):
        run(shop, output=name)


@pytest.mark.parametrize("kind", get_args(get_type_hints(IndexSettings)["kind"]))
def test_it_says_of_every_kind_what_quantize_said(shop, kind):
    settings = {"kind": kind, "levels": 2, "codes": 6, "epochs": 5, "hidden-dims": 8}
    folders = {name: shop / name for name in ("data", "embeddings")}
    flags = {**folders, "output": shop / "index", **settings}
    quantize([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    said = read_json(shop / "index" / "report.json")
    again = run(shop, "index")
    if kind == "balanced-kmeans":  # what it assigned before parting items is not in any file
        before = {"conflict_rate_before_assignment", "items_moved", "distortion_nearest", "verdict"}
        for report in (said, again):
            report["explained_variance"] = None
            for name in before:
                report.pop(name)
    assert again == said
    with_model = IndexSettings(kind=kind).has_model
    assert ("explained_variance" in said) == with_model
    assert (shop / "index" / "rqvae.safetensors").exists() == with_model
    # Beside the index itself its record stays what it was.
    record = read_provenance(shop / "index")
    run(shop, "index", output="index")
    assert read_provenance(shop / "index") == record
    index = ItemIndex.load(shop / "index", ITEMS)
    assert index.num_levels == {"vanilla": 1, "tiger": 3}.get(kind, 2)


def test_how_items_joined_or_moved_is_not_lost(shop):
    codes = CODES.copy()
    codes[7] = codes[6]
    write_index(shop / "made" / "index.json", codes)
    quantize(["--repair", str(shop / "made"), "--output", str(shop / "new")])
    before = read_json(shop / "new" / "report.json")
    report = run(shop, "new", output="new")
    assert report["repaired"] == before["repaired"]
    assert report["repaired"]["groups"] == [[6, 7]]
    assert "branches" in report.keys() - before.keys()


@pytest.fixture
def refused(shop):
    def check(message, *args, **more):
        with pytest.raises(InputError, match=message):
            run(shop, *args, **more)
        assert not (shop / "report").exists()

    return check


def test_no_index_of_this_catalogue(shop, refused):
    write_index(shop / "made" / "index.json", CODES[:-1])
    refused(r"index.json has 23 items but .*Shop.item.json has 24: .* name the data folder")
    refused(r"embeddings.npy has 24 rows but the catalogue has 23 items", data=False)
    refused(r"gone/index.json: no such file; make one with: python -m lcrec.quantize", "gone")
    write_json(shop / "made" / "index.json", {"0": ["<a_0>"], "1": ["<a_1>", "<b_0>"]})
    refused(r"item 1 has 2 tokens, item 0 has 1; every item needs the same number")


def test_embeddings_that_are_none(shop, refused):
    rows = np.full((ITEMS, 2), np.nan)
    write_array(shop / "embeddings" / "embeddings.npy", rows)
    refused(r"24 rows hold values that are not finite \(first: item 0\)")
    (shop / "embeddings" / "embeddings.npy").unlink()
    refused(r"embeddings.npy: no such file")


def test_a_data_set_that_changed_since(shop, refused):
    item = shop / "data" / "Shop.item.json"
    write_provenance(shop / "made", "python -m lcrec.quantize", {}, {"item": item})
    write_json(item, {str(i): {"title": f"Lamp {i}"} for i in range(ITEMS)})
    refused("made was made from another item file .* python -m lcrec.quantize --data")


def test_weights_that_do_not_fit(shop, refused):
    path = shop / "made" / "rqvae.safetensors"
    path.write_text("no weights")
    refused("rqvae.safetensors: not an RQ-VAE of this version")
    RQVAE(5, hidden_dims=[], latent_dim=2, num_levels=2, num_codes=6).save(path)
    refused(r"--embeddings: 6 wide, but .*rqvae.safetensors was trained on 5-wide ones")


@pytest.mark.real_data
def test_the_published_index_of_instruments(real_data, tmp_path):
    """9,922 items, 9,897 distinct paths, 48 items that share one, 3 at most."""
    index = real_data / "Instruments" / "Instruments.index.json"
    main(["--index", str(index), "--output", str(tmp_path / "report")])
    report = read_json(tmp_path / "report" / "report.json")
    conflicts = report["conflicts"]
    assert (report["items"], report["distinct_prefixes"][-1]) == (9922, 9897)
    assert (conflicts["items"], conflicts["largest"]) == (48, 3)
    assert report["codes_used"] == [162, 256, 256, 256]
