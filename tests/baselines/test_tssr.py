"""TSSR: masks, streams, gate, contrasts, a text encoder of its own, and a planted truth."""

import dataclasses

import numpy as np
import pytest
import torch
from planted import make_planted
from torch.nn import functional

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods import tssr
from lcrec.baselines.runs.ranking import validate
from lcrec.baselines.settings import TSSRSettings
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.splits import leave_one_out

ITEMS, DIM = 9, 8
SMALL = TSSRSettings(dim=DIM, heads=2, hidden=16, cross_layers=2, max_history=5, dropout=0.0)


def awake(settings=SMALL, scale=0.7):
    """A network whose sublayers add something: at the start their scale is about 0."""
    torch.manual_seed(0)
    network = tssr.Network(ITEMS, settings).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("scales"):
                parameter.fill_(scale)
    return network


def inputs():
    rng = torch.Generator().manual_seed(1)
    items = torch.randint(0, ITEMS, (3, 5), generator=rng)
    return items, torch.randn(3, 5, DIM, generator=rng), torch.ones(3, 5, dtype=torch.bool)


def data_of(sequences, num_items=ITEMS, width=6, **more):
    split = leave_one_out(Interactions.from_sequences(sequences))
    vectors = np.random.default_rng(0).normal(size=(num_items, width)).astype(np.float32)
    return TrainingData(split.train, num_items, split.valid, vectors, **more)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return data_of(
        {f"u{user}": rng.permutation(ITEMS)[:7].tolist() for user in range(10)},
        items=Items([{"title": f"thing number {item}"} for item in range(ITEMS)]),
    )


@pytest.mark.parametrize(
    "chosen", [{}, {"gate": False}, {"cross": False}, {"id_only": True}, {"content_only": True}]
)
def test_one_place_per_row_is_what_it_is_among_all(chosen):
    network = awake(dataclasses.replace(SMALL, **chosen))
    items, content, real = inputs()
    real[0, 2:] = False
    asked = torch.arange(3), torch.tensor([1, 4, 2])
    with torch.no_grad():
        states = network(items, content, real, asked).states
        assert torch.allclose(states, network(items, content, real).states[asked], atol=1e-6)


def test_the_future_changes_no_state_of_the_past():
    network = awake()
    items, content, real = inputs()
    before = network(items, content, real)
    other_items, other_content = items.clone(), content.clone()
    other_items[:, 3:] = (items[:, 3:] + 1) % ITEMS
    other_content[:, 3:] += 1
    for changed in ((other_items, content), (items, other_content)):
        after = network(*changed, real)
        for name, old, new in zip(before._fields, before, after, strict=True):
            assert torch.allclose(old[:, :3], new[:, :3], atol=1e-6), name
        assert not torch.allclose(before.states[:, 3:], after.states[:, 3:], atol=1e-3)


def test_padding_changes_no_real_place():
    network = awake()
    items, content, real = inputs()
    real[:, 3:] = False
    padded = network(items.masked_fill(~real, ITEMS), content, real).states
    other = network(items, content + (~real)[..., None] * 5, real).states
    short = network(items[:, :3], content[:, :3], real[:, :3]).states
    assert torch.allclose(padded[:, :3], short, atol=1e-6)
    assert torch.allclose(other[:, :3], short, atol=1e-6)


@pytest.mark.parametrize("left_out", [{}, {"id_only": True}, {"content_only": True}])
def test_sequences_read_apart_are_those_read_together(left_out):
    network = awake(dataclasses.replace(SMALL, **left_out))
    rng = torch.Generator().manual_seed(2)
    lengths = torch.tensor([5, 1, 3, 1, 2, 4, 1])
    real = torch.arange(5) < lengths[:, None]
    items = torch.randint(0, ITEMS, (7, 5), generator=rng).masked_fill(~real, ITEMS)
    content = None if left_out.get("id_only") else torch.randn(7, 5, DIM, generator=rng)
    together = network(items, content, real)
    apart = tssr.read_in_parts(network, items, content, real)
    for name, one, other in zip(together._fields, together, apart, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            assert torch.allclose(one[real], other[real], atol=1e-6), name
            assert other[~real].count_nonzero() < one[~real].count_nonzero(), name
    assert tssr.read_in_parts(
        network, items[:1], content if content is None else content[:1], real[:1]
    ).states.shape == (1, 5, DIM)


def test_at_the_start_a_stream_hardly_hears_the_other():
    torch.manual_seed(0)
    network = tssr.Network(ITEMS, dataclasses.replace(SMALL, gate=False)).eval()
    items, content, real = inputs()
    with torch.no_grad():
        allowed = torch.ones(3, 1, 5, 5, dtype=torch.bool)
        streams = network(items, content, real)
        found = []
        for context in (streams.content, streams.content + 3):
            x = streams.identity
            for block in network.cross_identity:
                x = block(x, allowed, context)
            found.append(x)
    assert (found[0] - found[1]).abs().max() < 1e-5
    normalised = functional.layer_norm(streams.identity, (DIM,), eps=1e-12)
    assert torch.allclose(found[0], normalised, atol=1e-4)


def test_the_gate_mixes_the_two_sides():
    network = awake()
    items, content, real = inputs()
    allowed = torch.ones(5, 5, dtype=torch.bool).tril().expand(3, 1, 5, 5)
    free = network(items, content, real)
    x, y = free.identity, free.content
    for one, two in zip(network.cross_identity, network.cross_content, strict=True):
        x, y = one(x, allowed, free.content), two(y, allowed, free.identity)
    share = torch.sigmoid(network.gate(torch.cat((x, y), dim=-1)))
    assert 0 < share.min() < share.max() < 1
    assert torch.allclose(free.states, share * x + (1 - share) * y, atol=1e-6)
    with torch.no_grad():
        network.gate.weight.zero_()
        for bias, side in ((1e4, x), (-1e4, y)):
            network.gate.bias.fill_(bias)
            assert torch.allclose(network(items, content, real).states, side, atol=1e-6)


def test_positions_are_shared_by_both_streams():
    network = awake()
    items, content, real = inputs()
    streams = network(items, content, real)
    (streams.identity.sum(-1) ** 2).sum().backward(retain_graph=True)
    assert network.positions.grad is None or network.positions.grad.abs().sum() < 1e-3
    network.zero_grad()
    for stream in (streams.identity, streams.content):
        (gradient,) = torch.autograd.grad(stream[0, 2, 0], network.positions, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_the_user_contrast_by_hand():
    one, two = torch.randn(4, DIM), torch.randn(4, DIM)
    cosines = torch.tensor([[torch.cosine_similarity(a, b, dim=0) for b in two] for a in one])
    expected = functional.cross_entropy(cosines / 0.2, torch.arange(4))
    assert tssr.user_contrast(one, two, 0.2) == pytest.approx(expected.item(), abs=1e-5)
    assert tssr.user_contrast(one[:1], two[:1], 0.2) == 0
    both = tssr.user_contrast(one, two, 0.2), tssr.user_contrast(two, one, 0.2)
    assert both[0] != pytest.approx(both[1].item(), abs=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    assert tssr.user_contrast(one[order], two[order], 0.2) == pytest.approx(
        both[0].item(), abs=1e-5
    )
    states = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [99.0], [99.0]]])
    real = torch.tensor([[True, True, False], [True, False, False]])
    assert tssr.masked_mean(states, real).tolist() == [[2.0], [5.0]]


def slow_item_contrast(query, key, targets, real):
    losses = []
    for b in range(len(query)):
        for t in range(query.shape[1]):
            if not real[b, t]:
                continue
            others = [
                c
                for c in range(len(query))
                if c == b or (real[c, t] and targets[c, t] != targets[b, t])
            ]
            logits = torch.stack([query[b, t] @ key[c, t] for c in others])
            losses.append(torch.logsumexp(logits, 0) - query[b, t] @ key[b, t])
    return torch.stack(losses).mean()


def test_the_next_item_is_found_among_those_of_the_others():
    query, key = torch.randn(4, 3, DIM), torch.randn(4, 3, DIM)
    targets = torch.tensor([[0, 1, 2], [0, 2, 9], [3, 1, 4], [5, 9, 9]])
    real = targets != 9
    loss = tssr.item_contrast(query, key, targets, real)
    assert loss == pytest.approx(slow_item_contrast(query, key, targets, real).item(), abs=1e-5)
    query, key = torch.randn(5, 3, DIM), torch.randn(5, 3, DIM)
    targets = torch.randint(0, 5, (5, 3))
    real = torch.ones(5, 3, dtype=torch.bool)
    real[3:] = False
    whole = tssr.item_contrast(query, key, targets, real)
    assert whole == pytest.approx(
        tssr.item_contrast(query[:3], key[:3], targets[:3], real[:3]).item(), abs=1e-6
    )


def training_loss(data, settings, sequences=None):
    """The loss of a batch and its network, with every sublayer awake."""
    method = tssr.TSSR(settings)
    network = awake(settings)
    torch.manual_seed(3)
    content = None if settings.id_only else method._content(data)
    if sequences is None:
        sequences = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 0, 9, 9], [2, 1, 9, 9, 9, 9]])
    return method._loss(network, content, sequences), network, content


def test_what_the_loss_is_made_of(data):
    """With both contrasts off: the cross-entropy at every place that has a next item."""
    plain = dataclasses.replace(SMALL, user_contrast=False, item_contrast=False)
    loss, network, content = training_loss(data, plain)
    expected = []
    for sequence in ([0, 1, 2, 3, 4, 5], [6, 7, 8, 0], [2, 1]):
        items = torch.tensor([sequence[:-1]])
        states = network(items, content(items), torch.ones_like(items, dtype=torch.bool)).states
        expected.append(
            functional.cross_entropy(
                network.output(states)[0], torch.tensor(sequence[1:]), reduction="none"
            )
        )
    assert loss.item() == pytest.approx(torch.cat(expected).mean().item(), abs=1e-5)
    for more in ({"user_contrast": True}, {"item_contrast": True}):
        assert training_loss(data, dataclasses.replace(plain, **more))[0] > loss + 0.1


def test_a_state_of_content_is_drawn_to_the_vector_of_the_next_id(data):
    """Item 5 stands last, so no state has read it: only a contrast can reach its vector."""
    for contrast, reached in ((True, True), (False, False)):
        settings = dataclasses.replace(SMALL, user_contrast=False, item_contrast=contrast)
        sequences = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]])
        loss, network, _ = training_loss(data, settings, sequences)
        loss.backward()
        assert (network.items.weight.grad[5].abs().sum() > 0) == reached


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({}, []),
        ({"cross": False}, ["cross_identity", "cross_content"]),
        ({"gate": False}, ["gate"]),
        ({"id_only": True}, ["content", "cross_identity", "cross_content", "gate"]),
        ({"content_only": True}, ["identity", "cross_identity", "cross_content", "gate"]),
    ],
)
def test_a_switch_takes_its_part_away(data, switch, gone):
    settings = dataclasses.replace(SMALL, epochs=1, batch_size=4, **switch)
    parts = {name.split(".")[0] for name, _ in tssr.Network(ITEMS, settings).named_parameters()}
    every = {"items", "positions", "identity", "content", "cross_identity", "cross_content"}
    assert parts == (every | {"gate", "output"}) - set(gone)
    method = tssr.TSSR(settings)
    method.fit(data)
    histories = [np.array([0, 1]), np.array([1, 0])]
    scores = method.score(np.array([0, 1]), histories)
    shifted = dataclasses.replace(data, embeddings=data.embeddings[::-1].copy())
    other = tssr.TSSR(settings)
    other.fit(shifted)
    reads_content = not np.allclose(scores, other.score(np.array([0, 1]), histories))
    assert reads_content == (not settings.id_only)


def test_without_a_gate_both_sides_count_alike():
    network = awake(dataclasses.replace(SMALL, gate=False, cross=False))
    streams = network(*inputs())
    assert torch.allclose(streams.states, (streams.identity + streams.content) / 2)


def test_what_it_needs_follows_the_settings(tmp_path):
    assert TSSRSettings().required_inputs == {"embeddings"}
    assert TSSRSettings(text_encoder=tmp_path).required_inputs == {"texts"}
    assert TSSRSettings(id_only=True).required_inputs == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "--dropout 1.0: it must be below 1"),
        ({"id_only": True, "content_only": True}, "leave nothing"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        TSSRSettings(**settings)
    with pytest.raises(InputError, match="--id-only reads no texts"):
        TSSRSettings(id_only=True, text_encoder=tmp_path)
    with pytest.raises(InputError, match="--dim 10 cannot be split among --heads 4"):
        tssr.Network(ITEMS, TSSRSettings(dim=10))


def test_windows_are_the_last_items_of_users_with_two():
    train = Interactions.from_sequences({"a": [1, 2, 3, 4], "b": [5], "c": [6, 7]})
    assert [items.tolist() for items in tssr.cut_windows(train, 2)] == [[2, 3, 4], [6, 7]]
    with pytest.raises(InputError, match="every user has one item"):
        tssr.cut_windows(Interactions.from_sequences({"b": [5]}), 2)


def test_each_item_is_encoded_once():
    class Counting(tssr.FixedVectors):
        asked = ()

        def forward(self, items):
            self.asked = items.tolist()
            return super().forward(items)

    source = Counting(torch.randn(4, 3))
    content = tssr.Content(source, 4, 2)
    vectors = content(torch.tensor([[3, 1, 3], [1, 4, 4]]))
    assert source.asked == [1, 3]
    assert torch.equal(vectors[0, 0], vectors[0, 2])
    assert vectors[1, 1:].tolist() == [[0, 0]] * 2
    assert torch.allclose(content.table()[3], vectors[0, 0])


@pytest.fixture
def text_encoder(tmp_path):
    """A BERT of a few thousand weights and the words of the titles."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "thing", "number", *map(str, range(ITEMS))]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "bert"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_a_text_encoder_is_trained_with_the_rest(data, text_encoder):
    settings = dataclasses.replace(
        SMALL, text_encoder=text_encoder, epochs=2, batch_size=4, learning_rate=1e-2
    )
    loss, _, content = training_loss(data, settings)
    loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in content.source.encoder.named_parameters()
    }
    assert gradients["embeddings.word_embeddings.weight"].abs().sum() > 0
    without_embeddings = dataclasses.replace(data, embeddings=None)
    method, copy = tssr.TSSR(settings, seed=2), tssr.TSSR(settings)
    method.fit(without_embeddings)
    copy.load_state(method.state(), without_embeddings)
    asked = np.array([0, -1]), [np.array([0, 1]), np.array([8])]
    assert (copy.score(*asked) == method.score(*asked)).all()
    start = tssr.load_texts(text_encoder, ["thing number 1"], 8)(torch.tensor([0]))
    again = tssr.load_texts(text_encoder, ["thing number 1", "thing"], 8)(torch.tensor([0]))
    assert torch.allclose(start, again, atol=1e-6)  # whatever the padding


def test_titles_without_a_token_are_refused(text_encoder):
    with pytest.raises(InputError, match="title of item 1 has no token"):
        tssr.load_texts(text_encoder, ["thing", " "], 8)


@pytest.fixture(scope="module")
def planted():
    """Few purchases per item, and the next item is like the last in what the text tells."""
    shop = make_planted(
        users=400, items=500, shared=12, private_text=4, private_behaviour=0, taste=2.5, follow=1.0,
        mean_length=8, seed=0,
    )  # fmt: skip
    split = leave_one_out(shop.interactions)
    return TrainingData(split.train, shop.num_items, split.valid, shop.embeddings), split


def trained_on(planted, **settings):
    data, _ = planted
    chosen = TSSRSettings(
        dim=32, heads=2, hidden=64, cross_layers=2, learning_rate=3e-3, epochs=20, patience=4,
        **settings,
    )  # fmt: skip
    method = tssr.TSSR(chosen)
    method.fit(data)
    return method


@pytest.mark.slow
def test_on_planted_data_content_helps_and_users_are_aligned(planted):
    data, split = planted
    both, ids = trained_on(planted), trained_on(planted, id_only=True)
    found = [
        validate(method, split.test, TrainingData(data.train, data.num_items))
        for method in (both, ids)
    ]
    # .098 against .073; with the rows of the embeddings shuffled it is .045.
    assert found[0] > found[1] + 0.012

    # Users whom no batch has held as they are now: their test histories.
    pads = [torch.from_numpy(history[-10:]).long() for history in split.test.histories[:64]]
    items = torch.nn.utils.rnn.pad_sequence(pads, batch_first=True, padding_value=data.num_items)
    real = items != data.num_items
    with torch.no_grad():
        streams = both.network(items, both.contents[items], real)
    one, two = (
        functional.normalize(tssr.masked_mean(side, real), dim=-1)
        for side in (streams.identity, streams.content)
    )
    right = ((two @ one.T).argmax(1) == torch.arange(64)).float().mean()
    assert right > 10 / 64
