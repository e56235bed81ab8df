"""The stage from embeddings to the item index, end to end on toy embeddings."""

import numpy as np
import pytest
import torch
from planted import save_baseline
from safetensors.torch import load_file

import lcrec.index.rqvae_training
import lcrec.quantize
from lcrec import index_report
from lcrec.core.artifacts import read_json, write_array, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance, write_provenance
from lcrec.index.item_index import IndexSettings, ItemIndex
from lcrec.index.rqvae import RQVAE
from lcrec.quantize import QuantizeConfig, check_embeddings, main

pytestmark = pytest.mark.usefixtures("undrawn")
ITEMS = 24
SETTINGS = {
    "levels": 3, "codes": 4, "latent-dim": 4, "hidden-dims": 8, "epochs": 6, "batch-size": 8,
}  # fmt: skip
MADE = ["index.json", "lcrec.json", "report.html", "report.json", "rqvae.safetensors"]


def toy_embeddings():
    """Return float32 [24, 6]: four clusters of four points, and eight of them twice."""
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(4, 6)) * 5, 4, axis=0) + rng.normal(size=(16, 6))
    return np.concatenate([points, points[:8]]).astype(np.float32)


def argv(folder, output="index", **settings):
    flags = {
        "data": folder / "data",
        "embeddings": folder / "embeddings",
        "output": folder / output,
        **SETTINGS,
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def shop(tmp_path):
    """A folder with data/ and embeddings/ that was made of it."""
    data = tmp_path / "data"
    write_json(data / "Shop.item.json", {str(i): {"title": f"Desk {i}"} for i in range(ITEMS)})
    write_json(data / "Shop.inter.json", {"ann": [0, 1, 2]})
    write_array(tmp_path / "embeddings" / "embeddings.npy", toy_embeddings())
    item = data / "Shop.item.json"
    write_provenance(tmp_path / "embeddings", "python -m lcrec.embed", {}, {"item": item})
    return tmp_path


def test_end_to_end(shop, capsys):
    main(argv(shop))
    folder = shop / "index"
    assert sorted(path.name for path in folder.iterdir()) == MADE

    index = ItemIndex.load(folder, ITEMS)
    assert index.level_sizes == (4, 4, 4)
    assert len(set(index.texts)) == ITEMS

    record = read_provenance(folder)
    assert record["stage"] == "python -m lcrec.quantize"
    assert set(record["inputs"]) == {"item", "embeddings"}
    assert record["config"]["codes"] == 4

    report = read_json(folder / "report.json")
    assert report["items"] == ITEMS
    assert report["explained_variance"] == sorted(report["explained_variance"])
    assert 0.8 < report["explained_variance_assigned"] <= report["explained_variance"][-1]
    # Eight items are there twice, so at least sixteen share their nearest path.
    assert report["conflict_rate_before_assignment"] >= 16 / ITEMS
    assert report["items_moved"] >= 8
    assert report["distinct_prefixes"][-1] == ITEMS

    out = capsys.readouterr().out
    assert "Indexing 24 items by rq-vae: 3 levels of 4 codes from 6-wide embeddings" in out
    assert f"Next: python -m lcrec.finetune --data {shop / 'data'}" in out


def test_running_it_again_does_nothing(shop, capsys):
    main(argv(shop))
    times = {path.name: path.stat().st_mtime_ns for path in (shop / "index").iterdir()}
    capsys.readouterr()
    main(argv(shop))
    assert capsys.readouterr().out == f"{shop / 'index'} is up to date.\n"
    assert times == {path.name: path.stat().st_mtime_ns for path in (shop / "index").iterdir()}


def test_other_settings_make_another_index_and_the_same_the_same_bytes(shop):
    main(argv(shop))
    main(argv(shop, codes=5))
    assert ItemIndex.load(shop / "index").level_sizes == (5, 5, 5)
    main(argv(shop, kind="random"))
    assert not (shop / "index" / "rqvae.safetensors").exists()
    for output, seed in (("one", 7), ("two", 7), ("other", 8)):
        main(argv(shop, output, seed=seed))
    for name in ("index.json", "report.json", "rqvae.safetensors"):
        one, two = ((shop / output / name).read_bytes() for output in ("one", "two"))
        assert one == two
    assert one != (shop / "other" / "rqvae.safetensors").read_bytes()


@pytest.mark.parametrize(
    "step", ["RQVAE.save", "write_index_report", "write_provenance", "ItemIndex.save"]
)
def test_a_killed_run_leaves_the_old_index(shop, monkeypatch, step):
    main(argv(shop))
    first = {path.name: path.read_bytes() for path in (shop / "index").iterdir()}

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        module = "rqvae" if step == "RQVAE.save" else "page"
        patch.setattr(f"lcrec.index.{module}.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            main(argv(shop, codes=5))
    assert {path.name: path.read_bytes() for path in (shop / "index").iterdir()} == first
    assert sorted(path.name for path in shop.iterdir() if path.name[0] == ".") in (
        [],
        [".index.training.safetensors"],
    )


def test_a_killed_training_is_resumed(shop, killed_after, capsys):
    main(argv(shop, "whole"))
    killed_after(4)
    with pytest.raises(KeyboardInterrupt):
        main(argv(shop))
    killed_after(None)
    with pytest.raises(InputError, match=r"index.json: no such file"):
        ItemIndex.load(shop / "index")
    capsys.readouterr()
    main(argv(shop))
    assert "Going on after epoch 4" in capsys.readouterr().out
    assert sorted(path.name for path in (shop / "index").iterdir()) == MADE
    for name in ("index.json", "rqvae.safetensors"):
        assert (shop / "index" / name).read_bytes() == (shop / "whole" / name).read_bytes()


@pytest.fixture
def bought(shop):
    """The folder of a fitted baseline, of data that train on items 0 to 19."""
    data = shop / "data"
    write_json(data / "Shop.inter.json", {"ann": [*range(20), 22, 23]})
    vectors = np.eye(4, dtype=np.float32)[np.arange(ITEMS) % 4]
    save_baseline(shop / "bought", data, item_vectors=vectors)
    return shop / "bought"


@pytest.mark.parametrize("by", ["concat", "letter"])
def test_an_index_that_learns_from_purchases(shop, bought, by, capsys):
    main(argv(shop, "text"))
    words = argv(shop, collaborative=bought, collaborative_by=by)
    main(words)
    folder, how = shop / "index", {"concat": "beside", "letter": "aligned with"}[by]
    assert f"{how} 4-wide vectors of purchases (20 items)" in capsys.readouterr().out
    more = ["collaborative.npy"] * (by == "concat")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*MADE, *more])
    report = read_json(folder / "report.json")
    assert report["collaborative_neighbours"]["queries"] == 20
    assert 0 <= report["collaborative_neighbours"]["kept"][0] <= 1
    assert any(
        "nearest to an item by purchases" in f["text"] for f in report["verdict"]["findings"]
    )
    assert "Bought alike kept" in (folder / "report.html").read_text()
    assert set(read_provenance(folder)["inputs"]) == {"item", "embeddings", "collaborative"}
    model = RQVAE.load(folder / "rqvae.safetensors")
    if by == "concat":
        appended = np.load(folder / "collaborative.npy")
        assert not appended[20:].any()
        assert appended.var(axis=0).sum() == pytest.approx(toy_embeddings().var(axis=0).sum())
    assert model.input_dim == (10 if by == "concat" else 6)
    main(words)
    assert "is up to date" in capsys.readouterr().out
    # What only --collaborative heeds is in no other index's record, which stays what it was.
    assert not read_provenance(shop / "text")["config"].keys() & {
        "collaborative_by", "collaborative_weight", "diversity_weight",
    }  # fmt: skip
    assert "collaborative_neighbours" not in read_json(shop / "text" / "report.json")
    # The report on it later says the same, of the text index too.
    for index in ("index", "text"):
        flags = {"index": shop / index, "embeddings": shop / "embeddings", "data": shop / "data",
                 "collaborative": bought, "output": shop / f"report-{index}"}  # fmt: skip
        index_report.main([word for n, v in flags.items() for word in (f"--{n}", str(v))])
    again = read_json(shop / "report-index" / "report.json")
    for name in ("collaborative_neighbours", "explained_variance", "neighbours"):
        assert again[name] == report[name]
    assert "collaborative_neighbours" in read_json(shop / "report-text" / "report.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "random"}, "--kind random knows nothing of the items"),
        ({"kind": "rq-kmeans", "collaborative_by": "letter"}, "--kind rq-kmeans trains nothing"),
        ({"collaborative": "nowhere"}, "--collaborative nowhere: holds no fitted baseline"),
        ({"collaborative": None, "diversity_weight": 1}, "--diversity-weight: needs"),
        ({"diversity_weight": 1}, "--diversity-weight 1.0: is of LETTER's losses"),
        ({"collaborative": None, "collaborative_by": "letter"}, "--collaborative-by: needs"),
    ],
)
def test_settings_on_purchases_that_do_not_go_together(shop, bought, settings, message):
    words = argv(shop, **{"collaborative": bought, **settings})
    if settings.get("collaborative", bought) is None:
        place = words.index("--collaborative")
        del words[place : place + 2]
    with pytest.raises(InputError, match=message):
        main(words)
    assert not (shop / "index").exists()


@pytest.mark.parametrize("kind", ["vanilla", "random"])
def test_codes_that_stand_for_nothing_need_no_embeddings(shop, kind, capsys):
    words = ["--data", str(shop / "data"), "--output", str(shop / "index"), "--kind", kind]
    main(words)
    assert ItemIndex.load(shop / "index", ITEMS).num_levels == (1 if kind == "vanilla" else 3)
    assert set(read_provenance(shop / "index")["inputs"]) == {"item"}
    assert "embeddings" not in capsys.readouterr().out
    with pytest.raises(InputError, match="--embeddings is required: only --kind vanilla and"):
        main([*words[:-1], "rq-kmeans"])


def test_settings_of_parity_are_the_published_ones(shop, monkeypatch):
    seen = {}

    def spy(self, input_dim, **settings):
        seen.update(settings)
        raise KeyboardInterrupt

    paths = [f"--{name}={shop / name}" for name in ("data", "embeddings")]
    words = [*paths, f"--output={shop / 'index'}"]
    monkeypatch.setattr(RQVAE, "__init__", spy)
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--parity"])
    assert seen["hidden_dims"] == [2048, 1024, 512, 256, 128, 64]
    assert (seen["latent_dim"], seen["num_levels"], seen["num_codes"]) == (32, 4, 256)
    assert seen["sinkhorn_epsilons"] == [0, 0, 0, 0.003]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert (seen["hidden_dims"], seen["latent_dim"]) == ([512, 256], 6)
    config = QuantizeConfig(data=shop, embeddings=shop, output=shop)
    assert (config.learning_rate, config.batch_size, config.commitment_weight) == (1e-3, 1024, 0.25)


def epsilons(kind, given, levels):
    return IndexSettings(kind=kind, sinkhorn_epsilon=given, levels=levels, codes=4).level_epsilons()


@pytest.mark.parametrize(
    ("items", "given", "shape"),
    [
        (2000, {}, (4, 256)),
        (1999, {}, (3, 64)),
        (600, {}, (3, 32)),
        (1, {}, (3, 4)),
        (240, {"codes": 16}, (3, 16)),
        (600, {"levels": 2}, (2, 32)),
        (240, {"parity": True}, (4, 256)),
    ],
)
def test_levels_and_codes_suit_the_catalogue_unless_given(items, given, shape):
    assert IndexSettings(**given).for_items(items).shape == shape


def test_epsilon_per_level():
    assert epsilons("rq-vae", [0.003], 4) == [0, 0, 0, 0.003]
    assert epsilons("rq-vae", [0, 0.1, 0.01], 3) == [0, 0.1, 0.01]
    assert epsilons("tiger", [0.003], 3) == [0, 0, 0]
    with pytest.raises(InputError, match="--sinkhorn-epsilon: 2 numbers for --levels 3"):
        epsilons("rq-vae", [0.1, 0.2], 3)


@pytest.fixture
def on_two_processes(run_command):
    """A function that runs the stage on two processes and returns what it prints."""

    def run(words):
        out = run_command(
            *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2),
            *("-m", "lcrec.quantize", *words),
        )
        assert "6-wide embeddings on 2 process(es)" in out
        assert out.count("Wrote") == 1
        return out

    return run


@pytest.mark.slow
def test_two_processes_train_as_one(shop, on_two_processes):
    # The last state counts under --parity: which check was the best could hang on rounding.
    settings = {"batch_size": 12, "epochs": 30}  # batches that two divide evenly
    main([*argv(shop, "one", **settings), "--parity"])
    on_two_processes([*argv(shop, "two", **settings), "--parity"])
    one, two = (load_file(shop / name / "rqvae.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_share_batches_they_do_not_divide(shop, on_two_processes):
    on_two_processes(argv(shop, batch_size=7, epochs=10))
    assert sorted(path.name for path in (shop / "index").iterdir()) == MADE
    report = read_json(shop / "index" / "report.json")
    assert report["distinct_prefixes"][-1] == ITEMS
    assert report["explained_variance"][-1] > 0.9


@pytest.fixture
def refused(shop):
    """A function that runs the stage and checks how it refuses."""

    def run(message, **settings):
        with pytest.raises(InputError, match=message):
            main(argv(shop, **settings))
        assert not (shop / "index").exists()

    return run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--embeddings: there is no .*embeddings.npy; make it with: python -m lcrec.embed "),
        ("1 2 3", r"embeddings.npy: not a plain NumPy array"),
        (toy_embeddings()[:-1], r"npy has 23 rows but the catalogue has 24 items; .*lcrec.embed"),
        (
            np.where(np.arange(ITEMS)[:, None] % 4 == 3, np.nan, toy_embeddings()),
            r"6 rows hold values that are not finite \(first: item 3\).*python -m lcrec.embed",
        ),
    ],
    ids=["none", "no array", "fewer rows", "not finite"],
)
def test_embeddings_that_are_none(shop, refused, content, message):
    path = shop / "embeddings" / "embeddings.npy"
    if isinstance(content, np.ndarray):
        write_array(path, content)
    else:
        path.write_text(content) if content else path.unlink()
    refused(message)


@pytest.mark.parametrize("made", [False, True])
def test_stale_embeddings(shop, made):
    if made:
        main(argv(shop))
    items = read_json(shop / "data" / "Shop.item.json")
    write_json(shop / "data" / "Shop.item.json", {**items, "3": {"title": "Lamp"}})
    message = "embeddings was made from another item file than .*Shop.item.json"
    with pytest.raises(InputError, match=f"{message}.*lcrec.embed --data {shop / 'data'} --output"):
        main(argv(shop))
    assert (shop / "index").exists() == made


def test_settings_that_cannot_work_are_refused_before_training(refused, monkeypatch):
    monkeypatch.setattr(lcrec.index.rqvae_training, "train_rqvae", None)
    refused("spell 4 items, the catalogue has 24: use --levels 5 or --codes 5", levels=2, codes=2)
    refused("--levels 27: at most 26", levels=27)
    refused("--codes: 1 is too small", codes=1)
    refused("--hidden-dims: 0 is too small", hidden_dims=0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"found float64 \[3\]"),
        (np.zeros((3, 0)), r"expected floats of shape \[items, dim\], found float64 \[3, 0\]"),
        (np.zeros((3, 2), dtype=int), r"found int64 \[3, 2\]"),
        (np.zeros((3, 2), dtype=complex), r"found complex128 \[3, 2\]"),
        (np.full((3, 2), 1e300), r"3 rows hold values that are not finite"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_that_are_no_embeddings(tmp_path, array, message):
    with pytest.raises(InputError, match=f"x.npy.*{message}"):
        check_embeddings(array, 3, tmp_path / "x.npy")


@pytest.mark.parametrize("value", [1e30, -3.4e38, 1.1e6])
def test_values_whose_squares_leave_float32_are_refused(value, tmp_path):
    array = np.ones((3, 2), dtype=np.float32)
    array[1, 0] = value
    with pytest.raises(
        InputError, match=rf"x.npy: a value of {abs(value):.3g}".replace("+", r"\+")
    ):
        check_embeddings(array, 3, tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_float_types_become_float32(tmp_path, dtype):
    checked = check_embeddings(np.ones((3, 2), dtype=dtype), 3, tmp_path / "x.npy")
    assert checked.dtype == np.float32
