"""The wording of `lcrec.intents`: the shipped file, one of one's own, every fault."""

import shutil
from pathlib import Path

import pytest
import yaml

from lcrec.core.errors import InputError
from lcrec.prompts.__main__ import main
from lcrec.prompts.intent_wording import INTENT_TEMPLATES, IntentPrompts, read_intent_prompts
from lcrec.prompts.prompt_set import PromptSet

SHIPPED = Path(__file__).parents[2] / "prompts"
ITEM = {"title": "Mug", "description": "Blue.", "categories": "", "brand": ""}
ITEM |= {"review": "", "summary": "", "leaked": ""}


@pytest.fixture
def own(tmp_path):
    """Return a function that writes the shipped file with some texts changed into a folder."""

    def write(**changes):
        texts = yaml.safe_load((SHIPPED / "intents.yaml").read_text()) | changes
        (tmp_path / "intents.yaml").write_text(yaml.safe_dump(texts))
        return tmp_path

    return write


def test_the_shipped_file_says_what_is_known_and_nothing_else():
    prompts = IntentPrompts.load(SHIPPED, SHIPPED)
    system, question = prompts.messages("intention", ITEM)
    assert (system["role"], question["role"]) == ("system", "user")
    assert "Mug" in question["content"]
    assert "The shop says of it: Blue." in question["content"]
    assert "listed under" not in question["content"]
    assert "earlier attempt" not in question["content"]
    told = prompts.messages("intention", ITEM | {"review": "It holds tea.", "leaked": "blue mug"})
    assert "It holds tea." in told[1]["content"]
    assert "Blue." not in told[1]["content"]
    assert '"blue mug"' in told[1]["content"]
    listed = prompts.messages("preference", {"titles": ["Pen", "Mug"]})
    assert "1. Pen\n2. Mug\n" in listed[1]["content"]
    assert prompts.render("keywords_short_term", {"terms": ["a", "b"]}) == "lately: a, b"


def test_a_folder_with_nothing_else_replaces_it(own, monkeypatch, capsys):
    monkeypatch.chdir(SHIPPED.parent)
    folder = own(keywords_overall="mag {{ terms | join(', ') }}")
    assert IntentPrompts.load(folder, SHIPPED).render("keywords_overall", {"terms": ["a"]}) == (
        "mag a"
    )
    main(["check", "--prompts", str(folder)])
    assert "no fault" in capsys.readouterr().out
    # And the tasks' wording comes from the shipped folder, without it.
    assert "intents.yaml" not in PromptSet.load(folder, base=SHIPPED).sources


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intentoin": "x"}, "unknown key 'intentoin'; did you mean 'intention'?"),
        ({"system": None}, 'system: must be text ("" for no message)'),
        ({"preference": ""}, "preference: must be text"),
        ({"preference": 5}, "preference: must be text"),
        ({"keywords_overall": "{{ terms | join(', ') }} "}, "has spaces at the end of a line"),
        ({"keywords_overall": "{% if %}{{ terms }}"}, "not valid Jinja, line 1"),
        ({"keywords_overall": "{{ " + "[" * 2000}, "not valid Jinja: brackets stand too deep"),
        (
            {"keywords_overall": "{{ term | join(', ') }}"},
            "uses 'term', which it does not have; did you mean 'terms'? (all: terms)",
        ),
        ({"system": "<|im_start|>Study"}, "it spells <|im_start|>: role markup comes from"),
        ({"system": "{{ title }}"}, "uses 'title', which it does not have"),
        ({"keywords_overall": "words"}, "uses none of terms"),
        ({"keywords_overall": "{{ terms }}"}, "needs {{ terms | join(', ') }}: it is a list"),
        ({"preference": 'overall "long_term" "short_term" {{ titles | join }}'}, '"overall"'),
        ({"intention": '"wish" {{ title }}'}, 'does not ask for "traits"'),
        (
            {"keywords_overall": "{{ terms | join(', ') / 2 }}"},
            "keywords_overall: cannot be rendered: TypeError",
        ),
        ({"keywords_overall": "{% if terms[0] == '' %}{{ terms }}{% endif %}"}, "can be empty"),
    ],
)
def test_check_names_every_fault(own, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(SHIPPED.parent)
    folder = own(**changes)
    with pytest.raises(SystemExit) as caught:
        main(["check", "--prompts", str(folder)])
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert message in out
    assert out.startswith(f"{folder / 'intents.yaml'}: ")
    with pytest.raises(InputError, match=r"python -m lcrec\.prompts check --prompts"):
        IntentPrompts.load(folder, SHIPPED)


@pytest.mark.parametrize("text", ["", "- a", "system: {{ x }}", "a: [", "system: a\nsystem: b"])
def test_a_broken_file_is_one_fault(tmp_path, text):
    (tmp_path / "intents.yaml").write_text(text)
    _, faults = read_intent_prompts(tmp_path, SHIPPED)
    assert len(faults) == 1
    assert "intents.yaml" in faults[0]


def test_which_file_is_read(tmp_path, own):
    with pytest.raises(InputError, match="no such folder"):
        IntentPrompts.load(tmp_path / "none", SHIPPED)
    with pytest.raises(InputError, match=r"intents\.yaml: no such file"):
        IntentPrompts.load(tmp_path, tmp_path)
    prompts = IntentPrompts.load(tmp_path, SHIPPED)
    assert prompts.path == SHIPPED / "intents.yaml"
    prompts = IntentPrompts.load(own(system=""), SHIPPED)
    assert [m["role"] for m in prompts.messages("preference", {"titles": ["Pen"]})] == ["user"]


def test_check_asks_for_no_intents_where_there_are_none(tmp_path, monkeypatch, capsys):
    """A complete folder of old is still complete, away from the shipped one."""
    for path in SHIPPED.glob("*.*"):
        if path.name != "intents.yaml":
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["check", "--prompts", "."])
    assert "no fault" in capsys.readouterr().out


def test_the_editors_page_lists_every_text_and_variable():
    page = (SHIPPED / "README.md").read_text()
    for name, wording in INTENT_TEMPLATES.items():
        for word in (name, *wording.variables, *wording.keys):
            assert f"`{word}`" in page, word
