"""Exports: the folder ranks as the checkpoint does, without lcrec; layouts by hand; refusals."""

import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer
from vllm_standin import vllm

from lcrec import export
from lcrec.core.artifacts import write_jsonl
from lcrec.core.errors import InputError
from lcrec.data.id_map import IdMap
from lcrec.generate import exports, standalone
from lcrec.generate.recommender import Recommender
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.templates import Template

HISTORY = [3, 17, 5]


def run_export(model, engine, output, *options):
    words = ["--model", model, "--to", engine, "--output", output, "--precision", "fp32", *options]
    export.main(list(map(str, words)))
    return output


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    return run_export(checkpoint, "transformers", tmp_path_factory.mktemp("export") / "plain")


@pytest.fixture(scope="module")
def expected(checkpoint):
    ranking = Recommender.from_pretrained(checkpoint).recommend([HISTORY], 5)
    return ranking.items[0].tolist(), pytest.approx(ranking.scores[0].tolist(), abs=1e-4)


def test_an_export_ranks_as_the_checkpoint_without_lcrec(exported, expected, tmp_path):
    words = [exported / "recommend.py", "--history", *map(str, HISTORY), "--k", "5"]
    # An import of lcrec ends it.
    blocked = "import runpy, sys; sys.modules['lcrec'] = None; sys.argv = sys.argv[1:]; "
    program = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    done = subprocess.run(
        [*program, *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [int(row["item"]) for row in rows] == expected[0]
    assert [row["score"] for row in rows] == expected[1]


def test_an_id_may_hold_what_ends_a_line_elsewhere(tmp_path):
    names = ["a\u2028b", "c\x85", "d\x0b\x0c\x1c", "'\\\""]
    write_jsonl(tmp_path / "items.jsonl", ({"item": name} for name in names))
    assert list(standalone.read_items(tmp_path)) == names


def test_the_command_on_the_card_bears_any_id():
    names = ["SKU 1 & 2", 'it\'s "b"; $(id)']
    index = SimpleNamespace(ids=IdMap("item", names, is_raw=True))
    card = export._program_card(SimpleNamespace(index=index), "vllm", "bf16")
    (command,) = [line for line in card.splitlines() if line.startswith("python recommend.py")]
    assert shlex.split(command)[5:7] == names


@pytest.mark.parametrize("most", [128, 2], ids=["one request", "several"])
def test_the_loop_over_vllm_ranks_as_the_checkpoint(exported, expected, monkeypatch, most):
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(standalone, "MOST_TOKENS", most)
    step, encode = standalone.load_vllm(exported)
    items = standalone.read_items(exported)
    form = json.loads((exported / "prompt.json").read_text())
    prompt = standalone.prompt_of(form, [items[str(item)]["text"] for item in HISTORY])
    paths = {tuple(row["token_ids"]): int(item) for item, row in items.items()}
    ranked = standalone.rank(step, encode(prompt), paths, 5)
    assert [item for item, _ in ranked] == expected[0]
    assert [score for _, score in ranked] == expected[1]


def test_every_engine_gets_its_files_and_an_up_to_date_export_is_left(
    checkpoint, exported, tmp_path, index, capsys
):
    card = (exported / "README.md").read_text()
    assert "--engine transformers --history 0 1" in card
    before = (exported / "lcrec.json").stat().st_mtime_ns
    capsys.readouterr()
    run_export(checkpoint, "transformers", exported)
    assert "up to date" in capsys.readouterr().out
    assert (exported / "lcrec.json").stat().st_mtime_ns == before

    folder = run_export(checkpoint, "flashrec", tmp_path / "flashrec")
    catalogue = json.loads((folder / "catalog.json").read_text())
    assert list(catalogue) == [",".join(map(str, codes)) for codes in index.codes.tolist()]
    # As FlashRec counts: start of the range + sizes of the levels before + code.
    card = (folder / "README.md").read_text()
    start, end = map(int, re.search(r"--sid-token-range (\d+):(\d+)", card).groups())
    sizes = list(map(int, re.search(r"--sid-codebook-sizes ([\d,]+)", card)[1].split(",")))
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert (sizes, end - start + 1, len(rows)) == ([4, 4, 5], 13, 48)
    for key, row in zip(catalogue, rows, strict=True):
        a, b, c = map(int, key.split(","))
        assert row["token_ids"] == [start + a, start + 4 + b, start + 8 + c]
    # It puts no token behind prompts that end in this one.
    begin = int(re.search(r"--sid-boundary-tokens (\d+),", card)[1])
    body = json.loads(re.search(r"-d '(.*)'\n", card)[1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
    assert (ids if isinstance(ids, list) else ids["input_ids"])[-1] == begin


def test_sid_gr_gets_codes_and_sequences(checkpoint, shop, split, index, tmp_path):
    folder = run_export(checkpoint, "sid-gr", tmp_path / "sid", "--data", shop)
    assert np.array_equal(torch.load(folder / "item-sid-mapping.pt").numpy(), index.codes.T)
    train = pq.read_table(folder / "training.parquet").to_pylist()
    # The checkpoint was trained on 4 items of a history.
    assert train == [
        {"user_id": number, "sequence_data": sequence[-5:].tolist()}
        for number, sequence in enumerate(split.train)
        if len(sequence) > 1
    ]
    test = pq.read_table(folder / "testing.parquet").to_pylist()
    assert [row["sequence_data"][-1] for row in test] == split.test.targets.tolist()
    assert test[7]["sequence_data"][:-1] == split.test.histories[7][-4:].tolist()
    settings = (folder / "sid.gin").read_text()
    assert "DatasetArgs.codebook_sizes = [4, 4, 5]\n" in settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "vlm"], "did you mean 'vllm'"),
        (["--to", "sid-gr"], "--to sid-gr needs the --data"),
        (["--to", "vllm", "--data", "d"], "--data d: only --to sid-gr"),
        (["--to", "vllm"], "nowhere: not a checkpoint"),
    ],
)
def test_wrong_words_are_refused_before_any_work(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export.main(["--model", "nowhere", "--output", "out", *words])
    assert not (tmp_path / "out").exists()


def test_what_an_engine_cannot_take_is_refused(finetune, base, make_llama, tmp_path):
    folder = tmp_path / "base"
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    make_llama(tied=True).save_pretrained(folder)
    trained = finetune(tmp_path / "model", "--base", folder, "--epochs", 1)
    with pytest.raises(InputError, match="family qwen3, and this one is of llama"):
        run_export(trained, "flashrec", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_would_be_read_otherwise_is_refused(checkpoint, index, prompts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with pytest.raises(InputError, match="has 5 rows, none for token"):
        exports.write_items(tmp_path / "items.jsonl", tokenizer, index, 5)
    assert not (tmp_path / "items.jsonl").exists()
    encoder = Recommender.from_pretrained(checkpoint).request_encoder.prompt_encoder
    template = exports.history_template(prompts)
    apart = np.arange(48 * 3).reshape(48, 3)
    with pytest.raises(InputError, match="do not lie side by side"):
        exports.flashrec_flags(encoder, template, index, apart)
    hungry = Template("t", "seqrec", "both", "{{ history }}{{ neighbours }}", "{{ target }}")
    with pytest.raises(InputError, match="that asks with the history alone"):
        exports.history_template(PromptSet((hungry,), "", "", {}))


def test_raw_ids_are_the_items_names(checkpoint, index, tmp_path):
    named = ItemIndex(index.codes, index.level_sizes, [f"SKU-{item}" for item in range(48)])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    exports.write_items(tmp_path / "items.jsonl", tokenizer, named, len(tokenizer))
    assert standalone.read_items(tmp_path)["SKU-7"]["text"] == index.text(7)
