"""Rankings that the service changes: fused, calibrated, with places for new items."""

import asyncio
import json
import re
import shutil

import httpx
import numpy as np
import pytest

from lcrec.core.errors import InputError
from lcrec.data.data_set import load_data
from lcrec.generate.__main__ import main as generate
from lcrec.serve import __main__ as serve
from lcrec.serve.app import create_app
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.live import Live
from lcrec.serve.loading import ServiceSources, load_handler


def load(checkpoint, data, **settings):
    sources = ServiceSources(model=checkpoint, data=data, **settings)
    return load_handler(sources, ServiceLimits(max_batch=64, batch_wait=20))


def ask(live, *bodies, path="/recommend"):
    """Send bodies all at once; return the answers."""

    async def run():
        app = create_app(live)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://service", timeout=60
            ) as client,
        ):
            return await asyncio.gather(*(client.post(path, json=body) for body in bodies))

    return asyncio.run(run())


def items_of(response):
    assert response.status_code == 200, response.text
    return [row["item"] for row in response.json()["items"]]


@pytest.fixture(scope="module")
def live(fused, checkpoint, shop):
    return Live(load(checkpoint, shop, fuse=str(fused("adaptive"))), None)


@pytest.mark.usefixtures("fast_bf16")
def test_arithmetic_that_is_faster_here_is_told(checkpoint, shop):
    assert any("--precision bf16 saves time" in line for line in load(checkpoint, shop).told)


@pytest.mark.parametrize(
    "ways",
    [
        {"fuse": "adaptive"},
        {"fuse": "cooccurrence"},
        {"calibrate": "0.6"},
        {"fuse": "adaptive", "calibrate": "auto", "exclude_history": True},
    ],
)
def test_a_customer_gets_what_generate_ranks(fused, checkpoint, shop, tmp_path, capsys, ways):
    ways = dict(ways)
    if ways.get("fuse") == "adaptive":
        ways["fuse"] = str(fused("adaptive"))
    exclude = ways.pop("exclude_history", False)
    words = ["--model", checkpoint, "--data", shop, "--all-users", "--output", tmp_path / "all"]
    words += [word for way, value in ways.items() for word in (f"--{way}", value)]
    generate([*map(str, words), "--k", "20", *["--exclude-history"][: int(exclude)]])
    rows = [
        json.loads(line)
        for part in (tmp_path / "all").glob("part-*.jsonl")
        for line in part.read_text().splitlines()
    ]
    handler = load(checkpoint, shop, **ways)
    bodies = [{"user": row["user"], "k": 20, "exclude_history": exclude} for row in rows]
    answers = ask(Live(handler, None), *bodies)
    assert len(rows) == 60
    for row, answer in zip(rows, answers, strict=True):
        assert items_of(answer) == row["ranked"]
        scores = [item["score"] for item in answer.json()["items"]]
        assert scores == pytest.approx(row["scores"], abs=1e-3)
    serve.print_welcome("127.0.0.1", 8000, serve.Welcome.of(handler), None)
    screen = capsys.readouterr().out
    assert ("/recommend is fused by score: weight " in screen) == ("fuse" in ways)
    assert ("weight 0.5 for the model's" in screen) == (ways.get("fuse") == "cooccurrence")
    assert (f"--calibrate {handler.recommender.share:g}" in screen) == ("calibrate" in ways)


def test_lists_filters_and_odd_requests(live, shop, fused):
    """Whatever the two rankings hold, an answer holds what was asked for."""
    data = load_data(shop)
    user = next(name for name, items in zip(data.interactions.users, data.interactions, strict=True)
                if len(set(items.tolist())) < 12)  # fmt: skip
    own = set(data.interactions.sequence(data.interactions.users.index(user)).tolist())
    brand = data.items.fields[0]["brand"]
    branded = {item for item, fields in enumerate(data.items.fields) if fields["brand"] == brand}
    (first,) = ask(live, {"user": user, "k": 10})
    best = items_of(first)
    denied, allowed, filtered, masked, all_of_it, unknown, fallback, nobody, short, again = ask(
        live,
        {"user": user, "k": 10, "deny": best[:3]},
        {"user": user, "k": 3, "allow": [*best[4:6], 40]},
        {"user": user, "k": len(branded), "filters": {"brand": [brand]}},
        {"user": user, "k": 10, "exclude_history": True},
        {"user": user, "k": 48},
        {"history": [*best[:1], 99], "k": 2},
        {"history": [], "k": 2},
        {"user": "nobody", "k": 2},
        {"user": user, "k": 48, "exclude_history": True},
        {"user": user, "k": 10},
    )
    assert not set(items_of(denied)) & set(best[:3])
    assert len(items_of(denied)) == 10
    assert set(items_of(allowed)) == {*best[4:6], 40}
    assert set(items_of(filtered)) == branded
    assert not set(items_of(masked)) & own
    assert sorted(items_of(all_of_it)) == list(range(48))
    assert unknown.json()["ignored"] == {"history": [99]}
    for popular in (fallback, nobody):
        assert popular.json()["fallback"] == "popularity"
        assert all(row["score"] < 0 for row in popular.json()["items"])
    assert set(items_of(short)) == set(range(48)) - own
    assert items_of(again) == best
    for answer in (first, denied, allowed, masked, all_of_it):
        scores = [row["score"] for row in answer.json()["items"]]
        assert scores == sorted(scores, reverse=True)
        assert 0 <= scores[-1] <= scores[0] <= 1
    one, everything = ask(live, {"user": user, "k": 2, "allow": [5]}, {"user": user, "k": 49})
    assert items_of(one) == [5]
    assert items_of(everything) == items_of(all_of_it)


def test_a_reload_counts_anew(checkpoint, shop, fused, tmp_path):
    """Overnight everybody took item 9 after item 21; the weights moved to the counted ranking."""
    data, fusion = shutil.copytree(shop, tmp_path / "data"), tmp_path / "f.lcrec.json"
    shutil.copy(fused("score").with_suffix(".lcrec.json"), fusion)
    record = json.loads(fusion.read_text())
    fusion.write_text(json.dumps(record | {"weights": [1, 0]}))
    ways = {"fuse": str(tmp_path / "f.jsonl")}
    live = Live(load(checkpoint, data, **ways), lambda: load(checkpoint, data, **ways))
    plain = load(checkpoint, shop).recommender.recommend([[21]], 10).items[0].tolist()
    assert items_of(*ask(live, {"history": [21]})) == plain
    inter = next(data.glob("*.inter.json"))
    sequences = {user: [*items, 21, 9] for user, items in json.loads(inter.read_text()).items()}
    inter.write_text(json.dumps(sequences))
    fusion.write_text(json.dumps(record | {"weights": [0, 1]}))
    before = live.handler.versions
    asyncio.run(live.reload())
    after = live.handler.versions
    assert (before.model == after.model, before.fusion == after.fusion) == (True, False)
    assert items_of(*ask(live, {"history": [21], "k": 1})) == [9]
    assert any("weight 0 for the model's ranking and 1 for" in line for line in live.handler.told)
    fusion.unlink()
    with pytest.raises(InputError, match=r"no fusion \(.*f.lcrec.json: no such file\)"):
        asyncio.run(live.reload())
    assert items_of(*ask(live, {"history": [21], "k": 1})) == [9]


def test_places_for_new_items(checkpoint, grown, shop):
    handler = load(checkpoint, grown / "data", index=grown / "index", reserve_new=1)
    body = {"history": [3, 7], "k": 4}
    one, two, none, small, refused = ask(
        Live(handler, None),
        body,
        body | {"reserve_new": 2},
        body | {"reserve_new": 0},
        body | {"k": 1, "deny": [48]},
        body | {"reserve_new": 5},
    )
    expected = {
        places: handler.recommender.recommend([[3, 7]], 4, reserve_new=places).items[0].tolist()
        for places in (0, 1, 2)
    }
    assert [items_of(one), items_of(two), items_of(none)] == [expected[n] for n in (1, 2, 0)]
    assert set(items_of(two)[2:]) == {48, 49}
    assert items_of(small) == [49]
    assert refused.status_code == 422
    assert "#/reserve_new: 5 of 4 places" in refused.json()["detail"]
    # Where no item is new, as after the next training, there is nothing to reserve places for.
    old = Live(load(checkpoint, shop), None)
    assert items_of(*ask(old, body | {"reserve_new": 2})) == expected[0][:4]


def test_new_items_among_fused_ones(checkpoint, grown):
    """Nobody took a new item yet; counted, it would come by itself."""
    ways = {"index": grown / "index", "fuse": "cooccurrence", "reserve_new": 2}
    handler = load(checkpoint, grown / "data", **ways)
    (answer,) = ask(Live(handler, None), {"history": [3, 7], "k": 6})
    assert set(items_of(answer)[4:]) == {48, 49}
    scores = [row["score"] for row in answer.json()["items"]]
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fuse", "cooccurrence"], "--fuse cooccurrence needs --data"),
        (["--calibrate", "0.5"], "--calibrate 0.5 needs --data"),
        (["--calibrate", "2", "--data"], "--calibrate 2: give a share from 0 to 1, or auto"),
        (["--reserve-new", "2", "--data"], "--reserve-new 2 needs --index"),
        (["--fuse", "nowhere", "--data"], "--fuse nowhere: no fusion (nowhere/lcrec.json: no such"),
    ],
)
def test_flags_that_lack_others(checkpoint, shop, words, message):
    words = [*words, str(shop)] if words[-1] == "--data" else words
    with pytest.raises(InputError, match=re.escape(message)):
        serve.main(["--model", str(checkpoint), "--port", "0", *words])
