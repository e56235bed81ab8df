"""Every rule of the verdict on either side of its limits, and what they add up to."""

import numpy as np
import pytest

from lcrec.index.quality import measure_index
from lcrec.index.verdict import above_chance, judge

GOOD = {
    "items": 1000,
    "level_sizes": [16, 16, 16],
    "conflicts": {"items": 0, "groups": 0, "largest": 0, "examples": []},
    "last_level_counts": False,
    "distinct_prefixes": [16, 250, 1000],
    "largest_branch": [0.08, 0.01, 0.001],
    "items_alone": [0.0, 0.3, 1.0],
    "codes_used": [16, 16, 16],
    "perplexity": [15.0, 14.0, 12.0],
    "explained_variance": [0.5, 0.65, 0.75],
    "explained_variance_assigned": 0.745,
    "conflict_rate_before_assignment": 0.05,
    "items_moved": 30,
    "neighbours": {"count": 10, "queries": 1000, "kept": [0.7], "chance": [0.06], "most": [1.0]},
    "labels": {"field": "categories", "items": 9, "distinct": 9, "purity": [0.8], "chance": [0.2]},
}


def judge_with(**changes):
    return judge({**GOOD, **changes})


def graded(verdict, grade):
    return [finding.text for finding in verdict.findings if finding.grade == grade]


def test_a_good_index_is_called_good():
    verdict = judge_with()
    assert (verdict.grade, verdict.text) == ("good", "A good index: train on it.")
    assert len(graded(verdict, "good")) == len(verdict.findings) == 7
    assert not any(finding.remedy for finding in verdict.findings)


def neighbours(kept):
    return {"neighbours": {**GOOD["neighbours"], "kept": [kept]}}


def added(new):
    facts = {"items": 7, "moved": 2, "explained_variance_old": 0.8, "explained_variance_new": new}
    return {"added": facts}


def labels(pure, field="categories"):
    return {"labels": {**GOOD["labels"], "field": field, "purity": [pure]}}


@pytest.mark.parametrize(
    ("changes", "grade", "words"),
    [
        (neighbours(0.3), "note", "30.0% of an item's 10 nearest"),
        (neighbours(0.1), "warning", r"chance 6.0%, at most 100%"),
        ({"explained_variance": [0.1, 0.3, 0.6]}, "note", "3 codes explain 60%"),
        ({"explained_variance": [0.1, 0.3, 0.4]}, "warning", "explain 40%"),
        ({"conflict_rate_before_assignment": 0.2}, "note", "20.0% shared"),
        ({"conflict_rate_before_assignment": 0.5}, "warning", "50.0% shared"),
        ({"explained_variance_assigned": 0.72}, "note", "cost 3.0% of the variance"),
        ({"explained_variance_assigned": 0.6}, "warning", "cost 15.0% of the variance"),
        ({"codes_used": [16, 12, 16]}, "note", "Level 2 uses 12 of its 16"),
        ({"codes_used": [5, 12, 16]}, "warning", "Level 1 uses 5 of its 16"),
        ({"perplexity": [6.0, 14, 12]}, "note", "as evenly as over 6 of the 16"),
        ({"perplexity": [3.0, 14, 12]}, "warning", "as evenly as over 3 of the 16"),
        ({"largest_branch": [0.3, 0.1, 0.1]}, "warning", "largest branch holds 30.0%"),
        (labels(0.3), "note", "most common category"),
        (labels(0.21), "warning", "21% of items are of the most common category"),
        (labels(0.21, "brand"), "note", "most common brand"),
        ({"perplexity": [15, 14, 1.2]}, "note", "Level 3 spreads items as evenly as over 1 of its"),
        (added(0.4), "note", "7 items joined later: the codes explain 40% of their variance, 80%"),
        (added(-0.1), "warning", "explain 0% of their"),
        ({"items_alone": [0.96, 0.99, 1]}, "note", "After 1 of 3 codes 96% of items"),
    ],
)
def test_one_weakness_is_named_with_its_remedy(changes, grade, words):
    verdict = judge_with(**changes)
    weak = [finding for finding in verdict.findings if finding.grade != "good"]
    assert [finding.grade for finding in weak] == [grade]
    assert words in weak[0].text
    assert weak[0].remedy
    assert verdict.grade == ("warning" if grade == "warning" else "good")
    if grade == "warning":
        assert "one thing" in verdict.text
        assert verdict.findings[0] == weak[0]


def test_what_else_decides():
    verdict = judge_with(**added(0.6))
    assert verdict.text == "A good index: recommend with it."
    assert judge_with(**added(0.1)).text == (
        "Look at one thing before recommending with this index."
    )
    assert any("2 found their nearest index taken" in text for text in graded(verdict, "good"))
    conflicts = {"items": 5, "groups": 2, "largest": 3, "examples": [[4, 7, 9], [1, 2]]}
    verdict = judge_with(conflicts=conflicts, **neighbours(0.1))
    assert verdict.text == "Not fit for training: items share an index."
    assert "5 of 1,000 items share" in graded(verdict, "warning")[0]
    assert "items 4 and 7" in graded(verdict, "warning")[0]
    codes_only = {name: value for name, value in GOOD.items() if name != "neighbours"}
    del codes_only["explained_variance"]
    del codes_only["explained_variance_assigned"]
    del codes_only["conflict_rate_before_assignment"]
    verdict = judge(codes_only)
    assert verdict.grade == "note"
    assert "they do not tell alone" in verdict.text


def toy(codes, **more):
    codes = np.array(codes)
    return judge(measure_index(codes, tuple((codes.max(axis=0) + 1).tolist()), **more))


def test_ids_of_one_token_are_a_baseline_only():
    verdict = toy([[item] for item in range(30)])
    assert "No two items share a code" in graded(verdict, "warning")[0]
    assert len(graded(verdict, "good")) == len(verdict.findings) - 1 == 2
    assert toy([[0, 0]]).findings[0].text == "Each of the 1 items has an index of its own."


@pytest.mark.parametrize(("pairs", "grade"), [(3, "note"), (8, "warning")])
def test_a_level_that_counts_is_explained(pairs, grade):
    """Of 30 items, two by two share their first two codes, and the third counts them."""
    paths = [[item // 6, item % 6, 0] for item in range(30)]
    for item in range(pairs):
        paths[2 * item + 1] = [*paths[2 * item][:2], 1]
    verdict = toy(paths)
    assert f"({pairs / 15:.1%} of them)" in graded(verdict, grade)[0]
    assert not any("Level 3" in finding.text for finding in verdict.findings)


def test_an_index_that_follows_meaning_is_told_from_a_random_one():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(8), 25)
    embeddings = np.eye(8, 12)[kinds] + rng.normal(scale=0.1, size=(200, 12))
    codes = np.column_stack([kinds, np.tile(rng.permutation(25), 8)])
    assert toy(codes, embeddings=embeddings).grade == "good"
    shuffled = toy(rng.permutation(codes), embeddings=embeddings)
    assert shuffled.grade == "warning"
    assert "nearest neighbours share its first code" in graded(shuffled, "warning")[0]
    assert above_chance(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert above_chance(0.2, 0.2) == 0
    assert above_chance(1, 0.2) == 1
    assert above_chance(0.3, 0.3, 0.3) == 0
