"""The chat endpoint that tests of `lcrec.intents` ask."""

import endpoint as fake
import pytest


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running, stop = fake.start()
    yield running
    stop()
