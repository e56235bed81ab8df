"""The service through HTTP: answers are the library's, errors are explained, nobody suffers."""

import asyncio
import contextlib
import json
import random
import threading
import tracemalloc
import weakref
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcrec.core.errors import InputError
from lcrec.data.folder import Interactions, Items
from lcrec.data.id_map import IdMap
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest
from lcrec.modeling.base import load_base
from lcrec.modeling.item_rows import resize_embeddings
from lcrec.prompts.encoder import extend_tokenizer
from lcrec.serve import app as service
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.live import Live
from lcrec.serve.loading import UNDER_WAY
from lcrec.serve.process import open_access_log
from lcrec.serve.requests import RecommendRequest, RequestHandler, UserData, Versions

ITEMS = 48
POISON = 40  # prompts that show this item get NaN logits
REFUSE = {"unknown": "refuse"}
JSON = {"Content-Type": "application/json"}
ids = st.integers(0, ITEMS - 1)
REQUESTS = st.fixed_dictionaries(
    {"history": st.lists(ids, min_size=1, max_size=6), "k": st.integers(1, 30)},
    optional={
        "allow": st.lists(ids, min_size=35, unique=True),
        "deny": st.lists(ids, max_size=4),
        "exclude_history": st.booleans(),
        "template": st.sampled_from(["next-short", "unheard-of"]),
    },
)


@pytest.fixture(scope="module")
def recommender(base, index, prompts):
    """An untrained model that says NaN to whoever shows it item 40."""
    model, tokenizer = load_base(str(base))
    extend_tokenizer(tokenizer, index)
    resize_embeddings(model, tokenizer, index)
    tasks = ("seqrec", "itemsearch")
    own = Recommender(model.eval(), tokenizer, index, prompts, max_history=4, tasks=tasks)
    own.recommend([[0]], 1)
    poison = tokenizer.convert_tokens_to_ids(index.tokens(POISON))

    def spoil(module, positional, named, output):
        """Find the item in prompts; the beams of a call are of one level, and hold none."""
        if named["input_ids"].shape[1] >= len(poison):
            windows = named["input_ids"].unfold(1, len(poison), 1)
            broken = (windows == windows.new_tensor(poison)).all(dim=2).any(dim=1)
            output.logits[broken] = np.nan
        return output

    model.register_forward_hook(spoil, with_kwargs=True)
    return own


@pytest.fixture(scope="module")
def catalogue():
    """Items 0 to 11 are of Acme, the others of Bolt & Co; every third is red; they cost 0 to 47."""
    return Items(
        [
            {
                "title": f"Thing {item}",
                "brand": "Acme" if item < 12 else "Bolt & Co, Ltd",
                "categories": "Tools, Red" if item % 3 == 0 else "Tools",
                "price": str(item),
            }
            for item in range(ITEMS)
        ]
    )


@pytest.fixture(scope="module")
def user_data():
    """Ann has items 3 and 7, bob nothing yet; item 5 is bought most, then 3 and 7."""
    sequences = {"ann": [3, 7], "bob": [], "007": [5, 5, 5, 7, 3]}
    users = IdMap("user", ["ann", "bob", "007"], is_raw=True)
    return UserData(users, Interactions.from_sequences(sequences))


def create_app(recommender, items=None, limits=None, *, token=None, log_access=None, **settings):
    handler = RequestHandler(recommender, items, limits, **settings)
    return service.create_app(Live(handler, None), token=token, log_access=log_access)


@contextlib.asynccontextmanager
async def connect(app, **settings):
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", timeout=30, **settings
        ) as client:
            yield client


def ask(app, *calls, **settings):
    """Send (method, path, arguments) all at once; return the responses."""

    async def run():
        async with connect(app, **settings) as client:
            return await asyncio.gather(
                *(client.request(method, path, **arguments) for method, path, arguments in calls)
            )

    return asyncio.run(run())


def post(path, **body):
    return ("POST", path, {"json": body})


def get(path):
    return ("GET", path, {})


def check_problem(response, status, *words):
    """The response explains itself as RFC 9457 has it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    for word in words:
        assert word in body["detail"]
    return body


def pairs(response):
    assert response.status_code == 200, response.text
    rows = response.json()["items"]
    return [row["item"] for row in rows], [row["score"] for row in rows]


def test_an_answer_is_the_librarys(recommender, catalogue):
    (response,) = ask(create_app(recommender, catalogue), post("/recommend", history=[3, 7], k=5))
    expected = recommender.recommend([[3, 7]], 5)
    items, scores = pairs(response)
    assert items == expected.items[0].tolist()
    assert np.allclose(scores, expected.scores[0], atol=1e-4)
    assert [row["title"] for row in response.json()["items"]] == [f"Thing {i}" for i in items]
    app = create_app(recommender)
    plain, known = ask(
        app,
        post("/search", query="red paint", k=4),
        post("/search", query="red paint", k=4, history=[3]),
    )
    assert pairs(plain)[0] == recommender.search(["red paint"], k=4).items[0].tolist()
    expected = recommender.search(["red paint"], histories=[[3]], k=4)
    assert pairs(known)[0] == expected.items[0].tolist()
    assert pairs(known) != pairs(plain)
    assert plain.json()["items"][0]["title"] is None, "there is no catalogue"


@given(requests=st.lists(REQUESTS, min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_in_company_or_alone_the_answer_is_the_same(recommender, prompts, requests):
    """Any k, lists and wording share a batch, and each gets what it would get alone."""
    requests = [
        {**request, "template": prompts.for_task("seqrec", "eval")[-1].id}
        if "template" in request
        else request
        for request in requests
        if POISON not in request["history"]
    ]
    app = create_app(recommender, None, ServiceLimits(batch_wait=50))
    responses = ask(app, *(post("/recommend", **request) for request in requests))
    for request, response in zip(requests, responses, strict=True):
        template = prompts.get(request["template"]) if "template" in request else None
        expected = recommender.recommend(
            [request["history"]],
            request["k"],
            allow=[request.get("allow")],
            deny=[request.get("deny")],
            exclude_history=request.get("exclude_history", False),
            template=template,
        )
        found = expected.items[0] >= 0
        items, scores = pairs(response)
        assert items == expected.items[0][found].tolist()
        assert np.allclose(scores, expected.scores[0][found], atol=1e-4)


def test_concurrent_requests_share_a_batch(recommender):
    app = create_app(recommender, None, ServiceLimits(max_batch=8, batch_wait=200))
    calls = [post("/recommend", history=[item], k=item + 1) for item in range(4)]
    calls += [post("/search", query="red paint", allow=list(range(20)), k=3)] * 4

    async def run():
        async with connect(app) as client:
            responses = await asyncio.gather(
                *(client.request(method, path, **rest) for method, path, rest in calls)
            )
            return responses, (await client.get("/metrics")).text

    responses, metrics = asyncio.run(run())
    assert [len(pairs(response)[0]) for response in responses] == [1, 2, 3, 4, 3, 3, 3, 3]
    assert "lcrec_batch_size_count 1.0" in metrics
    assert "lcrec_batch_size_sum 8.0" in metrics


def test_filters_are_values_and_ranges_of_fields(recommender, catalogue):
    acme, red, both, either, listed, whole, cheap, dear = ask(
        create_app(recommender, catalogue),
        post("/recommend", history=[1], k=12, filters={"brand": ["acme"]}),
        post("/recommend", history=[1], k=16, filters={"categories": ["Red"]}),
        post("/recommend", history=[1], k=4, filters={"brand": [" ACME "], "categories": ["red"]}),
        post("/recommend", history=[1], k=48, filters={"brand": ["Acme", "Bolt & Co"]}),
        post("/recommend", history=[1], k=2, filters={"brand": ["Acme"]}, allow=[3, 4, 20]),
        post("/search", query="bolts", k=36, filters={"brand": ["bolt & co, ltd"]}),
        post("/recommend", history=[1], k=6, filters={"price": {"max": 5}}),
        post(
            "/search",
            query="red",
            k=2,
            filters={"price": {"min": 9, "max": 14.5}, "brand": ["Acme"]},
        ),
    )
    assert set(pairs(cheap)[0]) == set(range(6))
    assert set(pairs(dear)[0]) <= {9, 10, 11}
    assert set(pairs(acme)[0]) == set(range(12))
    assert set(pairs(red)[0]) == set(range(0, ITEMS, 3))
    assert set(pairs(both)[0]) == {0, 3, 6, 9}
    assert set(pairs(either)[0]) == set(range(ITEMS))
    assert set(pairs(listed)[0]) == {3, 4}
    assert set(pairs(whole)[0]) == set(range(12, ITEMS))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"k": 3, "allow": [5, 6]}, {5, 6}),
        ({"k": 60}, set(range(ITEMS))),
        ({"k": 60, "deny": [*range(9), 8]}, set(range(9, ITEMS))),
        ({"k": 3, "allow": [5], "deny": [5, 5]}, set()),
        ({"k": 3, "allow": [99]}, set()),
        ({"filters": {"price": {"max": 3}}, "deny": [2]}, {0, 1, 3}),
        ({"filters": {"price": {"max": 3}}, "exclude_history": True}, {0, 2, 3}),
    ],
)
@pytest.mark.parametrize("history", [[1], []])
def test_an_answer_has_what_lists_and_filters_leave(
    recommender, catalogue, user_data, options, left, history
):
    app = create_app(recommender, catalogue, user_data=user_data)
    answers = ask(
        app,
        post("/recommend", history=history, **options),
        post("/search", query="red", history=history, **options),
    )
    for answer in answers:
        items, scores = pairs(answer)
        assert len(items) == len(set(items))
        assert set(items) == left | ({1} if "exclude_history" in options and not history else set())
        assert np.isfinite(scores).all()


def test_a_value_named_often_costs_no_more(recommender, catalogue):
    handler = RequestHandler(
        recommender, catalogue, ServiceLimits(max_k=10, max_history=10, max_query=10)
    )
    body = RecommendRequest(history=[1], filters={"categories": ["Tools", " tools"] * 50_000})
    tracemalloc.start()
    encoded = handler.encode(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert encoded.request.allow.tolist() == list(range(ITEMS))
    assert peak < 2**20, "48 items for each of 100,000 values are 37 MiB"


def test_an_item_and_what_is_known_of_it(recommender, catalogue, index):
    (known,) = ask(create_app(recommender, catalogue), get("/items/5"))
    (bare,) = ask(create_app(recommender), get("/items/5"))
    fields = {"title": "Thing 5", "brand": "Acme", "categories": "Tools", "price": "5"}
    tokens = index.tokens(5)
    nameless = Items([{"title": "", "description": "a thing"}] * ITEMS)
    (untitled,) = ask(create_app(recommender, nameless), get("/items/5"))
    assert untitled.json()["title"] is None
    assert known.json() == {"item": 5, "tokens": tokens, "title": "Thing 5", "fields": fields}
    assert bare.json() == {"item": 5, "tokens": tokens, "title": None, "fields": {}}


def test_the_page_shows_examples_that_work(recommender, catalogue):
    head = {"headers": {"Authorization": "bearer secret"}}
    app = create_app(recommender, catalogue, token="secret")
    page, schema = ask(app, ("GET", "/docs", head), ("GET", "/openapi.json", head))
    assert "swagger" in page.text.lower()
    document = schema.json()
    assert set(document["paths"]) == {
        *("/recommend", "/search", "/items/{item}", "/healthz", "/readyz", "/metrics"),
        "/reload",
    }
    assert document["components"]["securitySchemes"]
    calls = []
    for path, name in (("/recommend", "RecommendRequest"), ("/search", "SearchRequest")):
        answers = document["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "413", "422", "500", "503", "504"} <= set(answers)
        assert list(answers["422"]["content"]) == ["application/problem+json"]
        examples = document["components"]["schemas"][name]["examples"]
        assert len(examples) >= 2
        calls += [("POST", path, {"json": example, **head}) for example in examples]
    for response in ask(create_app(recommender, catalogue, token="secret"), *calls):
        assert pairs(response)[0]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/recommend", {"history": []}, ["#/history", "nothing is known", "without --data"]),
        ("/recommend", {"history": [48]}, ["#/history", "nothing is known", "without --data"]),
        ("/recommend", {"user": "ann"}, ["#/user", "runs without --data"]),
        ("/recommend", {"user": "ann", "history": [1]}, ["#/user", "not both"]),
        ("/recommend", {"user": 7}, ["#/user", "string", "found 7"]),
        ("/recommend", {"history": [1], "unknown": "drop"}, ["#/unknown", "'ignore' or 'refuse'"]),
        ("/recommend", {}, ["#/history", "required"]),
        ("/recommend", {"history": [3, 48], **REFUSE}, ["#/history/1", "item 48 is not in"]),
        ("/recommend", {"history": [10**400], **REFUSE}, ["#/history/0"]),
        ("/recommend", {"history": [-1]}, ["#/history/0", "found -1"]),
        ("/recommend", {"history": ["7"]}, ["#/history/0", "integer", "'7'"]),
        ("/recommend", {"history": [True]}, ["#/history/0", "integer"]),
        ("/recommend", {"history": [1.0]}, ["#/history/0", "integer"]),
        ("/recommend", {"history": [0] * 51}, ["51 items; at most 50", "reads the latest 4"]),
        ("/recommend", {"history": [1], "k": 0}, ["#/k", "greater than or equal to 1"]),
        ("/recommend", {"history": [1], "k": 41}, ["41 items wanted; the most here is 40"]),
        ("/recommend", {"history": [1], "allow": [99], **REFUSE}, ["#/allow/0", "item 99"]),
        ("/recommend", {"history": [1], "deny": [1, 99], **REFUSE}, ["#/deny/1", "item 99"]),
        ("/recommend", {"history": [1], "colour": "red"}, ["#/colour", "no such field"]),
        ("/recommend", {"history": [1], "query": "red"}, ["#/query", "no such field"]),
        ("/recommend", {"history": [1], "a/b~": 1}, ["#/a~1b~0", "no such field"]),
        ("/recommend", {"history": [1], "filters": {"colour": ["red"]}}, ["brand, categories"]),
        ("/recommend", {"history": [1], "filters": {"brand": ["Acne"]}}, ["no item has", "'Acne'"]),
        ("/recommend", {"history": [1], "filters": {"brand": []}}, ["#/filters/brand", "a list"]),
        ("/recommend", {"history": [1], "filters": {"price": ["5"]}}, ["price holds numbers"]),
        ("/recommend", {"history": [1], "filters": {"price": {}}}, ["price holds numbers"]),
        ("/recommend", {"history": [1], "filters": {"brand": {"max": 1}}}, ["brand holds words"]),
        ("/recommend", {"history": [1], "filters": {"price": {"most": 1}}}, ["#/filters/price"]),
        ("/recommend", {"history": [1], "template": "search-box"}, ["no template 'search-box'"]),
        ("/search", {"query": ""}, ["#/query", "at least 1 character"]),
        ("/search", {"query": " \n\t "}, ["#/query", "empty"]),
        ("/search", {"query": "x" * 301}, ["301 characters; at most 300"]),
        ("/search", {"query": "paint", "history": [99], **REFUSE}, ["#/history/0", "item 99"]),
        ("/search", {"query": 7}, ["#/query", "string", "found 7"]),
        ("/search", {"history": [1]}, ["#/query", "required"]),
    ],
)
def test_a_request_that_cannot_be_served(recommender, catalogue, path, body, words):
    app = create_app(recommender, catalogue, ServiceLimits(max_k=40, max_history=50, max_query=300))
    refused, fine = ask(app, post(path, **body), post("/recommend", history=[1]))
    check_problem(refused, 422, *words)
    for fault in refused.json()["errors"]:
        assert fault["pointer"].startswith("#")
        assert fault["detail"]
    assert pairs(fine)[0] == recommender.recommend([[1]]).items[0].tolist()


def test_a_prompt_beyond_the_context(recommender, monkeypatch):
    monkeypatch.setattr(recommender.request_encoder, "context", 60)
    fine, long = ask(
        create_app(recommender),
        post("/recommend", history=[1]),
        post("/search", query="words " * 50),
    )
    assert fine.status_code == 200
    check_problem(long, 422, "#/query", "tokens", "the model's context")


def test_what_a_service_was_not_started_for(recommender, monkeypatch):
    (response,) = ask(
        create_app(recommender), post("/recommend", history=[1], filters={"brand": ["Acme"]})
    )
    check_problem(response, 422, "runs without --data")
    monkeypatch.setattr(recommender, "tasks", {"seqrec"})
    search, recommend = ask(
        create_app(recommender), post("/search", query="paint"), post("/recommend", history=[1])
    )
    check_problem(search, 501, "not trained on itemsearch", "lcrec.finetune --tasks")
    assert recommend.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "expected a JSON object"),
        (b"{", 400, "not valid JSON"),
        (b'{"history": [1,]}', 400, "at character"),
        (b"\xff\xfe", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b'{"history": [' + b"9" * 5000 + b"]}", 400, "JSON"),
        (b'{"history": [1], "k": 3, "k": 4}', 400, "key 'k' is written twice"),
        (b'{"history": [1], "filters": {"brand": ["a"], "brand": ["b"]}}', 400, "key 'brand'"),
        (b'{"user": "Jo \\ud83d"}', 400, r"holds '\ud83d', half of a character"),
        (b'{"history": [1], "filters": {"\\uDEB2": ["a"]}}', 400, r"holds '\udeb2'"),
        (b'{"history": [NaN]}', 422, "#/history/0"),
        (b'{"history": [1], "k": Infinity}', 422, "#/k"),
        (b"[1, 2]", 422, "expected a JSON object"),
        (b"null", 422, "JSON object"),
        (b'"history"', 422, "JSON object"),
        (b'{"history": {"0": 1}}', 422, "list"),
        (b'{"history": [' + b'"x",' * 100_000 + b"0]}", 422, "found 'x'"),
    ],
)
def test_a_body_that_is_none(recommender, body, status, words):
    refused, fine = ask(
        create_app(recommender),
        ("POST", "/recommend", {"content": body, "headers": JSON}),
        post("/recommend", history=[1]),
    )
    check_problem(refused, status, words)
    assert len(refused.content) < 4000, "an error does not repeat a whole body"
    assert fine.status_code == 200


def test_users_of_the_data_and_those_whom_nobody_knows(recommender, catalogue, user_data):
    """A user is their history; nobody's history is answered with what is bought most."""
    app = create_app(recommender, catalogue, user_data=user_data)
    ann, same, found, same_found, *nobodies = ask(
        app,
        post("/recommend", user="ann", k=4, exclude_history=True),
        post("/recommend", history=[3, 7], k=4, exclude_history=True),
        post("/search", user="ann", query="red paint", k=4),
        post("/search", history=[3, 7], query="red paint", k=4),
        post("/recommend", user="bob", k=4),
        post("/recommend", history=[], k=4),
        post("/recommend", user="eve", k=4),
        post("/recommend", history=[99, 48], k=4),
        post("/recommend", user="bob", k=2, deny=[3, 50], filters={"brand": ["Acme"]}),
    )
    assert pairs(ann)[0] == pairs(same)[0]
    assert pairs(found)[0] == pairs(same_found)[0]
    assert not {3, 7} & set(pairs(ann)[0])
    for response in (ann, same, found, same_found):
        assert (response.json()["ignored"], response.json()["fallback"]) == ({}, None)
    *popular, filtered = nobodies
    for response, ignored in zip(
        popular, ({}, {}, {"user": ["eve"]}, {"history": [99, 48]}), strict=True
    ):
        assert pairs(response)[0] == [5, 3, 7, 0]
        assert (response.json()["ignored"], response.json()["fallback"]) == (ignored, "popularity")
    # Seven interactions and each of 48 items once more.
    assert pairs(popular[0])[1] == pytest.approx(np.log([4 / 55, 3 / 55, 3 / 55, 1 / 55]))
    assert pairs(filtered)[0] == [5, 7]
    assert filtered.json()["ignored"] == {"deny": [50]}


def test_what_is_unknown_is_left_out_of_every_list_and_said(recommender, by_raw_ids):
    lists = {"history": ["008", "SKU/9"], "deny": ["046", "gone"], "allow": ["x", *NAMES[:30]]}
    mixed, clean = ask(
        by_raw_ids(),
        post("/recommend", k=5, **lists),
        post("/recommend", k=5, history=["008"], deny=["046"], allow=NAMES[:30]),
    )
    assert pairs(mixed)[0] == pairs(clean)[0]
    assert mixed.json()["ignored"] == {"history": ["SKU/9"], "deny": ["gone"], "allow": ["x"]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"user": "eve"}, ["#/user", "user 'eve' is unknown"]),
        ({"user": "bob"}, ["#/history", "nothing is known", "`refuse`"]),
        ({"history": []}, ["#/history", "nothing is known"]),
    ],
)
def test_what_is_unknown_can_be_refused(recommender, user_data, body, words):
    app = create_app(recommender, user_data=user_data)
    (response,) = ask(app, post("/recommend", unknown="refuse", **body))
    check_problem(response, 422, *words)


def test_a_body_of_another_type(recommender):
    form = ("POST", "/recommend", {"data": {"history": "1"}})
    (response,) = ask(create_app(recommender), form)
    check_problem(response, 422, "Content-Type: application/json")


def test_paths_methods_and_items_that_are_not_there(recommender):
    nothing, slash, method, item, huge, word, *spelt = ask(
        create_app(recommender),
        get("/nothing"),
        post("/recommend/", history=[1]),
        get("/recommend"),
        get("/items/48"),
        get("/items/" + "9" * 40),
        get("/items/five"),
        *(get(f"/items/{text}") for text in ("1.0", "1_0", "+1", "%201", "01", "1e0")),
    )
    check_problem(nothing, 404, "'/nothing'", "/docs")
    check_problem(slash, 404)
    check_problem(method, 405, "Allow")
    assert method.headers["allow"] == "POST"
    check_problem(item, 404, "no item 48; ids are 0 to 47")
    check_problem(huge, 404)
    assert check_problem(word, 422, "whole number")["errors"][0]["parameter"] == "item"
    for response in spelt:
        check_problem(response, 422, "in digits alone")


def test_the_token_opens_everything_but_health(recommender):
    def app():
        return create_app(recommender, token="a-secret")

    def with_token(value):
        return ("GET", "/items/1", {"headers": {"Authorization": value}})

    refused = ask(
        app(),
        get("/items/1"),
        get("/docs"),
        get("/openapi.json"),
        get("/metrics"),
        get("/nothing"),
        post("/recommend", history=[1]),
        *map(
            with_token, ("a-secret", "Bearer", "Bearer wrong", "Basic a-secret", "Bearer a-secret2")
        ),
        ("GET", "/items/1", {"headers": [(b"Authorization", b"Bearer \xe9\xff")]}),
    )
    for response in refused:
        check_problem(response, 401, "Authorization: Bearer")
        assert response.headers["www-authenticate"] == "Bearer"
    for response in ask(
        app(), with_token("Bearer a-secret"), with_token("bearer a-secret"), get("/healthz")
    ):
        assert response.status_code == 200
    assert ask(app(), get("/readyz"))[0].status_code == 200


def call(app, receive, *, path="/recommend", method="POST", headers=(), within=None):
    """Speak ASGI to a running app; return what it sends."""
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        async with app.router.lifespan_context(app):
            scope = {
                **{"type": "http", "method": method, "path": path, "raw_path": path.encode()},
                **{"query_string": b"", "headers": list(headers), "scheme": "http"},
                **{"server": ("service", 80), "client": ("client", 1), "http_version": "1.1"},
            }
            await asyncio.wait_for(app(scope, receive, send), within)

    asyncio.run(run())
    return sent


def test_a_large_body_is_refused_before_it_is_read(recommender):
    async def receive():
        raise AssertionError("the body was read")

    for length in (b"10000000", b"9" * 30):
        sent = call(
            create_app(recommender, None, ServiceLimits(max_body=1000)),
            receive,
            headers=[(b"content-length", length)],
        )
        assert sent[0]["status"] == 413
        assert "1000 bytes at most" in json.loads(sent[1]["body"])["detail"]
    sent = call(create_app(recommender), receive, headers=[(b"content-length", b"-1")])
    assert sent[0]["status"] == 400


def test_a_body_without_a_length_is_read_only_so_far(recommender):
    pieces = 0

    async def receive():
        nonlocal pieces
        pieces += 1
        return {"type": "http.request", "body": b" " * 400, "more_body": True}

    sent = call(
        create_app(recommender, None, ServiceLimits(max_body=1000)),
        receive,
        headers=[(b"content-type", b"application/json")],
    )
    assert sent[0]["status"] == 413
    assert pieces == 3


def test_a_body_that_never_ends_times_out(recommender):
    async def receive():
        await asyncio.sleep(60)

    sent = call(create_app(recommender, None, ServiceLimits(timeout=0.1)), receive, within=5)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


class Held:
    """A recommender whose model waits until it is let go; keeps what it was asked to rank."""

    def __init__(self, recommender):
        self.recommender, self.ranked = recommender, []
        self.go_on = threading.Event()

    def __getattr__(self, name):
        return getattr(self.recommender, name)

    def rank(self, requests, prompt_ids):
        self.ranked += prompt_ids
        assert self.go_on.wait(10)
        return self.recommender.rank(requests, prompt_ids)


def test_a_request_that_takes_too_long_is_given_up_and_never_begun(recommender):
    held = Held(recommender)

    async def run():
        async with connect(
            create_app(held, None, ServiceLimits(max_batch=1, timeout=0.2))
        ) as client:
            late = await asyncio.gather(
                *(client.post("/recommend", json={"history": [item]}) for item in (1, 2))
            )
            ready = [await client.get("/readyz")]
            held.go_on.set()
            after = await client.post("/recommend", json={"history": [3]})
            ready.append(await client.get("/readyz"))
            return late, ready, after, (await client.get("/metrics")).text

    late, ready, after, metrics = asyncio.run(run())
    for response in late:
        check_problem(response, 504, "no answer within 0.2 seconds")
    check_problem(ready[0], 503, "the model has been busy for 0 seconds")
    assert ready[1].status_code == 200
    assert pairs(after)[0] == recommender.recommend([[3]]).items[0].tolist()
    assert held.ranked == recommender.encode([RankingRequest([1]), RankingRequest([3])]), (
        "the second was dropped"
    )
    assert 'lcrec_requests_total{route="/recommend",status="504"} 2.0' in metrics


def test_a_client_that_leaves_is_dropped(recommender):
    held = Held(recommender)
    left = asyncio.Event()
    body = json.dumps({"history": [2]}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    async def run():
        app = create_app(held, None, ServiceLimits(max_batch=1))
        async with connect(app) as client:
            busy = asyncio.create_task(client.post("/recommend", json={"history": [1]}))
            await asyncio.sleep(0.1)
            scope = {
                **{"type": "http", "method": "POST", "path": "/recommend", "query_string": b""},
                **{"headers": [(b"content-type", b"application/json")]},
            }
            leaver = asyncio.create_task(app(scope, receive, send))
            await asyncio.sleep(0.1)
            assert "lcrec_queue_depth 1.0" in (await client.get("/metrics")).text
            left.set()
            await leaver
            assert "lcrec_queue_depth 0.0" in (await client.get("/metrics")).text
            held.go_on.set()
            assert (await busy).status_code == 200
            return (await client.get("/metrics")).text

    metrics = asyncio.run(run())
    assert 'lcrec_requests_total{route="/recommend",status="499"} 1.0' in metrics
    assert held.ranked == recommender.encode([RankingRequest([1])])


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(recommender):
    held = Held(recommender)

    async def run():
        async with connect(
            create_app(held, None, ServiceLimits(max_batch=1, max_queue=2))
        ) as client:
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            tasks = []
            for item in range(3):  # one is being answered when the two others come to wait
                request = client.post("/recommend", json={"history": [item]})
                tasks.append(asyncio.create_task(request))
                await asyncio.sleep(0.1)
            refused = await client.post("/recommend", json={"history": [4]})
            unready, health = await client.get("/readyz"), await client.get("/healthz")
            held.go_on.set()
            return refused, unready, health, await asyncio.gather(*tasks)

    refused, unready, health, served = asyncio.run(run())
    check_problem(refused, 503, "2 requests are waiting")
    assert int(refused.headers["retry-after"]) >= 1
    check_problem(unready, 503)
    empty = dict.fromkeys(("model", "index", "data", "items", "fusion"))
    assert health.json() == {"status": "ok", **empty}
    for item, response in enumerate(served):
        assert pairs(response)[0] == recommender.recommend([[item]]).items[0].tolist()


def test_shutting_down_answers_what_is_queued(recommender):
    app = create_app(recommender, None, ServiceLimits(batch_wait=60000))

    async def run():
        async with connect(app) as client:
            tasks = [
                asyncio.create_task(client.post("/recommend", json={"history": [item]}))
                for item in range(3)
            ]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in tasks)
        return await asyncio.gather(*tasks)

    for item, response in enumerate(asyncio.run(run())):
        assert pairs(response)[0] == recommender.recommend([[item]]).items[0].tolist()


def test_nan_logits_are_one_requests_trouble(recommender, caplog):
    histories = [[1], [2, POISON], [3], [4], [POISON], [5]]
    app = create_app(recommender, None, ServiceLimits(batch_wait=200, max_batch=len(histories)))
    responses = ask(app, *(post("/recommend", history=history) for history in histories))
    for history, response in zip(histories, responses, strict=True):
        if POISON in history:
            check_problem(response, 500, "NaN")
        else:
            expected = recommender.recommend([history])
            items, scores = pairs(response)
            assert items == expected.items[0].tolist()
            assert np.allclose(scores, expected.scores[0], atol=1e-4)
    assert "NaN" in caplog.text
    # Beyond the history's end that the model is shown, the item does no harm.
    (response,) = ask(
        app := create_app(recommender), post("/recommend", history=[POISON, 1, 2, 3, 4])
    )
    assert response.status_code == 200


def test_what_nobody_foresaw_is_a_500_without_details(recommender, monkeypatch, caplog):
    def fail(*arguments, **named):
        raise RuntimeError("a secret path")

    monkeypatch.setattr(recommender, "rank", fail)
    recommend, item = ask(create_app(recommender), post("/recommend", history=[1]), get("/items/1"))
    check_problem(recommend, 500, "its log says what")
    assert "secret" not in recommend.text
    assert "a secret path" in caplog.text
    assert item.status_code == 200


def mutations(source):
    """Yield hostile requests without end: (method, path, arguments)."""
    junk = [
        *(
            None, True, -1, 0, 10**30, 1.5, "", "1", "\x00", "{{ 7*7 }}", "<a_1><b_1><c_1>",
            "😀" * 50,
        ),
        *([], {}, [[]], [None], [1, "2"], {"a": {"b": []}}, "x" * 5000, list(range(2000))),
        *("'; DROP TABLE items; --", "../../etc/passwd", "<|im_end|>", float("nan"), -(2**63)),
    ]  # fmt: skip
    paths = ["/recommend", "/search", "/items/1", "/", "//", "/items/", "/items/%00", "/metrics/x"]
    paths += ["/" + "a" * 3000, "/recommend?k=1", "/recommend%2f", "/../../etc", "/items/-1", "/é"]
    while True:
        kind = source.randrange(5)
        body = {"history": [source.randrange(POISON)], "k": 3, "query": "paint"}
        del body[source.choice(["history", "query"])]
        path = "/search" if "query" in body else "/recommend"
        if kind == 0:  # a field of the wrong kind
            fields = ["history", "query", "k", "allow", "deny", "filters", "template", "zzz"]
            body[source.choice(fields)] = source.choice(junk)
            yield "POST", path, {"content": json.dumps(body), "headers": JSON}
        elif kind == 1:  # a damaged body
            text = bytearray(json.dumps(body).encode())
            for _ in range(source.randrange(1, 6)):
                text[source.randrange(len(text))] = source.randrange(256)
            yield "POST", path, {"content": bytes(text), "headers": JSON}
        elif kind == 2:  # noise
            yield (
                "POST",
                path,
                {"content": source.randbytes(source.randrange(500)), "headers": JSON},
            )
        elif kind == 3:  # elsewhere, somehow
            method = source.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW"])
            yield method, source.choice(paths), {"json": source.choice(junk[:-2])}
        else:  # strange heads
            heads = {
                "Content-Type": source.choice(["text/plain", "application/json;;", "x", "*/*"]),
                "Authorization": source.choice(["Bearer", "Basic x", "\t"]),
                "Accept": "\x7f",
            }
            yield "POST", path, {"content": json.dumps(body), "headers": heads}


def test_a_thousand_hostile_requests_change_nothing(recommender, catalogue):
    app = create_app(recommender, catalogue, ServiceLimits(max_queue=2000))
    expected = {
        item: recommender.recommend([[item]], 5).items[0].tolist() for item in range(0, 40, 4)
    }
    source = random.Random(0)
    hostile = mutations(source)

    async def run():
        async with connect(app) as client:
            for _ in range(20):
                calls = [next(hostile) for _ in range(50)]
                tasks = [
                    asyncio.create_task(client.request(method, path, **rest))
                    for method, path, rest in calls
                ]
                good = {
                    item: asyncio.create_task(
                        client.post("/recommend", json={"history": [item], "k": 5})
                    )
                    for item in source.sample(sorted(expected), 3)
                }
                for (method, path, rest), task in zip(calls, tasks, strict=True):
                    response = await task
                    statuses.append(response.status_code)
                    if response.status_code >= 400:
                        assert response.status_code < 500, (method, path, rest, response.text)
                        if method != "HEAD":
                            check_problem(response, response.status_code)
                for item, task in good.items():
                    assert pairs(await task)[0] == expected[item]
            return (await client.get("/metrics")).text

    statuses = []
    metrics = asyncio.run(run())
    assert len(statuses) == 1000
    assert {400, 404, 405, 422} <= set(statuses)
    assert statuses.count(200) < 500
    counted = [line for line in metrics.splitlines() if line.startswith("lcrec_requests_total")]
    assert sum(float(line.split()[-1]) for line in counted) == 1000 + 60
    assert len({line.split('route="')[1].split('"')[0] for line in counted}) <= 9


def test_metrics_name_routes_and_statuses(recommender):
    async def run():
        async with connect(create_app(recommender)) as client:
            for path in ("/items/1", "/items/2", "/items/99", "/items", "/nope", "/healthz/x"):
                await client.get(path)
            await client.post("/recommend", json={"history": [1]})
            return await client.get("/metrics")

    response = asyncio.run(run())
    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'lcrec_requests_total{route="/items/{item}",status="200"} 2.0',
        'lcrec_requests_total{route="/items/{item}",status="404"} 1.0',
        'lcrec_requests_total{route="other",status="404"} 3.0',
        'lcrec_requests_total{route="/recommend",status="200"} 1.0',
        'lcrec_request_seconds_count{route="/recommend"} 1.0',
        "lcrec_batch_size_sum 1.0",
        "lcrec_batch_seconds_count 1.0",
        "lcrec_queue_depth 0.0",
    ):
        assert line in response.text, line


# Raw ids: item 40 is called 007.
NAMES = [f"{47 - item:03}" for item in range(ITEMS)]


@pytest.fixture
def by_raw_ids(recommender, catalogue):
    ids = replace(recommender.index, raw_ids=NAMES).ids
    return lambda: create_app(recommender, catalogue, ids=ids)


def test_items_go_by_raw_ids(recommender, catalogue, by_raw_ids):
    """Requests, answers and the page say the shop's own ids; the rankings are the same."""
    body = {"k": 5, "exclude_history": True}
    lists = {"history": [12, 7], "deny": [1, 2], "allow": list(range(30))}
    ours = {field: [NAMES[item] for item in own] for field, own in lists.items()}
    (by_number,) = ask(create_app(recommender, catalogue), post("/recommend", **body, **lists))
    ranked, found, item, schema = ask(
        by_raw_ids(),
        post("/recommend", **body, **ours),
        post("/search", query="red paint", k=3, history=[NAMES[3]]),
        get("/items/007"),
        get("/openapi.json"),
    )
    assert pairs(ranked)[0] == [NAMES[item] for item in pairs(by_number)[0]]
    assert pairs(ranked)[1] == pytest.approx(pairs(by_number)[1], abs=1e-4)
    assert set(pairs(found)[0]) <= set(NAMES)
    assert (item.json()["item"], item.json()["title"]) == ("007", "Thing 40")
    schemas = schema.json()["components"]["schemas"]
    calls = [
        post(path, **example)
        for path, form in (("/recommend", "RecommendRequest"), ("/search", "SearchRequest"))
        for example in schemas[form]["examples"]
    ]
    assert len(calls) == 2
    names = ["a/b", "a//b/", *NAMES[2:]]
    slashed = create_app(recommender, ids=IdMap("item", names, is_raw=True))
    for number, response in enumerate(ask(slashed, get("/items/a%2Fb"), get("/items/a//b/"))):
        assert response.json()["item"] == names[number]
    for response in ask(by_raw_ids(), *calls):
        assert pairs(response)[0]


def test_numbers_are_no_raw_ids(by_raw_ids):
    wrong, unknown, denied, item = ask(
        by_raw_ids(),
        post("/recommend", history=[7]),
        post("/recommend", history=["007", "7"], unknown="refuse"),
        post("/recommend", history=["007"], deny=["48"], unknown="refuse"),
        get("/items/7"),
    )
    check_problem(wrong, 422, "#/history/0", "string")
    check_problem(unknown, 422, "#/history/1", "item '7' is unknown")
    check_problem(denied, 422, "#/deny/0", "item '48' is unknown")
    check_problem(item, 404, "there is no item '7'")


# Reloading. The next catalogue has other titles and is of another version.


@pytest.fixture
def handlers(recommender, catalogue):
    renamed = Items([{"title": f"New {item}"} for item in range(ITEMS)])
    limits = ServiceLimits(batch_wait=300)
    return [
        RequestHandler(recommender, items, limits, versions=Versions(name, name, name, name))
        for items, name in ((catalogue, "old"), (renamed, "new"))
    ]


HEAD = {"Authorization": "Bearer secret"}


def test_a_reload_meets_requests_in_flight(handlers):
    """Those before it are answered by the old handler, in one batch with those after it."""
    old, new = handlers
    held = new.recommender = Held(new.recommender)
    held.go_on.set()
    app = service.create_app(Live(old, lambda: new), token="secret")

    async def run():
        async with connect(app, headers=HEAD) as client:
            before = asyncio.create_task(client.post("/recommend", json={"history": [1], "k": 3}))
            while "lcrec_queue_depth 1.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            health = await client.get("/healthz")
            reloaded = await client.post("/reload")
            after = await client.post("/recommend", json={"history": [2], "k": 3})
            known = await client.get("/items/5")
            return await before, health, reloaded, after, known, await client.get("/metrics")

    before, health, reloaded, after, known, metrics = asyncio.run(run())
    kinds = ("model", "index", "data", "items")
    assert health.json() == {"status": "ok", "fusion": None, **dict.fromkeys(kinds, "old")}
    assert reloaded.json() == {"status": "reloaded", "fusion": None, **dict.fromkeys(kinds, "new")}
    expected = old.recommender.recommend([[1], [2]], 3).items.tolist()
    assert [pairs(before)[0], pairs(after)[0]] == expected
    assert held.ranked == old.recommender.encode([RankingRequest([2])])
    assert [row["title"][:5] for row in before.json()["items"]] == ["Thing"] * 3
    assert [row["title"][:3] for row in after.json()["items"]] == ["New"] * 3
    assert known.json()["title"] == "New 5"
    assert "lcrec_batch_size_sum 2.0" in metrics.text
    assert "lcrec_batch_size_count 1.0" in metrics.text


def test_what_was_replaced_is_freed(handlers):
    kept = handlers[0]
    replaced = RequestHandler(kept.recommender, None, kept.limits)
    gone = weakref.ref(replaced)
    live = Live(replaced, lambda: kept)
    del replaced

    async def run():
        async with connect(service.create_app(live, token="secret"), headers=HEAD) as client:
            assert (await client.post("/recommend", json={"history": [1]})).status_code == 200
            assert (await client.post("/reload")).status_code == 200
            return gone()

    assert asyncio.run(run()) is None


def raw_ids(handlers):
    names = IdMap("item", NAMES, is_raw=True)
    return RequestHandler(handlers[0].recommender, None, None, names)


def refuse(handlers):
    raise InputError("--model gone: not a checkpoint")


def fail(handlers):
    raise RuntimeError("a secret path")


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (refuse, ["not reloaded", "--model gone: not a checkpoint"]),
        (fail, ["not reloaded", "the service's log says what"]),
        (raw_ids, ["items would go by raw ids", "start the service again"]),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(handlers, caplog, load, words):
    app = service.create_app(Live(handlers[0], lambda: load(handlers)), token="secret")
    refused, health, ranked = ask(
        app, ("POST", "/reload", {}), get("/healthz"), post("/recommend", history=[1]), headers=HEAD
    )
    check_problem(refused, 409, *words)
    assert "secret" not in refused.text
    assert "not reloaded, what was loaded before goes on" in caplog.text
    assert health.json()["model"] == "old"
    assert pairs(ranked)[0]


def test_who_may_reload_and_when(handlers):
    old, new = handlers
    (closed,) = ask(service.create_app(Live(old, lambda: new)), ("POST", "/reload", {}))
    check_problem(closed, 403, "LCREC_TOKEN", "SIGHUP")
    go_on = threading.Event()

    def load():
        assert go_on.wait(10)
        return new

    async def run():
        async with connect(service.create_app(Live(old, load), token="secret")) as client:
            stranger = await client.post("/reload")
            first = asyncio.create_task(client.post("/reload", headers=HEAD))
            await asyncio.sleep(0.1)
            second = await client.post("/reload", headers=HEAD)
            health = await client.get("/healthz")
            go_on.set()
            return stranger, await first, second, health

    stranger, first, second, health = asyncio.run(run())
    check_problem(stranger, 401)
    check_problem(second, 409, UNDER_WAY)
    assert health.json()["model"] == "old"
    assert first.json()["model"] == "new"


# The access log.


def test_the_access_log_says_what_happened_and_nothing_that_was_written(
    recommender, user_data, tmp_path
):
    path = tmp_path / "access.jsonl"
    app = create_app(
        recommender, user_data=user_data, token="secret", log_access=open_access_log(path),
        versions=Versions(model="abc"),
    )  # fmt: skip
    calls = [
        post("/recommend", history=[1, 99], deny=[50]),
        post("/search", query="a private matter"),
        post("/recommend", user="a private person"),
        get("/private/place"),
        ("private", "/items/7", {}),
        post("/recommend", history=["private"]),
    ]

    async def run():
        async with connect(app, headers=HEAD) as client:
            for number, (method, place, rest) in enumerate(calls):
                await client.request(method, place, **rest)
                if number == 2:  # as logrotate does
                    path.rename(tmp_path / "access.1")
            await client.get("/metrics", headers={"Authorization": "Bearer private"})

    asyncio.run(run())
    moved, text = (tmp_path / "access.1").read_text(), path.read_text()
    assert "private" not in moved + text
    lines = [json.loads(line) for line in (moved + text).splitlines()]
    assert len(moved.splitlines()) == 3
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/recommend", 200),
        ("POST", "/search", 200),
        ("POST", "/recommend", 200),
        ("GET", "other", 404),
        ("other", "/items/{item}", 405),
        ("POST", "/recommend", 422),
        ("GET", "/metrics", 401),
    ]
    assert [line.get("ignored") for line in lines] == [2, 0, 1, None, None, None, None]
    assert [line.get("fallback") for line in lines[:3]] == [False, False, True]
    assert [line.get("model") for line in lines[:4]] == ["abc", "abc", "abc", None]
    for line in lines:
        assert 0 <= line["ms"] < 60_000
        assert abs(datetime.now(UTC) - datetime.fromisoformat(line["time"])).seconds < 60


def test_an_access_log_that_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(InputError, match=r"--access-log .* cannot be written to"):
            open_access_log(path)
