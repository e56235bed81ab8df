"""Weights of each user's own: learnt where the facts tell the files apart, and nowhere else."""

import json

import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.rankings.adaptive import STRENGTHS, AdaptiveWeights, fit_adaptive, list_facts
from lcrec.rankings.fusion import fuse, pool
from lcrec.rankings.metrics import PAD

USERS = 200
# The target is item 9: one file has it first where the fact is 0, the other where it is 1.
RIGHT, WRONG = [9, 1, 2], [3, 4, 5]
FACT = np.arange(USERS) % 2
SCORES = np.tile(np.array([3.0, 2.0, 1.0], dtype=np.float32), (USERS, 1))
FILES = [
    (np.where(FACT[:, None] == side, RIGHT, [item + 3 * side for item in WRONG]), SCORES)
    for side in (0, 1)
]
TARGETS = np.full(USERS, 9)


def fitted(fact, files=FILES):
    facts = fact[:, None].astype(float)
    return facts, *fit_adaptive(pool(files, "score"), files, TARGETS, ["fact"], facts)


def test_each_user_gets_the_file_that_knows():
    facts, model, figures = fitted(FACT)
    weights = model.of_users(facts)
    assert weights.sum(axis=1) == pytest.approx(np.ones(USERS))
    assert (weights.argmax(axis=1) == FACT).all()
    assert figures["valid_ndcg_at_10"] == 1 > figures["valid_ndcg_at_10_global"]
    joint = fuse(pool(FILES, "score"), weights, 1)
    assert [items.tolist() for items, _ in joint] == [[9]] * USERS
    read = AdaptiveWeights.from_json(json.loads(json.dumps(model.to_json())))
    assert (read.of_users(facts) == weights).all()


def test_a_fact_that_tells_nothing_leaves_the_weights_for_everybody():
    facts, model, figures = fitted(np.arange(USERS) // 2 % 2)  # half of either
    assert figures["valid_ndcg_at_10"] >= figures["valid_ndcg_at_10_global"]
    spread = model.of_users(facts).std(axis=0)
    assert spread == pytest.approx(np.zeros(2), abs=0.05)
    assert model.strength in STRENGTHS


@pytest.mark.parametrize("count", [0, 3])
def test_three_files_of_which_one_is_hardly_ever_best(count):
    seldom = np.tile([10, 11, 12], (USERS, 1))
    ranked = [items.copy() for items, _ in FILES]
    seldom[:count], ranked[0][:count], ranked[1][:count] = RIGHT, WRONG, WRONG
    files = [(items, SCORES) for items in (ranked[0], seldom, ranked[1])]
    facts, model, _ = fitted(FACT, files)
    weights = model.of_users(facts)
    assert (weights.argmax(axis=1) == 2 * FACT).all()
    assert weights[:, 1] == pytest.approx(np.full(USERS, model.weights[1]), abs=0.1)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([FILES[0], FILES[0]], "none"),
        ([FILES[0], (np.tile(WRONG, (USERS, 1)), SCORES)], r"\{1: 100\}"),
    ],
)
def test_nothing_to_learn_from(files, told):
    with pytest.raises(InputError, match=f"number of their best file: {told}"):
        fitted(FACT, files)


def test_what_lists_tell_of_themselves():
    files = [
        (np.array([[5, 2], [1, PAD]]), np.array([[0.0, 0.0], [-4.0, -np.inf]])),
        (np.array([[2, 7], [PAD, PAD]]), np.array([[9.0, -99.0], [-np.inf, -np.inf]])),
    ]
    names, facts = list_facts(files)
    assert names == [
        "entropy of file 1", "first score of file 1", "entropy of file 2", "first score of file 2",
        "agreement of files 1 and 2",
    ]  # fmt: skip
    log = np.log
    assert facts == pytest.approx(
        np.array([[log(2), 0, 0, log(10), 1 / 2], [0, -log(5), 0, 0, 0]]), abs=1e-12
    )
