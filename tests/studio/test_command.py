"""`python -m lcrec.studio`: what it refuses before a model is loaded."""

import sys

import pytest

from lcrec.core.errors import InputError
from lcrec.studio import __main__ as studio


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "m"], "--data is required"),
        (["--model", "m", "--data", "d", "--prot", "1"], "unknown argument '--prot'"),
        (["--model", "m", "--data", "d", "--port", "-1"], "--port: -1 is too small"),
        (["--model", "m", "--data", "d", "--port", "99999"], "--port 99999: the highest port"),
        (["--model", "m", "--data", "d", "--port", "0"], "--data d: no such folder"),
    ],
)
def test_wrong_options_are_refused(words, message):
    pytest.importorskip("gradio", reason="the studio needs the extra `studio`")
    with pytest.raises(InputError, match=message):
        studio.main(words)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"the package uvicorn: pip install 'lcrec\[studio\]'"):
        studio.main(["--model", "m", "--data", "d"])
