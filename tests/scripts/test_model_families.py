"""The table of model families holds every family, and each does what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "lcrec" / "modeling" / "README.md"
ROW = re.compile(r"^\| (?:work|full: |are ).* \(\d+\) \| (.*) \|$", re.MULTILINE)
NAMES = [name for names in ROW.findall(README.read_text("utf-8")) for name in names.split(", ")]


@pytest.fixture(scope="module")
def families(load_script):
    return load_script("scripts/model_families.py")


@pytest.fixture(scope="module")
def trial(families, tmp_path_factory):
    return families.Trial(tmp_path_factory.mktemp("families"))


def test_the_table_is_whole(families):
    text = README.read_text("utf-8")
    outcomes = families.outcomes_of(text)
    assert sorted(NAMES) == sorted(outcomes) == families.FAMILIES
    assert families.table(outcomes) in text
    assert sum(outcome == "work" for outcome in outcomes.values()) >= 50
    assert {"mixtral", "mamba", "jamba", "qwen3_next", "bart"} <= outcomes.keys()


def test_what_a_refusal_says(families):
    for message, expected in (
        ("--base: models of the family x read y (9 z), so a; b", "are refused: they read y"),
        ("--mode lora: models of the family x cannot be trained so (z); b", "cannot be trained"),
        ("--base: models of the family x cannot be decoded (z); no", "cannot be decoded"),
        ("--base: models of the family x have rows that are none, so no", "rows that are none"),
    ):
        assert families.refusal_in_words(message).endswith(expected)
    with pytest.raises(ValueError, match="not the refusal of a family: --base nowhere"):
        families.refusal_in_words("--base nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_family(families, trial, name):
    assert trial.outcome(name) == families.outcomes_of(README.read_text("utf-8"))[name]
