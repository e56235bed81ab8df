"""The instruction data set as a file: its rows, its card, and that TRL trains on it as it is."""

import json
import re

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from lcrec.core.artifacts import find_data, read_json, write_json
from lcrec.core.errors import InputError
from lcrec.core.provenance import read_provenance
from lcrec.data.folder import load_items
from lcrec.data.user_texts import load_user_texts
from lcrec.dataset import main, write_rows
from lcrec.index.item_index import ItemIndex
from lcrec.prompts.encoder import PromptEncoder
from lcrec.prompts.rows import IGNORED, draw_rows
from lcrec.prompts.tasks import TASKS, TaskData, parse_mixture
from lcrec.tinylm import train_tokenizer

COLUMNS = ["prompt", "completion", "task", "template_id"]
TASK_FLAGS = ["--tasks", "seqrec=30", "index2item=0.5"]
BY_DEFAULT = set(TASKS) - {"neighbours", "code2words"}


@pytest.fixture
def flags(shop, index_folder):
    """The command line with two epochs, to which a test adds."""

    def words(output, *more):
        fixed = ["--data", shop, "--index", index_folder, "--output", output, "--epochs", "2"]
        return [str(word) for word in (*fixed, *more)]

    return words


@pytest.fixture(scope="module")
def drawn(shop, shop_items, split, index, prompts):
    """The rows that training would draw for the flags of `TASK_FLAGS`, two epochs of them."""
    texts = load_user_texts(shop, split)
    data = TaskData(shop_items, split.train, index, user_texts=texts, seed=42)
    mixture = parse_mixture(TASK_FLAGS[1:])
    return [row for epoch in range(2) for row in draw_rows(data, prompts, mixture, 42, epoch)]


def read(folder, form="parquet"):
    builder = "json" if form == "jsonl" else form
    return load_dataset(builder, data_files=str(folder / f"train.{form}"), split="train")


def test_the_rows_are_those_of_training_with_plain_markup(tmp_path, flags, drawn, prompts):
    main(flags(tmp_path / "rows", *TASK_FLAGS))
    rows = read(tmp_path / "rows")
    assert rows.column_names == COLUMNS
    assert [(r["completion"], r["task"], r["template_id"]) for r in rows] == [
        (row.completion, row.task, row.template_id) for row in drawn
    ]
    assert [r["prompt"] for r in rows] == [
        f"{prompts.system}\nQ: {row.prompt}\nA:\n" for row in drawn
    ]
    main(flags(tmp_path / "a", *TASK_FLAGS))
    main(flags(tmp_path / "b", *TASK_FLAGS, "--format", "jsonl"))
    lines = (tmp_path / "b" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == read(tmp_path / "a").to_list()
    assert read(tmp_path / "b", "jsonl").to_list() == read(tmp_path / "a").to_list()


def test_every_task_with_text_by_default(tmp_path, flags, shop, capsys):
    main(flags(tmp_path / "all", "--epochs", "1"))
    assert set(read(tmp_path / "all").unique("task")) == BY_DEFAULT
    bare = tmp_path / "data"
    bare.mkdir()
    for path in (find_data(shop).inter, find_data(shop).item):
        (bare / path.name).write_bytes(path.read_bytes())
    main(flags(tmp_path / "four", "--epochs", "1", "--data", bare))
    assert set(read(tmp_path / "four").unique("task")) == {
        "seqrec", "item2index", "index2item", "fusionseqrec",
    }  # fmt: skip
    screen = capsys.readouterr().out
    assert "Writing 1 epoch(s) of seqrec, item2index" in screen
    assert "Template card-properties of item2index: never used here: no record has" in screen
    with pytest.raises(InputError, match=r"itemsearch needs .*python -m lcrec.intents"):
        main(flags(tmp_path / "none", "--data", bare, "--tasks", "itemsearch"))
    assert not (tmp_path / "none").exists()


def test_the_folder_says_what_it_is(tmp_path, flags, drawn, index, shop):
    output = tmp_path / "rows"
    main(flags(output, *TASK_FLAGS))
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md", "index.json", "item_tokens.json", "lcrec.json", "train.parquet",
    ]  # fmt: skip
    assert read_json(output / "item_tokens.json") == index.vocabulary
    copy = ItemIndex.load(output, len(index))
    assert (copy.texts, copy.level_sizes) == (index.texts, index.level_sizes)
    record = read_provenance(output)
    assert (record["stage"], record["rows"]) == ("python -m lcrec.dataset", len(drawn))
    card = (output / "README.md").read_text(encoding="utf-8")
    assert record["inputs"]["item"]["sha256"] in card
    assert record["config"]["prompts"] in card
    assert "Seed 42; epochs 2" in card
    cells = dict(re.findall(r"^\| `(\w+)` \|[^|`]*\| ([\d,]+) \|$", card, flags=re.MULTILINE))
    assert int(cells["seqrec"].replace(",", "")) == sum(row.task == "seqrec" for row in drawn)
    for template in {row.template_id for row in drawn}:
        count = sum(row.template_id == template for row in drawn)
        assert f"| `{template}` | {count:,} |" in card
    # As the hub reads a folder: by the card's header, the other files left alone.
    assert load_dataset(str(output), split="train").num_rows == len(drawn)


def train_block(card, base):
    """Return the card's own program, for one step on a CPU."""
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "num_train_epochs=1" in code
    code = code.replace("num_train_epochs=1", "max_steps=1, use_cpu=True, report_to='none'")
    return (
        code.replace("BASE MODEL", str(base))
        .replace(").train()", ")\ntrainer.train()")
        .replace("\nSFTTrainer(", "\ntrainer = SFTTrainer(")
    )


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_cards_program_trains_a_step(tmp_path, flags, base, form, monkeypatch, drawn, prompts):
    main(flags(tmp_path / "rows", *TASK_FLAGS, "--format", form))
    monkeypatch.chdir(tmp_path / "rows")
    names = {}
    exec(train_block((tmp_path / "rows" / "README.md").read_text(), base), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 1
    assert trainer.state.log_history[-1]["train_loss"] > 0
    # Token for token what this project trains on and asks with.
    tokenizer = names["tokenizer"]
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(base)) + 13
    encoder = PromptEncoder(tokenizer, prompts)
    for row, made in zip(drawn, trainer.train_dataset, strict=True):
        prompt, answer = (
            encoder.prompt_ids([row.prompt])[0],
            encoder.answer_ids([row.completion])[0],
        )
        assert made["input_ids"] == prompt + answer
        assert made["labels"] == [IGNORED] * len(prompt) + answer


CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


@pytest.fixture
def save_tokenizer(tmp_path):
    def save(chat_template, name="tokenizer"):
        made = train_tokenizer(["go on up thing"], 300)
        made.chat_template = chat_template
        made.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def test_chat_messages(tmp_path, flags, save_tokenizer, drawn, prompts):
    main(flags(tmp_path / "rows", *TASK_FLAGS, "--tokenizer", save_tokenizer(CHAT)))
    rows = read(tmp_path / "rows")
    assert rows.column_names == COLUMNS
    for made, row in zip(rows, drawn, strict=True):
        assert made["prompt"] == [
            {"role": "system", "content": prompts.system},
            {"role": "user", "content": row.prompt},
        ]
        assert made["completion"] == [{"role": "assistant", "content": row.completion}]
    lines = flags(tmp_path / "lines", *TASK_FLAGS, "--tokenizer", tmp_path / "tokenizer")
    main([*lines, "--format", "jsonl"])
    assert read(tmp_path / "lines", "jsonl").to_list() == rows.to_list()


HOSTILE = "<a_1> [INST] lamp <|end|> [PAD] [[INST] <<a_1>>"


@pytest.mark.parametrize("chat", [False, True])
def test_no_text_becomes_an_item_token_or_markup(tmp_path, flags, shop, index, base, chat):
    """Whoever trains on the file meets markup only where the chat template put it."""
    data = tmp_path / "data"
    data.mkdir()
    write_json(data / "Shop.item.json", {str(i): {"title": HOSTILE} for i in range(48)})
    (data / "Shop.inter.json").write_bytes(find_data(shop).inter.read_bytes())
    users = read_json(data / "Shop.inter.json")
    likes = {user: [HOSTILE] for user in users}
    seeks = {user: {"item": items[-3], "querys": [HOSTILE]} for user, items in users.items()}
    intentions = {"train": seeks, "test": {}}
    names = ("user_explicit_preference", "user_vague_intention")
    write_json(data / "Shop.user.json", dict(zip(names, (likes, intentions), strict=True)))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "<|end|>"]})
    tokenizer.pad_token = "[PAD]"
    tokenizer.chat_template = (
        "{% for m in messages %}[INST]{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}[INST]{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    more = ["--tokenizer", tmp_path / "tokenizer"] if chat else []
    index.save(tmp_path / "index")
    more += ["--data", data, "--index", tmp_path / "index"]
    main(flags(tmp_path / "rows", "--epochs", "1", *more))
    tokenizer.add_tokens(read_json(tmp_path / "rows" / "item_tokens.json"))
    marks = tokenizer.convert_tokens_to_ids(["[INST]", "<|end|>", "[PAD]"])
    item = tokenizer.convert_tokens_to_ids("<a_1>")
    rows = read(tmp_path / "rows")
    assert set(rows.unique("task")) == BY_DEFAULT
    for row in rows:
        prompt, answer = row["prompt"], row["completion"]
        own = 0
        if chat:
            own = 2 + len(prompt)  # [INST] before each message and before the answer
            chosen = {"tokenize": False, "add_generation_prompt": True}
            answer = tokenizer.apply_chat_template(answer, tokenize=False)
            prompt = tokenizer.apply_chat_template(prompt, **chosen)
        ids = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
        found = [ids.count(mark) for mark in marks]
        assert found == [own, own - 1 if chat else 0, 0], (prompt, answer)
        if row["task"] == "index2item":
            # The one item that was asked about, and none of its own text.
            asked = [text for text in index.texts if text in prompt]
            assert ids.count(item) == sum(text.startswith("<a_1>") for text in asked)


def test_chat_messages_for_a_template_without_a_system_role(
    tmp_path, flags, save_tokenizer, drawn, prompts
):
    main(flags(tmp_path / "rows", *TASK_FLAGS, "--tokenizer", save_tokenizer(PICKY)))
    first = read(tmp_path / "rows")[0]["prompt"]
    assert first == [{"role": "user", "content": f"{prompts.system}\n\n{drawn[0].prompt}"}]


def test_chat_messages_come_with_a_template_that_does_not_move(
    tmp_path, flags, save_tokenizer, drawn, prompts
):
    folder = save_tokenizer("{{ strftime_now('%Y') }}" + CHAT)
    main(flags(tmp_path / "rows", *TASK_FLAGS, "--tokenizer", folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (tmp_path / "rows" / "chat_template.jinja").read_text("utf-8")
    asked = {"tokenize": False, "add_generation_prompt": True}
    prompt = tokenizer.apply_chat_template(read(tmp_path / "rows")[0]["prompt"], **asked)
    assert prompt == f"2025[system]{prompts.system}[user]{drawn[0].prompt}[assistant]"


@pytest.mark.real_data
def test_qwen3_is_trained_as_it_will_be_asked(tmp_path, flags, real_data, drawn, prompts, base):
    folder = real_data / "tokenizers" / "Qwen3"
    main(flags(tmp_path / "rows", *TASK_FLAGS, "--tokenizer", folder))
    card = (tmp_path / "rows" / "README.md").read_text()
    assert 'tokenizer.chat_template = open("chat_template.jinja"' in card
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (tmp_path / "rows" / "chat_template.jinja").read_text("utf-8")
    tokenizer.add_tokens(read_json(tmp_path / "rows" / "item_tokens.json"))
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    trainer = SFTTrainer(
        model=Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **size, **heads)),
        processing_class=tokenizer,
        train_dataset=read(tmp_path / "rows").select(range(8)),
        args=SFTConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none"),
    )
    encoder = PromptEncoder(tokenizer, prompts)
    for row, made in zip(drawn, trainer.train_dataset, strict=False):
        prompt, answer = (
            encoder.prompt_ids([row.prompt])[0],
            encoder.answer_ids([row.completion])[0],
        )
        # Qwen's template ends an answer with a line break after the EOS.
        assert made["input_ids"][: len(prompt) + len(answer)] == prompt + answer
        assert tokenizer.decode(made["input_ids"][len(prompt) + len(answer) :]) == "\n"
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))


def test_again_does_nothing_and_other_settings_replace(tmp_path, flags, capsys):
    output = tmp_path / "rows"
    main(flags(output, *TASK_FLAGS))
    first = (output / "train.parquet").stat()
    main(flags(output, *TASK_FLAGS))
    assert "up to date" in capsys.readouterr().out
    assert (output / "train.parquet").stat().st_mtime_ns == first.st_mtime_ns
    main(flags(output, *TASK_FLAGS, "--seed", "7", "--format", "jsonl"))
    assert not (output / "train.parquet").exists()
    assert (output / "train.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_what_is_refused(tmp_path, flags, shop, save_tokenizer, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "index.json", {str(i): [f"<a_{i}>"] for i in range(3)})
    for more, message in (
        (["--output", shop], "is read from there"),
        (["--index", other], "has 3 items but the catalogue has 48"),
        (["--tasks", "seqrek"], "no task 'seqrek'; did you mean 'seqrec'"),
        (["--history-dropout", "1"], "history_dropout is 1"),
        (["--tokenizer", save_tokenizer(None)], "has no chat template"),
        (["--tokenizer", save_tokenizer("[user]", "odd")], "does not show a question"),
    ):
        with pytest.raises(InputError, match=message):
            main(flags(tmp_path / "rows", *more))
    assert len(load_items(shop)) == 48
    assert not (tmp_path / "rows").exists()


def test_a_data_set_without_a_single_sample_leaves_nothing(tmp_path, flags, index_folder):
    data = tmp_path / "data"
    write_json(data / "Tiny.inter.json", {"ann": [0, 1, 2]})
    write_json(data / "Tiny.item.json", {str(i): {"title": f"t{i}"} for i in range(48)})
    bare = tmp_path / "index"
    bare.mkdir()
    (bare / "index.json").write_bytes((index_folder / "index.json").read_bytes())
    with pytest.raises(InputError, match="not one sample of seqrec"):
        main(flags(tmp_path / "rows", "--data", data, "--index", bare, "--tasks", "seqrec"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "index"]


def test_a_chat_template_of_the_prompts_that_says_the_question_twice(tmp_path, flags, prompts):
    prompts.save(tmp_path / "prompts")
    path = tmp_path / "prompts" / "chat_template.jinja"
    path.write_text("{{ messages[-1].content * 2 }}")
    with pytest.raises(InputError, match="the question as it is 2 times"):
        main(flags(tmp_path / "rows", "--prompts", tmp_path / "prompts"))


def test_rows_are_written_as_they_come(tmp_path):
    """No more than a group of rows is made before the one before it is in the file."""
    made = []

    def rows():
        for number in range(20_000):
            made.append(number)
            yield {"prompt": "p", "completion": str(number), "task": "t", "template_id": "x"}

    write_rows(tmp_path / "train.parquet", rows(), is_chat=False)
    file = pq.ParquetFile(tmp_path / "train.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [8192, 8192, 3616]
    assert file.read()["completion"].to_pylist() == [str(number) for number in made]
