"""Asking over HTTP, against a server on this machine that behaves as badly as they do."""

import itertools
import time

import endpoint as fake
import pytest

from lcrec.core.errors import InputError
from lcrec.intents.endpoint import EndpointWriter

SETTINGS = {"temperature": 0.4, "max_tokens": 50, "concurrency": 4, "timeout": 5.0, "retries": 3}


def ask(endpoint, questions, **changes):
    """Return the answers by question; what got none is missing."""
    writer = EndpointWriter("m", endpoint.url, **{**SETTINGS, **changes})
    answers = {}
    writer.write(
        [[{"role": "user", "content": question}] for question in questions],
        lambda number, answer: answers.__setitem__(questions[number], answer),
    )
    return answers


def test_every_question_is_answered_with_what_it_cost(endpoint):
    endpoint.reply = lambda question, turn: (200, fake.completion(f"re: {question}"))
    questions = [str(number) for number in range(9)]
    answers = ask(endpoint, questions)
    assert {q: a.text for q, a in answers.items()} == {q: f"re: {q}" for q in questions}
    assert {(a.model, a.tokens_in, a.tokens_out) for a in answers.values()} == {("m", 100, 20)}
    assert all(0 < answer.seconds < 5 for answer in answers.values())
    assert endpoint.bodies[0]["temperature"] == 0.4
    assert endpoint.bodies[0]["max_tokens"] == 50


def test_as_many_are_under_way_as_allowed(endpoint):
    endpoint.reply = lambda question, turn: (0.1, fake.completion("x"))
    ask(endpoint, [str(number) for number in range(12)], concurrency=3)
    assert endpoint.most_at_once == 3


def test_too_many_requests_wait_as_long_as_they_are_told(endpoint):
    def reply(question, turn):
        if turn < 2:
            return 429, '{"error": {"message": "slow down"}}', {"Retry-After": "1"}
        return 200, fake.completion("x")

    endpoint.reply = reply
    assert ask(endpoint, ["a"])["a"].text == "x"
    waits = [later - earlier for earlier, later in itertools.pairwise(endpoint.times)]
    assert len(waits) == 2
    assert all(1.0 <= wait < 2.0 for wait in waits)


def test_errors_of_the_server_and_broken_connections_are_tried_again(endpoint):
    script = [(500, "oops"), (None, ""), (200, fake.completion("x"))]
    endpoint.reply = lambda question, turn: script[turn]
    assert ask(endpoint, ["a"])["a"].text == "x"
    waits = [later - earlier for earlier, later in itertools.pairwise(endpoint.times)]
    assert waits[1] > waits[0] > 0.3


def test_a_timeout_is_tried_again(endpoint):
    endpoint.reply = lambda question, turn: (0.0 if turn else 1.0, fake.completion("x"))
    assert ask(endpoint, ["a"], timeout=0.3)["a"].text == "x"
    assert len(endpoint.questions) == 2


@pytest.mark.parametrize(
    "bad",
    [
        (200, "not json"),
        (200, "[]"),
        (200, "<html>", {"Content-Type": "text/html"}),
        (200, fake.completion("x", choices=[])),
        (200, fake.completion("x", choices=None)),
        (400, '{"error": {"message": "content filter"}}'),
        (422, "{}"),
        (500, "oops"),
    ],
)
def test_one_bad_answer_loses_nothing_but_itself(endpoint, bad):
    good = 200, fake.completion("x")
    endpoint.reply = lambda question, turn: bad if question == "3" else good
    answers = ask(endpoint, [str(number) for number in range(6)], retries=0)
    assert sorted(answers) == ["0", "1", "2", "4", "5"]


def test_an_empty_answer_is_an_answer(endpoint):
    endpoint.reply = lambda question, turn: (200, fake.completion(None, usage=None))
    answer = ask(endpoint, ["a"])["a"]
    assert (answer.text, answer.tokens_in) == ("", 0)


@pytest.mark.parametrize(("status", "words"), [(401, "wrong key"), (403, "no"), (404, "no model")])
def test_what_cannot_get_better_ends_the_run_at_once(endpoint, status, words):
    endpoint.reply = lambda question, turn: (status, f'{{"error": {{"message": "{words}"}}}}')
    with pytest.raises(InputError, match=f"model 'm': .*{words}.*give the same command again"):
        ask(endpoint, [str(number) for number in range(50)])
    assert len(endpoint.questions) <= SETTINGS["concurrency"]


def test_nothing_but_failures_ends_the_run_and_keeps_what_came_before(endpoint):
    def reply(question, turn):
        return (200, fake.completion("x")) if int(question) < 20 else (400, "{}")

    endpoint.reply = reply
    answers = {}
    writer = EndpointWriter("m", endpoint.url, **SETTINGS)
    chats = [[{"role": "user", "content": str(number)}] for number in range(500)]
    with pytest.raises(InputError, match="failures in a row"):
        writer.write(chats, lambda number, answer: answers.__setitem__(number, answer))
    assert sorted(answers) == list(range(20))
    assert len(endpoint.questions) < 50


def test_models_that_know_the_new_name_of_the_limit_only(endpoint):
    def reply(question, turn):
        if "max_tokens" in endpoint.bodies[-1]:
            text = "'max_tokens' is not supported, use 'max_completion_tokens' instead"
            return 400, f'{{"error": {{"message": "{text}"}}}}'
        return 200, fake.completion("x")

    endpoint.reply = reply
    assert len(ask(endpoint, ["a", "b", "c"], concurrency=1)) == 3
    assert len(endpoint.questions) == 4  # it is learnt once
    assert endpoint.bodies[-1]["max_completion_tokens"] == 50


def test_an_address_where_nobody_answers_is_told_soon(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running, stop = fake.start()
    stop()
    start = time.monotonic()
    with pytest.raises(InputError, match=r"127\.0\.0\.1.* cannot be reached.*--base-url"):
        ask(running, ["a"], retries=10)
    assert time.monotonic() - start < 10


def test_wrong_settings_are_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        EndpointWriter("m", None, **SETTINGS)
    with pytest.raises(InputError, match="--base-url localhost:8000: expected an address"):
        EndpointWriter("m", "localhost:8000", **SETTINGS)
