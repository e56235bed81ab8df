"""Scores of wordings: by hand, and on a trained checkpoint against `recommend`."""

import re

import numpy as np
import pytest
import yaml

from lcrec.core.errors import InputError
from lcrec.data.splits import EvalCases
from lcrec.evaluate.templates import Score, print_scores, score_templates
from lcrec.generate.recommender import Ranking, Recommender
from lcrec.prompts.__main__ import main
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.templates import Template

CASES = EvalCases(["u", "v"], [np.array([0]), np.array([1])], np.array([3, 4], dtype=np.int32))


def wording(name, question, use="both"):
    return Template(name, "seqrec", use, question, "{{ target }}")


GOOD, BAD = wording("good", "{{ history | first }}"), wording("bad", "{{ history | last }}")


class Oracle:
    """Ranks the target first for `good`, fourth for u and not at all for v otherwise."""

    index = range(30)

    def encode(self, requests):
        return [[request.history[0], request.template.id == "good"] for request in requests]

    def rank(self, requests, prompt_ids, *, count_done):
        lists = {(0, True): [3, 5], (1, True): [4, 5], (0, False): [7, 8, 9, 3], (1, False): [3]}
        ranked = np.full((len(requests), requests[0].k), -1)
        for row, ids in enumerate(prompt_ids):
            ranked[row, : len(lists[tuple(ids)])] = lists[tuple(ids)]
        return Ranking(ranked, ranked)


def test_every_wording_is_asked_of_the_same_users():
    known = PromptSet((GOOD,), "", "", {})
    good, bad = score_templates(Oracle(), [GOOD, BAD], CASES, known)
    assert good.hits.tolist() == good.ndcg.tolist() == [1, 1]
    assert bad.hits.tolist() == [1, 0]
    assert bad.ndcg.tolist() == pytest.approx([1 / np.log2(5), 0])
    assert (good.kind, bad.kind) == ("trained", "new")


def test_what_the_model_knows_of_a_wording():
    held = wording("held", "{{ history | length }}", use="eval")
    known = PromptSet((GOOD, held), "", "", {})
    asked = [
        GOOD,
        wording("another-id", "{{ history | first }}\n"),
        held,
        wording("good", "{{ history | last }}"),
        BAD,
    ]
    kinds = [score.kind for score in score_templates(Oracle(), asked, CASES, known)]
    assert kinds == ["trained", "trained", "eval-only", "reworded", "new"]


def scored(name, ndcg):
    return Score(wording(name, name), "trained", (ndcg > 0).astype(float), ndcg)


RNG = np.random.default_rng(0)
USUAL = RNG.random(400)


def test_a_default_stays_unless_another_is_better_beyond_chance(capsys):
    default, better = scored("default", USUAL), scored("better", USUAL + 0.1)
    assert print_scores([default, better], default, 0) is better
    shown = capsys.readouterr().out
    assert re.search(r"\nbetter .*\ndefault .*<- the default", shown)
    assert "better: NDCG@10 +0.1000 against the default, default; interval +0.1000" in shown
    assert "beyond chance" in shown
    noise = RNG.normal(0, 0.3, 400)
    lucky = USUAL + noise - noise.mean() + 0.01
    default, other = scored("default", USUAL), scored("lucky", lucky)
    assert print_scores([other, default], default, 0) is default
    shown = capsys.readouterr().out
    assert "Best is lucky: NDCG@10 +0.0100" in shown
    assert "within chance" in shown
    default = scored("default", USUAL)
    assert print_scores([scored("worse", USUAL - 0.1)], default, 0) is default
    assert "Best is the default, default." in capsys.readouterr().out


def test_the_more_wordings_the_wider_the_interval(capsys):
    def width(count):
        rows = [scored(f"w{number}", USUAL - 0.5) for number in range(count - 1)]
        noise = np.random.default_rng(1).normal(0.05, 0.3, 400)
        print_scores([*rows, scored("x", USUAL + noise)], scored("default", USUAL), 0)
        low, high = re.search(r"interval (\S+) to (\S+)", capsys.readouterr().out).groups()
        return float(high) - float(low)

    # Normal quantiles: 1.96 alone, 3.02 for one of twenty.
    assert width(20) / width(1) == pytest.approx(3.02 / 1.96, rel=0.1)


def test_on_a_checkpoint(checkpoint, shop, split, capsys):
    main(["score", "--model", str(checkpoint), "--data", str(shop), "--users", "20"])
    shown = capsys.readouterr().out
    recommender = Recommender.from_pretrained(checkpoint)
    templates = [t for t in recommender.prompts.templates if t.task == "seqrec"]
    assert f"with {len(templates)} templates of seqrec for the valid items of 20 users" in shown
    cases = split.valid.sample(20, 0)
    for template in templates:
        found = recommender.recommend(cases.histories, 10, template=template).items
        hits = (found == cases.targets[:, None]).any(1).mean()
        kind = "eval-only" if template.use == "eval" else "trained"
        assert re.search(rf"\n{template.id} +{template.use} +{kind} +{hits:.4f} ", shown)
    assert len(re.findall("<- the default", shown)) == 1
    assert re.search(r"\nnext-short .*<- the default\n", shown)
    assert f"Next: python -m lcrec.generate --model {checkpoint}" in shown


def test_edited_wording_is_scored_without_training(checkpoint, shop, tmp_path, capsys):
    (tmp_path / "seqrec.yaml").write_text(
        'task: seqrec\ntemplates:\n- id: nächstes\n  question: "Gekauft: {{ history | join }}"\n'
        '  answer: "{{ target }}"\n- id: next-short\n  question: "{{ history | join }}!"\n'
        '  answer: "{{ target }}"\n',
        encoding="utf-8",
    )
    words = ["score", "--model", str(checkpoint), "--data", str(shop), "--users", "9"]
    main([*words, "--prompts", str(tmp_path), "--split", "test"])
    shown = capsys.readouterr().out
    assert "for the test items of 9 users" in shown
    assert re.search(r"\nnächstes +both +new ", shown)
    assert re.search(r"\nnext-short +both +reworded ", shown)
    assert re.search(r"\nnext-short +both +trained .*<- the default", shown)
    assert "system message" not in shown
    (tmp_path / "system.yaml").write_text('system: ""\n')
    main([*words, "--prompts", str(tmp_path)])
    assert "The system message is not the one that the model was trained" in capsys.readouterr().out


def test_the_default_under_another_id_is_named_with_its_folder(checkpoint, shop, tmp_path, capsys):
    default = PromptSet.load(checkpoint / "prompts").evaluation_templates("seqrec")[0]
    alike = {"id": "kept", "question": default.question, "answer": default.answer}
    content = {"task": "seqrec", "templates": [alike]}
    (tmp_path / "seqrec.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--model", str(checkpoint), "--data", str(shop), "--users", "9"]
    main(["score", *words, "--prompts", str(tmp_path)])
    assert f" --prompts {tmp_path} --templates " in capsys.readouterr().out


def test_a_checkpoint_of_other_data_is_refused(checkpoint, tmp_path):
    (tmp_path / "Toy.inter.json").write_text('{"u": [0, 1, 1, 0]}')
    (tmp_path / "Toy.item.json").write_text('{"0": {"title": "Pen"}, "1": {"title": "Mug"}}')
    with pytest.raises(InputError, match="was made from another item file"):
        main(["score", "--model", str(checkpoint), "--data", str(tmp_path)])
    with pytest.raises(InputError, match="nowhere: no such folder"):
        main(["score", "--model", str(checkpoint), "--data", "nowhere"])
