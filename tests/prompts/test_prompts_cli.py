"""The prompt tools on the command line: what needs no tokenizer, and what is loaded for it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lcrec.core.errors import InputError
from lcrec.prompts.__main__ import main
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.tasks import TASKS

TOP = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_top_folder(monkeypatch):
    monkeypatch.chdir(TOP)


def test_check_says_where_each_task_comes_from(capsys, tmp_path):
    extra = 'task: seqrec\ntemplates:\n- {id: x, question: "{{ history | last }}?", answer: "'
    (tmp_path / "seqrec.more.yaml").write_text(extra + '{{ target }}"}\n')
    main(["check", "--prompts", str(tmp_path)])
    shown = capsys.readouterr().out
    assert re.search(rf"seqrec +18 both.* prompts/seqrec.yaml, {tmp_path}/seqrec.more.yaml", shown)
    assert re.search(r"item2index .* prompts/item2index.yaml\n", shown)


@pytest.mark.parametrize("words", [["check"], ["show", "seqrec", "-n", "3"], ["vars"]])
def test_an_editor_waits_less_than_a_second(words):
    before = os.times()
    subprocess.run([sys.executable, "-m", "lcrec.prompts", *words], check=True, cwd=TOP)
    after = os.times()
    # Of a processor's time: others may be using the machine.
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 1


@pytest.mark.parametrize("task", TASKS)
def test_show_renders_every_template_once(capsys, prompts, task):
    main(["show", task])
    shown = capsys.readouterr().out
    for template in (t for t in prompts.templates if t.task == task):
        assert f"-- {template.id} (use: {template.use})" in shown
    assert "never used here" not in shown


def test_show_on_a_data_folder(tmp_path, capsys):
    (tmp_path / "Toy.inter.json").write_text('{"u": [0, 1, 1, 0]}')
    (tmp_path / "Toy.item.json").write_text('{"0": {"title": "Pen"}, "1": {"title": "<a_0>"}}')
    (tmp_path / "index.json").write_text('{"0": ["<a_3>", "<b_1>"], "1": ["<a_0>", "<b_0>"]}')
    data = ["--data", str(tmp_path)]
    main(["show", "seqrec", *data, "--index", str(tmp_path), "-n", "1"])
    assert capsys.readouterr().out.endswith(
        "-- next-short (use: both)\n   Bought: <a_3><b_1>. Next?\n > <a_0><b_0>\n"
    )
    main(["show", "index2item", *data, "-n", "2", "--template", "title-short"])
    shown = capsys.readouterr().out
    assert "item tokens, 2 an item, are made up" in shown
    assert shown.count("-- title-short") == 2
    assert "\n > < a_0>\n" in shown
    main(["show", "index2item", *data, "--template", "text-short"])
    assert "never used here: no record has description\n" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"python -m lcrec\.intents"):
        main(["show", "itemsearch", *data])


def test_vars_lists_what_a_task_offers(capsys):
    main(["vars", "seqrec"])
    shown = capsys.readouterr().out
    assert re.search(r"history +question +list of text +the items so far", shown)
    main(["vars"])
    shown = capsys.readouterr().out
    assert all(f"{task}: " in shown for task in TASKS)


def test_diff_against_a_checkpoint(tmp_path, capsys, prompts):
    prompts.save(tmp_path / "model" / "prompts")
    main(["diff", str(tmp_path / "model")])
    assert "No difference" in capsys.readouterr().out
    main(["diff", str(tmp_path / "model"), "--prompts", "prompts/short"])
    shown = capsys.readouterr().out
    assert "\nseqrec\n  + short-row: added" in shown
    assert "  - next-short: removed\n" in shown
    assert "system\n  reworded:" in shown
    assert shown.endswith(
        f" differences\nNext: python -m lcrec.prompts score --model {tmp_path}/model --data DIR "
        "--prompts prompts/short\n"
    )


def test_diff_of_two_folders(tmp_path, capsys):
    (tmp_path / "system.yaml").write_text("system: Be brief.\n")
    main(["diff", "prompts/short", "--prompts", str(tmp_path)])
    assert "\nseqrec\n  + next-short: added" in capsys.readouterr().out
    main(["diff", "--prompts", str(tmp_path)])  # from the shipped ones
    shown = capsys.readouterr().out
    assert "\nsystem\n  reworded:\n" in shown
    assert shown.endswith("\n1 difference\n")


GERMAN = """task: seqrec
templates:
  - id: nächster-artikel
    question: "Gekauft: {{ history | join(', ') }}. Was fehlt noch, größer als „alles“?"
    answer: "{{ target }}"
"""
CHINESE = """task: fusionseqrec
templates:
  - id: 下一个标题
    question: "顾客买过：{{ history | join('、') }}。下一件商品叫什么？"
    answer: "{{ target_title }}"
  - id: 标题历史
    question: "买过《{{ title_history | join('》《') }}》，接下来买哪一件？"
    answer: "{{ target }}"
"""


@pytest.mark.parametrize(
    ("task", "body", "system", "part"),
    [
        ("seqrec", GERMAN, "Du kennst jeden Artikel.", "Was fehlt noch, größer als „alles“?"),
        ("fusionseqrec", CHINESE, "你熟悉店里的每件商品。", "下一件商品叫什么？"),
    ],
)
def test_a_folder_in_another_language_just_works(
    tmp_path, capsys, base, shop, index_folder, task, body, system, part
):
    (tmp_path / f"{task}.yaml").write_text(body, encoding="utf-8")
    (tmp_path / "system.yaml").write_text(f"system: {system}\n", encoding="utf-8")
    own = ["--prompts", str(tmp_path)]
    main(["check", *own])
    main(["show", task, *own])
    shown = capsys.readouterr().out
    assert part in shown
    assert f"system: {system}" in shown
    real = ["--data", str(shop), "--index", str(index_folder), "--tokenizer", str(base)]
    main(["show", task, *own, *real])
    shown = capsys.readouterr().out
    assert f"   {system}\n   Q: " in shown
    assert part in shown
    main(["stats", *own, *real, "-n", "5"])
    stats = capsys.readouterr().out
    for template in PromptSet.load(tmp_path, TOP / "prompts").for_task(task):
        assert re.search(rf"\n  {template.id} +5 ", stats)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "seqrek"], "no task 'seqrek'; did you mean 'seqrec'"),
        (["vars", "everything"], "no task 'everything'"),
        (["show", "seqrec", "-n", "0"], "argument -n: expected a number from 1 up, found '0'"),
        (["show", "seqrec", "-n", "two"], "argument -n: expected a number from 1 up"),
        (["show", "seqrec", "--template", "title-short"], "belongs to task index2item"),
        (["show", "seqrec", "--template", "nope"], "no template 'nope'"),
        (["show", "seqrec", "--index", "x"], "--index x needs the --data DIR"),
        (["show", "seqrec", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["check", "--prompts", "nowhere"], "--prompts nowhere: no such folder"),
        (["check", "seqrec"], "unrecognized arguments: seqrec (all arguments: lcrec prompts check"),
        (["check", "prompts/short"], "prompts/short; a folder is named with --prompts (all"),
        (["diff", "lcrec/core"], "core: holds no prompts; expected files such as seqrec.yaml"),
        (["chek"], "invalid choice: 'chek'"),
        (["diff", "nowhere"], "nowhere: not a checkpoint of lcrec (no prompts/ in it)"),
        (["stats"], "the following arguments are required: --tokenizer"),
        (["stats", "--tokenizer", "x", "--max-length", "0"], "--max-length: expected a number"),
        (["score", "--model", "m", "--data", "d", "--users", "0"], "--users: expected a number"),
        (["score", "--model", "m", "--data", "d", "--split", "train"], "invalid choice: 'train'"),
    ],
)
def test_wrong_arguments_are_named(argv, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(argv)


def test_a_reader_may_close_the_pipe(tmp_path):
    command = f"{sys.executable} -m lcrec.prompts show seqrec | head -n 1"
    result = subprocess.run(command, shell=True, cwd=TOP, capture_output=True, text=True)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
