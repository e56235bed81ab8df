"""Probes: maps whose answer is known, the shared share of planted data, measures, the command."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import make_planted, write_data

from lcrec.baselines.__main__ import main
from lcrec.baselines.commands.probe import (
    MAPS,
    anchor_correlation,
    fit_map,
    judge_map,
    mean_cosine,
    neighbour_jaccard,
    r_squared,
    read_vectors,
)
from lcrec.core.errors import InputError


def gaussians(seed, rows=600, dim=6):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


TRAIN = np.arange(600) % 5 > 0


@pytest.mark.parametrize("kind", ["ridge", "linear"])
def test_a_linear_target_is_recovered_whatever_its_scale(kind):
    source, weights = gaussians(0), gaussians(1, rows=6, dim=4)
    target = 0.001 * (source @ weights + 7) + 1e-5 * gaussians(2, dim=4)
    mapping = fit_map(kind, source[TRAIN], target[TRAIN], epochs=1500)
    figures = judge_map(mapping, source, target, TRAIN)
    assert figures["train_r2"] > 0.99
    assert figures["test_r2"] > 0.99
    assert figures["cosine"] > 0.99


def test_procrustes_recovers_a_rotation_and_a_scale():
    source = gaussians(0)
    rotation, _ = np.linalg.qr(gaussians(1, rows=6))
    target = 3 * source @ rotation + 2
    figures = judge_map(fit_map("procrustes", source, target), source, target, TRAIN)
    assert figures["test_r2"] > 0.999
    assert figures["neighbours"] > 0.9
    # A stretch along one axis is beyond it, and not beyond a linear map.
    stretched = source * np.array([9, 1, 1, 1, 1, 1], dtype=np.float32)
    figures = judge_map(fit_map("procrustes", source, stretched), source, stretched, TRAIN)
    assert figures["test_r2"] < 0.8
    assert (
        judge_map(fit_map("ridge", source, stretched), source, stretched, TRAIN)["test_r2"] > 0.99
    )


@pytest.mark.parametrize("kind", ["ridge", "procrustes", "linear"])
def test_nothing_is_found_where_there_is_nothing(kind):
    source, target = gaussians(0, rows=3000), gaussians(1, rows=3000)
    train = np.arange(3000) % 5 > 0
    mapping = fit_map(kind, source[train], target[train], epochs=250)
    assert abs(judge_map(mapping, source, target, train)["test_r2"]) < 0.03


def planted_views():
    planted = make_planted(users=1, items=4000, private_behaviour=24, noise=0.01)
    train = np.random.default_rng(0).random(4000) < 0.8
    return planted.embeddings, planted.behaviour, train


def test_linear_maps_recover_the_shared_share():
    """8 of 32 factors are shared: .25 of the variance."""
    source, target, train = planted_views()
    figures = judge_map(fit_map("ridge", source[train], target[train]), source, target, train)
    assert figures["train_r2"] == pytest.approx(0.25, abs=0.015)
    assert figures["test_r2"] == pytest.approx(0.25, abs=0.02)


@pytest.mark.slow
def test_a_deep_map_learns_the_rest_by_heart():
    source, target, train = planted_views()
    figures = {
        kind: judge_map(
            fit_map(kind, source[train], target[train], epochs=150), source, target, train
        )
        for kind in ("linear", "mlp-1")
    }
    assert figures["linear"]["test_r2"] == pytest.approx(0.25, abs=0.025)
    assert figures["mlp-1"]["train_r2"] > figures["linear"]["train_r2"] + 0.08
    assert figures["mlp-1"]["test_r2"] < figures["linear"]["test_r2"] - 0.03


@pytest.mark.parametrize("kind", MAPS)
def test_every_map_takes_any_width_and_is_drawn_by_seed(kind):
    source, target = gaussians(0, rows=40, dim=3), gaussians(1, rows=40, dim=5)
    first, again = (fit_map(kind, source, target, epochs=2, seed=3) for _ in range(2))
    assert first(source).shape == (40, 5)
    assert (first(source) == again(source)).all()
    wide = fit_map(kind, target, source, epochs=2)
    assert wide(target).shape == (40, 3)
    still = fit_map(kind, np.ones((9, 2), dtype=np.float32), gaussians(2, rows=9), epochs=2)
    assert np.isfinite(still(np.ones((4, 2), dtype=np.float32))).all()


def test_measures_by_hand():
    target = np.array([[0.0, 5], [2, 5]])
    assert r_squared(target, target) == 1
    assert r_squared(np.array([[1.0, 5], [1, 5]]), target) == 0  # the mean; the flat one is no part
    assert r_squared(np.array([[2.0, 0], [0, 0]]), target) == -3
    x = np.array([[1.0, 0], [0, 2]])
    assert mean_cosine(x, 3 * x) == pytest.approx(1)
    assert mean_cosine(x, x[::-1]) == pytest.approx(0)
    line = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert neighbour_jaccard(line, line, 1) == 1
    assert neighbour_jaccard(line, line[[0, 2, 1, 3]], 1) == 0
    assert neighbour_jaccard(line, line, 20) == 1  # three others, all of them


@given(st.integers(0, 100), st.floats(0.1, 50))
def test_measures_do_not_see_a_common_scale_or_rotation(seed, factor):
    x, y = gaussians(seed, rows=30, dim=3), gaussians(seed + 1, rows=30, dim=3)
    rotation, _ = np.linalg.qr(gaussians(seed + 2, rows=3, dim=3))
    turned = factor * x @ rotation
    assert anchor_correlation(x, turned) == pytest.approx(1, abs=1e-3)
    assert neighbour_jaccard(x, turned, 5) > 0.95
    assert abs(anchor_correlation(x, y)) <= 1
    assert 0 <= neighbour_jaccard(x, y, 5) <= 1
    assert r_squared(factor * x, factor * y) == pytest.approx(r_squared(x, y), rel=1e-3)


@pytest.fixture
def vectors(tmp_path):
    np.save(tmp_path / "x.npy", gaussians(0, rows=50))
    folder = tmp_path / "embeddings"
    folder.mkdir()
    np.save(folder / "embeddings.npy", (2 * gaussians(0, rows=50) + 1).astype(np.float32))
    return tmp_path / "x.npy", folder


def test_the_command(vectors, tmp_path, capsys):
    x, folder = vectors
    output = tmp_path / "probe.json"
    command = ["probe", "--source", str(x), "--target", str(folder), "--output", str(output)]
    main([*command, "--maps", "ridge", "procrustes"])
    screen = capsys.readouterr().out
    assert "fitted on 40 items, judged on 10 (random)" in screen
    assert "test R2" in screen
    maps = json.loads(output.read_text())["maps"]
    assert list(maps) == ["ridge", "procrustes"]
    assert maps["procrustes"]["test_r2"] > 0.999


def test_the_least_popular_are_kept_apart(tmp_path, capsys):
    """Head items follow y = x and tail items y = -x: maps of the head know nothing of the tail."""
    rng = np.random.default_rng(0)
    sequences = {str(user): [*rng.permutation(40)[:9].tolist(), 0, 1] for user in range(90)}
    folder = write_data(tmp_path / "Shop", sequences, 50)
    source = gaussians(0, rows=50)
    target = np.where(np.arange(50)[:, None] < 40, source, -source)
    np.save(tmp_path / "s.npy", source)
    np.save(tmp_path / "t.npy", target)
    output = tmp_path / "o.json"
    command = ["probe", "--source", str(tmp_path / "s.npy"), "--target", str(tmp_path / "t.npy")]
    command += ["--maps", "ridge", "--output", str(output)]
    main([*command, "--distribution", "popularity", "--data", str(folder)])
    figures = json.loads(output.read_text())["maps"]["ridge"]
    assert figures["train_r2"] > 0.99
    assert figures["test_r2"] < -2
    main(command)
    assert json.loads(output.read_text())["maps"]["ridge"]["train_r2"] < 0.9
    with pytest.raises(InputError, match="only --distribution popularity"):
        main([*command, "--data", str(folder)])
    with pytest.raises(InputError, match="needs --data DIR"):
        main([*command, "--distribution", "popularity"])
    np.save(tmp_path / "s.npy", source[:40])
    np.save(tmp_path / "t.npy", target[:40])
    with pytest.raises(InputError, match="has 50 items, but the vectors are of 40"):
        main([*command, "--distribution", "popularity", "--data", str(folder)])


def test_vectors_of_a_kept_method(tmp_path):
    sequences = {str(user): [user % 5, 5, (user + 1) % 5, 6] for user in range(8)}
    folder = write_data(tmp_path / "Shop", sequences, 7)
    shared = ["--data", str(folder), "--output", str(tmp_path / "p.jsonl")]
    main(["mf", *shared, "--save", str(tmp_path / "mf"), "--epochs", "1", "--dim", "4"])
    vectors, file = read_vectors(tmp_path / "mf")
    assert vectors.shape == (7, 4)
    assert file.name == "method.safetensors"
    main(["popularity", *shared, "--overwrite", "--save", str(tmp_path / "pop")])
    with pytest.raises(InputError, match="no vector per item; it has counts"):
        read_vectors(tmp_path / "pop")


def test_what_probe_refuses(vectors, tmp_path):
    x, folder = vectors
    np.save(tmp_path / "short.npy", gaussians(0, rows=49))
    np.save(tmp_path / "few.npy", gaussians(0, rows=9))
    np.save(tmp_path / "whole.npy", np.arange(100).reshape(50, 2))
    bad = gaussians(0, rows=50)
    bad[3, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "method.safetensors").write_bytes(b"x")
    cases = [
        ("x.npy", "short.npy", "has 50 items, but .* has 49"),
        ("few.npy", "few.npy", "9 items are too few"),
        ("x.npy", "whole.npy", "expected floats"),
        ("bad.npy", "x.npy", "not finite"),
        ("empty", "x.npy", "holds neither embeddings.npy nor method.safetensors"),
        ("torn", "x.npy", "damaged"),
        ("no.npy", "x.npy", "no such file"),
    ]
    for source, target, message in cases:
        argv = ["probe", "--source", str(tmp_path / source), "--target", str(tmp_path / target)]
        with pytest.raises(InputError, match=message):
            main(argv)
    argv = ["probe", "--source", str(x), "--target", str(folder)]
    with pytest.raises(InputError, match="no map 'rigde'; did you mean 'ridge'"):
        main([*argv, "--maps", "rigde"])
