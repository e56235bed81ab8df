"""A checkpoint of version 0.1.0, whose sidecar names neither kind nor format: it is still read.

`old_checkpoint/` holds a shop of 20 users, its index, a random base, the LoRA checkpoint that
0.1.0 trained on them, and the ranking that 0.1.0 made with it.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lcrec.core.artifacts import read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.generate import __main__ as generate
from lcrec.generate.recommender import Recommender
from lcrec.modeling.checkpoint import CheckpointFacts, load_checkpoint

KEPT = Path(__file__).parent / "old_checkpoint"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The current folder, with a copy of everything: the checkpoint names its base relatively."""
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert read_json(Path("model/lcrec.json")).keys().isdisjoint({"kind", "format"})
    return tmp_path


def test_it_ranks_as_it_did_and_keeps_its_facts(old):
    recorded = read_json(old / "ranking.json")
    ranking = Recommender.from_pretrained("model").recommend(recorded["histories"], 10)
    assert ranking.items.tolist() == recorded["items"]
    assert np.allclose(ranking.scores, recorded["scores"], atol=1e-4)
    facts = load_checkpoint(Path("model")).facts
    assert (facts.max_history, facts.max_text_words) == (4, 12)
    assert facts.tasks == ("seqrec=24", "item2index=8")
    assert (facts.base, facts.quantize) == ("base", "none")
    assert facts.validation_ndcg_at_10 == pytest.approx(0.0886, abs=1e-4)
    record = read_provenance(Path("model"))
    assert (record["kind"], record["format"]) == ("checkpoint", 1)


def test_its_command_finds_it_up_to_date(old, recipe, capsys):
    shutil.copytree("model/prompts", "prompts")  # as they were; no stage reads what it writes to
    settings = (
        "--data data --index index --base base --prompts prompts --output model --epochs 2",
        "--learning-rate 0.01 --max-history 4 --max-text-words 12 --max-length 512 --lora-rank 2",
        "--validation-users 20 --tasks seqrec=24 item2index=8 --share-prefix off",
    )
    words = " ".join(settings).split()
    files = [path for path in old.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    recipe.main(words)
    assert "model is up to date." in capsys.readouterr().out
    after = [path for path in old.rglob("*") if path.is_file()]
    assert {path: path.stat().st_mtime_ns for path in after} == before


def test_generate_takes_it(old, capsys):
    words = "--model model --data data --output new.jsonl"
    generate.main(words.split())
    assert "Wrote new.jsonl" in capsys.readouterr().out
    record = read_json(Path("new.lcrec.json"))
    assert (record["kind"], record["format"]) == ("predictions", 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_history", "20", "it tells '20' as 'max_history'"),
        ("tasks", None, "it tells None as 'tasks'"),
        ("max_text_words", [60], r"it tells \[60\] as 'max_text_words'"),
    ],
)
def test_a_record_that_was_edited_by_hand(old, name, value, message):
    path = Path("model/lcrec.json")
    record = read_json(path)
    (record if name in record else record["config"])[name] = value
    write_json(path, record)
    with pytest.raises(InputError, match=f"lcrec.json: not a checkpoint's record, {message}"):
        CheckpointFacts.read(Path("model"))
