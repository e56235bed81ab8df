"""AlphaRec: what is trained and what is not, its draws, transfer, queries, and planted truth."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from planted import make_planted

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.alpharec import AlphaRec, Domain, LinearMapping, UserBatches
from lcrec.baselines.methods.closed_form import Popularity, TextCosine
from lcrec.baselines.runs.ranking import validate
from lcrec.baselines.settings import AlphaRecSettings, LinearMappingSettings, TextCosineSettings
from lcrec.baselines.shared.purchases import purchases, user_means
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.data.splits import leave_one_out

QUICK = AlphaRecSettings(epochs=2, dim=8, hidden=6, batch_size=64, negatives=8, every=1)


def toy(users, items, width, seed=0, valid=True):
    """Random sequences and vectors."""
    rng = np.random.default_rng(seed)
    sequences = {f"{seed}-{user}": rng.permutation(items)[:6].tolist() for user in range(users)}
    split = leave_one_out(Interactions.from_sequences(sequences))
    embeddings = rng.normal(size=(items, width)).astype(np.float32)
    return TrainingData(split.train, items, split.valid if valid else None, embeddings), split


def fitted(data, settings=QUICK, kind=AlphaRec, seed=0):
    method = kind(settings, seed=seed)
    method.fit(data)
    return method


def scores(method, users):
    return method.score(np.arange(users), [np.array([0])] * users)


def cosines(x, y):
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return x @ y.T


def numbers(method):
    return sum(parameter.numel() for parameter in method.mapping.parameters())


def test_only_the_mapping_is_trained_whatever_the_number_of_users_and_items():
    small, large = (fitted(toy(users, items, 10)[0]) for users, items in ((9, 12), (30, 40)))
    assert numbers(small) == numbers(large) == (10 * 6 + 6) + (6 * 8 + 8)
    domain = small.domain
    assert not list(domain.parameters())
    assert {name for name, _ in domain.named_buffers()} == {"inputs", "adjacency"}
    small._loss(domain, torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3]])).backward()
    assert all(parameter.grad is not None for parameter in small.mapping.parameters())
    assert domain.inputs.grad is None
    linear = fitted(toy(9, 12, 10)[0], LinearMappingSettings(epochs=1, dim=8), LinearMapping)
    assert [tuple(p.shape) for p in linear.mapping.parameters()] == [(8, 10)]  # no bias
    method = fitted(toy(9, 12, 10)[0], dataclasses.replace(QUICK, hidden=None))
    assert numbers(method) == (10 * 5 + 5) + (5 * 8 + 8)


def test_what_the_means_of_users_see():
    train = Interactions.from_sequences({"a": [0, 2, 0], "b": [1], "c": []})
    embeddings = np.array([[1.0, 0], [5, 5], [3, 4]], dtype=np.float32)
    found = user_means(purchases(train, 3), embeddings)
    assert found.tolist() == [[2, 2], [5, 5], [0, 0]]
    data, split = toy(12, 20, 6, valid=False)
    others = Interactions.from_sequences(
        {
            user: [*sequence.tolist(), 19, 18]  # other valid and test items
            for user, sequence in zip(split.train.users, split.train, strict=True)
        }
    )
    again = dataclasses.replace(data, train=leave_one_out(others).train)
    assert (scores(fitted(data), 12) == scores(fitted(again), 12)).all()


def test_linear_mapping_commutes_with_means_and_knows_no_scale():
    data, _ = toy(9, 12, 10)
    settings = LinearMappingSettings(epochs=2, dim=8, negatives=8)
    method = fitted(data, settings, LinearMapping)
    matrix = method.mapping.weight.detach().numpy().T
    mapped = data.embeddings @ matrix
    mean_of_mapped = user_means(purchases(data.train, 12), mapped)
    assert scores(method, 9) == pytest.approx(cosines(mean_of_mapped, mapped), abs=1e-5)
    data, _ = toy(9, 12, 10)
    method = fitted(data, LinearMappingSettings(epochs=1, dim=8), LinearMapping)
    before = scores(method, 9)
    method.transfer(dataclasses.replace(data, embeddings=7.5 * data.embeddings))
    assert scores(method, 9) == pytest.approx(before, abs=1e-5)


def test_losses():
    data, _ = toy(20, 300, 10)
    settings = AlphaRecSettings(temperature=50.0, hidden=6)
    torch.manual_seed(0)
    method = AlphaRec(settings)
    method.mapping = method._new_mapping(10)
    bought = purchases(data.train, 300)
    (batch,) = UserBatches(bought, 4096, 256, seed=0)
    loss = method._loss(Domain(bought, data.embeddings), *batch)
    assert loss.item() == pytest.approx(math.log(257), abs=0.05)
    data, _ = toy(9, 12, 10)
    method = fitted(data, dataclasses.replace(QUICK, loss="bpr"))
    assert not np.allclose(np.linalg.norm(method.item_vectors, axis=1), 1)
    assert np.allclose(np.linalg.norm(fitted(data).item_vectors, axis=1), 1, atol=1e-5)


def test_an_epoch_is_uniform_over_users_not_purchases():
    train = Interactions.from_sequences({"a": list(range(20)), "b": [20], "c": [], "d": [21, 22]})
    bought = purchases(train, 30)
    batches = UserBatches(bought, 10, 4, seed=0)
    table = bought.toarray()
    counts, sizes = np.zeros(4, dtype=int), []
    items = set()
    for users, chosen, drawn in batches:
        sizes.append(len(users))
        counts += np.bincount(users, minlength=4)
        assert table[users, chosen].all()
        assert not table[users[:, None], drawn].any()
        items |= set(chosen.tolist())
    assert sum(sizes) == 23  # as many as purchases
    assert sizes == [10, 10, 3]  # the last one counts too
    assert sorted(counts.tolist()) == [0, 7, 8, 8]
    assert counts[2] == 0  # no item
    assert 20 in items


def test_transfer_takes_no_step_and_to_the_source_itself_is_plain_training():
    first, second, target = (toy(users, items, 10, seed)[0] for seed, users, items in DOMAINS)
    method = AlphaRec(QUICK)
    method.fit_domains([first, second])
    before = {name: value.clone() for name, value in method.mapping.state_dict().items()}
    method.transfer(target)
    after = method.mapping.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())
    assert scores(method, 15).shape == (15, 25)
    data, _ = toy(9, 12, 10)
    method = AlphaRec(QUICK)
    method.fit_domains([data])
    method.transfer(data)
    assert (scores(method, 9) == scores(fitted(data), 9)).all()


DOMAINS = [(1, 9, 12), (2, 20, 30), (3, 15, 25)]


def test_sources_share_no_edge_and_no_negative(monkeypatch):
    first, second = (toy(users, items, 10, seed)[0] for seed, users, items in DOMAINS[:2])
    seen = []
    plain = AlphaRec._loss

    def spy(self, domain, users, items, drawn):
        seen.append((domain, users, items, drawn))
        return plain(self, domain, users, items, drawn)

    monkeypatch.setattr(AlphaRec, "_loss", spy)
    AlphaRec(QUICK).fit_domains([first, second])
    adjacency = seen[0][0].adjacency.to_dense().numpy()
    of_first = np.r_[0:9, 29:41]  # 9 and 20 users, then 12 and 30 items
    of_second = np.r_[9:29, 41:71]
    assert adjacency[np.ix_(of_first, of_first)].any()
    assert not adjacency[np.ix_(of_first, of_second)].any()
    for _, users, items, drawn in seen:
        assert ((users < 9) == (items < 12)).all()
        assert ((users < 9)[:, None] == (drawn < 12)).all()
    users = torch.cat([users for _, users, _, _ in seen])
    assert (users < 9).any()
    assert (users >= 9).any()


def test_no_query_and_alpha_0_are_the_same():
    data, _ = toy(9, 12, 10)
    method = fitted(data)
    queries = np.random.default_rng(1).normal(size=(2, 10)).astype(np.float32)
    for at in ("input", "output"):
        asked = method.ask(np.array([4, 1]), queries, 0.0, at)
        assert scores(asked, 9) == pytest.approx(scores(method, 9), abs=1e-6)
        changed = method.ask(np.array([4, 1]), queries, 0.5, at)
        same = np.isclose(scores(changed, 9), scores(method, 9), atol=1e-4).all(axis=1)
        assert same.tolist() == [True, False, True, True, False, True, True, True, True]


@pytest.mark.parametrize("at", ["input", "output"])
def test_alpha_1_without_a_graph_ranks_by_the_query_alone(at):
    data, _ = toy(9, 12, 10)
    method = fitted(data, dataclasses.replace(QUICK, layers=0))
    queries = np.random.default_rng(1).normal(size=(9, 10)).astype(np.float32)
    with torch.no_grad():
        mapped = [
            method.mapping(torch.from_numpy(table)).numpy() for table in (queries, data.embeddings)
        ]
    found = scores(method.ask(np.arange(9), queries, 1.0, at), 9)
    assert found == pytest.approx(cosines(*mapped), abs=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_query_enters_before_the_graph(layers):
    """Of one asking user, as if the whole graph were smoothed anew with their new vector."""
    data, _ = toy(9, 12, 10)
    method = fitted(data, dataclasses.replace(QUICK, layers=layers))
    query = np.random.default_rng(1).normal(size=(1, 10)).astype(np.float32)
    asked = method.ask(np.array([4]), query, 0.3)
    inputs = method.domain.inputs.clone()
    inputs[4] = 0.7 * inputs[4] + 0.3 * torch.from_numpy(query[0])
    adjacency = method.domain.adjacency.to_dense()
    with torch.no_grad():
        current = total = method.mapping(inputs)
        for _ in range(layers):
            current = adjacency @ current
            total = total + current
    expected = torch.nn.functional.normalize(total[4], dim=-1).numpy()
    assert asked.user_vectors[4] == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_asked_or_joined_is_refused():
    method = fitted(toy(9, 12, 10)[0])
    with pytest.raises(InputError, match=r"alpha 1\.5"):
        method.ask(np.array([0]), np.zeros((1, 10), dtype=np.float32), 1.5)
    with pytest.raises(InputError, match="embeddings 10 wide"):
        method.ask(np.array([0]), np.zeros((1, 11), dtype=np.float32), 0.5)
    narrow, wide = toy(9, 12, 10)[0], toy(9, 12, 11)[0]
    with pytest.raises(InputError, match="10 and 11 numbers wide"):
        AlphaRec(QUICK).fit_domains([narrow, wide])
    with pytest.raises(InputError, match=r"embeddings 10 wide.*are 11 wide"):
        fitted(narrow).transfer(wide)
    bare = dataclasses.replace(narrow, embeddings=None)
    for method in (AlphaRec(QUICK), TextCosine()):
        with pytest.raises(InputError, match=r"lcrec\.embed"):
            method.fit(bare)


def test_text_cosine_by_hand():
    embeddings = np.array([[3, 0], [0, 2], [1, 1], [0, 0]], dtype=np.float32)
    data = TrainingData(Interactions.from_sequences({"a": [0]}), 4, embeddings=embeddings)
    method = TextCosine()
    method.fit(data)
    histories = [np.array([0]), np.array([0, 1, 1]), np.array([3])]
    half = 0.5**0.5
    found = method.score(np.zeros(3, dtype=int), histories)
    assert found[0] == pytest.approx([1, 0, half, 0])
    mean = np.array([3, 2]) / 13**0.5  # item 1 counts once
    assert found[1] == pytest.approx([mean[0], mean[1], half * mean.sum(), 0])
    assert found[2].tolist() == [0, 0, 0, 0]
    last = TextCosine(TextCosineSettings(last=1))
    last.fit(data)
    assert last.score(np.zeros(1, dtype=int), histories[1:2])[0] == pytest.approx([0, 1, half, 0])


LINEAR = LinearMappingSettings(
    epochs=20, patience=3, batch_size=512, learning_rate=5e-3, negatives=32
)
WHOLE = AlphaRecSettings(
    hidden=32, epochs=20, patience=3, batch_size=512, learning_rate=5e-3, negatives=32
)


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)])
def planted(request):
    made = make_planted(users=700, items=150, private_behaviour=3, taste=8.0, seed=request.param)
    split = leave_one_out(made.interactions)
    rows = np.random.default_rng(0).permutation(made.num_items)
    return {
        "split": split,
        "data": TrainingData(split.train, made.num_items, split.valid, made.embeddings),
        "shuffled": TrainingData(split.train, made.num_items, split.valid, made.embeddings[rows]),
    }


def ndcg(method, planted):
    split, items = planted["split"], planted["data"].num_items
    return validate(method, split.test, TrainingData(split.train, items, exclude_history=True))


def test_mapping_beats_cosine_and_the_whole_beats_the_mapping(planted):
    cosine, popularity = TextCosine(), Popularity()
    cosine.fit(planted["data"])
    popularity.fit(planted["data"])
    linear = ndcg(fitted(planted["data"], LINEAR, LinearMapping), planted)
    whole = fitted(planted["data"], WHOLE)
    assert linear > 1.15 * ndcg(cosine, planted)
    assert ndcg(whole, planted) > 1.1 * linear
    # Another item's text tells nothing; with the graph, it still tells items apart.
    guess = ndcg(popularity, planted)
    assert ndcg(fitted(planted["shuffled"], LINEAR, LinearMapping), planted) < 1.1 * guess
    assert ndcg(fitted(planted["shuffled"], WHOLE), planted) < 0.8 * ndcg(whole, planted)

    # A query that is half the target's text and half noise helps, and more than it alone.
    targets = planted["split"].test.targets
    wanted = planted["data"].embeddings[targets]
    noise = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    queries = wanted + 1.5 * noise
    users = np.arange(len(targets))
    found = [ndcg(whole.ask(users, queries, alpha), planted) for alpha in (0.0, 0.3)]
    assert found[1] > 1.2 * found[0]
