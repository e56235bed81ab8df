"""Real and distinct items from random weights, whatever the batch; what a prompt shows; errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.cooccurrence import NearbyItems
from lcrec.data.folder import Interactions
from lcrec.generate.fusion import CountedFusion, FusionSettings
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.index.item_index import ItemIndex
from lcrec.modeling.base import load_base
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.prompts.encoder import extend_tokenizer, item_token_ids, vocabulary_ids
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS, PromptSet
from lcrec.prompts.rows import draw_rows, tokenise_rows
from lcrec.prompts.tasks import TASKS, TaskData

ITEMS = 48
HISTORIES = st.lists(
    st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=12), min_size=1, max_size=6
)


@pytest.fixture(scope="module")
def random_model(base, index):
    """An untrained model that knows the item tokens, and its tokenizer."""
    model, tokenizer = load_base(str(base))
    extend_tokenizer(tokenizer, index)
    resize_embeddings(model, tokenizer, index)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def recommender(random_model, index, prompts):
    return Recommender(*random_model, index, prompts, max_history=4, tasks=TASKS)


def check_lists(ranking, k):
    """Every list holds k real and distinct items, and its scores never rise."""
    assert ranking.items.shape == ranking.scores.shape == (len(ranking.items), k)
    assert ranking.items.dtype == np.int64
    assert ranking.scores.dtype == np.float32
    for items, scores in zip(ranking.items.tolist(), ranking.scores, strict=True):
        assert len(set(items)) == k
        assert set(items) <= set(range(ITEMS))
        assert (np.diff(scores) <= 0).all()
        assert scores.max() < 0


@given(histories=HISTORIES, k=st.integers(1, ITEMS))
@settings(max_examples=25, deadline=None)
def test_random_weights_give_real_and_distinct_items(recommender, histories, k):
    check_lists(recommender.recommend(histories, k), k)


def test_scores_are_those_of_plain_forward_passes(recommender, random_model, index):
    model, tokenizer = random_model
    ranking = recommender.recommend([[5, 9]], ITEMS)
    (prompt,) = recommender.encode([RankingRequest([5, 9])])
    spelt = item_token_ids(tokenizer, index)
    expected = []
    for item in range(ITEMS):
        ids = torch.tensor([[*prompt, *spelt[item]]])
        with torch.no_grad():
            logs = model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected.append(sum(logs[n, token].item() for n, token in enumerate(spelt[item])))
    assert np.allclose(ranking.scores[0], np.sort(expected)[::-1], atol=1e-4)
    assert np.allclose(np.array(expected)[ranking.items[0]], ranking.scores[0], atol=1e-4)


def test_a_prompt_shows_what_others_had_near_the_last_items(random_model, index, prompts, tmp_path):
    (tmp_path / "seqrec.yaml").write_text(
        "task: seqrec\ntemplates:\n- id: near\n"
        "  question: \"{{ history | join }} near {{ neighbours[:2] | join(' ') }}\"\n"
        '  answer: "{{ target }}"\n'
    )
    showing = PromptSet.load(tmp_path, base=SHIPPED_PROMPTS)
    counted = NearbyItems.count(Interactions.from_sequences({"u": [5, 9, 7, 8]}), ITEMS)
    own = Recommender(*random_model, index, showing, max_history=4, nearby=counted)
    asked, unknown = own.encode([RankingRequest([1, 5]), RankingRequest([3])])
    text = random_model[1].decode(asked)
    near = f"{index.text(1)}{index.text(5)} near {index.text(9)} {index.text(7)}"
    assert near.replace(" ", "") in text.replace(" ", "")
    question = random_model[1].decode(unknown).replace(" ", "")
    assert f"{index.text(3)}near" in question  # nothing is near it, and it is asked all the same
    assert index.text(9) not in question
    check_lists(own.recommend([[1, 5], [3]], 3), 3)
    with pytest.raises(InputError, match=r"near: shows neighbours, .* has no counts"):
        Recommender(*random_model, index, showing, max_history=4).recommend([[1]], 3)


@given(histories=HISTORIES)
@settings(max_examples=15, deadline=None)
def test_the_history_can_be_excluded(recommender, histories):
    ranking = recommender.recommend(histories, ITEMS, exclude_history=True)
    everything = recommender.recommend(histories, ITEMS)
    for row, history in enumerate(histories):
        found = ranking.items[row][ranking.items[row] >= 0].tolist()
        # What is left keeps its order; unused places hold -1 and -inf.
        assert found == [item for item in everything.items[row].tolist() if item not in history]
        assert (ranking.items[row][len(found) :] == -1).all()
        assert (ranking.scores[row][len(found) :] == -np.inf).all()
        assert np.isfinite(ranking.scores[row][: len(found)]).all()


def test_only_the_latest_items_are_shown(recommender):
    short, long = [7, 8, 9, 10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    prompts = recommender.encode([RankingRequest(own) for own in (short, long, long[5:])])
    assert prompts[0] == prompts[1] == prompts[2]
    ranking = recommender.recommend([short, long], ITEMS)
    assert ranking.items[0].tolist() == ranking.items[1].tolist()
    # What is not shown any more still counts as had.
    without = recommender.recommend([long], ITEMS - len(long), exclude_history=True)
    assert not set(long) & set(without.items[0].tolist())


def test_one_item_repeated_items_and_no_history(recommender, index, random_model):
    tokenizer = random_model[1]
    for history in ([4], [4, 4], np.array([4], dtype=np.int32)):
        check_lists(recommender.recommend([history], 10), 10)
        text = tokenizer.decode(recommender.encode([RankingRequest(history)])[0])
        assert text.count(index.texts[4]) == len(history)
    ranking = recommender.recommend([], 7)
    assert ranking.items.shape == ranking.scores.shape == (0, 7)


def test_batches_change_nothing(random_model, index, prompts, split):
    histories = split.test.histories
    budgets = (1, 300, 100_000)
    rankings = []
    for budget in budgets:
        own = Recommender(*random_model, index, prompts, max_history=4, max_batch_tokens=budget)
        sizes = [
            len(rows) for rows in own.plan_batches(own.encode(list(map(RankingRequest, histories))))
        ]
        assert {1: max(sizes) == 1, 300: 1 < max(sizes) < 60, 100_000: sizes == [60]}[budget]
        rankings.append(own.recommend(histories, 20))
    for ranking in rankings[1:]:
        assert (ranking.items == rankings[0].items).all()
        assert np.allclose(ranking.scores, rankings[0].scores, atol=1e-4)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 200))
def test_a_plan_covers_every_row_within_the_budget(recommender, lengths, budget):
    recommender.max_batch_tokens = budget
    batches = recommender.plan_batches([[0] * length for length in lengths])
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        width = max(lengths[row] for row in rows)
        assert len(rows) == 1 or width * len(rows) <= budget
    recommender.max_batch_tokens = 4096


def test_wordings_and_beams_matter(recommender, prompts):
    first, other = prompts.for_task("seqrec", "eval")[:2]
    plain = recommender.recommend([[1, 2]], ITEMS)
    assert (recommender.recommend([[1, 2]], ITEMS, template=first).items == plain.items).all()
    assert (recommender.recommend([[1, 2]], ITEMS, template=other).items != plain.items).any()
    few = recommender.recommend([[1, 2]], 5, num_beams=5)
    many = recommender.recommend([[1, 2]], 5, num_beams=ITEMS)
    assert (many.scores >= few.scores - 1e-5).all()
    default = recommender.recommend([[1, 2]], 5)
    assert (default.items == recommender.recommend([[1, 2]], 5, num_beams=20).items).all()


def test_training_prompts_are_inference_prompts(recommender, random_model, shop_items, split):
    """Every training row of seqrec has the prompt that `recommend` makes, token for token."""
    data = TaskData(shop_items, split.train, recommender.index, max_history=4)
    rows = draw_rows(data, recommender.prompts, {"seqrec": 150.0}, 0, 0)
    dataset = tokenise_rows([rows], recommender.request_encoder.prompt_encoder, 600, 8)
    tokenizer = random_model[1]
    asked = 0
    by_prompt = {}
    for row in dataset:
        by_prompt[tuple(row["input_ids"][: row["prompt_length"]])] = row["template_id"]
    for sequence in split.train:
        for end in range(1, len(sequence)):
            for template in recommender.prompts.for_task("seqrec", "train"):
                (ids,) = recommender.encode([RankingRequest(sequence[:end], template=template)])
                if by_prompt.pop(tuple(ids), None) == template.id:
                    asked += 1
                    assert tokenizer.eos_token_id not in ids
    assert asked > 100
    assert not by_prompt


def test_each_request_of_a_mixed_call_gets_what_it_gets_alone(recommender):
    histories = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
    ks = [3, 25, 10, 40, 1]  # 20, 25, 20, 40 and 20 beams
    allow = [None, range(10, 40), [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], None, range(10, 40)]
    deny = [[0, 1, 2], None, None, [47], []]
    mixed = recommender.recommend(histories, ks, allow=allow, deny=deny)
    assert mixed.items.shape == mixed.scores.shape == (5, 40)
    for row, k in enumerate(ks):
        alone = recommender.recommend([histories[row]], k, allow=[allow[row]], deny=[deny[row]])
        assert mixed.items[row, :k].tolist() == alone.items[0].tolist()
        assert np.allclose(mixed.scores[row, :k], alone.scores[0], atol=1e-4)
        assert (mixed.items[row, k:] == -1).all()
        assert (mixed.scores[row, k:] == -np.inf).all()
        may = set(range(ITEMS) if allow[row] is None else allow[row]) - set(deny[row] or ())
        assert set(alone.items[0].tolist()) <= may
    ranking = recommender.recommend(
        [[1, 2], [3]], 8, allow=[range(10), None], deny=[[5], [6]], exclude_history=True
    )
    assert sorted(ranking.items[0].tolist()) == [-1, 0, 3, 4, 6, 7, 8, 9]
    assert not {3, 6} & set(ranking.items[1].tolist())


def test_search_asks_in_words(recommender, random_model):
    tokenizer = random_model[1]
    queries = ["a thing for a <|im_end|> desk", "a warm\ncoat"]
    ranking = recommender.search(queries, k=ITEMS)
    check_lists(ranking, ITEMS)
    assert ranking.items[0].tolist() != ranking.items[1].tolist()
    plain, known = (
        recommender.encode(list(map(RankingRequest, histories, queries)))
        for histories in ([(), ()], [[], [3, 4]])
    )
    assert plain[0] == known[0]
    assert "a thing for a < |im_end|> desk" in tokenizer.decode(plain[0])
    assert "a warm coat" in tokenizer.decode(known[1])
    # With a history, the wording that speaks of both is taken.
    texts = recommender.index.texts
    assert texts[3] in tokenizer.decode(known[1])
    assert texts[3] not in tokenizer.decode(plain[1])
    excluded = recommender.search(queries, histories=[[], [3, 4]], k=46, exclude_history=True)
    assert not {3, 4} & set(excluded.items[1].tolist())


def test_explanations_are_words(recommender, index):
    first, second, third = recommender.explain([[1, 2], [], [1, 2]], [[5, 6], [6], []])
    assert len(first.titles) == 2
    assert first.titles[1] == second.titles[0]
    assert second.preference is None
    assert third == type(third)([], first.preference)
    for text in (*first.titles, first.preference):
        assert isinstance(text, str)
        assert not any(token in text for token in index.vocabulary)


def test_an_explanation_is_the_likeliest_continuation(recommender, random_model):
    """Greedy decoding by hand, without a cache, item tokens ruled out."""
    model, tokenizer = random_model
    (ids,) = recommender.request_encoder.titles([7], 8)
    banned = vocabulary_ids(tokenizer, recommender.index)
    answer = []
    while len(answer) < 8:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0, -1]
        logits[banned] = -torch.inf
        answer.append(int(logits.argmax()))
        if answer[-1] == tokenizer.eos_token_id:
            break
    expected = tokenizer.decode(answer, skip_special_tokens=True).strip()
    explained = recommender.explain([[1], []], [[7], [3, 7]], max_new_tokens=8)
    assert explained[0].titles == [expected]
    assert explained[1].titles[1] == expected


def test_what_was_not_learnt_is_not_asked(random_model, index, prompts):
    learnt = Recommender(*random_model, index, prompts, max_history=4)
    with pytest.raises(InputError, match=r"not trained on itemsearch .*--tasks itemsearch seqrec"):
        learnt.search(["a desk"])
    with pytest.raises(InputError, match="not trained on index2item"):
        learnt.explain([[1]], [[2]])
    tasks = ["seqrec", "index2item"]
    partly = Recommender(*random_model, index, prompts, max_history=4, tasks=tasks)
    (explained,) = partly.explain([[1]], [[2]])
    assert explained.preference is None
    assert len(explained.titles) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_lists_may_leave_fewer_than_k(recommender, monkeypatch, fused):
    if fused:
        counted = Interactions.from_sequences({"ann": [2, 1, 5]})
        fusion = CountedFusion.count(FusionSettings(), counted, ITEMS)
        monkeypatch.setattr(recommender, "fusion", fusion)
    ranking = recommender.recommend(
        [[0], [1], [2], [3]],
        k=5,
        allow=[[1, 2], [], [1, 2, 3], None],
        deny=[None, None, [2, 9], range(46)],
    )
    left = [{1, 2}, set(), {1, 3}, {46, 47}]
    for items, scores, own in zip(ranking.items, ranking.scores, left, strict=True):
        found = items >= 0
        assert set(items[found]) == own
        assert (items[len(own) :] == -1).all()
        assert np.isfinite(scores[found]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"allow": [None, [48]]}, "allow list of request 1: item 48"),
        ({"deny": [None]}, "deny: has 1 lists for 2 requests"),
        ({"k": [3]}, r"k: expected one number from 1 up, or 2 of them, found \[3\]"),
        ({"k": [3, 0]}, "k: expected one number"),
        ({"k": 0}, "k: expected one number"),
        ({"k": [1.5, 2]}, "k: expected one number"),
        ({"k": True}, "k: expected one number"),
        ({"k": "five"}, "k: expected one number"),
        ({"num_beams": 0}, "num_beams: expected one number from 1 up, found 0"),
        ({"num_beams": "3"}, "num_beams: expected one number from 1 up, found '3'"),
        ({"num_beams": 2}, "2 beams cannot give 3 items"),
        ({"reserve_new": "1"}, "reserve_new: expected one number from 0 up, found '1'"),
        ({"template": "next-short"}, "template: expected a template, .* found 'next-short'"),
        ({"allow": [5, 6]}, "allow list of request 0: expected item ids, found 5"),
    ],
)
def test_lists_that_cannot_be(recommender, arguments, message):
    with pytest.raises(InputError, match=message):
        recommender.recommend([[0], [1]], **{"k": 3, **arguments})


@pytest.mark.parametrize(
    ("queries", "histories", "message"),
    [
        (["a desk", ""], None, "query 1 is empty"),
        (["a desk", " \x00 "], None, "query 1 is empty"),
        (["a desk"], [[48]], "history 0: item 48"),
        (["a desk", 3], None, "query 1: expected text, found 3"),
        ([None], None, "query 0: expected text, found None"),
        (["a desk"], [[1], [2]], "2 histories for 1 queries"),
        ("a desk", None, "queries: expected a list of texts, found 'a desk'"),
    ],
)
def test_queries_that_cannot_be(recommender, queries, histories, message):
    with pytest.raises(InputError, match=message):
        recommender.search(queries, histories=histories)


def test_prompts_beyond_the_context(random_model, index, prompts):
    own = Recommender(
        *random_model, index, prompts, max_history=4, max_text_words=1000, tasks=TASKS
    )
    own.request_encoder.max_history = 1000
    with pytest.raises(InputError, match=r"request 1: its prompt has \d+ tokens .* 512 of the"):
        own.recommend([[1], [1] * 400])
    with pytest.raises(InputError, match="more than the 512 of the model's context"):
        own.search(["chair " * 900])
    with pytest.raises(InputError, match="the answer up to 600"):
        own.explain([[1]], [[1]], max_new_tokens=600)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history 1 is empty"),
        ([3, 48], "history 1: item 48 is not in the catalogue, whose ids are 0 to 47"),
        ([-1], "history 1: item -1 is not in the catalogue"),
        ([2**70], "history 1: item .* is not in the catalogue"),
        (["3"], "history 1: '3' is no item id"),
        ([1.0], "history 1: 1.0 is no item id"),
        ([None], "history 1: None is no item id"),
        ([True], "history 1: True is no item id"),
        (np.array([[1, 2]]), r"history 1: array\(\[1, 2\]\) is no item id"),
        ("12", "history 1: expected item ids, found '12'"),
        (7, "history 1: expected item ids, found 7"),
        (None, "history 1: expected item ids, found None"),
    ],
)
def test_histories_that_cannot_be(recommender, history, message):
    with pytest.raises(InputError, match=message):
        recommender.recommend([[0], history])


def test_requests_that_cannot_be(recommender, prompts, random_model, index):
    with pytest.raises(InputError, match="49 items wanted, but the catalogue has 48"):
        recommender.recommend([[0]], 49)
    with pytest.raises(InputError, match="5 beams cannot give 6 items"):
        recommender.recommend([[0]], 6, num_beams=5)
    with pytest.raises(InputError, match="num_beams is 49"):
        recommender.recommend([[0]], 6, num_beams=49)
    search, nxt = prompts.for_task("itemsearch", "eval")[0], prompts.for_task("seqrec", "eval")[0]
    with pytest.raises(InputError, match=f"{search.id}: belongs to itemsearch, not seqrec"):
        recommender.recommend([[0]], template=search)
    with pytest.raises(InputError, match=f"{nxt.id}: belongs to seqrec, not itemsearch"):
        recommender.search(["a desk"], template=nxt)
    with pytest.raises(InputError, match="constraint: 'tree' is none of trie, level, none"):
        Recommender(*random_model, index, prompts, max_history=4, constraint="tree")


def test_numbers_and_lists_of_numpy(recommender):
    plain = recommender.recommend([[1], [2]], 4, deny=[[3, 4], [5, 6]], exclude_history=True)
    lists = np.array([[3, 4], [5, 6]])
    same = recommender.recommend(
        np.array([[1], [2]]), np.int64(4), deny=lists, exclude_history=True
    )
    assert (same.items == plain.items).all()


def test_from_pretrained(checkpoint, split, prompts):
    loaded = Recommender.from_pretrained(checkpoint)
    assert loaded.request_encoder.max_history == 4
    check_lists(loaded.recommend(split.test.histories, 10), 10)
    reworded = Recommender.from_pretrained(str(checkpoint), prompts=prompts, device="cpu")
    assert reworded.prompts is prompts
    check_lists(reworded.recommend([[1]], 3), 3)


def test_items_that_were_added_are_recommended_by_the_same_checkpoint(checkpoint, index, tmp_path):
    codes = np.concatenate([index.codes, [[0, 0, 4], [3, 3, 3]]]).astype(np.int32)
    ItemIndex(codes, index.level_sizes).save(tmp_path)
    old = Recommender.from_pretrained(checkpoint)
    loaded = Recommender.from_pretrained(checkpoint, index=tmp_path)
    everything = loaded.recommend([[3], [0, 49]], 50)
    assert sorted(everything.items[0].tolist()) == list(range(50))
    # What was there before keeps its score, and its place among its like.
    before = everything.items[0][everything.items[0] < ITEMS]
    ranking = old.recommend([[3]], ITEMS)
    assert before.tolist() == ranking.items[0].tolist()
    scores = everything.scores[0][everything.items[0] < ITEMS]
    np.testing.assert_allclose(scores, ranking.scores[0], atol=1e-4)
    assert loaded.recommend([[3]], 2, allow=[[48, 49]]).items.min() >= ITEMS

    # Places can be reserved for them; other requests of the call are as before.
    plain = RankingRequest(history=[3], k=8, deny=[48])
    alone, reserved = loaded.rank([plain, replace(plain, reserve_new=2)]).items
    assert alone.tolist() == loaded.rank([plain]).items[0].tolist()
    assert 49 in reserved
    assert 48 not in reserved
    olds = [[item for item in row if item < ITEMS] for row in (reserved.tolist(), alone.tolist())]
    assert olds[0] == olds[1][: len(olds[0])]
    both = loaded.recommend([[3]], 8, reserve_new=2).items[0]
    assert {48, 49} <= set(both.tolist())
    with pytest.raises(InputError, match="trained on every item, so none is new"):
        old.recommend([[3]], 8, reserve_new=2)
    with pytest.raises(InputError, match="reserve_new: 9 of 8 places"):
        loaded.recommend([[3]], 8, reserve_new=9)


def test_an_index_or_tokenizer_that_does_not_belong(
    checkpoint, index, tmp_path, base, prompts, monkeypatch
):
    codes = index.codes.copy()
    codes[7] = (3, 3, 4)
    ItemIndex(codes, index.level_sizes).save(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("load_pair", "load_model"):  # it is told before any weights are loaded
            patch.setattr(f"lcrec.modeling.checkpoint.{name}", None)
        with pytest.raises(InputError, match=r"1 items have another index than .* as item 7"):
            Recommender.from_pretrained(checkpoint, index=tmp_path)
    model, tokenizer = load_base(str(base))
    with pytest.raises(InputError, match="model and index do not belong together"):
        Recommender(model, tokenizer, index, prompts, max_history=4)
