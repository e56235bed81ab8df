"""A messy shop of 300 customers, from files to the service, and what the second day brings it.

Times have zones, SKUs have dashes, texts have markup, lines stand twice. Day two has new orders and
products, a customer whom nobody knows, a list of what is sold out, and a reload.
"""

import csv
import datetime
import json
import random

import pytest
from fastapi.testclient import TestClient

from lcrec.__main__ import main
from lcrec.core.errors import InputError
from lcrec.serve.app import create_app
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.live import Live
from lcrec.serve.loading import ServiceSources, load_handler

KINDS = ["desk lamp", "oak chair", "wool rug", "tea mug", "wall clock", "linen curtain"]
COLOURS = ["red", "blue", "green", "grey", "white", "black", "yellow", "brown"]
START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
ZONES = [datetime.timezone(datetime.timedelta(hours=hours)) for hours in (0, 2, -5)]
PRODUCTS = [
    (f"{kind[:2].upper()}-{number}{place:02}", f"<b>{colour}</b> {kind} &amp; box", f"<p>A {kind}")
    for number, kind in enumerate(KINDS)
    for place, colour in enumerate(COLOURS)
]
NEW = [("NW-900-S", "<i>Crimson</i> desk lamp", "Lamp<br>new"), ("NW-901", "Teal wool rug", "")]
CUSTOMERS = [f"C{number:05}" for number in range(300)]
SOLD_OUT = ["DE-000", "WO-203", "NEVER-SEEN"]


def orders(rng, customers, day, days, count):
    """Each customer mostly buys of one kind."""
    rows = []
    for customer in customers:
        taste = rng.randrange(len(KINDS))
        for _ in range(count):
            kind = taste if rng.random() < 0.8 else rng.randrange(len(KINDS))
            moment = day + datetime.timedelta(seconds=rng.randrange(days * 86_400))
            sku = PRODUCTS[kind * len(COLOURS) + rng.randrange(len(COLOURS))][0]
            rows.append((customer, sku, moment.astimezone(rng.choice(ZONES)).isoformat()))
    rng.shuffle(rows)
    return rows + rows[:9]


def write(path, head, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The shop's files of both days, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(5)
    head = ("customer", "sku", "ordered_at")
    write(tmp_path / "orders.csv", head, orders(rng, CUSTOMERS, START, 150, 10))
    write(tmp_path / "products.csv", ("sku", "name", "description"), PRODUCTS)
    day = START + datetime.timedelta(days=150)
    rows = orders(rng, [*CUSTOMERS[:80], "N-1"], day, 1, 2)
    rows += [(CUSTOMERS[3], "NW-900-S", f"{day.date()}T23:30:00-05:00")]
    rows += [("N-2", "NW-901", f"{day.date()}T12:00:00Z"), ("N-2", "XX-404", f"{day.date()}T12:00")]
    write(tmp_path / "new_orders.csv", head, rows)
    write(tmp_path / "new_products.csv", ("sku", "name", "description"), NEW + PRODUCTS[:3])
    (tmp_path / "sold_out.txt").write_text("\n".join(SOLD_OUT))
    return tmp_path


def lcrec(line):
    main(line.split())


def point(link, target):
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@pytest.mark.slow
def test_the_second_day(place, finetune, capsys):
    lcrec(
        "prepare --format table --interactions orders.csv --items products.csv --output data/mine "
        "--columns user=customer,item=sku,time=ordered_at,title=name"
    )
    lcrec("embed --data data/mine --output runs/mine/embeddings --lsa-dim 16")
    lcrec(
        "quantize --data data/mine --embeddings runs/mine/embeddings --output runs/mine/index "
        "--epochs 20 --levels 4 --codes 8"
    )
    inputs = {"--data": place / "data" / "mine", "--index": place / "runs" / "mine" / "index"}
    finetune(place / "runs" / "mine" / "model", *(word for pair in inputs.items() for word in pair))
    for name in ("data", "runs"):
        point(place / name / "today", "mine")
    sources = ServiceSources(
        model=place / "runs" / "mine" / "model",
        data=place / "data" / "today",
        index=place / "runs" / "today" / "index",
    )

    def load():
        return load_handler(sources, ServiceLimits())

    head = {"Authorization": "Bearer secret"}
    with TestClient(create_app(Live(load(), load), token="secret"), headers=head) as client:

        def recommend(**body):
            answer = client.post("/recommend", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        known = recommend(user=CUSTOMERS[3], k=3)
        assert {item["item"] for item in known["items"]} < {sku for sku, _, _ in PRODUCTS}
        assert "<" not in json.dumps(known)
        stranger = recommend(user="N-1", k=3)
        assert stranger["ignored"] == {"user": ["N-1"]}
        assert stranger["fallback"] == "popularity"

        lcrec(
            "add_interactions --data data/today --interactions new_orders.csv --output data/second "
            "--items new_products.csv"
        )
        out = capsys.readouterr().out
        assert "Adding 2 items to" in out
        assert "'XX-404'" in out
        with pytest.raises(InputError, match=r"items joined after .*--index"):
            lcrec("generate --model runs/mine/model --data data/second --user N-2")
        lcrec("embed --data data/second --embeddings runs/mine/embeddings --output runs/second/e")
        lcrec(
            "quantize --data data/second --index runs/mine/index --embeddings runs/second/e "
            "--output runs/second/index"
        )
        lcrec(
            "generate --model runs/mine/model --index runs/second/index --data data/second "
            "--all-users --output runs/rankings --k 5 --deny sold_out.txt --unknown ignore"
        )
        assert "ignoring 1 items that are not in the catalogue ('NEVER-SEEN')" in (
            capsys.readouterr().out
        )
        lines = (place / "runs" / "rankings" / "part-00000.jsonl").read_text().splitlines()
        ranked = {row["user"]: row["ranked"] for row in map(json.loads, lines)}
        assert {"N-1", "N-2", *CUSTOMERS[:80]} <= ranked.keys() <= {"N-1", "N-2", *CUSTOMERS}
        sellable = {sku for sku, *_ in [*PRODUCTS, *NEW]} - set(SOLD_OUT)
        assert all(len(own) == 5 and set(own) <= sellable for own in ranked.values())

        for name in ("data", "runs"):
            point(place / name / "today", "second")
        assert client.post("/reload").json()["status"] == "reloaded"
        assert client.get("/items/NW-900-S").json()["title"] == "Crimson desk lamp"
        newcomer = recommend(user="N-2", k=5, deny=SOLD_OUT)
        assert newcomer["fallback"] is None
        assert newcomer["ignored"] == {"deny": ["NEVER-SEEN"]}
        assert [item["item"] for item in newcomer["items"]] == ranked["N-2"]
        first = recommend(history=["NW-901", "TE-300"], allow=["NW-900-S"], k=1)
        assert first["items"][0]["item"] == "NW-900-S"
