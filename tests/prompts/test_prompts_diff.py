"""Differences between two small prompt sets, known by hand."""

import pytest

from lcrec.prompts.preview import paint, print_differences, word_diff
from lcrec.prompts.prompt_set import PromptSet
from lcrec.prompts.templates import Template


def wording(name, question, use="both", task="seqrec"):
    return Template(name, task, use, question, "{{ target }}")


def make(*templates, system="", chat_template="x"):
    return PromptSet(templates, system, chat_template, {})


OLD = make(
    wording("kept", "Next: {{ history | last }}"),
    wording("gone", "Old {{ history | last }}"),
    wording("reworded", "After {{ history | last }}, what?"),
    wording("moved", "Then {{ history | last }}?\n"),
    wording("renamed", "And {{ history | last }}?"),
    system="Be kind.",
)
NEW = make(
    wording("kept", "Next: {{ history | last }}\n"),  # a line's end is not wording
    wording("reworded", "After {{ history | first }}, what?", use="eval"),
    wording("moved", "Then {{ history | last }}?", use="train"),
    wording("renamed-2", "And {{ history | last }}?"),
    wording("fresh", "New {{ title }}", task="item2index"),
    system="Be very kind.",
)


def test_every_kind_of_difference_is_told(capsys):
    assert print_differences(OLD, NEW) == 6
    assert capsys.readouterr().out == (
        "\nseqrec\n"
        "  ~ reworded: reworded; results under its id are those of the old text\n"
        "      use: both -> eval\n"
        "      question: After {{ history | [-last-]{+first+} }}, what?\n"
        "  ~ moved:\n"
        "      use: both -> train\n"
        "  = renamed-2: was called renamed\n"
        "  - gone: removed\n"
        "      Old {{ history | last }}\n"
        "      > {{ target }}\n"
        "\nitem2index\n"
        "  + fresh: added (use: both)\n"
        "      New {{ title }}\n"
        "      > {{ target }}\n"
        "\nsystem\n"
        "  reworded:\n"
        "      Be{+ very+} kind.\n"
    )


def test_nothing_differs_from_itself_but_the_chat_template(capsys):
    assert print_differences(OLD, OLD) == 0
    assert print_differences(OLD, make(*OLD.templates, system="Be kind.")) == 0
    assert capsys.readouterr().out == ""
    assert print_differences(OLD, make(*OLD.templates, system="Be kind.", chat_template="y")) == 1
    assert "chat template\n  changed (a trained model keeps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", ""),
        ("a", "", "[-a-]"),
        ("", "a", "{+a+}"),
        ("one two", "one three", "one [-two-]{+three+}"),
        ("Was fehlt?", "Was fehlt noch?", "Was fehlt{+ noch+}?"),
        ("买过", "买过。", "买过{+。+}"),
    ],
)
def test_word_diff(old, new, expected):
    assert word_diff(old, new) == expected


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("x", "red", "[x]") == "[x]"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert paint("x", "red", "[x]") == "\033[31mx\033[0m"
    assert word_diff("a", "b") == "\033[31ma\033[0m\033[32mb\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", "[x]") == "[x]"
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only when not empty
    assert paint("x", "red", "[x]") == "\033[31mx\033[0m"
