"""CollabContext: what each phase trains and calls, when they switch, how cold items are scored."""

import numpy as np
import pytest
import torch
from planted import make_planted
from torch.nn import functional

from lcrec.baselines.base import TrainingData
from lcrec.baselines.commands.cold import ColdSplit, measure_cold
from lcrec.baselines.methods.collabcontext import (
    CollabContext,
    Network,
    normalise_features,
    phase_loss,
)
from lcrec.baselines.methods.lightgcn import LightGCN
from lcrec.baselines.runs import ranking
from lcrec.baselines.settings import CollabContextSettings, LightGCNSettings
from lcrec.baselines.shared.graph import normalised_adjacency
from lcrec.baselines.shared.purchases import purchases
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.data.splits import EvalCases, leave_one_out

ITEMS = 12  # item 11 is bought in held-out places alone


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    sequences = {f"u{user}": [*rng.permutation(11)[:6].tolist(), 11] for user in range(12)}
    split = leave_one_out(Interactions.from_sequences(sequences))
    embeddings = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    return TrainingData(split.train, ITEMS, split.valid, embeddings)


def quick(**settings):
    given = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, **settings}
    return CollabContextSettings(**given)


def fitted(data, **settings):
    method = Recorded(quick(**settings), seed=1)
    method.fit(data)
    return method


def weights_at_start(data, settings):
    torch.manual_seed(1)
    adjacency = normalised_adjacency(purchases(data.train, ITEMS))
    return Network(adjacency, torch.from_numpy(data.embeddings), settings).state_dict()


class Recorded(CollabContext):
    """Keeps the weights that each phase leaves."""

    def _train(self, network, phase, *args):
        super()._train(network, phase, *args)
        kept = {name: value.clone() for name, value in network.state_dict().items()}
        self.checkpoints = {**getattr(self, "checkpoints", {}), phase: kept}


def history(method):
    return [(phase, e.number, e.score) for phase, log in method.logs for e in log.epochs]


def scripted(monkeypatch, scores):
    """Let validation return these scores, and record the user vectors it saw."""
    seen = []

    def validate(method, *_args, **_kwargs):
        seen.append(method.user_vectors.copy())
        return scores[len(seen) - 1]

    monkeypatch.setattr(ranking, "validate", validate)
    return seen


def test_phases_switch_when_validation_stops_improving(data, monkeypatch):
    first = [0.1, 0.3, 0.2, 0.3, 0.1]  # a tie is no improvement: 2 is the best, 5 the third without
    second = [0.05, 0.04, 0.06, 0.06, 0.06, 0.01]  # the best of phase 1 is not its bar to beat
    seen = scripted(monkeypatch, first + second)
    method = fitted(data, epochs=50, patience=3)
    assert history(method) == [
        *[("items tutor", epoch, score) for epoch, score in enumerate(first, start=1)],
        *[("users tutor", epoch, score) for epoch, score in enumerate(second, start=1)],
    ]
    assert [log.best_epoch for _, log in method.logs] == [2, 3]
    # Phase 2 began from, and `score_cold` stands on, the best of phase 1; `score` on that of 2.
    assert (method.cold_user_vectors == seen[1]).all()
    assert (method.user_vectors == seen[5 + 2]).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["items tutor", "users tutor"]),
        ({"cycles": 2}, ["items tutor", "users tutor"] * 2),
        ({"phases": "first"}, ["items tutor"]),
        ({"phases": "second"}, ["users tutor"]),
        ({"symmetric": True}, ["both at once"]),
    ],
)
def test_the_phases_that_are_trained(data, settings, expected):
    method = fitted(data, epochs=1, **settings)
    assert [phase for phase, _ in method.logs] == expected


def test_each_phase_trains_its_own_side_alone(data):
    settings = quick()
    method = fitted(data)
    start = weights_at_start(data, settings)
    after_1, after_2 = method.checkpoints["items tutor"], method.checkpoints["users tutor"]
    mlp = [name for name in start if name.startswith("mlp.")]
    assert len(mlp) == 6  # three linear layers
    assert start.keys() == {"users", *mlp}  # the embeddings are nothing that could change
    assert not torch.equal(start["users"], after_1["users"])
    assert torch.equal(after_1["users"], after_2["users"])
    assert all(torch.equal(start[name], after_1[name]) for name in mlp)
    assert not any(torch.equal(after_1[name], after_2[name]) for name in mlp)
    method = fitted(data, trainable_items=True)
    after_1, after_2 = method.checkpoints["items tutor"], method.checkpoints["users tutor"]
    raw = torch.from_numpy(data.embeddings)
    assert torch.equal(after_1["items"], raw)
    assert not torch.equal(after_2["items"], raw)
    assert (method.cold_item_vectors[11] == data.embeddings[11]).all()


@pytest.mark.parametrize(("phase", "mapped"), [("first", False), ("second", True)])
def test_items_go_through_the_mlp_in_phase_2_alone(data, phase, mapped):
    method = fitted(data, phases=phase)
    network = Network(
        normalised_adjacency(purchases(data.train, ITEMS)),
        torch.from_numpy(data.embeddings),
        quick(),
    )
    (weights,) = method.checkpoints.values()
    network.load_state_dict(weights)
    with torch.no_grad():
        users, items = (side.numpy() for side in network.eval()(mapped=mapped))
    assert method.user_vectors == pytest.approx(users, abs=1e-6)
    assert method.item_vectors == pytest.approx(items, abs=1e-6)


def test_each_phase_spreads_the_side_it_trains():
    rng = torch.Generator().manual_seed(0)
    users, items = (torch.randn(5, 3, generator=rng) for _ in range(2))
    pairs = torch.tensor([0, 1, 1, 2]), torch.tensor([3, 3, 4, 0])

    def pieces(phase):
        whole = phase_loss(users, items, *pairs, phase)
        alone = phase_loss(users, items, *pairs, phase, alignment_only=True)
        return alone, whole - alone

    def spread(vectors):  # by the definition, over distinct pairs of distinct rows
        unit = functional.normalize(vectors, dim=-1)
        terms = [
            torch.exp(-2 * (unit[i] - unit[j]).square().sum())
            for i in range(len(unit))
            for j in range(i)
        ]
        return torch.stack(terms).mean().log()

    unit_users, unit_items = functional.normalize(users), functional.normalize(items)
    aligned = (unit_users[pairs[0]] - unit_items[pairs[1]]).square().sum(-1).mean()
    of_users, of_items = spread(users[[0, 1, 2]]), spread(items[[0, 3, 4]])
    for phase, expected in [
        ("items tutor", of_users),
        ("users tutor", of_items),
        ("both at once", (of_users + of_items) / 2),
    ]:
        alone, rest = pieces(phase)
        assert alone == pytest.approx(aligned.item(), abs=1e-6)
        assert rest == pytest.approx(expected.item(), abs=1e-6), phase


def test_detach_tutor_stops_the_gradient_of_the_side_that_teaches(data):
    for phase, teacher in (("items tutor", 1), ("users tutor", 0)):
        for detach in (False, True):
            sides = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
            pairs = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
            phase_loss(*sides, *pairs, phase, detach_tutor=detach).backward()
            assert (sides[teacher].grad is None) == detach
            assert sides[1 - teacher].grad is not None
    plain, detached = (fitted(data, phases="first", detach_tutor=on) for on in (False, True))
    assert not np.allclose(plain.user_vectors, detached.user_vectors)


def test_features_are_normalised_as_asked():
    table = np.array([[3, 4], [0, 0], [-1, 0]], dtype=np.float32)
    assert normalise_features(table, "none") is table
    assert normalise_features(table, "l2") == pytest.approx(
        np.array([[0.6, 0.8], [0, 0], [-1, 0]]), abs=1e-7
    )
    assert normalise_features(table, "minmax") == pytest.approx(
        np.array([[0.8, 1], [0.2, 0.2], [0, 0.2]]), abs=1e-7
    )
    assert (normalise_features(np.ones((2, 2), dtype=np.float32), "minmax") == 0).all()


def test_cold_items_are_scored_by_their_raw_embedding(data):
    method = fitted(data)
    bought = purchases(data.train, ITEMS)
    assert bought[:, [11]].nnz == 0
    users = np.arange(3)
    scores = method.score_cold(users, [np.array([0])] * 3)
    adjacency = normalised_adjacency(bought).to_dense().numpy()
    users_of_phase_1 = method.checkpoints["items tutor"]["users"].numpy()
    vectors = np.concatenate((users_of_phase_1, data.embeddings))
    smoothed = sum(np.linalg.matrix_power(adjacency, k) @ vectors for k in range(3)) / 3
    assert scores[:, 11] == pytest.approx(smoothed[:3] @ data.embeddings[11], abs=1e-5)
    assert scores[:, 0] == pytest.approx(smoothed[:3] @ smoothed[12], abs=1e-5)
    stranger = method.score_cold(np.array([-1]), [np.array([11])])
    assert stranger[0, 11] == pytest.approx((data.embeddings[11] ** 2).sum(), rel=1e-5)


def test_a_loaded_copy_scores_cold_items_alike(data):
    method, copy = fitted(data), CollabContext(quick())
    copy.load_state(method.state(), data)
    users, histories = np.arange(4), [np.array([0])] * 4
    assert (copy.score_cold(users, histories) == method.score_cold(users, histories)).all()
    assert not np.allclose(method.score(users, histories), method.score_cold(users, histories))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "--dropout 1.0: it must be below 1"),
        ({"symmetric": True, "cycles": 2}, "--symmetric trains both sides"),
        ({"symmetric": True, "phases": "first"}, "--symmetric trains both sides"),
        ({"symmetric": True, "detach_tutor": True}, "--symmetric trains both sides"),
        ({"phases": "second", "cycles": 2}, "--cycles 2 needs both phases"),
        ({"phases": "first", "trainable_items": True}, "--trainable-items is of phase 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        CollabContextSettings(**settings)


# The planted truth: a text is a noisy view of what the item is; texts have much in common besides,
# as those of real encoders do, and there are few purchases to tell items by.


@pytest.fixture(scope="module")
def planted():
    shop = make_planted(
        users=400, items=500, shared=16, private_text=0, private_behaviour=0, noise=0.3,
        mean_length=7, taste=4, cold=20, seed=0,
    )  # fmt: skip
    common = np.random.default_rng(1).normal(size=shop.embeddings.shape[1])
    embeddings = (0.3 * shop.embeddings + common).astype(np.float32)
    sequences, wanted = {}, {}
    for user, items in zip(shop.interactions.users, shop.interactions, strict=True):
        ends_cold = items[-1] in shop.cold
        sequences[user] = items[: len(items) - ends_cold].tolist()
        if ends_cold:
            wanted[user] = int(items[-1])
    split = leave_one_out(Interactions.from_sequences(sequences))
    rows = dict(zip(split.train.users, split.train, strict=True))
    cold = EvalCases(list(wanted), [rows[user] for user in wanted], np.array(list(wanted.values())))
    warm = np.setdiff1d(np.arange(shop.num_items), shop.cold)
    drawn = ColdSplit(split, cold, warm, shop.cold)
    data = TrainingData(split.train, shop.num_items, split.valid, embeddings, exclude_history=True)

    def ndcg(method):
        method.fit(data)
        measured = measure_cold(method, drawn, data)
        return {view: figures["NDCG@10"]["mean"] for view, figures in measured.items()}

    return ndcg


def collabcontext_on(planted, **settings):
    chosen = CollabContextSettings(
        epochs=60, patience=8, learning_rate=1e-2, hidden_layers=1, hidden=128, **settings
    )
    return planted(CollabContext(chosen))


@pytest.mark.slow
def test_on_planted_data_text_finds_cold_items_and_helps_with_warm_ones(planted):
    ours = collabcontext_on(planted)
    graph = planted(LightGCN(LightGCNSettings(learning_rate=5e-3, patience=5)))
    alone = collabcontext_on(planted, phases="second")
    assert ours["cold"] > graph["cold"] + 0.2  # .54 against .22, which is chance
    assert ours["all"] > graph["all"] + 0.1  # .21 against 0
    assert ours["warm"] > graph["warm"]  # .074 against .060
    assert ours["cold"] > alone["cold"] + 0.1  # .36 without phase 1
