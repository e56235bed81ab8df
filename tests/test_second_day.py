"""A messy shop of 300 customers, from files to the service, and what the second day brings it.

Times have zones, SKUs have dashes, texts have markup, lines stand twice. Day two has new orders and
products, a customer whom nobody knows, a list of what is sold out, other prices, and reloads.
"""

import csv
import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lcrec.__main__ import main
from lcrec.core.errors import InputError
from lcrec.serve.app import create_app
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.live import Live
from lcrec.serve.loading import ServiceSources, load_handler

BUYERS = [f"C{number:05}" for number in range(80)]  # who come on the second day


@pytest.fixture
def place(tmp_path, monkeypatch, load_script):
    """The shop's files of both days, in the current folder."""
    monkeypatch.chdir(tmp_path)
    script = load_script("scripts/messy_shop.py")
    script.write_files(script.MessyShopConfig(tmp_path))
    return tmp_path


def read(name):
    with Path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=";"))


def lcrec(line):
    main(line.split())


def point(link, target):
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@pytest.mark.slow
def test_the_second_day(place, finetune, capsys):
    lcrec(
        "prepare --format table --interactions orders.csv --items products.csv --output data/mine "
        "--columns user=customer,item=sku,time=ordered_at,title=name --category-separator > "
        "--keep price"
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

        products = {row["sku"] for row in read("products.csv")}
        known = recommend(user="C00003", k=3, filters={"price": {"max": 60}})
        assert {item["item"] for item in known["items"]} < products
        assert "<" not in json.dumps(known)
        stranger = recommend(user="N-1", k=3)
        assert stranger["ignored"] == {"user": ["N-1"]}
        assert stranger["fallback"] == "popularity"

        lcrec(
            "add_interactions --data data/today --interactions new_orders.csv --output data/second "
            "--items new_products.csv"
        )
        out = capsys.readouterr().out
        # Of the three that the file has of day one, those join that too few had bought.
        assert re.search(r"Adding [2-5] items to", out)
        assert re.search(r"items not in the catalogue: \d+ \('.*\)", out)
        model = "--model runs/mine/model --data data/second"
        judge = f"evaluate pairs --embeddings runs/second/e --users 9 {model}"
        lcrec("embed --data data/second --embeddings runs/mine/embeddings --output runs/second/e")
        for command in (f"generate {model} --user N-2", judge):
            with pytest.raises(InputError, match=r"items joined after .*--index"):
                lcrec(command)
        lcrec(
            "quantize --data data/second --index runs/mine/index --embeddings runs/second/e "
            "--output runs/second/index"
        )
        lcrec(f"{judge} --index runs/second/index")
        lcrec(
            f"generate {model} --index runs/second/index "
            "--all-users --output runs/rankings --k 5 --deny sold_out.txt --unknown ignore"
        )
        assert "ignoring 1 items that are not in the catalogue ('NEVER-SEEN')" in (
            capsys.readouterr().out
        )
        lines = (place / "runs" / "rankings" / "part-00000.jsonl").read_text().splitlines()
        ranked = {row["user"]: row["ranked"] for row in map(json.loads, lines)}
        customers = {row["customer"] for row in read("orders.csv")}
        came = {row["customer"] for row in read("new_orders.csv")}
        assert {"N-1", "N-2"} == came - customers
        assert len(ranked.keys() & set(BUYERS)) > 70  # the others bought too little before
        assert {"N-1", "N-2"} <= ranked.keys() <= customers | {"N-1", "N-2"}
        sold_out = (place / "sold_out.txt").read_text().split()
        new = [row["sku"] for row in read("new_products.csv") if row["sku"] not in products]
        sellable = (products | set(new)) - set(sold_out)
        assert all(len(own) == 5 and set(own) <= sellable for own in ranked.values())

        for name in ("data", "runs"):
            point(place / name / "today", "second")
        assert client.post("/reload").json()["status"] == "reloaded"
        shown = client.get(f"/items/{new[0]}").json()
        assert shown["title"].endswith(" & box")
        assert shown["fields"]["categories"].count(", ") == 1
        newcomer = recommend(user="N-2", k=5, deny=sold_out)
        assert newcomer["fallback"] is None
        assert newcomer["ignored"] == {"deny": ["NEVER-SEEN"]}
        assert [item["item"] for item in newcomer["items"]] == ranked["N-2"]
        first = recommend(history=[new[1], "TE-300"], allow=[new[0]], k=1)
        assert first["items"][0]["item"] == new[0]

        # In the evening the prices change; nothing else is made anew.
        lcrec("add_items --data data/today --add prices.csv --output data/evening")
        assert "their texts stay, and new values: price of" in capsys.readouterr().out
        point(place / "data" / "today", "evening")
        assert client.post("/reload").json()["status"] == "reloaded"
        prices = {row["sku"]: float(row["price"].split()[0].replace(",", "."))
                  for row in read("prices.csv")}  # fmt: skip
        cheap = recommend(user="N-2", k=9, filters={"price": {"max": 20}})["items"]
        assert len(cheap) == 9
        assert all(prices[item["item"]] <= 20 for item in cheap if item["item"] not in new)
