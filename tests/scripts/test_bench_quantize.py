"""The measures of the item index: what they compute, on cases whose answer is known."""

import json

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.index.assignment import assign_unique


@pytest.fixture(scope="module")
def bench(load_script):
    return load_script("scripts/bench_quantize.py")


def test_what_it_draws(bench):
    points = bench.clusters(500, 32, seed=0)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(points, bench.clusters(500, 32, seed=0))
    assert (points != bench.clusters(500, 32, seed=1)).any()


def test_ranks_by_hand(bench):
    books = np.array([[[0.0], [100.0]], [[0.0], [1.0]]])
    latents = np.array([[0.0], [0.1], [100.9], [99.0]])
    # Two at 0 + 0, of which one takes the second nearest; the others keep their nearest.
    rank, size = bench.distance_ranks(latents, books, assign_unique(latents, books))
    assert rank.tolist() == [1, 2, 1, 1]
    assert size.tolist() == [2, 2, 1, 1]
    books = np.array([[[0.0], [100.0]], [[0.0], [1.0]]])
    latents = np.array([[0.0], [0.0], [0.0]])
    rank, _ = bench.distance_ranks(latents, books, assign_unique(latents, books))
    assert sorted(rank.tolist()) == [0, 1, 2]


@pytest.mark.slow
def test_the_last_line_is_json(run_command):
    out = run_command("scripts/bench_quantize.py", "--parts", "sinkhorn")
    figures = json.loads(out.strip().splitlines()[-1])
    assert figures["sinkhorn_no_nan"] is True
    assert figures["sinkhorn_column_error"] < 1e-3
    assert figures["sinkhorn_row_error"] < 1e-3
    assert figures["sinkhorn_load"][0] >= 0.5
    assert figures["sinkhorn_load"][1] <= 2


def test_what_it_does_not_know_is_refused(bench, tmp_path):
    with pytest.raises(InputError, match=r"--parts \['all'\]: there are kmeans, parity"):
        bench.main(["--parts", "all"])
    with pytest.raises(InputError, match=r"there is no embeddings.npy in it"):
        bench.main(["--embeddings", str(tmp_path)])
