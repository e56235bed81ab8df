import subprocess
import sys

import pytest

from lcrec.core import console
from lcrec.core.console import ProgressBar, duration, printable, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_30_seconds_and_one_at_the_end(clock, capsys):
    for _ in progress(range(100), "embed", "texts"):
        clock[0] += 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "embed: 30 of 100 texts, 1.0 s each, about 70 s left",
        "embed: 60 of 100 texts, 1.0 s each, about 40 s left",
        "embed: 90 of 100 texts, 1.0 s each, about 10 s left",
        "embed: 100 texts in 2 min",
    ]


def test_short_work_other_ranks_and_work_not_to_stay_leave_no_last_line(clock, capsys):
    for _ in progress(range(29), "embed", "texts"):
        clock[0] += 1
    assert capsys.readouterr().err == ""
    for _ in progress(range(40), "embed", "texts", leave=False):
        clock[0] += 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    with ProgressBar(100, "rank", "users", disable=True) as bar:
        clock[0] += 100
        bar.update(50)
        bar.print("a note")
    assert capsys.readouterr() == ("", "")


def test_a_continued_run_counts_what_was_done_but_not_for_the_rate(clock, capsys):
    with ProgressBar(1000, "train", "epochs", initial=900) as bar:
        clock[0] += 25
        bar.update(50)
        bar.note(loss="0.5")
        clock[0] += 5
        bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "train: 960 of 1,000 epochs, 2.0/s, about 20 s left, loss 0.5",
        "train: 960 of 1,000 epochs in 30 s, loss 0.5",
    ]


def test_what_is_noted_with_a_count_stands_behind_that_count(clock, capsys):
    with ProgressBar(10, "train", "updates", leave=False) as bar:
        for number in (1, 2):
            clock[0] += 20
            bar.update(epoch=f"{number / 10}")
    assert capsys.readouterr().err == (
        "train: 2 of 10 updates, 20.0 s each, about 3 min left, epoch 0.2\n"
    )


def test_a_total_that_is_unknown_or_never_reached(clock, capsys):
    with ProgressBar(None, "convert", "rows", leave=False) as bar:
        clock[0] += 50
        bar.update(1_000_000)
    assert capsys.readouterr().err == "convert: 1,000,000 rows, 20,000/s\n"
    for number in progress(range(100), "train", "epochs"):
        clock[0] += 29
        if number == 1:
            break
    assert capsys.readouterr().err == "train: 1 of 100 epochs in 58 s\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    with ProgressBar(2, "embed", "texts") as bar:
        bar.update()
        bar.note(loss="0.25")
        bar.update()
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "2/2" in shown
    assert "loss=0.25" in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_libraries_are_quiet_in_the_log_of_a_command():
    code = """
from lcrec.core.console import quiet_libraries
quiet_libraries()
import peft
from transformers.utils import logging
for _ in logging.tqdm(range(3), desc="Loading weights"):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x1b]0;title\x07", r"a\x1b[31mb\x1b]0;title\x07"),
        ("\x9b1A\x00\r\x7f\t", r"\x9b1A\x00\r\x7f\t"),
        ("one\n  2  faked", r"one\n  2  faked"),
        ("\u202egnp.exe\u2066\u200f\u061c", r"\u202egnp.exe\u2066\u200f\u061c"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("half \ud800", r"half \ud800"),
        # What is only shown stays: other scripts, emoji of several signs, a backslash.
        ("גיטרה 吉他 👩🏽\u200d🎤 C:\\new\xa0", "גיטרה 吉他 👩🏽\u200d🎤 C:\\new\xa0"),
    ],
)
def test_a_terminal_shows_foreign_text_and_does_not_obey_it(text, shown):
    assert printable(text) == shown
    assert printable(f"{text}\nrest", lines=True).endswith("\nrest")
