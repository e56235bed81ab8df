"""Shortest decimals: what NumPy finds number by number, found for arrays."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lcrec.rankings.decimals import shortest


def one_by_one(numbers):
    return numbers.astype("U32").astype(np.float64)


def same(numbers):
    found, expected = shortest(numbers), one_by_one(numbers)
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert (found.view(np.int64) == expected.view(np.int64)).all()


def test_by_hand():
    found = shortest(np.array([0.1, 1 / 3, -7.25, 0, -0.0, 100, 1e-30], dtype=np.float32))
    expected = ["0.1", "0.33333334", "-7.25", "0.0", "-0.0", "100.0", "1e-30"]
    assert [repr(number) for number in found.tolist()] == expected
    assert shortest(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
    assert np.isnan(shortest(np.array([np.nan], dtype=np.float32))).all()


@given(arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False)))
@example(np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32))
def test_any_number(numbers):
    same(numbers)


@given(arrays.arrays(np.uint32, 50, elements=st.integers(0x20000000, 0x4FFFFFFF)))
def test_any_bits_of_usual_size(bits):
    same(bits.view(np.float32))


def test_very_many_and_their_neighbours():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=20_000).astype(np.float32) * np.float32(7)
    powers = np.concatenate([[10.0**k, 2.0**k, 3 * 2.0**k] for k in range(-14, 8)])
    edges = powers.astype(np.float32)
    for numbers in (drawn, edges, np.arange(2000, dtype=np.float32) / 8):
        for to in (-np.inf, np.inf):
            same(np.nextafter(numbers, np.float32(to)))
        same(numbers)
