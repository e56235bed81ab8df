"""A merged model is the live one in one plain folder."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lcrec.core.artifacts import NEIGHBOURS, write_json
from lcrec.core.errors import InputError
from lcrec.data.cooccurrence import NearbyItems
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.modeling import __main__ as merging
from lcrec.modeling.__main__ import logits_of, main, probe_prompts
from lcrec.modeling.checkpoint import load_checkpoint
from lcrec.prompts.prompt_set import SHIPPED_PROMPTS


@pytest.fixture
def make_base(base, make_llama, tmp_path):
    """Make a random Llama beside the tokenizer of `base`; wide enough for four bits."""

    def make(*, tied):
        folder = tmp_path / "base"
        shutil.copytree(base, folder)
        make_llama(tied=tied, width=64).save_pretrained(folder)
        return folder

    return make


def merge(model, output, *options):
    main(["merge", "--model", str(model), "--output", str(output), *map(str, options)])
    return output


@pytest.mark.parametrize("mode", ["lora", "rows", "full"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_merged_model_is_the_live_one(finetune, make_base, tmp_path, tied, mode):
    options = ("--base", make_base(tied=tied), "--mode", mode, "--epochs", 1)
    trained = finetune(tmp_path / "model", *options)
    live = load_checkpoint(trained)
    prompts = probe_prompts(live)
    wanted = logits_of(live.model, prompts)
    merged = merge(trained, tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")  # nothing else is needed any more
    shutil.rmtree(trained)

    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.allclose(logits_of(plain, prompts), wanted, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(merged)) == len(live.tokenizer)
    assert Recommender.from_pretrained(merged).recommend([[1, 2]], 5).items.shape == (1, 5)


def test_a_model_that_was_shown_neighbours_carries_their_counts(finetune, tmp_path, split):
    trained = finetune(
        tmp_path / "model", "--prompts", SHIPPED_PROMPTS / "retrieval", "--epochs", 1
    )
    history = split.test.histories[0]
    found, _ = NearbyItems.count(split.train, 48).near(history)
    assert len(found)
    for folder in (trained, merge(trained, tmp_path / "merged")):
        recommender = Recommender.from_pretrained(folder)
        record = recommender.request_encoder.record(RankingRequest(history))
        assert record["neighbours"] == [recommender.index.text(item) for item in found]
        assert recommender.recommend([history], 5).items.shape == (1, 5)
    (trained / NEIGHBOURS).unlink()
    with pytest.raises(InputError, match=NEIGHBOURS):
        Recommender.from_pretrained(trained)


@pytest.mark.slow
def test_four_bits_are_merged_into_the_dequantised_base(finetune, make_base, tmp_path, capsys):
    options = ("--base", make_base(tied=True), "--quantize", "4bit", "--epochs", 1)
    trained = finetune(tmp_path / "model", *options)
    live = load_checkpoint(trained)
    prompts = probe_prompts(live)
    wanted = logits_of(live.model, prompts)
    merged = merge(trained, tmp_path / "merged")
    assert "into its dequantised base" in capsys.readouterr().out
    plain = logits_of(AutoModelForCausalLM.from_pretrained(merged), prompts)
    # The layers in few bits compute in bfloat16 on a CPU.
    assert (plain - wanted).abs().max() < 0.05 * wanted.std()


def test_the_card_says_what_it_is(checkpoint, tmp_path):
    figures = {"runs": {"lc-rec": {"overall": {"HR@10": {"mean": 0.25}}}}}
    write_json(tmp_path / "metrics.json", figures)
    merged = merge(checkpoint, tmp_path / "shop", "--metrics", tmp_path / "metrics.json")
    card = (merged / "README.md").read_text()
    assert "# shop" in card
    assert "a catalogue of 48 items" in card
    assert '"mean": 0.25' in card
    facts = json.loads((checkpoint / "lcrec.json").read_text())
    for entry in facts["inputs"].values():
        assert entry["sha256"] in card


def test_how_far_another_precision_moves_logits_is_told(checkpoint, tmp_path, capsys):
    merged = merge(checkpoint, tmp_path / "merged", "--precision", "bf16")
    config = json.loads((merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    live = load_checkpoint(checkpoint)
    prompts = probe_prompts(live)
    written = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    moved = (logits_of(live.model, prompts) - logits_of(written, prompts)).abs().max()
    told = f"as weights are rounded to bf16, logits move by up to {moved:.2g} at a spread of "
    assert told in capsys.readouterr().out


def test_a_merge_that_changes_the_model_is_refused(checkpoint, tmp_path, monkeypatch):
    """As where the trained rows of a tied head are dropped."""

    def lossy(folder, base):
        return load_checkpoint(folder).model.unload()

    monkeypatch.setattr(merging, "merge_checkpoint", lossy)
    with pytest.raises(InputError, match=r"would be off by .* so nothing was written"):
        merge(checkpoint, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_refusals(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"is read from there"):
        merge(checkpoint, checkpoint)
    with pytest.raises(InputError, match="not a checkpoint of lcrec"):
        merge(tmp_path / "nothing", tmp_path / "merged")
    with pytest.raises(InputError, match=r"expected the word merge, found .'melt'."):
        main(["melt"])
    write_json(tmp_path / "metrics.json", [1])
    with pytest.raises(InputError, match="not a metrics file"):
        merge(checkpoint, tmp_path / "merged", "--metrics", tmp_path / "metrics.json")
    assert not (tmp_path / "merged").exists()
