"""EASE and item-kNN: matrices solved by hand, what order and repeats do, and their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.baselines.base import TrainingData
from lcrec.baselines.methods.closed_form import EASE, ItemKNN
from lcrec.baselines.settings import EASESettings, ItemKNNSettings
from lcrec.baselines.shared.purchases import history_rows
from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions

SEQUENCES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=6)
ONE = np.zeros(1, dtype=np.int64)


def fit(method, sequences, num_items):
    named = {str(user): list(sequence) for user, sequence in enumerate(sequences)}
    method.fit(TrainingData(Interactions.from_sequences(named), num_items))
    return method


def plain_counts(sequences, num_items):
    bought = np.zeros((len(sequences), num_items))
    for user, sequence in enumerate(sequences):
        bought[user, sequence] = 1
    return bought


def test_a_history_is_a_row_and_ease_by_hand():
    histories = [np.array([2, 0, 2, 1]), np.array([3])]
    assert history_rows(histories, 5).toarray().tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 1, 0]]
    faded = history_rows(histories, 5, 0.5).toarray()
    # The last item counts 1; item 2 counts where it last stood, one step before.
    assert faded.tolist() == [[0.25, 1, 0.5, 0, 0], [0, 0, 0, 1, 0]]
    assert history_rows(histories, 5, 0.0).toarray()[0].tolist() == [0, 1, 0, 0, 0]
    # Two items: G = [[2 + l, 1], [1, 1 + l]], whose inverse is written down.
    method = fit(EASE(EASESettings(regularisation=1.0)), [[0, 1], [0]], 2)
    # det = 3 * 2 - 1 = 5; P = [[2, -1], [-1, 3]] / 5; B01 = 1/3, B10 = 1/2.
    assert method.weights == pytest.approx(np.array([[0, 1 / 3], [1 / 2, 0]]))
    assert method.score(ONE, [np.array([0])])[0] == pytest.approx([0, 1 / 3])


@given(SEQUENCES, st.sampled_from([0.5, 3.0, 200.0]))
def test_ease_solves_the_papers_problem(sequences, regularisation):
    """B without a diagonal minimises |R - RB|^2 + l |B|^2: no step along any entry helps."""
    method = fit(EASE(EASESettings(regularisation=regularisation)), sequences, 6)
    weights, bought = method.weights.astype(np.float64), plain_counts(sequences, 6)
    assert (np.diag(weights) == 0).all()
    gradient = bought.T @ (bought @ weights - bought) + regularisation * weights
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 1e-4


def test_what_ease_refuses():
    with pytest.raises(InputError, match=r"1,000 items need 0\.0 GB .*--memory-gb 0\.001; raise"):
        fit(EASE(EASESettings(memory_gb=0.001)), [[0, 1]], 1000)
    # Two items that 40,000 users have both: in float32 nothing tells them apart.
    train = Interactions.from_sequences({str(user): [0, 1] for user in range(40_000)})
    with pytest.raises(InputError, match=r"--regularisation 0\.001 is too small.*raise it"):
        EASE(EASESettings(regularisation=0.001)).fit(TrainingData(train, 2))


def test_itemknn_keeps_the_nearest_of_each_item():
    # Item 3 was bought with 0 twice, with 1 and 2 once each; 1 and 2 are equally like it.
    sequences = [[3, 0], [3, 0], [3, 1], [3, 2]]
    method = fit(ItemKNN(ItemKNNSettings(neighbours=2)), sequences, 4)
    assert np.flatnonzero(method.matrix.toarray()[:, 3]).tolist() == [0, 1]  # of equals the lower
    assert np.flatnonzero(method.matrix.toarray()[:, 2]).tolist() == [3]


@given(SEQUENCES, st.integers(1, 6), st.sampled_from([0.0, 2.0]), st.integers(1, 7))
def test_itemknn_agrees_with_plain_loops(sequences, neighbours, shrink, chunk):
    settings = ItemKNNSettings(neighbours=neighbours, shrink=shrink)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lcrec.baselines.methods.closed_form.ITEMS_AT_ONCE", chunk)
        method = fit(ItemKNN(settings), sequences, 6)
    bought = plain_counts(sequences, 6)
    both, counts = bought.T @ bought, bought.sum(axis=0)
    for item in range(6):
        alike = {
            other: both[item, other] / (np.sqrt(counts[item] * counts[other]) + shrink)
            for other in range(6)
            if other != item and both[item, other]
        }
        nearest = sorted(alike, key=lambda other: (-round(alike[other], 6), other))[:neighbours]
        column = method.matrix[:, [item]].toarray().ravel()
        assert {other: column[other] for other in nearest} == pytest.approx(
            {other: alike[other] for other in nearest}
        )
        assert np.count_nonzero(column) == len(nearest)
    summed = method.matrix.toarray()[[0, 2]].sum(axis=0)
    assert method.score(ONE, [np.array([0, 2, 0])])[0] == pytest.approx(summed)


@pytest.mark.parametrize("kind", [EASE, ItemKNN])
@given(SEQUENCES, st.permutations([0, 1, 2, 5]))
def test_order_and_repeats_play_a_part_only_with_decay(kind, sequences, history):
    method = fit(kind(), sequences, 6)
    expected = method.score(ONE, [np.array([0, 1, 2, 5])])
    assert method.score(ONE, [np.array(history)]) == pytest.approx(expected, abs=1e-6)
    assert method.score(ONE, [np.array([*history, 5, 5])]) == pytest.approx(expected, abs=1e-6)
    backwards = [sequence[::-1] for sequence in sequences]
    again = fit(kind(), backwards, 6).score(ONE, [np.array(history)])
    assert again == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [EASE, ItemKNN])
def test_with_decay_the_last_item_speaks_loudest(kind):
    sequences = [[0, 2], [0, 2], [1, 3], [1, 3]]
    method = fit(kind(kind.Settings(history_decay=0.5)), sequences, 4)
    after_0, after_1 = method.score(np.zeros(2, int), [np.array([1, 0]), np.array([0, 1])])
    assert after_0[2] > after_0[3]
    assert after_1[3] > after_1[2]
    assert after_0[2] == pytest.approx(2 * after_0[3])
