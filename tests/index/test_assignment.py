"""Every item its own path, as near to its latent as the others allow."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.index.assignment import Assignment, assign_unique, require_capacity

# Two levels of two codes: paths stand for 0 + 0, 0 + 1, 10 + 0, 10 + 1.
TOY = np.array([[[0.0], [10.0]], [[0.0], [1.0]]])


def assign(*latents, codebooks=TOY):
    return assign_unique(np.array(latents, dtype=float)[:, None], codebooks)


def squared_error(latents, codebooks, codes):
    quantized = sum(book[codes[:, level]] for level, book in enumerate(codebooks))
    return ((latents - quantized) ** 2).sum()


@st.composite
def problems(draw):
    """Latents and codebooks with room for all; crowded, and with repeats, more often than not."""
    levels, codes = draw(st.sampled_from([(1, 9), (2, 3), (3, 2), (4, 2), (2, 5)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items = draw(st.integers(1, codes**levels))
    distinct = draw(st.integers(1, items))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    latents = (scale * rng.normal(size=(distinct, 2)))[rng.integers(distinct, size=items)]
    books = rng.normal(size=(levels, codes, 2))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return latents.astype(dtype), books.astype(dtype)


@given(problems())
@settings(deadline=None, max_examples=200)
def test_every_item_gets_its_own_path(problem):
    latents, codebooks = problem
    assignment = assign_unique(latents, codebooks)
    levels, codes, _ = codebooks.shape
    assert assignment.codes.shape == assignment.nearest.shape == (len(latents), levels)
    assert assignment.codes.dtype == np.int32
    assert len(np.unique(assignment.codes, axis=0)) == len(latents)
    assert assignment.codes.min() >= 0
    assert assignment.codes.max() < codes
    again = assign_unique(latents, codebooks)
    np.testing.assert_array_equal(again.codes, assignment.codes)
    # Only prefixes with a collision are touched, and who collides with nobody keeps the nearest.
    nearest = assignment.nearest.tolist()
    colliding = {tuple(row[:-1]) for row in nearest if nearest.count(row) > 1}
    moved = set(assignment.moved.tolist())
    assert moved <= {item for item, row in enumerate(nearest) if tuple(row[:-1]) in colliding}
    assert bool(moved) == (assignment.conflict_rate > 0)
    assert not any(nearest.count(nearest[item]) == 1 for item in moved)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(deadline=None)
def test_within_a_prefix_no_other_order_is_nearer(seed, items):
    rng = np.random.default_rng(seed)
    first = np.array([[0.0, 0.0], [1e6, 1e6]])
    codebooks = np.stack([np.pad(first, ((0, 3), (0, 0)), constant_values=1e7)[:5]] * 2)
    codebooks[1] = rng.normal(size=(5, 2))
    latents = rng.normal(size=(items, 2))
    assignment = assign_unique(latents, codebooks)
    assert assignment.codes[:, 0].tolist() == [0] * items
    nearest = assignment.nearest[:, 1].tolist()
    alone = [item for item in range(items) if nearest.count(nearest[item]) == 1]
    best = min(
        squared_error(latents, codebooks[1:], np.array(order)[:, None])
        for order in itertools.permutations(range(5), items)
        if all(order[item] == nearest[item] for item in alone)  # they keep what is theirs
    )
    found = squared_error(latents, codebooks[1:], assignment.codes[:, 1:])
    assert found == pytest.approx(best)


@given(problems(), st.data())
@settings(deadline=None)
def test_paths_that_are_taken_stay_free_of_others(problem, data):
    latents, codebooks = problem
    everyone = assign_unique(latents, codebooks).codes
    old = data.draw(st.integers(0, len(latents)))
    taken = everyone[:old]
    new = assign_unique(latents[old:], codebooks, taken=taken).codes
    assert len(np.unique(np.concatenate([taken, new]), axis=0)) == len(latents)


def test_paths_taken_or_asked_for():
    taken = np.array([[0, 0]])
    codes = assign_unique(np.array([[0.0], [10.0]]), TOY, taken=taken).codes
    assert codes.tolist() == [[0, 1], [1, 0]]
    asked = np.array([[1, 1], [1, 1], [0, 0]])
    assignment = assign_unique(np.array([[0.0], [0.1], [0.2]]), TOY, nearest=asked)
    # The first two ask for 10 + 1; within that prefix 10 + 0 is nearer to both.
    assert sorted(assignment.codes[:2].tolist()) == [[1, 0], [1, 1]]
    assert assignment.codes[2].tolist() == [0, 0]
    np.testing.assert_array_equal(assignment.nearest, asked)


def test_very_many_in_one_spot():
    # 2,000 items want one prefix of 8 codes; what is free is 8 ** 4 paths.
    rng = np.random.default_rng(0)
    books = rng.normal(size=(4, 8, 3)) * np.array([100, 10, 1, 0.1])[:, None, None]
    latents = books[:3, 0].sum(0) + 0.01 * rng.normal(size=(2000, 3))
    codes = assign_unique(latents, books).codes
    assert len(np.unique(codes, axis=0)) == 2000
    # 512 paths are under the nearest first code: full before the others are tried.
    assert (codes[:, 0] == 0).sum() == 512


def test_who_moves_and_where_to_by_hand():
    # Both are nearest to 0 + 0; moving the second costs less.
    assignment = assign(0.1, 0.4, 10.0)
    assert assignment.nearest.tolist() == [[0, 0], [0, 0], [1, 0]]
    assert assignment.codes.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert assignment.conflict_rate == pytest.approx(2 / 3)
    assert assignment.moved.tolist() == [1]
    # Three items at 0 and room for two; the one that costs most to hold goes to the other prefix.
    assignment = assign(0.0, 1.0, 3.0, 12.0)
    assert assignment.codes.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    # Eight items in one spot of a tree of 2 x 2 x 2: all under the first branch is full at four.
    books = np.array([[[0.0], [100.0]], [[0.0], [10.0]], [[0.0], [1.0]]])
    assignment = assign(*[0.0] * 5, codebooks=books)
    assert sorted(assignment.codes.tolist()) == [
        [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0],
    ]  # fmt: skip
    books = np.array([[[0.0], [1.0], [5.0]]])
    assert assign(4.0, 0.2, 0.3, codebooks=books).codes.tolist() == [[2], [0], [1]]


def test_many_items_are_searched_in_slices_and_conflicts_counted_by_item():
    # More than one slice of distances; each latent is a code of its own.
    side = 300
    coarse, fine = np.arange(side)[:, None] * 1000.0, np.arange(side)[:, None] * 1.0
    latents = (coarse[:, None] + fine[None]).reshape(-1, 1)[:70_000]
    assignment = assign_unique(latents, np.stack([coarse, fine]))
    expected = np.stack(np.divmod(np.arange(70_000), side), axis=1)
    np.testing.assert_array_equal(assignment.codes, expected)
    nearest = np.array([[0], [0], [0], [1], [2]])
    assignment = Assignment(np.arange(5)[:, None], nearest)
    assert assignment.conflict_rate == pytest.approx(3 / 5)
    assert assignment.moved.tolist() == [1, 2, 3, 4]


@given(st.integers(1, 10**7), st.integers(1, 6), st.integers(2, 300))
def test_too_few_paths_name_the_least_that_suffices(items, levels, codes):
    if codes**levels >= items:
        require_capacity(items, levels, codes)
        return
    with pytest.raises(InputError) as error:
        require_capacity(items, levels, codes)
    message = str(error.value)
    assert f"catalogue has {items}" in message
    needed = re.search(r"use --levels (\d+) or --codes (\d+)", message)
    more_levels, more_codes = map(int, needed.groups())
    assert codes**more_levels >= items > codes ** (more_levels - 1)
    assert more_codes**levels >= items > (more_codes - 1) ** levels


def test_too_many_items():
    with pytest.raises(InputError, match=r"spell 4 items, the catalogue has 5: use --levels 3 or"):
        assign(*range(5))
    for codes, levels in ((10, 3), (5, 3), (7, 5), (243, 2)):
        require_capacity(codes**levels, levels, codes)
        with pytest.raises(InputError, match=f"--levels {levels + 1} or --codes {codes + 1}"):
            require_capacity(codes**levels + 1, levels, codes)
