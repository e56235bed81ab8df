"""What is particular to a method that reads sequences, by hand where it can be."""

import math

import numpy as np
import pytest
import torch

from lcrec.baselines import settings
from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods import attributes
from lcrec.baselines.methods.attention import BERT4Rec, SASRec, mask_items
from lcrec.baselines.methods.without_attention import FMLP, HGN, Caser, FilterBlock, FrequencyFilter
from lcrec.baselines.shared.purchases import NegativeSampler, purchases
from lcrec.baselines.shared.sequences import SequenceBatches, pad_histories
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items

WALKS = {f"u{user}": [(user + step) % 10 for step in range(5)] for user in range(10)}
SMALL = {"dim": 8, "hidden": 16, "max_history": 6, "dropout": 0.0, "attention_dropout": 0.0}


def shelf(brands):
    return Items([{"title": f"thing {item}", "brand": brand} for item, brand in enumerate(brands)])


def training(items=None, sequences=WALKS, num_items=10):
    return TrainingData(Interactions.from_sequences(sequences), num_items, items=items)


def one_batch(data, max_history=6, form="windows"):
    return next(
        iter(
            SequenceBatches(
                *(data.train, data.num_items),
                **{"max_history": max_history, "form": form, "batch_size": 1000, "seed": 0},
            )
        )
    )


ITEMS = torch.tensor([[3, 4, 5], [6, 9, 9]])
LENGTHS = torch.tensor([3, 1])


def test_masks_by_hand_and_in_the_shares_asked_for():
    torch.manual_seed(0)
    items, asked = mask_items(ITEMS, LENGTHS, 1.0, 0.0, 10)
    assert items.tolist() == [[10, 10, 10], [10, 9, 9]]  # the first place too, never padding
    assert asked.tolist() == [[True, True, True], [True, False, False]]
    for share, last_only in ((0.7, 1.0), (0.0, 0.0)):
        items, asked = mask_items(ITEMS, LENGTHS, share, last_only, 10)
        assert items.tolist() == [[3, 4, 10], [10, 9, 9]]
        assert (items[asked] == 10).all()
    torch.manual_seed(0)
    items, lengths = torch.zeros(4000, 10, dtype=torch.int64), torch.full((4000,), 10)
    _, asked = mask_items(items, lengths, 0.2, 0.0, 1)
    assert asked.any(dim=1).all()
    assert asked[:, 0].float().mean().item() == pytest.approx(0.2, abs=0.03)
    _, asked = mask_items(items, lengths, 0.2, 0.5, 1)
    only_last = asked[:, -1] & (asked.sum(dim=1) == 1)
    # Half of the rows, and of the other half those where the draw is the last alone, or nothing.
    expected = 0.5 + 0.5 * (0.2 * 0.8**9 + 0.8**10)
    assert only_last.float().mean().item() == pytest.approx(expected, abs=0.03)


@torch.no_grad()
def test_bert4rec_never_sees_what_it_must_name():
    method = BERT4Rec(settings.BERT4RecSettings(**SMALL))
    network = method.build(training()).eval()
    states = []
    for second in (4, 7):
        items = torch.tensor([[3, second, 5]])
        hidden = items.masked_fill(torch.tensor([[False, True, False]]), network.mask)
        states.append(network.fill(hidden, torch.tensor([3]), hidden == network.mask))
    assert (states[0] == states[1]).all()
    seen = torch.tensor([[3, network.mask, 6]])  # a later item is seen, and counts
    other = network.fill(seen, torch.tensor([3]), seen == network.mask)
    assert not torch.allclose(states[0], other, atol=1e-3)


def test_every_mask_counts_in_the_loss(monkeypatch):
    """With all masked, each item of each sequence is asked for: the first and the last too."""
    method = BERT4Rec(settings.BERT4RecSettings(**SMALL, masked=1.0, last_only=0.0))
    data = training()
    network, method.sampler = method.build(data), None
    asked = []
    monkeypatch.setattr(
        "lcrec.baselines.shared.sequential.next_item_loss",
        lambda kind, states, vectors, targets, drawn, bias: asked.append((states, targets)),
    )
    method.loss(network, one_batch(data))
    ((states, targets),) = asked
    assert states.shape == (50, 8)
    assert sorted(targets.tolist()) == sorted(item for walk in WALKS.values() for item in walk)


@torch.no_grad()
def test_a_mask_stands_behind_the_history():
    network = BERT4Rec(settings.BERT4RecSettings(**SMALL)).build(training()).eval()
    batch = pad_histories(np.array([0, 1]), [np.array([3]), np.array([1, 2, 4])], 10, 6)
    items = torch.tensor([[3, network.mask, 10, 10], [1, 2, 4, network.mask]])
    expected = network.fill(items, torch.tensor([2, 4]), items == network.mask)
    assert torch.allclose(network(batch), expected)


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 6])
def test_a_filter_of_ones_lets_all_pass(length):
    filters = FrequencyFilter(length, 3)
    assert filters.weight.shape == (length // 2 + 1, 3, 2)
    filters.weight[..., 0], filters.weight[..., 1] = 1, 0
    x = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(filters(x), x, atol=1e-6)
    filters.weight[1:] = 0  # the lowest frequency alone: the mean over places
    assert torch.allclose(filters(x), x.mean(dim=1, keepdim=True).expand_as(x), atol=1e-6)


@torch.no_grad()
def test_fmlp_knows_how_long_ago_each_item_was():
    network = FMLP(settings.FMLPSettings(dim=8, hidden=16, max_history=6, dropout=0.0)).build(
        training()
    )
    network.eval()
    histories = [np.array([1, 2, 3]), np.array([2, 1, 3])]
    one, other = network(pad_histories(np.array([0, 0]), histories, 10, 6))
    assert not torch.allclose(one, other, atol=1e-4)


@torch.no_grad()
def test_a_filter_block_computes_the_last_place_alone_where_no_other_is_asked_for():
    block = FilterBlock(6, 4, 8, 0.0)
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(block(x, last_only=True), block(x)[:, -1], atol=1e-6)


@torch.no_grad()
def test_hgn_by_hand():
    network = HGN(settings.HGNSettings(dim=2, max_history=3)).build(training())
    network.items.weight[:2] = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    network.users.table.weight[0] = torch.tensor([0.5, 0.25])
    for gate in (network.item_features, network.user_features, network.item_gate):
        gate.weight.zero_()
    network.item_features.bias.zero_()
    network.user_gate.weight.zero_()
    # Gates are a half: half of the mean of both vectors, beside the user and the plain sum.
    histories = [np.array([0, 1])]
    state = network(pad_histories(np.array([0]), histories, 10, 3))[0]
    assert state.tolist() == pytest.approx([0.5 + 1 + 4, 0.25 + 0.25 + 1])
    network.user_gate.weight[0] = 100  # the first of three places, where padding stands
    assert network(pad_histories(np.array([0]), histories, 10, 3))[0].tolist() == state.tolist()
    network.user_gate.weight[2] = 100  # the newest item now has a gate of 1, the older of 1 / 2
    state = network(pad_histories(np.array([0]), histories, 10, 3))[0]
    pooled = (0.5 * 0.5 * 1 + 1 * 0.5 * 3) / 1.5
    assert state[0].item() == pytest.approx(0.5 + pooled + 4)


def test_hgn_scores_drawn_items_by_its_second_table():
    method = HGN(settings.HGNSettings(dim=4, max_history=3, loss="bpr"))
    data = training(sequences={"a": [0, 1, 2], "b": [1, 2, 0]}, num_items=4)
    method.sampler = NegativeSampler(purchases(data.train, 4), 0)  # can draw item 3 alone
    network = method.build(data)
    batch = one_batch(data, 3, form="prefixes")
    method.loss(network, batch).backward()
    assert network.answers.weight.grad[3].abs().max() > 0
    assert not network.items.weight.grad[3].any()


@torch.no_grad()
def test_caser_by_hand():
    chosen = settings.CaserSettings(dim=2, max_history=3, horizontal=1, vertical=1, dropout=0.0)
    network = Caser(chosen).build(training())
    network.items.weight[:2] = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    for height, filters in enumerate(network.horizontal, start=1):
        filters.weight.fill_(1)
        filters.bias.fill_(height)
    network.vertical.weight[:] = torch.tensor([[100.0, 10.0, 1.0]])
    answers = []
    network.connected.register_forward_hook(lambda layer, given, result: answers.append(given[0]))
    network(pad_histories(np.array([0]), [np.array([0, 1])], 10, 3))
    # The image is nothing, (1, 2), (3, -1): the best single row, pair and triple, plus the bias;
    # then the weighted sums down each column.
    assert answers[0].tolist() == [[3 + 1, 5 + 2, 5 + 3, 10 + 3, 20 - 1]]


def test_caser_is_held_by_the_norms_of_its_matrices():
    data = training()
    losses = []
    for weight in (0.0, 0.5):
        method = Caser(
            settings.CaserSettings(dim=4, max_history=3, dropout=0.0, regularisation=weight)
        )
        method.sampler = None
        torch.manual_seed(0)
        network = method.build(data)
        losses.append(method.loss(network, one_batch(data, 3, form="prefixes")).item())
    norms = sum(part.norm().item() for part in network.parameters() if part.ndim > 1)
    assert losses[1] - losses[0] == pytest.approx(0.5 * norms, rel=1e-4)


def test_attributes_by_hand():
    items = Items(
        [
            {"title": "a", "brand": "Hex", "categories": "Tools, Drills,  Tools"},
            {"title": "b", "brand": "", "categories": "Tools"},
            {"title": "c"},
        ]
    )
    found = attributes.item_attributes(items, "fdsa")
    assert found.names == [("categories", "Drills"), ("categories", "Tools"), ("brand", "Hex")]
    categories, brands = found.fields
    assert categories.tolist() == [[1, 0], [1, 3], [3, 3], [3, 3]]  # the last row is for padding
    assert brands.tolist() == [[2], [3], [3], [3]]
    assert len(attributes.item_attributes(shelf(["x", ""]), "fdsa").fields) == 1
    with pytest.raises(
        InputError, match=r"s3rec learns .* none of the 2 items .* categories or br"
    ):
        attributes.item_attributes(shelf(["", " "]), "s3rec")


@pytest.mark.parametrize("kind", [attributes.FDSA, attributes.S3Rec])
def test_a_catalogue_without_attributes(kind):
    with pytest.raises(InputError, match="take a method that needs neither, such as sasrec"):
        kind().fit(training(shelf([""] * 10)))


@torch.no_grad()
def test_features_by_hand():
    items = Items([{"brand": "x", "categories": "p, q"}, {"brand": "x"}, {}])
    features = attributes.ItemFeatures(attributes.item_attributes(items, "fdsa"), 2)
    values = features.values.weight
    features.attention[2].weight.zero_()  # equal weights for the fields that are there
    found = features(torch.tensor([[0, 1], [2, 3]]))
    p, q, x = values[:3]
    assert torch.allclose(found[0, 0], ((p + q) / 2 + x) / 2)
    assert torch.allclose(found[0, 1], x)
    assert not found[1].any()


@torch.no_grad()
def test_fdsa_with_one_brand_for_all_is_sasrec():
    """Its feature stream then says nothing of items, and the rest can be SASRec to the number."""
    data = training(shelf(["x"] * 10))
    small = {**SMALL, "heads": 2}
    sasrec = SASRec(settings.SASRecSettings(**small))
    fdsa = attributes.FDSA(settings.FDSASettings(**small))
    sasrec.network, fdsa.network = sasrec.build(data).eval(), fdsa.build(data).eval()
    network = fdsa.network
    network.load_state_dict({**network.state_dict(), **sasrec.network.state_dict()})
    network.join.weight[:] = torch.cat((torch.eye(8), torch.zeros(8, 8)), dim=1)
    histories = [np.array([1, 2, 3]), np.array([9, 0, 4])]
    users = np.array([0, 1])
    # The norms of a fresh network are of weight 1, and a second one changes nothing.
    assert fdsa.score(users, histories) == pytest.approx(sasrec.score(users, histories), abs=1e-5)
    network.join.weight[:] = torch.cat((torch.zeros(8, 8), torch.eye(8)), dim=1)
    states = network(pad_histories(users, histories, 10, 6))
    assert torch.allclose(states[0], states[1], atol=1e-6)


def test_fdsa_has_a_norm_for_each_place():
    network = attributes.FDSA(settings.FDSASettings(**SMALL)).build(training(shelf("ab" * 5)))
    norms = (network.positions.norm, network.feature_positions.norm, network.norm)
    assert len({id(norm.weight) for norm in norms}) == 3


PRETRAINED = {**SMALL, "pretrain_epochs": 3, "epochs": 1, "learning_rate": 0.01}


def test_s3rec_goes_on_from_what_was_pretrained(monkeypatch):
    data = training(shelf("ab" * 5))
    method = attributes.S3Rec(settings.S3RecSettings(**PRETRAINED))
    seen = []

    def start(data):
        network = attributes.S3Rec.start(method, data)
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return network

    def loss(network, batch):
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return attributes.S3Rec.loss(method, network, batch)

    monkeypatch.setattr(method, "start", start)
    monkeypatch.setattr(method, "loss", loss)
    method.fit(data)
    pretrained, first = seen[:2]
    assert all((pretrained[key] == first[key]).all() for key in pretrained)
    torch.manual_seed(0)
    fresh = method.build(data).state_dict()
    layers = [key for key in fresh if "weight" in key and "encoder" in key]
    assert layers
    assert all((pretrained[key] != fresh[key]).any() for key in layers)
    assert len(method.pretraining.epochs) == 3


def test_attributes_of_s3rec_end_with_pretraining():
    method = attributes.S3Rec(settings.S3RecSettings(**PRETRAINED))
    method.fit(training(shelf("ab" * 5)))
    state = method.state()
    plain = SASRec(settings.SASRecSettings(**SMALL)).build(training()).state_dict()
    assert state.keys() == plain.keys()
    other = attributes.S3Rec(settings.S3RecSettings(**PRETRAINED))
    other.load_state(state, training(items=None))  # no attributes there at all
    history = [np.array([1, 2])]
    assert (other.score(np.array([0]), history) == method.score(np.array([0]), history)).all()


def test_pretraining_learns_its_tasks():
    """All four at once; a comparison whose scores were squashed first could not fall below .31."""
    items = shelf(["abcde"[item // 2] for item in range(10)])
    walks = {f"u{user}": [(user + step) % 10 for step in range(5)] for user in range(60)}
    data = training(items, walks)
    chosen = settings.S3RecSettings(**{**SMALL, "dim": 16})
    torch.manual_seed(0)
    network = attributes.S3Rec(chosen).build(data)
    forms = attributes.Forms(attributes.item_attributes(items, "s3rec"), 16)
    sampler = NegativeSampler(purchases(data.train, 10), 0)
    stream = torch.from_numpy(data.train.items.astype(np.int64))
    optimizer = torch.optim.Adam([*network.parameters(), *forms.parameters()], lr=0.01)
    batch, logs = one_batch(data), []
    for _ in range(170):
        losses = attributes.pretraining_loss(network, forms, batch, sampler, stream, 0.2)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        logs.append({task: loss.item() for task, loss in losses.items()})
    first = logs[0]
    # At the start of five items a sequence, five brands each a fifth: what the shares alone say.
    of_brands = -5 * (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert first["aap"] == pytest.approx(5 * of_brands, rel=0.01)
    masks = first["map"] / of_brands
    assert 1.2 < masks < 1.5  # a fifth of five, at least one
    assert first["mip"] == pytest.approx(masks * math.log(2), rel=0.01)
    assert first["sp"] == pytest.approx(math.log(2), rel=0.2)
    last = {task: np.mean([log[task] for log in logs[-20:]]) for task in first}
    assert last["aap"] < 0.1 * first["aap"]
    assert last["mip"] < 0.2 * first["mip"]
    assert last["map"] < 0.5 * first["map"]
    assert last["sp"] < 0.5 * first["sp"]


def test_a_pretraining_batch_costs_what_its_parts_do_together():
    """What draws nothing is the same to the last digits: attributes of items, here of all."""
    walks = {"u0": [0, 1], "u1": [1, 2, 3, 4], "u2": [3, 0, 2], "u3": [4, 1], "u4": [2, 4, 0, 1, 3]}
    data = training(shelf("abcabc"), walks, num_items=6)
    chosen = settings.S3RecSettings(**SMALL, aap=0.5, mip=0, map=0, sp=0)
    network = attributes.S3Rec(chosen).build(data).eval()
    forms = attributes.Forms(attributes.item_attributes(data.items, "s3rec"), SMALL["dim"])
    sampler = NegativeSampler(purchases(data.train, 6), 0)
    tools = (sampler, torch.from_numpy(data.train.items.astype(np.int64)))
    batch = one_batch(data)
    assert len(batch.by_length(4)) > 1  # and of unequal size
    whole = attributes.pretraining_loss(network, forms, batch, *tools, chosen.masked)["aap"].item()
    parts = attributes.weighted_loss(network, forms, batch, *tools, chosen).item()
    assert parts == pytest.approx(0.5 * whole, rel=1e-5)


def test_items_without_attributes_take_no_part_in_their_tasks():
    items = shelf(["a", "", "b"])
    forms = attributes.Forms(attributes.item_attributes(items, "s3rec"), 4)
    losses = forms.attribute_loss(forms.aap, torch.ones(3, 4), torch.tensor([0, 1, 2]))
    assert losses[1] == 0
    assert losses[[0, 2]].min() > 0
