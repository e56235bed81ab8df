"""Weighs several rankings for each user by what is known before the answer.

    weight_f(u)  ~  global_f * (P_f(u) / mean of P_f over users, geometric) ^ strength

P_f(u) is the probability that file f is the one that ranks the user's target best: a multinomial
logistic model of facts such as how long the history is, how often its last steps were seen in
training, how much the lists agree, and how sure each file is of its own. It is fitted on the
validation lists; each user counts by the NDCG@10 that the best of the files gains over the worst.
The global weights are `best_weights`, and the strength is the one of the best validation NDCG@10 by
models that have not seen the user (`FOLDS`-fold); a strength of 0 leaves the global weights alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.special import log_softmax

from lcrec.core.errors import InputError
from lcrec.rankings.fusion import Lists, Pool, best_weights, ndcg_of_weights
from lcrec.rankings.metrics import PAD, ndcg_at_k

FOLDS = 5
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SURE = 20  # places of a list that say how sure a file is
AGREE = 10  # places of two lists that may agree
LEAST_WEIGHT = 0.02  # of a file that is worth nothing to all users together, but perhaps to some
STEPS = 500  # of the solver


@dataclass(frozen=True, eq=False)
class AdaptiveWeights:
    """A fitted model.

    Attributes:
        facts: the names of what it goes by, [facts].
        centre, scale: float64 [facts], the mean and the standard deviation on validation.
        slopes: float64 [files, facts].
        intercepts: float64 [files].
        usual: float64 [files], the mean log-probability of each file on validation.
        weights: the global weights, [files], adding up to 1.
        strength: how far users may depart from these.
    """

    facts: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray
    intercepts: np.ndarray
    usual: np.ndarray
    weights: tuple[float, ...]
    strength: float

    def of_users(self, facts: np.ndarray) -> np.ndarray:
        """Return the weights, float64 [users, files], each row adding up to 1.

        Args:
            facts: float [users, facts], as the model was fitted on.
        """
        logits = ((np.asarray(facts) - self.centre) / self.scale) @ self.slopes.T + self.intercepts
        return _weights(self.weights, log_softmax(logits, axis=1) - self.usual, self.strength)

    def to_json(self) -> dict[str, Any]:
        """Return the model as JSON values; `from_json` reads them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AdaptiveWeights":
        """Return the model that `to_json` told."""
        arrays = {
            name: np.array(values[name])
            for name in ("centre", "scale", "slopes", "intercepts", "usual")
        }
        return cls(**{**values, **arrays, "facts": tuple(values["facts"])})


def list_facts(files: Sequence[Lists]) -> tuple[list[str], np.ndarray]:
    """Return what several files' lists tell of themselves: names, and float64 [users, facts].

    Of every file the entropy of its first `SURE` scores, taken for log-probabilities, and its first
    score, on a logarithmic scale that keeps its sign; of every two the share of the first `AGREE`
    items that they have in common.

    Args:
        files: per file the ranked items, int64 [users, length], padded with -1, and their scores,
            float [users, length]; the same users in the same order.
    """
    names, columns = [], []
    for number, (ranked, scores) in enumerate(files, start=1):
        found = ranked[:, :SURE] != PAD
        logits = np.where(found, scores[:, :SURE], -np.inf).astype(np.float64)
        best = np.where(found[:, :1], logits[:, :1], 0.0)
        shares = np.exp(logits - best)
        shares /= np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        names += [f"entropy of file {number}", f"first score of file {number}"]
        columns += [-(shares * logs).sum(axis=1), (np.sign(best) * np.log1p(np.abs(best)))[:, 0]]
    for one in range(len(files)):
        for other in range(one + 1, len(files)):
            left, right = files[one][0][:, :AGREE], files[other][0][:, :AGREE]
            same = (left[:, :, None] == right[:, None, :]) & (left != PAD)[:, :, None]
            names.append(f"agreement of files {one + 1} and {other + 1}")
            columns.append(same.any(axis=2).mean(axis=1))
    return names, np.stack(columns, axis=1)


def fit_adaptive(
    pooled: Pool,
    files: Sequence[Lists],
    targets: np.ndarray,
    names: Sequence[str],
    facts: np.ndarray,
) -> tuple[AdaptiveWeights, dict[str, float]]:
    """Fit the model on validation lists.

    Args:
        pooled: what the files list, as `pool` brings it together.
        files: the same lists, as for `list_facts`.
        targets: int64 [users], or [users, targets] padded with -1.
        names: of the facts.
        facts: float64 [users, facts].

    Returns:
        the model; and the NDCG@10 of the global weights and of the model, the latter by models that
        had not seen the user: `valid_ndcg_at_10_global` and `valid_ndcg_at_10`.

    Raises:
        InputError: fewer than two files are the best for `FOLDS` users or more.
    """
    gains = np.stack([ndcg_at_k(ranked, targets, 10) for ranked, _ in files], axis=1)
    best, worth = gains.argmax(axis=1), gains.max(axis=1) - gains.min(axis=1)
    label = np.where(worth > 0, best, PAD)
    counts = np.bincount(label[label != PAD], minlength=len(files))
    # Of fewer users a fold might have none; such a file is treated like one that is never the best.
    learnt = counts >= FOLDS
    if learnt.sum() < 2:
        told = {place + 1: int(count) for place, count in enumerate(counts) if count}
        raise InputError(
            "--how adaptive: learns from validation users whose target one file ranks higher than "
            f"another, and needs two files that are the best for {FOLDS} users or more; users by "
            f"the number of their best file: {told or 'none'}; give more users, or take --how score"
        )
    label = np.where((label != PAD) & learnt[label], label, PAD)
    centre, scale = facts.mean(axis=0), facts.std(axis=0)
    scale[scale == 0] = 1
    known = (facts - centre) / scale
    order = np.lexsort((np.random.default_rng(0).random(len(label)), label))
    fold = np.empty(len(label), dtype=np.int64)
    fold[order] = np.arange(len(label)) % FOLDS  # every fold has users of every label

    unseen = np.empty((len(label), len(files)))
    for number in range(FOLDS):
        slopes, intercepts = _logistic(known, label, worth, fold != number, len(files))
        own = fold == number
        unseen[own] = log_softmax(known[own] @ slopes.T + intercepts, axis=1)
    shared, value = best_weights(pooled, targets)
    values = [
        ndcg_of_weights(pooled, _weights(shared, unseen - unseen.mean(axis=0), strength), targets)
        for strength in STRENGTHS[1:]
    ]
    values = [value, *values]
    chosen = int(np.argmax(values))
    slopes, intercepts = _logistic(known, label, worth, np.ones(len(label), bool), len(files))
    usual = log_softmax(known @ slopes.T + intercepts, axis=1).mean(axis=0)
    model = AdaptiveWeights(
        *(tuple(names), centre, scale, slopes, intercepts, usual),
        weights=shared,
        strength=STRENGTHS[chosen],
    )
    return model, {"valid_ndcg_at_10_global": value, "valid_ndcg_at_10": values[chosen]}


def _logistic(
    facts: np.ndarray, label: np.ndarray, worth: np.ndarray, rows: np.ndarray, files: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes [files, facts] and intercepts [files] of the users in `rows` with a label."""
    from sklearn.linear_model import LogisticRegression  # takes half a second, which few pay

    rows = rows & (label != PAD)
    fitted = LogisticRegression(max_iter=STEPS).fit(
        facts[rows], label[rows], sample_weight=worth[rows] / worth[rows].mean()
    )
    slopes, intercepts = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # of which scikit-learn models the second alone
        slopes = np.vstack((-slopes, slopes)) / 2
        intercepts = np.concatenate((-intercepts, intercepts)) / 2
    all_slopes, all_intercepts = np.zeros((files, facts.shape[1])), np.full(files, -9.0)
    all_slopes[fitted.classes_], all_intercepts[fitted.classes_] = slopes, intercepts
    return all_slopes, all_intercepts


def _weights(shared: Sequence[float], departure: np.ndarray, strength: float) -> np.ndarray:
    """Return weights [users, files] by how users depart from the usual, [users, files]."""
    given = np.asarray(shared, dtype=np.float64)
    if strength == 0:
        return np.tile(given, (len(departure), 1))
    logits = np.log(np.maximum(given, LEAST_WEIGHT)) + strength * departure
    return np.exp(log_softmax(logits, axis=1))
