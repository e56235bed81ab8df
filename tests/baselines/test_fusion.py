"""Fusion by its own laws: halves of length one, hard negatives, and what the planted truth says."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import make_planted

from lcrec.baselines.__main__ import main
from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.fusion import FusedNetwork, Fusion, draw_others, hardest_negatives
from lcrec.baselines.runs.ranking import rank_cases, validate
from lcrec.baselines.settings import FusionSettings
from lcrec.baselines.shared.graph import normalised_adjacency
from lcrec.baselines.shared.losses import sampled_dots
from lcrec.baselines.shared.purchases import purchases
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.data.splits import leave_one_out
from lcrec.rankings.overlap import compare_lists

USERS, ITEMS = 6, 9


def network(views="both", seed=0):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    train = Interactions.from_sequences(
        {str(user): rng.permutation(ITEMS)[:4].tolist() for user in range(USERS)}
    )
    texts = torch.randn(USERS + ITEMS, 5)
    adjacency = normalised_adjacency(purchases(train, ITEMS))
    return FusedNetwork(adjacency, texts, dim=3, layers=2, views=views)


@given(st.integers(0, 1000))
def test_a_fused_score_is_the_mean_of_the_two_cosines(seed):
    net = network(seed=seed)
    with torch.no_grad():
        collaborative, semantic = net.branches()
        fused = net()
    assert fused.norm(dim=1).numpy() == pytest.approx(np.ones(USERS + ITEMS), abs=1e-6)
    mean = (collaborative @ collaborative.T + semantic @ semantic.T) / 2
    assert (fused @ fused.T - mean).abs().max() < 1e-6


def test_a_branch_of_zeros_leaves_the_ranking_to_the_other():
    net = network()
    with torch.no_grad():
        collaborative, semantic = net.branches()
        net.map.weight.zero_()
        net.map.bias.zero_()
        assert net()[:, :3] == pytest.approx(collaborative, abs=1e-6)
        net = network()
        net.vectors.zero_()
        assert net()[:, 3:] == pytest.approx(semantic, abs=1e-6)


def test_one_view_alone_has_no_trace_of_the_other():
    names = {
        views: [name for name, _ in network(views).named_parameters()]
        for views in ("both", "collaborative", "semantic")
    }
    assert names["collaborative"] == ["vectors"]
    assert names["semantic"] == ["map.weight", "map.bias"]
    assert names["both"] == names["collaborative"] + names["semantic"]


@given(st.integers(1, 8), st.integers(0, 1000))
def test_hard_negatives_are_the_best_scored_of_those_drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(4, 3, generator=generator, requires_grad=True)
    items = torch.randn(20, 3, generator=generator, requires_grad=True)
    candidates = torch.randint(0, 20, (4, 8), generator=generator)
    hard = hardest_negatives(users, items, candidates, count)
    assert hard.shape == (4, count)
    expected = (users @ items.T).gather(1, candidates).sort(descending=True).values[:, :count]
    assert torch.allclose(hard.sort(descending=True).values, expected)
    gradients = (torch.autograd.grad(scores.square().sum(), items) for scores in (hard, expected))
    assert torch.allclose(*(gradient for (gradient,) in gradients), atol=1e-5)


def test_what_is_drawn_is_never_the_purchase_itself():
    items = np.arange(5).repeat(4)
    drawn = draw_others(items, 100, 5, np.random.default_rng(0))
    assert drawn.shape == (20, 100)
    assert not (drawn == items[:, None]).any()
    # Every other item, about as often.
    for item in range(5):
        counts = np.bincount(drawn[items == item].ravel(), minlength=5)
        assert counts[item] == 0
        assert (np.delete(counts, item) > 60).all()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 5))
def test_both_ways_to_the_same_dot_products(batch, count, entries, dim):
    rows, table = torch.randn(batch, dim), torch.randn(entries, dim)
    ids = torch.randint(0, entries, (batch, count))
    expected = (rows[:, None] * table[ids]).sum(-1)
    assert sampled_dots(rows, table, ids) == pytest.approx(expected, abs=1e-5)


def test_the_loss_of_the_first_batch_by_hand():
    """With all candidates kept, it is the cross entropy of the purchase among all that is drawn."""
    net, method = network(), Fusion(FusionSettings(candidates=4, negatives=4, temperature=0.5))
    batch = np.array([[0, 3], [2, 1]])
    drawn = np.array([[0, 1, 2, 4], [5, 6, 7, 8]])
    with torch.no_grad():
        vectors = net().numpy()
        found = float(method._loss(net, batch, drawn, USERS))
    losses = []
    for (user, item), others in zip(batch, drawn, strict=True):
        logits = vectors[USERS + np.array([item, *others])] @ vectors[user] / 0.5
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
    assert found == pytest.approx(np.mean(losses), abs=1e-5)


SMALL = {
    "dim": 32, "candidates": 128, "negatives": 64, "learning_rate": 1e-2, "batch_size": 1024,
    "epochs": 30, "patience": 3, "every": 2,
}  # fmt: skip


def test_purchases_alone_need_no_texts():
    assert FusionSettings().required_inputs == {"embeddings"}
    chosen = FusionSettings(views="collaborative", dim=4, epochs=2)
    assert chosen.required_inputs == set()
    planted = make_planted(users=30, mean_length=6, taste=5)
    users, histories = np.arange(2), [np.array([0]), np.array([1])]
    found = []
    for embeddings in (None, planted.embeddings):
        method = Fusion(chosen, seed=0)
        method.fit(TrainingData(planted.interactions, planted.num_items, embeddings=embeddings))
        found.append(method.score(users, histories))
    assert (found[0] == found[1]).all()


@pytest.mark.slow
def test_on_planted_data_both_views_beat_either():
    planted = make_planted(users=800, mean_length=6, taste=5)
    split = leave_one_out(planted.interactions)
    data = TrainingData(
        split.train, planted.num_items, split.valid, planted.embeddings, exclude_history=True
    )
    scores, lists = {}, {}
    for views in ("both", "collaborative", "semantic"):
        method = Fusion(FusionSettings(views=views, **SMALL), seed=0)
        method.fit(data)
        ranked = rank_cases(method, split.test, data, top=10)
        lists[views] = np.stack([items for items, _ in ranked])
        scores[views] = validate(method, split.test, data)
    # .125, .101 and .076; seeds 1 and 2 give .128, .112, .055 and .115, .087, .065.
    assert scores["both"] > 1.1 * scores["collaborative"]
    assert scores["both"] > 1.5 * scores["semantic"]
    # Trained apart, either finds what the other does not.
    found = compare_lists(
        lists["collaborative"],
        lists["semantic"],
        split.test.targets,
        10,
        popularity=np.bincount(split.train.items, minlength=planted.num_items),
        activity=np.diff(split.train.offsets),
    )
    assert found["all"]["gain"] > 0.03
    assert found["overlap"] < 0.5
    chance = (1 / np.log2(np.arange(10) + 2)).sum() / planted.num_items
    assert min(scores.values()) > 3 * chance


def test_what_fusion_refuses(tmp_path):
    with pytest.raises(InputError, match="--negatives 600: more than --candidates 512"):
        FusionSettings(negatives=600)
    one = TrainingData(
        Interactions.from_sequences({"a": [0]}), 1, embeddings=np.ones((1, 2), dtype=np.float32)
    )
    with pytest.raises(InputError, match="one item alone"):
        Fusion().fit(one)
    folder = tmp_path / "Shop"
    folder.mkdir()
    (folder / "Shop.inter.json").write_text(json.dumps({"a": [0, 1, 0, 1]}))
    (folder / "Shop.item.json").write_text(json.dumps({"0": {"title": "x"}, "1": {"title": "y"}}))
    with pytest.raises(InputError, match="--embeddings DIR is needed"):
        main(["fusion", "--data", str(folder), "--output", str(tmp_path / "p.jsonl")])
