"""TIGER and P5-CID: what they learn on a toy, against brute force over all items."""

import dataclasses

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.generative import P5CID, TIGER, Prefixes, WholeWords
from lcrec.baselines.runs.ranking import rank_cases
from lcrec.baselines.runs.run import load_method, save_method
from lcrec.baselines.settings import P5CIDSettings, TIGERSettings
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions
from lcrec.data.splits import EvalCases
from lcrec.generate.search import supports_shared_prefix
from lcrec.index.item_index import ItemIndex
from lcrec.rankings.predictions import top_items

SMALL = {"dim": 32, "layers": 2, "heads": 2, "hidden": 64, "dropout": 0.0}
ITEMS = 24
INDEX = ItemIndex(np.column_stack(np.unravel_index(np.arange(ITEMS), (4, 6))), (4, 6))


def data_of(sequences, num_items=ITEMS, valid=None):
    named = {f"u{user}": list(map(int, sequence)) for user, sequence in enumerate(sequences)}
    return TrainingData(Interactions.from_sequences(named), num_items, valid, index=INDEX)


def twenty():
    """Ten pairs of items, each in both orders, and after each order another item."""
    pairs = np.random.default_rng(0).permutation(ITEMS)[:20].reshape(10, 2)
    after = np.random.default_rng(1).permutation(ITEMS)[:20]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return np.column_stack([both, after]).tolist()


@pytest.fixture(scope="module", params=[TIGER, P5CID])
def fitted(request):
    """A method trained on `twenty` until it knows them, or so the first test says."""
    kind = request.param
    settings = kind.Settings(
        **SMALL, epochs=220, batch_size=40, learning_rate=3e-3, warmup=0.1, weight_decay=0.0
    )
    if kind is P5CID:
        settings = dataclasses.replace(settings, clusters=3, leaf=6)
    method = kind(settings, seed=0)
    method.fit(data_of(twenty()))
    return method


@pytest.mark.parametrize("kind", [TIGER, P5CID])
def test_training_in_bf16_multiplies_in_it_and_steps_in_float32(kind):
    chosen = kind.Settings(**SMALL, epochs=2, batch_size=40, weight_decay=0.0)
    losses = {}
    for precision in ("fp32", "bf16"):
        method = kind(dataclasses.replace(chosen, precision=precision), seed=0)
        found, build = set(), method.build

        def watched(num_tokens, build=build, found=found):
            network, first = build(num_tokens)
            network.encoder.block[0].layer[1].DenseReluDense.wi.register_forward_hook(
                lambda _, __, output: found.add(output.dtype)
            )
            return network, first

        method.build = watched
        method.fit(data_of(twenty()))
        assert found == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert {weight.dtype for weight in method.network.parameters()} == {torch.float32}
        losses[precision] = [epoch.loss for epoch in method.log.epochs]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)


def last_steps(sequences):
    histories = [np.array(sequence[:2]) for sequence in sequences]
    return histories, np.array([sequence[2] for sequence in sequences])


def test_it_overfits_twenty_sequences_whose_order_decides(fitted):
    histories, targets = last_steps(twenty())
    scores = fitted.score(np.arange(20), histories)
    assert scores.argmax(axis=1).tolist() == targets.tolist()


def brute_force(method, history):
    """The log-probability of every item, each by a plain forward pass."""
    ids = torch.from_numpy(method.token_ids)
    recent = history[-method.settings.max_history :]
    prompt = torch.from_numpy(method.token_ids[recent].ravel())[None].expand(len(ids), -1)
    with torch.no_grad():
        start = torch.zeros(len(ids), 1, dtype=torch.int64)
        logits = method.network(
            input_ids=prompt, decoder_input_ids=torch.cat([start, ids[:, :-1]], dim=1)
        ).logits
    return logits.log_softmax(-1).gather(2, ids[:, :, None]).sum(dim=(1, 2)).numpy()


def test_beams_agree_with_brute_force_over_all_items(fitted, monkeypatch):
    histories = [np.array([3]), np.array([1, 2, 3, 4, 5, 5, 0]), np.array([9, 8])]
    expected = np.stack([brute_force(fitted, history) for history in histories])
    every = dataclasses.replace(fitted.settings, beams=ITEMS + 5)  # more than there are items
    monkeypatch.setattr(fitted, "settings", every)
    assert fitted.score(np.full(3, -1), histories) == pytest.approx(expected, abs=1e-4)
    assert (expected <= 0).all()
    assert (np.exp(expected).sum(axis=1) < 1 + 1e-5).all()  # what is no item keeps its share


def test_lists_hold_real_items_once_best_first(fitted):
    histories, targets = last_steps(twenty())
    cases = EvalCases([f"u{user}" for user in range(20)], histories, targets)
    train = data_of(twenty()).train
    assert fitted.max_list_length == 20
    for ranked, scores in rank_cases(fitted, cases, TrainingData(train, ITEMS), top=100):
        assert len(ranked) == len(set(ranked.tolist())) == 20
        assert set(ranked.tolist()) <= set(range(ITEMS))
        assert (np.diff(scores) <= 0).all()
        assert np.isfinite(scores).all()


def test_items_that_are_masked_take_no_beam(fitted, monkeypatch):
    """A target is not masked, though its user has it."""
    monkeypatch.setattr(fitted, "settings", dataclasses.replace(fitted.settings, beams=10))
    histories = [np.arange(12), np.arange(6, 18), np.array([3])]
    targets = np.array([20, 7, 3])
    cases = EvalCases(["u0", "u1", "u2"], histories, targets)
    data = TrainingData(data_of(twenty()).train, ITEMS, exclude_history=True)
    found = [ranked.tolist() for ranked, _ in rank_cases(fitted, cases, data, top=100)]
    assert [len(ranked) for ranked in found] == [10, 10, 10]
    for ranked, history, target in zip(found, histories, targets, strict=True):
        assert set(ranked) & set(history.tolist()) <= {target}
    every = dataclasses.replace(fitted.settings, beams=ITEMS)
    monkeypatch.setattr(fitted, "settings", every)
    whole = fitted.score(np.full(3, -1), histories)
    hidden = [np.setdiff1d(own, target) for own, target in zip(histories, targets, strict=True)]
    best = [ranked.tolist() for ranked, _ in top_items(whole, 10, hidden)]
    assert [set(ranked) for ranked in found] == [set(ranked) for ranked in best]


def test_users_play_no_part_and_the_last_items_alone_are_read(fitted, monkeypatch):
    history = np.array([1, 2, 3, 4, 5, 6])
    known = fitted.score(np.array([0]), [history])
    assert (fitted.score(np.array([-1]), [history]) == known).all()
    monkeypatch.setattr(fitted, "settings", dataclasses.replace(fitted.settings, max_history=4))
    cut = fitted.score(np.array([0]), [history])
    assert (cut == fitted.score(np.array([0]), [history[-4:]])).all()
    assert not np.allclose(cut, known)


def test_a_model_of_another_catalogue_or_shape_is_refused(fitted, tmp_path):
    source = tmp_path / "inter.json"
    source.write_text("{}")
    inputs = {"inter": source}
    save_method(tmp_path / "m", "stage", fitted, {}, inputs, {})
    kind = type(fitted)
    other = kind(fitted.settings)
    with pytest.raises(InputError, match=r"it has 24 items, the catalogue 25.*fit it again"):
        load_method(tmp_path / "m", other, data_of(twenty(), 25), inputs)
    wider = kind(dataclasses.replace(fitted.settings, dim=48))
    with pytest.raises(InputError, match=r"is \(.*32.*\), not \(.*48.*\)"):
        load_method(tmp_path / "m", wider, data_of(twenty()), inputs)


def test_batches_are_drawn_anew_and_hold_alike_lengths():
    train = data_of([np.arange(length) % ITEMS for length in range(2, 20)]).train
    examples = Prefixes(train, max_history=20)
    rng = np.random.default_rng(0)
    epochs = [list(examples.batches(10, rng)) for _ in range(2)]
    for batches in epochs:
        assert sum(len(targets) for _, targets in batches) == len(examples)
        padding = sum(
            max(map(len, histories)) * len(histories) - sum(map(len, histories))
            for histories, _ in batches
        )
        assert padding < 0.1 * examples.lengths.sum()
    assert [targets.tolist() for _, targets in epochs[0]] != [
        targets.tolist() for _, targets in epochs[1]
    ]


def test_validation_is_on_a_sample_of_users(monkeypatch):
    sizes = []

    def count(method, cases, data):
        sizes.append(len(cases))
        return 0.0

    monkeypatch.setattr("lcrec.baselines.runs.ranking.validate", count)
    histories, targets = last_steps(twenty())
    valid = EvalCases([f"u{user}" for user in range(20)], histories, targets)
    for users in (7, 0):
        settings = TIGERSettings(**SMALL, epochs=1, valid_users=users)
        TIGER(settings).fit(data_of(twenty(), valid=valid))
    assert sizes == [7, 20]  # 0: all


def test_tokens_of_an_item_share_a_whole_word_embedding_or_have_none():
    tokens = torch.nn.Embedding(9, 4)
    words = WholeWords(tokens, first=3, starts=2, most=5)  # items begin with 3 or 4
    ids = torch.tensor([[0, 3, 7, 4, 8, 3, 6, 1, 2]])
    places = (words(ids) - tokens(ids))[0]
    for place, row in zip([0, 1, 1, 2, 2, 3, 3, 0, 0], places, strict=True):
        assert torch.allclose(row, words.words.weight[place], atol=1e-6)

    def fit(**more):
        method = P5CID(P5CIDSettings(**SMALL, epochs=1, clusters=3, leaf=6, **more))
        method.fit(data_of(twenty()))
        return method

    state = fit().state()
    assert state["encoder.embed_tokens.words.weight"].shape == (21, 32)
    assert state["shared.weight"].shape == (1 + sum(state["index.level_sizes"]), 32)
    assert "encoder.embed_tokens.words.weight" not in fit(whole_words=False).state()


def test_short_histories_are_decoded_with_a_shared_prompt(caplog):
    """Its trial asks about more items than such a model numbers."""
    settings = P5CIDSettings(**SMALL, epochs=1, clusters=3, leaf=6, max_history=2)
    method = P5CID(settings)
    method.fit(data_of(twenty()))
    method.score(np.array([0]), [np.array([1, 2])])
    assert supports_shared_prefix(method.network)
    assert "generate" not in caplog.text


@pytest.fixture
def base(tmp_path):
    """A folder with a small T5 and a tokenizer of words."""
    words = ["<pad>", "</s>", "What", "will", "the", "user", "buy", "next?"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "t5"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(5)
    config = T5Config(
        vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_pretrained_t5_is_really_loaded(base):
    pretrained = T5ForConditionalGeneration.from_pretrained(base).state_dict()
    settings = P5CIDSettings(base=base, learning_rate=0.0, epochs=1, clusters=3, leaf=6)
    method = P5CID(settings)
    method.fit(data_of(twenty()))
    name = "decoder.block.0.layer.1.EncDecAttention.k.weight"
    state = method.state()
    assert (state[name] == pretrained[name].numpy()).all()
    assert (state["shared.weight"][:10] == pretrained["shared.weight"].numpy()).all()
    assert method.token_ids.min() == 10  # item tokens come after the words
    assert method.suffix == (2, 3, 4, 5, 6, 7)
    ids, mask = method._encode([np.array([1]), np.array([2, 3])])
    assert ids[:, -6:].tolist() == [[2, 3, 4, 5, 6, 7]] * 2
    depth = method.token_ids.shape[1]
    assert mask.sum(dim=1).tolist() == [depth + 6, 2 * depth + 6]
    scores = method.score(np.array([0, 1]), [np.array([1]), np.array([2, 3])])
    assert (np.isfinite(scores).sum(axis=1) == 20).all()
    copy = P5CID(settings)
    copy.load_state(state, data_of(twenty()))
    again = copy.score(np.array([0, 1]), [np.array([1]), np.array([2, 3])])
    assert (again == scores).all()


def test_what_cannot_be_trained_is_refused(tmp_path, monkeypatch):
    # Told before the items are clustered.
    monkeypatch.setattr("lcrec.baselines.methods.generative.collaborative_index", None)
    with pytest.raises(InputError, match=r"--base .*nowhere: no such folder"):
        P5CID(P5CIDSettings(base=tmp_path / "nowhere")).fit(data_of(twenty()))
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(InputError, match="a T5 is needed, found llama"):
        P5CID(P5CIDSettings(base=tmp_path / "llama")).fit(data_of(twenty()))
    with pytest.raises(InputError, match="every user has one item to train on"):
        TIGER(TIGERSettings(**SMALL)).fit(data_of([[1], [2]]))
