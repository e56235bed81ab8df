"""The shipped wording, every fault `check` can name, folders of one's own, and golden renders."""

import itertools
import json
import os
import re
import shutil
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.user_texts import UserTexts
from lcrec.index.item_index import ITEM_TOKEN
from lcrec.prompts.__main__ import main
from lcrec.prompts.intent_wording import IntentPrompts
from lcrec.prompts.preview import example_data, example_index
from lcrec.prompts.prompt_set import PromptSet, chat_template_faults, read_prompts, save_template
from lcrec.prompts.tasks import TASKS, TaskData
from lcrec.prompts.templates import Template

SHIPPED = Path(__file__).parents[2] / "prompts"
GOLDEN = Path(__file__).parents[1] / "golden" / "prompts"
REFERENCE_COUNTS = {
    "seqrec": 17, "item2index": 19, "index2item": 17, "fusionseqrec": 12, "itemsearch": 11,
    "preferenceobtain": 11, "neighbours": 6, "code2words": 3,
}  # fmt: skip
HOSTILE = [
    "{{ 7 * 7 }} {% raw %} {title} %s {0}", 'it\'s "quoted"\nand broken\r\nin lines',
    "\u202eגיטרה قيثارة\u202c", "🎸👩🏽‍🎤 emoji", "<a_0><b_0> <a_12><|im_end|>", "x" * 10_000,
]  # fmt: skip

HISTORY = "{{ history | join(', ') }}"


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return PromptSet.load(SHIPPED)


@pytest.fixture
def in_top_folder(monkeypatch):
    monkeypatch.chdir(SHIPPED.parent)


def write_task(folder: Path, body: str, task: str = "seqrec") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{task}.yaml").write_text(body, encoding="utf-8")
    return folder


def one(question: str, answer: str = "{{ target }}", task: str = "seqrec", **more: str) -> str:
    """The text of a task file with one template, values quoted as JSON."""
    lines = "".join(f"    {key}: {value}\n" for key, value in more.items())
    return (
        f"task: {task}\ntemplates:\n  - id: one\n{lines}"
        f"    question: {question!r}\n    answer: {answer!r}\n"
    )


def test_shipped_prompts_have_no_fault_and_enough_wordings(prompts):
    for task, least in REFERENCE_COUNTS.items():
        assert len(prompts.for_task(task, "train")) >= least
        assert any(template.use == "eval" for template in prompts.for_task(task, "eval"))
    wordings = [(t.task, t.question, t.answer) for t in prompts.templates]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(SHIPPED.rglob("*.yaml")) if path.stem in TASKS],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_golden_renders(path):
    """A change of wording shows in review. To write the files anew:

    UPDATE_GOLDEN=1 pytest tests/prompts/test_prompts.py -k golden
    """
    prompts = PromptSet.load(path.parent, base=SHIPPED)
    blocks = [f"system: {prompts.system}\n"]
    for template in (t for t in prompts.templates if t.task == path.stem):
        fitting = filter(template.fits, TASKS[template.task].records(example_data()))
        question, answer = template.render(list(fitting)[-1])
        blocks.append(f"--- {template.id} ({template.use})\n{question}\n--- answer\n{answer}\n")
    golden = GOLDEN / path.relative_to(SHIPPED).with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text("\n".join(blocks), encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == "\n".join(blocks)


def test_every_template_carries_hostile_text_unchanged(prompts):
    items = Items([{"title": text, "description": text} for text in HOSTILE])
    texts = UserTexts({"u": [HOSTILE[4]]}, {"u": [HOSTILE[0]]}, {}, 1)
    train = Interactions.from_sequences({"u": list(range(len(HOSTILE)))})
    data = TaskData(items, train, example_index(len(items)), user_texts=texts)
    real = set(data.index.texts)
    for template in prompts.templates:
        for record in TASKS[template.task].records(data):
            question, answer = template.render(record)
            spoken = f"{question}\n{answer}"
            for name in template.question_variables | template.answer_variables:
                value = record[name]
                shown = [value] if isinstance(value, str) else value[-1:]
                assert all(text in spoken for text in shown)
            for text in (*real, record.get("code", " ")):
                spoken = spoken.replace(text, " ")
            assert not ITEM_TOKEN.search(spoken)
            assert "<|" not in spoken
            assert len(spoken) < 6000


def test_wordings_vary_and_none_are_near_copies(prompts):
    """Five words or fewer, thirty or more, and no ending that half of a task shares."""
    for task in TASKS:
        asked = [t.question for t in prompts.templates if t.task == task]
        lengths = [len(re.sub(r"{[{%].*?[%}]}", "", question).split()) for question in asked]
        assert min(lengths) <= 5
        assert max(lengths) >= 18
        endings = [question.split()[-1] for question in asked]
        assert max(map(endings.count, endings)) <= len(asked) / 2
    words = {t: re.sub(r"{[{%].*?[%}]}", "", t.question).split() for t in prompts.templates}
    long = [template for template in prompts.templates if len(words[template]) >= 5]
    for one_of, other in itertools.combinations(long, 2):
        close = SequenceMatcher(None, words[one_of], words[other], autojunk=False).ratio()
        assert close < 0.6, (one_of.id, other.id)


def test_a_template_fits_only_records_with_all_it_uses(prompts):
    template = Template("t", "index2item", "both", "{{ item }}", "{{ description }}")
    assert template.fits({"item": "<a_0>", "title": "", "description": "words"})
    assert not template.fits({"item": "<a_0>", "title": "words", "description": ""})
    ask = Template("t", "seqrec", "both", "{{ history | join }}", "{{ target }}")
    assert ask.can_ask({"history": ["<a_0>"]})
    assert not ask.can_ask({"history": []})
    assert not ask.fits({"history": ["<a_0>"]})
    data = example_data()
    near = Template("t", "seqrec", "both", "{{ history | join }}{{ neighbours }}", "{{ target }}")
    assert near.fits({"history": ["<a_0>"], "neighbours": [], "target": "<a_1>"})
    items = Items([{"title": "", "description": "Only this."}, *data.items.fields[1:]])
    bare = TaskData(items, data.train, data.index)
    record = next(TASKS["item2index"].records(bare))
    fitting = [t.id for t in prompts.for_task("item2index") if t.fits(record)]
    assert len(fitting) == 6
    assert all(name.startswith("described-") for name in fitting)


def test_a_saved_set_is_the_same_and_the_hash_follows_wording(tmp_path, prompts):
    prompts.save(tmp_path / "copy")
    copy = PromptSet.load(tmp_path / "copy")
    assert copy.content_hash == prompts.content_hash
    assert copy.sources == prompts.sources
    assert (tmp_path / "copy" / "seqrec.yaml").read_bytes() == (
        SHIPPED / "seqrec.yaml"
    ).read_bytes()
    copy.save(tmp_path / "copy")  # replaces what stands there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    own = write_task(tmp_path / "own", (SHIPPED / "seqrec.yaml").read_text() + "\n# a note\n")
    assert PromptSet.load(own, base=SHIPPED).content_hash == prompts.content_hash
    write_task(own, (SHIPPED / "seqrec.yaml").read_text().replace("Guess what", "Guess which"))
    assert PromptSet.load(own, base=SHIPPED).content_hash != prompts.content_hash


def test_an_own_folder_replaces_its_files_and_takes_the_rest(tmp_path, prompts):
    own = write_task(tmp_path / "own", one("After {{ history | join(' ') }}?"))
    (own / "system.yaml").write_text('system: ""\n')
    (own / "README.md").write_text("notes are welcome")
    merged = PromptSet.load(own, base=SHIPPED)
    assert [t.id for t in merged.for_task("seqrec", "train")] == ["one"]
    assert merged.for_task("seqrec", "eval")[0].use == "both"
    assert merged.for_task("item2index") == [
        t for t in merged.templates if t.task == "item2index" and t.use == "both"
    ]
    assert merged.messages("Hi?") == [{"role": "user", "content": "Hi?"}]
    assert prompts.messages("Hi?")[0] == {"role": "system", "content": prompts.system}
    merged.save(tmp_path / "copy")
    assert PromptSet.load(tmp_path / "copy").content_hash == merged.content_hash


def test_a_file_of_a_new_name_adds_to_its_task(tmp_path, prompts):
    own = write_task(tmp_path / "own", one(f"So: {HISTORY}?", use="train"), "seqrec.mine")
    merged = PromptSet.load(own, base=SHIPPED)
    shipped = [t.id for t in prompts.templates if t.task == "seqrec"]
    assert [t.id for t in merged.templates if t.task == "seqrec"] == [*shipped, "one"]
    assert merged.for_task("seqrec", "eval")[0].id == shipped[0]
    merged.save(tmp_path / "copy")
    assert PromptSet.load(tmp_path / "copy").content_hash == merged.content_hash
    # It may not take an id that is there, and alone it must serve both uses.
    write_task(own, one(HISTORY).replace("id: one", "id: next-short"), "seqrec.mine")
    _, faults = read_prompts(own, base=SHIPPED)
    assert faults == [
        f"{own}/seqrec.mine.yaml: next-short: the id is used twice (also in seqrec.yaml); "
        "give the template its own"
    ]
    # Not the shipped file is to blame, though its task comes later.
    write_task(own, one(HISTORY).replace("id: one", "id: name-short"), "seqrec.mine")
    _, (fault,) = read_prompts(own, base=SHIPPED)
    assert fault.startswith(f"{own}/seqrec.mine.yaml: name-short: the id is used twice (also in i")
    write_task(own, one(HISTORY, use="train"), "seqrec.mine")
    _, faults = read_prompts(own)
    assert f"{own}/seqrec.mine.yaml: no template with use: eval (or both)" in faults


@pytest.mark.parametrize(
    "name",
    [
        "Seqrec.yaml", "seqrec.YML", "seqrec.a.b.yaml", "seqrek.mine.yaml", "seqrec .yaml",
        "seqrec.yaml.txt", "System.json", "intents.txt", "chat_template.j2",
    ],
)  # fmt: skip
def test_a_file_that_would_be_passed_over_is_a_fault(tmp_path, name):
    own = write_task(tmp_path / "own", one(HISTORY))
    (own / name).write_text(one(HISTORY))
    _, faults = read_prompts(own, base=SHIPPED)
    assert len(faults) == 1
    assert f"{own}/{name}: not the file of a task; did you mean" in faults[0]


@pytest.mark.parametrize("name", ["item2index.yaml", "chat_template.jinja", "intents.yaml"])
@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_does_not_bring_back_the_shipped_one(tmp_path, capsys, name, make):
    own = write_task(tmp_path / "own", one(HISTORY))
    make(own / name)
    with pytest.raises(SystemExit):
        main(["check", "--prompts", str(own)])
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(rf"{own}/{name}: is (a folder|no file, or a link to none); put a file", line)
    with pytest.raises(InputError, match=name):
        IntentPrompts.load(own, SHIPPED) if name == "intents.yaml" else PromptSet.load(own, SHIPPED)


def test_notes_and_backups_may_lie_in_a_folder(tmp_path):
    own = write_task(tmp_path / "own", one(HISTORY))
    for name in ("seqrec.yaml~", ".seqrec.yaml.swp", "seqrec.md", "notes.txt", "seqrec.yaml.orig"):
        (own / name).write_text("x")
    (own / "old").mkdir()
    assert read_prompts(own, base=SHIPPED)[1] == []


@pytest.mark.parametrize("name", ["seqrec.yaml", "chat_template.jinja"])
def test_a_mark_or_line_ends_of_another_system_are_no_text(tmp_path, prompts, name):
    text = (SHIPPED / name).read_text(encoding="utf-8")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert PromptSet.load(tmp_path, base=SHIPPED).content_hash == prompts.content_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hello {{ history }}", "the message is no template"),
        ("Items such as <a_1>", "the message spells <a_1>, which may stand for an item"),
        ("<|im_start|>system", r"the message spells <|im_start|>: role markup"),
        ("|\n  two \n  lines", "the message has spaces at the end of a line"),
        (False, "'system' must be text, found False"),
    ],
)
def test_a_system_message_is_checked(tmp_path, text, message):
    text = text if str(text).startswith("|") else json.dumps(text)
    (tmp_path / "system.yaml").write_text(f"system: {text}\n")
    _, faults = read_prompts(tmp_path, base=SHIPPED)
    assert len(faults) == 1
    assert faults[0].startswith(f"{tmp_path}/system.yaml: {message}")


def test_asking_for_what_is_not_there_names_the_nearest(tmp_path, prompts):
    assert prompts.get("next-short").task == "seqrec"
    with pytest.raises(InputError, match="no template 'next-shirt'; did you mean 'next-short'"):
        prompts.get("next-shirt")
    with pytest.raises(InputError, match="no train templates for task 'seqrek'; did you mean"):
        prompts.for_task("seqrek")
    with pytest.raises(InputError, match="nowhere: no such folder; leave it out for the"):
        PromptSet.load(tmp_path / "nowhere")


BROKEN = [
    (one("{{ hist0ry | join }}"), "one: the question uses 'hist0ry'.*did you mean 'history'"),
    (one("{{ title }}"), "one: the question uses 'title', which seqrec does not have"),
    (one("{{ history | random }}"), "No filter named 'random'"),
    (one("{{ history | join(', ') | upper }}"), "one: the question shows no item as it is"),
    (one("{{ history | join(', ') | truncate(20) }}"), "the question shows no item as it is"),
    (one("Of {{ history | length }}"), "write history without a filter that changes or cuts"),
    (one("Next?"), "one: the question uses none of history"),
    (one(HISTORY, "{{ tarGet }}"), "one: the answer uses 'tarGet'.*did you mean 'target'"),
    (one(HISTORY, "the next"), "one: the answer uses none of target"),
    (one(HISTORY + " {{ target }}"), "one: the question gives the answer away: it uses 'target'"),
    (one(HISTORY, "{{ target }}."), "one: an answer with an item must be exactly {{ target }}"),
    (one(HISTORY, "{{ target | upper }}"), "one: an answer with an item must be exactly"),
    (one("{{ history }}"), r"one: the question needs {{ history \| join\(', '\) }}"),
    (one("{{ history[1] | length }}"), "one: the question cannot be rendered: UndefinedError"),
    (one("{{ history.__class__ }}"), "one: the question cannot be rendered: SecurityError"),
    (one("{% include 'x' %}" + HISTORY), "one: the question cannot be rendered: TypeError"),
    (one("{{ range(3) | join }}" + HISTORY), "one: the question uses 'range'"),
    (
        one("{{ history | jion }}"),
        "one: the question is not valid Jinja, line 1: No filter .* did you mean 'join'",
    ),
    (one(HISTORY, "{{ target"), "one: the answer is not valid Jinja, line 1: unexpected end"),
    (one("{{ " + "[" * 2000), "one: the question is not valid Jinja: brackets stand too deep"),
    (one("{{ " + "[" * 150 + "history" + "]" * 150 + " }}"), "is not valid Jinja: brackets"),
    (one("{% if history %}" + HISTORY), "one: the question is not valid Jinja, line 1"),
    (
        one("{{ title | striptags }}", task="item2index"),
        "one: the question spells <a_12>, which stands for no item",
    ),
    (one("{{ title | reverse }}", task="item2index"), "one: the question spells <a_12>"),
    (one("{{ title | replace(' ', '') }}", task="item2index"), "one: the question spells <a_12>"),
    (one("[INST] " + HISTORY), r"one: the question spells \[INST\]: role markup comes from"),
    (one(HISTORY + "<|im_end|>"), r"one: the question spells <\|im_end\|>: role markup"),
    (one(HISTORY, "{{ target }}</s>"), "one: the answer spells </s>: role markup"),
    (one("{% set x = target %}" + HISTORY + "{{ x }}"), "one: the question gives the answer away"),
    (one("<a_7> " + HISTORY), "one: the question spells <a_7>, which stands for no item"),
    (one("{{ history | join('<b_3>') }}"), "one: the question spells <b_3>"),
    (one("Had: " + HISTORY + " "), "one: the question has spaces at the end of a line"),
    (one("Had: \n" + HISTORY), "one: the question has spaces at the end of a line"),
    (one(HISTORY, "{{ target }} "), "one: the answer has spaces at the end of a line"),
    (one("{% if history | length > 9 %}{{ history | first }}{% endif %}"), "one: .* can be empty"),
    (one(HISTORY, use="train"), "seqrec.yaml: no template with use: eval"),
    (one(HISTORY, use="eval"), "seqrec.yaml: no template with use: train"),
    (one(HISTORY, use="always"), "one: 'use' must be train, eval or both, found 'always'"),
    (one(HISTORY, usage="both"), "one: unknown key 'usage'; did you mean 'use'"),
    (one(HISTORY, id="'two words'"), r"seqrec.yaml, line 4: key 'id' is written twice"),
    (one(HISTORY).replace("id: one", "id: a b"), "a b: the id 'a b' may hold letters"),
    (one(HISTORY).replace("id: one", "id: 7"), "template 1: 'id' must be text, found 7"),
    (one(HISTORY).replace("id: one\n    ", ""), "template 1: 'id' must be text, found nothing"),
    (one(HISTORY).replace("'{{ target }}'", "{{ target }}"), "begins with {{ .* needs quotes"),
    (
        one(HISTORY).replace("'{{ target }}'", "{{ target | join(', ') }}"),
        "not valid YAML .* begins with {{ .* needs quotes",
    ),
    (
        one(HISTORY).replace("'{{ target }}'", "Next: {{ target }}"),
        "not valid YAML .* holds ': ', needs quotes",
    ),
    (one(HISTORY).replace("'{{ target }}'", ""), "one: 'answer' must be text, found nothing"),
    (
        one(HISTORY).replace("    answer", "\t answer"),
        "line 5: .* indent with spaces, not with tabs",
    ),
    (one(HISTORY).replace("    answer", "   answer"), "keys of a template begin in one column"),
    (
        one(HISTORY).replace("'{{ target }}'", '"{{ target | join(", ") }}"'),
        'line 5: .* in .answer: "{{ target .*between "" stands no other "',
    ),
    (one(HISTORY).replace("'{{ target }}'", r'"\d {{ target }}"'), "a backslash is written twice"),
    (
        one(HISTORY).replace("'{{ target }}'", "|\n    Next item\n    tags: [a]"),
        "text of several lines follows a | and stands further in",
    ),
    (one(HISTORY) + "---\n" + one(HISTORY), "take out the line of three dashes"),
    (one(HISTORY) * 2, "line 6: key 'task' is written twice"),
    (
        one(HISTORY) + one(HISTORY).split("templates:\n")[1],
        r"one: the id is used twice \(also in seqrec.yaml\)",
    ),
    (one(HISTORY, task="seqrek"), "'task' must be seqrec, as the file is called; found 'seqrek'"),
    (one(HISTORY) + "extra: 1\n", "seqrec.yaml: unknown key 'extra'"),
    ("task: seqrec\n", "'templates' must be a list of templates, found nothing"),
    ("task: seqrec\ntemplates: 5\n", "'templates' must be a list of templates, found 5"),
    ("task: seqrec\ntemplates: []\n", "no template with use: train"),
    ("task: seqrec\ntemplates: [just text]\n", "template 1: expected id, use, question and answer"),
    ("", "seqrec.yaml: expected the keys task, templates; found nothing"),
    ("{}", "seqrec.yaml: expected the keys task, templates; found nothing"),
    ("- a\n- b\n", r"seqrec.yaml: expected the keys task, templates; found \['a', 'b'\]"),
    ("task: [\n", "seqrec.yaml, line 2: not valid YAML"),
    ("task: \x07\n", "seqrec.yaml: not valid YAML"),
    ("task: 2020-13-45\n", "seqrec.yaml: not valid YAML"),
]


@pytest.mark.parametrize(("body", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_check_names_file_template_and_fault(tmp_path, capsys, monkeypatch, body, message):
    monkeypatch.chdir(tmp_path)
    task = "item2index" if "task: item2index" in body else "seqrec"
    own = write_task(tmp_path / "own", body, task)
    shutil.copy(SHIPPED / "chat_template.jinja", own)
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--prompts", str(own)])
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 1
    assert any(re.search(message, line) for line in lines), lines
    assert all(line.startswith(str(own)) for line in lines)
    with pytest.raises(InputError, match=r"python -m lcrec\.prompts check --prompts"):
        PromptSet.load(own)


def test_check_lists_all_faults_at_once(tmp_path):
    own = write_task(tmp_path / "own", one("{{ hist0ry }}"))
    write_task(own, one("{{ title }}", "{{ target }}!", task="item2index"), task="item2index")
    (own / "system.yaml").write_text("system: [1]\n")
    (own / "seqrecs.yaml").write_text("")
    (own / "index2item.yml").write_bytes(b"\xff\xfe\x00")
    (own / "preferenceobtain.yaml").write_bytes(b"\xff\xfe\x00")
    _, faults = read_prompts(own, base=SHIPPED)
    assert [fault.removeprefix(f"{own}/")[:47] for fault in faults] == [
        "index2item.yml: not the file of a task; did you",
        "seqrecs.yaml: not the file of a task; did you m",
        "seqrec.yaml: one: the question uses 'hist0ry', ",
        "item2index.yaml: one: an answer with an item mu",
        "item2index.yaml: one: the id is used twice (als",
        "preferenceobtain.yaml: cannot be read as UTF-8 ",
        "system.yaml: 'system' must be text, found [1]; ",
    ]


@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 300),
            st.integers(0, 3),
            st.sampled_from(
                [*"{}%|:'\"[]-&*!#\t\n \x00é", "{{", "%}", "target", "[" * 99, "\ud800"]
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_an_editor_types_is_answered_with_faults(tmp_path_factory, edits):
    """Nothing but a list of lines, and a set that was found good renders."""
    body = one("Had {{ history | join(', ') }}, and {% if history %}then{% endif %}?") + "# end\n"
    for place, taken, typed in edits:
        body = body[:place] + typed + body[place + taken :]
    folder = tmp_path_factory.mktemp("typed")
    (folder / "seqrec.yaml").write_bytes(body.encode("utf-8", "surrogatepass"))
    shutil.copy(SHIPPED / "chat_template.jinja", folder)
    prompts, faults = read_prompts(folder)
    assert all(fault.startswith(str(folder)) and "\n" not in fault for fault in faults)
    if not faults:
        for template in prompts.templates:
            assert template.render({"history": ["<a_1>"], "target": "<a_2>"})[0]


def test_an_empty_folder_is_a_fault_even_over_a_base(tmp_path, capsys, in_top_folder):
    with pytest.raises(SystemExit):
        main(["check", "--prompts", str(tmp_path)])
    assert "holds no prompts; expected files such as seqrec.yaml" in capsys.readouterr().out
    _, faults = read_prompts(tmp_path)
    assert any("chat_template.jinja: no such file" in fault for fault in faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}", "cannot be rendered: TemplateSyntaxError"),
        ("{{ messages[9].content.x }}", "cannot be rendered: UndefinedError"),
        ("hello", "shows the question as it is 0 times"),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "shows the question as it is 2 t"),
        ("{{ messages[-1].content }} ", "the prompt ends in a space"),
    ],
)
def test_check_tries_the_chat_template(tmp_path, capsys, in_top_folder, text, message):
    own = tmp_path / "own"
    own.mkdir()
    (own / "chat_template.jinja").write_text(text)
    with pytest.raises(SystemExit):
        main(["check", "--prompts", str(own)])
    assert f"{own}/chat_template.jinja: {message}" in capsys.readouterr().out


def test_a_chat_template_may_mark_the_assistants_words():
    text = "{{ messages[-1].content }}{% generation %}{% endgeneration %}"
    assert chat_template_faults(text) == []


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_the_plain_chat_template_in_a_tokenizer(prompts, bos):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token="</s>"
    )
    tokenizer.chat_template = prompts.chat_template
    asked = prompts.messages("Next?")
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{bos or ''}{prompts.system}\nQ: Next?\nA:\n"
    whole = tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": "<a_1>"}], tokenize=False
    )
    assert whole == prompt + "<a_1></s>"
    alone = tokenizer.apply_chat_template(asked[1:], tokenize=False, add_generation_prompt=True)
    assert alone == f"{bos or ''}Q: Next?\nA:\n"


def test_templates_to_evaluate_with(prompts):
    serving = prompts.for_task("seqrec", "eval")
    assert prompts.evaluation_templates("seqrec") == serving[:1]
    assert prompts.evaluation_templates("seqrec", ["all"]) == serving
    wanted = [serving[2].id, serving[0].id]  # the order is the caller's
    assert prompts.evaluation_templates("seqrec", wanted) == [serving[2], serving[0]]
    mixed = prompts.evaluation_templates(
        ["seqrec", "fusionseqrec"], accepts=lambda template: template.is_item_answer
    )
    assert [t.task for t in mixed] == ["seqrec", "fusionseqrec"]
    kinds = prompts.evaluation_templates("itemsearch", kind=lambda t: t.question_variables)
    assert len({t.question_variables for t in kinds}) == len(kinds) > 1
    with pytest.raises(InputError, match=r"no template of seqrec that rhymes; add one to prompts/"):
        prompts.evaluation_templates("seqrec", accepts=lambda t: False, that="that rhymes")
    with pytest.raises(InputError, match=r"next-short: is no template of seqrec that rhymes"):
        prompts.evaluation_templates(
            "seqrec", ["next-short"], accepts=lambda t: False, that="that rhymes"
        )
    with pytest.raises(InputError, match=r"next-short: is named twice"):
        prompts.evaluation_templates("seqrec", ["next-short", "next-short"])


def test_a_template_that_is_saved_adds_to_its_task(tmp_path, prompts):
    mine = Template("mine", "seqrec", "both", f"Then:\n{HISTORY}: “{{{{ 1 }}}}”", "{{ target }}")
    path = save_template(tmp_path / "own", "desk-1", mine, prompts)
    assert path == tmp_path / "own" / "seqrec.desk-1.yaml"
    read = PromptSet.load(tmp_path / "own", base=SHIPPED)
    assert read.get("mine") == mine
    assert len(read.templates) == len(prompts.templates) + 1
    before = path.read_bytes()
    for name, template, message in (
        ("desk-1", mine, "is there already"),
        ("../desk", mine, "may hold letters"),
        ("desk-2", prompts.templates[0], "is used already"),
        ("desk-2", mine, "is used already"),
    ):
        with pytest.raises(InputError, match=message):
            save_template(tmp_path / "own", name, template, prompts)
    assert path.read_bytes() == before
    assert len(list((tmp_path / "own").iterdir())) == 1
