"""What methods share, one test per property: graph, smoothing, losses, draws, validation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.nn import functional

from lcrec.baselines.base import Baseline, TrainingData
from lcrec.baselines.runs.ranking import rank_cases, validate
from lcrec.baselines.shared.graph import normalised_adjacency, own_share, smooth
from lcrec.baselines.shared.losses import alignment, bpr, candidate_scores, info_nce, uniformity
from lcrec.baselines.shared.purchases import SEEN, NegativeSampler, purchases
from lcrec.data.folder import Interactions
from lcrec.data.splits import EvalCases, leave_one_out

TABLES = st.integers(0, 2**32 - 1).map(
    lambda seed: (np.random.default_rng(seed).random((4, 6)) < 0.4).astype(np.float32)
)


def dense_adjacency(bought):
    """A_hat by the book."""
    users, items = bought.shape
    adjacency = np.zeros((users + items, users + items))
    adjacency[:users, users:] = bought
    adjacency[users:, :users] = bought.T
    degrees = adjacency.sum(axis=1)
    roots = np.array([degree**-0.5 if degree else 0 for degree in degrees])
    return roots[:, None] * adjacency * roots[None, :]


def csr(table):
    return sparse.csr_array(np.asarray(table, dtype=np.float32))


@given(TABLES)
def test_the_graph_is_the_dense_one(table):
    found = normalised_adjacency(csr(table)).to_dense().numpy()
    assert found == pytest.approx(dense_adjacency(table), abs=1e-6)
    assert (found == found.T).all()
    values = np.linalg.eigvalsh(found)
    assert values.min() >= -1 - 1e-6
    assert values.max() <= 1 + 1e-6


def test_the_graph_has_train_purchases_alone_each_once():
    split = leave_one_out(Interactions.from_sequences({"a": [0, 1, 0, 2, 3], "b": [3, 4, 5]}))
    bought = purchases(split.train, 6).toarray()
    assert bought.tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]  # not what is held out


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_smoothing_is_the_mean_of_powers(layers):
    rng = np.random.default_rng(0)
    table = rng.random((5, 7)) < 0.4
    table[2] = False  # a user without an item
    embeddings = rng.normal(size=(12, 3)).astype(np.float32)
    dense = dense_adjacency(table.astype(np.float32))
    powers = [np.linalg.matrix_power(dense, k) for k in range(layers + 1)]
    adjacency = normalised_adjacency(csr(table))
    found = smooth(adjacency, torch.from_numpy(embeddings), layers).numpy()
    assert found == pytest.approx(sum(powers) @ embeddings / (layers + 1), abs=1e-6)
    assert found[2] == pytest.approx(embeddings[2] / (layers + 1))
    if layers == 0:
        assert (found == embeddings).all()


def test_the_gradient_of_smoothing_is_that_of_the_dense_product():
    table = np.random.default_rng(1).random((4, 5)) < 0.5
    weights = torch.arange(27.0).view(9, 3)
    sparse_input = torch.randn(9, 3, requires_grad=True)
    dense_input = sparse_input.detach().clone().requires_grad_()
    (smooth(normalised_adjacency(csr(table)), sparse_input, 2) * weights).sum().backward()
    a = torch.from_numpy(dense_adjacency(table.astype(np.float32))).float()
    (((dense_input + a @ dense_input + a @ a @ dense_input) / 3) * weights).sum().backward()
    assert torch.allclose(sparse_input.grad, dense_input.grad, atol=1e-5)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4, 5])
def test_own_share_is_the_mean_diagonal_of_powers(layers):
    table = np.random.default_rng(2).random((4, 6)) < 0.4
    dense = dense_adjacency(table.astype(np.float32))
    powers = [np.linalg.matrix_power(dense, k) for k in range(layers + 1)]
    found = own_share(normalised_adjacency(csr(table)), layers).numpy()
    assert found == pytest.approx(np.diag(sum(powers)) / (layers + 1), abs=1e-6)


def test_losses_by_hand():
    assert bpr(torch.tensor([2.0]), torch.tensor([[2.0]])) == pytest.approx(np.log(2))
    assert bpr(torch.tensor([1.0]), torch.tensor([0.0])) == pytest.approx(np.log(1 + np.exp(-1)))
    x = torch.tensor([[3.0, 0.0]])
    for y, expected in (([5.0, 0], 0), ([-1.0, 0], 4), ([0, 2.0], 2), ([1.0, 1.0], 2 - 2**0.5)):
        assert alignment(x, torch.tensor([y])) == pytest.approx(expected, abs=1e-6)
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0], [-7.0, 0]])) == pytest.approx(-8)
    rows = torch.randn(9, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    pairs = torch.pdist(functional.normalize(rows, dim=-1)).square().mul(-2).exp().mean().log()
    assert uniformity(rows).item() == pytest.approx(pairs.item(), abs=1e-6)
    gradients = (torch.autograd.grad(loss, rows)[0] for loss in (uniformity(rows), pairs))
    assert torch.allclose(*gradients, atol=1e-6)
    one = torch.ones(1, 3, requires_grad=True)
    alone = uniformity(one)
    alone.backward()
    assert alone == 0
    assert (one.grad == 0).all()
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(5, generator=generator) * 2 - 1
    negative = torch.rand(5, 8, generator=generator) * 2 - 1
    logits = torch.cat((positive[:, None], negative), dim=1) / 0.2
    expected = functional.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    assert info_nce(positive, negative, 0.2) == pytest.approx(float(expected), rel=1e-6)
    worst = info_nce(torch.tensor([-1.0]), torch.ones(1, 8), 0.01)
    assert worst == pytest.approx(200 + np.log(8), rel=1e-5)
    same = info_nce(torch.full((3,), 0.4), torch.full((3, 256), 0.4), 0.1)
    assert same == pytest.approx(np.log(257), rel=1e-5)


@pytest.mark.parametrize("nodes", [5, 40])  # fewer than are drawn, and more
def test_candidate_scores_and_gradients_are_those_of_the_gathered_vectors(nodes):
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(6, 4, generator=generator)
    vectors = torch.randn(nodes, 4, generator=generator)
    drawn = torch.randint(0, nodes, (6, 9), generator=generator)
    drawn[:, 1] = drawn[:, 0]  # the same one twice
    weights = torch.randn(6, 9, generator=generator)
    found = []
    for scores in (candidate_scores, lambda u, v, c: torch.einsum("bd,bnd->bn", u, v[c])):
        u, v = users.clone().requires_grad_(), vectors.clone().requires_grad_()
        values = scores(u, v, drawn)
        (values * weights).sum().backward()
        found.append((values.detach(), u.grad, v.grad))
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


@given(TABLES, st.integers(0, 100))
def test_negatives_are_never_bought_and_stay_in_their_range(table, seed):
    table[:, 0] = table[:, 3] = 0  # of each range one is left
    ranges = np.array([[0, 3], [3, 6], [0, 3], [3, 6]])
    outside = np.ones_like(table)
    for user, (first, last) in enumerate(ranges):
        outside[user, first:last] = 0
    table = table * (1 - outside)
    drawn = NegativeSampler(csr(table), seed, ranges).draw(np.arange(4), 20)
    for user in range(4):
        assert not table[user, drawn[user]].any()
        assert not outside[user, drawn[user]].any()


def test_a_purchase_is_told_from_one_that_leaves_the_same_remainder():
    bought = sparse.csr_array(([1.0], ([0], [7])), shape=(2, SEEN))
    users, items = np.array([[0], [1]]), np.array([[7, 8], [7, 8]])
    found = NegativeSampler(bought, 0)._is_bought(users, items)
    assert found.tolist() == [[True, False], [False, False]]


def test_negatives_are_uniform_over_what_is_left():
    sampler = NegativeSampler(csr([[1, 0, 0, 0, 1]]), 0)
    counts = np.bincount(sampler.draw(np.zeros(1, dtype=int), 30000)[0], minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert counts[1:4] == pytest.approx(10000, rel=0.05)
    # A user who has every item gets any of them, and the others theirs.
    drawn = NegativeSampler(csr([[0, 1], [1, 1]]), 0).draw(np.arange(2), 2000)
    assert not drawn[0].any()
    assert drawn[1].mean() == pytest.approx(0.5, abs=0.05)


class Given(Baseline):
    """Scores as given, a row per user."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def fit(self, data):
        raise NotImplementedError

    def score(self, users, histories):
        return self.table[users]


def cases_of(rng, users, items, several):
    histories = [rng.integers(0, items, 3) for _ in range(users)]
    targets = rng.integers(0, items, users)
    if several:
        targets = np.stack((targets, (targets + 1) % items, np.full(users, -1)), axis=1)
    return EvalCases([str(user) for user in range(users)], histories, targets)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_validation_agrees_with_plain_loops(several, exclude):
    """Scores of few values, so that there are ties, and some items ruled out."""
    rng = np.random.default_rng(3)
    users, items = 40, 25
    table = rng.integers(0, 6, (users, items)).astype(np.float32)
    table[table == 0] = -np.inf
    cases = cases_of(rng, users, items, several)
    train = Interactions.from_sequences({user: [0] for user in cases.users})
    total = 0.0
    for user in range(users):
        truths = set(np.atleast_1d(cases.targets[user]).tolist()) - {-1}
        barred = set(cases.histories[user].tolist()) - truths if exclude else set()
        order = sorted(
            (item for item in range(items) if item not in barred and table[user, item] > -np.inf),
            key=lambda item: (-table[user, item], item),
        )
        gains = [1 / np.log2(rank + 2) for rank, item in enumerate(order[:10]) if item in truths]
        total += sum(gains) / sum(1 / np.log2(rank + 2) for rank in range(len(truths)))
    found = validate(Given(table), cases, TrainingData(train, items, exclude_history=exclude))
    assert found == pytest.approx(total / users)
    table[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        validate(Given(table), cases, TrainingData(train, items))
    if exclude:
        table[3, 4] = 0
        lists = rank_cases(
            Given(table), cases, TrainingData(train, items, exclude_history=True), top=items
        )
        for user, (ranked, _) in enumerate(lists):
            truths = set(np.atleast_1d(cases.targets[user]).tolist())
            assert not set(ranked.tolist()) & (set(cases.histories[user].tolist()) - truths)
