"""Balanced transport: its marginals, its order, and the codes that are read off it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.index.clustering import TransportPlan, balanced_codes, sinkhorn, sinkhorn_as_published


def random_cost(batch, codes, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, codes, generator=generator)


def trained_cost(batch=256, codes=64, seed=0):
    """Squared distances as in training: every code near some rows."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, 8, generator=generator)
    centres = points[:codes] + 0.1 * torch.randn(codes, 8, generator=generator)
    return torch.cdist(points, centres).square()


@given(
    batch=st.integers(1, 40),
    codes=st.integers(1, 20),
    log_epsilon=st.floats(-4, 0),
    log_scale=st.floats(-6, 6),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_every_code_receives_the_same_mass(batch, codes, log_epsilon, log_scale, seed):
    cost = random_cost(batch, codes, seed) * 10**log_scale
    plan = sinkhorn(cost, 10**log_epsilon, max_rounds=30)
    assert not plan.log_mass.isnan().any()
    masses = plan.log_mass.exp().sum(0)
    expected = torch.full((codes,), 1 / codes, dtype=torch.float64)
    torch.testing.assert_close(masses, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_spends_the_same_mass(epsilon, seed):
    plan = sinkhorn(trained_cost(seed=seed), epsilon)
    masses = plan.log_mass.exp().sum(1)
    torch.testing.assert_close(masses, torch.full_like(masses, 1 / 256), rtol=1e-3, atol=0)
    assert plan.row_error <= 1e-3


@pytest.mark.parametrize("epsilon", [0.003, 0.0003, 0.0001])
def test_the_residual_is_what_it_says(epsilon):
    plan = sinkhorn(trained_cost(), epsilon, max_rounds=2)
    rows = plan.log_mass.exp().sum(1) * 256
    assert plan.row_error == pytest.approx(float((rows - 1).abs().max()))
    assert sinkhorn(trained_cost(), epsilon, max_rounds=50).row_error < plan.row_error


def test_coming_down_to_epsilon_gets_nearer_than_starting_there():
    # As many steps at .001, after fewer at larger ones, against the published 50 at .001 alone.
    cost = trained_cost()
    assert sinkhorn(cost, 0.001).row_error <= 1e-3
    assert sinkhorn_as_published(cost, 0.001).row_error > 0.1


def test_plans_by_hand():
    # All eight points are nearest to the last code; two may have it.
    points, codes = torch.arange(8.0)[:, None], torch.tensor([[-4.0], [-3.0], [-2.0], [-1.0]])
    cost = torch.cdist(points, codes).pow(2)
    assert cost.argmin(1).tolist() == [3] * 8
    plan = sinkhorn(cost, 0.03)
    assert plan.log_mass.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert balanced_codes(plan, slack=1.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    plan = sinkhorn(torch.full((6, 3), 7.0), 0.003).log_mass.exp()
    torch.testing.assert_close(plan, torch.full((6, 3), 1 / 18, dtype=torch.float64))


def test_the_published_plan_is_that_of_plain_multiplications():
    cost, epsilon = random_cost(12, 5, seed=1).double(), 0.05
    scaled = (cost - (cost.max() + cost.min()) / 2) / ((cost.max() - cost.min()) / 2 + 1e-5)
    plan = (-scaled / epsilon).exp()
    for _ in range(50):
        plan = plan / plan.sum(1, keepdim=True) / 12
        plan = plan / plan.sum(0, keepdim=True) / 5
    found = sinkhorn_as_published(cost, epsilon).log_mass.exp()
    torch.testing.assert_close(found, plan, rtol=1e-6, atol=0)


EXTREMES = {
    "one row": torch.rand(1, 5),
    "one code": torch.rand(5, 1),
    "one of each": torch.ones(1, 1),
    "zeros": torch.zeros(4, 3),
    "largest floats": torch.tensor([[3e38, -3e38], [0.0, 3e38], [-3e38, 1.0]]),
    "largest doubles": torch.tensor([[1.7e308, -1.7e308], [0.0, 1.7e308]], dtype=torch.float64),
    "smallest floats": torch.rand(6, 4) * 1e-44,
    "one outlier": torch.cat([torch.rand(9, 4), torch.full((1, 4), 1e30)]),
    "all alike": torch.rand(1, 4).expand(20, 4),
}


@pytest.mark.parametrize("epsilon", [1e-4, 0.003, 1.0])
@pytest.mark.parametrize("name", EXTREMES)
def test_no_finite_cost_ends_in_nan(name, epsilon):
    plan = sinkhorn(EXTREMES[name], epsilon, max_rounds=50)
    assert not plan.log_mass.isnan().any()
    columns = plan.log_mass.exp().sum(0) * EXTREMES[name].shape[1]
    torch.testing.assert_close(columns, torch.ones_like(columns), rtol=1e-3, atol=0)
    assert not sinkhorn_as_published(EXTREMES[name], 0.003).log_mass.isnan().any()


def test_loads_at_the_papers_epsilon():
    plan = sinkhorn(trained_cost(1024, 256), 0.003)
    codes = plan.log_mass.argmax(1)
    load = codes.bincount(minlength=256)
    assert load.min() >= 2
    assert load.max() <= 8
    assert torch.equal(balanced_codes(plan), codes)  # what is even already stays


@given(
    batch=st.integers(1, 60),
    codes=st.integers(1, 12),
    slack=st.sampled_from([1.0, 1.5, 2.0]),
    distinct=st.integers(1, 60),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_no_code_is_crowded_and_none_is_left_out(batch, codes, slack, distinct, seed):
    rows = torch.arange(batch) % distinct
    plan = sinkhorn(random_cost(distinct, codes, seed)[rows], 0.003, max_rounds=20)
    load = balanced_codes(plan, slack).bincount(minlength=codes)
    share = batch / codes
    assert load.sum() == batch
    assert load.max() <= max(share * slack, share + 1)
    assert load.min() >= min(share / slack, share - 1)


def test_those_move_that_lose_least():
    # All four want code 0, which may keep two; the last two mind least.
    mass = torch.tensor([[9.0, 1.0], [8.0, 2.0], [6.0, 4.0], [5.0, 4.5]], dtype=torch.float64)
    assert balanced_codes(TransportPlan(mass.log(), 0.0), slack=1.0).tolist() == [0, 0, 1, 1]
