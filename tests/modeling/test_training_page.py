"""The curves of a fine-tune: what is on the page, and that a run writes it."""

import re

import pytest

from lcrec.modeling.training_page import training_page

HISTORY = [
    {"loss": 3.0, "loss_seqrec": 3.5, "loss_item2index": 2.5, "learning_rate": 0.01, "epoch": 0.5,
     "step": 5},
    {"eval_loss": 2.8, "eval_hr@10": 0.25, "eval_ndcg@10": 0.125, "eval_runtime": 7.7, "epoch": 1.0,
     "step": 10},
    {"loss": 2.0, "loss_seqrec": 2.25, "learning_rate": 0.005, "epoch": 1.5, "step": 15},
    {"eval_loss": 2.9, "eval_hr@10": 0.2, "eval_ndcg@10": 0.1, "epoch": 2.0, "step": 20},
    {"train_runtime": 99.0, "epoch": 2.0, "step": 20},
]  # fmt: skip
SIMPLE = {"chance": (0.1, 0.05), "co-occurrence": (0.3, 0.2)}


def test_the_page_has_every_curve_and_every_validation():
    page = training_page("model", HISTORY, SIMPLE)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [
        "HR@10: the model 0.2 at the end, chance 0.1000, co-occurrence 0.3000.",
        "NDCG@10: the model 0.1 at the end, chance 0.0500, co-occurrence 0.2000.",
        "Loss of all tasks: training 2 at the end, validation 2.9 at the end.",
        "Loss of seqrec: training 2.25 at the end.",
        "Loss of item2index: training 2.5 at the end.",
        "Learning rate: learning rate 0.005 at the end.",
    ]
    assert page.count("<svg") == 6
    assert '<td class="text">10 (best)</td><td>1.00</td><td>2.8000</td><td>0.2500</td>' in page
    assert page.count("(best)") == 1
    assert page == training_page("model", HISTORY, SIMPLE)
    assert "7.7" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


@pytest.mark.parametrize("history", [[], HISTORY[:1]], ids=["nothing", "no validation"])
def test_a_short_run_has_a_page_too(history):
    assert "HR@10: chance 0.1000" in training_page("model", history, SIMPLE)


def test_a_fine_tune_leaves_its_curves_beside_the_checkpoint(checkpoint):
    page = (checkpoint / "training.html").read_text(encoding="utf-8")
    assert "<title>Training of model</title>" in page
    assert "Loss of seqrec" in page
    assert "Loss of item2index" in page
    assert "co-occurrence" in page
    assert page.count("(best)") == 1
